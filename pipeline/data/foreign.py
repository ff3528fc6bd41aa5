"""Demonstrations that were recorded elsewhere, whatever file they came in, as a dataset of ours.

    found = read_plain_npz("theirs.npz")                             # every reader of `formats` gives a ForeignSet
    trajectories, metadata = take_in(found, ImportTarget(task, "calm"), leave_out=[3], clip_actions=True)

What a file does not hold is None here, and missing in what becomes of it (`DatasetMetadata.missing`): nothing is made
up. The result is a draft until `pipeline.validation.validate` passed it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.config.task import TaskConfig
from pipeline.data.metadata import DatasetMetadata
from pipeline.data.observations import row_dtype
from pipeline.data.spaces import space_to_json
from pipeline.data.trajectories import METRIC_PREFIX, UNKNOWN_SEED, Trajectories, concatenate, content_digest
from pipeline.errors import BadInput, shortened
from pipeline.files import DIGEST_LENGTH, strict_json
from pipeline.names import Metric

MAX_SEED: Final = int(np.iinfo(np.int64).max)
SPARE_BYTES: Final = 1 << 26
EXPANSION: Final = 64  # a file may unpack to this multiple of its size and the spare bytes
UNDECLARED: Final = "spaces"  # in `missing`: neither the file nor a task says what they are
UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class ForeignEpisode:
    """One episode of T steps as a file of others holds it; None: the file does not say."""

    observations: np.ndarray  # (T + 1, *obs_shape), or (T, *obs_shape) without the one after the last step
    actions: np.ndarray  # (T, *act_shape) what the environment received
    labels: np.ndarray | None = None  # (T, *act_shape) what the demonstrator answered, where that is told apart
    rewards: np.ndarray | None = None  # (T,)
    terminations: np.ndarray | None = None  # (T,)
    truncations: np.ndarray | None = None  # (T,) None beside terminations: what did not end there was cut off
    seed: int | None = None
    infos: Mapping[str, np.ndarray] | None = None  # (T,) or, with the reset's before them, (T + 1,)
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of ours: scenario, and figures as `metric.<name>`


@dataclass(frozen=True)
class ForeignSet:
    """What a reader found in a file or folder."""

    format: str  # "minari", "npz", ...
    episodes: tuple[ForeignEpisode, ...]
    name: str
    version: str
    digest: str  # of the file, or of all files of the folder
    algorithm: str = UNKNOWN
    observation_space: spaces.Space | None = None
    action_space: spaces.Space | None = None
    environment: Mapping[str, Any] | None = None  # id, kwargs, wrappers
    ignored: tuple[str, ...] = ()  # what it holds beside them that means nothing here
    own_metadata: Any = None  # of a dataset that was exported from here
    partial_infos: bool = False  # the format has room for some infos only: another one's absence is no mistake


class RecordedTask(Protocol):
    """What episodes that were recorded elsewhere are held to; `pipeline.tasks.Task` is one."""

    config: TaskConfig
    environment_kwargs: dict[str, Any]

    @property
    def wrappers(self) -> list[Any]: ...

    @property
    def observation_space(self) -> gym.Space[Any]: ...

    @property
    def action_space(self) -> gym.Space[Any]: ...

    def figures(
        self,
        infos: Mapping[str, Sequence[float]] | None,
        rewards: Sequence[float] | None,
        length: int,
        partial_infos: bool = False,
    ) -> dict[str, float]:
        """What the task says of an episode, from one number of each info and one reward a step. Raises BadInput.

        Without infos, or rewards, without the figures that follow from them; with `partial_infos` also without those
        of an info that is not there.
        """


@dataclass(frozen=True)
class ImportTarget:
    """What an imported dataset is to us: episodes of one scenario of a task."""

    task: RecordedTask
    scenario: str
    scenario_set: str = "train"
    behind_wrappers: bool = False  # it says nothing of wrappers, and passed those of the task


def source_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of all files in a folder, cut to 36 characters."""
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]
    held = {str(file.relative_to(path)): source_digest(file) for file in sorted(path.rglob("*")) if file.is_file()}
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:DIGEST_LENGTH]


def take_in(
    found: ForeignSet, target: ImportTarget | None, leave_out: Sequence[int] = (), clip_actions: bool = False
) -> tuple[Trajectories, DatasetMetadata]:
    """A set of others as episodes of a task, described; without a target as what it says itself: ours, or for a look.

    `leave_out` are numbers of episodes in the order of the file; `clip_actions` puts those of a Box into it. Raises
    BadInput for episodes that do not fit each other or the task.
    """
    kept = kept_episodes(len(found.episodes), leave_out)
    if target is None and found.own_metadata is not None:
        return _ours(found, kept, clip_actions)
    if target is not None and target.scenario not in target.task.config.scenario_sets.get(target.scenario_set, {}):
        name = target.task.config.name
        raise BadInput(f"scenario {target.scenario!r} is not in scenario set {target.scenario_set!r} of {name!r}")
    demonstrator: dict[str, Any] = {
        "kind": "imported",
        "name": found.name,
        "version": found.version,
        "digest": found.digest,
        "algorithm": found.algorithm,
        "format": found.format,
    }
    if leave_out:
        demonstrator["left_out_episodes"] = sorted(leave_out)
    if found.ignored:
        demonstrator["ignored"] = list(found.ignored)
    too_large = sum((found.episodes[index].seed or 0) > MAX_SEED for index in kept)
    if too_large:
        demonstrator["seeds"] = f"those of {too_large} episodes have more than 63 bits and are kept as unknown"
    task = None if target is None else target.task
    observation_space, action_space = found.observation_space, found.action_space
    undeclared = observation_space is None or action_space is None
    if undeclared and task is not None:
        observation_space, action_space = task.observation_space, task.action_space
        found = _as_declared(found, observation_space, action_space)
    elif observation_space is None or action_space is None:
        observation_space, action_space = _seen(found)
    elif task is not None and isinstance(observation_space, spaces.Box) and observation_space.dtype == np.uint8:
        found, observation_space = _channels_first(found, observation_space, task.observation_space)
    if clip_actions:
        found, demonstrator["clipped"] = _clipped(found, kept, action_space)
    scenario = UNKNOWN if target is None else target.scenario

    def figures_of(episode: ForeignEpisode) -> dict[str, float]:
        rewards = None if episode.rewards is None else episode.rewards.tolist()
        length = len(episode.actions)
        if task is not None:
            return task.figures(_series_of(episode.infos, length), rewards, length, found.partial_infos)
        return {**({} if rewards is None else {Metric.RETURN: sum(rewards)}), Metric.LENGTH: float(length)}

    trajectories = _assemble(found, kept, lambda _: scenario, figures_of)
    missing = [*trajectories.missing]
    if task is None:
        missing += [UNDECLARED] * undeclared + ([] if Metric.RETURN in trajectories.metrics else ["metric.return"])
    else:
        config = task.config
        told = [Metric.RETURN, Metric.SUCCESS, *([Metric.COLLISION] if config.collision else []), *config.metrics]
        missing += [METRIC_PREFIX + name for name in told if name not in trajectories.metrics]
    unknown = {"id": UNKNOWN, "kwargs": {}, "wrappers": [], "scenarios": {}}
    name = UNKNOWN if task is None else task.config.name
    return trajectories, DatasetMetadata(
        dataset_id=f"{name}-imported-{found.digest[:8]}",
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        task=name,
        scenario_set=UNKNOWN if target is None else target.scenario_set,
        scenario_coverage=dict(Counter(trajectories.scenarios.tolist())),
        requested_shares={scenario: 1.0},
        demonstrator=demonstrator,
        seeds=(),
        noise_std=0.0,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(observation_space),
        action_space=space_to_json(action_space),
        environment=unknown if target is None else _environment(found.environment, target),
        holdout_scenarios=() if task is None else tuple(sorted(task.config.holdout_scenarios())),
        episodes=len(trajectories),
        steps=trajectories.steps,
        content_digest=content_digest(trajectories),
        horizon=None if task is None else task.config.horizon,
        missing=tuple(missing),
    )


def kept_episodes(count: int, leave_out: Sequence[int]) -> list[int]:
    """Numbers of the episodes that are not left out. Raises BadInput for a number that is none, and for all of them."""
    if wrong := [index for index in leave_out if index >= count]:
        raise BadInput(f"leave_out: there is no episode {wrong[0]}; there are {count}, numbered from 0")
    kept = sorted({*range(count)}.difference(leave_out))
    if count and not kept:
        raise BadInput(f"leave_out names all {count} episodes; nothing would be left")
    return kept


def short_text(value: Any) -> str:
    """An id, version or scenario that a file says. Raises ValueError."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.isprintable() or not 0 < len(text) <= 200:
        raise ValueError(f"{shortened(value)} should be a short text (an id, version or scenario)")
    return text


def _ours(found: ForeignSet, kept: Sequence[int], clip_actions: bool) -> tuple[Trajectories, DatasetMetadata]:
    """What was exported from here; less what was left out, the same bits and the same metadata."""
    if clip_actions:
        raise BadInput(f"{found.format} dataset: it was exported from here; clip_actions is for those of others")

    def figures(episode: ForeignEpisode) -> dict[str, float]:
        named = {key: value for key, value in episode.attributes.items() if key.startswith(METRIC_PREFIX)}
        return {key.removeprefix(METRIC_PREFIX): value for key, value in named.items()}

    try:
        metadata = DatasetMetadata.from_data(strict_json(json.dumps(found.own_metadata)))
    except ValueError as error:
        raise BadInput(f"{found.format} dataset: what we wrote of it is no plain JSON any more: {error}") from None
    trajectories = _assemble(found, kept, lambda one: short_text(one.attributes.get("options/scenario")), figures)
    left_out = sorted({*range(len(found.episodes))}.difference(kept))
    if not left_out:
        return trajectories, metadata
    demonstrator = metadata.demonstrator
    if demonstrator["kind"] == "imported":  # of others the seeds may not be known
        gone = [*demonstrator.get("left_out_episodes", ()), *(f"{i} of {metadata.dataset_id}" for i in left_out)]
        demonstrator = {**demonstrator, "left_out_episodes": gone}
    seeds = {found.episodes[index].seed for index in left_out} - {None, UNKNOWN_SEED}
    return trajectories, replace(
        metadata,
        demonstrator=demonstrator,
        scenario_coverage=dict(sorted(Counter(trajectories.scenarios.tolist()).items())),
        episodes=len(trajectories),
        steps=trajectories.steps,
        content_digest=content_digest(trajectories),
        left_out=tuple(sorted({*metadata.left_out, *seeds})),
    )


def _assemble(
    found: ForeignSet,
    kept: Sequence[int],
    scenario_of: Callable[[ForeignEpisode], str],
    figures_of: Callable[[ForeignEpisode], dict[str, float]],
) -> Trajectories:
    """The episodes `kept` of a set, those that lack a part all lacking it. Raises BadInput, by episode."""
    episodes = {index: found.episodes[index] for index in kept}
    for part in ("labels", "rewards", "terminations", "truncations"):
        without = [index for index, episode in episodes.items() if getattr(episode, part) is None]
        if 0 < len(without) < len(episodes):
            raise BadInput(
                f"{found.format} dataset: episode {without[0]} has no {'infos/label' if part == 'labels' else part}, "
                "others have; what was executed there is not taken for what the demonstrator answered, and nothing "
                "stands in for what is not there: leave the episode out (leave_out), or put it back"
            )
    parts, where = [], ""
    try:
        for index, episode in episodes.items():
            where, length, actions = f"episode {index}: ", len(episode.actions), episode.actions
            labels = actions if episode.labels is None else episode.labels
            if labels.dtype != actions.dtype:
                raise ValueError(f"the labels are {labels.dtype}, the actions are {actions.dtype}")
            ended = np.zeros(length) if episode.terminations is None else episode.terminations
            cut = np.zeros(length) if episode.truncations is None else episode.truncations
            if episode.truncations is None and episode.terminations is not None and not ended[-1:].any():
                cut = np.arange(length) == length - 1
            seed = UNKNOWN_SEED if episode.seed is None or episode.seed > MAX_SEED else episode.seed
            rewards = np.full(length, np.nan) if episode.rewards is None else episode.rewards
            with np.errstate(over="ignore"):  # beyond float32 it is infinite, which the rules say
                rewards = rewards.astype(np.float32)
            parts.append(
                Trajectories(
                    observations=episode.observations,
                    actions=labels,
                    executed_actions=actions,
                    rewards=rewards,
                    terminations=ended.astype(np.bool_),
                    truncations=cut.astype(np.bool_),
                    lengths=np.array([length], np.int64),
                    seeds=np.array([seed], np.int64),
                    scenarios=np.array([scenario_of(episode)]),
                    metrics={name: np.array([value], np.float64) for name, value in figures_of(episode).items()},
                )
            )
            if parts[-1].final_rows != parts[0].final_rows:
                raise ValueError("it has an observation after its last step, others have none, or the other way round")
        where = ""
        return concatenate(parts)
    except (BadInput, ValueError, TypeError) as error:
        raise BadInput(f"{found.format} dataset: {where}{error}") from None


def _series_of(infos: Mapping[str, np.ndarray] | None, length: int) -> dict[str, list[float]] | None:
    """What the infos say, one number a step."""
    if infos is None:
        return None
    told: dict[str, list[float]] = {}
    for key, values in infos.items():
        # Minari's own recording puts a number of the reset before those of the steps, which is no step's
        if len(values) in (length, length + 1) and values.size == len(values):
            told[key] = values.reshape(-1)[len(values) - length :].astype(np.float64).tolist()
    return told


def _turned(pictures: np.ndarray, wanted: np.dtype) -> np.ndarray:
    """Pictures (n, height, width, channels) as (n, channels, height, width), where that is what the task observes.

    A task has its pictures with their channels first, whatever its environment does; files of others have them last.
    """
    if wanted.base != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] == wanted.shape:
        return pictures
    channels_last = (pictures.shape[3], *pictures.shape[1:3]) == wanted.shape
    return np.ascontiguousarray(np.moveaxis(pictures, 3, 1)) if channels_last else pictures


def _channels_first(found: ForeignSet, declared: spaces.Box, of_task: spaces.Space) -> tuple[ForeignSet, spaces.Box]:
    """A set that declares pictures with their channels last, as the task has them; any other as it is."""
    wanted = row_dtype(of_task)
    low, high = (_turned(bound[None], wanted)[0] for bound in (declared.low, declared.high))
    episodes = (replace(one, observations=_turned(one.observations, wanted)) for one in found.episodes)
    return replace(found, episodes=tuple(episodes)), spaces.Box(low, high, dtype=np.uint8)


def _as_declared(found: ForeignSet, observation_space: spaces.Space, action_space: spaces.Space) -> ForeignSet:
    """Rows in the dtype and shape that the task declares, where they are the same numbers. Raises BadInput by name."""

    def converted(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
        base, shape = dtype.base, dtype.shape
        array = _turned(array, dtype)
        kinds = array.dtype.kind, base.kind
        whole = kinds[0] in "biu" or kinds == ("f", "f")
        if not whole or (array.shape[1:] != shape and (array[:1].size, np.prod(shape, dtype=int)) != (1, 1)):
            raise BadInput(
                f"{found.format} dataset: one row of {what} is {array.dtype} {array.shape[1:]}, the task's environment "
                f"has {base} {shape}; is it another task's, or another robot's?"
            )
        cast = np.ascontiguousarray(array, base).reshape(len(array), *shape)
        if kinds[0] in "biu" and not np.array_equal(cast.reshape(array.shape), array):
            raise BadInput(f"{found.format} dataset: {what} hold whole numbers that {base} cannot")
        return cast

    def observed(rows: np.ndarray) -> np.ndarray:
        wanted = row_dtype(observation_space)
        if wanted.names is None or rows.dtype.names is None:
            if wanted.names is None and rows.dtype.names is None:
                return converted(rows, wanted, "observations")
        elif set(wanted.names) == set(rows.dtype.names):
            made = np.empty(len(rows), wanted)
            for key in wanted.names:
                made[key] = converted(rows[key], wanted[key], f"observations.{key}")
            return made
        raise BadInput(
            f"{found.format} dataset: it observes {shortened(rows.dtype.names or 'one array')}, the task's environment "
            f"{shortened(wanted.names or 'one array')}; is it another task's, or another robot's?"
        )

    wanted = row_dtype(action_space)

    def episode(one: ForeignEpisode) -> ForeignEpisode:
        labels = None if one.labels is None else converted(one.labels, wanted, "labels")
        acted = converted(one.actions, wanted, "actions")
        return replace(one, observations=observed(one.observations), actions=acted, labels=labels)

    return replace(found, episodes=tuple(map(episode, found.episodes)))


def _seen(found: ForeignSet) -> tuple[spaces.Space, spaces.Space]:
    """Spaces that the rows of a set fit, without a bound that anybody declared."""

    def box(dtype: np.dtype) -> spaces.Space:
        kind: Any = dtype.base.type
        if dtype.base.kind == "f":
            return spaces.Box(-np.inf, np.inf, dtype.shape, kind)
        low, high = (0, 1) if dtype.base.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
        return spaces.Box(low, high, dtype.shape, kind)

    first = found.episodes[0]
    seen, acted = first.observations, first.actions
    of_row = np.dtype((seen.dtype, seen.shape[1:]))
    fields = {key: box(np.dtype((seen.dtype[key].base, seen.dtype[key].shape))) for key in seen.dtype.names or ()}
    return (spaces.Dict(fields) if fields else box(of_row)), box(np.dtype((acted.dtype, acted.shape[1:])))


def _clipped(found: ForeignSet, kept: Sequence[int], space: spaces.Space) -> tuple[ForeignSet, str]:
    """Kept actions and labels inside a Box, and how much of them was not. Raises BadInput for another shape of them."""
    if not isinstance(space, spaces.Box):
        raise BadInput(f"clip_actions: the actions are of {shortened(space)}; only those of a Box can be clipped")
    episodes = list(found.episodes)
    for index in kept:
        one = episodes[index]
        for name, rows in (("actions", one.actions), ("labels", one.labels)):
            if rows is not None and rows.shape[1:] != space.shape:
                raise BadInput(
                    f"clip_actions: episode {index}: one row of {name} is {rows.dtype} {rows.shape[1:]}, the action "
                    f"space has {space.shape}"
                )
        labels = None if one.labels is None else np.clip(one.labels, space.low, space.high)
        episodes[index] = replace(one, actions=np.clip(one.actions, space.low, space.high), labels=labels)
    actions = np.concatenate([found.episodes[index].actions for index in kept])
    beyond = np.maximum(space.low - actions, actions - space.high)
    outside = beyond > 0
    furthest = float(beyond[outside].max(initial=0))
    told = f"{outside.sum()} of {outside.size} action values, up to {furthest:.4g} beyond the action space"
    return replace(found, episodes=tuple(episodes)), told


def _environment(stated: Mapping[str, Any] | None, target: ImportTarget) -> dict[str, Any]:
    """The environment that the set names, as far as it names one; in our words where that comes to the same.

    Where it names none, the user's word counts that it is the task's, and whether it was behind the task's wrappers.
    """
    config, kwargs = target.task.config, target.task.environment_kwargs
    own = config.scenarios[target.scenario]
    ours = {"id": config.environment.id, "kwargs": kwargs, "wrappers": [], "scenarios": {target.scenario: own}}
    if stated is None:
        return {**ours, "wrappers": target.task.wrappers} if target.behind_wrappers else ours
    if target.behind_wrappers:
        raise BadInput(f"behind_wrappers: the set says itself what it was recorded in ({stated['id']}); remove it")
    theirs = {**ours, "wrappers": stated["wrappers"]}
    arguments = {key: value for key, value in stated["kwargs"].items() if key != "render_mode"}
    if stated["id"] != config.environment.id.rpartition(":")[2]:
        return {**theirs, "id": stated["id"]}
    registered = gym.registry[stated["id"]].kwargs if stated["id"] in gym.registry else {}
    expected = json.loads(json.dumps({**registered, **kwargs, **own}, default=str))
    expected.pop("render_mode", None)
    return {**theirs, "kwargs": kwargs if arguments == expected else arguments}

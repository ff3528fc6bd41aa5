"""Demonstrations to and from Minari (https://minari.farama.org): HDF5, without loss.

    export_minari(trajectories, metadata, "out/swing")        # minari.MinariDataset("out/swing/data") opens it
    trajectories, metadata = import_minari("out/swing")       # the same bits and the same metadata again
    trajectories, metadata = import_minari("theirs", target)  # somebody else's, described for one of our tasks

Minari accepts broken data, so validate before exporting and after importing; an imported dataset is a draft until
`pipeline.validation.validate` passed it. Reading goes through h5py alone: Minari would build an environment from the
file. What Minari calls `actions` is what the environment received; our clean labels go to `infos/label`, in every
episode or in none. Images are stored as they are, never as JPEG. Not done: Dict, Tuple and Text spaces, the Arrow
format.
"""

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import gymnasium as gym
import h5py
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space

from pipeline.config.task import TaskConfig
from pipeline.data.metadata import DatasetMetadata
from pipeline.data.spaces import DTYPES, space_from_json, space_to_json
from pipeline.data.trajectories import UNKNOWN_SEED, Trajectories, concatenate, content_digest
from pipeline.errors import BadInput, shortened
from pipeline.files import DAMAGE, DIGEST_LENGTH, strict_json

MAIN_FILE: Final = "main_data.hdf5"
OUR_METADATA: Final = "demonstrations"  # key of Minari's metadata.json under which ours stands
LABEL: Final = "label"  # of the infos: the clean action, where noise was executed instead
METRIC_ATTRIBUTE: Final = "metric."
MAX_FILE_BYTES: Final = 1 << 32
MAX_METADATA_BYTES: Final = 32_000_000
MAX_EPISODES: Final = 1_000_000
MAX_SEED: Final = int(np.iinfo(np.int64).max)  # Minari draws 64 bits where it is given none
KINDS: Final = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")
_SPARE_BYTES: Final = 1 << 26
_EXPANSION: Final = 64  # a file may unpack to this multiple of its size and the spare bytes


def export_minari(trajectories: Trajectories, metadata: DatasetMetadata, folder: str | Path) -> None:
    """Write a Minari dataset (HDF5) to a new folder. Raises BadInput when the folder exists or Minari refuses."""
    root = Path(folder)
    if root.exists():
        raise BadInput(f"export folder {str(root)!r} exists; give a new one")
    if trajectories.observations.dtype.names is not None:
        raise BadInput(
            f"dataset {metadata.dataset_id!r} has Dict observations, which are not exported to Minari; record it with "
            "FlattenObservation in environment.wrappers"
        )
    spec, environment = None, metadata.environment
    if environment["id"] in gym.registry and not environment.get("wrappers"):  # else Minari could not make it again
        spec = copy.deepcopy(gym.spec(environment["id"]))
        spec.kwargs.update(environment["kwargs"])
    clean = np.array_equal(trajectories.actions, trajectories.executed_actions)
    episodes = [trajectories.episode(index) for index in range(len(trajectories))]
    root.mkdir(parents=True)
    try:
        storage = MinariStorage.new(
            root / "data",
            observation_space=space_from_json(metadata.observation_space),
            action_space=space_from_json(metadata.action_space),
            env_spec=spec,
            data_format="hdf5",
            jpeg_encoding=False,
        )
        storage.update_metadata(
            {
                "dataset_id": f"{re.sub(r'[^A-Za-z0-9_-]', '-', metadata.dataset_id)}-v0",
                "minari_version": minari.__version__,
                "algorithm_name": str(metadata.demonstrator["name"]),
                "description": f"{len(trajectories)} demonstrations of task {metadata.task}",
                OUR_METADATA: metadata.to_data(),
            }
        )
        storage.update_episodes(
            EpisodeBuffer(
                seed=None if episode.seed == UNKNOWN_SEED else episode.seed,
                options={"scenario": episode.scenario},
                observations=episode.observations,
                actions=episode.executed_actions,
                rewards=episode.rewards,
                terminations=episode.terminations,
                truncations=episode.truncations,
                infos=None if clean else {LABEL: episode.actions},
            )
            for episode in episodes
        )
        storage.update_episode_metadata(
            {METRIC_ATTRIBUTE + name: value for name, value in episode.metrics.items()} for episode in episodes
        )
    except (ValueError, NotImplementedError) as error:
        raise BadInput(f"minari cannot store dataset {metadata.dataset_id!r}: {error}") from None


# -------------------------------------------------------------------------------------------------------------- import


class RecordedTask(Protocol):
    """What episodes that were recorded elsewhere are held to; `pipeline.tasks.Task` is one."""

    config: TaskConfig
    environment_kwargs: dict[str, Any]

    def figures(self, infos: Mapping[str, list[float]], rewards: list[float]) -> dict[str, float]:
        """What the task says of an episode, from one number of each info and one reward a step. Raises BadInput."""


@dataclass(frozen=True)
class ImportTarget:
    """What an imported dataset is to us: episodes of one scenario of a task."""

    task: RecordedTask
    scenario: str
    scenario_set: str = "train"


def import_minari(folder: str | Path, target: ImportTarget | None = None) -> tuple[Trajectories, DatasetMetadata]:
    """Read a Minari dataset in HDF5, ours (without a target) or anybody's (with one).

    Raises BadInput on anything that is not one: other formats, links out of the file, JPEG images, sizes that do not
    go with the file. Rewards of other libraries become float32. Validate the result before it is used.
    """
    data = Path(folder) / "data" if (Path(folder) / "data").is_dir() else Path(folder)
    try:
        described, (observation_space, action_space), episodes = _read(data)
        if target is None:
            return _ours(episodes, described)
        environment = _environment(described, target)
        with open(data / MAIN_FILE, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]
        demonstrator = {
            "kind": "imported",
            "name": _text(described.get("dataset_id")),
            "version": _text(described.get("minari_version")),
            "digest": digest,
            "algorithm": _text(described.get("algorithm_name", "unknown")),
        }
    except DAMAGE as error:
        raise BadInput(f"minari dataset: cannot be read: {type(error).__name__}: {shortened(str(error))}") from None
    too_large = sum(episode.seed > MAX_SEED for episode in episodes)
    if too_large:
        demonstrator["seeds"] = f"those of {too_large} episodes have more than 63 bits and are kept as unknown"
    task = target.task.config
    trajectories = _assemble(
        episodes, lambda _: target.scenario, lambda episode: target.task.figures(*_series_of(episode))
    )
    return trajectories, DatasetMetadata(
        dataset_id=f"{task.name}-imported-{digest[:8]}",
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        task=task.name,
        scenario_set=target.scenario_set,
        scenario_coverage=dict(Counter(trajectories.scenarios.tolist())),
        requested_shares={target.scenario: 1.0},
        demonstrator=demonstrator,
        seeds=(),
        noise_std=0.0,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(observation_space),
        action_space=space_to_json(action_space),
        environment=environment,
        holdout_scenarios=tuple(sorted(task.holdout_scenarios())),
        episodes=len(trajectories),
        steps=trajectories.steps,
        content_digest=content_digest(trajectories),
        horizon=task.horizon,
    )


@dataclass(frozen=True)
class _StoredEpisode:
    arrays: dict[str, np.ndarray]  # observations, actions, rewards, terminations, truncations
    infos: dict[str, np.ndarray]
    attributes: dict[str, Any]
    seed: int  # as it was written, which may be more than our arrays hold; UNKNOWN_SEED where there is none


def _ours(episodes: list[_StoredEpisode], described: Mapping[str, Any]) -> tuple[Trajectories, DatasetMetadata]:
    if OUR_METADATA not in described:
        raise BadInput("minari dataset: it was not exported by this product; say which task and scenario it belongs to")
    metadata = DatasetMetadata.from_data(strict_json(json.dumps(described[OUR_METADATA])))

    def figures(episode: _StoredEpisode) -> dict[str, float]:
        named = {key: value for key, value in episode.attributes.items() if key.startswith(METRIC_ATTRIBUTE)}
        return {key.removeprefix(METRIC_ATTRIBUTE): value for key, value in named.items()}

    return _assemble(episodes, lambda episode: _text(episode.attributes.get("options/scenario")), figures), metadata


def _series_of(episode: _StoredEpisode) -> tuple[dict[str, list[float]], list[float]]:
    """What the infos say, one number a step, and the rewards."""
    rewards: list[float] = episode.arrays["rewards"].tolist()
    infos: dict[str, list[float]] = {}
    for key, values in episode.infos.items():
        # Minari's own recording puts a number of the reset before those of the steps, which is no step's
        if len(values) in (len(rewards), len(rewards) + 1) and values.size == len(values):
            infos[key] = values.reshape(-1)[len(values) - len(rewards) :].astype(np.float64).tolist()
    return infos, rewards


def _assemble(
    episodes: list[_StoredEpisode],
    scenario_of: Callable[[_StoredEpisode], str],
    figures_of: Callable[[_StoredEpisode], dict[str, float]],
) -> Trajectories:
    without = [index for index, episode in enumerate(episodes) if LABEL not in episode.infos]
    if 0 < len(without) < len(episodes):
        raise BadInput(
            f"minari dataset: episode {without[0]} has no infos/{LABEL}, others have; what was executed there is not "
            "taken for what the demonstrator answered: leave the episode out, or put its labels back"
        )
    parts, where = [], ""
    try:
        for index, episode in enumerate(episodes):
            where, arrays = f"episode {index}: ", episode.arrays
            labels = episode.infos.get(LABEL, arrays["actions"])
            if labels.dtype != arrays["actions"].dtype:
                raise ValueError(f"infos/{LABEL} is {labels.dtype}, the actions are {arrays['actions'].dtype}")
            parts.append(
                Trajectories(
                    observations=arrays["observations"],
                    actions=labels,
                    executed_actions=arrays["actions"],
                    rewards=arrays["rewards"].astype(np.float32),
                    terminations=arrays["terminations"].astype(np.bool_),
                    truncations=arrays["truncations"].astype(np.bool_),
                    lengths=np.array([len(arrays["rewards"])], np.int64),
                    seeds=np.array([episode.seed if episode.seed <= MAX_SEED else UNKNOWN_SEED], np.int64),
                    scenarios=np.array([scenario_of(episode)]),
                    metrics={name: np.array([value], np.float64) for name, value in figures_of(episode).items()},
                )
            )
        where = ""
        return concatenate(parts)
    except (BadInput, ValueError, TypeError) as error:
        raise BadInput(f"minari dataset: {where}{error}") from None


def _environment(described: Mapping[str, Any], target: ImportTarget) -> dict[str, Any]:
    """The environment that the set names, as far as it names one; in our words where that comes to the same.

    Where it names none, the user's word counts that it is the task's; behind none of our wrappers, for nothing that was
    recorded elsewhere went through them.
    """

    def drawn_anyhow(kwargs: Any) -> dict[str, Any]:
        return {key: value for key, value in kwargs.items() if key != "render_mode"}

    config, kwargs = target.task.config, target.task.environment_kwargs
    if target.scenario not in config.scenario_sets.get(target.scenario_set, {}):
        raise BadInput(
            f"scenario {target.scenario!r} is not in scenario set {target.scenario_set!r} of {config.name!r}"
        )
    own = config.scenarios[target.scenario]
    ours = {"id": config.environment.id, "kwargs": kwargs, "wrappers": [], "scenarios": {target.scenario: own}}
    if described.get("env_spec") is None:
        return ours
    spec = strict_json(described["env_spec"])
    stated, arguments, wrappers = _text(spec["id"]), drawn_anyhow(spec["kwargs"]), []
    for wrapper in spec.get("additional_wrappers") or ():  # Gymnasium's description -> the task file's
        name = _text(wrapper["entry_point"])
        short = name.rpartition(":")[2] if name.startswith("gymnasium.wrappers.") else name
        wrappers.append({"name": short, "kwargs": dict(wrapper["kwargs"] or {})})
    if stated != config.environment.id.rpartition(":")[2]:
        return {**ours, "id": stated, "wrappers": wrappers}
    registered = gym.registry[stated].kwargs if stated in gym.registry else {}
    expected = json.loads(json.dumps({**registered, **kwargs, **own}, default=str))
    return {**ours, "kwargs": kwargs if arguments == drawn_anyhow(expected) else arguments, "wrappers": wrappers}


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.isprintable() or not 0 < len(text) <= 200:
        raise ValueError(f"{shortened(value)} should be a short text (an id, version or scenario)")
    return text


# ------------------------------------------------------------------------------------------------------------- reading


def _read(data: Path) -> tuple[dict[str, Any], list[spaces.Space], list[_StoredEpisode]]:
    """What a set says of itself, the spaces of its observations and actions, and its episodes."""
    path = data / "metadata.json"
    if not path.is_file() or path.stat().st_size > MAX_METADATA_BYTES:
        raise BadInput(f"minari dataset: no {path.name} of at most {MAX_METADATA_BYTES} bytes in {str(data)!r}")
    described = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict) or described.get("data_format") != "hdf5":
        raise BadInput(f"minari dataset: only the HDF5 format is read, {path.name} does not say data_format = 'hdf5'")
    found = []
    for key in ("observation_space", "action_space"):
        # Minari's reader makes no more of such JSON than its text, as long as its numbers are of a size we know
        said = json.loads(described[key])
        if said["type"] not in KINDS or said.get("dtype", DTYPES[0]) not in DTYPES:
            raise BadInput(f"minari dataset: {key} is {shortened(said)}; read are {', '.join(KINDS)} of plain numbers")
        found.append(space_from_json(space_to_json(deserialize_space(said))))
    if described.get("jpeg_encoding", True) and any(
        space.dtype == np.uint8 and len(space.shape or ()) in (2, 3) for space in found
    ):
        raise BadInput(
            "minari dataset: its images are stored as JPEG, which loses information; export it again without"
        )
    path = data / MAIN_FILE
    size = path.stat().st_size
    if not path.is_file() or size > MAX_FILE_BYTES:
        raise BadInput(f"minari dataset: {path.name} has {size} bytes, allowed is a file of {MAX_FILE_BYTES}")
    with h5py.File(path, "r") as file:
        reader, count = _Hdf5Reader(_SPARE_BYTES + _EXPANSION * size), len(file)
        if not 1 <= count <= MAX_EPISODES:
            raise BadInput(f"minari dataset: it holds {count} episodes, allowed are 1 to {MAX_EPISODES}")
        return described, found, [reader.episode(file, f"episode_{index}") for index in range(count)]


class _Hdf5Reader:
    """Reads plain arrays inside one file: no links, no virtual or external storage, no more bytes than allowed."""

    def __init__(self, allowed_bytes: int) -> None:
        self._left = allowed_bytes

    def episode(self, file: h5py.Group, name: str) -> _StoredEpisode:
        group = self._member(file, name, h5py.Group)
        names = ("observations", "actions", "rewards", "terminations", "truncations")
        arrays = {key: self._array(group, key) for key in names}
        infos = {}
        if "infos" in group:
            held = self._member(group, "infos", h5py.Group)
            # nested and text infos mean nothing to us
            plain = [k for k in held if isinstance(held.get(k, getlink=True), h5py.HardLink)]
            infos = {k: self._array(held, k) for k in plain if _is_plain(held[k])}
        values = {str(key): value for key, value in group.attrs.items()}
        attributes = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
        return _StoredEpisode(arrays, infos, attributes, _seed(attributes.get("seed"), name))

    def _member(self, group: h5py.Group, name: str, kind: type) -> Any:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], kind):
            raise BadInput(f"minari dataset: {group.name}/{name} is missing, a link, or no {kind.__name__.lower()}")
        return group[name]

    def _array(self, group: h5py.Group, name: str) -> np.ndarray:
        dataset = self._member(group, name, h5py.Dataset)
        if not _is_plain(dataset) or dataset.ndim < 1:
            raise BadInput(
                f"minari dataset: {dataset.name} is {dataset.dtype} {dataset.shape}; allowed are plain arrays"
            )
        self._left -= int(dataset.nbytes)
        if self._left < 0:
            raise BadInput(f"minari dataset: {dataset.name} claims more bytes than the file can hold")
        array: np.ndarray = dataset[()]
        return array


def _is_plain(item: Any) -> bool:
    return (
        isinstance(item, h5py.Dataset)
        and not item.is_virtual
        and item.external is None
        and item.shape is not None
        and item.dtype.kind in "biuf"
        and item.dtype.isnative
    )


def _seed(value: Any, episode: str) -> int:
    """A seed as it was written, UNKNOWN_SEED for none. Raises BadInput for what no environment was ever given."""
    if value is None or value in ("None", b"None"):  # the text is that of older versions of Minari
        return UNKNOWN_SEED
    exact = isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53
    if not (exact or (isinstance(value, int) and not isinstance(value, bool))) or value < 0:
        raise BadInput(
            f"minari dataset: {episode} has the seed {shortened(value)}; a seed is a whole number of 0 or more, or is "
            "left out"
        )
    return int(value)

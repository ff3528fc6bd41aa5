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
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import h5py
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from pipeline.data import UNKNOWN_SEED, DatasetMetadata, Trajectories, content_digest
from pipeline.data.spaces import space_from_json, space_to_json
from pipeline.errors import BadInput, shortened
from pipeline.tasks import MEASURED, REDUCTIONS, Task

MAIN_FILE: Final = "main_data.hdf5"
OUR_METADATA: Final = "demonstrations"  # key of Minari's metadata.json under which ours stands
LABEL: Final = "label"  # of the infos: the clean action, where noise was executed instead
METRIC_ATTRIBUTE: Final = "metric."
MAX_FILE_BYTES: Final = 1 << 32
MAX_METADATA_BYTES: Final = 32_000_000
MAX_EPISODES: Final = 1_000_000
MAX_SEED: Final = int(np.iinfo(np.int64).max)  # Minari draws 64 bits where it is given none
_SPARE_BYTES: Final = 1 << 26
_EXPANSION: Final = 64  # a file may unpack to this multiple of its size and the spare bytes


# -------------------------------------------------------------------------------------------------------------- export


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
    root.mkdir(parents=True)
    try:
        storage = MinariStorage.new(
            root / "data",
            observation_space=space_from_json(metadata.observation_space),
            action_space=space_from_json(metadata.action_space),
            env_spec=_registered_spec(metadata.environment),
            data_format="hdf5",
            jpeg_encoding=False,
        )
        name = re.sub(r"[^A-Za-z0-9_-]", "-", metadata.dataset_id)
        storage.update_metadata(
            {
                "dataset_id": f"{name}-v0",
                "minari_version": minari.__version__,
                "algorithm_name": str(metadata.demonstrator["name"]),
                "description": f"{len(trajectories)} demonstrations of task {metadata.task}",
                OUR_METADATA: metadata.to_data(),
            }
        )
        storage.update_episodes(_episode_buffers(trajectories))
        storage.update_episode_metadata(
            {METRIC_ATTRIBUTE + name: float(values[i]) for name, values in trajectories.metrics.items()}
            for i in range(len(trajectories))
        )
    except (ValueError, NotImplementedError) as error:
        raise BadInput(f"minari cannot store dataset {metadata.dataset_id!r}: {error}") from None


def _episode_buffers(trajectories: Trajectories) -> Iterator[EpisodeBuffer]:
    clean = np.array_equal(trajectories.actions, trajectories.executed_actions)
    for index in range(len(trajectories)):
        episode = trajectories.episode(index)
        yield EpisodeBuffer(
            seed=None if episode.seed == UNKNOWN_SEED else episode.seed,
            options={"scenario": episode.scenario},
            observations=episode.observations,
            actions=episode.executed_actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
            infos=None if clean else {LABEL: episode.actions},
        )


def _registered_spec(environment: Mapping[str, Any]) -> Any:
    """The Gymnasium spec of a registered environment, so that Minari can make it again; None for others.

    None behind wrappers too: Minari would make it without them, with other observations.
    """
    if environment["id"] not in gym.registry or environment.get("wrappers"):
        return None
    spec = copy.deepcopy(gym.spec(environment["id"]))
    spec.kwargs.update(environment["kwargs"])
    return spec


# -------------------------------------------------------------------------------------------------------------- import


@dataclass(frozen=True)
class ImportTarget:
    """What an imported dataset is to us: episodes of one scenario of a task."""

    task: Task
    scenario: str
    scenario_set: str = "train"


def import_minari(folder: str | Path, target: ImportTarget | None = None) -> tuple[Trajectories, DatasetMetadata]:
    """Read a Minari dataset in HDF5, ours (without a target) or anybody's (with one).

    Raises BadInput on anything that is not one: other formats, links out of the file, JPEG images, sizes that do not
    go with the file. Rewards of other libraries become float32. Validate the result before it is used.
    """
    data = Path(folder) / "data" if (Path(folder) / "data").is_dir() else Path(folder)
    described = _read_description(data / "metadata.json")
    observation_space, action_space = (
        _space_from_minari(described.get(key), key) for key in ("observation_space", "action_space")
    )
    if described.get("jpeg_encoding", True) and any(_is_image(s) for s in (observation_space, action_space)):
        raise BadInput(
            "minari dataset: its images are stored as JPEG, which loses information; export it again without"
        )
    episodes = _read_episodes(data / MAIN_FILE)
    for index, episode in enumerate(episodes):
        lengths = {name: len(array) for name, array in episode.arrays.items()}
        steps = lengths["rewards"]
        if lengths != {**dict.fromkeys(lengths, steps), "observations": steps + 1}:
            raise BadInput(f"minari dataset: episode {index} holds {lengths}; it needs one observation more than steps")
    if target is None:
        return _ours(episodes, described)
    trajectories = _foreign(episodes, target)
    demonstrator = {
        "kind": "imported",
        "name": _text(described.get("dataset_id")),
        "version": _text(described.get("minari_version")),
        "digest": _file_digest(data / MAIN_FILE),
        "algorithm": _text(described.get("algorithm_name", "unknown")),
    }
    too_large = sum(episode.written_seed > MAX_SEED for episode in episodes)
    if too_large:
        demonstrator["seeds"] = f"those of {too_large} episodes have more than 63 bits and are kept as unknown"
    of = (observation_space, action_space)
    return trajectories, _foreign_metadata(trajectories, demonstrator, target, of, _environment(described, target))


@dataclass(frozen=True)
class _StoredEpisode:
    arrays: dict[str, np.ndarray]  # observations, actions, rewards, terminations, truncations
    infos: dict[str, np.ndarray]
    attributes: dict[str, Any]
    written_seed: int  # UNKNOWN_SEED where there is none

    @property
    def seed(self) -> int:
        """The seed as our arrays can hold it."""
        return self.written_seed if self.written_seed <= MAX_SEED else UNKNOWN_SEED


def _ours(episodes: list[_StoredEpisode], described: Mapping[str, Any]) -> tuple[Trajectories, DatasetMetadata]:
    if OUR_METADATA not in described:
        raise BadInput("minari dataset: it was not exported by this product; say which task and scenario it belongs to")
    try:
        metadata = DatasetMetadata.from_data(json.loads(json.dumps(described[OUR_METADATA], allow_nan=False)))
    except ValueError as error:
        raise BadInput(f"minari dataset: {OUR_METADATA} cannot be read: {shortened(str(error))}") from None
    names = [key for key in episodes[0].attributes if key.startswith(METRIC_ATTRIBUTE)]
    metrics = {}
    for name in names:
        values = [episode.attributes.get(name) for episode in episodes]
        if not all(isinstance(value, float) for value in values):
            raise BadInput(f"minari dataset: {name} is not a number in every episode")
        metrics[name.removeprefix(METRIC_ATTRIBUTE)] = np.array(values, dtype=np.float64)
    scenarios = [_text(episode.attributes.get("options/scenario")) for episode in episodes]
    return _assemble(episodes, scenarios, metrics), metadata


def _foreign(episodes: list[_StoredEpisode], target: ImportTarget) -> Trajectories:
    task = target.task.config
    if target.scenario not in task.scenario_sets.get(target.scenario_set, {}):
        raise BadInput(f"scenario {target.scenario!r} is not in scenario set {target.scenario_set!r} of {task.name!r}")
    figures = [_figures(index, episode, target.task) for index, episode in enumerate(episodes)]
    columns = {name: np.array([of_one[name] for of_one in figures], dtype=np.float64) for name in figures[0]}
    return _assemble(episodes, [target.scenario] * len(episodes), columns)


def _figures(index: int, episode: _StoredEpisode, task: Task) -> dict[str, float]:
    """What the task says of an episode, from its infos: as it would have, had it been recorded here."""
    steps = len(episode.arrays["rewards"])
    infos = {key: _of_steps(values, steps) for key, values in episode.infos.items()}
    series = {key: values for key, values in infos.items() if values}
    outcome = {key: values[-1] for key, values in series.items()}
    for name, measure in task.config.metrics.items():
        if measure.over != "last" and measure.info in series:
            outcome[f"{MEASURED}{name}"] = float(REDUCTIONS[measure.over](series[measure.info]))
    total = sum(episode.arrays["rewards"].tolist())
    try:
        return task.outcome({"outcome": outcome, "episode": {"r": total, "l": steps}})
    except BadInput as error:
        raise BadInput(f"minari dataset: episode {index}: {error}") from None


def _of_steps(values: np.ndarray, steps: int) -> list[float]:
    """The numbers of an info, one a step. Minari's own recording puts one of the reset before them, which is no step's.

    Empty for anything but one number a row.
    """
    if len(values) not in (steps, steps + 1) or values.size != len(values):
        return []
    numbers: list[float] = values.reshape(-1)[len(values) - steps :].astype(np.float64).tolist()
    return numbers


def _assemble(episodes: list[_StoredEpisode], scenarios: list[str], metrics: dict[str, np.ndarray]) -> Trajectories:
    def joined(name: str, dtype: Any = None) -> np.ndarray:
        parts = [episode.arrays[name] for episode in episodes]
        if len({(part.dtype, part.shape[1:]) for part in parts}) != 1:
            raise BadInput(f"minari dataset: {name} changes its dtype or shape between episodes")
        return np.concatenate(parts).astype(dtype or parts[0].dtype, copy=False)

    executed = joined("actions")
    without = [index for index, episode in enumerate(episodes) if LABEL not in episode.infos]
    if 0 < len(without) < len(episodes):
        raise BadInput(
            f"minari dataset: episode {without[0]} has no infos/{LABEL}, others have; what was executed there is not "
            "taken for what the demonstrator answered: leave the episode out, or put its labels back"
        )
    labels = [episode.infos.get(LABEL, episode.arrays["actions"]) for episode in episodes]
    if any(
        a.shape != e.arrays["actions"].shape or a.dtype != executed.dtype for a, e in zip(labels, episodes, strict=True)
    ):
        raise BadInput(f"minari dataset: infos/{LABEL} does not have the shape and dtype of the actions")
    return Trajectories(
        observations=joined("observations"),
        actions=np.concatenate(labels),
        executed_actions=executed,
        rewards=joined("rewards", np.float32),
        terminations=joined("terminations", np.bool_),
        truncations=joined("truncations", np.bool_),
        lengths=np.array([len(episode.arrays["rewards"]) for episode in episodes], dtype=np.int64),
        seeds=np.array([episode.seed for episode in episodes], dtype=np.int64),
        scenarios=np.array(scenarios),
        metrics=metrics,
    )


def _foreign_metadata(
    trajectories: Trajectories,
    demonstrator: dict[str, Any],
    target: ImportTarget,
    of: tuple[spaces.Space, spaces.Space],
    environment: dict[str, Any],
) -> DatasetMetadata:
    task = target.task.config
    return DatasetMetadata(
        dataset_id=f"{task.name}-imported-{demonstrator['digest'][:8]}",
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        task=task.name,
        scenario_set=target.scenario_set,
        scenario_coverage=dict(Counter(trajectories.scenarios.tolist())),
        requested_shares={target.scenario: 1.0},
        demonstrator=demonstrator,
        seeds=(),
        noise_std=0.0,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(of[0]),
        action_space=space_to_json(of[1]),
        environment=environment,
        holdout_scenarios=tuple(sorted(task.holdout_scenarios())),
        episodes=len(trajectories),
        steps=trajectories.steps,
        content_digest=content_digest(trajectories),
        horizon=task.horizon,
    )


def _environment(described: Mapping[str, Any], target: ImportTarget) -> dict[str, Any]:
    """The environment that the set names, as far as it names one; in our words where that comes to the same.

    Where it names none, the user's word counts that it is the task's; behind none of our wrappers, for nothing that was
    recorded elsewhere went through them.
    """
    task = target.task
    own = task.config.scenarios[target.scenario]
    ours: dict[str, Any] = {
        "id": task.config.environment.id,
        "kwargs": task.environment_kwargs,
        "scenarios": {target.scenario: own},
    }
    if described.get("env_spec") is None:
        return {**ours, "wrappers": []}
    try:
        spec = json.loads(described["env_spec"])
        stated, arguments = _text(spec["id"]), _without_drawing(spec["kwargs"])
        wrappers = [_wrapper(wrapper) for wrapper in spec.get("additional_wrappers") or ()]
        json.dumps([arguments, wrappers], allow_nan=False)  # ValueError: NaN is no JSON, and no metadata
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"minari dataset: env_spec cannot be read: {shortened(str(error))}") from None
    if stated != ours["id"].rpartition(":")[2]:
        return {**ours, "id": stated, "wrappers": wrappers}
    registered = gym.registry[stated].kwargs if stated in gym.registry else {}
    expected = json.loads(json.dumps({**registered, **ours["kwargs"], **own}, default=str))
    same = arguments == _without_drawing(expected)
    return {**ours, "kwargs": ours["kwargs"] if same else arguments, "wrappers": wrappers}


def _without_drawing(kwargs: Any) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "render_mode"}


def _wrapper(spec: Any) -> dict[str, Any]:
    """Gymnasium's description of a wrapper -> the task file's."""
    reference = _text(spec["entry_point"])
    name = reference.rpartition(":")[2] if reference.startswith("gymnasium.wrappers.") else reference
    return {"name": name, "kwargs": dict(spec["kwargs"] or {})}


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.isprintable() or not 0 < len(text) <= 200:
        raise BadInput(f"minari dataset: {shortened(value)} should be a short text (an id, version or scenario)")
    return text


# ------------------------------------------------------------------------------------------------------------- reading


def _read_description(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_METADATA_BYTES:
            raise BadInput(
                f"minari dataset: no {path.name} of at most {MAX_METADATA_BYTES} bytes in {str(path.parent)!r}"
            )
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"minari dataset: {path.name} cannot be read: {shortened(str(error))}") from None
    if not isinstance(described, dict) or described.get("data_format") != "hdf5":
        raise BadInput(f"minari dataset: only the HDF5 format is read, {path.name} does not say data_format = 'hdf5'")
    return described


def _space_from_minari(text: Any, key: str) -> spaces.Space:
    """Minari writes nested lists of bounds; ours are flat, and checked by `space_from_json`."""
    try:
        data = json.loads(text) if isinstance(text, str) else None
        if not isinstance(data, dict):
            raise BadInput(f"minari dataset: {key} is missing from its metadata")
        if data.get("type") == "Box":
            data = {**data, **{bound: [_bound(v) for v in _flat(data[bound])] for bound in ("low", "high")}}
        elif data.get("type") == "MultiDiscrete":
            shape = list(np.shape(data["nvec"]))
            data = {**data, "shape": shape, "nvec": _flat(data["nvec"]), "start": _flat(data["start"])}
        elif data.get("type") == "MultiBinary":
            scalar = isinstance(data["n"], int)
            data = {"type": "MultiBinary", "shape": [data["n"]] if scalar else data["n"], "scalar": scalar}
        return space_from_json(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"minari dataset: {key} is no space: {shortened(str(error))}") from None


def _flat(nested: Any) -> list[Any]:
    if not isinstance(nested, list):
        return [nested]
    return [value for part in nested for value in _flat(part)]


def _bound(value: Any) -> Any:
    return ("inf" if value > 0 else "-inf") if isinstance(value, float) and math.isinf(value) else value


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _read_episodes(path: Path) -> list[_StoredEpisode]:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_FILE_BYTES:
            raise BadInput(f"minari dataset: {path.name} has {size} bytes, allowed is a file of {MAX_FILE_BYTES}")
        with h5py.File(path, "r") as file:
            reader = _Hdf5Reader(_SPARE_BYTES + _EXPANSION * size)
            count = len(file)
            if not 1 <= count <= MAX_EPISODES:
                raise BadInput(f"minari dataset: it holds {count} episodes, allowed are 1 to {MAX_EPISODES}")
            return [reader.episode(file, f"episode_{index}") for index in range(count)]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, MemoryError) as error:
        raise BadInput(f"minari dataset: {path.name} cannot be read: {shortened(str(error))}") from None


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
        attributes = {str(key): _scalar(value) for key, value in group.attrs.items()}
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


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


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


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:36]

"""Demonstrations to and from Minari (https://minari.farama.org): HDF5, without loss.

    export_minari(trajectories, metadata, "out/swing")                # minari.MinariDataset("out/swing/data") opens it
    trajectories, metadata = take_in(read_minari("out/swing"), None)  # the same bits and the same metadata again
    trajectories, metadata = take_in(read_minari("theirs"), target)   # somebody else's, described for one of our tasks

Minari accepts broken data, so validate before exporting and after importing; an imported dataset is a draft until
`pipeline.validation.validate` passed it. Reading goes through h5py alone: Minari would build an environment from the
file. What Minari calls `actions` is what the environment received; our clean labels go to `infos/label`, in every
episode or in none. Images are stored as they are, never as JPEG. Not done: Dict, Tuple and Text spaces, the Arrow
format.
"""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space

from pipeline.data.foreign import (
    UNKNOWN,
    ForeignEpisode,
    ForeignSet,
    short_text,
    source_digest,
)
from pipeline.data.formats.hdf5 import PlainHdf5
from pipeline.data.metadata import DatasetMetadata
from pipeline.data.spaces import DTYPES, space_from_json, space_to_json
from pipeline.data.trajectories import METRIC_PREFIX, UNKNOWN_SEED, Trajectories
from pipeline.errors import BadInput, shortened
from pipeline.files import appearing, readable, strict_json

MAIN_FILE: Final = "main_data.hdf5"
OUR_METADATA: Final = "demonstrations"  # key of Minari's metadata.json under which ours stands
LABEL: Final = "label"  # of the infos: the clean action, where noise was executed instead
MAX_METADATA_BYTES: Final = 32_000_000
MAX_EPISODES: Final = 1_000_000
KINDS: Final = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")


def export_minari(trajectories: Trajectories, metadata: DatasetMetadata, folder: str | Path) -> None:
    """Write a Minari dataset (HDF5) to a new folder, as a whole or not at all.

    Raises BadInput when the folder exists or Minari refuses.
    """
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
    try:
        with appearing(root) as written:
            written.mkdir()
            storage = MinariStorage.new(
                written / "data",
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
                {METRIC_PREFIX + name: value for name, value in episode.metrics.items()} for episode in episodes
            )
    except (ValueError, NotImplementedError) as error:
        raise BadInput(f"minari cannot store dataset {metadata.dataset_id!r}: {error}") from None


# -------------------------------------------------------------------------------------------------------------- import


def read_minari(folder: str | Path) -> ForeignSet:
    """What a Minari dataset in HDF5 holds.

    Raises BadInput on anything that is not one: other formats, links out of the file, JPEG images, sizes that do not
    go with the file.
    """
    data = Path(folder) / "data" if (Path(folder) / "data").is_dir() else Path(folder)
    with readable("minari dataset: cannot be read", kind=True):
        described = _described(data)
        observation_space, action_space = _spaces(described)  # first: episodes of others are not laid out as is read
        with PlainHdf5(data / MAIN_FILE, "minari dataset") as file:
            count = len(file.root)
            if not 1 <= count <= MAX_EPISODES:
                raise BadInput(f"minari dataset: it holds {count} episodes, allowed are 1 to {MAX_EPISODES}")
            episodes = tuple(_episode(file, f"episode_{index}") for index in range(count))
        return ForeignSet(
            format="minari",
            episodes=episodes,
            name=short_text(described.get("dataset_id")),
            version=short_text(described.get("minari_version")),
            digest=source_digest(data / MAIN_FILE),
            algorithm=short_text(described.get("algorithm_name", UNKNOWN)),
            observation_space=observation_space,
            action_space=action_space,
            environment=_stated_environment(described.get("env_spec")),
            own_metadata=described.get(OUR_METADATA),
        )


def _described(data: Path) -> dict[str, Any]:
    """What the set says of itself."""
    path = data / "metadata.json"
    if not path.is_file() or path.stat().st_size > MAX_METADATA_BYTES:
        raise BadInput(f"minari dataset: no {path.name} of at most {MAX_METADATA_BYTES} bytes in {str(data)!r}")
    described = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict) or described.get("data_format") != "hdf5":
        raise BadInput(f"minari dataset: only the HDF5 format is read, {path.name} does not say data_format = 'hdf5'")
    return described


def _spaces(described: Mapping[str, Any]) -> list[spaces.Space]:
    """Those of its observations and actions."""
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
    return found


def _stated_environment(text: Any) -> dict[str, Any] | None:
    """Gymnasium's description of an environment -> id, arguments and wrappers in the words of a task file."""
    if text is None:
        return None
    spec = strict_json(text)
    wrappers = []
    for wrapper in spec.get("additional_wrappers") or ():
        name = short_text(wrapper["entry_point"])
        short = name.rpartition(":")[2] if name.startswith("gymnasium.wrappers.") else name
        wrappers.append({"name": short, "kwargs": dict(wrapper["kwargs"] or {})})
    return {"id": short_text(spec["id"]), "kwargs": dict(spec["kwargs"]), "wrappers": wrappers}


def _episode(file: PlainHdf5, name: str) -> ForeignEpisode:
    group = file.group(file.root, name)
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    arrays = {key: file.array(group, key) for key in names}
    infos = file.plain_arrays(file.group(group, "infos")) if "infos" in group else {}  # others mean nothing to us
    values = {str(key): value for key, value in group.attrs.items()}
    attributes = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    seed = _seed(attributes.get("seed"), name)
    return ForeignEpisode(**arrays, labels=infos.get(LABEL), infos=infos, attributes=attributes, seed=seed)


def _seed(value: Any, episode: str) -> int | None:
    """A seed as it was written. Raises BadInput for what no environment was ever given."""
    if value is None or value in ("None", b"None"):  # the text is that of older versions of Minari
        return None
    exact = isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53
    if not (exact or (isinstance(value, int) and not isinstance(value, bool))) or value < 0:
        raise BadInput(
            f"minari dataset: {episode} has the seed {shortened(value)}; a seed is a whole number of 0 or more, or is "
            "left out"
        )
    return int(value)

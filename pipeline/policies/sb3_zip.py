"""What an SB3 or sb3-contrib zip says about itself, and what lies beside it; nothing in any of them is executed.

A zip holds `data`, JSON in which whatever JSON cannot say is a pickle, and `policy.pth`, torch's own file of tensors,
another pickle beside raw numbers. All pickles are read by `inert_pickle`. Beside the zip may lie the statistics of the
`VecNormalize` that the policy was trained behind (`vecnormalize.pkl`) and the RL Zoo's `config.yml`.
"""

import base64
import json
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import inf, prod, sqrt
from pathlib import Path
from typing import Any, Final

import numpy as np
from gymnasium import spaces

from pipeline.config.zoo import ZooConfig, read_zoo_config
from pipeline.errors import BadInput, shortened
from pipeline.files import DAMAGE, readable
from pipeline.policies.inert_pickle import Named, Pickled, array_of, decode

SETTINGS: Final = "data"
WEIGHTS: Final = "policy.pth"
MAX_ZIP_BYTES: Final = 1 << 30
MAX_WEIGHT_BYTES: Final = 1 << 29
MAX_SETTINGS_BYTES: Final = 32_000_000  # replay and episode buffers are written into it
MAX_PART_BYTES: Final = 1 << 29
MAX_MEMBERS: Final = 4096
STATISTICS: Final = ("vecnormalize.pkl", "vec_normalize.pkl")  # of the RL Zoo, and as hubs name it
ZOO_CONFIG: Final = "config.yml"
ZOO_BEST: Final = "best_model.zip"

# policy class -> algorithm; the first three share theirs, and are told apart by their settings
ALGORITHMS: Final[Mapping[str, str]] = {
    "stable_baselines3.common.policies.ActorCriticPolicy": "PPO",
    "stable_baselines3.common.policies.ActorCriticCnnPolicy": "PPO",
    "stable_baselines3.common.policies.MultiInputActorCriticPolicy": "PPO",
    **{f"stable_baselines3.sac.policies.{name}": "SAC" for name in ("SACPolicy", "CnnPolicy", "MultiInputPolicy")},
    **{f"stable_baselines3.td3.policies.{name}": "TD3" for name in ("TD3Policy", "CnnPolicy", "MultiInputPolicy")},
    **{f"stable_baselines3.dqn.policies.{name}": "DQN" for name in ("DQNPolicy", "CnnPolicy", "MultiInputPolicy")},
    **{f"sb3_contrib.tqc.policies.{name}": "TQC" for name in ("TQCPolicy", "CnnPolicy", "MultiInputPolicy")},
    **{f"sb3_contrib.qrdqn.policies.{n}": "QR-DQN" for n in ("QRDQNPolicy", "CnnPolicy", "MultiInputPolicy")},
    **{f"sb3_contrib.ars.policies.{name}": "ARS" for name in ("ARSPolicy", "ARSLinearPolicy")},
}
_STORAGE: Final = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8", "IntStorage": "<i4"}
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C  # what torch wrote before 1.6 begins with


@dataclass(frozen=True)
class Normalisation:
    """What a `VecNormalize` did to observations: clip((x - mean) / sqrt(variance + epsilon), -clip, clip)."""

    mean: np.ndarray  # (*obs_shape,) float64
    variance: np.ndarray  # (*obs_shape,) float64
    epsilon: float
    clip: float | None  # None, of a `VecNormalize(clip_obs=inf)`: nothing is cut


@dataclass(frozen=True)
class SB3Zip:
    """The contents of a zip, as plain values and arrays."""

    name: str
    algorithm: str  # PPO, A2C, TRPO, SAC, TD3, DDPG, DQN, TQC, QR-DQN or ARS; or what it holds instead
    policy_class: str
    sb3_version: str | None
    python_version: str | None
    timesteps: int | None
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    policy_arguments: Mapping[str, Any]  # `policy_kwargs`, classes as records
    uses_sde: bool
    tensors: Mapping[str, np.ndarray]  # the state of the policy
    pickled: Mapping[str, tuple[str, ...]]  # part of the zip, or file beside it -> the names it asks Python for
    normalisation: Normalisation | None
    return_scale: float | None  # what its rewards were divided by; the critic's values are in that unit
    zoo: ZooConfig | None


def read_sb3_zip(path: str | Path) -> SB3Zip:
    """Read a zip and what lies beside it. Raises BadInput, one line, for damage, hostility and for any other file."""
    file = Path(path)
    what = f"SB3 zip {file.name!r}"
    members = _members(file, what)
    with readable(f"{what} cannot be read"):
        settings = json.loads(members[SETTINGS].decode("utf-8"))
    if not isinstance(settings, dict):
        raise BadInput(f"{what}: its settings are no JSON object")
    pickled, values = dict[str, tuple[str, ...]](), dict[str, Any]()
    for key, value in settings.items():
        serialized = value.get(":serialized:") if isinstance(value, dict) else None
        if serialized is None:
            values[key] = value
            continue
        with readable(f"{what}: {key} is no base64"):
            content = base64.b64decode(serialized, validate=True)
        read = decode(content, f"{what}: {key}")
        values[key], pickled[f"{SETTINGS}: {key}"] = read.value, read.names
    tensors: dict[str, np.ndarray] = {}
    for name, content in members.items():
        if name.endswith((".pth", ".pkl")):
            read, raw = _torch_pickle(content, f"{what}: {name}")
            pickled[name] = read.names
            if name == WEIGHTS:
                tensors = _tensors(read.value, raw, f"{what}: {WEIGHTS}")
    observation_space, action_space = (
        _space(values.get(key), f"{what}: {key}") for key in ("observation_space", "action_space")
    )
    made = values.get("policy_class")
    policy_class = made.name if isinstance(made, Named) else str(made)
    arguments = values.get("policy_kwargs") or {}
    if not isinstance(arguments, dict):
        arguments = arguments.name if isinstance(arguments, Named) else arguments
        raise BadInput(f"{what}: policy_kwargs = {shortened(arguments)}, expected a mapping")
    normalisation, return_scale = None, None
    beside = [file.parent, file.with_suffix("")]  # the RL Zoo has a folder of the zip's name
    if file.name == ZOO_BEST:  # beside it there is that of the last one, which has the environment's name
        of_last = [config.parent for config in file.parent.glob(f"*/{ZOO_CONFIG}")]
        beside += of_last if len(of_last) == 1 else []
    for statistics in (folder / name for folder in beside for name in STATISTICS):
        if statistics.is_file():
            normalisation, return_scale, pickled[statistics.name] = _normalisation(statistics, observation_space)
            break
    zoo = next((folder / ZOO_CONFIG for folder in beside if (folder / ZOO_CONFIG).is_file()), None)
    system = members.get("system_info.txt", b"").decode("utf-8", "replace")
    python = re.search(r"Python: (\d+(?:\.\d+)+)", system)
    steps = values.get("num_timesteps")
    return SB3Zip(
        name=file.name,
        algorithm=_algorithm(policy_class, values, arguments),
        policy_class=policy_class,
        sb3_version=members.get("_stable_baselines3_version", b"").decode("utf-8", "replace").strip() or None,
        python_version=python[1] if python else None,
        timesteps=steps if isinstance(steps, int) and 0 <= steps < 1 << 63 else None,
        observation_space=observation_space,
        action_space=action_space,
        policy_arguments=arguments,
        uses_sde=bool(values.get("use_sde")),
        tensors=tensors,
        pickled=pickled,
        normalisation=normalisation,
        return_scale=return_scale,
        zoo=None if zoo is None else read_zoo_config(zoo),
    )


def _algorithm(policy_class: str, values: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    algorithm = ALGORITHMS.get(policy_class, policy_class)
    if algorithm == "PPO":
        return "PPO" if "clip_range" in values else "TRPO" if "cg_max_steps" in values else "A2C"
    return "DDPG" if algorithm == "TD3" and arguments.get("n_critics") == 1 else algorithm


# --------------------------------------------------------------------------------------------------------------- bytes


def _members(path: Path, what: str) -> dict[str, bytes]:
    """Name -> content of every member that is read, within bounds."""
    contents = {}
    with readable(f"{what} cannot be read"):
        size = path.stat().st_size
        if not path.is_file() or size > MAX_ZIP_BYTES:
            raise BadInput(f"{what} has {size} bytes, allowed is a file of at most {MAX_ZIP_BYTES}")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise BadInput(f"{what} holds {len(members)} members, allowed are {MAX_MEMBERS}")
            for needed in (SETTINGS, WEIGHTS):
                found = sum(member.filename == needed for member in members)
                if found != 1:
                    raise BadInput(f"{what} holds {found} members {needed!r}, expected one; was it saved by SB3?")
            for member in members:
                limit = {SETTINGS: MAX_SETTINGS_BYTES, WEIGHTS: MAX_WEIGHT_BYTES}.get(member.filename, MAX_PART_BYTES)
                if member.file_size > limit:
                    raise BadInput(f"{what}: {member.filename} claims {member.file_size} bytes, allowed are {limit}")
                with archive.open(member) as stream:
                    content = stream.read(limit + 1)  # the size in the directory is only a claim
                if len(content) != member.file_size:
                    raise BadInput(f"{what}: {member.filename} does not have the {member.file_size} bytes it claims")
                contents[member.filename] = content
    return contents


def _archive(content: bytes, what: str) -> zipfile.ZipFile | None:
    """torch's zip of stored members; None when it is none. Anything compressed or overlapping could be a bomb."""
    try:
        archive = zipfile.ZipFile(BytesIO(content))
    except zipfile.BadZipFile:
        return None
    except DAMAGE as error:
        raise BadInput(f"{what} cannot be read: {shortened(str(error))}") from None
    members = archive.infolist()
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if len(members) > MAX_MEMBERS or not stored or sum(member.file_size for member in members) > len(content):
        raise BadInput(f"{what} is compressed or claims more bytes than it has")
    return archive


def _torch_pickle(content: bytes, what: str) -> tuple[Pickled, Mapping[str, bytes]]:
    """The pickle inside a file that `torch.save` wrote, or a plain one, and the raw numbers beside it by their key."""
    if (archive := _archive(content, what)) is not None:
        with readable(f"{what} cannot be read"), archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        inner = [name for name in held if name.rpartition("/")[2] == "data.pkl"]
        if len(inner) != 1:
            raise BadInput(f"{what} holds {len(inner)} members data.pkl, expected one; was it saved by torch?")
        folder = inner[0].removesuffix("data.pkl")
        if held.get(f"{folder}byteorder", b"little") != b"little":
            raise BadInput(f"{what} was written on a big-endian machine; save it again on a common one")
        numbers = f"{folder}data/"
        raw = {name.removeprefix(numbers): part for name, part in held.items() if name.startswith(numbers)}
        return decode(held[inner[0]], what), raw
    read = decode(content, what)
    if read.value != _LEGACY_MAGIC:
        return read, {}
    for _ in range(2):  # the protocol, and how wide numbers are
        read = decode(content, what, read.end)
    state = decode(content, what, read.end)
    keys = decode(content, what, state.end)
    raw, at = {}, keys.end
    with readable(f"{what} cannot be read"):
        storages = [one.arguments[0] for one in state.persistent if one.arguments]
        kinds = {storage[2]: storage[1].name for storage in storages}
        for key in keys.value:
            (count,) = struct.unpack_from("<q", content, at)
            width = np.dtype(_STORAGE[kinds[key].rpartition(".")[2]]).itemsize
            raw[key] = content[at + 8 : at + 8 + width * count]
            at += 8 + width * count
    return state, raw


def _tensors(state: Any, raw: Mapping[str, bytes], what: str) -> dict[str, np.ndarray]:
    """Name -> tensor of the state of a policy, each a copy of as many numbers as its shape says."""
    if isinstance(state, Named) and state.name == "collections.OrderedDict":
        with readable(f"{what} cannot be read"):
            state = dict(state.items)
    if not isinstance(state, dict):
        held = state.name if isinstance(state, Named) else type(state).__name__
        raise BadInput(f"{what} holds a {shortened(held)}, expected named tensors")
    tensors = {}
    for key, tensor in state.items():
        with readable(f"{what}: tensor {shortened(key)} cannot be read"):
            if tensor.name == "torch._utils._rebuild_parameter":
                tensor = tensor.arguments[0]
            if not isinstance(key, str) or tensor.name != "torch._utils._rebuild_tensor_v2":
                raise ValueError(f"it is no plain tensor, but asks for {tensor.name}")
            storage, offset, shape, strides = tensor.arguments[:4]
            _, kind, name, *_ = storage.arguments[0]
            numbers = np.frombuffer(raw[name], _STORAGE[kind.name.rpartition(".")[2]])
            last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            # a tensor of stride 0 shows one number as often as it likes
            if min((offset, *strides)) < 0 or last >= numbers.size or not 0 < prod(shape) <= numbers.size:
                raise ValueError(f"shape {shape} is empty, or claims more than the {numbers.size} numbers it has")
            byte_strides = tuple(stride * numbers.itemsize for stride in strides)
            tensors[key] = np.lib.stride_tricks.as_strided(numbers[offset:], shape, byte_strides).copy()
    return tensors


# -------------------------------------------------------------------------------------------------------------- values


def _space(record: Any, what: str) -> spaces.Space[Any]:
    """A space of `gym` or Gymnasium, by its attributes. Raises BadInput for any other kind."""
    with readable(f"{what} is no space that policies here have"):
        kind, held = record.name.rpartition(".")[2], record.attributes
        module = record.name.partition(".")[0]
        if module not in ("gym", "gymnasium"):
            raise ValueError(f"{record.name} is no space")
        if kind == "Box":
            low, high = (array_of(held[key], what) for key in ("low", "high"))
            return spaces.Box(low, high, dtype=low.dtype.type)
        if kind == "Discrete":
            return spaces.Discrete(int(array_of(held["n"], what)), start=int(array_of(held.get("start", 0), what)))
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(array_of(held["nvec"], what))
        if kind == "MultiBinary":
            return spaces.MultiBinary(int(array_of(held["n"], what)))
        if kind == "Dict":
            parts = held["spaces"]
            items = parts.items if isinstance(parts, Named) else list(parts.items())
            return spaces.Dict({key: _space(part, f"{what}.{key}") for key, part in items})
        raise ValueError(f"{record.name} is none of Box, Discrete, MultiDiscrete, MultiBinary and Dict")


def _normalisation(path: Path, space: spaces.Space[Any]) -> tuple[Normalisation | None, float | None, tuple[str, ...]]:
    """The statistics in a `vecnormalize.pkl`: of observations, and the spread of returns; None: not normalised."""
    what, normalisation, return_scale = f"{path.name} beside the zip", None, None
    with readable(f"{what} cannot be read"):
        if path.stat().st_size > MAX_PART_BYTES:
            raise BadInput(f"{what} is larger than the {MAX_PART_BYTES} bytes allowed")
        read = decode(path.read_bytes(), what)
        held = read.value.attributes
        if not read.value.name.endswith(".VecNormalize"):
            raise ValueError(f"it holds a {read.value.name}, expected a VecNormalize")
        epsilon, clip = (float(array_of(held[key], what)) for key in ("epsilon", "clip_obs"))
        if held["norm_obs"]:
            if isinstance(held["obs_rms"], dict):
                raise BadInput(
                    f"{what} is of observations that are a Dict; a policy behind such statistics is not taken"
                )
            statistics = held["obs_rms"].attributes
            mean, variance = (array_of(statistics[key], what).astype(np.float64) for key in ("mean", "var"))
            normalisation = Normalisation(mean, variance, epsilon, None if clip == inf else clip)
        if held["norm_reward"]:
            return_scale = sqrt(float(array_of(held["ret_rms"].attributes["var"], what)) + epsilon)
    no_numbers = f"{what} holds statistics that are no numbers, or a spread of 0; save it again after training"
    if return_scale is not None and not 0 < return_scale < inf:
        raise BadInput(no_numbers)
    if normalisation is not None:
        if not isinstance(space, spaces.Box) or mean.shape != space.shape or variance.shape != space.shape:
            raise BadInput(f"{what} is of observations of shape {mean.shape}, the policy reads {shortened(str(space))}")
        numbers = all(np.isfinite(figures).all() for figures in (mean, variance, epsilon))
        if not (numbers and (variance + epsilon > 0).all() and clip > 0):
            raise BadInput(no_numbers)
    return normalisation, return_scale, read.names

"""Which spaces the pipeline takes, and recorded observations as one array, whatever the space.

A Dict observation is recorded as an array of structured rows, so that rows are cut, chosen and joined like those of
any other array; what needs numbers takes it apart again.

    rows = to_rows(space, {"image": (n, 64, 64, 3) uint8, "speed": (n, 2) float32})      # (n,) of two named fields
    rows[3:7], rows["speed"], from_rows(rows)                                            # the mapping again
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.errors import BadInput, shortened

FIELD = re.compile(r"[A-Za-z0-9_]{1,64}")
WIDEST_SPAN: Final = 1e6  # of an action: wider ones are bounded in name only
LIMIT: Final = "pipeline.envs.limits:LimitAction"
_TAKEN: Final = "Box, Discrete and MultiDiscrete that start at 0, and MultiBinary"
_FLATTEN: Final = "FlattenObservation in environment.wrappers makes one flat Box of any space of fixed size"
SMALLEST_PICTURE: Final = 36  # pixels a side that SB3's convolutional network can still read
LARGEST_WHOLE: Final = 10  # numbers that a linear layer reads well as they are: whole ones, and any
LARGEST_NUMBER: Final = 100.0


def check_observation_space(space: gym.Space[Any]) -> None:
    """Raise BadInput, by name, unless policies can read such observations and datasets can hold them."""
    from torch import nn  # late, as below: what only asks the store about datasets need not wait for it

    nested, parts = isinstance(space, spaces.Dict), _parts(space)
    if not parts:
        raise BadInput("observation space: the Dict has no key")
    for key, part in parts.items():
        if nested and not FIELD.fullmatch(key):
            raise BadInput(f"observation space: the key {shortened(key)} must be of letters, digits and _, at most 64")
        if nested and hasattr(nn.ModuleDict(), key):  # SB3 keeps a layer of each key under its name
            raise BadInput(
                f"observation space: the key {key!r} is a word of torch.nn.Module's own, which cannot name a layer; "
                f"give it another name in the environment or in a wrapper"
            )
        if fault := _fault(part):
            what = f"{key!r} is {shortened(part)}, which" if nested else shortened(part)
            raise BadInput(f"observation space: {what} is not taken: {fault}; {_FLATTEN}")


def _parts(space: gym.Space[Any]) -> Mapping[str, gym.Space[Any]]:
    return space.spaces if isinstance(space, spaces.Dict) else {"": space}


def check_action_space(space: gym.Space[Any]) -> None:
    """Raise BadInput, by name, unless PPO can act in it."""
    fault = _fault(space)
    if not fault and isinstance(space, spaces.Box):
        span = span_of(space)
        if space.dtype.kind != "f":
            fault = "its numbers are whole; use MultiDiscrete"
        elif not (span <= WIDEST_SPAN).all():
            fault = f"it is unbounded; give it bounds in environment.wrappers, {LIMIT}, and leave out ClipAction"
        elif not (span > 0).all():
            fault = "the range of an element is empty"
    if not fault and isinstance(space, spaces.MultiBinary) and len(space.shape) != 1:
        fault = "it has more than one axis"
    if fault:
        raise BadInput(
            f"action space {shortened(space)} cannot be learnt by PPO: {fault}; where no change of the environment is "
            "possible, a gymnasium.ActionWrapper of yours in environment.wrappers (module:Class) can give it another"
        )


def _fault(space: gym.Space[Any]) -> str:
    """What is wrong with a space of plain arrays; empty: nothing."""
    from stable_baselines3.common.preprocessing import is_image_space

    if isinstance(space, spaces.Box):
        if is_image_space(space) and min(space.shape[1:]) < SMALLEST_PICTURE:
            return f"bytes with three axes are a picture, which has at least {SMALLEST_PICTURE} pixels a side"
        return "" if space.shape and np.prod(space.shape) else "it has no element, or no axis"
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        if len(space.shape or ()) > 1:
            return "it has more than one axis"
        return f"{type(space).__name__} must start at 0" if np.any(getattr(space, "start", 0)) else ""
    return "" if isinstance(space, spaces.MultiBinary) else f"{type(space).__name__} is none of {_TAKEN}"


def span_of(space: spaces.Box) -> np.ndarray:
    """(*shape) float64: the whole range of every element."""
    return np.asarray(space.high, np.float64) - space.low


def row_dtype(space: gym.Space[Any]) -> np.dtype:
    """The dtype of one recorded row: `float32 (4,)` of a Box, named fields in the order of their names of a Dict."""
    if isinstance(space, spaces.Dict):
        return np.dtype([(key, space[key].dtype, space[key].shape) for key in sorted(space.spaces)])
    return np.dtype((space.dtype, space.shape))


def to_rows(space: gym.Space[Any], observations: Any) -> np.ndarray:
    """Observations of n slots, array or mapping, as n rows; values take the dtype of the space."""
    if not isinstance(space, spaces.Dict):
        return np.asarray(observations, space.dtype)
    rows = np.empty(len(observations[next(iter(space.spaces))]), row_dtype(space))
    for key in space.spaces:
        rows[key] = observations[key]
    return rows


def batch_of_one(observation: Any) -> Any:
    """What policies and demonstrators are asked with: one observation with the axis of slots."""
    if isinstance(observation, Mapping):
        return {key: batch_of_one(part) for key, part in observation.items()}
    return np.asarray(observation)[None]


def one_row(space: gym.Space[Any], observation: Any) -> np.ndarray:
    """The observation of one environment as a row, without the axis of slots."""
    rows = to_rows(space, batch_of_one(observation))
    return rows.reshape(rows.shape[1:])


def from_rows(rows: np.ndarray) -> Any:
    """What a policy reads: the array itself, or a mapping of one array a field."""
    if rows.dtype.names is None:
        return rows
    return {key: np.ascontiguousarray(rows[key]) for key in rows.dtype.names}


def flat_rows(rows: np.ndarray) -> np.ndarray:
    """(n, elements) of any array with rows first, a view where it can be; fields stand side by side, by their names."""
    if rows.dtype.names is None:
        return rows.reshape(len(rows), -1)
    return np.concatenate([rows[key].reshape(len(rows), -1) for key in rows.dtype.names], axis=1)


def element_names(dtype: np.dtype) -> tuple[str, ...] | None:
    """Names of the flat elements of structured rows, `speed[0]`; None for plain ones, which have no names."""
    if dtype.names is None:
        return None
    names: list[str] = []
    for key in dtype.names:
        size = int(np.prod(dtype[key].shape, dtype=int))
        names += [f"{key}[{i}]" for i in range(size)] if dtype[key].shape else [key]
    return tuple(names)


def split_fields(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`{"observations": structured}` -> `{"observations.speed": ...}`: plain arrays only, as files hold them."""
    plain: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        fields = array.dtype.names
        plain.update({name: array} if fields is None else {f"{name}.{key}": array[key] for key in fields})
    return plain


def join_fields(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The inverse of `split_fields` for one array. Raises BadInput when the fields have different numbers of rows."""
    prefix = f"{name}."
    fields = {key.removeprefix(prefix): array for key, array in sorted(arrays.items()) if key.startswith(prefix)}
    if not fields:
        return dict(arrays)
    counts = {array.shape[:1] for array in fields.values()}
    if name in arrays or len(counts) != 1 or () in counts:
        raise BadInput(f"{name} must be one array, or fields of equally many rows, got {shortened(counts)}")
    rows = np.empty(counts.pop(), [(key, array.dtype, array.shape[1:]) for key, array in fields.items()])
    for key, array in fields.items():
        rows[key] = array
    return {**{key: array for key, array in arrays.items() if not key.startswith(prefix)}, name: rows}

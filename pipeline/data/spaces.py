"""Gymnasium spaces as JSON data and back, without loss: `space_from_json(space_to_json(space))` has the same bits.

    Box(-1, 1, (2,), float32)  <->  {"type": "Box", "dtype": "float32", "shape": [2], "low": -1.0, "high": 1.0}

Bounds that are equal in every element are one number, others a flat list in C order; an infinite bound is "inf" or
"-inf". Not done here: Text, Sequence, Graph, Tuple and nested subclasses; they are refused by name.
"""

import math
from collections.abc import Callable, Set
from typing import Any, Final

import numpy as np
from gymnasium import spaces

from pipeline.errors import BadInput, shortened

MAX_ELEMENTS: Final = 1 << 24  # of one Box, e.g. 16 camera frames of 1024 x 1024
MAX_LISTED: Final = 1 << 20  # numbers written out in one list
MAX_DIMENSIONS: Final = 8
MAX_DEPTH: Final = 4  # of nested Dict spaces
MAX_KEYS: Final = 256  # of one Dict space

_DTYPES: Final = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
_SUPPORTED: Final = "Box, Discrete, MultiDiscrete, MultiBinary and Dict"


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """A space as plain JSON data. Raises BadInput for a kind of space that cannot be stored."""
    # exact types: a subclass may mean something that its parent's JSON does not say
    if type(space) is spaces.Box:
        return _box_to_json(space)
    if type(space) is spaces.Discrete:
        data = {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        return data if space.dtype == np.int64 else {**data, "dtype": _dtype_name(space.dtype)}
    if type(space) is spaces.MultiDiscrete:
        return {
            "type": "MultiDiscrete",
            "dtype": _dtype_name(space.dtype),
            "shape": list(space.nvec.shape),
            "nvec": [int(n) for n in space.nvec.ravel()],
            "start": [int(n) for n in np.ravel(space.start)],
        }
    if type(space) is spaces.MultiBinary:
        return {"type": "MultiBinary", "shape": list(space.shape), "scalar": isinstance(space.n, (int, np.integer))}
    if type(space) is spaces.Dict:
        return {"type": "Dict", "spaces": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    raise BadInput(f"space {shortened(space)} cannot be stored; use {_SUPPORTED}")


def space_from_json(data: Any) -> spaces.Space:
    """The inverse of `space_to_json`. Raises BadInput on anything that it cannot have written."""
    try:
        return _parse(data, 0)
    except (TypeError, ValueError, OverflowError, AssertionError) as error:  # what gymnasium's constructors raise
        raise BadInput(f"space {shortened(data)} is not valid: {error}") from None


def space_bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest allowed value per feature (flat), both inclusive; of a Dict by the names of its keys."""
    if isinstance(space, spaces.Dict):
        parts = [space_bounds(space[key]) for key in sorted(space.spaces)]
        return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])
    if isinstance(space, spaces.Box):
        return space.low.ravel(), space.high.ravel()
    if isinstance(space, spaces.Discrete):
        return np.array([int(space.start)]), np.array([int(space.start) + int(space.n) - 1])
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(space.start).ravel()
        return start, start + space.nvec.ravel() - 1
    assert isinstance(space, spaces.MultiBinary)
    ones = np.ones(int(np.prod(space.shape)), dtype=np.int8)
    return 0 * ones, ones


def _parse(data: Any, depth: int) -> spaces.Space:
    kind = data.get("type") if isinstance(data, dict) else None
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise BadInput(f"space {shortened(data)} is not one of {_SUPPORTED} written as JSON")
    return reader(data, depth)


def _box_to_json(space: spaces.Box) -> dict[str, Any]:
    below, above = np.asarray(space.bounded_below), np.asarray(space.bounded_above)
    if space.dtype.kind != "f" and any(flags.any() != flags.all() for flags in (below, above) if flags.size):
        raise BadInput(f"space {shortened(space)}: an integer Box bounded in some elements only cannot be stored")
    return {
        "type": "Box",
        "dtype": _dtype_name(space.dtype),
        "shape": list(space.shape),
        "low": _bound_to_json(space.low, below, -math.inf),
        "high": _bound_to_json(space.high, above, math.inf),
    }


def _bound_to_json(bound: np.ndarray, bounded: np.ndarray, unbounded: float) -> Any:
    values = bound.ravel()
    if bound.dtype.kind != "f" and bounded.size and not bounded.any():
        return _number_to_json(unbounded)
    # compared as bytes: 0.0 and -0.0 are different bounds in a lossless format
    if values.size and values.tobytes() == np.full_like(values, values[0]).tobytes():
        return _number_to_json(values[0].item())
    if values.size > MAX_LISTED:
        raise BadInput(f"space: more than {MAX_LISTED} different bounds cannot be stored")
    return [_number_to_json(value) for value in values.tolist()]


def _number_to_json(value: float) -> float | str:
    if isinstance(value, float) and math.isnan(value):
        raise BadInput("space: a bound is NaN")
    return value if not isinstance(value, float) or math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _box(data: dict[str, Any], depth: int) -> spaces.Box:
    _only_keys(data, {"type", "dtype", "shape", "low", "high"})
    dtype, shape = _dtype(data["dtype"]), _shape(data["shape"])
    low, high = (_bound(data[key], dtype, shape, key) for key in ("low", "high"))
    return spaces.Box(low, high, shape=shape, dtype=dtype.type)


def _bound(value: Any, dtype: np.dtype, shape: tuple[int, ...], key: str) -> Any:
    listed = value if isinstance(value, list) else [value]
    if isinstance(value, list) and len(value) != math.prod(shape):
        raise BadInput(f"space: {key} lists {len(value)} bounds for {math.prod(shape)} elements")
    numbers = [_bound_number(number, dtype, key) for number in listed]
    if not isinstance(value, list) and isinstance(numbers[0], float) and math.isinf(numbers[0]):
        return numbers[0]  # gymnasium turns it into the limit of an integer dtype
    if any(isinstance(number, float) and math.isinf(number) for number in numbers) and dtype.kind != "f":
        raise BadInput(f"space: {key} of an integer Box mixes finite and infinite bounds")
    array = np.array(numbers, dtype=dtype)
    return array.reshape(shape) if isinstance(value, list) else np.full(shape, array[0], dtype=dtype)


def _bound_number(value: Any, dtype: np.dtype, key: str) -> float | int | bool:
    if value in ("inf", "-inf") and isinstance(value, str):
        return float(value)
    allowed: Any = {"f": (float, int), "b": (bool,)}.get(dtype.kind, (int,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and dtype.kind != "b"):
        raise BadInput(f'space: {key} = {shortened(value)} is no {dtype} bound; allowed are numbers, "inf" and "-inf"')
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f'space: {key} = {value} must be finite, or the text "inf" or "-inf"')
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        raise BadInput(f"space: {key} = {value} does not fit {dtype}")
    if dtype.kind == "f" and abs(value) > float(np.finfo(dtype).max):
        raise BadInput(f"space: {key} = {shortened(value)} does not fit {dtype}")
    number: float | int | bool = value
    return number


def _discrete(data: dict[str, Any], depth: int) -> spaces.Discrete:
    _only_keys(data, {"type", "n", "start"}, optional={"dtype"})
    n, start = _integer(data["n"], "n", 1, 1 << 31), _integer(data["start"], "start", -(1 << 31), 1 << 31)
    if "dtype" not in data:
        return spaces.Discrete(n, start=start)
    dtype = _dtype(data["dtype"])
    _fits(dtype, [n, start, start + n - 1])
    return spaces.Discrete(n, start=start, dtype=dtype.type)


def _multi_discrete(data: dict[str, Any], depth: int) -> spaces.MultiDiscrete:
    _only_keys(data, {"type", "dtype", "shape", "nvec", "start"})
    dtype, shape = _dtype(data["dtype"]), _shape(data["shape"])
    lists = []
    for key, smallest in (("nvec", 1), ("start", -(1 << 31))):
        if not isinstance(data[key], list) or len(data[key]) != math.prod(shape) or len(data[key]) > MAX_LISTED:
            raise BadInput(f"space: {key} must list {math.prod(shape)} integers, got {shortened(data[key])}")
        lists.append([_integer(number, key, smallest, 1 << 31) for number in data[key]])
        _fits(dtype, lists[-1])
    nvec, start = (np.array(numbers, dtype=dtype).reshape(shape) for numbers in lists)
    return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)


def _multi_binary(data: dict[str, Any], depth: int) -> spaces.MultiBinary:
    _only_keys(data, {"type", "shape", "scalar"})
    shape = _shape(data["shape"])
    if not isinstance(data["scalar"], bool) or math.prod(shape) < 1 or (data["scalar"] and len(shape) != 1):
        raise BadInput(f"space {shortened(data)} is no valid MultiBinary")
    return spaces.MultiBinary(shape[0] if data["scalar"] else list(shape))


def _dict(data: dict[str, Any], depth: int) -> spaces.Dict:
    _only_keys(data, {"type", "spaces"})
    parts = data["spaces"]
    if depth >= MAX_DEPTH or not isinstance(parts, list) or len(parts) > MAX_KEYS:
        raise BadInput(f"space: a Dict lists at most {MAX_KEYS} parts, nested at most {MAX_DEPTH} deep")
    named: list[tuple[str, spaces.Space]] = []
    for part in parts:
        if not isinstance(part, list) or len(part) != 2 or not isinstance(part[0], str) or len(part[0]) > 200:
            raise BadInput(f"space: a part of a Dict is [name, space], got {shortened(part)}")
        named.append((part[0], _parse(part[1], depth + 1)))
    if len({name for name, _ in named}) != len(named):
        raise BadInput("space: a name of a Dict is given twice")
    return spaces.Dict(named)


_READERS: Final[dict[str, Callable[[dict[str, Any], int], spaces.Space]]] = {
    "Box": _box,
    "Discrete": _discrete,
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
    "Dict": _dict,
}


def _only_keys(data: dict[str, Any], keys: Set[str], optional: Set[str] = frozenset()) -> None:
    wrong = sorted((set(data) - keys - optional) | (keys - set(data)), key=str)
    if wrong:
        raise BadInput(f"space {data['type']}: key {shortened(wrong[0])} is missing or not allowed")


def _dtype_name(dtype: Any) -> str:
    name = np.dtype(dtype).name
    if name not in _DTYPES:
        raise BadInput(f"space: dtype {name} cannot be stored; allowed: {', '.join(_DTYPES)}")
    return name


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or name not in _DTYPES:
        raise BadInput(f"space: dtype {shortened(name)} is not one of {', '.join(_DTYPES)}")
    return np.dtype(name)


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise BadInput(f"space: shape {shortened(shape)} must list at most {MAX_DIMENSIONS} lengths")
    sizes = tuple(_integer(size, "shape", 0, MAX_ELEMENTS) for size in shape)
    if math.prod(sizes) > MAX_ELEMENTS:
        raise BadInput(f"space: shape {shape} has more than {MAX_ELEMENTS} elements")
    return sizes


def _integer(value: Any, key: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadInput(f"space: {key} = {shortened(value)} must be an integer from {low} to {high}")
    return value


def _fits(dtype: np.dtype, numbers: list[int]) -> None:
    if dtype.kind not in "iu" or min(numbers, default=0) < np.iinfo(dtype).min:
        raise BadInput(f"space: dtype {dtype} does not hold {min(numbers, default=0)}")
    if max(numbers, default=0) > np.iinfo(dtype).max:
        raise BadInput(f"space: dtype {dtype} does not hold {max(numbers)}")

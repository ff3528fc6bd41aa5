"""Gymnasium spaces as JSON data and back, without loss: `space_from_json(space_to_json(space))` has the same bits.

    Box(-1, 1, (2,), float32)  <->  {"type": "Box", "dtype": "float32", "shape": [2], "low": -1.0, "high": 1.0}

Bounds that are equal in every element are one number, others a flat list in C order; an infinite bound is "inf" or
"-inf". Not done here: Text, Sequence, Graph, Tuple and nested subclasses; they are refused by name.
"""

import json
import math
from typing import Annotated, Any, Final, Literal, get_args

import numpy as np
from gymnasium import spaces
from pydantic import AfterValidator, BaseModel, Field, Strict, TypeAdapter, ValidationError

from pipeline.errors import BadInput, shortened

MAX_ELEMENTS: Final = 1 << 24  # of one Box, e.g. 16 camera frames of 1024 x 1024
MAX_LISTED: Final = 1 << 20  # numbers written out in one list
MAX_DEPTH: Final = 4  # of nested Dict spaces

_SUPPORTED: Final = "Box, Discrete, MultiDiscrete, MultiBinary and Dict"


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """A space as plain JSON data. Raises BadInput for a kind of space that cannot be stored."""
    # exact types: a subclass may mean something that its parent's JSON does not say
    if type(space) is spaces.Box:
        return {
            "type": "Box",
            "dtype": _dtype_name(space),
            "shape": list(space.shape),
            "low": _bound_to_json(space, space.low, space.bounded_below, "-inf"),
            "high": _bound_to_json(space, space.high, space.bounded_above, "inf"),
        }
    if type(space) is spaces.Discrete:
        data = {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        return data if space.dtype == np.int64 else {**data, "dtype": _dtype_name(space)}
    if type(space) is spaces.MultiDiscrete:
        return {
            "type": "MultiDiscrete",
            "dtype": _dtype_name(space),
            "shape": list(space.nvec.shape),
            "nvec": space.nvec.ravel().tolist(),
            "start": np.ravel(space.start).tolist(),
        }
    if type(space) is spaces.MultiBinary:
        return {"type": "MultiBinary", "shape": list(space.shape), "scalar": isinstance(space.n, (int, np.integer))}
    if type(space) is spaces.Dict:
        return {"type": "Dict", "spaces": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    raise BadInput(f"space {shortened(space)} cannot be stored; use {_SUPPORTED}")


def space_from_json(data: Any) -> spaces.Space:
    """The inverse of `space_to_json`. Raises BadInput on anything that it cannot have written."""
    try:
        space: spaces.Space = _SPACE.validate_python(data).space()
        # subtle: what an array silently rounded, cut or took for another kind of number is written differently
        if json.dumps(space_to_json(space), sort_keys=True) != json.dumps(data, sort_keys=True):
            raise ValueError("its numbers are not those of its dtype and shape, or are not written as they should be")
        return space
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = "".join(f".{part}" for part in fault["loc"])
        raise BadInput(
            f"space{place} = {shortened(fault['input'])}: {fault['msg']}; spaces are {_SUPPORTED} written as JSON"
        ) from None
    except (TypeError, ValueError, OverflowError, AssertionError) as error:  # what gymnasium's constructors raise
        raise BadInput(f"space {shortened(data)} is not valid: {error}") from None


def keys_of(space: spaces.Space) -> tuple[str, ...]:
    """Those of a Dict, none of any other space."""
    return tuple(space.spaces) if isinstance(space, spaces.Dict) else ()


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


def _dtype_name(space: spaces.Space) -> str:
    name = np.dtype(space.dtype).name
    if name not in DTYPES:
        raise BadInput(f"space: dtype {name} cannot be stored; allowed: {', '.join(DTYPES)}")
    return name


def _bound_to_json(space: spaces.Box, bound: np.ndarray, bounded: np.ndarray, unbounded: str) -> Any:
    if bound.dtype.kind != "f" and bounded.any() != bounded.all() and bounded.size:
        raise BadInput(f"space {shortened(space)}: an integer Box bounded in some elements only cannot be stored")
    values = bound.ravel()
    if values.dtype.kind != "f" and values.size and not bounded.any():
        return unbounded
    if np.isnan(values).any():
        raise BadInput("space: a bound is NaN")
    numbers = [value if math.isfinite(value) else str(value) for value in values.tolist()]
    # compared as bytes: 0.0 and -0.0 are different bounds in a lossless format
    if values.size and values.tobytes() == np.full_like(values, values[0]).tobytes():
        return numbers[0]
    if values.size > MAX_LISTED:
        raise BadInput(f"space: more than {MAX_LISTED} different bounds cannot be stored")
    return numbers


# ------------------------------------------------------------------------------- what the JSON may be, and its bounds


def _few(shape: list[int]) -> list[int]:
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"more than {MAX_ELEMENTS} elements")
    return shape


_Integer = Literal["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
_DType = Literal["bool", _Integer, "float16", "float32", "float64"]
DTYPES: Final = get_args(_DType)
_Shape = Annotated[list[Annotated[int, Field(ge=0, le=MAX_ELEMENTS)]], Field(max_length=8), AfterValidator(_few)]
_Count = Annotated[int, Field(ge=1, le=1 << 31)]
_Start = Annotated[int, Field(ge=-(1 << 31), le=1 << 31)]


class _Data(BaseModel, strict=True, extra="forbid"):
    pass


class _Box(_Data):
    type: Literal["Box"]
    dtype: _DType
    shape: _Shape
    low: Any  # one number or a list of them, which depend on the dtype
    high: Any

    def space(self) -> spaces.Box:
        dtype = np.dtype(self.dtype)

        def bound(given: Any) -> Any:
            if isinstance(given, str):
                return float(given)  # gymnasium turns an infinite one into the limit of an integer dtype
            numbers = [float(n) if isinstance(n, str) else n for n in (given if isinstance(given, list) else [given])]
            array = np.array(numbers, dtype)
            return array.reshape(self.shape) if isinstance(given, list) else np.full(self.shape, array[0], dtype)

        with np.errstate(over="ignore"):
            return spaces.Box(bound(self.low), bound(self.high), shape=tuple(self.shape), dtype=dtype.type)


class _Discrete(_Data):
    type: Literal["Discrete"]
    n: _Count
    start: _Start
    dtype: _Integer = "int64"

    def space(self) -> spaces.Discrete:
        dtype: Any = np.dtype(self.dtype)
        if self.start + self.n - 1 > np.iinfo(dtype).max:
            raise ValueError(f"its numbers do not fit {dtype}")
        return spaces.Discrete(self.n, start=self.start, dtype=dtype.type)


class _MultiDiscrete(_Data):
    type: Literal["MultiDiscrete"]
    dtype: _Integer
    shape: _Shape
    nvec: list[_Count]
    start: list[_Start]

    def space(self) -> spaces.MultiDiscrete:
        dtype: Any = np.dtype(self.dtype)
        nvec, start = (np.array(numbers, dtype).reshape(self.shape) for numbers in (self.nvec, self.start))
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)


class _MultiBinary(_Data):
    type: Literal["MultiBinary"]
    shape: Annotated[_Shape, Field(min_length=1)]
    scalar: bool

    def space(self) -> spaces.MultiBinary:
        return spaces.MultiBinary(self.shape[0] if self.scalar else self.shape)


_Part = Annotated[tuple[Annotated[str, Field(max_length=200)], "_Space"], Strict(False)]  # JSON has lists alone


class _Dict(_Data):
    type: Literal["Dict"]
    parts: Annotated[list[_Part], Field(max_length=256, alias="spaces")]

    def space(self, depth: int = 0) -> spaces.Dict:
        if depth >= MAX_DEPTH:
            raise ValueError(f"Dicts are nested at most {MAX_DEPTH} deep")
        return spaces.Dict(
            [(key, part.space(depth + 1) if isinstance(part, _Dict) else part.space()) for key, part in self.parts]
        )


_Space = Annotated[_Box | _Discrete | _MultiDiscrete | _MultiBinary | _Dict, Field(discriminator="type")]
_SPACE: Final = TypeAdapter[Any](_Space)

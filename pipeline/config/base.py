"""The decorator and the constrained types that every configuration dataclass uses."""

import math
from typing import Annotated, Any, Final, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic.dataclasses import dataclass

from pipeline.errors import shortened

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def configuration(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass that validates strictly and refuses unknown keys."""
    return cast(type[T], dataclass(config=_STRICT, frozen=True, kw_only=True)(cls))


NAME: Final = "^[a-z][a-z0-9_]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
LARGEST = 2**63 - 1  # whole number that NumPy, and whatever is written in C, takes
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Steps = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(gt=0, lt=1)]


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) != len(seeds):
        raise ValueError("seeds must be distinct")
    return seeds


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)]


def _finite(value: Any, place: str = "") -> Any:
    """Plain data without inf and nan, which no record gives back as they were, and without endless whole numbers.

    Raises ValueError.
    """
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} = {value} is no finite number; give a large one")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{place} = {shortened(value)} is beyond 64 bits; give a smaller one")
    return value


# keyword arguments of a library call, checked against its signature by the caller
LibraryArguments = Annotated[dict[str, Any], AfterValidator(_finite)]


@configuration
class Bound:
    """Limits of a figure: `{min: 0.9}` or `{max: 0.05}` or both; exactly at a limit holds."""

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("a bound needs min or max")

    def holds(self, value: float) -> bool:
        """False for NaN: a figure that was not measured meets nothing."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max) and value == value

    def __str__(self) -> str:
        parts = (f"{sign} {limit:g}" for sign, limit in ((">=", self.min), ("<=", self.max)) if limit is not None)
        return " and ".join(parts)

"""Frozen results as plain data that JSON can hold."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np


def to_plain(value: Any) -> Any:
    """A result as dicts, lists, numbers and texts: `Estimate(1, 0, nan)` -> `{"value": 1, "low": 0, "high": None}`.

    What is not finite becomes None (JSON has no NaN). Raises TypeError for anything that is no result.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, frozenset | set):
        return sorted(to_plain(entry) for entry in value)
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    raise TypeError(f"no plain form for {type(value).__name__}")

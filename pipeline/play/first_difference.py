"""Where two results that should be equal first differ: bit for bit, in a sentence. None when they are equal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import STEP_ARRAYS, Trajectories
from pipeline.errors import BadInput, shortened
from pipeline.names import POLICY_SPEC_FILE
from pipeline.policies import load_policy, tensors_of


def between_trajectories(before: Trajectories, now: Trajectories) -> str | None:
    """The earliest episode and step in which an array differs."""
    theirs, ours = before.to_arrays(), now.to_arrays()
    found: list[tuple[int, int, int, str]] = []
    for place, name in enumerate(dict.fromkeys((*theirs, *ours))):
        a, b = theirs.get(name), ours.get(name)
        if a is None or b is None:
            return f"array {name} is {'new' if a is None else 'gone'}"
        length = min(len(a), len(b))
        row = length if a.dtype != b.dtype else _first_row(a[:length], b[:length])
        if row is None:
            if len(a) == len(b):
                continue
            row = length
        episode, step = _position(before, name, row)
        shown = [shortened(array[row].tolist(), 60) if row < len(array) else "nothing" for array in (b, a)]
        what = f"array {name}, episode {episode}, step {step}: {shown[0]} (was {shown[1]})"
        found.append((episode, step, place, what))
    return min(found)[-1] if found else None


def between_policies(before: Path, now: Path) -> str | None:
    """The first tensor that differs, in the order of the network, or what else of the policy folder does."""
    try:
        theirs, ours = tensors_of(load_policy(before)), tensors_of(load_policy(now))
    except BadInput as error:
        return f"the policy on record cannot be read: {error}"
    for name in dict.fromkeys((*theirs, *ours)):
        if name not in theirs or name not in ours:
            return f"tensor {name} is {'new' if name in ours else 'gone'}"
        a, b = theirs[name].numpy(), ours[name].numpy()
        if a.shape != b.shape:
            return f"tensor {name}: shape {b.shape} (was {a.shape})"
        if a.tobytes() != b.tobytes():
            count, largest = int((a != b).sum()), float(np.abs(a.astype(np.float64) - b).max())
            return f"tensor {name}: {count} of {a.size} values differ, the largest by {largest:.3g}"
    if (before / POLICY_SPEC_FILE).read_bytes() != (now / POLICY_SPEC_FILE).read_bytes():
        return f"{POLICY_SPEC_FILE}: the weights are equal, their description is not"
    return None


def between_evaluations(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The earliest evaluation of a training, as `evaluations.json` holds them, in which a figure differs."""
    theirs, ours = _points(before), _points(now)
    for (place, a), (other, b) in zip(theirs, ours, strict=False):
        if place != other:
            return f"{other} (was {place})"
        for figure in dict.fromkeys((*a, *b)):
            if repr(a.get(figure)) != repr(b.get(figure)):
                return f"{place}: {figure} {b.get(figure)!r} (was {a.get(figure)!r})"
    if len(theirs) != len(ours):
        return f"{len(ours)} evaluations (were {len(theirs)})"
    return None


def _points(record: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, float]]]:
    points = [(f"evaluation at step {point['timestep']}", point["figures"]) for point in record["evaluations"]]
    return [*points, ("final evaluation", record["final_figures"])]


def _first_row(a: np.ndarray, b: np.ndarray) -> int | None:
    """Index of the first row whose bytes differ: unlike `!=`, a NaN is equal to itself and 0 is not -0."""
    if a.shape != b.shape:
        return 0
    rows = [np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1) for array in (a, b)] if len(a) else []
    different = (rows[0] != rows[1]).any(axis=1) if rows else np.zeros(0, bool)
    return int(different.argmax()) if different.any() else None


def _position(trajectories: Trajectories, name: str, row: int) -> tuple[int, int]:
    """(episode, step) of a row of an array; arrays with a row an episode are at step 0."""
    if name == "observations":
        offsets = trajectories.observation_offsets
    elif name in STEP_ARRAYS:
        offsets = trajectories.step_offsets
    else:
        return row, 0
    episode = int(np.searchsorted(offsets, row, side="right")) - 1
    return episode, row - int(offsets[episode])

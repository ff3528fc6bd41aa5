"""Where two results that should be equal first differ, bit for bit. None when they are equal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.data.observations import element_names, flat_rows
from pipeline.data.trajectories import STEP_ARRAYS, EpisodeData, Trajectories

KNOWN_BEFORE: Final = ("observations", "actions", "executed_actions")  # the others come of the step


@dataclass(frozen=True)
class Departure:
    """The first place where an episode that is played again departs from its record."""

    step: int  # of the episode; observations count T + 1 steps
    quantity: str  # "observation", "executed action", "reward", ..., "length", or the name of a figure
    feature: int | str | None  # flat index, or name in a Dict, of an observation or action
    recorded: float | int | str | bool
    replayed: float | int | str | bool

    def __str__(self) -> str:
        name = self.quantity if self.feature is None else f"{self.quantity}[{self.feature}]"
        return f"{name} at step {self.step}: recorded {self.recorded!r}, replayed {self.replayed!r}"


def between_episodes(recorded: EpisodeData, replayed: EpisodeData) -> Departure | None:
    """The earliest difference of the arrays, or of their length; figures are not looked at.

    Every bit counts: unlike with `!=`, a NaN is equal to itself and 0 is not -0.
    """
    found: list[tuple[int, Departure]] = []  # with the time at which it is known
    for name in ("observations", *STEP_ARRAYS):
        theirs, ours, quantity = getattr(recorded, name), getattr(replayed, name), name[:-1].replace("_", " ")
        if theirs.shape[1:] != ours.shape[1:] or theirs.dtype != ours.dtype:
            found.append((0, Departure(0, quantity, None, *(f"{x.dtype} {x.shape[1:]}" for x in (theirs, ours)))))
            continue
        count = min(len(theirs), len(ours))
        a, b = flat_rows(theirs[:count]), flat_rows(ours[:count])
        bits = [np.ascontiguousarray(values).view(np.uint8) for values in (a, b)]
        wrong = (bits[0] != bits[1]).reshape(count, -1, a.dtype.itemsize).any(axis=2)
        if len(rows := np.flatnonzero(wrong.any(axis=1))):
            row, feature = int(rows[0]), int(wrong[rows[0]].argmax())
            names, before = element_names(theirs.dtype), name in KNOWN_BEFORE
            shown = (feature if names is None else names[feature]) if before else None
            departure = Departure(row, quantity, shown, a[row, feature].item(), b[row, feature].item())
            found.append((row if before else row + 1, departure))
    long, short = len(recorded.rewards), len(replayed.rewards)
    if long != short:
        found.append((min(long, short) + 1, Departure(min(long, short), "length", None, long, short)))
    # subtle: step t makes reward t and observation t + 1, so those two are equally early
    return min(found, key=lambda pair: pair[0])[1] if found else None


def between_trajectories(before: Trajectories, now: Trajectories) -> str | None:
    """The first episode that differs, and its earliest step."""
    for index in range(max(len(before), len(now))):
        if index >= min(len(before), len(now)):
            return f"episode {index}: {'not there (was recorded)' if len(now) < len(before) else 'new'}"
        theirs, ours = before.episode(index), now.episode(index)
        if (theirs.scenario, theirs.seed) != (ours.scenario, ours.seed):
            return f"episode {index}: {ours.scenario}, seed {ours.seed} (was {theirs.scenario}, seed {theirs.seed})"
        if departure := between_episodes(theirs, ours):
            return f"episode {index}: {departure}"
        for name in dict.fromkeys((*theirs.metrics, *ours.metrics)):
            was, figure = theirs.metrics.get(name), ours.metrics.get(name)
            if repr(was) != repr(figure):
                return f"episode {index}: {name} {figure!r} (was {was!r})"
    return None


def between_evaluations(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The earliest evaluation of a training, as `evaluations.json` holds them, in which a figure differs."""
    theirs, ours = (
        {
            **{f"evaluation at step {point['timestep']}": point["figures"] for point in record["evaluations"]},
            "final evaluation": record["final_figures"],
        }
        for record in (before, now)
    )
    for (place, a), (other, b) in zip(theirs.items(), ours.items(), strict=False):
        if place != other:
            return f"{other} (was {place})"
        for figure in dict.fromkeys((*a, *b)):
            if repr(a.get(figure)) != repr(b.get(figure)):
                return f"{place}: {figure} {b.get(figure)!r} (was {a.get(figure)!r})"
    return None

"""Traces of observations stored a step early or late, where there is no environment to ask (rule `time_alignment`).

Re-simulation decides with certainty, and so does the demonstrator where it can be asked again. Without them, three
traces of a shift are looked for:

- an episode whose last row is the first row of one (what auto-resetting environments return with `done`);
- in most episodes, first or last rows that are doubled, or that jump and lie where episodes end or start (what shifting
  an array leaves behind; a jump alone is none, many environments start with one);
- execution noise as an instrument: noise at step t is independent of everything before it, so the first change of
  observation that it explains is the one from row t to row t + 1. This is the instrumental-variable argument of
  econometrics (Angrist and Pischke 2009, *Mostly harmless econometrics*, ch. 4), applied to lags.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.spatial.distance import cdist

from pipeline.data.observations import flat_rows
from pipeline.data.spaces import space_bounds
from pipeline.validation.facts import Dataset
from pipeline.validation.findings import Finding

EDGE_SHARE = 0.5  # of episodes with a doubled first or last row
INTERIOR_SHARE = 0.02  # of doubled rows elsewhere: more, and standing still is normal here
JUMP_RATIO = 8.0  # median first step over median step, in standard deviations of the features
FOREIGN_RATIO = 0.5  # a row this much nearer to the other end of an episode than to its neighbour belongs there
MAX_EDGES = 500  # episodes whose ends are compared
LAGS = range(-3, 4)
DECISIVE_Z = 8.0  # strongest response in standard errors; below it the noise says nothing
RESPONSE_SHARE = 0.3  # of the strongest response: the first lag above it is when the action took effect
MAX_INSTRUMENT_STEPS = 20_000  # beyond them noise is known well enough, and memory is not free
NOISE_BINS = 20


def traces_of_a_shift(dataset: Dataset, numbers: np.ndarray) -> Iterator[Finding]:
    """What is found; `numbers` are those that people know the episodes by."""
    rows = flat_rows(dataset.arrays["observations"])
    if found := [*_foreign_last_rows(dataset, rows, numbers), *_edges(dataset, rows)]:
        yield from found
        return
    # the first lag at which observations respond to execution noise must be 0
    noise = _surprise(dataset)
    if noise is None or rows.dtype.kind != "f":
        dataset.notes.append("alignment in time: not decided (no environment, and no execution noise to tell by)")
        return
    strength = {lag: _response(dataset, rows, noise, lag) for lag in LAGS}
    onset = onset_of(strength)
    if onset is None:
        strongest = max(strength.values())
        dataset.notes.append(f"alignment in time: not decided (strongest response {strongest:.1f} standard errors)")
    elif onset == 0:
        dataset.notes.append(f"alignment in time: observations respond to noise at once ({strength[0]:.0f} std errors)")
    else:
        # subtle: a row that already shows the effect of its own action was stored after that action, that is late
        word = "late: the label leaks into the input" if onset < 0 else "early"
        stored = f"stored {abs(onset)} {'step' if abs(onset) == 1 else 'steps'} {word}"
        message = f"observations respond to the action of step t from row t + {onset + 1} on: {stored}"
        yield Finding(onset, "first response of row t + 1", message)


def _foreign_last_rows(dataset: Dataset, rows: np.ndarray, numbers: np.ndarray) -> Iterator[Finding]:
    """Episodes that end with the observation that one starts with."""
    starts: dict[bytes, int] = {}
    for episode, row in enumerate(dataset.row_offsets[:-1]):
        starts.setdefault(rows[row].tobytes(), numbers[episode])
    if rows.dtype.kind != "f" or len(starts) < 2:
        return  # every episode starts alike: returning there is no sign of anything
    for episode, end in enumerate(dataset.row_offsets[1:]):
        other = starts.get(rows[end - 1].tobytes())
        if other is not None:
            message = f"the last observation is the first one of episode {other}: stored after the reset"
            bound, step = "the observation after the last step", dataset.lengths[episode]
            yield Finding(f"first of {other}", bound, message, numbers[episode], step)


def _edges(dataset: Dataset, rows: np.ndarray) -> Iterator[Finding]:
    """Doubled first or last rows, or jumps there, in most episodes.

    A jump: from a first row where others end, or, though only time ended the episode, to where others start.
    """
    long = dataset.lengths >= 4
    if long.sum() < 3:
        return
    first, last = dataset.row_offsets[:-1][long], dataset.row_offsets[1:][long] - 1
    middle = np.concatenate([first + 1 + k * (last - first - 3) // 8 for k in range(9)])

    def doubled(at: np.ndarray) -> float:
        return float((rows[at] == rows[at + 1]).all(axis=1).mean())

    if doubled(middle) <= INTERIOR_SHARE:
        for edge, share in (("first", doubled(first)), ("last", doubled(last - 1))):
            if share >= EDGE_SHARE:
                message = f"the {edge} two observations are equal in {share:.0%} of episodes: shifted by a step"
                yield Finding(f"{share:.1%}", f"< {EDGE_SHARE:.0%}", message)
                return
    spread = rows[np.concatenate([first, middle])].astype(np.float64).std(axis=0)
    moving = spread > 0
    if rows.dtype.kind != "f" or not moving.any():
        return

    def scaled(at: np.ndarray) -> np.ndarray:
        values: np.ndarray = rows[at][:, moving].astype(np.float64) / spread[moving]
        return values

    def step(at: np.ndarray, to: np.ndarray) -> float:
        return float(np.median(np.linalg.norm(scaled(to) - scaled(at), axis=1)))

    usual = step(middle, middle + 1)
    ends = last[dataset.arrays["truncations"][dataset.step_offsets[1:] - 1][long]]
    for edge, at, neighbour, others, where in (
        ("first", first, first + 1, last, "end"),
        ("last", ends, ends - 1, first, "start"),
    ):
        if len(at) < 3 or usual == 0 or step(at, neighbour) <= JUMP_RATIO * usual:
            continue
        at, neighbour = at[:MAX_EDGES], neighbour[:MAX_EDGES]
        apart = cdist(scaled(at), scaled(others[:MAX_EDGES]))
        foreign = max(float(np.median(apart.min(axis=side))) for side in (0, 1))  # both ways: ends, not one odd end
        if foreign < FOREIGN_RATIO * step(at, neighbour):
            ratio = step(at, neighbour) / usual
            message = (
                f"the {edge} observation of episodes is {ratio:.1f} usual steps away from its neighbour and lies where "
                f"episodes {where}: rolled over"
            )
            yield Finding(ratio, f"<= {JUMP_RATIO:g}", message)
            return


def onset_of(strength: Mapping[int, float]) -> int | None:
    """The first lag that responds, from responses in standard errors; None where none is strong enough to tell."""
    strongest = max(strength.values())
    if strongest < DECISIVE_Z:
        return None
    return min(lag for lag, z in strength.items() if z > max(DECISIVE_Z - 1, RESPONSE_SHARE * strongest))


def _surprise(dataset: Dataset) -> np.ndarray | None:
    """(S, A) executed minus clean action, less its mean given the clean action; None without any noise.

    Clipping at the bounds and the draw of *another* discrete action make noise depend on the label, and through it on
    the past; its mean given the label is what has to go.
    """
    clean, executed = (flat_rows(dataset.arrays[name]) for name in ("actions", "executed_actions"))
    if np.array_equal(clean, executed):
        return None

    def less_group_mean(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
        counts = np.maximum(1, np.bincount(groups))
        return values - (np.bincount(groups, weights=values) / counts)[groups]

    low, high = space_bounds(dataset.action_space)
    columns = []
    for column in range(clean.shape[1]):
        label, done = clean[:, column], executed[:, column]
        if clean.dtype.kind == "f":
            edges = np.unique(np.quantile(label, np.linspace(0, 1, NOISE_BINS + 1)))
            columns.append(less_group_mean(done.astype(np.float64) - label, np.searchsorted(edges, label)))
            continue
        for value in range(int(low[column]), min(int(high[column]), int(low[column]) + 31) + 1):
            columns.append(less_group_mean((done == value).astype(np.float64), label - int(low[column])))
    return np.stack(columns, axis=1)


def _response(dataset: Dataset, rows: np.ndarray, noise: np.ndarray, lag: int) -> float:
    """Largest correlation of noise at t with the change from row t + lag to t + lag + 1, in standard errors."""
    steps = np.arange(min(len(noise), MAX_INSTRUMENT_STEPS))
    episode = np.searchsorted(dataset.step_offsets, steps, side="right") - 1
    at = steps - dataset.step_offsets[episode] + lag
    inside = (at >= 0) & (at < dataset.lengths[episode])
    row = dataset.row_offsets[episode[inside]] + at[inside]
    if len(row) < 100:
        return 0.0
    before = rows[row].astype(np.float64)
    change = rows[row + 1] - before
    low, high = np.quantile(change, [0.01, 0.99], axis=0)
    change = np.clip(change, low, high)  # resets, wraps of angles and collisions must not decide
    # what a quadratic function of the row before explains of the change is no noise: that cannot be in this row yet
    centred = before - before.mean(axis=0)
    spread = centred.std(axis=0)
    scaled = centred[:, spread > 0] / spread[spread > 0]
    design = np.concatenate([np.ones((len(before), 1)), scaled, scaled**2], axis=1)
    if design.shape[1] * 5 > len(design):
        change = change - change.mean(axis=0)
    else:
        ridge = 1e-6 * len(design) * np.eye(design.shape[1])
        change = change - design @ np.linalg.solve(design.T @ design + ridge, design.T @ change)
    given = noise[steps[inside]] - noise[steps[inside]].mean(axis=0)
    scale = np.outer(np.linalg.norm(given, axis=0), np.linalg.norm(change, axis=0))
    correlation = np.abs(given.T @ change) / np.where(scale > 0, scale, np.inf)
    return float(correlation.max() * np.sqrt(len(row)))

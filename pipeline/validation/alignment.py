"""Rules about time: does row t hold what the demonstrator saw when it chose action t.

Re-simulation decides with certainty: the environment, given the seed and the executed actions, must return the stored
observations, rewards and ends. So does the demonstrator where it can be asked again: it must answer to every stored
observation with the stored label. Where there is no environment, three traces of a shift are looked for instead:

- an episode whose last row is the first row of one (what auto-resetting environments return with `done`);
- in most episodes, first or last rows that are doubled, or that jump and lie where episodes end or start (what shifting
  an array leaves behind; a jump alone is none, many environments start with one);
- execution noise as an instrument: noise at step t is independent of everything before it, so the first change of
  observation that it explains is the one from row t to row t + 1. This is the instrumental-variable argument of
  econometrics (Angrist and Pischke 2009, *Mostly harmless econometrics*, ch. 4), applied to lags.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from scipy.spatial.distance import cdist

from pipeline.data import UNKNOWN_SEED
from pipeline.data.observations import flat_rows, from_rows
from pipeline.data.spaces import space_bounds
from pipeline.errors import BadInput
from pipeline.validation.replay import first_difference
from pipeline.validation.report import Finding
from pipeline.validation.rules import Context, Dataset, chunks, rule

SOUND = ("fits_spaces", "ends", "observations_finite", "actions_finite", "rewards_finite")

EDGE_SHARE = 0.5  # of episodes with a doubled first or last row
INTERIOR_SHARE = 0.02  # of doubled rows elsewhere: more, and standing still is normal here
JUMP_RATIO = 8.0  # median first step over median step, in standard deviations of the features
FOREIGN_RATIO = 0.5  # a row this much nearer to the other end of an episode than to its neighbour belongs there
MAX_EDGES = 500  # episodes whose ends are compared
LAGS = range(-3, 4)
DECISIVE_Z = 8.0  # strongest response in standard errors; below it the noise says nothing
RESPONSE_SHARE = 0.3  # of the strongest response: the first lag above it is when the action took effect
ACT_ROWS = 4096  # observations answered together
LABEL_TOLERANCE = 1e-3  # of the half range: float32 on another processor stays far below
LABEL_SHARE = 1e-3  # of discrete labels that may differ
MAX_INSTRUMENT_STEPS = 20_000  # beyond them noise is known well enough, and memory is not free
NOISE_BINS = 20


def _no_replay(dataset: Dataset, context: Context) -> str | None:
    if context.replay is None:
        return "no environment was given; see time_alignment"
    if context.replay_episodes == 0:
        return "no episode was to be simulated again; see time_alignment"
    if not (dataset.arrays["seeds"] != UNKNOWN_SEED).any():
        return "no episode has a known seed"
    return None


def _replayed(dataset: Dataset, context: Context) -> str | None:
    undecided = _no_replay(dataset, context) or (dataset.arrays["seeds"] == UNKNOWN_SEED).any()
    return None if undecided else "re-simulation decides it; see replay"


def episodes_to_replay(dataset: Dataset, context: Context) -> list[int]:
    """Up to `replay_episodes` episodes with a known seed, drawn by the content, the same ones every time."""
    known = np.flatnonzero(dataset.arrays["seeds"] != UNKNOWN_SEED)
    count = min(len(known), context.replay_episodes)
    rng = np.random.default_rng(int(dataset.digest[:16], 16))
    return sorted(int(i) for i in rng.choice(known, size=count, replace=False))


@rule(
    "replay",
    "The environment, given seed and executed actions, returns the recorded observations, rewards, ends and figures.",
    (*SOUND, "actions_in_space", "seeds_unique"),
    _no_replay,
)
def replay(dataset: Dataset, context: Context) -> Iterable[Finding]:
    assert context.replay is not None
    chosen, identical = episodes_to_replay(dataset, context), 0
    for index in chosen:
        episode = dataset.trajectories.episode(index)
        try:
            again = context.replay(episode.scenario, episode.seed, episode.executed_actions)
        except BadInput as error:
            yield Finding("replay", index, None, episode.scenario, "an episode that can be simulated", str(error))
            continue
        difference = first_difference(episode, again)
        if difference is None:
            identical += 1
            continue
        message = f"re-simulation departs from the recording: {difference}"
        yield Finding(
            "replay", index, difference.step, difference.recorded, f"= {difference.replayed} (the same bits)", message
        )
    dataset.notes.append(f"re-simulation: {identical} of {len(chosen)} episodes bit-identical")


@rule(
    "time_alignment",
    "Without re-simulation: no trace of observations stored a step early or late.",
    (*SOUND, "episodes_distinct"),
    _replayed,
)
def time_alignment(dataset: Dataset, context: Context) -> Iterable[Finding]:
    numbers = np.arange(len(dataset.lengths))
    if _no_replay(dataset, context) is None:  # a few seeds that are known say nothing of the other episodes
        numbers = np.flatnonzero(dataset.arrays["seeds"] == UNKNOWN_SEED)
        dataset = Dataset(dataset.trajectories.select(numbers).to_arrays(), dataset.metadata, dataset.notes)
    rows = flat_rows(dataset.arrays["observations"])
    found = [*_foreign_last_rows(dataset, rows, numbers), *_edges(dataset, rows)]
    yield from found
    if not found:
        yield from _noise_response(dataset, rows)


def _foreign_last_rows(dataset: Dataset, rows: np.ndarray, numbers: np.ndarray) -> Iterator[Finding]:
    """Episodes that end with the observation that one starts with; `numbers` are those that people know them by."""
    firsts: dict[bytes, list[int]] = {}
    for episode, row in enumerate(dataset.row_offsets[:-1]):
        firsts.setdefault(rows[row].tobytes(), []).append(episode)
    if rows.dtype.kind != "f" or len(firsts) < 2:
        return  # every episode starts alike: returning there is no sign of anything
    for episode, end in enumerate(dataset.row_offsets[1:]):
        others = firsts.get(rows[end - 1].tobytes())
        if others:
            step = int(dataset.lengths[episode])
            other = int(numbers[others[0]])
            message = f"the last observation is the first one of episode {other}: stored after the reset"
            bound = "the observation after the last step"
            yield Finding("time_alignment", int(numbers[episode]), step, f"first of {other}", bound, message)


def _edges(dataset: Dataset, rows: np.ndarray) -> Iterator[Finding]:
    """Doubled first or last rows, or jumps there, in most episodes."""
    first, last = dataset.row_offsets[:-1], dataset.row_offsets[1:] - 1
    long = dataset.lengths >= 4
    if long.sum() < 3:
        return
    first, last = first[long], last[long]
    middle = np.concatenate([first + 1 + k * (last - first - 3) // 8 for k in range(9)])
    doubled = {at: (rows[at_rows] == rows[at_rows + 1]).all(axis=1).mean() for at, at_rows in
               (("first", first), ("last", last - 1), ("middle", middle))}  # fmt: skip
    if doubled["middle"] <= INTERIOR_SHARE:
        for edge in ("first", "last"):
            if doubled[edge] >= EDGE_SHARE:
                message = f"the {edge} two observations are equal in {doubled[edge]:.0%} of episodes: shifted by a step"
                bound = f"< {EDGE_SHARE:.0%}"
                yield Finding("time_alignment", None, None, f"{doubled[edge]:.1%}", bound, message)
                return
    if rows.dtype.kind == "f":
        timed_out = dataset.arrays["truncations"][dataset.step_offsets[1:] - 1][long]
        yield from _jumps(rows, first, last, middle, timed_out)


def _jumps(
    rows: np.ndarray, first: np.ndarray, last: np.ndarray, middle: np.ndarray, timed_out: np.ndarray
) -> Iterator[Finding]:
    """Episodes that jump from a first row where others end, or, though only time ended them, to where others start."""
    spread = rows[np.concatenate([first, middle])].astype(np.float64).std(axis=0)
    moving = spread > 0
    if not moving.any():
        return

    def scaled(at: np.ndarray) -> np.ndarray:
        values: np.ndarray = rows[at][:, moving].astype(np.float64) / spread[moving]
        return values

    def step(at: np.ndarray, to: np.ndarray) -> float:
        return float(np.median(np.linalg.norm(scaled(to) - scaled(at), axis=1)))

    usual = step(middle, middle + 1)
    ends = last[timed_out]
    for edge, at, neighbour, others in (("first", first, first + 1, last), ("last", ends, ends - 1, first)):
        if len(at) < 3 or usual == 0 or step(at, neighbour) <= JUMP_RATIO * usual:
            continue
        at, neighbour = at[:MAX_EDGES], neighbour[:MAX_EDGES]
        apart = cdist(scaled(at), scaled(others[:MAX_EDGES]))
        foreign = max(float(np.median(apart.min(axis=side))) for side in (0, 1))  # both ways: ends, not one odd end
        if foreign < FOREIGN_RATIO * step(at, neighbour):
            ratio, where = step(at, neighbour) / usual, "end" if edge == "first" else "start"
            message = (
                f"the {edge} observation of episodes is {ratio:.1f} usual steps away from its neighbour and lies where "
                f"episodes {where}: rolled over"
            )
            yield Finding("time_alignment", None, None, ratio, f"<= {JUMP_RATIO:g}", message)
            return


def _noise_response(dataset: Dataset, rows: np.ndarray) -> Iterator[Finding]:
    """The first lag at which observations respond to execution noise must be 0."""
    noise = _surprise(dataset)
    if noise is None or rows.dtype.kind != "f":
        dataset.notes.append("alignment in time: not decided (no environment, and no execution noise to tell by)")
        return
    strength = {lag: _response(dataset, rows, noise, lag) for lag in LAGS}
    onset = onset_of(strength)
    if onset is None:
        strongest = max(strength.values())
        dataset.notes.append(f"alignment in time: not decided (strongest response {strongest:.1f} standard errors)")
        return
    if onset == 0:
        dataset.notes.append(f"alignment in time: observations respond to noise at once ({strength[0]:.0f} std errors)")
        return
    word = "late: the label leaks into the input" if onset < 0 else "early"
    steps = "step" if abs(onset) == 1 else "steps"
    # subtle: a row that already shows the effect of its own action was stored after that action, that is late
    message = (
        f"observations respond to the action of step t from row t + {onset + 1} on: stored {abs(onset)} {steps} {word}"
    )
    yield Finding("time_alignment", None, None, onset, "first response of row t + 1", message)


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
    if clean.dtype.kind == "f":
        noise = executed.astype(np.float64) - clean
        for column in range(clean.shape[1]):
            edges = np.unique(np.quantile(clean[:, column], np.linspace(0, 1, NOISE_BINS + 1)))
            noise[:, column] = _less_group_mean(noise[:, column], np.searchsorted(edges, clean[:, column]))
        return noise
    low, high = space_bounds(dataset.action_space)
    columns = []
    for column in range(clean.shape[1]):
        for value in range(int(low[column]), min(int(high[column]), int(low[column]) + 31) + 1):
            chosen = (executed[:, column] == value).astype(np.float64)
            columns.append(_less_group_mean(chosen, clean[:, column] - int(low[column])))
    return np.stack(columns, axis=1)


def _less_group_mean(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    counts = np.maximum(1, np.bincount(groups))
    return values - (np.bincount(groups, weights=values) / counts)[groups]


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
    change = _unexplained(np.clip(change, low, high), before)  # resets, wraps of angles and collisions must not decide
    given = noise[steps[inside]] - noise[steps[inside]].mean(axis=0)
    scale = np.outer(np.linalg.norm(given, axis=0), np.linalg.norm(change, axis=0))
    correlation = np.abs(given.T @ change) / np.where(scale > 0, scale, np.inf)
    return float(correlation.max() * np.sqrt(len(row)))


def _unexplained(change: np.ndarray, before: np.ndarray) -> np.ndarray:
    """What a quadratic function of the row before does not explain of the change; noise cannot be in that row yet."""
    centred = before - before.mean(axis=0)
    spread = centred.std(axis=0)
    moving = spread > 0
    scaled = centred[:, moving] / spread[moving]
    design = np.concatenate([np.ones((len(before), 1)), scaled, scaled**2], axis=1)
    if design.shape[1] * 5 > len(design):
        return change - change.mean(axis=0)
    ridge = 1e-6 * len(design) * np.eye(design.shape[1])
    residual: np.ndarray = change - design @ np.linalg.solve(design.T @ design + ridge, design.T @ change)
    return residual


def _no_act(dataset: Dataset, context: Context) -> str | None:
    return "the demonstrator was not given" if context.act is None else None


@rule(
    "labels",
    "The labels are what the demonstrator answers to the stored observations.",
    ("fits_spaces", "observations_finite", "actions_finite"),
    _no_act,
)
def labels(dataset: Dataset, context: Context) -> Iterable[Finding]:
    assert context.act is not None
    data, rows = dataset.trajectories, dataset.trajectories.step_rows
    low, high = space_bounds(dataset.action_space)
    continuous = data.actions.dtype.kind == "f"
    half_range = np.where(np.isfinite(high - low), (high.astype(np.float64) - low) / 2, 1.0) if continuous else 1.0
    tolerance, wrong = LABEL_TOLERANCE * half_range if continuous else 0.0, []
    for part in chunks(data.steps, ACT_ROWS):
        answers = flat_rows(np.asarray(context.act(from_rows(data.observations[rows[part]]))))
        difference = np.abs(answers.astype(np.float64) - flat_rows(data.actions[part]))
        wrong.append(part.start + np.flatnonzero((difference > tolerance).any(axis=1)))
    found = np.concatenate(wrong)
    if not continuous and len(found) <= LABEL_SHARE * data.steps:
        return  # two actions as good as equal: the last bit of another processor decides
    for index in found:
        episode, step = dataset.step_place(int(index))
        answer = flat_rows(np.asarray(context.act(from_rows(data.observations[rows[index]][None]))))[0].tolist()[:8]
        label = flat_rows(data.actions[index][None])[0].tolist()[:8]
        message = "the demonstrator answers otherwise to the stored observation"
        yield Finding("labels", episode, step, str(label), f"= {answer} +- {LABEL_TOLERANCE:g} half ranges", message)


ALIGNMENT = (replay, time_alignment, labels)

"""Rules about values: finite, in range, consistent with each other, and not degenerate."""

from collections.abc import Iterable, Iterator

import numpy as np
from gymnasium import spaces
from scipy.special import ndtr

from pipeline.data import UNKNOWN_SEED, EpisodeData
from pipeline.data.observations import flat_rows
from pipeline.data.spaces import space_bounds
from pipeline.errors import BadInput
from pipeline.names import Metric
from pipeline.validation.replay import first_difference
from pipeline.validation.report import Finding
from pipeline.validation.rules import Context, Dataset, chunks, no_task, plain, rule

SOUND = ("fits_spaces",)  # which in turn needs every rule of form

RETURN_TOLERANCE = 1e-4  # absolute, and
RETURN_RELATIVE = 1e-5  # of the sum of |r|: float32 rewards summed in any order stay within it
DECLARE = "; if the environment declares it too narrow: pipeline.envs.limits:DeclareObservation in environment.wrappers"
BOUND_RELATIVE = 1e-6  # of an observation bound: one rounding of float32
CONSTANT_STEPS = 10  # an episode this long whose actions never change is suspicious
CONSTANT_SHARE = 0.1  # of such episodes that is still accepted
OUTCOMES = (Metric.SUCCESS, Metric.COLLISION)
NOISE_ERRORS = 6.0  # standard errors of room for how strong noise is, on either side
ROUNDING = 1e-6  # of float32
NOISE_SIGMAS = 8.0  # a Gaussian draw further out does not happen


@rule("observations_finite", "No observation is NaN or infinite.", SOUND)
def observations_finite(dataset: Dataset, context: Context) -> Iterable[Finding]:
    yield from _not_finite(dataset, "observations", "observations_finite")


@rule("actions_finite", "No action, label or executed, is NaN or infinite.", SOUND)
def actions_finite(dataset: Dataset, context: Context) -> Iterable[Finding]:
    for name in ("actions", "executed_actions"):
        yield from _not_finite(dataset, name, "actions_finite")


def _not_finite(dataset: Dataset, name: str, rule_name: str) -> Iterator[Finding]:
    low, high = dataset.ranges[name]
    if np.isfinite(low).all() and np.isfinite(high).all():
        return
    rows = flat_rows(dataset.arrays[name])
    for part in chunks(len(rows)):
        for row, feature in np.argwhere(~np.isfinite(rows[part])):
            value = plain(rows[part][row, feature])
            episode, step = dataset.place(name, part.start + int(row))
            yield Finding(
                rule_name, episode, step, value, "finite", f"{dataset.element(name, int(feature))} is {value}"
            )


@rule("rewards_finite", "No reward is NaN or infinite.", SOUND)
def rewards_finite(dataset: Dataset, context: Context) -> Iterable[Finding]:
    rewards = dataset.arrays["rewards"]
    for index in np.flatnonzero(~np.isfinite(rewards)):
        value, (episode, step) = plain(rewards[index]), dataset.step_place(int(index))
        yield Finding("rewards_finite", episode, step, value, "finite", f"the reward is {value}")


@rule("metrics_finite", "No figure of an episode is NaN or infinite.", SOUND)
def metrics_finite(dataset: Dataset, context: Context) -> Iterable[Finding]:
    for name, values in dataset.metrics.items():
        for episode in np.flatnonzero(~np.isfinite(values)):
            value = plain(values[episode])
            yield Finding("metrics_finite", int(episode), None, value, "finite", f"metric {name} is {value}")


@rule("actions_in_space", "Every action, label or executed, lies in the action space.", SOUND)
def actions_in_space(dataset: Dataset, context: Context) -> Iterable[Finding]:
    for name in ("actions", "executed_actions"):
        yield from _outside(dataset, name, dataset.action_space, 0.0, "actions_in_space")


@rule("observations_in_space", "Every observation lies in the observation space where that is bounded.", SOUND)
def observations_in_space(dataset: Dataset, context: Context) -> Iterable[Finding]:
    yield from _outside(
        dataset, "observations", dataset.observation_space, BOUND_RELATIVE, "observations_in_space", DECLARE
    )


def _outside(
    dataset: Dataset, name: str, space: spaces.Space, relative: float, rule_name: str, hint: str = ""
) -> Iterator[Finding]:
    """Finite values beyond a bound; NaN and infinities belong to the rules about them."""
    declared = space_bounds(space)
    low, high = declared
    if relative and low.dtype.kind == "f":
        with np.errstate(over="ignore"):
            low = low - relative * np.maximum(1.0, np.abs(low), where=np.isfinite(low), out=np.zeros_like(low))
            high = high + relative * np.maximum(1.0, np.abs(high), where=np.isfinite(high), out=np.zeros_like(high))
    smallest, largest = dataset.ranges[name]
    with np.errstate(invalid="ignore"):
        suspects = np.flatnonzero(~((smallest >= low) & (largest <= high)))
    rows = flat_rows(dataset.arrays[name])
    for feature in suspects:
        column = rows[:, feature]
        for row in np.flatnonzero(np.isfinite(column) & ((column < low[feature]) | (column > high[feature]))):
            episode, step = dataset.place(name, int(row))
            bound = f"[{plain(declared[0][feature])}, {plain(declared[1][feature])}]"
            message = f"{dataset.element(name, int(feature))} is outside its space{hint}"
            yield Finding(rule_name, episode, step, plain(column[row]), bound, message)


@rule(
    "returns", "The rewards of each episode sum to its stored return.", (*SOUND, "rewards_finite", "metrics_finite")
)  # fmt: skip
def returns(dataset: Dataset, context: Context) -> Iterable[Finding]:
    rewards, starts = dataset.arrays["rewards"].astype(np.float64), dataset.step_offsets[:-1]
    sums, sizes = np.add.reduceat(rewards, starts), np.add.reduceat(np.abs(rewards), starts)
    stored, tolerance = dataset.metrics[Metric.RETURN], RETURN_TOLERANCE + RETURN_RELATIVE * sizes
    for episode in np.flatnonzero(np.abs(stored - sums) > tolerance):
        bound = f"{sums[episode]:.9g} +- {tolerance[episode]:.3g}"
        message = "the stored return is not the sum of the rewards"
        yield Finding("returns", int(episode), None, plain(stored[episode]), bound, message)


@rule("lengths", "The stored length of each episode is its number of steps.", (*SOUND, "metrics_finite"))
def stored_lengths(dataset: Dataset, context: Context) -> Iterable[Finding]:
    stored = dataset.metrics[Metric.LENGTH]
    for episode in np.flatnonzero(stored != dataset.lengths):
        bound = f"= {int(dataset.lengths[episode])}"
        message = "the stored length is not the number of steps"
        yield Finding("lengths", int(episode), None, plain(stored[episode]), bound, message)


@rule(
    "outcomes",
    "Success and collision are 0 or 1; not both 1 where the task file excludes it.",
    (*SOUND, "metrics_finite"),
)  # fmt: skip
def outcomes(dataset: Dataset, context: Context) -> Iterable[Finding]:
    for name in OUTCOMES:
        values = dataset.metrics.get(name, np.zeros(0))
        for episode in np.flatnonzero((values != 0) & (values != 1)):
            yield Finding(
                "outcomes", int(episode), None, plain(values[episode]), "0 or 1", f"{name} is neither 0 nor 1"
            )

    if context.task is not None and context.task.success_excludes_collision:
        both = [dataset.metrics.get(name, np.zeros(len(dataset.lengths))) == 1 for name in OUTCOMES]
        for episode in np.flatnonzero(both[0] & both[1]):
            message = "the episode claims success and collision at once"
            yield Finding("outcomes", int(episode), None, "both", "success or collision", message)


@rule(
    "figures_possible", "No figure lies outside of what the task file calls possible.", (*SOUND, "metrics_finite"),
    no_task,
)  # fmt: skip
def figures_possible(dataset: Dataset, context: Context) -> Iterable[Finding]:
    assert context.task is not None
    for name, measure in context.task.metrics.items():
        values = dataset.metrics[name]
        low, high = (-np.inf if measure.min is None else measure.min), (np.inf if measure.max is None else measure.max)
        for episode in np.flatnonzero((values < low) | (values > high)):
            message, bound = f"{name} is impossible by the task file", f"[{low:g}, {high:g}]"
            yield Finding("figures_possible", int(episode), None, plain(values[episode]), bound, message)


@rule("ends", "Every episode ends exactly once, at its last step.", SOUND)
def ends(dataset: Dataset, context: Context) -> Iterable[Finding]:
    ended = dataset.arrays["terminations"] | dataset.arrays["truncations"]
    last = np.zeros_like(ended)
    last[dataset.step_offsets[1:] - 1] = True
    for index in np.flatnonzero(ended != last):
        episode, step = dataset.step_place(int(index))
        value, bound = ("end", "no end before the last step") if ended[index] else ("no end", "an end at the last step")
        yield Finding("ends", episode, step, value, bound, f"{value} at step {step} of {dataset.lengths[episode]}")


@rule("horizon", "No episode is longer than the horizon.", SOUND)
def horizon(dataset: Dataset, context: Context) -> Iterable[Finding]:
    limit = dataset.metadata["horizon"]
    if limit is not None:
        for episode in np.flatnonzero(dataset.lengths > limit):
            length = int(dataset.lengths[episode])
            yield Finding("horizon", int(episode), None, length, f"<= {limit}", "the episode outlasts the horizon")


@rule("actions_vary", "Actions are not constant or all zero, over the dataset and within episodes.", SOUND)
def actions_vary(dataset: Dataset, context: Context) -> Iterable[Finding]:
    low, high = dataset.ranges["actions"]
    if len(dataset.arrays["actions"]) > 1 and np.array_equal(low, high):
        kind = "all zero" if not low.any() else "constant"
        message = f"every action of the dataset is the same: {kind}"
        yield Finding("actions_vary", None, None, f"{kind}: {low.tolist()[:8]}", "actions that differ", message)
        return
    rows = flat_rows(dataset.arrays["actions"])
    changed = (rows[1:] != rows[:-1]).any(axis=1)
    changes = np.concatenate([[0], np.cumsum(changed)])
    first, last = dataset.step_offsets[:-1], dataset.step_offsets[1:] - 1
    still = (changes[last] == changes[first]) & (dataset.lengths >= CONSTANT_STEPS)
    share = still.mean()
    if share > CONSTANT_SHARE:
        for episode in np.flatnonzero(still):
            message = f"the action never changes in the episode, as in {still.sum()} of {len(still)} episodes"
            bound = f"at most {CONSTANT_SHARE:.0%} of episodes"
            yield Finding("actions_vary", int(episode), None, f"{share:.1%}", bound, message)


@rule("precision", "No episode was stored with fewer digits than the others.", (*SOUND, "observations_finite"))
def precision(dataset: Dataset, context: Context) -> Iterable[Finding]:
    """An episode that went through a smaller float type has zeros in the low bits of every value."""
    rows = flat_rows(dataset.arrays["observations"])
    kinds: dict[str, tuple[type[np.unsignedinteger], int, str]] = {
        "float32": (np.uint32, 13, "float16"),
        "float64": (np.uint64, 29, "float32"),
    }
    if rows.dtype.name not in kinds:
        return
    kind, low_bits, name = kinds[rows.dtype.name]
    mask = kind((1 << low_bits) - 1)
    used, share = _bits_used(rows.view(kind), mask, dataset.row_offsets)
    continuous = share > 0.9  # features whose values nearly always need every digit
    if continuous.any():
        for episode in np.flatnonzero(~used[:, continuous].any(axis=1) & (dataset.lengths >= CONSTANT_STEPS)):
            message = f"every observation of the episode is a {name} value, those of other episodes are not"
            yield Finding("precision", int(episode), None, name, rows.dtype.name, message)


def _bits_used(bits: np.ndarray, mask: np.unsignedinteger, row_offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) bool: does the episode use low bits in the feature; (D,) float: share of values that do."""
    used = np.zeros((len(row_offsets) - 1, bits.shape[1]), dtype=bool)
    counts = np.zeros(bits.shape[1])
    first = 0
    while first < len(used):
        last = max(first + 1, int(np.searchsorted(row_offsets, row_offsets[first] + (1 << 15), side="right")) - 1)
        low = (bits[row_offsets[first] : row_offsets[last]] & mask) != 0
        used[first:last] = np.logical_or.reduceat(low, row_offsets[first:last] - row_offsets[first], axis=0)
        counts += low.sum(axis=0)
        first = last
    return used, counts / len(bits)


@rule("episodes_distinct", "No two episodes are the same, but where a small world leads there from both seeds.", SOUND)
def episodes_distinct(dataset: Dataset, context: Context) -> Iterable[Finding]:
    copies = _copies(dataset)
    distinct = len(dataset.lengths) - len(copies)
    enough = distinct >= context.min_episodes  # else it is one demonstration, many times
    few = "" if enough else f"; a small world may lead to copies beside {context.min_episodes} others, here {distinct}"
    honest = 0
    for index, other in copies.items():
        if enough and _leads_there(dataset, context, index):
            honest += 1
            continue
        message = f"the episode is a copy of episode {other}, step for step{few}"
        yield Finding("episodes_distinct", index, None, f"copy of {other}", "distinct episodes", message)
    if honest:
        dataset.notes.append(f"{honest} episodes equal an earlier one; re-simulation leads there from their own seeds")


def _copies(dataset: Dataset) -> dict[int, int]:
    """Episode -> the earlier one that it is equal to in observations, executed actions and rewards."""
    data, starts = dataset.trajectories, zip(dataset.step_offsets, dataset.row_offsets, dataset.lengths, strict=False)
    copies, seen = dict[int, int](), dict[tuple[bytes, ...], list[int]]()
    for index, (step, row, length) in enumerate(starts):
        # a cheap key first; only episodes that share it are compared in full
        parts = (data.observations[row], data.observations[row + length], data.rewards[step : step + length])
        key = tuple(np.ascontiguousarray(part).tobytes() for part in parts)
        same = (other for other in seen.get(key, ()) if _equal(data.episode(index), data.episode(other)))
        other = next(same, None)
        if other is None:
            seen.setdefault(key, []).append(index)
        else:
            copies[index] = other
    return copies


def _equal(mine: EpisodeData, theirs: EpisodeData) -> bool:
    names = ("observations", "executed_actions", "rewards")
    return all(np.array_equal(getattr(mine, n), getattr(theirs, n), equal_nan=_inexact(mine, n)) for n in names)


def _leads_there(dataset: Dataset, context: Context, index: int) -> bool:
    """The environment plays the episode from its own seed, which no other episode has (rule seeds_unique)."""
    episode = dataset.trajectories.episode(index)
    if context.replay is None or context.replay_episodes == 0 or episode.seed == UNKNOWN_SEED:
        return False
    try:
        again = context.replay(episode.scenario, episode.seed, episode.executed_actions)
    except BadInput:
        return False
    return first_difference(episode, again) is None


def _inexact(episode: EpisodeData, name: str) -> bool:
    return bool(getattr(episode, name).dtype.kind == "f")


@rule(
    "execution_noise",
    "What was executed is the label plus the declared noise.",
    (*SOUND, "actions_finite", "actions_in_space"),
)
def execution_noise(dataset: Dataset, context: Context) -> Iterable[Finding]:
    std = float(dataset.metadata["noise_std"])
    clean, executed = (flat_rows(dataset.arrays[name]) for name in ("actions", "executed_actions"))
    if std == 0:
        for index in np.flatnonzero((clean != executed).any(axis=1)):
            episode, step = dataset.step_place(int(index))
            message = "the executed action is not the label, and no noise is declared"
            yield Finding("execution_noise", episode, step, str(executed[index].tolist()[:8]), "= label", message)
    elif dataset.action_space.dtype is not None and dataset.action_space.dtype.kind == "f":
        yield from _gaussian_noise(dataset, std, clean, executed)
    else:
        low, high = space_bounds(dataset.action_space)
        choices = float(np.prod(high.astype(np.float64) - low + 1))
        yield from _random_actions(std, choices, (clean != executed).any(axis=1))


def _gaussian_noise(dataset: Dataset, std: float, clean: np.ndarray, executed: np.ndarray) -> Iterator[Finding]:
    low, high = space_bounds(dataset.action_space)
    with np.errstate(over="ignore"):
        sigma = std * (high.astype(np.float64) - low) / 2
    if not np.isfinite(sigma).all():
        return  # without bounds there is no half range to measure noise in
    for feature in np.flatnonzero(sigma > 0):
        label = clean[:, feature].astype(np.float64)
        noise = np.abs(executed[:, feature] - label)
        largest = NOISE_SIGMAS * sigma[feature]
        for index in np.flatnonzero(noise > largest):
            episode, step = dataset.step_place(int(index))
            message = f"executed action {feature} differs from its label by more than the declared noise can"
            yield Finding("execution_noise", episode, step, plain(noise[index]), f"<= {largest:.6g}", message)
        square, deviation = clipped_squares(
            (low[feature] - label) / sigma[feature], (high[feature] - label) / sigma[feature]
        )
        spread, expected = float(np.sqrt(np.mean(noise**2))), float(sigma[feature] * np.sqrt(square.mean()))
        # the standard error of a root mean square: that of the mean square over twice the root
        error = float(sigma[feature] * np.sqrt((deviation**2).sum()) / len(noise) / (2 * np.sqrt(square.mean())))
        least, most = expected - NOISE_ERRORS * error, expected + NOISE_ERRORS * error + ROUNDING * largest
        if not least <= spread <= most or (len(noise) >= CONSTANT_STEPS and spread == 0.0):
            message = f"executed action {feature} does not show the declared noise of {std:g} half ranges"
            bound = f"[{least:.6g}, {most:.6g}]" if least > 0 else f"(0, {most:.6g}]"
            yield Finding("execution_noise", None, None, spread, bound, message)


def clipped_squares(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `clip(z, low, high)**2` for a standard normal z; low <= 0 <= high, each (S,).

    Integrals of z^2 and z^4 over the density between the bounds, and the bounds themselves with the mass beyond them.
    """
    low, high = np.maximum(low, -40.0), np.minimum(high, 40.0)  # infinity times a density of 0 would be NaN
    below, above = ndtr(low), ndtr(-high)
    inside = 1 - below - above
    at_low, at_high = (np.exp(-(bound**2) / 2) / np.sqrt(2 * np.pi) for bound in (low, high))
    second = inside - (high * at_high - low * at_low) + low**2 * below + high**2 * above
    fourth = 3 * inside - ((high**3 + 3 * high) * at_high - (low**3 + 3 * low) * at_low)
    fourth += low**4 * below + high**4 * above
    return second, np.sqrt(np.maximum(0.0, fourth - second**2))


def _random_actions(chance: float, choices: float, replaced: np.ndarray) -> Iterator[Finding]:
    """A random action is the label itself one time in `choices`."""
    share, count, expected = float(replaced.mean()), len(replaced), min(1.0, chance) * (1 - 1 / choices)
    slack = NOISE_ERRORS * np.sqrt(expected * (1 - expected) / count)
    if abs(share - expected) > slack or (share == 0 and expected * count >= 25):  # less likely than 1 in 10^10
        message = f"the share of actions that differ from their label does not fit the declared noise of {chance:g}"
        bound = f"{expected:.6g} +- {slack:.6g}"
        yield Finding("execution_noise", None, None, share, bound, message)


VALUES = (
    observations_finite, actions_finite, rewards_finite, metrics_finite, actions_in_space, observations_in_space,
    returns, stored_lengths, outcomes, figures_possible, ends, horizon, actions_vary, precision,
    episodes_distinct, execution_noise,
)  # fmt: skip

"""From the evaluations of both arms over matched seeds to the verdict: did pre-training save timesteps, and how sure.

    comparison = compare({"scratch": runs, "pretrained": runs}, settings)
    comparison.verdict, comparison.ratio      # "faster", Estimate(value=0.18, low=0.12, high=0.27)

Plain arrays in, one frozen result out that holds everything a report shows. Which runs belong together, and that they
differ in initial weights alone, is checked where runs are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from pipeline.config.base import Bound
from pipeline.errors import BadInput
from pipeline.names import CONTROLS, Arm
from pipeline.statistics.aggregate import (
    Profile,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from pipeline.statistics.efficiency import (
    BreakEven,
    MedianRatio,
    SeedPair,
    SignTest,
    TimeToTarget,
    break_even,
    matched_pair,
    mean_saving,
    median_ratio,
    never_met,
    paired_steps,
    restricted_mean,
    restricted_mean_ratio,
    sign_test,
    timesteps_to_target,
)
from pipeline.statistics.estimate import Estimate, bootstrap, bootstrap_means
from pipeline.statistics.planning import SeedsNeeded, seeds_needed, simulated_coverage
from pipeline.statistics.ranking import RankedArm, holm, sign_flip_p

MINIMUM_PAIRS = 3  # below, an interval over seeds says nothing
PROFILE_POINTS = 101


class Verdict(StrEnum):
    """On timesteps to target: where the interval of the ratio lies against 1."""

    FASTER = "faster"
    NOT_SHOWN = "not shown"
    SLOWER = "slower"


class FinalVerdict(StrEnum):
    """On final performance: where the interval of the paired difference lies against 0."""

    BETTER = "better"
    NOT_SHOWN = "not shown"
    WORSE = "worse"
    DIFFERS = "differs"  # of a figure of which neither more nor less is better


@dataclass(frozen=True)
class RunData:
    """One training of one arm."""

    seed: int
    steps: np.ndarray  # (n,) int: environment steps of training at each evaluation, the first is 0
    figures: Mapping[str, np.ndarray]  # figure -> (n,) value of each evaluation
    final: Mapping[str, Mapping[str, float]]  # scenario set -> figure -> mean over fresh episodes, best checkpoint
    budget: int  # environment steps asked for


@dataclass(frozen=True)
class UpfrontCost:
    """What was spent once, before the first fine-tuning, in environment steps and seconds."""

    expert_steps: int  # training of the experts, all generations and seeds; 0 for a scripted demonstrator
    demonstration_steps: int  # recording, all generations
    evaluation_steps: int = 0  # evaluations of experts, gates and clones; shown, and part of the upfront cost
    wall_seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds
    imitation_steps: int = 0  # that gail, airl or dagger played to make the clones; 0 for bc

    @property
    def steps(self) -> int:
        return self.expert_steps + self.demonstration_steps + self.imitation_steps + self.evaluation_steps


@dataclass(frozen=True)
class ComparisonSettings:
    """What counts as solved, and how it is compared."""

    target: Mapping[str, Bound]  # figure of an evaluation -> bound; all must hold
    patience: int  # consecutive evaluations
    evaluation_interval: int  # environment steps; what meeting the target at step 0 counts as
    ratio_target: float  # upper end of the ratio's interval that meets the target
    resamples: int
    seed: int  # of the resampling
    final_figure: str  # of `RunData.final` that decides about final performance
    training_set: str  # scenario set of the fine-tuning, first of the final evaluations
    minimised: tuple[str, ...] = ()  # figures of which less is better
    undirected: tuple[str, ...] = ()  # figures of which neither more nor less is

    @property
    def resampling(self) -> dict[str, int]:
        """What every interval over seeds is drawn with."""
        return {"seed": self.seed, "resamples": self.resamples}


@dataclass(frozen=True)
class Curve:
    """Mean over seeds of one figure during training, with pointwise 95 % bootstrap intervals over seeds."""

    steps: tuple[int, ...]  # environment steps
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class RunCurve:
    """One seed's evaluations."""

    seed: int
    steps: tuple[int, ...]
    figures: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds."""

    arm: str
    seeds: tuple[int, ...]
    budget: int  # environment steps
    times: tuple[TimeToTarget, ...]  # in the order of the seeds
    reached: int  # seeds that met the target
    restricted_mean: Estimate  # environment steps to target
    curves: Mapping[str, Curve]
    runs: tuple[RunCurve, ...]


@dataclass(frozen=True)
class FinalFigure:
    """One figure of the best checkpoints on fresh episodes; one value a seed."""

    figure: str
    minimised: bool
    values: Mapping[str, tuple[float, ...]]  # arm -> value of every seed, in the order of its seeds
    means: Mapping[str, Estimate]  # arm -> mean over seeds
    interquartile_means: Mapping[str, Estimate]  # arm -> over seeds
    difference: Estimate  # pre-trained - scratch, mean over matched seeds
    probability_of_improvement: Estimate | None  # that a pre-trained run is better than one from scratch
    verdict: FinalVerdict


@dataclass(frozen=True)
class Regression:
    """Did fine-tuning elsewhere cost performance on the scenarios that were demonstrated."""

    scenario_set: str
    figure: str
    before: float  # of what the seeds started from, mean over seeds
    after: Estimate  # of the fine-tuned policies, mean over seeds
    difference: Estimate  # after - before of the same seed, mean over seeds
    clones: int  # how many different policies the seeds started from; 1: the interval is about that one alone
    regressed: bool  # the interval of the difference lies on the worse side of 0


@dataclass(frozen=True)
class Bill:
    """All environment steps until the target, with and without pre-training."""

    upfront: UpfrontCost
    baseline_steps: Estimate  # per run: restricted mean to target
    pretrained_steps: Estimate  # per run
    saving: Estimate  # per run, over matched seeds
    total_ratio: float  # (upfront + pre-trained runs) / baseline runs, for the runs of this comparison
    break_even: BreakEven


@dataclass(frozen=True)
class Comparison:
    """Everything the report shows. Seeds are the sample; episodes are never counted as seeds."""

    verdict: Verdict
    target_met: bool  # upper end of the ratio's interval <= ratio target
    reasons: tuple[str, ...]
    interval_coverage: float | None  # what nominal 95 % intervals over so few pairs covered in simulation
    ratio: Estimate  # of restricted mean times to target, pre-trained / scratch
    reduction: Estimate  # 1 - ratio
    median: MedianRatio  # of per-seed ratios
    sign_test: SignTest
    pairs: tuple[SeedPair, ...]
    seeds_for_verdict: SeedsNeeded | None  # None: it is decided
    seeds_for_target: SeedsNeeded | None  # None: it is met
    final_verdict: FinalVerdict
    finals: Mapping[str, tuple[FinalFigure, ...]]  # scenario set -> figures, the training set first
    arms: Mapping[str, ArmSummary]
    ranking: tuple[RankedArm, ...]  # of more than two arms: each against `scratch`, fewest steps first
    profiles: Mapping[str, Profile]  # arm -> of the final figure on the training set
    bill: Bill | None  # None: nobody said what was spent
    settings: ComparisonSettings

    @property
    def unanswered(self) -> bool:
        """No run of either arm met the target, so that their times cannot be compared."""
        return never_met(self.pairs)

    @property
    def decisive(self) -> FinalFigure:
        """The figure that final performance is decided by, on the training scenarios."""
        return next(f for f in self.finals[self.settings.training_set] if f.figure == self.settings.final_figure)


def compare(
    runs: Mapping[str, Sequence[RunData]], settings: ComparisonSettings, upfront: UpfrontCost | None = None
) -> Comparison:
    """Compare the arm `pretrained` with `scratch`, seed by seed; further arms are summarised beside them.

    Raises BadInput for a missing arm, unmatched or repeated seeds, unequal budgets, an unfinished run or a figure
    that the runs do not have.
    """
    ordered = {arm: sorted(of_arm, key=lambda run: run.seed) for arm, of_arm in runs.items() if of_arm}
    _check(ordered, settings)
    arms = {arm: _summarise_arm(arm, of_arm, settings) for arm, of_arm in ordered.items()}
    scratch, pretrained = arms[Arm.SCRATCH], arms[Arm.PRETRAINED]
    pairs = tuple(
        matched_pair(seed, before, after, settings.evaluation_interval)
        for seed, before, after in zip(scratch.seeds, scratch.times, pretrained.times, strict=True)
    )
    ratio = restricted_mean_ratio(pairs, **settings.resampling)
    verdict, target_met = decide(ratio, len(pairs), settings.ratio_target)
    if never_met(pairs):
        verdict, target_met = Verdict.NOT_SHOWN, False

    def more_seeds(at_most: float | None) -> SeedsNeeded:
        return seeds_needed(pairs, at_most, MINIMUM_PAIRS, settings.seed)

    finals = _finals(ordered, settings)
    decisive = next(f for f in finals[settings.training_set] if f.figure == settings.final_figure)
    trained = [arm for arm in arms if arm not in (Arm.SCRATCH, *CONTROLS)]
    # profiles of both arms are over one grid of thresholds, which spans every value and a little more
    both = {arm: np.array(decisive.values[arm]) for arm in (Arm.SCRATCH, Arm.PRETRAINED)}
    everything = np.concatenate(list(both.values()))
    margin = max(0.05 * float(np.ptp(everything)), 1e-3)
    grid = np.linspace(everything.min() - margin, everything.max() + margin, PROFILE_POINTS)
    bill = None
    if upfront is not None:
        saving = mean_saving(pairs, **settings.resampling)
        times = [pair.baseline for pair in pairs], [pair.pretrained for pair in pairs]
        spent = sum(time.steps for time in times[1]) + upfront.steps
        bill = Bill(
            upfront=upfront,
            baseline_steps=restricted_mean(times[0], **settings.resampling),
            pretrained_steps=restricted_mean(times[1], **settings.resampling),
            saving=saving,
            total_ratio=spent / sum(time.steps for time in times[0]),
            break_even=break_even(upfront.steps, saving),
        )
    return Comparison(
        verdict=verdict,
        target_met=target_met,
        reasons=_reasons(pairs, ratio, verdict, target_met, settings),
        interval_coverage=simulated_coverage(len(pairs)),
        ratio=ratio,
        reduction=Estimate(1 - ratio.value, 1 - ratio.high, 1 - ratio.low),
        median=median_ratio(pairs, **settings.resampling),
        sign_test=sign_test(pairs),
        pairs=pairs,
        seeds_for_verdict=more_seeds(None) if verdict is Verdict.NOT_SHOWN else None,
        seeds_for_target=None if target_met else more_seeds(settings.ratio_target),
        final_verdict=decisive.verdict,
        finals=finals,
        arms=arms,
        ranking=_ranked(trained, arms, decisive, settings) if len(trained) > 1 else (),
        profiles={arm: performance_profile(values, grid, settings.seed) for arm, values in both.items()},
        bill=bill,
        settings=settings,
    )


def _ranked(
    trained: Sequence[str], arms: Mapping[str, ArmSummary], decisive: FinalFigure, settings: ComparisonSettings
) -> tuple[RankedArm, ...]:
    """Each of these arms against `scratch`, seed by seed; p-values are corrected for their number (Holm)."""
    scratch, before = arms[Arm.SCRATCH], np.array(decisive.values[Arm.SCRATCH])
    sign = -1.0 if decisive.minimised else 1.0
    ratios, times, ends = [], [], []
    for arm in trained:
        matched = zip(scratch.seeds, scratch.times, arms[arm].times, strict=True)
        pairs = [matched_pair(seed, ours, theirs, settings.evaluation_interval) for seed, ours, theirs in matched]
        ratios.append(restricted_mean_ratio(pairs, **settings.resampling))
        reference, own = paired_steps(pairs)
        times.append(sign_flip_p(own - reference, settings.seed))
        ends.append(sign * (np.array(decisive.values[arm]) - before))
    final_p = holm([sign_flip_p(differences, settings.seed) for differences in ends])
    ranked = [
        RankedArm(
            arm=arm,
            steps=arms[arm].restricted_mean,
            ratio=ratio,
            ratio_p=time_p,
            difference=bootstrap(np.mean, differences, **settings.resampling),
            difference_p=end_p,
        )
        for arm, ratio, time_p, differences, end_p in zip(trained, ratios, holm(times), ends, final_p, strict=True)
    ]
    return tuple(sorted(ranked, key=lambda one: (one.ratio.value, -one.difference.value)))


def decide(ratio: Estimate, pairs: int, ratio_target: float) -> tuple[Verdict, bool]:
    """Verdict, and whether the target is met, from the interval of the ratio. Too few pairs decide nothing.

    Faster: the interval lies below 1. Target met: its upper end is at most `ratio_target`, exactly at it included.
    """
    if pairs < MINIMUM_PAIRS:
        return Verdict.NOT_SHOWN, False
    target_met = ratio.high <= ratio_target
    if ratio.high < 1:
        return Verdict.FASTER, target_met
    return (Verdict.SLOWER if ratio.low > 1 else Verdict.NOT_SHOWN), target_met


def measure_regression(
    scenario_set: str,
    figure: str,
    before: Sequence[float],
    after: Sequence[float],
    clones: int,
    settings: ComparisonSettings,
) -> Regression:
    """Compare the figure of what every seed started from, (n,), with that of what it became, (n,), seed by seed.

    The pair of a seed is resampled, so that the spread over clones counts, and what a good clone and the policy made
    of it have in common does not. Where `clones` is 1, no spread over clones can be seen.
    """
    started, ended = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    mean = bootstrap(np.mean, ended, **settings.resampling)
    difference = bootstrap(np.mean, ended - started, **settings.resampling)
    regressed = decide_final(difference, len(ended), figure, settings) is FinalVerdict.WORSE
    return Regression(scenario_set, figure, float(started.mean()), mean, difference, clones, regressed)


def met_target(run: RunData, target: Mapping[str, Bound]) -> np.ndarray:
    """(n,) bool: which evaluations meet every bound of the target."""
    held = [[bound.holds(float(value)) for value in run.figures[figure]] for figure, bound in target.items()]
    return np.all(np.array(held, dtype=bool).reshape(len(target), -1), axis=0)


def _check(runs: Mapping[str, Sequence[RunData]], settings: ComparisonSettings) -> None:
    for arm in (Arm.SCRATCH, Arm.PRETRAINED):
        if arm not in runs:
            raise BadInput(f"comparison: no run of arm {arm!r}; run the stage that trains it with the same group")
    if not settings.target:
        raise BadInput("comparison: target is empty; give at least one figure with its bound")
    for arm, of_arm in runs.items():
        seeds = [run.seed for run in of_arm]
        repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if repeated:
            raise BadInput(f"comparison: arm {arm!r} has several runs of seed {repeated[0]}; keep one run per seed")
        for run in of_arm:
            name, steps = f"comparison: {arm} seed {run.seed}", np.asarray(run.steps)
            if steps.size == 0 or steps[0] != 0 or (np.diff(steps) <= 0).any():
                raise BadInput(f"{name}: evaluations must start at step 0 and increase, got {steps[:5].tolist()}")
            for figure in settings.target:
                if figure not in run.figures:
                    raise BadInput(f"{name}: no figure {figure!r} in its evaluations; it has {sorted(run.figures)}")
            for figure, values in run.figures.items():
                if len(values) != len(steps):
                    raise BadInput(f"{name}: {len(values)} values of {figure!r} at {len(steps)} evaluations")
            final, training_set = settings.final_figure, settings.training_set
            if final not in run.final.get(training_set, {}):
                raise BadInput(f"{name}: no final {final!r} on {training_set!r}; did it finish?")
            time = timesteps_to_target(steps, met_target(run, settings.target), settings.patience)
            # subtle: a training may end early once it met the target, never before
            if time.censored and steps[-1] < run.budget:
                stopped = f"it stopped at step {steps[-1]} of {run.budget}"
                raise BadInput(f"{name}: unfinished, {stopped}; train it to its end")
    trained = [arm for arm in runs if arm not in CONTROLS]
    scratch = {run.seed for run in runs[Arm.SCRATCH]}
    for arm in trained:
        seeds_of_arm = {run.seed for run in runs[arm]}
        if scratch != seeds_of_arm:
            who = "pre-trained" if arm == Arm.PRETRAINED else repr(arm)
            raise BadInput(
                f"comparison: seeds are not matched: only from scratch {sorted(scratch - seeds_of_arm)}, only {who} "
                f"{sorted(seeds_of_arm - scratch)}; train the missing ones"
            )
    budgets = sorted({run.budget for arm in trained for run in runs[arm]})
    if len(budgets) > 1:
        raise BadInput(f"comparison: budgets differ: {budgets} environment steps; all arms need the same one")


def _summarise_arm(arm: str, runs: Sequence[RunData], settings: ComparisonSettings) -> ArmSummary:
    times = tuple(timesteps_to_target(r.steps, met_target(r, settings.target), settings.patience) for r in runs)
    common = [figure for figure in runs[0].figures if all(figure in run.figures for run in runs)]
    return ArmSummary(
        arm=arm,
        seeds=tuple(run.seed for run in runs),
        budget=max(run.budget for run in runs),
        times=times,
        reached=sum(not t.censored for t in times),
        restricted_mean=restricted_mean(times, **settings.resampling),
        curves={figure: _curve(runs, figure, settings.seed) for figure in common},
        runs=tuple(
            RunCurve(run.seed, tuple(int(s) for s in run.steps), {name: _floats(v) for name, v in run.figures.items()})
            for run in runs
        ),
    )


def _curve(runs: Sequence[RunData], figure: str, seed: int) -> Curve:
    """Over the steps that every seed has; a seed evaluated at other steps is interpolated linearly."""
    end = min(run.steps[-1] for run in runs)
    grid = tuple(int(step) for step in runs[0].steps if step <= end)
    table = np.array([np.interp(grid, run.steps, run.figures[figure]) for run in runs])
    means = bootstrap_means(table, seed, resamples=2_000)
    return Curve(grid, tuple(m.value for m in means), tuple(m.low for m in means), tuple(m.high for m in means))


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=np.float64).tolist())


def _finals(runs: Mapping[str, Sequence[RunData]], settings: ComparisonSettings) -> dict[str, tuple[FinalFigure, ...]]:
    """Scenario set -> figures that both arms measured on every seed; the training set first."""
    both = [*runs[Arm.SCRATCH], *runs[Arm.PRETRAINED]]
    sets = [name for name in both[0].final if all(name in run.final for run in both)]
    sets.sort(key=lambda name: name != settings.training_set)
    finals = {}
    for name in sets:
        figures = [f for f in both[0].final[name] if all(f in run.final[name] for run in both)]
        figures.sort(key=lambda figure: (figure != settings.final_figure, figure not in settings.target))
        finals[name] = tuple(_final_figure(runs, name, figure, settings) for figure in figures)
    return finals


def _final_figure(
    runs: Mapping[str, Sequence[RunData]], scenario_set: str, figure: str, settings: ComparisonSettings
) -> FinalFigure:
    values = {
        arm: np.array([run.final[scenario_set][figure] for run in of_arm])
        for arm, of_arm in runs.items()
        if all(figure in run.final.get(scenario_set, {}) for run in of_arm)
    }
    before, after = values[Arm.SCRATCH], values[Arm.PRETRAINED]
    minimised, sampled = figure in settings.minimised, settings.resampling
    difference = bootstrap(np.mean, after - before, **sampled)
    improvement = None
    if figure not in settings.undirected:
        sign = -1.0 if minimised else 1.0
        improvement = probability_of_improvement(sign * after, sign * before, **sampled)
    return FinalFigure(
        figure=figure,
        minimised=minimised,
        values={arm: _floats(of_arm) for arm, of_arm in values.items()},
        means={arm: bootstrap(np.mean, of_arm, **sampled) for arm, of_arm in values.items()},
        interquartile_means={arm: interquartile_mean(of_arm, **sampled) for arm, of_arm in values.items()},
        difference=difference,
        probability_of_improvement=improvement,
        verdict=decide_final(difference, len(before), figure, settings),
    )


def decide_final(difference: Estimate, pairs: int, figure: str, settings: ComparisonSettings) -> FinalVerdict:
    """Better or worse when the interval of the difference excludes 0; too few pairs decide nothing."""
    if pairs < MINIMUM_PAIRS or difference.low <= 0 <= difference.high:
        return FinalVerdict.NOT_SHOWN
    if figure in settings.undirected:
        return FinalVerdict.DIFFERS
    return FinalVerdict.BETTER if (difference.value > 0) != (figure in settings.minimised) else FinalVerdict.WORSE


def _reasons(
    pairs: Sequence[SeedPair], ratio: Estimate, verdict: Verdict, target_met: bool, settings: ComparisonSettings
) -> tuple[str, ...]:
    """Why the verdict is what it is, in sentences."""
    count = len(pairs)
    if never_met(pairs):
        longest = max(pair.pretrained.steps for pair in pairs)
        met = "met the target" + (f" in {settings.patience} evaluations in a row" if settings.patience > 1 else "")
        return (f"no run of either arm {met} within {longest:,} steps, so their times cannot be compared",)
    if count < MINIMUM_PAIRS:
        return (f"{count} matched seeds are too few for an interval; at least {MINIMUM_PAIRS} are needed",)
    sides = {Verdict.FASTER: "lies below 1", Verdict.SLOWER: "lies above 1", Verdict.NOT_SHOWN: "contains 1"}
    interval, relation = f"[{ratio.low:.3g}, {ratio.high:.3g}]", "at most" if target_met else "above"
    target = f"{settings.ratio_target:g}: the efficiency target is {'met' if target_met else 'not met'}"
    reasons = [
        f"the 95 % interval {interval} of the ratio over {count} matched seeds {sides[verdict]}",
        f"its upper end {ratio.high:.3g} is {relation} {target}",
    ]
    censored = {
        "runs from scratch": sum(p.baseline.censored for p in pairs),
        "pre-trained runs": sum(p.pretrained.censored for p in pairs),
    }
    missed = "did not meet the target within the budget"
    return (*reasons, *(f"{number} of {count} {who} {missed}" for who, number in censored.items() if number))

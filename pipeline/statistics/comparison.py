"""From the evaluations of both arms over matched seeds to the verdict: did pre-training save timesteps, and how sure.

    comparison = compare({"scratch": runs, "pretrained": runs}, settings)
    comparison.verdict, comparison.ratio      # "faster", Estimate(value=0.18, low=0.12, high=0.27)

Plain arrays in, one frozen result out that holds everything a report shows. Which runs belong together, and that they
differ in initial weights alone, is checked where runs are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from pipeline.errors import BadInput, did_you_mean
from pipeline.names import CONTROLS, Arm
from pipeline.statistics.aggregate import Profile, performance_profile
from pipeline.statistics.efficiency import (
    BreakEven,
    MedianRatio,
    RatioKind,
    SeedPair,
    SignTest,
    TimeToTarget,
    break_even,
    matched_pair,
    mean_kind,
    mean_saving,
    median_ratio,
    never_met,
    paired_steps,
    ratio_kind,
    restricted_mean,
    restricted_mean_ratio,
    sign_test,
)
from pipeline.statistics.estimate import Estimate, FromEpisodes, MeanOverSeeds, by_dataset
from pipeline.statistics.finals import Clones, FinalFigure, FinalVerdict, final_figures, last_figures
from pipeline.statistics.matched import (
    MINIMUM_PAIRS,
    ComparisonSettings,
    RunData,
    Verdict,
    decide,
    independent,
    met_target,
    pairs_of,
    time_of,
)
from pipeline.statistics.planning import SeedsNeeded, seeds_needed
from pipeline.statistics.ranking import RankedArm, holm, sign_flip_p
from pipeline.statistics.redrawing import from_episodes, log_ratio, mean_of_arm, saving
from pipeline.statistics.sensitivity import SensitivityRow, carries, sensitivity

PROFILE_POINTS = 101


@dataclass(frozen=True)
class UpfrontCost:
    """What was spent once, before the first fine-tuning, in environment steps and seconds."""

    expert_steps: int  # training of the experts, all generations and seeds; 0 for a scripted demonstrator
    demonstration_steps: int  # recording, all generations
    evaluation_steps: int = 0  # evaluations of experts, gates and clones; shown, and charged to nobody
    wall_seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds
    evaluations: Mapping[str, int] = field(default_factory=dict)  # stage -> of `evaluation_steps`
    imitation_steps: int = 0  # that gail, airl or dagger played to make the clones; 0 for bc

    @property
    def steps(self) -> int:
        """Without evaluations, as those of the runs of both arms are left out too."""
        return self.expert_steps + self.demonstration_steps + self.imitation_steps


@dataclass(frozen=True)
class Curve:
    """Mean over seeds of one figure during training, with pointwise 95 % intervals over seeds."""

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
    best_step: int | None = None  # of the evaluation that chose the checkpoint; None: not known


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
    margins: Mapping[str, tuple[int, ...]]  # rate of the target -> episodes to spare when a seed met it, at the worst
    later_evaluations: int  # after the target was met, over all seeds
    later_violations: int  # of them that did not meet it
    evaluation_steps: int  # environment steps of all evaluations, over all seeds
    wall_seconds: Estimate  # a run
    gradient_steps: float  # a run, mean over seeds

    @property
    def kind(self) -> RatioKind:
        """Of its restricted mean (`mean_kind`)."""
        return mean_kind(self.times)

    @property
    def training_steps(self) -> int:
        """Environment steps of training to the ends of all runs."""
        return sum(run.steps[-1] for run in self.runs)


@dataclass(frozen=True)
class Bill:
    """Environment steps of training until the target, with and without pre-training; evaluations on neither side."""

    upfront: UpfrontCost
    baseline_steps: Estimate  # per run: restricted mean to target
    pretrained_steps: Estimate  # per run
    saving: Estimate  # per run, over matched seeds
    total_ratio: float  # (upfront + pre-trained runs) / baseline runs, for the runs of this comparison
    break_even: BreakEven
    spent: int  # environment steps of everything behind this comparison: all arms to their end, evaluations included
    trainings: float  # `spent` in trainings from scratch to their end, evaluations included


@dataclass(frozen=True)
class Comparison:
    """Everything the report shows. Seeds are the sample; episodes widen intervals and never count as seeds."""

    verdict: Verdict
    target_met: bool  # upper end of the ratio's interval <= ratio target
    reasons: tuple[str, ...]
    costs: tuple[str, ...]  # primary figures in which pre-trained policies end worse than those from scratch
    ratio: Estimate  # of restricted mean times to target, pre-trained / scratch
    ratio_kind: RatioKind
    from_episodes: FromEpisodes  # what evaluation episodes add to the variance of its logarithm; of one: not known
    reduction: Estimate  # 1 - ratio
    median: MedianRatio  # of per-seed ratios
    sign_test: SignTest
    pairs: tuple[SeedPair, ...]
    seeds_for_verdict: SeedsNeeded | None  # None: it is decided
    seeds_for_target: SeedsNeeded | None  # None: it is met
    sensitivity: tuple[SensitivityRow, ...]
    carries: tuple[str, ...]  # how far the verdict does
    datasets: int  # recorded independently of each other, behind the pre-trained seeds; intervals are over several
    clones: int  # different policies that the pre-trained seeds started from; 0: not known
    final_verdict: FinalVerdict
    finals: Mapping[str, tuple[FinalFigure, ...]]  # scenario set -> figures, the training set first
    last: tuple[FinalFigure, ...]  # of the last policies, not the best ones, on the episodes of the learning curves
    arms: Mapping[str, ArmSummary]
    ranking: tuple[RankedArm, ...]  # of more than two arms: each against `scratch`, fewest steps first
    profiles: Mapping[str, Profile]  # arm -> of the final figure on the training set
    bill: Bill | None  # None: nobody said what was spent
    settings: ComparisonSettings

    @property
    def badge(self) -> str:
        """The verdict, and whether it has costs: `faster, with costs`."""
        return f"{self.verdict}, with costs" if self.costs else str(self.verdict)

    @property
    def unanswered(self) -> bool:
        """No run of either arm met the target, so that their times cannot be compared."""
        return never_met(self.pairs)

    @property
    def decisive(self) -> FinalFigure:
        """The figure that final performance is decided by, on the training scenarios."""
        return next(f for f in self.finals[self.settings.training_set] if f.figure == self.settings.final_figure)


def compare(
    runs: Mapping[str, Sequence[RunData]],
    settings: ComparisonSettings,
    upfront: UpfrontCost | None = None,
    clones: Clones = (),
    different_clones: int = 0,
) -> Comparison:
    """Compare the arm `pretrained` with `scratch`, seed by seed; further arms are summarised beside them.

    `clones`: what the seeds of `pretrained` started from did in the final episodes, in the order of the seeds.
    Raises BadInput for a missing arm, unmatched or repeated seeds, unequal budgets, an unfinished run or a figure
    that the runs do not have.
    """
    ordered = {arm: sorted(of_arm, key=lambda run: run.seed) for arm, of_arm in runs.items() if of_arm}
    _check(ordered, settings)
    arms = {arm: _summarise_arm(arm, of_arm, settings) for arm, of_arm in ordered.items()}
    pairs = pairs_of(ordered, settings)
    matched = [ordered[Arm.SCRATCH], ordered[Arm.PRETRAINED]]
    played = from_episodes(matched, settings, log_ratio)
    ratio = restricted_mean_ratio(pairs, played)
    verdict, target_met = decide(ratio, pairs, settings.ratio_target)

    def more_seeds(at_most: float | None) -> SeedsNeeded:
        return seeds_needed(pairs, at_most, MINIMUM_PAIRS, settings.seed, played)

    finals = final_figures(ordered, clones, settings)
    decisive = next(f for f in finals[settings.training_set] if f.figure == settings.final_figure)
    trained = [arm for arm in arms if arm not in (Arm.SCRATCH, *CONTROLS)]
    # profiles of both arms are over one grid of thresholds, which spans every value and a little more
    both = {arm: np.array(decisive.values[arm]) for arm in (Arm.SCRATCH, Arm.PRETRAINED)}
    everything = np.concatenate(list(both.values()))
    margin = max(0.05 * float(np.ptp(everything)), 1e-3)
    grid = np.linspace(everything.min() - margin, everything.max() + margin, PROFILE_POINTS)
    rows = sensitivity(ordered, settings)
    return Comparison(
        verdict=verdict,
        target_met=target_met,
        reasons=_reasons(pairs, ratio, verdict, target_met, settings),
        costs=tuple(
            f"{f.figure.replace('_', ' ')} on {name}"
            for name, figures in finals.items()
            for f in figures
            if f.contrasts[Arm.SCRATCH].verdict is FinalVerdict.WORSE
        ),
        ratio=ratio,
        ratio_kind=ratio_kind(pairs),
        from_episodes=played,
        reduction=Estimate(1 - ratio.value, 1 - ratio.high, 1 - ratio.low),
        median=median_ratio(pairs, **settings.resampling),
        sign_test=sign_test(pairs),
        pairs=pairs,
        seeds_for_verdict=more_seeds(None) if verdict in (Verdict.NO_DIFFERENCE, Verdict.UNDECIDED) else None,
        seeds_for_target=None if target_met else more_seeds(settings.ratio_target),
        sensitivity=rows,
        carries=carries(rows),
        datasets=len({run.dataset for run in ordered[Arm.PRETRAINED]}),
        clones=different_clones,
        final_verdict=decisive.contrasts[Arm.SCRATCH].verdict or FinalVerdict.UNDECIDED,
        finals=finals,
        last=last_figures(ordered, settings),
        arms=arms,
        ranking=_ranked(trained, ordered, arms, decisive, settings) if len(trained) > 1 else (),
        profiles={arm: performance_profile(values, grid, settings.seed) for arm, values in both.items()},
        bill=None
        if upfront is None
        else _bill(arms, mean_saving(pairs, from_episodes(matched, settings, saving)), upfront),
        settings=settings,
    )


def _bill(arms: Mapping[str, ArmSummary], saved: Estimate, upfront: UpfrontCost) -> Bill:
    baseline, pretrained = (sum(time.steps for time in arms[arm].times) for arm in (Arm.SCRATCH, Arm.PRETRAINED))
    of_runs = {name: arm.training_steps + arm.evaluation_steps for name, arm in arms.items()}
    spent = upfront.steps + upfront.evaluation_steps + sum(of_runs.values())
    return Bill(
        upfront=upfront,
        baseline_steps=arms[Arm.SCRATCH].restricted_mean,
        pretrained_steps=arms[Arm.PRETRAINED].restricted_mean,
        saving=saved,
        total_ratio=(pretrained + upfront.steps) / baseline,
        break_even=break_even(upfront.steps, saved),
        spent=spent,
        trainings=spent / (of_runs[Arm.SCRATCH] / len(arms[Arm.SCRATCH].seeds)),
    )


def _ranked(
    trained: Sequence[str],
    runs: Mapping[str, Sequence[RunData]],
    arms: Mapping[str, ArmSummary],
    decisive: FinalFigure,
    settings: ComparisonSettings,
) -> tuple[RankedArm, ...]:
    """Each of these arms against `scratch`, seed by seed; p-values are corrected for their number (Holm)."""
    scratch, before = arms[Arm.SCRATCH], np.array(decisive.values[Arm.SCRATCH])
    sign = -1.0 if decisive.minimised else 1.0
    ranked = []
    for arm in trained:
        datasets = [run.dataset for run in runs[arm]]
        matched = zip(scratch.seeds, scratch.times, arms[arm].times, datasets, strict=True)
        pairs = [matched_pair(*of_seed) for of_seed in matched]
        played = from_episodes([runs[Arm.SCRATCH], runs[arm]], settings, log_ratio)
        reference, own = paired_steps(pairs)
        differences = sign * by_dataset(np.array(decisive.values[arm]) - before, datasets)
        ranked.append(
            RankedArm(
                arm=arm,
                steps=arms[arm].restricted_mean,
                ratio=restricted_mean_ratio(pairs, played),
                ratio_kind=None if never_met(pairs) else ratio_kind(pairs),
                ratio_p=sign_flip_p(own - reference, settings.seed),
                difference=MeanOverSeeds.of(differences).estimate,
                difference_p=sign_flip_p(differences, settings.seed),
            )
        )
    of_times, of_ends = holm([one.ratio_p for one in ranked]), holm([one.difference_p for one in ranked])
    ranked = [replace(one, ratio_p=p, difference_p=q) for one, p, q in zip(ranked, of_times, of_ends, strict=True)]
    return tuple(sorted(ranked, key=lambda one: (one.ratio.value, -one.difference.value)))


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
            time = time_of(run, settings)
            # subtle: a training may end early once it met the target, never before
            if time.censored and steps[-1] < run.budget:
                stopped = f"it stopped at step {steps[-1]} of {run.budget}"
                raise BadInput(f"{name}: unfinished, {stopped}; train it to its end")
            unknown = [f for f in settings.primary if f not in run.final[training_set]]
            if unknown:
                known = sorted(run.final[training_set])
                raise BadInput(
                    f"primary {unknown[0]!r} is not measured in this task.{did_you_mean(unknown[0], known)} "
                    f"It measures: {', '.join(known)}"
                )
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
    times, datasets = tuple(time_of(run, settings) for run in runs), [run.dataset for run in runs]
    common = [figure for figure in runs[0].figures if all(figure in run.figures for run in runs)]
    later, violations, margins = 0, 0, dict[str, list[int]]()
    for run, time in zip(runs, times, strict=True):
        if time.censored:
            continue
        first = 0 if time.at_floor else int(np.searchsorted(run.steps, time.steps))
        after = met_target(run.figures, settings.target)[first + settings.patience :]
        later, violations = later + len(after), violations + int((~after).sum())
        window = slice(first, first + settings.patience)
        for figure, bound in settings.target.items():
            if figure.endswith("_rate") and settings.evaluation_episodes is not None:
                seen = run.figures[figure][window]
                spare = [seen - bound.min] if bound.min is not None else []
                spare += [bound.max - seen] if bound.max is not None else []
                margins.setdefault(figure, []).append(round(settings.evaluation_episodes * float(np.min(spare))))
    return ArmSummary(
        arm=arm,
        seeds=tuple(run.seed for run in runs),
        budget=max(run.budget for run in runs),
        times=times,
        reached=sum(not t.censored for t in times),
        restricted_mean=restricted_mean(times, from_episodes([runs], settings, mean_of_arm), datasets),
        curves={figure: _curve(runs, figure) for figure in common},
        runs=tuple(
            RunCurve(
                run.seed, tuple(run.steps.tolist()), {f: _floats(v) for f, v in run.figures.items()}, run.best_step
            )
            for run in runs
        ),
        margins={figure: tuple(episodes) for figure, episodes in margins.items()},
        later_evaluations=later,
        later_violations=violations,
        evaluation_steps=sum(run.evaluation_steps for run in runs),
        wall_seconds=MeanOverSeeds.of(np.array([run.wall_seconds for run in runs])).estimate,
        gradient_steps=float(np.mean([run.gradient_steps for run in runs])),
    )


def _curve(runs: Sequence[RunData], figure: str) -> Curve:
    """Over the steps that every seed has; a seed evaluated at other steps is interpolated linearly."""
    end = min(run.steps[-1] for run in runs)
    grid = tuple(int(step) for step in runs[0].steps if step <= end)
    table = np.array([np.interp(grid, run.steps, run.figures[figure]) for run in runs])
    mean, reach = table.mean(axis=0), np.full(len(grid), np.nan)
    units = by_dataset(table, [run.dataset for run in runs])
    if len(units) > 1:
        reach = stats.t.ppf(0.975, len(units) - 1) * units.std(axis=0, ddof=1) / np.sqrt(len(units))
    return Curve(grid, _floats(mean), _floats(mean - reach), _floats(mean + reach))


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=np.float64).tolist())


def _reasons(
    pairs: Sequence[SeedPair], ratio: Estimate, verdict: Verdict, target_met: bool, settings: ComparisonSettings
) -> tuple[str, ...]:
    """Why the verdict is what it is, in sentences."""
    count = len(pairs)
    if never_met(pairs):
        longest = max(pair.pretrained.steps for pair in pairs)
        met = "met the target" + (f" in {settings.patience} evaluations in a row" if settings.patience > 1 else "")
        return (f"no run of either arm {met} within {longest:,} steps, so their times cannot be compared",)
    units = independent(pairs)
    if units < MINIMUM_PAIRS:
        few = f"{count} matched seeds" if units == count else f"{units} datasets"
        return (f"{few} are too few for an interval; at least {MINIMUM_PAIRS} are needed",)
    sides = {Verdict.FASTER: "lies below 1", Verdict.SLOWER: "lies above 1", Verdict.NO_DIFFERENCE: "contains 1"}
    interval, relation = f"[{ratio.low:.3g}, {ratio.high:.3g}]", "at most" if target_met else "above"
    target = f"{settings.ratio_target:g}: the efficiency target is {'met' if target_met else 'not met'}"
    over = f"{count} matched seeds" if units == count else f"{units} datasets"
    reasons = [
        f"the 95 % interval {interval} of the ratio over {over} {sides[verdict]}",
        f"its upper end {ratio.high:.3g} is {relation} {target}",
    ]
    arms = {"runs from scratch": [p.baseline for p in pairs], "pre-trained runs": [p.pretrained for p in pairs]}
    for missed, flag in (
        ("did not meet the target within the budget, and count as it", "censored"),
        ("met the target before the first update: no evaluation is early enough to say by how much", "at_floor"),
    ):
        counted = {who: sum(getattr(time, flag) for time in times) for who, times in arms.items()}
        reasons += [f"{number} of {count} {who} {missed}" for who, number in counted.items() if number]
    if any(pair.pretrained.censored for pair in pairs):
        reasons.append("how much longer they take is not known: the interval is of times restricted to the budget")
    return tuple(reasons)

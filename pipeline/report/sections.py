"""The sections of the comparison report below its first screen: what they say, in reading order."""

from statistics import fmean
from typing import Final

from pipeline.names import Arm
from pipeline.report import figures
from pipeline.report.content import (
    Animations,
    Block,
    Code,
    Figure,
    Lineage,
    Missing,
    Paragraph,
    Section,
    Table,
)
from pipeline.report.context import ReportContext
from pipeline.report.palette import ARM_LABELS
from pipeline.report.text import interval, number, percent, signed, words
from pipeline.statistics.comparison import Bill, Comparison, FinalFigure
from pipeline.statistics.efficiency import SeedPair, TimeToTarget

MOST_SHIFTED: Final = 12
MOST_REFERENCE_FIGURES: Final = 5
_RATIO_SIGNS: Final = {"exact": "", "upper bound": "≤\u00a0", "lower bound": "≥\u00a0", "undetermined": "?\u00a0"}


def build_sections(comparison: Comparison, context: ReportContext) -> tuple[Section, ...]:
    """The report below the first screen, in reading order."""
    return (
        Section("curves", "Learning curves", _curves(comparison)),
        Section("seeds", "Seed by seed", _seeds(comparison)),
        Section("arms", "The arms", _arms(comparison)),
        Section("final", "Final performance", _final(comparison, context)),
        Section("holdouts", "Hold-out scenarios", _holdouts(comparison)),
        Section("playback", "Side by side", _playback(context)),
        Section("bill", "The bill", _bill(comparison)),
        Section("shift", "Distribution shift", _shift(context)),
        Section("lineage", "Lineage", _lineage(context)),
        Section("configuration", "Configuration", _configuration(context)),
        Section("reproduce", "How to reproduce", _reproduce(context)),
        Section("methods", "How the figures are computed", _methods(comparison)),
    )


def _curves(c: Comparison) -> tuple[Block, ...]:
    names = list(c.settings.target)
    common = [f for f in c.arms[Arm.SCRATCH].curves if f in c.arms[Arm.PRETRAINED].curves]
    names += [f for f in common if f not in names and f in ("return_mean", "snqi")]
    target = ", ".join(f"{words(f)} {bound}" for f, bound in c.settings.target.items())
    text = (
        f"Deterministic policy on the same fixed episodes for every arm and seed, disjoint from the training episodes. "
        f"Lines are means over seeds, bands their 95 % intervals, thin lines single seeds. "
        f"The target: {target}, held for {c.settings.patience} evaluations in a row."
    )
    drawn = [
        Figure(f"curve-{f}", figures.learning_curve(c, f), f"{words(f)} over environment steps, by arm")
        for f in names
        if f in common
    ]
    reached = Figure("reached-by", figures.reached_by(c), "share of runs that met the target, over environment steps")
    return (Paragraph(text), *drawn, reached)


def _seeds(c: Comparison) -> tuple[Block, ...]:
    header = ("seed", "from scratch", "pre-trained", "ratio", "kind")
    rows = tuple(_pair_row(pair) for pair in c.pairs)
    total = (
        "restricted mean",
        number(fmean(pair.baseline.steps for pair in c.pairs)),
        number(fmean(pair.pretrained.steps for pair in c.pairs)),
        "–" if c.unanswered else interval(c.ratio),
        "undetermined" if c.unanswered else "ratio of the means",
    )
    median = ("median of ratios", "", "", "–" if c.unanswered else interval(c.median.estimate), c.median.kind)
    caption = (
        "Environment steps to target. > marks a run that had not met it by then (censored): its ratio is a bound, "
        f"counted and never dropped. Meeting it at step 0 counts as one evaluation interval, "
        f"{c.settings.evaluation_interval:,} steps."
    )
    figure = Figure("time-to-target", figures.time_to_target(c), "timesteps to target of both arms, seed by seed")
    return (Table(header, (*rows, total, median), caption), figure)


def _pair_row(pair: SeedPair) -> tuple[str, ...]:
    ratio = f"{_RATIO_SIGNS[pair.kind]}{number(pair.ratio)}"
    return (str(pair.seed), _time(pair.baseline), _time(pair.pretrained), ratio, pair.kind)


def _arms(c: Comparison) -> tuple[Block, ...]:
    rows = []
    decisive = c.decisive
    for arm, summary in c.arms.items():
        rows.append(
            (
                ARM_LABELS.get(arm, arm),
                str(len(summary.seeds)),
                f"{summary.budget:,}",
                f"{summary.reached} of {len(summary.seeds)}",
                interval(summary.restricted_mean),
                interval(decisive.means.get(arm)),
                interval(decisive.interquartile_means.get(arm)),
            )
        )
    name = words(decisive.figure)
    header = ("arm", "seeds", "budget", "met target", "steps to target", f"final {name}", "interquartile mean")
    controls = [arm for arm in c.arms if arm in (Arm.SCRATCH_LR0, Arm.PRETRAINED_LR0)]
    note: Block = (
        Paragraph(
            "The arms with learning rate 0 train nothing: they show what the initial weights alone are worth. "
            "Their steps to target are censored at their own, smaller budget."
        )
        if controls
        else Missing(
            "No control arms with learning rate 0 in this group: what initialisation alone is worth is not shown."
        )
    )
    caption = (
        "Square brackets: 95 % intervals over seeds. Steps to target: mean restricted at the budget, as evaluated: a "
        "run that met the target before its first update counts 0 here."
    )
    return (note, Table(header, tuple(rows), caption))


def _final(c: Comparison, context: ReportContext) -> tuple[Block, ...]:
    of_training = c.finals[c.settings.training_set]
    blocks: list[Block] = [
        Paragraph(f"Best checkpoint of every run on fresh episodes of {c.settings.training_set!r}; one value a seed."),
        _final_table(of_training),
        Figure("profile", figures.performance_profile(c), "share of runs above each level of final performance"),
    ]
    bars = figures.outcome_bars(c.finals)
    if bars is not None:
        blocks.append(Figure("outcomes", bars, "shares of success, collision and neither, by arm and scenario set"))
    blocks.append(_references(c, context))
    return tuple(blocks)


def _final_table(of_set: tuple[FinalFigure, ...]) -> Table:
    rows = tuple(
        (
            words(f.figure) + ("\u00a0↓" if f.minimised else ""),
            interval(f.means[Arm.SCRATCH]),
            interval(f.means[Arm.PRETRAINED]),
            signed(f.difference),
            "–" if f.probability_of_improvement is None else interval(f.probability_of_improvement),
            f.verdict.value,
        )
        for f in of_set
    )
    header = ("figure", "from scratch", "pre-trained", "difference", "P(improvement)", "verdict")
    less = " ↓: less is better." if any(f.minimised for f in of_set) else ""
    caption = f"Means over seeds with 95 % intervals over seeds; differences over matched seeds.{less}"
    return Table(header, rows, caption)


def _references(c: Comparison, context: ReportContext) -> Block:
    if not context.references:
        return Missing("No reference policies (expert, clone, classical planner) were given for this report.")
    measured = {name for policy in context.references for name in policy.figures}
    compared = [f.figure for f in c.finals[c.settings.training_set] if f.figure in measured]
    names = (compared or sorted(measured))[:MOST_REFERENCE_FIGURES]
    rows = tuple(
        (p.name, p.scenario_set, str(p.episodes), *(interval(p.figures.get(name)) for name in names))
        for p in context.references
    )
    header = ("reference policy", "scenarios", "episodes", *(words(name) for name in names))
    return Table(header, rows, "What the arms are read against; intervals here are over episodes of one policy.", 2)


def _holdouts(c: Comparison) -> tuple[Block, ...]:
    others = {name: of_set for name, of_set in c.finals.items() if name != c.settings.training_set}
    if not others:
        return (Missing("The final policies were not evaluated on hold-out scenarios."),)
    blocks: list[Block] = [Paragraph("Scenarios that neither training nor recording ever touched, best checkpoints.")]
    for name, of_set in others.items():
        blocks += [Paragraph(f"Scenario set {name!r}:"), _final_table(of_set)]
    return tuple(blocks)


def _playback(context: ReportContext) -> tuple[Block, ...]:
    if not context.animations:
        return (Missing("No playback was recorded for this report."),)
    return (Animations(context.animations),)


def _bill(c: Comparison) -> tuple[Block, ...]:
    if c.bill is None:
        return (Missing("What expert and demonstrations cost is not known, so there is no bill."),)
    bill, upfront = c.bill, c.bill.upfront
    rows = (
        ("expert training", f"{upfront.expert_steps:,}", "once"),
        ("recording demonstrations", f"{upfront.demonstration_steps:,}", "once"),
        ("imitating in the environment", f"{upfront.imitation_steps:,}", "once"),
        ("evaluations before fine-tuning", f"{upfront.evaluation_steps:,}", "once"),
        ("all of that", f"{upfront.steps:,}", "once"),
        ("pre-trained run, to target", interval(bill.pretrained_steps), "per run"),
        ("run from scratch, to target", interval(bill.baseline_steps), "per run"),
        ("saving", "–" if c.unanswered else interval(bill.saving), "per run"),
    )
    blocks: list[Block] = [
        Table(("item", "environment steps", "paid"), rows),
        Paragraph(_break_even(c, bill)),
        Figure("bill", figures.bill_lines(bill), "environment steps in all over the number of trainings"),
    ]
    if upfront.wall_seconds:
        seconds = tuple((stage, _seconds(value)) for stage, value in upfront.wall_seconds.items())
        blocks.append(Table(("stage", "wall time"), seconds, "Measured on the machine named under How to reproduce."))
    else:
        blocks.append(Missing("Wall times of the stages are not known."))
    return tuple(blocks)


def _break_even(c: Comparison, bill: Bill) -> str:
    total = (
        f"For these {len(c.pairs)} seeds, everything spent on expert, demonstrations and pre-trained runs came to "
        f"{percent(bill.total_ratio, 0)} of the environment steps of the runs from scratch."
    )
    if c.unanswered:
        return f"{total} No run met the target, so it is not known whether anything is paid back."
    even = bill.break_even
    if even.reuses is None:
        return f"{total} There is no saving per run, so what was spent is never paid back."
    high = "never" if even.high is None else f"{even.high:,}"
    low = "never" if even.low is None else f"{even.low:,}"
    return f"{total} What was spent is paid back after {even.reuses:,} trainings (95 % interval {low} to {high})."


def _shift(context: ReportContext) -> tuple[Block, ...]:
    blocks: list[Block] = []
    shift = context.shift
    if shift is None:
        blocks.append(Missing("The shift between demonstrations and fine-tuning was not measured."))
    else:
        a, b = context.shift_samples
        verdict = "differ" if shift.shifted else "show no significant difference"
        blocks.append(
            Paragraph(
                f"Observations of {a} ({shift.reference_episodes} episodes) and {b} ({shift.other_episodes} episodes) "
                f"{verdict}: distance {number(shift.distance)} of at most 1 (alike samples of this size: "
                f"{number(shift.expected_distance)}), p = {number(shift.p_value)} by {shift.permutations:,} "
                "permutations of whole episodes."
            )
        )
        bars = figures.shift_bars(shift)
        if bars is not None:
            blocks.append(Figure("shift", bars, "observation features that differ most"))
            blocks.append(_shift_table(context))
    blocks += _regressions(context)
    return tuple(blocks)


def _shift_table(context: ReportContext) -> Table:
    assert context.shift is not None
    rows = tuple(
        (f.name, number(f.distance), number(f.p_value), number(f.mean_difference), number(f.standardised_difference))
        for f in context.shift.features[:MOST_SHIFTED]
    )
    header = ("feature", "distance", "p (corrected)", "mean difference", "in standard deviations")
    caption = f"The {len(rows)} of {len(context.shift.features)} features that differ most."
    return Table(header, rows, caption, folded=True)


def _regressions(context: ReportContext) -> list[Block]:
    if context.regressions is None:
        return [Missing("Whether fine-tuning cost performance on the demonstrated scenarios was not measured.")]
    if not context.regressions:
        return [Paragraph("Fine-tuning happened on the demonstrated scenarios: there are no others to forget.")]
    flagged = [r for r in context.regressions if r.regressed]
    rows = tuple(
        (words(r.figure), r.scenario_set, number(r.before), interval(r.after), signed(r.difference),
         "REGRESSION" if r.regressed else "no")
        for r in context.regressions
    )  # fmt: skip
    text = (
        f"Fine-tuning made {len(flagged)} of {len(rows)} figures on the demonstrated scenarios worse."
        if flagged
        else "Fine-tuning made no measured figure on the demonstrated scenarios worse."
    )
    if any(r.clones == 1 for r in context.regressions):
        text += " All seeds started from one clone: the interval is about that one, not about clones in general."
    header = ("figure", "scenarios", "clone", "fine-tuned", "difference", "regression")
    caption = "Every fine-tuned policy against the clone it started from; 95 % bootstrap over these pairs."
    return [Paragraph(text), Table(header, rows, caption, numbers_from=2)]


def _lineage(context: ReportContext) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if context.lineage:
        blocks.append(Lineage(context.lineage))
    else:
        blocks.append(Missing("The lineage of these runs is not known."))
    if context.dataset:
        blocks.append(Table(("demonstrations", "value"), tuple(context.dataset.items()), numbers_from=2))
    if context.runs:
        ordered = sorted(context.runs, key=lambda run: (run.seed, run.arm))
        rows = tuple((run.run_id, ARM_LABELS.get(run.arm, run.arm), str(run.seed)) for run in ordered)
        links = tuple(run.url for run in ordered)
        blocks.append(Table(("run", "arm", "seed"), rows, "Every training of the comparison.", 2, True, links))
    else:
        blocks.append(Missing("The runs of this comparison are not listed."))
    return tuple(blocks)


def _configuration(context: ReportContext) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if context.differences is None:
        blocks.append(Missing("The settings of the two arms were not given, so their differences are not shown."))
    elif context.differences:
        differences = tuple((d.key, d.scratch, d.pretrained) for d in context.differences)
        blocks += [
            Paragraph("The arms differ in this and in nothing else:"),
            Table(("setting", "from scratch", "pre-trained"), differences, numbers_from=3),
        ]
    else:
        blocks.append(Paragraph("The arms do not differ in any setting."))
    if context.shared_settings:
        rows = tuple(context.shared_settings.items())
        blocks.append(Table(("setting", "value"), rows, f"The {len(rows)} settings both arms share.", 2, folded=True))
    return tuple(blocks)


def _reproduce(context: ReportContext) -> tuple[Block, ...]:
    blocks: list[Block] = [
        Code(context.commands) if context.commands else Missing("The commands that made this report were not given.")
    ]
    state = {None: "", True: ", with uncommitted changes", False: ", nothing uncommitted"}[context.dirty]
    commit = (
        Missing("The commit is not known.") if context.commit is None else Paragraph(f"Commit {context.commit}{state}.")
    )
    blocks.append(commit)
    if context.machine:
        blocks.append(Paragraph(f"Machine: {context.machine}."))
    if context.resume:
        blocks.append(Paragraph(f"A training that is killed and goes on from its checkpoint: {context.resume}."))
    if context.versions:
        rows = tuple(context.versions.items())
        blocks.append(Table(("package", "version"), rows, "Installed versions.", folded=True, numbers_from=2))
    else:
        blocks.append(Missing("Package versions are not known."))
    return tuple(blocks)


def _methods(c: Comparison) -> tuple[Block, ...]:
    s = c.settings
    texts = (
        f"Timesteps to target: the first evaluated environment step from which the target holds for {s.patience} "
        "evaluations in a row; censored at the budget when it never does.",
        "Ratio: restricted mean time to target of the pre-trained runs over that of the runs from scratch (censored "
        "runs count at the budget), over matched seeds; the median of per-seed ratios stands beside it.",
        f"Intervals: 95 % percentile bootstrap over matched seed pairs, {s.resamples:,} resamples, fixed generator "
        f"seed {s.seed}. The sample is the seeds: episodes never count as seeds.",
        "Verdict: faster when the interval lies below 1, slower when above, else not shown. Target met when its upper "
        f"end is at most {s.ratio_target:g}. Fewer than three matched seeds decide nothing.",
        "Final performance: better or worse when the interval of the paired difference excludes 0.",
        "Interquartile mean, probability of improvement and performance profile: Agarwal et al. 2021, Deep "
        "reinforcement learning at the edge of the statistical precipice. The same runs against themselves give ratio "
        "1 and probability 0.5.",
        "Seeds needed: studies simulated from the observed pairs until 80 % of them decide.",
        "Distribution shift: Kolmogorov-Smirnov distances of features and of random projections, permuted by whole "
        "episodes.",
    )
    return tuple(Paragraph(text) for text in texts)


def _time(time: TimeToTarget) -> str:
    return f">\u00a0{time.steps:,}" if time.censored else f"{time.steps:,}"


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"

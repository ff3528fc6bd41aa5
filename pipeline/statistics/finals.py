"""Final performance: what the policies of both arms and the clones do on fresh episodes, and which of it is a finding.

Verdicts are for the primary figures that the task names alone, corrected for their number; the rest is described.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from pipeline.names import START, Arm
from pipeline.statistics.aggregate import interquartile_mean, probability_of_improvement
from pipeline.statistics.estimate import Estimate, MeanOverSeeds, by_dataset, column_means
from pipeline.statistics.matched import MINIMUM_PAIRS, ComparisonSettings, RunData
from pipeline.statistics.ranking import SIGNIFICANCE, holm


class FinalVerdict(StrEnum):
    """On the paired difference of a primary figure."""

    BETTER = "better"
    WORSE = "worse"
    EQUAL = "equal"  # the interval lies within the smallest difference that matters
    NO_DIFFERENCE = "no difference found"
    UNDECIDED = "not decided"  # too few seeds


@dataclass(frozen=True)
class Contrast:
    """Pre-trained minus a reference, seed by seed on the same episodes."""

    difference: Estimate  # 95 % over seeds and episodes
    over_seeds: Estimate  # 95 % over seeds alone
    p_value: float  # two-sided, of no difference
    corrected_p: float | None  # for all primary figures and scenario sets of this reference; None: not primary
    verdict: FinalVerdict | None  # None: described only


@dataclass(frozen=True)
class FinalFigure:
    """One figure of the best checkpoints on fresh episodes; one value a seed."""

    figure: str
    minimised: bool
    smallest_difference: float | None
    values: Mapping[str, tuple[float, ...]]  # arm, or `start` -> value of every seed, in the order of its seeds
    episodes: Mapping[str, tuple[tuple[float, ...], ...]]  # the same episode by episode; of primary figures only
    means: Mapping[str, Estimate]  # arm, or `start` -> mean; 95 % over seeds and episodes
    interquartile_means: Mapping[str, Estimate]  # arm, or `start` -> over seeds
    contrasts: Mapping[str, Contrast]  # `scratch`, and `start` where clones were played
    probability_of_improvement: Estimate | None  # that a pre-trained run is better than one from scratch

    @property
    def primary(self) -> bool:
        return self.contrasts[Arm.SCRATCH].verdict is not None


Finals = Mapping[str, Sequence[FinalFigure]]  # scenario set -> figures
Clones = Sequence[Mapping[str, Mapping[str, np.ndarray]]]  # of every seed: scenario set -> figure -> (E,)


def final_figures(
    runs: Mapping[str, Sequence[RunData]], clones: Clones, settings: ComparisonSettings
) -> dict[str, tuple[FinalFigure, ...]]:
    """Scenario set -> figures that both arms measured on every seed, primary ones first; the training set first."""
    both = [*runs[Arm.SCRATCH], *runs[Arm.PRETRAINED]]
    datasets = {arm: [run.dataset for run in of_arm] for arm, of_arm in runs.items()}
    datasets[START] = datasets[Arm.PRETRAINED]
    played = {arm: [run.final for run in of_arm] for arm, of_arm in runs.items()} | (
        {START: [*clones]} if clones else {}
    )
    sets = [name for name in both[0].final if all(name in run.final for run in both)]
    sets.sort(key=lambda name: name != settings.training_set)
    primary = dict.fromkeys((settings.final_figure, *settings.primary))
    finals = {}
    for name in sets:
        figures = [f for f in both[0].final[name] if all(f in run.final[name] for run in both)]
        figures.sort(key=lambda figure: [*primary, figure].index(figure))
        finals[name] = [_measured(played, name, figure, figure in primary, datasets, settings) for figure in figures]
    units = by_dataset(np.arange(len(datasets[START])), datasets[START])
    return _with_verdicts(finals, primary, len(units), settings)


def last_figures(runs: Mapping[str, Sequence[RunData]], settings: ComparisonSettings) -> tuple[FinalFigure, ...]:
    """The primary figures of every seed's last policy, whatever was the best, on the episodes of the learning curves.

    `start` is the first evaluation of `pretrained`. Described, without verdicts; figures that every run has.
    """
    name, datasets = settings.training_set, {arm: [run.dataset for run in of_arm] for arm, of_arm in runs.items()}
    datasets[START] = datasets[Arm.PRETRAINED]
    evaluated = {arm: (of_arm, -1) for arm, of_arm in runs.items()} | {START: (runs[Arm.PRETRAINED], 0)}
    played = {
        arm: [
            {name: {f: np.atleast_1d(run.episodes.get(f, values)[at]) for f, values in run.figures.items()}}
            for run in of_arm
        ]
        for arm, (of_arm, at) in evaluated.items()
    }
    shared = set.intersection(*(set(final[name]) for finals in played.values() for final in finals))
    primary = dict.fromkeys((settings.final_figure, *settings.primary))
    return tuple(_measured(played, name, f, False, datasets, settings) for f in primary if f in shared)


def within(mean: Estimate, figure: str) -> Estimate:
    """No rate is below 0 or above 1, and so no interval of one is."""
    return replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high)) if figure.endswith("_rate") else mean


def _measured(
    played: Mapping[str, Sequence[Mapping[str, Mapping[str, np.ndarray]]]],
    scenario_set: str,
    figure: str,
    primary: bool,
    datasets: Mapping[str, Sequence[str]],
    settings: ComparisonSettings,
) -> FinalFigure:
    """Everything but the verdicts, which need all figures."""
    tables = {
        arm: np.stack([final[scenario_set][figure] for final in finals])  # (seeds, episodes)
        for arm, finals in played.items()
        if all(figure in final.get(scenario_set, {}) for final in finals)
    }
    over = {arm: MeanOverSeeds.of(by_dataset(table, datasets.get(arm, ()))) for arm, table in tables.items()}
    values = {arm: column_means(table.T) for arm, table in tables.items()}
    contrasts = dict[str, Contrast]()
    for reference in (Arm.SCRATCH, START):
        if reference in tables:
            differences = by_dataset(tables[Arm.PRETRAINED] - tables[reference], datasets[Arm.PRETRAINED])
            both, seeds = MeanOverSeeds.of(differences), MeanOverSeeds.of(differences.mean(axis=1))
            contrasts[reference] = Contrast(both.estimate, seeds.estimate, both.p_value, None, None)
    minimised, improvement = figure in settings.minimised, None
    if figure not in settings.undirected:
        sign = -1.0 if minimised else 1.0
        ours, theirs = sign * values[Arm.PRETRAINED], sign * values[Arm.SCRATCH]
        improvement = probability_of_improvement(ours, theirs, **settings.resampling)
    return FinalFigure(
        figure=figure,
        minimised=minimised,
        smallest_difference=settings.smallest_difference.get(figure),
        values={arm: tuple(of_arm.tolist()) for arm, of_arm in values.items()},
        episodes={arm: tuple(map(tuple, table.tolist())) for arm, table in tables.items()} if primary else {},
        means={arm: within(mean.estimate, figure) for arm, mean in over.items()},
        interquartile_means={arm: interquartile_mean(of_arm, **settings.resampling) for arm, of_arm in values.items()},
        contrasts=contrasts,
        probability_of_improvement=improvement,
    )


def _with_verdicts(
    finals: Mapping[str, Sequence[FinalFigure]], primary: Mapping[str, None], units: int, settings: ComparisonSettings
) -> dict[str, tuple[FinalFigure, ...]]:
    """One question is one family of tests: "is it better than scratch", "is it better than the clone"."""
    decided: dict[tuple[str, str, str], Contrast] = {}
    for reference in (Arm.SCRATCH, START):
        family = {
            (name, f.figure, reference): f
            for name, figures in finals.items()
            for f in figures
            if f.figure in primary and reference in f.contrasts
        }
        corrected = holm([f.contrasts[reference].p_value for f in family.values()])
        for (key, f), p in zip(family.items(), corrected, strict=True):
            contrast = f.contrasts[reference]
            verdict = decide_final(contrast.difference, p, units, f.figure, settings)
            decided[key] = replace(contrast, corrected_p=p, verdict=verdict)
    return {
        name: tuple(
            replace(f, contrasts={r: decided.get((name, f.figure, r), one) for r, one in f.contrasts.items()})
            for f in figures
        )
        for name, figures in finals.items()
    }


def decide_final(
    difference: Estimate, corrected_p: float, pairs: int, figure: str, settings: ComparisonSettings
) -> FinalVerdict:
    """Equal when the interval lies within what matters; else better or worse when p is at most 0.05."""
    if pairs < MINIMUM_PAIRS:
        return FinalVerdict.UNDECIDED
    margin = settings.smallest_difference.get(figure)
    if margin is not None and -margin <= difference.low and difference.high <= margin:
        return FinalVerdict.EQUAL
    if corrected_p > SIGNIFICANCE:
        return FinalVerdict.NO_DIFFERENCE
    return FinalVerdict.BETTER if (difference.value > 0) != (figure in settings.minimised) else FinalVerdict.WORSE


@dataclass(frozen=True)
class Regression:
    """Did fine-tuning elsewhere cost performance on the scenarios that were demonstrated."""

    scenario_set: str
    figure: str
    before: float  # of what the seeds started from, mean over seeds
    after: Estimate  # of the fine-tuned policies, mean over seeds
    difference: Estimate  # after - before of the same seed, mean over seeds
    clones: int  # how many different policies the seeds started from; 1: the interval is about that one alone
    verdict: FinalVerdict  # of `decide_final` on this one figure
    regressed: bool  # it is worse


def measure_regression(
    scenario_set: str,
    figure: str,
    before: Sequence[np.ndarray] | Sequence[float],
    after: Sequence[np.ndarray] | Sequence[float],
    clones: int,
    settings: ComparisonSettings,
    datasets: Sequence[str] = (),
) -> Regression:
    """Compare the figure of what every seed started from with that of what it became, on the same episodes.

    Both (seeds, episodes), or (seeds,). The pair of a seed counts, so that the spread over clones does, and what a good
    clone and the policy made of it have in common does not. Where `clones` is 1, no spread over clones can be seen.
    """
    started, ended = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    differences = by_dataset(ended - started, datasets)
    over = MeanOverSeeds.of(differences)
    verdict = decide_final(over.estimate, over.p_value, len(differences), figure, settings)
    return Regression(
        scenario_set, figure, float(started.mean()),
        MeanOverSeeds.of(by_dataset(ended, datasets)).estimate, over.estimate, clones,
        verdict, verdict is FinalVerdict.WORSE,
    )  # fmt: skip

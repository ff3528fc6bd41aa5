"""How far a verdict carries: the ratio again for other limits of the target, other patience, a coarser grid."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.config.base import Bound
from pipeline.names import Arm
from pipeline.statistics.efficiency import RatioKind, ratio_kind, restricted_mean_ratio
from pipeline.statistics.estimate import Estimate, FromEpisodes
from pipeline.statistics.matched import ComparisonSettings, RunData, Verdict, decide, pairs_of
from pipeline.statistics.redrawing import from_episodes, log_ratio

ASIDE = (1, 2, 3, 5, 8, 13, 21, 34, 55)  # steps between the task's level and those on either side of it
STEPS_ASIDE = 3  # at least, and as many as it takes to the best level that a run held
RATE_STEP = 0.01  # between two levels of a rate
RANGE_STEP = 0.05  # between two levels of another figure, in shares of its observed range
PATIENCE, EVERY_NTH = "patience", "every nth evaluation"


@dataclass(frozen=True)
class SensitivityRow:
    """The comparison with one thing changed."""

    varied: str  # figure of the target, `patience` or `every nth evaluation`
    sign: str  # of a limit: ">=" or "<="; else empty
    level: float
    chosen: bool  # as the comparison has it
    ratio: Estimate
    kind: RatioKind
    verdict: Verdict
    target_met: bool
    reached: Mapping[str, int]  # arm -> seeds that met the target
    from_episodes: FromEpisodes  # of the logarithm of the ratio


def sensitivity(runs: Mapping[str, Sequence[RunData]], settings: ComparisonSettings) -> tuple[SensitivityRow, ...]:
    """One row a level, ordered by what is varied, then by level; both arms in the order of the same seeds.

    A training that ended when it met the task's target counts as censored where a stricter one asks for more.
    """
    both = {arm: runs[arm] for arm in (Arm.SCRATCH, Arm.PRETRAINED)}
    rows = []
    for varied, sign, level, chosen, changed, thinned in _variations(both, settings):
        pairs = pairs_of(thinned, changed)
        played = from_episodes(list(thinned.values()), changed, log_ratio)
        ratio = restricted_mean_ratio(pairs, played)
        verdict, target_met = decide(ratio, pairs, settings.ratio_target)
        times = {Arm.SCRATCH: [p.baseline for p in pairs], Arm.PRETRAINED: [p.pretrained for p in pairs]}
        reached = {arm: sum(not time.censored for time in of_arm) for arm, of_arm in times.items()}
        rows.append(
            SensitivityRow(varied, sign, level, chosen, ratio, ratio_kind(pairs), verdict, target_met, reached, played)
        )
    return tuple(rows)


def _variations(
    runs: Mapping[str, Sequence[RunData]], settings: ComparisonSettings
) -> Iterator[tuple[str, str, float, bool, ComparisonSettings, Mapping[str, Sequence[RunData]]]]:
    """What is varied, its sign and level, whether it is the comparison's own; settings and runs so changed."""
    for figure, bound in settings.target.items():
        values = np.concatenate([run.figures[figure] for of_arm in runs.values() for run in of_arm])
        rate, measured = figure.endswith("_rate"), values[np.isfinite(values)]
        step = RATE_STEP if rate else RANGE_STEP * float(np.ptp(measured)) if len(measured) else 0.0
        for side, sign in (("min", ">="), ("max", "<=")):
            own = getattr(bound, side)
            if own is None:
                continue
            better = 1 if side == "min" else -1
            held = [
                (better * sliding_window_view(run.figures[figure], settings.patience)).min(axis=-1)
                for of_arm in runs.values()
                for run in of_arm
                if len(run.steps) >= settings.patience
            ]
            asides = {0}
            if step > 0:
                best = max((level for levels in held for level in levels if np.isfinite(level)), default=better * own)
                reach = max(STEPS_ASIDE, floor((best - better * own) / step + 1e-9))
                asides |= {way * a for a in (*ASIDE, reach) if a <= reach for way in (-1, 1)}
            for aside in sorted(asides):
                level = own if aside == 0 else round(own + aside * step, 6)
                if rate and not 0 <= level <= 1:
                    continue
                moved = Bound(**{"min": bound.min, "max": bound.max, side: level})
                target = {**settings.target, figure: moved}
                yield figure, sign, level, aside == 0, replace(settings, target=target), runs
    for patience in sorted({1, 2, 3, 5, settings.patience}):
        yield PATIENCE, "", patience, patience == settings.patience, replace(settings, patience=patience), runs
    for nth in (1, 2, 4):
        if min(len(run.steps) for of_arm in runs.values() for run in of_arm) >= nth + 1:
            yield EVERY_NTH, "", nth, nth == 1, settings, {arm: [_thinned(r, nth) for r in runs[arm]] for arm in runs}


def _thinned(run: RunData, nth: int) -> RunData:
    figures, episodes = ({name: v[::nth] for name, v in of.items()} for of in (run.figures, run.episodes))
    return replace(run, steps=run.steps[::nth], figures=figures, episodes=episodes)


def carries(rows: Sequence[SensitivityRow]) -> tuple[str, ...]:
    """How far the verdict stays what it is, in a sentence for each thing that is varied."""
    said = []
    for varied, sign in dict.fromkeys((row.varied, row.sign) for row in rows):
        levels = [row for row in rows if (row.varied, row.sign) == (varied, sign)]
        own = next(index for index, row in enumerate(levels) if row.chosen)
        alike = [(row.verdict, row.target_met) == (levels[own].verdict, levels[own].target_met) for row in levels]
        first, last = own, own
        while first > 0 and alike[first - 1]:
            first -= 1
        while last < len(levels) - 1 and alike[last + 1]:
            last += 1
        what = f"limits of {varied.replace('_', ' ')}" if sign else f"values of {varied}"
        span = f"{what} from {levels[first].level:g} to {levels[last].level:g}"
        if first == 0 and last == len(levels) - 1:
            said.append(f"holds for all {span} that were tried" if first < last else f"was tried for no other {what}")
            continue
        beyond = [levels[index] for index in (first - 1, last + 1) if 0 <= index < len(levels)]
        elsewhere = [f"at {row.level:g} {row.verdict}, {row.ratio:.2f}" for row in beyond]
        said.append(
            f"holds for {f'the tried {span}' if first < last else f'{what} of {levels[own].level:g} alone'}; "
            f"{'; '.join(elsewhere)}"
        )
    return tuple(said)

"""Figures of the comparison as SVG text: forests, sensitivity, learning curves, timesteps to target, bill, shift.

Every figure is drawn in the marker colours of `palette` and about 400 points wide, so that it reads on a phone. Arms
differ by line style and label as well as by colour. matplotlib is imported when the first figure is drawn.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import printable
from pipeline.names import ARMS, CONTROLS, START, Arm, Metric
from pipeline.report.context import ReferencePolicy
from pipeline.report.palette import (
    ARM_COLOURS,
    ARM_LABELS,
    BAD,
    BASELINE,
    GRID,
    INK,
    MUTED,
    OTHER,
    PRETRAINED,
    TARGET,
)
from pipeline.report.text import limits, p_value, words
from pipeline.statistics.comparison import Bill, Comparison, RunCurve
from pipeline.statistics.estimate import Estimate
from pipeline.statistics.finals import Contrast, Finals
from pipeline.statistics.shift import Shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH: Final = 4.8  # inches
HEIGHT: Final = 3.1
DRAWN_ARMS: Final = (Arm.SCRATCH, Arm.PRETRAINED)
STYLES: Final = {Arm.SCRATCH: "--", Arm.PRETRAINED: "-", Arm.SCRATCH_LR0: ":", Arm.PRETRAINED_LR0: "-."}
MARKERS: Final = {Arm.SCRATCH: "s", Arm.PRETRAINED: "o", Arm.SCRATCH_LR0: "D", Arm.PRETRAINED_LR0: "^"}
MOST_FEATURES: Final = 12
PERCENT: Final = "{x:.0%}"
LABEL_HEIGHT: Final = 0.08  # of a line of text, in shares of the height of axes

_SETTINGS: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}


@dataclass
class Canvas:
    """The figure under construction; `svg` holds the result after the `with` block."""

    axes: "Axes"  # the first of `panels`
    panels: Sequence["Axes"]
    svg: str = ""


@contextmanager
def canvas(name: str, title: str, height: float = HEIGHT, heights: Sequence[float] = (1,)) -> Iterator[Canvas]:
    """Axes to draw on, below each other with these relative heights; only the first has the title.

    Afterwards `canvas.svg` is `<svg ...>` without a fixed size, whose ids start with `name`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, height))
        panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        panels[0].set_title(title)
        drawn = Canvas(panels[0], list(panels))
        yield drawn
        handles, labels = drawn.axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower left", ncols=2, handlelength=2.6, columnspacing=1.2)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    head, _, body = file.getvalue().partition("<svg")[2].partition(">")  # without the XML head
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    svg = f"<svg{head}>{re.sub('<metadata>.*?</metadata>', '', body, flags=re.DOTALL)}"
    # ids of its own, so that several figures fit into one page
    drawn.svg = re.sub(r'(\bid="|href="#|url\(#)([^")]+)', rf"\1{name}-\2", svg).strip()


def learning_curve(comparison: Comparison, figure: str) -> str:
    """Mean over seeds with its 95 % interval, every seed as a thin line, the target as a line; zoomed to the target."""
    bound = comparison.settings.target.get(figure)
    title = words(figure) if bound is None else f"{words(figure)}, target {limits(bound)}"
    with canvas(f"curve-{figure}", title[0].upper() + title[1:]) as drawn:
        axes, ends = drawn.axes, list[tuple[str, float, str]]()
        for arm, summary in comparison.arms.items():
            if figure not in summary.curves:
                continue
            curve, style = summary.curves[figure], _style(arm, comparison)
            ends.append((style.pop("label"), curve.mean[-1], style["color"]))
            if arm in CONTROLS:  # weights that never change: one level for all steps
                axes.axhline(float(np.mean(curve.mean)), linewidth=1.4, **style)
                continue
            axes.plot(curve.steps, curve.mean, linewidth=2.0 if arm in DRAWN_ARMS else 1.3, **style)
            if arm not in DRAWN_ARMS:
                continue
            colour = ARM_COLOURS[arm]
            axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
            for run in summary.runs:
                axes.plot(run.steps, run.figures[figure], color=colour, linewidth=0.6, alpha=0.45)
        for limit, sign in () if bound is None else ((bound.min, "≥"), (bound.max, "≤")):
            if limit is not None:
                axes.axhline(limit, color=TARGET, linewidth=1.3, linestyle=(0, (2, 2)))
                ends.append((f"target {sign} {limit:g}", limit, TARGET))
        if figure in (Metric.SUCCESS_RATE, Metric.COLLISION_RATE):
            low, high = 0.0, 1.0
            if bound is not None and bound.min is not None:
                low = max(0.0, 1 - 3 * (1 - bound.min))
            if bound is not None and bound.max is not None:
                high = min(1.0, max(2 * bound.max, 0.02))
            axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
            axes.yaxis.set_major_formatter(PERCENT)
        _label_ends(axes, ends)
        _steps_axis(axes, "environment steps of training")
    return drawn.svg


def time_to_target(comparison: Comparison) -> str:
    """One row a seed: when each arm met the target; an arrow for a run that never did within the budget."""
    pairs = comparison.pairs
    with canvas(
        "time-to-target", "Timesteps to target, seed by seed", height=max(2.2, 1.3 + 0.3 * len(pairs))
    ) as drawn:
        axes = drawn.axes
        for row, pair in enumerate(pairs):
            axes.plot([pair.pretrained.steps, pair.baseline.steps], [row, row], color=GRID, linewidth=3, zorder=1)
            for arm, time in ((Arm.SCRATCH, pair.baseline), (Arm.PRETRAINED, pair.pretrained)):
                colour = ARM_COLOURS[arm]
                style: dict[str, Any] = {"color": colour, "marker": MARKERS[arm], "linestyle": ""}
                filled = "none" if time.censored else colour
                axes.plot(time.steps, row, markersize=7, zorder=3, markerfacecolor=filled, markeredgewidth=1.6, **style)
                if row == 0:
                    axes.plot([], [], label=ARM_LABELS[arm], **style)
                if time.censored:
                    arrow = {"arrowstyle": "<|-", "color": colour, "linewidth": 1.6}
                    end: dict[str, Any] = {"xytext": (26, 0), "textcoords": "offset points", "zorder": 2}
                    axes.annotate("", (time.steps, row), arrowprops=arrow, **end)
        floors = [t.steps for pair in pairs for t in (pair.baseline, pair.pretrained) if t.at_floor]
        if floors:
            axes.axvspan(0, max(floors), color=GRID, alpha=0.6, linewidth=0, label="before the first update")
        times = [t.steps for pair in pairs for t in (pair.baseline, pair.pretrained)]
        if max(times) > 8 * min(times):
            axes.set_xscale("log")
            axes.set_xlim(min(times) / 1.5, max(times) * 1.9)
        else:
            axes.set_xlim(0, max(times) * 1.15)
        axes.set_yticks(range(len(pairs)), [f"seed {pair.seed}" for pair in pairs])
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        _steps_axis(axes, "environment steps (arrow: not within the budget)")
    return drawn.svg


def performance_profile(comparison: Comparison) -> str:
    """Share of runs whose final figure is above each threshold (Agarwal et al. 2021)."""
    with canvas("profile", "Performance profile") as drawn:
        axes = drawn.axes
        for arm, profile in comparison.profiles.items():
            axes.step(profile.thresholds, profile.share, where="post", linewidth=2, **_style(arm, comparison))
            if arm in DRAWN_ARMS:
                band: dict[str, Any] = {"step": "post", "color": ARM_COLOURS[arm], "alpha": 0.18, "linewidth": 0}
                axes.fill_between(profile.thresholds, profile.low, profile.high, **band)
        axes.set_ylim(-0.03, 1.05)
        axes.set_xlabel(f"final {words(comparison.settings.final_figure)} τ")
        axes.set_ylabel("share of runs above τ")
        axes.yaxis.set_major_formatter(PERCENT)
    return drawn.svg


def forest(finals: Finals, figure: str, references: Sequence[ReferencePolicy]) -> str:
    """One figure: every policy's seeds and mean above, the paired differences of the pre-trained ones below."""
    figures = {name: f for name, of_set in finals.items() for f in of_set if f.figure == figure}
    first = next(iter(figures.values()))
    levels, changes = list[tuple[str, str, Estimate, Sequence[float]]](), list[tuple[str, Contrast]]()
    for name, f in figures.items():
        for arm in (Arm.SCRATCH, START, Arm.PRETRAINED, *(a for a in f.means if a not in (*ARMS, START))):
            if arm in f.means:
                levels.append((f"{ARM_LABELS.get(arm, arm)}, {name}", arm, f.means[arm], f.values[arm]))
        levels += [
            (f"{policy.name}, {name}", "", policy.figures[f.figure], ())
            for policy in references
            if policy.scenario_set == name and f.figure in policy.figures
        ]
        changes += [
            (f"minus {ARM_LABELS[r].removeprefix('from ')}, {name}", contrast) for r, contrast in f.contrasts.items()
        ]
    rows, room = (len(levels), len(changes)), 0.24 * (len(levels) + len(changes)) + 1.5
    title = f"Final {words(first.figure)}{' ↓' if first.minimised else ''}"
    with canvas(f"forest-{first.figure}", title, room, [row + 0.6 for row in rows]) as drawn:
        upper, lower = drawn.panels
        for row, (_, arm, mean, seeds) in enumerate(levels):
            colour = ARM_COLOURS.get(arm, OTHER)
            upper.plot([mean.low, mean.high], [row, row], color=colour, linewidth=2)
            upper.plot(seeds, [row] * len(seeds), color=colour, linestyle="", marker="o", markersize=3, alpha=0.55)
            upper.plot(mean.value, row, color=colour, marker="|", markersize=11, markeredgewidth=2)
        upper.set_yticks(range(rows[0]), [cut(label) for label, *_ in levels], fontsize=8.5)
        if first.smallest_difference is not None:
            lower.axvspan(-first.smallest_difference, first.smallest_difference, color=GRID, alpha=0.6, linewidth=0)
        lower.axvline(0, color=INK, linewidth=1)
        for row, (_, contrast) in enumerate(changes):
            for interval, width in ((contrast.difference, 1.4), (contrast.over_seeds, 4.5)):
                lower.plot([interval.low, interval.high], [row, row], color=PRETRAINED, linewidth=width)
            lower.plot(contrast.difference.value, row, color=PRETRAINED, marker="o", markersize=6)
        lower.set_yticks(range(rows[1]), [cut(label) for label, _ in changes], fontsize=8.5)
        lower.set_xlabel(f"difference, {'more' if first.minimised else 'less'} is worse")
        for axes, count in zip((upper, lower), rows, strict=True):
            axes.set_ylim(count - 0.5, -0.5)
            axes.grid(axis="y", visible=False)
            axes.locator_params(axis="x", nbins=5)
            if first.figure.endswith("_rate"):
                axes.xaxis.set_major_formatter("{x:.3g}")
    return drawn.svg


def sensitivity_rows(comparison: Comparison) -> str:
    """The ratio with one thing changed, one row a level; what lies beyond the axis ends in an arrow."""
    rows = comparison.sensitivity
    target = comparison.settings.ratio_target
    most = 1.15 * max(1.0, target, *(row.ratio.value for row in rows if row.ratio.value < 2))
    labels, at, place = [], [], -1.0
    for index, row in enumerate(rows):  # a gap where another thing is varied
        place += 1.0 if index and row.varied == rows[index - 1].varied else 1.6
        at.append(place)
        labels.append(f"{words(row.varied)} {limits(row.sign)} {row.level:g}".replace("  ", " "))
    with canvas("sensitivity", "Ratio of timesteps if judged otherwise", 0.19 * place + 1.3) as drawn:
        axes = drawn.axes
        axes.axvline(1, color=INK, linewidth=1)
        axes.axvline(target, color=TARGET, linewidth=1.3, linestyle=(0, (2, 2)))
        for y, row in zip(at, rows, strict=True):
            low, value, high = (min(max(v, 0.0), most) for v in (row.ratio.low, row.ratio.value, row.ratio.high))
            axes.plot([low, high], [y, y], color=PRETRAINED, linewidth=1.6)
            filled = "none" if row.chosen else PRETRAINED
            axes.plot(value, y, color=PRETRAINED, marker="o", markersize=6, markerfacecolor=filled, markeredgewidth=1.6)
            if row.ratio.high > most:
                axes.plot(most, y, color=PRETRAINED, marker=">", markersize=5, clip_on=False)
        axes.set_xlim(0, most)
        axes.set_yticks(at, labels, fontsize=8)
        axes.set_ylim(place + 0.6, -0.1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("pre-trained / from scratch; 1 is equal")
    return drawn.svg


def expert_curve(experts: Sequence[RunCurve], figure: str) -> str:
    """One line a seed of the expert's training."""
    with canvas("expert", f"The expert's {words(figure)} in training", 2.4) as drawn:
        axes, ends = drawn.axes, list[tuple[str, float, str]]()
        for run, line in zip(experts, cycle(("-", "--", ":", "-.")), strict=False):
            axes.plot(run.steps, run.figures[figure], color=PRETRAINED, linestyle=line)
            ends.append((f"seed {run.seed}", run.figures[figure][-1], PRETRAINED))
        _label_ends(axes, ends)
        _steps_axis(axes, "environment steps of training")
    return drawn.svg


def bill_lines(bill: Bill) -> str:
    """Total environment steps over the number of trainings that reuse the dataset, past where they are paid back."""
    even = bill.break_even
    last = max(4, *(round(1.4 * x) for x in (even.reuses, even.high, even.low) if x is not None)) if even.reuses else 10
    last = min(last, 3 * (even.reuses or 5))  # an end of the interval that is far away would hide the crossing
    uses = np.linspace(0, last, 50)
    title = f"Paid back after {even.reuses:,} trainings" if even.reuses is not None else "Never paid back"
    with canvas("bill", title) as drawn:
        axes, without = drawn.axes, uses * bill.baseline_steps.value
        total = bill.upfront.steps + uses * bill.pretrained_steps.value
        axes.plot(uses, without, color=BASELINE, linestyle="--", linewidth=2)
        axes.plot(uses, total, color=PRETRAINED, linewidth=2)
        if even.reuses is not None:
            axes.axvline(even.reuses, color=TARGET, linewidth=1.2, linestyle=(0, (2, 2)))
            high = min(last, even.high or last)
            axes.axvspan(min(even.low or 0, high), high, color=TARGET, alpha=0.13, linewidth=0)
        axes.set_xlim(0, last)
        axes.set_xlabel("trainings that reuse the demonstrations")
        axes.set_ylabel("environment steps in all")
        axes.locator_params(axis="x", integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: short_steps(value))
        axes.set_ylim(bottom=0)
        with_all = "pre-trained, with, expert and, demonstrations"
        _label_ends(axes, [("from scratch", without[-1], BASELINE), (with_all, total[-1], PRETRAINED)])
    return drawn.svg


def shift_bars(shift: Shift, where: str) -> str | None:
    """The features that differ most there; filled where the difference is significant. None without features."""
    features = shift.features[:MOST_FEATURES]
    if not features:
        return None
    with canvas(f"shift-{where}", f"Features that differ most: {cut(where)}", 1.2 + 0.26 * len(features)) as drawn:
        axes = drawn.axes
        for row, feature in enumerate(features):
            loud = feature.p_value <= shift.significance
            axes.barh(row, feature.distance, height=0.65, color=BAD if loud else OTHER)
            p = f"p {p_value(feature.p_value)}"
            axes.text(feature.distance + 0.012, row, p, va="center", fontsize=8.5, color=MUTED)
        axes.set_yticks(range(len(features)), [cut(f.name) for f in features])
        axes.set_ylim(len(features) - 0.4, -0.6)
        axes.set_xlim(0, min(1.12, max(0.2, 1.25 * features[0].distance + 0.08)))
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("Kolmogorov-Smirnov distance, 0 to 1")
    return drawn.svg


def _label_ends(axes: "Axes", ends: Sequence[tuple[str, float, str]]) -> None:
    """Names, a line for each part between commas, at the height (y, colour) where lines end, right of the axes.

    Where they would overlap they are moved apart, in the order of the ends; an arrow is on those beyond the axes.
    """
    low, high = axes.get_ylim()
    wanted = sorted(((y - low) / (high - low), text.replace(", ", "\n"), colour) for text, y, colour in ends)
    heights = [LABEL_HEIGHT * (text.count("\n") + 1) for _, text, _ in wanted]
    tops = list[float]()
    for (at, _, _), height in zip(wanted, heights, strict=True):
        tops.append(max([min(max(at, 0.0), 1.0) + height / 2, *(top + height for top in tops[-1:])]))
    ceiling = 1.0 + LABEL_HEIGHT / 2
    for index in reversed(range(len(tops))):
        tops[index] = ceiling = min(tops[index], ceiling)
        ceiling -= heights[index]
    for (at, text, colour), top, height in zip(wanted, tops, heights, strict=True):
        place: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (5, 0), "textcoords": "offset points"}
        text += " ↓" if at < 0 else " ↑" if at > 1 else ""
        axes.annotate(text, (1, top - height / 2), va="center", color=colour, fontsize=8.5, **place)


def _style(arm: str, comparison: Comparison) -> dict[str, Any]:
    if arm not in ARM_COLOURS:  # further arms are told apart by their dashes: one, two, three dots between them
        place = [name for name in comparison.arms if name not in ARM_COLOURS].index(arm)
        return {"color": OTHER, "linestyle": (0, (6, 1.5, *(1, 1.5) * place)), "label": cut(arm)}
    return {"color": ARM_COLOURS[arm], "linestyle": STYLES[arm], "label": ARM_LABELS[arm]}


def _steps_axis(axes: "Axes", label: str) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: short_steps(value))
    if axes.get_xscale() == "log":
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)


def short_steps(steps: float) -> str:
    """`250000` -> `250k`, `1500000` -> `1.5M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:.4g}{letter}"
    return f"{steps:.4g}"


def cut(text: str, limit: int = 34) -> str:
    text = printable(text)  # a control character is none of XML
    return text if len(text) <= limit else f"{text[: limit - 1]}…"

"""Figures as SVG text: learning curves, timesteps to target, profiles, outcomes, bill, shift, dataset inspection.

Every figure is drawn in the marker colours of `palette` and about 400 points wide, so that it reads on a phone. Arms
differ by line style and label as well as by colour. matplotlib is imported when the first figure is drawn.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import printable
from pipeline.names import CONTROLS, Arm, Metric
from pipeline.report.palette import (
    ARM_COLOURS,
    ARM_LABELS,
    BAD,
    BASELINE,
    GOOD,
    GRID,
    INK,
    MUTED,
    OTHER,
    PRETRAINED,
    TARGET,
)
from pipeline.report.text import words
from pipeline.statistics.comparison import Bill, Comparison, FinalFigure
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

    axes: "Axes"
    svg: str = ""


@contextmanager
def canvas(name: str, title: str, height: float = HEIGHT) -> Iterator[Canvas]:
    """An axes to draw on; afterwards `canvas.svg` is `<svg ...>` without a fixed size, whose ids start with `name`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, height))
        drawn = Canvas(figure.add_subplot(title=title))
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
    """Mean over seeds with its 95 % interval, every seed as a thin line, the target as a line."""
    with canvas(f"curve-{figure}", words(figure)) as drawn:
        axes = drawn.axes
        for arm, summary in comparison.arms.items():
            if figure not in summary.curves:
                continue
            curve = summary.curves[figure]
            if arm in CONTROLS:  # weights that never change: one level for all steps
                axes.axhline(float(np.mean(curve.mean)), linewidth=1.4, **_style(arm))
                continue
            axes.plot(curve.steps, curve.mean, linewidth=2.0 if arm in DRAWN_ARMS else 1.3, **_style(arm))
            if arm not in DRAWN_ARMS:
                continue
            colour = ARM_COLOURS[arm]
            axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
            for run in summary.runs:
                axes.plot(run.steps, run.figures[figure], color=colour, linewidth=0.6, alpha=0.45)
        bound = comparison.settings.target.get(figure)
        for limit, sign in () if bound is None else ((bound.min, "≥"), (bound.max, "≤")):
            if limit is not None:
                axes.axhline(
                    limit, color=TARGET, linewidth=1.3, linestyle=(0, (2, 2)), label=f"target {sign} {limit:g}"
                )
        if figure in (Metric.SUCCESS_RATE, Metric.COLLISION_RATE):
            axes.set_ylim(-0.03, 1.03)
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


def reached_by(comparison: Comparison) -> str:
    """Share of runs that had met the target by each timestep."""
    with canvas("reached-by", "Share of runs that met the target") as drawn:
        axes = drawn.axes
        for arm in DRAWN_ARMS:
            times = [pair.baseline if arm == Arm.SCRATCH else pair.pretrained for pair in comparison.pairs]
            reached = sorted(t.steps for t in times if not t.censored)
            end = max(comparison.arms[arm].budget, *(t.steps for t in times))
            x = [0, *reached, end]
            y = [0.0, *(np.arange(1, len(reached) + 1) / len(times)), len(reached) / len(times)]
            axes.step(x, y, where="post", linewidth=2, **_style(arm))
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_formatter(PERCENT)
        _steps_axis(axes, "environment steps of training")
    return drawn.svg


def performance_profile(comparison: Comparison) -> str:
    """Share of runs whose final figure is above each threshold (Agarwal et al. 2021)."""
    with canvas("profile", "Performance profile") as drawn:
        axes = drawn.axes
        for arm, profile in comparison.profiles.items():
            axes.step(profile.thresholds, profile.share, where="post", linewidth=2, **_style(arm))
            if arm in DRAWN_ARMS:
                band: dict[str, Any] = {"step": "post", "color": ARM_COLOURS[arm], "alpha": 0.18, "linewidth": 0}
                axes.fill_between(profile.thresholds, profile.low, profile.high, **band)
        axes.set_ylim(-0.03, 1.05)
        axes.set_xlabel(f"final {words(comparison.settings.final_figure)} τ")
        axes.set_ylabel("share of runs above τ")
        axes.yaxis.set_major_formatter(PERCENT)
    return drawn.svg


def outcome_bars(finals: Mapping[str, Sequence[FinalFigure]]) -> str | None:
    """Success, collision and neither of the final policies by scenario set and arm; None when not measured."""
    bars: list[tuple[str, float, float | None]] = []
    for scenario_set, figures in finals.items():
        by_name = {f.figure: f for f in figures}
        if Metric.SUCCESS_RATE not in by_name:
            continue
        collision = by_name.get(Metric.COLLISION_RATE)
        for arm, mean in by_name[Metric.SUCCESS_RATE].means.items():
            hit = None if collision is None or arm not in collision.means else collision.means[arm].value
            bars.append((f"{scenario_set}\n{ARM_LABELS.get(arm, arm)}", mean.value, hit))
    return _bars("outcomes", "How final episodes end", bars, 1.1 + 0.42 * len(bars)) if bars else None


def scenario_bars(outcomes: Sequence[tuple[str, float, float | None]]) -> str:
    """(scenario, success, collision or None) as stacked shares, one row each."""
    return _bars("scenarios", "Outcomes by scenario", outcomes, 1.3 + 0.3 * len(outcomes))


def _bars(name: str, title: str, bars: Sequence[tuple[str, float, float | None]], height: float) -> str:
    """(label, success, collision or None) from top to bottom."""
    hatch = {GOOD: None, BAD: "////", OTHER: None}
    with canvas(name, title, height) as drawn:
        axes = drawn.axes
        for row, (_, success, collision) in enumerate(bars):
            left, hit = 0.0, collision or 0.0
            for share, colour in ((success, GOOD), (hit, BAD), (max(0.0, 1 - success - hit), OTHER)):
                axes.barh(
                    row, share, left=left, height=0.62, color=colour, hatch=hatch[colour], edgecolor=GRID, linewidth=0
                )
                left += share
            axes.text(1.012, row, f"{success:.1%}", va="center", fontsize=9, color=INK)
        collisions = any(collision is not None for _, _, collision in bars)
        for text, colour in (
            ("success", GOOD),
            ("collision" if collisions else "", BAD),
            ("neither" if collisions else "no success", OTHER),
        ):
            if text:
                axes.barh(0, 0, color=colour, hatch=hatch[colour], edgecolor=GRID, linewidth=0, label=text)
        axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8.5)
        axes.set_ylim(len(bars) - 0.45, -0.55)
        axes.set_xlim(0, 1.13)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(PERCENT)
    return drawn.svg


def bill_lines(bill: Bill, most_uses: int = 40) -> str:
    """Total environment steps over the number of trainings that reuse the dataset, with and without pre-training."""
    crossing = bill.break_even.reuses
    uses = np.arange(0, max(4, min(most_uses, 2 * (crossing or 5))) + 1)
    with canvas("bill", "Environment steps in all") as drawn:
        axes = drawn.axes
        axes.plot(
            uses, uses * bill.baseline_steps.value, color=BASELINE, linestyle="--", linewidth=2, label="from scratch"
        )
        total = bill.upfront.steps + uses * bill.pretrained_steps.value
        axes.plot(uses, total, color=PRETRAINED, linewidth=2, label="pre-trained, with expert and demonstrations")
        if crossing is not None and crossing <= uses[-1]:
            axes.axvline(crossing, color=TARGET, linewidth=1.2, linestyle=(0, (2, 2)))
            axes.annotate(
                f"paid back at {crossing}", (crossing, 0.04), xycoords=("data", "axes fraction"), xytext=(4, 0),
                textcoords="offset points", color=TARGET, fontsize=9,
            )  # fmt: skip
        axes.set_xlabel("trainings that reuse the same demonstrations")
        axes.locator_params(axis="x", integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: short_steps(value))
        axes.set_ylim(bottom=0)
    return drawn.svg


def shift_bars(shift: Shift) -> str | None:
    """The features that differ most; filled where the difference is significant. None without features."""
    features = shift.features[:MOST_FEATURES]
    if not features:
        return None
    with canvas("shift", "Features that differ most", height=1.2 + 0.26 * len(features)) as drawn:
        axes = drawn.axes
        for row, feature in enumerate(features):
            loud = feature.p_value <= shift.significance
            axes.barh(row, feature.distance, height=0.65, color=BAD if loud else OTHER)
            p = "< 0.01" if feature.p_value < 0.01 else f"{feature.p_value:.2f}"
            axes.text(feature.distance + 0.012, row, f"p {p}", va="center", fontsize=8.5, color=MUTED)
        axes.set_yticks(range(len(features)), [_cut(f.name) for f in features])
        axes.set_ylim(len(features) - 0.4, -0.6)
        axes.set_xlim(0, min(1.12, max(0.2, 1.25 * features[0].distance + 0.08)))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("Kolmogorov-Smirnov distance, 0 to 1")
    return drawn.svg


def histogram(
    name: str,
    edges: Sequence[float],
    counts: Sequence[int],
    title: str,
    label: str,
    unit: str,
    marks: Sequence[float] = (),
) -> str:
    """Counts between edges, or per value when there are as many edges as counts; marks point at outliers."""
    with canvas(name, title, height=2.6) as drawn:
        axes = drawn.axes
        at = np.asarray(edges, dtype=np.float64)
        if len(at) == len(counts):
            axes.bar(at, counts, width=0.8, color=PRETRAINED, alpha=0.85)
        else:
            axes.bar(at[:-1], counts, width=np.diff(at), align="edge", color=PRETRAINED, alpha=0.85)
        if len(marks):
            height = 0.04 * max(1, *counts)
            axes.plot(marks, np.full(len(marks), height), linestyle="", marker="v", color=BAD, label="outliers")
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(label)
        axes.set_ylabel(unit)
    return drawn.svg


def ranges(
    name: str, labels: Sequence[str], values: np.ndarray, bounds: Sequence[tuple[float | None, float | None]]
) -> str:
    """One row a feature: smallest to largest as a line, mean and standard deviation on it, space bounds as ticks.

    `values` (features, 5): min, mean - std, mean, mean + std, max. Rows are scaled to their bounds, or to their range
    where the space has none, so that features of different units share one axis.
    """
    with canvas(name, "Features: range, mean and spread", height=1.2 + 0.17 * len(labels)) as drawn:
        axes = drawn.axes
        for row, (five, (low, high)) in enumerate(zip(values, bounds, strict=True)):
            start = five[0] if low is None else low
            span = (five[4] if high is None else high) - start
            least, below, mean, above, most = (five - start) / (span if span > 0 else 1.0)
            axes.plot([least, most], [row, row], color=OTHER, linewidth=1.4)
            axes.plot([max(below, least), min(above, most)], [row, row], color=PRETRAINED, linewidth=4.5, alpha=0.7)
            axes.plot(mean, row, marker="|", color=INK, markersize=8)
        axes.set_yticks(range(len(labels)), [_cut(label) for label in labels], fontsize=7.5)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["low bound", "", "high bound"])
        axes.grid(axis="y", visible=False)
    return drawn.svg


def _style(arm: str) -> dict[str, Any]:
    if arm not in ARM_COLOURS:  # further arms are told apart by their dashes, which follow from the name
        dashes = sum(arm.encode()) % 5 + 1
        return {"color": OTHER, "linestyle": (0, (dashes, 1 + dashes % 3)), "label": _cut(arm)}
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


def _cut(text: str, limit: int = 34) -> str:
    text = printable(text)  # a control character is none of XML
    return text if len(text) <= limit else f"{text[: limit - 1]}…"

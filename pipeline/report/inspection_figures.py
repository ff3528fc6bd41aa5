"""Figures of a dataset's inspection as SVG text: outcomes by scenario, histograms, ranges of features."""

from collections.abc import Sequence

import numpy as np

from pipeline.report.figures import PERCENT, canvas, cut
from pipeline.report.palette import BAD, GOOD, GRID, INK, OTHER, PRETRAINED


def scenario_bars(outcomes: Sequence[tuple[str, float, float | None]]) -> str:
    """(scenario, success, collision or None) as stacked shares, one row each, from top to bottom."""
    hatch = {GOOD: None, BAD: "////", OTHER: None}
    with canvas("scenarios", "Outcomes by scenario", 1.3 + 0.3 * len(outcomes)) as drawn:
        axes = drawn.axes
        for row, (_, success, collision) in enumerate(outcomes):
            left, hit = 0.0, collision or 0.0
            for share, colour in ((success, GOOD), (hit, BAD), (max(0.0, 1 - success - hit), OTHER)):
                axes.barh(
                    row, share, left=left, height=0.62, color=colour, hatch=hatch[colour], edgecolor=GRID, linewidth=0
                )
                left += share
            axes.text(1.012, row, f"{success:.1%}", va="center", fontsize=9, color=INK)
        collisions = any(collision is not None for _, _, collision in outcomes)
        for text, colour in (
            ("success", GOOD),
            ("collision" if collisions else "", BAD),
            ("neither" if collisions else "no success", OTHER),
        ):
            if text:
                axes.barh(0, 0, color=colour, hatch=hatch[colour], edgecolor=GRID, linewidth=0, label=text)
        axes.set_yticks(range(len(outcomes)), [label for label, _, _ in outcomes], fontsize=8.5)
        axes.set_ylim(len(outcomes) - 0.45, -0.55)
        axes.set_xlim(0, 1.13)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(PERCENT)
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
        axes.set_yticks(range(len(labels)), [cut(label) for label in labels], fontsize=7.5)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["low bound", "", "high bound"])
        axes.grid(axis="y", visible=False)
    return drawn.svg

"""An ablation as a table and a picture: what a fine-tuning came to when one setting differs from a reference."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.figures import HEIGHT, canvas
from pipeline.report.palette import GRID, INK, MUTED, PRETRAINED, for_file
from pipeline.report.text import interval, markdown_table, number, signed
from pipeline.statistics import Estimate

REFERENCE = "reference"


@dataclass(frozen=True)
class AblationRow:
    """One level of one factor, over matched seeds."""

    factor: str
    level: str
    seeds: int
    clone_success: float  # deterministic clone before the first update, mean over seeds
    lowest_success: float  # lowest evaluation of a training, mean over seeds: did PPO unlearn the clone
    steps_to_target: Estimate  # environment steps, restricted mean over seeds
    reached: int  # seeds that met the target
    mean_success: Estimate  # over the evaluations of the fine-tuning, each for the steps it stands for; mean over seeds
    final_success: Estimate  # best checkpoint on fresh episodes, mean over seeds
    final_collision: Estimate
    mean_gain: Estimate | None  # of mean_success, level minus reference, over matched seeds; None for the reference
    final_gain: Estimate | None  # the same of final_success


def ablation_table(rows: Sequence[AblationRow]) -> str:
    """Markdown, the reference first."""
    header = (
        "factor", "level", "clone", "lowest", "steps to target", "met", "mean success", "against reference",
        "final success", "against reference", "final collision",
    )  # fmt: skip
    cells = [
        (
            row.factor,
            row.level,
            number(row.clone_success),
            number(row.lowest_success),
            interval(row.steps_to_target),
            f"{row.reached}/{row.seeds}",
            interval(row.mean_success),
            "" if row.mean_gain is None else signed(row.mean_gain),
            interval(row.final_success),
            "" if row.final_gain is None else signed(row.final_gain),
            interval(row.final_collision),
        )
        for row in rows
    ]
    return markdown_table(header, cells, numbers_from=2)


def ablation_figure(rows: Sequence[AblationRow], figure: str, title: str) -> bytes:
    """SVG file: `figure` (a field of the rows with an interval) of every level; a line marks the reference."""
    with canvas(f"ablation-{figure}", height=max(HEIGHT, 0.9 + 0.22 * len(rows))) as drawn:
        axes = drawn.axes
        for place, row in enumerate(rows):
            estimate: Estimate = getattr(row, figure)
            reference = row.factor == REFERENCE
            axes.plot([estimate.low, estimate.high], [place, place], color=PRETRAINED, linewidth=2.2)
            axes.plot(
                [estimate.value], [place], marker="D" if reference else "o", color=INK if reference else PRETRAINED
            )
            if reference:
                axes.axvline(estimate.value, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
            elif row.factor != rows[place - 1].factor:
                axes.axhline(place - 0.5, color=GRID, linewidth=1)
        axes.set_yticks(range(len(rows)), [f"{row.factor}: {row.level}" for row in rows], fontsize=7.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
    return for_file(drawn.svg)

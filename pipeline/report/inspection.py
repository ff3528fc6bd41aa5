"""A dataset inspection for people: figures as SVG files and a Markdown page. The numbers come from `validation`.

for path, data in inspection_files(inspection).items(): ...      # "inspection.md", "figures/return.svg", ...
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from pipeline.names import Metric
from pipeline.report.figures import histogram, ranges, scenario_bars
from pipeline.report.palette import for_file
from pipeline.report.text import markdown_table, number, one_line, words
from pipeline.validation.inspection import Distribution, Inspection

FIGURES: Final = "figures"
MOST_OUTLIERS: Final = 30
MOST_DRAWN: Final = 6  # distributions and action dimensions with a figure of their own
MOST_FEATURES: Final = 64


def inspection_files(
    inspection: Inspection, warnings: Sequence[str] = (), names: Sequence[str] | None = None
) -> dict[str, bytes]:
    """All files by path, the page first.

    `warnings` stand above everything else on it; `names` are those of the observation, where the task has any.
    """
    labels = _labels(inspection, names)
    drawn = inspection_figures(inspection, labels)
    page = "".join(f"> **{one_line(warning)}**\n\n" for warning in warnings)
    page += inspection_markdown(inspection, labels, tuple(drawn))
    return {"inspection.md": page.encode(), **{f"{FIGURES}/{name}.svg": svg.encode() for name, svg in drawn.items()}}


def _labels(inspection: Inspection, names: Sequence[str] | None) -> tuple[str, ...]:
    """One name a feature; `observation[3]` where the task names none."""
    if names is not None and len(names) == len(inspection.features):
        return tuple(one_line(name) for name in names)
    return tuple(f"observation[{f.index}]" for f in inspection.features)


def inspection_figures(inspection: Inspection, labels: Sequence[str]) -> dict[str, str]:
    """Name -> SVG: outcomes by scenario, distributions with their outliers, actions, features against their bounds."""
    drawn = {}
    if all(Metric.SUCCESS in s.means for s in inspection.scenarios):
        outcomes = [(s.scenario, s.means[Metric.SUCCESS], s.means.get(Metric.COLLISION)) for s in inspection.scenarios]
        drawn["scenarios"] = scenario_bars(outcomes)
    for d in inspection.distributions[:MOST_DRAWN]:
        marks = [o.value for o in inspection.outliers if o.figure == d.name]
        h = d.histogram
        drawn[f"episodes-{_slug(d.name)}"] = histogram(
            f"episodes-{_slug(d.name)}",
            h.edges,
            h.counts,
            words(d.name),
            f"{words(d.name)} per episode",
            "episodes",
            marks,
        )
    for index, h in enumerate(inspection.actions[:MOST_DRAWN]):
        drawn[f"action-{index}"] = histogram(f"action-{index}", h.edges, h.counts, f"labels, {h.name}", h.name, "steps")
    features = inspection.features[:MOST_FEATURES]
    drawn["features"] = ranges(
        "features",
        labels[:MOST_FEATURES],
        np.array([[f.min, f.mean - f.std, f.mean, f.mean + f.std, f.max] for f in features]),
        [(f.low, f.high) for f in features],
    )
    return {name: _on_white(svg) for name, svg in drawn.items()}


def inspection_markdown(inspection: Inspection, labels: Sequence[str], figures: tuple[str, ...] = ()) -> str:
    """The page; `figures` are names of figures to show."""
    i = inspection
    lines = [
        f"# Dataset {one_line(i.dataset_id)}",
        "",
        f"{i.episodes:,} episodes, {i.steps:,} steps. Demonstrations: {one_line(i.origin)}.",
        "",
        *_outliers(i),
    ]
    lines += ["## Per episode", "", _distributions(i.distributions), ""]
    lines += ["## By scenario", "", _scenarios(i), ""]
    constant = [label for label, f in zip(labels, i.features, strict=True) if f.constant]
    if constant:
        lines += [f"Constant over the whole dataset: {', '.join(constant)}.", ""]
    lines += ["## Observation features", "", _features(i, labels), ""]
    lines += [f"![{words(name)}]({FIGURES}/{name}.svg)\n" for name in figures]
    return "\n".join(lines)


def _outliers(i: Inspection) -> list[str]:
    if not i.outliers:
        return ["No episode stands out by return, length or action jerk.", ""]
    rows = [
        [str(o.episode), o.scenario, str(o.seed), words(o.figure), number(o.value), number(o.median), f"{o.score:+.1f}"]
        for o in i.outliers[:MOST_OUTLIERS]
    ]
    header = ["episode", "scenario", "seed", "figure", "value", "median", "robust z"]
    more = len(i.outliers) - len(rows)
    tail = [f"and {more} more", ""] if more > 0 else []
    episodes = len({o.episode for o in i.outliers})
    title = f"## {episodes} of {i.episodes} episodes stand out"
    return [title, "", markdown_table(header, rows, numbers_from=4), "", *tail]


def _distributions(distributions: tuple[Distribution, ...]) -> str:
    rows = [
        [words(d.name), *(number(v) for v in (d.mean, d.std, d.min, *d.percentiles.values(), d.max))]
        for d in distributions
    ]
    percentiles = [f"p{p}" for p in distributions[0].percentiles]
    return markdown_table(["figure", "mean", "std", "min", *percentiles, "max"], rows)


def _scenarios(i: Inspection) -> str:
    names = list(dict.fromkeys(name for s in i.scenarios for name in s.means))
    rows = [[s.scenario, str(s.episodes), *(number(s.means.get(name)) for name in names)] for s in i.scenarios]
    return markdown_table(["scenario", "episodes", *(words(name) for name in names)], rows)


def _features(i: Inspection, labels: Sequence[str]) -> str:
    rows = [
        [label, *(number(v) for v in (f.mean, f.std, f.min, f.max, f.low, f.high))]
        for label, f in zip(labels[:MOST_FEATURES], i.features, strict=False)
    ]
    table = markdown_table(["feature", "mean", "std", "min", "max", "space low", "space high"], rows)
    more = len(i.features) - len(rows)
    return f"{table}\n\nand {more} more" if more > 0 else table


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _on_white(svg: str) -> str:
    return for_file(svg).replace("<svg ", '<svg style="background:#ffffff" ', 1)

"""Markdown pages of single stages: the gate's decision, the diagnosis of a training, evaluated episodes, datasets.

The decisions and numbers are made elsewhere; what each page says is written in `templates/<page>.md`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from pipeline.learning.diagnosis import ADVICE, Diagnosis
from pipeline.names import Metric
from pipeline.play.evaluation import EpisodeRecords, summarise, summarise_by_scenario
from pipeline.report.inspection_figures import histogram, ranges, scenario_bars
from pipeline.report.palette import for_file
from pipeline.report.text import markdown_page, words
from pipeline.validation.inspection import Inspection

BAR_CHARACTERS: Final = 24
STRIP: Final = "·▁▂▃▄▅▆▇█"  # a bar of one character: nothing, and up to the tallest
MOST_OUTLIERS: Final = 30
MOST_DRAWN: Final = 6  # distributions and action dimensions with a figure of their own
MOST_FEATURES: Final = 64


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """What a training over several seeds missed, where, by how much, and what to try."""
    missed = diagnosis.shortfalls
    trends = {trend: [s for s in missed if s.trend == trend] for trend in dict.fromkeys(s.trend for s in missed)}
    worst = [s.worst_scenario for s in missed]
    common = max(dict.fromkeys(worst), key=worst.count, default="")
    return markdown_page(
        "diagnosis", diagnosis=diagnosis, trends=trends, advice=ADVICE, worst=common, times=worst.count(common)
    )


def statistics_table(records: EpisodeRecords, outcomes: bool = True, strips: bool = False) -> str:
    """Episodes: steps and return, outcomes and figures with 95 % intervals, scenarios, actions.

    `outcomes`: of steps, return and actions alone where they are left out; `strips`: how often which action was taken,
    as one line a dimension for a console, not as a table.
    """
    histogram, actions, lines = records.action_histogram, [], []
    for dimension, counts in enumerate([] if histogram is None else histogram.counts):
        shares = counts / max(1, counts.sum())
        tallest = max(float(shares.max()), 1e-12)
        edges = None if histogram is None or histogram.edges is None else histogram.edges[dimension]
        if strips:
            low, high = (0, len(counts) - 1) if edges is None else (f"{edges[0]:.3g}", f"{edges[-1]:.3g}")
            levels = np.ceil(shares / tallest * (len(STRIP) - 1)).astype(int)
            lines.append((f"action[{dimension}]", low, high, "".join(STRIP[level] for level in levels)))
            continue
        bins = range(len(counts)) if edges is None else [f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges)]
        bars = ["█" * int(np.ceil(share / tallest * BAR_CHARACTERS)) for share in shares]
        actions.append(list(zip(bins, map("{:.1%}".format, shares), bars, strict=True)))
    return markdown_page(
        "episodes",
        records=records,
        summary=summarise(records),
        by_scenario=summarise_by_scenario(records) if outcomes else None,
        actions=actions,
        strips=lines,
    )


def inspection_files(
    inspection: Inspection, warnings: Sequence[str] = (), names: Sequence[str] | None = None
) -> dict[str, bytes]:
    """A dataset inspection for people, all files by path: `inspection.md`, `figures/return.svg`, ...

    `warnings` stand above everything else; `names` are those of the observation, where the task has any.
    """
    if names is None or len(names) != len(inspection.features):
        names = [f"observation[{f.index}]" for f in inspection.features]
    drawn = {}
    if all(Metric.SUCCESS in s.means for s in inspection.scenarios):
        outcomes = [(s.scenario, s.means[Metric.SUCCESS], s.means.get(Metric.COLLISION)) for s in inspection.scenarios]
        drawn["scenarios"] = scenario_bars(outcomes)
    for d in inspection.distributions[:MOST_DRAWN]:
        name = f"episodes-{''.join(c if c.isalnum() else '-' for c in d.name)}"
        marks = [o.value for o in inspection.outliers if o.figure == d.name]
        title = words(d.name)
        drawn[name] = histogram(
            name, d.histogram.edges, d.histogram.counts, title, f"{title} per episode", "episodes", marks
        )
    for index, h in enumerate(inspection.actions[:MOST_DRAWN]):
        drawn[f"action-{index}"] = histogram(f"action-{index}", h.edges, h.counts, f"labels, {h.name}", h.name, "steps")
    features = inspection.features[:MOST_FEATURES]
    drawn["features"] = ranges(
        "features",
        names[:MOST_FEATURES],
        np.array([[f.min, f.mean - f.std, f.mean, f.mean + f.std, f.max] for f in features]),
        [(f.low, f.high) for f in features],
    )
    page = markdown_page(
        "inspection",
        i=inspection,
        warnings=warnings,
        features=list(zip(names, inspection.features, strict=True)),
        figures_of_scenarios=dict.fromkeys(name for s in inspection.scenarios for name in s.means),
        figures=tuple(drawn),
        most_outliers=MOST_OUTLIERS,
        most_features=MOST_FEATURES,
    )
    return {"inspection.md": page.encode(), **{f"figures/{name}.svg": for_file(svg) for name, svg in drawn.items()}}

"""Tables of evaluated episodes: steps, return, outcomes, scenarios, actions."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.names import Metric
from pipeline.play.evaluation import ActionHistogram, EpisodeRecords, summarise, summarise_by_scenario
from pipeline.report.text import interval, markdown_table, number
from pipeline.statistics import Estimate

BAR_CHARACTERS = 24


def statistics_table(records: EpisodeRecords, seed: int = 0) -> str:
    """Episodes as Markdown: steps and return, outcomes and figures with 95 % intervals, scenarios, actions."""
    summary = summarise(records, seed)
    outcomes = [_figures_table(summary), _scenario_table(summarise_by_scenario(records, seed))]
    return _page(records, [_distribution_table(summary), *outcomes])


def rollout_table(records: EpisodeRecords, seed: int = 0) -> str:
    """The same without outcomes and scenarios: steps, return and actions."""
    return _page(records, [_distribution_table(summarise(records, seed))])


def _page(records: EpisodeRecords, tables: Sequence[str]) -> str:
    title = f"{len(records.episodes)} episodes, {records.steps:,} environment steps; [95 % bootstrap interval]"
    actions = [] if records.action_histogram is None else [_action_table(records.action_histogram)]
    return "\n\n".join([title, *tables, *actions]) + "\n"


def _distribution_table(summary: Mapping[str, Estimate]) -> str:
    names = {"steps": Metric.LENGTH, "return": Metric.RETURN}
    figures = ("mean", "median", "std", "min", "max", "p5", "p95")
    rows = [
        [label, interval(summary[f"{name}_mean"]), *(number(summary[f"{name}_{f}"].value) for f in figures[1:])]
        for label, name in names.items()
    ]
    return markdown_table(["per episode", *figures], rows)


def _figures_table(summary: Mapping[str, Estimate]) -> str:
    own = (f"{Metric.LENGTH}_", f"{Metric.RETURN}_")
    rows = [
        [name, number(e.value), number(e.low), number(e.high)]
        for name, e in summary.items()
        if not name.startswith(own)
    ]
    return markdown_table(["figure", "mean", "95 % low", "95 % high"], rows)


def _scenario_table(by_scenario: Mapping[str, Mapping[str, Estimate]]) -> str:
    columns = (Metric.SUCCESS_RATE, Metric.COLLISION_RATE, f"{Metric.RETURN}_mean", f"{Metric.LENGTH}_mean")
    rows = [[name, *(interval(summary.get(c)) for c in columns)] for name, summary in by_scenario.items()]
    return markdown_table(["scenario", *columns], rows)


def _action_table(histogram: ActionHistogram) -> str:
    """One row a bin: its range (or the discrete action), its share of the steps, and a bar."""
    tables = []
    for dimension, counts in enumerate(histogram.counts):
        shares = counts / max(1, counts.sum())
        edges = None if histogram.edges is None else histogram.edges[dimension]
        tallest = max(float(shares.max()), 1e-12)
        rows = [
            [_bin(edges, i), f"{share:.1%}", "█" * int(np.ceil(share / tallest * BAR_CHARACTERS))]
            for i, share in enumerate(shares)
        ]
        name = "action" if len(histogram.counts) == 1 else f"action[{dimension}]"
        tables.append(markdown_table([name, "share", "of the steps"], rows, 3))
    return "\n\n".join(tables)


def _bin(edges: np.ndarray | None, index: int) -> str:
    return str(index) if edges is None else f"{edges[index]:.3g} to {edges[index + 1]:.3g}"

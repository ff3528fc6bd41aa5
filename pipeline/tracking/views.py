"""Views of an experiment's runs that the UI offers under `Views` and by URL: columns, order, search, grouping, charts.

MLflow keeps a saved view in a tag of the experiment, whose name ends with the view's id.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

from pipeline.names import CONTROLS, EVAL_PREFIX, Arm, Artifact, Metric, Tag

VIEW_PREFIX: Final = "mlflow.sharedViewState."
FINAL: Final = {arm: f"final/{Metric.SUCCESS_RATE}_{arm}" for arm in (Arm.PRETRAINED, Arm.SCRATCH)}  # of a run of main
CHART_PIXELS: Final = 420  # in height


def saved_view(
    name: str,
    search: str,
    columns: Sequence[str],
    order: str = "",
    group_by: Sequence[tuple[str, str]] = (),
    chart: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the UI shows; columns as a search names them (metrics.`a/b`), highest `order` first, grouped by `group_by`.

    Without an order the newest run comes first; with one, none is nested in another. A `chart` (settings of MLflow's
    card) stands alone where the UI shows charts in the place of a list.
    """
    state: dict[str, Any] = {"searchFilter": search, "selectedColumns": [*columns], "columnOrder": [*columns]}
    if order:
        state |= {"orderByKey": order, "orderByAsc": False}
    if group_by:
        keys = [{"mode": mode, "groupByData": name} for mode, name in group_by]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": keys}
    if chart is not None:
        section = {"uuid": "section", "name": name, "display": True, "isReordered": True}
        card = {"uuid": "chart", "metricSectionId": "section", "deleted": False, "isGenerated": False, **chart}
        state |= {
            "compareRunSections": [{**section, "columns": 1, "cardHeight": CHART_PIXELS}],
            "compareRunCharts": [card],
            "isAccordionReordered": True,
            "runListHidden": True,
            # else the UI adds a chart of every metric; a film passes whatever is searched for
            "chartsSearchFilter": f"^{chart.get('metricKey') or chart['imageKeys'][0]}$",
        }
    return {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}


_trained = [f"metrics.`{name}`" for name in ("final/success_rate", "final/collision_rate", Metric.ENVIRONMENT_STEPS)]
_trainings, _best_first = f"tags.{Tag.STAGE} LIKE '%_seed'", "metrics.`final/success_rate`"
_arms_of_a_group = (("param", "arm"), ("tag", Tag.GROUP))  # a mean over several comparisons says nothing
VIEWS: Final = {
    "comparisons": saved_view(
        "What main came to",
        f"tags.{Tag.STAGE} = 'main'",
        [
            *(f"tags.`{name}`" for name in (Tag.TASK, Tag.VERDICT, Tag.COMPARISON)),
            *(f"metrics.`{Metric.RATIO}{end}`" for end in ("", "_ci_low", "_ci_high")),
            *(f"metrics.`{name}`" for name in FINAL.values()),
        ],
    ),
    "arms": saved_view(
        "Arms: mean over seeds",
        "params.arm != ''",
        ["params.`arm`", f"tags.`{Tag.TASK}`", f"tags.`{Tag.GROUP}`", *_trained],
        group_by=_arms_of_a_group,
    ),
    "curves": saved_view(
        "Arms: success by step",
        " AND ".join(f"params.arm != '{control}'" for control in CONTROLS),
        ["params.`arm`", f"tags.`{Tag.TASK}`", f"tags.`{Tag.GROUP}`", *_trained],
        group_by=_arms_of_a_group,
        chart={"type": "LINE", "metricKey": f"{EVAL_PREFIX}{Metric.SUCCESS_RATE}", "lineSmoothness": 0},
    ),
    "trainings": saved_view(
        "Trainings by success", _trainings, ["params.`arm`", "params.`seed`", *_trained], order=_best_first
    ),
    "films": saved_view(
        "Films by step",
        f"{_trainings} AND tags.`{MLFLOW_LOGGED_IMAGES}` = 'true'",
        ["params.`arm`", "params.`seed`", *_trained],
        order=_best_first,
        chart={"type": "IMAGE", "imageKeys": [Artifact.PLAYBACK], "step": 0, "showRunParams": False},
    ),
}
VIEW_TAGS: Final = {f"{VIEW_PREFIX}{key}": json.dumps(view) for key, view in VIEWS.items()}  # of an experiment
CHARTS: Final = ("curves", "films")


def view_address(experiment_id: str, view: str) -> str:
    """What stands behind the server's address when the UI shows one of the views."""
    if view not in VIEWS:
        raise ValueError(f"view {view!r}: there are {', '.join(VIEWS)}")
    shown_as = "CHART" if view in CHARTS else "TABLE"
    runs = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode={shown_as}"
    return f"{runs}&viewStateShareKey={view}"

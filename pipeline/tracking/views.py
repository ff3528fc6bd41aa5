"""Views of an experiment's runs that the UI offers under `Views` and by URL: columns, order, search and grouping.

MLflow keeps a saved view in a tag of the experiment, whose name ends with the view's id.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from pipeline.names import Arm, Metric, Tag

VIEW_PREFIX: Final = "mlflow.sharedViewState."
RATIO: Final = "sample_efficiency/ratio"
FINAL: Final = {arm: f"final/{Metric.SUCCESS_RATE}_{arm}" for arm in (Arm.PRETRAINED, Arm.SCRATCH)}  # of a run of main


def saved_view(
    name: str, search: str, columns: Sequence[str], order: str = "", group_by: str | None = None
) -> dict[str, Any]:
    """What the UI shows; columns as a search names them (metrics.`a/b`), highest `order` first, grouped by a parameter.

    Without an order the newest run comes first.
    """
    state: dict[str, Any] = {"searchFilter": search, "selectedColumns": [*columns], "columnOrder": [*columns]}
    if order:
        state |= {"orderByKey": order, "orderByAsc": False}
    if group_by is not None:
        keys = [{"mode": "param", "groupByData": group_by}]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": keys}
    return {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}


_trained = [f"metrics.`{name}`" for name in ("final/success_rate", "final/collision_rate", Metric.ENVIRONMENT_STEPS)]
VIEWS: Final = {
    "comparisons": saved_view(
        "What main came to",
        f"tags.{Tag.STAGE} = 'main'",
        [
            *(f"tags.`{name}`" for name in (Tag.TASK, Tag.VERDICT, Tag.COMPARISON)),
            *(f"metrics.`{name}`" for name in (RATIO, f"{RATIO}_ci_low", f"{RATIO}_ci_high", *FINAL.values())),
        ],
    ),
    "arms": saved_view("Arms: mean over seeds", "params.arm != ''", ["params.`arm`", *_trained], group_by="arm"),
    "trainings": saved_view(
        "Trainings by success",
        f"tags.{Tag.STAGE} LIKE '%_seed'",
        ["params.`arm`", "params.`seed`", *_trained],
        order="metrics.`final/success_rate`",
    ),
}


def view_tags() -> dict[str, str]:
    """The tags of an experiment that hold the views."""
    return {f"{VIEW_PREFIX}{key}": json.dumps(view) for key, view in VIEWS.items()}


def view_address(experiment_id: str, view: str) -> str:
    """What stands behind the server's address when the UI shows one of the views."""
    if view not in VIEWS:
        raise ValueError(f"view {view!r}: there are {', '.join(VIEWS)}")
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}"

"""What must not be trusted any more, because something that it came from turned out to be wrong."""

from mlflow import MlflowClient

from pipeline.names import Tag
from pipeline.tracking import registry
from pipeline.tracking.lineage import downstream, resolve


def spread(client: MlflowClient, reference: str, reason: str) -> list[str]:
    """Mark every run that came from a dataset, run or version, and every registered version that such a run made.

    A tainted version that is approved loses the alias. What `reference` names carries its own status and is not marked.
    Returns lines for people.
    """
    start = {run.info.run_id for run in resolve(client, reference)}
    runs = [node.run_id for node in downstream(client, reference).nodes if node.run_id not in start]
    for run_id in runs:
        client.set_tag(run_id, Tag.TAINT, reason)
    lines = [f"  tainted: {len(runs)} runs that came from it"] if runs else []
    for run_id in runs:
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            withdrawn = registry.taint(client, version.name, version.version, reason)
            lines.append(
                f"  tainted: {version.name}/{version.version}"
                + ("; it was approved, the alias is withdrawn" if withdrawn else "")
            )
    return lines

"""What must not be trusted any more, because something that it came from turned out to be wrong."""

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.names import Alias, Gate, Tag, VersionTag
from pipeline.tracking.lineage import downstream
from pipeline.tracking.store import exclusive


def spread(client: MlflowClient, source: Run, reason: str) -> list[str]:
    """Mark every run that came from `source`, and every registered version made by one; returns lines for people.

    A tainted version that holds the alias `approved` loses it. The source itself carries its own status.
    """
    reached = downstream(client, source.info.run_id)
    runs = [node.run_id for node in reached.nodes if node.run_id != source.info.run_id]
    for run_id in runs:
        client.set_tag(run_id, Tag.TAINT, reason)
    lines = [f"  tainted: {len(runs)} runs that came from it"] if runs else []
    with exclusive("registry"):
        for run_id in runs:
            for version in client.search_model_versions(f"run_id = '{run_id}'"):
                lines.append(_taint_version(client, version.name, version.version, reason))
    return lines


def spread_from_version(client: MlflowClient, name: str, version: str, reason: str) -> list[str]:
    """Mark everything that was made from a registered version."""
    reached = downstream(client, f"{name}/{version}")
    made_from = {target for _, target in reached.edges}
    runs = [node.run_id for node in reached.nodes if node.run_id in made_from and node.stage != "promote"]
    for run_id in runs:
        client.set_tag(run_id, Tag.TAINT, reason)
    lines = [f"  tainted: {len(runs)} runs that came from it"] if runs else []
    with exclusive("registry"):
        for run_id in runs:
            for found in client.search_model_versions(f"run_id = '{run_id}'"):
                lines.append(_taint_version(client, found.name, found.version, reason))
    return lines


def _taint_version(client: MlflowClient, name: str, version: str, reason: str) -> str:
    client.set_model_version_tag(name, version, VersionTag.TAINT, reason)
    current = client.get_model_version(name, version)
    if Alias.APPROVED not in current.aliases:
        return f"  tainted: {name}/{version}"
    client.delete_registered_model_alias(name, Alias.APPROVED)
    client.set_model_version_tag(name, version, VersionTag.GATE, Gate.REFUSED)
    client.set_model_version_tag(name, version, VersionTag.GATE_REASON, reason)
    return f"  tainted: {name}/{version}; it was approved, the alias is withdrawn"

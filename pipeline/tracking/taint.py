"""What must not be trusted any more, because something that it came from turned out to be wrong.

The mark is the tag `taint` with the reason, on runs and registered versions. It is never taken off: a result that came
from bad data stays what it is, and whoever needs a good one makes it anew.
"""

from typing import Final

from mlflow import MlflowClient

from pipeline.errors import BadInput
from pipeline.names import Tag, VersionTag
from pipeline.tracking import registry
from pipeline.tracking.lineage import derived, resolve, upstream
from pipeline.tracking.models import StoredPolicy
from pipeline.tracking.runs import get_run
from pipeline.tracking.stage_run import StageRun
from pipeline.tracking.store import pages

JUDGES: Final = ("promote", "validate", "playback", "reproduce")  # stages that look at a thing and make nothing of it


def spread(client: MlflowClient, reference: str, reason: str) -> list[str]:
    """Mark every run that came from a dataset, run or version, and every registered version that such a run made.

    A tainted version that is approved loses the alias. What `reference` names carries its own status and is not marked;
    neither is its repaired copy. The first reason stays. Returns lines for people.
    """
    start = {run.info.run_id for run in resolve(client, reference)}
    found = [run for run in derived(client, reference) if run.info.run_id not in start]
    runs = [run for run in found if run.data.tags.get(Tag.STAGE) not in JUDGES]
    for run in runs:
        if Tag.TAINT not in run.data.tags:
            client.set_tag(run.info.run_id, Tag.TAINT, reason)
    lines = [f"  tainted: {len(runs)} runs that came from it"] if runs else []
    for run in found:
        for version in pages(client.search_model_versions, f"run_id = '{run.info.run_id}'"):
            withdrawn = registry.taint(client, version.name, version.version, reason)
            lines.append(
                f"  tainted: {version.name}/{version.version}"
                + ("; it was approved, the alias is withdrawn" if withdrawn else "")
            )
    return lines


def refuse_tainted(client: MlflowClient, policy: StoredPolicy, doing: str) -> None:
    """Raise BadInput when a policy, its registered version or the run that made it is marked."""
    reasons = [] if policy.version is None else [policy.version.tags.get(VersionTag.TAINT)]
    if policy.run_id is not None:
        reasons.append(get_run(client, policy.run_id, "policy").data.tags.get(Tag.TAINT))
    for reason in reasons:
        if reason is not None:
            raise BadInput(f"policy {policy.reference} is tainted: {reason}; {doing} takes another one")


def inherit(run: StageRun) -> tuple[str, ...]:
    """Mark a run that reports on things which are marked, and return why: distinct reasons, the oldest source first.

    Call it when the run's lineage tags are set.
    """
    chain = upstream(run.client, run.run_id).nodes
    reasons = tuple(dict.fromkeys(node.taint for node in chain if node.taint and node.run_id != run.run_id))
    if reasons:
        run.tag({Tag.TAINT: "; ".join(reasons)[:4_000]})
    return reasons

"""The registry's state machine: candidate -> approved | refused, approved -> superseded | refused, and roll back.

Every change runs under one lock per store, reads before it writes, and leaves tags that say what was replaced by what.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from pipeline.errors import BadInput
from pipeline.names import Alias, Gate, VersionTag, registered_model
from pipeline.tracking.store import exclusive, refuses
from pipeline.validation.rules import Approval


@dataclass(frozen=True)
class Moved:
    """What a promotion or a roll back changed."""

    version: str
    replaced: str | None  # the version that held the alias before
    at: str  # UTC, ISO 8601


def register_candidate(
    client: MlflowClient,
    task: str,
    source: str,
    run_id: str,
    digest: str,
    promotable: bool,
    description: str,
    again: bool = False,
) -> ModelVersion:
    """A new version of the task's expert with alias `candidate` and gate `pending`.

    `again`: the run may have come this far before it was interrupted; then its version of this digest is the one.
    """
    name = registered_model(task)
    with exclusive("registry"):
        try:
            client.create_registered_model(
                name, description=f"Experts of task {task}: policies that demonstrations are recorded from."
            )
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        version = _registered(client, name, run_id, digest) if again else None
        if version is None:
            tags = {
                VersionTag.GATE: Gate.PENDING,
                VersionTag.POLICY_DIGEST: digest,
                VersionTag.TASK: task,
                VersionTag.PROMOTABLE: str(promotable).lower(),
            }
            version = client.create_model_version(name, source, run_id, tags=tags, description=description)
        client.set_registered_model_alias(name, Alias.CANDIDATE, version.version)
    return client.get_model_version(name, version.version)


def _registered(client: MlflowClient, name: str, run_id: str, digest: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return next((version for version in found if version.tags.get(VersionTag.POLICY_DIGEST) == digest), None)


def approved_version(client: MlflowClient, task: str) -> ModelVersion | None:
    """The version that holds the alias `approved`, or None."""
    return _holder(client, registered_model(task))


def require_approved(version: ModelVersion, doing: str) -> None:
    """Raise BadInput unless the version holds the alias `approved` and passed the gate."""
    reference = f"{version.name}/{version.version}"
    state = version.tags.get(VersionTag.GATE, "no gate record")
    if VersionTag.TAINT in version.tags:
        raise BadInput(f"expert {reference} is tainted: {version.tags[VersionTag.TAINT]}; {doing} takes another one")
    if state != Gate.APPROVED or Alias.APPROVED not in version.aliases:
        raise BadInput(
            f"expert {reference} is not approved (gate: {state}); {doing} takes only the approved version: "
            "mlflow run . -e promote"
        )


def moment_of_use(client: MlflowClient, version: ModelVersion, doing: str) -> str:
    """A moment, now, at which this version is the approved one: what is made from it is dated by that.

    Raises BadInput when it is not, any more.
    """
    with exclusive("registry"):
        require_approved(client.get_model_version(version.name, version.version), doing)
        return _now()


def approve(client: MlflowClient, version: ModelVersion, run_id: str, reason: str) -> Moved:
    """Move the alias `approved` to this version; the one that held it becomes `superseded`, on record in both."""
    with exclusive("registry"):
        return _move_approval(client, version, run_id, reason)


def refuse(client: MlflowClient, version: ModelVersion, run_id: str, reason: str) -> bool:
    """Record a refusal; no alias moves. True when the version had been approved before: what came from it is in doubt.

    A version that holds the alias `approved` keeps it, and nobody may record from it until the gate approves one again.
    """
    with exclusive("registry"):
        current = client.get_model_version(version.name, version.version)
        tags = {VersionTag.GATE: Gate.REFUSED, VersionTag.GATE_REASON: reason, VersionTag.GATE_RUN_ID: run_id}
        approved_before = VersionTag.APPROVED_AT in current.tags
        if approved_before:
            tags[VersionTag.HISTORY] = json.dumps(_ended(current, _now()))
        _tag(client, current, tags)
    return approved_before


def roll_back(client: MlflowClient, version: ModelVersion, run_id: str, reason: str) -> Moved:
    """Give the alias back to a version that was approved before. Raises BadInput for any other."""
    with exclusive("registry"):
        current = client.get_model_version(version.name, version.version)
        reference = f"{version.name}/{version.version}"
        if Alias.APPROVED in current.aliases:
            raise BadInput(f"roll back to {reference}: it is the approved version already")
        if VersionTag.APPROVED_AT not in current.tags:
            raise BadInput(
                f"roll back to {reference}: it was never approved (gate: {current.tags.get(VersionTag.GATE)}); "
                "name an earlier approved version"
            )
        if VersionTag.TAINT in current.tags:
            raise BadInput(f"roll back to {reference}: it is tainted: {current.tags[VersionTag.TAINT]}")
        if current.tags.get(VersionTag.GATE) == Gate.REFUSED:
            raise BadInput(f"roll back to {reference}: it was refused since: {current.tags[VersionTag.GATE_REASON]}")
        moved = _move_approval(client, current, run_id, reason)
        if moved.replaced is not None:
            left = client.get_model_version(version.name, moved.replaced)
            _tag(client, left, {VersionTag.GATE_REASON: reason})
    return moved


def taint(client: MlflowClient, name: str, version: str, reason: str) -> bool:
    """Mark a version as not to be trusted; an approved one loses the alias. True when an approval was withdrawn."""
    with exclusive("registry"):
        current = client.get_model_version(name, version)
        tags = {VersionTag.TAINT: reason}
        approved = Alias.APPROVED in current.aliases
        if approved:
            history = json.dumps(_ended(current, _now()))
            tags |= {VersionTag.GATE: Gate.REFUSED, VersionTag.GATE_REASON: reason, VersionTag.HISTORY: history}
        _tag(client, current, tags)
        if approved:  # last: until then the same call does all of it again
            client.delete_registered_model_alias(name, Alias.APPROVED)
    return approved


def approvals(client: MlflowClient, task: str) -> tuple[Approval, ...]:
    """Every period during which a version of the task's expert was approved, oldest first."""
    periods = [
        Approval(str(version.version), version.tags[VersionTag.POLICY_DIGEST], since, until)
        for version in client.search_model_versions(f"name = '{registered_model(task)}'")
        for since, until in _history(version)
    ]
    return tuple(sorted(periods, key=lambda period: period.since))


def _move_approval(client: MlflowClient, version: ModelVersion, run_id: str, reason: str) -> Moved:
    """Under the lock. The alias moves last but one: until then readers see the old approval, whole."""
    before = _holder(client, version.name)
    _settle_interrupted(client, version.name, before)
    # a version's number is an int from a database and a str from a server
    replaced = str(before.version) if before is not None and str(before.version) != str(version.version) else None
    now = _now()
    current = client.get_model_version(version.name, version.version)
    # a version that is approved again while it is approved goes on in its open period
    history = _history(current)
    if not any(until is None for _, until in history):
        history.append((now, None))
    tags = {
        VersionTag.GATE: Gate.APPROVED,
        VersionTag.GATE_REASON: reason,
        VersionTag.GATE_RUN_ID: run_id,
        VersionTag.APPROVED_AT: now,
        VersionTag.HISTORY: json.dumps(history),
    }
    if replaced is not None:
        tags[VersionTag.REPLACED] = replaced
    _tag(client, current, tags)
    client.set_registered_model_alias(version.name, Alias.APPROVED, version.version)
    if before is not None and replaced is not None:
        _supersede(client, before, str(version.version), now)
    return Moved(str(version.version), replaced, now)


def _supersede(client: MlflowClient, version: ModelVersion, by: str, at: str) -> None:
    tags = {VersionTag.REPLACED_BY: by, VersionTag.HISTORY: json.dumps(_ended(version, at))}
    if version.tags.get(VersionTag.GATE) != Gate.REFUSED:  # a refusal stays on record
        tags[VersionTag.GATE] = Gate.SUPERSEDED
    _tag(client, version, tags)


def _settle_interrupted(client: MlflowClient, name: str, holder: ModelVersion | None) -> None:
    """End what a process that was killed, or a store that took no more, left half done: the alias says what holds.

    A version that says it is approved without the alias was either replaced by the holder, or never got that far.
    """
    for version in client.search_model_versions(f"name = '{name}' and tags.`{VersionTag.GATE}` = '{Gate.APPROVED}'"):
        number = str(version.version)
        if holder is None or str(holder.version) != number:
            if holder is not None and holder.tags.get(VersionTag.REPLACED) == number:
                _supersede(client, version, str(holder.version), holder.tags[VersionTag.APPROVED_AT])
            else:
                closed = [period for period in _history(version) if period[1] is not None]
                reason = "its approval was interrupted: it never became the approved version"
                tags = {VersionTag.HISTORY: json.dumps(closed), VersionTag.GATE_REASON: reason}
                _tag(client, version, {**tags, VersionTag.GATE: Gate.PENDING})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _history(version: ModelVersion) -> list[tuple[str, str | None]]:
    return [(since, until) for since, until in json.loads(version.tags.get(VersionTag.HISTORY, "[]"))]


def _ended(version: ModelVersion, now: str) -> list[tuple[str, str]]:
    """Its periods of approval, the open one closed."""
    return [(since, until or now) for since, until in _history(version)]


def _holder(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, Alias.APPROVED)
    except MlflowException as error:
        if not refuses(error):  # only an answer says that nobody holds it
            raise
        return None


def _tag(client: MlflowClient, version: ModelVersion, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)

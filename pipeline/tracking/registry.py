"""The registry's state machine: candidate -> approved | refused, approved -> superseded | refused, and roll back.

The alias `candidate` is on what waits: a version that is approved, or gives way, loses it; a refused one does not.

Every change runs under one lock per store, reads before it writes, and leaves tags that say what was replaced by what.
Tags are input like any other: whoever may write to the store may have written them. A record that cannot be read is
told in one line to whoever asks for that version, and concerns no other.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from pipeline.errors import BadInput, shortened
from pipeline.names import Alias, Gate, VersionTag, registered_model
from pipeline.tracking.store import exclusive, pages, refuses

LOGGED_MODEL = "models:/m-"  # how the address of one begins
EVIDENCE = "## What the gate found"
MOST_CHARACTERS = 5_000  # of a description in the registry


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
        made = pages(client.search_model_versions, f"name = '{name}' and run_id = '{run_id}'") if again else ()
        version = next((found for found in made if found.tags.get(VersionTag.POLICY_DIGEST) == digest), None)
        if version is None:
            tags = {
                VersionTag.GATE: Gate.PENDING,
                VersionTag.POLICY_DIGEST: digest,
                VersionTag.TASK: task,
                VersionTag.PROMOTABLE: str(promotable).lower(),
            }
            # a server takes a logged model for a source only where the request names it as well
            model_id = source.removeprefix("models:/") if source.startswith(LOGGED_MODEL) else None
            version = client.create_model_version(
                name, source, run_id, tags=tags, description=description, model_id=model_id
            )
        client.set_registered_model_alias(name, Alias.CANDIDATE, version.version)
    return client.get_model_version(name, version.version)


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
            "mlflow run . -e promote --env-manager local"
        )
    missing = [tag for tag in (VersionTag.GATE_RUN_ID, VersionTag.POLICY_DIGEST) if tag not in version.tags]
    if not missing and all(until is not None for _, until in history_of(version)):
        missing = [f"{VersionTag.HISTORY} with an open period"]
    if missing:
        raise BadInput(
            f"expert {reference} is not approved: its tags say so without {missing[0]}, which the gate writes; "
            f"{doing} takes only what the gate approved: mlflow run . -e promote --env-manager local "
            f"-P expert={version.version}"
        )


def moment_of_use(client: MlflowClient, version: ModelVersion, doing: str) -> str:
    """A moment, now, at which this version is the approved one: what is made from it is dated by that.

    Raises BadInput when it is not, any more.
    """
    with exclusive("registry"):
        approved = client.get_model_version(version.name, version.version)
        require_approved(approved, doing)
        # of whoever approved it the clock may be ahead of this machine's
        return max(now(), *(since for since, until in history_of(approved) if until is None))


def approve(
    client: MlflowClient, version: ModelVersion, run_id: str, reason: str, signature: Mapping[str, str] | None = None
) -> Moved:
    """Move the alias `approved` to this version; the one that held it becomes `superseded`, on record in both.

    When the approved version has the same bytes, it is approved anew instead, and this one gives way to it: two that
    train the same expert at the same time do not take the approval from each other.
    """
    with exclusive("registry"):
        holder = _holder(client, version.name)
        if signature is not None:  # it is of this version, whoever has the same bytes
            _tag(client, version, dict(signature))
        if signature is not None or holder is None or not _equal_and_sound(holder, version):
            return _move_approval(client, version, run_id, reason)
        moved = _move_approval(client, holder, run_id, reason)
        _give_way(client, version, moved.version)
    return moved


def give_way(client: MlflowClient, version: ModelVersion, to: str) -> None:
    """A version that nobody judged, and that has the bytes of the approved version `to`, is superseded by it."""
    with exclusive("registry"):
        current = client.get_model_version(version.name, version.version)
        if current.tags.get(VersionTag.GATE) == Gate.PENDING:
            _give_way(client, current, to)


def _give_way(client: MlflowClient, version: ModelVersion, to: str) -> None:
    reason = f"it has the bytes of version {to}, which is approved"
    tags = {VersionTag.GATE_REASON: reason, VersionTag.REPLACED_BY: to, VersionTag.GATE: Gate.SUPERSEDED}
    _tag(client, version, tags)
    _waits_no_more(client, version)


def _equal_and_sound(holder: ModelVersion, version: ModelVersion) -> bool:
    """Whether the approved version is another one of the same bytes, with nothing against it."""
    try:
        require_approved(holder, "promote")
    except BadInput:
        return False
    digests = [v.tags.get(VersionTag.POLICY_DIGEST) for v in (holder, version)]
    return str(holder.version) != str(version.version) and digests[0] == digests[1]


def withhold(client: MlflowClient, version: ModelVersion, run_id: str, reason: str, gate: str = Gate.REFUSED) -> bool:
    """Record that the gate refused a version, or passed it and it waits for a signature (`pending`); no alias moves.

    True when it had been approved before: what came from a refused one is in doubt. A version that holds the alias
    `approved` keeps it, and nobody may record from it until the gate approves one again.
    """
    with exclusive("registry"):
        current = client.get_model_version(version.name, version.version)
        tags = {VersionTag.GATE: gate, VersionTag.GATE_REASON: reason, VersionTag.GATE_RUN_ID: run_id}
        approved_before = VersionTag.APPROVED_AT in current.tags
        if approved_before:
            tags |= _ended(current, now())
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
            reason_then = current.tags.get(VersionTag.GATE_REASON, "without a reason on record")
            raise BadInput(f"roll back to {reference}: it was refused since: {reason_then}")
        moved = _move_approval(client, current, run_id, reason)
        if moved.replaced is not None:
            left = client.get_model_version(version.name, moved.replaced)
            _tag(client, left, {VersionTag.GATE_REASON: reason})
    return moved


def describe(client: MlflowClient, version: ModelVersion, evidence: str) -> None:
    """Show the gate's evidence, as Markdown, in a version's description, under what stood there before any gate."""
    origin = (version.description or "").partition(EVIDENCE)[0].rstrip()
    text = f"{origin}\n\n{EVIDENCE}\n{evidence}"
    if len(text) > MOST_CHARACTERS:  # the rest of a long table
        text = f"{text[: MOST_CHARACTERS - 4].rpartition(chr(10))[0]}\n\n…"
    client.update_model_version(version.name, str(version.version), text)


def taint(client: MlflowClient, name: str, version: str, reason: str) -> bool:
    """Mark a version as not to be trusted; an approved one loses the alias. True when an approval was withdrawn."""
    with exclusive("registry"):
        current = client.get_model_version(name, version)
        tags = {VersionTag.TAINT: reason}
        approved = Alias.APPROVED in current.aliases
        if approved:
            tags |= {VersionTag.GATE: Gate.REFUSED, VersionTag.GATE_REASON: reason, **_ended(current, now())}
        _tag(client, current, tags)
        if approved:  # last: until then the same call does all of it again
            client.delete_registered_model_alias(name, Alias.APPROVED)
    return approved


def _move_approval(client: MlflowClient, version: ModelVersion, run_id: str, reason: str) -> Moved:
    """Under the lock. The alias moves last but one: until then readers see the old approval, whole."""
    history_of(client.get_model_version(version.name, version.version))  # before anything changes: can it be read
    before = _holder(client, version.name)
    _settle_interrupted(client, version.name, before)
    # a version's number is an int from a database and a str from a server
    replaced = str(before.version) if before is not None and str(before.version) != str(version.version) else None
    moment = now()
    current = client.get_model_version(version.name, version.version)
    # a version that is approved again while it is approved goes on in its open period
    history = history_of(current)
    if not any(until is None for _, until in history):
        history.append((moment, None))
    tags = {
        VersionTag.GATE: Gate.APPROVED,
        VersionTag.GATE_REASON: reason,
        VersionTag.GATE_RUN_ID: run_id,
        VersionTag.APPROVED_AT: moment,
        VersionTag.HISTORY: json.dumps(history),
    }
    if replaced is not None:
        tags[VersionTag.REPLACED] = replaced
    _tag(client, current, tags)
    client.set_registered_model_alias(version.name, Alias.APPROVED, version.version)
    if before is not None and replaced is not None:
        _supersede(client, before, str(version.version), moment)
    _waits_no_more(client, version)
    return Moved(str(version.version), replaced, moment)


def _waits_no_more(client: MlflowClient, version: ModelVersion) -> None:
    """Take the alias `candidate` from a version, if it has it."""
    if Alias.CANDIDATE in client.get_model_version(version.name, version.version).aliases:
        client.delete_registered_model_alias(version.name, Alias.CANDIDATE)


def _supersede(client: MlflowClient, version: ModelVersion, by: str, at: str) -> None:
    tags = {VersionTag.REPLACED_BY: by, **_ended(version, at)}
    if version.tags.get(VersionTag.GATE) != Gate.REFUSED:  # a refusal stays on record
        tags[VersionTag.GATE] = Gate.SUPERSEDED
    _tag(client, version, tags)


def _settle_interrupted(client: MlflowClient, name: str, holder: ModelVersion | None) -> None:
    """End what a process that was killed, or a store that took no more, left half done: the alias says what holds.

    A version that says it is approved without the alias was either replaced by the holder, or never got that far.
    """
    called_approved = f"name = '{name}' and tags.`{VersionTag.GATE}` = '{Gate.APPROVED}'"
    for version in list(pages(client.search_model_versions, called_approved)):  # all, before the first one changes
        number = str(version.version)
        if holder is None or str(holder.version) != number:
            if holder is not None and holder.tags.get(VersionTag.REPLACED) == number:
                _supersede(client, version, str(holder.version), holder.tags.get(VersionTag.APPROVED_AT) or now())
            else:
                with contextlib.suppress(BadInput):  # a record that cannot be read stays, for people to mend
                    closed = [period for period in history_of(version) if period[1] is not None]
                    _tag(client, version, {VersionTag.HISTORY: json.dumps(closed)})
                reason = "its approval was interrupted: it never became the approved version"
                _tag(client, version, {VersionTag.GATE_REASON: reason, VersionTag.GATE: Gate.PENDING})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def history_of(version: ModelVersion) -> list[tuple[str, str | None]]:
    """Its periods of approval. Raises BadInput for a tag that holds anything else."""
    text = version.tags.get(VersionTag.HISTORY, "[]")
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        data = json.loads(text)
        periods = [(since, until) for since, until in data]
        moments = [datetime.fromisoformat(moment) for period in periods for moment in period if moment is not None]
        if isinstance(data, list) and all(since for since, _ in periods) and all(m.tzinfo for m in moments):
            return periods
    raise BadInput(
        f"{version.name}/{version.version}: its tag {VersionTag.HISTORY} is no list of periods of approval: "
        f"{shortened(text)}; set it back to what it was, or let the gate approve another version"
    )


def _ended(version: ModelVersion, moment: str) -> dict[str, str]:
    """The tag of its periods of approval, the open one closed; nothing when it cannot be read: it stays as it is."""
    try:
        return {VersionTag.HISTORY: json.dumps([(since, until or moment) for since, until in history_of(version)])}
    except BadInput:
        return {}


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

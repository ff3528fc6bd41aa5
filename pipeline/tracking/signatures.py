"""Approval by a person: a signature over what the gate found, held to a list that lies in the team's repository.

Whoever may write to the store can write tags and move aliases; what nobody can write without the private key of an
approver is a signature (Ed25519, RFC 8032) of this statement:

    {"gate": ..., "gate_run_id": ..., "model": ..., "policy_digest": ..., "version": ...}

`gate` is the digest of the gate's diagnostics.json, which holds every rule with its limit and the figure that was held
to it. Each line of the list is `<user> ssh-ed25519 <key>`: an OpenSSH public key behind the name that MLflow records as
the user of a run.
"""

import base64
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_USER

from pipeline.errors import BadInput, shortened
from pipeline.files import digest
from pipeline.names import Artifact, Gate, VersionTag
from pipeline.tracking.runs import get_run, read_text_artifact

SIGN: Final = "mlflow run . -e promote --env-manager local -P sign=<private key> -P expert="


def read_approvers(path: str | Path) -> dict[str, Ed25519PublicKey]:
    """User -> public key. Raises BadInput that names the line."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"approvers: {str(path)!r} cannot be read: {error}") from None
    found: dict[str, Ed25519PublicKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, text = line.strip().partition(" ")
        key: Any = None
        with contextlib.suppress(ValueError, UnsupportedAlgorithm):
            key = serialization.load_ssh_public_key(text.strip().encode())
        if not isinstance(key, Ed25519PublicKey) or user in found:
            raise BadInput(
                f"{path}, line {number}: {shortened(line)} is no further approver; write one line each: "
                "<user> ssh-ed25519 <key>"
            )
        found[user] = key
    return found


def sign(client: MlflowClient, version: ModelVersion, approvers: str, key: str) -> dict[str, str]:
    """The tags of a signature of a version that passed the gate: it waits for one, or was approved without.

    Raises BadInput for any other version, a key that is not an approver's, and an approver's own policy.
    """
    name, state = f"{version.name}/{version.version}", version.tags.get(VersionTag.GATE, "no gate record")
    signed = state == Gate.APPROVED and VersionTag.SIGNATURE in version.tags
    if signed or state not in (Gate.PENDING, Gate.APPROVED) or VersionTag.GATE_RUN_ID not in version.tags:
        remedy = "it is signed" if signed else "let the gate judge it first"
        raise BadInput(f"expert {name} does not wait for a signature (gate: {state}); {remedy}")
    if VersionTag.TAINT in version.tags:
        raise BadInput(f"expert {name} is tainted: {version.tags[VersionTag.TAINT]}")
    statement = _statement(client, version)
    if not json.loads(statement[1])["approved"]:
        raise BadInput(f"expert {name} did not pass the gate (run {version.tags[VersionTag.GATE_RUN_ID]})")
    try:
        private: Any = serialization.load_ssh_private_key(Path(key).expanduser().read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInput(
            f"sign: {key!r} cannot be read as a private OpenSSH key without a passphrase: {error}; make one: "
            "ssh-keygen -t ed25519"
        ) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise BadInput(f"sign: {key!r} is no Ed25519 key; make one: ssh-keygen -t ed25519")
    public = private.public_key().public_bytes_raw()
    signer = [user for user, known in read_approvers(approvers).items() if known.public_bytes_raw() == public]
    if not signer:
        raise BadInput(f"sign: {key!r} is of nobody in {approvers}; an approver's key is needed")
    _refuse_own(client, version, signer[0])
    signature = base64.b64encode(private.sign(statement[0])).decode()
    return {VersionTag.APPROVED_BY: signer[0], VersionTag.SIGNATURE: signature}


def require_signature(client: MlflowClient, version: ModelVersion, approvers: str, doing: str) -> None:
    """Raise BadInput unless an approver, who did not train it, signed this version and what the gate found."""
    name, user = f"{version.name}/{version.version}", version.tags.get(VersionTag.APPROVED_BY)
    if user is None or VersionTag.SIGNATURE not in version.tags:
        raise BadInput(f"expert {name} was signed by nobody; {doing} takes only what an approver signed: {SIGN}{name}")
    key = read_approvers(approvers).get(user)
    if key is None:
        raise BadInput(f"expert {name} was signed by {shortened(user)}, who is not in {approvers}; {SIGN}{name}")
    try:
        key.verify(base64.b64decode(version.tags[VersionTag.SIGNATURE], validate=True), _statement(client, version)[0])
    except (InvalidSignature, ValueError):
        raise BadInput(
            f"expert {name}: the signature of {user!r} is not of this version, policy and findings of the gate; "
            f"{doing} takes only what an approver signed: {SIGN}{name}"
        ) from None
    _refuse_own(client, version, user)


def _refuse_own(client: MlflowClient, version: ModelVersion, user: str) -> None:
    tags = get_run(client, str(version.run_id), "expert").data.tags
    if MLFLOW_USER not in tags and MLFLOW_PARENT_RUN_ID in tags:  # the run of a seed, made before these named a user
        tags = get_run(client, tags[MLFLOW_PARENT_RUN_ID], "expert").data.tags
    name, maker = f"expert {version.name}/{version.version}", tags.get(MLFLOW_USER)
    if maker is None:
        raise BadInput(f"{name}: its run {version.run_id} names no user; who trained it has to be known")
    if maker == user:
        raise BadInput(f"{name} was trained by {user!r}; somebody else has to sign it")


def _statement(client: MlflowClient, version: ModelVersion) -> tuple[bytes, str]:
    """What is signed, and the gate's findings, which it holds by their digest."""
    gate = version.tags.get(VersionTag.GATE_RUN_ID, "")
    found = read_text_artifact(client, gate, Artifact.DIAGNOSTICS_JSON)
    if found is None:
        raise BadInput(f"expert {version.name}/{version.version}: run {gate} has no findings of the gate on record")
    said: Mapping[str, str] = {
        "model": version.name,
        "version": str(version.version),
        "policy_digest": version.tags.get(VersionTag.POLICY_DIGEST, ""),
        "gate_run_id": gate,
        "gate": digest(found),
    }
    return json.dumps(said, sort_keys=True).encode(), found

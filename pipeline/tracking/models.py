"""Policies in the store: logged as MLflow models, found again by reference, verified by digest."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.errors import BadInput, shortened
from pipeline.learning.arms import Start
from pipeline.names import POLICY_SPEC_FILE, Alias, Artifact, Tag, VersionTag, registered_model
from pipeline.play.demonstrators import Demonstrator, policy_actions
from pipeline.policies import (
    ActFunction,
    Scaling,
    act_function,
    load_policy,
    load_trainable,
    policy_digest,
    scaling_of,
)
from pipeline.policies.artifact import PolicySpec, read_spec
from pipeline.policies.transfer import Transfer
from pipeline.tasks import Task
from pipeline.tracking.references import Reference, fetched
from pipeline.tracking.runs import get_kept_run, get_run, latest_run, read_text_artifact, search, seed_of, tag_of
from pipeline.tracking.store import refused_as


@dataclass(frozen=True)
class StoredPolicy:
    """A policy folder on this machine and where it comes from."""

    folder: Path
    digest: str
    reference: str  # how a person names it: `social_nav-expert/3`, `run 0a1b...`, a path
    run_id: str | None  # the run that made it
    version: ModelVersion | None = None
    certificate: Transfer | None = None  # of a clone

    @property
    def name_and_version(self) -> str | None:
        """`social_nav-expert/3`, or None for a policy that is not registered."""
        return f"{self.version.name}/{self.version.version}" if self.version else None

    @property
    def identity(self) -> str:
        """All that it decides of a training which starts from it: its digest, and that it is a clone to be left."""
        nothing = self.certificate is not None and self.certificate.learnt_nothing is not None
        return f"{self.digest}, learnt nothing" if nothing else self.digest

    def acts(self) -> ActFunction:
        """Its deterministic actions."""
        return act_function(load_policy(self.folder))

    def as_start(self) -> Start:
        """For a training."""
        if self.certificate is not None:
            scale, nothing = self.certificate.return_scale, self.certificate.learnt_nothing
            return Start(self.reference, self.folder, self.digest, True, scale, nothing)
        spec = read_spec(self.folder)
        scale = spec.return_scale if isinstance(spec, PolicySpec) else None
        return Start(self.reference, self.folder, self.digest, False, scale)

    def scaling(self) -> Scaling:
        """The units it computes in."""
        return scaling_of(load_trainable(self.folder, self.reference))

    def demonstrator(self, task: Task) -> Demonstrator:
        """A registered expert, as who demonstrates. Raises BadInput when it does not fit the task."""
        assert self.version is not None
        named = {"name": self.version.name, "version": str(self.version.version), "digest": self.digest}
        return Demonstrator(policy_actions(task, self.folder, self.reference), {"kind": "expert", **named})


def find_policy(client: MlflowClient, reference: str, task: str, latest: dict[str, str]) -> StoredPolicy:
    """The policy behind a run id, a model reference, a folder, or `latest` (newest run with the tags `latest`).

    Raises BadInput when there is none, or when its bytes are not those that were recorded.
    """
    named = Reference.parse(reference)
    if named.latest:
        return _policy_of_run(client, latest_run(client, "policy", **latest, **{Tag.TASK: task}).info.run_id)
    if named.run_id:
        return _policy_of_run(client, named.run_id)
    folder, is_policy = Path(reference), False
    with contextlib.suppress(OSError, ValueError):  # no path at all: too long, or with a NUL in it
        is_policy = (folder / POLICY_SPEC_FILE).is_file()
    if is_policy:
        return StoredPolicy(folder.resolve(), policy_digest(folder), reference, None)
    if named.model:
        return fetch_version(find_version(client, reference, task, Alias.APPROVED))
    raise BadInput(
        f"policy {shortened(reference)} is unknown; give a run id, models:/name/version, models:/name@alias, "
        "a policy folder, or 'latest'; a zip of stable-baselines3 is taken in by the gate (promote -P expert=their.zip)"
    )


def find_version(client: MlflowClient, reference: str, task: str, latest_alias: str) -> ModelVersion:
    """The registered version behind `models:/name/3`, `models:/name@alias`, `name/3`, a number, or `latest`.

    `latest` is the version with the alias `latest_alias` of the task's model. Raises BadInput.
    """
    name = registered_model(task)
    named = Reference.parse(reference)
    alias = latest_alias if named.latest else named.alias
    if not (named.latest or named.number or named.model):
        raise BadInput(
            f"expert {shortened(reference)} is no model reference; give models:/{name}/<version>, "
            f"models:/{name}@{latest_alias}, a version number, or 'latest'"
        )
    if named.model not in (None, name):
        raise BadInput(f"expert {reference!r} belongs to another task; the experts of task {task!r} are in {name!r}")
    if named.latest:
        reference = f"models:/{name}@{alias}"
    first, entry = "train one first", "train_expert"
    if alias == Alias.APPROVED:
        first, entry = "promote a candidate first", "promote"
    elif alias == Alias.CANDIDATE:
        first = "nothing waits for the gate; name a version to judge it again (-P expert=1), or train one"
    with refused_as(
        f"expert {reference!r}: the registry has no such version of {name!r}; {first}: "
        f"mlflow run . -e {entry} --env-manager local"
    ):
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(named.version or named.number))


def fetch_version(version: ModelVersion) -> StoredPolicy:
    """Download a registered version and verify its bytes against the digest on record. Raises BadInput."""
    reference = f"{version.name}/{version.version}"
    folder = fetched(f"models:/{reference}", f"policy of {reference}") / "artifacts" / Artifact.POLICY
    recorded = version.tags.get(VersionTag.POLICY_DIGEST)
    return StoredPolicy(folder, _verified(folder, recorded, reference), reference, version.run_id, version)


def expert_to_ask(client: MlflowClient, demonstrator: Mapping[str, Any], task: str) -> ActFunction | None:
    """What the expert of a dataset's metadata does; None for another kind or a version that is not in the registry.

    Imported data may be its as well, by our own export: if the version is of these very bytes, it can be asked.
    """
    if demonstrator.get("kind") not in ("expert", "imported"):
        return None
    try:
        version = find_version(client, f"{demonstrator['name']}/{demonstrator['version']}", task, Alias.APPROVED)
    except BadInput:
        return None  # that the registry does not know the version is for validation to say
    if demonstrator["kind"] == "imported" and version.tags.get(VersionTag.POLICY_DIGEST) != demonstrator["digest"]:
        return None
    return fetch_version(version).acts()


def seeds_of(client: MlflowClient, run_id: str | None, stage: str) -> dict[int, StoredPolicy]:
    """Seed -> policy, of the runs of single seeds of a stage that are nested in a run; empty for no run."""
    if run_id is None:
        return {}
    children = search(client, {MLFLOW_PARENT_RUN_ID: run_id, Tag.STAGE: stage})
    by_seed = {seed_of(child): child.info.run_id for child in children}
    return {seed: _policy_of_run(client, by_seed[seed]) for seed in sorted(by_seed)}


def find_policies(client: MlflowClient, references: str, task: str, latest: dict[str, str]) -> list[StoredPolicy]:
    """`find_policy` of every reference between commas. Raises BadInput for one that no run made."""
    found = [find_policy(client, reference.strip(), task, latest) for reference in references.split(",")]
    for policy in found:
        if policy.run_id is None:
            raise BadInput(
                f"policy {policy.reference!r} is of no run, so nothing says what it is; give the run that made it"
            )
    return found


def starting_policies(
    client: MlflowClient, policies: Sequence[StoredPolicy], seeds: Sequence[int]
) -> dict[int, StoredPolicy]:
    """Seed -> the policy it starts from: of pretrain runs the clone of the same seed, where there are several.

    One pretrain run with one clone, or the run of any single policy, starts every seed. Raises BadInput for a seed
    without a clone or with two, and for a clone without the certificate that `pretrain` left in its run, or with other
    files.
    """
    clones: dict[int, StoredPolicy] = {}
    for policy in policies:
        own = seeds_of(client, policy.run_id, "pretrain_seed")
        twice = sorted(clones.keys() & own.keys())
        if twice:
            raise BadInput(f"policy {policy.reference!r}: a run before it has a clone of seed {twice[0]} too")
        clones |= own
    named = ",".join(policy.reference for policy in policies)
    if len(policies) == 1 and len(clones) <= 1:
        starts = dict.fromkeys(seeds, next(iter(clones.values()), policies[0]))
    else:
        missing = [seed for seed in seeds if seed not in clones]
        if missing:
            raise BadInput(
                f"seeds: {named} has no clone of seed {missing[0]}; it has clones of {sorted(clones)}: "
                "use those seeds, or run pretrain with more"
            )
        starts = {seed: clones[seed] for seed in seeds}
    certified = {}
    for start in {start.run_id: start for start in starts.values()}.values():
        text = read_text_artifact(client, str(start.run_id), Artifact.CERTIFICATE)
        certificate = None if text is None else Transfer.from_json(text)
        if certificate is not None:
            certificate.verify(str(start.folder))
        elif made_by_pretrain(get_run(client, str(start.run_id), "policy")):
            raise BadInput(
                f"policy of {start.reference} has no transfer certificate ({Artifact.CERTIFICATE}), which every clone "
                "comes with; clone again: mlflow run . -e pretrain --env-manager local"
            )
        certified[start.run_id] = replace(start, certificate=certificate)
    return {seed: certified[start.run_id] for seed, start in starts.items()}


def made_by_pretrain(run: Run) -> bool:
    """Is its policy a clone, rather than what some training came to?"""
    return tag_of(run, Tag.STAGE) in ("pretrain", "pretrain_seed")


def _policy_of_run(client: MlflowClient, run_id: str) -> StoredPolicy:
    run = get_kept_run(client, run_id, "policy")
    if run.info.status != "FINISHED":
        raise BadInput(f"policy {run_id}: that run is {run.info.status}, not FINISHED; wait for it or run it again")
    recorded = run.data.tags.get(Tag.POLICY_DIGEST)
    if recorded is None:
        raise BadInput(
            f"policy {run_id}: that run (stage {run.data.tags.get(Tag.STAGE, 'unknown')!r}) holds no policy; "
            "give a run of pretrain, or one seed's run of finetune, baseline or train_expert"
        )
    folder = download_policy(run_id)
    return StoredPolicy(folder, _verified(folder, recorded, f"run {run_id}"), f"run {run_id}", run_id)


def download_policy(run_id: str) -> Path:
    """The policy folder of a run on this machine, whatever its bytes are. Raises BadInput."""
    return fetched(f"runs:/{run_id}/{Artifact.POLICY}", f"policy of run {run_id}")


def _verified(folder: Path, recorded: str | None, reference: str) -> str:
    try:
        digest = _digest(folder)
    except BadInput as error:
        raise BadInput(f"policy of {reference}: its files changed: {error}") from None
    if recorded is None:
        raise BadInput(
            f"policy of {reference}: it has no digest on record (tag {VersionTag.POLICY_DIGEST}), so nothing says that "
            "these are its files; register the policy anew"
        )
    if recorded != digest:
        raise BadInput(
            f"policy of {reference}: its files changed: digest {digest}, on record {recorded}; "
            "restore the recorded files or register the policy anew"
        )
    return digest


@cache  # this process's own copy, which nobody changes
def _digest(folder: Path) -> str:
    return policy_digest(folder)

"""Where a run, a registered version or a dataset comes from, what came from it, and what of that must not be trusted.

Every run carries `lineage.<role>_run_id` for its nearest upstream run of each role; walking them gives the whole chain.

What came from a thing that turned out to be wrong is marked by the tag `taint` with the reason, on runs and registered
versions. The mark is never taken off: a result that came from bad data stays what it is, and whoever needs a good one
makes it anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.errors import BadInput, printable, shortened
from pipeline.names import (
    LINEAGE_PREFIX,
    LINEAGE_ROLES,
    SEED_STAGES,
    Quality,
    Tag,
    VersionTag,
    further_policy_tag,
    lineage_run_tag,
)
from pipeline.tracking import registry
from pipeline.tracking.references import Reference
from pipeline.tracking.runs import experiment_ids, get_run, search, tag_of
from pipeline.tracking.store import pages, refused_as

if TYPE_CHECKING:  # questions need no policy, and so no torch
    from pipeline.tracking.models import StoredPolicy
    from pipeline.tracking.stage_run import StageRun

RUN_TAGS = tuple(lineage_run_tag(role) for role in LINEAGE_ROLES)
# a group has dozens of trainings, and every role takes a search of its own: what cannot be upstream is not searched for
NOTHING_COMES_FROM = frozenset({"validate", "playback", "evaluate", "compare", "main", "reproduce"})
ARM_TAG = lineage_run_tag("arm")  # stands only with the run that it names behind it
POLICY_TAGS = tuple(lineage_run_tag(role) for role in ("expert", "candidate", "policy", "pretrain"))
# stage -> the role in which others name its run
MAKES = {"train_expert": "expert", "promote": "gate", "collect": "dataset"} | {
    stage: stage for stage in ("pretrain", "finetune", "baseline")
}
JUDGES = ("promote", "validate", "playback", "reproduce")  # stages that look at a thing and make nothing of it


@dataclass(frozen=True)
class Node:
    """One run of the chain, as a person reads it."""

    run_id: str
    stage: str
    title: str  # "collect social_nav-3f2a: 200 episodes, validated"
    status: str
    produced: str  # policy digest, dataset id, registered version or verdict; empty when none
    taint: str  # why it must not be trusted any more; empty when nothing is known against it


@dataclass(frozen=True)
class Lineage:
    """A chain: runs, oldest first, and edges (upstream run id, downstream run id) without shortcuts."""

    start: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {"start": self.start, "nodes": [asdict(n) for n in self.nodes], "edges": [list(e) for e in self.edges]}

    def to_text(self) -> str:
        """One line a run, oldest first; `*` marks the one that was asked for."""
        stages = {node.run_id: node.stage for node in self.nodes}
        lines = []
        for node in self.nodes:
            made_from = [stages[source] for source, target in self.edges if target == node.run_id]
            origin = f"   <- {', '.join(made_from)}" if made_from else ""
            taint = f"   TAINTED: {node.taint}" if node.taint else ""
            mark = "*" if node.run_id == self.start else " "
            lines.append(printable(f"{mark} {node.stage:<13} {node.run_id}  {node.produced}{origin}{taint}"))
        return "\n".join(lines)


def from_policy(policy: "StoredPolicy", role: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Lineage tags of a run that starts from `policy`; `tags` are those of the run that made it."""
    inherited = _inherited(tags)
    if policy.run_id is not None:
        inherited[lineage_run_tag(role)] = policy.run_id
    if policy.name_and_version is not None:
        inherited[Tag.LINEAGE_EXPERT] = policy.name_and_version
        inherited[Tag.LINEAGE_EXPERT_DIGEST] = policy.digest
    return inherited


def from_dataset(run: Run) -> dict[str, str]:
    """Lineage tags of a run that uses the dataset which `run` recorded."""
    return {
        **_inherited(run.data.tags),
        Tag.LINEAGE_DATASET: tag_of(run, Tag.DATASET_ID),
        Tag.LINEAGE_DATASET_DIGEST: tag_of(run, Tag.DATASET_DIGEST),
        lineage_run_tag("dataset"): run.info.run_id,
    }


def from_runs(roles: Mapping[str, Run]) -> dict[str, str]:
    """Lineage tags of a run that reads other runs, by role."""
    tags: dict[str, str] = {}
    for run in roles.values():
        tags.update(_inherited(run.data.tags))
    return {**tags, **{lineage_run_tag(role): run.info.run_id for role, run in roles.items()}}


def digests_behind(run: Run) -> dict[str, str]:
    """Digests of the dataset and of the expert that a run came from, by tag; what it does not name is left out."""
    names: tuple[str, ...] = (Tag.LINEAGE_DATASET_DIGEST, Tag.LINEAGE_EXPERT_DIGEST)
    return {name: run.data.tags[name] for name in names if name in run.data.tags}


def _inherited(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.startswith(LINEAGE_PREFIX)}


def resolve(client: MlflowClient, reference: str) -> list[Run]:
    """The runs behind a run id, `name/version` or dataset id. Raises BadInput for anything else or unknown."""
    named = Reference.parse(reference)
    if named.run_id:
        return [get_run(client, named.run_id, "lineage of")]
    if named.model and named.version:
        with refused_as(f"lineage of {reference!r}: the registry has no such version"):
            version = client.get_model_version(named.model, named.version)
        ids = {"lineage of": version.run_id, "gate run": version.tags.get(VersionTag.GATE_RUN_ID)}
        return [get_run(client, run_id, what) for what, run_id in ids.items() if run_id]
    if named.dataset_id:
        found = search(client, {Tag.DATASET_ID: reference, Tag.STAGE: "collect"}, limit=1, status=None)
        if found:
            return found
        raise BadInput(f"lineage of dataset {reference!r}: the store has no such dataset")
    raise BadInput(f"lineage of {shortened(reference)}: give a run id, <model>/<version>, or a dataset id")


def trace(client: MlflowClient, reference: str, up: bool = False, down: bool = False) -> Lineage:
    """The thing itself with what it came from (`up`), what came from it (`down`), and what all of these came from."""
    start = resolve(client, reference)
    runs = _walk_down(client, start, reference, RUN_TAGS) if down else {run.info.run_id: run for run in start}
    if up:
        runs = _walk_up(client, runs.values(), RUN_TAGS)
    ordered = sorted(runs.values(), key=lambda run: (run.info.start_time, run.info.run_id))
    direct = {run.info.run_id: (_named_by(run, RUN_TAGS) & runs.keys()) - {run.info.run_id} for run in ordered}

    def behind(run_id: str) -> set[str]:
        found: set[str] = set()
        frontier = {run_id}
        while frontier:
            frontier = set().union(*(direct[r] for r in frontier)) - found
            found |= frontier
        return found

    edges = [
        (source, target)
        for target, nearest in direct.items()
        for source in sorted(nearest)
        if not any(source in behind(other) for other in nearest - {source})
    ]
    return Lineage(start[0].info.run_id, tuple(_node(run) for run in ordered), tuple(edges))


def version_link(name_and_version: str) -> str:
    """Markdown that leads from a description to `social_nav-expert/1` in the registry."""
    name, _, number = name_and_version.rpartition("/")
    return f"[{name_and_version}](#/models/{quote(name)}/versions/{number}?workflowType=machine_learning)"


def links(run: "StageRun", stage: str) -> str:
    """Markdown that leads from the run of a stage to what it was made from, and to the list of what was made from it.

    Call it when the run's lineage tags are set; it is empty for a run that waits in the spool.
    """
    if run.spool is not None:
        return ""
    tags, lines = run.client.get_run(run.run_id).data.tags, []
    above = {role: tags[tag] for role in LINEAGE_ROLES if (tag := lineage_run_tag(role)) in tags}
    if above:
        lines.append(f"Made from: {', '.join(run.link(run_id, role) for role, run_id in above.items())}.")
    if Tag.LINEAGE_EXPERT in tags:
        lines.append(f"In the registry: {version_link(tags[Tag.LINEAGE_EXPERT])}.")
    if stage in MAKES:
        wanted = quote(f"tags.`{lineage_run_tag(MAKES[stage])}` = '{run.run_id}'")
        runs = f"#/experiments/{run.experiment_id}/runs?workflowType=machine_learning"  # else the UI opens as GenAI
        lines.append(f"[What was made from it]({runs}&searchFilter={wanted}).")
    return " ".join(lines)


def derived(client: MlflowClient, reference: str) -> list[Run]:
    """The runs that came from the thing (and itself), oldest first. A repaired dataset did not: it replaces one."""
    tags = [tag for tag in RUN_TAGS if tag != lineage_run_tag("repaired")]
    runs = _walk_down(client, resolve(client, reference), reference, tags)
    return sorted(runs.values(), key=lambda run: (run.info.start_time, run.info.run_id))


def sources(client: MlflowClient, run: Run, roles: Sequence[str]) -> list[Run]:
    """The runs that a run came from through these roles, of all generations, each once."""
    found = _walk_up(client, [run], [lineage_run_tag(role) for role in roles])
    return [source for run_id, source in found.items() if run_id != run.info.run_id]


def _walk_up(client: MlflowClient, start: Iterable[Run], tags: Sequence[str]) -> dict[str, Run]:
    known = {run.info.run_id: run for run in start}
    frontier = list(known.values())
    while frontier:
        ids = {run_id for run in frontier for run_id in _named_by(run, tags)} - known.keys()
        frontier = [get_run(client, run_id, "upstream run") for run_id in sorted(ids)]
        known.update({run.info.run_id: run for run in frontier})
    return known


def _walk_down(client: MlflowClient, start: Iterable[Run], reference: str, tags: Sequence[str]) -> dict[str, Run]:
    known = {run.info.run_id: run for run in start}
    frontier = list(known.values())
    named = Reference.parse(reference)
    if named.version:
        # a training may stand behind several versions: only what used this one came from it
        frontier = search(client, {Tag.LINEAGE_EXPERT: f"{named.model}/{named.version}"}, status=None)
        known.update({run.info.run_id: run for run in frontier})
    everywhere = experiment_ids(client)
    while frontier:
        found = {
            run.info.run_id: run
            for source in frontier
            for tag in _roles_of(source, tags)
            for run in search(client, {tag: source.info.run_id}, status=None, experiments=everywhere)
        }
        frontier = [run for run_id, run in found.items() if run_id not in known]
        known.update({run.info.run_id: run for run in frontier})
    return known


def _named_by(run: Run, tags: Sequence[str]) -> set[str]:
    """Ids of the runs that a run names in these lineage tags, those that a further arm starts from among them."""
    roles = tuple(f"{tag}." for tag in tags)  # `further_policy_tag` begins with that of its role
    return {value for key, value in run.data.tags.items() if f"{key}.".startswith(roles)}


def _roles_of(run: Run, tags: Sequence[str]) -> Sequence[str]:
    """Those of the lineage tags in which other runs may name this one; all, when its stage is none we know."""
    stage = run.data.tags.get(Tag.STAGE, "")
    if stage in NOTHING_COMES_FROM:
        return ()
    named = [tag for tag in tags if tag != ARM_TAG and (stage not in SEED_STAGES or tag in POLICY_TAGS)]
    further = [role for role in ("policy", "arm") if lineage_run_tag(role) in tags]
    return [*named, *(further_policy_tag(role, run.info.run_id) for role in further)]


def _node(run: Run) -> Node:
    tags = run.data.tags
    stage = tags.get(Tag.STAGE, "unknown")
    if Tag.DATASET_ID in tags:
        quality = tags.get(Tag.DATASET_QUALITY, Quality.DRAFT)
        produced = f"dataset {tags[Tag.DATASET_ID]} ({quality})"
    elif Tag.POLICY_DIGEST in tags:
        imitation = f", imitation {tags[Tag.IMITATION]}" if Tag.IMITATION in tags else ""
        produced = f"policy {tags[Tag.POLICY_DIGEST][:12]}{imitation}"
    else:
        produced = tags.get(Tag.VERDICT, "")
    if stage == "promote" and Tag.LINEAGE_EXPERT in tags:
        produced = f"{tags[Tag.LINEAGE_EXPERT]} {tags.get(Tag.VERDICT, '')}".strip()
    seed = f" seed {tags[Tag.SEED]}" if Tag.SEED in tags else ""
    arm = f" {tags[Tag.ARM]}" if Tag.ARM in tags else ""
    title = f"{stage}{arm}{seed}" + (f": {produced}" if produced else "")
    return Node(run.info.run_id, stage, title, run.info.status, produced, tags.get(Tag.TAINT, ""))


def spread_taint(client: MlflowClient, reference: str, reason: str) -> list[str]:
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


def refuse_tainted(client: MlflowClient, policy: "StoredPolicy", doing: str) -> None:
    """Raise BadInput when a policy, its registered version or the run that made it is marked."""
    reasons = [] if policy.version is None else [policy.version.tags.get(VersionTag.TAINT)]
    if policy.run_id is not None:
        reasons.append(get_run(client, policy.run_id, "policy").data.tags.get(Tag.TAINT))
    for reason in reasons:
        if reason is not None:
            raise BadInput(f"policy {policy.reference} is tainted: {reason}; {doing} takes another one")


def inherit_taint(run: "StageRun") -> tuple[str, ...]:
    """Mark a run that reports on things which are marked, and return why: distinct reasons, the oldest source first.

    Call it when the run's lineage tags are set.
    """
    chain = trace(run.client, run.run_id, up=True).nodes
    reasons = tuple(dict.fromkeys(node.taint for node in chain if node.taint and node.run_id != run.run_id))
    if reasons:
        run.tag({Tag.TAINT: "; ".join(reasons)[:4_000]})
    return reasons

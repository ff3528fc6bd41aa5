"""`promote`: the gate. Plays the candidate itself, decides, and moves the alias `approved` or leaves all as it is.

The candidate is a registered version, the policy of a run, or the SB3 `.zip` of somebody else. Where the task names
approvers, one of them signs before the alias moves.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.config.loading import load_task
from pipeline.config.stages import Promote
from pipeline.errors import BadInput, say
from pipeline.executors.players import Player, rollouts
from pipeline.gate import GateDecision, PlayedEpisodes, check_rules, decide
from pipeline.names import Alias, Artifact, Gate, Metric, Tag, VersionTag, lineage_run_tag
from pipeline.play.demonstrators import as_policy_sees
from pipeline.policies import WRAPPERS, save_policy
from pipeline.policies.frozen import FrozenActor
from pipeline.report.clips import draw_episode, save_film
from pipeline.report.progress import ProgressBar
from pipeline.report.text import markdown_page
from pipeline.stages import StageOutcome
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage, registry
from pipeline.tracking.groups import seeds_beside
from pipeline.tracking.models import (
    StoredPolicy,
    fetch_version,
    find_policy,
    find_version,
)
from pipeline.tracking.references import Reference
from pipeline.tracking.runs import get_run, stage_run_of
from pipeline.tracking.signatures import SIGN, require_signature, sign
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ("expert",)
UNSIGNED = "Waits for the signature of an approver.\n\n"


def inputs(run: StageRun, config: Promote, upstream: Mapping[str, str]) -> dict[str, str]:
    """Of a registered version, or of a zip."""
    reference = upstream.get("expert", "latest")
    if _is_zip(reference):
        with TemporaryDirectory(dir=run.folder) as folder:
            zipped = Path(reference).expanduser()
            return {"candidate": _import_zip(Task(load_task(config.task)), zipped, Path(folder) / "policy")[0]}
    version = find_version(run.client, reference, load_task(config.task).name, Alias.CANDIDATE)
    return {name: policy.digest for name, policy in _subjects(run, config, fetch_version(version)).items()}


def run(run: StageRun, config: Promote, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task))
    for rule in config.rules:
        task.shares(rule.scenario_set)
    reference = upstream.get("expert", "latest")
    if config.action == "roll_back":
        return _roll_back(run, config, task, reference)
    if config.sign is not None:
        return _sign(run, config, task, reference, config.sign)
    check_rules(config.rules, task.config)  # before anything is registered
    if unheld := sorted({*task.config.holdout_sets} - {rule.scenario_set for rule in config.rules}):
        say(f"promote: warning: no rule is held against {', '.join(unheld)}, which no training sees", sys.stderr)
    candidate = _candidate(run, task, reference)
    lineage.refuse_tainted(run.client, candidate, "the gate")
    subjects = _subjects(run, config, candidate)
    run.record_config(config, task.config, {name: policy.digest for name, policy in subjects.items()})
    run.tag(_lineage(run, candidate))
    scenario_sets = sorted({rule.scenario_set for rule in config.rules})
    measured = []
    total = len(subjects) * len(scenario_sets) * len(config.seeds) * config.episodes
    with ProgressBar("promote", total, "episodes") as progress:
        for (subject, policy), scenario_set, seed in product(subjects.items(), scenario_sets, config.seeds):
            player = Player(policy.reference, str(policy.folder))
            episodes = task.episodes(scenario_set, seed, config.episodes, Purpose.GATE)
            records = rollouts(task, player, episodes, progress.add)
            measured.append(PlayedEpisodes(subject, scenario_set, seed, records))
    run.metrics({Metric.EVALUATION_STEPS: sum(m.records.steps for m in measured)})
    decision = decide(config.rules, measured)
    return _conclude(run, candidate, decision, task.config.approvers, _film(run, task, candidate, measured[0]))


def _film(run: StageRun, task: Task, candidate: StoredPolicy, played: PlayedEpisodes) -> str:
    """Where a person sees the candidate play the gate's first episode, in Markdown; empty where nothing draws it."""
    seen = as_policy_sees(task, candidate.folder)
    if not seen.renders:
        return ""
    episode = played.records.episodes[0]
    try:
        title, length = f"{candidate.reference}, {episode.scenario}", int(played.records.metrics[Metric.LENGTH][0])
        frames = draw_episode(seen, episode, candidate.acts(), title, length)
    except BadInput as error:  # how it looks decides nothing
        return f"There is no film of it: {error}."
    return f"The gate's first episode:\n\n{run.film(save_film(frames, run.folder / 'candidate'), 0)}"


def _subjects(run: StageRun, config: Promote, candidate: StoredPolicy) -> dict[str, StoredPolicy]:
    """Whom the gate plays: the candidate and, if so asked, every seed that was trained with it."""
    subjects, made_by = {"candidate": candidate}, candidate.run_id
    if config.training_seeds and made_by is not None:
        seeds = seeds_beside(run.client, get_run(run.client, made_by, "expert"))
        subjects |= {f"training seed {seed}": policy for seed, policy in seeds.items() if policy.run_id != made_by}
    return subjects


def _candidate(run: StageRun, task: Task, reference: str) -> StoredPolicy:
    """The version to judge; the policy of a run or of a zip is registered as a candidate first: any may apply."""
    if _is_zip(reference):
        return _from_zip(run, task, Path(reference).expanduser())
    if not Reference.parse(reference).run_id:
        return fetch_version(find_version(run.client, reference, task.config.name, Alias.CANDIDATE))
    policy = find_policy(run.client, reference, task.config.name, {})
    lineage.refuse_tainted(run.client, policy, "the gate")  # before it is registered
    made = get_run(run.client, reference, "expert")
    tags = made.data.tags
    if tags.get(Tag.TASK) != task.config.name:
        raise BadInput(
            f"expert {reference}: that run is of task {tags.get(Tag.TASK)!r}, the gate is of {task.config.name!r}"
        )
    promotable = stage_run_of(run.client, made).data.tags.get(Tag.PROMOTABLE) != "false"
    description = f"Policy of run {reference} (stage {tags.get(Tag.STAGE)}), registered by the gate."
    return _register(run, task, policy.folder, reference, policy.digest, promotable, description)


def _is_zip(reference: str) -> bool:
    return reference.lower().endswith(".zip")


def _import_zip(task: Task, path: Path, folder: Path) -> tuple[str, dict[str, str], int | None]:
    """Somebody's SB3 zip as a policy of this task in `folder`: its digest, where it comes from, its steps of training.

    Rebuilt from its tensors and settings, nothing in it is executed.
    """
    from pipeline.policies.sb3 import import_sb3_zip  # late: the gate seldom needs it
    from pipeline.policies.sb3_zip import read_sb3_zip

    policy = import_sb3_zip(path, task.observation_space, task.action_space, task.wrappers)
    with path.open("rb") as stream:
        source = {"source": path.name, "source_sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    # whoever gives it to this task says that it belongs behind the task's wrappers; the gate plays it there
    origin = {"task": task.config.name, "format": "stable-baselines3 zip", WRAPPERS: task.wrappers, **source}
    held = read_sb3_zip(path)
    return_scale = None if isinstance(policy, FrozenActor) else held.return_scale
    return save_policy(policy, folder, origin, return_scale), source, held.timesteps


def _from_zip(run: StageRun, task: Task, path: Path) -> StoredPolicy:
    folder = run.folder / Artifact.POLICY
    digest, source, trained_for = _import_zip(task, path, folder)
    run.json(source, "imported.json")
    run.file(folder, Artifact.POLICY)
    run.tag({Tag.TASK: task.config.name, Tag.POLICY_DIGEST: digest})
    if trained_for:  # what its training took, for the bill
        run.metrics({Metric.ENVIRONMENT_STEPS: trained_for})
    description = f"Imported from {path.name} (sha256 {source['source_sha256']}), an SB3 zip of somebody else."
    return _register(run, task, folder, run.run_id, digest, True, description)


def _register(
    run: StageRun, task: Task, folder: Path, maker: str, digest: str, promotable: bool, description: str
) -> StoredPolicy:
    source = run.policy(folder, "candidate", 0, {})
    assert source is not None  # the gate writes to the store itself
    version = registry.register_candidate(
        run.client, task.config.name, source, maker, digest, promotable, description, again=run.continued
    )
    return fetch_version(version)


def _lineage(run: StageRun, candidate: StoredPolicy) -> dict[str, str | None]:
    return {
        Tag.LINEAGE_EXPERT: candidate.name_and_version,
        Tag.LINEAGE_EXPERT_DIGEST: candidate.digest,
        # an imported policy was made by no other run than this one
        lineage_run_tag("candidate"): None if candidate.run_id == run.run_id else candidate.run_id,
    }


def _conclude(
    run: StageRun, candidate: StoredPolicy, decision: GateDecision, approvers: str | None, film: str
) -> StageOutcome:
    """Log the evidence first, then change the registry: an approval never lacks its evidence."""
    version = candidate.version
    assert version is not None
    run.json(decision.to_json(), Artifact.DIAGNOSTICS_JSON)
    page = markdown_page("gate", decision=decision, reference=candidate.reference)
    run.text(page, Artifact.DIAGNOSTICS_MD)
    names = [f"gate/{r.subject.replace(' ', '_')}/{r.scenario_set}/{r.metric}/seed_{r.seed}" for r in decision.rows]
    run.confirmed_metrics({name: row.value for name, row in zip(names, decision.rows, strict=True)})
    checked, failed = len(decision.rows), len(decision.reasons)
    run.metrics({"gate/rules_checked": checked, "gate/rules_failed": failed})
    made_by = run.link(str(version.run_id), "the run that made it")
    about = f"Digest `{candidate.digest}`; {made_by}, {run.link(run.run_id, 'the run of the gate')}.\n\n{film}\n\n"
    if approvers is not None and decision.approved:
        about = UNSIGNED + about
    found = page.partition("\n")[2].replace("## All checks\n", "")
    registry.describe(run.client, version, about + found)  # cut at its end when it is long
    if not decision.approved:
        reason = "; ".join(decision.reasons)
        approved_before = registry.withhold(run.client, version, run.run_id, reason[:4_000])
        doubt = f"expert {candidate.reference} was refused by run {run.run_id} after it had been approved"
        return StageOutcome(
            (
                f"promote: {candidate.reference} REFUSED, {failed} of {checked} checks failed",
                *(f"  - {reason}" for reason in decision.reasons[:5]),
                *(lineage.spread_taint(run.client, candidate.reference, doubt) if approved_before else ()),
                f"  all checks: artifact {Artifact.DIAGNOSTICS_MD} of run {run.run_id}",
            ),
            verdict=False,
            failed=True,
            see=film,
        )
    reason = f"all {checked} checks hold"
    if approvers is not None:
        waits = f"{reason}; waits for the signature of an approver"
        registry.withhold(run.client, version, run.run_id, waits, Gate.PENDING)
        return StageOutcome(
            (
                f"promote: {candidate.reference}: {reason}; it waits for the signature of one of {approvers}:",
                f"  {SIGN}{version.version}",
            ),
            outputs={"expert": f"models:/{version.name}/{version.version}"},
            see=film,
        )
    approval = registry.approve(run.client, version, run.run_id, reason)
    replaced = f", replaces version {approval.replaced}" if approval.replaced else ""
    if approval.version != str(version.version):
        replaced = f"; it has the bytes of version {approval.version}, which stays the approved one"
    return StageOutcome(
        (f"promote: {candidate.reference} approved: {reason}{replaced}",),
        verdict=True,
        outputs={"expert": f"models:/{version.name}/{approval.version}"},
        see=film,
    )


def _sign(run: StageRun, config: Promote, task: Task, reference: str, key: str) -> StageOutcome:
    """Approve a version that passed the gate, in the name of whose key it is."""
    if task.config.approvers is None:
        raise BadInput(f"sign: task {task.config.name!r} names no approvers; set `approvers` in its file")
    version = find_version(run.client, reference, task.config.name, Alias.CANDIDATE)
    signed = fetch_version(version)  # the bytes are those on record
    run.record_config(replace(config, sign="given"), task.config, {"expert": signed.digest})
    run.tag(_lineage(run, signed))
    signature = sign(run.client, version, task.config.approvers, key)
    gate, user = version.tags[VersionTag.GATE_RUN_ID], signature[VersionTag.APPROVED_BY]
    approval = registry.approve(run.client, version, gate, f"signed by {user} in run {run.run_id}", signature)
    found = (version.description or "").partition(registry.EVIDENCE)[2].lstrip().removeprefix(UNSIGNED)
    words = f"Signed by `{user}`, {run.link(run.run_id, 'in this run')}.\n\n"
    registry.describe(run.client, version, words + found)
    run.client.set_tag(gate, Tag.VERDICT, "yes")  # the run of the gate stands for an approval from now on
    replaced = f", replaces version {approval.replaced}" if approval.replaced else ""
    return StageOutcome(
        (f"promote: {signed.reference} approved: signed by {user}{replaced}",),
        verdict=True,
        outputs={"expert": f"models:/{version.name}/{approval.version}"},
    )


def _roll_back(run: StageRun, config: Promote, task: Task, reference: str) -> StageOutcome:
    if reference == "latest":
        raise BadInput("expert 'latest': name the version to roll back to, e.g. -P expert=1")
    version = find_version(run.client, reference, task.config.name, Alias.APPROVED)
    target = fetch_version(version)
    run.record_config(config, task.config, {"expert": target.digest})
    run.tag(_lineage(run, target))
    left = registry.approved_version(run.client, task.config.name)
    if left is not None:  # what came from the version that is given up would be in doubt at once
        given_up = f"{left.name}/{left.version}"
        came_from_it = {found.info.run_id for found in lineage.derived(run.client, given_up)}
        if given_up != target.name_and_version and target.run_id in came_from_it:
            raise BadInput(
                f"roll back to {target.reference}: it came from {given_up}, which is given up; name another one"
            )
    judge = run.run_id
    if task.config.approvers is not None:  # what was signed names the run of the gate, which stays on record
        require_signature(run.client, version, task.config.approvers, "a roll back")
        judge = version.tags[VersionTag.GATE_RUN_ID]
    approval = registry.roll_back(run.client, version, judge, f"rolled back by run {run.run_id}")
    lines = [f"promote: rolled back to {target.reference}; version {approval.replaced} is superseded"]
    if approval.replaced is not None:
        abandoned = f"{version.name}/{approval.replaced}"
        reason = f"expert {abandoned} was rolled back to {target.reference} by run {run.run_id}"
        lines += lineage.spread_taint(run.client, abandoned, reason)
    return StageOutcome(tuple(lines), verdict=True)

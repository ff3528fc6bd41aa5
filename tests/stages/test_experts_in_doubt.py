"""Somebody's own expert through the gate; refusal and roll back afterwards, and what that does to what came from it."""

import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline import query
from pipeline.config.base import Bound
from pipeline.config.loading import load_task
from pipeline.config.stages import Compare
from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.names import Alias, Arm, Artifact, Gate, Tag, VersionTag, lineage_run_tag
from pipeline.policies import build_policy, load_policy
from pipeline.policies.sb3 import export_sb3_zip
from pipeline.stages import run_stage
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.stage_run import open_run
from pipeline.tracking.store import connect

PROMOTE = "configs/smoke/promote.yaml"
IMPOSSIBLE = {"rules": "[{scenario_set: train_small, metric: success_rate, min: 1.1}]"}
EASY = {"rules": "[{scenario_set: train_small, metric: success_rate, min: 0.0}]"}
EXPERT = "social_nav-expert"


def refusal(stage: str, upstream: dict, overrides: dict | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        run_stage(stage, f"configs/smoke/{stage}.yaml", upstream, overrides or {})
    return str(caught.value)


def version(client, number: int):
    return client.get_model_version(EXPERT, str(number))


def taint_of(client, run_id: str) -> str | None:
    return client.get_run(run_id).data.tags.get(Tag.TAINT)


def promote_clone(story):
    """The clone passes the gate and becomes the next expert, version 2."""
    outcome = run_stage("promote", PROMOTE, {"expert": story.pretrain}, EASY)
    assert outcome.verdict is True
    return outcome


def test_the_policy_of_a_seed_is_as_promotable_as_its_training(story):
    client = connect()
    client.set_tag(story.pretrain, Tag.PROMOTABLE, "false")
    seed = search(client, {lineage_run_tag("dataset"): story.collect, Tag.STAGE: "pretrain_seed"})[0].info.run_id
    run_stage("promote", PROMOTE, {"expert": seed}, EASY)
    assert version(client, 2).run_id == seed and version(client, 2).tags[VersionTag.PROMOTABLE] == "false"


def test_the_gate_holds_what_was_trained_together_to_its_rules_and_no_other(story):
    client = connect()
    short = {"seeds": "[1, 2]", "cloning.epochs": "2"}
    clones = run_stage("pretrain", "configs/smoke/pretrain.yaml", {"dataset": story.dataset}, short).outputs["policy"]
    found = search(client, {Tag.STAGE: "pretrain_seed", MLFLOW_PARENT_RUN_ID: clones})
    (second,) = [run.info.run_id for run in found if run.data.tags[Tag.SEED] == "2"]

    def played(expert: str, **more: str) -> set[str]:
        gate = run_stage("promote", PROMOTE, {"expert": expert}, {**EASY, **more}).run_id
        return {
            row["subject"] for row in json.loads(read_text_artifact(client, gate, Artifact.DIAGNOSTICS_JSON))["rows"]
        }

    assert played(second) == {"candidate", "training seed 1"}
    assert played(clones) == {"candidate", "training seed 1", "training seed 2"}
    assert played(second, training_seeds="false") == {"candidate"} == played(str(story.zip))
    tuned = {"seeds": "[1, 2]", "control_timesteps": "1024", "training.total_timesteps": "1024", "final_episodes": "20"}
    run_stage("finetune", "configs/smoke/finetune.yaml", {"policy": clones, "group": "beside"}, tuned)
    arm = search(client, {Tag.STAGE: "finetune_seed", Tag.ARM: Arm.PRETRAINED, Tag.SEED: "1"})[0].info.run_id
    assert played(arm) == {"candidate", "training seed 2"}  # the controls, of learning rate 0, are another arm


def test_rules_that_cannot_be_held_register_nothing(story):
    client = connect()
    before = client.get_registered_model(EXPERT)
    for wrong, word in (
        ("{scenario_set: train_small, metric: sucess_rate, min: 0}", "'sucess_rate' is not measured"),
        ("{scenario_set: train_small, metric: return_p5, min: 0, confidence: 0.9}", "for means and rates"),
        ("{scenario_set: trian, metric: success_rate, min: 0}", "'trian'"),
    ):
        for expert in (story.pretrain, str(story.zip)):
            assert word in refusal("promote", {"expert": expert}, {"rules": f"[{wrong}]"})
    after = client.get_registered_model(EXPERT)
    assert (after.latest_versions[0].version, after.aliases) == (before.latest_versions[0].version, before.aliases)


def test_a_task_without_thresholds_has_no_expert_and_no_comparison(in_repository, store, tmp_path):
    shipped = Path("configs/tasks/social_nav.yaml").read_text()
    limits = "  success_rate: {min: 0.90}\n  collision_rate: {max: 0.05}\n"
    file = tmp_path / "social_nav.yaml"
    file.write_text(shipped.replace(f"thresholds:\n{limits}", "thresholds: {}\n"))
    assert "thresholds is empty" in refusal("train_expert", {}, {"task": str(file)})
    with pytest.raises(BadInput, match="target is empty"):
        Compare(task=str(file)).solved(load_task(file))
    task, compare = load_task("configs/tasks/social_nav.yaml"), Compare(task=str(file))
    for small in ("sucess_rate", "nothing_mean"):
        with pytest.raises(BadInput, match=f"smallest_difference: '{small}' is not measured"):
            compare.solved(replace(task, smallest_difference={small: 1}))
    compare.solved(replace(task, smallest_difference={"return_p5": 1}))
    with pytest.raises(BadInput, match="target: 'sucess_rate' is not measured"):
        Compare(task=str(file), target={"sucess_rate": Bound(min=1.0)}).solved(load_task(file))


def another_zip(folder, seed: int = 5):
    task = Task(load_task("configs/tasks/social_nav.yaml"))
    policy = build_policy(task.observation_space, task.action_space, Network(hidden=(8,)), seed)
    path = folder / "another.zip"
    export_sb3_zip(policy, path)
    return path, policy


def sac_zip(path):
    """A SAC that was never trained, saved at a path."""
    import gymnasium as gym
    from stable_baselines3 import SAC

    task = Task(load_task("configs/tasks/social_nav.yaml"))

    class Alike(gym.Env):
        observation_space, action_space = task.observation_space, task.action_space

    model = SAC("MlpPolicy", Alike(), policy_kwargs={"net_arch": [8]}, buffer_size=10, seed=5, device="cpu")
    model.save(path)
    return model


# --- an own expert ---------------------------------------------------------------------------------------------------


def test_an_sb3_zip_becomes_a_candidate_that_acts_as_it_did_and_passes_the_same_gate(story, client, tmp_path):
    path, theirs = another_zip(tmp_path)
    outcome = run_stage("promote", PROMOTE, {"expert": str(path)}, {})
    assert outcome.verdict is True
    registered = version(client, 2)
    assert Alias.APPROVED in registered.aliases
    assert registered.tags[VersionTag.GATE] == Gate.APPROVED
    import hashlib

    assert hashlib.sha256(path.read_bytes()).hexdigest() in registered.description
    ours = query.load_ppo(f"{EXPERT}/2")
    observations = np.random.default_rng(0).standard_normal((16, *theirs.observation_space.shape)).astype(np.float32)
    actions = ours.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(actions, theirs.predict(observations, deterministic=True)[0])
    run = client.get_run(registered.run_id)
    assert run.data.tags[Tag.POLICY_DIGEST] == registered.tags[VersionTag.POLICY_DIGEST]
    rows = json.loads(read_text_artifact(client, registered.run_id, Artifact.DIAGNOSTICS_JSON))["rows"]
    assert {row["scenario_set"] for row in rows} == {"train_small", "holdout"}


def test_a_sac_of_somebody_demonstrates_and_is_served_like_any_policy(story, client, tmp_path):
    """Its own labels come back from it, which validation asks for; PPO cannot go on from it, and is told so."""
    import mlflow

    theirs = sac_zip(tmp_path / "sac.zip")
    assert run_stage("promote", PROMOTE, {"expert": str(tmp_path / "sac.zip")}, EASY).verdict is True
    recorded = run_stage("collect", "configs/smoke/collect.yaml", {}, {"filter": "{}"})
    assert recorded.verdict is True and version(client, 2).tags[VersionTag.GATE] == Gate.APPROVED
    data = query.load_demonstrations(recorded.outputs["dataset"])
    assert data.metadata.demonstrator["version"] == "2"
    observations = data.trajectories.observations[:16]
    actions = theirs.predict(observations, deterministic=True)[0]
    served = mlflow.pyfunc.load_model(f"models:/{EXPERT}@{Alias.APPROVED}")
    for ours in (served.predict(observations), query.load_policy(f"{EXPERT}/2")(observations)):
        np.testing.assert_allclose(ours, actions, atol=5e-6)
    with pytest.raises(BadInput, match=r"only acts.*collect.*pretrain"):
        query.load_ppo(f"{EXPERT}/2")


def test_main_takes_a_zip_through_the_gate_to_a_clone_and_the_same_zip_once(story, client, tmp_path, capsys):
    path, _ = another_zip(tmp_path)
    short = {"ppo_timesteps": "0", "matched_seeds": "1", "cloning_epochs": "1", "demonstration_episodes": "20"}
    for said in ("promote: run", "promote: reused (run"):
        outcome = run_stage("main", "configs/smoke/main.yaml", {"expert": str(path)}, short)
        assert set(outcome.outputs) == {"policy"}
        assert said in capsys.readouterr().out
    assert client.get_run(outcome.outputs["policy"]).data.tags[Tag.LINEAGE_EXPERT] == f"{EXPERT}/2"
    assert {int(v.version) for v in client.search_model_versions(f"name = '{EXPERT}'")} == {1, 2}


def test_a_zip_that_misses_a_rule_stays_a_refused_candidate(story, client, tmp_path):
    path, _ = another_zip(tmp_path)
    outcome = run_stage("promote", PROMOTE, {"expert": str(path)}, IMPOSSIBLE)
    assert (outcome.verdict, outcome.failed) == (False, True)
    assert version(client, 2).tags[VersionTag.GATE] == Gate.REFUSED
    assert client.get_model_version_by_alias(EXPERT, Alias.APPROVED).version in (1, "1")
    assert taint_of(client, story.collect) is None


@pytest.mark.slow
def test_two_that_promote_the_same_bytes_do_not_take_the_approval_from_each_other(story, client):
    """As two `main` at once do, that trained the same expert: whoever is second is told whose bytes they are."""
    first = run_stage("promote", PROMOTE, {"expert": "1"}, {})
    second = run_stage("promote", PROMOTE, {"expert": str(story.zip)}, {})
    assert first.outputs == second.outputs == {"expert": f"models:/{EXPERT}/1"}
    assert (
        "/2 approved: all 2 checks hold; it has the bytes of version 1, which stays the approved one"
        in second.summary[0]
    )
    assert version(client, 2).tags[VersionTag.GATE] == Gate.SUPERSEDED
    for outcome in (first, second):
        assert run_stage("collect", "configs/smoke/collect.yaml", dict(outcome.outputs), {}).verdict is True


def test_what_somebody_wrote_into_the_registry_is_one_line_for_who_asks_for_that_version(story, client, tmp_path):
    promote_clone(story)
    tag = client.set_model_version_tag
    tag(EXPERT, "2", VersionTag.GATE_RUN_ID, "0" * 32)
    assert f"gate.run_id of {EXPERT}/2 '{'0' * 32}': the store has no such run" in refusal("collect", {})
    client.delete_model_version_tag(EXPERT, "2", VersionTag.GATE_RUN_ID)
    assert f"{EXPERT}/2 is not approved: its tags say so without gate.run_id" in refusal("collect", {})
    tag(EXPERT, "1", VersionTag.HISTORY, "no JSON")
    said = f"{EXPERT}/1: its tag gate.history is no list of periods of approval: 'no JSON'"
    assert said in refusal("validate", {"dataset": story.dataset})  # recorded from version 1: it is not quarantined
    assert client.get_run(story.collect).data.tags[Tag.DATASET_QUALITY] == "validated"
    client.create_model_version(EXPERT, "http://127.0.0.1:9/x", tags={VersionTag.POLICY_DIGEST: "0" * 36})
    for stage in ("promote", "collect"):
        part = "cannot be fetched" if stage == "promote" else "is not approved (gate: no gate record)"
        assert part in refusal(stage, {"expert": "3"})
    # the rest of the task goes on: version 2 is judged again, and recorded from
    assert run_stage("promote", PROMOTE, {"expert": "2"}, EASY).verdict is True
    dataset = run_stage("collect", "configs/smoke/collect.yaml", {}, {}).outputs["dataset"]
    assert run_stage("validate", "configs/smoke/validate.yaml", {"dataset": dataset}, {}).verdict is True


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_zip_is_one_line_and_runs_nothing(story, client, tmp_path):
    """The trap lies in the weights and in the settings of an otherwise sound zip."""
    import base64

    import torch

    sprung, (path, _) = tmp_path / "sprung", another_zip(tmp_path)
    trap = pickle.dumps(Trap(str(sprung)))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    settings = json.loads(members["data"])
    settings["anything"] = {":type:": "x", ":serialized:": base64.b64encode(trap).decode()}
    stream = io.BytesIO()
    torch.save({"log_std": Trap(str(sprung))}, stream)
    hostile = {
        "settings.zip": {**members, "data": json.dumps(settings).encode()},
        "weights.zip": {**members, "policy.pth": stream.getvalue()},
        "no_zip.zip": None,
    }
    for name, content in hostile.items():
        if content is None:
            (tmp_path / name).write_bytes(trap)
            continue
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, data in content.items():
                archive.writestr(member, data)
    # a pickle that nobody decodes does no harm: the policy is read around it
    assert run_stage("promote", PROMOTE, {"expert": str(tmp_path / "settings.zip")}, EASY).verdict is True
    assert "policy.pth: tensor" in refusal("promote", {"expert": str(tmp_path / "weights.zip")})
    assert "cannot be read" in refusal("promote", {"expert": str(tmp_path / "no_zip.zip")})
    assert "cannot be read" in refusal("promote", {"expert": str(tmp_path / "missing.zip")})
    assert not sprung.exists()
    assert {int(v.version) for v in client.search_model_versions(f"name = '{EXPERT}'")} == {1, 2}


# --- refused after all -----------------------------------------------------------------------------------------------


def test_refusing_an_approved_expert_stops_recording_and_taints_what_came_from_it(story, client):
    promote_clone(story)
    run_stage("promote", PROMOTE, {"expert": "1"}, {"action": "roll_back"})  # 1 demonstrates again, 2 came from it
    outcome = run_stage("promote", PROMOTE, {"expert": "1"}, IMPOSSIBLE)
    assert outcome.failed
    refused = version(client, 1)
    assert refused.tags[VersionTag.GATE] == Gate.REFUSED
    assert Alias.APPROVED in refused.aliases  # a refusal moves no alias
    assert "social_nav-expert/1 is not approved (gate: refused)" in refusal("collect", {})
    reason = taint_of(client, story.collect)
    assert "expert social_nav-expert/1 was refused by run" in reason
    assert taint_of(client, story.pretrain) == reason
    assert version(client, 2).tags[VersionTag.TAINT] == reason
    assert f"dataset {story.dataset} is tainted" in refusal("pretrain", {"dataset": story.dataset})
    assert "is tainted" in refusal("finetune", {"policy": story.pretrain})
    assert "is tainted" in refusal("promote", {"expert": story.pretrain})
    assert "social_nav-expert/2 is tainted" in refusal("promote", {"expert": "2"})


def test_refusing_a_candidate_that_was_never_approved_taints_nothing(story, client):
    run_stage("promote", PROMOTE, {"expert": story.pretrain}, IMPOSSIBLE)
    assert taint_of(client, story.pretrain) is None
    assert VersionTag.TAINT not in version(client, 2).tags


def test_an_expert_that_passes_again_may_demonstrate_again_but_what_was_tainted_stays_so(story, client):
    run_stage("promote", PROMOTE, {"expert": "1"}, IMPOSSIBLE)
    run_stage("promote", PROMOTE, {"expert": "1"}, EASY)
    history = json.loads(version(client, 1).tags[VersionTag.HISTORY])
    assert len(history) == 2
    assert history[0][1] is not None and history[1][1] is None
    assert run_stage("collect", "configs/smoke/collect.yaml", {}, {}).verdict is True
    assert taint_of(client, story.collect) is not None


# --- rolled back -----------------------------------------------------------------------------------------------------


def test_a_roll_back_is_recorded_and_taints_what_came_from_the_version_that_is_given_up(story, client):
    promote_clone(story)
    second = run_stage("collect", "configs/smoke/collect.yaml", {}, {})
    recorded = query.datasets().iloc[0]
    assert (recorded.dataset_id, recorded.demonstrator) == (second.outputs["dataset"], f"{EXPERT}/2")
    outcome = run_stage("promote", PROMOTE, {"expert": "1"}, {"action": "roll_back"})
    assert "rolled back to social_nav-expert/1; version 2 is superseded" in outcome.summary[0]
    assert client.get_model_version_by_alias(EXPERT, Alias.APPROVED).version in (1, "1")
    back, given_up = version(client, 1), version(client, 2)
    assert given_up.tags[VersionTag.GATE] == Gate.SUPERSEDED
    gate_run = back.tags[VersionTag.GATE_RUN_ID]
    assert gate_run in given_up.tags[VersionTag.GATE_REASON]
    assert client.get_run(gate_run).data.tags["mlflow.note.content"].count("rolled back to social_nav-expert/1") == 1
    assert f"expert {EXPERT}/2 was rolled back to {EXPERT}/1" in taint_of(client, recorded.run_id)
    assert taint_of(client, story.collect) is None
    assert "is tainted" in refusal("pretrain", {"dataset": recorded.dataset_id})


def test_nobody_rolls_back_to_what_came_from_the_version_that_is_given_up(story, client):
    promote_clone(story)
    run_stage("promote", PROMOTE, {"expert": "1"}, {"action": "roll_back"})
    message = refusal("promote", {"expert": "2"}, {"action": "roll_back"})
    assert "social_nav-expert/2: it came from social_nav-expert/1, which is given up" in message


# --- a dataset that turns out to be wrong ----------------------------------------------------------------------------


def test_a_quarantine_withdraws_the_approval_of_a_policy_that_was_trained_from_it(story, client, tmp_path):
    promote_clone(story)
    downstream = run_stage("collect", "configs/smoke/collect.yaml", {}, {}).outputs["dataset"]
    outcome = run_stage("validate", "configs/smoke/validate.yaml", {"dataset": story.dataset}, {"min_episodes": "99"})
    assert any("social_nav-expert/2; it was approved, the alias is withdrawn" in line for line in outcome.summary)
    aliases = {number: set(version(client, number).aliases) for number in (1, 2)}
    assert all(Alias.APPROVED not in held for held in aliases.values())
    reason = f"dataset {story.dataset} was quarantined by run"
    assert reason in version(client, 2).tags[VersionTag.TAINT]
    assert "social_nav-expert/2 is tainted" in refusal("collect", {"expert": "2"})
    assert "no such version" in refusal("collect", {})
    # the next generation is reached as well, and the store alone can tell
    chain = query.impact(story.dataset)
    tainted = {node.title.split(":")[0] for node in chain.nodes if reason in node.taint}
    assert {"collect", "pretrain seed 1"} & tainted
    assert reason in query.datasets().set_index("dataset_id").loc[downstream].taint
    assert f"TAINTED: {reason}" in chain.to_text()
    assert story.collect in {node.run_id for node in query.why(f"{EXPERT}/2").nodes}


def test_what_is_made_from_tainted_things_says_so_on_top(story, client):
    run_stage("validate", "configs/smoke/validate.yaml", {"dataset": story.dataset}, {"min_episodes": "99"})
    reason = f"dataset {story.dataset} was quarantined by run"
    outcome = run_stage("evaluate", "configs/smoke/evaluate.yaml", {"policy": story.pretrain}, {"episodes": "5"})
    assert any(line.startswith(f"TAINTED: {reason}") for line in outcome.summary)
    run = query.runs(stage="evaluate").iloc[0]
    assert reason in run.taint
    assert read_text_artifact(client, run.run_id, "statistics.md").startswith(f"> **TAINTED: {reason}")
    # a comparison of runs that came from it would carry the same mark
    with open_run("compare") as compare:
        compare.tag({"lineage.pretrain_run_id": story.pretrain})
        (inherited,) = lineage.inherit_taint(compare)
    assert inherited.startswith(reason)
    assert taint_of(client, compare.run_id) == inherited


def test_the_first_reason_stays(story, client):
    validate = ("validate", "configs/smoke/validate.yaml", {"dataset": story.dataset})
    run_stage(*validate, {"min_episodes": "99"})
    first = taint_of(client, story.pretrain)
    run_stage(*validate, {"min_episodes": "98"})
    assert taint_of(client, story.pretrain) == first


def test_a_policy_from_nowhere_is_not_tainted(client, tmp_path):
    lineage.refuse_tainted(client, SimpleNamespace(version=None, run_id=None, reference="x"), "finetune")


# --- out again -------------------------------------------------------------------------------------------------------


def test_the_approved_policy_leaves_as_a_zip_that_ppo_loads(story, client, tmp_path):
    from stable_baselines3 import PPO

    line = query.export_policy(f"models:/{EXPERT}@approved", str(tmp_path / "out.zip"))
    assert f"{EXPERT}/1" in line
    theirs, ours = PPO.load(tmp_path / "out.zip", device="cpu"), query.load_ppo(f"{EXPERT}@approved")
    observations = np.random.default_rng(0).standard_normal((8, *ours.observation_space.shape)).astype(np.float32)
    np.testing.assert_array_equal(theirs.predict(observations)[0].shape, (8, 2))
    np.testing.assert_array_equal(
        theirs.predict(observations, deterministic=True)[0], ours.predict(observations, deterministic=True)[0]
    )
    with pytest.raises(BadInput, match="must be a new file"):
        query.export_policy(f"{EXPERT}@approved", str(tmp_path / "out.zip"))
    run_stage("promote", PROMOTE, {"expert": "1"}, IMPOSSIBLE)
    with pytest.raises(BadInput, match="is not approved"):
        query.export_policy(f"{EXPERT}@approved", str(tmp_path / "again.zip"))
    with pytest.raises(BadInput, match="not understood"):
        query.export_policy("somebody/1", str(tmp_path / "again.zip"))


def test_the_ppo_of_a_run_and_of_a_version_have_the_weights_on_record(story, client):
    from pipeline.policies import weights_digest
    from pipeline.tracking.models import find_policy

    stored = load_policy(find_policy(client, story.pretrain, "social_nav", {}).folder)
    assert weights_digest(query.load_ppo(story.pretrain).policy) == weights_digest(stored)


def test_exports_from_the_command_line_change_nothing_in_the_store(story, client, tmp_path, capsys):
    from pipeline.cli import ask

    before = (len(query.runs()), len(query.policies()))
    assert ask(["export_dataset", story.dataset, str(tmp_path / "minari")]) == 0
    assert ask(["export_policy", f"{EXPERT}@approved", str(tmp_path / "p.zip")]) == 0
    assert (tmp_path / "minari" / "data" / "main_data.hdf5").is_file() and (tmp_path / "p.zip").is_file()
    assert (len(query.runs()), len(query.policies())) == before
    capsys.readouterr()
    assert ask(["export_dataset", story.dataset, str(tmp_path / "minari")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    run_stage("validate", "configs/smoke/validate.yaml", {"dataset": story.dataset}, {"min_episodes": "99"})
    assert ask(["export_dataset", story.dataset, str(tmp_path / "other")]) == 2
    assert "quarantined" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_list_of_datasets_shows_what_a_person_asks_for(story, capsys):
    from pipeline.cli import ask

    assert ask(["datasets"]) == 0
    shown = capsys.readouterr().out
    for part in (story.dataset, "validated", "24", f"{EXPERT}/1", "8 scenarios, 3 each", story.collect):
        assert part in shown
    assert ask(["datasets", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["coverage"]["frontal_approach_low"] == 3
    assert (row["episodes"], row["quality"], row["taint"]) == (24, "validated", None)
    assert row["recorded"].endswith("Z") and len(row["digest"]) == 36

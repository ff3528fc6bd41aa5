"""Where a task names approvers, the gate's yes waits for one of them; every other way to an approval is refused."""

import getpass
import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_USER

from pipeline import query
from pipeline.config.loading import load_task
from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.names import Alias, Artifact, Gate, Tag, VersionTag
from pipeline.policies import build_policy
from pipeline.policies.sb3 import export_sb3_zip
from pipeline.stages import run_stage
from pipeline.tasks import Task
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.runs import search
from pipeline.tracking.signatures import read_approvers, require_signature
from pipeline.tracking.stage_run import open_run
from pipeline.tracking.store import connect

EXPERT = "social_nav-expert"


def new_key(folder: Path, name: str) -> str:
    """A private key in `folder/name`, and its public line."""
    key = Ed25519PrivateKey.generate()
    ssh = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    (folder / name).write_bytes(key.private_bytes(serialization.Encoding.PEM, *ssh))
    public = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(*public).decode()


class Team:
    """A task file that names alice and whoever trains here as approvers, and stages that work by it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.approvers = folder, folder / "approvers"
        lines = [f"{user} {new_key(folder, user)} {user}@lab" for user in ("alice", getpass.getuser())]
        self.approvers.write_text("# of the lab\n\n" + "\n".join(lines) + "\n")
        new_key(folder, "mallory")
        file = folder / "social_nav.yaml"
        file.write_text(Path("configs/tasks/social_nav.yaml").read_text() + f"approvers: {self.approvers}\n")
        self.task = {"task": str(file)}

    def promote(self, expert: str = "1", **settings: str):
        return run_stage("promote", "configs/smoke/promote.yaml", {"expert": expert}, {**self.task, **settings})

    def sign(self, user: str = "alice", expert: str = "1"):
        return self.promote(expert, sign=str(self.folder / user))

    def collect(self, expert: str = "1"):
        return run_stage("collect", "configs/smoke/collect.yaml", {"expert": expert}, self.task)

    def version(self, number: str = "1"):
        return connect().get_model_version(EXPERT, number)


@pytest.fixture
def team(story, tmp_path) -> Team:
    return Team(tmp_path)


def refusal(work) -> str:
    with pytest.raises(BadInput) as told:
        work()
    return str(told.value)


def test_the_gate_waits_an_approver_signs_and_only_then_an_expert_demonstrates(team):
    assert "was signed by nobody" in refusal(team.collect)  # approved by the gate alone, before there were approvers
    waiting = team.promote()
    assert waiting.verdict is None and "waits for the signature" in waiting.summary[0]
    assert team.version().tags[VersionTag.GATE] == Gate.PENDING
    assert "not approved (gate: pending)" in refusal(team.collect)
    assert "Waits for the signature of an approver." in team.version().description
    signed = team.sign()
    assert (signed.verdict, signed.outputs["expert"]) == (True, f"models:/{EXPERT}/1")
    tags = team.version().tags
    assert (tags[VersionTag.GATE], tags[VersionTag.APPROVED_BY]) == (Gate.APPROVED, "alice")
    assert tags[VersionTag.GATE_RUN_ID] == waiting.run_id
    page = team.version().description
    assert "Signed by `alice`" in page and "Waits for" not in page and "success_rate" in page
    assert connect().get_run(waiting.run_id).data.tags[Tag.VERDICT] == "yes"
    assert team.collect().verdict is True
    assert "does not wait for a signature (gate: approved); it is signed" in refusal(team.sign)


def test_an_expert_that_the_gate_approved_before_there_were_approvers_is_signed_as_it_is(team):
    team.sign()
    assert team.collect().verdict is True


def test_who_may_not_sign(team):
    team.promote(rules="[{scenario_set: train_small, metric: success_rate, min: 1.1}]")
    assert "does not wait for a signature (gate: refused)" in refusal(team.sign)
    team.promote()
    assert "was trained by" in refusal(lambda: team.sign(getpass.getuser()))
    assert "is of nobody in" in refusal(lambda: team.sign("mallory"))
    assert "cannot be read as a private OpenSSH key" in refusal(lambda: team.sign("approvers"))
    assert "exclude each other" in refusal(lambda: team.promote(action="roll_back", sign="alice"))
    team.task = {}
    assert "names no approvers" in refusal(team.sign)
    assert VersionTag.SIGNATURE not in connect().get_model_version(EXPERT, "1").tags


def test_nobody_signs_the_policy_of_a_seed_that_they_trained(team, story):
    client = connect()
    seed = search(client, {MLFLOW_PARENT_RUN_ID: story.pretrain, Tag.STAGE: "pretrain_seed"})[0].info.run_id
    team.promote(seed)  # registered as version 2
    assert team.version("2").run_id == seed

    def try_to_sign() -> str:
        return refusal(lambda: team.sign(getpass.getuser(), "2"))

    assert "was trained by" in try_to_sign()
    client.delete_tag(seed, MLFLOW_USER)  # as in stores made before the runs of seeds named a user
    assert "was trained by" in try_to_sign()
    client.delete_tag(story.pretrain, MLFLOW_USER)
    assert "names no user" in try_to_sign()


def test_who_logs_in_at_a_server_is_who_trained_whatever_the_system_calls_them(team, story, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    monkeypatch.setenv("LOGNAME", "somebody")
    with open_run("pretrain") as run, Forwarder(run) as forwarder:
        child = forwarder.child("seed", {})
    client = connect()
    assert [client.get_run(one.run_id).data.tags[MLFLOW_USER] for one in (run, child)] == ["alice", "alice"]
    client.set_tag(team.version().run_id, MLFLOW_USER, "alice")
    team.promote()
    assert "was trained by 'alice'" in refusal(team.sign)


def test_what_was_signed_is_one_version_its_bytes_and_what_the_gate_found(team, story):
    client = connect()
    gate = team.promote().run_id
    team.sign()

    def holds() -> None:
        require_signature(client, team.version(), str(team.approvers), "collect")

    holds()
    found = json.loads(Path(client.download_artifacts(gate, Artifact.DIAGNOSTICS_JSON)).read_text())
    better = {**found, "rows": [{**row, "value": 1.0} for row in found["rows"]]}
    for tag, other in ((VersionTag.POLICY_DIGEST, "0" * 36), (VersionTag.GATE_RUN_ID, story.collect)):
        before = team.version().tags[tag]
        client.set_model_version_tag(EXPERT, "1", tag, other)
        with pytest.raises(BadInput):
            holds()
        client.set_model_version_tag(EXPERT, "1", tag, before)
    holds()
    client.log_text(gate, json.dumps(better), Artifact.DIAGNOSTICS_JSON)
    assert "is not of this version, policy and findings" in refusal(holds)
    client.log_text(gate, json.dumps(found), Artifact.DIAGNOSTICS_JSON)


@pytest.mark.slow
def test_a_signature_of_another_version_and_an_alias_moved_by_hand_count_for_nothing(team, story):
    client = connect()
    team.promote()
    team.sign()
    team.promote(story.pretrain)  # version 2 waits
    signed = team.version().tags
    for tag in (VersionTag.GATE, VersionTag.APPROVED_AT, VersionTag.HISTORY):
        client.set_model_version_tag(EXPERT, "2", tag, signed[tag])
    client.set_registered_model_alias(EXPERT, Alias.APPROVED, "2")
    assert "was signed by nobody" in refusal(lambda: team.collect("2"))
    for tag in (VersionTag.APPROVED_BY, VersionTag.SIGNATURE):
        client.set_model_version_tag(EXPERT, "2", tag, signed[tag])
    assert "the signature of 'alice' is not of this version" in refusal(lambda: team.collect("2"))
    client.set_model_version_tag(EXPERT, "2", VersionTag.APPROVED_BY, "mallory")
    assert "who is not in" in refusal(lambda: team.collect("2"))


@pytest.mark.slow
def test_a_roll_back_asks_for_the_signature_and_keeps_it(team, story):
    team.promote()
    team.sign()
    team.promote(story.pretrain)
    team.sign(expert="2")
    assert team.promote(expert="1", action="roll_back").verdict is True
    assert team.collect("1").verdict is True


@pytest.mark.slow
def test_main_stops_for_the_signature_and_goes_on_after_it(team, tmp_path):
    task = Task(load_task("configs/tasks/social_nav.yaml"))
    theirs = build_policy(task.observation_space, task.action_space, Network(hidden=(8,)), seed=4)
    export_sb3_zip(theirs, tmp_path / "another.zip")
    stages = ("train_expert", "promote", "collect", "pretrain", "finetune", "compare")
    settings = {f"{stage}.task": team.task["task"] for stage in stages}
    settings |= {"ppo_timesteps": "0", "pretrain.seeds": "[1]", "pretrain.cloning.epochs": "2"}

    def work():
        return run_stage("main", "configs/smoke/main.yaml", {"expert": str(tmp_path / "another.zip")}, settings)

    stopped = work()
    assert stopped.verdict is None and "after the signature" in stopped.summary[0]
    waiting = query.policies("social_nav").iloc[0]
    assert waiting["gate"] == Gate.PENDING
    team.sign(expert=str(waiting["version"]))
    work()
    gates = query.runs(stage="promote", limit=2)
    assert list(gates["run_id"])[1:] == [waiting["gate_run_id"]]  # behind that of the signature: no other gate was run
    assert len(query.runs(stage="pretrain")) == 2  # that of the story, and this one


def test_an_export_asks_for_the_signature(team, tmp_path, monkeypatch):
    (tmp_path / "configs" / "tasks").mkdir(parents=True)
    Path(team.task["task"]).rename(tmp_path / "configs" / "tasks" / "social_nav.yaml")
    monkeypatch.chdir(tmp_path)
    assert "was signed by nobody" in refusal(lambda: query.export_policy(f"{EXPERT}/1", "out.zip"))
    assert not Path("out.zip").exists()


def test_a_list_of_approvers_names_the_line_that_is_wrong(tmp_path):
    one = new_key(tmp_path, "one")
    for number, text in ((1, f"{one}\n"), (2, f"alice {one}\nalice {one}\n"), (1, "alice ssh-ed25519 AAAA\n")):
        (tmp_path / "list").write_text(text)
        assert re.search(
            rf"list, line {number}: .*no further approver", refusal(lambda: read_approvers(tmp_path / "list"))
        )
    assert "cannot be read" in refusal(lambda: read_approvers(tmp_path / "no such"))

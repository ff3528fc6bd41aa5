"""Wrong inputs of every stage, and things that must not be used: one line, code 2, a run that failed with that line."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from project import GROUP, ROOT, TASK

from pipeline import query
from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.names import POLICY_WEIGHTS_FILE, Alias, Gate, Quality, Tag, VersionTag
from pipeline.policies import build_policy, save_policy
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect

NOTE = "mlflow.note.content"
UNKNOWN = "0" * 32
IMPOSSIBLE = "[{scenario_set: train_small, metric: success_rate, min: 1.0}]"
EASY = "[{scenario_set: train_small, metric: success_rate, min: 0.0}]"


def newest(stage: str):
    return search(connect(), {Tag.STAGE: stage}, limit=1, status=None)[0]


def finished(stage: str, **tags: str):
    return search(connect(), {Tag.STAGE: stage, **tags}, limit=1)[0].info.run_id


@pytest.fixture
def refused(stage):
    """Run a stage that must end with code 2; returns its line, after holding the run to it."""

    def run(name: str, *arguments: str) -> str:
        code, _, errors = stage(name, *arguments)
        assert code == 2, errors
        (line,) = errors.splitlines()
        assert line.startswith("error: ")
        line = line.removeprefix("error: ")
        last = newest(name)
        assert (last.info.status, last.data.tags[NOTE]) == ("FAILED", line)
        return line

    return run


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("train_expert", ["--training.ppo.n_step", "64"], ["'training.ppo.n_step'", "Did you mean 'n_steps'?"]),
        ("train_expert", ["--training.ppo.gamma", "1.5"], ["training.ppo.gamma = 1.5", "less than or equal to 1"]),
        ("train_expert", ["--training.ppo.learning_rate", "1"], ["use training.learning_rate"]),
        ("train_expert", ["--training.scenario_set", "holdout"], ["'holdout'", "hold-out", "training must not"]),
        ("train_expert", ["--training.scenario_set", "trian"], ["'trian'", "Did you mean 'train'?"]),
        ("train_expert", ["--training.environment.reward_name", "progres"], ["reward_name", "'progres'", "'progress'"]),
        ("train_expert", ["--training.environment.reward", "x"], ["'reward'"]),
        ("train_expert", ["--seeds", "[1, 1]"], ["seeds must be distinct"]),
        ("train_expert", ["--task", "configs/tasks/nowhere.yaml"], ["configs/tasks/nowhere.yaml", "no such file"]),
        ("baseline", ["--training.scenario_set", "holdout"], ["'holdout'", "training must not"]),
        ("baseline", ["--training.ppo.device", "cuda"], ["training.ppo", "device"]),
        ("promote", ["--expert", "9"], ["9", "no such version"]),
        ("promote", ["--expert", UNKNOWN], [UNKNOWN, "no such run"]),
        ("promote", ["--expert", "other-expert/1"], ["other-expert/1", "another task"]),
        ("promote", ["--expert", "nowhere.zip"], ["nowhere.zip"]),
        ("promote", ["--rules", "[{scenario_set: trian, metric: success_rate, min: 0}]"], ["'trian'", "'train'"]),
        ("promote", ["--rules", "[]"], ["rules"]),
        ("promote", ["--episodes", "99"], ["episodes = 99", "100"]),
        ("promote", ["--action", "roll_back"], ["expert 'latest'", "name the version"]),
        ("promote", ["--action", "roll_back", "--expert", "1"], ["it is the approved version already"]),
        ("collect", ["--expert", "9"], ["no such version"]),
        ("collect", ["--expert", "nothing at all"], ["no model reference"]),
        ("collect", ["--scenario_set", "holdout"], ["'holdout'", "recording must not"]),
        ("collect", ["--scripted.demonstrator", "nowhere:Nobody"], ["cannot import 'nowhere'"]),
        ("collect", ["--scripted.demonstrator", "numpy:ndarray"], ["numpy:ndarray", "no method reset()"]),
        ("collect", ["--scripted.demonstrator", "json:JSONDecoder"], ["json", "Python's own modules"]),
        ("collect", ["--scripted.demonstrator", "Nobody"], ["module:Name"]),
        ("collect", ["--noise.std", "-1"], ["noise.std = -1"]),
        ("collect", ["--environment.densty", "low"], ["'densty'"]),
        ("validate", ["--dataset", UNKNOWN], [UNKNOWN, "no such run"]),
        ("validate", ["--dataset", "social_nav-0000"], ["social_nav-0000", "no such dataset"]),
        ("playback", ["--dataset", "what is this"], ["dataset", "give a dataset id"]),
        ("playback", ["--episodes", "[0, 24]"], ["24"]),
        ("pretrain", ["--dataset", UNKNOWN], [UNKNOWN, "no such run"]),
        ("pretrain", ["--dataset", "social_nav-0000"], ["no such dataset"]),
        ("pretrain", ["--scenario_set", "holdout"], ["'holdout'"]),
        ("pretrain", ["--cloning.loss", "mae"], ["cloning.loss = 'mae'", "'nll' or 'mse'"]),
        ("finetune", ["--policy", UNKNOWN], [UNKNOWN, "no such run"]),
        ("finetune", ["--policy", "nowhere"], ["'nowhere'", "unknown"]),
        ("finetune", ["--training.network.hidden", "[17]"], ["network"]),
        ("finetune", ["--training.scenario_set", "holdout"], ["'holdout'"]),
        ("evaluate", ["--policy", UNKNOWN], [UNKNOWN, "no such run"]),
        ("evaluate", ["--scripted.demonstrator", "nowhere:Nobody"], ["cannot import 'nowhere'"]),
        ("evaluate", ["--policy", "a", "--scripted.demonstrator", "json:dumps"], ["policy 'a'", "exclude each other"]),
        ("collect", ["--expert", "1", "--scripted.demonstrator", "json:dumps"], ["expert '1'", "exclude each other"]),
        ("evaluate", ["--policy", "social_nav-expert@best"], ["no such version"]),
        ("evaluate", ["--scenario_set", "holdot"], ["'holdot'", "Did you mean 'holdout'?"]),
        ("compare", ["--group", "nothing"], ["group 'nothing'", "mlflow run . -e"]),
        ("compare", ["--group", "a'b"], ["group", "letters, digits"]),
        ("compare", ["--target", "{sucess_rate: {min: 0.5}}"], ["sucess_rate"]),
        ("compare", ["--patience", "0"], ["patience = 0"]),
        ("main", ["--stages.collect", "configs/smoke/nowhere.yaml"], ["configs/smoke/nowhere.yaml", "no such file"]),
        ("main", ["--stages.collect", "configs/smoke/pretrain.yaml"], ["configs/smoke/pretrain.yaml", "unknown key"]),
        ("main", ["--ppo_timesteps", "-1"], ["ppo_timesteps = -1"]),
        ("main", ["--learning_rate", "0"], ["learning_rate = 0"]),
        ("main", ["--expert", "9", "--ppo_timesteps", "0"], ["no such version"]),
    ],
)  # fmt: skip
def test_a_wrong_input_is_one_line_code_2_and_the_description_of_the_failed_run(refused, name, arguments, parts):
    line = refused(name, *arguments)
    assert all(part in line for part in parts), line


# --- experts ---------------------------------------------------------------------------------------------------------


def test_a_refused_candidate_ends_with_code_1_changes_no_alias_and_cannot_be_recorded_from(stage, refused):
    fine_tuned = finished("finetune_seed", arm="pretrained")
    code, out, errors = stage("promote", "--expert", fine_tuned, "--rules", IMPOSSIBLE, "--training_seeds", "false")
    assert (code, errors) == (1, "promote: warning: no rule is held against holdout, which no training sees\n")
    assert "social_nav-expert/2 REFUSED" in out
    gate = newest("promote")
    assert gate.info.status == "FAILED"
    assert gate.data.tags[Tag.VERDICT] == "no"
    about = gate.data.tags[NOTE]
    assert "social_nav-expert/2 REFUSED" in about and "- candidate, train_small, seed 101: success_rate" in about
    version = connect().get_model_version("social_nav-expert", "2")
    assert version.tags[VersionTag.GATE] == Gate.REFUSED
    assert "success_rate" in version.tags[VersionTag.GATE_REASON]
    assert version.tags[VersionTag.GATE_RUN_ID] == gate.info.run_id
    assert int(connect().get_model_version_by_alias("social_nav-expert", Alias.APPROVED).version) == 1
    before = len(search(connect(), {Tag.STAGE: "collect"}, status=None))
    for reference in ("2", "models:/social_nav-expert@candidate"):
        line = refused("collect", "--expert", reference)
        assert "social_nav-expert/2 is not approved (gate: refused)" in line
    recorded = search(connect(), {Tag.STAGE: "collect"}, status=None)
    assert len(recorded) == before + 2
    assert not any(Tag.DATASET_ID in run.data.tags for run in recorded[:2])  # nothing half-written


def test_a_fine_tuned_policy_becomes_the_next_expert_and_the_first_can_be_rolled_back_to(stage):
    fine_tuned = finished("finetune_seed", arm="pretrained", seed="1")
    code, out, _ = stage("promote", "--expert", fine_tuned, "--rules", EASY)
    assert code == 0
    assert "social_nav-expert/2 approved" in out
    assert "replaces version 1" in out
    chain = {node.run_id for node in query.why("social_nav-expert/2").nodes}
    assert {finished("train_expert"), finished("collect"), finished("pretrain"), fine_tuned} <= chain
    code, out, _ = stage("promote", "--expert", "1", "--action", "roll_back")
    assert code == 0
    assert "rolled back to social_nav-expert/1; version 2 is superseded" in out
    assert int(connect().get_model_version_by_alias("social_nav-expert", Alias.APPROVED).version) == 1


@pytest.fixture
def own(tmp_path):
    """Have this test's store name a copy of the artifacts that a file is among, which may be spoilt; gives the copy."""

    def copied_file(file: Path) -> Path:
        *_, root = (folder for folder in file.parents if folder.name == "artifacts")  # a model has one within it
        copy = tmp_path / "own" / root.parent.name / "artifacts"
        shutil.copytree(root, copy)
        with sqlite3.connect(tmp_path / "mlflow.db") as connection:
            places = {
                "runs": "artifact_uri",
                "logged_models": "artifact_location",
                "model_versions": "storage_location",
            }
            for table, column in places.items():
                connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(root), str(copy)))
        return copy / file.relative_to(root)

    return copied_file


def spoil(file: Path) -> None:
    """Change a byte."""
    changed = bytearray(file.read_bytes())
    changed[len(changed) * 3 // 4] ^= 1
    file.write_bytes(bytes(changed))


def test_an_expert_whose_policy_file_changed_is_refused_by_name_wherever_it_is_used(projects, refused, own):
    version = connect().get_model_version("social_nav-expert", "1")
    model = connect().get_logged_model(version.source.removeprefix("models:/"))
    (weights,) = projects[0].folder.glob(f"mlartifacts/**/{model.model_id}/**/{POLICY_WEIGHTS_FILE}")
    spoil(own(weights))
    for name, arguments in (
        ("collect", ["--expert", "latest"]),
        ("promote", ["--expert", "1"]),
        ("evaluate", ["--policy", "social_nav-expert/1"]),
    ):
        line = refused(name, *arguments)
        assert "social_nav-expert/1" in line
        assert "files changed" in line


# --- datasets and clones ---------------------------------------------------------------------------------------------


def test_a_quarantined_or_tainted_dataset_is_never_trained_on(refused):
    collect = finished("collect")
    connect().set_tag(collect, Tag.DATASET_QUALITY, Quality.QUARANTINED)
    assert "only a validated dataset can be trained on" in refused("pretrain")
    connect().set_tag(collect, Tag.DATASET_QUALITY, Quality.VALIDATED)
    connect().set_tag(collect, Tag.TAINT, "its expert cheated")
    assert "tainted: its expert cheated" in refused("pretrain")


def test_a_dataset_whose_bytes_changed_is_never_trained_on(projects, refused, own):
    (arrays,) = projects[0].folder.glob(f"mlartifacts/**/{finished('collect')}/**/trajectories.npz")
    spoil(own(arrays))
    assert "trajectories.npz cannot be read" in refused("pretrain")


def test_a_policy_of_which_nothing_says_what_it_is_is_not_fine_tuned(refused, projects):
    (folder,) = projects[0].folder.glob(f"mlartifacts/**/{finished('pretrain')}/artifacts/policy")
    assert "is of no run" in refused("finetune", "--policy", str(folder))


def clone_of_seed(projects, seed: int, file: str):
    """A file of the run of one seed's clone."""
    (found,) = projects[0].folder.glob(f"mlartifacts/**/{finished('pretrain_seed', seed=str(seed))}/artifacts/{file}")
    return found


def test_a_clone_whose_files_changed_is_not_fine_tuned(projects, refused, own):
    spoil(own(clone_of_seed(projects, 2, f"policy/{POLICY_WEIGHTS_FILE}")))
    line = refused("finetune", "--policy", finished("pretrain"))
    assert "files changed" in line
    assert finished("pretrain_seed", seed="2") in line


def test_a_seed_without_a_clone_of_its_own_is_refused(refused):
    line = refused("finetune", "--seeds", "[1, 2, 9]")
    assert "no clone of seed 9" in line
    assert "[1, 2, 3]" in line


def test_a_forged_certificate_is_refused(projects, refused, own):
    file = own(clone_of_seed(projects, 1, "transfer_certificate.json"))
    forged = json.loads(file.read_text())
    forged["tensors"][next(iter(forged["tensors"]))] = "0" * 36
    file.write_text(json.dumps(forged))
    line = refused("finetune", "--policy", finished("pretrain"))
    assert "transfer certificate" in line
    assert "run pretrain again" in line
    file.unlink()
    assert "no transfer certificate" in refused("finetune", "--policy", finished("pretrain"))


def test_clones_of_one_seed_from_two_runs_are_refused_by_the_seed(refused):
    twice = finished("pretrain")
    assert "a run before it has a clone of seed 1 too" in refused("finetune", "--policy", f"{twice},{twice}")


def test_what_is_written_for_others_has_an_ending_that_is_known_and_replaces_nothing(changeable):
    with pytest.raises(BadInput, match="its ending says the format"):
        query.export_policy(finished("finetune_seed"), str(changeable / "policy.exe"))
    file = changeable / "baseline.json"
    assert query.fit_snqi_baseline(finished("collect"), str(file)).startswith("SNQI baseline of ")
    written = file.read_bytes()
    with pytest.raises(BadInput, match="exists; give a new one"):
        query.fit_snqi_baseline(finished("collect"), str(file))
    assert file.read_bytes() == written and not (changeable / "policy.exe").exists()


def test_a_policy_of_other_spaces_is_refused_before_it_acts(refused, tmp_path):
    other = build_policy(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), Network(hidden=(4,)), 1)
    save_policy(other, tmp_path / "other", {})
    line = refused("evaluate", "--policy", str(tmp_path / "other"))
    assert f"does not fit task '{TASK}': its observation_space" in line


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_arms_that_differ_in_more_than_initial_weights_are_not_compared(refused):
    connect().set_tag(finished("baseline"), Tag.TRAINING_DIGEST, "another")
    assert "differ in more than initial weights" in refused("compare", "--group", GROUP)


def test_a_training_that_did_not_finish_is_not_compared(refused):
    run_id = finished("finetune_seed", arm="pretrained")
    connect().set_terminated(run_id, status="FAILED")
    line = refused("compare", "--group", GROUP)
    assert run_id in line
    assert "not FINISHED" in line


def test_a_group_without_a_baseline_is_not_compared(refused):
    connect().set_tag(finished("baseline"), Tag.GROUP, "elsewhere")
    line = refused("compare", "--group", GROUP)
    assert f"group '{GROUP}' has no finished baseline of task '{TASK}'" in line
    assert f"mlflow run . -e baseline --env-manager local -P group={GROUP}" in line


def test_stage_configs_of_different_tasks_do_not_make_a_main(refused, tmp_path):
    task = (ROOT / "configs/tasks/social_nav.yaml").read_text().replace("name: social_nav", "name: other_nav")
    (tmp_path / "other.yaml").write_text(task)
    (tmp_path / "collect.yaml").write_text(f"task: {tmp_path}/other.yaml\nscenario_set: train_small\n")
    line = refused("main", "--stages.collect", str(tmp_path / "collect.yaml"))
    assert "different tasks" in line
    assert "other_nav" in line

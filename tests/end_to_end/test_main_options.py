"""Every option of `main` has its effect; a setting that is not given leaves the stages' own configs as they are."""

from pathlib import Path

import pytest

from pipeline.config.loading import load, to_data
from pipeline.config.stages import Collect, Compare, Finetune, Main, Pretrain, Promote, TrainExpert
from pipeline.errors import BadInput
from pipeline.names import Artifact, Tag
from pipeline.stages.main import Plan, plan
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    "train_expert": TrainExpert, "promote": Promote, "collect": Collect, "pretrain": Pretrain, "finetune": Finetune,
    "compare": Compare,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_repository(in_repository):
    """Configs are named relative to the repository."""


def planned(**options) -> Plan:
    return plan(load(Main, "configs/smoke/main.yaml", {key: str(value) for key, value in options.items()}))


def changes(**options) -> dict[str, object]:
    """Dotted settings that the options change, against the stages' own configs."""
    own = {stage: load(cls, f"configs/smoke/{stage}.yaml") for stage, cls in CLASSES.items()}
    chosen = planned(**options)
    found: dict[str, object] = {}
    for stage in CLASSES:
        collect_differences(stage, to_data(own[stage]), to_data(getattr(chosen, stage)), found)
    return found


def collect_differences(key: str, before: object, after: object, found: dict[str, object]) -> None:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() | after.keys():
            collect_differences(f"{key}.{name}", before.get(name), after.get(name), found)
    elif before != after:
        found[key] = after


def test_without_options_every_stage_keeps_its_own_config():
    assert changes() == {}


def test_demonstration_episodes_is_what_collect_records():
    assert changes(demonstration_episodes=50) == {"collect.episodes": 50}


def test_use_camera_is_for_what_comes_after_the_expert():
    assert changes(use_camera=True) == {"pretrain.use_camera": True, "finetune.training.use_camera": True}
    assert changes(use_camera=False) == {}


def test_cloning_epochs_is_what_pretrain_clones():
    assert changes(cloning_epochs=9) == {"pretrain.cloning.epochs": 9}


def test_ppo_timesteps_is_the_budget_of_both_arms_and_not_of_the_expert():
    assert changes(ppo_timesteps=2048) == {"finetune.training.total_timesteps": 2048}


def test_parallel_environments_is_what_trainings_step():
    assert changes(parallel_environments=4) == {"train_expert.training.n_envs": 4, "finetune.training.n_envs": 4}


def test_visualize_every_is_asked_of_both_arms():
    assert changes(visualize_every=512) == {"finetune.training.visualize_every": 512}


def test_learning_rate_is_constant_over_both_arms():
    assert changes(learning_rate="1e-4") == {"finetune.training.learning_rate.initial": 1e-4}


def test_learning_rate_replaces_a_schedule_whole(tmp_path):
    own = (ROOT / "configs/smoke/finetune.yaml").read_text()
    falling = own.replace("training:\n", "training:\n  learning_rate: {initial: 1.0e-3, final: 1.0e-5}\n")
    assert falling != own
    (tmp_path / "finetune.yaml").write_text(falling)
    stages = {"stages.finetune": str(tmp_path / "finetune.yaml")}
    assert planned(**stages).finetune.training.learning_rate.final == 1e-5
    rate = planned(**stages, learning_rate="3e-4").finetune.training.learning_rate
    assert (rate.initial, rate.final) == (3e-4, None)


def test_seed_is_the_first_of_consecutive_seeds_of_every_stage():
    assert changes(seed=20) == {
        "train_expert.seeds": [20, 21],
        "collect.seeds": [20, 21, 22],
        "pretrain.seeds": [20, 21, 22],
        "finetune.seeds": [20, 21, 22],
    }


def test_matched_seeds_is_how_many_are_compared():
    assert changes(matched_seeds=5) == {"pretrain.seeds": [1, 2, 3, 4, 5], "finetune.seeds": [1, 2, 3, 4, 5]}
    assert planned(matched_seeds=2, seed=7).finetune.seeds == (7, 8)


def test_a_fault_in_any_stage_config_is_found_before_the_first_stage(tmp_path):
    (tmp_path / "compare.yaml").write_text("task: configs/tasks/social_nav.yaml\npatiense: 3\n")
    with pytest.raises(BadInput, match=r"unknown key 'patiense'. Did you mean 'patience'"):
        planned(**{"stages.compare": tmp_path / "compare.yaml"})


def test_stages_that_would_share_their_evaluation_episodes_are_refused(tmp_path):
    own = (ROOT / "configs/smoke/pretrain.yaml").read_text()
    assert "seed: 6" in own
    (tmp_path / "pretrain.yaml").write_text(own.replace("seed: 6", "seed: 5"))
    with pytest.raises(BadInput, match=r"train_expert.* = 5, pretrain.* = 5.*must differ"):
        planned(**{"stages.pretrain": tmp_path / "pretrain.yaml"})


# --- options that only show when it runs -----------------------------------------------------------------------------


def stages_run(parent: str) -> list[str]:
    """Stages that ran under a parent, in their order."""
    runs = search(connect(), {"mlflow.parentRunId": parent}, status=None)
    return [run.data.tags[Tag.STAGE] for run in reversed(runs)]


def main_run(since: set[str]):
    (run,) = [r for r in search(connect(), {Tag.STAGE: "main"}, status=None) if r.info.run_id not in since]
    return run


def test_an_expert_that_is_given_is_not_trained_and_without_ppo_steps_the_clone_is_the_end(stage):
    arguments = ["--expert", "latest", "--ppo_timesteps", "0", "--demonstration_episodes", "20"]
    code, out, errors = stage("main", *arguments, "--cloning_epochs", "1", "--matched_seeds", "1")
    assert code == 0, errors
    assert "no fine-tuning, no comparison" in out
    assert stages_run(main_run(set()).info.run_id) == ["collect", "pretrain"]
    newest = {s: search(connect(), {Tag.STAGE: s}, limit=1)[0] for s in ("collect", "pretrain")}
    assert newest["collect"].data.metrics["dataset/episodes"] == 20
    assert newest["pretrain"].data.params["cfg.cloning.epochs"] == "1"


def test_without_pretraining_only_the_baseline_is_trained_with_the_budget_that_was_asked_for(stage):
    arguments = [
        "--skip_pretrain",
        "true",
        "--ppo_timesteps",
        "1024",
        "--matched_seeds",
        "1",
        "--learning_rate",
        "1e-4",
    ]
    code, out, errors = stage("main", *arguments, "--parallel_environments", "8", "--visualize_every", "1000")
    assert code == 0, errors
    assert "PPO from scratch only" in out
    parent = main_run(set()).info.run_id
    assert stages_run(parent) == ["baseline"]
    (seed,) = search(connect(), {Tag.GROUP: parent, Tag.STAGE: "baseline_seed", Tag.ARM: "scratch"})
    assert seed.data.metrics["bill/environment_steps"] == 1024
    assert seed.data.metrics["train/learning_rate"] == pytest.approx(1e-4)
    pictures = [Path(item.path) for item in connect().list_artifacts(seed.info.run_id, Artifact.PLAYBACK)]
    assert [picture.stem for picture in pictures] == ["step-000000000", "step-000001024"]  # the first from 1000 on
    (control,) = search(connect(), {Tag.GROUP: parent, Tag.STAGE: "baseline_seed", Tag.ARM: "scratch_lr0"})
    assert connect().list_artifacts(control.info.run_id, Artifact.PLAYBACK) == []  # it never changes


def test_a_policy_that_is_given_is_not_cloned_again_and_the_experiment_is_the_one_that_was_named(stage):
    (clone,) = search(connect(), {Tag.STAGE: "pretrain"})
    arguments = ["--policy", clone.info.run_id, "--ppo_timesteps", "0", "--experiment_name", "my experiment"]
    code, _, errors = stage("main", *arguments)
    assert code == 0, errors
    runs = search(connect(), {Tag.STAGE: "main"}, status=None)
    names = {connect().get_experiment(run.info.experiment_id).name for run in runs}
    assert "my experiment" in names
    (inside,) = [r for r in runs if connect().get_experiment(r.info.experiment_id).name == "my experiment"]
    assert inside.info.status == "FINISHED"
    assert stages_run(inside.info.run_id) == []


def test_an_expert_that_the_gate_refuses_stops_main_with_code_1_before_anything_is_recorded(stage, tmp_path):
    rules = "rules: [{scenario_set: train_small, metric: success_rate, min: 1.0}]\nepisodes: 100\nseeds: [101]\n"
    (tmp_path / "promote.yaml").write_text(f"task: configs/tasks/social_nav.yaml\n{rules}")
    before = len(search(connect(), {Tag.STAGE: "collect"}, status=None))
    code, out, _ = stage("main", "--stages.promote", str(tmp_path / "promote.yaml"), "--experiment_name", "refused")
    assert code == 1
    assert "REFUSED" in out
    assert "nothing after it was run" in out
    assert len(search(connect(), {Tag.STAGE: "collect"}, status=None)) == before
    assert {run.info.status for run in search(connect(), {Tag.STAGE: "main"}, status=None)} == {"FAILED"}

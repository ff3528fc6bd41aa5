"""Every option of `main` has its effect; a setting that is not given leaves the stages' own configs as they are."""

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipeline.config.loading import load, to_data
from pipeline.config.stages import Collect, Compare, Finetune, Main, Pretrain, Promote, TrainExpert
from pipeline.errors import BadInput
from pipeline.names import Artifact, Tag
from pipeline.stages import run_stage
from pipeline.stages.main import Plan, plan
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    "train_expert": TrainExpert, "promote": Promote, "collect": Collect, "pretrain": Pretrain, "finetune": Finetune,
    "compare": Compare,
}  # fmt: skip
CONSECUTIVE = ("collect", "pretrain", "finetune")


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


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ({"demonstration_episodes": 50}, {"collect.episodes": 50}),
        # the camera is for what comes after the expert
        ({"use_camera": True}, {"pretrain.use_camera": True, "finetune.training.use_camera": True}),
        ({"use_camera": False}, {}),
        ({"cloning_epochs": 9}, {"pretrain.cloning.epochs": 9}),
        ({"ppo_timesteps": 2048}, {"finetune.training.total_timesteps": 2048}),  # of both arms, not of the expert
        ({"ppo_timesteps": 0}, {}),
        ({"parallel_environments": 4}, {"train_expert.training.n_envs": 4, "finetune.training.n_envs": 4}),
        ({"visualize_every": 512}, {"finetune.training.visualize_every": 512}),
        ({"learning_rate": "1e-4"}, {"finetune.training.learning_rate.initial": 1e-4}),
        ({"reuse": False}, {"finetune.reuse": False}),
        ({"seed": 0}, {"train_expert.seeds": [0, 1], **{f"{s}.seeds": [0, 1, 2] for s in CONSECUTIVE}}),
        ({"seed": 20}, {"train_expert.seeds": [20, 21], **{f"{s}.seeds": [20, 21, 22] for s in CONSECUTIVE}}),
        ({"matched_seeds": 5}, {"pretrain.seeds": [1, 2, 3, 4, 5], "finetune.seeds": [1, 2, 3, 4, 5]}),
    ],
    ids=str,
)
def test_an_option_sets_what_it_says_in_the_stages_and_nothing_else(option, changed):
    assert changes(**option) == changed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"datasets": 2}, "datasets = 2: too few for an interval over them; 1, or at least 3"),
        ({"datasets": 3, "matched_seeds": 4}, r"4 matched seeds \[1, 2, 3, 4\] cannot be shared out evenly"),
        ({"datasets": 4}, "cannot be shared out evenly"),
    ],
)
def test_datasets_that_would_say_nothing_are_refused(options, said):
    with pytest.raises(BadInput, match=said):
        planned(**options)


def test_an_arm_with_demonstrations_of_its_own_has_no_place_beside_several_datasets():
    with pytest.raises(BadInput, match="datasets = 3: arm 'few' of finetune has demonstrations of its own"):
        overridden({"finetune.arms": "{few: {warm_start: adaptive, episodes: 12}}"}, datasets=3)
    assert overridden({"finetune.arms": "[naive]"}, datasets=3).finetune.seeds == (1, 2, 3)


def overridden(overrides: dict[str, str], **options) -> Plan:
    config = load(Main, "configs/smoke/main.yaml", {key: str(value) for key, value in options.items()})
    return plan(replace(config, overrides=overrides))


def test_any_setting_of_a_stage_is_overridden_under_the_name_of_the_stage_whatever_main_says():
    own = overridden({})
    changed = overridden(
        {"finetune.warm_start.clone_penalty": "0.1", "promote.episodes": "150", "collect.episodes": "30"},
        demonstration_episodes=50,
    )
    assert (changed.finetune.warm_start.clone_penalty, changed.promote.episodes) == (0.1, 150)
    assert changed.collect.episodes == 30
    assert changed.compare == own.compare and changed.pretrain == own.pretrain
    assert overridden({"finetune.seeds": "[8, 9]"}, seed=3).finetune.seeds == (8, 9)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("finetune.training.total_timestep", "1", r"configs/smoke/finetune.yaml.*Did you mean 'total_timesteps'"),
        ("collect.episodes", "many", r"configs/smoke/collect.yaml.*episodes = 'many'"),
        ("baseline.seeds", "[1]", r"'baseline.seeds' is of no stage config that it uses; there are: collect"),
        ("evaluate.seed", "1", r"'evaluate.seed' is of no stage config"),
        ("collect", "mine.yaml", r"'collect' names no setting; a stage's config is given as -P stages\.collect="),
    ],
)
def test_an_override_that_no_stage_takes_is_refused_as_that_stage_would(store, key, value, said):
    with pytest.raises(BadInput, match=said):
        run_stage("main", "configs/smoke/main.yaml", {}, {key: value})


@pytest.mark.parametrize(
    ("upstream", "options", "said"),
    [
        ({}, {"finetune.training.scenario_set": "tarin"}, "'tarin' is not defined .* Did you mean 'train'"),
        ({}, {"pretrain.scenario_set": "holdout"}, "evaluating a training must not touch it"),
        ({}, {"promote.rules": "[{scenario_set: trian, metric: success_rate, min: 0}]"}, "'trian' is not defined"),
        ({"expert": "1", "policy": "latest"}, {}, "expert '1' has no use: the policy is given, no clones are made"),
        ({"expert": "1"}, {"skip_pretrain": "true"}, "expert '1' has no use: skip_pretrain makes no clones"),
        (
            {},
            {"skip_pretrain": "true", "finetune.arms": "[residual]"},
            "arm 'residual' of finetune: skip_pretrain without",
        ),
        (
            {},
            {"collect.episodes": "9", "pretrain.episodes": "10"},
            r"pretrain\.episodes = 10, but collect\.episodes = 9",
        ),
        (
            {},
            {"collect.episodes": "9", "finetune.arms": "{few: {warm_start: adaptive, episodes: 10}}"},
            r"finetune\.arms\.few\.episodes = 10, but collect\.episodes = 9 are recorded",
        ),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first_stage(store, upstream, options, said):
    with pytest.raises(BadInput, match=said):
        run_stage("main", "configs/smoke/main.yaml", upstream, options)
    assert {run.data.tags[Tag.STAGE] for run in search(connect(), {}, status=None)} == {"main"}


def test_learning_rate_replaces_a_schedule_whole(tmp_path):
    own = (ROOT / "configs/smoke/finetune.yaml").read_text()
    falling = own.replace("training:\n", "training:\n  learning_rate: {initial: 1.0e-3, final: 1.0e-5}\n")
    assert falling != own
    (tmp_path / "finetune.yaml").write_text(falling)
    stages = {"stages.finetune": str(tmp_path / "finetune.yaml")}
    assert planned(**stages).finetune.training.learning_rate.final == 1e-5
    rate = planned(**stages, learning_rate="3e-4").finetune.training.learning_rate
    assert (rate.initial, rate.final) == (3e-4, None)


def test_matched_seeds_follow_the_first_seed():
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


@pytest.mark.slow
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
        "--group",
        "alone",
    ]
    code, out, errors = stage("main", *arguments, "--parallel_environments", "8", "--visualize_every", "1000")
    assert code == 0, errors
    assert "PPO from scratch only" in out
    parent = main_run(set()).info.run_id
    assert stages_run(parent) == ["baseline"]
    (seed,) = search(connect(), {Tag.GROUP: "alone", Tag.STAGE: "baseline_seed", Tag.ARM: "scratch"})
    assert seed.data.metrics["bill/environment_steps"] == 1024
    assert seed.data.metrics["train/learning_rate"] == pytest.approx(1e-4)
    pictures = [Path(item.path) for item in connect().list_artifacts(seed.info.run_id, Artifact.PLAYBACK)]
    assert [picture.stem for picture in pictures] == ["step-000000000", "step-000001024"]  # the first from 1000 on
    by_step = [Path(item.path).name for item in connect().list_artifacts(seed.info.run_id, "images")]
    assert by_step == [  # as MLflow names what `log_image` logs under a key at a step
        f"playback+step+{step}+timestamp+0+film{ending}"
        for step in (0, 1024)
        for ending in ("+compressed.webp", ".webp")
    ]
    assert seed.data.tags["mlflow.loggedImages"] == "true"
    shown = re.search(
        r"!\[film\]\(get-artifact\?path=images/(.+?)&run_uuid=(.+?)\)", seed.data.tags["mlflow.note.content"]
    )
    assert shown is not None and shown[2] == seed.info.run_id
    assert unquote(shown[1]) == by_step[2]  # the newest, small
    (control,) = search(connect(), {Tag.GROUP: "alone", Tag.STAGE: "baseline_seed", Tag.ARM: "scratch_lr0"})
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

"""`pretrain` says what its clones are worth, ends with code 1 where they learnt nothing, and `main` stops there."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.cli import stage_main
from pipeline.config.loading import load, load_task
from pipeline.config.stages import Pretrain
from pipeline.learning.clones import CloneJob, untrained_clone
from pipeline.learning.yardsticks import judged_episodes
from pipeline.names import Artifact, Metric, Tag
from pipeline.play.evaluation import record_episodes, run_episodes
from pipeline.play.rollouts import evaluation_env
from pipeline.play.scenario_shift import SEED, scenario_shift
from pipeline.policies import act_function, load_policy
from pipeline.stages import pretrain, run_stage
from pipeline.tasks import Purpose, Task
from pipeline.tracking.datasets import demonstrator_of, fetch_for_training
from pipeline.tracking.lineage import trace
from pipeline.tracking.models import download_policy
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

TASK = {
    "name": "seeking",
    "environment": {"id": "seeking_environment:Seek"},
    "success": {"info": "success"},
    "thresholds": {"success_rate": {"min": 0.9}},
    "scenarios": {"default": {}},
    "scenario_sets": {"train": {"default": 1.0}},
}
PRETRAIN = {
    "seeds": [1, 2],
    "network": {"hidden": [16]},
    "cloning": {"epochs": 30, "batch_size": 32, "learning_rate": 0.01, "critic_epochs": 1, "evaluate_every_epochs": 10},
    "evaluation": {"episodes": 20, "seed": 6},
    "final_episodes": 40,
    "judgement": {"episodes": 30},
}

SMALL = {  # a training of PPO
    "total_timesteps": 128,
    "n_envs": 2,
    "network": {"hidden": [16]},
    "ppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
}


@pytest.fixture
def configs(store, tmp_path, monkeypatch) -> dict[str, str]:
    """Stage -> path of its config; nothing was recorded yet."""
    monkeypatch.chdir(tmp_path)
    scripted = {"demonstrator": "seeking_environment:seek"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    stages = {
        "collect": {"episodes": 40, "noise": {"std": 0.1}, "scripted": scripted},
        "pretrain": PRETRAIN,
        "finetune": {"training": {"evaluation": {"seed": 8}}},
        "compare": {},
    }
    for stage, settings in stages.items():
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump({"task": "task.yaml", **settings}))
    paths = {stage: f"{stage}.yaml" for stage in stages}
    (tmp_path / "main.yaml").write_text(yaml.safe_dump({"stages": paths, "ppo_timesteps": 0}))
    return {**paths, "main": "main.yaml"}


def the_run(stage: str):
    return search(connect(), {Tag.STAGE: stage}, limit=1)[0]


def record(configs: dict[str, str]) -> str:
    return run_stage("collect", configs["collect"], {}, {}).outputs["dataset"]


def test_a_good_clone_has_learnt_and_its_run_says_so(configs):
    dataset = record(configs)
    outcome = run_stage("pretrain", configs["pretrain"], {"dataset": dataset}, {})
    assert outcome.verdict is True
    line = outcome.summary[1]
    assert line.startswith("  imitation learnt by success: ") and "demonstrator 1, best constant action 0." in line
    run, children = the_run("pretrain"), search(connect(), {Tag.STAGE: "pretrain_seed"})
    assert run.data.tags[Tag.IMITATION] == "learnt" and run.data.tags[Tag.VERDICT] == "yes"
    assert [child.data.tags[Tag.IMITATION] for child in children] == ["learnt", "learnt"]
    metrics = run.data.metrics
    assert metrics["imitation/demonstrator"] == 1 > metrics["imitation/constant_action"]
    assert metrics["imitation/demonstrator"] > metrics["imitation/random_play"]
    assert metrics["imitation/gain_ci_low"] > 0 and metrics["imitation/share"] >= 0.9
    assert metrics["imitation/held_out_share"] > 0.9 > metrics["imitation/untrained_held_out_share"]
    means = [np.mean([child.data.metrics[name] for child in children]) for name in ("imitation/clone",)]
    assert means == pytest.approx([metrics["imitation/clone"]])
    told = json.loads(read_text_artifact(connect(), run.info.run_id, Artifact.IMITATION))
    assert (told["pooled"]["state"], sorted(told["clones"]), told["suspicions"]) == ("learnt", ["1", "2"], [])
    assert "imitation learnt" in trace(connect(), run.info.run_id, up=True).to_text()
    # every episode has eight steps: a clone 4 evaluations of 20, a final of 40, and before it learnt 30, and 30 at
    # random; 30 of each other yardstick
    assert metrics[Metric.EVALUATION_STEPS] == 8 * (2 * (4 * 20 + 40 + 2 * 30) + 2 * 30)


def test_clones_made_side_by_side_are_those_that_are_made_here_bit_for_bit(configs, tmp_path, monkeypatch):
    stored, told = fetch_for_training(connect(), record(configs), "seeking"), []
    side_by_side = pretrain.run_side_by_side

    def spied(jobs, workers, *others, **named):
        told.append(workers)
        return side_by_side(jobs, workers, *others, **named)

    monkeypatch.setattr(pretrain, "run_side_by_side", spied)
    run_stage("pretrain", configs["pretrain"], {"dataset": stored.metadata.dataset_id}, {})
    assert told == [2]
    task, config = load_task("task.yaml"), load(Pretrain, configs["pretrain"])
    for child in search(connect(), {Tag.STAGE: "pretrain_seed"}):
        seed, place = int(child.data.tags[Tag.SEED]), tmp_path / child.info.run_id
        place.mkdir()
        job = CloneJob(task, config, stored.trajectories, stored.metadata.content_digest, seed, str(place))
        assert child.data.tags[Tag.POLICY_DIGEST] == job.perform(lambda event: None).digest


def test_the_yardsticks_of_a_clone_are_its_untrained_self_as_it_decides_and_as_it_draws(configs, tmp_path):
    stored = fetch_for_training(connect(), record(configs), "seeking")
    task, config = Task(load_task("task.yaml")), load(Pretrain, configs["pretrain"])
    untrained = untrained_clone(task, config, stored.trajectories, 1)
    made = []
    for other_draws in (3, 4):
        torch.manual_seed(other_draws)
        (tmp_path / str(other_draws)).mkdir()
        job = CloneJob(task.config, config, stored.trajectories, "digest", 1, str(tmp_path / str(other_draws)))
        made.append(job.perform(lambda event: None))
    episodes = judged_episodes(task, config)
    decides = run_episodes(task, act_function(untrained), episodes)
    torch.manual_seed(1)
    with closing(evaluation_env(task)) as env:
        draws = run_episodes(task, act_function(untrained, deterministic=False), episodes, env=env)
    for clone in made:
        assert clone.untrained.metrics["return"].tolist() == decides.metrics["return"].tolist()
        assert clone.random_play.metrics["return"].tolist() == draws.metrics["return"].tolist()


def test_shuffled_labels_are_a_failed_imitation_with_its_reason_and_code_1(configs, monkeypatch, capfd):
    dataset = record(configs)

    def shuffled(client, reference, task):
        stored = fetch_for_training(client, reference, task)
        data = stored.trajectories
        labels = np.random.default_rng(0).permutation(data.actions)
        return replace(stored, trajectories=replace(data, actions=labels, executed_actions=labels))

    monkeypatch.setattr(pretrain, "fetch_for_training", shuffled)
    assert stage_main("pretrain", ["--config", configs["pretrain"], "--dataset", dataset]) == 1
    out = capfd.readouterr().out
    assert "imitation failed by success" in out and "is not shown to be better than" in out
    (first, *_) = [line for line in out.splitlines() if line.startswith("  look at: ")]
    assert first.startswith("  look at: contradicting labels: between equal observations ")
    run = the_run("pretrain")
    assert (run.info.status, run.data.tags[Tag.IMITATION], run.data.tags[Tag.VERDICT]) == ("FINISHED", "failed", "no")
    told = json.loads(read_text_artifact(connect(), run.info.run_id, Artifact.IMITATION))
    assert told["suspicions"][0]["name"] == "contradicting labels" and told["suspicions"][0]["strength"] > 0.5


def test_demonstrations_that_are_all_the_same_are_refused_before_anything_is_played(configs, monkeypatch, capfd):
    dataset = record(configs)

    def constant(client, reference, task):
        stored = fetch_for_training(client, reference, task)
        data = stored.trajectories
        same = np.full_like(data.actions, data.actions[0])
        return replace(stored, trajectories=replace(data, actions=same, executed_actions=same))

    monkeypatch.setattr(pretrain, "fetch_for_training", constant)
    assert stage_main("pretrain", ["--config", configs["pretrain"], "--dataset", dataset]) == 2
    assert "actions are the same: nothing is to be learnt" in capfd.readouterr().err.splitlines()[-1]
    assert search(connect(), {Tag.STAGE: "pretrain_seed"}, status=None) == []


def test_where_no_epoch_beats_the_untrained_policy_the_clone_failed_and_is_not_that_policy(configs):
    dataset = record(configs)
    still = {"cloning.learning_rate": "1e-30", "cloning.epochs": "2", "seeds": "[1]"}
    outcome = run_stage("pretrain", configs["pretrain"], {"dataset": dataset}, still)
    assert outcome.verdict is False
    assert "no epoch beat the untrained policy on the measure that chooses the best epoch" in outcome.summary[1]
    (child,) = search(connect(), {Tag.STAGE: "pretrain_seed"})
    assert child.data.tags[Tag.IMITATION] == "failed" and child.data.metrics["bc/best_epoch"] == 2
    assert any(line.startswith("  look at: too little training: ") for line in outcome.summary)
    load_policy(download_policy(child.info.run_id))


def test_a_demonstrator_that_does_nothing_is_not_worth_imitating(configs):
    demonstrator = {"scripted.demonstrator": "seeking_environment:fidget"}
    dataset = run_stage("collect", configs["collect"], {}, demonstrator).outputs["dataset"]
    outcome = run_stage("pretrain", configs["pretrain"], {"dataset": dataset}, {"seeds": "[1]", "cloning.epochs": "2"})
    assert outcome.verdict is False and "these demonstrations are not worth imitating" in outcome.summary[1]
    run = the_run("pretrain")
    assert "imitation/share" not in run.data.metrics


def test_a_demonstrator_that_is_gone_is_known_by_what_was_recorded_of_it(configs, monkeypatch):
    dataset = record(configs)
    monkeypatch.setattr(pretrain, "demonstrator_of", lambda client, metadata, task: None)
    outcome = run_stage("pretrain", configs["pretrain"], {"dataset": dataset}, {"seeds": "[1]"})
    assert outcome.verdict is True
    assert "its recorded episodes stand for it, recorded under noise 0.1, without which it may be" in outcome.summary[1]
    recorded = fetch_for_training(connect(), dataset, "seeking").trajectories.metrics[Metric.SUCCESS].mean()
    assert the_run("pretrain").data.metrics["imitation/demonstrator"] == pytest.approx(recorded)


def test_main_stops_after_a_failed_imitation_unless_it_is_told_to_go_on(configs):
    still = {"pretrain.cloning.learning_rate": "1e-30", "pretrain.cloning.epochs": "2", "pretrain.seeds": "[1]"}
    stopped = run_stage("main", configs["main"], {}, still)
    assert stopped.verdict is False
    assert "the imitation failed" in stopped.summary[0] and "finetune_failed_clones=true" in stopped.summary[0]
    assert the_run("pretrain").data.tags[Tag.IMITATION] == "failed"
    known = len(search(connect(), {Tag.STAGE: "pretrain"}))
    went_on = run_stage("main", configs["main"], {}, {**still, "finetune_failed_clones": "true"})
    assert went_on.verdict is None and went_on.outputs["policy"] == the_run("pretrain").info.run_id
    assert len(search(connect(), {Tag.STAGE: "pretrain"})) == known  # taken over, verdict and all


def test_a_clone_that_learnt_nothing_is_left_and_the_training_is_the_one_from_scratch(configs):
    demonstrator = {"scripted.demonstrator": "seeking_environment:fidget"}
    dataset = run_stage("collect", configs["collect"], {}, demonstrator).outputs["dataset"]
    pretrained = run_stage("pretrain", configs["pretrain"], {"dataset": dataset}, {"seeds": "[1]"})
    assert pretrained.verdict is False
    config = yaml.safe_load(Path(configs["finetune"]).read_text())
    config |= {"training": {**config["training"], **SMALL}, "seeds": [1], "final_episodes": 10, "control_timesteps": 0}
    Path(configs["finetune"]).write_text(yaml.safe_dump(config))
    clones = {"policy": pretrained.outputs["policy"]}
    outcome = run_stage("finetune", configs["finetune"], clones, {"training.evaluation.episodes": "10"})
    (line,) = [line for line in outcome.summary if "fresh weights" in line]
    assert "clones that learnt nothing" in line and line.endswith(": pretrained seed 1")
    left = the_run("finetune_seed")
    assert left.data.metrics["warm_start/clone_weights"] == 0 and "transfer/tensors" not in left.data.metrics
    (decision,) = json.loads(read_text_artifact(connect(), left.info.run_id, Artifact.WARM_START))
    assert (decision["timestep"], decision["setting"]) == (0, "clone_weights")
    assert decision["reason"].startswith("its imitation failed, and explains ")
    run_stage("baseline", configs["finetune"], clones, {"training.evaluation.episodes": "10"})
    scratch = the_run("baseline_seed")
    assert left.data.tags[Tag.LAST_POLICY_DIGEST] == scratch.data.tags[Tag.LAST_POLICY_DIGEST]
    kept = {"training.evaluation.episodes": "10", "warm_start.clone_weights": "kept"}
    run_stage("finetune", configs["finetune"], clones, kept)
    from_clone = the_run("finetune_seed")
    assert from_clone.info.run_id != left.info.run_id and from_clone.data.metrics["transfer/tensors"] > 0
    assert from_clone.data.tags[Tag.LAST_POLICY_DIGEST] != left.data.tags[Tag.LAST_POLICY_DIGEST]


def test_where_the_filter_leaves_one_episode_there_is_no_shift_to_measure(configs):
    stored = fetch_for_training(connect(), record(configs), "seeking")
    task = Task(load_task("task.yaml"))
    actor = demonstrator_of(connect(), stored.metadata, task).actor
    episodes = task.episodes("train", SEED, 40, Purpose.EVALUATE)
    returns = np.sort(record_episodes(task, actor, episodes, stored.metadata.noise_std, SEED).returns())
    for least, measured in ((returns[-1], False), (returns[-2] - 1e-6, True)):
        metadata = replace(stored.metadata, filter={"only_success": False, "min_return": float(least)})
        shift = scenario_shift(task, stored.trajectories, metadata, actor, "train")
        assert (shift is not None) == measured


def test_what_cannot_be_drawn_costs_a_report_its_films_alone(configs):
    Path("task.yaml").write_text(yaml.safe_dump({**TASK, "environment": {"id": "seeking_environment:Unseen"}}))
    finetune = yaml.safe_load(Path(configs["finetune"]).read_text())
    finetune |= {"training": {**finetune["training"], **SMALL}, "seeds": [1, 2], "final_episodes": 10}
    finetune["control_timesteps"] = 0
    Path(configs["finetune"]).write_text(yaml.safe_dump(finetune))
    steps = {"ppo_timesteps": "128", "finetune_failed_clones": "true"}
    run_stage("main", configs["main"], {}, {**steps, "compare.playback_episodes": "1"})
    compared = the_run("compare")
    assert compared.info.status == "FINISHED"
    page = read_text_artifact(connect(), compared.info.run_id, f"{Artifact.REPORT}/report.md")
    assert "No playback was recorded for this report" in page
    assert "no films in the report (playback_episodes: 0 asks for none)" in compared.data.tags["mlflow.note.content"]

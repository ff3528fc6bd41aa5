"""A task in hundreds, from `new_task` to the report, without a word about units."""

import json

import numpy as np
import pytest
import yaml

from pipeline import query
from pipeline.cli import stage_main
from pipeline.errors import BadInput
from pipeline.names import Arm, Artifact, Metric, Tag
from pipeline.stages import run_stage
from pipeline.tracking.groups import find_group
from pipeline.tracking.models import find_policy
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

TINY = {
    "collect.episodes": "40",
    "collect.replay_episodes": "4",
    "pretrain.seeds": "[1]",
    "pretrain.cloning.epochs": "40",
    "pretrain.cloning.evaluate_every_epochs": "40",
    "pretrain.cloning.critic_epochs": "2",
    "pretrain.final_episodes": "20",
    "pretrain.evaluation.episodes": "10",
    "finetune.seeds": "[1]",
    "finetune.workers": "1",
    "finetune.final_episodes": "20",
    "finetune.training.total_timesteps": "512",
    "finetune.training.n_envs": "4",
    "finetune.training.normalize_reward": "true",
    "finetune.training.ppo": "{n_steps: 64, batch_size: 64, n_epochs: 2}",
    "finetune.training.evaluation": "{episodes: 10, seed: 7, segments: [{every_steps: 256}]}",
    "compare.resamples": "100",
    "compare.playback_episodes": "0",
}


@pytest.fixture
def project(tmp_path, store, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "new_task.yaml").write_text("episodes: 8\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def compared(project):
    """The group of a comparison."""
    task = ["--env", "table_environment:Table", "--name", "table", "--demonstrator", "table_environment:straight"]
    assert stage_main("new_task", ["--config", "new_task.yaml", *task]) == 0
    assert "wrappers" not in yaml.safe_load((project / "configs/tasks/table.yaml").read_text())["environment"]
    run_stage("main", "configs/table/main.yaml", {}, {**TINY, "group": "hundreds"})
    return "hundreds"


def seeds(stage, arm=None):
    tags = {Tag.STAGE: f"{stage}_seed", **({} if arm is None else {Tag.ARM: arm})}
    return {run.data.tags[Tag.SEED]: run for run in search(connect(), tags)}


def stored(run):
    return find_policy(connect(), run.info.run_id, "table", {})


def test_a_task_in_hundreds_is_learnt_and_every_arm_computes_in_the_same_units(compared, capfd):
    clones, scratch, tuned = seeds("pretrain"), seeds("baseline", Arm.SCRATCH), seeds("finetune", Arm.PRETRAINED)
    assert len(clones) == len(scratch) == len(tuned) == 1
    assert all(run.data.metrics[f"final/{Metric.SUCCESS_RATE}"] > 0.8 for run in clones.values())
    assert all(run.data.metrics["bc/mean_absolute_error"] < 40 for run in clones.values())  # millimetres
    for seed, clone in clones.items():
        units = [stored(run).scaling() for run in (clone, scratch[seed], tuned[seed])]
        assert len({scaling.digest for scaling in units}) == 1
        assert units[0].actions.scale.tolist() == [256, 256]
    figures = json.loads(read_text_artifact(connect(), clones["1"].info.run_id, "scaling.json"))
    assert figures["actions"] == {"offset": [256, 256], "scale": [256, 256]}
    # raw units at every door
    run_id = clones["1"].info.run_id
    rows = np.random.default_rng(0).uniform(0, 512, (20, 4))
    actions = stored(clones["1"]).acts()(rows)
    assert np.array_equal(query.load_policy(run_id)(rows), actions)
    assert np.abs(actions - rows[:, 2:]).mean() < 60
    assert np.allclose(query.load_ppo(run_id).predict(rows, deterministic=True)[0], actions, atol=0.01)
    client = connect()
    (stage,), (pretrain,) = (search(client, {Tag.STAGE: name}) for name in ("baseline", "pretrain"))
    assert "it computes in the units of the clones of" in read_text_artifact(
        client, stage.info.run_id, Artifact.SUMMARY
    )
    # what divides the rewards is not the same in both arms, and the report says so
    (comparison,) = search(client, {Tag.STAGE: "compare"})
    report = json.loads(read_text_artifact(client, comparison.info.run_id, f"{Artifact.REPORT}/report.json"))
    (rewards,) = [d for d in report["context"]["differences"] if d["key"] == "rewards are divided by"]
    scale = json.loads(read_text_artifact(client, run_id, Artifact.CERTIFICATE))["return_scale"]
    assert rewards["pretrained"].startswith(f"{scale:.4g}, ") and "running spread" in rewards["scratch"]
    # another baseline, which was told of no clone, is not compared
    capfd.readouterr()
    overrides = {key.removeprefix("finetune."): text for key, text in TINY.items() if key.startswith("finetune.")}
    alone = run_stage("baseline", "configs/table/finetune.yaml", {"group": compared}, overrides)
    assert "it computes in the units of the bounds of its spaces" in alone.summary[-1]
    # which are those of the clones here; of other units it would not be compared
    find_group(client, compared, "table")
    client.set_tag(search(client, {Tag.STAGE: "baseline"}, limit=1)[0].info.run_id, Tag.SCALING, "another")
    with pytest.raises(BadInput, match=f"scale .* differently; run baseline .* policy={pretrain.info.run_id}"):
        find_group(client, compared, "table")


def test_figures_that_do_not_fit_are_refused_before_the_first_step(project, capfd):
    task = ["--env", "table_environment:Table", "--name", "table", "--demonstrator", "table_environment:straight"]
    stage_main("new_task", ["--config", "new_task.yaml", *task])
    assert stage_main("collect", ["--config", "configs/table/collect.yaml", "--episodes", "20"]) == 0
    capfd.readouterr()
    scaling = "{observations: {all: {scale: [1.0, 2.0]}}}"
    assert stage_main("pretrain", ["--config", "configs/table/pretrain.yaml", "--scaling", scaling]) == 2
    assert "scaling.observations.all.scale has 2 figures" in capfd.readouterr().err

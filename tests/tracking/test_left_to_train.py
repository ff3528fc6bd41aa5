"""What a stage need not train: its own arm's equal trainings, and the beginning of a longer one, while that is kept."""

import json
from dataclasses import replace

import pytest
from test_content_key import BASE, task

from pipeline.config.loading import validate
from pipeline.config.stages import Finetune
from pipeline.learning.arms import ArmJob
from pipeline.learning.jobs import TrainingJob
from pipeline.names import Artifact, Tag
from pipeline.tracking.content_key import training_key
from pipeline.tracking.seed_runs import left_to_train
from pipeline.tracking.stage_run import open_run

RECORD = {
    "seed": 1,
    "evaluations": [{"timestep": 64, "figures": {"success_rate": 1.0}}],
    "final_figures": {"success_rate": 1.0},
    "final": {"scenario": ["easy"], "seed": [1], "metrics": {"success": [1.0]}},
}


@pytest.fixture
def job() -> TrainingJob:
    return TrainingJob(task(), validate(Finetune, BASE, "test").training, 1, "here")


@pytest.fixture
def trained(bench):
    """`trained(job, arm)`: the run of such a training that is finished."""

    def make(job: TrainingJob, arm: str, **tags: str) -> str:
        key = training_key(job)
        of_key = {Tag.CONTENT_KEY: key.digest, Tag.KEY_BUT_BUDGET: key.but_budget, Tag.ARM: arm, Tag.SEED: "1"}
        named = {name.replace(".", "__"): text for name, text in of_key.items()}
        run_id = bench.run("finetune_seed", **{**named, "task": job.task.name, **tags})
        bench.client.log_text(run_id, key.to_json(), Artifact.CONTENT_KEY)
        bench.client.log_text(run_id, json.dumps(RECORD), Artifact.EVALUATIONS)
        return run_id

    return make


def left(*arms: ArmJob) -> tuple[dict[int, str | None], dict[str, str]]:
    """What is left of these arms, and the tags of the stage's run."""
    with open_run("finetune") as run:
        todo = left_to_train(run, arms, "finetune_seed", reuse=True)
        return todo, run.client.get_run(run.run_id).data.tags


def test_a_training_stands_for_one_of_its_own_arm_alone_however_new_that_of_another_is(trained, job, capsys):
    older = trained(job, "short")
    trained(job, "brief")
    todo, tags = left(ArmJob("short", job), ArmJob("renamed", job))
    assert (todo, tags["reused.short.seed_1"]) == ({1: None}, older)
    assert "reused" not in capsys.readouterr().out


def test_a_longer_training_begins_anew_where_the_checkpoint_of_the_shorter_one_is_gone(bench, trained, job, capsys):
    shorter = trained(job, "short", checkpoint="000001-aa.safetensors")
    longer = ArmJob("short", replace(job, total_timesteps=2 * job.budget))
    assert left(longer)[0] == {0: None}
    assert f"begins anew, though run {shorter} differs in a smaller budget alone: its checkpoint is gone" in (
        capsys.readouterr().out
    )
    bench.client.log_text(shorter, "weights", f"{Artifact.CHECKPOINT}/000001-aa.safetensors")
    assert left(longer)[0] == {0: shorter}

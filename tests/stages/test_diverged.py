"""A stage whose training diverges: one line, exit code 2, and the best policy so far in the run of the seed."""

import pytest

from pipeline.cli import stage_main
from pipeline.names import Artifact
from pipeline.policies import load_policy
from pipeline.tracking.models import download_policy
from pipeline.tracking.runs import read_text_artifact, search

QUICK = ["--seeds", "[3]", "--training.total_timesteps", "512"]


@pytest.mark.parametrize(
    ("stage", "child", "arguments"),
    [
        ("train_expert", "train_expert_seed", ["--training.learning_rate.initial", "1e37", *QUICK]),
        (
            "finetune",
            "finetune_seed",  # the first rollout of 512 steps is burn-in
            ["--training.learning_rate.initial", "1e37", "--control_timesteps", "0", *QUICK[:3], "1536"],
        ),
        ("pretrain", "pretrain_seed", ["--cloning.learning_rate", "1e37", "--seeds", "[3]"]),
    ],
)
def test_a_diverged_training_is_one_line_and_its_best_policy_stays(story, client, capfd, stage, child, arguments):
    known = {run.info.run_id for run in search(client, {"stage": child}, status=None)}
    assert stage_main(stage, ["--config", f"configs/smoke/{stage}.yaml", *arguments]) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error: ")]
    assert "of seed 3 diverged" in line and "is not finite; lower " in line and "(now 1e+37)" in line
    (run,) = [run for run in search(client, {"stage": child}, status=None) if run.info.run_id not in known]
    assert run.info.status == "FAILED" and "diverged" in run.data.tags["mlflow.note.content"]
    load_policy(download_policy(run.info.run_id))
    assert read_text_artifact(client, run.info.run_id, Artifact.CERTIFICATE) is None


def test_of_clones_side_by_side_the_one_that_diverges_keeps_its_best_policy(story, client, capfd):
    known = {run.info.run_id for run in search(client, {}, status=None)}
    arguments = ["--cloning.learning_rate", "1e37", "--seeds", "[3, 4]"]
    assert stage_main("pretrain", ["--config", "configs/smoke/pretrain.yaml", *arguments]) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error: ")]
    assert "diverged" in line
    runs = [run for run in search(client, {"stage": "pretrain_seed"}, status=None) if run.info.run_id not in known]
    assert [run.info.status for run in runs] == ["FAILED"] * 2
    (seed,) = [run for run in runs if f"of seed {run.data.tags['seed']} diverged" in line]
    load_policy(download_policy(seed.info.run_id))


def test_clones_that_an_interrupt_left_unfinished_end_killed_as_their_stage_does(story, client, monkeypatch):
    def interrupt(*arguments) -> None:
        raise KeyboardInterrupt  # what Ctrl-C comes to; a shell's background processes ignore its signal

    known = {run.info.run_id for run in search(client, {}, status=None)}
    monkeypatch.setattr("pipeline.stages.pretrain._log_clone", interrupt)  # the first clone is there, the second is not
    quick = ["--cloning.epochs", "1", "--seeds", "[3, 4]", "--final_episodes", "5"]
    assert stage_main("pretrain", ["--config", "configs/smoke/pretrain.yaml", *quick]) == 130
    ended = [run.info.status for run in search(client, {}, status=None) if run.info.run_id not in known]
    assert ended == ["KILLED"] * 3

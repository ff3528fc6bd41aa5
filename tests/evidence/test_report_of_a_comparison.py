"""What `compare` leaves behind: one page, the same facts as JSON, and the figures that a search needs as metrics."""

import json
from dataclasses import replace
from types import SimpleNamespace

import mlflow
import pytest

from pipeline.config.loading import load_task, validate
from pipeline.config.stages import Finetune
from pipeline.config.training import SACTraining
from pipeline.names import Arm
from pipeline.stages.compare import arm_settings, target_origin
from pipeline.tracking import lineage
from pipeline.tracking.store import connect, run_address

STAGES = ("train_expert", "promote", "collect", "pretrain", "baseline", "finetune")


@pytest.fixture
def report(runs):
    """The run of the comparison and its report as data."""
    run = connect().get_run(runs("compare")[0])
    path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="report/report.json")
    with open(path, encoding="utf-8") as stream:
        return run, json.load(stream)


def test_the_bill_is_made_of_what_the_runs_before_it_recorded(report, runs):
    run, data = report
    client, upfront = connect(), data["comparison"]["bill"]["upfront"]

    def logged(stage: str, metric: str) -> float:
        return client.get_run(runs(stage)[0]).data.metrics.get(f"bill/{metric}", 0.0)

    assert upfront["expert_steps"] == logged("train_expert", "environment_steps") == 2 * 4096
    assert upfront["demonstration_steps"] == logged("collect", "environment_steps") > 0
    evaluated = {stage: logged(stage, "evaluation_steps") for stage in ("train_expert", "promote", "pretrain")}
    assert upfront["evaluation_steps"] == sum(evaluated.values())
    assert upfront["evaluations"] == {**evaluated, "collect": 0}
    assert all(steps > 0 for steps in evaluated.values())
    metrics = run.data.metrics
    assert metrics["bill/upfront_steps"] == upfront["expert_steps"] + upfront["demonstration_steps"]
    for stage in STAGES:
        assert metrics[f"bill/wall_seconds/{stage}"] == upfront["wall_seconds"][stage] > 0


def test_what_is_never_paid_back_has_no_break_even(report):
    run, data = report
    bill = data["comparison"]["bill"]
    assert bill["saving"]["value"] == 0  # both arms meet this target at once
    assert bill["break_even"]["reuses"] is None
    assert "bill/break_even_reuses" not in run.data.metrics


def test_hold_outs_references_regressions_and_the_four_arms_are_in_it(report):
    run, data = report
    assert list(data["comparison"]["finals"]) == ["train_small", "holdout"]
    assert set(data["comparison"]["arms"]) == {"scratch", "pretrained", "scratch_lr0", "pretrained_lr0"}
    assert {r["name"] for r in data["context"]["references"]} == {"expert"}
    assert data["context"]["dataset"]["imitation"] == "failed"  # of an expert that does nothing yet
    differences = {one["key"]: one["scratch"] for one in data["context"]["differences"]}
    assert differences["warm_start.clone_penalty"] == "–" and "initial weights" in differences
    assert data["context"]["regressions"] == []  # fine-tuned where it was demonstrated
    assert "final/holdout/success_rate_difference_ci_low" in run.data.metrics
    kinds = [node["kind"] for node in data["context"]["lineage"]]
    assert {*STAGES, "compare"} <= set(kinds)


def test_it_says_since_when_the_target_stands_and_which_checkpoints_it_judges(report, runs):
    """The smoke config gives a target of its own; the task's thresholds stand in the store since the expert."""
    run, data = report
    assert "given to this comparison alone" in data["context"]["target_origin"]
    steps = {arm["arm"]: [r["best_step"] for r in arm["runs"]] for arm in data["comparison"]["arms"].values()}
    assert set(steps["pretrained_lr0"]) == {0} and None not in steps["scratch"]
    client, task = connect(), load_task("configs/tasks/social_nav.yaml")
    finetune, seen = client.get_run(runs("finetune")[0]), SimpleNamespace(client=client, run_id=run.info.run_id)
    evidence = SimpleNamespace(task=SimpleNamespace(config=task), group=SimpleNamespace(finetune=finetune))
    chain = lineage.trace(client, run.info.run_id, up=True)
    said = target_origin(seen, evidence, task.thresholds, chain)
    assert task.thresholds_why in said and f"{runs('train_expert')[0]} (train_expert)" in said
    assert said.endswith(" UTC, before the clones were made.")
    later = replace(chain, nodes=tuple(node for node in chain.nodes if node.stage in ("finetune", "compare")))
    assert target_origin(seen, evidence, task.thresholds, later).endswith(" UTC, not before the clones were made.")
    nobody = replace(chain, nodes=chain.nodes[-1:])
    assert "no run before this comparison recorded it" in target_origin(seen, evidence, task.thresholds, nobody)


def test_it_says_how_to_train_it_again_under_another_name(report):
    _, data = report
    commands = data["context"]["commands"]
    assert commands[0].startswith("git checkout ")
    assert all("group=trial-again" in command for command in commands if "-e " in command)


def test_runs_have_an_address_on_a_server_alone_and_never_with_a_password(report, monkeypatch):
    run, data = report
    assert all(link["url"] is None for link in data["context"]["runs"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:secret@tracking.example:5000/base/")
    where = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert run_address(run) == f"https://tracking.example:5000/base/{where}"


def test_the_settings_of_arms_are_those_in_which_they_are_not_alike():
    given = {
        "task": "task.yaml",
        "arms": {"naive": None, "few": {"warm_start": "adaptive", "episodes": 12}, "sac": None},
    }
    settings = arm_settings(validate(Finetune, given, "test"))
    pretrained, naive, few, sac = Arm.PRETRAINED, "naive", "few", "sac"
    assert settings["algorithm"] == {pretrained: "ppo", naive: "ppo", few: "ppo", sac: "sac"}
    assert settings["weights"] == {pretrained: "clone", naive: "clone", few: "clone", sac: "fresh"}
    assert settings["episodes"] == {pretrained: "–", naive: "–", few: "12", sac: "–"}
    stds = settings["warm_start.initial_action_std"]
    assert stds == {pretrained: "adaptive", naive: "null", few: "adaptive", sac: "–"}
    assert (
        settings["sac.batch_size"][sac] == str(SACTraining().batch_size)
        and "demonstrations" not in settings
        and "policy" not in settings
    )
    assert arm_settings(validate(Finetune, {"task": "task.yaml"}, "test")) is None

"""Several datasets: recorded independently, cloned each by a share of the seeds, and what intervals are over."""

import json

import pytest

from pipeline.names import Artifact, Metric, Tag, lineage_run_tag
from pipeline.stages import run_stage
from pipeline.tracking import lineage
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

SMOKE = "configs/smoke/lunar_lander/main.yaml"
OPTIONS = {
    "datasets": "3",
    "matched_seeds": "3",
    "finetune.arms": "{}",
    "finetune.control_timesteps": "0",
    "compare.playback_episodes": "0",
}


@pytest.mark.slow
def test_intervals_are_over_datasets_and_everything_says_which(store, in_repository, capfd):
    outcome = run_stage("main", SMOKE, {}, OPTIONS)
    client = connect()
    recorded = search(client, {Tag.STAGE: "collect"})
    datasets = {run.data.tags[Tag.DATASET_ID] for run in recorded}
    assert len({run.data.tags[Tag.DATASET_DIGEST] for run in recorded}) == len(datasets) == 3
    # every seed started from a clone of a dataset of its own, and says so
    tuned = search(client, {Tag.STAGE: "finetune_seed", Tag.ARM: "pretrained"})
    assert {run.data.tags[Tag.LINEAGE_DATASET] for run in tuned} == datasets
    # and is shown as an input of every run that used it
    shown = {run.info.run_id: {one.dataset.name for one in run.inputs.dataset_inputs} for run in search(client, {})}
    assert all(shown[run.info.run_id] == {run.data.tags[Tag.LINEAGE_DATASET]} for run in tuned)
    for stage in ("main", "finetune", "compare"):
        assert [shown[run.info.run_id] for run in search(client, {Tag.STAGE: stage})] == [datasets]
    for run in tuned:
        clone = client.get_run(run.data.tags[lineage_run_tag("policy")])
        assert clone.data.tags[Tag.SEED] == run.data.tags[Tag.SEED]
        assert clone.data.tags[Tag.LINEAGE_DATASET] == run.data.tags[Tag.LINEAGE_DATASET]
    report = json.loads(read_text_artifact(client, outcome.outputs["report"], f"{Artifact.REPORT}/report.json"))
    compared = report["comparison"]
    assert compared["datasets"] == 3
    assert {pair["dataset"] for pair in compared["pairs"]} == datasets
    page = read_text_artifact(client, outcome.outputs["report"], f"{Artifact.REPORT}/report.md")
    assert "95 % over 3 datasets of 1 matched seed each" in page
    assert "recorded 3 times, independently of each other" in page
    # all of them are paid for, and all stand behind the report
    steps = sum(run.data.metrics[Metric.ENVIRONMENT_STEPS] for run in recorded)
    assert compared["bill"]["upfront"]["demonstration_steps"] == steps
    chain = {node.run_id for node in lineage.trace(client, outcome.outputs["report"], up=True).nodes}
    assert {run.info.run_id for run in recorded} <= chain
    # the same again finds all of it
    capfd.readouterr()
    run_stage("main", SMOKE, {}, OPTIONS)
    said = capfd.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("---") and "reused" not in line] == []
    # and what the report says would make it again names the clones of all three
    trained = [
        command for command in report["context"]["commands"] if "-e baseline" in command or "-e finetune" in command
    ]
    assert len(trained) == 2 and all(command.partition("policy=")[2].count(",") == 2 for command in trained)

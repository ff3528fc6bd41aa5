"""The shipped configs of the quadruped through every stage, made small: from the trot to a verdict."""

from pathlib import Path

import pytest
import yaml

from pipeline.names import Artifact, Tag
from pipeline.stages import run_stage
from pipeline.tracking.datasets import fetch_dataset
from pipeline.tracking.runs import get_run, read_text_artifact, search
from pipeline.tracking.store import connect

pytestmark = pytest.mark.slow

STEPS = 40
SMALL = {
    # whoever stays on its feet for 40 steps meets this target: the path is tested, not the policy
    "task": {"horizon": STEPS, "success": {"return_at_least": 0}, "thresholds": {"return_mean": {"min": -1000}}},
    "collect": {"episodes": 20, "replay_episodes": 2},
    "pretrain": {"seeds": [1, 2, 3], "cloning": {"epochs": 1, "critic_epochs": 1}, "final_episodes": 2},
    "finetune": {
        "seeds": [1, 2, 3],
        "final_episodes": 2,
        "training": {
            "total_timesteps": 192,
            "n_envs": 4,
            "ppo": {"n_steps": 16, "batch_size": 32},
            "evaluation": {"episodes": 2, "segments": [{"every_steps": 64}]},
        },
    },
    "compare": {"ratio_target": 1.0, "resamples": 200},
}


def merged(shipped: dict, changes: dict) -> dict:
    nested = {k: merged(shipped.get(k, {}), v) for k, v in changes.items() if isinstance(v, dict) and k != "thresholds"}
    return {**shipped, **changes, **nested}


@pytest.fixture
def configs(tmp_path, repository) -> Path:
    """`<stage>.yaml` of every stage: what is shipped, with the changes of `SMALL`."""
    for name, changes in SMALL.items():
        source = "tasks/quadruped" if name == "task" else f"quadruped/{name}"
        shipped = yaml.safe_load((repository / f"configs/{source}.yaml").read_text())
        if name == "task":
            del shipped["success"]
        else:
            shipped["task"] = str(tmp_path / "task.yaml")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(merged(shipped, changes)))
    stages = {name: str(tmp_path / f"{name}.yaml") for name in SMALL if name != "task"}
    (tmp_path / "main.yaml").write_text(yaml.safe_dump({"stages": stages, "finetune_failed_clones": True}))
    return tmp_path


def test_from_the_trot_to_a_verdict_with_the_distance_beside_the_return(configs, store, in_repository):
    outcome = run_stage("main", str(configs / "main.yaml"), {}, {})
    assert outcome.verdict is True
    client = connect()
    of = {stage: search(client, {Tag.STAGE: stage}) for stage in ("collect", "pretrain", "finetune_seed", "compare")}

    dataset = fetch_dataset(of["collect"][0])
    assert dataset.metadata.demonstrator["name"] == "pipeline.envs.quadruped:diagonal_trot"
    assert dataset.metadata.environment["wrappers"][0]["name"] == "pipeline.envs.quadruped:GaitClock"
    first = dataset.trajectories.episode(0).observations
    assert first.shape == (STEPS + 1, 29)
    assert first[0, 27:].tolist() == [0, 1]  # the clock's start

    assert {run.data.tags[Tag.SEED] for run in of["finetune_seed"]} == {"1", "2", "3"}
    for run in (of["collect"][0], *of["finetune_seed"]):
        assert {"eval/return_mean", "eval/distance", "eval/sideways"} <= set(run.data.metrics)
    comparison = get_run(client, outcome.outputs["report"], "report")
    report = read_text_artifact(client, comparison.info.run_id, f"{Artifact.REPORT}/report.md")
    assert "distance" in report
    assert {"final/train/distance_difference", "final/holdout/distance_difference"} <= set(comparison.data.metrics)

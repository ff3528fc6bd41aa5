"""Policies fine-tuned where actions are mirrored forget what was demonstrated, and the comparison says so."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.names import Artifact, Tag
from pipeline.stages import run_stage
from pipeline.tracking.runs import get_run
from pipeline.tracking.store import connect

TASK = {
    "name": "mirrored_dot",
    "environment": {"id": "mirrored_dot:MirroredDot"},
    "success": {"info": "success"},
    "thresholds": {"success_rate": {"min": 0.8}},
    "scenarios": {"straight": {"mirrored": False}, "mirrored": {"mirrored": True}},
    "scenario_sets": {"straight": {"straight": 1}, "mirrored": {"mirrored": 1}},
}
NETWORK = {"hidden": [32]}
TRAINING = {
    "scenario_set": "mirrored",
    "total_timesteps": 8192,
    "n_envs": 8,
    "network": NETWORK,
    "learning_rate": {"initial": 5.0e-3, "final": 5.0e-3},
    "ppo": {"n_steps": 32, "batch_size": 64, "n_epochs": 4, "gamma": 0.9},
    "evaluation": {"segments": [{"every_steps": 1024}], "episodes": 40},
}
CLONING = {"epochs": 60, "batch_size": 32, "learning_rate": 3.0e-3, "critic_epochs": 1, "evaluate_every_epochs": 20}
STAGES = {
    "collect": {
        "scenario_set": "straight",
        "episodes": 60,
        "noise": {"std": 0.3},
        "scripted": {"demonstrator": "mirrored_dot:point"},
    },
    "pretrain": {
        "scenario_set": "straight",
        "network": NETWORK,
        "cloning": CLONING,
        "evaluation": {"episodes": 20, "seed": 6},
        "seeds": [1, 2, 3],
    },
    "finetune": {"seeds": [1, 2, 3], "training": TRAINING, "control_timesteps": 0, "final_episodes": 60},
    "compare": {"resamples": 200, "playback_episodes": 0, "ratio_target": 10.0},
}


@pytest.fixture
def configs(store, tmp_path, in_repository) -> dict[str, str]:
    paths = {name: str(tmp_path / f"{name}.yaml") for name in ("task", *STAGES)}
    for name, data in {"task": TASK, **{s: {"task": paths["task"], **d} for s, d in STAGES.items()}}.items():
        Path(paths[name]).write_text(yaml.safe_dump(data))
    return paths


@pytest.mark.slow
def test_forgetting_the_demonstrated_scenarios_is_a_tag_and_a_warning_in_the_report(configs):
    dataset = run_stage("collect", configs["collect"], {}, {}).outputs["dataset"]
    clones = run_stage("pretrain", configs["pretrain"], {"dataset": dataset}, {}).outputs["policy"]
    run_stage("finetune", configs["finetune"], {"policy": clones, "group": "mirror"}, {})
    run_stage("baseline", configs["finetune"], {"group": "mirror", "policy": clones}, {})
    report = run_stage("compare", configs["compare"], {"group": "mirror"}, {}).outputs["report"]
    client = connect()
    tag = get_run(client, report, "report").data.tags[Tag.REGRESSION]
    folder = Path(client.download_artifacts(report, Artifact.REPORT))
    (found,) = json.loads((folder / "report.json").read_text())["context"]["regressions"]
    assert tag.startswith("success_rate on straight: ")
    assert found["regressed"] is True
    assert found["before"] > 0.9  # every clone knew the way
    assert found["after"]["high"] < 0.5
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text()
        assert "straight" in text and "regress" in text.lower()

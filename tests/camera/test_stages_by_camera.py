"""The stages on a task that is seen through its camera, and on one whose observations are pictures of its own."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config.loading import load
from pipeline.config.stages import Pretrain
from pipeline.errors import BadInput
from pipeline.names import POLICY_SPEC_FILE, Artifact, Tag
from pipeline.stages import run_stage
from pipeline.tracking.datasets import download_dataset, find_dataset_run
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect

TASK = {
    "name": "dot",
    "environment": {"id": "dot_environment:Dot"},
    "success": {"info": "success"},
    "thresholds": {"success_rate": {"min": 0.0}},
    "scenarios": {"default": {}},
    "scenario_sets": {"train": {"default": 1}},
    "camera": {"size": 40, "grayscale": True, "frames": 1},
}
NETWORK = {"hidden": [8], "image_features": 16}
CLONING = {"epochs": 1, "critic_epochs": 1, "evaluate_every_epochs": 1, "select": "validation_loss"}
PPO = {
    "total_timesteps": 128,
    "n_envs": 4,
    "network": NETWORK,
    "ppo": {"n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "evaluation": {"segments": [{"every_steps": 64}], "episodes": 4},
}
EXPERT = {**PPO, "network": {"hidden": [8]}, "evaluation": {**PPO["evaluation"], "seed": 5}}
RULE = {"scenario_set": "train", "metric": "success_rate", "min": 0.0}
EVALUATION = {"episodes": 4, "seed": 6}
SCRIPT = {"demonstrator": "dot_environment:point"}
STAGES = {
    "train_expert": {"seeds": [1], "training": EXPERT, "final_episodes": 10},
    "promote": {"episodes": 100, "seeds": [101], "rules": [RULE]},
    "collect": {"episodes": 20, "noise": {"std": 0.3}},
    "pretrain": {"network": NETWORK, "cloning": CLONING, "evaluation": EVALUATION, "final_episodes": 10},
    "finetune": {"seeds": [1, 2], "training": PPO, "control_timesteps": 0, "final_episodes": 10, "workers": 1},
    "compare": {"resamples": 100, "playback_episodes": 1, "ratio_target": 1.0},
    "evaluate": {"episodes": 10},
}  # fmt: skip


@pytest.fixture
def configs(store, tmp_path, in_repository):
    """Writes the configs of a task; the path of a stage's config by its name."""

    def write(**environment) -> dict[str, str]:
        task = {**TASK, "environment": {**TASK["environment"], "kwargs": environment}}
        paths = {name: str(tmp_path / f"{name}.yaml") for name in ("task", *STAGES, "main")}
        contents = {name: {"task": paths["task"], **data} for name, data in STAGES.items()}
        stages = {
            name: paths[name] for name in ("train_expert", "promote", "collect", "pretrain", "finetune", "compare")
        }
        main = {"stages": stages, "finetune_failed_clones": True}
        for name, data in {**contents, "task": task, "main": main}.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data))
        return paths

    return write


@pytest.mark.slow
def test_main_with_use_camera_goes_from_numbers_to_pictures_to_the_report(configs):
    paths = configs()
    outcome = run_stage("main", paths["main"], {}, {"use_camera": "true", "matched_seeds": "2"})
    client = connect()
    (pretrain,) = search(client, {Tag.STAGE: "pretrain"})
    assert pretrain.data.metrics["camera/frames"] == 20 * 9
    assert Tag.CAMERA_DIGEST in pretrain.data.tags
    specs = {}
    for stage in ("train_expert", "pretrain", "finetune_seed", "baseline_seed"):
        made = search(client, {Tag.STAGE: stage})[0].info.run_id
        folder = Path(client.download_artifacts(made, Artifact.POLICY))
        specs[stage] = json.loads((folder / POLICY_SPEC_FILE).read_text())["observation_space"]["shape"]
    assert specs == {"train_expert": [2], "pretrain": [1, 40, 40], "finetune_seed": [1, 40, 40],
                     "baseline_seed": [1, 40, 40]}  # fmt: skip
    report = search(client, {Tag.STAGE: "compare"})[0].info.run_id
    page = Path(client.download_artifacts(report, f"{Artifact.REPORT}/report.html")).read_text()
    assert "video/mp4" in page and outcome.outputs["report"] == report
    evaluated = run_stage("evaluate", paths["evaluate"], {"policy": pretrain.info.run_id}, {})
    assert "10 episodes" in evaluated.summary[0]
    finetuned = search(client, {Tag.STAGE: "finetune_seed"})[0].info.run_id
    gate = run_stage("promote", paths["promote"], {"expert": finetuned}, {})
    assert gate.verdict is True  # the gate looked through the camera: nothing said so but the policy itself
    with pytest.raises(BadInput, match="it sees what a camera draws, and who demonstrates"):
        run_stage("collect", paths["collect"], {}, {})
    with pytest.raises(BadInput, match=r"CameraView.*task 'dot' has \[\]"):
        run_stage("finetune", paths["finetune"], {"policy": pretrain.info.run_id}, {})


def test_recorded_pictures_are_bytes_validated_inspected_and_cloned(configs):
    paths = configs(pixels=True)
    outcome = run_stage("collect", paths["collect"], {}, {"scripted": json.dumps(SCRIPT)})
    assert outcome.verdict is True
    found = find_dataset_run(connect(), outcome.outputs["dataset"], "dot")
    folder = download_dataset(found)
    archive = folder / "trajectories.npz"
    with zipfile.ZipFile(archive) as members:
        assert members.getinfo("observations.npy").file_size - 20 * 9 * 3 * 80 * 80 == 128  # bytes and a header
    observations = np.load(archive)["observations"]
    assert observations.dtype == np.uint8 and observations.shape == (180, 3, 80, 80)
    cloned = run_stage("pretrain", paths["pretrain"], {"dataset": outcome.outputs["dataset"]}, {})
    assert "1 clones" in cloned.summary[0]


def test_other_algorithms_do_not_look_through_the_camera(configs):
    with pytest.raises(BadInput, match="use_camera is for algorithm 'bc'"):
        load(Pretrain, configs()["pretrain"], {"use_camera": "true", "algorithm": "gail"})

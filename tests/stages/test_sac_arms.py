"""SAC with demonstrations as a stage trains it: of the episodes that the clones were made of, made again to the bit."""

import json

from pipeline.data import content_digest
from pipeline.names import Artifact, Metric, Tag
from pipeline.stages import run_stage
from pipeline.tracking.datasets import fetch_for_training, part_of
from pipeline.tracking.runs import read_text_artifact, search

SHORT = {"seeds": "[1]", "training.total_timesteps": "512", "control_timesteps": "0", "final_episodes": "4"}
SAC = "sac: {n_envs: 16, network: {hidden: [8]}}"


def test_sac_replays_the_episodes_that_the_clones_were_made_of_and_is_made_again(story, client):
    few = {"seeds": "[1]", "episodes": "12", "cloning.epochs": "1", "final_episodes": "4", "judgement.episodes": "4"}
    clones = run_stage("pretrain", "configs/smoke/pretrain.yaml", {"dataset": story.dataset}, few).outputs["policy"]
    rlpd = f"algorithm: sac, demonstrations: 0.5, {SAC}"
    arms = f"{{rlpd: {{{rlpd}}}, six: {{{rlpd}, episodes: 6}}}}"
    run_stage("finetune", "configs/smoke/finetune.yaml", {"policy": clones}, {**SHORT, "arms": arms})
    (trained,) = search(client, {Tag.STAGE: "finetune_seed", Tag.ARM: "rlpd"})
    key = json.loads(read_text_artifact(client, trained.info.run_id, Artifact.CONTENT_KEY))
    dataset = fetch_for_training(client, story.dataset, None)
    assert key["input"]["demonstrations"] == content_digest(part_of(dataset, 12).trajectories)
    assert key["input"]["demonstrations"] != dataset.metadata.content_digest
    assert trained.data.metrics[Metric.GRADIENT_STEPS] == (512 - 96) // 16  # after each step beyond the first 100
    (of_six,) = search(client, {Tag.STAGE: "finetune_seed", Tag.ARM: "six"})
    key = json.loads(read_text_artifact(client, of_six.info.run_id, Artifact.CONTENT_KEY))
    assert key["input"]["demonstrations"] == content_digest(part_of(dataset, 6).trajectories)
    for run in (trained, of_six):
        again = run_stage("reproduce", "configs/reproduce.yaml", {"run": run.info.run_id}, {})
        assert again.verdict, again.summary

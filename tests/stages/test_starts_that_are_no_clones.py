"""`finetune` from what the other stages take for a policy: an imported or approved expert, or any training's."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_experts_in_doubt import EASY, EXPERT, PROMOTE, another_zip, refusal, sac_zip

from pipeline.errors import BadInput
from pipeline.names import Artifact, Tag, lineage_run_tag
from pipeline.policies import load_trainable
from pipeline.stages import run_stage
from pipeline.tracking.groups import read_evaluations
from pipeline.tracking.models import find_policy
from pipeline.tracking.runs import read_text_artifact, search

NETWORK = {"training.network.hidden": "[8]"}  # of the zip that became version 1
SHORT = {
    **NETWORK, "seeds": "[1, 2]", "control_timesteps": "0", "training.total_timesteps": "1024", "final_episodes": "20",
}  # fmt: skip


def finetuned(client, group: str, policy: str, **overrides: str):
    """The outcome, and the runs of its seeds."""
    upstream = {"policy": policy, "group": group}
    outcome = run_stage("finetune", "configs/smoke/finetune.yaml", upstream, SHORT | overrides)
    return outcome, search(client, {Tag.GROUP: group, Tag.STAGE: "finetune_seed"})


def test_an_imported_expert_is_fine_tuned_by_its_version_as_it_stands_and_says_what_it_came_from(story, client):
    expert = find_policy(client, f"{EXPERT}/1", "social_nav", {})
    outcome, seeds = finetuned(client, "theirs", f"models:/{EXPERT}@approved")
    assert f"started from the policy of {EXPERT}/1, behind which are no demonstrations" in outcome.summary[-1]
    assert len(seeds) == 2
    for seed in seeds:
        tags = seed.data.tags
        assert tags[lineage_run_tag("policy")] == expert.run_id  # the gate imported it
        assert (tags[Tag.LINEAGE_EXPERT], tags[Tag.LINEAGE_EXPERT_DIGEST]) == (f"{EXPERT}/1", expert.digest)
        assert lineage_run_tag("dataset") not in tags
        assert seed.data.metrics["transfer/action_distance"] == 0
        assert expert.digest in read_text_artifact(client, seed.info.run_id, Artifact.CONTENT_KEY)
        # it explores with the deviation that it came with: nothing was decided before the first step
        decided = read_text_artifact(client, seed.info.run_id, Artifact.WARM_START) or ""
        assert "initial_action_std" not in decided
    first, second = (read_evaluations(client, seed)["evaluations"][0] for seed in seeds)
    assert first == second  # both begin as the expert
    # the run of the gate names the same policy: nothing is trained twice
    again, none = finetuned(client, "again", str(expert.run_id))
    assert none == []
    assert "are not trained again: pretrained seed 1, pretrained seed 2" in again.summary[0]


def test_what_a_person_should_know_of_clones_is_said_before_they_are_trained_on(story, client, capsys):
    cloned = {"seeds": "[1, 2]", "cloning.gamma": "0.9", "cloning.select": "rollout", "cloning.epochs": "2"}
    upstream = {"dataset": story.dataset}
    clones = run_stage("pretrain", "configs/smoke/pretrain.yaml", upstream, {**cloned, "network.hidden": "[8]"})
    policy = clones.outputs["policy"]
    finetuned(client, "doubtful", policy, **{"training.ppo.gamma": "0.95", "training.evaluation.seed": "6"})
    said = capsys.readouterr().err
    assert "the clones' critics know returns discounted by 0.9, training.ppo.gamma is 0.95" in said
    assert "the clones were chosen on the episodes that measure the training (evaluation.seed = 6 of both)" in said
    finetuned(client, "sound", policy, **{"training.ppo.gamma": "0.9", "training.evaluation.seed": "7"})
    assert "finetune: warning" not in capsys.readouterr().err
    finetuned(client, "many", policy, **{"training.ppo.gamma": "0.9", "arms": "[naive]"})
    assert (
        "2 arms against the one from scratch, on 2 seeds: no difference in their ranking can survive"
        in capsys.readouterr().err
    )
    other = {"training.environment": "{reward_kwargs: {collision: 5.0}}"}
    finetuned(client, "another-reward", policy, **{"training.ppo.gamma": "0.9"}, **other)
    assert "was recorded with other arguments than the task's: environment: reward_kwargs" in capsys.readouterr().err


def test_a_critic_that_learnt_from_divided_rewards_goes_on_in_its_unit(story, client, tmp_path):
    path, theirs = another_zip(tmp_path)

    class Alike(gym.Env):
        observation_space, action_space = theirs.observation_space, theirs.action_space

    behind = VecNormalize(DummyVecEnv([Alike]), norm_obs=False)
    behind.ret_rms.var, behind.epsilon = np.array(3.75), 0.25
    behind.save(tmp_path / "vecnormalize.pkl")
    run_stage("promote", PROMOTE, {"expert": str(path)}, EASY)
    start = find_policy(client, f"models:/{EXPERT}@approved", "social_nav", {}).as_start()
    assert start.return_scale == 2  # the root of 3.75 + 0.25
    values = load_trainable(start.folder).predict_values
    observations = torch.zeros((1, *theirs.observation_space.shape))
    torch.testing.assert_close(values(observations), 2 * theirs.predict_values(observations))


def test_what_ppo_cannot_go_on_from_is_refused_by_its_name_and_with_the_setting_that_fits(story, tmp_path):
    named = {"policy": f"{EXPERT}/1"}
    line = refusal("finetune", named)
    assert f"arm 'pretrained': policy of {EXPERT}/1 has network.hidden = [8], training.network.hidden is [16]" in line
    assert line.endswith("training.network.hidden=[8]")
    assert f"policy of {EXPERT}/1, which is none" not in line
    few = {**NETWORK, "arms": "{few: {warm_start: adaptive, episodes: 3}}"}
    assert "arm 'few': its clones are made with the settings of the other arms'" in refusal("finetune", named, few)
    demonstrations = {**NETWORK, "arms": "[sac_demos]"}
    assert "arm 'sac_demos' needs the demonstrations behind the clones" in refusal("finetune", named, demonstrations)
    sac_zip(tmp_path / "sac.zip")
    run_stage("promote", PROMOTE, {"expert": str(tmp_path / "sac.zip")}, EASY)
    for stage in ("finetune", "baseline"):
        with pytest.raises(BadInput, match=f"^policy {EXPERT}/2 only acts: its actions end in a tanh; record"):
            run_stage(stage, "configs/smoke/finetune.yaml", {"policy": f"{EXPERT}/2"}, {})

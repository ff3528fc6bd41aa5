"""Policies that read pictures: stored, cloned, fine-tuned and played like any other."""

import json
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from pipeline.config.loading import validate
from pipeline.config.training import Cloning, Network, PPOTraining, WarmStart
from pipeline.errors import BadInput
from pipeline.learning.cloning import clone
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train
from pipeline.names import POLICY_SPEC_FILE
from pipeline.play.demonstrators import policy_actions
from pipeline.play.evaluation import point_figures, run_episodes
from pipeline.play.filming import view_again
from pipeline.policies import (
    WRAPPERS,
    act_function,
    build_policy,
    load_policy,
    network_of,
    probe_batch,
    save_policy,
    tensors_of,
    weights_digest,
)
from pipeline.policies.transfer import Transfer
from pipeline.tasks import Purpose

SPACE = spaces.Box(0, 255, (2, 40, 40), np.uint8)
ACTIONS = spaces.Discrete(3)
NETWORK = Network(hidden=(16,), activation="relu", image_features=32)
CLONING = {
    "epochs": 8, "batch_size": 16, "learning_rate": 2e-3, "critic_epochs": 4, "critic_learning_rate": 2e-3,
    "gamma": 0.9, "select": "validation_loss",
}  # fmt: skip


@pytest.fixture(scope="session")
def cloned(seen):
    policy = build_policy(SPACE, ACTIONS, NETWORK, seed=1)
    before = tensors_of(policy)
    result = clone(policy, seen, validate(Cloning, CLONING, "test"), seed=1)
    return policy, result, before


@pytest.fixture
def artifact(cloned, make_task, tmp_path) -> str:
    save_policy(cloned[0], tmp_path / "clone", {WRAPPERS: make_task(use_camera=True).wrappers})
    return str(tmp_path / "clone")


def test_a_policy_of_pictures_is_what_was_saved(cloned, artifact):
    policy, loaded = cloned[0], load_policy(artifact)
    assert weights_digest(loaded) == weights_digest(policy)
    assert network_of(loaded) == NETWORK
    probe = probe_batch(SPACE)
    assert probe.dtype == np.uint8 and probe.max() > 250
    assert np.array_equal(act_function(loaded)(probe), policy.predict(probe, deterministic=True)[0])


def test_the_width_of_the_network_is_part_of_the_artifact(artifact, tmp_path):
    spec = json.loads((tmp_path / "clone" / POLICY_SPEC_FILE).read_text())
    needs = "its network needs"
    for width, message in ((31, needs), (0, "image_features"), (None, needs), (10**8, "larg")):
        network = {key: value for key, value in spec["network"].items() if key != "image_features"}
        if width is not None:
            network["image_features"] = width
        (tmp_path / "clone" / POLICY_SPEC_FILE).write_text(json.dumps({**spec, "network": network}))
        with pytest.raises(BadInput, match=message):
            load_policy(artifact)


def test_pictures_smaller_than_the_network_reads_are_refused():
    with pytest.raises(BadInput, match="at least 36 pixels"):
        build_policy(spaces.Box(0, 255, (3, 35, 64), np.uint8), ACTIONS, NETWORK, 1)


def test_an_action_does_not_depend_on_the_rows_beside_it():
    space = spaces.Box(-1, 1, (2,), np.float32)
    act = act_function(build_policy(SPACE, space, NETWORK, seed=2))
    probe = probe_batch(SPACE, 9)
    together = act(probe)
    assert all(np.array_equal(act(probe[i : i + 1])[0], together[i]) for i in range(9))


def test_cloning_learns_from_pictures_what_the_demonstrator_does_with_numbers(cloned, seen, make_task):
    policy, result, before = cloned
    assert result.epochs[result.best_epoch].metrics["bc/accuracy"] > 0.8  # chance is a third
    assert result.critic_explained_variance > 0.2
    after = tensors_of(policy)
    for part in ("pi_features_extractor.cnn.0.weight", "vf_features_extractor.cnn.0.weight"):
        assert not np.array_equal(before[part], after[part])
    camera = make_task(use_camera=True)
    figures = point_figures(
        run_episodes(camera, act_function(policy), camera.episodes("train", 3, 30, Purpose.EVALUATE))
    )
    assert figures["success_rate"] > 0.4  # standing still reaches the mark in one of ten


def test_the_same_cloning_twice_is_the_same_bits(seen):
    few, settings = seen.select(range(10)), validate(Cloning, {**CLONING, "epochs": 2, "critic_epochs": 1}, "test")
    policies = [build_policy(SPACE, ACTIONS, NETWORK, seed=1) for _ in range(2)]
    for policy in policies:
        clone(policy, few, settings, seed=1)
    assert weights_digest(policies[0]) == weights_digest(policies[1])


def test_a_clone_is_certified_and_another_is_not_it(cloned, artifact, tmp_path):
    certificate = Transfer.between(cloned[0], artifact, cloned[1].critic_explained_variance, 6, 0.9)
    certificate.verify(artifact)
    save_policy(build_policy(SPACE, ACTIONS, NETWORK, seed=7), tmp_path / "other", {})
    with pytest.raises(BadInput, match="features_extractor"):
        certificate.verify(str(tmp_path / "other"))


def test_a_policy_of_pictures_does_not_play_the_task_by_numbers(artifact, make_task):
    with pytest.raises(BadInput, match="does not fit task 'dot': its observation_space"):
        policy_actions(make_task(), artifact, "p")


def test_pictures_and_numbers_together_go_all_the_way(recorded, seen, make_task, tmp_path):
    camera = make_task(
        use_camera=True, camera={"size": 40, "grayscale": True, "frames": 2, "observe": "image_and_state"}
    )
    both = view_again(camera, recorded)
    assert np.array_equal(both.observations["image"], seen.observations)
    assert np.array_equal(both.observations["state"], recorded.observations)
    policy = build_policy(camera.observation_space, ACTIONS, NETWORK, seed=1)
    before = tensors_of(policy)
    clone(policy, both, validate(Cloning, {**CLONING, "epochs": 1, "critic_epochs": 1}, "test"), seed=1)
    cnn = "pi_features_extractor.extractors.image.cnn.0.weight"
    assert not np.array_equal(before[cnn], tensors_of(policy)[cnn])
    save_policy(policy, tmp_path / "both", {WRAPPERS: camera.wrappers})
    assert network_of(load_policy(tmp_path / "both")) == NETWORK
    Transfer.between(policy, str(tmp_path / "both"), 0.5, 6, 0.9)
    act, few = act_function(policy), {key: both.observations[key][:5] for key in ("image", "state")}
    alone = [act({key: values[i : i + 1] for key, values in few.items()})[0] for i in range(5)]
    assert np.array_equal(act(few), alone)
    result = train(replace(job(make_task, None, tmp_path / "ppo"), task=camera.config), lambda _: None)
    assert result.environment_steps == 64


# --- PPO -------------------------------------------------------------------------------------------------------------

TRAINING = {
    "total_timesteps": 64,
    "n_envs": 4,
    "use_camera": True,
    "network": {"hidden": [16], "activation": "relu", "image_features": 32},
    "ppo": {"n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "evaluation": {"segments": [{"every_steps": 64}], "episodes": 4},
}


def job(make_task, artifact: str | None, folder, **warm) -> TrainingJob:
    training = validate(PPOTraining, TRAINING, "test")
    settings = validate(WarmStart, warm, "test") if artifact else None
    config = make_task().config
    return TrainingJob(config, training, 1, str(folder), initial_policy=artifact, warm_start=settings, final_episodes=4)


def test_fine_tuning_starts_from_the_clone_and_scratch_from_the_seed(cloned, artifact, make_task, tmp_path):
    warm = train(job(make_task, artifact, tmp_path / "warm", clone_penalty=0.1), lambda _: None)
    assert warm.transferred is not None and warm.transferred.action_distance == 0
    control = train(replace(job(make_task, artifact, tmp_path / "c"), learning_rate_zero=True), lambda _: None)
    assert control.last_weights == weights_digest(cloned[0]) != warm.last_weights
    scratch = train(job(make_task, None, tmp_path / "scratch"), lambda _: None)
    again = train(job(make_task, None, tmp_path / "again"), lambda _: None)
    assert scratch.transferred is None and scratch.last_weights == again.last_weights
    fresh = [r.evaluations[0].records.metrics["return"].mean() for r in (warm, scratch)]
    assert fresh[0] > fresh[1]  # before the first step of PPO


def test_burn_in_trains_the_critics_own_eyes_and_leaves_the_actor(cloned, artifact, make_task, tmp_path):
    train(job(make_task, artifact, tmp_path / "burn", critic_burn_in_steps=64), lambda _: None)
    before, after = tensors_of(cloned[0]), tensors_of(load_policy(tmp_path / "burn" / "last"))
    changed = {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"vf_features_extractor", "mlp_extractor", "value_net"}
    assert all(np.array_equal(before[n], after[n]) for n in before if n.startswith("mlp_extractor.policy_net"))

"""What units demonstrations come in changes nothing that is learnt from them."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_cloning import demonstrations, negative_log_likelihood, settings

from pipeline.config.loading import validate
from pipeline.config.stages import Pretrain
from pipeline.config.training import Network, WarmStart
from pipeline.errors import BadInput
from pipeline.learning.clones import return_scale, untrained_clone
from pipeline.learning.cloning import clone
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.ppo import fresh_policy, make_model, training_env
from pipeline.learning.train import train
from pipeline.policies import (
    act_function,
    build_policy,
    load_policy,
    read_spec,
    save_policy,
    scaling_of,
    weights_digest,
)
from pipeline.policies.transfer import Transfer
from pipeline.tasks import Task
from pipeline.tracking.content_key import training_key

UNIT = spaces.Box(-1, 1, (4,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
LARGE = spaces.Box(0, 512, (4,), np.float32), spaces.Box(0, 512, (2,), np.float32)


class Spaces:
    """All that is asked of a task here."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


def large(data):
    return replace(data, observations=256 + 256 * data.observations, actions=256 + 256 * data.actions)


def cloned(spaces_, data, scaling=None, **changes):
    pretrain = {"task": "t", "network": {"hidden": [32, 32]}, "scaling": scaling or {}}
    policy = untrained_clone(Spaces(*spaces_), validate(Pretrain, pretrain, "test"), data, seed=1)
    return policy, clone(policy, data, settings(critic_epochs=3, **changes), seed=1)


@pytest.mark.parametrize("loss", ["nll", "mse"])
def test_a_clone_in_units_of_512_is_the_clone_of_the_same_data_divided_by_hand(loss):
    data = demonstrations("continuous")
    by_hand, plain = cloned(UNIT, data, epochs=4, loss=loss)
    raw, result = cloned(LARGE, large(data), epochs=4, loss=loss)
    assert not scaling_of(by_hand)
    assert scaling_of(raw).observations.offset.tolist() == [256] * 4
    seen = data.observations[data.step_rows]
    expected = act_function(by_hand)(seen)
    assert np.abs(expected).max() > 0.5
    assert np.allclose(act_function(raw)(256 + 256 * seen), 256 + 256 * expected, atol=0.5)
    for before, after in zip(plain.epochs, result.epochs, strict=True):
        stretch = 2 * np.log(256)
        assert after.metrics["bc/neglogp"] == pytest.approx(before.metrics["bc/neglogp"] + stretch, abs=1e-3)
        assert after.metrics["bc/entropy"] == pytest.approx(before.metrics["bc/entropy"] + stretch, abs=1e-3)
        assert after.metrics["bc/std"] == pytest.approx(256 * before.metrics["bc/std"], rel=1e-3)
        error = before.metrics["bc/mean_absolute_error"]
        assert after.metrics["bc/mean_absolute_error"] == pytest.approx(256 * error, rel=1e-3)
        if loss == "mse":
            assert after.metrics["bc/val_loss"] == pytest.approx(before.metrics["bc/val_loss"], rel=1e-3)
    held_out = large(data).select(result.held_out_episodes)
    if loss == "nll":  # by SB3's own distribution, in raw units
        last = result.epochs[result.best_epoch].metrics["bc/val_loss"]
        assert last == pytest.approx(negative_log_likelihood(raw, held_out), rel=1e-4)
    points = zip(plain.critic_epochs, result.critic_epochs, strict=True)
    assert all(a.metrics["critic/val_loss"] == pytest.approx(b.metrics["critic/val_loss"], rel=1e-2) for b, a in points)


def test_without_scaling_large_numbers_are_hardly_learnt():
    data = large(demonstrations("continuous"))
    errors = {}
    for measured in (True, False):
        _, result = cloned(LARGE, data, {"measured": measured}, epochs=10)
        errors[measured] = result.epochs[-1].metrics["bc/mean_absolute_error"]
    assert errors[True] < 0.5 * errors[False]


def test_figures_may_be_given():
    middle = {"offset": 256.0, "scale": 256.0}
    given = {"measured": False, "observations": {"all": middle}, "actions": middle}
    data = large(demonstrations("continuous"))
    assert weights_digest(cloned(LARGE, data, given, epochs=1)[0]) == weights_digest(cloned(LARGE, data, epochs=1)[0])


@pytest.mark.parametrize("what", ["observations", "actions"])
def test_demonstrations_of_which_all_are_the_same_are_refused(what):
    data = demonstrations("continuous")
    constant = replace(data, **{what: np.full_like(getattr(data, what), 0.5)})
    with pytest.raises(BadInput, match=f"all .* {what} are the same: nothing is to be learnt"):
        cloned(UNIT, constant)


# --- PPO in units ----------------------------------------------------------------------------------------------------


class Recording:
    """What a training says."""

    def __init__(self):
        self.std = []

    def __call__(self, event):
        self.std += [event.metrics["train/std"]] if "train/std" in event.metrics else []


@pytest.fixture
def scaled_job(make_task, make_training, tmp_path):
    task = make_task("Pendulum-v1", horizon=50)
    data = demonstrations("continuous", episodes=4)
    observations = np.random.default_rng(0).normal(size=(len(data.observations), 3)).astype(np.float32) * 8
    actions = np.clip(observations[data.step_rows, :1], -2, 2)
    data = replace(data, observations=observations, actions=actions, executed_actions=actions)
    pretrain = validate(Pretrain, {"task": "t", "network": {"hidden": [16]}}, "test")
    policy = untrained_clone(Task(task), pretrain, data, seed=1)
    save_policy(policy, tmp_path / "clone", {"wrappers": []})
    return TrainingJob(task, make_training(), 1, str(tmp_path / "out"), final_episodes=2, scaling=scaling_of(policy))


def test_ppo_keeps_the_units_that_it_is_given(scaled_job):
    assert scaled_job.scaling.actions.scale.tolist() == [2]
    result = train(scaled_job, Recording())
    best = load_policy(f"{scaled_job.output}/best")
    assert scaling_of(best).digest == scaled_job.scaling.digest
    assert result.last_weights != result.best_weights or result.best_timestep > 0
    rows = torch.as_tensor(np.zeros((1, 3), np.float32))
    assert best.get_distribution(rows).distribution.stddev.item() == pytest.approx(2, rel=0.2)  # 1, in units of 2


def test_the_value_of_a_state_means_the_same_to_a_clone_and_to_ppo_that_normalises_rewards(scaled_job, tmp_path):
    """A return that is 40 times as large is divided by 40, reward by reward, and the critic's with it."""
    training = replace(scaled_job.training, normalize_reward=True)
    start = str(tmp_path / "clone")
    job = replace(scaled_job, training=training, initial_policy=start, warm_start=WarmStart(), return_scale=40.0)
    task, plain = Task(job.task), scaled_job.training
    with closing(training_env(task, training, 1, 0, 40.0)) as env, closing(training_env(task, plain, 1)) as raw:
        rows = torch.as_tensor(np.float32(env.reset()))
        raw.reset()
        values, before = (p.predict_values(rows) for p in (make_model(job, task, env)[0].policy, load_policy(start)))
        assert torch.allclose(40 * values, before, rtol=1e-5)
        for _ in range(30):  # whatever came before
            actions = np.full((env.num_envs, 1), 1.5, np.float32)
            assert np.allclose(40 * env.step(actions)[1], raw.step(actions)[1], rtol=1e-5)


def test_what_a_training_hands_on_values_returns_as_they_are_and_says_by_what_it_divided_them(scaled_job, tmp_path):
    """At learning rate 0 the critic stays what it was, in whatever unit PPO saw it."""
    training = replace(scaled_job.training, normalize_reward=True)
    rows = torch.as_tensor(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    start = str(tmp_path / "clone")
    warm = replace(
        scaled_job, training=training, initial_policy=start, warm_start=WarmStart(), return_scale=40.0,
        learning_rate_zero=True, output=str(tmp_path / "warm"),
    )  # fmt: skip
    train(warm, Recording())
    scratch = replace(scaled_job, training=training, learning_rate_zero=True, output=str(tmp_path / "scratch"))
    train(scratch, Recording())
    task = Task(scaled_job.task)
    for job, before in ((warm, load_policy(start)), (scratch, fresh_policy(scratch, task))):
        for name in ("best", "last"):
            kept, unit = load_policy(f"{job.output}/{name}"), read_spec(f"{job.output}/{name}").return_scale
            seen = before.predict_values(rows) * (unit or 1.0 if job is scratch else 1.0)
            torch.testing.assert_close(kept.predict_values(rows), seen, rtol=1e-4, atol=1e-3)
            assert unit == 40.0 if job is warm else (unit is None) == (name == "best")  # step 0: no reward was seen
    assert read_spec(f"{scratch.output}/last").return_scale > 5  # Pendulum's returns, after some rollouts
    raw = replace(scaled_job, output=str(tmp_path / "raw"))
    train(raw, Recording())
    assert read_spec(f"{raw.output}/best").return_scale is None


def test_the_scale_of_returns_is_on_the_certificate(tmp_path):
    data = replace(demonstrations("continuous", episodes=2, length=2), rewards=np.float32([3, 1, 5, 1]))
    # discounted by 1/2: 3.5, 1, 5.5, 1
    assert return_scale(data, 0.5) == pytest.approx(np.sqrt((3.5**2 + 1 + 5.5**2 + 1) / 4))
    policy = build_policy(*UNIT, Network(hidden=(4,)), 1)
    save_policy(policy, tmp_path, {})
    assert Transfer.between(policy, str(tmp_path), return_scale=3.0).return_scale == 3.0
    without = replace(data, rewards=np.full_like(data.rewards, np.nan))  # that nobody recorded
    for none in (0.0, return_scale(without, 0.5)):
        certificate = Transfer.between(policy, str(tmp_path), return_scale=none)
        assert Transfer.from_json(certificate.to_json()).return_scale is None


def test_units_are_part_of_what_decides_a_training(scaled_job):
    plain = training_key(replace(scaled_job, scaling=None))
    assert "scaling" not in plain.ingredients["input"]
    assert training_key(scaled_job).ingredients["input"]["scaling"] == scaled_job.scaling.digest


def test_a_large_space_is_scaled_by_its_bounds_where_nobody_demonstrated(make_task, make_training, tmp_path):
    wide = make_task("learning_environments:Wide", horizon=50)
    job = TrainingJob(wide, make_training(total_timesteps=256), 1, str(tmp_path), final_episodes=1)
    train(job, lambda event: None)
    assert scaling_of(load_policy(tmp_path / "best")).actions.scale.tolist() == [256]

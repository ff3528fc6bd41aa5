"""A warm start transfers every weight, says so, and changes PPO only where it was told to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from torch.distributions import Normal, kl_divergence

from pipeline.config.training import ADAPTIVE_WARM_START, Network, WarmStart
from pipeline.errors import BadInput
from pipeline.learning.callbacks import NumberWriter
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.ppo import training_env
from pipeline.learning.train import train
from pipeline.learning.warm_start import WarmPPO
from pipeline.policies import (
    build_policy,
    load_policy,
    load_tensors,
    policy_arguments,
    probe_batch,
    save_policy,
    tensor_digests,
    weights_digest,
)
from pipeline.policies.networks import name_in_residual
from pipeline.tasks import Task

NETWORK = Network(hidden=(16,))
PLAIN = WarmStart(initial_action_std=None)


def ignore(event):
    pass


@pytest.fixture(scope="module")
def clone(pendulum, tmp_path_factory):
    """A folder with a policy that no seed used here starts from."""
    task = Task(pendulum)
    policy = build_policy(task.observation_space, task.action_space, NETWORK, seed=99)
    folder = tmp_path_factory.mktemp("clone") / "policy"
    save_policy(policy, folder, {})
    return str(folder), policy


def fresh(task_config, seed=1):
    task = Task(task_config)
    return build_policy(task.observation_space, task.action_space, NETWORK, seed)


def test_a_training_starts_from_the_clone_and_keeps_the_proof(pendulum, clone, make_training, tmp_path):
    job = TrainingJob(pendulum, make_training(), 1, str(tmp_path / "warm"), initial_policy=clone[0], warm_start=PLAIN)
    warm, scratch = train(job, ignore), train(replace(job, initial_policy=None, warm_start=None), ignore)
    assert warm.transferred.tensors == tensor_digests(clone[1]) and scratch.transferred is None
    control = train(replace(job, learning_rate_zero=True), ignore)
    assert control.last_weights == weights_digest(clone[1])


def test_a_residual_training_corrects_its_clone_and_leaves_it_as_it_is(pendulum, clone, make_training, tmp_path):
    job = TrainingJob(
        pendulum,
        make_training(),
        1,
        str(tmp_path / "residual"),
        initial_policy=clone[0],
        warm_start=PLAIN,
        residual=True,
    )
    result = train(job, ignore)
    assert result.transferred.tensors == tensor_digests(clone[1])
    alone = replace(job, output=str(tmp_path / "control"), residual=False, learning_rate_zero=True)
    control = train(alone, ignore)
    first, alone = result.evaluations[0].records, control.evaluations[0].records
    assert np.array_equal(first.metrics["return"], alone.metrics["return"])  # at step 0 it acts as its clone
    last = load_policy(tmp_path / "residual" / "last")
    held = tensor_digests(last)
    frozen = {n: d for n, d in tensor_digests(clone[1]).items() if "policy_net" in n or "action_net" in n}
    assert {name: held[name_in_residual(name)] for name in frozen} == frozen
    assert last.action_net.correction.weight.abs().sum() > 0
    # goes on with both parts
    further = replace(job, initial_policy=str(tmp_path / "residual" / "last"), residual=False)
    assert train(further, ignore).transferred.tensors == held
    with pytest.raises(BadInput, match="it needs an initial one"):
        train(replace(job, initial_policy=None, warm_start=None), ignore)


# --- the update


def two_models(task_config, make_training, settings):
    """SB3's PPO and ours from the same weights, environments and seed."""
    training = make_training(ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 2, "ent_coef": 0.01})
    models = []
    for cls in (PPO, WarmPPO):
        env = training_env(Task(task_config), training, seed=2)
        model = cls(
            "MlpPolicy",
            env,
            policy_kwargs=policy_arguments(env.observation_space, NETWORK),
            seed=2,
            device="cpu",
            **training.ppo,
        )
        load_tensors(model.policy, fresh(task_config, 7).state_dict())
        models.append(model)
    models[1].begin_warm_start(settings)
    return models


@pytest.mark.parametrize("task", ["cartpole", "pendulum"])
def test_without_burn_in_and_penalty_it_is_sb3s_own_ppo_bit_for_bit(task, request, make_training):
    theirs, ours = two_models(request.getfixturevalue(task), make_training, WarmStart())
    for model in (theirs, ours):
        model.set_random_seed(2)  # both were made before either learns
        model.learn(512)
    assert weights_digest(ours.policy) == weights_digest(theirs.policy)


@pytest.mark.parametrize("task", ["cartpole", "pendulum"])
@pytest.mark.parametrize(("clip_range_vf", "target_kl"), [(None, None), (0.2, None), (None, 1e-5)])
def test_with_a_vanishing_penalty_it_is_sb3s_ppo(task, clip_range_vf, target_kl, request, make_training):
    settings = WarmStart(clone_penalty=1e-30)
    theirs, ours = two_models(request.getfixturevalue(task), make_training, settings)
    for model in (theirs, ours):
        model.clip_range_vf = None if clip_range_vf is None else (lambda _: clip_range_vf)
        model.target_kl = target_kl
        model.set_random_seed(2)
        model.learn(256)
    for name, tensor in theirs.policy.state_dict().items():
        assert torch.allclose(tensor, ours.policy.state_dict()[name], atol=1e-5), name


def test_burn_in_teaches_the_critic_and_only_the_critic(pendulum, make_training):
    _, model = two_models(pendulum, make_training, WarmStart(critic_burn_in_steps=256))
    before = tensor_digests(model.policy)
    model.learn(256)
    after = tensor_digests(model.policy)
    critic = {name for name in before if name.startswith(("mlp_extractor.value_net", "value_net"))}
    assert {name for name in before if before[name] != after[name]} == critic
    assert model.num_timesteps == 256  # its steps are counted
    model.learn(128, reset_num_timesteps=False)
    assert tensor_digests(model.policy)["action_net.weight"] != before["action_net.weight"]


def test_burn_in_makes_the_critic_better(pendulum, make_training):
    _, model = two_models(
        pendulum, make_training, WarmStart(critic_burn_in_steps=2048, critic_burn_in_learning_rate=1e-2)
    )
    losses = []

    class Keep:
        def record(self, name, value, exclude=None):
            if name == "train/value_loss":
                losses.append(value)

    model.learn(128)
    model._logger = Keep()
    train_once = model.train
    for _ in range(40):
        train_once()
    assert losses[-1] < 0.7 * losses[0]


def test_the_penalty_fades_linearly_after_the_burn_in(pendulum, make_training):
    settings = WarmStart(clone_penalty=0.8, clone_penalty_fade_steps=1024, critic_burn_in_steps=256)
    _, model = two_models(pendulum, make_training, settings)
    weights = {}
    for steps in (
        256,
        384,
        640,
        1152,
        1280,
        1408,
        5000,
    ):  # a rollout is 4 x 32 = 128 steps, and comes before its update
        model.num_timesteps = steps
        weights[steps] = model.penalty_weight()
    assert weights == pytest.approx({256: 0.8, 384: 0.8, 640: 0.6, 1152: 0.2, 1280: 0.1, 1408: 0.0, 5000: 0.0})


@pytest.mark.parametrize(
    ("clone_returns", "burn_in", "first_update"),
    [
        (-1e9, 0, 256),  # any noise is borne: PPO learns from the rollout that ended the trial
        (1e9, 256, 640),  # none is: two rollouts more are the critic's, with the deviation that stays
    ],
)
def test_a_fixed_penalty_fades_and_a_fixed_burn_in_counts_from_the_end_of_a_trial(
    clone_returns, burn_in, first_update, pendulum, make_training
):
    """Episodes of 50 steps in rollouts of 4 x 32 = 128 steps: the trial ends with the second rollout."""
    settings = WarmStart(
        initial_action_std="adaptive", critic_burn_in_steps=burn_in, clone_penalty=0.8, clone_penalty_fade_steps=1024
    )
    _, model = two_models(pendulum, make_training, PLAIN)
    with torch.no_grad():
        model.policy.log_std.fill_(-3.0)
    model.begin_warm_start(settings)
    said = {}  # by the step at which the update ended, a rollout after which it is said
    writer = NumberWriter(lambda numbers, step: said.update({step - 128: numbers}))
    model.set_logger(Logger(folder=None, output_formats=[writer]))
    model.on_evaluation(np.full(5, clone_returns))
    model.learn(first_update + 384)
    critic_alone = [step for step, numbers in said.items() if "train/critic_burn_in" in numbers]
    assert critic_alone == list(range(128, first_update, 128))
    weights = [said[first_update + later].get("train/clone_penalty") for later in (0, 128, 256)]
    assert weights == pytest.approx([0.8, 0.7, 0.6])
    assert model.decisions[-1].timestep == 256  # which the trial took


def test_a_penalty_that_does_not_fade_keeps_its_weight(pendulum, make_training):
    _, model = two_models(pendulum, make_training, WarmStart(clone_penalty=0.5))
    model.num_timesteps = 10**9
    assert model.penalty_weight() == 0.5


def test_the_penalty_keeps_the_policy_near_the_clone(pendulum, make_training):
    distances = []
    for penalty in (0.0, 10.0):
        _, model = two_models(pendulum, make_training, WarmStart(clone_penalty=penalty))
        model.policy.optimizer.param_groups[0]["lr"] = 1e-2
        model.lr_schedule = lambda _: 1e-2
        model.learn(1024)
        clone, probe = fresh(pendulum, 7), torch.as_tensor(probe_batch(model.observation_space))
        with torch.no_grad():
            ours, theirs = (p.get_distribution(probe).distribution for p in (model.policy, clone))
            distances.append(
                float(kl_divergence(Normal(theirs.mean, theirs.stddev), Normal(ours.mean, ours.stddev)).mean())
            )
    assert distances[1] < 0.2 * distances[0]


@pytest.mark.parametrize("name", ["CartPole-v1", "LunarLanderContinuous-v3"])
def test_what_is_logged_and_weighed_is_kl_of_clone_and_policy(name, make_task, make_training):
    """Held to the formulas: two steps over the same rollout, of which the first begins at the clone, where it is 0."""
    models, task = [], make_task(name, horizon=50)
    for epochs in (1, 2):
        _, model = two_models(task, make_training, WarmStart(clone_penalty=0.7))
        model.n_epochs, model.batch_size, model.lr_schedule = epochs, 32 * model.n_envs, lambda _: 1e-2
        model.set_random_seed(2)
        model.learn(32 * model.n_envs, log_interval=None)
        models.append(model)
    seen = torch.as_tensor(models[0].rollout_buffer.observations)
    with torch.no_grad():
        clone, policy = (p.get_distribution(seen).distribution for p in (fresh(task, 7), models[0].policy))
        if name == "CartPole-v1":  # sum of p log(p / q)
            divergence = (clone.probs * (clone.probs / policy.probs).log()).sum(dim=1)
        else:  # of normal distributions, summed over the dimensions
            p, q = clone.stddev, policy.stddev
            divergence = ((q / p).log() + (p**2 + (clone.mean - policy.mean) ** 2) / (2 * q**2) - 0.5).sum(dim=1)
    assert divergence.mean() > 1e-4
    logged = [model.logger.name_to_value["train/clone_divergence"] for model in models]
    assert logged == pytest.approx([0.0, float(divergence.mean()) / 2], abs=1e-6)
    values = models[1].logger.name_to_value
    parts = (
        values["train/policy_gradient_loss"] + 0.01 * values["train/entropy_loss"] + 0.5 * values["train/value_loss"]
    )
    assert values["train/loss"] == pytest.approx(parts + 0.7 * logged[1], rel=1e-4)


def test_the_learning_rate_has_the_factor_of_the_warm_start(pendulum, make_training):
    for settings, factor in ((WarmStart(learning_rate_factor=0.25), 0.25), (ADAPTIVE_WARM_START, 0.3), (PLAIN, 1.0)):
        _, model = two_models(pendulum, make_training, settings)
        model.learn(512)
        # of SB3's own 3e-4; the adaptive one has seen no evaluation that beats the clone's
        assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 * factor)

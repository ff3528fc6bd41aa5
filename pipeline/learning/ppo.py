"""PPO as the arms use it: its environment, the weights it starts from, and what its settings become of SB3's."""

import inspect
import warnings
from collections.abc import Callable
from math import log
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from pipeline.config.training import ADAPTIVE, LearningRate, PPOTraining
from pipeline.errors import BadInput
from pipeline.learning.adaptive import Decision
from pipeline.learning.device import begin_on
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.warm_start import WarmPPO
from pipeline.policies import (
    WRAPPERS,
    build_policy,
    load_tensors,
    load_trainable,
    policy_arguments,
    policy_class,
    read_spec,
    scaling_by_bounds,
    scaling_of,
)
from pipeline.policies.networks import ResidualPolicy
from pipeline.policies.transfer import Transfer, transfer
from pipeline.tasks import Task
from pipeline.tasks.user_code import call_with_user_arguments


def check_job(job: TrainingJob) -> None:
    """Refuse a job that contradicts itself. Raises BadInput."""
    if (job.initial_policy is None) != (job.warm_start is None):
        raise BadInput("a training has both an initial policy and warm_start settings, or neither")
    if job.residual and job.initial_policy is None:
        raise BadInput("a residual training corrects a policy: it needs an initial one")
    if rollout_steps(job.training) < 2:
        raise BadInput("training.ppo.n_steps = 1 with training.n_envs = 1: a rollout needs 2 steps")
    n_envs = job.training.n_envs
    if job.exact_budget and job.budget % n_envs:
        fitting = job.budget - job.budget % n_envs
        raise BadInput(
            f"a budget of {job.budget} steps is no multiple of training.n_envs = {n_envs}, so it cannot "
            f"be met exactly; use {fitting or n_envs}"
        )


def rollout_steps(training: PPOTraining) -> int:
    """Environment steps between two updates of PPO."""
    return int(training.ppo.get("n_steps", _default("n_steps"))) * training.n_envs


def discount(training: PPOTraining) -> float:
    """gamma of the returns that PPO maximises."""
    return float(training.ppo.get("gamma", _default("gamma")))


def _default(argument: str) -> Any:
    return inspect.signature(PPO.__init__).parameters[argument].default


def training_env(
    task: Task, training: PPOTraining, seed: int, part: int = 0, return_scale: float | None = None
) -> VecEnv:
    """The vectorised environment of a training, with rewards divided by a scale, or their running spread, if so asked.

    Every part of a training, from one checkpoint to the next, has episodes of its own.
    """
    env: VecEnv = task.make_vec_env(task.training_streams(training.scenario_set, seed, training.n_envs, part))
    if training.normalize_reward:
        env = VecNormalize(env, norm_obs=False, norm_reward=True, gamma=discount(training))
        if return_scale is not None:
            # subtle: nothing is clipped either, or the sum of what PPO sees would not be a return in that scale
            env.ret_rms.var, env.epsilon, env.clip_reward, env.training = np.array(return_scale**2), 0.0, np.inf, False
    return env


def fresh_policy(job: TrainingJob, task: Task) -> ActorCriticPolicy:
    """Weights of PPO from the seed; units of what it starts from, or those given, or by the bounds of the spaces."""
    spaces, network, scaling = (task.observation_space, task.action_space), job.training.network, job.scaling
    residual = job.residual
    if job.initial_policy is not None:
        start = load_trainable(job.initial_policy)
        scaling, residual = scaling_of(start), residual or isinstance(start, ResidualPolicy)
    elif scaling is None:
        scaling = scaling_by_bounds(*spaces, network)
    policy = build_policy(*spaces, network, job.seed, scaling, residual, job.training.orthogonal_init)
    if job.training.initial_action_std != 1.0 and hasattr(policy, "log_std"):
        with torch.no_grad():
            policy.log_std.fill_(log(job.training.initial_action_std))
    return policy


def learning_rate_schedule(setting: LearningRate, budget: int) -> Callable[[float], float]:
    """SB3 asks with the share of the budget that remains: 1 -> `initial`, 0 -> `final`."""
    final, over = setting.initial if setting.final is None else setting.final, setting.over_steps
    if over is None:
        return lambda remaining: final + (setting.initial - final) * max(0.0, remaining)
    # subtle: by whole steps, which are the same in a longer training, while the share that remains is not
    return lambda remaining: final + (setting.initial - final) * max(0.0, 1 - round((1 - remaining) * budget) / over)


def make_model(job: TrainingJob, task: Task, env: VecEnv, part: int = 0) -> tuple[WarmPPO, Transfer | None]:
    """PPO with the weights it starts from: those of the initial policy with proof, or fresh ones from the seed.

    All generators are seeded anew, for every part of the training in another way.
    """
    training, fresh = job.training, fresh_policy(job, task)
    scaling, residual = scaling_of(fresh), isinstance(fresh, ResidualPolicy)
    rate = LearningRate(initial=0.0) if job.learning_rate_zero else training.learning_rate
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to run")  # SB3's, of a GPU that the task file asks for
        model: WarmPPO = call_with_user_arguments(
            WarmPPO,
            "training.ppo",
            policy=policy_class(task.observation_space, scaling, residual),
            env=env,
            learning_rate=learning_rate_schedule(rate, job.budget),
            policy_kwargs=policy_arguments(task.observation_space, training.network, scaling, residual),
            seed=job.seed_of(part),
            device=begin_on(job.device),
            **training.ppo,
        )
    model.exact_budget = job.exact_budget
    if job.initial_policy is None or job.warm_start is None or job.left_policy is not None:
        load_tensors(model.policy, fresh.state_dict())
        if job.left_policy is not None:
            model.decisions = (Decision(0, "clone_weights", 0.0, job.left_policy),)
        return model, None
    behind = read_spec(job.initial_policy).provenance.get(WRAPPERS, [])
    task.refuse_other_wrappers(behind, f"initial policy {job.initial_policy!r}")
    std = job.warm_start.initial_action_std
    proof = transfer(model.policy, job.initial_policy, training.network, None if std == ADAPTIVE else std)
    if job.return_scale is not None:  # the critic was cloned on returns as they are
        with torch.no_grad():
            for parameter in model.policy.value_net.parameters():
                parameter.div_(job.return_scale)
    if not job.learning_rate_zero:
        model.begin_warm_start(job.warm_start, training.initial_action_std)
    return model, proof

"""GAIL, AIRL and DAgger: imitation that also plays in the environment, through the library `imitation`.

    result = imitate(task, policy, trajectories, config, seed=1, folder=folder, evaluate=play)

Only this module knows the library. Ours are the environment, PPO, what is evaluated and kept, and the critic, which is
regressed on the dataset's returns as after cloning: the one that PPO had here values the discriminator's reward.

The library's DAgger passes its rounds through files that are decoded with jsonpickle. Here its collector, its schedule
and its behavioural cloning are used, and the rounds stay in memory.

GAIL and AIRL are allowed episodes of different lengths, which the library warns of: that an episode ends at all tells
them something of what is rewarded. Their reward never sees the end flag (but for AIRL's shaping, which needs it).
"""

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gymnasium import spaces
from imitation.algorithms import bc, dagger
from imitation.algorithms.adversarial import airl, gail
from imitation.algorithms.adversarial.common import AdversarialTrainer
from imitation.data import rollout
from imitation.data.types import Transitions
from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet, RewardNet
from imitation.util.logger import HierarchicalLogger
from imitation.util.networks import RunningNorm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnvWrapper

from pipeline.config.stages import Pretrain
from pipeline.config.training import AdversarialTraining, Dagger, LearningRate, PPOTraining
from pipeline.data import Trajectories
from pipeline.errors import BadInput, shortened
from pipeline.learning.callbacks import NumberWriter
from pipeline.learning.cloning import (
    MIN_LOG_STD,
    CloningResult,
    Course,
    EvaluatePolicy,
    OnPoint,
    check_demonstrations,
    split_by_episode,
    train_critic,
)
from pipeline.learning.divergence import Diverged, not_finite
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.ppo import check_job, make_model, training_env
from pipeline.learning.schedule import next_evaluation
from pipeline.play.demonstrators import ActorSlots, Demonstrator
from pipeline.policies import Scaling, act_function, load_tensors, scaling_of, tensors_of
from pipeline.tasks import Task

LOGGED: Final = ("bc/loss", "bc/neglogp", "bc/entropy", "bc/prob_true_act", "bc/l2_norm")
ADVERSARIES: Final[Mapping[str, type[AdversarialTrainer]]] = {"gail": gail.GAIL, "airl": airl.AIRL}


def imitate(
    task: Task,
    policy: ActorCriticPolicy,
    trajectories: Trajectories,
    config: Pretrain,
    seed: int,
    folder: Path,
    evaluate: EvaluatePolicy,
    demonstrator: Demonstrator | None = None,
    on_point: OnPoint = lambda _: None,
) -> CloningResult:
    """Train `policy` in place by `config.algorithm`; the same arguments give the same bits.

    A point's `epoch` counts environment steps for gail and airl. For dagger it is the round: 0 the untrained policy, 1
    the dataset alone, then one more for each round of driving. The best evaluated actor is kept. `folder` is for what
    the library writes: nothing but empty folders. Raises BadInput for what it cannot do, before the first step;
    Diverged, the policy being the best one seen, when its numbers run away.
    """
    started = time.perf_counter()
    check_demonstrations(policy.observation_space, policy.action_space, trajectories)
    flat = len(policy.observation_space.shape or ()) == 1
    if not flat or not isinstance(policy.action_space, (spaces.Box, spaces.Discrete)):
        raise BadInput(
            f"algorithm {config.algorithm!r} takes flat observations and Box or Discrete actions, this task's are "
            f"{shortened(policy.observation_space)} and {shortened(policy.action_space)}; use algorithm 'bc'"
        )
    train_rows, held_out_rows = split_by_episode(trajectories.returns(), config.cloning.validation_fraction, seed)
    data, untrained = trajectories.select(train_rows), tensors_of(policy)
    course = _Playing(evaluate, on_point, folder)
    try:
        if config.training is not None:
            steps = _adversarial(task, data, config, config.training, seed, scaling_of(policy), course)
        else:
            assert config.dagger is not None
            if demonstrator is None:
                raise BadInput("algorithm 'dagger' needs a demonstrator that answers; use 'bc', 'gail' or 'airl'")
            steps = _dagger(task, policy, data, config, config.dagger, seed, demonstrator, course)
    except Diverged as error:
        load_tensors(policy, course.best)
        raise Diverged(f"{config.algorithm} of seed {seed} {error}") from None
    actor = {name: untrained[name] if "value_net" in name else tensor for name, tensor in course.best.items()}
    load_tensors(policy, actor)
    critic = train_critic(policy, trajectories, train_rows, held_out_rows, config.cloning, seed, on_point)
    return CloningResult(
        epochs=tuple(course.points),
        critic_epochs=critic,
        best_epoch=course.best_epoch,
        train_episodes=train_rows,
        held_out_episodes=held_out_rows,
        samples_per_second=math.nan,
        wall_seconds=time.perf_counter() - started,
        beats_untrained=course.beats_untrained,
        environment_steps=steps,
    )


class _Playing(Course):
    """A course with evaluations, and the means of what the library logs: `take` gives those since the last time."""

    def __init__(self, evaluate: EvaluatePolicy, on_point: OnPoint, folder: Path) -> None:
        super().__init__(on_point)
        self._evaluate, self.folder = evaluate, folder
        self._logged: dict[str, list[float]] = defaultdict(list)
        self.logger = HierarchicalLogger(Logger(str(folder), [NumberWriter(self._keep)]), format_strs=[])

    def evaluate(self, policy: ActorCriticPolicy, at: int, metrics: Mapping[str, float] | None = None) -> None:
        self.add(policy, at, metrics or {}, self._evaluate(policy))

    def _keep(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._logged[name].append(value)

    def take(self) -> dict[str, float]:
        means = {name: float(np.mean(listed)) for name, listed in self._logged.items()}
        self._logged.clear()
        return means


# --- GAIL and AIRL ---------------------------------------------------------------------------------------------------


class _OwnInfos(VecEnvWrapper):
    """Infos that may be written to: the library puts rewards into them, and ours share one for all slots."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards, dones, [dict(info) for info in infos]


def _adversarial(
    task: Task,
    data: Trajectories,
    config: Pretrain,
    training: AdversarialTraining,
    seed: int,
    scaling: Scaling,
    course: _Playing,
) -> int:
    """PPO against the discriminator, in rounds of one rollout; returns the environment steps."""
    generator = PPOTraining(
        scenario_set=config.scenario_set,
        total_timesteps=training.total_timesteps,
        n_envs=training.n_envs,
        network=config.network,
        learning_rate=LearningRate(initial=training.learning_rate),
        ppo=training.ppo,
        evaluation=config.evaluation,
    )
    job = TrainingJob(task.config, generator, seed, output="", scaling=scaling)
    check_job(job)
    data = data.followed()
    batch_size, rate = training.discriminator.batch_size, training.discriminator.learning_rate
    if batch_size > data.steps:
        raise BadInput(
            f"training.discriminator.batch_size = {batch_size}: the dataset has only {data.steps} steps to train on"
        )
    with closing(_OwnInfos(training_env(task, generator, seed))) as env:
        model, _ = make_model(job, task, env)
        rounds = training.total_timesteps // (model.n_steps * training.n_envs)
        if rounds == 0:
            raise BadInput(
                f"training.total_timesteps = {training.total_timesteps}: less than one rollout of "
                f"{model.n_steps} steps in {training.n_envs} environments"
            )
        spaces_, hidden = (task.observation_space, task.action_space), training.discriminator.hidden
        if config.algorithm == "gail":  # logits of (observation, action)
            net: RewardNet = BasicRewardNet(*spaces_, hid_sizes=hidden, normalize_input_layer=RunningNorm)
        else:  # the same as a reward, plus a potential of the observations
            net = BasicShapedRewardNet(
                *spaces_,
                reward_hid_sizes=hidden,
                potential_hid_sizes=hidden,
                discount_factor=model.gamma,
                normalize_input_layer=RunningNorm,
            )
        trainer = ADVERSARIES[config.algorithm](
            demonstrations=_transitions(data),
            demo_batch_size=batch_size,
            venv=env,
            gen_algo=model,
            reward_net=net,
            n_disc_updates_per_round=training.discriminator.updates_per_rollout,
            disc_opt_kwargs={"lr": rate},
            custom_logger=course.logger,
            allow_variable_horizon=True,
        )
        course.evaluate(model.policy, 0)
        due = next_evaluation(config.evaluation, 0)
        rows = data.step_rows[:batch_size]
        probe = data.observations[rows], data.actions[: len(rows)], data.observations[rows + 1], np.zeros(len(rows))

        def refuse_divergence() -> None:
            if not np.isfinite(trainer.reward_train.predict(*probe)).all():
                raise Diverged(
                    f"diverged at step {model.num_timesteps:,}: what the discriminator gives is not finite; lower "
                    f"training.discriminator.learning_rate (now {rate:g})"
                )

        def after_round(index: int) -> None:
            nonlocal due
            trainer.logger.dump()
            refuse_divergence()
            # mean/disc/disc_loss -> gail/disc_loss, mean/gen/train/approx_kl -> train/approx_kl
            means = {"mean/disc/": f"{config.algorithm}/", "mean/gen/": ""}
            metrics = {
                new + name.removeprefix(old): value
                for name, value in course.take().items()
                for old, new in means.items()
                if name.startswith(old)
            }
            course.add(model.policy, model.num_timesteps, metrics)
            if model.num_timesteps >= due or index == rounds - 1:
                course.evaluate(model.policy, model.num_timesteps)
                due = next_evaluation(config.evaluation, model.num_timesteps)

        try:
            trainer.train(training.total_timesteps, callback=after_round)
        except ValueError:  # torch's, of a distribution
            refuse_divergence()
            raise
        return model.num_timesteps


def _transitions(data: Trajectories) -> Transitions:
    """The demonstrated steps with the clean actions; a timeout counts as an end, as the library counts it.

    A last step of which nobody recorded what followed is left out.
    """
    data = data.followed()
    rows = data.step_rows
    return Transitions(
        obs=data.observations[rows],
        acts=data.actions,
        infos=np.array([{}] * data.steps),
        next_obs=data.observations[rows + 1],
        dones=data.terminations | data.truncations,
    )


# --- DAgger ----------------------------------------------------------------------------------------------------------


class _Driver(dagger.InteractiveTrajectoryCollector):
    """The library's mixture of demonstrator and clone, without the files it writes at the end of every episode."""

    _last_obs: Any
    steps = 0

    def play(self, demonstrator: Demonstrator, episodes: int) -> Transitions:
        """At least so many whole episodes, every step labelled with what the demonstrator would have done there."""
        self._slots = ActorSlots(demonstrator.actor, self.num_envs, self.action_space)
        everywhere = np.ones(self.num_envs, bool)

        def answer(observations: Any, state: Any, starts: Any) -> tuple[np.ndarray, None]:
            return self._slots.act(observations, everywhere), None

        played = rollout.generate_trajectories(answer, self, rollout.make_min_episodes(episodes), rng=self.rng)
        return rollout.flatten_trajectories(played)

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self._last_obs = observations
        self._slots.ended(dones)
        self.steps += self.num_envs
        return observations, rewards, dones, infos


def _dagger(
    task: Task,
    policy: ActorCriticPolicy,
    data: Trajectories,
    config: Pretrain,
    settings: Dagger,
    seed: int,
    demonstrator: Demonstrator,
    course: _Playing,
) -> int:
    """Clone the dataset, then round by round what the demonstrator says of where the clone went; returns the steps."""
    cloning = config.cloning
    if cloning.batch_size > data.steps:
        raise BadInput(f"cloning.batch_size = {cloning.batch_size}: the dataset has only {data.steps} steps")
    set_random_seed(seed)
    rng = np.random.default_rng(seed)
    trainer = bc.BC(
        observation_space=policy.observation_space,
        action_space=policy.action_space,
        rng=rng,
        policy=policy,
        batch_size=cloning.batch_size,
        optimizer_kwargs={"lr": cloning.learning_rate},
        ent_weight=cloning.entropy_weight,
        device=policy.device,
        custom_logger=course.logger,
    )

    @torch.no_grad()
    def hold_spread() -> None:
        """Above the least that cloning allows."""
        if isinstance(policy.action_space, spaces.Box):
            policy.log_std.clamp_(min=MIN_LOG_STD)

    share = dagger.LinearBetaSchedule(settings.rampdown_rounds)
    known, steps = [_transitions(data)], 0
    course.evaluate(policy, 0)
    with closing(task.make_vec_env(task.training_streams(config.scenario_set, seed, settings.n_envs))) as env:
        for round_ in range(settings.rounds + 1):
            if round_ > 0:
                driver = _Driver(env, act_function(policy), share(round_), course.folder, rng)
                known.append(driver.play(demonstrator, settings.episodes_per_round))
                steps += driver.steps
            joined = {f.name: np.concatenate([getattr(part, f.name) for part in known]) for f in fields(Transitions)}
            trainer.set_demonstrations(Transitions(**joined))
            broken = None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")  # the library's own logging
                try:
                    trainer.train(n_epochs=cloning.epochs, progress_bar=False, log_interval=1, on_batch_end=hold_spread)
                except ValueError as error:  # torch's, of a distribution
                    if not str(error).startswith("Expected parameter"):
                        raise
                    broken = "what it gives"
            broken = not_finite(policy) or broken
            if broken is not None:
                raise Diverged(
                    f"diverged in round {round_}: {broken} is not finite; lower cloning.learning_rate "
                    f"(now {cloning.learning_rate:g})"
                )
            spent = {
                "dagger/environment_steps": steps,
                "dagger/samples": len(joined["acts"]),
                "dagger/demonstrator_share": share(round_),
            }
            losses = {name.replace("bc/", "dagger/"): value for name, value in course.take().items() if name in LOGGED}
            course.evaluate(policy, round_ + 1, {**losses, **spent})
    return steps

"""One PPO training: from scratch or from a clone, evaluated on a schedule, with the best and the last policy kept.

    result = train(TrainingJob(task, training, seed=1, output=folder), emit=print)

Same job twice gives the same weights, bit for bit, at the same number of torch threads (the worker sets them). What is
logged where, and what the result means, is decided elsewhere.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from pipeline.config.training import EvaluationSchedule, LearningRate, PPOTraining
from pipeline.envs.episodes import Episode, EpisodeVecEnv
from pipeline.errors import BadInput, did_you_mean, shortened
from pipeline.learning.callbacks import Emitter, EvaluationCallback, EventWriter, TrainingDone
from pipeline.learning.checkpoints import Checkpoint, CheckpointFolder
from pipeline.learning.divergence import Diverged
from pipeline.learning.exact_budget import ExactPPO
from pipeline.learning.jobs import (
    Emit,
    TrainingEvent,
    TrainingJob,
    TrainingResult,
    WallSeconds,
)
from pipeline.learning.repeatability import repeats_itself
from pipeline.learning.training_state import (
    BoundaryCallback,
    BoundaryReached,
    Origin,
    capture,
    last_policy,
    restore,
    restore_evaluation,
)
from pipeline.learning.warm_start import WarmPPO
from pipeline.names import Metric
from pipeline.play.evaluation import EpisodeRecords, run_episodes
from pipeline.policies import (
    WRAPPERS,
    act_function,
    build_policy,
    load_tensors,
    policy_arguments,
    policy_class,
    read_spec,
    save_policy,
    weights_digest,
)
from pipeline.policies.transfer import Transfer, transfer
from pipeline.tasks import Purpose, Task
from pipeline.tasks.user_code import call_with_user_arguments

OWNED_ARGUMENTS = {
    "policy": "training.network",
    "policy_kwargs": "training.network",
    "env": "the task and training.environment",
    "seed": "seeds",
    "learning_rate": "training.learning_rate",
    "verbose": "nothing: progress is shown anyway",
    "tensorboard_log": "nothing: everything is logged to MLflow",
    "device": "nothing: networks of this size train fastest on the CPU",
    "rollout_buffer_class": "nothing: the observation space decides",
    "rollout_buffer_kwargs": "nothing: the observation space decides",
    "use_sde": "nothing: policy artifacts hold no state-dependent exploration",
    "sde_sample_freq": "nothing: policy artifacts hold no state-dependent exploration",
    "_init_setup_model": "nothing",
}
_WHOLE_NUMBERS = ("n_steps", "batch_size", "n_epochs", "stats_window_size")
_FLAGS = ("normalize_advantage",)
BEST_FOLDER, LAST_FOLDER = "best", "last"


def check_ppo_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what SB3's PPO does not take or what a setting of ours decides. Raises BadInput, one line."""
    allowed = [name for name in inspect.signature(PPO.__init__).parameters if name not in ("self", *OWNED_ARGUMENTS)]
    for name, value in arguments.items():
        if name in OWNED_ARGUMENTS:
            raise BadInput(f"training.ppo.{name} is not set here; use {OWNED_ARGUMENTS[name]}")
        if name not in allowed:
            hint = did_you_mean(name, [*allowed, *OWNED_ARGUMENTS])
            raise BadInput(f"training.ppo: unknown argument {name!r}.{hint} Allowed: {', '.join(sorted(allowed))}")
        _check_value(name, value)


def _check_value(name: str, value: Any) -> None:
    shown = f"training.ppo.{name} = {shortened(value)}"
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise BadInput(f"{shown}: it must be true or false")
    elif name in _WHOLE_NUMBERS:
        if type(value) is not int or value < 1:
            raise BadInput(f"{shown}: it must be a whole number, 1 or more")
    elif value is None:
        if name not in ("clip_range_vf", "target_kl"):
            raise BadInput(f"{shown}: it must be a number")
    elif type(value) not in (int, float) or not np.isfinite(value) or value < 0:
        raise BadInput(f"{shown}: it must be a finite number, 0 or more")
    elif name in ("clip_range_vf", "target_kl") and value == 0:
        raise BadInput(f"{shown}: it must be above 0, or null to leave it out")
    elif name in ("gamma", "gae_lambda") and value > 1:
        raise BadInput(f"{shown}: it must be from 0 to 1")


def train(job: TrainingJob, emit: Emit) -> TrainingResult:
    """Run a training to its end, from its newest checkpoint if it has one.

    Raises BadInput for what the user can mend, before the first environment step; Diverged, with the best policy so far
    in `output/best`, when learning rate or rewards were too large.
    """
    emitter = Emitter(emit)
    check_job(job)
    task = Task(job.task, job.training.environment, job.training.use_camera)
    folder = None if job.checkpoints is None else CheckpointFolder(Path(job.checkpoints), job.checkpoint_key)
    evaluation = _evaluation_callback(job, task, emitter)
    try:
        state = None if folder is None else _found(folder, emitter)
        while state is None or not state.ended:
            state = _segment(job, task, evaluation, emitter, state)
            if folder is not None:
                _keep(folder, state, emitter)
        restore_evaluation(state, evaluation)
        return _conclude(job, task, state, evaluation, emitter)
    except Diverged as error:
        policy = build_policy(task.observation_space, task.action_space, job.training.network, job.seed)
        _save_best(job, task, evaluation, policy)
        best = f"its best policy, of step {evaluation.best_timestep:,}, is kept"
        raise Diverged(f"training of seed {job.seed} {error}; {best}") from None
    finally:
        evaluation.close()


def _segment(
    job: TrainingJob, task: Task, evaluation: EvaluationCallback, emitter: Emitter, before: Checkpoint | None
) -> Checkpoint:
    """Train from a checkpoint, or from the beginning, to the next boundary or the end."""
    part = 0 if before is None else before.number
    env = training_env(task, job.training, job.seed, part)
    try:
        model, proof = make_model(job, task, env, part)
        model.set_logger(Logger(folder=None, output_formats=[EventWriter(emitter)]))
        if before is None:
            origin = Origin(weights_digest(model.policy), proof, _repeats(job, task))
        else:
            origin = Origin.of(before)
            restore(before, model)
            restore_evaluation(before, evaluation)
        ended = _learn(model, job, evaluation)
        return capture(part + 1, ended, model, evaluation, origin, emitter.state())
    finally:
        env.close()


def _repeats(job: TrainingJob, task: Task) -> bool | None:
    every = job.training.checkpoint_every
    return repeats_itself(task, job.training.scenario_set, job.seed) if 0 < every < job.budget else None


def _learn(model: WarmPPO, job: TrainingJob, evaluation: EvaluationCallback) -> bool:
    """True at the end of the training, False at a boundary."""
    boundary = BoundaryCallback(job.training.checkpoint_every)
    try:
        model.learn(job.budget - model.num_timesteps, callback=[evaluation, boundary], reset_num_timesteps=False)
        evaluation.finish()
    except BoundaryReached:
        return False
    except TrainingDone:
        pass
    model.logger.dump(model.num_timesteps)  # what the last update recorded
    return True


def _found(folder: CheckpointFolder, emitter: Emitter) -> Checkpoint | None:
    """The checkpoint to go on from; what was said until then is said again, under the same numbers."""
    found = folder.newest()
    for name in folder.damaged:
        emitter(TrainingEvent("note", 0, text=f"checkpoint {name} is damaged or of another training: passed over"))
    if found is not None:
        emitter.restore(found.state["said"])
        timestep = found.state["num_timesteps"]
        emitter(TrainingEvent("note", timestep, text=f"goes on from its checkpoint at step {timestep:,}"))
    return found


def _keep(folder: CheckpointFolder, state: Checkpoint, emitter: Emitter) -> None:
    """Save a checkpoint; one that cannot be written ends no training."""
    try:
        folder.save(state)
    except OSError as error:
        text = f"its checkpoint could not be written ({error}); after a kill it would go on from the one before"
        emitter(TrainingEvent("note", state.state["num_timesteps"], text=text))


def check_job(job: TrainingJob) -> None:
    """Refuse a job that contradicts itself. Raises BadInput."""
    check_ppo_arguments(job.training.ppo)
    if (job.initial_policy is None) != (job.warm_start is None):
        raise BadInput("a training has both an initial policy and warm_start settings, or neither")
    n_steps = job.training.ppo.get("n_steps", inspect.signature(PPO.__init__).parameters["n_steps"].default)
    if n_steps * job.training.n_envs < 2:
        raise BadInput(
            f"training.ppo.n_steps = {n_steps} with training.n_envs = {job.training.n_envs}: a rollout needs 2 steps"
        )
    if job.exact_budget and job.budget % job.training.n_envs:
        fitting = job.budget - job.budget % job.training.n_envs
        raise BadInput(
            f"a budget of {job.budget} steps is no multiple of training.n_envs = {job.training.n_envs}, so it cannot "
            f"be met exactly; use {fitting or job.training.n_envs}"
        )
    if job.training.ppo.get("batch_size", 64) < 2:
        raise BadInput("training.ppo.batch_size = 1: it must be 2 or more, to normalise advantages")


def training_env(task: Task, training: PPOTraining, seed: int, part: int = 0) -> VecEnv:
    """The vectorised environment of a training, with rewards divided by their running spread if so asked.

    Every part of a training, from one checkpoint to the next, has episodes of its own.
    """
    env: VecEnv = task.make_vec_env(task.training_streams(training.scenario_set, seed, training.n_envs, part))
    if training.normalize_reward:
        gamma = training.ppo.get("gamma", inspect.signature(PPO.__init__).parameters["gamma"].default)
        env = VecNormalize(env, norm_obs=False, norm_reward=True, gamma=gamma)
    return env


def learning_rate_schedule(setting: LearningRate) -> Callable[[float], float]:
    """SB3 asks with the share of the budget that remains: 1 -> `initial`, 0 -> `final`."""
    final = setting.initial if setting.final is None else setting.final

    def rate(progress_remaining: float) -> float:
        return final + (setting.initial - final) * max(0.0, progress_remaining)

    return rate


def make_model(job: TrainingJob, task: Task, env: VecEnv, part: int = 0) -> tuple[WarmPPO, Transfer | None]:
    """PPO with the weights it starts from: those of the initial policy with proof, or fresh ones from the seed.

    All generators are seeded anew, for every part of the training in another way.
    """
    training = job.training
    schedule = LearningRate(initial=0.0) if job.learning_rate_zero else training.learning_rate
    model: WarmPPO = call_with_user_arguments(
        ExactPPO if job.exact_budget else WarmPPO,
        "training.ppo",
        policy=policy_class(task.observation_space),
        env=env,
        learning_rate=learning_rate_schedule(schedule),
        policy_kwargs=policy_arguments(task.observation_space, training.network),
        seed=_part_seed(job.seed, part),
        device="cpu",
        **training.ppo,
    )
    if job.initial_policy is None or job.warm_start is None:
        fresh = build_policy(task.observation_space, task.action_space, training.network, job.seed)
        load_tensors(model.policy, fresh.state_dict())
        return model, None
    behind = read_spec(job.initial_policy).provenance.get(WRAPPERS, [])
    task.refuse_other_wrappers(behind, f"initial policy {job.initial_policy!r}")
    proof = transfer(model.policy, job.initial_policy, training.network, job.warm_start.initial_action_std)
    if not job.learning_rate_zero:
        model.begin_warm_start(job.warm_start)
    return model, proof


def _part_seed(seed: int, part: int) -> int:
    """Of the generators in a part of a training; the first has the training's own."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0]) >> 1 if part else seed


def evaluation_episodes(task: Task, scenario_set: str, schedule: EvaluationSchedule) -> tuple[Episode, ...]:
    """The fixed episodes of the scheduled evaluations: the same for every arm and seed."""
    return task.episodes(scenario_set, schedule.seed, schedule.episodes, Purpose.EVALUATE)


def final_episodes(task: Task, scenario_set: str, schedule: EvaluationSchedule, count: int) -> tuple[Episode, ...]:
    """Episodes that no scheduled evaluation has played, the same for every arm and seed."""
    played = {episode.seed for episode in evaluation_episodes(task, scenario_set, schedule)}
    attempt = 1
    while True:
        fresh = task.episodes(scenario_set, (schedule.seed, attempt), count, Purpose.EVALUATE)
        if played.isdisjoint(episode.seed for episode in fresh):
            return fresh
        attempt += 1


def _evaluation_callback(job: TrainingJob, task: Task, emit: Emit) -> EvaluationCallback:
    schedule = job.training.evaluation
    episodes = evaluation_episodes(task, job.training.scenario_set, schedule)
    return EvaluationCallback(
        task, episodes, schedule, job.convergence, job.best_metric, job.budget, emit, _show(job, task, emit)
    )


def _show(job: TrainingJob, task: Task, emit: Emit) -> Callable[[ActorCriticPolicy, int, int | None], None]:
    """Leaves the policy of the first evaluation at or after every `visualize_every` steps to be drawn."""
    every = job.training.visualize_every

    def show(policy: ActorCriticPolicy, timestep: int, before: int | None) -> None:
        if not every or job.learning_rate_zero or (before is not None and timestep // every == before // every):
            return
        folder = Path(job.output) / f"shown-{timestep}"
        save_policy(policy, folder, {WRAPPERS: task.wrappers})
        emit(TrainingEvent("policy", timestep, {}, str(folder)))

    return show


def _refuse_changed_control(job: TrainingJob, before: str, after: str) -> None:
    if job.learning_rate_zero and before != after:
        raise RuntimeError(f"seed {job.seed}: weights changed at learning rate 0, the control proves nothing")


def _conclude(
    job: TrainingJob, task: Task, state: Checkpoint, evaluation: EvaluationCallback, emitter: Emitter
) -> TrainingResult:
    """Save the last and the best policy, measure the best on fresh episodes, and put everything together."""
    folder = Path(job.output)
    timestep = state.state["num_timesteps"]
    origin = Origin.of(state)
    policy = build_policy(task.observation_space, task.action_space, job.training.network, job.seed)
    load_tensors(policy, last_policy(state))
    last_weights = weights_digest(policy)
    _refuse_changed_control(job, origin.weights, last_weights)
    last_digest = save_policy(policy, folder / LAST_FOLDER, _provenance(job, task, timestep))
    best_digest = _save_best(job, task, evaluation, policy)
    before_final = emitter.elapsed()
    final = _final_evaluation(job, task, policy, evaluation.env)
    now = emitter.elapsed()
    steps = sum(int(point.records.metrics[Metric.LENGTH].sum()) for point in evaluation.points)
    return TrainingResult(
        seed=job.seed,
        evaluations=tuple(evaluation.points),
        converged_at=evaluation.converged_at(),
        best_timestep=evaluation.best_timestep,
        best_digest=best_digest,
        last_digest=last_digest,
        best_weights=weights_digest(policy),
        last_weights=last_weights,
        environment_steps=timestep,
        evaluation_steps=steps + final.steps,
        wall_seconds=WallSeconds(now, evaluation.seconds, now - before_final, emitter.seconds),
        transferred=origin.proof,
        final=final,
        exact_resume=origin.repeats,
    )


def _save_best(job: TrainingJob, task: Task, evaluation: EvaluationCallback, policy: ActorCriticPolicy) -> str:
    """Fill `policy` with the best checkpoint and save it; its digest."""
    load_tensors(policy, evaluation.best_tensors)
    return save_policy(policy, Path(job.output) / BEST_FOLDER, _provenance(job, task, evaluation.best_timestep))


def _provenance(job: TrainingJob, task: Task, timestep: int) -> dict[str, Any]:
    return {"task": job.task.name, "seed": job.seed, WRAPPERS: task.wrappers, "timestep": timestep}


def _final_evaluation(job: TrainingJob, task: Task, policy: ActorCriticPolicy, env: EpisodeVecEnv) -> EpisodeRecords:
    training = job.training
    episodes = final_episodes(task, training.scenario_set, training.evaluation, job.final_episodes)
    return run_episodes(task, act_function(policy), episodes, env=env)

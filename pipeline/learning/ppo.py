"""One training, of PPO from scratch or from a clone, or of SAC: evaluated on a schedule, best and last policy kept.

    result = train(TrainingJob(task, training, seed=1, output=folder), emit=print)

Same job twice gives the same weights, bit for bit, at the same number of torch threads (the worker sets them). What is
logged where, and what the result means, is decided elsewhere.
"""

import inspect
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from pipeline.config.training import ADAPTIVE, LearningRate, PPOTraining
from pipeline.errors import BadInput
from pipeline.learning.adaptive import Decision
from pipeline.learning.callbacks import Emitter, EvaluationCallback, NumberWriter, RolloutBoundary
from pipeline.learning.checkpoints import CheckpointFolder, State, from_bytes, to_bytes
from pipeline.learning.divergence import Diverged
from pipeline.learning.jobs import Emit, TrainingEvent, TrainingJob, TrainingResult, WallSeconds
from pipeline.learning.repeatability import repeats_itself
from pipeline.learning.sac import ReplayingSAC, blank_actor, make_sac
from pipeline.learning.schedule import final_episodes
from pipeline.learning.warm_start import WarmPPO
from pipeline.play.evaluation import run_episodes
from pipeline.policies import (
    WRAPPERS,
    act_function,
    build_policy,
    load_tensors,
    load_trainable,
    policy_arguments,
    policy_class,
    read_spec,
    save_policy,
    scaling_by_bounds,
    scaling_of,
    weights_digest,
)
from pipeline.policies.artifact import Policy
from pipeline.policies.networks import ResidualPolicy
from pipeline.policies.transfer import Transfer, transfer
from pipeline.tasks import Task
from pipeline.tasks.user_code import call_with_user_arguments

BEST_FOLDER, LAST_FOLDER = "best", "last"


def train(job: TrainingJob, emit: Emit) -> TrainingResult:
    """Run a training to its end, from its newest checkpoint if it has one.

    Raises BadInput for what the user can mend, before the first environment step; Diverged, with the best policy so far
    in `output/best`, when learning rate or rewards were too large.
    """
    check_job(job)
    emitter, task = Emitter(emit), Task(job.task, job.training.environment, job.training.use_camera)
    folder = None if job.checkpoints is None else CheckpointFolder(Path(job.checkpoints), job.checkpoint_key)
    with closing(EvaluationCallback(task, job, emitter)) as evaluation:
        state = None if folder is None else folder.newest()
        for name in [] if folder is None else folder.damaged:
            emitter(TrainingEvent("note", 0, text=f"checkpoint {name} is damaged or of another training: passed over"))
        if state is not None:
            emitter.restore(state["said"])
            timestep = state["model"]["num_timesteps"]
            emitter(TrainingEvent("note", timestep, text=f"goes on from its checkpoint at step {timestep:,}"))
        while state is None or not state["ended"]:
            try:
                state = _train_part(job, task, evaluation, emitter, state)
            except Diverged as error:
                policy = _blank_policy(job, task)
                _save_best(job, task, evaluation, policy)
                best = f"its best policy, of step {evaluation.best_timestep:,}, is kept"
                raise Diverged(f"training of seed {job.seed} {error}; {best}") from None
            content = to_bytes(state, job.checkpoint_key)
            try:
                if folder is not None:
                    folder.save(state["number"], content)
            except OSError as error:
                text = f"its checkpoint could not be written ({error}); after a kill it would go on from the one before"
                emitter(TrainingEvent("note", state["model"]["num_timesteps"], text=text))
            # through bytes, so that a training runs on from exactly what a later process would read
            state = from_bytes(content, job.checkpoint_key)
        evaluation.restore(state["evaluation"])
        return _conclude(job, task, state, evaluation, emitter)


def _train_part(
    job: TrainingJob, task: Task, evaluation: EvaluationCallback, emitter: Emitter, before: State | None
) -> State:
    """Train from a checkpoint, or from the beginning, to the next boundary or the end."""
    part = 0 if before is None else before["number"]
    writer = NumberWriter(lambda numbers, step: emitter(TrainingEvent("metrics", step, numbers)))
    with closing(_env_of(job, task, part)) as env:
        model: WarmPPO | ReplayingSAC
        proof = None
        if job.sac is None:
            model, proof = make_model(job, task, env, part)
        else:
            model = make_sac(job, task, env, _seed_of(job, part), rollout_steps(job.training))
        model.set_logger(Logger(folder=None, output_formats=[writer]))
        if before is None:
            asked = 0 < job.training.checkpoint_every < job.budget  # else there is no boundary
            origin: dict[str, Any] = {
                "weights": weights_digest(model.policy),
                "transfer": None if proof is None else asdict(proof),
                "repeats": repeats_itself(task, job.training.scenario_set, job.seed) if asked else None,
            }
        else:
            origin = before["origin"]
            model.restore(before["model"])
            model.seconds_before = before["said"]["elapsed"]
            evaluation.restore(before["evaluation"])
        try:
            model.learn(job.budget - model.num_timesteps, callback=evaluation, reset_num_timesteps=False)
            evaluation.finish()
            ended = True
        except RolloutBoundary as boundary:
            ended = boundary.ended
        if ended:
            model.logger.dump(model.num_timesteps)  # what the last update recorded
        return {
            "number": part + 1,
            "ended": ended,
            "origin": origin,
            "model": model.state(),
            "evaluation": evaluation.state(),
            "said": emitter.state(),
        }


def _conclude(
    job: TrainingJob, task: Task, state: State, evaluation: EvaluationCallback, emitter: Emitter
) -> TrainingResult:
    """Save the last and the best policy, measure the best on fresh episodes, and put everything together."""
    training, origin, timestep = job.training, state["origin"], state["model"]["num_timesteps"]
    policy = _blank_policy(job, task)
    load_tensors(policy, state["model"]["policy"])
    last_weights = weights_digest(policy)
    if job.learning_rate_zero and origin["weights"] != last_weights:
        raise RuntimeError(f"seed {job.seed}: weights changed at learning rate 0, the control proves nothing")
    last_digest = save_policy(policy, Path(job.output) / LAST_FOLDER, _provenance(job, task, timestep))
    best_digest = _save_best(job, task, evaluation, policy)
    before_final = emitter.elapsed()
    fresh = final_episodes(task, training.scenario_set, training.evaluation, job.final_episodes)
    final = run_episodes(task, act_function(policy), fresh, env=evaluation.env)
    now = emitter.elapsed()
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
        gradient_steps=state["model"]["optimizer_steps"],
        evaluation_steps=sum(point.records.steps for point in evaluation.points) + final.steps,
        wall_seconds=WallSeconds(now, evaluation.seconds, now - before_final, emitter.seconds),
        transferred=None if origin["transfer"] is None else Transfer(**origin["transfer"]),
        final=final,
        decisions=tuple(Decision(**decision) for decision in state["model"].get("decisions", ())),
        exact_resume=origin["repeats"],
    )


def _save_best(job: TrainingJob, task: Task, evaluation: EvaluationCallback, policy: Policy) -> str:
    """Fill `policy` with the best checkpoint and save it; its digest."""
    load_tensors(policy, evaluation.best_tensors)
    return save_policy(policy, Path(job.output) / BEST_FOLDER, _provenance(job, task, evaluation.best_timestep))


def _provenance(job: TrainingJob, task: Task, timestep: int) -> dict[str, Any]:
    return {"task": job.task.name, "seed": job.seed, WRAPPERS: task.wrappers, "timestep": timestep}


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


def _default(argument: str) -> Any:
    return inspect.signature(PPO.__init__).parameters[argument].default


def _env_of(job: TrainingJob, task: Task, part: int) -> VecEnv:
    """The environment of a part of a training; SAC sees rewards as they are."""
    if job.sac is None:
        return training_env(task, job.training, job.seed, part, job.return_scale)
    return task.make_vec_env(task.training_streams(job.training.scenario_set, job.seed, job.sac.n_envs, part))


def training_env(
    task: Task, training: PPOTraining, seed: int, part: int = 0, return_scale: float | None = None
) -> VecEnv:
    """The vectorised environment of a training, with rewards divided by a scale, or their running spread, if so asked.

    Every part of a training, from one checkpoint to the next, has episodes of its own.
    """
    env: VecEnv = task.make_vec_env(task.training_streams(training.scenario_set, seed, training.n_envs, part))
    if training.normalize_reward:
        env = VecNormalize(env, norm_obs=False, norm_reward=True, gamma=training.ppo.get("gamma", _default("gamma")))
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
    return build_policy(*spaces, network, job.seed, scaling, residual)


def _blank_policy(job: TrainingJob, task: Task) -> Policy:
    """What the tensors of the training's policy go into."""
    return fresh_policy(job, task) if job.sac is None else blank_actor(task, job.sac, job.scaling)


def learning_rate_schedule(setting: LearningRate) -> Callable[[float], float]:
    """SB3 asks with the share of the budget that remains: 1 -> `initial`, 0 -> `final`."""
    final = setting.initial if setting.final is None else setting.final
    return lambda remaining: final + (setting.initial - final) * max(0.0, remaining)


def _seed_of(job: TrainingJob, part: int) -> int:
    """Of all generators in a part of a training."""
    return int(np.random.SeedSequence([job.seed, part]).generate_state(1)[0]) >> 1 if part else job.seed


def make_model(job: TrainingJob, task: Task, env: VecEnv, part: int = 0) -> tuple[WarmPPO, Transfer | None]:
    """PPO with the weights it starts from: those of the initial policy with proof, or fresh ones from the seed.

    All generators are seeded anew, for every part of the training in another way.
    """
    training, fresh = job.training, fresh_policy(job, task)
    scaling, residual = scaling_of(fresh), isinstance(fresh, ResidualPolicy)
    rate = LearningRate(initial=0.0) if job.learning_rate_zero else training.learning_rate
    model: WarmPPO = call_with_user_arguments(
        WarmPPO,
        "training.ppo",
        policy=policy_class(task.observation_space, scaling, residual),
        env=env,
        learning_rate=learning_rate_schedule(rate),
        policy_kwargs=policy_arguments(task.observation_space, training.network, scaling, residual),
        seed=_seed_of(job, part),
        device="cpu",
        **training.ppo,
    )
    model.exact_budget = job.exact_budget
    if job.initial_policy is None or job.warm_start is None:
        load_tensors(model.policy, fresh.state_dict())
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
        model.begin_warm_start(job.warm_start)
    return model, proof

"""One training, of PPO from scratch or from a clone, or of SAC: evaluated on a schedule, best and last policy kept.

    result = train(TrainingJob(task, training, seed=1, output=folder), emit=print)

Same job twice gives the same weights, bit for bit, at the same number of torch threads (the worker sets them). What is
logged where, and what the result means, is decided elsewhere.
"""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.learning.adaptive import Decision
from pipeline.learning.callbacks import Emitter, EvaluationCallback, NumberWriter, RolloutBoundary
from pipeline.learning.checkpoints import CheckpointFolder, State, from_bytes, to_bytes
from pipeline.learning.divergence import Diverged
from pipeline.learning.jobs import Emit, TrainingEvent, TrainingJob, TrainingResult, WallSeconds
from pipeline.learning.ppo import check_job, fresh_policy, make_model, rollout_steps, training_env
from pipeline.learning.processor import machine
from pipeline.learning.repeatability import repeats_itself
from pipeline.learning.sac import ReplayingSAC, blank_actor, make_sac
from pipeline.learning.schedule import final_episodes
from pipeline.learning.warm_start import WarmPPO
from pipeline.play.evaluation import run_episodes
from pipeline.policies import WRAPPERS, act_function, load_tensors, save_policy, weights_digest
from pipeline.policies.artifact import Policy
from pipeline.policies.transfer import Transfer
from pipeline.tasks import Task

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
                load_tensors(policy, evaluation.best_tensors)
                _save(job, task, policy, BEST_FOLDER, evaluation.best_timestep, evaluation.best_unit)
                best = f"its best policy, of step {evaluation.best_timestep:,}, is kept"
                line = f"training of seed {job.seed} {error}"
                if job.sac is None and not job.training.normalize_reward:
                    line += ", or divide large rewards by their spread (training.normalize_reward)"
                raise Diverged(f"{line}; {best}") from None
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
    if job.sac is None:
        env = training_env(task, job.training, job.seed, part, job.return_scale)
    else:  # rewards as they are
        env = task.make_vec_env(task.training_streams(job.training.scenario_set, job.seed, job.sac.n_envs, part))
    with closing(env):
        model: WarmPPO | ReplayingSAC
        proof = None
        if job.sac is None:
            model, proof = make_model(job, task, env, part)
        else:
            model = make_sac(job, task, env, job.seed_of(part), rollout_steps(job.training))
        model.set_logger(Logger(folder=None, output_formats=[writer]))
        if before is None:
            asked = 0 < job.training.checkpoint_every < job.budget  # else there is no boundary
            origin: dict[str, Any] = {
                "weights": weights_digest(model.policy),
                "transfer": None if proof is None else asdict(proof),
                "repeats": repeats_itself(task, job.training.scenario_set, job.seed) if asked else None,
                "machines": [],
            }
        else:
            origin = before["origin"]
            model.restore(before["model"])
            model.seconds_before = before["said"]["elapsed"]
            evaluation.restore(before["evaluation"])
        if (here := machine(threads=1, device=job.device)) not in origin["machines"]:
            origin["machines"].append(here)
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
    last_digest = _save(job, task, policy, LAST_FOLDER, timestep, state["model"].get("reward_unit"))
    load_tensors(policy, evaluation.best_tensors)
    best_digest = _save(job, task, policy, BEST_FOLDER, evaluation.best_timestep, evaluation.best_unit)
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
        wall_seconds=WallSeconds(now, evaluation.seconds, now - before_final),
        transferred=None if origin["transfer"] is None else Transfer(**origin["transfer"]),
        final=final,
        decisions=tuple(Decision(**decision) for decision in state["model"].get("decisions", ())),
        exact_resume=origin["repeats"],
        machines=tuple(origin["machines"]),
    )


def _save(job: TrainingJob, task: Task, policy: Policy, name: str, timestep: int, unit: float | None) -> str:
    """Save a policy, from now on with its critic's values in the rewards' own unit; its digest."""
    if unit is not None:
        assert isinstance(policy, ActorCriticPolicy)
        with torch.no_grad():
            for parameter in policy.value_net.parameters():
                parameter.mul_(unit)
    provenance = {"task": job.task.name, "seed": job.seed, WRAPPERS: task.wrappers, "timestep": timestep}
    return save_policy(policy, Path(job.output) / name, provenance, unit)


def _blank_policy(job: TrainingJob, task: Task) -> Policy:
    """What the tensors of the training's policy go into."""
    return fresh_policy(job, task) if job.sac is None else blank_actor(task, job.sac, job.scaling)

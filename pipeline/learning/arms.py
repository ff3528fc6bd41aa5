"""What stages train, as jobs: an expert, and the arms of a comparison, which share all but what an arm is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.config.loading import to_data
from pipeline.config.stages import Finetune, FurtherArm, TrainExpert
from pipeline.config.task import JUDGED
from pipeline.config.training import ADAPTIVE, PPOTraining, SACTraining
from pipeline.data import Trajectories
from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.ppo import check_job, rollout_steps
from pipeline.learning.sac import check_sac
from pipeline.names import CONTROLS, Arm
from pipeline.policies import WRAPPERS, Scaling, load_trainable, read_spec, scaling_by_bounds, scaling_of
from pipeline.policies.networks import ResidualPolicy
from pipeline.policies.transfer import refuse_unfit
from pipeline.tasks import Task


def expert_jobs(config: TrainExpert, task: Task, folder: Path) -> list[TrainingJob]:
    """One job a seed, checked before the first step. Raises BadInput."""
    task.refuse_holdouts(config.training.scenario_set, "training")
    spaces, network = (task.observation_space, task.action_space), config.training.network
    scaling = scaling_by_bounds(*spaces, network, config.scaling)
    jobs = [
        TrainingJob(
            task=task.config,
            training=config.training,
            seed=seed,
            output=str(folder / f"seed-{seed}"),
            scaling=scaling,
            convergence=config.convergence,
            best_metric=config.best_metric,
            final_episodes=config.final_episodes,
        )
        for seed in config.seeds
    ]
    for job in jobs:
        check_job(job)
    return jobs


@dataclass(frozen=True)
class Start:
    """The policy that a training starts from."""

    name: str  # for people
    folder: Path
    digest: str
    clone: bool  # not what some training came to
    return_scale: float | None  # of a clone's demonstrations, or of the rewards that an imported policy learnt from
    learnt_nothing: str | None = None  # why a clone is judged so; None: it is not


@dataclass(frozen=True)
class Demonstrated:
    """What the clones were made of, for batches of SAC."""

    folder: Path
    digest: str  # of their content
    trajectories: Trajectories
    recorded_otherwise: str | None  # how their environment differs from the training's, in one line


@dataclass(frozen=True)
class ArmJob:
    """A training and the arm it belongs to."""

    arm: str
    job: TrainingJob


def arm_jobs(
    config: Finetune,
    task: Task,
    folder: Path,
    initial_policies: Mapping[int, Start] | None,
    scalings: Mapping[int, Scaling] | None = None,
    demonstrations: Mapping[str, Demonstrated] = MappingProxyType({}),
    own_policies: Mapping[str, Mapping[int, Start]] = MappingProxyType({}),
) -> list[ArmJob]:
    """For every seed one training, one of each further arm, and one control with learning rate 0 if so asked.

    `initial_policies` maps every seed to what it starts from, but those of arms that have `own_policies`; None: all
    from fresh weights, in the units of `scalings`, or by the bounds of the task's spaces. `demonstrations`: by arm, of
    those that have a share of them in their batches. Raises BadInput before the first step.
    """
    task.refuse_holdouts(config.training.scenario_set, "training")
    warm = initial_policies is not None
    shipped = FurtherArm(warm_start=config.warm_start) if warm else None
    arms = {Arm.PRETRAINED if warm else Arm.SCRATCH: shipped}
    if config.control_timesteps:
        arms[Arm.PRETRAINED_LR0 if warm else Arm.SCRATCH_LR0] = shipped
    if warm:
        arms |= config.arms
    jobs = []
    for arm, settings in arms.items():
        control = arm in CONTROLS
        for seed in config.seeds:
            start = None if initial_policies is None else own_policies.get(arm, initial_policies)[seed]
            warm_start = None if settings is None else settings.warm_start
            residual = settings is not None and settings.weights == "residual"
            left, return_scale = None, None
            if start is not None:
                policy, what = load_trainable(start.folder, start.name), f"arm {arm!r}: policy of {start.name}"
                task.refuse_other_wrappers(read_spec(start.folder).provenance.get(WRAPPERS, []), what)
                refuse_unfit(policy, task.observation_space, task.action_space, config.training.network, what)
                scaling = scaling_of(policy)
                if warm_start is not None and warm_start.clone_weights == ADAPTIVE and not residual:
                    left = start.learnt_nothing
                if config.training.normalize_reward and left is None:
                    return_scale = start.return_scale
                if warm_start is not None and warm_start.initial_action_std == ADAPTIVE and not start.clone:
                    # of a clone the deviation is the spread of labels around it, of any other what it explores with
                    warm_start = replace(warm_start, initial_action_std=None)
                if residual and isinstance(policy, ResidualPolicy):
                    raise BadInput(
                        f"arm {arm!r}: what seed {seed} starts from is residual itself; with weights 'clone' its "
                        "correction learns on"
                    )
            elif scalings is not None:
                scaling = scalings[seed]
            else:
                scaling = scaling_by_bounds(task.observation_space, task.action_space, config.training.network)
            job = TrainingJob(
                task=task.config,
                training=config.training,
                seed=seed,
                output=str(folder / f"{arm}-seed-{seed}"),
                initial_policy=None if start is None else str(start.folder),
                initial_digest=None if start is None else start.digest,
                left_policy=left,
                return_scale=return_scale,
                scaling=scaling,
                warm_start=warm_start,
                residual=residual,
                learning_rate_zero=control or (warm_start is not None and warm_start.learning_rate_factor == 0),
                total_timesteps=config.control_timesteps if control else None,
                final_episodes=config.final_episodes,
            )
            if settings is not None and settings.algorithm == "sac":
                job = _of_sac(arm, job, settings, task, demonstrations.get(arm))
            check_job(job)
            jobs.append(ArmJob(arm, job))
    return jobs


def _of_sac(
    arm: str, job: TrainingJob, settings: FurtherArm, task: Task, demonstrations: Demonstrated | None
) -> TrainingJob:
    """The job with SAC from fresh weights instead of PPO. Raises BadInput where SAC cannot do it."""
    sac, budget = settings.sac or SACTraining(), whole_rollouts(job.training)
    data = None if demonstrations is None or not settings.demonstrations else demonstrations.trajectories
    check_sac(arm, sac, budget, task, data)
    job = replace(job, initial_policy=None, initial_digest=None, left_policy=None, return_scale=None)
    job = replace(job, sac=sac, total_timesteps=budget)
    if settings.demonstrations:
        if demonstrations is None:
            raise BadInput(f"arm {arm!r} needs the demonstrations behind the clones, which are not at hand")
        if demonstrations.recorded_otherwise is not None:
            raise BadInput(f"arm {arm!r} learns from rewards of demonstrations; {demonstrations.recorded_otherwise}")
        job = replace(
            job,
            demonstrations=str(demonstrations.folder),
            demonstrations_digest=demonstrations.digest,
            demonstrations_share=settings.demonstrations,
        )
    return job


def whole_rollouts(training: PPOTraining) -> int:
    """Environment steps that PPO trains, and every arm with it: the budget, rounded up to whole rollouts."""
    rollout = rollout_steps(training)
    return -(-training.total_timesteps // rollout) * rollout


def check_arms(config: Finetune, task: Task) -> None:
    """Raise BadInput for arms that their task rules out; for whoever has much to do before they are trained."""
    arm_jobs(config, task, Path(), None)
    for name, arm in config.arms.items():
        if arm.algorithm == "sac":
            check_sac(name, arm.sac or SACTraining(), whole_rollouts(config.training), task)


def shared_settings(config: Finetune, task: Task) -> Mapping[str, Any]:
    """Everything that two arms must have in common: the task, the training and how its end is measured."""
    data = to_data(config)
    return {
        "task": {key: value for key, value in to_data(task.config).items() if key not in ("executor", *JUDGED)},
        "training": data["training"],
        "control_timesteps": data["control_timesteps"],
        "final_episodes": data["final_episodes"],
    }

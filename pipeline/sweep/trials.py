"""The trainings of a sweep: one function makes all jobs, so that only the searched settings and seeds can differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.loading import load, load_task, to_data
from pipeline.config.search import check_keys, points, with_values
from pipeline.config.stages import TrainExpert
from pipeline.config.sweep import Sweep
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput
from pipeline.learning.callbacks import next_evaluation
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.ppo import check_job
from pipeline.names import Metric
from pipeline.tasks import Task

ENVIRONMENT = "training.environment"


@dataclass(frozen=True)
class TrialPlan:
    """What every training of a sweep has in common."""

    base: TrainExpert  # with the budget of a trial
    task: TaskConfig
    seeds: tuple[int, ...]  # of a trial, one after the other
    fresh_seeds: tuple[int, ...]  # of what is trained again

    def shared_settings(self, config: Sweep) -> dict[str, Any]:
        """What every process and every continuation of a study must agree on."""
        data = to_data(config)
        own = (
            "search_space", "sampler", "pruner", "seed", "seeds_per_trial", "objective", "constraint_handling",
            "constraint_collision_rate_max", "constraint_comfort_exposure_max", "constraint_prune_from",
        )  # fmt: skip
        return {"base": to_data(self.base), "task": to_data(self.task), **{key: data[key] for key in own}}


def trial_plan(config: Sweep) -> TrialPlan:
    """Base config and task of a sweep, checked with every end of the search space. Raises BadInput."""
    base = load(TrainExpert, config.base)
    if config.trial_timesteps is not None:
        base = replace(base, training=replace(base.training, total_timesteps=config.trial_timesteps))
    if len(base.seeds) < config.seeds_per_trial:
        raise BadInput(
            f"seeds_per_trial = {config.seeds_per_trial}, but {config.base!r} has {len(base.seeds)} seeds; add some"
        )
    plan = TrialPlan(base, load_task(base.task), base.seeds[: config.seeds_per_trial], config.fresh_seeds)
    used = sorted(set(plan.seeds) & set(plan.fresh_seeds))
    if used:
        raise BadInput(f"fresh_seeds: {used[0]} is a seed of the trials; a fresh seed is one that no trial has used")
    _check_evaluations(config, base)
    check_keys(config.search_space, base)
    _check_jobs(config, plan)
    return plan


def trial_config(plan: TrialPlan, values: Mapping[str, Any]) -> TrainExpert:
    """A config that `train_expert` takes as it is. Raises BadInput."""
    return with_values(plan.base, values, "trial")


def trial_job(plan: TrialPlan, values: Mapping[str, Any], seed: int, folder: Path) -> TrainingJob:
    """The training of a trial on one of its seeds. Raises BadInput for values that contradict each other."""
    return _job(plan, trial_config(plan, values), seed, folder)


def fresh_job(plan: TrialPlan, values: Mapping[str, Any], seed: int, folder: Path) -> TrainingJob:
    """The training that measures values again: another seed, and episodes that no trial was chosen on."""
    config = trial_config(plan, values)
    evaluation = replace(config.training.evaluation, seed=(config.training.evaluation.seed + 1) % 2**31)
    return _job(plan, replace(config, training=replace(config.training, evaluation=evaluation)), seed, folder)


def reported_step(plan: TrialPlan, timestep: int) -> int:
    """The last scheduled evaluation at or before a timestep.

    Trials of different rollout lengths evaluate at different timesteps; a pruner compares what has equal steps.
    """
    schedule, step = plan.base.training.evaluation, 0
    while (following := next_evaluation(schedule, step)) <= timestep:
        step = following
    return step


def _job(plan: TrialPlan, config: TrainExpert, seed: int, folder: Path) -> TrainingJob:
    job = TrainingJob(
        task=plan.task,
        training=config.training,
        seed=seed,
        output=str(folder),
        convergence=None,  # every trial uses its whole budget
        best_metric=config.best_metric,
        final_episodes=config.final_episodes,
        exact_budget=True,
    )
    check_job(job)
    return job


def _check_evaluations(config: Sweep, base: TrainExpert) -> None:
    n, schedule, budget = config.objective.n, base.training.evaluation, base.training.total_timesteps
    steps: Sequence[int] = [0]
    while n is not None and len(steps) < n and steps[-1] < budget:
        steps = [*steps, next_evaluation(schedule, steps[-1])]
    if n is not None and len(steps) < n:
        raise BadInput(
            f"objective.n = {n}, but a training of {budget} steps has {len(steps)} evaluations; evaluate more often"
        )


def _check_jobs(config: Sweep, plan: TrialPlan) -> None:
    """Hold every end of every parameter to what a training and its environment take."""
    check_job(_job(plan, plan.base, 0, Path()))
    Task(plan.task, plan.base.training.environment).refuse_holdouts(plan.base.training.scenario_set, "training")
    for point in points(config.search_space):
        in_environment = point.key == ENVIRONMENT or point.key.startswith(f"{ENVIRONMENT}.")
        if in_environment and config.objective.figure.startswith(f"{Metric.RETURN}_"):
            raise BadInput(
                f"search_space {point.key!r}: returns of different environments cannot be compared; "
                f"give another objective.metric, such as {Metric.SUCCESS_RATE}"
            )
        values = point.parameter.every() if point.key == "training.n_envs" else point.parameter.extremes()
        for value in values:
            try:
                job = trial_job(plan, {**point.given, point.key: value}, 0, Path())
                if in_environment:
                    task = Task(plan.task, job.training.environment, job.training.use_camera)
                    task.make_env(next(iter(plan.task.scenarios))).close()
            except BadInput as error:
                raise BadInput(f"search_space {point.key!r} at {value!r}: {error}") from None

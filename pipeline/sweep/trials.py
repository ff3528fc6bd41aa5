"""The trainings of a sweep: one function makes all jobs, so that only the searched settings and seeds can differ."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Final

from pipeline.config.loading import flatten, load, load_task, set_dotted, to_data, validate
from pipeline.config.stages import TrainExpert
from pipeline.config.sweep import Parameter, SearchSpace, Sweep
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput, did_you_mean, shortened
from pipeline.learning.jobs import TrainingJob, TrainingResult
from pipeline.learning.ppo import check_job
from pipeline.learning.schedule import next_evaluation, select_figure
from pipeline.names import Metric
from pipeline.play.evaluation import point_figures
from pipeline.policies import scaling_by_bounds
from pipeline.sweep.objectives import (
    Evaluation,
    check_measurable,
    maximised,
    running_value,
    violations,
    worth,
)
from pipeline.tasks import Task

FIXED: Final = {
    "training.total_timesteps": "every trial has the same budget; set trial_timesteps",
    "training.evaluation": "all trials are measured alike; set it in the base config",
    "training.scenario_set": "all trials are measured on the same scenarios; set it in the base config",
}
DOTTED: Final = re.compile(r"training(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class SeedEnd:
    """What one training of a trial came to."""

    result: TrainingResult
    value: float  # of the objective
    source: str  # what that was computed from
    excess: Mapping[str, float]  # constraint -> excess over its limit
    figures: Mapping[str, float]  # of the best checkpoint on fresh episodes


@dataclass(frozen=True)
class TrialPlan:
    """What every training of a sweep has in common, and how each is judged."""

    config: Sweep
    base: TrainExpert
    task: TaskConfig

    @property
    def budget(self) -> int:
        """Environment steps of every training of the sweep."""
        return self.config.trial_timesteps or self.base.training.total_timesteps

    def _of_a_trial(self, config: TrainExpert) -> TrainExpert:
        """With the budget of a trial."""
        return replace(config, training=replace(config.training, total_timesteps=self.budget))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of a trial, one after the other."""
        return self.base.seeds[: self.config.seeds_per_trial]

    @property
    def maximise(self) -> bool:
        return maximised(self.config.objective, self.task)

    def shared_settings(self) -> dict[str, Any]:
        """What every process and every continuation of a study must agree on."""
        data = to_data(self.config)
        own = (
            "search_space", "sampler", "pruner", "seed", "seeds_per_trial", "objective", "constraint_handling",
            "constraint_collision_rate_max", "constraint_comfort_exposure_max", "constraint_prune_from",
        )  # fmt: skip
        base = self._of_a_trial(self.base)
        return {"base": to_data(base), "task": to_data(self.task), **{key: data[key] for key in own}}

    def trial_config(self, values: Mapping[str, Any]) -> TrainExpert:
        """The base config with `{"training.ppo.n_steps": 64}` in place, as `train_expert` takes it. Raises BadInput.

        Its budget is the base config's, not that of a trial.
        """
        data, source = to_data(self.base), f"config {self.config.base!r}"
        for key, value in values.items():
            set_dotted(data, key, value, source)
        return validate(TrainExpert, data, source)

    def job(self, values: Mapping[str, Any], seed: int, folder: Path, fresh: bool = False) -> TrainingJob:
        """The training of a trial on one of its seeds; a fresh one is on episodes that no trial was chosen on.

        Raises BadInput for values that contradict each other.
        """
        config = self._of_a_trial(self.trial_config(values))
        training = config.training
        if fresh:
            evaluation = replace(training.evaluation, seed=(training.evaluation.seed + 1) % 2**31)
            training = replace(training, evaluation=evaluation)
        task = Task(self.task, training.environment, training.use_camera)
        job = TrainingJob(
            task=self.task,
            training=training,
            seed=seed,
            output=str(folder),
            convergence=None,  # every trial uses its whole budget
            best_metric=config.best_metric,
            scaling=scaling_by_bounds(task.observation_space, task.action_space, training.network, config.scaling),
            final_episodes=config.final_episodes,
            exact_budget=True,
        )
        check_job(job)
        return job

    def reported_step(self, timestep: int) -> int:
        """The last scheduled evaluation at or before a timestep.

        Trials of different rollout lengths evaluate at different timesteps; a pruner compares what has equal steps.
        """
        schedule, step = self.base.training.evaluation, 0
        while (following := next_evaluation(schedule, step)) <= timestep:
            step = following
        return step

    def judge(self, result: TrainingResult) -> SeedEnd:
        """A training by the objective and the constraints. Raises NotMeasured."""
        curve = [Evaluation(p.timestep, point_figures(p.records)) for p in result.evaluations]
        figures, episodes = point_figures(result.final), result.final.metrics
        value, source = worth(self.config.objective, self.task, curve, figures, episodes)
        return SeedEnd(result, value, source, violations(self.config.constraints, figures), figures)

    def running(self, done: Sequence[SeedEnd], curve: Sequence[Evaluation]) -> float:
        """Mean over the seeds so far, the one in training included. Raises NotMeasured."""
        values = [end.value for end in done]
        if curve:
            values.append(running_value(self.config.objective, curve, self.maximise))
        return sum(values) / len(values)

    def running_excess(self, curve: Sequence[Evaluation]) -> dict[str, float]:
        """Excess of the best checkpoint so far. Raises NotMeasured."""
        best = max(curve, key=lambda p: select_figure(p.figures, self.base.best_metric, self.task))
        return violations(self.config.constraints, best.figures)


def trial_plan(config: Sweep) -> TrialPlan:
    """Base config and task of a sweep, checked with every end of the search space before any trial. Raises BadInput."""
    base = load(TrainExpert, config.base)
    if len(base.seeds) < config.seeds_per_trial:
        raise BadInput(
            f"seeds_per_trial = {config.seeds_per_trial}, but {config.base!r} has {len(base.seeds)} seeds; add some"
        )
    task = load_task(base.task)
    plan = TrialPlan(config, base, task)
    if used := sorted(set(plan.seeds) & set(config.fresh_seeds)):
        raise BadInput(f"fresh_seeds: {used[0]} is a seed of the trials; a fresh seed is one that no trial has used")
    n, steps = config.objective.n or 0, [0]
    while len(steps) < n and steps[-1] < plan.budget:
        steps.append(next_evaluation(base.training.evaluation, steps[-1]))
    if len(steps) < n:
        raise BadInput(
            f"objective.n = {n}, but a training of {plan.budget} steps has {len(steps)} evaluations; "
            "evaluate more often"
        )
    check_measurable(config.objective, config.constraints, base.best_metric, task)
    plan.job({}, 0, Path())
    Task(task, base.training.environment).refuse_holdouts(base.training.scenario_set, "training")
    known = [name for name in flatten(to_data(base)) if name.startswith("training.") and name not in FIXED]
    seen: dict[str, Parameter] = {}
    for key, parameter, _ in points(config.search_space):
        if not DOTTED.fullmatch(key):
            raise BadInput(
                f"search_space {shortened(key)}: only settings below 'training.' can be searched."
                f"{did_you_mean(key, known)} There are: {', '.join(known)}"
            )
        for fixed, reason in FIXED.items():
            if is_part(key, fixed):
                raise BadInput(f"search_space {key!r} cannot be searched: {reason}")
        if seen.setdefault(key, parameter) != parameter:
            raise BadInput(f"search_space {key!r} stands twice with different ranges; give it one")
    for key, other in permutations(seen, 2):
        if is_part(other, key):
            raise BadInput(f"search_space: {other!r} is part of {key!r}; search one of them")
    for key, parameter, given in points(config.search_space):
        in_environment = is_part(key, "training.environment")
        if in_environment and config.objective.figure.startswith(f"{Metric.RETURN}_"):
            raise BadInput(
                f"search_space {key!r}: returns of different environments cannot be compared; "
                f"give another objective.metric, such as {Metric.SUCCESS_RATE}"
            )
        for value in parameter.every() if key == "training.n_envs" else parameter.extremes():
            try:
                job = plan.job({**given, key: value}, 0, Path())
                if in_environment:
                    played = Task(task, job.training.environment, job.training.use_camera)
                    played.make_env(next(iter(task.scenarios))).close()
            except BadInput as error:
                raise BadInput(f"search_space {key!r} at {value!r}: {error}") from None
    return plan


def points(
    space: SearchSpace, given: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Parameter, Mapping[str, Any]]]:
    """Key, parameter, and the choices of those it is nested in, of every one in a search space; outer ones first."""
    for key, parameter in space.items():
        yield key, parameter, given or {}
        for label, nested in parameter.when.items():
            yield from points(nested, {**(given or {}), key: parameter.choice(label)})


def is_part(key: str, section: str) -> bool:
    """`training.ppo.gamma` is part of `training.ppo`, and of itself."""
    return f"{key}.".startswith(f"{section}.")

"""`train_expert`: PPO over several seeds side by side; the best seed's best checkpoint becomes the candidate."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.loading import load_task
from pipeline.config.stages import TrainExpert
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput
from pipeline.learning.arms import expert_jobs
from pipeline.learning.diagnosis import diagnose
from pipeline.learning.jobs import TrainingResult
from pipeline.learning.schedule import select_figure
from pipeline.names import EVAL_PREFIX, Artifact, Metric, Tag, registered_model
from pipeline.play.evaluation import (
    concatenate_records,
    point_figures,
    run_episodes,
    summarise,
    summarise_by_scenario,
    with_intervals,
)
from pipeline.policies import act_function, load_policy
from pipeline.report.stage_pages import diagnosis_markdown
from pipeline.stages import StageOutcome, train
from pipeline.tasks import Purpose, Task
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ()


def inputs(run: StageRun, config: TrainExpert, upstream: Mapping[str, str]) -> dict[str, str]:
    return {}


def run(run: StageRun, config: TrainExpert, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    if not task.config.thresholds:
        raise BadInput(
            f"task {task.config.name!r}: thresholds is empty, so nothing says when an expert is good enough; give a "
            "figure with its bound, such as success_rate: {min: 0.9}"
        )
    jobs = expert_jobs(config, task, run.folder)
    run.record_config(config, task.config, inputs(run, config, upstream))
    results = train(run, "train_expert", jobs, [{Tag.STAGE: "train_expert_seed"}] * len(jobs), config.workers)
    diagnosis = diagnose(results, task.config.thresholds)
    best = best_result(results, config.best_metric, task.config)
    folder = Path(jobs[results.index(best)].output) / "best"
    records = concatenate_records([result.final for result in results])
    pooled, by_scenario = summarise(records), summarise_by_scenario(records).items()
    run.json(diagnosis.to_json(), Artifact.DIAGNOSTICS_JSON)
    run.text(diagnosis_markdown(diagnosis), Artifact.DIAGNOSTICS_MD)
    run.json({scenario: with_intervals(figures) for scenario, figures in by_scenario}, "evaluation_by_scenario.json")
    run.tag({Tag.PROMOTABLE: diagnosis.promotable, Tag.POLICY_DIGEST: best.best_digest, Tag.BEST_SEED: best.seed})
    run.metrics({f"{EVAL_PREFIX}{name}": value for name, value in with_intervals(pooled).items()})
    act = act_function(load_policy(folder))
    for holdout in task.config.holdout_sets:  # scenarios that training never touched
        played = run_episodes(task, act, task.episodes(holdout, 0, config.final_episodes, Purpose.EVALUATE))
        figures = with_intervals(summarise(played))
        run.metrics({f"holdout/{holdout}/{name}": value for name, value in figures.items()})
    reference = run.policy(
        folder, "candidate", best.best_timestep, point_figures(best.final), Artifact.POLICY,
        task=task.config.name, digest=best.best_digest, promotable=diagnosis.promotable,
        description=f"Best checkpoint of seed {best.seed} at step {best.best_timestep}; see diagnostics.md of its run.",
    )  # fmt: skip
    candidate = "is registered when the store answers again"
    if reference is not None:
        candidate = f"{registered_model(task.config.name)} version {reference.rpartition('/')[2]}"
    success = pooled[Metric.SUCCESS_RATE]
    return StageOutcome(
        (
            f"train_expert: {len(results)} seeds, success {success:.3f} on fresh episodes; converged at steps "
            f"{', '.join('never' if result.converged_at is None else str(result.converged_at) for result in results)}",
            f"  candidate: {candidate}, " + ("promotable" if diagnosis.promotable else "NOT promotable:"),
            *(f"  - {shortfall.sentence()}" for shortfall in diagnosis.shortfalls),
        ),
        outputs={} if reference is None else {"expert": reference},
    )


def best_result(results: Sequence[TrainingResult], best_metric: str, task: TaskConfig) -> TrainingResult:
    """The seed whose best checkpoint does best on fresh episodes; ties go to the earlier seed."""
    return max(results, key=lambda result: select_figure(point_figures(result.final), best_metric, task))

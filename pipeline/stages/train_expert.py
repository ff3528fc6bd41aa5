"""`train_expert`: PPO over several seeds side by side; the best seed's best checkpoint becomes the candidate."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.loading import load_task
from pipeline.config.stages import TrainExpert
from pipeline.config.task import TaskConfig
from pipeline.learning.arms import expert_jobs
from pipeline.learning.diagnosis import Diagnosis, diagnose
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
from pipeline.report.pages import diagnosis_markdown
from pipeline.report.progress import TrainingProgress, input_warnings
from pipeline.stages import StageOutcome
from pipeline.tasks import Purpose, Task
from pipeline.tracking.runs import StageRun
from pipeline.tracking.seed_runs import log_bill, train_logged

UPSTREAM = ()


def inputs(run: StageRun, config: TrainExpert, upstream: Mapping[str, str]) -> dict[str, str]:
    return {}


def run(run: StageRun, config: TrainExpert, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    jobs = expert_jobs(config, task, run.folder)
    run.record_config(config, task.config, inputs(run, config, upstream))
    tags = [{Tag.STAGE: "train_expert_seed"} for _ in jobs]
    with TrainingProgress("train_expert", jobs) as progress:
        results = train_logged(run, jobs, tags, config.workers, progress.on_event)
    diagnosis = diagnose(results, task.config.thresholds)
    best = best_result(results, config.best_metric, task.config)
    folder = Path(jobs[results.index(best)].output) / "best"
    pooled = summarise(concatenate_records([result.final for result in results]))
    _log(run, diagnosis, results, best)
    run.metrics({f"{EVAL_PREFIX}{name}": value for name, value in with_intervals(pooled).items()})
    run.metrics(holdout_figures(task, folder, config.final_episodes))
    version = run.candidate(
        folder, task.config.name, best.best_timestep, point_figures(best.final), Artifact.POLICY,
        digest=best.best_digest, promotable=diagnosis.promotable,
        description=f"Best checkpoint of seed {best.seed} at step {best.best_timestep}; see diagnostics.md of its run.",
    )  # fmt: skip
    name = registered_model(task.config.name)
    candidate = "is registered when the store answers again" if version is None else f"{name} version {version.version}"
    success = pooled[Metric.SUCCESS_RATE]
    return StageOutcome(
        (
            f"train_expert: {len(results)} seeds, success {success.value:.3f} "
            f"[{success.low:.3f}, {success.high:.3f}] on fresh episodes; converged at steps "
            f"{', '.join(str(result.converged_at or 'never') for result in results)}",
            f"  candidate: {candidate}, " + ("promotable" if diagnosis.promotable else "NOT promotable:"),
            *(f"  - {shortfall.sentence()}" for shortfall in diagnosis.shortfalls),
            *input_warnings(task),
        ),
        outputs={} if version is None else {"expert": f"models:/{name}/{version.version}"},
    )


def best_result(results: Sequence[TrainingResult], best_metric: str, task: TaskConfig) -> TrainingResult:
    """The seed whose best checkpoint does best on fresh episodes; ties go to the earlier seed."""
    return max(results, key=lambda result: select_figure(point_figures(result.final), best_metric, task))


def holdout_figures(task: Task, policy_folder: Path, episodes: int) -> dict[str, float]:
    """`holdout/<set>/<figure>` with intervals, on scenarios that training never touched."""
    act = act_function(load_policy(policy_folder))
    figures: dict[str, float] = {}
    for scenario_set in task.config.holdout_sets:
        records = run_episodes(task, act, task.episodes(scenario_set, 0, episodes, Purpose.EVALUATE))
        summary = with_intervals(summarise(records))
        figures.update({f"holdout/{scenario_set}/{name}": value for name, value in summary.items()})
    return figures


def _log(run: StageRun, diagnosis: Diagnosis, results: Sequence[TrainingResult], best: TrainingResult) -> None:
    run.json(diagnosis.to_json(), Artifact.DIAGNOSTICS_JSON)
    run.text(diagnosis_markdown(diagnosis), Artifact.DIAGNOSTICS_MD)
    run.json(
        {
            scenario: with_intervals(summary)
            for scenario, summary in summarise_by_scenario(
                concatenate_records([result.final for result in results])
            ).items()
        },
        "evaluation_by_scenario.json",
    )
    run.tag({Tag.PROMOTABLE: diagnosis.promotable, Tag.POLICY_DIGEST: best.best_digest, Tag.BEST_SEED: best.seed})
    log_bill(run, results)

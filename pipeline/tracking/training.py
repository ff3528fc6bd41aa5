"""Trainings in the store: a child run a seed that fills while it trains and ends with its policies and figures."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.errors import Interrupted
from pipeline.evaluation import EpisodeRecords, point_figures, summarise, with_intervals
from pipeline.learning.arms import ArmJob
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult, job_digest
from pipeline.learning.workers import run_side_by_side
from pipeline.names import EVAL_PREFIX, Artifact, Metric, Resume, Tag, reused_tag
from pipeline.tracking import operations
from pipeline.tracking.forwarder import Forwarder, forwarding
from pipeline.tracking.models import log_policy
from pipeline.tracking.operations import Operation, tag_text
from pipeline.tracking.runs import StageRun, checkpoint_folder, code_tags, get_run, search


class SeedRuns:
    """The child runs of the jobs of a stage, written through the outbox; `on_event` and `finish` take a job's index."""

    def __init__(
        self,
        stage_run: StageRun,
        forwarder: Forwarder,
        jobs: Sequence[TrainingJob],
        tags: Sequence[Mapping[str, Any]],
    ) -> None:
        self._runs = [_start_child(stage_run, forwarder, job, t) for job, t in zip(jobs, tags, strict=True)]
        places = [checkpoint_folder(stage_run) / run.run_id for run in self._runs]
        self.jobs = [replace(job, checkpoints=str(place)) for job, place in zip(jobs, places, strict=True)]
        # of an interrupted stage's; their trainings only say again what they came to, and nothing of it is logged
        self._open = {i for i, run in enumerate(self._runs) if not (stage_run.continued and _is_finished(run))}

    def run(self, index: int) -> StageRun:
        return self._runs[index]

    def on_event(self, index: int, event: TrainingEvent) -> None:
        """Keep a training's metrics. What a resumed one says again, under the same number, is not logged again."""
        if event.metrics and index in self._open:
            run = self._runs[index]
            assert run.outbox is not None
            if event.number:
                run.outbox.number = event.number - 1
            run.metric_series([(name, value, event.timestep) for name, value in event.metrics.items()])

    def finish(self, index: int, result: TrainingResult) -> None:
        """Log what the training came to and close its run."""
        run = self._runs[index]
        if index in self._open:
            log_result(run, self.jobs[index], result)
            _aside(run, operations.close("FINISHED"))
            self._open.discard(index)

    def end(self, status: str, reason: str) -> None:
        """Close every run that is still open."""
        for index in sorted(self._open):
            _aside(self._runs[index], operations.note(reason))
            _aside(self._runs[index], operations.close(status))


@contextlib.contextmanager
def seed_runs(
    stage_run: StageRun, jobs: Sequence[TrainingJob], tags: Sequence[Mapping[str, Any]]
) -> Iterator[SeedRuns]:
    """Child runs for the jobs; those that are not finished when the block is left by an exception end with it.

    They end KILLED when that came from outside, FAILED otherwise.
    """
    with forwarding(stage_run) as forwarder:
        runs = SeedRuns(stage_run, forwarder, jobs, tags)
        try:
            yield runs
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt | Interrupted)
            runs.end("KILLED" if killed else "FAILED", f"not finished: {type(error).__name__}: {error}"[:500])
            raise


def train_logged(
    stage_run: StageRun,
    jobs: Sequence[TrainingJob],
    tags: Sequence[Mapping[str, Any]],
    workers: int,
    watch: Callable[[int, TrainingEvent], None],
) -> list[TrainingResult]:
    """Train the jobs side by side, each in a child run of its own that is finished as soon as its training is.

    `watch` sees every event after it is logged.
    """

    def on_event(index: int, event: TrainingEvent) -> None:
        seeds.on_event(index, event)
        watch(index, event)

    with seed_runs(stage_run, jobs, tags) as seeds:
        return run_side_by_side(seeds.jobs, workers, on_event, seeds.finish)


def left_to_train(stage_run: StageRun, arms: Sequence[ArmJob], tags: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the trainings that the group does not have yet; `tags` are those their runs would get.

    An earlier attempt's run stands for a training when it is FINISHED, has the same inputs (`inputs.digest`), was made
    by the same commit with the same state of the tree, and nothing is known against it. The stage run then names it in
    a tag; it is not touched.
    """
    shared = {key: str(tags[0][key]) for key in (Tag.GROUP, Tag.STAGE)}
    here = {key: tag_text(value) for key, value in code_tags().items()}
    finished = {
        run.data.tags.get(Tag.INPUTS_DIGEST): run.info.run_id
        for run in search(stage_run.client, {**shared, **here})
        if Tag.TAINT not in run.data.tags and run.data.tags.get(MLFLOW_PARENT_RUN_ID) != stage_run.run_id
    }
    reused = {index: finished.get(str(tag[Tag.INPUTS_DIGEST])) for index, tag in enumerate(tags)}
    stage_run.tag({reused_tag(arms[i].arm, arms[i].job.seed): run_id for i, run_id in reused.items()})
    return [index for index, run_id in reused.items() if run_id is None]


def log_bill(run: StageRun, results: Sequence[TrainingResult]) -> None:
    """What all trainings of a stage cost together: environment steps and seconds of processor time."""
    run.metrics(
        {
            Metric.ENVIRONMENT_STEPS: sum(result.environment_steps for result in results),
            Metric.EVALUATION_STEPS: sum(result.evaluation_steps for result in results),
            Metric.WALL_SECONDS: sum(result.wall_seconds.total for result in results),
        }
    )


def _start_child(stage_run: StageRun, forwarder: Forwarder, job: TrainingJob, tags: Mapping[str, Any]) -> StageRun:
    all_tags = {Tag.TASK: job.task.name, Tag.SEED: job.seed, Tag.COMMAND: job_digest(job), **tags}
    name = f"{all_tags.get(Tag.ARM, all_tags.get(Tag.STAGE))}-seed-{job.seed}"
    return forwarder.child(stage_run, name, all_tags)


def _is_finished(run: StageRun) -> bool:
    return bool(get_run(run.client, run.run_id, "training").info.status == "FINISHED")


def _aside(run: StageRun, operation: Operation) -> None:
    """Log what a training does not say itself, and a resumed one may not leave out: outside its count."""
    assert run.outbox is not None
    run.outbox.outbox.append(run.run_id, operation)


def log_result(run: StageRun, job: TrainingJob, result: TrainingResult) -> None:
    """Policies (each a logged model with its figures), evaluations, bill and convergence of one training."""
    at = {point.timestep: point_figures(point.records) for point in result.evaluations}
    best, last = Path(job.output) / "best", Path(job.output) / "last"
    final = summarise(result.final)
    figures = {f"{EVAL_PREFIX}{name}": value for name, value in at[result.best_timestep].items()}
    log_policy(run, best, "best", result.best_timestep, figures, Artifact.POLICY)
    last_step = result.evaluations[-1].timestep
    figures = {f"{EVAL_PREFIX}{name}": value for name, value in at[last_step].items()}
    log_policy(run, last, "last", last_step, figures)
    run.metrics({f"final/{name}": value for name, value in with_intervals(final).items()}, result.environment_steps)
    run.metrics(
        {
            Metric.ENVIRONMENT_STEPS: result.environment_steps,
            Metric.EVALUATION_STEPS: result.evaluation_steps,
            Metric.WALL_SECONDS: result.wall_seconds.total,
            "bill/evaluation_seconds": result.wall_seconds.evaluation,
            "best_timestep": result.best_timestep,
            **({} if result.converged_at is None else {Metric.CONVERGED_AT: result.converged_at}),
        },
        result.environment_steps,
    )
    if result.transferred is not None:
        run.metrics(
            {
                "transfer/tensors": result.transferred.tensor_count,
                "transfer/parameters": result.transferred.parameter_count,
                "transfer/action_distance": result.transferred.action_distance,
            }
        )
    run.text(json.dumps(evaluations_record(result), sort_keys=True) + "\n", Artifact.EVALUATIONS)
    pictures = Path(job.output) / Artifact.PLAYBACK
    if pictures.is_dir():
        run.file(pictures, Artifact.PLAYBACK)
    run.tag(
        {
            Tag.POLICY_DIGEST: result.best_digest,
            "policy.last_digest": result.last_digest,
            "policy.weights_digest": result.best_weights,
            Tag.RESUME: {None: None, True: Resume.EXACT, False: Resume.NOT_EXACT}[result.exact_resume],
        }
    )


def evaluations_record(result: TrainingResult) -> dict[str, Any]:
    """Every evaluation's figures, and the final one episode by episode, as plain JSON data."""
    return {
        "seed": result.seed,
        "evaluations": [{"timestep": p.timestep, "figures": point_figures(p.records)} for p in result.evaluations],
        "final_figures": point_figures(result.final),
        "final": records_data(result.final),
    }


def records_data(records: EpisodeRecords) -> dict[str, Any]:
    """Episode records as plain JSON data: scenario, seed and every metric, one list each, in order."""
    return {
        "scenario": [episode.scenario for episode in records.episodes],
        "seed": [episode.seed for episode in records.episodes],
        "metrics": {name: [float(v) for v in values] for name, values in records.metrics.items()},
    }

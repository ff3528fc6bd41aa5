"""Trainings in the store: a child run a seed that fills while it trains and ends with its policies and figures."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.errors import Interrupted, say
from pipeline.executors.local import run_side_by_side
from pipeline.learning.arms import ArmJob
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult
from pipeline.names import EVAL_PREFIX, Artifact, Metric, Resume, Tag, reused_tag
from pipeline.play.evaluation import EpisodeRecords, point_figures, summarise, with_intervals
from pipeline.tracking.content_key import training_key
from pipeline.tracking.forwarder import Forwarder, forwarding
from pipeline.tracking.reuse import find_finished
from pipeline.tracking.runs import get_run, search
from pipeline.tracking.stage_run import StageRun, checkpoint_folder


class SeedRuns:
    """The child runs of the jobs of a stage, written through the spool; `on_event` and `finish` take a job's index."""

    def __init__(
        self,
        stage_run: StageRun,
        forwarder: Forwarder,
        jobs: Sequence[TrainingJob],
        tags: Sequence[Mapping[str, Any]],
    ) -> None:
        self._runs: list[StageRun] = []
        self.jobs: list[TrainingJob] = []  # as they are to be trained
        self._open: set[int] = set()
        for index, (job, more) in enumerate(zip(jobs, tags, strict=True)):
            key = training_key(job)
            about = {Tag.TASK: job.task.name, Tag.SEED: job.seed, Tag.COMMAND: key.digest, Tag.CONTENT_KEY: key.digest}
            all_tags = {**about, **more}
            name = f"{all_tags.get(Tag.ARM, all_tags.get(Tag.STAGE))}-seed-{job.seed}"
            run = forwarder.child(stage_run, name, all_tags)
            run.text(key.to_json(), Artifact.CONTENT_KEY)
            place = checkpoint_folder(stage_run) / run.run_id
            self._runs.append(run)
            self.jobs.append(replace(job, checkpoints=str(place), checkpoint_key=key.digest))
            # a finished one of an interrupted stage's only says again what it came to, and nothing of it is logged
            if not (stage_run.continued and get_run(run.client, run.run_id, "training").info.status == "FINISHED"):
                self._open.add(index)

    def run(self, index: int) -> StageRun:
        return self._runs[index]

    def on_event(self, index: int, event: TrainingEvent) -> None:
        """Keep a training's metrics."""
        if event.metrics and index in self._open:
            self._runs[index].metric_series([(name, value, event.timestep) for name, value in event.metrics.items()])

    def finish(self, index: int, result: TrainingResult) -> None:
        """Log what the training came to and close its run."""
        run = self._runs[index]
        if index in self._open:
            log_result(run, self.jobs[index], result)
            run.close("FINISHED")
            self._open.discard(index)

    def end(self, status: str, reason: str) -> None:
        """Close every run that is still open, with the best policy that its training left behind."""
        for index in sorted(self._open):
            best = Path(self.jobs[index].output) / "best"
            if status == "FAILED" and best.is_dir():  # of a training that diverged
                self._runs[index].file(best, Artifact.POLICY)
            self._runs[index].describe(reason)
            self._runs[index].close(status)


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


def left_to_train(stage_run: StageRun, arms: Sequence[ArmJob], stage: str, reuse: bool) -> list[int]:
    """Indices of the trainings that the store does not have yet; `stage` is that of the runs they would get.

    A finished training with the same content key stands for one, whichever group it was made for, unless something is
    known against it. The stage run then names it in a tag; it is not touched. Says why for the first that is missing.
    A stage that goes on after an interruption goes on with the trainings that it had begun.
    """
    if not reuse:
        return list(range(len(arms)))
    begun = (
        search(stage_run.client, {MLFLOW_PARENT_RUN_ID: stage_run.run_id}, status=None) if stage_run.continued else []
    )
    keys_begun = {run.data.tags.get(Tag.CONTENT_KEY) for run in begun}
    todo: list[int] = []
    for index, arm in enumerate(arms):
        key = training_key(arm.job)
        if key.digest in keys_begun:
            todo.append(index)
            continue
        found = find_finished(stage_run.client, stage, arm.job.task.name, key)
        if found.run is not None:
            stage_run.tag({reused_tag(arm.arm, arm.job.seed): found.run.info.run_id})
            continue
        if not todo:
            say(f"{arm.arm} seed {arm.job.seed}: {found.words}")
        todo.append(index)
    return todo


def log_bill(run: StageRun, results: Sequence[TrainingResult]) -> None:
    """What all trainings of a stage cost together: environment steps and seconds of processor time."""
    run.metrics(
        {
            Metric.ENVIRONMENT_STEPS: sum(result.environment_steps for result in results),
            Metric.EVALUATION_STEPS: sum(result.evaluation_steps for result in results),
            Metric.WALL_SECONDS: sum(result.wall_seconds.total for result in results),
        }
    )


def log_result(run: StageRun, job: TrainingJob, result: TrainingResult) -> None:
    """Policies (each a logged model with its figures), evaluations, bill and convergence of one training."""
    at = {point.timestep: point_figures(point.records) for point in result.evaluations}
    best, last = Path(job.output) / "best", Path(job.output) / "last"
    final = summarise(result.final)
    figures = {f"{EVAL_PREFIX}{name}": value for name, value in at[result.best_timestep].items()}
    run.policy(best, "best", result.best_timestep, figures, Artifact.POLICY)
    last_step = result.evaluations[-1].timestep
    figures = {f"{EVAL_PREFIX}{name}": value for name, value in at[last_step].items()}
    run.policy(last, "last", last_step, figures)
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
            Tag.LAST_POLICY_DIGEST: result.last_digest,
            Tag.WEIGHTS_DIGEST: result.best_weights,
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

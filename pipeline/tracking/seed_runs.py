"""Trainings in the store: a child run a seed that fills while it trains and ends with its policies and figures."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.config.loading import executor_settings, flatten, to_data
from pipeline.errors import BadInput, Interrupted, disk_refusal, say
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.files import write_folder
from pipeline.learning.arms import ArmJob
from pipeline.learning.checkpoints import CheckpointFolder
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult
from pipeline.names import ARM_PARAM_PREFIX, EVAL_PREFIX, REUSED_PREFIX, Artifact, Metric, Resume, Tag, lineage_run_tag
from pipeline.play.evaluation import point_figures, summarise, with_intervals
from pipeline.tracking.content_key import training_key
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.groups import evaluations_record
from pipeline.tracking.references import downloaded
from pipeline.tracking.reuse import NOTHING_LIKE_IT, find_finished, find_shorter
from pipeline.tracking.runs import get_run, search, tag_of
from pipeline.tracking.stage_run import StageRun, checkpoint_folder
from pipeline.tracking.views import view_address


class SeedRun:
    """The child run of one job of a stage, written through the spool: it fills while the job trains."""

    def __init__(self, forwarder: Forwarder, job: TrainingJob, more_tags: Mapping[str, Any]) -> None:
        stage_run, key = forwarder.stage_run, training_key(job)
        self._key = key
        tags: dict[str, Any] = {
            Tag.TASK: job.task.name,
            Tag.SEED: job.seed,
            Tag.COMMAND: key.digest,
            Tag.CONTENT_KEY: key.digest,
            Tag.KEY_BUT_BUDGET: key.but_budget,
            Tag.KEY_BUT_MACHINE: key.but_machine,
            **more_tags,
        }
        stage, trial = str(tags.get(Tag.STAGE, "training")).removesuffix("_seed"), tags.get(Tag.TRIAL)
        named = (stage, tags.get(Tag.ARM), None if trial is None else f"trial {trial}", f"seed {job.seed}")
        self.name = " · ".join(part for part in named if part is not None)
        self.run = forwarder.child(self.name, tags)
        self.run.text(key.to_json(), Artifact.CONTENT_KEY)
        place = checkpoint_folder(stage_run) / self.run.run_id
        # a checkpoint is of every training that comes by it, whatever their budgets, where these decide nothing before
        checkpoint_key = key.digest if job.bound_to_budget else key.but_budget
        self.job = replace(job, checkpoints=str(place), checkpoint_key=checkpoint_key)  # as it is to be trained
        extended = tags.get(Tag.EXTENDS)
        if extended is not None and not place.exists():
            with _last_checkpoint(get_run(self.run.client, extended, "shorter training")) as copy:
                write_folder(place, {copy.name: copy.read_bytes()})
        # a finished one of an interrupted stage's only says again what it came to, and nothing of it is logged
        status = get_run(self.run.client, self.run.run_id, "training").info.status if stage_run.continued else ""
        self._open, self._film = status != "FINISHED", ""
        self._stage_run, self._start = stage_run.run_id, tags.get(lineage_run_tag("policy"))
        self._cloned = lineage_run_tag("pretrain") in tags
        if self._open:
            arm = tags.get(Tag.ARM)
            self.run.params({"seed": job.seed, "arm": arm, **({} if arm is None else settings_of_arm(job))})

    def on_event(self, event: TrainingEvent) -> None:
        """Keep the training's metrics."""
        if event.metrics and self._open:
            self.run.metrics(event.metrics, event.timestep)

    def film(self, film: Path, step: int) -> None:
        """Keep a film of the policy at a step; the newest stands in the run's description."""
        if self._open:
            address = view_address(self.run.experiment_id, "films")
            self._film = f"{self.run.film(film, step)}\n\nAfter {step:,} steps; [all films by step]({address}).\n\n"

    def finish(self, result: TrainingResult) -> None:
        """Log what the training came to and close its run."""
        if self._open:
            log_result(self.run, self.job, result)
            made = self._key.made_on(result.machines)
            if made != self._key:
                self.run.record_key(made)
                self.run.tag({Tag.KEY_BUT_BUDGET: made.but_budget})
            last = CheckpointFolder(Path(str(self.job.checkpoints)), self.job.checkpoint_key).before_end()
            if last is not None and self.job.bound_to_budget is None:
                self.run.file(last, Artifact.CHECKPOINT)
                self.run.tag({Tag.CHECKPOINT: last.name})
            self.run.describe(self._described(result))
            self.run.close("FINISHED")
            self._open = False

    def _described(self, result: TrainingResult) -> str:
        """What the run is, what came out, and where to look next."""
        job, success = self.job, summarise(result.final)[Metric.SUCCESS_RATE]
        start = "fresh weights"
        if job.demonstrations_share:
            start += f", with {job.demonstrations_share:.0%} demonstrations in every batch"
        if job.initial_policy is not None:
            start = "a clone" if self._cloned else "a policy that was there before"
            start = start if self._start is None else self.run.link(str(self._start), start)
            start = f"a correction of {start}" if job.residual else start
        rate = "; learning rate 0, as a control" if job.learning_rate_zero else ""
        return (
            f"**{self.name}**: {'PPO' if job.sac is None else 'SAC'} on task `{job.task.name}`, from {start}{rate}.\n\n"
            f"- success of the best checkpoint (step {result.best_timestep:,}) on {len(result.final.episodes)} fresh "
            f"episodes: {success:.3f}\n"
            f"- {result.environment_steps:,} steps of training and {result.gradient_steps:,} gradient steps in "
            f"{result.wall_seconds.total:.0f} s\n\n{self._film}"
            f"Policy: artifact `{Artifact.POLICY}`, every evaluation: `{Artifact.EVALUATIONS}`; "
            f"all seeds: {self.run.link(self._stage_run, 'the run of its stage')}."
        )

    def end(self, status: str, reason: str) -> None:
        """Close the run, if it is still open, with the best policy that its training left behind."""
        if self._open:
            best = Path(self.job.output) / "best"
            if status == "FAILED" and best.is_dir():  # of a training that diverged
                self.run.file(best, Artifact.POLICY)
            self.run.describe(reason)
            self.run.close(status)


def settings_of_arm(job: TrainingJob) -> dict[str, Any]:
    """Parameter -> value of what is a training's own, as `cfg.` has what its stage asked for all arms alike."""
    fresh = job.initial_policy is None or job.left_policy is not None
    own = {
        "algorithm": "ppo" if job.sac is None else "sac",
        "start": "fresh weights" if fresh else "a correction of the policy" if job.residual else "the policy",
        "learning_rate_zero": job.learning_rate_zero,
        **flatten({"warm_start": {} if fresh or job.warm_start is None else to_data(job.warm_start)}),
        **({} if job.sac is None else flatten({"sac": to_data(job.sac), "demonstrations": job.demonstrations_share})),
    }
    return {f"{ARM_PARAM_PREFIX}{name}": value for name, value in own.items() if value != "{}"}


@contextlib.contextmanager
def seed_runs(
    stage_run: StageRun, jobs: Sequence[TrainingJob], tags: Sequence[Mapping[str, Any]]
) -> Iterator[list[SeedRun]]:
    """Child runs for the jobs; those that are not finished when the block is left by an exception end with it.

    They end KILLED when that came from outside, FAILED otherwise.
    """
    runs: list[SeedRun] = []
    with Forwarder(stage_run) as forwarder:
        try:
            for job, more_tags in zip(jobs, tags, strict=True):
                runs.append(SeedRun(forwarder, job, more_tags))
            yield runs
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt | Interrupted)
            for run in runs:
                run.end("KILLED" if killed else "FAILED", f"not finished: {type(error).__name__}: {error}"[:500])
            raise


def train_logged(
    stage_run: StageRun,
    jobs: Sequence[TrainingJob],
    tags: Sequence[Mapping[str, Any]],
    workers: int,
    watch: Callable[[int, TrainingEvent], Path | None],
) -> list[TrainingResult]:
    """Train the jobs side by side, each in a child run of its own that is finished as soon as its training is.

    `watch` sees every event after it is logged; a film that it makes of one is logged as well.
    """

    def on_event(index: int, event: TrainingEvent) -> None:
        seeds[index].on_event(event)
        film = watch(index, event)
        if film is not None:
            seeds[index].film(film, event.timestep)

    with seed_runs(stage_run, jobs, tags) as seeds:
        jobs = [seed.job for seed in seeds]
        return run_side_by_side(jobs, workers, on_event, lambda index, result: seeds[index].finish(result))


def left_to_train(stage_run: StageRun, arms: Sequence[ArmJob], stage: str, reuse: bool) -> dict[int, str | None]:
    """Indices of the trainings that the store does not have yet; `stage` is that of the runs they would get.

    Each with the finished one of a smaller budget that it goes on from, if there is any that it can.

    A finished training with the same content key and arm stands for one, whichever group it was made for, unless
    something is known against it; where trainings go to a cluster, whichever kind of machine made it. The stage run
    then names it in a tag; it is not touched. Says why for the first of an arm that is missing, where there is
    something to say.
    A stage that goes on after an interruption goes on with the trainings that it had begun.
    """
    if not reuse:
        return dict.fromkeys(range(len(arms)))
    own = {MLFLOW_PARENT_RUN_ID: stage_run.run_id}
    begun = search(stage_run.client, own, status=None) if stage_run.continued else []
    keys_begun = {(run.data.tags.get(Tag.COMMAND), run.data.tags.get(Tag.ARM)) for run in begun}
    todo: dict[int, str | None] = {}
    for index, arm in enumerate(arms):
        key = training_key(arm.job)
        if (key.digest, arm.arm) in keys_begun:
            todo[index] = None
            continue
        elsewhere = executor_settings(arm.job.task).kind != "local"
        found = find_finished(stage_run.client, stage, arm.job.task.name, key, elsewhere, arm.arm)
        if found.run is not None:
            if tag_of(found.run, Tag.CONTENT_KEY) != key.digest:
                say(f"{arm.arm} seed {arm.job.seed}: {found.words}, made on another kind of machine than this one")
            stage_run.tag({f"{REUSED_PREFIX}{arm.arm}.seed_{arm.job.seed}": found.run.info.run_id})
            continue
        words, first = found.words, arm.arm not in {arms[other].arm for other in todo}
        shorter = find_shorter(stage_run.client, stage, arm.arm, arm.job, key)
        todo[index] = None
        if shorter is not None:
            reason = arm.job.bound_to_budget
            if reason is None and Tag.CHECKPOINT not in shorter.data.tags:
                reason = "it took no checkpoint before its end (training.checkpoint_every)"
            if reason is None:
                try:
                    with _last_checkpoint(shorter):  # before the new training has a run
                        pass
                except BadInput as error:
                    if disk_refusal(error) is not None:
                        raise
                    reason = "its checkpoint is gone"
            if reason is None:
                todo[index] = shorter.info.run_id
                words = f"goes on from the last checkpoint of run {shorter.info.run_id}, whose budget was smaller"
            else:
                words = f"begins anew, though run {shorter.info.run_id} differs in a smaller budget alone: {reason}"
        if first and words != NOTHING_LIKE_IT:
            say(f"{arm.arm} seed {arm.job.seed}: {words}")
    return todo


def _last_checkpoint(run: Run) -> contextlib.AbstractContextManager[Path]:
    """A copy of the last checkpoint that a finished training kept. Raises BadInput."""
    path = f"{Artifact.CHECKPOINT}/{tag_of(run, Tag.CHECKPOINT)}"
    return downloaded(f"runs:/{run.info.run_id}/{path}", f"checkpoint of run {run.info.run_id}")


def log_result(run: StageRun, job: TrainingJob, result: TrainingResult) -> None:
    """Policies (each a logged model with its figures), evaluations, bill and convergence of one training."""
    at = {point.timestep: point_figures(point.records) for point in result.evaluations}
    final = summarise(result.final)
    last = result.evaluations[-1].timestep
    for policy, step, artifact in (("best", result.best_timestep, Artifact.POLICY), ("last", last, None)):
        figures = {f"{EVAL_PREFIX}{name}": value for name, value in at[step].items()}
        run.policy(Path(job.output) / policy, policy, step, figures, artifact)
    run.metrics({f"final/{name}": value for name, value in with_intervals(final).items()}, result.environment_steps)
    run.metrics(
        {
            Metric.ENVIRONMENT_STEPS: result.environment_steps,
            Metric.EVALUATION_STEPS: result.evaluation_steps,
            Metric.GRADIENT_STEPS: result.gradient_steps,
            Metric.WALL_SECONDS: result.wall_seconds.total,
            "bill/evaluation_seconds": result.wall_seconds.evaluation,
            Metric.BEST_TIMESTEP: result.best_timestep,
            **({} if result.converged_at is None else {Metric.CONVERGED_AT: result.converged_at}),
        },
        result.environment_steps,
    )
    if result.transferred is not None:
        run.metrics(result.transferred.metrics())
    if result.decisions:
        run.text(json.dumps([asdict(decision) for decision in result.decisions], indent=1) + "\n", Artifact.WARM_START)
    run.text(json.dumps(evaluations_record(result), sort_keys=True) + "\n", Artifact.EVALUATIONS)
    run.tag(
        {
            Tag.POLICY_DIGEST: result.best_digest,
            Tag.LAST_POLICY_DIGEST: result.last_digest,
            Tag.WEIGHTS_DIGEST: result.best_weights,
            Tag.RESUME: {None: None, True: Resume.EXACT, False: Resume.NOT_EXACT}[result.exact_resume],
        }
    )

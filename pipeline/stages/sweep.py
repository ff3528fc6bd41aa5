"""`sweep`: trials of an Optuna study side by side; the best again on fresh seeds; the winner as a config.

Every worker is a thread that has one training at a time, wherever that runs, and hears what it says.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Event
from typing import Any, Final, TypeVar

from optuna import Trial, TrialPruned

from pipeline.config.loading import flatten, to_data, to_yaml
from pipeline.config.sweep import Sweep
from pipeline.errors import BadInput, Interrupted, disk_refusal, say
from pipeline.executors.news import TrainingCrashed
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.divergence import Diverged
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult
from pipeline.names import CONFIG_PARAM_PREFIX, EVAL_PREFIX, SWEEP_FRESH, SWEEP_TRIAL, Artifact, Metric, Tag
from pipeline.report.sweep_report import SweepReport, sweep_markdown, sweep_pictures
from pipeline.stages import StageOutcome
from pipeline.sweep.objectives import Contender, Evaluation, FreshResult, NotMeasured, feasible, worst
from pipeline.sweep.study import (
    INFEASIBLE,
    MOST_ATTEMPTS,
    NOTES,
    SweepStudy,
    TrialFailed,
    TrialRecord,
    conclude,
    ranking,
)
from pipeline.sweep.trials import SeedEnd, TrialPlan, trial_plan
from pipeline.tracking.content_key import digest_of
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.groups import evaluations_record
from pipeline.tracking.liveness import has_ended, this_process
from pipeline.tracking.seed_runs import SeedRun
from pipeline.tracking.stage_run import StageRun
from pipeline.tracking.store import exclusive, refuse_tracking_store

T = TypeVar("T")
Hear = Callable[[TrainingEvent], None]

UPSTREAM = ()
LOOK_SECONDS = 1.0  # between looks at what other processes do
REASON_CHARACTERS = 300
RUN_STATUS: Final = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "lost": "FAILED"}


class NotWritten(Exception):
    """What a training said cannot be kept, which is no fault of the training's."""


def run(run: StageRun, config: Sweep, upstream: Mapping[str, str]) -> StageOutcome:
    refuse_tracking_store(config.storage)
    plan = trial_plan(config)
    run.record_config(config, plan.task, {"base": digest_of(to_data(plan.base))})
    run.tag({Tag.STUDY: config.study_name})
    with exclusive("sweep"):
        study = SweepStudy(config, plan.shared_settings(), plan.maximise)
    with Forwarder(run) as forwarder:
        trainings = Trainings(run, forwarder, plan, study)
        trainings.search()
        with exclusive(f"sweep-{config.study_name}"):  # one process trains again, the others find its results
            ranked = ranking(study.records(), plan.maximise)[: config.best_k]
            contenders = trainings.repeat(ranked) if ranked else ()
    report = SweepReport(config, plan.maximise, plan.budget, study.records(), contenders)
    folder = run.folder / Artifact.SWEEP
    folder.mkdir()
    missing = sweep_pictures(report, study.study, folder)
    run.file(folder, Artifact.SWEEP)
    run.text(sweep_markdown(report, missing), Artifact.SWEEP_MD)
    run.json(report.to_json(), Artifact.SWEEP_JSON)
    run.metrics({f"sweep/{name}": count for name, count in report.counts().items()})
    run.metrics({Metric.ENVIRONMENT_STEPS: sum(trial.notes.get("steps", 0) for trial in report.trials)})
    found: tuple[str, ...] = ()
    if (best := report.winner) is not None and best.trial is not None:
        header = "".join(f"# {line.strip()}\n" for line in report.lines())
        winner = plan.trial_config(report.trials[best.trial].values)
        run.text(header + to_yaml(winner), Artifact.BEST_CONFIG)
        run.tag({Tag.TRIAL: best.trial})
        figures = {"sweep": best.sweep_value, "fresh": best.fresh_value, "gain": report.gain}
        run.metrics({f"{Metric.OBJECTIVE}/{name}": v for name, v in figures.items() if v is not None})
        steps = f"{winner.training.total_timesteps:,} steps, as {config.base}; a trial had {plan.budget:,}"
        found = (f"  for train_expert: {Artifact.BEST_CONFIG} of run {run.run_id} ({steps})",)
    return StageOutcome((*report.lines(), *found), verdict=report.winner is not None)


@dataclass
class Trainings:
    """The trainings of a sweep, `workers` at a time."""

    run: StageRun
    forwarder: Forwarder
    plan: TrialPlan
    study: SweepStudy
    stop: Event = field(default_factory=Event)  # one of them met a fault, or all are interrupted
    runs: dict[int, StageRun] = field(default_factory=dict)  # of the trials in training

    def search(self) -> None:
        """Train trials until every one of the study has ended, here or elsewhere."""
        self._side_by_side([self._trials] * self.plan.config.workers)

    def _trials(self) -> None:
        while not self.stop.is_set():
            with ExitStack() as turn:
                turn.enter_context(exclusive("sweep"))
                self.study.release_dead(has_ended)
                if self.study.remaining():
                    self.study.run_trial(self._train, this_process(), turn.close, self._close)
                    continue
            if not any(record.state == "running" for record in self.study.records()):
                return
            self.stop.wait(LOOK_SECONDS)

    def _train(self, trial: Trial, values: Mapping[str, Any]) -> float:
        """The value of a trial: its seeds one after the other. Raises TrialPruned, and TrialFailed."""
        plan, config, started = self.plan, self.plan.config, time.monotonic()
        tags = {
            Tag.STAGE: SWEEP_TRIAL,
            Tag.TASK: plan.task.name,
            Tag.STUDY: config.study_name,
            Tag.TRIAL: trial.number,
            Tag.SEED: " ".join(str(seed) for seed in plan.seeds),
        }
        run = self.runs[trial.number] = self.forwarder.child(f"sweep · trial {trial.number}", tags)
        run.params({f"{CONFIG_PARAM_PREFIX}{key}": value for key, value in flatten(dict(values)).items()})
        trial.set_user_attr(NOTES, {"run_id": run.run_id})
        done: list[SeedEnd] = []
        curve: list[Evaluation] = []  # of the seed in training
        timestep = reported = 0

        def log(seed: int, event: TrainingEvent) -> None:
            prefix = "" if len(plan.seeds) == 1 else f"seed_{seed}/"  # each has its own names
            if event.metrics:
                run.metric_series([(f"{prefix}{name}", v, event.timestep) for name, v in event.metrics.items()])

        def prune(event: TrainingEvent) -> None:
            """After an evaluation. Raises TrialPruned where the trial should end."""
            nonlocal timestep, reported
            timestep = max(timestep, event.timestep)
            figures = {
                name.removeprefix(EVAL_PREFIX): value
                for name, value in event.metrics.items()
                if name.startswith(EVAL_PREFIX) and not name.endswith(("_ci_low", "_ci_high"))
            }
            if not figures:
                return
            curve.append(Evaluation(event.timestep, figures))
            if event.timestep >= plan.budget:
                return  # it is over anyway
            if config.constraint_handling == "prune" and timestep >= config.constraint_prune_from * plan.budget:
                _refuse(plan.running_excess(curve), f"at step {timestep:,}")
            step = len(done) * plan.budget + plan.reported_step(event.timestep)
            if timestep > 0 and step > reported and config.pruner.name not in ("none", "wilcoxon"):
                reported, value = step, plan.running(done, curve)
                trial.report(value, step)
                if trial.should_prune():
                    raise TrialPruned(f"pruner {config.pruner.name} at step {timestep:,}: {value:.4g}")

        reason: str | None = None
        try:
            try:
                for seed in plan.seeds:
                    job = plan.job(values, seed, self.run.folder / f"trial-{trial.number}")
                    done.append(plan.judge(self._trained(job, partial(log, seed), prune)))
                    curve, timestep = [], 0
                    if config.constraint_handling == "prune":
                        _refuse(worst([end.excess for end in done]), "at its end")
                    if config.pruner.name == "wilcoxon":
                        trial.report(done[-1].value, len(done))
                        if trial.should_prune() and len(done) < len(plan.seeds):
                            raise TrialPruned(f"pruner wilcoxon after {len(done)} seeds")
            except (TrialPruned, Diverged) as error:  # known to be bad: unlike one that failed, samplers learn from it
                reason = reason_of(error)
            running = [plan.running_excess(curve)] if curve else []
            conclude(trial, reason, worst([*(end.excess for end in done), *running]))
        except Exception as error:
            if self.stop.is_set() or not is_its_own(error):
                raise
            conclude(trial, reason_of(error), None)
            raise TrialFailed from error
        finally:
            figures = {
                name: sum(end.figures[name] for end in done) / len(done) for name in (done[0].figures if done else ())
            }
            bill = {
                Metric.ENVIRONMENT_STEPS: sum(end.result.environment_steps for end in done) + timestep,
                Metric.WALL_SECONDS: round(time.monotonic() - started, 3),
            }
            notes = {
                "run_id": run.run_id,
                "steps": bill[Metric.ENVIRONMENT_STEPS],
                "seconds": bill[Metric.WALL_SECONDS],
                "training_seconds": round(sum(end.result.wall_seconds.total for end in done), 3),
                "figures": figures,
                "source": done[0].source if done else None,
            }
            run.metrics({**{f"final/{name}": value for name, value in figures.items()}, **bill})
            run.tag({Tag.OBJECTIVE_SOURCE: notes["source"]})
            evaluations = [evaluations_record(end.result) for end in done]
            if curve:
                unfinished = [{"timestep": e.timestep, "figures": dict(e.figures)} for e in curve]
                evaluations.append({"seed": plan.seeds[len(done)], "evaluations": unfinished})
            run.text(json.dumps(evaluations, sort_keys=True) + "\n", Artifact.EVALUATIONS)
            shutil.rmtree(self.run.folder / f"trial-{trial.number}", ignore_errors=True)
            trial.set_user_attr(NOTES, notes)
        if reason is not None:
            raise TrialPruned(reason)
        return plan.running(done, [])

    def _trained(self, job: TrainingJob, log: Hear, prune: Hear = lambda event: None) -> TrainingResult:
        """Train; it ends early when `log` or `prune` raises, or all are to stop."""

        def hear(_: int, event: TrainingEvent) -> None:
            try:
                log(event)
            except BadInput as error:
                raise NotWritten(error) from error
            prune(event)

        return run_side_by_side([job], 1, hear, stop=self.stop)[0]

    def _close(self, record: TrialRecord) -> None:
        """Say what became of a trial in its run, and to people: `trial 7: 0.91 feasible; 8 of 20 done, best ...`."""
        run = self.runs.pop(record.number, None)
        if run is None:
            return
        if record.state == "complete":
            run.metrics({Metric.OBJECTIVE: record.value or 0.0})
        if record.feasible is not None:
            run.tag({Tag.TRIAL_FEASIBLE: record.feasible, Tag.TRIAL_VIOLATION: record.violation or 0.0})
        if record.reason:
            run.describe(record.reason)
        run.tag({Tag.TRIAL_STATE: record.state})
        run.close(RUN_STATUS[record.state])
        records = self.study.records()
        done = sum(other.state in ("complete", "pruned", "failed") for other in records)
        best = ranking(records, self.plan.maximise)
        leader = f", best {best[0].value:.4g} (trial {best[0].number})" if best else ", none feasible so far"
        value = "" if record.value is None else f"{record.value:.4g} "
        line = f"trial {record.number}: {value}{record.kind}{f' ({record.reason})' if record.reason else ''}"
        say(f"sweep: {line}; {done} of {self.plan.config.trials} done{leader}", sys.stderr)

    def repeat(self, best: Sequence[TrialRecord]) -> tuple[Contender, ...]:
        """Train the best trials and the default on fresh seeds; what an earlier process finished is not repeated."""
        contenders = [*((t.number, t.value, t.values) for t in best), (None, None, {})]
        seeds = self.plan.config.fresh_seeds
        work = [partial(self._fresh, number, values, seed) for number, _, values in contenders for seed in seeds]
        results = iter(self._side_by_side(work))
        return tuple(Contender(number, value, tuple(islice(results, len(seeds)))) for number, value, _ in contenders)

    def _fresh(self, number: int | None, values: Mapping[str, Any], seed: int) -> FreshResult:
        """Train a trial, or the default, on a fresh seed; what it came to is kept in the study as plain data."""
        key, name = f"kept:fresh:{number}:{seed}", "default" if number is None else f"trial {number}"
        known = self.study.study.user_attrs.get(key)
        if known is None:
            job = self.plan.job(values, seed, self.run.folder / f"fresh-{number}-{seed}", fresh=True)
            trial = "default" if number is None else number
            tags = {Tag.STAGE: SWEEP_FRESH, Tag.STUDY: self.plan.config.study_name, Tag.TRIAL: trial}
            log = SeedRun(self.forwarder, job, tags)
            log.run.params({f"{CONFIG_PARAM_PREFIX}{key}": value for key, value in flatten(dict(values)).items()})
            try:
                result = self._trained(job, log.on_event)
            except BaseException as error:
                own = is_its_own(error) and not self.stop.is_set()
                if own and isinstance(error, Interrupted):  # killed: the same command tries again, three times at most
                    kills = self.study.study.user_attrs.get(f"killed:{key}", 0) + 1
                    self.study.study.set_user_attr(f"killed:{key}", kills)
                    own = kills >= MOST_ATTEMPTS
                killed = not own and isinstance(error, KeyboardInterrupt | Interrupted)
                reason = reason_of(error) if own else f"not finished: {type(error).__name__}"
                log.end("KILLED" if killed else "FAILED", reason)
                if not own:
                    raise
                known = {"reason": reason_of(error)}
            else:
                log.finish(result)
                try:
                    end = self.plan.judge(result)
                    known = {"value": end.value, "excess": dict(end.excess), "figures": dict(end.figures)}
                except NotMeasured as error:
                    known = {"reason": str(error)}
            self.study.study.set_user_attr(key, known)
            came_to = known.get("reason") or f"{known['value']:.4g}"
            say(f"sweep: {name} again on seed {seed}: {came_to}", sys.stderr)
        return FreshResult(**{"seed": seed, "value": None, "excess": {}, "figures": {}, **known})

    def _side_by_side(self, work: Sequence[Callable[[], T]]) -> list[T]:
        """Do all of it, `workers` at a time; a fault in one, or an interruption, ends every training."""
        with ThreadPoolExecutor(self.plan.config.workers) as threads:
            futures = [threads.submit(task) for task in work]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                # without a fault all are done; at a fault nobody waits for those that still run
                return [future.result() for future in futures if future.done()]
            except BaseException as error:
                self.stop.set()
                threads.shutdown(cancel_futures=True)
                fault: BaseException = error.args[0] if isinstance(error, NotWritten) else error
                raise fault from None


def _refuse(excess: Mapping[str, float], when: str) -> None:
    if not feasible(excess):
        above = ", ".join(f"{name} {value:.3g} above its limit" for name, value in excess.items() if value > 0)
        raise TrialPruned(f"{INFEASIBLE} {when}: {above}")


def is_its_own(error: BaseException) -> bool:
    """An end of a training that follows from its values, after which the study goes on; a full disk is none."""
    return isinstance(error, BadInput | TrainingCrashed | NotMeasured) and disk_refusal(error) is None


def reason_of(error: BaseException) -> str:
    """One line; of a traceback its first and its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}")[:REASON_CHARACTERS]

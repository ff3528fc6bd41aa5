"""`sweep`: trials of an Optuna study side by side; the best again on fresh seeds; the winner as a config."""

import shutil
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.loading import to_data, to_yaml
from pipeline.config.sweep import Sweep
from pipeline.errors import BadInput, say
from pipeline.executors.local import LocalProcesses, News
from pipeline.learning.callbacks import select_figure
from pipeline.learning.divergence import Diverged
from pipeline.learning.jobs import TrainingEvent, TrainingResult
from pipeline.names import EVAL_PREFIX, SWEEP_FRESH, Artifact, Metric, Tag
from pipeline.play.evaluation import point_figures
from pipeline.report.sweep import SweepReport, kind, sweep_markdown, sweep_pictures
from pipeline.stages import StageOutcome
from pipeline.sweep.objectives import (
    Contender,
    Evaluation,
    FreshResult,
    Measured,
    NotMeasured,
    Worth,
    check_measurable,
    feasible,
    maximised,
    running_value,
    snqi_formula,
    violations,
    winner,
    worst,
    worth,
)
from pipeline.sweep.study import OpenTrial, SweepStudy, TakenOver, TrialRecord, ranking
from pipeline.sweep.trials import TrialPlan, fresh_job, reported_step, trial_config, trial_job, trial_plan
from pipeline.tracking.content_key import digest_of
from pipeline.tracking.forwarder import Forwarder, forwarding
from pipeline.tracking.runs import StageRun
from pipeline.tracking.store import exclusive
from pipeline.tracking.training import SeedRuns, evaluations_record
from pipeline.tracking.trials import TrialRun, close_lost, refuse_tracking_store

UPSTREAM = ()
LOOK_SECONDS = 1.0  # between looks at what other processes do
REASON_CHARACTERS = 300


def run(run: StageRun, config: Sweep, upstream: Mapping[str, str]) -> StageOutcome:
    refuse_tracking_store(config.storage)
    judge = Judge.of(config)
    run.record_config(config, judge.plan.task, {"base": digest_of(to_data(judge.plan.base))})
    run.tag({Tag.STUDY: config.study_name})
    with exclusive("sweep"):
        study = SweepStudy(config, judge.plan.shared_settings(config), judge.maximise)
    with forwarding(run) as forwarder:
        Trials(run, forwarder, judge, study).run()
        with exclusive(f"sweep-{config.study_name}"):  # one process trains again, the others find its results
            best = ranking(study.records(), judge.maximise)[: config.best_k]
            contenders = FreshTrainings(run, forwarder, judge, study, best).run() if best else ()
    report = SweepReport(
        study=config.study_name,
        objective=config.objective,
        maximise=judge.maximise,
        constraints=config.constraints,
        budget=judge.plan.base.training.total_timesteps,
        trials=study.records(),
        contenders=contenders,
        winner=winner(contenders, judge.maximise),
    )
    _log(run, judge, study, report)
    return StageOutcome(report.lines(), verdict=report.winner is not None)


def _log(run: StageRun, judge: "Judge", study: SweepStudy, report: SweepReport) -> None:
    pictures, missing = sweep_pictures(report, study.optuna_study)
    folder = run.folder / Artifact.SWEEP
    folder.mkdir()
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    run.file(folder, Artifact.SWEEP)
    absent = "".join(f"\nNot drawn: {reason}\n" for reason in missing)
    run.text(sweep_markdown(report) + absent, Artifact.SWEEP_MD)
    run.json(report.to_json(), Artifact.SWEEP_JSON)
    run.metrics({f"sweep/{name}": count for name, count in report.counts().items()})
    run.metrics({Metric.ENVIRONMENT_STEPS: sum(trial.notes.get("steps", 0) for trial in report.trials)})
    if report.winner is not None and report.winner.trial is not None:
        values = next(trial.values for trial in report.trials if trial.number == report.winner.trial)
        header = "".join(f"# {line.strip()}\n" for line in report.lines())
        run.text(header + to_yaml(trial_config(judge.plan, values)), Artifact.BEST_CONFIG)
        run.tag({Tag.TRIAL: report.winner.trial})
        figures = {"sweep": report.winner.sweep_value, "fresh": report.winner.fresh_value, "gain": report.gain}
        run.metrics({f"{Metric.OBJECTIVE}/{name}": v for name, v in figures.items() if v is not None})


# --- from evaluations to numbers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedEnd:
    """What one training of a trial came to."""

    result: TrainingResult
    worth: Worth
    excess: Mapping[str, float]
    figures: Mapping[str, float]


class Judge:
    """Turns trainings into values by the objective and the constraints of a sweep."""

    def __init__(self, config: Sweep, plan: TrialPlan) -> None:
        self.config, self.plan = config, plan
        self.maximise = maximised(config.objective, plan.task)
        self._formula = snqi_formula(plan.task)

    @classmethod
    def of(cls, config: Sweep) -> "Judge":
        """Everything about a sweep is checked here, before its first trial. Raises BadInput."""
        plan = trial_plan(config)
        check_measurable(config.objective, config.constraints, plan.base.best_metric, plan.task)
        return cls(config, plan)

    @property
    def budget(self) -> int:
        return self.plan.base.training.total_timesteps

    def end(self, result: TrainingResult) -> SeedEnd:
        """Raises NotMeasured."""
        curve = tuple(Evaluation(p.timestep, point_figures(p.records)) for p in result.evaluations)
        figures = point_figures(result.final)
        value = worth(
            self.config.objective, Measured(curve, figures, result.final.metrics), self._formula, self.maximise
        )
        return SeedEnd(result, value, violations(self.config.constraints, figures), figures)

    def running(self, done: Sequence[SeedEnd], curve: Sequence[Evaluation]) -> float:
        """Mean over the seeds so far, the one in training included. Raises NotMeasured."""
        values = [end.worth.value for end in done]
        if curve:
            values.append(running_value(self.config.objective, curve, self.maximise))
        return sum(values) / len(values)

    def running_excess(self, curve: Sequence[Evaluation]) -> dict[str, float]:
        """Excess of the best checkpoint so far. Raises NotMeasured."""
        best = max(curve, key=lambda p: select_figure(p.figures, self.plan.base.best_metric, self.plan.task))
        return violations(self.config.constraints, best.figures)


def figures_of(event: TrainingEvent) -> dict[str, float]:
    """The figures of an evaluation that a training announced; empty for other news."""
    return {
        name.removeprefix(EVAL_PREFIX): value
        for name, value in event.metrics.items()
        if name.startswith(EVAL_PREFIX) and not name.endswith(("_ci_low", "_ci_high"))
    }


def reason_of(error: Exception) -> str:
    """One line; of a traceback its first and its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"
    return text[:REASON_CHARACTERS]


# --- trials ----------------------------------------------------------------------------------------------------------


@dataclass
class RunningTrial:
    """A trial in training: its seeds one after the other."""

    opened: OpenTrial
    log: TrialRun
    started: float  # seconds
    done: list[SeedEnd] = field(default_factory=list)
    curve: list[Evaluation] = field(default_factory=list)  # of the seed in training
    timestep: int = 0
    reported: int = 0


class Trials:
    """Starts trials while there are any, and ends each with a value, a reason to prune it or a reason why it failed."""

    def __init__(self, run: StageRun, forwarder: Forwarder, judge: Judge, study: SweepStudy) -> None:
        self._run, self._forwarder = run, forwarder
        self._judge, self._study, self._config = judge, study, judge.config
        self._running: dict[Hashable, RunningTrial] = {}
        self._look_again = 0.0

    def run(self) -> None:
        """Return when every trial of the study has ended, here or elsewhere."""
        with closing(LocalProcesses(self._config.workers)) as pool:
            try:
                while self._start_trials(pool) or len(pool) or self._study.running_elsewhere():
                    for key, news in pool.wait(LOOK_SECONDS):
                        self._take(pool, self._running[key], news)
            except BaseException:
                self._study.give_back()
                for trial in list(self._running.values()):
                    self._close(trial, "lost", {}, "interrupted; the trial is started again under another number")
                raise

    def _start_trials(self, pool: LocalProcesses) -> bool:
        """Fill the free workers; True when there may be more to start."""
        if time.monotonic() < self._look_again:
            return len(pool) > 0
        for lost in self._study.beat():
            self._say(f"trial {lost.number} was left by a process that died; it is started again")
            close_lost(self._run.client, lost.notes.get("run_id"), "its process died; the trial was started again")
        while len(pool) < self._config.workers:
            with exclusive("sweep"):
                opened = self._study.next()
            if opened is None:
                self._look_again = time.monotonic() + LOOK_SECONDS
                return False
            self._start(pool, opened)
        self._look_again = time.monotonic() + LOOK_SECONDS
        return True

    def _start(self, pool: LocalProcesses, opened: OpenTrial) -> None:
        plan = self._judge.plan
        study = self._config.study_name
        log = TrialRun.start(
            self._run, self._forwarder, plan.task.name, study, opened.number, opened.values, plan.seeds
        )
        self._study.note(opened, {"run_id": log.run.run_id})
        trial = RunningTrial(opened, log, time.monotonic())
        self._running[opened.number] = trial
        self._train(pool, trial)

    def _train(self, pool: LocalProcesses, trial: RunningTrial) -> None:
        seed = self._judge.plan.seeds[len(trial.done)]
        try:
            job = trial_job(self._judge.plan, trial.opened.values, seed, self._folder(trial))
        except BadInput as error:
            self._fail(trial, reason_of(error))
        else:
            pool.submit(trial.opened.number, job)

    def _folder(self, trial: RunningTrial) -> Path:
        return self._run.folder / f"trial-{trial.opened.number}"

    def _take(self, pool: LocalProcesses, trial: RunningTrial, news: News) -> None:
        try:
            try:
                self._follow(pool, trial, news)
            except NotMeasured as error:
                self._stop(pool, trial)
                self._fail(trial, str(error))
        except TakenOver as error:
            self._stop(pool, trial)
            self._close(trial, "lost", {}, str(error))

    def _follow(self, pool: LocalProcesses, trial: RunningTrial, news: News) -> None:
        if isinstance(news, TrainingEvent):
            reason = self._hear(trial, news)
            if reason is not None:
                self._stop(pool, trial)
                self._prune(trial, reason)
        elif isinstance(news, TrainingResult):
            self._seed_done(pool, trial, self._judge.end(news))
        elif isinstance(news, Diverged):  # known to be bad: unlike one that failed, samplers learn from it
            self._prune(trial, reason_of(news))
        else:
            self._fail(trial, reason_of(news))

    def _stop(self, pool: LocalProcesses, trial: RunningTrial) -> None:
        pool.cancel(trial.opened.number)

    def _hear(self, trial: RunningTrial, event: TrainingEvent) -> str | None:
        """Log what a training says; a reason when the trial should end here."""
        seeds = self._judge.plan.seeds
        trial.log.on_event(seeds[len(trial.done)], event)
        trial.timestep = max(trial.timestep, event.timestep)
        figures = figures_of(event)
        if not figures:
            return None
        trial.curve.append(Evaluation(event.timestep, figures))
        if event.timestep >= self._judge.budget:
            return None  # it is over anyway
        return self._unsafe(trial, event.timestep) or self._hopeless(trial, event.timestep)

    def _unsafe(self, trial: RunningTrial, timestep: int) -> str | None:
        if self._config.constraint_handling != "prune":
            return None
        if timestep < self._config.constraint_prune_from * self._judge.budget:
            return None
        excess = self._judge.running_excess(trial.curve)
        return None if feasible(excess) else f"infeasible at step {timestep:,}: {_excess_text(excess)}"

    def _hopeless(self, trial: RunningTrial, timestep: int) -> str | None:
        if self._config.pruner.name in ("none", "wilcoxon"):
            return None
        step = len(trial.done) * self._judge.budget + reported_step(self._judge.plan, timestep)
        if timestep == 0 or step <= trial.reported:
            return None
        trial.reported = step
        value = self._judge.running(trial.done, trial.curve)
        pruned = self._study.report(trial.opened, step, value)
        return f"pruner {self._config.pruner.name} at step {timestep:,}: {value:.4g}" if pruned else None

    def _seed_done(self, pool: LocalProcesses, trial: RunningTrial, end: SeedEnd) -> None:
        trial.done.append(end)
        trial.curve, trial.timestep = [], 0
        excess = worst([done.excess for done in trial.done])
        if self._config.constraint_handling == "prune" and not feasible(excess):
            return self._prune(trial, f"infeasible at its end: {_excess_text(excess)}")
        if self._config.pruner.name == "wilcoxon":
            pruned = self._study.report(trial.opened, len(trial.done), end.worth.value)
            if pruned and len(trial.done) < len(self._judge.plan.seeds):
                return self._prune(trial, f"pruner wilcoxon after {len(trial.done)} seeds")
        if len(trial.done) < len(self._judge.plan.seeds):
            return self._train(pool, trial)
        value = self._judge.running(trial.done, [])
        self._study.complete(trial.opened, value, excess, self._notes(trial))
        return self._close(trial, "complete", {Metric.OBJECTIVE: value}, None, excess)

    def _prune(self, trial: RunningTrial, reason: str) -> None:
        excess = worst(
            [*(end.excess for end in trial.done), *([self._judge.running_excess(trial.curve)] if trial.curve else [])]
        )
        self._study.prune(trial.opened, reason, excess, self._notes(trial))
        self._close(trial, "pruned", {}, reason, excess)

    def _fail(self, trial: RunningTrial, reason: str) -> None:
        self._study.fail(trial.opened, reason, self._notes(trial))
        self._close(trial, "failed", {}, reason)

    def _notes(self, trial: RunningTrial) -> dict[str, Any]:
        ends = trial.done
        names = ends[0].figures if ends else {}
        return {
            "run_id": trial.log.run.run_id,
            "steps": sum(end.result.environment_steps for end in ends) + trial.timestep,
            "seconds": round(time.monotonic() - trial.started, 3),
            "training_seconds": round(sum(end.result.wall_seconds.total for end in ends), 3),
            "figures": {name: sum(end.figures[name] for end in ends) / len(ends) for name in names},
            "source": ends[0].worth.source if ends else None,
        }

    def _close(
        self,
        trial: RunningTrial,
        state: str,
        metrics: Mapping[str, float],
        reason: str | None,
        excess: Mapping[str, float] | None = None,
    ) -> None:
        notes = self._notes(trial)
        final = {f"final/{name}": value for name, value in notes["figures"].items()}
        bill = {Metric.ENVIRONMENT_STEPS: notes["steps"], Metric.WALL_SECONDS: notes["seconds"]}
        tags: dict[str, Any] = {Tag.OBJECTIVE_SOURCE: notes["source"]}
        if excess is not None:
            tags[Tag.TRIAL_FEASIBLE] = feasible(excess)
            tags[Tag.TRIAL_VIOLATION] = max(excess.values(), default=0.0)
        records = [evaluations_record(end.result) for end in trial.done]
        if trial.curve:
            unfinished = [{"timestep": e.timestep, "figures": dict(e.figures)} for e in trial.curve]
            records.append({"seed": self._judge.plan.seeds[len(trial.done)], "evaluations": unfinished})
        trial.log.finish(state, {**metrics, **final, **bill}, tags, records, reason)
        self._running.pop(trial.opened.number, None)
        shutil.rmtree(self._folder(trial), ignore_errors=True)
        self._look_again = 0.0
        if state != "lost":
            self._say(self._line(trial.opened.number))

    def _line(self, number: int) -> str:
        """`trial 7: 0.91 feasible; 8 of 20 done, best 0.93 (trial 3)`."""
        records = self._study.records()
        mine = records[number]
        value = "" if mine.value is None else f"{mine.value:.4g} "
        done = sum(record.state in ("complete", "pruned", "failed") for record in records)
        best = ranking(records, self._judge.maximise)
        leader = f", best {best[0].value:.4g} (trial {best[0].number})" if best else ", none feasible so far"
        why = f" ({mine.reason})" if mine.reason else ""
        return f"trial {number}: {value}{kind(mine)}{why}; {done} of {self._config.trials} done{leader}"

    def _say(self, line: str) -> None:
        say(f"sweep: {line}", sys.stderr)


def _excess_text(excess: Mapping[str, float]) -> str:
    return ", ".join(f"{figure} {value:.3g} above its limit" for figure, value in excess.items() if value > 0)


# --- the best again, on fresh seeds ----------------------------------------------------------------------------------


class FreshTrainings:
    """Trains the best trials and the default on fresh seeds; what an earlier process finished is not trained again."""

    def __init__(
        self, run: StageRun, forwarder: Forwarder, judge: Judge, study: SweepStudy, best: Sequence[TrialRecord]
    ) -> None:
        self._run, self._forwarder, self._judge, self._study = run, forwarder, judge, study
        self._values: dict[int | None, Mapping[str, Any]] = {**{t.number: t.values for t in best}, None: {}}
        self._best = best
        self._logs: dict[Hashable, SeedRuns] = {}

    def run(self) -> tuple[Contender, ...]:
        waiting = [(t, s) for t in self._values for s in self._judge.plan.fresh_seeds if self._known(t, s) is None]
        with closing(LocalProcesses(self._judge.config.workers)) as pool:
            try:
                while waiting or len(pool):
                    while waiting and len(pool) < self._judge.config.workers:
                        self._start(pool, *waiting.pop(0))
                    for key, news in pool.wait():
                        self._take(key, news)
            except BaseException as error:
                for log in self._logs.values():
                    log.end("FAILED", f"not finished: {type(error).__name__}")
                raise
        sweep_values = {trial.number: trial.value for trial in self._best}
        return tuple(
            Contender(t, None if t is None else sweep_values[t], tuple(self._result(t, s) for s in self._seeds()))
            for t in self._values
        )

    def _seeds(self) -> tuple[int, ...]:
        return self._judge.plan.fresh_seeds

    def _start(self, pool: LocalProcesses, trial: int | None, seed: int) -> None:
        folder = self._run.folder / f"fresh-{trial}-{seed}"
        try:
            job = fresh_job(self._judge.plan, self._values[trial], seed, folder)
        except BadInput as error:
            self._remember(trial, seed, reason=reason_of(error))
            return
        name = "default" if trial is None else trial
        tags = {Tag.STAGE: SWEEP_FRESH, Tag.STUDY: self._judge.config.study_name, Tag.TRIAL: name}
        self._logs[trial, seed] = SeedRuns(self._run, self._forwarder, [job], [tags])
        pool.submit((trial, seed), job)

    def _take(self, key: Any, news: News) -> None:
        log = self._logs[key]
        if isinstance(news, TrainingEvent):
            log.on_event(0, news)
        elif isinstance(news, TrainingResult):
            log.finish(0, news)
            try:
                end = self._judge.end(news)
                self._remember(*key, value=end.worth.value, excess=dict(end.excess), figures=dict(end.figures))
            except NotMeasured as error:
                self._remember(*key, reason=str(error))
        else:
            log.end("FAILED", reason_of(news))
            self._remember(*key, reason=reason_of(news))

    def _remember(self, trial: int | None, seed: int, **content: Any) -> None:
        self._study.remember(f"fresh:{trial}:{seed}", content)
        name = "default" if trial is None else f"trial {trial}"
        value = content.get("reason") or f"{content['value']:.4g}"
        say(f"sweep: {name} again on seed {seed}: {value}", sys.stderr)

    def _known(self, trial: int | None, seed: int) -> dict[str, Any] | None:
        return self._study.remembered(f"fresh:{trial}:{seed}")

    def _result(self, trial: int | None, seed: int) -> FreshResult:
        known = self._known(trial, seed) or {"reason": "not trained"}
        return FreshResult(
            seed, known.get("value"), known.get("excess", {}), known.get("figures", {}), known.get("reason")
        )

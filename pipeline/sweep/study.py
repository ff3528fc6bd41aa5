"""The Optuna study of a sweep: which trial is next, what became of each, and what survives a kill.

    study = SweepStudy(config, settings={...}, maximise=True)
    while study.remaining():
        study.run_trial(train)  # train(trial, {"training.n_envs": 8}) -> value; may raise TrialPruned or TrialFailed

Threads and processes may hold the same study. Nothing here trains, and nothing here knows where runs are kept.
"""

import inspect
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pipeline.config.loading import flatten
from pipeline.config.sweep import Pruner, Sampler, SearchSpace, Sweep
from pipeline.config.task import UNDECISIVE
from pipeline.errors import BadInput, did_you_mean, shortened
from pipeline.files import sqlite_file
from pipeline.sweep.objectives import feasible

warnings.filterwarnings("ignore", category=ExperimentalWarning)  # heartbeats, GP, Hyperband, Wilcoxon

BY_NAME: Final[Mapping[str, type]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}
MOST_ATTEMPTS: Final = 3  # of a trial whose process dies
INFEASIBLE: Final = "infeasible"  # begins the reason of a trial that a constraint ended
BEATS: Final = 6  # signs of life in the time after which a silent trial is taken over

# user attributes of trials, for people and queries
FEASIBLE, VIOLATION, EXCESS, REASON, VALUES, NOTES = "feasible", "violation", "excess", "reason", "values", "notes"
OWNER: Final = "owner"  # the process that trains it
SETTINGS: Final = "settings"  # of the study
# of these, dotted keys that every machine may have its own way; where the task file lies is none of the study's matter
UNSHARED: Final = ("base.task.", "base.workers.", *(f"task.{name}." for name in UNDECISIVE))

Train = Callable[[optuna.Trial, Mapping[str, Any]], float]


class TrialFailed(Exception):
    """A trial came to no value; the reason is on record, and the study goes on."""


@dataclass(frozen=True)
class TrialRecord:
    """What the study knows of a trial."""

    number: int
    state: str  # complete, pruned, failed, running, waiting; lost: interrupted, and started again under another number
    values: Mapping[str, Any]  # dotted config key -> value
    value: float | None  # of the objective; of a pruned trial the last one reported
    excess: Mapping[str, float]  # constraint -> excess over its limit
    feasible: bool | None  # None: not known
    reason: str | None  # why it failed or was pruned
    notes: Mapping[str, Any]  # what the caller kept: run id, steps, seconds

    @property
    def violation(self) -> float | None:
        """The largest excess over a constraint; 0 or less is feasible."""
        return max(self.excess.values(), default=None)

    @property
    def kind(self) -> str:
        """Its state, but for a complete one feasible or infeasible; infeasible, too, one that was pruned for that."""
        if self.state == "pruned" and (self.reason or "").startswith(INFEASIBLE):
            return INFEASIBLE
        return self.state if self.state != "complete" else "feasible" if self.feasible else INFEASIBLE


class SweepStudy:
    """The study, made when it is new. `settings` are what every process and every continuation must agree on.

    Raises BadInput for a storage that cannot be used, or a study of that name with other settings.
    """

    def __init__(self, config: Sweep, settings: Mapping[str, Any], maximise: bool) -> None:
        self._config, pruner = config, made(config.pruner)
        made(config.sampler)  # whose arguments are wrong is said now, each trial has one of its own
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.study = optuna.create_study(
                storage=storage(config.storage, config.stale_after_seconds),
                study_name=config.study_name,
                direction="maximize" if maximise else "minimize",
                pruner=pruner,
                load_if_exists=True,
            )
            stored = self.study.user_attrs.get(SETTINGS)
            if stored is None and not self.study.get_trials(deepcopy=False):
                stored = dict(settings)
                self.study.set_user_attr(SETTINGS, stored)
        except (SQLAlchemyError, OptunaError, ImportError, OSError, sqlite3.Error) as error:
            raise BadInput(
                f"storage {shortened(config.storage)} cannot be used: {shortened(str(error), 200)}; give an SQLAlchemy "
                "URL such as sqlite:///sweep.db, and install the driver it names"
            ) from None
        fault = None
        if stored is None:
            fault = "was not made by a sweep"
        elif (self.study.direction == StudyDirection.MAXIMIZE) != maximise:  # Optuna ignores what it is given
            fault = f"was made to {'minimise' if maximise else 'maximise'} {config.objective.figure}"
        else:
            before, here = _decisive(stored), _decisive(settings)
            different = [key for key in {**here, **before} if before.get(key) != here.get(key)]
            if different:
                was, now = (shortened(of.get(different[0], "absent")) for of in (before, here))
                fault = f"was made with another {different[0]}: {was}, now {now}"
        if fault is not None:
            raise BadInput(f"study {config.study_name!r} in {config.storage!r} {fault}; give another study_name")

    def records(self) -> tuple[TrialRecord, ...]:
        """Every trial, by number."""
        return tuple(_record(trial) for trial in self.study.get_trials(deepcopy=False))

    def remaining(self) -> int:
        """Trials that nobody has started yet."""
        started = [record for record in self.records() if record.state not in ("lost", "waiting")]
        return max(0, self._config.trials - len(started))

    def run_trial(
        self,
        train: Train,
        process: str = "",
        drawn: Callable[[], None] = lambda: None,
        ended: Callable[[TrialRecord], None] = lambda record: None,
    ) -> None:
        """Train the next trial: one that waits to be tried again, or a new one. `process` is the caller's.

        `drawn` is called once its values are in the study: callers take turns until then, because SQLite does not keep
        two from taking the same waiting trial. `ended` gets what became of it: it is `lost` when another process took
        it over, having heard nothing of this one for too long, and when `train` is interrupted or has a fault. Then it
        waits to be tried again, and what `train` raised is raised.
        """
        self.study.sampler = made(self._config.sampler, seed=self._next_seed())
        begun: list[int] = []
        taken = False
        fault: BaseException | None = None

        def objective(trial: optuna.Trial) -> float:
            nonlocal taken
            begun.append(trial.number)
            try:
                trial.set_user_attr(OWNER, process)
                values = suggest(trial, self._config.search_space)
                trial.set_user_attr(VALUES, values)
                drawn()
                return train(trial, values)
            except UpdateFinishedTrialError:
                taken = True
                raise

        try:
            self.study.optimize(objective, n_trials=1, catch=(TrialFailed,))
        except BaseException as error:
            fault = error
        trials = self.study.get_trials(deepcopy=False)
        record = _record(trials[begun[0]]) if begun else None
        if record is not None and taken:
            reason = "it was taken over by another process, which had heard nothing of this one"
            record, fault = replace(record, state="lost", reason=reason), None
        elif record is not None and record.state == "lost":
            record = replace(record, reason="interrupted; the trial is started again under another number")
            trial = trials[record.number]
            again = optuna.create_trial(
                state=TrialState.WAITING, params=trial.params, distributions=trial.distributions,
                user_attrs=trial.user_attrs, system_attrs=trial.system_attrs,
            )  # fmt: skip
            self.study.add_trial(again)  # with its history: an interruption is no attempt, however often it happens
        if record is not None and record.state not in ("running", "waiting"):
            ended(record)
        if fault is not None:
            raise fault

    def _next_seed(self) -> int:
        """The random numbers of a trial follow from the seed and its place in the study, and nothing else.

        A study that was killed and continued therefore draws what it would have drawn. Its place leaves those out that
        were lost before it; values that were given up on are not drawn again.
        """
        trials = self.study.get_trials(deepcopy=False)
        upcoming = next((trial for trial in trials if trial.state == TrialState.WAITING), None)
        number = len(trials) if upcoming is None else upcoming.number
        lost = [trial for trial in trials if _record(trial).state == "lost"]
        place = number - sum(trial.number < number for trial in lost)
        given_up = sum(attempt(trial) >= MOST_ATTEMPTS for trial in lost)
        words = np.random.SeedSequence([self._config.seed, place, attempt(upcoming), given_up])
        return int(words.generate_state(1)[0])

    def release_dead(self, has_ended: Callable[[str], bool | None]) -> None:
        """Queue the trials of dead processes again.

        `has_ended` says so of a process of this machine, and None of any other: that one's heartbeat does.
        """
        optuna.storages.fail_stale_trials(self.study)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner, started = trial.user_attrs.get(OWNER), trial.datetime_start
            if not isinstance(owner, str):  # it died before it could say who it is, or was of an earlier version
                dead = not started or time.time() - started.timestamp() > self._config.stale_after_seconds
            else:
                dead = has_ended(owner) is True
            if dead:
                try:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                except (UpdateFinishedTrialError, ValueError):
                    continue  # somebody else just did
                retry(self.study, trial)


def _decisive(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> text of the settings that decide what a trial comes to."""
    flat = flatten(settings)
    return {key: text for key, text in flat.items() if not f"{key}.".startswith(UNSHARED)}


def storage(url: str, stale_after_seconds: float) -> optuna.storages.RDBStorage:
    """The storage behind a URL; a SQLite file is put into WAL mode, its folder made."""
    file, arguments = sqlite_file(url), {}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        arguments = {"connect_args": {"timeout": 60}}
    return optuna.storages.RDBStorage(
        url,
        engine_kwargs=arguments,
        heartbeat_interval=ceil(stale_after_seconds / BEATS),
        grace_period=ceil(stale_after_seconds),
        heartbeat_stale_trial_callback=retry,
    )


def retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the trial of a dead process with the same values. After the last attempt a fresh one takes the place.

    These values may be what kills the process.
    """
    if REASON not in trial.user_attrs:  # else it had come to its end
        optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=MOST_ATTEMPTS - 1)(study, trial)


def attempt(trial: FrozenTrial | None) -> int:
    """1, 2, 3: how many processes have been at it; None is a new one."""
    return 1 if trial is None else 1 + len(optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history(trial))


def ranking(records: Sequence[TrialRecord], maximise: bool) -> tuple[TrialRecord, ...]:
    """Complete and feasible trials, best first, ties by number: an infeasible one is never among them."""
    able = [r for r in records if r.state == "complete" and r.feasible and r.value is not None]
    sign = -1.0 if maximise else 1.0
    return tuple(sorted(able, key=lambda r: (sign * (r.value or 0.0), r.number)))


def conclude(trial: optuna.Trial, reason: str | None, excess: Mapping[str, float] | None) -> None:
    """Put on record how a trial ends: its excess over constraints, for Optuna too, and why it has no value."""
    if excess is not None:
        for figure, value in excess.items():
            trial.set_constraint(figure, value)
        trial.set_user_attr(EXCESS, dict(excess))
        trial.set_user_attr(FEASIBLE, feasible(excess))
        if excess:
            trial.set_user_attr(VIOLATION, max(excess.values()))
    if reason is not None:
        trial.set_user_attr(REASON, reason)


def suggest(trial: optuna.Trial, space: SearchSpace) -> dict[str, Any]:
    """Draw every parameter of a search space; nested ones with the choice that they depend on."""
    values: dict[str, Any] = {}
    for key, parameter in space.items():
        if parameter.type == "categorical":
            label = trial.suggest_categorical(key, parameter.labels())
            values[key] = parameter.choice(label)
            values.update(suggest(trial, parameter.when.get(label, {})))
            continue
        low, high = parameter.extremes()
        if parameter.type == "int":
            values[key] = trial.suggest_int(key, low, high, step=int(parameter.step or 1))
        else:
            values[key] = trial.suggest_float(key, low, high, step=parameter.step, log=parameter.type == "log")
    return values


def made(setting: Sampler | Pruner, **own: Any) -> Any:
    """Optuna's sampler or pruner with the arguments of the config and the sweep's own. Raises BadInput."""
    what, cls = f"{type(setting).__name__.lower()}.arguments of {setting.name!r}", BY_NAME[setting.name]
    allowed = sorted(set(inspect.signature(cls).parameters) - {"seed", "constraints_func"})  # the sweep's own
    for name in setting.arguments:
        if name not in allowed:
            raise BadInput(
                f"{what}: unknown argument {name!r}.{did_you_mean(name, allowed)} "
                f"Allowed: {', '.join(allowed) or 'none'}"
            )
    try:
        return cls(**setting.arguments, **own)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{what}: {error}") from None


def _record(trial: FrozenTrial) -> TrialRecord:
    kept, state = trial.user_attrs, trial.state.name.lower()
    if trial.state == TrialState.FAIL:  # what failed by itself has a reason on record
        state = "failed" if REASON in kept else "lost"
    return TrialRecord(
        number=trial.number,
        state=state,
        values=kept.get(VALUES, {}),
        value=trial.values[0] if trial.values else None,
        excess=kept.get(EXCESS, {}),
        feasible=kept.get(FEASIBLE),
        reason=kept.get(REASON),
        notes=kept.get(NOTES, {}),
    )

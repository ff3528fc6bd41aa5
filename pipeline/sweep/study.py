"""The Optuna study of a sweep: which trial is next, what became of each, and what survives a kill.

    study = SweepStudy(config, settings={...}, maximise=True)
    while (trial := study.next()) is not None:
        if study.report(trial, step=10_000, value=0.4): study.prune(trial, ...)
        else: study.complete(trial, value=0.9, excess={"collision_rate": -0.01}, notes={...})

Several processes may hold the same study. Nothing here trains, and nothing here knows where runs are kept.
"""

import inspect
import os
import socket
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, Literal

import numpy as np
import optuna
import psutil
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pipeline.config.sweep import Parameter, Pruner, Sampler, SearchSpace, Sweep
from pipeline.errors import BadInput, did_you_mean, shortened
from pipeline.files import sqlite_file

SAMPLERS: Final = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.TPESampler,  # which never leaves its random start-up, see `sampler_maker`
    "gp": optuna.samplers.GPSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
}
PRUNERS: Final = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}
OWNED: Final = ("seed", "constraints_func")
MOST_ATTEMPTS: Final = 3  # of a trial whose process dies

# user attributes of trials, for people and queries
FEASIBLE: Final = "feasible"
VIOLATION: Final = "violation"
# and for the sweep itself
EXCESS, REASON, VALUES, NOTES = "excess", "reason", "values", "notes"
OWNER, ALIVE, ATTEMPT, RETRY_OF = "owner", "alive", "attempt", "retry_of"
SETTINGS = "settings"  # of the study

State = Literal["complete", "pruned", "failed", "lost", "running", "waiting"]


class TakenOver(Exception):
    """Another process ended this trial, because this one gave no sign for too long."""


@dataclass(frozen=True)
class OpenTrial:
    """A trial that this process is to train."""

    number: int
    values: Mapping[str, Any]  # dotted config key -> value
    trial: optuna.Trial = field(repr=False)


@dataclass(frozen=True)
class TrialRecord:
    """What the study knows of a trial."""

    number: int
    state: State  # lost: its process died, and it was started again under another number
    values: Mapping[str, Any]
    value: float | None  # of the objective; of a pruned trial the last one reported
    excess: Mapping[str, float]  # constraint -> excess over its limit
    feasible: bool | None  # None: not known
    reason: str | None  # why it failed or was pruned
    notes: Mapping[str, Any]  # what the caller kept: run id, steps, seconds

    @property
    def violation(self) -> float | None:
        """The largest excess over a constraint; 0 or less is feasible."""
        return max(self.excess.values()) if self.excess else None


class SweepStudy:
    """The study, made when it is new. `settings` are what every process and every continuation must agree on.

    Raises BadInput for a storage that cannot be used, or a study of that name with other settings.
    """

    def __init__(self, config: Sweep, settings: Mapping[str, Any], maximise: bool) -> None:
        self._config = config
        self._open: dict[int, OpenTrial] = {}
        self._beaten = time.monotonic()
        make = sampler_maker(config.sampler)
        pruner = make_pruner(config.pruner)
        self._sampler = _SamplerOfTrial(make, config.seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(
                storage=_storage(config.storage),
                study_name=config.study_name,
                direction="maximize" if maximise else "minimize",
                sampler=self._sampler,
                pruner=pruner,
                load_if_exists=True,
            )
            self._agree(settings, maximise)
        except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, OSError, sqlite3.Error) as error:
            raise BadInput(
                f"storage {shortened(config.storage)} cannot be used: {shortened(str(error), 200)}; give an SQLAlchemy "
                "URL such as sqlite:///sweep.db, and install the driver it names"
            ) from None
        self._sampler.study = self._study

    def _agree(self, settings: Mapping[str, Any], maximise: bool) -> None:
        stored = self._study.user_attrs.get(SETTINGS)
        if stored is None:
            if self._study.get_trials(deepcopy=False):
                raise BadInput(
                    f"study {self._config.study_name!r} in {self._config.storage!r} was not made by a sweep; "
                    "give another study_name"
                )
            self._study.set_user_attr(SETTINGS, dict(settings))
            return
        made = self._study.direction == StudyDirection.MAXIMIZE  # Optuna keeps that of the study, whatever it is given
        if made != maximise:
            raise BadInput(
                f"study {self._config.study_name!r} in {self._config.storage!r} was made to "
                f"{'maximise' if made else 'minimise'} {self._config.objective.figure}; give another study_name"
            )
        different = [key for key in settings if stored.get(key) != settings[key]]
        if different:
            key = different[0]
            raise BadInput(
                f"study {self._config.study_name!r} in {self._config.storage!r} was made with another {key}: "
                f"{shortened(stored.get(key))}, now {shortened(settings[key])}; give another study_name"
            )

    @property
    def optuna_study(self) -> optuna.Study:
        return self._study

    # --- trials of this process --------------------------------------------------------------------------------------

    def remaining(self) -> int:
        """Trials that nobody has started yet."""
        counted = [r for r in self.records() if r.state not in ("lost", "waiting")]
        return max(0, self._config.trials - len(counted))

    def next(self) -> OpenTrial | None:
        """Start a trial, or None when all are started. Callers on one machine take turns by a lock."""
        if self.remaining() == 0:
            return None
        trial = self._study.ask()
        trial.set_user_attr(OWNER, _me())
        opened = OpenTrial(trial.number, _suggest(trial, self._config.search_space), trial)
        trial.set_user_attr(VALUES, dict(opened.values))
        trial.set_user_attr(ALIVE, time.time())
        self._open[trial.number] = opened
        return opened

    def report(self, opened: OpenTrial, step: int, value: float) -> bool:
        """Tell the pruner where a trial stands; True when it should end here. Raises TakenOver."""
        try:
            opened.trial.report(value, step)
            return bool(opened.trial.should_prune())
        except optuna.exceptions.UpdateFinishedTrialError:
            raise self._taken(opened) from None

    def complete(self, opened: OpenTrial, value: float, excess: Mapping[str, float], notes: Mapping[str, Any]) -> None:
        """End a trial with its value, which must be finite. Raises TakenOver."""
        assert isfinite(value)
        self._end(opened, TrialState.COMPLETE, {**_safety(excess), NOTES: dict(notes)}, value)

    def prune(self, opened: OpenTrial, reason: str, excess: Mapping[str, float], notes: Mapping[str, Any]) -> None:
        """End a trial before its time; Optuna keeps the last value reported. Raises TakenOver."""
        self._end(opened, TrialState.PRUNED, {**_safety(excess), REASON: reason, NOTES: dict(notes)})

    def fail(self, opened: OpenTrial, reason: str, notes: Mapping[str, Any]) -> None:
        """End a trial that has no value. Raises TakenOver."""
        self._end(opened, TrialState.FAIL, {REASON: reason, NOTES: dict(notes)})

    def note(self, opened: OpenTrial, notes: Mapping[str, Any]) -> None:
        """Keep what must survive a kill in the middle of the trial, such as its run id."""
        opened.trial.set_user_attr(NOTES, dict(notes))

    def give_back(self) -> None:
        """Let others have the trials that this process will not finish."""
        for number in list(self._open):
            self._release(self._study.get_trials(deepcopy=False)[number], died=False)
            self._open.pop(number, None)

    def _end(self, opened: OpenTrial, state: TrialState, attributes: Mapping[str, Any], value: Any = None) -> None:
        try:
            for key, content in attributes.items():
                opened.trial.set_user_attr(key, content)
            self._study.tell(opened.trial, value, state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            raise self._taken(opened) from None
        self._open.pop(opened.number, None)

    def _taken(self, opened: OpenTrial) -> TakenOver:
        self._open.pop(opened.number, None)
        return TakenOver(
            f"trial {opened.number} was taken over by another process, which had heard nothing of this one"
        )

    # --- trials of others --------------------------------------------------------------------------------------------

    def beat(self) -> list[TrialRecord]:
        """Give a sign of life now and then, and put the trials of dead processes back; returns those."""
        if time.monotonic() - self._beaten >= self._config.stale_after_seconds / 6:
            self._beaten = time.monotonic()
            for opened in list(self._open.values()):
                try:
                    opened.trial.set_user_attr(ALIVE, time.time())
                except optuna.exceptions.UpdateFinishedTrialError:
                    continue  # `report` or `complete` will say so
        return self.release_dead()

    def release_dead(self) -> list[TrialRecord]:
        """Queue the trials of dead processes again; returns what they were."""
        dead = [
            trial
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if trial.number not in self._open and self._is_dead(trial)
        ]
        return [_record(trial) for trial in dead if self._release(trial, died=True)]

    def running_elsewhere(self) -> list[int]:
        """Numbers of the trials that other processes are at."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial.number for trial in running if trial.number not in self._open]

    def _is_dead(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(OWNER)
        if owner is not None and owner["host"] == socket.gethostname():
            return not _lives(owner)
        started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        silent = time.time() - float(trial.user_attrs.get(ALIVE, started))
        return silent > self._config.stale_after_seconds

    def _release(self, trial: FrozenTrial, died: bool) -> bool:
        """End a trial as lost and queue it again, unless somebody else just did."""
        attempt = int(trial.user_attrs.get(ATTEMPT, 1))
        try:
            self._study.tell(trial.number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        attempt += died
        if attempt <= MOST_ATTEMPTS and REASON not in trial.user_attrs:
            # after the last attempt a fresh trial takes the place: these values may be what kills the process
            self._study.enqueue_trial(trial.params, {ATTEMPT: attempt, RETRY_OF: trial.number})
        return True

    # --- what is known -----------------------------------------------------------------------------------------------

    def records(self) -> tuple[TrialRecord, ...]:
        """Every trial, by number."""
        return tuple(_record(trial) for trial in self._study.get_trials(deepcopy=False))

    def remember(self, key: str, content: Mapping[str, Any]) -> None:
        """Keep something with the study, for whoever continues it."""
        self._study.set_user_attr(f"kept:{key}", dict(content))

    def remembered(self, key: str) -> dict[str, Any] | None:
        return self._study.user_attrs.get(f"kept:{key}")


def ranking(records: Sequence[TrialRecord], maximise: bool) -> tuple[TrialRecord, ...]:
    """Complete and feasible trials, best first, ties by number: an infeasible one is never among them."""
    able = [r for r in records if r.state == "complete" and r.feasible and r.value is not None]
    sign = -1.0 if maximise else 1.0
    return tuple(sorted(able, key=lambda r: (sign * (r.value or 0.0), r.number)))


def sampler_maker(setting: Sampler) -> Callable[[int], optuna.samplers.BaseSampler]:
    """Seed -> sampler, its arguments checked. Raises BadInput."""
    cls = SAMPLERS[setting.name]
    arguments = dict(setting.arguments)
    _check_arguments(f"sampler.arguments of {setting.name!r}", cls, arguments)
    if setting.name == "random":
        # Optuna's random sampler knows no constraints; TPE that never leaves its random start-up is one that does
        if arguments:
            raise BadInput(f"sampler 'random' takes no arguments, got {shortened(arguments)}; leave them out")
        arguments = {"n_startup_trials": 2**62}

    def make(seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Optuna 5 prefers Trial.set_constraint, which Optuna 4 does not have
            warnings.simplefilter("ignore", FutureWarning)
            try:
                return cls(**arguments, seed=seed, constraints_func=_constraints)
            except (TypeError, ValueError) as error:
                raise BadInput(f"sampler.arguments of {setting.name!r}: {error}") from None

    make(0)
    return make


def make_pruner(setting: Pruner) -> optuna.pruners.BasePruner:
    """The pruner, its arguments checked. Raises BadInput."""
    cls = PRUNERS[setting.name]
    _check_arguments(f"pruner.arguments of {setting.name!r}", cls, setting.arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            pruner: optuna.pruners.BasePruner = cls(**setting.arguments)
        except (TypeError, ValueError) as error:
            raise BadInput(f"pruner.arguments of {setting.name!r}: {error}") from None
    return pruner


def _check_arguments(what: str, cls: Any, arguments: Mapping[str, Any]) -> None:
    allowed = sorted(name for name in inspect.signature(cls).parameters if name not in OWNED)
    for name in arguments:
        if name not in allowed:
            raise BadInput(
                f"{what}: unknown argument {name!r}.{did_you_mean(name, allowed)} "
                f"Allowed: {', '.join(allowed) or 'none'}"
            )


class _SamplerOfTrial(optuna.samplers.BaseSampler):
    """A sampler whose random numbers follow from the seed and the trial's place alone.

    A study that was killed and continued therefore draws what it would have drawn, and two processes never draw alike.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)
        self.study: optuna.Study | None = None  # the whole one: some pruners show the sampler a part of it

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        trials = (self.study or study).get_trials(deepcopy=False)
        place = trial.number - sum(_is_lost(earlier) for earlier in trials if earlier.number < trial.number)
        given_up = sum(_is_lost(t) and int(t.user_attrs.get(ATTEMPT, 1)) >= MOST_ATTEMPTS for t in trials)
        words = np.random.SeedSequence([self._seed, place, int(trial.user_attrs.get(ATTEMPT, 1)), given_up])
        self._sampler = self._make(int(words.generate_state(1)[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


def _suggest(trial: optuna.Trial, space: SearchSpace) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, parameter in space.items():
        if parameter.type == "categorical":
            label = trial.suggest_categorical(key, parameter.labels())
            values[key] = parameter.choice(label)
            values.update(_suggest(trial, parameter.when.get(label, {})))
        else:
            values[key] = _number(trial, key, parameter)
    return values


def _number(trial: optuna.Trial, key: str, parameter: Parameter) -> float | int:
    assert parameter.low is not None and parameter.high is not None
    if parameter.type == "int":
        return trial.suggest_int(key, int(parameter.low), int(parameter.high), step=int(parameter.step or 1))
    return trial.suggest_float(key, parameter.low, parameter.high, step=parameter.step, log=parameter.type == "log")


def _constraints(trial: FrozenTrial) -> Sequence[float]:
    """For Optuna: 0 or less is feasible. A trial without constraints satisfies them."""
    return list(trial.user_attrs.get(EXCESS, {}).values()) or [0.0]


def _safety(excess: Mapping[str, float]) -> dict[str, Any]:
    return {
        EXCESS: dict(excess),
        FEASIBLE: all(value <= 0 for value in excess.values()),
        **({VIOLATION: max(excess.values())} if excess else {}),
    }


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    states: dict[TrialState, State] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "lost" if _is_lost(trial) else "failed",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }
    return TrialRecord(
        number=trial.number,
        state=states[trial.state],
        values=attributes.get(VALUES, {}),
        value=trial.values[0] if trial.values else None,
        excess=attributes.get(EXCESS, {}),
        feasible=attributes.get(FEASIBLE),
        reason=attributes.get(REASON),
        notes=attributes.get(NOTES, {}),
    )


def _is_lost(trial: FrozenTrial) -> bool:
    """A trial that failed by itself has a reason on record."""
    return trial.state == TrialState.FAIL and REASON not in trial.user_attrs


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _lives(owner: Mapping[str, Any]) -> bool:
    """Whether the process of this machine that `_me` described still runs."""
    try:
        process = psutil.Process(owner["pid"])
        return abs(process.create_time() - owner["started"]) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _storage(url: str) -> optuna.storages.RDBStorage:
    """The storage behind a URL; a SQLite file is put into WAL mode, its folder made."""
    file = sqlite_file(url)
    if file is None:
        return optuna.storages.RDBStorage(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})

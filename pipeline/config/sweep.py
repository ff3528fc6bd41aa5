"""`sweep`: what is searched, how trials are judged, and how many there are."""

import json
import re
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from pipeline.config.base import Count, Fraction, LibraryArguments, Name, Positive, Seed, Seeds, configuration
from pipeline.names import Metric

PLAIN: Final = re.compile(r"[\w.+-]+")


@configuration
class Parameter:
    """What one setting may be: `{type: log, low: 1.0e-4, high: 1.0e-2}`, `{type: categorical, choices: [64, 128]}`.

    `when` nests parameters that exist only with a choice: `when: {"true": {training.ppo.gamma: {...}}}`.
    """

    type: Literal["float", "log", "int", "categorical"]
    low: float | None = None
    high: float | None = None
    step: Positive | None = None
    """Grid of `float` and `int`; `log` has none."""
    choices: tuple[Any, ...] = ()
    when: "dict[str, dict[str, Parameter]]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high, labels = self.low, self.high, self.labels()
        if self.type == "categorical":
            if low is not None or high is not None or self.step is not None:
                raise ValueError("categorical takes choices, not low, high or step")
            if not labels:
                raise ValueError("categorical needs choices")
            if len(set(labels)) != len(labels):
                raise ValueError(f"choices must differ, got {labels}")
            for label in self.when:
                if label not in labels:
                    raise ValueError(f"when names {label!r}, which is none of the choices {labels}")
                if not PLAIN.fullmatch(label):
                    raise ValueError(f"when {label!r}: only for choices that are words, numbers, true or false")
            return
        if self.choices or self.when:
            raise ValueError(f"{self.type} takes low and high, not choices or when")
        if low is None or high is None:
            raise ValueError(f"{self.type} needs low and high")
        if low >= high:
            raise ValueError(f"low = {low:g} must be below high = {high:g}")
        if self.type == "log" and (low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0 and takes no step")
        if self.type == "int" and any(value != int(value) for value in (low, high, self.step or 1)):
            raise ValueError("int needs whole numbers")

    def labels(self) -> list[str]:
        """The choices as texts, which is how Optuna stores them: `[64, true, "tanh"]` -> `["64", "true", "tanh"]`."""
        return [choice if isinstance(choice, str) else json.dumps(choice) for choice in self.choices]

    def choice(self, label: str) -> Any:
        return self.choices[self.labels().index(label)]

    def extremes(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range: what is checked against the config before the first trial."""
        if self.type == "categorical":
            return self.choices
        assert self.low is not None and self.high is not None
        return (int(self.low), int(self.high)) if self.type == "int" else (self.low, self.high)

    def every(self) -> Sequence[Any]:
        """Every value of a choice or a whole number; the ends of any other range."""
        if self.type != "int":
            return self.extremes()
        low, high = self.extremes()
        return range(low, high + 1, int(self.step or 1))


SearchSpace = dict[str, Parameter]


@configuration
class Objective:
    """What a trial is worth: a function of its recorded evaluations (docs/sweeps.md)."""

    name: Literal["best_checkpoint", "final_eval", "last_n_mean", "auc", "episodic_snqi"] = "best_checkpoint"
    metric: str = Metric.EPISODE_RETURN
    """Figure of an evaluation; `episodic_snqi` has its own."""
    n: Count | None = None
    """Evaluations of `last_n_mean`."""
    direction: Literal["maximize", "minimize"] | None = None
    """None follows the metric: collision rate, comfort exposure and what is `lower_is_better` are minimised."""

    def __post_init__(self) -> None:
        if (self.n is not None) != (self.name == "last_n_mean"):
            raise ValueError("n is the number of evaluations of last_n_mean: it needs one, no other objective has it")
        if self.name == "episodic_snqi" and self.metric not in (Metric.EPISODE_RETURN, "snqi"):
            raise ValueError(f"episodic_snqi is the metric itself; leave metric = {self.metric!r} out")

    @property
    def figure(self) -> str:
        """Name of the figure in an evaluation."""
        if self.name == "episodic_snqi":
            return "snqi"
        return f"{Metric.RETURN}_mean" if self.metric == Metric.EPISODE_RETURN else self.metric


@configuration
class Sampler:
    """Optuna's sampler and its keyword arguments; seed and constraints are given by the sweep."""

    name: Literal["tpe", "random", "gp", "nsgaii"] = "tpe"
    arguments: LibraryArguments = field(default_factory=dict)


@configuration
class Pruner:
    """Optuna's pruner and its keyword arguments; its steps are environment steps (`wilcoxon`: seeds)."""

    name: Literal["none", "median", "percentile", "successive_halving", "hyperband", "wilcoxon"] = "median"
    arguments: LibraryArguments = field(default_factory=dict)


@configuration
class Sweep:
    """`sweep`: search training settings, then train the best again on fresh seeds."""

    base: str
    """A `train_expert` config: what every trial shares, and the default that the winner is compared with."""
    study_name: Name
    search_space: Annotated[SearchSpace, Field(min_length=1)]
    """Dotted key of the base config, below `training.` -> what it may be."""
    storage: str = "sqlite:///sweep.db"
    """Any SQLAlchemy URL without a password; several machines share a PostgreSQL one."""
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    seed: Seed = 0
    trials: Count = 20
    workers: Count = 2
    """Trainings side by side, one process and one thread each."""
    trial_timesteps: Count | None = None
    """Environment steps of every training, exactly; None takes those of the base config."""
    seeds_per_trial: Count = 1
    """The first so many seeds of the base config, one after the other."""
    objective: Objective = Objective()
    constraint_collision_rate_max: Fraction | None = None
    constraint_comfort_exposure_max: Fraction | None = None
    constraint_handling: Literal["penalize", "prune"] = "penalize"
    """`penalize` ranks an infeasible trial below every feasible one; `prune` also stops it."""
    constraint_prune_from: Fraction = 0.75
    """Share of a training's steps from which `prune` stops it when its best checkpoint so far is infeasible."""
    best_k: Count = 3
    """Trials that are trained again on `fresh_seeds`."""
    fresh_seeds: Seeds = (101, 102, 103)
    stale_after_seconds: Positive = 60.0
    """A trial of another machine that gave no sign for so long is taken over."""

    def __post_init__(self) -> None:
        if self.pruner.name == "wilcoxon" and self.seeds_per_trial < 2:
            raise ValueError("pruner wilcoxon compares seed by seed: set seeds_per_trial to 2 or more")
        if re.match(r"[^/]*//[^/:@]*:(?!\d{1,5}[/?#])[^@]*@", self.storage):  # what looks like a port is one
            raise ValueError(
                "storage holds a password, which would be stored with the run; leave it out of the URL "
                "(PostgreSQL reads PGPASSWORD or ~/.pgpass)"
            )

    @property
    def constraints(self) -> dict[str, float]:
        """Figure -> largest value that is feasible."""
        limits = {
            Metric.COLLISION_RATE: self.constraint_collision_rate_max,
            "comfort_exposure": self.constraint_comfort_exposure_max,
        }
        return {figure: limit for figure, limit in limits.items() if limit is not None}

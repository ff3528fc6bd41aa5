"""The runs of a comparison, matched by seed: when each met the target, their pairs, and the verdict on their ratio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from pipeline.config.base import Bound
from pipeline.names import Arm
from pipeline.statistics.efficiency import (
    SeedPair,
    TimeToTarget,
    matched_pair,
    never_met,
    paired_steps,
    timesteps_to_target,
)
from pipeline.statistics.estimate import Estimate

MINIMUM_PAIRS = 3  # below, an interval over seeds says nothing


class Verdict(StrEnum):
    """On timesteps to target: where the interval of the ratio lies against 1."""

    FASTER = "faster"
    NO_DIFFERENCE = "no difference found"
    SLOWER = "slower"
    UNDECIDED = "not decided"  # too few seeds, or no run of either arm met the target


@dataclass(frozen=True)
class RunData:
    """One training of one arm."""

    seed: int
    steps: np.ndarray  # (n,) int: environment steps of training at each evaluation, the first is 0
    figures: Mapping[str, np.ndarray]  # figure -> (n,) value of each evaluation
    final: Mapping[str, Mapping[str, np.ndarray]]  # scenario set -> figure -> (E,) fresh episodes, best checkpoint
    budget: int  # environment steps asked for
    evaluation_steps: int = 0  # environment steps of all its evaluations
    wall_seconds: float = np.nan
    gradient_steps: float = np.nan
    dataset: str = ""  # that its clone comes from
    best_step: int | None = None  # of the evaluation that chose the checkpoint which `final` is of; None: not known
    episodes: Mapping[str, np.ndarray] = field(default_factory=dict)  # figure -> (n, E) of each evaluation, where known


@dataclass(frozen=True)
class ComparisonSettings:
    """What counts as solved, and how it is compared."""

    target: Mapping[str, Bound]  # figure of an evaluation -> bound; all must hold
    patience: int  # consecutive evaluations
    evaluation_interval: int  # environment steps; what meeting the target at step 0 counts as
    ratio_target: float  # upper end of the ratio's interval that meets the target
    resamples: int
    seed: int  # of the resampling
    final_figure: str  # of `RunData.final` that decides about final performance
    training_set: str  # scenario set of the fine-tuning, first of the final evaluations
    minimised: tuple[str, ...] = ()  # figures of which less is better
    undirected: tuple[str, ...] = ()  # figures of which neither more nor less is
    primary: tuple[str, ...] = ()  # figures of the final evaluations that get a verdict; `final_figure` always does
    smallest_difference: Mapping[str, float] = field(default_factory=dict)  # figure -> what is too little to matter
    evaluation_episodes: int | None = None  # of one evaluation during training

    @property
    def resampling(self) -> dict[str, int]:
        """What a bootstrap over seeds is drawn with."""
        return {"seed": self.seed, "resamples": self.resamples}


def met_target(figures: Mapping[str, np.ndarray], target: Mapping[str, Bound]) -> np.ndarray:
    """(..., n) bool of figures (..., n): which evaluations meet every bound of the target; one with NaN does not."""
    held = [
        (figures[figure] >= (-np.inf if bound.min is None else bound.min))
        & (figures[figure] <= (np.inf if bound.max is None else bound.max))
        for figure, bound in target.items()
    ]
    return np.all(held, axis=0)


def time_of(run: RunData, settings: ComparisonSettings) -> TimeToTarget:
    """When the run met the target."""
    return timesteps_to_target(run.steps, met_target(run.figures, settings.target), settings.patience)


def pairs_of(runs: Mapping[str, Sequence[RunData]], settings: ComparisonSettings) -> tuple[SeedPair, ...]:
    """`scratch` and `pretrained` seed by seed; both are in the order of their seeds, which are the same."""
    both = zip(runs[Arm.SCRATCH], runs[Arm.PRETRAINED], strict=True)
    return tuple(matched_pair(o.seed, time_of(o, settings), time_of(t, settings), t.dataset) for o, t in both)


def independent(pairs: Sequence[SeedPair]) -> int:
    """What an interval is over: the number of datasets where there are several, else of seeds."""
    return len(paired_steps(pairs)[0])


def decide(ratio: Estimate, pairs: Sequence[SeedPair], ratio_target: float) -> tuple[Verdict, bool]:
    """Verdict, and whether the target is met, from the interval of the ratio. Too few pairs decide nothing.

    Faster: the interval lies below 1. Target met: its upper end is at most `ratio_target`, exactly at it included.
    """
    if independent(pairs) < MINIMUM_PAIRS or never_met(pairs):
        return Verdict.UNDECIDED, False
    target_met = ratio.high <= ratio_target
    if ratio.high < 1:
        return Verdict.FASTER, target_met
    return (Verdict.SLOWER if ratio.low > 1 else Verdict.NO_DIFFERENCE), target_met

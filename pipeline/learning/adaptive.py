"""What an adaptive warm start decides, from what it sees of its own training: small rules without a network in them.

What each of them is worth, and what else was tried: docs/ablation.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

EXPLAINED: Final = 0.5  # share of the variance of a rollout's returns that the critic knew before it learnt from them
LONGEST_BURN_IN: Final = 1 / 8  # of the budget
STD_OVER_ERROR: Final = 6.0
STD_RANGE: Final = (0.1, 1.0)  # the upper end is that of a training from scratch
PENALTY: Final = 1.0
LEAST_RATE: Final = 0.3  # of the learning rate of a training from scratch
LONGEST_WITHOUT_GAIN: Final = 1 / 8  # of the budget


@dataclass(frozen=True)
class Decision:
    """What was decided at a moment of a training, and why."""

    timestep: int  # environment steps so far
    setting: str  # of WarmStart
    value: float
    reason: str


def exploring_std(errors: Sequence[float]) -> list[float]:
    """Initial standard deviation per action dimension, from the clone's own: the spread of its labels around it.

    A clone that copies to 0.02 explores in 0.12, where 1 would throw it over; one that copies to 0.2 or worse as a
    training from scratch does. `[0.001, 0.02, 0.5]` -> `[0.1, 0.12, 1.0]`.
    """
    least, most = STD_RANGE
    return [min(max(STD_OVER_ERROR * error, least), most) for error in errors]


@dataclass
class BurnIn:
    """Over once the critic explains the returns of two rollouts in a row before it learns from them, or at its cap."""

    explained: list[float] = field(default_factory=list)  # shares of variance, a rollout each
    steps: int = 0  # that it took

    def ends(self, timestep: int, explained: float, budget: int) -> str | None:
        """Why the rollout that ended at `timestep` is not one of the burn-in any more; None: it is."""
        self.explained.append(explained)
        last = self.explained[-2:]
        if len(last) == 2 and all(share >= EXPLAINED for share in last):
            return f"the critic explained {last[0]:.2f} and {last[1]:.2f} of the variance of two rollouts' returns"
        if timestep > LONGEST_BURN_IN * budget:
            return f"an eighth of the budget is over; the critic explained {explained:.2f} of the variance of returns"
        return None


@dataclass
class Anchor:
    """The clone as what the policy is held to, while it is not better and as long as that may still help.

    The hold halves at every evaluation that beats the clone's own, and ends for good when a while brought none.
    """

    clone: float | None = None  # its figure in the evaluation at step 0; larger is better
    hold: float = 1.0
    since: int = 0  # the step of the last gain, or of the last evaluation before the policy learnt

    @property
    def penalty(self) -> float:
        """Weight of KL(clone || policy): `PENALTY` at first, 0 once the clone is left behind."""
        return PENALTY * self.hold

    @property
    def learning_rate_factor(self) -> float:
        """`LEAST_RATE` at first, 1 once the clone is left behind."""
        return 1 - (1 - LEAST_RATE) * self.hold

    def evaluated(self, timestep: int, figure: float, budget: int) -> str | None:
        """The reason why the hold changed after this evaluation; None: it did not."""
        if self.clone is None:
            self.clone = figure
        if self.hold == 0.0:
            return None
        if figure > self.clone:
            self.since, self.hold = timestep, self.hold / 2 if self.hold > 1 / 8 else 0.0
            return f"{figure:.4g} is better than the clone's {self.clone:.4g}"
        if timestep - self.since >= LONGEST_WITHOUT_GAIN * budget:
            self.hold = 0.0
            return f"no evaluation since step {self.since:,} was better than the clone's {self.clone:.4g}"
        return None

"""What an adaptive warm start decides, from what it sees of its own training: small rules without a network in them.

What each of them is worth, and what else was tried: docs/ablation.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Final

import numpy as np

EXPLAINED: Final = 0.5  # share of the variance of a rollout's returns that the critic knew before it learnt from them
LONGEST_BURN_IN: Final = 1  # rollouts
LONGEST_TRIAL: Final = 8  # rollouts
STD_OVER_OWN: Final = 6.0
LEAST_STD: Final = 0.1
PENALTY: Final = 1.0
LEAST_RATE: Final = 0.3  # of the learning rate of a training from scratch
HOLDS: Final = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0)
IN_VAIN: Final = 2  # evaluations


@dataclass(frozen=True)
class Decision:
    """What was decided at a moment of a training, and why."""

    timestep: int  # environment steps so far
    setting: str  # of WarmStart
    value: float
    reason: str


def wide_std(own: Sequence[float], most: float) -> list[float]:
    """Standard deviations that are tried first, an action dimension each; `own` are the clone's, its labels' spread.

    `most` is that of a training from scratch, 1.0 in what follows.

    A clone that copies to 0.02 tries 0.12, one that copies to 0.2 what a training from scratch explores in, one that
    copies to 0.5 or worse nothing wider: `[0.001, 0.02, 0.2, 0.6]` -> `[0.1, 0.12, 1.0, 0.6]`.
    """
    return [min(max((1 if std >= most / 2 else STD_OVER_OWN) * std, LEAST_STD), most) for std in own]


@dataclass
class Trial:
    """Is a wide exploration borne? The policy acts in it, and learns nothing, until every environment ended an episode.

    It is where it costs no more of the return than the clone's own episodes differ by.
    """

    own: list[float]  # the standard deviations to go back to, an action dimension each
    returns: list[float | None]  # of the first episode that each environment ended
    rollouts: int = 0

    def ended(self, environment: int, returned: float) -> None:
        """Take in an episode; those after the first tell of the short ones too often."""
        if self.returns[environment] is None:
            self.returns[environment] = returned

    def verdict(self, clone: Sequence[float]) -> tuple[bool, str] | None:
        """Borne or not, and why, after a rollout; None: not known yet. `clone`: returns of the clone without noise."""
        self.rollouts += 1
        ended = [value for value in self.returns if value is not None]
        if len(ended) < len(self.returns) and self.rollouts < LONGEST_TRIAL:
            return None
        if not ended:
            return False, f"no episode ended in {self.rollouts} rollouts"
        cost, spread = float(np.mean(clone) - np.mean(ended)), float(np.std(clone))
        says = f"it costs {cost:.4g} of the return, of which the clone's episodes differ by {spread:.4g}"
        return cost <= spread, f"{says}, in {len(ended)} episodes"


@dataclass
class BurnIn:
    """Over once the critic explains the returns of a rollout before it learns from them, or at its cap."""

    rollouts: int = 0
    steps: int = 0  # of the training when it was over
    begun: int = 0  # steps of the training when it began: anew after a trial that failed

    def ends(self, explained: float) -> str | None:
        """Why the rollout that was just played is not one of the burn-in any more; None: it is."""
        if explained >= EXPLAINED:
            return f"the critic explained {explained:.2f} of the variance of a rollout's returns"
        if self.rollouts == LONGEST_BURN_IN:
            return f"{LONGEST_BURN_IN} rollout is over; the critic explained {explained:.2f} of the variance of returns"
        self.rollouts += 1
        return None


@dataclass
class Anchor:
    """The clone as what the policy is held to, as far as it needs that in order not to do worse.

    The hold lets go by degrees while evaluations do not show the policy to be worse than the clone was, at once where
    one shows it to be better, and grows again where one shows it to be worse. Where that is so a second time under the
    whole of the hold, it is let go for good: what it is held to is not what it comes to, and keeps it from anything
    else. Shown is what is more than two standard errors of the difference in return, episode by episode.
    """

    clone: list[float] | None = None  # (E,) its returns in the evaluation at step 0
    hold: float = 1.0  # one of HOLDS
    in_vain: int = 0  # evaluations that showed it to be worse under the whole of the hold

    @property
    def penalty(self) -> float:
        """Weight of KL(clone || policy): `PENALTY` at first, 0 once the clone is left behind."""
        return PENALTY * self.hold

    @property
    def learning_rate_factor(self) -> float:
        """`LEAST_RATE` at first, 1 once the clone is left behind."""
        return 1 - (1 - LEAST_RATE) * self.hold

    def evaluated(self, returns: np.ndarray) -> str | None:
        """Take in an evaluation, (E,) returns of the same episodes every time; why the hold changed, None: it did not.

        The first is of the clone.
        """
        if self.clone is None:
            self.clone = returns.tolist()
            return None
        if self.in_vain == IN_VAIN:
            return None
        gains = returns - np.array(self.clone)
        gain, doubt = float(gains.mean()), 2 * float(gains.std(ddof=1)) / sqrt(len(gains)) if len(gains) > 1 else inf
        before, place = self.hold, HOLDS.index(self.hold)
        if gain < -doubt:
            self.in_vain += before == HOLDS[-1]
            self.hold, what = HOLDS[min(place + 1, len(HOLDS) - 1)], "worse than"
            if self.in_vain == IN_VAIN:
                self.hold, what = HOLDS[0], "in spite of all of the hold, which ends for good, worse than"
        elif gain > doubt:
            self.hold, what = HOLDS[0], "better than"
        else:
            self.hold, what = HOLDS[max(place - 1, 0)], "not shown to be worse than"
        if self.hold == before:
            return None
        return f"{what} the clone: its return differs by {gain:.4g}, twice the standard error is {doubt:.4g}"

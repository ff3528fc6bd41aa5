"""Did a clone learn anything: held against its untrained self, random play, the best constant action, its demonstrator.

    verdict = judge({"success": rollouts, "return": others}, Judgement())
    verdict.state, verdict.share, verdict.reasons

Whatever is claimed is claimed by an interval: of a difference between two rates by Newcombe 1998 (method 10, from
Wilson's intervals, which do not shrink to a point in small samples), of any other figure by Student's t, episode by
episode where both played the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import hypot, isfinite
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from pipeline.config.training import Judgement
from pipeline.names import Imitation
from pipeline.statistics.estimate import Estimate, wilson_interval


@dataclass(frozen=True)
class Rollouts:
    """A figure of which more is better, of k clones and their yardsticks in the same E episodes."""

    clones: np.ndarray  # (k, E) float64
    untrained: np.ndarray  # (k, E) the networks that they were before they learnt
    random_play: np.ndarray  # (k, E) the same, their actions drawn: PPO from scratch begins with that
    constant: np.ndarray  # (E,) the best constant action
    demonstrator: np.ndarray  # (E,) in the same episodes, or (N,) in the recorded ones; NaN where that is not known
    asked: bool = True  # did the demonstrator play the same episodes


@dataclass(frozen=True)
class ImitationVerdict:
    """What a clone, or several pooled, came to."""

    state: Literal["learnt", "partly", "failed"]
    figure: str  # that it was judged by
    clone: float  # means of the figure
    untrained: float
    random_play: float
    constant: float
    demonstrator: float
    gain: Estimate  # of the clone over the best of untrained policy, random play and constant action
    shortfall: Estimate  # of the clone behind the demonstrator
    share: float | None  # of the way from the constant action to the demonstrator; None: there is no way to go
    reasons: tuple[str, ...]

    def sentence(self) -> str:
        """`learnt by success: 0.96 (demonstrator 0.98, best constant action 0, random play 0, untrained policy 0)`."""
        demonstrator = f"{self.demonstrator:.4g}" if isfinite(self.demonstrator) else "not known"
        yardsticks = (
            f"demonstrator {demonstrator}, best constant action {self.constant:.4g}, "
            f"random play {self.random_play:.4g}, untrained policy {self.untrained:.4g}"
        )
        return f"{self.state} by {self.figure}: {self.clone:.4g} ({yardsticks}); {'; '.join(self.reasons)}"

    def metrics(self) -> dict[str, float]:
        """`imitation/...`, as metrics of a run."""
        measured = {
            "share": float("nan") if self.share is None else self.share,
            "clone": self.clone,
            "untrained": self.untrained,
            "random_play": self.random_play,
            "constant_action": self.constant,
            "demonstrator": self.demonstrator,
        }
        for name, estimate in (("gain", self.gain), ("shortfall", self.shortfall)):
            measured |= {name: estimate.value, f"{name}_ci_low": estimate.low, f"{name}_ci_high": estimate.high}
        return {f"imitation/{name}": value for name, value in measured.items() if isfinite(value)}

    def to_json(self) -> dict[str, Any]:
        """Plain data; the ends of an interval that nothing bounds are None."""
        data = asdict(self)
        for name in ("gain", "shortfall"):
            data[name] = {key: value if isfinite(value) else None for key, value in data[name].items()}
        known = self.demonstrator if isfinite(self.demonstrator) else None
        return {**data, "demonstrator": known, "reasons": list(self.reasons)}


def difference(ours: np.ndarray, theirs: np.ndarray, confidence: float, paired: bool = True) -> Estimate:
    """Mean of `ours` (k, E) minus mean of `theirs` (l, E), or (l, N) unless paired, with its interval.

    Several in the same episodes count as their mean: an episode is one trial, however many played it. Of figures that
    are 0 or 1: p - q, from the Wilson intervals of both (Newcombe 1998, method 10), as if they were of different
    episodes, which errs on the wide side. Of others: Student's t of the differences of the episodes; unpaired, of two
    means with the fewer degrees of freedom. Nothing bounds what a single episode says.
    """
    value = float(ours.mean() - theirs.mean())
    if np.isin(np.concatenate([ours.ravel(), theirs.ravel()]), (0.0, 1.0)).all():
        p, q = (wilson_interval(r.mean(axis=0).sum(), r.shape[1], confidence) for r in (ours, theirs))
        return Estimate(
            value, value - hypot(p.value - p.low, q.high - q.value), value + hypot(p.high - p.value, q.value - q.low)
        )
    samples = [ours.mean(axis=0) - theirs.mean(axis=0)] if paired else [ours.mean(axis=0), theirs.mean(axis=0)]
    fewest = min(len(sample) for sample in samples)
    if fewest < 2:
        return Estimate(value, -np.inf, np.inf)
    error = np.sqrt(sum(sample.var(ddof=1) / len(sample) for sample in samples))
    half = float(student.ppf((1 + confidence) / 2, fewest - 1) * error)
    return Estimate(value, value - half, value + half)


def judge(
    rollouts: Mapping[str, Rollouts], settings: Judgement, beats_untrained: bool = True, allowance: str = ""
) -> ImitationVerdict:
    """The verdict by the first figure that tells the demonstrator from everything that knows nothing of it.

    That is the best constant action, random play and the untrained policy. Where no figure tells it from all three, by
    the first that tells it from the former two.

    `failed`: the clone is not shown to be better than each of the three, or came less than `settings.least_share` of
    the way from the constant action to the demonstrator, or no epoch beat the untrained policy, or no figure shows the
    demonstrator to be better than the former two: there was nothing to imitate. `learnt`: it came at least
    `settings.learnt_share` of the way from the constant action to the demonstrator, or is not shown to be behind the
    demonstrator. `partly`: it is between the two, or nobody knows the demonstrator's figures.
    `allowance`: what must be known of the demonstrator's own figures.
    """

    def between(ours: np.ndarray, theirs: np.ndarray, paired: bool = True) -> Estimate:
        return difference(np.atleast_2d(ours), np.atleast_2d(theirs), settings.confidence, paired)

    def least(differences: Mapping[str, Estimate]) -> tuple[str, Estimate]:
        return min(differences.items(), key=lambda named: (named[1].low, named[1].value))

    reasons: list[str] = []
    worth = {
        name: least(
            {
                "the best constant action": between(r.demonstrator, r.constant, r.asked),
                "random play": between(r.demonstrator, r.random_play, r.asked),
            }
        )
        for name, r in rollouts.items()
    }
    telling = [name for name, (_, estimate) in worth.items() if estimate.low > 0]
    above = [n for n in telling if between(rollouts[n].demonstrator, rollouts[n].untrained, rollouts[n].asked).low > 0]
    figure = next(iter([*above, *telling]), None)
    chosen = rollouts[figure or next(iter(rollouts))]
    better, gain = least(
        {
            "the untrained policy": between(chosen.clones, chosen.untrained),
            "random play": between(chosen.clones, chosen.random_play),
            "the best constant action": between(chosen.clones, chosen.constant),
        }
    )
    shortfall = between(chosen.demonstrator, chosen.clones, chosen.asked)
    way = float(chosen.demonstrator.mean() - chosen.constant.mean())
    share = None if figure is None else float(chosen.clones.mean() - chosen.constant.mean()) / way
    known = bool(np.isfinite(chosen.demonstrator).all())
    if not known:
        reasons.append("nobody recorded what the demonstrator came to: how far the clone got is not known")
    elif figure is None:
        shown = " nor ".join(f"than {other} by {name} ({_shown(found)})" for name, (other, found) in worth.items())
        reasons.append(
            f"the demonstrator is not shown to be better {shown}: these demonstrations are not worth imitating"
        )
    elif figure != next(iter(rollouts)):
        first = next(iter(rollouts))
        other = "the untrained policy" if first in telling else worth[first][0]
        reasons.append(f"{first} does not tell the demonstrator from {other}")
    if not beats_untrained:
        reasons.append("no epoch beat the untrained policy on the measure that chooses the best epoch")
    if gain.low <= 0:
        reasons.append(f"it is not shown to be better than {better} ({_shown(gain)})")
    if share is not None:
        reasons.append(f"{share:.0%} of the way from the best constant action to the demonstrator")
    if allowance:
        reasons.append(allowance)
    nowhere = share is not None and share < settings.least_share
    failed = (known and share is None) or not beats_untrained or gain.low <= 0 or nowhere
    learnt = share is not None and (share >= settings.learnt_share or shortfall.low <= 0)
    return ImitationVerdict(
        state=Imitation.FAILED if failed else Imitation.LEARNT if learnt else Imitation.PARTLY,
        figure=figure or next(iter(rollouts)),
        clone=float(chosen.clones.mean()),
        untrained=float(chosen.untrained.mean()),
        random_play=float(chosen.random_play.mean()),
        constant=float(chosen.constant.mean()),
        demonstrator=float(chosen.demonstrator.mean()),
        gain=gain,
        shortfall=shortfall,
        share=share,
        reasons=tuple(reasons),
    )


def _shown(estimate: Estimate) -> str:
    """`difference 0.02, -0.08 to 0.12`."""
    return f"difference {estimate.value:.3g}, {estimate.low:.3g} to {estimate.high:.3g}"

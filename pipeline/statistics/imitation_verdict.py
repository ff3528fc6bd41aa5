"""Did a clone learn anything: held against its untrained self, random play, the best constant action, its demonstrator.

    verdict = judge({"success": rollouts, "return": others}, Judgement())
    verdict.state, verdict.share, verdict.reasons

Whatever is claimed is claimed by an interval: of a difference between two rates by Newcombe 1998 (method 10, from
Wilson's intervals, which do not shrink to a point in small samples), of any other figure by Student's t, episode by
episode where both played the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot, isfinite
from typing import Literal

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

    @property
    def chance(self) -> dict[str, np.ndarray]:
        """What is reached by who knows nothing."""
        return {"the best constant action": self.constant, "random play": self.random_play}


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
    gain: Estimate  # of the clone over the one of untrained policy, random play, constant action it beats least surely
    shortfall: Estimate  # of the clone behind the demonstrator
    share: float | None  # of the way to the demonstrator from the better part of chance; None: there is no way to go
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
    rollouts: Mapping[str, Rollouts],
    settings: Judgement,
    beats_untrained: bool = True,
    allowance: str = "",
    filtered: bool = False,
) -> ImitationVerdict:
    """The verdict by the first figure that tells the demonstrator from everything that knows nothing of it.

    That is the best constant action, random play and the untrained policy. Where no figure tells it from all three, by
    the first that tells it from the former two, of which the better one is where the way to the demonstrator begins.

    `failed`: the clone is not shown to be better than each of the three, or came less than `settings.least_share` of
    the way to the demonstrator, or no epoch beat the untrained policy, or no figure shows the demonstrator to be better
    than the former two: there was nothing to imitate. `learnt`: it came at least `settings.learnt_share` of the way, or
    is not shown to be behind the demonstrator. `partly`: it is between the two, or nobody knows the demonstrator's
    figures, or the demonstrator is no better than who knows nothing, but the clone is, of what a filter kept.
    `allowance`: what must be known of the demonstrator's own figures. `filtered`: not all that it did was imitated.
    """

    def least(ours: np.ndarray, others: Mapping[str, np.ndarray], paired: bool = True) -> tuple[str, Estimate]:
        """Whom it is the least sure to be better than."""
        found = {name: difference(ours, np.atleast_2d(of), settings.confidence, paired) for name, of in others.items()}
        return min(found.items(), key=lambda named: (named[1].low, named[1].value))

    reasons: list[str] = []
    before = "the untrained policy"
    gains = {name: least(r.clones, {before: r.untrained, **r.chance}) for name, r in rollouts.items()}
    behind = {n: difference(r.demonstrator[None], r.clones, settings.confidence, r.asked) for n, r in rollouts.items()}
    worth = {name: least(r.demonstrator[None], r.chance, r.asked) for name, r in rollouts.items()}
    over = {name: least(r.demonstrator[None], {before: r.untrained}, r.asked) for name, r in rollouts.items()}
    telling = [name for name, (_, estimate) in worth.items() if estimate.low > 0]
    above = [name for name in telling if over[name][1].low > 0]
    passed = [name for name in rollouts if filtered and not telling and gains[name][1].low > 0 > behind[name].high]
    figure, first = next(iter([*above, *telling]), None), next(iter(rollouts))
    by = figure or next(iter(passed), first)
    chosen, (better, gain), shortfall = rollouts[by], gains[by], behind[by]
    start, nothing = max(((name, float(of.mean())) for name, of in chosen.chance.items()), key=lambda named: named[1])
    way = float(chosen.demonstrator.mean()) - nothing
    share = None if figure is None else (float(chosen.clones.mean()) - nothing) / way
    known = bool(np.isfinite(chosen.demonstrator).all())
    if not known:
        reasons.append("nobody recorded what the demonstrator came to: how far the clone got is not known")
    elif figure is None:
        shown = " nor ".join(f"than {other} by {name} ({_shown(found)})" for name, (other, found) in worth.items())
        so = "these demonstrations are not worth imitating"
        if passed:
            so = "what a filter kept of it is worth imitating all the same: the clone is better than all of these"
        reasons.append(f"the demonstrator is not shown to be better {shown}: {so}")
    elif figure != first:
        other = before if first in telling else worth[first][0]
        reasons.append(f"{first} does not tell the demonstrator from {other}")
    if not beats_untrained:
        reasons.append("no epoch beat the untrained policy on the measure that chooses the best epoch")
    if gain.low <= 0:
        reasons.append(f"it is not shown to be better than {better} ({_shown(gain)})")
    if share is not None:
        reasons.append(f"{share:.0%} of the way from {start} to the demonstrator")
    if allowance:
        reasons.append(allowance)
    nowhere = share is not None and share < settings.least_share
    failed = (known and share is None and not passed) or not beats_untrained or gain.low <= 0 or nowhere
    learnt = share is not None and (share >= settings.learnt_share or shortfall.low <= 0)
    return ImitationVerdict(
        state=Imitation.FAILED if failed else Imitation.LEARNT if learnt else Imitation.PARTLY,
        figure=by,
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

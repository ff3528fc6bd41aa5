"""Why a clone may have learnt little: every suspicion is measured on the demonstrations and on the clone.

    for suspicion in suspicions(evidence):     # the strongest first
        print(suspicion.name, suspicion.line)

A strength is a share from 0 to 1 whose meaning the line says; below its bound a suspicion is not raised.
"""

from dataclasses import dataclass

import numpy as np

LARGE = 10.0  # numbers beyond this reach a network too large: mean and two standard deviations of a feature
SMALL = 0.02  # labels that vary by less are below the smallest spread that cloning can learn (exp(-4) is 0.018)
NEIGHBOURS = 10
FAR = 0.5
QUESTIONS = 2_000  # steps whose neighbours are looked for
CONTRADICTING, REMEMBERED, UNFINISHED, OVERFITTED = 0.5, 0.25, 0.4, 0.25
SATURATED, CLIPPED, COMPOUNDING = 0.5, 0.25, 0.3
GOOD = 0.7  # of the held-out actions: who explains so much has learnt to imitate, step by step


@dataclass(frozen=True)
class Suspicion:
    """One thing to look at."""

    name: str
    strength: float  # 0 to 1
    line: str  # what was measured, and what to do


@dataclass(frozen=True)
class CloneEvidence:
    """n demonstrated steps, evenly spaced over the dataset, and the clone that was made of it.

    Actions are numbers: those of a Box, and 0 or 1 for every choice of any other space.
    """

    observations: np.ndarray  # (n, elements) float32 as recorded
    features: np.ndarray | None  # (n, inputs) what reaches the actor's first layer; None: a convolution's, which learns
    labels: np.ndarray  # (n, a) float64 the demonstrator's clean actions
    previous: np.ndarray  # (n, a) float64 its actions a step before; NaN at the start of an episode
    episodes: np.ndarray  # (n,) int64
    learnt_labels: np.ndarray | None  # (n, a) float64 the labels in the units that the network learns; None: no Box
    saturated: float  # share of the actor's hidden tanh units that are; 0 without any
    at_bounds: tuple[float, float]  # share of the steps at which an action is at a bound: the clone's, the labels'
    training_episodes: int
    train_share: float  # of the way from the best constant action to the demonstrator's actions, on training steps
    held_out_share: float  # the same on held-out steps
    rollout_share: float | None  # the same in rollouts, by what the clone is judged by


def suspicions(evidence: CloneEvidence) -> tuple[Suspicion, ...]:
    """All that are raised, the strongest first; at least one, which may say that nothing stands out."""
    found: list[Suspicion] = []

    def raise_if(name: str, strength: float, bound: float, line: str) -> None:
        if strength > bound:
            found.append(Suspicion(name, min(strength, 1.0), line))

    if evidence.features is not None:
        size = largest(evidence.features)
        advice = "let pretrain measure their scale (scaling.measured), or give it (scaling.observations)"
        line = f"features reach the network as numbers up to {size:.3g} (beyond {LARGE:g} it learns badly); {advice}"
        raise_if("unscaled observations", 1 - LARGE / size if size > LARGE else 0.0, 0.0, line)
    if evidence.learnt_labels is not None:
        size, spreads = largest(evidence.learnt_labels), evidence.learnt_labels.std(axis=0)
        least = spreads[spreads > 0].min(initial=np.inf)
        line = (
            f"the network learns actions up to {size:.3g}, the steadiest varies by {least:.2g} (well learnt are up to "
            f"{LARGE:g} and {SMALL:g} or more); let pretrain measure their scale, or give it (scaling.actions)"
        )
        raise_if("unscaled actions", 1 - min(LARGE / size if size else 1.0, least / SMALL), 0.0, line)
    later = np.isfinite(evidence.previous).all(axis=1)
    seen, labels, episodes = evidence.observations[later], evidence.labels[later], evidence.episodes[later]
    contradicting = unexplained_share(seen, labels, episodes)
    if contradicting is not None:
        line = (
            f"between equal observations {contradicting:.0%} of the actions' variance is left, by nearest neighbours "
            "of other episodes; look for several demonstrators, shuffled rows, or what the observation lacks"
        )
        raise_if("contradicting labels", contradicting, CONTRADICTING, line)
        # the action before stands so often that it weighs as much as all of the observation
        before = np.repeat(evidence.previous[later], max(1, seen.shape[1] // labels.shape[1]), axis=1)
        left = unexplained_share(np.concatenate([seen, before], axis=1), labels, episodes)
        explained = 0.0 if left is None else contradicting - left
        line = (
            f"knowing the action before as well explains {explained:.0%} of the actions' variance that the observation "
            "does not; give the observation a history (FrameStackObservation), or demonstrate without a memory"
        )
        raise_if("a demonstrator with memory", explained, REMEMBERED, line)
    line = (
        f"{evidence.train_share:.0%} of the actions of its {evidence.training_episodes} training episodes are "
        f"explained, {evidence.held_out_share:.0%} of held-out ones; record more"
    )
    raise_if("too few episodes", evidence.train_share - max(evidence.held_out_share, 0.0), OVERFITTED, line)
    line = (
        f"{evidence.saturated:.0%} of the hidden units give 1 or -1 whatever is observed; scale what they see, lower "
        "cloning.learning_rate, or take activation: relu"
    )
    raise_if("saturated tanh", evidence.saturated, SATURATED, line)
    ours, theirs = evidence.at_bounds
    line = (
        f"the clone's actions are at a bound of the action space in {ours:.0%} of the steps, the demonstrator's in "
        f"{theirs:.0%}; lower cloning.learning_rate"
    )
    raise_if("actions at their bounds", ours - theirs, CLIPPED, line)
    if evidence.rollout_share is not None and evidence.held_out_share >= GOOD:
        line = (
            f"{evidence.held_out_share:.0%} of held-out actions are explained, yet rollouts come only "
            f"{evidence.rollout_share:.0%} of the way: small errors lead where nobody demonstrated; record with noise "
            "(noise.std), record more, or take algorithm: dagger"
        )
        raise_if("compounding errors", evidence.held_out_share - max(evidence.rollout_share, 0.0), COMPOUNDING, line)
    if contradicting is not None and not found:  # what stands above would keep it from learning
        line = (
            f"the observation explains {1 - contradicting:.0%} of the actions' variance, the clone has learnt "
            f"{evidence.train_share:.0%} on its own training steps; take more epochs, a larger network, or another "
            "cloning.learning_rate"
        )
        raise_if("too little training", 1 - contradicting - max(evidence.train_share, 0.0), UNFINISHED, line)
    line = (
        f"{evidence.train_share:.0%} of the training episodes' actions are explained, {evidence.held_out_share:.0%} of "
        "held-out ones; record more, take more epochs, or algorithm: dagger, which asks where the clone goes"
    )
    return tuple(sorted(found, key=lambda one: -one.strength)) or (Suspicion("nothing stands out", 0.0, line),)


def largest(numbers: np.ndarray) -> float:
    """The largest |mean| + 2 standard deviations among the columns of (n, columns)."""
    return float((np.abs(numbers.mean(axis=0)) + 2 * numbers.std(axis=0)).max(initial=0.0))


def unexplained_share(inputs: np.ndarray, labels: np.ndarray, episodes: np.ndarray) -> float | None:
    """The share of the labels' variance that is left between equal inputs: 0 of a smooth function of them, 1 of noise.

    The gamma test (Stefánsson, Končar and Jones 1997): half the mean squared difference of labels between k-th nearest
    neighbours is regressed on their mean squared distance; what is left at distance 0 no smooth function of the inputs
    explains. Neighbours are of other episodes, since steps of one resemble each other; inputs are standardised. None
    where neighbours are hardly nearer than any two steps, or there is nothing to explain.
    """
    inputs = np.asarray(inputs, np.float32)
    varying = inputs.std(axis=0) > 0
    total = float(labels.var(axis=0).sum())
    if total == 0 or not varying.any() or len(np.unique(episodes)) < 2:
        return None
    inputs = inputs[:, varying]
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    asked = np.unique(np.linspace(0, len(inputs) - 1, min(QUESTIONS, len(inputs))).astype(int))
    squares = np.square(inputs).sum(axis=1)
    distances = squares[asked, None] + squares[None] - 2 * (inputs[asked] @ inputs.T)
    distances[episodes[asked, None] == episodes[None]] = np.inf
    count = min(NEIGHBOURS, int(np.isfinite(distances).sum(axis=1).min()))
    nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
    nearest = np.take_along_axis(nearest, np.argsort(np.take_along_axis(distances, nearest, axis=1), axis=1), axis=1)
    near = np.maximum(np.take_along_axis(distances, nearest, axis=1), 0).mean(axis=0)  # (count,) by rank
    apart = np.square(labels[asked, None] - labels[nearest]).sum(axis=2).mean(axis=0) / 2
    if near[0] > FAR * 2 * inputs.shape[1]:  # twice their number: the mean squared distance of any two steps
        return None
    spread = near - near.mean()
    slope = max(float(spread @ apart / (spread @ spread)), 0.0) if spread @ spread > 0 else 0.0
    return float(np.clip((apart.mean() - slope * near.mean()) / total, 0, 1))

"""Every suspicion on demonstrations made to have exactly that fault, and on demonstrations without it."""

import dataclasses

import numpy as np
import pytest

from pipeline.statistics.suspicions import CloneEvidence, suspicions, unexplained_share

EPISODES, LENGTH = 30, 40
RNG = np.random.default_rng(0)
OBSERVATIONS = RNG.uniform(-1, 1, (EPISODES * LENGTH, 3)).astype(np.float32)
LABELS = np.stack([np.sin(2 * OBSERVATIONS[:, 0]), 0.5 * OBSERVATIONS[:, 1] * OBSERVATIONS[:, 2]], axis=1)
NUMBER = np.repeat(np.arange(EPISODES), LENGTH)


def before(labels: np.ndarray) -> np.ndarray:
    """The labels of the step before; none at the start of an episode."""
    shifted = np.roll(labels, 1, axis=0)
    shifted[::LENGTH] = np.nan
    return shifted


def demonstrated(labels: np.ndarray = LABELS, observations: np.ndarray = OBSERVATIONS, **changes) -> CloneEvidence:
    """A clone that imitates well what a smooth function of the observation demonstrated."""
    given = {
        "observations": observations,
        "features": observations,
        "labels": labels,
        "previous": before(labels),
        "episodes": NUMBER,
        "learnt_labels": labels,
        "saturated": 0.1,
        "at_bounds": (0.1, 0.1),
        "training_episodes": 36,
        "train_share": 0.95,
        "held_out_share": 0.93,
        "rollout_share": 0.95,
    }
    return CloneEvidence(**{**given, **changes})


def names(evidence: CloneEvidence) -> list[str]:
    return [suspicion.name for suspicion in suspicions(evidence)]


def test_nothing_stands_out_of_a_good_clone_and_that_is_said():
    (only,) = suspicions(demonstrated())
    assert only.name == "nothing stands out" and only.strength == 0
    assert "95% of the training episodes' actions are explained, 93% of held-out ones" in only.line


def test_the_same_numbers_in_pixels_are_unscaled():
    pixels = 256 + 256 * OBSERVATIONS
    (found,) = suspicions(demonstrated(features=pixels))
    assert found.name == "unscaled observations"
    largest = (np.abs(pixels.mean(axis=0)) + 2 * pixels.std(axis=0)).max()
    assert found.strength == pytest.approx(1 - 10 / largest)
    assert names(demonstrated(features=None)) == ["nothing stands out"]  # what a convolution hands on


def test_actions_in_pixels_and_actions_below_the_smallest_spread_are_unscaled():
    (found,) = suspicions(demonstrated(learnt_labels=256 + 256 * LABELS))
    assert found.name == "unscaled actions" and found.strength > 0.9
    (found,) = suspicions(demonstrated(learnt_labels=LABELS * [1.0, 0.01]))
    assert found.name == "unscaled actions" and found.strength == pytest.approx(1 - 0.01 * LABELS[:, 1].std() / 0.02)
    assert names(demonstrated(learnt_labels=LABELS * [1.0, 0.0])) == ["nothing stands out"]  # one never moves
    assert names(demonstrated(learnt_labels=None)) == ["nothing stands out"]  # no Box


def test_shuffled_actions_contradict_each_other():
    shuffled = np.random.default_rng(1).permutation(LABELS)
    found = suspicions(demonstrated(shuffled, train_share=0.02, held_out_share=0.0, rollout_share=0.0))
    assert [one.name for one in found] == ["contradicting labels"] and found[0].strength > 0.9


def test_two_demonstrators_of_opposite_mind_contradict_each_other():
    """Each is a smooth function; between them only the sign is unknown, which is all of the variance."""
    sign = np.where(NUMBER % 2 == 0, 1.0, -1.0)[:, None]
    found = suspicions(demonstrated(sign * (LABELS - LABELS.mean(axis=0)), rollout_share=0.0, held_out_share=0.0))
    assert found[0].name == "contradicting labels" and found[0].strength > 0.8


def test_discrete_actions_can_contradict_too():
    choice = (OBSERVATIONS[:, 0] > 0).astype(int)
    plain = demonstrated(np.eye(2)[choice], learnt_labels=None)
    mixed = demonstrated(np.eye(2)[np.random.default_rng(1).permutation(choice)], learnt_labels=None)
    assert "contradicting labels" not in names(plain) and "contradicting labels" in names(mixed)


def test_a_demonstrator_that_remembers_is_told_by_its_action_before():
    """It goes on as it began, which no observation shows."""
    side = np.random.default_rng(1).choice([-1.0, 1.0], EPISODES)[NUMBER][:, None]
    found = suspicions(demonstrated(side * (1 + 0.1 * np.abs(LABELS)), held_out_share=0.0, rollout_share=0.0))
    memory = [one for one in found if one.name == "a demonstrator with memory"]
    assert memory and memory[0].strength > 0.7
    assert "a demonstrator with memory" not in names(demonstrated())
    shuffled = np.random.default_rng(1).permutation(LABELS)
    assert "a demonstrator with memory" not in names(demonstrated(shuffled))


@pytest.mark.parametrize(
    ("changes", "name", "strength"),
    [
        ({"train_share": 0.95, "held_out_share": 0.3}, "too few episodes", 0.65),
        ({"train_share": 0.95, "held_out_share": -2.0}, "too few episodes", 0.95),
        ({"train_share": 0.1, "held_out_share": 0.1}, "too little training", 0.9),
        ({"saturated": 0.8}, "saturated tanh", 0.8),
        ({"at_bounds": (0.9, 0.2)}, "actions at their bounds", 0.7),
        ({"rollout_share": 0.2}, "compounding errors", 0.73),
        ({"rollout_share": -3.0}, "compounding errors", 0.93),
    ],
)
def test_what_was_measured_on_the_clone_is_raised_alone(changes, name, strength):
    (found,) = suspicions(demonstrated(**changes))
    assert found.name == name and found.strength == pytest.approx(strength, abs=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_share": 0.95, "held_out_share": 0.71},
        {"saturated": 0.5},
        {"at_bounds": (0.9, 0.9)},  # the demonstrator is there as well
        {"rollout_share": 0.64},
        {"rollout_share": None},  # the rollouts had no way to go
        {"held_out_share": 0.69, "train_share": 0.7, "rollout_share": 0.0},  # not good on held-out steps either
    ],
)
def test_what_is_within_its_bound_is_not_raised(changes):
    assert names(demonstrated(**changes)) == ["nothing stands out"]


def test_suspicions_are_ordered_by_strength():
    found = suspicions(demonstrated(saturated=0.6, at_bounds=(1.0, 0.0), rollout_share=0.2))
    assert [one.name for one in found] == ["actions at their bounds", "compounding errors", "saturated tanh"]
    assert [one.strength for one in found] == sorted((one.strength for one in found), reverse=True)


# --- the gamma test --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0, 2.0])
def test_the_unexplained_share_is_that_of_the_noise(noise):
    """Labels of variance 1 and noise of variance v: v / (1 + v) of all."""
    rng = np.random.default_rng(2)
    labels = np.sin(3 * OBSERVATIONS[:, :1])
    labels = (labels - labels.mean()) / labels.std() + noise**0.5 * rng.standard_normal((len(labels), 1))
    assert unexplained_share(OBSERVATIONS, labels, NUMBER) == pytest.approx(noise / (1 + noise), abs=0.06)


def test_units_of_the_inputs_and_inputs_that_never_change_mean_nothing():
    one = unexplained_share(OBSERVATIONS, LABELS, NUMBER)
    others = np.concatenate([OBSERVATIONS * [1, 1000, 0.001] + [0, 5, 0], np.full((len(LABELS), 1), 3.0)], axis=1)
    assert unexplained_share(others, LABELS, NUMBER) == pytest.approx(one, abs=0.01)


def test_what_cannot_be_told_is_not_told():
    assert unexplained_share(OBSERVATIONS, np.ones_like(LABELS), NUMBER) is None  # nothing varies
    assert unexplained_share(np.ones_like(OBSERVATIONS), LABELS, NUMBER) is None  # nothing is seen
    assert unexplained_share(OBSERVATIONS, LABELS, np.zeros_like(NUMBER)) is None  # one episode has no other
    wide = np.random.default_rng(0).standard_normal((len(LABELS), 500))  # no two of which are near
    assert unexplained_share(wide, LABELS, NUMBER) is None
    assert names(dataclasses.replace(demonstrated(), observations=wide.astype(np.float32))) == ["nothing stands out"]

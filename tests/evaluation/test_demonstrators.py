"""Scripted demonstrators play one episode at a time, with a memory of their own, and are told apart by their source."""

import gymnasium as gym
import numpy as np
import pytest

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.data import UNAPPROVED, content_digest
from pipeline.errors import BadInput
from pipeline.play.demonstrators import Script, scripted
from pipeline.play.evaluation import record_episodes, run_episodes
from pipeline.tasks import Purpose, Task

HERE = __name__


class PhaseCounter:
    """What it does depends on how many steps of the episode it has seen, and on what it saw first."""

    def __init__(self, period: int = 3) -> None:
        self.period = period

    def reset(self) -> None:
        self.phase, self.first = 0, None

    def act(self, observation):
        self.first = observation if self.first is None else self.first
        self.phase += 1
        return int(self.phase % self.period == 0) ^ int(self.first[0] > 0)


class Scribbler(PhaseCounter):
    """Spoils what it is given."""

    def act(self, observation):
        action = super().act(observation)
        observation *= 0
        return action


class NoReset:
    def act(self, observation):
        return 0


def lean(observation, threshold: float = 0.0):
    return int(observation[2] > threshold)


def nonsense(observation, answer):
    return np.asarray(answer)


def ragged(observation):
    return [0] if observation[0] > 0 else [0, 1]


def often_none(observation):
    """An action on the right, none on the left."""
    return 1 if observation[0] > 0 else None


class Reader(PhaseCounter):
    def __init__(self, file: str) -> None:
        with open(file):
            pass


class Unplugged(PhaseCounter):
    """Can be made as often as `times` says."""

    made = 0

    def __init__(self, times: int) -> None:
        type(self).made += 1
        if type(self).made > times:
            raise RuntimeError("no such port")
        super().__init__()


def task(env_id: str) -> Task:
    data = {
        "name": "known",
        "environment": {"id": env_id},
        "success": {"return_at_least": 30.0},
        "thresholds": {"success_rate": {"min": 0.9}},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1.0}},
        "horizon": 40,
    }
    return Task(validate(TaskConfig, data, "test"))


@pytest.fixture(scope="module")
def cartpole():
    return task("CartPole-v1")


@pytest.fixture(scope="module")
def episodes(cartpole):
    return cartpole.episodes("train", 3, 12, Purpose.RECORD)


def test_a_recording_of_a_script_with_memory_does_not_depend_on_the_batch(cartpole, episodes):
    actor = scripted(f"{HERE}:PhaseCounter", {}).actor
    digests = {content_digest(record_episodes(cartpole, actor, episodes, 0.2, 1, n)) for n in (1, 5, 12)}
    assert len(digests) == 1
    # the protection at work: without an instance a slot and its reset, the batch decides what the script remembers
    shared = PhaseCounter()
    shared.reset()
    shared.reset = lambda: None
    forgetful = Script("shared", lambda: shared)
    assert len({content_digest(record_episodes(cartpole, forgetful, episodes, 0.2, 1, n)) for n in (1, 5, 12)}) == 3


def test_a_script_plays_what_it_plays_alone(cartpole, episodes):
    actor = scripted(f"{HERE}:PhaseCounter", {"period": 2}).actor
    recorded = record_episodes(cartpole, actor, episodes, 0.0, 1, 5)
    played = run_episodes(cartpole, actor, episodes, n_envs=5)
    assert np.array_equal(played.metrics["length"], recorded.lengths) and len(set(recorded.lengths)) > 3
    for index, episode in enumerate(episodes):
        env, alone, over, actions = gym.make("CartPole-v1", max_episode_steps=40), PhaseCounter(2), False, []
        alone.reset()
        observation, _ = env.reset(seed=episode.seed)
        while not over:
            actions.append(alone.act(observation))
            observation, _, terminated, truncated, _ = env.step(actions[-1])
            over = terminated or truncated
        assert recorded.episode(index).actions.tolist() == actions


def test_what_a_script_does_to_its_observation_stays_with_it(cartpole, episodes):
    gentle, rough = (
        record_episodes(cartpole, scripted(f"{HERE}:{name}", {}).actor, episodes, 0.0, 1, 4)
        for name in ("PhaseCounter", "Scribbler")
    )
    assert np.array_equal(gentle.observations[0], rough.observations[0]) and rough.observations[rough.step_rows].all()


def test_a_function_is_a_script_without_memory(cartpole, episodes):
    recorded = record_episodes(cartpole, scripted(f"{HERE}:lean", {"threshold": 0.01}).actor, episodes, 0.0, 1, 4)
    assert np.array_equal(recorded.actions, (recorded.observations[recorded.step_rows][:, 2] > 0.01).astype(int))


@pytest.mark.parametrize(
    ("env_id", "answer"),
    [
        ("CartPole-v1", 2),
        ("CartPole-v1", -1),
        ("CartPole-v1", 0.5),
        ("CartPole-v1", [0]),
        ("CartPole-v1", "left"),
        ("Pendulum-v1", 0.0),
        ("Pendulum-v1", [2.5]),
        ("Pendulum-v1", [float("nan")]),
        ("Pendulum-v1", [0.0, 0.0]),
    ],
)
def test_what_is_no_action_is_refused_by_name(env_id, answer):
    known = task(env_id)
    actor = scripted(f"{HERE}:nonsense", {"answer": answer}).actor
    with pytest.raises(BadInput, match=f"{HERE}:nonsense.*not an action of") as refused:
        record_episodes(known, actor, known.episodes("train", 1, 2, Purpose.RECORD), 0.0, 1)
    assert repr(np.asarray(answer))[:20] in str(refused.value)


def test_answers_of_unequal_shapes_are_refused(cartpole, episodes):
    with pytest.raises(BadInput, match="not an action of"):
        record_episodes(cartpole, scripted(f"{HERE}:ragged", {}).actor, episodes, 0.0, 1)


def test_a_policy_that_answers_what_is_no_number_is_refused():
    pendulum = task("Pendulum-v1")
    episodes = pendulum.episodes("train", 3, 2, Purpose.RECORD)
    with pytest.raises(BadInput, match="a policy answered an action that is not finite"):
        run_episodes(pendulum, lambda observations: np.full((len(observations), 1), np.nan, np.float32), episodes)


def test_the_answer_that_is_wrong_is_shown_and_no_right_one_beside_it(cartpole, episodes):
    first = cartpole.make_vec_env([iter([episode]) for episode in episodes]).reset()[:, 0]
    assert first[0] > 0 >= first.min(), "the first slot is no right one beside a wrong one: this shows nothing"
    with pytest.raises(BadInput, match="answered None, which is not an action of"):
        record_episodes(cartpole, scripted(f"{HERE}:often_none", {}).actor, episodes, 0.0, 1)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("PhaseCounter", {"perod": 2}, "refuses its arguments.*perod"),
        ("lean", {"treshold": 2}, "refuses its arguments.*treshold"),
        ("nonsense", {}, "refuses its arguments.*answer"),
        ("Reader", {"file": "/none"}, "Reader' cannot be made: FileNotFoundError: .*/none"),
        ("Unplugged", {"times": 0}, "Unplugged' cannot be made: RuntimeError: no such port"),
        ("NoReset", {}, r"no method reset\(\)"),
        ("HERE", {}, "neither a class nor a function"),
        ("Nobody", {}, "has no 'Nobody'"),
    ],
)
def test_a_script_that_cannot_be_made_is_refused(name, kwargs, message):
    with pytest.raises(BadInput, match=message):
        scripted(f"{HERE}:{name}", kwargs)


def test_a_script_that_can_be_made_once_only_is_refused_where_it_plays(cartpole, episodes, monkeypatch):
    monkeypatch.setattr(Unplugged, "made", 0)
    actor = scripted(f"{HERE}:Unplugged", {"times": 3}).actor
    with pytest.raises(BadInput, match="Unplugged' cannot be made: RuntimeError: no such port"):
        run_episodes(cartpole, actor, episodes)


def test_source_and_parameters_are_its_provenance_and_nobody_approved_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    same = "def act(observation, gain=1):\n    return {}\n"
    for module, answer in (("script_one", 0), ("script_two", 0), ("script_three", 1)):
        (tmp_path / f"{module}.py").write_text(same.format(answer))
    one, two, three = (scripted(f"script_{name}:act", {}).provenance for name in ("one", "two", "three"))
    assert one["source_digest"] == two["source_digest"] != three["source_digest"]
    assert len({one["digest"], two["digest"], three["digest"]}) == 3
    other = scripted("script_one:act", {"gain": 2}).provenance
    assert other["source_digest"] == one["source_digest"] and other["digest"] != one["digest"]
    assert (one["kind"], one["name"], one["kwargs"], one["approval"]) == ("scripted", "script_one:act", {}, UNAPPROVED)

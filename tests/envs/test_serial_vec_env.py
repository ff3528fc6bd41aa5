"""The episode contract over plain Gymnasium environments: CartPole, Pendulum, and spaces of every kind."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from pipeline.envs.episodes import Episode
from pipeline.envs.serial import SerialVecEnv, outcome_of


class Countdown(gymnasium.Env[Any, Any]):
    """Counts down from the seed; ends at 0 (terminated) or after 5 steps (truncated). Observation as the space asks."""

    action_space = Discrete(2)

    def __init__(self, observation_space: gymnasium.Space[Any]) -> None:
        self.observation_space = observation_space

    def _look(self) -> Any:
        if isinstance(self.observation_space, Dict):
            return {"left": np.array([self.left], np.float32), "even": self.left % 2}
        return self.left

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left, self.made = seed or 0, 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        self.made += 1
        info = {"left": self.left, "won": self.left == 0, "name": "text", "array": np.zeros(2)}
        return self._look(), float(action), self.left == 0, self.made == 5, info


def play(env: SerialVecEnv, action: Any, limit: int = 1000) -> list[dict[str, Any]]:
    """Final infos in the order in which the episodes ended."""
    env.reset()
    ended = []
    for _ in range(limit):
        if not env.running.any():
            return ended
        _, _, done, infos = env.step(np.array([action] * env.num_envs))
        ended += [infos[i] for i in np.flatnonzero(done)]
    raise AssertionError("the episodes never ended")


def test_cartpole_played_in_slots_equals_cartpole_played_by_hand() -> None:
    env = SerialVecEnv(lambda _: gymnasium.make("CartPole-v1"), [iter([Episode("default", s)]) for s in (3, 4)])
    observations = [env.reset()]
    final: dict[int, dict[str, Any]] = {}
    while env.running.any():
        rows, _, done, infos = env.step(np.ones(2, np.int64))
        observations.append(rows)
        final |= {int(i): infos[i] for i in np.flatnonzero(done)}
    for slot, seed in enumerate((3, 4)):
        single = gymnasium.make("CartPole-v1")
        expected, _ = single.reset(seed=seed)
        for step in range(final[slot]["episode"]["l"]):
            np.testing.assert_array_equal(observations[step][slot], expected)
            expected, _, terminated, truncated, _ = single.step(1)
        assert terminated and not truncated
        np.testing.assert_array_equal(final[slot]["terminal_observation"], expected)
        assert final[slot]["episode"]["r"] == final[slot]["episode"]["l"]
        assert final[slot]["TimeLimit.truncated"] is False
        assert final[slot]["episode_spec"] == Episode("default", seed)


def test_a_time_limit_is_a_truncation() -> None:
    env = SerialVecEnv(lambda _: gymnasium.make("Pendulum-v1"), [iter([Episode("default", 1)])])
    (info,) = play(env, np.zeros(1, np.float32))
    assert info["TimeLimit.truncated"] is True
    assert info["episode"]["l"] == 200


def test_a_termination_at_the_limit_is_not_a_truncation() -> None:
    env = SerialVecEnv(lambda _: Countdown(Discrete(10)), [iter([Episode("a", 5), Episode("a", 9)])])
    ended, cut = play(env, 1)
    assert (ended["TimeLimit.truncated"], cut["TimeLimit.truncated"]) == (False, True)
    assert ended["outcome"] == {"left": 0.0, "won": 1.0}
    assert cut["outcome"] == {"left": 4.0, "won": 0.0}


def test_dictionary_observations_come_back_as_dictionaries() -> None:
    space = Dict({"left": Box(-1, 10, (1,), np.float32), "even": Discrete(2)})
    env = SerialVecEnv(lambda _: Countdown(space), [iter([Episode("a", 2)]), iter([Episode("a", 3)])])
    first = env.reset()
    assert isinstance(first, dict)
    np.testing.assert_array_equal(first["left"], [[2.0], [3.0]])
    np.testing.assert_array_equal(first["even"], [0, 1])
    env.step(np.zeros(2, np.int64))
    np.testing.assert_array_equal(first["left"], [[2.0], [3.0]])  # what was handed out does not change later


def test_an_exhausted_slot_idles_and_the_others_go_on() -> None:
    env = SerialVecEnv(lambda _: Countdown(Discrete(10)), [iter([Episode("a", 1)]), iter([Episode("a", 4)]), iter([])])
    env.reset()
    assert env.running.tolist() == [True, True, False]
    _, _, done, _ = env.step(np.ones(3, np.int64))
    assert done.tolist() == [True, False, False]
    rows, rewards, done, infos = env.step(np.ones(3, np.int64))
    assert env.running.tolist() == [False, True, False]
    assert rows.tolist() == [0, 2, 0]
    assert rewards.tolist() == [0.0, 1.0, 0.0]
    assert not done.any() and infos[0] == {}


def test_an_environment_is_made_where_no_slot_has_left_one_of_the_scenario_behind() -> None:
    made: list[str] = []

    def make(scenario: str) -> Countdown:
        made.append(scenario)
        return Countdown(Discrete(10))

    play(SerialVecEnv(make, [iter([Episode("a", 1), Episode("b", 1), Episode("a", 2)])]), 1)
    assert made == ["a", "b"]
    made.clear()
    # the second slot plays four steps; the first leaves a, plays b, and goes on in the a that it left
    queue = iter([Episode("a", 1), Episode("a", 4), Episode("b", 1), Episode("a", 2)])
    ended = play(SerialVecEnv(make, [queue, queue]), 1)
    assert made == ["a", "a", "b"]
    assert [info["episode_spec"].seed for info in ended] == [1, 1, 2, 4]


def test_new_streams_start_at_the_next_reset() -> None:
    env = SerialVecEnv(lambda _: Countdown(Discrete(10)), [iter([Episode("a", 1)])])
    play(env, 1)
    env.set_streams([iter([Episode("a", 3)])])
    (info,) = play(env, 1)
    assert info["episode_spec"] == Episode("a", 3)
    with pytest.raises(ValueError, match="2 streams"):
        env.set_streams([iter([]), iter([])])


def test_without_any_episode_there_is_nothing_to_make() -> None:
    with pytest.raises(ValueError, match="None of the streams"):
        SerialVecEnv(lambda _: Countdown(Discrete(10)), [iter([])])


def test_only_scalars_become_outcomes() -> None:
    assert outcome_of({"a": True, "b": np.float32(2), "c": "x", "d": [1], "e": 3}) == {"a": 1.0, "b": 2.0, "e": 3.0}
    arrays = {"a": np.array([True]), "b": np.array(2), "c": np.array([[3.5]]), "d": np.zeros(2), "e": np.array(["x"])}
    assert outcome_of(arrays) == {"a": 1.0, "b": 2.0, "c": 3.5}  # an array of one is a number
    assert outcome_of({"a": torch.tensor(True), "b": torch.zeros(2)}) == {"a": 1.0}
    assert outcome_of({7: 1, None: 2, "huge": 10**400, "deep": {"a": 1}, "imaginary": 1j}) == {}
    assert outcome_of({"learnt": torch.ones(1, requires_grad=True), "b": 2}) == {"b": 2.0}

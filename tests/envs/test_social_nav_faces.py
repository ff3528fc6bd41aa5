"""One simulation, two faces: the same seed and actions give the same bits from either, in any batch and slot."""

from itertools import count
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from pipeline.envs.episodes import Episode
from pipeline.envs.social_nav.environment import SocialNavEnv
from pipeline.envs.social_nav.scenarios import DENSITIES, FAMILIES
from pipeline.envs.social_nav.vector import SocialNavVecEnv
from pipeline.errors import BadInput

SCENARIOS = {f"{f}_{d}": {"scenario": f, "density": d} for f in FAMILIES for d in DENSITIES}


def actions_of(seed: int, steps: int = 220) -> np.ndarray:
    """(steps, 2) random but mostly forward, so that episodes get somewhere."""
    return np.random.default_rng(seed).uniform([-0.3, -0.6], [1.0, 0.6], (steps, 2)).astype(np.float32)


Played = tuple[np.ndarray, np.ndarray, dict[str, Any]]  # observations (T+1, d), rewards (T,), final info


def by_gymnasium(episode: Episode, actions: np.ndarray, **kwargs: Any) -> Played:
    env = gymnasium.make("pipeline.envs.social_nav:SocialNav-v0", **SCENARIOS[episode.scenario], **kwargs)
    observation, _ = env.reset(seed=episode.seed)
    observations, rewards = [observation], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            return np.array(observations), np.array(rewards, np.float32), info
    raise AssertionError("the episode did not end")


def by_batch(episode: Episode, actions: np.ndarray, batch: int, slot: int) -> Played:
    """The same, with the episode in one slot of a batch in which all others play other episodes."""
    names = list(SCENARIOS)
    others = [iter(Episode(names[(i + k) % len(names)], 1000 * i + k) for k in count()) for i in range(batch)]
    others[slot] = iter([episode])
    env = SocialNavVecEnv(SCENARIOS, others)
    observations, rewards = [env.reset()[slot]], []
    noise = np.random.default_rng(batch)
    for action in actions:
        chosen = noise.uniform(-1, 1, (batch, 2)).astype(np.float32)
        chosen[slot] = action
        rows, paid, done, infos = env.step(chosen)
        rewards.append(paid[slot])
        if done[slot]:
            observations.append(infos[slot]["terminal_observation"])
            return np.array(observations), np.array(rewards), infos[slot]
        observations.append(rows[slot])
    raise AssertionError("the episode did not end")


@pytest.mark.parametrize(("batch", "slot"), [(1, 0), (7, 0), (7, 6), (64, 0), (64, 37), (64, 63)])
@pytest.mark.parametrize("scenario", ["crowd_navigation_high", "narrow_doorway_medium", "frontal_approach_low"])
def test_both_faces_give_the_same_bits_in_any_batch_and_slot(scenario: str, batch: int, slot: int) -> None:
    episode = Episode(scenario, 20_260 + batch)
    actions = actions_of(slot)
    observations, rewards, info = by_gymnasium(episode, actions)
    batched_observations, batched_rewards, batched_info = by_batch(episode, actions, batch, slot)
    assert observations.tobytes() == batched_observations.tobytes()
    assert rewards.tobytes() == batched_rewards.tobytes()
    assert batched_info["outcome"] == info
    assert batched_info["episode"]["l"] == len(rewards)
    assert batched_info["episode"]["r"] == pytest.approx(rewards.sum(dtype=np.float64), abs=1e-4)


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_the_same_seed_twice_is_the_same_episode_and_another_seed_is_not(scenario: str) -> None:
    actions = actions_of(5)
    first, again, other = (by_gymnasium(Episode(scenario, seed), actions)[0] for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert first[0].tobytes() != other[0].tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_environment_checkers_find_nothing(family: str, recwarn: pytest.WarningsRecorder) -> None:
    env = SocialNavEnv(family, "high", render_mode="rgb_array")
    check_env(env)
    check_env_for_sb3(env)
    assert [str(w.message) for w in recwarn if "spec" not in str(w.message)] == []


def test_every_observation_of_random_play_lies_in_the_space() -> None:
    streams = [(Episode(name, k) for k in count(i * 1000)) for i, name in enumerate(SCENARIOS)]
    env = SocialNavVecEnv(SCENARIOS, streams)
    rows = env.reset()
    noise = np.random.default_rng(0)
    for _ in range(400):
        assert rows.dtype == np.float32 and np.isfinite(rows).all() and np.abs(rows).max() <= 1.0
        rows, _, _, _ = env.step(noise.uniform(-1, 1, (env.num_envs, 2)).astype(np.float32))


def test_a_timeout_is_a_truncation_and_a_crash_a_termination() -> None:
    still, crash = np.array([-1.0, 0.0]), np.array([1.0, 1.0])
    env = SocialNavEnv("perpendicular_traffic", "low", pedestrians=0, horizon=50)
    env.reset(seed=0)
    ends = [env.step(still)[2:4] for _ in range(50)]
    assert ends == [(False, False)] * 49 + [(False, True)]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(still)
    env = SocialNavEnv("narrow_doorway", "low", pedestrians=0)
    env.reset(seed=0)
    terminated = truncated = False
    while not terminated and not truncated:
        action = crash if env.state()["steps"] < 3 else np.array([1.0, 0.0])
        *_, terminated, truncated, info = env.step(action)
    assert terminated and not truncated and info["collision_wall"] == 1.0


def test_the_batch_marks_truncations_for_the_value_function() -> None:
    env = SocialNavVecEnv(SCENARIOS, [iter([Episode("perpendicular_traffic_low", 0)])], horizon=20)
    env.reset()
    for _ in range(20):
        _, _, done, infos = env.step(np.array([[-1.0, 0.0]], np.float32))
    assert done[0] and infos[0]["TimeLimit.truncated"] is True
    assert not env.running.any()


def test_an_exhausted_slot_idles_with_zeros() -> None:
    streams = [iter([Episode("crowd_navigation_low", 1)]), iter([])]
    env = SocialNavVecEnv(SCENARIOS, streams, horizon=5)
    rows = env.reset()
    assert not rows[1].any() and env.running.tolist() == [True, False]
    for _ in range(7):
        rows, rewards, done, infos = env.step(np.ones((2, 2), np.float32))
        assert not rows[1].any() and rewards[1] == 0.0 and not done[1] and infos[1] == {}
    assert not rows.any() and not rewards.any() and not done.any()


def test_what_was_handed_out_does_not_change_later() -> None:
    env = SocialNavVecEnv(SCENARIOS, [(Episode("crowd_navigation_low", k) for k in count())])
    first = env.reset()
    kept = first.copy()
    second, rewards, _, _ = env.step(np.ones((1, 2), np.float32))
    kept_second, kept_rewards = second.copy(), rewards.copy()
    env.step(np.ones((1, 2), np.float32))
    assert (first == kept).all() and (second == kept_second).all() and (rewards == kept_rewards).all()


def test_the_state_replays_positions_and_is_a_copy() -> None:
    env = SocialNavEnv("crowd_navigation", "high")
    env.reset(seed=3)
    before = env.state()
    env.step(np.ones(2, np.float32))
    after = env.state()
    moved = np.hypot(after["ped_x"] - before["ped_x"], after["ped_y"] - before["ped_y"])
    np.testing.assert_allclose(moved, 0.1 * np.hypot(after["ped_vx"], after["ped_vy"]), atol=1e-9)
    assert before["steps"] == 0 and after["steps"] == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scenario": "frontal_aproach"}, "Did you mean 'frontal_approach'"),
        ({"density": "hi"}, "allowed are low, medium, high"),
        ({"pedestrians": 13}, "from 0 to 12"),
        ({"horizon": 0}, "horizon is 0"),
        ({"max_speed": -1.0}, "max_speed is -1.0"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
        ({"reward_name": "progres"}, "Did you mean 'progress'"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("(", "\\(")):
        SocialNavEnv(**kwargs)


def test_an_action_that_is_not_finite_is_refused() -> None:
    env = SocialNavEnv()
    env.reset(seed=0)
    with pytest.raises(BadInput, match="finite"):
        env.step(np.array([np.nan, 0.0]))
    batch = SocialNavVecEnv(SCENARIOS, [iter([Episode("crowd_navigation_low", 1)])])
    batch.reset()
    with pytest.raises(BadInput, match="finite"):
        batch.step(np.array([[np.inf, 0.0]]))


def test_an_episode_of_an_unknown_scenario_is_refused() -> None:
    env = SocialNavVecEnv({"a": {"scenario": "intersection"}}, [iter([Episode("b", 1)])])
    with pytest.raises(BadInput, match="'b'"):
        env.reset()

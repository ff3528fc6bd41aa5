"""Rewards by hand, and the promise that crashing never pays."""

import json
import math
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.social_nav_planners import dynamic_window, straight_to_goal
from pipeline.envs.episodes import Episode
from pipeline.envs.social_nav.environment import SocialNavEnv
from pipeline.envs.social_nav.rewards import REWARDS
from pipeline.envs.social_nav.scenarios import DENSITIES, FAMILIES
from pipeline.envs.social_nav.vector import SocialNavVecEnv
from pipeline.errors import BadInput
from pipeline.statistics.snqi import load_baseline, load_weights, snqi

SNQI_FILES = Path(__file__).resolve().parents[2] / "configs" / "social_nav"
WEIGHTS_FILE, BASELINE_FILE = SNQI_FILES / "snqi_weights.json", SNQI_FILES / "snqi_baseline.json"
SNQI = {"weights": str(WEIGHTS_FILE), "baseline": str(BASELINE_FILE)}
SCENARIOS = {f"{f}_{d}": {"scenario": f, "density": d} for f in FAMILIES for d in DENSITIES}
STILL = np.array([-1.0, 0.0], np.float32)
Act = Callable[[np.ndarray, int], np.ndarray]  # observations (n, d), step -> actions (n, 2)


def still(rows: np.ndarray, step: int) -> np.ndarray:
    return np.tile(STILL, (len(rows), 1))


def random(rows: np.ndarray, step: int) -> np.ndarray:
    return np.random.default_rng(step).uniform(-1, 1, (len(rows), 2)).astype(np.float32)


def flail(rows: np.ndarray, step: int) -> np.ndarray:
    """The costliest actions that there are: from corner to corner, turning back and forth."""
    sign = 1.0 if step % 2 else -1.0
    return np.tile(np.array([sign, -sign], np.float32), (len(rows), 1))


def straight(rows: np.ndarray, step: int) -> np.ndarray:
    return np.stack([straight_to_goal(row) for row in rows])


def full_speed(rows: np.ndarray, step: int) -> np.ndarray:
    return np.tile(np.array([1.0, 0.3 * math.sin(step / 9)], np.float32), (len(rows), 1))


def plan(rows: np.ndarray, step: int) -> np.ndarray:
    return np.stack([dynamic_window(row) for row in rows])


def endings(reward_name: str, act: Act, seeds: int = 8) -> list[dict[str, Any]]:
    names = list(SCENARIOS)
    streams = [iter([Episode(name, seed)]) for name in names for seed in range(seeds)]
    kwargs = SNQI if reward_name == "snqi_step" else {}
    env = SocialNavVecEnv(SCENARIOS, streams, reward_name=reward_name, reward_kwargs=kwargs)
    rows, infos_of_ends = env.reset(), []
    for step in count():
        if not env.running.any():
            return infos_of_ends
        rows, _, done, infos = env.step(act(rows, step))
        infos_of_ends += [infos[i] for i in np.flatnonzero(done)]
    raise AssertionError


@pytest.mark.parametrize("reward_name", REWARDS)
def test_no_crash_scores_better_than_any_episode_that_stays_alive_to_the_horizon(reward_name: str) -> None:
    infos = [info for act in (still, random, flail, straight, full_speed) for info in endings(reward_name, act)]
    crashed = [info["episode"]["r"] for info in infos if info["outcome"]["collision"]]
    alive = [info["episode"]["r"] for info in infos if info["TimeLimit.truncated"]]
    assert len(crashed) > 200 and len(alive) > 200
    assert max(crashed) < min(alive)


@pytest.mark.parametrize("reward_name", REWARDS)
def test_reaching_the_goal_scores_better_than_standing_still(reward_name: str) -> None:
    arrived = [info["episode"]["r"] for info in endings(reward_name, straight, 4) if info["outcome"]["success"]]
    waited = [info["episode"]["r"] for info in endings(reward_name, still, 4) if info["TimeLimit.truncated"]]
    assert np.mean(arrived) > np.mean(waited)


def play(env: SocialNavEnv, act: Act, seed: int) -> tuple[list[float], list[np.void], dict[str, Any]]:
    observation, _ = env.reset(seed=seed)
    rewards, states = [], [env.state()]
    for step in count():
        observation, reward, terminated, truncated, info = env.step(act(observation[None], step)[0])
        rewards.append(reward)
        states.append(env.state())
        if terminated or truncated:
            return rewards, states, info
    raise AssertionError


def test_simple_pays_living_costs_and_the_outcome() -> None:
    rewards, _, info = play(SocialNavEnv("perpendicular_traffic", pedestrians=0, reward_name="simple"), straight, 0)
    assert info["success"]
    np.testing.assert_allclose(rewards[:-1], -0.1 / 200, rtol=1e-6)
    assert rewards[-1] == pytest.approx(1.0 - 0.1 / 200)
    rewards, _, info = play(SocialNavEnv("blind_corner", pedestrians=0, reward_name="simple"), straight, 0)
    assert info["collision_wall"] and rewards[-1] == pytest.approx(-2.0 - 0.1 / 200)
    env = SocialNavEnv("circular_crossing", "high", reward_name="simple")
    ends = [play(env, straight, seed) for seed in range(20)]
    hit = [rewards[-1] for rewards, _, info in ends if info["collision_pedestrian"]]
    assert hit and hit == pytest.approx([-5.0 - 0.1 / 200] * len(hit))


def test_punish_action_is_simple_less_a_tenth_of_the_change_of_action() -> None:
    actions = np.array([[-1, 0], [0, 0], [0.6, 0.8], [0.6, 0.8]], np.float32)
    env = SocialNavEnv("perpendicular_traffic", pedestrians=0, reward_name="punish_action")
    env.reset(seed=0)
    rewards = [env.step(action)[1] for action in actions]
    np.testing.assert_allclose(rewards, [-0.0005 - 0.1 * change for change in (0.0, 1.0, 1.0, 0.0)], rtol=1e-5)
    rewards, _, _ = play(SocialNavEnv("blind_corner", pedestrians=0, reward_name="punish_action"), straight, 0)
    assert sum(rewards) == pytest.approx(-2.0 - 0.1 - 200 * 0.1 * math.sqrt(8), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_progress_agrees_with_its_formula(family: str) -> None:
    rewards, states, info = play(SocialNavEnv(family, "high"), plan, 3)
    people = int(states[0]["pedestrians"])
    expected = []
    for before, after in pairwise(states):
        depth = min(max(1.0 - after["clearance"] / 0.5, 0.0), 1.0)
        disturbed = (after["force_events"] - before["force_events"]) / people
        change = np.linalg.norm(after["action"] - before["action"]) / math.sqrt(8)
        progress = 0.25 * (before["path_distance"] - after["path_distance"])
        expected.append(progress - 0.003 - 0.015 * depth - 0.01 * disturbed - 0.005 * change)
    expected[-1] += 2.0 * info["success"]
    if not info["collision"]:
        np.testing.assert_allclose(rewards, expected, atol=1e-6)
    else:
        np.testing.assert_allclose(rewards[:-1], expected[:-1], atol=1e-6)
        assert rewards[-1] < -2.0


def test_a_crash_takes_the_return_to_the_worst_that_staying_alive_can_score() -> None:
    rewards, _, info = play(SocialNavEnv("blind_corner", "low"), straight, 0)
    assert info["collision"]
    assert sum(rewards) == pytest.approx(-2.0 - 0.25 - 200 * (0.003 + 0.015 + 0.01 + 0.005), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_snqi_step_adds_up_to_the_index_of_the_episode(family: str) -> None:
    rewards, _, info = play(SocialNavEnv(family, "high", reward_name="snqi_step", reward_kwargs=SNQI), plan, 4)
    weights, baseline = load_weights(WEIGHTS_FILE), load_baseline(BASELINE_FILE)
    index = float(snqi({key: np.array([value]) for key, value in info.items()}, weights, baseline)[0])
    if info["success"]:
        # comfort is spread over the horizon while the index divides by the steps made
        index += weights["comfort"] * info["comfort_exposure"] * (1 - len(rewards) / 200)
        assert sum(rewards) == pytest.approx(index, abs=1e-4)
    elif info["collision"]:
        assert sum(rewards) == pytest.approx(-sum(weights.values()) + weights["success"], abs=1e-4)
        assert sum(rewards) <= index
    else:
        assert sum(rewards) == pytest.approx(index, abs=1e-4)


def test_snqi_step_takes_its_files_by_path(tmp_path: Path) -> None:
    weights = json.loads(WEIGHTS_FILE.read_text()) | {"success": 7.0}
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    kwargs = SNQI | {"weights": str(tmp_path / "weights.json")}
    env = SocialNavEnv("perpendicular_traffic", pedestrians=0, reward_name="snqi_step", reward_kwargs=kwargs)
    rewards, _, info = play(env, straight, 0)
    assert info["success"] and rewards[-1] > 6.5
    with pytest.raises(BadInput, match="nowhere"):
        SocialNavEnv(reward_name="snqi_step", reward_kwargs=SNQI | {"baseline": str(tmp_path / "nowhere.json")})
    for missing in SNQI:
        with pytest.raises(BadInput, match=f"reward_kwargs of 'snqi_step': key {missing!r} is missing"):
            SocialNavEnv(reward_name="snqi_step", reward_kwargs={k: v for k, v in SNQI.items() if k != missing})


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("progress", {"colision": 1.0}, "Did you mean 'collision'"),
        ("simple", {"progress": 1.0}, "Allowed here: goal, living, obstacle, pedestrian"),
        ("simple", {"goal": -1.0}, "goal = -1.0: input should be greater than or equal to 0"),
        ("simple", {"goal": "much"}, "goal = 'much': input should be a valid number"),
        ("progress", {"success": math.inf}, "success = inf: input should be a finite number"),
        ("simple", {"obstacle": 0.05}, "at least living"),
        ("snqi_step", SNQI | {"weights": 3}, "weights = 3: input should be a valid string"),
        ("speed", {}, "allowed are progress, simple, punish_action, snqi_step"),
    ],
)
def test_a_wrong_reward_argument_is_named(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SocialNavEnv(reward_name=name, reward_kwargs=kwargs)

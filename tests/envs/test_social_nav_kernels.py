"""Pieces of the simulation with known answers: arithmetic, forces, drive, range scan; and training on it."""

import math
from itertools import count

import numpy as np
import pytest
from stable_baselines3 import PPO

from pipeline.envs.episodes import Episode
from pipeline.envs.social_nav import dynamics, geometry
from pipeline.envs.social_nav.environment import SocialNavEnv
from pipeline.envs.social_nav.layout import MAX_ACCELERATION, MAX_TURN, SLOT
from pipeline.envs.social_nav.observation import FEATURES, OBSERVATION_SIZE
from pipeline.envs.social_nav.vector import SocialNavVecEnv


def test_the_polynomial_is_the_exponential() -> None:
    xs = np.linspace(0.0, 15.99, 4000)
    ours = np.array([geometry.decay(x) for x in xs])
    np.testing.assert_allclose(ours, np.exp(-xs), rtol=1e-6)
    assert geometry.decay(16.0) == geometry.decay(1e9) == 0.0


def test_segments_cross_or_do_not() -> None:
    assert geometry.crosses(0.0, -1.0, 0.0, 1.0, -1.0, 0.0, 1.0, 0.0)
    assert not geometry.crosses(0.0, 0.5, 0.0, 1.0, -1.0, 0.0, 1.0, 0.0)
    assert geometry.segment_distance(3.0, 4.0, -1.0, 0.0, 0.0, 0.0) == 5.0


def test_repulsion_of_two_bodies_at_rest_is_that_of_helbing_and_molnar() -> None:
    fx, fy = dynamics._social_force(0.9, 0.0, 0.0, 0.0, -1.0, 0.0)
    assert (fx, fy) == (pytest.approx(7.0 * math.exp(-0.9 / 0.3), rel=1e-5), 0.0)
    behind, _ = dynamics._social_force(0.9, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert behind == pytest.approx(fx / 2)


def test_somebody_who_comes_nearer_repels_more() -> None:
    at_rest = np.hypot(*dynamics._social_force(1.0, 0.3, 0.0, 0.0, -1.0, 0.0))
    approaching = np.hypot(*dynamics._social_force(1.0, 0.3, 0.6, 0.0, -1.0, 0.0))
    assert approaching > 1.5 * at_rest


def test_a_pedestrian_alone_reaches_its_desired_speed_within_the_relaxation_time() -> None:
    env = SocialNavEnv("perpendicular_traffic", pedestrians=1)
    env.reset(seed=0)
    for _ in range(15):
        env.step(np.array([-1.0, 0.0]))
    state = env.state()
    assert np.hypot(state["ped_vx"][0], state["ped_vy"][0]) == pytest.approx(state["ped_speed"][0], rel=0.02)


def test_the_robot_keeps_its_acceleration_limits_and_reaches_its_targets() -> None:
    env = SocialNavEnv("circular_crossing", pedestrians=0)
    env.reset(seed=0)
    speeds, turns, headings = [0.0], [0.0], []
    for _ in range(12):
        env.step(np.array([1.0, 1.0]))
        state = env.state()
        speeds.append(float(state["speed"]))
        turns.append(float(state["turn"]))
        headings.append(math.atan2(state["sin"], state["cos"]))
    assert max(np.diff(speeds)) == pytest.approx(MAX_ACCELERATION * 0.1)
    assert speeds[-1] == pytest.approx(1.0) and turns[-1] == pytest.approx(MAX_TURN)
    assert (headings[-1] - headings[-2]) % (2 * math.pi) == pytest.approx(MAX_TURN * 0.1, rel=1e-6)


def test_the_range_scan_measures_the_walls_of_a_corridor() -> None:
    env = SocialNavEnv("parallel_traffic", pedestrians=0)
    env.reset(seed=2)
    for _ in range(60):  # turn until the robot looks along the corridor
        state = env.state()
        if abs(state["sin"]) < 0.01:
            break
        observation, *_ = env.step(np.array([-1.0, np.clip(-state["sin"] * 6, -1, 1)]))
    state = env.state()
    half = abs(state["walls"][0, 1])
    left, right = (1.0 / observation[FEATURES.index(f"proximity_{k}")] - 0.7 for k in ("06", "18"))
    assert left == pytest.approx(half - state["y"], abs=0.01)
    assert right == pytest.approx(half + state["y"], abs=0.01)


def test_the_observation_tells_where_pedestrians_are_and_hides_those_behind_walls() -> None:
    env = SocialNavEnv("blind_corner", "low")
    hidden = 0
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        state = env.state()
        present = observation[FEATURES.index("pedestrian_0_present")]
        if not present:
            hidden += 1
            continue
        x, y = (6.0 * observation[FEATURES.index(f"pedestrian_0_{axis}")] for axis in "xy")
        world_x = state["x"] + state["cos"] * x - state["sin"] * y
        world_y = state["y"] + state["sin"] * x + state["cos"] * y
        distances = np.hypot(state["ped_x"][:2] - world_x, state["ped_y"][:2] - world_y)
        assert distances.min() < 1e-4
    assert hidden > 0


def test_memory_is_one_record_and_one_row_per_environment() -> None:
    assert SLOT.itemsize + 4 * OBSERVATION_SIZE < 4096
    env = SocialNavVecEnv({"a": {}}, [iter([Episode("a", k)]) for k in range(7)])
    assert env.states().nbytes == 7 * SLOT.itemsize


def test_training_on_it_twice_gives_the_same_policy() -> None:
    def train() -> np.ndarray:
        streams = [(Episode("a", 1000 * i + k) for k in count()) for i in range(4)]
        env = SocialNavVecEnv({"a": {"scenario": "crowd_navigation"}}, streams)
        model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
        model.learn(512)
        return model.policy.state_dict()["action_net.weight"].numpy()

    first, second = train(), train()
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)

"""How episodes begin: nobody overlaps, a standing robot is safe at first; and how hard the task is."""

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from benchmarks.social_nav_planners import dynamic_window, stand_still, straight_to_goal
from pipeline.envs.episodes import Episode
from pipeline.envs.social_nav.environment import SocialNavEnv
from pipeline.envs.social_nav.scenarios import DENSITIES, FAMILIES, PEDESTRIANS
from pipeline.envs.social_nav.vector import SocialNavVecEnv

SCENARIOS = {f"{f}_{d}": {"scenario": f, "density": d} for f in FAMILIES for d in DENSITIES}
TRAINING = [f for f in FAMILIES if f not in ("perpendicular_traffic", "crowd_navigation")]
SEEDS = 1000


@pytest.fixture(scope="module", params=list(SCENARIOS))
def spawned(request: pytest.FixtureRequest) -> tuple[str, SocialNavVecEnv]:
    """A thousand episodes of one scenario, just begun."""
    env = SocialNavVecEnv(SCENARIOS, [iter([Episode(request.param, seed)]) for seed in range(SEEDS)])
    env.reset()
    return request.param, env


def test_nobody_overlaps_and_a_standing_robot_is_safe_for_a_second(spawned: tuple[str, SocialNavVecEnv]) -> None:
    name, env = spawned
    states = env.states()
    family, density = SCENARIOS[name]["scenario"], SCENARIOS[name]["density"]
    people = PEDESTRIANS[family][DENSITIES.index(density)]
    assert (states["pedestrians"] == people).all()
    x, y = states["ped_x"][:, :people], states["ped_y"][:, :people]
    assert np.hypot(x - states["x"][:, None], y - states["y"][:, None]).min() > 2.7
    apart = np.hypot(x[:, :, None] - x[:, None, :], y[:, :, None] - y[:, None, :]) + 9.0 * np.eye(people)
    assert apart.min() > 0.6
    stand = np.tile(stand_still(np.zeros(1)), (SEEDS, 1))
    for _ in range(10):
        _, _, done, _ = env.step(stand)
        assert not done.any()


def test_start_and_goal_are_free_of_walls_and_apart(spawned: tuple[str, SocialNavVecEnv]) -> None:
    states = spawned[1].states()
    for state in states[:200]:
        walls = state["walls"][: state["wall_count"]]
        for point in ((state["x"], state["y"]), (state["goal_x"], state["goal_y"])):
            a, b, p = walls[:, :2], walls[:, 2:], np.array(point)
            t = np.clip(((p - a) * (b - a)).sum(1) / ((b - a) ** 2).sum(1), 0, 1)
            distances = np.linalg.norm(p - a - t[:, None] * (b - a), axis=1)
            assert distances.min(initial=np.inf) > 0.4
        assert state["shortest_path"] > 5.0
        assert np.isfinite(state["bend_distance"][: state["bend_count"]]).all()


def play(policy: Callable[[np.ndarray], np.ndarray], families: list[str], each: int) -> np.ndarray:
    """(success rate, collision rate) over `each` episodes of every density of the families."""
    names = [f"{f}_{d}" for f in families for d in DENSITIES]
    env = SocialNavVecEnv(SCENARIOS, [iter([Episode(n, 5000 + k)]) for n in names for k in range(each)])
    observations = env.reset()
    outcomes = []
    while env.running.any():
        actions = np.zeros((env.num_envs, 2), np.float32)
        actions[env.running] = [policy(row) for row in observations[env.running]]
        observations, _, done, infos = env.step(actions)
        outcomes += [[infos[i]["outcome"][key] for key in ("success", "collision")] for i in np.flatnonzero(done)]
    return np.mean(outcomes, axis=0)


def test_straight_to_the_goal_fails_in_at_least_forty_percent_of_the_training_episodes() -> None:
    assert play(straight_to_goal, TRAINING, 100)[0] <= 0.60


def test_straight_to_the_goal_fails_as_often_on_the_small_training_set() -> None:
    families = ["frontal_approach", "intersection", "parallel_traffic", "circular_crossing"]
    names = [f"{f}_{d}" for f in families for d in ("low", "medium")]
    env = SocialNavVecEnv(SCENARIOS, [iter([Episode(n, 5000 + k)]) for n in names for k in range(150)])
    observations, reached = env.reset(), 0.0
    while env.running.any():
        actions = np.zeros((env.num_envs, 2), np.float32)
        actions[env.running] = [straight_to_goal(row) for row in observations[env.running]]
        observations, _, done, infos = env.step(actions)
        reached += sum(infos[i]["outcome"]["success"] for i in np.flatnonzero(done))
    assert reached / env.num_envs <= 0.60


def test_a_planner_shows_that_the_task_can_be_done() -> None:
    success, collision = play(dynamic_window, ["intersection", "blind_corner", "circular_crossing"], 10)
    assert success >= 0.85 and collision <= 0.05


def test_standing_still_and_acting_at_random_reach_nothing() -> None:
    rng = np.random.default_rng(0)
    success, collision = play(stand_still, TRAINING, 20)
    assert success == 0.0 and collision < 0.08
    assert play(lambda _: rng.uniform(-1.0, 1.0, 2), TRAINING, 20)[0] < 0.05


def test_left_and_right_are_equally_frequent() -> None:
    streams = [(Episode("blind_corner_low", k) for k in count(i)) for i in range(SEEDS)]
    env = SocialNavVecEnv(SCENARIOS, streams)
    env.reset()
    share = (env.states()["goal_y"] > 0).mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(SEEDS)


def test_pedestrians_walk_on_to_their_waypoints_and_back() -> None:
    env = SocialNavEnv("perpendicular_traffic", "low", horizon=400)
    env.reset(seed=1)
    directions = []
    for _ in range(400):
        env.step(np.array([-1.0, 0.0]))
        directions.append(env.state()["route_direction"][:4].copy())
    assert {-1, 1} == set(np.unique(directions))

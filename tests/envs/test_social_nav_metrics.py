"""Episode metrics against an independent recomputation in plain numpy from a recorded trace, and worked examples."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.social_nav_planners import dynamic_window, straight_to_goal
from pipeline.envs.social_nav.environment import SocialNavEnv
from pipeline.envs.social_nav.scenarios import FAMILIES

DT, ROBOT, PERSON = 0.1, 0.30, 0.25


def social_force(d: np.ndarray, y: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Elliptical specification II with the exact exponential: body d away, relative motion y, wish direction e."""
    near, later = np.linalg.norm(d), np.linalg.norm(d - y)
    b = max(0.5 * math.sqrt(max((near + later) ** 2 - y @ y, 0.0)), 0.02)
    gradient = (near + later) / (4 * b) * (d / near + (d - y) / later)
    weight = 1.0 if -(d @ e) >= math.cos(math.radians(100)) * near else 0.5
    return weight * 7.0 * math.exp(-b / 0.3) * gradient


def robot_force(state: np.void, velocity: np.ndarray, i: int, target: np.ndarray) -> float:
    person = np.array([state["ped_x"][i], state["ped_y"][i]])
    d = person - np.array([state["x"], state["y"]])
    y = (velocity - np.array([state["ped_vx"][i], state["ped_vy"][i]])) * 0.5
    e = (target - person) / np.linalg.norm(target - person)
    distance = np.linalg.norm(d)
    hull = 50.0 * math.exp(-max(distance - ROBOT, 0.0) / 0.2) * d / distance
    return float(np.linalg.norm(social_force(d, y, e) + hull))


def to_segment(p: np.ndarray, wall: np.ndarray) -> float:
    a, b = wall[:2], wall[2:]
    t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return float(np.linalg.norm(p - a - t * (b - a)))


def cross(u: np.ndarray, v: np.ndarray) -> float:
    return float(u[0] * v[1] - u[1] * v[0])


def blocked(p: np.ndarray, q: np.ndarray, walls: np.ndarray) -> bool:
    for wall in walls:
        a, b = wall[:2], wall[2:]
        apart = cross(b - a, p - a) * cross(b - a, q - a) < 0
        if apart and cross(q - p, a - p) * cross(q - p, b - p) < 0:
            return True
    return False


def shortest_path(state: np.void) -> float:
    """The shortest chain start - any turning points in any order - goal that no wall crosses, by trying all of them."""
    walls, bends = state["walls"][: state["wall_count"]], state["bends"][: state["bend_count"]]
    start, goal = np.array([state["x"], state["y"]]), np.array([state["goal_x"], state["goal_y"]])
    lengths = [math.inf]
    for count in range(len(bends) + 1):
        for order in itertools.permutations(bends, count):
            points = [start, *order, goal]
            legs = list(itertools.pairwise(points))
            if not any(blocked(p, q, walls) for p, q in legs):
                lengths.append(sum(float(np.linalg.norm(q - p)) for p, q in legs))
    return min(lengths)


def recompute(states: list[np.void], horizon: int) -> dict[str, float]:
    """Every metric from the states s_0 ... s_T of an episode."""
    steps, people = len(states) - 1, int(states[0]["pedestrians"])
    places = np.array([[s["x"], s["y"]] for s in states])
    velocities = np.vstack([np.zeros(2), np.diff(places, axis=0) / DT])
    jerks = np.linalg.norm(np.diff(velocities, n=2, axis=0) / DT**2, axis=1)
    near, events, hit_person, hit_wall = 0, 0, False, False
    for t in range(1, steps + 1):
        before, after = states[t - 1], states[t]
        gaps = [np.hypot(after["ped_x"][i] - after["x"], after["ped_y"][i] - after["y"]) for i in range(people)]
        clearance = min(gaps, default=math.inf) - ROBOT - PERSON
        near += 0 <= clearance < 0.5
        hit_person |= bool(clearance < 0)
        walls = after["walls"][: after["wall_count"]]
        hit_wall |= any(to_segment(places[t], wall) < ROBOT for wall in walls)
        for i in range(people):
            # the waypoint may change at the beginning of a step: what counts is the one walked to in it
            target = np.array([after["ped_target_x"][i], after["ped_target_y"][i]])
            events += robot_force(before, velocities[t - 1], i, target) > 2.0
    last = states[-1]
    success = bool(
        np.hypot(last["x"] - last["goal_x"], last["y"] - last["goal_y"]) < 0.3 and not (hit_person or hit_wall)
    )
    travelled = float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())
    return {
        "success": float(success),
        "collision": float(hit_person or hit_wall),
        "near_misses": float(near),
        "force_exceed_events": float(events),
        "comfort_exposure": events / (people * steps) if people else 0.0,
        "jerk_mean": float(jerks.mean()) if len(jerks) else 0.0,
        "path_efficiency": min(1.0, shortest_path(states[0]) / travelled),
        "time_norm": steps / horizon if success else 1.0,
        "time_to_goal": (steps if success else horizon) * DT,
    }


def record(
    env: SocialNavEnv, act: Callable[[np.ndarray], np.ndarray], seed: int
) -> tuple[list[np.void], dict[str, float]]:
    observation, info = env.reset(seed=seed)
    states, over = [env.state()], False
    while not over:
        observation, _, terminated, truncated, info = env.step(act(observation))
        states.append(env.state())
        over = terminated or truncated
    return states, info


@pytest.mark.parametrize("policy", [straight_to_goal, dynamic_window])
@pytest.mark.parametrize("family", FAMILIES)
def test_metrics_agree_with_a_recomputation_from_the_trace(
    family: str, policy: Callable[[np.ndarray], np.ndarray]
) -> None:
    env = SocialNavEnv(family, "high")
    for seed in (11, 12, 13):
        states, info = record(env, policy, seed)
        for name, value in recompute(states, 200).items():
            assert info[name] == pytest.approx(value, rel=1e-6, abs=1e-6), (name, seed)
        assert info["collision"] == info["collision_pedestrian"] + info["collision_wall"]


def test_without_pedestrians_nobody_is_disturbed() -> None:
    _, info = record(SocialNavEnv("perpendicular_traffic", pedestrians=0), straight_to_goal, 0)
    assert info["success"] == 1.0
    assert info["near_misses"] == info["force_exceed_events"] == info["comfort_exposure"] == 0.0
    assert info["path_efficiency"] > 0.95


def test_metrics_cover_the_whole_episode_and_start_anew_with_each() -> None:
    env = SocialNavEnv("frontal_approach", "high")
    _, first = record(env, dynamic_window, 5)
    _, second = record(env, dynamic_window, 6)
    _, again = record(env, dynamic_window, 5)
    assert first == again != second
    assert first["near_misses"] > 1


def test_the_shortest_path_goes_around_the_corner() -> None:
    env = SocialNavEnv("blind_corner", "low")
    env.reset(seed=0)
    state = env.state()
    straight = math.hypot(state["goal_x"] - state["x"], state["goal_y"] - state["y"])
    assert state["shortest_path"] == pytest.approx(shortest_path(state))
    assert state["shortest_path"] > straight + 0.1


def test_a_robot_that_stands_has_no_jerk_and_times_out() -> None:
    _, info = record(SocialNavEnv("perpendicular_traffic"), lambda _: np.array([[-1.0, 0.0]]), 1)
    assert (info["jerk_mean"], info["success"], info["time_norm"]) == (0.0, 0.0, 1.0)

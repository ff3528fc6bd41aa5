"""Reference policies: scripted demonstrators that see the observation only. A learned expert is read against them.

Each is a function of one observation, (OBSERVATION_SIZE,) float32 -> (2,) float32. They demonstrate too, in a checkout:
`-P scripted.demonstrator=benchmarks.social_nav_planners:dynamic_window`.
"""

import math

import numpy as np
from numba import njit

from pipeline.envs.social_nav.layout import MAX_SPEED, MAX_TURN, PEDESTRIAN_RADIUS, ROBOT_RADIUS
from pipeline.envs.social_nav.observation import (
    FEATURES,
    GOAL_SCALE,
    NEAREST,
    RAY_COS,
    RAY_SIN,
    RAYS,
    VELOCITY_SCALE,
    VIEW,
)

_COLUMN = {name: k for k, name in enumerate(FEATURES)}


def stand_still(observation: np.ndarray) -> np.ndarray:
    """Never moves: what a robot that does nothing is worth, and how careful pedestrians are."""
    return np.array([-1.0, 0.0], np.float32)


def straight_to_goal(observation: np.ndarray) -> np.ndarray:
    """Turns to the goal and drives at full speed, blind to walls and people."""
    angle = math.atan2(observation[_COLUMN["goal_sin"]], observation[_COLUMN["goal_cos"]])
    turn = min(1.0, max(-1.0, 2.0 * angle / MAX_TURN))
    return np.array([1.0 if abs(angle) < 0.8 else -1.0, turn], np.float32)


def dynamic_window(observation: np.ndarray, max_speed: float = MAX_SPEED) -> np.ndarray:
    """The dynamic window approach (Fox, Burgard, Thrun 1997) with pedestrians foreseen at constant velocity.

    Among 5 x 15 pairs of speed and turn rate it picks the arc of 2 s that ends nearest to the next waypoint, keeps
    clear of the scanned walls and of where the pedestrians will be, and does not crash.
    """
    action = np.empty(2, np.float32)
    _plan(np.ascontiguousarray(observation, np.float32), max_speed, action)
    return action


_SPEED, _TURN = _COLUMN["speed"], _COLUMN["turn_rate"]
_GOAL, _WAY_COS, _WAY_SIN = _COLUMN["goal_distance"], _COLUMN["waypoint_cos"], _COLUMN["waypoint_sin"]
_PEOPLE, _SCAN = _COLUMN["pedestrian_0_x"], _COLUMN["proximity_00"]
_SPEEDS, _TURNS = 5, 15
_MOMENTS, _MOMENT = 10, 0.2  # instants of an arc, and s between them
_LOOK_AHEAD = 2.5  # m, distance of the point on the way that arcs should end near
_COMFORTABLE = 0.5  # m of clearance; less costs
_CLEARANCE_WEIGHT = 2.0
_CRASH_COST = 20.0
_MARGIN, _MARGIN_GROWTH = 0.05, 0.08  # m and m/s: what counts as a crash, as predictions age


@njit(error_model="numpy")
def _scan_points(row: np.ndarray, max_speed: float, people: np.ndarray, points: np.ndarray) -> tuple[int, int]:
    """Pedestrians (x, y, vx, vy in the robot frame, m and m/s) and scanned wall points (x, y); returns both counts."""
    seen = 0
    for k in range(NEAREST):
        at = _PEOPLE + 5 * k
        if row[at + 4] > 0.5:
            people[seen, 0], people[seen, 1] = row[at] * VIEW, row[at + 1] * VIEW
            people[seen, 2] = row[at + 2] * VELOCITY_SCALE + row[_SPEED] * max_speed
            people[seen, 3] = row[at + 3] * VELOCITY_SCALE
            seen += 1
    walls = 0
    for r in range(RAYS):
        reach = 1.0 / row[_SCAN + r] - 1.0 + ROBOT_RADIUS
        if not reach < VIEW - 0.01:
            continue
        x, y = reach * RAY_COS[r], reach * RAY_SIN[r]
        is_body = False
        for k in range(seen):
            is_body = is_body or math.hypot(x - people[k, 0], y - people[k, 1]) < PEDESTRIAN_RADIUS + 0.1
        if not is_body:
            points[walls, 0], points[walls, 1] = x, y
            walls += 1
    return seen, walls


@njit
def _arc_cost(
    speed: float, turn: float, target: np.ndarray, people: np.ndarray, seen: int, points: np.ndarray, walls: int
) -> float:
    """Cost of driving one arc; lower is better."""
    x = y = angle = 0.0
    least = math.inf
    for moment in range(1, _MOMENTS + 1):
        time = moment * _MOMENT
        angle += turn * _MOMENT
        x += speed * math.cos(angle) * _MOMENT
        y += speed * math.sin(angle) * _MOMENT
        clearance = math.inf
        for k in range(walls):
            clearance = min(clearance, math.hypot(points[k, 0] - x, points[k, 1] - y) - ROBOT_RADIUS)
        for k in range(seen):
            px, py = people[k, 0] + people[k, 2] * time, people[k, 1] + people[k, 3] * time
            apart = math.hypot(px - x, py - y) - ROBOT_RADIUS - PEDESTRIAN_RADIUS - _MARGIN_GROWTH * time
            clearance = min(clearance, apart)
        least = min(least, clearance)
        if clearance < _MARGIN:
            return _CRASH_COST * (2.0 - moment / _MOMENTS)
    return math.hypot(target[0] - x, target[1] - y) + _CLEARANCE_WEIGHT * max(_COMFORTABLE - least, 0.0)


# subtle: not cached: numba's cache knows a module by one name, and this has two (in a script's folder, in a checkout)
@njit(error_model="numpy")
def _plan(row: np.ndarray, max_speed: float, action: np.ndarray) -> None:
    people, points, target = np.empty((NEAREST, 4)), np.empty((RAYS, 2)), np.empty(2)
    seen, walls = _scan_points(row, max_speed, people, points)
    ahead = min(row[_GOAL] * GOAL_SCALE, _LOOK_AHEAD)
    target[0], target[1] = row[_WAY_COS] * ahead, row[_WAY_SIN] * ahead
    best = math.inf
    for a in range(_SPEEDS):
        for b in range(_TURNS):
            forward, turn = a / (_SPEEDS - 1.0), 2.0 * b / (_TURNS - 1.0) - 1.0
            cost = _arc_cost(forward * max_speed, turn * MAX_TURN, target, people, seen, points, walls)
            cost += 0.05 * abs(turn - row[_TURN])
            if cost < best:
                best = cost
                action[0], action[1] = 2.0 * forward - 1.0, turn

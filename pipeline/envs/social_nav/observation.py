"""What the robot perceives: `FEATURES` names each entry; the kernel fills one float32 row, every entry in [-1, 1].

Positions and velocities are in the robot frame (x ahead, y to the left). Pedestrians behind a wall are not seen.
"""

import math

import numpy as np
from numba import njit

from pipeline.envs.social_nav.layout import (
    FAR_AWAY,
    MAX_PEDESTRIANS,
    MAX_TURN,
    PEDESTRIAN_RADIUS,
    ROBOT_RADIUS,
    Slot,
)

NEAREST = 6  # pedestrians in the observation
RAYS = 24
VIEW = 6.0  # m, reach of the range scan and scale of relative positions
GOAL_SCALE = 12.0  # m
VELOCITY_SCALE = 3.0  # m/s

FEATURES = (
    "goal_distance",
    "goal_cos",
    "goal_sin",
    "path_distance",
    "waypoint_cos",
    "waypoint_sin",
    "speed",
    "turn_rate",
    *(f"pedestrian_{k}_{part}" for k in range(NEAREST) for part in ("x", "y", "vx", "vy", "present")),
    *(f"proximity_{k:02d}" for k in range(RAYS)),
)
OBSERVATION_SIZE = len(FEATURES)
_PEDESTRIANS_AT = FEATURES.index("pedestrian_0_x")
_SCAN_AT = FEATURES.index("proximity_00")

_angles = 2.0 * np.pi * np.arange(RAYS) / RAYS
RAY_COS = np.round(np.cos(_angles), 15)  # rounded: the same bits with every mathematical library
RAY_SIN = np.round(np.sin(_angles), 15)


@njit
def _bounded(value: float) -> float:
    return min(max(value, -1.0), 1.0)


@njit
def _see_people(slot: Slot, out: np.ndarray) -> None:
    """Fill the nearest visible pedestrians, nearest first; absent ones stay zero."""
    x, y, cos, sin = slot.x, slot.y, slot.cos, slot.sin
    for i in range(MAX_PEDESTRIANS):
        dx, dy = slot.ped_x[i] - x, slot.ped_y[i] - y
        slot.local_x[i] = cos * dx + sin * dy
        slot.local_y[i] = cos * dy - sin * dx
        slot.distance[i] = math.sqrt(dx * dx + dy * dy)
    for k in range(slot.wall_count):
        x1, y1, x2, y2 = slot.walls[k, 0], slot.walls[k, 1], slot.walls[k, 2], slot.walls[k, 3]
        ex, ey = x2 - x1, y2 - y1
        own_side = ex * (y - y1) - ey * (x - x1)
        for i in range(MAX_PEDESTRIANS):
            side = ex * (slot.ped_y[i] - y1) - ey * (slot.ped_x[i] - x1)
            dx, dy = slot.ped_x[i] - x, slot.ped_y[i] - y
            first = dx * (y1 - y) - dy * (x1 - x)
            second = dx * (y2 - y) - dy * (x2 - x)
            hidden = (own_side * side < 0.0) & (first * second < 0.0)
            slot.distance[i] = FAR_AWAY if hidden else slot.distance[i]
    vx, vy = slot.velocity_x, slot.velocity_y
    for k in range(NEAREST):
        nearest, least = 0, slot.distance[0]
        for i in range(1, MAX_PEDESTRIANS):
            if slot.distance[i] < least:
                nearest, least = i, slot.distance[i]
        at = _PEDESTRIANS_AT + 5 * k
        if least >= VIEW:
            out[at:_SCAN_AT] = 0.0
            return
        dx, dy = slot.ped_vx[nearest] - vx, slot.ped_vy[nearest] - vy
        out[at] = _bounded(slot.local_x[nearest] / VIEW)
        out[at + 1] = _bounded(slot.local_y[nearest] / VIEW)
        out[at + 2] = _bounded((cos * dx + sin * dy) / VELOCITY_SCALE)
        out[at + 3] = _bounded((cos * dy - sin * dx) / VELOCITY_SCALE)
        out[at + 4] = 1.0
        slot.distance[nearest] = FAR_AWAY


@njit
def _scan(slot: Slot, ranges: np.ndarray) -> None:
    """Distance (m) from the robot's centre to the first wall or body along each ray, at most `VIEW`."""
    for r in range(RAYS):
        ranges[r] = VIEW
    for i in range(slot.pedestrians):
        lx, ly = slot.local_x[i], slot.local_y[i]
        square = lx * lx + ly * ly
        if square < (VIEW + PEDESTRIAN_RADIUS) ** 2:
            rest = PEDESTRIAN_RADIUS * PEDESTRIAN_RADIUS - square
            for r in range(RAYS):
                along = lx * RAY_COS[r] + ly * RAY_SIN[r]
                inside = rest + along * along
                near = along - math.sqrt(max(inside, 0.0))
                hit = (inside > 0.0) & (along > 0.0) & (near < ranges[r])
                ranges[r] = near if hit else ranges[r]
    cos, sin = slot.cos, slot.sin
    for k in range(slot.wall_count):
        dx, dy = slot.walls[k, 0] - slot.x, slot.walls[k, 1] - slot.y
        ax, ay = cos * dx + sin * dy, cos * dy - sin * dx
        dx, dy = slot.walls[k, 2] - slot.walls[k, 0], slot.walls[k, 3] - slot.walls[k, 1]
        ex, ey = cos * dx + sin * dy, cos * dy - sin * dx
        across = ax * ey - ay * ex
        for r in range(RAYS):
            slope = 1.0 / (RAY_COS[r] * ey - RAY_SIN[r] * ex)
            near = across * slope
            share = (ax * RAY_SIN[r] - ay * RAY_COS[r]) * slope
            hit = (near >= 0.0) & (share >= 0.0) & (share <= 1.0) & (near < ranges[r])
            ranges[r] = near if hit else ranges[r]


@njit
def observe(slot: Slot, max_speed: float, out: np.ndarray, ranges: np.ndarray) -> None:
    """Fill `out` (OBSERVATION_SIZE,) float32; `ranges` (RAYS,) float64 is working memory."""
    dx, dy = slot.goal_x - slot.x, slot.goal_y - slot.y
    distance = math.sqrt(dx * dx + dy * dy) + 1e-9
    out[0] = min(distance / GOAL_SCALE, 1.0)
    out[1] = _bounded((slot.cos * dx + slot.sin * dy) / distance)
    out[2] = _bounded((slot.cos * dy - slot.sin * dx) / distance)
    dx, dy = slot.waypoint_x - slot.x, slot.waypoint_y - slot.y
    distance = math.sqrt(dx * dx + dy * dy) + 1e-9
    out[3] = min(slot.path_distance / GOAL_SCALE, 1.0)
    out[4] = _bounded((slot.cos * dx + slot.sin * dy) / distance)
    out[5] = _bounded((slot.cos * dy - slot.sin * dx) / distance)
    out[6] = _bounded(slot.speed / max_speed)
    out[7] = _bounded(slot.turn / MAX_TURN)
    _see_people(slot, out)
    _scan(slot, ranges)
    for r in range(RAYS):
        out[_SCAN_AT + r] = 1.0 / (1.0 + max(ranges[r] - ROBOT_RADIUS, 0.0))

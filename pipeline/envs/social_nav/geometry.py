"""Compiled geometry and arithmetic shared by the kernels. Lengths in m.

Only operations that IEEE 754 defines exactly (+ - * / sqrt) are used, in a fixed order and without fastmath, so that
results do not depend on vector width, batch size or mathematical library.
"""

import math

from numba import njit

from pipeline.envs.social_nav.layout import Slot


@njit
def decay(x: float) -> float:
    """exp(-x) for x >= 0, relative error below 1e-6 up to x = 16 and 0 beyond: a polynomial that vectorises.

    exp(-x) = exp(-x / 64)^64: Taylor to the sixth order on [0, 0.25], then six squarings.
    """
    y = -min(x, 16.0) * (1.0 / 64.0)
    p = 1.0 + y * (1.0 + y * (0.5 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720))))))
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    return p if x < 16.0 else 0.0


@njit
def segment_distance(px: float, py: float, x1: float, y1: float, x2: float, y2: float) -> float:
    """Distance of a point from a segment."""
    ex, ey = x2 - x1, y2 - y1
    share = ((px - x1) * ex + (py - y1) * ey) / (ex * ex + ey * ey)
    share = min(max(share, 0.0), 1.0)
    dx, dy = px - x1 - share * ex, py - y1 - share * ey
    return math.sqrt(dx * dx + dy * dy)


@njit
def crosses(ax: float, ay: float, bx: float, by: float, x1: float, y1: float, x2: float, y2: float) -> bool:
    """Whether the segments a-b and 1-2 cross properly (touching ends do not count)."""
    ex, ey = x2 - x1, y2 - y1
    side_a = ex * (ay - y1) - ey * (ax - x1)
    side_b = ex * (by - y1) - ey * (bx - x1)
    fx, fy = bx - ax, by - ay
    side_1 = fx * (y1 - ay) - fy * (x1 - ax)
    side_2 = fx * (y2 - ay) - fy * (x2 - ax)
    return side_a * side_b < 0.0 and side_1 * side_2 < 0.0


@njit
def sees(slot: Slot, ax: float, ay: float, bx: float, by: float) -> bool:
    """Whether no wall lies between two points."""
    for k in range(slot.wall_count):
        wall = slot.walls[k]
        if crosses(ax, ay, bx, by, wall[0], wall[1], wall[2], wall[3]):
            return False
    return True


@njit
def wall_clearance(slot: Slot, px: float, py: float) -> float:
    """Distance of a point from the nearest wall; infinite without walls."""
    nearest = math.inf
    for k in range(slot.wall_count):
        wall = slot.walls[k]
        nearest = min(nearest, segment_distance(px, py, wall[0], wall[1], wall[2], wall[3]))
    return nearest


@njit
def measure_bends(slot: Slot) -> None:
    """Shortest distance from every bend to the goal (Bellman-Ford over the few bends), infinite where there is none."""
    for k in range(slot.bend_count):
        bx, by = slot.bends[k, 0], slot.bends[k, 1]
        slot.bend_distance[k] = math.inf
        if sees(slot, bx, by, slot.goal_x, slot.goal_y):
            dx, dy = slot.goal_x - bx, slot.goal_y - by
            slot.bend_distance[k] = math.sqrt(dx * dx + dy * dy)
    for _ in range(slot.bend_count - 1):
        for k in range(slot.bend_count):
            for m in range(slot.bend_count):
                if k != m and sees(slot, slot.bends[k, 0], slot.bends[k, 1], slot.bends[m, 0], slot.bends[m, 1]):
                    dx, dy = slot.bends[m, 0] - slot.bends[k, 0], slot.bends[m, 1] - slot.bends[k, 1]
                    through = math.sqrt(dx * dx + dy * dy) + slot.bend_distance[m]
                    slot.bend_distance[k] = min(slot.bend_distance[k], through)


@njit
def follow_path(slot: Slot) -> None:
    """Set `path_distance` and the waypoint: the first point of the shortest path from the robot to the goal."""
    x, y = slot.x, slot.y
    dx, dy = slot.goal_x - x, slot.goal_y - y
    straight = math.sqrt(dx * dx + dy * dy)
    slot.path_distance = straight
    slot.waypoint_x, slot.waypoint_y = slot.goal_x, slot.goal_y
    if slot.bend_count == 0 or sees(slot, x, y, slot.goal_x, slot.goal_y):
        return
    shortest = math.inf
    for k in range(slot.bend_count):
        bx, by = slot.bends[k, 0], slot.bends[k, 1]
        length = math.sqrt((bx - x) * (bx - x) + (by - y) * (by - y)) + slot.bend_distance[k]
        if length < shortest and sees(slot, x, y, bx, by):
            shortest = length
            slot.waypoint_x, slot.waypoint_y = bx, by
    if shortest < math.inf:
        slot.path_distance = shortest

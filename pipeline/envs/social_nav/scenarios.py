"""The scenario families of Francis et al. (2023) and how an episode of each is laid out from a seed.

A. Francis et al., "Principles and guidelines for evaluating social robot navigation algorithms", 2023. Every family is
one function that draws walls, start, goal and turning points, and one branch of `_draw_route` that draws the route of a
pedestrian. The scene is mirrored at random, so that left and right are equally frequent. Lengths in m.
"""

import math

import numpy as np
from numba import njit

from pipeline.envs.social_nav.dynamics import SPEED_LEAST, SPEED_MEAN, SPEED_MOST, SPEED_SPREAD
from pipeline.envs.social_nav.geometry import follow_path, measure_bends, wall_clearance
from pipeline.envs.social_nav.layout import FAR_AWAY, MAX_PEDESTRIANS, Slot

DENSITIES = ("low", "medium", "high")
PEDESTRIANS = {  # of each family at these densities
    "frontal_approach": (3, 6, 9),
    "intersection": (3, 6, 10),
    "blind_corner": (2, 4, 7),
    "narrow_doorway": (2, 4, 6),
    "parallel_traffic": (3, 6, 10),
    "perpendicular_traffic": (4, 8, 12),
    "circular_crossing": (3, 6, 10),
    "crowd_navigation": (4, 8, 12),
}
FAMILIES = tuple(PEDESTRIANS)
FRONTAL, INTERSECTION, CORNER, DOORWAY, PARALLEL, PERPENDICULAR, CIRCULAR, CROWD = range(len(FAMILIES))

ROBOT_GUARD = 2.8  # nobody spawns nearer to the robot: 1 s at SPEED_FACTOR * SPEED_MOST plus both radii is 2.76 m
PEOPLE_GUARD = 0.7  # between pedestrians at spawn, centre to centre
WALL_GUARD = 0.35  # of waypoints and spawn places of pedestrians
CORNER_GUARD = 0.5  # turning points keep this distance from corners, beside each wall
ATTENTION_LEAST, ATTENTION_MOST = 0.3, 0.9  # share of the robot's social force that pedestrians react to
_TRIES = 2000

# random numbers: splitmix64 (Steele, Lea, Flood 2014), one 64-bit state per slot
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@njit
def uniform(slot: Slot, low: float, high: float) -> float:
    """A number in [low, high)."""
    slot.random_state = slot.random_state + _STEP
    z = slot.random_state
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    z = z ^ (z >> _S31)
    return low + (high - low) * (np.float64(z >> _S11) * (1.0 / 9007199254740992.0))


@njit
def either(slot: Slot, low: float, high: float) -> float:
    """A number with size in [low, high) and either sign."""
    size = uniform(slot, low, high)
    return size if uniform(slot, 0.0, 1.0) < 0.5 else -size


@njit
def bell(slot: Slot, mean: float, spread: float) -> float:
    """Nearly normal: the sum of four uniforms scaled to the mean and standard deviation (Irwin-Hall)."""
    total = uniform(slot, 0.0, 1.0) + uniform(slot, 0.0, 1.0) + uniform(slot, 0.0, 1.0) + uniform(slot, 0.0, 1.0)
    return mean + spread * (total - 2.0) * 1.7320508075688772


@njit
def _wall(slot: Slot, x1: float, y1: float, x2: float, y2: float) -> None:
    wall = slot.walls[slot.wall_count]
    wall[0], wall[1], wall[2], wall[3] = x1, y1, x2, y2
    slot.wall_count += 1


@njit
def _box(slot: Slot, x1: float, y1: float, x2: float, y2: float) -> None:
    _wall(slot, x1, y1, x2, y1)
    _wall(slot, x2, y1, x2, y2)
    _wall(slot, x2, y2, x1, y2)
    _wall(slot, x1, y2, x1, y1)


@njit
def _bend(slot: Slot, x: float, y: float) -> None:
    slot.bends[slot.bend_count, 0], slot.bends[slot.bend_count, 1] = x, y
    slot.bend_count += 1


@njit
def _place(slot: Slot, x: float, y: float, goal_x: float, goal_y: float) -> None:
    slot.x, slot.y, slot.goal_x, slot.goal_y = x, y, goal_x, goal_y


@njit
def _corridor(slot: Slot, half: float) -> None:
    """A straight corridor along x; both parallel and oncoming traffic use it."""
    _wall(slot, -9.0, -half, 9.0, -half)
    _wall(slot, -9.0, half, 9.0, half)
    side = half - 0.8
    _place(slot, -5.0, uniform(slot, -side, side), uniform(slot, 3.0, 4.5), uniform(slot, -side, side))


@njit
def _lay_out(slot: Slot, family: int) -> tuple[float, float]:
    """Walls, start, goal and turning points. Returns two numbers that the routes of the family need."""
    a, b = 0.0, 0.0
    if family == FRONTAL:
        a = uniform(slot, 1.6, 2.4)
        _corridor(slot, a)
    elif family == INTERSECTION:  # two corridors that cross; the robot goes straight on or turns off
        a = uniform(slot, 1.5, 2.1)
        for sx in (-1.0, 1.0):
            for sy in (-1.0, 1.0):
                _wall(slot, sx * a, sy * a, sx * 8.0, sy * a)
                _wall(slot, sx * a, sy * a, sx * a, sy * 8.0)
                _bend(slot, sx * (a - CORNER_GUARD), sy * (a - CORNER_GUARD))
        side = a - 0.7
        turn = uniform(slot, 0.0, 1.0)
        if turn < 0.5:
            _place(slot, -5.0, uniform(slot, -side, side), 4.0, uniform(slot, -side, side))
        else:
            goal_y = 4.0 if turn < 0.75 else -4.0
            _place(slot, -5.0, uniform(slot, -side, side), uniform(slot, -side, side), goal_y)
    elif family == CORNER:  # a corridor with a right-angled corner that hides who comes
        a = uniform(slot, 1.4, 2.0)
        _wall(slot, -8.0, -a, a, -a)
        _wall(slot, a, -a, a, 8.0)
        _wall(slot, -8.0, a, -a, a)
        _wall(slot, -a, a, -a, 8.0)
        _bend(slot, -a + CORNER_GUARD, a - CORNER_GUARD)
        side = a - 0.7
        _place(slot, -5.0, uniform(slot, -side, side), uniform(slot, -side, side), 4.0)
    elif family == DOORWAY:  # two rooms, and between them a doorway of width a at y = b
        a, b = uniform(slot, 1.4, 1.9), uniform(slot, -2.0, 2.0)
        _box(slot, -6.0, -4.0, 6.0, 4.0)
        _wall(slot, 0.0, -4.0, 0.0, b - 0.5 * a)
        _wall(slot, 0.0, b + 0.5 * a, 0.0, 4.0)
        _bend(slot, 0.0, b - 0.5 * a + CORNER_GUARD)
        _bend(slot, 0.0, b + 0.5 * a - CORNER_GUARD)
        x, y, goal_x = uniform(slot, -5.2, -4.2), uniform(slot, -3.0, 3.0), uniform(slot, 3.5, 5.0)
        _place(slot, x, y, goal_x, uniform(slot, -3.0, 3.0))
    elif family == PARALLEL:
        a = uniform(slot, 2.0, 2.8)
        _corridor(slot, a)
    elif family == PERPENDICULAR:
        _wall(slot, -7.0, -6.5, 7.0, -6.5)
        _wall(slot, -7.0, 6.5, 7.0, 6.5)
        _place(slot, -5.0, uniform(slot, -2.0, 2.0), uniform(slot, 3.5, 5.0), uniform(slot, -2.0, 2.0))
    elif family == CIRCULAR:
        a = uniform(slot, 4.0, 4.8)
        offset = uniform(slot, -0.5, 0.5)
        _place(slot, -a, offset, a, uniform(slot, -0.5, 0.5))
    else:  # a room with a pillar near its middle
        x, y = uniform(slot, -0.8, 0.8), uniform(slot, -1.5, 1.5)
        _box(slot, -6.0, -6.0, 6.0, 6.0)
        _box(slot, x - 0.5, y - 0.5, x + 0.5, y + 0.5)
        reach = 0.5 + CORNER_GUARD
        for sx in (-1.0, 1.0):
            for sy in (-1.0, 1.0):
                _bend(slot, x + sx * reach, y + sy * reach)
        _place(slot, -5.0, uniform(slot, -4.0, 4.0), uniform(slot, 3.5, 5.0), uniform(slot, -4.0, 4.0))
    return a, b


@njit
def _stop(slot: Slot, i: int, x: float, y: float) -> None:
    k = slot.route_length[i]
    slot.route_x[i, k], slot.route_y[i, k] = x, y
    slot.route_length[i] += 1


@njit
def _flow(slot: Slot, i: int, side: float, start: float, end: float) -> None:
    """Along x from `start` to `end`, anywhere in the width."""
    _stop(slot, i, start, uniform(slot, -side, side))
    _stop(slot, i, end, uniform(slot, -side, side))


@njit
def _draw_route(slot: Slot, i: int, family: int, a: float, b: float) -> None:
    """The waypoints of pedestrian i; the first is where it spawns."""
    slot.route_length[i] = 0
    side = a - 0.5
    if family == FRONTAL:
        _flow(slot, i, side, uniform(slot, -1.5, 8.0), -8.0)
    elif family == INTERSECTION:
        if uniform(slot, 0.0, 1.0) < 0.7:  # across the robot's way
            sign = either(slot, 1.0, 1.0)
            _stop(slot, i, uniform(slot, -side, side), sign * uniform(slot, 1.0, 7.0))
            _stop(slot, i, uniform(slot, -side, side), -sign * 7.0)
        else:
            _flow(slot, i, side, uniform(slot, 0.0, 7.0), -7.0)
    elif family == CORNER:
        _stop(slot, i, uniform(slot, -side, side), uniform(slot, 0.5, 7.0))
        _stop(slot, i, uniform(slot, -0.3, 0.3), uniform(slot, -0.3, 0.3))
        _stop(slot, i, -7.0, uniform(slot, -side, side))
    elif family == DOORWAY:
        sign = either(slot, 1.0, 1.0)
        _stop(slot, i, sign * uniform(slot, 1.0, 5.4), uniform(slot, -3.4, 3.4))
        _stop(slot, i, sign * 0.5, b)
        _stop(slot, i, -sign * 0.5, b)
        _stop(slot, i, -sign * uniform(slot, 2.0, 5.4), uniform(slot, -3.4, 3.4))
    elif family == PARALLEL:
        if uniform(slot, 0.0, 1.0) < 0.6:  # slower people walking the same way
            _flow(slot, i, side, uniform(slot, -2.2, 3.0), 8.0)
        else:
            _flow(slot, i, side, uniform(slot, 1.0, 8.0), -8.0)
    elif family == PERPENDICULAR:
        sign = either(slot, 1.0, 1.0)
        _stop(slot, i, uniform(slot, -3.0, 3.0), sign * uniform(slot, 0.5, 5.5))
        _stop(slot, i, uniform(slot, -3.0, 3.0), -sign * 5.5)
    elif family == CIRCULAR:
        radius = a + uniform(slot, -0.5, 0.5)
        x = y = square = 0.0
        while not 0.01 < square < 1.0:  # drawn in the disc and normalised: no trigonometry is needed
            x, y = uniform(slot, -1.0, 1.0), uniform(slot, -1.0, 1.0)
            square = x * x + y * y
        length = math.sqrt(square)
        x, y = x / length * radius, y / length * radius
        _stop(slot, i, x, y)
        _stop(slot, i, -x, -y)
    else:
        for _ in range(4):
            _stop(slot, i, uniform(slot, -5.2, 5.2), uniform(slot, -5.2, 5.2))


@njit
def _route_is_clear(slot: Slot, i: int) -> bool:
    """Whether pedestrian i stands apart from the robot and those before it, and no waypoint touches a wall."""
    x, y = slot.route_x[i, 0], slot.route_y[i, 0]
    if (x - slot.x) ** 2 + (y - slot.y) ** 2 < ROBOT_GUARD**2:
        return False
    for j in range(i):
        if (x - slot.ped_x[j]) ** 2 + (y - slot.ped_y[j]) ** 2 < PEOPLE_GUARD**2:
            return False
    for k in range(slot.route_length[i]):
        if wall_clearance(slot, slot.route_x[i, k], slot.route_y[i, k]) < WALL_GUARD:
            return False
    return True


@njit
def _populate(slot: Slot, family: int, count: int, a: float, b: float) -> None:
    """Draw routes until everybody stands; stops short (fewer pedestrians) only if `_TRIES` draws find no place."""
    slot.ped_x[:] = FAR_AWAY
    slot.ped_y[:] = FAR_AWAY
    slot.ped_target_x[:] = FAR_AWAY
    slot.ped_target_y[:] = FAR_AWAY
    slot.ped_speed[:] = 0.0
    slot.ped_vx[:] = 0.0
    slot.ped_vy[:] = 0.0
    slot.pedestrians = 0
    tries = 0
    while slot.pedestrians < count and tries < _TRIES:
        i = slot.pedestrians
        _draw_route(slot, i, family, a, b)
        tries += 1
        if _route_is_clear(slot, i):
            slot.ped_x[i], slot.ped_y[i] = slot.route_x[i, 0], slot.route_y[i, 0]
            speed = min(max(bell(slot, SPEED_MEAN, SPEED_SPREAD), SPEED_LEAST), SPEED_MOST)
            if family == PARALLEL and slot.route_x[i, 1] > slot.route_x[i, 0]:
                speed *= 0.5  # strolling, so that there is somebody to overtake
            slot.ped_speed[i] = speed
            slot.ped_attention[i] = uniform(slot, ATTENTION_LEAST, ATTENTION_MOST)
            slot.route_index[i], slot.route_direction[i] = 1, 1
            slot.pedestrians += 1


@njit
def spawn(slot: Slot, family: int, pedestrians: int, seed: int) -> None:
    """Lay out one episode: geometry, robot, goal and pedestrians, all from the seed."""
    slot.random_state = np.uint64(seed)
    slot.wall_count = 0
    slot.bend_count = 0
    a, b = _lay_out(slot, family)
    _populate(slot, family, min(pedestrians, MAX_PEDESTRIANS), a, b)
    if uniform(slot, 0.0, 1.0) < 0.5:  # mirrored
        slot.y, slot.goal_y = -slot.y, -slot.goal_y
        for k in range(slot.wall_count):
            slot.walls[k, 1], slot.walls[k, 3] = -slot.walls[k, 1], -slot.walls[k, 3]
        for k in range(slot.bend_count):
            slot.bends[k, 1] = -slot.bends[k, 1]
        for i in range(slot.pedestrians):
            slot.ped_y[i] = -slot.ped_y[i]
            for k in range(slot.route_length[i]):
                slot.route_y[i, k] = -slot.route_y[i, k]
    for i in range(slot.pedestrians):  # they walk at their desired speed
        slot.ped_target_x[i], slot.ped_target_y[i] = slot.route_x[i, 1], slot.route_y[i, 1]
        dx, dy = slot.ped_target_x[i] - slot.ped_x[i], slot.ped_target_y[i] - slot.ped_y[i]
        length = math.sqrt(dx * dx + dy * dy)
        slot.ped_vx[i], slot.ped_vy[i] = slot.ped_speed[i] * dx / length, slot.ped_speed[i] * dy / length
    measure_bends(slot)
    follow_path(slot)
    slot.shortest_path = slot.path_distance
    # the robot stands and looks roughly along its path
    dx, dy = slot.waypoint_x - slot.x, slot.waypoint_y - slot.y
    tilt = uniform(slot, -0.3, 0.3)  # tangent of the angle off the path
    cos, sin = dx - tilt * dy, dy + tilt * dx
    length = math.sqrt(cos * cos + sin * sin)
    slot.cos, slot.sin = cos / length, sin / length
    slot.action[0] = -1.0  # the action of a robot that stands

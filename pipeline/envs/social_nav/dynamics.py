"""How people and the robot move: the social force model and a differential drive, as compiled kernels on one slot.

Sources
- H&M 95: D. Helbing, P. Molnar, "Social force model for pedestrian dynamics", Phys. Rev. E 51, 4282 (1995).
- J 07: A. Johansson, D. Helbing, P. Shukla, "Specification of the social force pedestrian model by evolutionary
  adjustment to video tracking data", Adv. Complex Syst. 10, 271 (2007).
- M 10: M. Moussaid et al., "The walking behaviour of pedestrian social groups", PLoS ONE 5, e10047 (2010).
"""

import math

from numba import njit

from pipeline.envs.social_nav.geometry import decay
from pipeline.envs.social_nav.layout import (
    DT,
    MAX_ACCELERATION,
    MAX_PEDESTRIANS,
    MAX_TURN,
    MAX_TURN_ACCELERATION,
    ROBOT_RADIUS,
    Slot,
)

RELAXATION_TIME = 0.5  # s; H&M 95 and M 10
REPULSION = 2.1 / 0.3  # m/s^2: V0 / sigma with V0 = 2.1 m^2/s^2; H&M 95
REPULSION_RANGE = 0.3  # m: sigma; H&M 95
ANTICIPATION = 0.5  # s: how far ahead the relative motion is foreseen (elliptical specification II); J 07
BOUNDARY = 10.0 / 0.2  # m/s^2: U0 / R with U0 = 10 m^2/s^2; H&M 95
BOUNDARY_RANGE = 0.2  # m: R; H&M 95
COS_VIEW = -0.17364817766693033  # cos 100 degrees: half of the field of view of 200 degrees; H&M 95
UNSEEN_WEIGHT = 0.5  # weight of what is out of view; H&M 95
SPEED_MEAN, SPEED_SPREAD = 1.34, 0.26  # m/s, desired speed; H&M 95
SPEED_LEAST, SPEED_MOST = 0.6, 1.7  # m/s, where the spread is cut off, so that spawn distances can be guaranteed
SPEED_FACTOR = 1.3  # nobody walks faster than this multiple of the desired speed; H&M 95
WAYPOINT_RADIUS = 0.5  # m, a pedestrian has reached its waypoint
_TINY = 1.0e-12
_LEAST_AXIS = 0.02  # m, keeps the ellipse from degenerating


@njit(inline="always")
def _social_force(dx: float, dy: float, yx: float, yy: float, ex: float, ey: float) -> tuple[float, float]:
    """Repulsion (m/s^2) of a pedestrian by a body (dx, dy) away that comes nearer by (yx, yy) within `ANTICIPATION`.

    The equipotential lines are ellipses with the semi-minor axis b (J 07, eq. 8 to 10). (ex, ey): where it wants to go.
    """
    near = math.sqrt(dx * dx + dy * dy + _TINY)
    zx, zy = dx - yx, dy - yy
    later = math.sqrt(zx * zx + zy * zy + _TINY)
    both = near + later
    b = max(0.5 * math.sqrt(max(both * both - yx * yx - yy * yy, 0.0)), _LEAST_AXIS)
    size = REPULSION * decay(b * (1.0 / REPULSION_RANGE)) * both / (4.0 * b)
    seen = -(dx * ex + dy * ey) >= COS_VIEW * near
    size = size if seen else size * UNSEEN_WEIGHT
    return size * (dx / near + zx / later), size * (dy / near + zy / later)


@njit
def attract(slot: Slot) -> None:
    """Start the forces with the pull of each pedestrian's target, and turn to the next waypoint where it is reached."""
    for i in range(slot.pedestrians):
        dx, dy = slot.ped_target_x[i] - slot.ped_x[i], slot.ped_target_y[i] - slot.ped_y[i]
        if dx * dx + dy * dy < WAYPOINT_RADIUS * WAYPOINT_RADIUS:
            following = slot.route_index[i] + slot.route_direction[i]
            if following < 0 or following >= slot.route_length[i]:
                slot.route_direction[i] = -slot.route_direction[i]
                following = slot.route_index[i] + slot.route_direction[i]
            slot.route_index[i] = following
            slot.ped_target_x[i] = slot.route_x[i, following]
            slot.ped_target_y[i] = slot.route_y[i, following]
    for i in range(MAX_PEDESTRIANS):
        dx, dy = slot.ped_target_x[i] - slot.ped_x[i], slot.ped_target_y[i] - slot.ped_y[i]
        length = math.sqrt(dx * dx + dy * dy + _TINY)
        slot.desired_x[i], slot.desired_y[i] = dx / length, dy / length
        slot.force_x[i] = (slot.ped_speed[i] * slot.desired_x[i] - slot.ped_vx[i]) * (1.0 / RELAXATION_TIME)
        slot.force_y[i] = (slot.ped_speed[i] * slot.desired_y[i] - slot.ped_vy[i]) * (1.0 / RELAXATION_TIME)


@njit
def repel_from_people(slot: Slot) -> None:
    """Add the repulsion between pedestrians. The inner loop runs over lanes and vectorises; nothing is summed in it."""
    for j in range(slot.pedestrians):
        x, y, vx, vy = slot.ped_x[j], slot.ped_y[j], slot.ped_vx[j], slot.ped_vy[j]
        for i in range(MAX_PEDESTRIANS):
            fx, fy = _social_force(
                slot.ped_x[i] - x,
                slot.ped_y[i] - y,
                (vx - slot.ped_vx[i]) * ANTICIPATION,
                (vy - slot.ped_vy[i]) * ANTICIPATION,
                slot.desired_x[i],
                slot.desired_y[i],
            )
            slot.force_x[i] += fx
            slot.force_y[i] += fy


@njit
def repel_from_robot(slot: Slot) -> None:
    """Add the robot's force: the social force of a moving body plus the boundary force of its hull.

    `robot_force` is its size before each pedestrian's attention scales it down.
    """
    x, y, vx, vy = slot.x, slot.y, slot.velocity_x, slot.velocity_y
    for i in range(MAX_PEDESTRIANS):
        dx, dy = slot.ped_x[i] - x, slot.ped_y[i] - y
        fx, fy = _social_force(
            dx,
            dy,
            (vx - slot.ped_vx[i]) * ANTICIPATION,
            (vy - slot.ped_vy[i]) * ANTICIPATION,
            slot.desired_x[i],
            slot.desired_y[i],
        )
        distance = math.sqrt(dx * dx + dy * dy + _TINY)
        hull = BOUNDARY * decay(max(distance - ROBOT_RADIUS, 0.0) * (1.0 / BOUNDARY_RANGE)) / distance
        fx += hull * dx
        fy += hull * dy
        slot.robot_force[i] = math.sqrt(fx * fx + fy * fy)
        slot.force_x[i] += slot.ped_attention[i] * fx
        slot.force_y[i] += slot.ped_attention[i] * fy


@njit
def repel_from_walls(slot: Slot) -> None:
    """Add the boundary force of the nearest point of every wall (H&M 95, eq. 5 and 13)."""
    for k in range(slot.wall_count):
        x1, y1 = slot.walls[k, 0], slot.walls[k, 1]
        ex, ey = slot.walls[k, 2] - x1, slot.walls[k, 3] - y1
        scale = 1.0 / (ex * ex + ey * ey)
        for i in range(MAX_PEDESTRIANS):
            rx, ry = slot.ped_x[i] - x1, slot.ped_y[i] - y1
            share = min(max((rx * ex + ry * ey) * scale, 0.0), 1.0)
            dx, dy = rx - share * ex, ry - share * ey
            distance = math.sqrt(dx * dx + dy * dy + _TINY)
            size = BOUNDARY * decay(distance * (1.0 / BOUNDARY_RANGE)) / distance
            slot.force_x[i] += size * dx
            slot.force_y[i] += size * dy


@njit
def move_people(slot: Slot) -> None:
    """Semi-implicit Euler step under the summed forces, with the speed limit of H&M 95."""
    for i in range(MAX_PEDESTRIANS):
        vx = slot.ped_vx[i] + slot.force_x[i] * DT
        vy = slot.ped_vy[i] + slot.force_y[i] * DT
        limit = SPEED_FACTOR * slot.ped_speed[i]
        scale = min(1.0, limit / math.sqrt(vx * vx + vy * vy + _TINY))
        slot.ped_vx[i], slot.ped_vy[i] = vx * scale, vy * scale
        slot.ped_x[i] += slot.ped_vx[i] * DT
        slot.ped_y[i] += slot.ped_vy[i] * DT


@njit
def move_robot(slot: Slot, forward: float, turn: float, max_speed: float) -> None:
    """Differential drive: `forward` in [-1, 1] is a target of 0 to `max_speed`, `turn` one of -MAX_TURN to MAX_TURN."""
    target = 0.5 * (forward + 1.0) * max_speed
    change = MAX_ACCELERATION * DT
    slot.speed += min(max(target - slot.speed, -change), change)
    change = MAX_TURN_ACCELERATION * DT
    slot.turn += min(max(turn * MAX_TURN - slot.turn, -change), change)
    # Rotation by a small angle with a polynomial, then normalised: the same bits with every mathematical library.
    angle = slot.turn * DT
    square = angle * angle
    c = 1.0 - square * (0.5 - square * (1 / 24 - square * (1 / 720)))
    s = angle * (1.0 - square * (1 / 6 - square * (1 / 120)))
    cos, sin = slot.cos * c - slot.sin * s, slot.sin * c + slot.cos * s
    length = math.sqrt(cos * cos + sin * sin)
    slot.cos, slot.sin = cos / length, sin / length
    slot.x += slot.speed * slot.cos * DT
    slot.y += slot.speed * slot.sin * DT


@njit
def move(slot: Slot, forward: float, turn: float, max_speed: float) -> None:
    """Advance people and robot by `DT`; all forces are those of the state before the step."""
    attract(slot)
    repel_from_people(slot)
    repel_from_robot(slot)
    repel_from_walls(slot)
    move_people(slot)
    move_robot(slot, forward, turn, max_speed)

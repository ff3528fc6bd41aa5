"""Episode metrics: accumulated step by step in the kernel, read out once at the end (docs/social_nav.md)."""

import math

import numpy as np
from numba import njit

from pipeline.envs.social_nav.geometry import follow_path, wall_clearance
from pipeline.envs.social_nav.layout import (
    DT,
    FORCE_LIMIT,
    GOAL_RADIUS,
    NEAR_MISS_CLEARANCE,
    PEDESTRIAN_RADIUS,
    ROBOT_RADIUS,
    Slot,
)


@njit
def account(slot: Slot, forward: float, turn: float, horizon: int) -> None:
    """Record the facts of the step that `move` just made, decide the outcome, and accumulate the metrics."""
    slot.steps += 1
    change_0, change_1 = forward - slot.action[0], turn - slot.action[1]
    slot.action_change = math.sqrt(change_0 * change_0 + change_1 * change_1)
    slot.action[0], slot.action[1] = forward, turn

    velocity_x, velocity_y = slot.speed * slot.cos, slot.speed * slot.sin
    acceleration_x, acceleration_y = (velocity_x - slot.velocity_x) / DT, (velocity_y - slot.velocity_y) / DT
    if slot.steps > 1:
        jerk_x, jerk_y = (acceleration_x - slot.acceleration_x) / DT, (acceleration_y - slot.acceleration_y) / DT
        slot.jerk_sum += math.sqrt(jerk_x * jerk_x + jerk_y * jerk_y)
    slot.velocity_x, slot.velocity_y = velocity_x, velocity_y
    slot.acceleration_x, slot.acceleration_y = acceleration_x, acceleration_y
    slot.travelled += slot.speed * DT

    events = 0.0
    nearest = math.inf
    for i in range(slot.pedestrians):
        if slot.robot_force[i] > FORCE_LIMIT:
            events += 1.0
        dx, dy = slot.ped_x[i] - slot.x, slot.ped_y[i] - slot.y
        nearest = min(nearest, dx * dx + dy * dy)
    slot.step_force_events = events
    slot.force_events += events
    slot.clearance = math.sqrt(nearest) - (ROBOT_RADIUS + PEDESTRIAN_RADIUS)
    slot.wall_clearance = wall_clearance(slot, slot.x, slot.y) - ROBOT_RADIUS
    if 0.0 <= slot.clearance < NEAR_MISS_CLEARANCE:
        slot.near_misses += 1.0

    follow_path(slot)
    dx, dy = slot.goal_x - slot.x, slot.goal_y - slot.y
    slot.collision_pedestrian = slot.clearance < 0.0
    slot.collision_wall = slot.wall_clearance < 0.0 and slot.clearance >= 0.0
    failed = slot.clearance < 0.0 or slot.wall_clearance < 0.0
    slot.success = not failed and dx * dx + dy * dy < GOAL_RADIUS * GOAL_RADIUS
    slot.truncated = not failed and slot.success == 0 and slot.steps >= horizon


def episode_metrics(slot: np.void, horizon: int) -> dict[str, float]:
    """The metrics of a finished episode from its record, all floats.

    `success`, `collision`, `collision_pedestrian`, `collision_wall` (0/1), `near_misses` (steps),
    `force_exceed_events` (count), `comfort_exposure` (fraction), `jerk_mean` (m/s^3), `path_efficiency` (fraction),
    `time_norm` (fraction), `time_to_goal` (s; the horizon when not successful).
    """
    steps, people = int(slot["steps"]), int(slot["pedestrians"])
    success = float(slot["success"])
    events = float(slot["force_events"])
    collided = float(slot["collision_pedestrian"] or slot["collision_wall"])
    travelled = float(slot["travelled"])
    shortest = float(slot["shortest_path"])
    time_norm = steps / horizon if success else 1.0
    return {
        "success": success,
        "collision": collided,
        "collision_pedestrian": float(slot["collision_pedestrian"]),
        "collision_wall": float(slot["collision_wall"]),
        "near_misses": float(slot["near_misses"]),
        "force_exceed_events": events,
        "comfort_exposure": events / (people * steps) if people and steps else 0.0,
        "jerk_mean": float(slot["jerk_sum"]) / (steps - 1) if steps > 1 else 0.0,
        "path_efficiency": min(1.0, shortest / travelled) if travelled > 0 else 1.0,
        "time_norm": time_norm,
        "time_to_goal": time_norm * horizon * DT,
    }

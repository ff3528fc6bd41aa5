"""What one environment of the simulation holds: sizes, limits and the record that every kernel reads and writes.

A batch is `np.zeros(n, SLOT)`: one record per environment, so memory is proportional to the batch and a snapshot of an
environment is a copy of its record. Fields of pedestrians always have `MAX_PEDESTRIANS` lanes; unused lanes stand far
away. The constant lane count lets the compiler vectorise over pedestrians without making results depend on the batch.
"""

from typing import Any, TypeAlias

import numpy as np

DT = 0.1  # s
MAX_PEDESTRIANS = 12
MAX_WALLS = 8
MAX_BENDS = 4  # turning points of shortest paths around corners
MAX_WAYPOINTS = 4  # of a pedestrian's route
FAR_AWAY = 1.0e4  # m, where unused pedestrian lanes stand

ROBOT_RADIUS = 0.30  # m
PEDESTRIAN_RADIUS = 0.25  # m
GOAL_RADIUS = 0.30  # m, centre of the robot to the goal
MAX_SPEED = 1.0  # m/s, default; no reverse
MAX_TURN = 1.5  # rad/s
MAX_ACCELERATION = 2.0  # m/s^2
MAX_TURN_ACCELERATION = 6.0  # rad/s^2
HORIZON = 200  # steps, default (20 s)

NEAR_MISS_CLEARANCE = 0.5  # m, surface to surface
FORCE_LIMIT = 2.0  # m/s^2, a pedestrian feels disturbed by the robot above it

_real, _whole = np.float64, np.int64
_lanes = (MAX_PEDESTRIANS,)

SLOT = np.dtype(
    [
        ("running", _whole),  # 0 or 1; a slot that does not run is skipped
        ("random_state", np.uint64),
        # the robot
        ("x", _real),  # m
        ("y", _real),  # m
        ("cos", _real),  # heading
        ("sin", _real),
        ("speed", _real),  # m/s
        ("turn", _real),  # rad/s
        ("goal_x", _real),  # m
        ("goal_y", _real),  # m
        ("action", _real, (2,)),  # the last one, in [-1, 1]
        # pedestrians
        ("pedestrians", _whole),  # how many lanes are in use
        ("ped_x", _real, _lanes),  # m
        ("ped_y", _real, _lanes),  # m
        ("ped_vx", _real, _lanes),  # m/s
        ("ped_vy", _real, _lanes),  # m/s
        ("ped_speed", _real, _lanes),  # m/s, desired
        ("ped_attention", _real, _lanes),  # share of the robot's social force that moves this pedestrian
        ("ped_target_x", _real, _lanes),  # m, waypoint it walks to
        ("ped_target_y", _real, _lanes),  # m
        ("route_x", _real, (MAX_PEDESTRIANS, MAX_WAYPOINTS)),  # m, walked to the end and back again
        ("route_y", _real, (MAX_PEDESTRIANS, MAX_WAYPOINTS)),  # m
        ("route_length", _whole, _lanes),  # waypoints in use
        ("route_index", _whole, _lanes),  # waypoint it walks to
        ("route_direction", _whole, _lanes),  # +1 or -1
        # geometry
        ("wall_count", _whole),
        ("walls", _real, (MAX_WALLS, 4)),  # m: x1, y1, x2, y2
        ("bend_count", _whole),
        ("bends", _real, (MAX_BENDS, 2)),  # m
        ("bend_distance", _real, (MAX_BENDS,)),  # m, from the bend to the goal along the shortest path
        ("shortest_path", _real),  # m, from the start
        ("path_distance", _real),  # m, to the goal along the shortest path, now
        ("waypoint_x", _real),  # m, first point of the shortest path from here
        ("waypoint_y", _real),  # m
        # facts of the last step
        ("clearance", _real),  # m, to the nearest pedestrian, surface to surface
        ("wall_clearance", _real),  # m
        ("step_force_events", _real),  # pedestrians that feel more than FORCE_LIMIT from the robot
        ("action_change", _real),  # Euclidean norm of action - previous action
        # accumulated over the episode
        ("steps", _whole),
        ("travelled", _real),  # m
        ("near_misses", _real),
        ("force_events", _real),
        ("jerk_sum", _real),  # m/s^3
        ("velocity_x", _real),  # m/s, of the last step
        ("velocity_y", _real),
        ("acceleration_x", _real),  # m/s^2, of the last step
        ("acceleration_y", _real),
        ("reward_paid", _real),  # state of rewards whose terms telescope
        ("reward_sum", _real),
        ("success", _whole),
        ("collision_pedestrian", _whole),
        ("collision_wall", _whole),
        ("truncated", _whole),
        # working memory of the kernels
        ("force_x", _real, _lanes),  # m/s^2
        ("force_y", _real, _lanes),
        ("robot_force", _real, _lanes),  # m/s^2, social force of the robot on each pedestrian
        ("desired_x", _real, _lanes),  # unit vector to the target
        ("desired_y", _real, _lanes),
        ("local_x", _real, _lanes),  # m, pedestrians in the robot frame
        ("local_y", _real, _lanes),
        ("distance", _real, _lanes),  # m, centre to centre
    ],
    align=True,
)

Slot: TypeAlias = Any  # one record of SLOT, as compiled functions see it

REWARD_TERMS = 16  # room for the weights of any reward

SETTINGS = np.dtype(
    [
        ("horizon", _whole),  # steps
        ("max_speed", _real),  # m/s
        ("reward", _whole),  # number of the reward in rewards.REWARDS
        ("weights", _real, (REWARD_TERMS,)),
    ],
    align=True,
)

"""Frames: what must be visible is visible, and drawing changes nothing."""

import numpy as np

from benchmarks.social_nav_planners import straight_to_goal
from pipeline.envs.social_nav.environment import SocialNavEnv


def near(frame: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> np.ndarray:
    """Which pixels have about this colour, (height, width) bool."""
    return (np.abs(frame.astype(int) - colour) <= tolerance).all(axis=2)


def test_a_frame_shows_robot_goal_pedestrians_and_walls() -> None:
    env = SocialNavEnv("narrow_doorway", "high", render_mode="rgb_array")
    env.reset(seed=1)
    frame = env.render()
    assert frame is not None and frame.shape == (544, 640, 3) and frame.dtype == np.uint8
    for colour in ((31, 96, 176), (38, 140, 72), (240, 150, 50), (62, 66, 72)):
        assert near(frame, colour).sum() > 100


def test_the_band_takes_the_colour_of_the_outcome() -> None:
    env = SocialNavEnv("blind_corner", "low", render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    over = False
    while not over:
        observation, _, over, _, info = env.step(straight_to_goal(observation))
    frame = env.render()
    assert frame is not None and info["collision_wall"]
    assert near(frame[:50], (208, 40, 40)).mean() > 0.7


def test_drawing_changes_nothing() -> None:
    drawn, plain = (
        SocialNavEnv("crowd_navigation", "high", render_mode="rgb_array"),
        SocialNavEnv("crowd_navigation", "high"),
    )
    for env in (drawn, plain):
        env.reset(seed=4)
    for action in np.random.default_rng(0).uniform(-1, 1, (30, 2)):
        drawn.render()
        assert drawn.step(action)[0].tobytes() == plain.step(action)[0].tobytes()
    assert drawn.state().tobytes() == plain.state().tobytes()
    assert plain.render() is None

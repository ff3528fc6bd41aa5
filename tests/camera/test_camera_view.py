"""What a policy sees through a task's camera: pictures that can be worked out by hand, and refusals by name."""

import ctypes.util
import os
import sys

import gymnasium as gym
import numpy as np
import pytest
from dot_environment import Dot
from gymnasium import spaces

import pipeline.play.filming
from pipeline.envs.camera import CameraView, ChannelsFirst
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.play.filming import view_again
from pipeline.policies.networks import images_in
from pipeline.tasks import Purpose

EPISODE = Episode("default", 5)


def refusal(call) -> str:
    with pytest.raises(BadInput) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_hand(dot: int, mark: int) -> np.ndarray:
    """(40, 40): two by two pixels made one; white is 255, and red 200 is 200 * 299 / 1000 of grey."""
    picture = np.zeros((40, 40), np.uint8)
    picture[:20, 4 * dot : 4 * dot + 4] = 255
    picture[20:, 4 * mark : 4 * mark + 4] = 60
    return picture


def test_the_latest_pictures_are_stacked_the_oldest_first(make_task):
    env = make_task(use_camera=True).make_env("default")
    first, _ = env.reset(seed=5)
    dot, mark = (int(v) for v in env.get_wrapper_attr("unseen"))
    assert first.dtype == np.uint8 and np.array_equal(first, [by_hand(dot, mark)] * 2)
    step = 2 if dot < 9 else 0
    second, *_ = env.step(step)
    assert np.array_equal(second, [by_hand(dot, mark), by_hand(dot + step - 1, mark)])
    assert np.array_equal(first, [by_hand(dot, mark)] * 2)  # what was given out is not written to again


def test_colours_are_channels_and_sizes_are_means_over_areas():
    env = CameraView(Dot(render_mode="rgb_array"), size=40, frames=1)
    picture, _ = env.reset(seed=5)
    dot, mark = (int(v) for v in env.unseen)
    assert picture.shape == (3, 40, 40) == env.observation_space.shape
    assert (picture[:, :20, 4 * dot : 4 * dot + 4] == 255).all()
    assert (picture[:, 20:, 4 * mark : 4 * mark + 4] == np.array([200, 0, 0])[:, None, None]).all()
    assert picture.sum(dtype=int) == 20 * 4 * (3 * 255 + 200)


def test_the_camera_is_among_the_wrappers_that_policies_remember(make_task):
    plain, camera = make_task(), make_task(use_camera=True)
    assert plain.wrappers == [] and [w["name"] for w in camera.wrappers] == ["pipeline.envs.camera:CameraView"]
    assert plain.as_seen_behind(camera.wrappers).use_camera and not plain.as_seen_behind([]).use_camera
    larger = make_task(camera={"size": 48})
    assert not larger.as_seen_behind(camera.wrappers).use_camera


def test_a_batched_task_is_seen_one_environment_a_slot(make_task):
    batched = "pipeline.envs.social_nav.vector:SocialNavVecEnv"
    camera = make_task(use_camera=True, environment={"id": "dot_environment:Dot", "batched": batched})
    env = camera.make_vec_env([iter([EPISODE])])
    assert env.reset().shape == (1, 2, 40, 40)


def test_pictures_of_the_environments_own_come_channels_first(make_task):
    own = make_task(kwargs={"pixels": True})
    assert own.observation_space.shape == (3, 80, 80)
    env = own.make_env("default")
    observation, _ = env.reset(seed=5)
    assert np.array_equal(observation.transpose(1, 2, 0), env.unwrapped.render())


def test_stacked_pictures_and_those_of_a_mapping_come_channels_first_too(make_task):
    frames = [{"name": "FrameStackObservation", "kwargs": {"stack_size": 4}}]
    dot = {"id": "dot_environment:Dot", "kwargs": {"pixels": True}, "wrappers": frames}
    stacked = make_task(environment=dot)
    assert stacked.observation_space.shape == (12, 80, 80)
    env = stacked.make_env("default")
    first, _ = env.reset(seed=5)
    start = env.unwrapped.render()
    second, *_ = env.step(env.action_space.sample())
    now = env.unwrapped.render()
    assert np.array_equal(first.reshape(4, 3, 80, 80), [start.transpose(2, 0, 1)] * 4)
    assert np.array_equal(second.reshape(4, 3, 80, 80)[[2, 3]].transpose(0, 2, 3, 1), [start, now])
    assert images_in(stacked.observation_space)

    seen = ChannelsFirst(WithASpeed(Dot(pixels=True)))
    observation, _ = seen.reset(seed=5)
    assert seen.observation_space["picture"].shape == (3, 80, 80) and observation["speed"].tolist() == [1.0]
    assert np.array_equal(observation["picture"].transpose(1, 2, 0), seen.unwrapped.render())
    assert seen.observation_space.contains(observation)


class WithASpeed(gym.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict(picture=env.observation_space, speed=spaces.Box(0, 2, (1,)))

    def observation(self, observation):
        return {"picture": observation, "speed": np.ones(1, np.float32)}


def test_what_cannot_be_drawn_is_refused_before_anything_begins(make_task):
    assert "no render mode 'rgb_array'" in refusal(lambda: make_task(use_camera=True, cls="Undrawn").observation_space)
    assert "render_mode='rgb_array', not None" in refusal(lambda: CameraView(Dot()))
    missing = refusal(lambda: make_task(use_camera=True, cls="Undrawable").observation_space)
    assert "glGetError" in missing and "libegl1" in missing and "libosmesa6" in missing
    assert "size" in refusal(lambda: make_task(use_camera=True, camera={"size": 20}))


# --- demonstrations in front of the camera ---------------------------------------------------------------------------


def test_demonstrations_are_seen_as_if_the_camera_had_been_there(recorded, seen, make_task):
    assert np.array_equal(seen.actions, recorded.actions) and seen.metrics is recorded.metrics
    by_state = np.stack([by_hand(int(dot), int(mark)) for dot, mark in recorded.observations])
    assert np.array_equal(seen.observations[:, 1], by_state)
    inside = np.setdiff1d(np.arange(len(by_state)), recorded.observation_offsets)
    assert np.array_equal(seen.observations[inside, 0], by_state[inside - 1])
    again = view_again(make_task(use_camera=True), recorded)
    assert np.array_equal(again.observations, seen.observations)


def test_an_episode_that_goes_elsewhere_is_refused(recorded, make_task):
    from dataclasses import replace

    camera = make_task(use_camera=True)
    wrong = recorded.observations.copy()
    wrong[3] += 1
    assert "episode 0, simulated again, is in another state at step 3" in refusal(
        lambda: view_again(camera, replace(recorded, observations=wrong))
    )
    assert "not deterministic" in refusal(lambda: view_again(make_task(use_camera=True, cls="Restless"), recorded))
    unknown = np.where(np.arange(len(recorded)) == 2, -1, recorded.seeds)
    assert "episode 2 has no seed" in refusal(lambda: view_again(camera, replace(recorded, seeds=unknown)))
    longer = make_task(use_camera=True, horizon=4)
    assert "does not end after step 8" in refusal(lambda: view_again(longer, recorded))


def test_pictures_that_show_nothing_or_take_too_much_memory_are_refused(recorded, make_task, monkeypatch):
    blank = make_task(use_camera=True, kwargs={"blank": True})
    assert "every frame is the same picture" in refusal(lambda: view_again(blank, recorded))
    monkeypatch.setattr(pipeline.play.filming, "MAX_SEEN_BYTES", len(recorded.observations) * 2 * 40 * 40 - 1)
    assert "540 frames of 3,200 bytes" in refusal(lambda: view_again(make_task(use_camera=True), recorded))


# --- MuJoCo ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    sys.platform == "linux" and ctypes.util.find_library("EGL") is None and "MUJOCO_GL" not in os.environ,
    reason="MuJoCo draws through EGL, which is not installed (Debian: libegl1)",
)
def test_mujoco_is_drawn_without_a_screen_and_the_camera_changes_nothing(make_task):
    environment = {"id": "InvertedPendulum-v5"}
    plain, camera = (make_task(use_camera=on, environment=environment).make_env("default") for on in (False, True))
    actions = np.random.default_rng(0).uniform(-3, 3, (4, 1)).astype(np.float32)
    states = [plain.reset(seed=1)[0], *(plain.step(action)[0] for action in actions)]
    pictures = [camera.reset(seed=1)[0]]
    for state, action in zip(states, [*actions, None], strict=True):
        assert np.array_equal(camera.get_wrapper_attr("unseen"), state)
        if action is not None:
            pictures.append(camera.step(action)[0])
    assert pictures[0].shape == (2, 40, 40) and len({picture.tobytes() for picture in pictures}) > 1
    assert np.array_equal(camera.reset(seed=1)[0], pictures[0])
    assert isinstance(camera.unwrapped, gym.Env) and camera.render().shape == (40, 40, 3)


def test_the_purposes_of_episodes_stay_apart_in_front_of_a_camera(make_task):
    plain, camera = make_task(), make_task(use_camera=True)
    assert plain.episodes("train", 1, 9, Purpose.EVALUATE) == camera.episodes("train", 1, 9, Purpose.EVALUATE)

"""An environment seen through its own camera: what it draws, made small, the latest frames stacked.

Gymnasium's wrappers do this in four layers that have other names in 0.29 and that need OpenCV to resize; here every
frame is drawn, shrunk by area with Pillow and put into a stack of bytes, once.
"""

import os
import sys
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from pipeline.errors import BadInput

HEADLESS = {"SDL_VIDEODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
if sys.platform == "linux":  # elsewhere MuJoCo has no EGL, and ends where it is asked for
    # MuJoCo draws without a screen through EGL, also where there is one; MUJOCO_GL=osmesa draws without a driver
    HEADLESS["MUJOCO_GL"] = "egl"


class CameraView(gym.Wrapper[Any, Any, Any, Any]):
    """Observations are pictures (channels * frames, size, size) uint8, the oldest frame first.

    With `observe = "image_and_state"` they are `{"image": ..., "state": what the environment itself observes}`. An
    episode begins with its first frame in every place of the stack. `unseen` is always the environment's own
    observation, of `unseen_space`. Raises BadInput when the environment was not made with `render_mode="rgb_array"`,
    or when it cannot be drawn.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        size: int = 64,
        grayscale: bool = False,
        frames: int = 3,
        observe: Literal["image", "image_and_state"] = "image",
    ) -> None:
        super().__init__(env)
        if env.render_mode != "rgb_array":
            raise BadInput(f"a camera needs an environment made with render_mode='rgb_array', not {env.render_mode!r}")
        self._size, self._mode, self._channels = size, "L" if grayscale else "RGB", 1 if grayscale else 3
        self._stack = np.zeros((self._channels * frames, size, size), np.uint8)
        self._with_state = observe == "image_and_state"
        self.unseen: Any = None
        self.unseen_space = env.observation_space
        image = spaces.Box(0, 255, self._stack.shape, np.uint8)
        self.observation_space = spaces.Dict(image=image, state=env.observation_space) if self._with_state else image
        renderer = getattr(env.unwrapped, "mujoco_renderer", None)
        if renderer is not None:  # it draws at this size, without what costs most: shadows, reflections, multisampling
            model = renderer.model
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
            model.mat_reflectance[:] = 0
            model.vis.global_.offwidth = model.vis.global_.offheight = size
            renderer.width = renderer.height = size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.unseen, info = self.env.reset(seed=seed, options=options)
        self._stack[:] = np.tile(self._frame(), (len(self._stack) // self._channels, 1, 1))
        return self._seen(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.unseen, reward, terminated, truncated, info = self.env.step(action)
        self._stack[: -self._channels] = self._stack[self._channels :]
        self._stack[-self._channels :] = self._frame()
        return self._seen(), reward, terminated, truncated, info

    def _seen(self) -> Any:
        picture = self._stack.copy()
        return {"image": picture, "state": self.unseen} if self._with_state else picture

    def _frame(self) -> np.ndarray:
        """(channels, size, size) uint8: the environment as it is now."""
        try:
            drawn: Any = self.env.render()
        except Exception as error:  # whatever graphics libraries raise where there is no display or driver
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise BadInput(
                f"use_camera: the environment cannot be drawn: {reason}; MuJoCo needs EGL (Debian: apt-get install "
                "libegl1 libgl1-mesa-dri) or, with MUJOCO_GL=osmesa, OSMesa (libosmesa6)"
            ) from None
        if not isinstance(drawn, np.ndarray) or drawn.dtype != np.uint8 or drawn.ndim != 3 or drawn.shape[2] != 3:
            raise BadInput(f"use_camera: the environment draws a {type(drawn).__name__}, not (height, width, 3) bytes")
        picture = Image.fromarray(np.ascontiguousarray(drawn))
        if picture.size != (self._size, self._size):
            picture = picture.resize((self._size, self._size), Image.Resampling.BOX)
        frame = np.asarray(picture.convert(self._mode))
        return frame[None] if frame.ndim == 2 else frame.transpose(2, 0, 1)


def draw_headless() -> None:
    """Let MuJoCo and pygame draw without a screen, unless the user has chosen how."""
    for variable, value in HEADLESS.items():
        os.environ.setdefault(variable, value)


class ChannelsFirst(gym.ObservationWrapper[Any, Any, Any]):
    """Pictures (height, width, channels) as (channels, height, width), which is what networks read.

    Stacked ones (frames, height, width, channels) become (frames * channels, height, width), in their order. Of a Dict
    every part that is a picture is turned.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = turned(env.observation_space)

    def observation(self, observation: Any) -> Any:
        return _turn(self.env.observation_space, observation)


def turned(space: gym.Space[Any]) -> gym.Space[Any]:
    """The space with its pictures as networks read them; an equal one where there is nothing to turn."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: turned(part) for key, part in space.spaces.items()})
    if not isinstance(space, spaces.Box):
        return space
    return spaces.Box(_turn(space, space.low), _turn(space, space.high), dtype=space.dtype.type)


def _turn(space: gym.Space[Any], values: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _turn(part, values[key]) for key, part in space.spaces.items()}
    if not isinstance(space, spaces.Box) or len(space.shape) not in (3, 4) or 0 in space.shape:
        return values
    stacked = len(space.shape) == 4
    frame = spaces.Box(space.low[0], space.high[0], dtype=space.dtype.type) if stacked else space
    if not is_image_space(frame):
        return values
    pictures = np.asarray(values)
    if not is_image_space_channels_first(frame):
        pictures = np.moveaxis(pictures, -1, -3)
    return pictures.reshape(-1, *pictures.shape[-2:])

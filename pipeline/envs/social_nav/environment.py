"""The Gymnasium face of the simulation: one slot, one scenario."""

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from pipeline.envs.social_nav.kernels import advance, start
from pipeline.envs.social_nav.layout import HORIZON, MAX_PEDESTRIANS, MAX_SPEED, SETTINGS, SLOT
from pipeline.envs.social_nav.metrics import episode_metrics
from pipeline.envs.social_nav.observation import FEATURES, OBSERVATION_SIZE
from pipeline.envs.social_nav.rewards import REWARDS, reward_settings
from pipeline.envs.social_nav.scenarios import DENSITIES, FAMILIES, PEDESTRIANS
from pipeline.errors import BadInput, did_you_mean

SEEDS = 2**31  # episode seeds are drawn below this


def make_settings(
    reward_name: str = "progress",
    reward_kwargs: Mapping[str, Any] | None = None,
    max_speed: float = MAX_SPEED,
    horizon: int = HORIZON,
) -> np.ndarray:
    """Checked settings of an environment, (1,) SETTINGS. Raises BadInput."""
    _refuse_unknown("reward_name", reward_name, REWARDS)
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise BadInput(f"horizon is {horizon!r}; it must be a whole number of steps >= 1.")
    if isinstance(max_speed, bool) or not isinstance(max_speed, (int, float)) or not 0.0 < max_speed <= 3.0:
        raise BadInput(f"max_speed is {max_speed!r}; it must be a number above 0 and at most 3 m/s.")
    return np.array([(horizon, max_speed, *reward_settings(reward_name, reward_kwargs or {}))], SETTINGS)


def scenario_numbers(
    scenario: str = "frontal_approach", density: str = "low", pedestrians: int | None = None
) -> tuple[int, int]:
    """Number of the family and of pedestrians (by density unless given). Raises BadInput."""
    _refuse_unknown("scenario", scenario, FAMILIES)
    _refuse_unknown("density", density, DENSITIES)
    count = PEDESTRIANS[scenario][DENSITIES.index(density)] if pedestrians is None else pedestrians
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_PEDESTRIANS:
        raise BadInput(f"pedestrians is {pedestrians!r}; it must be a whole number from 0 to {MAX_PEDESTRIANS}.")
    return FAMILIES.index(scenario), count


def _refuse_unknown(what: str, word: str, allowed: Iterable[str]) -> None:
    if word not in allowed:
        raise BadInput(f"{what} is {word!r}; allowed are {', '.join(allowed)}.{did_you_mean(str(word), allowed)}")


class SocialNavEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A differential-drive robot on its way to a goal among pedestrians of the social force model, with walls.

        env = gymnasium.make("pipeline.envs.social_nav:SocialNav-v0", scenario="intersection", density="high")
        observation, info = env.reset(seed=7)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

    Every info holds the metrics of the episode so far (floats); a timeout is a truncation. Raises BadInput on wrong
    arguments.
    """

    feature_names = FEATURES  # of the observation's entries, in order
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        scenario: str = "frontal_approach",
        density: str = "low",
        *,
        pedestrians: int | None = None,
        reward_name: str = "progress",
        reward_kwargs: Mapping[str, Any] | None = None,
        max_speed: float = MAX_SPEED,
        horizon: int = HORIZON,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise BadInput(f"render_mode is {render_mode!r}; allowed are None and 'rgb_array'.")
        self.scenario, self.density, self.render_mode = scenario, density, render_mode
        # entries are named by `FEATURES`; target speed (0 to max_speed; -1 stands still) and turn rate (left positive)
        self.observation_space, self.action_space = (Box(-1.0, 1.0, (n,), np.float32) for n in (OBSERVATION_SIZE, 2))
        self.family, self.pedestrians = scenario_numbers(scenario, density, pedestrians)
        self._settings, self._horizon = make_settings(reward_name, reward_kwargs, max_speed, horizon), horizon
        self._slots = np.zeros(1, SLOT)
        self._observations = np.zeros((1, OBSERVATION_SIZE), np.float32)
        self._rewards = np.zeros(1, np.float32)
        self._done = np.zeros(1, np.int8)
        self._trail: list[tuple[float, float]] = []  # m, kept for rendering only

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the episode of `seed`; without one, a seed is drawn from the environment's own generator."""
        super().reset(seed=seed)
        episode = int(self.np_random.integers(SEEDS)) if seed is None else int(seed)
        start(self._slots, 0, self.family, self.pedestrians, episode, self._settings, self._observations)
        self._trail = []
        self._leave_trail()
        return self._observations[0].copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by 0.1 s. The action is clipped to [-1, 1]."""
        if not self._slots[0]["running"]:
            raise gymnasium.error.ResetNeeded("The episode is over or has not begun: call reset() first.")
        actions = np.asarray(action, np.float32).reshape(1, 2)
        if not np.isfinite(actions).all():
            raise BadInput(f"action is {action!r}; both entries must be finite numbers in [-1, 1].")
        advance(self._slots, actions, self._settings, self._observations, self._rewards, self._done)
        self._leave_trail()
        terminated, truncated = bool(self._done[0] == 1), bool(self._done[0] == 2)
        info = episode_metrics(self._slots[0], self._horizon)
        return self._observations[0].copy(), float(self._rewards[0]), terminated, truncated, info

    def _leave_trail(self) -> None:
        if self.render_mode is not None:
            self._trail.append((float(self._slots[0]["x"]), float(self._slots[0]["y"])))

    def render(self) -> np.ndarray | None:
        """The current state as (544, 640, 3) uint8 with `render_mode="rgb_array"`, otherwise None."""
        if self.render_mode is None:
            return None
        from pipeline.envs.social_nav.rendering import draw_frame

        title = f"{self.scenario.replace('_', ' ')}, {self.density}"
        return draw_frame(self._slots[0], self._observations[0], title, self._horizon, self._trail)

    def state(self) -> np.void:
        """A copy of the full simulation state, one `SLOT` record: positions, velocities, walls, accumulators."""
        return self._slots[0].copy()

"""Environments whose probe can be worked out by hand, and some that no task can be made of."""

import itertools
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

_MADE = itertools.count()


class Known(gym.Env):
    """Observes 100 and 104 in turn, is paid 1 a step for four steps, and says of each end what it was."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, kind: str = "sound", steps: int = 4) -> None:
        self._kind, self._steps = kind, steps
        self._chance = np.random.default_rng(next(_MADE))
        if kind == "stillborn":
            raise AssertionError("no wheels")
        if kind == "unbounded":
            self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._at = 0
        return self._observe(), {}

    def _observe(self):
        noise = self._chance.normal() if self._kind == "moody" else 0.0
        seen = np.inf if self._kind == "dizzy" and self._at == 2 else 100.0 + 4.0 * (self._at % 2) + noise
        return np.array([seen], np.float32)

    def step(self, action):
        self._at += 1
        if self._kind == "broken" and self._at == 2:
            raise ZeroDivisionError("a wheel came off")
        over = self._at == self._steps
        info = {"success": over, "crash": False, "distance": 2.5 * self._at, "mood": "good"} if over else {}
        if self._kind in ("silent", "sparse", "obeyed"):
            info = {}
        paid = {"sparse": 0.5 * over, "obeyed": float(np.sum(action)), "unpaid": np.nan}
        reward = paid.get(self._kind, 1.0)
        return self._observe(), reward, over, False, info


class Rope(gym.Env):
    """Forty steps on a rope that lies at 0.5 or -0.5, as is seen; an action within `width` of it is paid 1.

    `told`: whoever is on its side of 0 is paid, and success is to have been within `width` at every step.
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, width: float = 0.1, told: bool = False) -> None:
        self._width, self._told = width, told

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left, self._rope = 40, np.array([self.np_random.choice([-0.5, 0.5])], np.float32)
        self._never_off = True
        return self._rope, {}

    def step(self, action):
        self._left -= 1
        on = bool(abs(action - self._rope)[0] < self._width)
        self._never_off &= on
        paid = bool((action * self._rope)[0] > 0) if self._told else on
        return self._rope, float(paid), False, self._left == 0, {"success": self._never_off} if self._told else {}


def balance(observation):
    """Walks on the rope."""
    return observation


def odd(observation):
    """Chooses 1 whenever it sees 104: two of four steps."""
    return int(observation[0] == 104.0)


def lost(observation):
    raise KeyError("the way")


def bold(observation):
    return 2


class Line(gym.Env):
    """Sound: a walk on a line from a random start, over within 0.4 of the middle, cut after `last` steps (None: never).

    Those below differ from it in what people do who write environments for themselves.
    """

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it
    last: int | None = 20
    made = 0
    open: set["Line"] = set()  # noqa: RUF012 - of all

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        Line.open.add(self)
        Line.made += 1

    def close(self):
        Line.open.discard(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-3, 3)), 0
        return self.see(), {}

    def see(self):
        return np.array([self.x], np.float32)

    def step(self, action):
        self.x, self.t = float(np.clip(self.x + action[0], -9, 9)), self.t + 1
        there = abs(self.x) < 0.4
        return self.see(), float(there), there, self.t == self.last, {"is_success": there}

    def render(self):
        return np.full((36, 36, 3), int(10 * self.x) % 256, np.uint8)


class Same(Line):
    """Gives one array away again and again."""

    def see(self):
        self.array = getattr(self, "array", np.zeros(1, np.float32))
        self.array[:] = self.x
        return self.array

    def render(self):
        self.picture = getattr(self, "picture", np.zeros((36, 36, 3), np.uint8))
        self.picture[:] = self.t
        return self.picture


class InPlace(Line):
    """Halves the very action it is given."""

    def step(self, action):
        action *= 0.5
        return super().step(action)


class Table(Line):
    """Looks its action up."""

    action_space = spaces.Discrete(2)

    def step(self, action):
        return super().step({0: (-0.5,), 1: (0.5,)}[action])


class Endless(Table):
    """No episode ends but in the middle, and none is cut."""

    last = None


class Plain(Table):
    """Observes an `int` of Python's, and a mapping with one when asked: its place in half steps."""

    def __init__(self, render_mode: str | None = None, mapping: bool = False) -> None:
        super().__init__(render_mode)
        self.observation_space = spaces.Discrete(37)
        if mapping:
            self.observation_space = spaces.Dict({"place": spaces.Discrete(37), "x": spaces.Box(-9, 9, (1,))})

    def see(self):
        place = round(2 * self.x) + 18
        return {"place": place, "x": [self.x]} if isinstance(self.observation_space, spaces.Dict) else place


class Narrow(Line):
    """Leaves what it declares: a part of the observation is declared to be 0 and is not."""

    observation_space = spaces.Box(np.array([-9, 0], np.float32), np.array([9, 0], np.float32))

    def see(self):
        return np.array([self.x, self.x / 3], np.float32)


class Simulator(Line):
    """Has its physics in a process of its own, whose id is written down; one that is `careless` never ends it."""

    def __init__(self, render_mode: str | None = None, pids: str = "", careless: bool = False) -> None:
        super().__init__(render_mode)
        self._physics = multiprocessing.Process(target=time.sleep, args=(600,))
        self._physics.start()
        self._careless = careless
        with Path(pids).open("a") as file:
            file.write(f"{self._physics.pid}\n")

    def close(self):
        super().close()
        if not self._careless:
            self._physics.kill()
            self._physics.join()


class Undrawable(Line):
    """Declares pictures, and has no screen to draw them on."""

    def render(self):
        raise OSError("no screen")


class Far(Line):
    """Observes what no policy can read: float32 has no such number."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def see(self):
        return np.array([1e300])


class Plate(Line):
    """Acts in an array of two axes."""

    action_space = spaces.Box(-1, 1, (2, 2), np.float64)

    def step(self, action):
        return super().step(action[0])


class Named(Line):
    """Says at its end what no task file can name, what no float holds, and nothing at all until then."""

    def step(self, action):
        *rest, info = super().step(action)
        over = rest[2] or rest[3]
        return *rest, {**info, 7: 3, None: 1, "huge": 10**400, "why": None, "path": [1, 2]} if over else None


class Shared(Line):
    """Draws from the generator that everybody shares, seeded at its start."""

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed)  # noqa: NPY002
        return super().reset(seed=seed)

    def step(self, action):
        return super().step(action + np.random.normal(0, 0.1))  # noqa: NPY002


class Fragile(Line):
    """Breaks where random play seldom comes; `way` is what breaks."""

    def __init__(self, render_mode: str | None = None, way: str = "step") -> None:
        super().__init__(render_mode)
        self._way = way
        if way == "make":
            raise RuntimeError("no licence")

    def reset(self, *, seed=None, options=None):
        if self._way == "reset":
            raise RuntimeError("no map")
        return super().reset(seed=seed)[0] if self._way == "old" else super().reset(seed=seed)

    def step(self, action):
        if self._way == "step" and self.t == 5:
            raise RuntimeError("off the map\nand away")
        if self._way == "quit" and self.t == 5:
            raise SystemExit("window closed")
        return super().step(action)

    def close(self):
        super().close()
        if self._way == "close":
            raise RuntimeError("disconnected")

    def see(self):
        return "nowhere" if self._way == "see" and self.t == 5 else super().see()


class Rough(Line):
    """Changes the process that it is made in, in four ways."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        os.chdir(Path(__file__).parent)
        np.seterr(all="raise")
        warnings.simplefilter("error", UserWarning)
        torch.set_default_dtype(torch.float64)

    def reset(self, *, seed=None, options=None):
        np.seterr(under="raise")
        return super().reset(seed=seed)


class Bytes(Line):
    """Observes bytes that are no picture."""

    observation_space = spaces.Box(0, 255, (2,), np.uint8)

    def see(self):
        return np.array([100 + 10 * self.x, 200], np.uint8)


def still(observation):
    return np.zeros(1, np.float32)


def walk(observation):
    return np.clip(-observation[:1], -1, 1)


_ANSWER = np.zeros(1, np.float32)


def away(observation):
    """Never there: up to the wall."""
    return np.where(observation < 0, -1, 1).astype(np.float32)


def walk_the_same(observation):
    """Answers with one array again and again."""
    _ANSWER[:] = walk(observation)
    return _ANSWER


def pick(observation):
    return int(observation[0] < 0)


_TURNS = {place: int(place < 18) for place in range(37)}


def look_up(observation):
    """Needs what can be a key, as an environment's own `int` can."""
    return _TURNS[observation["place"] if isinstance(observation, dict) else observation]

"""Slow environments behind the episode contract: slots are stepped in several processes, to the bits of one.

    env = ParallelVecEnv(make_env, "default", streams, observation_space, action_space, workers=4)

Each process plays neighbouring slots as `SerialVecEnv` does. Observations come back through shared memory. The streams
stay here, where the processes get their next episodes in the order of the slots: whichever of them is faster, a slot
plays what it would play in one process.
"""

import contextlib
import os
import signal
import time
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from typing import Any, Final, NoReturn

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from pipeline.envs.episodes import NOTHING, Episode, EpisodeStream, RemoteVecEnv
from pipeline.envs.processes import fork_server, start
from pipeline.envs.serial import SerialVecEnv
from pipeline.errors import BadInput

LONGEST_STEP: Final = 300.0  # s that all slots of a process may take for one step, or to begin
GRACE_SECONDS: Final = 2.0
PROBED_STEPS, PROBED_SECONDS = 50, 1.0
SLOW_STEP: Final = 1e-3  # s; an exchange with a process takes about a tenth of that

MakeEnv = Callable[[str], gym.Env[Any, Any]]


def seconds_of_a_step(make_env: MakeEnv, scenario: str) -> float:
    """What a step of an environment takes on the clock: median over the beginning of an episode of random actions."""
    with contextlib.closing(make_env(scenario)) as env:
        env.reset(seed=0)
        env.action_space.seed(0)
        moments, over = [time.perf_counter()], False
        while not over and len(moments) <= PROBED_STEPS and moments[-1] < moments[0] + PROBED_SECONDS:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            moments.append(time.perf_counter())
            over = bool(terminated or truncated)
        return float(np.median(np.diff(moments)))


class ParallelVecEnv(RemoteVecEnv):
    """Environments made by `make_env(scenario)`, which travels to the processes, in as many of them as `workers` says.

    `scenario` is any of the scenarios; the spaces are those of all of them. Raises BadInput as an environment does, and
    for a process that died or did not answer, with the episode that it played. Whoever makes one closes it.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        scenario: str,
        streams: Sequence[EpisodeStream],
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        workers: int,
    ) -> None:
        super().__init__(len(streams), observation_space, action_space)
        self.set_streams(streams)
        keys, shapes, dtypes = obs_space_info(observation_space)
        context = fork_server()
        sizes = {key: (self.num_envs, *shapes[key]) for key in keys}
        memory = {key: context.RawArray("b", int(np.prod(sizes[key])) * np.dtype(dtypes[key]).itemsize) for key in keys}
        arrays = {key: (memory[key], sizes[key], np.dtype(dtypes[key])) for key in keys}
        self._observations = _views(arrays)
        self._slots = np.array_split(np.arange(self.num_envs), min(workers, self.num_envs))
        self._playing = context.RawArray("q", len(self._slots))  # seed of the episode that a process is in
        self._pipes: list[connection.Connection] = []
        self._processes: list[ForkServerProcess] = []
        weakref.finalize(self, _end, self._processes, self._pipes)  # at exit, where nobody closed it
        for number, slots in enumerate(self._slots):
            ours, theirs = context.Pipe()
            part = slice(int(slots[0]), int(slots[-1]) + 1)
            given = make_env, scenario, arrays, part, self._playing, number, theirs, os.getpgrp()
            # not a daemon: those may have no processes of their own, which environments do have
            process = context.Process(target=_work, args=given, name=f"environments-{number}", daemon=False)
            start(process)
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def reset(self) -> VecEnvObs:
        for pipe in self._pipes:
            self._tell(pipe, ("reset", None))
        for number in range(len(self._pipes)):
            self._answer(number)
        self._reset_seeds()
        self._reset_options()
        return self._seen()

    def step_async(self, actions: np.ndarray) -> None:
        self._asked = [number for number, slots in enumerate(self._slots) if self.running[slots].any()]
        for number in self._asked:
            self._tell(self._pipes[number], ("step", actions[self._slots[number]]))

    def step_wait(self) -> VecEnvStepReturn:
        rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        infos = [NOTHING] * self.num_envs
        for number in self._asked:
            slots = self._slots[number]
            rewards[slots], dones[slots], ended = self._answer(number)
            for slot, info in ended.items():
                infos[slots[slot]] = info
        return self._seen(), rewards, dones, infos

    def _seen(self) -> VecEnvObs:
        return dict_to_obs(self.observation_space, OrderedDict((k, a.copy()) for k, a in self._observations.items()))

    def _tell(self, pipe: connection.Connection, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone; who waits for its answer says so
            pipe.send(message)

    def _answer(self, number: int) -> Any:
        """What a process answers, after all episodes that it asked for on its way."""
        pipe, deadline = self._pipes[number], time.monotonic() + LONGEST_STEP
        while True:
            try:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    self._lost(number, f"did not answer for {LONGEST_STEP:.0f} s")
                kind, content = pipe.recv()
            except (EOFError, ConnectionResetError):
                self._lost(number, "")
            if kind == "next":
                self._tell(pipe, self._next_episode(int(self._slots[number][content])))
            elif kind == "raised":
                raise content
            else:
                return content

    def _lost(self, number: int, silent: str) -> NoReturn:
        """Raises BadInput that names the episode."""
        process, seed = self._processes[number], self._playing[number]
        if not silent:
            process.join(GRACE_SECONDS)
        code = process.exitcode or 0
        how = silent or (f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}")
        playing = [e for slot in self._slots[number] if (e := self._episodes[slot]) is not None and e.seed == seed]
        where = f"scenario {playing[0].scenario!r}, seed {seed}" if playing else "as it began"
        raise BadInput(
            f"a process of environments {how} ({where}); play that episode in this process to see why "
            "(environment_workers: 0 in the task file)"
        )

    def close(self) -> None:
        _end(self._processes, self._pipes)
        self.running[:] = False
        self._episodes = [None] * self.num_envs


def _end(processes: list[ForkServerProcess], pipes: list[connection.Connection]) -> None:
    """Processes end by themselves when nobody speaks to them any more; those that hang are ended."""
    while pipes:
        pipes.pop().close()
    while processes:
        process = processes.pop()
        process.join(GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


# --- in a process ----------------------------------------------------------------------------------------------------


class _Marked(gym.Wrapper[Any, Any, Any, Any]):
    """Leaves the seed of its episode where the parent finds it when this process dies."""

    def __init__(self, env: gym.Env[Any, Any], playing: Any, number: int) -> None:
        super().__init__(env)
        self._playing, self._number, self._seed = playing, number, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._playing[self._number] = self._seed = seed or 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._playing[self._number] = self._seed
        return self.env.step(action)


def _views(arrays: Mapping[str, tuple[Any, tuple[int, ...], np.dtype]]) -> dict[str, np.ndarray]:
    return {key: np.frombuffer(memory, dtype).reshape(shape) for key, (memory, shape, dtype) in arrays.items()}


def _work(
    make_env: MakeEnv,
    scenario: str,
    arrays: Mapping[str, tuple[Any, tuple[int, ...], np.dtype]],
    part: slice,
    playing: Any,
    number: int,
    pipe: connection.Connection,
    group: int,
) -> None:
    """Play the slots of `part`, until nobody speaks to us any more."""
    with contextlib.suppress(OSError):
        os.setpgid(0, group)  # whoever ends the group of our parent ends us too
    os.register_at_fork(after_in_child=pipe.close)  # else what an environment started would hold it open after our end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def asked(slot: int) -> Iterator[Episode]:
        while True:
            pipe.send(("next", slot))
            if (episode := pipe.recv()) is None:
                return
            yield episode

    env: SerialVecEnv | None = None
    count = part.stop - part.start
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            command, actions = pipe.recv()
            try:
                if env is None:
                    never_played: list[EpisodeStream] = [iter([Episode(scenario, 0)]) for _ in range(count)]
                    env = SerialVecEnv(lambda name: _Marked(make_env(name), playing, number), never_played)
                    env.buf_obs.update({key: array[part] for key, array in _views(arrays).items()})
                answer: Any = None
                if command == "reset":
                    env.set_streams([asked(slot) for slot in range(count)])
                    env.reset()
                else:
                    _, rewards, dones, infos = env.step(actions)
                    answer = rewards, dones, {slot: infos[slot] for slot in np.flatnonzero(dones).tolist()}
                pipe.send(("done", answer))
            except BadInput as error:  # without what it came from, which may be of a user's own type
                pipe.send(("raised", type(error)(str(error))))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                break
            except OSError as error:
                pipe.send(("raised", error))
            except Exception:
                pipe.send(("raised", RuntimeError(f"a process of environments crashed: {traceback.format_exc()}")))
    if env is not None:
        env.close()

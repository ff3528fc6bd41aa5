"""Episodes into pictures: simulate one again with rendering on, from recorded actions or from a policy.

    seen = film(task, episode, from_record(executed_actions))      # or from_actor(policy, task.action_space)
    seen.frames, seen.events          # pictures, and the steps at which something happened

    pictured = view_again(Task(config, use_camera=True), recorded)     # the episodes as the task's camera sees them

Any environment with `render_mode="rgb_array"` will do. Drawing on the frames and encoding them is not done here.
"""

from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, Final

import gymnasium as gym
import numpy as np
from PIL import Image

from pipeline.data import UNKNOWN_SEED, Trajectories
from pipeline.data.observations import flat_rows, one_row, row_dtype
from pipeline.envs.calling import RAISED, broken
from pipeline.envs.episodes import Episode
from pipeline.envs.serial import outcome_of
from pipeline.errors import BadInput
from pipeline.play.rollouts import Choose, from_record, play_alone
from pipeline.tasks import RENDER_MODE, Task

MAX_SEEN_BYTES: Final = 1 << 31  # of frames held in memory for a cloning
SEEN_TOLERANCE: Final = 1e-4  # of a state, absolute and relative: another processor rounds otherwise


@dataclass(frozen=True)
class Film:
    """One episode in pictures: its start, its end, and every so many steps between them."""

    frames: tuple[np.ndarray, ...]  # (H, W, 3) uint8
    steps: tuple[int, ...]  # that the frames show; 0 is the start
    rewards: np.ndarray  # (T,) float64
    events: dict[str, tuple[int, ...]]  # event of the task -> steps at which its counter grew
    final: dict[str, float]  # scalars of the final info

    @property
    def episode_return(self) -> float:
        return float(self.rewards.sum())


def film(
    task: Task,
    episode: Episode,
    choose: Choose,
    most_frames: int | None = None,
    most_pixels: int | None = None,
    length: int = 0,
) -> Film:
    """Play an episode to its end, or as far as `choose` goes. Raises BadInput when nothing renders.

    A film of more than `most_frames` has those of every second, fourth, ... step; frames are scaled down to
    `most_pixels` in width and height. None: every step, and as it is drawn. `length`: the steps that the episode is
    known to take; then nothing is drawn that is not kept.
    """
    frames, steps, rewards, stride = list[np.ndarray](), list[int](), list[float](), 1
    while most_frames is not None and length // stride + 1 > most_frames:
        stride *= 2
    counters = {name: 0.0 for name in task.config.events}
    events: dict[str, list[int]] = {name: [] for name in task.config.events}
    with closing(task.make_env(episode.scenario, RENDER_MODE)) as env:
        for step, moment in enumerate(play_alone(env, episode.seed, choose)):
            if step % stride == 0:
                frames.append(_picture(env, most_pixels))
                steps.append(step)
            if most_frames is not None and len(frames) > most_frames:
                frames, steps, stride = frames[::2], steps[::2], 2 * stride
            if step == 0:  # before the first step nothing has happened
                continue
            rewards.append(moment.reward)
            numbers = outcome_of(moment.info)
            for name, key in task.config.events.items():
                grown = numbers.get(key, counters[name])
                if grown > counters[name]:
                    events[name].append(step)
                counters[name] = grown
        if steps[-1] != step:
            frames.append(_picture(env, most_pixels))
            steps.append(step)
    happened = {name: tuple(at) for name, at in events.items()}
    return Film(tuple(frames), tuple(steps), np.array(rewards), happened, outcome_of(moment.info))


def _picture(env: gym.Env[Any, Any], most_pixels: int | None) -> np.ndarray:
    try:
        frame: Any = env.render()
    except RAISED as error:
        broken(f"environment {env} cannot be drawn", error)
    if not isinstance(frame, np.ndarray):
        raise BadInput(f"environment {env} gives no picture with render_mode {RENDER_MODE!r}; playback needs one")
    if most_pixels is not None and max(frame.shape[:2]) > most_pixels:
        picture = Image.fromarray(frame)
        picture.thumbnail((most_pixels, most_pixels), Image.Resampling.HAMMING)
        return np.asarray(picture)
    return frame.copy()  # an environment may draw into one array again and again


def view_again(task: Task, recorded: Trajectories) -> Trajectories:
    """The recorded episodes with what the camera of `task` sees in the place of what was observed.

    Every episode is simulated again from its seed and executed actions, and must pass through the recorded states:
    then each frame shows exactly what the label was given for, whoever gave it. Frames are a function of the dataset,
    so that no dataset needs to hold them. Raises BadInput when an episode cannot be simulated again, departs from
    its record, or when the frames would not fit into memory.
    """
    kind, rows = row_dtype(task.observation_space), len(recorded.observations)
    if rows * kind.itemsize > MAX_SEEN_BYTES:
        raise BadInput(
            f"use_camera: {rows:,} frames of {kind.itemsize:,} bytes take {rows * kind.itemsize / 1e9:.1f} GB, allowed "
            f"are {MAX_SEEN_BYTES / 1e9:.1f}; lower camera.size or camera.frames, set camera.grayscale, or record less"
        )
    frames = np.empty(rows, kind)
    with ExitStack() as opened:
        environments: dict[str, gym.Env[Any, Any]] = {}
        for index, start in enumerate(recorded.observation_offsets[:-1]):
            episode = recorded.episode(index)
            if episode.seed == UNKNOWN_SEED:
                raise BadInput(
                    f"use_camera: episode {index} has no seed, so that it cannot be seen again; record a dataset"
                )
            if episode.scenario not in environments:
                environments[episode.scenario] = opened.enter_context(closing(task.make_env(episode.scenario)))
            env = environments[episode.scenario]
            state_space, again = env.get_wrapper_attr("unseen_space"), f"use_camera: episode {index}, simulated again,"
            for step, moment in enumerate(play_alone(env, episode.seed, from_record(episode.executed_actions))):
                if step and moment.over != (step == len(episode)):
                    raise BadInput(f"{again} does not end after step {len(episode)}")
                frames[start + step] = one_row(env.observation_space, moment.observation)
                state = flat_rows(one_row(state_space, env.get_wrapper_attr("unseen"))[None])
                then = flat_rows(episode.observations[step : step + 1])
                if not np.allclose(state, then, rtol=SEEN_TOLERANCE, atol=SEEN_TOLERANCE, equal_nan=True):
                    raise BadInput(
                        f"{again} is in another state at step {step} than was recorded; "
                        "the environment is not deterministic, or not the one of the recording"
                    )
    pictures = frames if kind.names is None else frames["image"]
    if all((picture == pictures[0]).all() for picture in pictures):
        raise BadInput("use_camera: every frame is the same picture; does the environment draw what happens in it?")
    return replace(recorded, observations=frames)

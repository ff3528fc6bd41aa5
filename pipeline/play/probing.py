"""What an environment is like, learnt by playing it at random: the facts that a task file and stage configs rest on.

probe = probe_environment(task, episodes=20, seed=0)
probe.returns.max(), probe.lengths.mean(), probe.final_keys, probe.repeatable

Where somebody demonstrates, he plays the same episodes.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from pipeline.config.training import Network
from pipeline.data.observations import element_names, flat_rows, from_rows, one_row, row_dtype
from pipeline.data.spaces import space_bounds
from pipeline.envs.calling import RAISED, raised
from pipeline.envs.episodes import Episode
from pipeline.envs.serial import outcome_of
from pipeline.errors import BadInput
from pipeline.files import digest
from pipeline.play.demonstrators import Script
from pipeline.play.rollouts import ExecutionNoise, from_actor, play_alone
from pipeline.policies import build_policy
from pipeline.tasks import RENDER_MODE, Purpose, Task

SUCCESS_KEYS = ("is_success", "success", "reached_goal", "goal_reached")  # of a final info
LARGEST = float(np.finfo(np.float32).max)  # that a policy can read
LONGEST = 2_000  # steps after which a probed episode is left where it is
NOISES = (0.2, 0.1, 0.05)  # execution noise that is tried, widest first; discrete actions begin at 0.1
KEPT = 0.5  # of what a demonstrator is better than random play, under noise that it can be recorded with
BATCH = 256  # observations of a gradient step, of PPO and of cloning


@dataclass(frozen=True)
class ElementSpread:
    """Mean and standard deviation of every element of the observation, or of one key of it, under random actions."""

    mean: np.ndarray  # (elements,) float64
    std: np.ndarray  # (elements,) float64


@dataclass(frozen=True)
class Shown:
    """What a demonstrator came to over some episodes."""

    returned: float  # mean return
    success: float | None  # share of the episodes; None: no final info tells it

    @classmethod
    def of(cls, played: "Sequence[_Played]") -> "Shown":
        """Of episodes that are over."""
        key = next((key for key in SUCCESS_KEYS if all(one.final.get(key) in (0.0, 1.0) for one in played)), None)
        success = None if key is None else float(np.mean([one.final[key] for one in played]))
        return cls(float(np.mean([one.episode_return for one in played])), success)


@dataclass(frozen=True)
class Probe:
    """What N random episodes of an environment were like."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    returns: np.ndarray  # (N,) float64
    lengths: np.ndarray  # (N,) int64 steps
    rewards: tuple[float, float]  # smallest and largest of a step
    ended: int  # episodes that the environment itself ended or truncated within `LONGEST` steps
    longest: int  # steps of the longest of those, the demonstrator's included; 0: none ended
    truncates: bool  # one was truncated, or Gymnasium says that it would be
    final_keys: dict[str, tuple[float, float]]  # numbers in every final info: key -> smallest and largest
    limit: int | None  # steps after which Gymnasium says it truncates
    reward_threshold: float | None  # return that Gymnasium calls solved
    drawn: str | None  # why its pictures cannot be had; empty: they can; None: it has none
    repeatable: bool  # the same seed and actions gave the same bits again, another environment being played beside it
    alone: bool  # they did without the other
    starts: int  # different first observations
    steps_per_second: float
    making: float  # seconds of making an environment, another than the first
    drawing: float  # seconds of a frame
    updating: float  # seconds of a policy's gradient step over `BATCH` observations
    outside: str  # which observations left the declared space, and by how much; empty: none
    rewarded_at_end: bool  # no reward was negative, and none but the last of an episode was positive
    shown: np.ndarray | None  # (N,) float64 returns of the demonstrator in the same episodes
    shown_steps: float | None  # its mean number of steps
    shown_finals: tuple[dict[str, float], ...]  # (N,) its final infos; nothing of an episode that was left
    noise: float  # execution noise to record with (`borne_noise`); what is usual where nobody demonstrates
    noisy: "dict[float, Shown]"  # execution noise -> what came of the demonstrator, in the order that they were tried
    spreads: dict[str, ElementSpread]  # "" for a Box, else keys of a Dict that are Boxes; pictures are none

    @property
    def renders(self) -> bool:
        return self.drawn == ""


def probe_environment(task: Task, episodes: int, seed: int, demonstrator: Script | None = None) -> Probe:
    """Play episodes of the task's first scenario at random, and again with the demonstrator.

    Raises BadInput when the environment, or the demonstrator in it, cannot be played.
    """
    scenario = next(iter(task.config.scenarios))
    seeds = [episode.seed for episode in task.episodes("train", seed, episodes, Purpose.EVALUATE)]
    with closing(task.make_env(scenario)) as env:
        played = [_play(env, one) for one in seeds]
        alone = _play(env, seeds[0]).same_as(played[0])
        with closing(task.make_env(scenario)) as other:
            repeatable = alone and _play(env, seeds[0], beside=other).same_as(played[0])
        shown = [] if demonstrator is None else [_play(env, one, demonstrator) for one in seeds]
        started = time.perf_counter()
        task.make_env(scenario).close()
        making = time.perf_counter() - started
        drawn, drawing = _drawn(task, scenario, seeds[0]) if task.renders else (None, 0.0)
        both, space = played + shown, env.observation_space
        ended = [one for one in both if one.over]
        limit = None if env.spec is None else env.spec.max_episode_steps
        steps = np.concatenate([one.rewards for one in played])
        common = [key for key in ended[0].final if all(key in one.final for one in ended)] if ended else []
        numbers = {key: [one.final[key] for one in ended] for key in common}
        low, high = np.min([one.low for one in both], axis=0), np.max([one.high for one in both], axis=0)
        least, most = space_bounds(space)
        outside = ""
        if len(wrong := np.flatnonzero((low < least) | (high > most))):
            at, names = wrong[0], element_names(row_dtype(space))
            name = f"element {at}" if names is None else names[at]
            more = f" (and {len(wrong) - 1} more elements)" if len(wrong) > 1 else ""
            outside = f"{name} was {low[at]:g} to {high[at]:g}, declared is {least[at]:g} to {most[at]:g}{more}"
        noise, noisy = _noises(env.action_space)[0], dict[float, Shown]()
        bounded = np.isfinite(space_bounds(env.action_space)).all()
        if demonstrator is not None and bounded and all(one.over for one in shown):
            noise, noisy = borne_noise(env, seeds, demonstrator, played, shown)
        rows = [len(one.rewards) + 1 for one in played]
        spreads = {}  # over all rows, from those of single episodes
        for key in played[0].spreads:
            means, stds = (np.stack([getattr(one.spreads[key], name) for one in played]) for name in ("mean", "std"))
            mean = np.average(means, axis=0, weights=rows)
            variance = np.average(stds**2 + (means - mean) ** 2, axis=0, weights=rows)
            spreads[key] = ElementSpread(mean, np.sqrt(variance))
        return Probe(
            observation_space=space,
            action_space=env.action_space,
            returns=np.array([one.episode_return for one in played]),
            lengths=np.array([len(one.rewards) for one in played]),
            rewards=(float(steps.min()), float(steps.max())),
            ended=sum(one.over for one in played),
            longest=max((len(one.rewards) for one in ended), default=0),
            truncates=any(one.truncated for one in both) or bool(limit),
            final_keys={key: (min(values), max(values)) for key, values in numbers.items()},
            limit=limit,
            reward_threshold=None if env.spec is None else env.spec.reward_threshold,
            drawn=drawn,
            repeatable=repeatable,
            alone=alone,
            starts=len({one.start for one in played}),
            steps_per_second=len(steps) / max(1e-9, sum(one.seconds for one in played)),
            making=making,
            drawing=drawing,
            updating=seconds_of_an_update(space, env.action_space),
            outside=outside,
            rewarded_at_end=all((one.rewards[:-1] == 0).all() and one.rewards[-1] >= 0 for one in both),
            shown=np.array([one.episode_return for one in shown]) if shown else None,
            shown_steps=float(np.mean([len(one.rewards) for one in shown])) if shown else None,
            shown_finals=tuple(one.final if one.over else {} for one in shown),
            noise=noise,
            noisy=noisy,
            spreads=spreads,
        )


def borne_noise(
    env: gym.Env[Any, Any],
    seeds: Sequence[int],
    demonstrator: Script,
    random: "Sequence[_Played]",
    shown: "Sequence[_Played]",
) -> tuple[float, dict[float, Shown]]:
    """The widest execution noise that a demonstrator bears, 0 if none, and what came of it under all that were tried.

    Borne is noise that leaves half of what it is better than `random` play, and half of its successes, where the final
    infos tell them. The usual noise is not tried of who is no better than random play.
    """
    usual, alone, tried = _noises(env.action_space), Shown.of(shown), dict[float, Shown]()
    chance = float(np.mean([one.episode_return for one in random]))
    if alone.returned <= chance:
        return usual[0], tried
    for std in usual:
        now = tried[std] = Shown.of([_play(env, seed, demonstrator, noise=std) for seed in seeds])
        succeeds = alone.success is None or (now.success or 0.0) >= KEPT * alone.success
        if succeeds and now.returned - chance >= KEPT * (alone.returned - chance):
            return std, tried
    return 0.0, tried


def _noises(space: gym.Space[Any]) -> tuple[float, ...]:
    return NOISES if isinstance(space, spaces.Box) else NOISES[1:]


def _drawn(task: Task, scenario: str, seed: int) -> tuple[str, float]:
    """Why the environment cannot be drawn (see `Probe.drawn`), and seconds of a frame."""
    try:
        with closing(task.make_env(scenario, RENDER_MODE)) as env:
            env.reset(seed=seed)
            env.render()  # the first opens what draws
            started = time.perf_counter()
            frames = [env.render() for _ in range(3)]
            seconds = (time.perf_counter() - started) / len(frames)
    except RAISED as error:  # somebody else's code, and drivers that are not there
        return raised(error.__cause__ or error), 0.0
    pictures = all(isinstance(frame, np.ndarray) for frame in frames)
    return "" if pictures else f"render() gave a {type(frames[0]).__name__}", seconds


def seconds_of_an_update(observations: gym.Space[Any], acts: gym.Space[Any]) -> float:
    """Seconds of a gradient step of actor and critic, whose network `new_task` proposes, over `BATCH` observations."""
    policy = build_policy(observations, acts, Network(hidden=(64, 64)), seed=0)
    batch, _ = policy.obs_to_tensor(from_rows(np.zeros(BATCH, row_dtype(observations))))
    actions = policy(batch)[0].detach().flatten(1) if acts.shape else policy(batch)[0].detach()  # as PPO keeps them
    seconds = []
    for _ in range(4):  # the first is slower, and any may be held up
        started = time.perf_counter()
        values, likelihoods, _ = policy.evaluate_actions(batch, actions)
        (values.mean() - likelihoods.mean()).backward()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@dataclass(frozen=True)
class _Played:
    start: bytes  # the first observation
    digest: str  # of all of them
    low: np.ndarray  # (elements,) float64 smallest value of every element of the observation
    high: np.ndarray
    spreads: dict[str, ElementSpread]
    rewards: np.ndarray  # (T,) float64
    over: bool
    truncated: bool
    final: dict[str, float]
    seconds: float

    @property
    def episode_return(self) -> float:
        return float(self.rewards.cumsum()[-1])  # in the order of an evaluation: a sum in another may miss it by a bit

    def same_as(self, other: "_Played") -> bool:
        return self.digest == other.digest and self.rewards.tobytes() == other.rewards.tobytes()


def _play(
    env: gym.Env[Any, Any],
    seed: int,
    demonstrator: Script | None = None,
    beside: gym.Env[Any, Any] | None = None,
    noise: float = 0.0,
) -> _Played:
    """An episode, at random or with a demonstrator, whose actions may be disturbed.

    Another environment may be played `beside` it, as in recordings.
    """
    disturbance = ExecutionNoise(env.action_space, noise, seed, n_envs=1)
    disturbance.begin(0, Episode("default", seed))
    env.action_space.seed(seed)
    answer = (
        (lambda _: env.action_space.sample()) if demonstrator is None else from_actor(demonstrator, env.action_space)
    )
    other_over = True

    def choose(observation: Any) -> Any:
        nonlocal other_over
        action = answer(observation)
        if noise:
            action = disturbance.disturb(np.asarray(action)[None], np.zeros(1, np.int64))[0]
        if beside is not None:
            if other_over:
                beside.reset(seed=seed)
            other_over = any(beside.step(action)[2:4])
        return action

    started = time.perf_counter()
    moments = list(islice(play_alone(env, seed, choose), LONGEST + 1))
    seconds, last = time.perf_counter() - started, moments[-1]
    seen = np.stack([one_row(env.observation_space, moment.observation) for moment in moments])
    rewards = [moment.reward for moment in moments[1:]]
    flat = flat_rows(seen)
    low, high = (limit.astype(np.float64) for limit in (flat.min(axis=0), flat.max(axis=0)))
    for what, values in (("rewards", rewards), ("observations", [*low, *high])):
        wrong = [value for value in values if not abs(value) <= LARGEST]
        if wrong:
            raise BadInput(
                f"environment {what} must be finite, as float32; the episode with seed {seed} has {wrong[0]}: "
                "mend it first"
            )
    space, spreads = env.observation_space, {}
    parts: Mapping[str, gym.Space[Any]] = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    for key, part in parts.items():  # that reach a policy as the numbers they are
        if isinstance(part, spaces.Box) and not is_image_space(part):
            numbers = (seen[key] if key else seen).reshape(len(seen), -1).astype(np.float64)
            spreads[key] = ElementSpread(numbers.mean(axis=0), numbers.std(axis=0))
    return _Played(
        start=seen[0].tobytes(),
        digest=digest(seen.tobytes()),
        low=low,
        high=high,
        spreads=spreads,
        rewards=np.array(rewards),
        over=last.over,
        truncated=bool(last.truncated),
        final=outcome_of(last.info),
        seconds=seconds,
    )

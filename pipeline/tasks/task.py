"""A task in action: its environments, its episodes with their seeds, and how an episode's end becomes figures.

Nothing here knows a task by name: everything comes from a `TaskConfig`. What a policy does in it is not decided here.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property
from math import isfinite
from typing import Any, Final

import gymnasium as gym

from pipeline.config.loading import to_data
from pipeline.config.task import Outcome, TaskConfig, Wrapper
from pipeline.data.observations import check_action_space, check_observation_space, element_names, row_dtype
from pipeline.envs.calling import RAISED, Called, Fresh, broken, left_as_found
from pipeline.envs.camera import ChannelsFirst, turned
from pipeline.envs.episodes import Episode, EpisodeStream, EpisodeVecEnv
from pipeline.envs.measures import MEASURED, EpisodeMeasures, measured
from pipeline.envs.parallel import SLOW_STEP, ParallelVecEnv, seconds_of_a_step
from pipeline.envs.serial import SerialVecEnv
from pipeline.errors import BadInput, did_you_mean, shortened
from pipeline.names import Metric
from pipeline.tasks.seeds import Purpose, drawn_episodes, endless_episodes
from pipeline.tasks.user_code import (
    call_with_user_arguments,
    imported_class,
    make_environment,
    mujoco_says_it_once,
    wrap_environment,
)

RECORDING_ROUNDS: Final = 5  # of recording again what a filter dropped
RENDER_MODE: Final = "rgb_array"
CAMERA: Final = "pipeline.envs.camera:CameraView"
LONGEST_EPISODE: Final = 20_000  # steps, unless a horizon or Gymnasium's own limit says more


class Task:
    """A task and the keyword arguments of its environments, seen through its camera or as the environments are.

    task = Task(config)
    env = task.make_vec_env(task.training_streams("train", seed=1, n_envs=64))
    """

    def __init__(
        self, config: TaskConfig, environment_kwargs: Mapping[str, Any] | None = None, use_camera: bool = False
    ) -> None:
        self.config = config
        self.use_camera = use_camera
        self.environment_kwargs = {**config.environment.kwargs, **(environment_kwargs or {})}
        camera = Wrapper(name=CAMERA, kwargs=to_data(config.camera))
        self._wrappers = (*config.environment.wrappers, *([camera] if use_camera else []))

    @cached_property
    def _example(self) -> gym.Env[Any, Any]:
        """An environment of the first scenario, closed: only what it declares is read.

        A camera takes one picture first: where none can be drawn, that is said before anything begins.
        """
        if self.use_camera and not Task(self.config, self.environment_kwargs).renders:
            raise BadInput(
                f"use_camera: environment {self.config.environment.id!r} has no render mode {RENDER_MODE!r}; leave the "
                "camera out, or give the environment one"
            )
        with closing(self.make_env(next(iter(self.config.scenarios)))) as env:
            if self.use_camera:
                env.reset(seed=0)
        return env

    @property
    def renders(self) -> bool:
        """Can its environments be drawn as RGB arrays."""
        return RENDER_MODE in (self._example.metadata.get("render_modes") or ())

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the observation's elements: an attribute `feature_names` of the environment, or a Dict's keys."""
        names = getattr(self._example.unwrapped, "feature_names", None)
        if names is not None and self.observation_space.shape == (len(names),):  # a wrapper may have made others
            return tuple(names)
        return element_names(row_dtype(self.observation_space))

    @property
    def wrappers(self) -> list[dict[str, Any]]:
        """What observations and actions go through, as plain data: `[{"name": "ClipAction", "kwargs": {}}]`."""
        return [to_data(wrapper) for wrapper in self._wrappers]

    def as_seen_behind(self, wrappers: Any) -> "Task":
        """This task, or itself through its camera when those are the wrappers that a policy was made behind."""
        camera = Task(self.config, self.environment_kwargs, use_camera=True)
        return camera if wrappers == camera.wrappers else self

    def refuse_other_wrappers(self, wrappers: Any, what: str) -> None:
        """Raise BadInput unless `what` was made behind the same wrappers: equal spaces do not make equal numbers."""
        if wrappers != self.wrappers:
            raise BadInput(
                f"{what} was made behind the wrappers {shortened(wrappers)}, task {self.config.name!r} has "
                f"{shortened(self.wrappers)}; make it again with this task file, or use the task file it was made with"
            )

    @property
    def observation_space(self) -> gym.Space[Any]:
        return self._example.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        return self._example.action_space

    def shares(self, scenario_set: str) -> dict[str, float]:
        """Scenario -> share of the episodes, summing to 1. Raises BadInput for an unknown set."""
        sets = self.config.scenario_sets
        if scenario_set not in sets:
            raise BadInput(
                f"scenario set {scenario_set!r} is not defined by task {self.config.name!r};"
                f"{did_you_mean(scenario_set, sets)} it has: {', '.join(sorted(sets))}"
            )
        total = sum(sets[scenario_set].values())
        return {scenario: weight / total for scenario, weight in sets[scenario_set].items()}

    def refuse_holdouts(self, scenario_set: str, doing: str) -> None:
        """Raise BadInput when the set holds a hold-out scenario, which `doing` must never touch."""
        touched = sorted(set(self.shares(scenario_set)) & self.config.holdout_scenarios())
        if touched:
            raise BadInput(
                f"scenario set {scenario_set!r} holds the hold-out scenario {touched[0]!r}; {doing} must not touch it: "
                "use another set"
            )

    def episodes(
        self, scenario_set: str, seed: int | Sequence[int], count: int, purpose: Purpose
    ) -> tuple[Episode, ...]:
        """`count` distinct episodes that follow from the seed(s): shares exact up to rounding, shuffled order."""
        seeds = [seed] if isinstance(seed, int) else seed
        return tuple(drawn_episodes(self.shares(scenario_set), seeds, count, purpose))

    def recordable_episodes(
        self, scenario_set: str, seeds: Sequence[int], count: int, filtered: bool
    ) -> tuple[Episode, ...]:
        """The episodes that a recording of `count` plays; with a filter those that it may play, for what it drops."""
        return self.episodes(scenario_set, seeds, count * (RECORDING_ROUNDS if filtered else 1), Purpose.RECORD)

    def training_streams(self, scenario_set: str, seed: int, n_envs: int, part: int = 0) -> list[EpisodeStream]:
        """One endless stream of training episodes a slot, drawn by the shares of the set; every `part` has others."""
        self.refuse_holdouts(scenario_set, "training")
        shares = self.shares(scenario_set)
        return [endless_episodes(shares, seed, slot, part) for slot in range(n_envs)]

    @left_as_found()
    def make_env(self, scenario: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """The Gymnasium environment of a scenario. Raises BadInput when it cannot be made."""
        if scenario not in self.config.scenarios:
            raise BadInput(
                f"scenario {scenario!r} is not defined by task {self.config.name!r};"
                f"{did_you_mean(scenario, self.config.scenarios)} it has: {', '.join(sorted(self.config.scenarios))}"
            )
        kwargs = {**self.environment_kwargs, **self.config.scenarios[scenario]}
        mode = RENDER_MODE if self.use_camera else render_mode
        try:
            env = make_environment(self.config.environment.id, kwargs, mode, self.config.horizon)
        except RAISED as error:
            broken(f"environment {self.config.environment.id!r} cannot be made", error)
        mujoco_says_it_once()
        limit = None if env.spec is None else env.spec.max_episode_steps
        try:
            if self._wrappers:
                env = Fresh(env)
            for wrapper in self._wrappers:
                env = wrap_environment(env, wrapper)
            if turned(env.observation_space) != env.observation_space:
                env = ChannelsFirst(env)
            check_observation_space(env.observation_space)
            check_action_space(env.action_space)
        except BaseException:
            with suppress(*RAISED):
                env.close()
            raise
        summed = {name: m for name, m in self.config.metrics.items() if m.over != "last"}
        if summed:
            env = EpisodeMeasures(env, summed)
        return Called(env, self.config.name, scenario, max(LONGEST_EPISODE, self.config.horizon or 0, limit or 0))

    @cached_property
    def _workers(self) -> int:
        if self.config.environment_workers != "auto":
            return self.config.environment_workers
        slow = seconds_of_a_step(self.make_env, next(iter(self.config.scenarios))) >= SLOW_STEP
        # of a machine that is shared, a job of SLURM's say, only some cores may be used; not every system tells which
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores if slow else 0

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: not the environment that was looked at."""
        return {name: value for name, value in vars(self).items() if name != "_example"}

    @property
    def batched(self) -> bool:
        """Are its vectorised environments rows of a batched one, rather than an object a slot."""
        return self.config.environment.batched is not None and not self.use_camera

    def make_vec_env(self, streams: Sequence[EpisodeStream]) -> EpisodeVecEnv:
        """A vectorised environment that plays the streams: the task's batched class, or one environment a slot.

        A batched class draws nothing, so that a camera looks at one environment a slot.
        """
        batched = self.config.environment.batched
        if batched is None or not self.batched:
            if (workers := min(self._workers, len(streams))) > 1:
                first = next(iter(self.config.scenarios))
                spaces = self.observation_space, self.action_space
                return ParallelVecEnv(self.make_env, first, streams, *spaces, workers)
            return SerialVecEnv(self.make_env, streams)
        summed = any(m.over != "last" for m in self.config.metrics.values())
        if self.config.horizon is not None or summed or self.config.environment.wrappers:
            raise BadInput(
                f"task {self.config.name!r}: a batched environment ends its episodes, sums its figures and shapes its "
                "observations itself; remove `horizon`, `over` and `wrappers` from the task, or `environment.batched`"
            )
        cls = imported_class(batched, EpisodeVecEnv, "environment.batched")
        what = f"environment of task {self.config.name!r}"
        try:
            env: EpisodeVecEnv = call_with_user_arguments(
                cls, what, self.config.scenarios, streams, **self.environment_kwargs
            )
        except RAISED as error:
            broken(f"{what} cannot be made", error)
        return env

    def outcome(self, info: Mapping[str, Any]) -> dict[str, float]:
        """The figures of a finished episode from the info that an `EpisodeVecEnv` gave with `done`.

        Raises BadInput when the environment does not report a key that the task names: it is never counted as 0.
        """
        return self._figures(info["outcome"], float(info["episode"]["r"]), float(info["episode"]["l"]))

    def figures(
        self,
        infos: Mapping[str, Sequence[float]] | None,
        rewards: Sequence[float] | None,
        length: int,
        partial_infos: bool = False,
    ) -> dict[str, float]:
        """`outcome` of an episode that was recorded elsewhere, from one number of each info and one reward a step.

        Where nobody recorded infos, or rewards, the figures that follow from them are left out; with `partial_infos`
        also those of an info that is not among them.
        """
        final = None
        if infos is not None:
            final = {key: values[-1] for key, values in infos.items() if values}
            final |= measured(self.config.metrics, infos)
        return self._figures(final, None if rewards is None else float(sum(rewards)), float(length), partial_infos)

    def _figures(
        self, final: Mapping[str, Any] | None, episode_return: float | None, length: float, partial_infos: bool = False
    ) -> dict[str, float]:
        def unknown(key: str) -> bool:
            return final is None or (partial_infos and key not in final)

        figures = {} if episode_return is None else {Metric.RETURN: episode_return}
        figures[Metric.LENGTH] = length
        for role, outcome in ((Metric.SUCCESS, self.config.success), (Metric.COLLISION, self.config.collision)):
            if outcome is None or (episode_return is None if outcome.info is None else unknown(outcome.info)):
                continue
            figures[role] = self._yes_or_no(outcome, role, final or {}, episode_return)
        for name, measure in self.config.metrics.items():
            key = measure.info if measure.over == "last" else f"{MEASURED}{name}"
            if not unknown(key):
                figures[name] = self._final(final or {}, key, f"metrics.{name}.info", measure.info)
        return figures

    def _yes_or_no(
        self, outcome: Outcome, role: str, final: Mapping[str, float], episode_return: float | None
    ) -> float:
        if outcome.info is not None:
            value = self._final(final, outcome.info, f"{role}.info", outcome.info)
            if not isfinite(value):
                # NaN compares as "no": a collision that could not be told would count as none
                raise BadInput(
                    f"task {self.config.name!r}: {role}.info = {outcome.info!r} is {value} at an episode's end"
                )
            return float(value > 0.5)
        assert outcome.return_at_least is not None and episode_return is not None
        return float(episode_return >= outcome.return_at_least)

    def _final(self, final: Mapping[str, float], key: str, setting: str, named: str) -> float:
        if key not in final:
            keys = sorted(k for k in final if not k.startswith(MEASURED))
            raise BadInput(
                f"task {self.config.name!r}: {setting} = {named!r}, but the info of the environment has no such "
                f"number;{did_you_mean(named, keys)} it has: {', '.join(keys) or 'nothing'}"
            )
        return float(final[key])

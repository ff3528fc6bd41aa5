"""Who demonstrates: a policy, or a script of the user's, with its provenance.

A script is named `module:Class` or `module:function`. An instance of the class plays one episode at a time:

    demonstrator.reset()                        # an episode begins: forget the one before
    action = demonstrator.act(observation)      # obs_shape -> act_shape, inside the action space

A function is an `act` without memory. Every slot of a batch has an instance of its own, so that what is recorded
depends neither on how many episodes are played side by side nor on which slot plays which. A script needs no approval;
its provenance is its qualified name, the digest of its source and its parameters.
"""

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from pipeline.data import UNAPPROVED
from pipeline.data.spaces import space_bounds
from pipeline.envs.calling import RAISED, broken
from pipeline.errors import BadInput, shortened
from pipeline.files import digest
from pipeline.policies import WRAPPERS, ActFunction, Observations, act_function, load_policy, read_spec
from pipeline.tasks import Task
from pipeline.tasks.user_code import call_with_user_arguments, import_object


class EpisodeActor(Protocol):
    """Acts in one episode at a time and may remember what it has seen of it."""

    def reset(self) -> None:
        """An episode begins."""

    def act(self, observation: Any) -> Any:
        """One observation of the task -> one action of the task."""


@dataclass(frozen=True)
class Script:
    """A scripted demonstrator: `make()` gives an instance for each slot."""

    name: str
    make: Callable[[], EpisodeActor]


Actor = ActFunction | Script  # whatever can play: a policy for all slots at once, or a script, slot by slot


@dataclass(frozen=True)
class Demonstrator:
    """Something that acts, and what a dataset says about it."""

    actor: Actor
    provenance: dict[str, Any]  # kind, name, version, digest


class ActorSlots:
    """An actor in n slots, each of which plays episodes at its own pace."""

    def __init__(self, actor: Actor, slots: int, space: gym.Space[Any]) -> None:
        self._actor, self._space = actor, space
        self._instances = [actor.make() for _ in range(slots)] if isinstance(actor, Script) else []
        self._starts = np.ones(slots, bool)  # slots whose next observation is the first of an episode

    def act(self, observations: Observations, running: np.ndarray) -> np.ndarray:
        """Actions of all slots (n, *act_shape), zeros where nothing is running (n,) bool.

        Raises BadInput when a script answers what is not an action of the space, and a policy what is no number.
        """
        if isinstance(self._actor, Script):
            chosen = self._one_by_one(self._actor.name, observations, np.flatnonzero(running))
        else:
            chosen = self._actor(observations if running.all() else rows_of(observations, running))
            if not np.isfinite(chosen).all():
                raise BadInput(
                    "a policy answered an action that is not finite; its training diverged, or its file is broken"
                )
        if running.all():
            return chosen
        actions = np.zeros((len(running), *chosen.shape[1:]), chosen.dtype)
        actions[running] = chosen
        return actions

    def ended(self, dones: np.ndarray) -> None:
        """The episodes of these slots (n,) bool are over."""
        self._starts |= dones

    def _one_by_one(self, name: str, observations: Observations, slots: np.ndarray) -> np.ndarray:
        """(r, *act_shape) what the script answers in these r slots."""
        answers = []
        for slot in slots:
            try:
                if self._starts[slot]:
                    self._instances[slot].reset()
                # copies: what a script keeps or changes is its own, and it may answer with one array again and again
                answers.append(deepcopy(self._instances[slot].act(deepcopy(rows_of(observations, slot)))))
            except RAISED as error:
                broken(f"scripted demonstrator {name!r} cannot act", error)
        self._starts[slots] = False
        actions = _actions_of(answers, self._space)
        if actions is None:
            wrong = next((answer for answer in answers if _actions_of([answer], self._space) is None), answers)
            raise BadInput(
                f"scripted demonstrator {name!r} answered {shortened(wrong)}, which is not an action of "
                f"{shortened(str(self._space))}; let its act(observation) return one (clip what may be too large)"
            )
        return actions


def _actions_of(answers: Sequence[Any], space: gym.Space[Any]) -> np.ndarray | None:
    """(r, *act_shape) the r answers as actions of the space; None: one of them is none."""
    # answers of unequal shapes, or of a kind that only rounding would make one of the space
    with contextlib.suppress(ValueError, TypeError):
        actions = np.array(answers).astype(space.dtype, casting="same_kind")
        if actions.shape[1:] == space.shape:
            low, high = space_bounds(space)
            flat = actions.reshape(len(actions), -1)
            if ((flat >= low) & (flat <= high)).all():  # False for NaN
                return actions
    return None


def rows_of(observations: Observations, rows: Any) -> Any:
    """Some rows, or one, of observations that may be a mapping of arrays."""
    if isinstance(observations, Mapping):
        return {key: rows_of(part, rows) for key, part in observations.items()}
    return observations[rows]


def as_policy_sees(task: Task, folder: str | Path) -> Task:
    """The task, through its camera when the policy artifact was trained behind it."""
    return task.as_seen_behind(read_spec(folder).provenance.get(WRAPPERS, []))


def policy_actions(task: Task, folder: str | Path, reference: str, deterministic: bool = True) -> ActFunction:
    """What a policy artifact does in a task. Raises BadInput when it was made for other observations or actions."""
    policy, remedy = load_policy(folder), "give a policy that was trained on this task"
    if not task.use_camera and as_policy_sees(task, folder).use_camera:
        remedy = (
            "it sees what a camera draws, and who demonstrates sees the environment's own observations (docs/camera.md)"
        )
    for what in ("observation_space", "action_space"):
        its, ours = getattr(policy, what), getattr(task, what)
        if its != ours:
            raise BadInput(
                f"policy {reference} does not fit task {task.config.name!r}: its {what} is {shortened(str(its))}, the "
                f"task's is {shortened(str(ours))}; {remedy}"
            )
    task.refuse_other_wrappers(read_spec(folder).provenance.get(WRAPPERS, []), f"policy {reference}")
    return act_function(policy, deterministic)


def _instance_of(target: Callable[..., Any], what: str, kwargs: Mapping[str, Any]) -> Any:
    try:
        return call_with_user_arguments(target, what, **kwargs)
    except RAISED as error:
        broken(f"{what} cannot be made", error)


def scripted(reference: str, kwargs: Mapping[str, Any]) -> Demonstrator:
    """The scripted demonstrator `module:Class` or `module:function`. Raises BadInput when it cannot be made or act."""
    target = import_object(reference, "scripted.demonstrator")
    what = f"scripted demonstrator {reference!r}"
    make: Callable[[], Any] = functools.partial(_instance_of, target, what, kwargs)
    if inspect.isfunction(target):
        call_with_user_arguments(inspect.signature(target).bind, what, None, **kwargs)
        act = functools.partial(target, **kwargs)  # without memory, there is nothing to reset
        make = functools.partial(SimpleNamespace, act=act, reset=lambda: None)
    elif not inspect.isclass(target):
        raise BadInput(f"{what} is neither a class nor a function; name one of those")
    else:
        for method in ("reset()", "act(observation)"):
            if not callable(getattr(target, method.partition("(")[0], None)):
                raise BadInput(f"{what} has no method {method}; give it one, or name a function of the observation")
    make()
    try:
        source = inspect.getsource(inspect.getmodule(target) or target)
    except (OSError, TypeError):
        raise BadInput(f"{what} has no Python source, which is its provenance; wrap it in a module") from None
    whole = digest(json.dumps([reference, source, dict(kwargs)], sort_keys=True))
    provenance = {
        "kind": "scripted",
        "name": reference,
        "version": whole[:12],
        "digest": whole,
        "source_digest": digest(json.dumps(source)),
        "kwargs": dict(kwargs),
        "approval": UNAPPROVED,
    }
    return Demonstrator(Script(reference, make), provenance)

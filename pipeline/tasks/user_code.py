"""Code of users, named in a configuration: `module:Name` is imported, environments and wrappers are made of it.

Whoever names a module runs its code. What may be named is decided by whoever calls, before it is called.
"""

import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from sys import stdlib_module_names
from typing import Any, Final

import gymnasium as gym
from gymnasium.wrappers import TimeLimit

from pipeline.config.task import Wrapper
from pipeline.envs.calling import RAISED, broken, left_as_found
from pipeline.envs.camera import draw_headless
from pipeline.errors import BadInput, did_you_mean, say, shortened

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # package.module:Name


def import_object(reference: str, what: str) -> Any:
    """`"package.module:Name"` -> the object. Raises BadInput naming the reference."""
    if not REFERENCE.fullmatch(reference):
        raise BadInput(f"{what} {shortened(reference)}: write it as module:Name")
    module_name, _, attribute = reference.partition(":")
    _refuse_standard_library(module_name, what)
    try:
        with left_as_found():
            module = import_module(module_name)
    except ImportError as error:
        raise BadInput(f"{what} {reference!r}: cannot import {module_name!r}: {error}; is it installed?") from None
    except RAISED as error:
        broken(f"{what} {reference!r}: {module_name!r} cannot be imported", error)
    if not hasattr(module, attribute):
        names = [name for name in dir(module) if not name.startswith("_")]
        raise BadInput(f"{what} {reference!r}: {module_name!r} has no {attribute!r}.{did_you_mean(attribute, names)}")
    return getattr(module, attribute)


def imported_class(reference: str, parent: type, what: str) -> Any:
    """The same for a class of a kind: nothing else that a module holds is called."""
    found = import_object(reference, what)
    if not (isinstance(found, type) and issubclass(found, parent)):
        named = f"{parent.__module__.partition('.')[0]}.{parent.__name__}"
        raise BadInput(f"{what} {reference!r} is no {named}; name a class that is one")
    return found


def _refuse_standard_library(module_name: str, what: str) -> None:
    if module_name.partition(".")[0] in stdlib_module_names:
        raise BadInput(f"{what} {shortened(module_name)}: Python's own modules hold none; name one of yours")


def call_with_user_arguments(function: Callable[..., Any], what: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call with keyword arguments from a configuration; what it refuses is the user's error, in one line."""
    try:
        with left_as_found():
            return function(*args, **kwargs)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"{what} refuses its arguments {shortened(kwargs)}: {error}") from None


REFUSED_ARGUMENTS: Final[Mapping[str, str]] = {  # of an id: those of `gymnasium.make` itself
    "id": "use environment.id",
    "max_episode_steps": "use horizon",
    "disable_env_checker": "leave it out",
}


def make_environment(
    reference: str, kwargs: Mapping[str, Any], render_mode: str | None, horizon: int | None
) -> gym.Env[Any, Any]:
    """An environment by Gymnasium id or `module:Class`. Raises BadInput for what cannot be one."""
    if render_mode:
        draw_headless()
        kwargs = {**kwargs, "render_mode": render_mode}
    module_name, _, name = reference.rpartition(":")
    if module_name and "-v" not in name:
        try:
            cls = imported_class(reference, gym.Env, "environment.id")
        except BadInput:
            if name not in gym.registry:  # an id without a version, which the module registers
                raise
        else:
            env: gym.Env[Any, Any] = call_with_user_arguments(cls, f"environment {reference!r}", **kwargs)
            return TimeLimit(env, horizon) if horizon else env
    _refuse_standard_library(module_name, "environment.id")
    for name, instead in REFUSED_ARGUMENTS.items():
        if name in kwargs:
            raise BadInput(f"environment {reference!r} takes no argument {name!r}: {instead}")
    if not isinstance(kwargs.get("render_mode"), str | None):
        raise BadInput(f"environment {reference!r}: render_mode = {shortened(kwargs['render_mode'])} is no text")
    try:
        if (spec := gym.registry.get(reference)) is not None and isinstance(spec.entry_point, str):
            with left_as_found():
                gym.envs.registration.load_env_creator(spec.entry_point)  # so that MuJoCo is there before a model is
            mujoco_says_it_once()
        made: gym.Env[Any, Any] = call_with_user_arguments(
            gym.make,
            f"environment {reference!r}",
            reference,
            max_episode_steps=horizon,
            disable_env_checker=True,
            **kwargs,
        )
        return made
    except gym.error.DependencyNotInstalled as error:
        raise BadInput(f"environment {reference!r} needs a package that is not installed: {error}") from None
    except (gym.error.Error, ImportError) as error:
        hint = did_you_mean(reference, gym.registry)
        raise BadInput(f"environment.id {reference!r} cannot be made: {str(error).rstrip('.')}.{hint}") from None


_said = set[str]()


def mujoco_says_it_once() -> None:
    """Print every warning of MuJoCo's once: it repeats those of a model with every environment, in a file as well."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or mujoco.get_mju_user_warning() is not None:
        return

    def warn(text: str) -> None:
        if text not in _said:
            _said.add(text)
            say(f"MuJoCo: {text}", sys.stderr)

    mujoco.set_mju_user_warning(warn)


REFUSED_WRAPPERS: Final[Mapping[str, str]] = {
    "NormalizeObservation": "its figures change while it plays, so no policy could be played alone later; policies "
    "scale what they see themselves (scaling)",
    "NormalizeReward": "its figures change while it plays; use training.normalize_reward",
    "Autoreset": "an episode must end where it ends",
}


def wrap_environment(env: gym.Env[Any, Any], wrapper: Wrapper) -> gym.Env[Any, Any]:
    """The environment in a wrapper. Raises BadInput naming the wrapper and what is wrong with it."""
    what = "environment.wrappers"
    name = wrapper.name if ":" in wrapper.name else f"gymnasium.wrappers:{wrapper.name}"
    cls = imported_class(name, gym.Wrapper, what)
    for refused, reason in REFUSED_WRAPPERS.items():
        if issubclass(cls, getattr(gym.wrappers, refused, ())):
            raise BadInput(f"{what} {wrapper.name!r} is not taken: {reason}")
    try:
        wrapped: gym.Env[Any, Any] = cls(env, **wrapper.kwargs)
    except RAISED as error:
        refuses = f"refuses its arguments {shortened(wrapper.kwargs)} or the environment below it"
        broken(f"{what} {wrapper.name!r} {refuses}", error)
    return wrapped

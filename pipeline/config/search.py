"""From the values of a trial to a `train_expert` config, and what may be searched at all."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from pipeline.config.loading import flatten, to_data, validate
from pipeline.config.stages import TrainExpert
from pipeline.config.sweep import Parameter
from pipeline.errors import BadInput, did_you_mean, shortened

SEARCHABLE: Final = "training."
FIXED: Final = {
    "training.total_timesteps": "every trial has the same budget; set trial_timesteps",
    "training.evaluation": "all trials are measured alike; set it in the base config",
    "training.scenario_set": "all trials are measured on the same scenarios; set it in the base config",
}
DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class SearchPoint:
    """One parameter of a search space with the choices of the parameters that it is nested in."""

    key: str
    parameter: Parameter
    given: Mapping[str, Any]  # key of an outer parameter -> its choice


def points(space: Mapping[str, Parameter], given: Mapping[str, Any] | None = None) -> Iterator[SearchPoint]:
    """Every parameter of a search space, outer ones first."""
    for key, parameter in space.items():
        yield SearchPoint(key, parameter, given or {})
        for label, nested in parameter.when.items():
            yield from points(nested, {**(given or {}), key: parameter.choice(label)})


def check_keys(space: Mapping[str, Parameter], base: TrainExpert) -> None:
    """Refuse keys that cannot be searched, contradict each other or hold values the config refuses.

    Raises BadInput, one line, naming the key.
    """
    seen: dict[str, Parameter] = {}
    for point in points(space):
        _check_key(point.key, base)
        if seen.setdefault(point.key, point.parameter) != point.parameter:
            raise BadInput(f"search_space {point.key!r} stands twice with different ranges; give it one")
        for value in point.parameter.extremes():
            with_values(base, {**point.given, point.key: value}, f"search_space {point.key!r}")
    for key in seen:
        for other in seen:
            if other.startswith(f"{key}."):
                raise BadInput(f"search_space: {other!r} is part of {key!r}; search one of them")


def _check_key(key: str, base: TrainExpert) -> None:
    known = [name for name in flatten(to_data(base)) if name.startswith(SEARCHABLE) and name not in FIXED]
    if not DOTTED.fullmatch(key) or not key.startswith(SEARCHABLE):
        raise BadInput(
            f"search_space {shortened(key)}: only settings below 'training.' can be searched."
            f"{did_you_mean(key, known)} There are: {', '.join(known)}"
        )
    for fixed, reason in FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise BadInput(f"search_space {key!r} cannot be searched: {reason}")


def with_values(base: TrainExpert, values: Mapping[str, Any], source: str) -> TrainExpert:
    """The base config with `{"training.ppo.n_steps": 64}` in place, validated like a file. Raises BadInput."""
    data = to_data(base)
    for key, value in values.items():
        parts = key.split(".")
        here = data
        for part in parts[:-1]:
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
            if not isinstance(here, dict):
                raise BadInput(f"{source}: {part!r} is a single value, it has no settings below it")
        here[parts[-1]] = deepcopy(value)
    return validate(TrainExpert, data, source)

"""A training whose numbers run away: recognised after every update, and said in one line instead of torch's own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import BadInput


class Diverged(BadInput):
    """A training came to numbers that are not finite; the best policy that it had before is kept."""


def refuse_environment(timestep: int, observations: Sequence[Any], rewards: np.ndarray) -> None:
    """Raise BadInput where the environment showed what is no number; an observation is an array, or several by key."""
    seen = [rows for part in observations for rows in (part.values() if isinstance(part, Mapping) else [part])]
    for what, arrays in (("an observation", seen), ("a reward", [rewards])):
        if not all(np.isfinite(array).all() for array in arrays):
            raise BadInput(f"until step {timestep:,} {what} was not finite; look at the environment")


def not_finite(module: nn.Module) -> str | None:
    """Name of the first of its tensors that holds a number which is not finite."""
    return next((name for name, tensor in module.state_dict().items() if not bool(torch.isfinite(tensor).all())), None)

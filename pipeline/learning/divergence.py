"""A training whose numbers run away: recognised after every update, and said in one line instead of torch's own."""

import torch
from torch import nn

from pipeline.errors import BadInput


class Diverged(BadInput):
    """A training came to numbers that are not finite; the best policy that it had before is kept."""


def not_finite(module: nn.Module) -> str | None:
    """Name of the first of its tensors that holds a number which is not finite."""
    return next((name for name, tensor in module.state_dict().items() if not bool(torch.isfinite(tensor).all())), None)

"""An actor's network as data: what `policy.json` says of a policy that acts and does not learn."""

from itertools import pairwise
from typing import Literal

from pipeline.config.base import Count, NonNegative, Positive, configuration

Activation = Literal["tanh", "relu", "elu", "leaky_relu"]


@configuration
class Dense:
    """A linear layer."""

    inputs: Count
    outputs: Count
    bias: bool = True


@configuration
class Limit:
    """Cuts what is beyond -limit and limit."""

    limit: Positive


@configuration
class Normalized:
    """Observations are read as clip((x - mean) / sqrt(variance + epsilon), -clip, clip), as SB3's VecNormalize does.

    clip: None cuts nothing.
    """

    epsilon: NonNegative
    clip: Positive | None = None


@configuration
class FrozenNetwork:
    """From observations to actions."""

    layers: tuple[Dense | Limit | Activation, ...]
    rescaled: bool = False
    """Outputs are from -1 to 1, and become actions from the lower to the upper bound."""
    quantiles: Count | None = None
    """Outputs are so many quantiles of the value of every action; the largest mean is chosen."""
    image_features: Count | None = None
    """Width of what the CNN hands on; None where observations are no pictures."""
    normalized: Normalized | None = None

    def __post_init__(self) -> None:
        widths = [(layer.inputs, layer.outputs) for layer in self.layers if isinstance(layer, Dense)]
        if not widths:
            raise ValueError("layers has no linear one")
        for (_, before), (after, _) in pairwise(widths):
            if before != after:
                raise ValueError(f"layers: a layer of {before} outputs is followed by one of {after} inputs")

    @property
    def parameter_count(self) -> int:
        """Numbers in its linear layers."""
        return sum(one.inputs * one.outputs + one.outputs for one in self.layers if isinstance(one, Dense))

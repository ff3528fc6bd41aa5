"""Policies that act and do not learn: the actor of whatever algorithm, its network described as data.

    actor = FrozenActor(observation_space, action_space, FrozenNetwork(layers=(Dense(inputs=3, outputs=1), "tanh")))

The layers are a list, the tensors are named after it, and no file names a class. What is in front of the layers follows
from the observation space: SB3's own flattening, or its convolutions where observations are pictures.
"""

from math import inf, isfinite
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from pipeline.policies.layers import Activation, Dense, FrozenNetwork, Limit
from pipeline.policies.networks import images_in

ACTIVATION_LAYERS: Final[dict[Activation, type[nn.Module]]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU,
}  # fmt: skip


class FrozenActor(nn.Module):
    """An actor on the CPU, still without its tensors. Raises ValueError when the network does not fit the spaces."""

    mean: torch.Tensor  # (*obs_shape,) float64, where observations are normalized
    variance: torch.Tensor
    offset: torch.Tensor  # (features,) float32, where what the first layer reads is in units
    scale: torch.Tensor

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        network: FrozenNetwork,
        scaled: bool = False,
        clip: float = inf,
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space, self.network = observation_space, action_space, network
        self.extractor = _extractor(observation_space, network.image_features)
        dense = [layer for layer in network.layers if isinstance(layer, Dense)]
        if dense[0].inputs != self.extractor.features_dim:
            raise ValueError(f"it reads {dense[0].inputs} numbers, the observations give {self.extractor.features_dim}")
        needed = spaces.flatdim(action_space) * (network.quantiles or 1)
        if dense[-1].outputs != needed:
            raise ValueError(f"it has {dense[-1].outputs} outputs, the actions take {needed}")
        if network.rescaled and not isinstance(action_space, spaces.Box):
            raise ValueError("only actions of a Box can be rescaled")
        self.layers = nn.Sequential(*(_layer(layer) for layer in network.layers))
        if network.normalized is not None:
            if not isinstance(observation_space, spaces.Box):
                raise ValueError("only observations of a Box can be normalized")
            if images_in(observation_space):
                raise ValueError("pictures behind a VecNormalize are not taken")
            for name in ("mean", "variance"):
                self.register_buffer(name, torch.zeros(observation_space.shape, dtype=torch.float64))
        self.scaled, self.clip = scaled, clip
        if scaled:
            self.register_buffer("offset", torch.zeros(dense[0].inputs))
            self.register_buffer("scale", torch.ones(dense[0].inputs))
        self.requires_grad_(False)

    def in_units(self, features: Any) -> Any:
        """(n, features) as the extractor gives them, array or tensor -> as the first layer reads them."""
        if not self.scaled:
            return features
        tensors = isinstance(features, torch.Tensor)
        offset, scale = (part if tensors else part.numpy() for part in (self.offset, self.scale))
        numbers = (features - offset) / scale
        return numbers.clip(-self.clip, self.clip) if isfinite(self.clip) else numbers

    def normalize(self, observations: np.ndarray) -> np.ndarray:
        """(n, *obs_shape) as the environment gives them -> float32 as the network was trained to read them."""
        settings = self.network.normalized
        if settings is None:
            return np.asarray(observations, np.float32)
        scaled = (observations - self.mean.numpy()) / np.sqrt(self.variance.numpy() + settings.epsilon)
        return np.asarray(scaled if (clip := settings.clip) is None else np.clip(scaled, -clip, clip), np.float32)


def actor_of_sac(policy: SACPolicy) -> FrozenActor:
    """The actor of an SB3 SAC: tanh of its mean, between the bounds. Tensors are copied, no generator is touched."""
    modules = (*policy.actor.latent_pi, policy.actor.mu)
    extractor = policy.actor.features_extractor
    tensors, clip = dict(extractor.named_buffers()), getattr(extractor, "clip", inf)  # where it has units
    names = {kind: name for name, kind in ACTIVATION_LAYERS.items()}
    layers: list[Dense | Limit | Activation] = [
        Dense(inputs=int(module.in_features), outputs=int(module.out_features))  # NumPy's, of some spaces
        if isinstance(module, nn.Linear)
        else names[type(module)]
        for module in modules
    ]
    network = FrozenNetwork(layers=(*layers, "tanh"), rescaled=True)
    with torch.random.fork_rng(devices=[]):  # layers are initialised before they are filled
        actor = FrozenActor(policy.observation_space, policy.action_space, network, bool(tensors), clip)
    for number, module in enumerate(modules):
        tensors |= {f"layers.{number}.{name}": tensor for name, tensor in module.state_dict().items()}
    actor.load_state_dict(tensors, strict=True)
    return actor


def _extractor(space: gym.Space[Any], image_features: int | None) -> BaseFeaturesExtractor:
    width = image_features or 1
    if isinstance(space, spaces.Dict):
        return CombinedExtractor(space, cnn_output_dim=width)
    if images_in(space):
        assert isinstance(space, spaces.Box)
        return NatureCNN(space, features_dim=width)
    return FlattenExtractor(space)


def _layer(layer: Dense | Limit | Activation) -> nn.Module:
    if isinstance(layer, Dense):
        return nn.Linear(layer.inputs, layer.outputs, layer.bias)
    if isinstance(layer, Limit):
        return nn.Hardtanh(-layer.limit, layer.limit)
    return ACTIVATION_LAYERS[layer]()

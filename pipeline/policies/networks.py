"""Which network a policy has, by its spaces and our settings: SB3's own classes, actor and critic separate.

What is scaled is SB3's as well, but for a layer without weights at either end. A residual policy is a frozen clone and
a correction of the same shape, whose outputs are added (Johannink et al. 2019, Silver et al. 2018).
"""

import copy
from dataclasses import replace
from math import inf, isfinite
from typing import Any, Final

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
    NatureCNN,
)
from torch import nn

from pipeline.config.training import Network
from pipeline.data.observations import check_action_space, check_observation_space
from pipeline.policies.units import UNSCALED, Affine, Scaling

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class _Scaled(BaseFeaturesExtractor):
    """In front of an extractor of SB3's: its features, in units."""

    offset: torch.Tensor  # (features,)
    scale: torch.Tensor

    def __init__(self, observation_space: Any, units: Affine, **arguments: Any) -> None:
        super().__init__(observation_space, **arguments)
        self.register_buffer("offset", torch.tensor(units.offset))
        self.register_buffer("scale", torch.tensor(units.scale))
        self.clip = units.clip

    def forward(self, observations: Any) -> torch.Tensor:
        numbers = (super().forward(observations) - self.offset) / self.scale
        return numbers.clamp(-self.clip, self.clip) if isfinite(self.clip) else numbers


class ScaledFlatten(_Scaled, FlattenExtractor):
    """Of observations without keys."""


class ScaledCombined(_Scaled, CombinedExtractor):
    """Of observations with keys."""


class GaussianInUnits(ActorCriticPolicy):
    """A Gaussian of mean `offset + scale * output` and standard deviation `scale * exp(log_std)`."""

    action_offset: torch.Tensor  # (outputs,)
    action_scale: torch.Tensor

    def __init__(self, *arguments: Any, action_units: Affine, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.register_buffer("action_offset", torch.tensor(action_units.offset))
        self.register_buffer("action_scale", torch.tensor(action_units.scale))

    def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Distribution:
        assert isinstance(self.action_dist, DiagGaussianDistribution)
        mean = self.action_offset + self.action_scale * self.action_net(latent_pi)
        return self.action_dist.proba_distribution(mean, self.log_std + self.action_scale.log())


class ResidualExtractor(MlpExtractor):
    """The hidden layers of a clone beside those of its correction; both read the same features."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.clone_net = copy.deepcopy(self.policy_net)
        self.latent_dim_pi *= 2

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.clone_net(features), self.policy_net(features)], dim=1)


class ResidualOutput(nn.Module):
    """What the clone says, and a correction of it that is zero at first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.clone, self.correction = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, latent_pi: torch.Tensor) -> torch.Tensor:
        of_clone, own = latent_pi.chunk(2, dim=1)
        return torch.as_tensor(self.clone(of_clone) + self.correction(own))


class ResidualPolicy(ActorCriticPolicy):
    """The actor is a clone that does not learn, its CNN included, plus a correction that does; the critic is one."""

    mlp_extractor: ResidualExtractor
    action_net: ResidualOutput

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = ResidualExtractor(
            self.features_dim, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        whole: Any = self.action_net  # SB3's layer over both
        self.action_net = ResidualOutput(whole.in_features // 2, int(whole.out_features))
        for part in (self.pi_features_extractor, self.mlp_extractor.clone_net, self.action_net.clone):
            part.requires_grad_(False)
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = self.optimizer_class(learning, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]


class ResidualInUnits(ResidualPolicy, GaussianInUnits):
    """The same, of a clone that scales its actions: the correction is in the same units."""


def name_in_residual(name: str) -> str:
    """Where a residual policy has a tensor of its clone: `action_net.bias` -> `action_net.clone.bias`."""
    inside = name.replace("mlp_extractor.policy_net.", "mlp_extractor.clone_net.")
    return inside.replace("action_net.", "action_net.clone.")


def policy_class(
    observation_space: gym.Space[Any], scaling: Scaling = UNSCALED, residual: bool = False
) -> type[ActorCriticPolicy]:
    """The policy class that reads such observations: mappings, images, or anything flat; SB3's, or one of the above.

    `policy_arguments` belong to it.
    """
    if residual:
        return ResidualPolicy if scaling.actions is None else ResidualInUnits
    if scaling.actions is not None:
        return GaussianInUnits
    if isinstance(observation_space, spaces.Dict):
        return MultiInputActorCriticPolicy
    return ActorCriticCnnPolicy if is_image_space(observation_space) else ActorCriticPolicy


def images_in(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """The parts of an observation that a policy looks at through a convolutional part."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else (space,)
    return [part for part in parts if is_image_space(part)]


def policy_arguments(
    observation_space: gym.Space[Any], network: Network, scaling: Scaling = UNSCALED, residual: bool = False
) -> dict[str, Any]:
    """`policy_kwargs` of SB3 for our network settings: actor and critic are separate, of the same shape."""
    hidden, nested = list(network.hidden), isinstance(observation_space, spaces.Dict)
    arguments = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": ACTIVATIONS[network.activation]}
    extractor: dict[str, Any] = {}
    if images_in(observation_space):
        extractor["cnn_output_dim" if nested else "features_dim"] = network.image_features
        # subtle: with one shared convolutional part the critic's gradients would spoil the clone
        arguments["share_features_extractor"] = False
    if scaling.observations is not None:
        extractor["units"] = scaling.observations
        arguments["features_extractor_class"] = ScaledCombined if nested else ScaledFlatten
    elif scaling.actions is not None or residual:
        flat = NatureCNN if is_image_space(observation_space) else FlattenExtractor
        arguments["features_extractor_class"] = CombinedExtractor if nested else flat
    if extractor:
        arguments["features_extractor_kwargs"] = extractor
    if scaling.actions is not None:
        arguments["action_units"] = scaling.actions
    return arguments


def scaling_of(policy: nn.Module) -> Scaling:
    """The units that a policy has, one that learns or one that only acts."""
    tensors = dict(policy.named_buffers())
    front = "" if "offset" in tensors else "features_extractor."

    def affine(offset: str, scale: str, clip: float = inf) -> Affine | None:
        if offset not in tensors:
            return None
        return Affine(tensors[offset].cpu().numpy().copy(), tensors[scale].cpu().numpy().copy(), clip)

    clip = float(getattr(getattr(policy, "features_extractor", policy), "clip", inf))  # only acting, it has it itself
    return Scaling(affine(f"{front}offset", f"{front}scale", clip), affine("action_offset", "action_scale"))


def network_of(policy: ActorCriticPolicy) -> Network:
    """The settings a policy was built from: the inverse of `policy_arguments`."""
    arch = policy.net_arch
    hidden = arch["pi"] if isinstance(arch, dict) else arch
    names = [name for name, activation in ACTIVATIONS.items() if activation is policy.activation_fn]
    if not names or (isinstance(arch, dict) and arch["pi"] != arch["vf"]):
        raise ValueError(f"no Network describes net_arch {arch} with {policy.activation_fn}")
    network = Network(hidden=tuple(hidden), activation=names[0])  # type: ignore[arg-type]
    if not images_in(policy.observation_space):
        return network
    given = policy.features_extractor_kwargs
    width = "cnn_output_dim" if isinstance(policy.observation_space, spaces.Dict) else "features_dim"
    return replace(network, image_features=given[width])


def action_distribution(action_space: gym.Space[Any]) -> str:
    """`Box` -> `"diagonal_gaussian"` and so on. Raises BadInput for a space that PPO cannot act in."""
    check_action_space(action_space)
    kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    names = ("diagonal_gaussian", "categorical", "multi_categorical", "bernoulli")
    return next(name for kind, name in zip(kinds, names, strict=True) if isinstance(action_space, kind))


class NoOptimizer:
    """Stands where SB3 makes an optimizer with a policy: the first of torch's loads its compiler, for a second."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        """Takes what an optimizer takes."""


def build_policy(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    network: Network,
    seed: int,
    scaling: Scaling = UNSCALED,
    residual: bool = False,
    orthogonal_init: bool = True,
) -> ActorCriticPolicy:
    """A fresh policy on the CPU whose weights follow from `seed` alone: the one that PPO with this seed starts from.

    It has no optimizer.
    """
    check_observation_space(observation_space)
    check_action_space(action_space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arguments = {**policy_arguments(observation_space, network, scaling, residual), "optimizer_class": NoOptimizer}
        policy = policy_class(observation_space, scaling, residual)(
            observation_space, action_space, lr_schedule=lambda _: 0.0, ortho_init=orthogonal_init, **arguments
        )
    policy.set_training_mode(False)
    return policy

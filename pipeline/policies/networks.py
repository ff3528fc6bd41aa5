"""Which network a policy has, by its spaces and our settings: SB3's own classes, actor and critic separate."""

from dataclasses import replace
from typing import Any, Final

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from pipeline.config.training import Network
from pipeline.data.observations import check_action_space, check_observation_space

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def policy_class(observation_space: gym.Space[Any]) -> type[ActorCriticPolicy]:
    """The SB3 policy class that reads such observations: mappings, images, or anything flat."""
    if isinstance(observation_space, spaces.Dict):
        return MultiInputActorCriticPolicy
    return ActorCriticCnnPolicy if is_image_space(observation_space) else ActorCriticPolicy


def images_in(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """The parts of an observation that a policy looks at through a convolutional part."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else (space,)
    return [part for part in parts if is_image_space(part)]


def policy_arguments(observation_space: gym.Space[Any], network: Network) -> dict[str, Any]:
    """`policy_kwargs` of SB3 for our network settings: actor and critic are separate, of the same shape."""
    hidden = list(network.hidden)
    arguments = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": ACTIVATIONS[network.activation]}
    if not images_in(observation_space):
        return arguments
    width = "cnn_output_dim" if isinstance(observation_space, spaces.Dict) else "features_dim"
    # subtle: with one shared convolutional part the critic's gradients would spoil the clone
    extractor = {"features_extractor_kwargs": {width: network.image_features}, "share_features_extractor": False}
    return {**arguments, **extractor}


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
    (width,) = policy.features_extractor_kwargs.values()
    return replace(network, image_features=width)


def action_distribution(action_space: gym.Space[Any]) -> str:
    """`Box` -> `"diagonal_gaussian"` and so on. Raises BadInput for a space that PPO cannot act in."""
    check_action_space(action_space)
    kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    names = ("diagonal_gaussian", "categorical", "multi_categorical", "bernoulli")
    return next(name for kind, name in zip(kinds, names, strict=True) if isinstance(action_space, kind))


def build_policy(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], network: Network, seed: int
) -> ActorCriticPolicy:
    """A fresh policy on the CPU whose weights follow from `seed` alone: the one that PPO with this seed starts from."""
    check_observation_space(observation_space)
    check_action_space(action_space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = policy_class(observation_space)(
            observation_space, action_space, lr_schedule=lambda _: 0.0, **policy_arguments(observation_space, network)
        )
    policy.set_training_mode(False)
    return policy

"""Weights that go from one policy to another, and the evidence that they arrived: a clone's certificate.

`pretrain` certifies that an artifact on disk is the clone in memory, `finetune` holds the artifact to that certificate,
and PPO proves before its first step that it starts from the artifact.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import isfinite
from typing import Any, Final, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.config.base import configuration
from pipeline.config.loading import parse_json, to_data, validate
from pipeline.config.training import Network
from pipeline.errors import BadInput, shortened
from pipeline.files import digest
from pipeline.policies.acting import Observations, act_function
from pipeline.policies.artifact import (
    Policy,
    array_digest,
    load_policy,
    load_tensors,
    load_trainable,
    policy_digest,
    tensor_digests,
    tensors_of,
)
from pipeline.policies.networks import ResidualPolicy, images_in, name_in_residual, network_of, scaling_of

PROBE_COUNT: Final = 256


@configuration
class Transfer:
    """Evidence that a policy is, tensor by tensor, the one of an artifact."""

    policy_digest: str  # of the artifact
    tensors: dict[str, str]  # tensor name -> digest of dtype, shape and bytes
    tensor_count: int
    parameter_count: int
    probe_digest: str  # of the observations that both policies acted on
    probe_count: int
    action_distance: float  # largest difference of their deterministic actions, in action units; 0, or it is refused
    schema_version: Literal[1] = 1
    # what is known of a clone besides; None of the start of a training
    critic_explained_variance: float | None = None  # of held-out discounted returns; 1 is perfect; None: no critic
    held_out_episodes: int | None = None
    gamma: float | None = None  # discount of the returns
    return_scale: float | None = None  # root mean square of the demonstrations' discounted returns; None: 0, or unknown
    learnt_nothing: str | None = None  # why an adaptive warm start does not begin with it; None: it does

    def metrics(self) -> dict[str, float]:
        """What its run is searched by."""
        return {
            "transfer/tensors": self.tensor_count,
            "transfer/parameters": self.parameter_count,
            "transfer/action_distance": self.action_distance,
        }

    @classmethod
    def between(
        cls,
        policy: Policy,
        folder: str,
        explained_variance: float | None = None,
        held_out_episodes: int | None = None,
        gamma: float | None = None,
        return_scale: float | None = None,
    ) -> "Transfer":
        """Compare a policy in memory, or the clone in a residual one, with the artifact in a folder.

        `explained_variance` is NaN when no critic was trained. Raises RuntimeError when the two are not the same: then
        neither must be used.
        """
        stored, probe = load_policy(folder), probe_batch(policy.observation_space)
        digests, held = tensor_digests(stored), tensor_digests(policy)
        if isinstance(policy, ResidualPolicy) and not isinstance(stored, ResidualPolicy):
            held = {name: held[name_in_residual(name)] for name in digests}
        ours, theirs = act_function(policy)(probe), act_function(stored)(probe)
        distance = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
        if digests != held or distance != 0.0:
            raise RuntimeError(f"the policy is not the one stored in {folder!r}: action distance {distance}")
        known = explained_variance is not None and isfinite(explained_variance)
        return cls(
            policy_digest=policy_digest(folder),
            tensors=digests,
            tensor_count=len(digests),
            parameter_count=sum(tensor.numel() for tensor in stored.parameters()),
            probe_digest=batch_digest(probe),
            probe_count=PROBE_COUNT,
            action_distance=distance,
            critic_explained_variance=explained_variance if known else None,
            held_out_episodes=held_out_episodes,
            gamma=gamma,
            return_scale=return_scale if return_scale and isfinite(return_scale) else None,
        )

    def verify(self, folder: str) -> None:
        """Raise BadInput, naming the first difference, unless the artifact in a folder is exactly the certified one."""
        found = Transfer.between(load_policy(folder), folder)
        where = f"policy {folder!r} is not the one that its transfer certificate describes"
        remedy = "run pretrain again, or fine-tune from the run that made it"
        odd = sorted(set(found.tensors) ^ set(self.tensors))
        if odd:
            raise BadInput(f"{where}: tensor {odd[0]!r} is only in one of them; {remedy}")
        facts = {f"tensor {name!r} has digest": (digest, self.tensors[name]) for name, digest in found.tensors.items()}
        names = "policy_digest", "tensor_count", "parameter_count", "probe_count", "probe_digest", "action_distance"
        facts |= {f"{name} is": (getattr(found, name), getattr(self, name)) for name in names}
        for what, (value, certified) in facts.items():
            if value != certified:
                raise BadInput(f"{where}: {what} {value}, certified is {shortened(certified)}; {remedy}")

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal one."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Transfer":
        """The inverse of `to_json`. Raises BadInput for anything it cannot have written."""
        return validate(cls, parse_json(text, "transfer certificate"), "transfer certificate")


def transfer(policy: ActorCriticPolicy, folder: str, network: Network, initial_std: float | None) -> Transfer:
    """Fill `policy` with the artifact's tensors, prove it, and then set the standard deviation of its actions.

    Of a residual policy they become the clone, where the artifact is not residual itself. Raises BadInput when the
    artifact's spaces, network or scaling are not those of the training.
    """
    source = load_trainable(folder)
    refuse_unfit(source, policy.observation_space, policy.action_space, network, f"initial policy {folder!r}")
    if scaling_of(policy).digest != scaling_of(source).digest:
        raise BadInput(f"initial policy {folder!r}: it was made with another scaling than this training; give both one")
    tensors = tensors_of(source)
    if isinstance(policy, ResidualPolicy) and not isinstance(source, ResidualPolicy):
        tensors = {**tensors_of(policy), **{name_in_residual(name): tensor for name, tensor in tensors.items()}}
    load_tensors(policy, tensors)
    proof = Transfer.between(policy, folder)
    if initial_std is not None and isinstance(policy.action_space, spaces.Box):
        with torch.no_grad():
            policy.log_std.fill_(float(np.log(initial_std)))
    return proof


def refuse_unfit(
    source: ActorCriticPolicy,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    network: Network,
    what: str,
) -> None:
    """Raise BadInput unless a training with these spaces and this network can start from the policy `source`."""
    for kind, here in (("observation_space", observation_space), ("action_space", action_space)):
        there = getattr(source, kind)
        if there != here:
            raise BadInput(f"{what}: its {kind} {there} is not the task's {here}; start from a policy of this task")
    its = network_of(source)
    wanted = network if images_in(source.observation_space) else replace(network, image_features=its.image_features)
    for setting, value in to_data(its).items():
        if value != (here := to_data(wanted)[setting]):
            shown = json.dumps(value)
            raise BadInput(
                f"{what} has network.{setting} = {shown}, training.network.{setting} is {json.dumps(here)}; both arms "
                f"train the network that the policy has: training.network.{setting}={shown}"
            )


def probe_batch(observation_space: gym.Space[Any], count: int = PROBE_COUNT) -> Observations:
    """Fixed observations to compare two policies on: uniform where bounded, standard normal elsewhere.

    The same space gives the same bits.
    """
    rng = np.random.default_rng(0)

    def probe(space: gym.Space[Any]) -> np.ndarray:
        shape = (count, *(space.shape or ()))
        if isinstance(space, spaces.Box):
            low, high = (np.asarray(b, np.float64) for b in (space.low, space.high))
            bounded = np.isfinite(low) & np.isfinite(high) & (high - low < 1e6)
            uniform = rng.random(shape) * np.where(bounded, high - low, 0.0) + np.where(bounded, low, 0.0)
            return np.where(bounded, uniform, np.clip(rng.standard_normal(shape), low, high)).astype(space.dtype)
        choices = 2 if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", 2))
        return rng.integers(choices, size=shape).astype(space.dtype)

    if isinstance(observation_space, spaces.Dict):
        return {key: probe(observation_space[key]) for key in sorted(observation_space.spaces)}
    return probe(observation_space)


def batch_digest(batch: Observations) -> str:
    """sha256 (36 characters) over dtype, shape and bytes of an array, or of a mapping of arrays with their names."""
    if isinstance(batch, Mapping):
        return digest(json.dumps({key: array_digest(array) for key, array in batch.items()}, sort_keys=True))
    return array_digest(batch)

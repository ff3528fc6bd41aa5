"""The transfer certificate: what a clone was when it was certified, so that fine-tuning can refuse anything else."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.config.loading import parse_json
from pipeline.errors import BadInput, shortened
from pipeline.policies import (
    PROBE_COUNT,
    Observations,
    act_function,
    batch_digest,
    load_policy,
    policy_digest,
    probe_batch,
    tensor_digests,
)

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TransferCertificate:
    """Says that the files of a policy artifact are, tensor by tensor, the policy that was cloned."""

    schema_version: int
    policy_digest: str  # of the artifact
    tensors: dict[str, str]  # tensor name -> digest of dtype, shape and bytes
    tensor_count: int
    parameter_count: int
    probe_digest: str  # of the observations that both policies acted on
    probe_count: int  # observations
    action_distance: float  # largest difference between the clone in memory and the artifact read back, action units
    critic_explained_variance: float | None  # of held-out discounted returns; 1 is perfect; None: no critic trained
    held_out_episodes: int
    gamma: float  # discount of the returns

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal certificate."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TransferCertificate":
        """The inverse of `to_json`. Raises BadInput for anything it cannot have written."""
        data = parse_json(text, "transfer certificate")
        expected = {field.name: field.type for field in fields(cls)}
        if not isinstance(data, dict) or set(data) != set(expected):
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise BadInput(f"transfer certificate must hold exactly {sorted(expected)}, got {shortened(found)}")
        _check_types(data)
        return cls(**data)


def _check_types(data: Mapping[str, Any]) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("policy_digest", "probe_digest"), str),
        **dict.fromkeys(("schema_version", "tensor_count", "parameter_count", "probe_count", "held_out_episodes"), int),
        **dict.fromkeys(("action_distance", "gamma"), (int, float)),
        "critic_explained_variance": (int, float, type(None)),
        "tensors": dict,
    }
    for name, kind in kinds.items():
        value = data[name]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, float) and not isfinite(value)):
            raise BadInput(
                f"transfer certificate: {name} = {shortened(value)} is not what it must be; run pretrain again"
            )
    if data["schema_version"] != SCHEMA_VERSION:
        raise BadInput(
            f"transfer certificate: schema_version {data['schema_version']} is unknown; this version reads "
            f"{SCHEMA_VERSION}"
        )
    if not all(isinstance(value, str) for value in data["tensors"].values()):
        raise BadInput("transfer certificate: tensors must map names to digests; run pretrain again")


def certify(
    policy: ActorCriticPolicy, folder: str, explained_variance: float, held_out_episodes: int, gamma: float
) -> TransferCertificate:
    """Read the artifact back and compare it with the policy in memory that it was saved from.

    `explained_variance` is NaN when no critic was trained. Raises RuntimeError when the two are not the same: then the
    artifact must not be used.
    """
    stored = load_policy(folder)
    digests = tensor_digests(stored)
    probe = probe_batch(policy.observation_space)
    distance = _action_distance(policy, stored, probe)
    if digests != tensor_digests(policy) or distance != 0.0:
        raise RuntimeError(f"the policy stored in {folder!r} is not the cloned one: action distance {distance}")
    return TransferCertificate(
        schema_version=SCHEMA_VERSION,
        policy_digest=policy_digest(folder),
        tensors=digests,
        tensor_count=len(digests),
        parameter_count=sum(tensor.numel() for tensor in policy.parameters()),
        probe_digest=batch_digest(probe),
        probe_count=PROBE_COUNT,
        action_distance=distance,
        critic_explained_variance=float(explained_variance) if isfinite(explained_variance) else None,
        held_out_episodes=held_out_episodes,
        gamma=gamma,
    )


def verify_certificate(certificate: TransferCertificate, policy_folder: str) -> None:
    """Raise BadInput, naming the first difference, unless the artifact is exactly the certified one."""
    policy = load_policy(policy_folder)
    digests = tensor_digests(policy)
    where = f"policy {policy_folder!r} is not the one that its transfer certificate describes"
    remedy = "run pretrain again, or fine-tune from the run that made it"
    if set(digests) != set(certificate.tensors):
        odd = sorted(set(digests) ^ set(certificate.tensors))[0]
        raise BadInput(f"{where}: tensor {odd!r} is only in one of them; {remedy}")
    for name, digest in digests.items():
        if certificate.tensors[name] != digest:
            raise BadInput(
                f"{where}: tensor {name!r} has digest {digest}, certified is {shortened(certificate.tensors[name])}; "
                f"{remedy}"
            )
    facts = {
        "policy_digest": policy_digest(policy_folder),
        "tensor_count": len(digests),
        "parameter_count": sum(tensor.numel() for tensor in policy.parameters()),
        "probe_count": PROBE_COUNT,
        "probe_digest": batch_digest(probe_batch(policy.observation_space)),
        "action_distance": 0.0,
    }
    for name, value in facts.items():
        if getattr(certificate, name) != value:
            found = shortened(getattr(certificate, name))
            raise BadInput(f"{where}: {name} is {value}, certified is {found}; {remedy}")


def _action_distance(one: ActorCriticPolicy, other: ActorCriticPolicy, probe: Observations) -> float:
    ours, theirs = act_function(one)(probe), act_function(other)(probe)
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())

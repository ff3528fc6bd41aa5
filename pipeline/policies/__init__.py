"""Policies: their networks, their files, and what they do. Models in registries import from here."""

from pipeline.policies.acting import ActFunction, Observations, act_function
from pipeline.policies.artifact import (
    WRAPPERS,
    load_policy,
    load_tensors,
    policy_digest,
    read_spec,
    save_policy,
    tensor_digests,
    tensors_of,
    weights_digest,
)
from pipeline.policies.networks import build_policy, network_of, policy_arguments, policy_class
from pipeline.policies.transfer import probe_batch

__all__ = [
    "WRAPPERS", "ActFunction", "Observations", "act_function", "build_policy", "load_policy", "load_tensors",
    "network_of", "policy_arguments", "policy_class", "policy_digest", "probe_batch", "read_spec", "save_policy",
    "tensor_digests", "tensors_of", "weights_digest",
]  # fmt: skip

"""Policies: their networks, their files, and what they do. Models in registries import from here."""

from pipeline.policies.acting import ActFunction, Observations, act_function
from pipeline.policies.artifact import (
    WRAPPERS,
    load_policy,
    load_tensors,
    load_trainable,
    policy_digest,
    read_spec,
    save_policy,
    tensor_digests,
    tensors_of,
    weights_digest,
)
from pipeline.policies.networks import build_policy, network_of, policy_arguments, policy_class, scaling_of
from pipeline.policies.transfer import probe_batch
from pipeline.policies.units import UNSCALED, Affine, Scaling, measured_scaling, scaling_by_bounds

__all__ = [
    "UNSCALED", "WRAPPERS", "ActFunction", "Affine", "Observations", "Scaling", "act_function", "build_policy",
    "load_policy", "load_tensors", "load_trainable", "measured_scaling", "network_of",
    "policy_arguments", "policy_class", "policy_digest", "probe_batch", "read_spec", "save_policy",
    "scaling_by_bounds", "scaling_of", "tensor_digests", "tensors_of", "weights_digest",
]  # fmt: skip

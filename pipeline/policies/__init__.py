"""Policies: their networks, their files, and what they do. Models in registries import from here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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
_MODULES: Final = ("acting", "artifact", "networks", "transfer", "units")


def __getattr__(name: str) -> Any:
    """What the modules below offer, at its first use: a look into somebody's file need not wait for torch (PEP 562)."""
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f"{__name__}.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

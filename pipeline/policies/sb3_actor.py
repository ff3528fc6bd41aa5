"""From the tensors and settings of an SB3 zip to the network of its actor, for every algorithm that SB3 knows.

actor = actor_of(read_sb3_zip(path))
actor.network            # a Network that PPO trains here, or a FrozenNetwork of layers that only act
actor.tensors            # its tensors, under the names that the network gives them
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from gymnasium import spaces
from pydantic import BaseModel, Field

from pipeline.config.loading import to_data, validate
from pipeline.config.training import Network
from pipeline.errors import BadInput, shortened
from pipeline.policies.inert_pickle import Named
from pipeline.policies.layers import Activation, Dense, FrozenNetwork, Limit, Normalized
from pipeline.policies.sb3_zip import SB3Zip, read_sb3_zip
from pipeline.policies.units import UNSCALED, Affine, Scaling

ON_POLICY: Final = ("PPO", "A2C", "TRPO")
SQUASHED: Final = ("SAC", "TQC", "TD3", "DDPG")  # their actions end in a tanh
# algorithm -> where the tensors of the actor's layers are, one after the other, and those of what is in front of them
LAYERS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    **dict.fromkeys(
        ON_POLICY,
        (
            ("mlp_extractor.shared_net", "mlp_extractor.policy_net", "action_net"),
            ("pi_features_extractor", "features_extractor"),
        ),
    ),
    **dict.fromkeys(("SAC", "TQC"), (("actor.latent_pi", "actor.mu"), ("actor.features_extractor",))),
    **dict.fromkeys(("TD3", "DDPG"), (("actor.mu",), ("actor.features_extractor",))),
    "DQN": (("q_net.q_net",), ("q_net.features_extractor",)),
    "QR-DQN": (("quantile_net.quantile_net",), ("quantile_net.features_extractor",)),
    "ARS": (("action_net",), ("features_extractor",)),
}
ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "Tanh": "tanh", "ReLU": "relu", "ELU": "elu", "LeakyReLU": "leaky_relu",
}  # fmt: skip
EXTRACTORS: Final = ("FlattenExtractor", "NatureCNN", "CombinedExtractor")
# `policy_kwargs` that matter to training alone, or show in the tensors
PASSED_OVER: Final = (
    "share_features_extractor", "net_arch", "with_bias", "n_quantiles", "n_critics", "full_std", "use_expln",
    "sde_net_arch", "ortho_init", "log_std_init", "optimizer_class", "optimizer_kwargs", "device",
)  # fmt: skip


class _PolicyArguments(BaseModel, extra="forbid"):
    """`policy_kwargs` that an actor has as well."""

    activation_fn: Literal["tanh", "relu", "elu", "leaky_relu"] | None = None
    features_extractor_class: Literal[EXTRACTORS] | None = None  # type: ignore[valid-type]
    normalize_images: Literal[True] = True
    squash_output: bool | None = None
    clip_mean: Annotated[float, Field(ge=0)] = 2.0
    features_extractor_kwargs: dict[str, int] | None = None
    use_sde: bool = False


@dataclass(frozen=True)
class SB3Actor:
    """What acts in a zip."""

    network: Network | FrozenNetwork
    tensors: Mapping[str, np.ndarray]
    scaling: Scaling = UNSCALED  # of a network that PPO trains


def actor_of(held: SB3Zip) -> SB3Actor:
    """The network of a zip's actor. Raises BadInput, naming it, for whatever our policies cannot express."""
    what = f"SB3 zip {held.name!r}"
    if held.algorithm not in LAYERS:
        raise BadInput(
            f"{what} holds a policy of class {shortened(held.algorithm)}; taken are the own policies of "
            f"{', '.join(LAYERS)}"
        )
    if held.zoo and held.zoo.normalized and held.normalisation is None:
        raise BadInput(
            f"{what} was trained on normalized observations (its config.yml); put its vecnormalize.pkl beside it"
        )
    named = {key: _plain(value) for key, value in held.policy_arguments.items() if key not in PASSED_OVER}
    arguments = validate(_PolicyArguments, named, f"{what}: policy_kwargs")
    if (network := _trainable(held, arguments)) is not None:
        # its critic valued divided rewards; a policy's critic here values them as they are
        unit = np.float32(held.return_scale or 1)
        tensors = {name: unit * of if name.startswith("value_net.") else of for name, of in held.tensors.items()}
        if (statistics := held.normalisation) is None:
            return SB3Actor(network, tensors)
        scale = np.sqrt(statistics.variance + statistics.epsilon)
        offset, scale = (figures.ravel().astype(np.float32) for figures in (statistics.mean, scale))
        clip = inf if statistics.clip is None else statistics.clip
        return SB3Actor(network, tensors, Scaling(Affine(offset, scale, clip)))
    return SB3Actor(*_frozen(held, arguments, what))


def inspect_sb3_zip(path: str | Path) -> dict[str, Any]:
    """What a zip and the files beside it say of themselves, as plain data; nothing in them is executed.

    `refused` is None, or why it cannot be imported. Raises BadInput for what is no SB3 zip at all.
    """
    held = read_sb3_zip(path)
    refused, network = None, None
    try:
        network = actor_of(held).network
    except BadInput as error:
        refused = str(error)
        with suppress(BadInput):  # its network may be known where what lies beside it is missing
            network = actor_of(replace(held, zoo=None)).network
    normalisation, zoo = held.normalisation, held.zoo
    return {
        "file": str(path),
        "algorithm": held.algorithm,
        "policy_class": held.policy_class,
        "timesteps": held.timesteps,
        "sb3_version": held.sb3_version,
        "python_version": held.python_version,
        "observation_space": str(held.observation_space),
        "action_space": str(held.action_space),
        "network": None if network is None else to_data(network),
        "fine_tuned_by_ppo": refused is None and isinstance(network, Network),
        "normalized": None
        if normalisation is None
        else {"shape": list(normalisation.mean.shape), "clip": normalisation.clip, "epsilon": normalisation.epsilon},
        "wrappers": list(zoo.wrappers) if zoo else [],
        "frame_stack": zoo.frame_stack if zoo else None,
        "pickled": {part: list(names) for part, names in held.pickled.items()},
        "refused": refused,
    }


def _plain(value: Any) -> Any:
    """A setting as plain data: a class by the last part of its name, an activation by ours."""
    if isinstance(value, Named):
        name = value.name.rpartition(".")[2]
        return ACTIVATIONS.get(name, name)
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _trainable(held: SB3Zip, arguments: _PolicyArguments) -> Network | None:
    """The network that PPO trains here, when the policy has just such a one."""
    actor, critic = (
        [held.tensors[name].shape[0] for name in _linear(held.tensors, f"mlp_extractor.{side}_net")]
        for side in ("policy", "value")
    )
    activation = arguments.activation_fn or "tanh"
    if (
        held.algorithm not in ON_POLICY
        or held.uses_sde
        or arguments.use_sde
        or arguments.squash_output
        or arguments.features_extractor_class not in (None, "FlattenExtractor")
        or not isinstance(held.observation_space, spaces.Box)
        or any("features_extractor." in name or "shared_net" in name for name in held.tensors)
        or actor != critic
        or activation not in ("tanh", "relu")
    ):
        return None
    return Network(activation=activation, hidden=tuple(actor))


def _linear(tensors: Mapping[str, np.ndarray], prefix: str) -> list[str]:
    """Names of the weights of the linear layers below a prefix, in order: `prefix.weight`, or `prefix.<i>.weight`."""
    found = {name: name.removeprefix(prefix).removesuffix("weight").strip(".") for name in tensors}
    numbered = {
        name: int(middle or 0)
        for name, middle in found.items()
        if name.startswith(f"{prefix}.") and name.endswith(".weight") and (not middle or middle.isdecimal())
    }
    return sorted(numbered, key=numbered.__getitem__)


def _frozen(held: SB3Zip, arguments: _PolicyArguments, what: str) -> tuple[FrozenNetwork, dict[str, np.ndarray]]:
    """The actor as layers, and its tensors under their names."""
    prefixes, in_front = LAYERS[held.algorithm]
    weights = [name for prefix in prefixes for name in _linear(held.tensors, prefix)]
    if not weights or any(held.tensors[name].ndim != 2 for name in weights):
        raise BadInput(f"{what} lacks the layers of a {held.algorithm} policy; is policy.pth its own?")
    continuous = isinstance(held.action_space, spaces.Box)
    activation = arguments.activation_fn or ("tanh" if held.algorithm in ON_POLICY else "relu")
    layers: list[Dense | Limit | Activation] = []
    tensors: dict[str, np.ndarray] = {}
    used = set[str]()
    for number, name in enumerate(weights):
        weight, bias = held.tensors[name], held.tensors.get(name.removesuffix("weight") + "bias")
        for part, array in (("weight", weight), ("bias", bias)):
            if array is not None:
                tensors[f"layers.{len(layers)}.{part}"] = array
        used |= {name, name.removesuffix("weight") + "bias"}
        layers.append(Dense(inputs=weight.shape[1], outputs=weight.shape[0], bias=bias is not None))
        if number < len(weights) - 1:
            layers.append(activation)
    mean_cut = held.algorithm in ("SAC", "TQC") and weights[-1] == "actor.mu.0.weight"  # of gSDE
    squashed = held.algorithm in SQUASHED or bool(arguments.squash_output)
    if held.algorithm == "ARS" and arguments.squash_output is None:
        squashed = held.policy_class.endswith(".ARSPolicy")
    front = next((prefix for prefix in in_front if any(name.startswith(f"{prefix}.") for name in held.tensors)), None)
    features = None
    for name, array in held.tensors.items():
        if front and name.startswith(f"{front}."):
            tensors[f"extractor{name.removeprefix(front)}"] = array
            features = array.shape[0] if name.endswith("linear.0.weight") else features
        elif name.startswith(tuple(f"{prefix}." for prefix in prefixes)) and name not in used:
            raise BadInput(f"{what} has a layer {shortened(name)}, which is neither linear nor an activation")
    if (statistics := held.normalisation) is not None:
        tensors |= {part: getattr(statistics, part) for part in ("mean", "variance")}
    quantiles = None
    if held.algorithm == "QR-DQN" and isinstance(held.action_space, spaces.Discrete):
        quantiles = held.tensors[weights[-1]].shape[0] // int(held.action_space.n)
    try:
        if mean_cut:
            layers.append(Limit(limit=arguments.clip_mean))
        if squashed and continuous:
            layers.append("tanh")
        network = FrozenNetwork(
            layers=tuple(layers),
            rescaled=squashed and continuous,
            quantiles=quantiles,
            image_features=features,
            normalized=None if statistics is None else Normalized(epsilon=statistics.epsilon, clip=statistics.clip),
        )
    except ValueError as error:
        raise BadInput(f"{what}: its actor is none of ours: {shortened(str(error))}") from None
    return network, tensors

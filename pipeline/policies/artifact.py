"""Policy artifacts: a folder of `policy.safetensors` and `policy.json`, from which our own code builds the network.

Loading runs no code from the files: the JSON names spaces, network and action distribution, the network is built from
them, and the tensors must fit it exactly, by name, shape and dtype, and be finite. Among them are the figures of what
the policy scales, which the JSON names: `"scaled": ["observations", "actions"]`; with `"residual": true` also those of
the clone that a correction is added to. Training is not decided here.

    policy = build_policy(observation_space, action_space, Network(hidden=(64, 64)), seed=1)
    save_policy(policy, folder, {"run_id": "..."})
    act = act_function(load_policy(folder))
    actions = act(observations)           # (n, *obs_shape) -> (n, *act_shape)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, prod
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import gymnasium as gym
import numpy as np
import torch
from pydantic import AfterValidator, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.config.loading import to_data, validate
from pipeline.config.training import Network
from pipeline.data.observations import check_action_space
from pipeline.data.spaces import space_from_json, space_to_json
from pipeline.errors import BadInput, shortened
from pipeline.files import digest, readable, strict_json, write_folder
from pipeline.names import POLICY_SPEC_FILE, POLICY_WEIGHTS_FILE
from pipeline.policies.frozen import FrozenActor
from pipeline.policies.layers import FrozenNetwork
from pipeline.policies.networks import (
    ResidualPolicy,
    action_distribution,
    build_policy,
    images_in,
    network_of,
    scaling_of,
)
from pipeline.policies.units import blank_scaling

FORMAT_VERSION: Final = 1
MAX_SPEC_BYTES: Final = 1_000_000
MAX_WEIGHT_BYTES: Final = 1_000_000_000
MAX_LAYERS: Final = 16
MAX_PARAMETERS: Final = 200_000_000
DETERMINISTIC: Final = "deterministic"
WRAPPERS: Final = "wrappers"  # in the provenance: what stood between the environment and the policy

Policy = ActorCriticPolicy | FrozenActor
Space = Annotated[Any, AfterValidator(space_from_json)]
Scaled = Literal["observations", "actions"]


def save_policy(
    policy: Policy, folder: str | Path, provenance: Mapping[str, Any], return_scale: float | None = None
) -> str:
    """Write the artifact, whole or not at all, replacing what was there; returns its `policy_digest`.

    `return_scale` divides its critic's values, and rewards, where PPO that goes on from it normalises them.
    """
    scaling = scaling_of(policy)
    units: dict[str, Any] = {"scaled": [name for name, affine in vars(scaling).items() if affine is not None]}
    if scaling.observations is not None and isfinite(scaling.observations.clip):
        units["clip"] = scaling.observations.clip
    if isinstance(policy, FrozenActor):
        network, distribution = to_data(policy.network), DETERMINISTIC
    else:
        settings, distribution = network_of(policy), action_distribution(policy.action_space)
        images = {"image_features": settings.image_features} if images_in(policy.observation_space) else {}
        network = {"hidden": list(settings.hidden), "activation": settings.activation, **images}
    spec = {
        **(units if scaling else {}),
        **({"residual": True} if isinstance(policy, ResidualPolicy) else {}),
        **({"return_scale": return_scale} if return_scale is not None else {}),
        "format_version": FORMAT_VERSION,
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
        "network": network,
        "action_distribution": distribution,
        "provenance": dict(provenance),
    }
    text = json.dumps(spec, indent=1, sort_keys=True, allow_nan=False) + "\n"
    weights = to_safetensors(tensors_of(policy))
    files = {POLICY_WEIGHTS_FILE: weights, POLICY_SPEC_FILE: text.encode()}
    write_folder(Path(folder), files, replace=True)
    return policy_digest(folder)


def policy_digest(folder: str | Path) -> str:
    """sha256 over both files, cut to 36 hex characters. Raises BadInput when one is missing."""
    parts: list[bytes | str] = []
    for name, limit in ((POLICY_WEIGHTS_FILE, MAX_WEIGHT_BYTES), (POLICY_SPEC_FILE, MAX_SPEC_BYTES)):
        content = _read(Path(folder) / name, limit)
        parts += [f"{name}:{len(content)}:", content]
    return digest(*parts)


@dataclass(frozen=True, kw_only=True)
class _Spec:
    __pydantic_config__ = ConfigDict(extra="forbid")

    format_version: Literal[1]
    observation_space: Space
    action_space: Space
    provenance: dict[str, Any]
    scaled: tuple[Scaled, ...] = ()
    clip: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and "observations" not in self.scaled:
            raise ValueError(f"clip = {self.clip} is of scaled observations, and none are; remove it")


@dataclass(frozen=True, kw_only=True)
class PolicySpec(_Spec):
    """What `policy.json` says of a policy that PPO trains."""

    network: Network
    action_distribution: str
    residual: bool = False
    return_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


@dataclass(frozen=True, kw_only=True)
class FrozenSpec(_Spec):
    """What `policy.json` says of one that only acts."""

    network: FrozenNetwork
    action_distribution: Literal["deterministic"]
    scaled: tuple[Literal["observations"], ...] = ()


def read_spec(folder: str | Path) -> PolicySpec | FrozenSpec:
    """Read and check `policy.json` without touching the weights. Raises BadInput."""
    path = Path(folder) / POLICY_SPEC_FILE
    what = f"policy {str(path)!r}"
    try:
        data = strict_json(_read(path, MAX_SPEC_BYTES))
    except ValueError as error:
        raise BadInput(f"{what} is not valid JSON: {error}") from None
    if isinstance(data, dict) and data.get("action_distribution") == DETERMINISTIC:
        frozen = validate(FrozenSpec, data, what)
        check_action_space(frozen.action_space)
        parameters = frozen.network.parameter_count + _picture_parameters(
            frozen.observation_space, frozen.network.image_features or 1
        )
        _refuse_large(parameters, what)
        return frozen
    spec = validate(PolicySpec, data, what)
    expected = action_distribution(spec.action_space)
    if spec.action_distribution != expected:
        raise BadInput(
            f"{what}: action_distribution {shortened(spec.action_distribution)} does not belong to its action space, "
            f"which takes {expected!r}"
        )
    whole_picture = not isinstance(spec.observation_space, gym.spaces.Dict) and images_in(spec.observation_space)
    if ("observations" in spec.scaled and whole_picture) or (
        "actions" in spec.scaled and not isinstance(spec.action_space, gym.spaces.Box)
    ):
        raise BadInput(f"{what}: scaled = {list(spec.scaled)} does not belong to its spaces; only numbers are scaled")
    # the memory that building the network takes is bounded before it is built
    hidden = spec.network.hidden
    if len(hidden) > MAX_LAYERS:
        raise BadInput(f"{what}: network.hidden lists {len(hidden)} layers, allowed are up to {MAX_LAYERS}")
    try:
        inputs, outputs = (gym.spaces.utils.flatdim(space) for space in (spec.observation_space, spec.action_space))
    except (NotImplementedError, ValueError) as error:
        raise BadInput(f"{what}: its spaces cannot be flattened: {error}") from None
    networks = 3 if spec.residual else 2  # actor and critic, and the clone
    parameters = networks * sum(a * b + b for a, b in pairwise((int(inputs), *hidden, int(outputs))))
    _refuse_large(parameters + 2 * _picture_parameters(spec.observation_space, spec.network.image_features), what)
    return spec


def _picture_parameters(space: gym.Space[Any], features: int) -> int:
    """At most so many of SB3's NatureCNN, one a picture: its last layer has fewer inputs than a picture has pixels."""
    shapes = [image.shape or () for image in images_in(space)]
    return sum(prod(shape[1:]) * features + 2048 * shape[0] + 75_000 for shape in shapes)


def _refuse_large(parameters: int, what: str) -> None:
    if parameters > MAX_PARAMETERS:
        raise BadInput(f"{what}: its network of {parameters} parameters is larger than the {MAX_PARAMETERS} allowed")


def load_policy(folder: str | Path) -> Policy:
    """Build the policy that `policy.json` describes and fill it with the tensors, strictly.

    Raises BadInput, one line, for anything missing, oversized, unknown, misfitting or not finite.
    """
    spec, path = read_spec(folder), Path(folder) / POLICY_WEIGHTS_FILE
    what = f"policy {str(path)!r}"
    size = path.stat().st_size if path.is_file() else MAX_WEIGHT_BYTES
    policy: Policy
    if isinstance(spec, FrozenSpec):
        blank = (bool(spec.scaled), inf if spec.clip is None else spec.clip)
        policy = build_frozen(spec.observation_space, spec.action_space, spec.network, size, what, blank)
    else:
        refuse_hollow(spec.observation_space, spec.network, size, what)
        scaling = blank_scaling(spec.observation_space, spec.action_space, spec.network, spec.scaled, spec.clip)
        policy = build_policy(spec.observation_space, spec.action_space, spec.network, 0, scaling, spec.residual)
    expected = tensors_of(policy)
    needed = sum(tensor.nbytes for tensor in expected.values())
    content = _read(path, min(MAX_WEIGHT_BYTES, needed + MAX_SPEC_BYTES))
    with readable(f"{what} is not a readable safetensors file", SafetensorError):
        tensors = from_safetensors(content)
    refuse_misfit(tensors, expected, what)
    load_tensors(policy, tensors)
    try:
        scaling_of(policy)
    except BadInput as error:
        raise BadInput(f"{what}: {error}") from None
    return policy


def load_trainable(folder: str | Path, name: str | None = None) -> ActorCriticPolicy:
    """As `load_policy`, of a policy with a critic. Raises BadInput for one that only acts; `name`: for people."""
    policy = load_policy(folder)
    if isinstance(policy, FrozenActor):
        why = "its actions end in a tanh" if policy.network.rescaled else "its network is none that PPO trains here"
        raise BadInput(
            f"policy {name or repr(str(folder))} only acts: {why}; record its demonstrations (collect) and clone them "
            "(pretrain)"
        )
    return policy


def build_frozen(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    network: FrozenNetwork,
    size: int,
    what: str,
    units: tuple[bool, float] = (False, inf),
) -> FrozenActor:
    """An actor that `size` bytes of tensors could fill. Raises BadInput when its network does not fit the spaces."""
    if size + MAX_SPEC_BYTES < 4 * network.parameter_count:
        raise BadInput(f"{what} has {size} bytes, its {network.parameter_count} parameters need four each")
    try:
        return FrozenActor(observation_space, action_space, network, *units)
    except ValueError as error:
        raise BadInput(f"{what} does not fit: {error}") from None


def refuse_hollow(space: gym.Space[Any], network: Network, size: int, what: str) -> None:
    """A width is only a claim: a large network, which takes memory and time, is built for bytes that could fill it."""
    inputs = () if images_in(space) else (gym.spaces.utils.flatdim(space),)
    least = 2 * 4 * sum(before * after for before, after in pairwise((*inputs, *network.hidden)))
    if size + MAX_SPEC_BYTES < least:
        raise BadInput(
            f"{what} has {size} bytes, the hidden layers {shortened(list(network.hidden))} alone need {least}: its "
            "tensors are not those of its network"
        )


def refuse_misfit(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str, remedy: str = ""
) -> None:
    """Raise BadInput, naming the first that is wrong, unless these are the tensors of a network, all of them finite."""
    for name in sorted({*tensors, *expected}):
        found, needed = (
            f"{group[name].dtype} {tuple(group[name].shape)}" if name in group else "none"
            for group in (tensors, expected)
        )
        if found != needed:
            raise BadInput(f"{what}: tensor {shortened(name)} is {found}, its network needs {needed}{remedy}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise BadInput(f"{what}: tensor {name!r} holds a value that is not finite")


def _read(path: Path, limit: int) -> bytes:
    try:
        if not path.is_file():
            raise BadInput(f"policy: no such file: {str(path)!r}; a policy artifact is a folder with it")
        if path.stat().st_size > limit:
            raise BadInput(f"policy: {str(path)!r} is larger than the {limit} bytes allowed")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"policy: cannot read {str(path)!r}: {error}") from None


def tensors_of(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A detached copy on the CPU of every tensor of the policy, by name."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in policy.state_dict().items()}


def between_policies(before: Path, now: Path) -> str | None:
    """The first tensor that differs, in the order of the network, or what else of the policy folder does."""
    try:
        theirs, ours = tensors_of(load_policy(before)), tensors_of(load_policy(now))
    except BadInput as error:
        return f"the policy on record cannot be read: {error}"
    for name in dict.fromkeys((*theirs, *ours)):
        if name not in theirs or name not in ours:
            return f"tensor {name} is {'new' if name in ours else 'gone'}"
        a, b = theirs[name].numpy(), ours[name].numpy()
        if a.shape != b.shape:
            return f"tensor {name}: shape {b.shape} (was {a.shape})"
        if a.tobytes() != b.tobytes():
            count, largest = int((a != b).sum()), float(np.abs(a.astype(np.float64) - b).max())
            return f"tensor {name}: {count} of {a.size} values differ, the largest by {largest:.3g}"
    if (before / POLICY_SPEC_FILE).read_bytes() != (now / POLICY_SPEC_FILE).read_bytes():
        return f"{POLICY_SPEC_FILE}: the weights are equal, their description is not"
    return None


def load_tensors(policy: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill a policy with tensors of exactly its names and shapes."""
    policy.load_state_dict(dict(tensors), strict=True)


def tensor_digests(policy: torch.nn.Module) -> dict[str, str]:
    """Tensor name -> sha256 (36 characters) over its dtype, shape and bytes."""
    return {name: array_digest(tensor.numpy()) for name, tensor in tensors_of(policy).items()}


def weights_digest(policy: torch.nn.Module) -> str:
    """One sha256 (36 characters) over all tensors with their names: equal exactly when every weight is equal."""
    return digest(json.dumps(tensor_digests(policy), sort_keys=True))


def array_digest(array: np.ndarray) -> str:
    """sha256 (36 characters) over dtype, shape and bytes."""
    return digest(f"{array.dtype.str}{array.shape}", array.tobytes())

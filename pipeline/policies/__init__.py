"""Policy artifacts: a folder of `policy.safetensors` and `policy.json`, from which our own code builds the network.

Loading runs no code from the files: the JSON names spaces, network and action distribution, the network is built from
them, and the tensors must fit it exactly, by name, shape and dtype, and be finite. Training is not decided here.

    policy = build_policy(observation_space, action_space, Network(hidden=(64, 64)), seed=1)
    save_policy(policy, folder, {"run_id": "..."})
    act = act_function(load_policy(folder))
    actions = act(observations)           # (n, *obs_shape) -> (n, *act_shape)
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from pipeline.config.training import Network
from pipeline.data.observations import check_action_space, check_observation_space
from pipeline.data.spaces import space_from_json, space_to_json
from pipeline.errors import BadInput, shortened
from pipeline.files import compiled, strict_json, write_folder
from pipeline.names import POLICY_SPEC_FILE, POLICY_WEIGHTS_FILE

FORMAT_VERSION: Final = 1
DIGEST_LENGTH: Final = 36  # MLflow allows no longer digest of a dataset; one length for all
MAX_SPEC_BYTES: Final = 1_000_000
MAX_WEIGHT_BYTES: Final = 1_000_000_000
MAX_LAYERS: Final = 16
MAX_PARAMETERS: Final = 200_000_000

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"tanh": nn.Tanh, "relu": nn.ReLU}

Observations = Any  # (n, *obs_shape) array, or a mapping of such arrays for Dict spaces
ActFunction = Callable[[Observations], np.ndarray]  # observations of n slots -> (n, *act_shape) actions

_SPEC_KEYS: Final = frozenset(
    {"format_version", "observation_space", "action_space", "network", "action_distribution", "provenance"}
)
PROBE_COUNT: Final = 256
WRAPPERS: Final = "wrappers"  # in the provenance: what stood between the environment and the policy


def policy_class(observation_space: gym.Space[Any]) -> type[ActorCriticPolicy]:
    """The SB3 policy class that reads such observations: mappings, images, or anything flat."""
    if isinstance(observation_space, spaces.Dict):
        return MultiInputActorCriticPolicy
    return ActorCriticCnnPolicy if is_image_space(observation_space) else ActorCriticPolicy


def sees_images(observation_space: gym.Space[Any]) -> bool:
    """Does a policy of such observations have a convolutional part."""
    return bool(_images(observation_space))


def _images(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else (space,)
    return [part for part in parts if is_image_space(part)]


def policy_arguments(observation_space: gym.Space[Any], network: Network) -> dict[str, Any]:
    """`policy_kwargs` of SB3 for our network settings: actor and critic are separate, of the same shape."""
    hidden = list(network.hidden)
    arguments = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": ACTIVATIONS[network.activation]}
    if not sees_images(observation_space):
        return arguments
    width = {_width_of_images(observation_space): network.image_features}
    # subtle: with one shared convolutional part the critic's gradients would spoil the clone
    return {**arguments, "features_extractor_kwargs": width, "share_features_extractor": False}


def _width_of_images(observation_space: gym.Space[Any]) -> str:
    return "cnn_output_dim" if isinstance(observation_space, spaces.Dict) else "features_dim"


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


def network_of(policy: ActorCriticPolicy) -> Network:
    """The settings a policy was built from: the inverse of `policy_arguments`."""
    arch = policy.net_arch
    hidden = arch["pi"] if isinstance(arch, dict) else arch
    names = [name for name, activation in ACTIVATIONS.items() if activation is policy.activation_fn]
    if not names or (isinstance(arch, dict) and arch["pi"] != arch["vf"]):
        raise ValueError(f"no Network describes net_arch {arch} with {policy.activation_fn}")
    network = Network(hidden=tuple(hidden), activation=names[0])  # type: ignore[arg-type]
    if not sees_images(policy.observation_space):
        return network
    return replace(network, image_features=policy.features_extractor_kwargs[_width_of_images(policy.observation_space)])


def _network_to_json(policy: ActorCriticPolicy) -> dict[str, Any]:
    network = network_of(policy)
    images = {"image_features": network.image_features} if sees_images(policy.observation_space) else {}
    return {"hidden": list(network.hidden), "activation": network.activation, **images}


# --- bytes -----------------------------------------------------------------------------------------------------------


def save_policy(policy: ActorCriticPolicy, folder: str | Path, provenance: Mapping[str, Any]) -> str:
    """Write the artifact, whole or not at all, replacing what was there; returns its `policy_digest`."""
    spec = {
        "format_version": FORMAT_VERSION,
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
        "network": _network_to_json(policy),
        "action_distribution": action_distribution(policy.action_space),
        "provenance": dict(provenance),
    }
    files = {
        POLICY_WEIGHTS_FILE: to_safetensors(tensors_of(policy)),
        POLICY_SPEC_FILE: (json.dumps(spec, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
    }
    write_folder(Path(folder), files, replace=True)
    return policy_digest(folder)


def policy_digest(folder: str | Path) -> str:
    """sha256 over both files, cut to 36 hex characters. Raises BadInput when one is missing."""
    digest = hashlib.sha256()
    for name, limit in ((POLICY_WEIGHTS_FILE, MAX_WEIGHT_BYTES), (POLICY_SPEC_FILE, MAX_SPEC_BYTES)):
        content = _read(Path(folder) / name, limit)
        digest.update(f"{name}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()[:DIGEST_LENGTH]


def load_policy(folder: str | Path) -> ActorCriticPolicy:
    """Build the policy that `policy.json` describes and fill it with the tensors, strictly.

    Raises BadInput, one line, for anything missing, oversized, unknown, misfitting or not finite.
    """
    spec, weights = read_spec(folder), Path(folder) / POLICY_WEIGHTS_FILE
    _refuse_hollow(spec, weights)
    policy = build_policy(spec.observation_space, spec.action_space, spec.network, seed=0)
    load_tensors(policy, _read_tensors(weights, tensors_of(policy)))
    return policy


@dataclass(frozen=True)
class PolicySpec:
    """What `policy.json` says."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    network: Network
    provenance: Mapping[str, Any]


def read_spec(folder: str | Path) -> PolicySpec:
    """Read and check `policy.json` without touching the weights. Raises BadInput."""
    path = Path(folder) / POLICY_SPEC_FILE
    data = _parse_json(_read(path, MAX_SPEC_BYTES), path)
    if not isinstance(data, dict) or set(data) != _SPEC_KEYS:
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise BadInput(f"policy {str(path)!r} must hold exactly {sorted(_SPEC_KEYS)}, got {shortened(found)}")
    if data["format_version"] != FORMAT_VERSION:
        raise BadInput(
            f"policy {str(path)!r}: format_version {shortened(data['format_version'])} is unknown; "
            f"this version reads {FORMAT_VERSION}"
        )
    if not isinstance(data["provenance"], dict):
        raise BadInput(f"policy {str(path)!r}: provenance must be a mapping")
    observation_space = space_from_json(data["observation_space"])
    spec = PolicySpec(
        observation_space=observation_space,
        action_space=space_from_json(data["action_space"]),
        network=_network_from_json(data["network"], sees_images(observation_space), path),
        provenance=data["provenance"],
    )
    if data["action_distribution"] != action_distribution(spec.action_space):
        raise BadInput(
            f"policy {str(path)!r}: action_distribution {shortened(data['action_distribution'])} does not belong to "
            f"its action space, which takes {action_distribution(spec.action_space)!r}"
        )
    _refuse_oversized(spec, path)
    return spec


def _network_from_json(data: Any, images: bool, path: Path) -> Network:
    hidden = data.get("hidden") if isinstance(data, dict) else None
    width: dict[str, Any] = {"image_features": data.get("image_features")} if images and isinstance(data, dict) else {}
    if (
        not isinstance(data, dict)
        or set(data) != {"hidden", "activation", *width}
        or not all(type(features) is int and features >= 1 for features in width.values())
        or data["activation"] not in tuple(ACTIVATIONS)
        or not isinstance(hidden, list)
        or len(hidden) > MAX_LAYERS
        or not all(type(width) is int and width >= 1 for width in hidden)
    ):
        raise BadInput(
            f"policy {str(path)!r}: network {shortened(data)} must be "
            f"{{'hidden': up to {MAX_LAYERS} positive integers, 'activation': one of {sorted(ACTIVATIONS)}}}"
            + (" and 'image_features': a positive integer" if images else "")
        )
    return Network(hidden=tuple(hidden), activation=data["activation"], **width)


def _refuse_oversized(spec: PolicySpec, path: Path) -> None:
    """Bound the memory that building the network takes, before building it."""
    try:
        inputs = int(gym.spaces.utils.flatdim(spec.observation_space))
        outputs = int(gym.spaces.utils.flatdim(spec.action_space))
    except (NotImplementedError, ValueError) as error:
        raise BadInput(f"policy {str(path)!r}: its spaces cannot be flattened: {error}") from None
    widths = [inputs, *spec.network.hidden, outputs]
    parameters = 2 * sum(a * b + b for a, b in pairwise(widths))
    for image in _images(spec.observation_space):
        # at most so many of SB3's NatureCNN: its last layer has fewer inputs than the picture has pixels
        channels, pixels = image.shape[0], prod(image.shape[1:])  # type: ignore[index]
        parameters += 2 * (pixels * spec.network.image_features + 2048 * channels + 75_000)
    if parameters > MAX_PARAMETERS:
        raise BadInput(
            f"policy {str(path)!r}: its network of {parameters} parameters is larger than the {MAX_PARAMETERS} allowed"
        )


def _refuse_hollow(spec: PolicySpec, weights: Path) -> None:
    """A width is only a claim: a large network, which takes memory and time, is built for a file that could fill it."""
    inputs = () if sees_images(spec.observation_space) else (gym.spaces.utils.flatdim(spec.observation_space),)
    least = 2 * 4 * sum(before * after for before, after in pairwise((*inputs, *spec.network.hidden)))
    if weights.is_file() and weights.stat().st_size + MAX_SPEC_BYTES < least:
        raise BadInput(
            f"policy {str(weights)!r} has {weights.stat().st_size} bytes, the hidden layers "
            f"{shortened(list(spec.network.hidden))} alone need {least}: its tensors are not those of its network"
        )


def _parse_json(content: bytes, path: Path) -> Any:
    try:
        return strict_json(content)
    except ValueError as error:
        raise BadInput(f"policy {str(path)!r} is not valid JSON: {error}") from None


def _read(path: Path, limit: int) -> bytes:
    try:
        if not path.is_file():
            raise BadInput(f"policy: no such file: {str(path)!r}; a policy artifact is a folder with it")
        if path.stat().st_size > limit:
            raise BadInput(f"policy: {str(path)!r} is larger than the {limit} bytes allowed")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"policy: cannot read {str(path)!r}: {error}") from None


def _read_tensors(path: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's tensors, read only after names, shapes and dtypes in its header equal the expected ones."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    _read(path, min(MAX_WEIGHT_BYTES, needed + MAX_SPEC_BYTES))
    names = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = set(file.keys())
            if found != set(expected):
                missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
                raise BadInput(
                    f"policy {str(path)!r}: its tensors are not those of its network; missing: "
                    f"{shortened(missing)}, unexpected: {shortened(extra)}"
                )
            for name, tensor in expected.items():
                header = file.get_slice(name)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                if shape != tuple(tensor.shape) or dtype != names[tensor.dtype]:
                    raise BadInput(
                        f"policy {str(path)!r}: tensor {name!r} is {dtype} {shape}, its network needs "
                        f"{names[tensor.dtype]} {tuple(tensor.shape)}"
                    )
            tensors = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"policy {str(path)!r} is not a readable safetensors file: {shortened(str(error))}") from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"policy {str(path)!r}: tensor {name!r} holds a value that is not finite")
    return tensors


# --- tensors ---------------------------------------------------------------------------------------------------------


def tensors_of(policy: ActorCriticPolicy) -> dict[str, torch.Tensor]:
    """A detached copy of every tensor of the policy, by name."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in policy.state_dict().items()}


def load_tensors(policy: ActorCriticPolicy, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill a policy with tensors of exactly its names and shapes."""
    policy.load_state_dict(dict(tensors), strict=True)


def tensor_digests(policy: ActorCriticPolicy) -> dict[str, str]:
    """Tensor name -> sha256 (36 characters) over its dtype, shape and bytes."""
    return {name: _digest_array(tensor.numpy()) for name, tensor in tensors_of(policy).items()}


def weights_digest(policy: ActorCriticPolicy) -> str:
    """One sha256 (36 characters) over all tensors with their names: equal exactly when every weight is equal."""
    text = json.dumps(tensor_digests(policy), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def _digest_array(array: np.ndarray) -> str:
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:DIGEST_LENGTH]


# --- acting ----------------------------------------------------------------------------------------------------------


def act_function(policy: ActorCriticPolicy, deterministic: bool = True) -> ActFunction:
    """Batched inference: `(n, *obs_shape)` -> `(n, *act_shape)` actions inside the action space.

    Deterministic actions equal those of `policy.predict` up to rounding. A row's action follows from that row alone,
    on every processor: what an episode does must not depend on the episodes next to it. Layers are `dense`, which
    promises that; pictures go through PyTorch one at a time. The function is the policy as it is now: make a new one
    after it has learnt. Stochastic actions draw from torch's generator.
    """
    extractor = policy.pi_features_extractor
    if not deterministic or any(True for _ in extractor.parameters()):

        def predict(observations: Observations) -> np.ndarray:
            return np.asarray(policy.predict(observations, deterministic=deterministic)[0])

        return _row_by_row(predict) if sees_images(policy.observation_space) else predict
    layers = [_frozen(layer) for layer in (*policy.mlp_extractor.policy_net, policy.action_net)]
    space, decide = policy.observation_space, _decision(policy.action_space)

    def act(observations: Observations) -> np.ndarray:
        if isinstance(space, spaces.Box):
            output = np.ascontiguousarray(observations, np.float32).reshape(len(observations), -1)
        else:
            with torch.inference_mode():
                features = policy.extract_features(policy.obs_to_tensor(observations)[0], extractor)
            assert isinstance(features, torch.Tensor)  # one extractor was named
            output = features.numpy()
        for layer in layers:
            output = layer(output)
        return decide(output)

    return act


def _frozen(layer: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """A layer of an actor as it is now, on arrays (n, inputs)."""
    if isinstance(layer, nn.Tanh):
        return tanh
    if isinstance(layer, nn.ReLU):
        return lambda rows: np.maximum(rows, np.float32(0))
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach().numpy().T.copy(order="C")
    bias = layer.bias.detach().numpy().copy()
    return lambda rows: dense(rows, weight, bias)


# subtle: libraries choose a kernel by the number of rows, and a row's last bits follow from the kernel and the row's
# place in it. Here sums are taken in the order that is written, product by product, nothing fused or reordered (no
# fastmath): a row's bits are the same in any company and on any processor. Eight inputs at a time keep the sums in
# registers, which makes it as fast as the libraries at the sizes of policies (benchmarks/acting_speed.py).
@compiled
def dense(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`bias + rows @ weight`: (n, inputs), (inputs, outputs), (outputs,) -> (n, outputs), all float32.

    ((bias + x[0] w[0]) + x[1] w[1]) + ..., each operation rounded to float32: any processor, any row, the same bits.
    """
    inputs, outputs = weight.shape
    sums = np.empty((len(rows), outputs), np.float32)
    sums[:] = bias
    whole = inputs - inputs % 8
    for k in range(0, whole, 8):
        w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        w4, w5, w6, w7 = weight[k + 4], weight[k + 5], weight[k + 6], weight[k + 7]
        for i in range(len(rows)):
            x, s = rows[i], sums[i]
            x0, x1, x2, x3 = x[k], x[k + 1], x[k + 2], x[k + 3]
            x4, x5, x6, x7 = x[k + 4], x[k + 5], x[k + 6], x[k + 7]
            for j in range(outputs):
                first = s[j] + x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
                s[j] = first + x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j]
    for k in range(whole, inputs):
        for i in range(len(rows)):
            for j in range(outputs):
                sums[i, j] += rows[i, k] * weight[k, j]
    return sums


_TANH_P: Final = tuple(
    np.float32(c)
    for c in (4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08,
              -8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16)
)  # fmt: skip
_TANH_Q: Final = tuple(
    np.float32(c) for c in (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
)
_TANH_BOUND: Final = np.float32(7.90531110763549805)  # beyond it float32's tanh is 1


@compiled
def tanh(rows: np.ndarray) -> np.ndarray:
    """float32 (n, outputs) -> its tanh within 4e-7, of sums, products and one division: the same bits everywhere.

    The rational approximation of Eigen's `generic_fast_tanh_float` (odd polynomial of degree 13 over one of degree 6).
    """
    p0, p1, p2, p3, p4, p5, p6 = _TANH_P
    q0, q1, q2, q3 = _TANH_Q
    result = np.empty_like(rows)
    flat, given = result.reshape(-1), rows.reshape(-1)
    for i in range(flat.size):
        x = given[i]
        x = _TANH_BOUND if x > _TANH_BOUND else x
        x = -_TANH_BOUND if x < -_TANH_BOUND else x
        y = x * x
        p = x * ((((((p6 * y + p5) * y + p4) * y + p3) * y + p2) * y + p1) * y + p0)
        flat[i] = p / (((q3 * y + q2) * y + q1) * y + q0)
    return result


def _decision(space: gym.Space[Any]) -> Callable[[np.ndarray], np.ndarray]:
    """From the actor's outputs (n, outputs) to its most likely actions (n, *act_shape), inside the space."""
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        return lambda output: np.clip(output.reshape(-1, *low.shape), low, high)
    if isinstance(space, spaces.Discrete):
        return lambda output: np.asarray(output.argmax(axis=1))
    if isinstance(space, spaces.MultiDiscrete):
        ends = np.cumsum(space.nvec)[:-1]
        return lambda output: np.stack([part.argmax(axis=1) for part in np.split(output, ends, axis=1)], axis=1)
    return lambda output: (output > 0).astype(np.int8)


def _row_by_row(predict: ActFunction) -> ActFunction:
    """Convolutions of different numbers of rows differ in their last bits: each row is answered alone."""

    def act(observations: Observations) -> np.ndarray:
        if isinstance(observations, Mapping):
            rows = len(next(iter(observations.values())))
            return np.concatenate([predict({k: v[i : i + 1] for k, v in observations.items()}) for i in range(rows)])
        return np.concatenate([predict(observations[i : i + 1]) for i in range(len(observations))])

    return act


def probe_batch(observation_space: gym.Space[Any], count: int = PROBE_COUNT) -> Observations:
    """Fixed observations to compare two policies on: uniform where bounded, standard normal elsewhere.

    The same space gives the same bits.
    """
    rng = np.random.default_rng(0)
    if isinstance(observation_space, spaces.Dict):
        return {key: _probe(observation_space[key], count, rng) for key in sorted(observation_space.spaces)}
    return _probe(observation_space, count, rng)


def _probe(space: gym.Space[Any], count: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(space, spaces.Box):
        low, high = (np.asarray(b, np.float64) for b in (space.low, space.high))
        bounded = np.isfinite(low) & np.isfinite(high) & (high - low < 1e6)
        uniform = rng.random((count, *low.shape)) * np.where(bounded, high - low, 0.0) + np.where(bounded, low, 0.0)
        normal = np.clip(rng.standard_normal((count, *low.shape)), low, high)
        return np.where(bounded, uniform, normal).astype(space.dtype)
    choices = getattr(space, "nvec", getattr(space, "n", 2)) if not isinstance(space, spaces.MultiBinary) else 2
    return rng.integers(choices, size=(count, *(space.shape or ()))).astype(space.dtype)


def batch_digest(batch: Observations) -> str:
    """sha256 (36 characters) over dtype, shape and bytes of an array, or of a mapping of arrays with their names."""
    if isinstance(batch, Mapping):
        text = json.dumps({key: _digest_array(array) for key, array in batch.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
    return _digest_array(batch)

"""What a policy does: batched inference, row by row the same on any processor. Nothing is learnt here."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from pipeline.errors import BadInput
from pipeline.files import compiled
from pipeline.policies.frozen import FrozenActor
from pipeline.policies.networks import ResidualPolicy, build_policy, images_in, network_of, scaling_of
from pipeline.policies.units import Affine

Observations = Any  # (n, *obs_shape) array, or a mapping of such arrays for Dict spaces
ActFunction = Callable[[Observations], np.ndarray]  # observations of n slots -> (n, *act_shape) actions


def act_function(policy: ActorCriticPolicy | FrozenActor, deterministic: bool = True) -> ActFunction:
    """Batched inference: `(n, *obs_shape)` -> `(n, *act_shape)` actions inside the action space.

    Deterministic actions equal those of `policy.predict` up to rounding. A row's action follows from that row alone,
    on every processor: what an episode does must not depend on the episodes next to it. Layers are `dense`, which
    promises that; pictures go through PyTorch one at a time, on the CPU wherever the policy learns. The function is the
    policy as it is now: make a new one after it has learnt. Stochastic actions draw from torch's generator; a frozen
    actor has none, and raises BadInput.
    """
    if isinstance(policy, FrozenActor):
        if not deterministic:
            raise BadInput("this policy acts deterministically alone: how it explored is not known; ask for that")
        return _frozen_actions(policy)
    if policy.device.type != "cpu":
        spaces_, tensors = (policy.observation_space, policy.action_space), policy.state_dict()
        residual = isinstance(policy, ResidualPolicy)
        policy = build_policy(*spaces_, network_of(policy), 0, scaling_of(policy), residual)
        policy.load_state_dict(tensors)
    space, extractor = policy.observation_space, policy.pi_features_extractor
    if not deterministic or any(True for _ in extractor.parameters()):

        def predict(observations: Observations) -> np.ndarray:
            return np.asarray(policy.predict(observations, deterministic=deterministic)[0])

        def one_by_one(observations: Observations) -> np.ndarray:
            if isinstance(observations, Mapping):
                rows = range(len(next(iter(observations.values()))))
                return np.concatenate([predict({k: v[i : i + 1] for k, v in observations.items()}) for i in rows])
            return np.concatenate([predict(observations[i : i + 1]) for i in range(len(observations))])

        # convolutions of different numbers of rows differ in their last bits
        return one_by_one if images_in(space) else predict

    layers: list[Any] = [(*policy.mlp_extractor.policy_net, policy.action_net)]
    if isinstance(policy, ResidualPolicy):
        hidden, last = policy.mlp_extractor, policy.action_net
        layers = [(*hidden.clone_net, last.clone), (*hidden.policy_net, last.correction)]
    networks = [[_kernel(layer) for layer in network] for network in layers]
    scaling = scaling_of(policy)
    decide = _decision(policy.action_space, scaling.actions)

    def act(observations: Observations) -> np.ndarray:
        if isinstance(space, spaces.Box):
            features = np.ascontiguousarray(observations, np.float32).reshape(len(observations), -1)
            if scaling.observations is not None:
                features = scaling.observations.inward(features)
        else:
            with torch.inference_mode():
                extracted = policy.extract_features(policy.obs_to_tensor(observations)[0], extractor)
            assert isinstance(extracted, torch.Tensor)  # one extractor was named
            features = extracted.numpy()
        outputs = []
        for network in networks:
            rows = features
            for kernel in network:
                rows = kernel(rows)
            outputs.append(rows)
        return decide(sum(outputs[1:], outputs[0]))

    return act


def _frozen_actions(actor: FrozenActor) -> ActFunction:
    """What a frozen actor does, row by row like any other policy."""
    space, actions, network = actor.observation_space, actor.action_space, actor.network
    # wide and large as these are, sums in float32 would stray from SB3's further than its own rounding does
    layers = [_kernel(layer, np.float64) for layer in actor.layers]
    decide, pictures = _decision(actions, None), bool(images_in(space))

    def features(observations: Observations) -> np.ndarray:
        if isinstance(space, spaces.Box) and not pictures:
            return np.ascontiguousarray(actor.normalize(observations)).reshape(len(observations), -1)
        with torch.inference_mode():
            tensors = obs_as_tensor(observations, torch.device("cpu"))
            return np.asarray(actor.extractor(preprocess_obs(tensors, space)).numpy(), np.float32)

    def act(observations: Observations) -> np.ndarray:
        output = actor.in_units(features(observations))
        for layer in layers:
            output = layer(output)
        if network.quantiles is not None:
            output = output.reshape(len(output), network.quantiles, -1).mean(axis=1)
        if network.rescaled:
            assert isinstance(actions, spaces.Box)
            low, high = actions.low.ravel(), actions.high.ravel()
            output = low + np.float32(0.5) * (output + np.float32(1)) * (high - low)
        return decide(output)

    def one_by_one(observations: Observations) -> np.ndarray:
        if isinstance(observations, Mapping):
            rows = range(len(next(iter(observations.values()))))
            return np.concatenate([act({k: v[i : i + 1] for k, v in observations.items()}) for i in rows])
        return np.concatenate([act(observations[i : i + 1]) for i in range(len(observations))])

    return one_by_one if pictures else act


def _kernel(layer: nn.Module, sums: type[np.floating] = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    """A layer as a function of rows (n, inputs) float32, as it is now; `sums`: what it adds products up in."""
    if isinstance(layer, nn.Tanh):
        return tanh
    if isinstance(layer, nn.ReLU):
        return lambda rows: np.maximum(rows, np.float32(0))
    if isinstance(layer, nn.LeakyReLU):
        slope = np.float32(layer.negative_slope)
        return lambda rows: np.where(rows > 0, rows, slope * rows)
    if isinstance(layer, nn.ELU):
        return elu
    if isinstance(layer, nn.Hardtanh):
        low, high = np.float32(layer.min_val), np.float32(layer.max_val)
        return lambda rows: np.clip(rows, low, high)
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach().numpy().T.astype(sums, order="C")
    bias = np.zeros(len(layer.weight), sums) if layer.bias is None else layer.bias.detach().numpy().astype(sums)
    return lambda rows: dense(rows, weight, bias).astype(np.float32, copy=False)


# subtle: libraries choose a kernel by the number of rows, and a row's last bits follow from the kernel and the row's
# place in it. Here sums are taken in the order that is written, product by product, nothing fused or reordered (no
# fastmath): a row's bits are the same in any company and on any processor. Eight inputs at a time keep the sums in
# registers, which makes it as fast as the libraries at the sizes of policies (benchmarks/acting_speed.py).
@compiled
def dense(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`bias + rows @ weight`: (n, inputs) float32, (inputs, outputs), (outputs,) -> (n, outputs) of the weight's dtype.

    ((bias + x[0] w[0]) + x[1] w[1]) + ..., each operation rounded to that: any processor, any row, the same bits.
    """
    inputs, outputs = weight.shape
    sums = np.empty((len(rows), outputs), weight.dtype)
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


@compiled
def elu(rows: np.ndarray) -> np.ndarray:
    """float32 (n, outputs) -> x where x > 0, exp(x) - 1 elsewhere, in float64 and rounded once."""
    result = np.empty_like(rows)
    flat, given = result.reshape(-1), rows.reshape(-1)
    for i in range(flat.size):
        flat[i] = given[i] if given[i] > 0 else math.expm1(np.float64(given[i]))
    return result


def _decision(space: gym.Space[Any], units: Affine | None) -> Callable[[np.ndarray], np.ndarray]:
    """From the actor's outputs (n, outputs) to its most likely actions (n, *act_shape), inside the space."""
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        if units is not None:
            return lambda output: np.clip(units.outward(output).reshape(-1, *low.shape), low, high)
        return lambda output: np.clip(output.reshape(-1, *low.shape), low, high)
    if isinstance(space, spaces.Discrete):
        return lambda output: np.asarray(output.argmax(axis=1))
    if isinstance(space, spaces.MultiDiscrete):
        ends = np.cumsum(space.nvec)[:-1]
        return lambda output: np.stack([part.argmax(axis=1) for part in np.split(output, ends, axis=1)], axis=1)
    return lambda output: (output > 0).astype(np.int8)

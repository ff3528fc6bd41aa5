"""A policy as a file that runs without this package: TorchScript and ONNX, with its units inside.

    export_network(policy, "policy.pt")        # torch.jit.load("policy.pt")(observations) -> actions
    export_network(policy, "policy.onnx")      # for onnxruntime; needs the extra `onnx`

Both take batches of raw observations in the dtype of the task, the parts of a Dict by the names of its keys, and give
deterministic actions inside the action space. Beside the file lies `<name>.expected.npz`: observations, and the actions
that the policy answers to them, which a reader on another machine can hold its own runtime to.
"""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from pipeline.errors import BadInput
from pipeline.files import appearing
from pipeline.policies.acting import Observations, act_function
from pipeline.policies.artifact import Policy
from pipeline.policies.frozen import FrozenActor
from pipeline.policies.networks import GaussianInUnits
from pipeline.policies.transfer import probe_batch

EXPECTED_ROWS: Final = 64
TOLERANCE: Final = 1e-4  # of an action's half range: what single precision may lose in another order of sums
FORMATS: Final = (".pt", ".onnx")


class DeterministicActions(nn.Module):
    """What `act_function` does: observations (n, *obs_shape), tensors by key of a Dict, to actions (n, *act_shape)."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Any) -> torch.Tensor:
        """In operations that both formats have."""
        policy: Any = self.policy
        space = policy.action_space
        if isinstance(policy, FrozenActor):
            output = _outputs_of_frozen(policy, observations)
        else:
            features = policy.pi_features_extractor(preprocess_obs(observations, policy.observation_space))
            output = policy.action_net(policy.mlp_extractor.forward_actor(features))
        if isinstance(policy, GaussianInUnits):
            output = policy.action_offset + policy.action_scale * output
        if isinstance(space, spaces.Box):
            low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
            return torch.minimum(torch.maximum(output.reshape(-1, *space.shape), low), high)
        if isinstance(space, spaces.Discrete):
            return output.argmax(dim=1)
        if isinstance(space, spaces.MultiDiscrete):
            parts = torch.split(output, space.nvec.tolist(), dim=1)
            return torch.stack([part.argmax(dim=1) for part in parts], dim=1)
        return (output > 0).to(torch.int8)


def _outputs_of_frozen(actor: FrozenActor, observations: Any) -> torch.Tensor:
    """(n, outputs): one an element of a Box, one an alternative otherwise."""
    network, space = actor.network, actor.action_space
    if network.normalized is None:
        features = actor.extractor(preprocess_obs(observations, actor.observation_space))
    else:
        clip, mean, variance = network.normalized.clip, actor.mean, actor.variance
        scaled = (observations.double() - mean) / torch.sqrt(variance + network.normalized.epsilon)
        features = actor.extractor((scaled if clip is None else torch.clamp(scaled, -clip, clip)).float())
    output: torch.Tensor = actor.layers(actor.in_units(features))
    if network.quantiles is not None:
        output = output.unflatten(1, (network.quantiles, -1)).mean(dim=1)
    if network.rescaled:
        assert isinstance(space, spaces.Box)
        low, high = torch.as_tensor(space.low.ravel()), torch.as_tensor(space.high.ravel())
        output = low + 0.5 * (output + 1.0) * (high - low)
    return output


def export_network(policy: Policy, path: str | Path) -> None:
    """Write a policy as TorchScript (`.pt`) or ONNX (`.onnx`), and what it answers beside it.

    Raises BadInput for a file that exists, another ending, a missing extra, and RuntimeError when what was written does
    not act as the policy does.
    """
    target = Path(path)
    expected = target.with_name(f"{target.name}.expected.npz")
    if target.suffix not in FORMATS or target.exists() or expected.exists():
        raise BadInput(f"export path {str(target)!r} must be a new file that ends in {' or '.join(FORMATS)}")
    probe = probe_batch(policy.observation_space, EXPECTED_ROWS)
    actions = act_function(policy)(probe)
    module = DeterministicActions(deepcopy(policy)).eval().requires_grad_(False)
    with appearing(target) as written, appearing(expected) as answers:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of a format that torch will not extend, and of constants in a trace
            if target.suffix == ".pt":
                given = obs_as_tensor(probe, torch.device("cpu"))
                torch.jit.trace(module, (given,), strict=False, check_trace=False).save(str(written))
                answered = torch.jit.load(str(written))(given).numpy()
            else:
                answered = _onnx(module, probe, written)
        box, differ = policy.action_space, answered != actions
        if isinstance(box, spaces.Box):
            differ = np.abs(answered - actions) > TOLERANCE * np.maximum((box.high - box.low) / 2, 1.0)
        if answered.shape != actions.shape or differ.any():
            raise RuntimeError(f"what was written to {target.name} does not act as the policy does")
        seen = {f"observations.{key}": part for key, part in probe.items()} if isinstance(probe, Mapping) else {}
        np.savez(answers, allow_pickle=False, actions=actions, **(seen or {"observations": probe}))


def _onnx(module: nn.Module, probe: Observations, written: Path) -> np.ndarray:
    """Export, and what onnxruntime answers. Raises BadInput without the extra."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch writes ONNX with it
    except ImportError:
        raise BadInput("exporting .onnx needs onnx, onnxscript and onnxruntime: pip install '.[onnx]'") from None
    names = list(probe) if isinstance(probe, Mapping) else ["observations"]
    batch = torch.export.Dim("batch")
    rows = {key: {0: batch} for key in names} if isinstance(probe, Mapping) else {0: batch}
    torch.onnx.export(
        module,
        (),
        str(written),
        kwargs={"observations": obs_as_tensor(probe, torch.device("cpu"))},
        input_names=names,
        output_names=["actions"],
        dynamic_shapes={"observations": rows},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    inputs = dict(probe) if isinstance(probe, Mapping) else {"observations": probe}
    (answered,) = session.run(None, inputs)
    return np.asarray(answered)

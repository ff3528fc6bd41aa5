"""A policy as TorchScript and ONNX: read back by their own runtimes, it acts as it does here."""

import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces

from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.policies import Affine, Scaling, act_function, build_policy, probe_batch
from pipeline.policies.exports import FORMATS, export_network
from pipeline.policies.frozen import FrozenActor
from pipeline.policies.layers import Dense, FrozenNetwork, Normalized

FLAT, ACTIONS = spaces.Box(-1, 1, (4,)), spaces.Box(np.float32([-2, 0]), np.float32([2, 512]))
SPACES = {
    "box": (FLAT, ACTIONS),
    "discrete": (spaces.Discrete(3), spaces.Discrete(3)),
    "multi-discrete": (FLAT, spaces.MultiDiscrete([2, 3])),
    "multi-binary": (FLAT, spaces.MultiBinary(3)),
    "dict": (spaces.Dict({"a": FLAT, "b": spaces.Box(0, 255, (3, 36, 36), np.uint8)}), ACTIONS),
}


def scaled():
    units = Scaling(
        Affine(np.float32([0, 1, 2, 3]), np.float32([1, 2, 4, 8])), Affine(*np.float32([[0, 256], [2, 256]]))
    )
    return build_policy(FLAT, ACTIONS, Network(hidden=(8,)), 1, units)


def normalized():
    network = FrozenNetwork(
        layers=(Dense(inputs=4, outputs=2), "tanh"), rescaled=True, normalized=Normalized(epsilon=1e-8, clip=1.5)
    )
    actor = FrozenActor(FLAT, ACTIONS, network)
    rng = np.random.default_rng(0)
    state = {name: torch.as_tensor(rng.uniform(0.1, 1, tensor.shape)) for name, tensor in actor.state_dict().items()}
    actor.load_state_dict(state)
    return actor


def answers(path, observations) -> np.ndarray:
    """Of the runtime that people use for such files."""
    mapping = isinstance(observations, dict)
    if path.suffix == ".pt":
        parts = {key: torch.as_tensor(part) for key, part in observations.items()} if mapping else None
        return torch.jit.load(str(path))(parts or torch.as_tensor(observations)).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, observations if mapping else {"observations": observations})[0]


@pytest.mark.parametrize("case", [*SPACES, "in units", "normalized"])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_answers_as_the_policy_does_to_any_number_of_rows(case, ending, tmp_path):
    made = {"in units": scaled, "normalized": normalized}
    policy = made[case]() if case in made else build_policy(*SPACES[case], Network(hidden=(8,)), 1)
    path = tmp_path / f"policy{ending}"
    export_network(policy, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.expected.npz"]
    for rows in (1, 7):
        observations = probe_batch(policy.observation_space, rows)
        np.testing.assert_allclose(
            answers(path, observations), act_function(policy)(observations), rtol=1e-5, atol=1e-5
        )
    with np.load(tmp_path / f"{path.name}.expected.npz") as held:
        named = {key.removeprefix("observations."): held[key] for key in held.files if key != "actions"}
        observations = named.get("observations", named)
        np.testing.assert_array_equal(held["actions"], act_function(policy)(observations))


def test_an_existing_file_and_another_ending_are_refused(tmp_path):
    (tmp_path / "there.pt").touch()
    for name in ("there.pt", "policy.pth"):
        with pytest.raises(BadInput, match=r"must be a new file that ends in \.pt or \.onnx"):
            export_network(scaled(), tmp_path / name)

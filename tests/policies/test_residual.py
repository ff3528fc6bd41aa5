"""A residual policy is a frozen clone plus a correction: at first the clone, and afterwards the sum of both."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.files import strict_json
from pipeline.names import POLICY_SPEC_FILE
from pipeline.policies import (
    Affine,
    Scaling,
    act_function,
    build_policy,
    load_policy,
    probe_batch,
    save_policy,
    tensor_digests,
)
from pipeline.policies.exports import export_network
from pipeline.policies.networks import ResidualPolicy, name_in_residual
from pipeline.policies.sb3 import as_ppo
from pipeline.policies.transfer import transfer

FLAT = spaces.Box(-1, 1, (3,), np.float32)
PICTURE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
KEYED = spaces.Dict({"place": FLAT, "view": PICTURE})
PUSH = spaces.Box(np.float32([-50, 0]), np.float32([50, 512]))
UNITS = Scaling(Affine(*np.float32([[0, 1, 2], [1, 2, 4]])), Affine(*np.float32([[0, 256], [25, 256]])))
CASES = {
    "box": (FLAT, PUSH, Scaling()),
    "in units": (FLAT, PUSH, UNITS),
    "choice": (FLAT, spaces.Discrete(4), Scaling()),
    "several choices": (FLAT, spaces.MultiDiscrete([2, 3]), Scaling()),
    "yes or no": (FLAT, spaces.MultiBinary(3), Scaling()),
    "picture": (PICTURE, PUSH, Scaling()),
    "keyed": (KEYED, PUSH, Scaling(None, UNITS.actions)),
}
NETWORK = Network(hidden=(8, 4), image_features=4)


def made(case, tmp_path, hidden=(8, 4)):
    """A clone whose outputs are far from 0, and the residual policy that starts from it."""
    observed, acts, units = CASES[case]
    network = Network(hidden=hidden, image_features=4)
    clone = build_policy(observed, acts, network, 1, units)
    with torch.no_grad():
        clone.action_net.weight.mul_(100)
    save_policy(clone, tmp_path / "clone", {})
    policy = build_policy(observed, acts, network, 2, units, residual=True)
    proof = transfer(policy, str(tmp_path / "clone"), network, None)
    return clone, policy, proof


def corrected(policy):
    """Its correction is not zero any more."""
    with torch.no_grad():
        torch.nn.init.normal_(policy.action_net.correction.weight, std=20.0, generator=torch.Generator().manual_seed(3))
    return policy


@pytest.mark.parametrize("case", CASES)
def test_at_first_it_acts_as_its_clone_to_the_last_bit_and_says_so(case, tmp_path):
    clone, policy, proof = made(case, tmp_path)
    rows = probe_batch(clone.observation_space)
    assert np.array_equal(act_function(policy)(rows), act_function(clone)(rows))
    assert proof.tensors == tensor_digests(clone)
    assert proof.action_distance == 0.0
    with torch.no_grad():
        seen = policy.obs_to_tensor(rows)[0]
        assert torch.equal(policy.predict_values(seen), clone.predict_values(seen))


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_step_moves_the_correction_and_the_critic_and_never_the_clone(case, tmp_path):
    clone, policy, _ = made(case, tmp_path)
    rows = policy.obs_to_tensor(probe_batch(policy.observation_space, 8))[0]
    actions = torch.ones(policy(rows)[0].shape)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    for _ in range(2):  # the hidden layers of the correction have a gradient once its output is not zero
        values, likelihoods, _ = policy.evaluate_actions(rows, actions)
        (values.mean() + likelihoods.mean()).backward()
        optimizer.step()
    now, before = tensor_digests(policy), tensor_digests(clone)
    assert all(now[name_in_residual(name)] == digest for name, digest in before.items() if "policy_net" in name)
    assert all(now[f"action_net.clone.{part}"] == before[f"action_net.{part}"] for part in ("weight", "bias"))
    assert now["value_net.weight"] != before["value_net.weight"]
    assert policy.action_net.correction.weight.any()
    assert not any(part.requires_grad for part in policy.pi_features_extractor.parameters())


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_clone_plus_the_correction_in_every_form(case, tmp_path):
    clone, policy, _ = made(case, tmp_path)
    corrected(policy)
    rows = probe_batch(policy.observation_space, 20)
    acts = act_function(policy)(rows)
    assert not np.array_equal(acts, act_function(clone)(rows))
    np.testing.assert_allclose(acts, policy.predict(rows, deterministic=True)[0], rtol=1e-4, atol=1e-4)  # SB3's way
    save_policy(policy, tmp_path / "both", {})
    loaded = load_policy(tmp_path / "both")
    assert isinstance(loaded, ResidualPolicy)
    assert tensor_digests(loaded) == tensor_digests(policy)
    assert np.array_equal(act_function(loaded)(rows), acts)
    export_network(policy, tmp_path / "policy.pt")  # holds what it wrote to the policy itself
    exported = as_ppo(policy).policy
    np.testing.assert_allclose(acts, exported.predict(rows, deterministic=True)[0], rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        seen = policy.obs_to_tensor(rows)[0]
        np.testing.assert_allclose(policy.predict_values(seen), exported.predict_values(seen), rtol=1e-5, atol=1e-5)


def test_a_network_without_hidden_layers_has_a_correction_too(tmp_path):
    _, policy, _ = made("box", tmp_path, hidden=())
    rows = probe_batch(FLAT, 20)
    acts = act_function(corrected(policy))(rows)
    np.testing.assert_allclose(acts, as_ppo(policy).policy.predict(rows, deterministic=True)[0], rtol=1e-4, atol=1e-4)


def test_actions_of_a_residual_policy_are_those_computed_by_hand(tmp_path):
    _, policy, _ = made("in units", tmp_path, hidden=())
    with torch.no_grad():
        for part, weight in ((policy.action_net.clone, 0.5), (policy.action_net.correction, 0.25)):
            part.weight.fill_(weight)
            part.bias.zero_()
    # observations become (1, 1, 1), so the outputs are 1.5 of the clone and 0.75 more; times 25, and 256 + times 256
    assert act_function(policy)(np.float32([[1, 3, 6]])).tolist() == [[50, 512]]  # cut at the bounds
    with torch.no_grad():
        policy.action_net.correction.weight.fill_(-0.25)
    assert act_function(policy)(np.float32([[1, 3, 6]])).tolist() == [[0.75 * 25, 256 + 0.75 * 256]]


def test_a_residual_start_is_taken_whole(tmp_path):
    _, policy, _ = made("box", tmp_path)
    save_policy(corrected(policy), tmp_path / "both", {})
    other = build_policy(FLAT, PUSH, NETWORK, 5, residual=True)
    assert transfer(other, str(tmp_path / "both"), NETWORK, None).tensors == tensor_digests(policy)
    assert tensor_digests(other) == tensor_digests(policy)


def test_an_artifact_says_what_it_is_and_another_claim_is_refused(tmp_path):
    _, policy, _ = made("box", tmp_path)
    save_policy(policy, tmp_path / "both", {})
    spec = strict_json((tmp_path / "both" / POLICY_SPEC_FILE).read_bytes())
    assert spec["residual"] is True
    assert "residual" not in strict_json((tmp_path / "clone" / POLICY_SPEC_FILE).read_bytes())
    (tmp_path / "clone" / POLICY_SPEC_FILE).write_bytes((tmp_path / "both" / POLICY_SPEC_FILE).read_bytes())
    with pytest.raises(BadInput, match=r"tensor 'action_net.bias' is .*, its network needs none"):
        load_policy(tmp_path / "clone")

"""Weights arrive tensor by tensor, the evidence says so, and nothing else passes for what was certified."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.policies import (
    act_function,
    build_policy,
    policy_digest,
    probe_batch,
    save_policy,
    tensor_digests,
)
from pipeline.policies.transfer import Transfer, batch_digest, transfer

OBSERVATIONS = spaces.Box(-1, 1, (3,), np.float32)
TORQUE, CHOICE = spaces.Box(-2, 2, (1,), np.float32), spaces.Discrete(3)
NETWORK = Network(hidden=(16,))


def policy_of(seed: int, actions=TORQUE, observations=OBSERVATIONS):
    return build_policy(observations, actions, NETWORK, seed)


@pytest.fixture
def certified(tmp_path):
    policy, folder = policy_of(9), str(tmp_path / "policy")
    save_policy(policy, folder, {})
    return policy, folder, Transfer.between(policy, folder, 0.4, 3, 0.99)


def test_a_certificate_comes_back_equal_from_its_json_and_verifies(certified):
    policy, folder, certificate = certified
    assert Transfer.from_json(certificate.to_json()) == certificate
    certificate.verify(folder)
    assert certificate.tensors == tensor_digests(policy) and certificate.action_distance == 0.0
    assert certificate.parameter_count == sum(p.numel() for p in policy.parameters())
    without_critic = Transfer.between(policy, folder, float("nan"), 3, 0.99)
    assert without_critic.critic_explained_variance is None
    assert Transfer.from_json(without_critic.to_json()) == without_critic


def test_a_policy_that_is_not_the_certified_one_is_refused_by_tensor(certified):
    policy, folder, certificate = certified
    save_policy(policy, folder, {"by": "somebody else"})
    with pytest.raises(BadInput, match="policy_digest"):
        certificate.verify(folder)
    with torch.no_grad():
        policy.value_net.bias.add_(1.0)
    save_policy(policy, folder, {})
    with pytest.raises(BadInput, match=r"tensor 'value_net.bias' has digest"):
        certificate.verify(folder)


def test_a_doctored_certificate_does_not_verify(certified):
    _, folder, certificate = certified
    for changes, message in (
        ({"action_distance": 0.1}, "action_distance"),
        ({"probe_digest": "0" * 36}, "probe_digest"),
        ({"probe_count": 10**12}, "probe_count"),
        ({"parameter_count": 17}, "parameter_count"),
        ({"tensors": {}}, "only in one of them"),
    ):
        doctored = Transfer.from_json(json.dumps({**json.loads(certificate.to_json()), **changes}))
        with pytest.raises(BadInput, match=message):
            doctored.verify(folder)


def test_what_is_no_certificate_is_refused(certified):
    data = json.loads(certified[2].to_json())
    changed = (
        {"schema_version": 2}, {"gamma": "0.99"}, {"tensors": {"a": 1}}, {"tensor_count": True}, {"policy_digest": 1},
        {"critic_explained_variance": float("nan")}, {"extra": 1},
    )  # fmt: skip
    texts = ("", "[]", "{}", "[" * 50_000, '{"schema_version": 1}', *(json.dumps({**data, **c}) for c in changed))
    for text in texts:
        with pytest.raises(BadInput, match="transfer certificate"):
            Transfer.from_json(text)


def test_an_artifact_that_differs_from_the_policy_in_memory_is_not_certified(certified):
    with pytest.raises(RuntimeError, match="is not the one stored"):
        Transfer.between(policy_of(2), certified[1], 0.4, 3, 0.99)


def test_every_tensor_is_transferred_and_the_proof_says_which(certified):
    source, folder, _ = certified
    policy = policy_of(1)
    proof = transfer(policy, folder, NETWORK, initial_std=None)
    assert tensor_digests(policy) == tensor_digests(source) == proof.tensors
    assert proof.tensor_count == len(policy.state_dict()) == 9
    # actor and critic 3 -> 16 -> 1 each: 64 + 17, and one standard deviation
    assert proof.parameter_count == 2 * (64 + 17) + 1
    assert proof.action_distance == 0.0 and proof.policy_digest == policy_digest(folder)
    probe = probe_batch(policy.observation_space)
    assert proof.probe_digest == batch_digest(probe)
    assert np.array_equal(act_function(policy)(probe), act_function(source)(probe))


def test_the_initial_standard_deviation_is_set_and_nothing_else_changes(certified, tmp_path):
    source, folder, _ = certified
    policy = policy_of(1)
    assert transfer(policy, folder, NETWORK, initial_std=0.2).tensors == tensor_digests(source)  # as it came
    changed = [n for n, d in tensor_digests(policy).items() if d != tensor_digests(source)[n]]
    assert changed == ["log_std"] and policy.log_std.exp().tolist() == pytest.approx([0.2])
    save_policy(policy_of(9, CHOICE), tmp_path / "choice", {})
    assert transfer(policy_of(1, CHOICE), str(tmp_path / "choice"), NETWORK, initial_std=0.2).action_distance == 0.0


def test_a_policy_of_another_network_or_task_is_refused_by_name(certified):
    with pytest.raises(BadInput, match=r"has network.hidden = \[16\], training.network.hidden is \[32\]"):
        transfer(policy_of(1), certified[1], Network(hidden=(32,)), None)
    with pytest.raises(BadInput, match="observation_space"):
        transfer(policy_of(1, observations=spaces.Box(-1, 1, (4,), np.float32)), certified[1], NETWORK, None)

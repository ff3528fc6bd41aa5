"""A policy artifact gives back the policy that was saved, and nothing else is let in."""

import json
import re
import shutil
import struct
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO

from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.policies import (
    act_function,
    build_policy,
    load_policy,
    network_of,
    policy_arguments,
    policy_digest,
    probe_batch,
    read_spec,
    save_policy,
    tensor_digests,
    tensors_of,
    weights_digest,
)
from pipeline.policies.acting import dense, tanh
from pipeline.policies.artifact import MAX_SPEC_BYTES
from pipeline.policies.networks import action_distribution

BOX = spaces.Box(-1, 1, (5,), np.float32)
ACTIONS = {"box": spaces.Box(-2, 2, (2,), np.float32), "discrete": spaces.Discrete(3)}
NETWORK = Network(hidden=(16, 8))


@pytest.fixture(params=sorted(ACTIONS))
def policy(request):
    return build_policy(BOX, ACTIONS[request.param], NETWORK, seed=1)


@pytest.fixture
def folder(policy, tmp_path):
    save_policy(policy, tmp_path / "policy", {"run_id": "abc"})
    return tmp_path / "policy"


def test_what_is_saved_is_what_is_loaded(policy, folder):
    loaded = load_policy(folder)
    assert tensor_digests(loaded) == tensor_digests(policy)
    assert (loaded.observation_space, loaded.action_space) == (policy.observation_space, policy.action_space)
    assert network_of(loaded) == NETWORK
    probe = probe_batch(BOX)
    assert np.array_equal(act_function(loaded)(probe), act_function(policy)(probe))
    assert read_spec(folder).provenance == {"run_id": "abc"}


def test_saving_the_same_policy_twice_gives_the_same_bytes(policy, folder, tmp_path):
    assert save_policy(policy, tmp_path / "again", {"run_id": "abc"}) == policy_digest(folder)


def test_saving_over_an_artifact_replaces_it_and_leaves_nothing_behind(policy, folder):
    other = build_policy(policy.observation_space, policy.action_space, NETWORK, seed=2)
    save_policy(other, folder, {})
    assert weights_digest(load_policy(folder)) == weights_digest(other)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["policy"]


def test_the_digest_changes_with_every_file(folder):
    before = policy_digest(folder)
    assert len(before) == 36
    for name in ("policy.json", "policy.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert policy_digest(folder) != before
        (folder / name).write_bytes(content)
    assert policy_digest(folder) == before


def test_the_weights_follow_from_the_seed_and_are_those_ppo_starts_from():
    space = gym.make("Pendulum-v1")
    ppo = PPO(
        "MlpPolicy", space, seed=3, policy_kwargs=policy_arguments(space.observation_space, NETWORK), device="cpu"
    )
    ours = build_policy(ppo.observation_space, ppo.action_space, NETWORK, seed=3)
    assert weights_digest(ours) == weights_digest(ppo.policy)
    assert weights_digest(build_policy(ppo.observation_space, ppo.action_space, NETWORK, seed=4)) != weights_digest(
        ours
    )


def test_building_a_policy_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_policy(BOX, ACTIONS["box"], NETWORK, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_one_changed_weight_changes_exactly_its_digest(policy):
    before = tensor_digests(policy)
    with torch.no_grad():
        policy.action_net.bias[0] += 1e-6
    after = tensor_digests(policy)
    assert [name for name in before if before[name] != after[name]] == ["action_net.bias"]


def test_actions_equal_those_of_sb3(policy):
    observations = probe_batch(BOX, 64)
    assert np.allclose(
        act_function(policy)(observations), policy.predict(observations, deterministic=True)[0], rtol=0, atol=1e-6
    )


def test_actions_stay_inside_the_action_space():
    policy = build_policy(BOX, ACTIONS["box"], NETWORK, seed=1)
    with torch.no_grad():
        policy.action_net.bias.fill_(50.0)
    assert (act_function(policy)(probe_batch(BOX)) == 2.0).all()
    assert (act_function(policy, deterministic=False)(probe_batch(BOX)) == 2.0).all()


@pytest.mark.parametrize("hidden", [(128, 128), (64, 64), (33,), (8,), (1, 3)])
@pytest.mark.parametrize("dims", [1, 2, 8])
def test_what_a_row_does_depends_neither_on_the_batch_nor_on_its_place(hidden, dims):
    policy = build_policy(BOX, spaces.Box(-1, 1, (dims,)), Network(hidden=hidden), seed=1)
    with torch.no_grad():
        policy.action_net.weight.mul_(50)
    act, observations = act_function(policy), probe_batch(BOX, 110)
    whole = act(observations)
    for rows in range(1, 110):
        assert np.array_equal(act(observations[:rows]), whole[:rows]), rows
        assert np.array_equal(act(observations[-rows:]), whole[-rows:]), rows
    shuffled = np.random.default_rng(0).permutation(110)
    assert np.array_equal(act(observations[shuffled]), whole[shuffled])


@pytest.mark.parametrize("inputs", [1, 7, 8, 21, 64])
def test_a_dense_layer_is_the_sum_that_is_written_rounded_after_each_operation(inputs):
    rng = np.random.default_rng(inputs)
    rows, weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((5, inputs), (inputs, 19), (19,)))
    expected = np.tile(bias, (5, 1))
    for k in range(inputs):
        expected = expected + rows[:, k : k + 1] * weight[k]  # float32, one operation after the other
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(dense(rows, weight, bias), expected)


def test_tanh_is_within_4e_7_odd_and_keeps_what_is_no_number():
    x = np.linspace(-12, 12, 100_001, dtype=np.float32).reshape(1, -1)
    np.testing.assert_allclose(tanh(x), np.tanh(x.astype(np.float64)), rtol=0, atol=4e-7)
    np.testing.assert_array_equal(tanh(-x), -tanh(x))
    odd = tanh(np.array([[0.0, np.inf, -np.inf, 3e38, np.nan]], np.float32))[0]
    assert odd[0] == 0 and np.isnan(odd[4]) and np.abs(odd[1:4] - [1, -1, 1]).max() <= 4e-7


def test_the_act_function_is_the_policy_as_it_was(policy):
    act, probe = act_function(policy), probe_batch(BOX)
    before = act(probe)
    with torch.no_grad():
        policy.action_net.weight.mul_(-3).add_(0.1)
        policy.action_net.bias.add_(torch.arange(len(policy.action_net.bias)))
    assert np.array_equal(act(probe), before)
    assert not np.array_equal(act_function(policy)(probe), before)


def test_a_probe_batch_is_fixed_and_inside_its_space():
    mixed = spaces.Box(np.array([0.0, -np.inf], np.float32), np.array([3.0, np.inf], np.float32))
    probe = probe_batch(mixed)
    assert np.array_equal(probe, probe_batch(mixed)) and probe.dtype == np.float32
    assert probe[:, 0].min() >= 0 and probe[:, 0].max() <= 3 and probe[:, 0].std() > 0.5
    assert 0.8 < probe[:, 1].std() < 1.2


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3, start=1), spaces.Dict({"a": BOX}), spaces.MultiDiscrete([2], start=[1])]
)
def test_action_spaces_that_ppo_cannot_act_in_are_refused(space):
    with pytest.raises(BadInput, match="action space"):
        action_distribution(space)


def _edit_spec(folder: Path, **changes) -> None:
    spec = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps({**spec, **changes}))


def _edit_network(folder: Path, hidden: list[int], activation: str = "tanh") -> None:
    _edit_spec(folder, network={"hidden": hidden, "activation": activation})


def _edit_tensors(folder: Path, edit) -> None:
    tensors = load_file(folder / "policy.safetensors")
    edit(tensors)
    save_file(tensors, folder / "policy.safetensors")


def _set(name, value):
    return lambda tensors: tensors.__setitem__(name, value(tensors[name]))


def _put_nan(tensor):
    tensor[0] = float("nan")
    return tensor


BIAS = "action_net.bias"
BROKEN = {
    "no weights": (lambda f: (f / "policy.safetensors").unlink(), "no such file.*policy.safetensors"),
    "no spec": (lambda f: (f / "policy.json").unlink(), "no such file.*policy.json"),
    "not JSON": (lambda f: (f / "policy.json").write_text("{"), "not valid JSON"),
    "NaN in the spec": (lambda f: (f / "policy.json").write_text('{"a": NaN}'), "not valid JSON"),
    "a key twice": (lambda f: (f / "policy.json").write_text('{"a": 1, "a": 2}'), "twice"),
    "deep nesting": (lambda f: (f / "policy.json").write_text("[" * 100_000), "not valid JSON"),
    "a list": (lambda f: (f / "policy.json").write_text("[]"), r"\(top level\)"),
    "unknown key": (lambda f: _edit_spec(f, code="x"), "unknown key 'code'. Allowed here: action_distribution, "),
    "too large a spec": (lambda f: (f / "policy.json").write_text(" " * (MAX_SPEC_BYTES + 1)), "larger than"),
    "another version": (lambda f: _edit_spec(f, format_version=2), "format_version = 2"),
    "a true version": (lambda f: _edit_spec(f, format_version="1"), "format_version"),
    "unknown space": (lambda f: _edit_spec(f, observation_space={"type": "Text"}), "space"),
    "a space that is no space": (lambda f: _edit_spec(f, action_space=3), "space"),
    "unknown activation": (lambda f: _edit_network(f, [4], "os.system"), r"network\.activation = "),
    "too many layers": (lambda f: _edit_network(f, [4] * 17), "up to 16"),
    "a huge network": (lambda f: _edit_network(f, [10**6] * 4), "larger than"),
    "a negative width": (lambda f: _edit_network(f, [-4]), r"network\.hidden\.0 = -4"),
    "a wrong distribution": (lambda f: _edit_spec(f, action_distribution="squashed"), "action_distribution"),
    "a return scale of 0": (lambda f: _edit_spec(f, return_scale=0), "return_scale = 0"),
    "provenance of another kind": (lambda f: _edit_spec(f, provenance=[]), r"provenance = \[\]"),
    "another network": (lambda f: _edit_network(f, [16]), "its network needs"),
    "another width": (lambda f: _edit_network(f, [16, 9]), "its network needs"),
    "empty weights": (lambda f: (f / "policy.safetensors").write_bytes(b""), "not a readable safetensors"),
    "cut weights": (
        lambda f: (f / "policy.safetensors").write_bytes((f / "policy.safetensors").read_bytes()[:-4]),
        "not a readable safetensors",
    ),
    "a header of 80 TB": (
        lambda f: (f / "policy.safetensors").write_bytes(struct.pack("<Q", 80 * 10**12) + b"{}"),
        "not a readable safetensors",
    ),
    "too many bytes": (lambda f: (f / "policy.safetensors").write_bytes(bytes(3_000_000)), "larger than"),
    "a pickle": (lambda f: torch.save({"a": 1}, f / "policy.safetensors"), "not a readable safetensors"),
    "a missing tensor": (lambda f: _edit_tensors(f, lambda t: t.pop(BIAS)), "action_net.bias' is none"),
    "one tensor more": (lambda f: _edit_tensors(f, lambda t: t.update(x=torch.zeros(1))), "'x' is .* needs none"),
    "a wrong shape": (lambda f: _edit_tensors(f, _set(BIAS, lambda t: t.repeat(2))), "action_net.bias"),
    "a wrong type": (lambda f: _edit_tensors(f, _set(BIAS, lambda t: t.half())), "float16"),
    "not a number": (lambda f: _edit_tensors(f, _set(BIAS, _put_nan)), "not finite"),
    "a folder for a file": (lambda f: ((f / "policy.json").unlink(), (f / "policy.json").mkdir()), "no such file"),
}


def test_a_broken_artifact_is_refused_in_one_line(folder, tmp_path):
    others = {}
    for case, (breaking, message) in BROKEN.items():
        breaking(Path(shutil.copytree(folder, tmp_path / case)))
        try:
            load_policy(tmp_path / case)
            others[case] = "it was loaded"
        except BadInput as error:
            if not re.search(message, str(error)) or "\n" in str(error) or len(str(error)) >= 700:
                others[case] = str(error)
    assert others == {}


def test_a_network_that_the_weights_cannot_fill_is_not_built(folder, monkeypatch):
    monkeypatch.setattr("pipeline.policies.artifact.build_policy", lambda *_, **__: pytest.fail("a network was built"))
    for hidden in ([9000, 9000], [10**7]):
        _edit_network(folder, hidden)
        with pytest.raises(BadInput, match=r"hidden layers \[.*\] alone need .* not those of its network"):
            load_policy(folder)


def test_a_missing_folder_is_refused(tmp_path):
    for read in (load_policy, policy_digest):
        with pytest.raises(BadInput, match="no such file"):
            read(tmp_path / "nowhere")


def test_a_loaded_policy_holds_copies_of_its_tensors(policy, folder):
    loaded = load_policy(folder)
    shutil.rmtree(folder)
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(loaded).values())

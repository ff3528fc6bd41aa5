"""A policy reads and answers in the units of its task, whatever these are, wherever it goes."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from stable_baselines3.common.distributions import DiagGaussianDistribution

from pipeline.config.loading import validate
from pipeline.config.training import Network, ScalingSettings
from pipeline.data import Trajectories
from pipeline.data.observations import to_rows
from pipeline.errors import BadInput
from pipeline.policies import (
    UNSCALED,
    Affine,
    Scaling,
    act_function,
    build_policy,
    load_policy,
    measured_scaling,
    network_of,
    probe_batch,
    save_policy,
    scaling_by_bounds,
    scaling_of,
    tensor_digests,
    tensors_of,
    weights_digest,
)
from pipeline.policies.sb3 import export_sb3_zip
from pipeline.policies.transfer import transfer

INF = np.inf
NETWORK = Network(hidden=(16, 8))
TABLE = spaces.Box(0, 512, (3,), np.float32)
PUSH = spaces.Box(0, 512, (2,), np.float32)
KEYED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (3, 36, 36), np.uint8),
        "place": spaces.Box(0, 512, (2,), np.float32),
        "gear": spaces.Discrete(3),
    }
)


def affine(offset, scale):
    return Affine(np.array(offset, np.float32), np.array(scale, np.float32))


IN_UNITS = Scaling(affine([256, 100, 0], [256, 5, 1]), affine([256, 128], [256, 64]))


def shown(rows, acted):
    """An episode with these rows of observations, of which the last is acted on no more, and one without a scale."""
    steps, other = len(rows) - 1, 2
    actions = np.concatenate([np.array(acted, np.float32), np.full((other, *np.shape(acted)[1:]), 9, np.float32)])
    strange = np.zeros(other + 1, rows.dtype) if rows.dtype.names else np.full((other + 1, *rows.shape[1:]), 1e5)
    flags = np.zeros(steps + other, bool)
    return Trajectories(
        observations=np.concatenate([rows, strange.astype(rows.dtype)]),
        actions=actions,
        executed_actions=actions,
        rewards=np.zeros(steps + other, np.float32),
        terminations=flags,
        truncations=flags,
        lengths=np.array([steps, other]),
        seeds=np.array([1, 2]),
        scenarios=np.array(["a", "a"]),
    )


def measured(space, rows, actions=spaces.Discrete(2), acted=((0,),)):  # noqa: B008
    data = shown(np.array(rows, np.float32), [*acted] + [acted[0]] * (len(rows) - 1 - len(acted)))
    return measured_scaling(space, actions, NETWORK, ScalingSettings(), data, np.array([0]))


def test_each_number_is_scaled_by_its_bounds_where_these_are_used_and_by_mean_and_spread_elsewhere():
    low, high = [0, 0, -INF, -INF, 0], [512, 512, INF, INF, 10]
    space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
    # the whole range; 2 of 512; no bounds; no bounds and constant; bounds and constant
    found = measured(space, [[0, 100, 1000, 7, 3], [512, 102, 1004, 7, 3]]).observations
    assert found.offset.tolist() == [256, 101, 1002, 7, 5]
    assert found.scale.tolist() == [256, 1, 2, 1, 5]


def test_half_the_range_is_used_and_less_is_not():
    space = spaces.Box(0, 8, (2,), np.float32)
    found = measured(space, [[1, 1], [5, 4.5]]).observations
    assert found.offset.tolist() == [4, 2.75]
    assert found.scale.tolist() == [4, 1.75]


def test_what_was_shown_once_is_at_most_ten():
    rows = np.zeros((1001, 1))
    rows[0] = 1001  # mean 1, standard deviation 31.6, so 31.6 of these away
    found = measured(spaces.Box(-INF, INF, (1,), np.float32), rows).observations
    assert found.inward(np.float32([1001])) == pytest.approx(10)


def test_a_space_of_unit_size_stays_as_it_is():
    unit = spaces.Box(-1, 1, (2,), np.float32)
    assert not measured(unit, [[0, 0.1], [0, 0.1], [0, 0.1]], unit, [[0, 0], [0.5, 0]])
    assert measured(spaces.Box(-1, 1.5, (2,), np.float32), [[0, 0.1], [0, 0.1], [0, 0.1]]).observations is not None


def test_pictures_and_choices_stay_and_keys_follow_the_order_of_the_network():
    network = Network(hidden=(8,), image_features=4)
    rows = to_rows(KEYED, {"image": np.zeros((2, 3, 36, 36)), "place": [[0, 100], [512, 102]], "gear": [0, 2]})
    data = shown(rows, [[0]])
    found = measured_scaling(KEYED, spaces.Discrete(2), network, ScalingSettings(), data, np.array([0]))
    order = list(KEYED.spaces)
    parts = {"image": [0] * 4, "place": [256, 101], "gear": [0] * 3}
    assert found.observations.offset.tolist() == [number for key in order for number in parts[key]]
    assert found.actions is None


def test_without_demonstrations_only_what_is_large_is_scaled_and_by_its_bounds():
    low, high = np.float32([0, -10, -INF, 0]), np.float32([512, 10, INF, 3e38])
    found = scaling_by_bounds(spaces.Box(low, high), spaces.Box(-2, 2, (1,)), NETWORK)
    assert found.observations.offset.tolist() == [256, 0, 0, 0]
    assert found.observations.scale.tolist() == [256, 1, 1, 1]
    assert found.actions is None
    assert scaling_by_bounds(TABLE, PUSH, NETWORK).actions.scale.tolist() == [256, 256]
    figures = validate(ScalingSettings, {"observations": {"all": {"offset": 7.0}}}, "test")
    by_hand = scaling_by_bounds(TABLE, PUSH, NETWORK, figures)  # what is not given is as it was
    assert by_hand.observations.offset.tolist() == [7, 7, 7]
    assert by_hand.actions.scale.tolist() == [256, 256]
    assert not scaling_by_bounds(TABLE, PUSH, NETWORK, ScalingSettings(measured=False))
    bytes_ = spaces.Box(0, 255, (4,), np.uint8)
    assert scaling_by_bounds(bytes_, spaces.Discrete(2), NETWORK).observations.scale.tolist() == [127.5] * 4


def given(observation_space, action_space=PUSH, network=NETWORK, **figures):
    settings = validate(ScalingSettings, {"measured": False, **figures}, "test")
    nothing = {key: np.zeros((2, *part.shape)) for key, part in parts_of(observation_space)}
    rows = to_rows(observation_space, nothing) if nothing else np.zeros((2, *observation_space.shape), np.float32)
    data = shown(rows, [np.zeros(action_space.shape)])
    return measured_scaling(observation_space, action_space, network, settings, data, np.array([0]))


def parts_of(space):
    return space.spaces.items() if isinstance(space, spaces.Dict) else ()


def test_given_figures_are_taken_for_all_elements_or_one_each():
    found = given(TABLE, observations={"all": {"offset": [1.0, 2.0, 3.0], "scale": 4.0}}, actions={"scale": 2.0})
    assert found.observations.offset.tolist() == [1, 2, 3]
    assert found.observations.scale.tolist() == [4, 4, 4]
    assert found.actions.offset.tolist() == [0, 0]
    of_key = given(spaces.Dict({"a": TABLE, "b": PUSH}), observations={"b": {"offset": 7.0}})
    assert of_key.observations.offset.tolist() == [0, 0, 0, 7, 7]
    assert not given(TABLE)


@pytest.mark.parametrize(
    ("space", "acts", "figures", "words"),
    [
        (TABLE, PUSH, {"observations": {"all": {"scale": [1.0, 2.0]}}}, "scaling.observations.all.scale has 2 figures"),
        (TABLE, PUSH, {"actions": {"offset": [1.0] * 3}}, "scaling.actions.offset has 3 figures"),
        (TABLE, PUSH, {"observations": {"place": {"scale": 2.0}}}, "scaling.observations.place is of no numbers"),
        (KEYED, PUSH, {"observations": {"image": {"scale": 2.0}}}, "scaling.observations.image is of no numbers"),
        (KEYED, PUSH, {"observations": {"all": {"scale": 2.0}}}, "scaling.observations.all is of no numbers"),
        (TABLE, spaces.Discrete(2), {"actions": {"scale": 2.0}}, "scaling.actions is of no numbers"),
        (TABLE, PUSH, {"actions": {"scale": 1e-60}}, "not above 0"),
        (TABLE, PUSH, {"actions": {"offset": 1e60}}, "not finite"),
    ],
)
def test_figures_that_do_not_fit_are_refused_by_name(space, acts, figures, words):
    with pytest.raises(BadInput, match=words):
        given(space, acts, **figures)


def test_people_read_the_figures():
    figures = {"observations": {"offset": [256, 100, 0], "scale": [256, 5, 1]}}
    assert IN_UNITS.to_json() == {**figures, "actions": {"offset": [256, 128], "scale": [256, 64]}}
    assert UNSCALED.to_json() == {}


def test_inward_and_outward_are_inverse():
    raw = np.float32([[0, 256], [512, 64]])
    assert IN_UNITS.actions.inward(raw).tolist() == [[-1, 2], [1, -1]]
    assert np.array_equal(IN_UNITS.actions.outward(IN_UNITS.actions.inward(raw)), raw)


# --- policies in units -----------------------------------------------------------------------------------------------


def twins(seed=1):
    """A policy in units, and one of the same weights without them."""
    return build_policy(TABLE, PUSH, NETWORK, seed, IN_UNITS), build_policy(TABLE, PUSH, NETWORK, seed)


def test_a_scaled_policy_is_the_plain_one_between_two_affine_maps():
    scaled, plain = twins()
    rows = probe_batch(TABLE, 50)
    inside = torch.as_tensor(IN_UNITS.observations.inward(rows))
    raw, unit = scaled.get_distribution(torch.as_tensor(rows)), plain.get_distribution(inside)
    assert np.allclose(raw.mode().detach(), IN_UNITS.actions.outward(unit.mode().detach().numpy()), rtol=1e-6)
    assert raw.distribution.stddev[0].tolist() == pytest.approx([256, 64])
    assert torch.equal(scaled.predict_values(torch.as_tensor(rows)), plain.predict_values(inside))
    # a density of numbers that are 256 and 64 times as large is as much smaller
    actions = torch.as_tensor(probe_batch(PUSH, 50))
    there = unit.log_prob(torch.as_tensor(IN_UNITS.actions.inward(actions.numpy())))
    stretch = np.log(256 * 64)
    assert torch.allclose(raw.log_prob(actions), there - stretch, atol=1e-4)
    assert torch.allclose(raw.entropy(), unit.entropy() + stretch)


def test_what_nothing_scales_is_the_policy_that_it_always_was():
    plain = build_policy(TABLE, PUSH, NETWORK, 1)
    assert type(build_policy(TABLE, PUSH, NETWORK, 1, UNSCALED)) is type(plain)
    assert not scaling_of(plain)
    weights = [name for name in tensor_digests(twins()[0]) if "offset" not in name and not name.endswith("scale")]
    assert weights == list(tensor_digests(plain))


def test_actions_are_those_of_sb3_and_a_row_follows_from_itself_alone():
    policy = twins()[0]
    with torch.no_grad():
        policy.action_net.weight.mul_(50)
    rows = probe_batch(TABLE, 64)
    act = act_function(policy)
    assert np.allclose(act(rows), policy.predict(rows, deterministic=True)[0], rtol=0, atol=1e-3)
    assert all(np.array_equal(act(rows[i : i + 1])[0], act(rows)[i]) for i in range(64))
    assert (act(rows) >= 0).all() and (act(rows) <= 512).all() and np.ptp(act(rows)) > 100


@pytest.mark.parametrize("observed", [TABLE, KEYED])
def test_an_artifact_holds_its_units(observed, tmp_path):
    network = Network(hidden=(8,), image_features=4)
    key = "place" if observed is KEYED else "all"
    units = given(observed, PUSH, network, observations={key: {"scale": 256.0}}, actions={"scale": 3.0})
    policy = build_policy(observed, PUSH, network, 1, units)
    save_policy(policy, tmp_path / "policy", {})
    loaded = load_policy(tmp_path / "policy")
    assert json.loads((tmp_path / "policy" / "policy.json").read_text())["scaled"] == ["observations", "actions"]
    assert scaling_of(loaded).digest == units.digest != UNSCALED.digest
    assert (network_of(loaded), tensor_digests(loaded)) == (network_of(policy), tensor_digests(policy))
    probe = probe_batch(observed, 20)
    assert np.array_equal(act_function(loaded)(probe), act_function(policy)(probe))
    other = build_policy(observed, PUSH, network, 1, Scaling(units.observations, affine([1, 1], [2, 2])))
    assert weights_digest(other) != weights_digest(policy)


@pytest.mark.parametrize(("value", "words"), [(0.0, "not above 0"), (-1.0, "not above 0"), (np.nan, "not finite")])
def test_an_artifact_that_divides_by_nothing_is_refused(value, words, tmp_path):
    save_policy(twins()[0], tmp_path, {})
    tensors = load_file(tmp_path / "policy.safetensors")
    for name in tensors:
        if name.endswith("extractor.scale"):
            tensors[name][1] = value
    save_file(tensors, tmp_path / "policy.safetensors")
    with pytest.raises(BadInput, match=words):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("observed", "acts", "claimed"),
    [(TABLE, spaces.Discrete(2), "actions"), (KEYED["image"], PUSH, "observations"), (TABLE, PUSH, "rewards")],
)
def test_an_artifact_that_claims_to_scale_what_is_no_number_is_refused(observed, acts, claimed, tmp_path):
    save_policy(build_policy(observed, acts, NETWORK, 1), tmp_path, {})
    spec = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**spec, "scaled": [claimed]}))
    with pytest.raises(BadInput, match="scaled"):
        load_policy(tmp_path)


def test_a_start_of_other_units_is_refused(tmp_path):
    scaled, plain = twins()
    save_policy(scaled, tmp_path, {})
    with pytest.raises(BadInput, match="another scaling"):
        transfer(plain, str(tmp_path), NETWORK, None)
    fresh = build_policy(TABLE, PUSH, NETWORK, 2, IN_UNITS)
    transfer(fresh, str(tmp_path), NETWORK, 0.25)
    assert fresh.action_net.weight.equal(scaled.action_net.weight)
    distribution = fresh.get_distribution(torch.as_tensor(probe_batch(TABLE, 1)))
    assert isinstance(distribution, DiagGaussianDistribution)
    assert distribution.distribution.stddev[0].tolist() == pytest.approx([64, 16])  # a quarter of a unit


LOADED_ELSEWHERE = """
import sys
from pathlib import Path
sys.modules["pipeline"] = None  # not to be had
import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

class Still(gym.Env):  # it goes on learning, too
    def __init__(self, model):
        self.observation_space, self.action_space = model.observation_space, model.action_space
    def reset(self, **_):
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), float(action.sum()), False, True, {}

for folder in map(Path, sys.argv[1:]):
    model = PPO.load(folder / "policy.zip", device="cpu")
    given = np.load(folder / "rows.npz")
    keyed = {name: given[name] for name in given.files}
    rows = keyed.get("rows", keyed)
    values = model.policy.predict_values(model.policy.obs_to_tensor(rows)[0]).detach().numpy()
    np.savez(folder / "done.npz", actions=model.predict(rows, deterministic=True)[0], values=values,
             std=model.policy.log_std.exp().detach().numpy())
    longer = PPO.load(folder / "policy.zip", env=Still(model), device="cpu", n_steps=64)
    longer.learn(64)
    assert not longer.policy.action_net.weight.equal(model.policy.action_net.weight)
"""


@pytest.mark.slow
def test_an_exported_zip_acts_the_same_in_raw_units_and_learns_on_where_this_package_is_not(tmp_path):
    policies = {}
    for observed, hidden in itertools.product([TABLE, KEYED], [(16, 8), ()]):
        network = Network(hidden=hidden, image_features=4)
        key = "place" if observed is KEYED else "all"
        figures = {"observations": {key: {"offset": 256.0, "scale": 256.0}}, "actions": {"offset": 99.0, "scale": 7.0}}
        policy = build_policy(observed, PUSH, network, 1, given(observed, PUSH, network, **figures))
        with torch.no_grad():
            policy.action_net.weight.mul_(30)
            policy.action_net.bias.add_(0.3)
        folder = tmp_path / str(len(policies))
        folder.mkdir()
        export_sb3_zip(policy, folder / "policy.zip")
        rows = probe_batch(observed, 30)
        np.savez(folder / "rows.npz", **(rows if observed is KEYED else {"rows": rows}))
        policies[folder] = policy, rows
    subprocess.run([sys.executable, "-c", LOADED_ELSEWHERE, *map(str, policies)], check=True)
    for folder, (policy, rows) in policies.items():
        done = np.load(folder / "done.npz")
        assert np.allclose(done["actions"], act_function(policy)(rows), rtol=1e-5, atol=1e-4)
        with torch.no_grad():
            values = policy.predict_values(policy.obs_to_tensor(rows)[0]).numpy()
        assert np.allclose(done["values"], values, rtol=1e-5, atol=1e-5)
        assert done["std"] == pytest.approx([7, 7])


def test_what_a_zip_cannot_hold_is_refused_by_name(tmp_path):
    far = Scaling(affine([0, 1e6, 0], [1, 1, 1]), None)
    with pytest.raises(BadInput, match="number 1 of the observation is scaled around 1e\\+06 by 1"):
        export_sb3_zip(build_policy(TABLE, PUSH, NETWORK, 1, far), tmp_path / "policy.zip")
    assert not list(tmp_path.iterdir())


def test_the_tensors_of_a_policy_carry_its_units():
    scaled, other = twins()[0], build_policy(TABLE, PUSH, NETWORK, 2, IN_UNITS)
    other.load_state_dict(tensors_of(scaled))
    assert scaling_of(other).digest == IN_UNITS.digest

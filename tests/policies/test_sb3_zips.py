"""SB3 zips: read without unpickling, equal in every action; what cannot be read for certain is refused by name."""

import base64
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from pipeline.cli import ask
from pipeline.config.training import Network
from pipeline.config.zoo import read_zoo_config
from pipeline.envs.time_feature import TimeFeature
from pipeline.errors import BadInput
from pipeline.policies import (
    act_function,
    build_policy,
    load_policy,
    load_trainable,
    network_of,
    probe_batch,
    save_policy,
    scaling_of,
    tensor_digests,
)
from pipeline.policies.exports import export_network
from pipeline.policies.frozen import FrozenActor
from pipeline.policies.layers import Dense, FrozenNetwork, Normalized
from pipeline.policies.sb3 import export_sb3_zip, import_sb3_zip
from pipeline.policies.sb3_actor import inspect_sb3_zip
from pipeline.policies.sb3_zip import read_sb3_zip
from pipeline.policies.transfer import transfer

OBSERVATIONS, ACTIONS = spaces.Box(-1, 1, (4,)), spaces.Box(-2, 2, (2,))


class Still(gym.Env):
    observation_space, action_space = OBSERVATIONS, ACTIONS


class StillDiscrete(Still):
    action_space = spaces.Discrete(3)


class StillDict(Still):
    observation_space = spaces.Dict({"a": OBSERVATIONS, "b": spaces.Box(0, 255, (3, 36, 36), np.uint8)})


class StillPictures(Still):
    observation_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)


class StillMultiDiscrete(Still):
    action_space = spaces.MultiDiscrete([2, 3])


class Moving(Still):
    """Random observations of different spreads, so that there is something to normalize."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        return self._observation(), 0.0, bool(self.np_random.random() < 0.1), False, {}

    def _observation(self):
        return (self.np_random.uniform(-1, 1, 4) * [0.1, 0.5, 1.0, 0.0]).astype(np.float32)


class Custom(torch.nn.Module):
    pass


def saved(path: Path, env=Still, algorithm=PPO, policy="MlpPolicy", **kwargs) -> Path:
    settings = {"net_arch": [16, 8], **kwargs.pop("policy_kwargs", {})}
    algorithm(policy, env(), policy_kwargs=settings, device="cpu", seed=1, **kwargs).save(path)
    return path


def remade(source: Path, target: Path, **members: bytes | None) -> Path:
    """A copy of a zip with members replaced, or left out with None; `policy_pth` stands for policy.pth."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        content = {name: old.read(name) for name in old.namelist()}
        content.update({name.replace("_pth", ".pth"): data for name, data in members.items()})
        for name, data in content.items():
            if data is not None:
                new.writestr(name, data)
    return target


def settings_of(path: Path) -> dict:
    return json.loads(zipfile.ZipFile(path).read("data"))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(zipfile.ZipFile(path).read("policy.pth")), weights_only=True)


def packed(thing, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, **kwargs)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("sb3") / "theirs.zip", policy_kwargs={"activation_fn": torch.nn.ReLU})


@pytest.mark.parametrize(
    ("env", "kwargs"),
    [
        (Still, {}),
        (Still, {"policy_kwargs": {"activation_fn": torch.nn.ReLU}}),
        (Still, {"policy_kwargs": {"net_arch": {"pi": [12], "vf": [12]}, "ortho_init": False, "log_std_init": -1.0}}),
        (StillDiscrete, {"policy_kwargs": {"net_arch": []}}),
        (StillDiscrete, {"algorithm": A2C}),
    ],
)
def test_an_imported_policy_acts_and_judges_as_the_original(env, kwargs, tmp_path):
    path = saved(tmp_path / "theirs.zip", env, **kwargs)
    policy = import_sb3_zip(path, env.observation_space, env.action_space)
    original = kwargs.get("algorithm", PPO).load(path, device="cpu").policy
    observations = np.random.default_rng(0).uniform(-1, 1, (64, 4)).astype(np.float32)
    assert np.array_equal(
        policy.predict(observations, deterministic=True)[0], original.predict(observations, deterministic=True)[0]
    )
    with torch.no_grad():
        rows = torch.as_tensor(observations)
        assert torch.equal(policy.predict_values(rows), original.predict_values(rows))
        assert torch.equal(policy.get_distribution(rows).entropy(), original.get_distribution(rows).entropy())


def test_importing_and_saving_makes_one_of_our_artifacts(theirs, tmp_path):
    policy = import_sb3_zip(theirs, OBSERVATIONS, ACTIONS)
    save_policy(policy, tmp_path / "ours", {"source": "theirs.zip"})
    assert tensor_digests(load_policy(tmp_path / "ours")) == tensor_digests(policy)


@pytest.mark.parametrize("actions", [ACTIONS, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_an_export_is_read_by_ppo_and_by_us(actions, tmp_path):
    policy = build_policy(OBSERVATIONS, actions, Network(hidden=(8, 4), activation="relu"), seed=3)
    export_sb3_zip(policy, tmp_path / "out" / "ours.zip")
    loaded = PPO.load(tmp_path / "out" / "ours.zip", device="cpu")
    assert tensor_digests(loaded.policy) == tensor_digests(policy)
    assert loaded.action_space == actions and loaded.policy.activation_fn is torch.nn.ReLU
    again = import_sb3_zip(tmp_path / "out" / "ours.zip", OBSERVATIONS, actions)
    assert tensor_digests(again) == tensor_digests(policy)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ours.zip"]
    with pytest.raises(BadInput, match="must be a new file"):
        export_sb3_zip(policy, tmp_path / "out" / "ours.zip")


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


NEEDED = ("policy_class", "policy_kwargs", "observation_space", "action_space")  # what a policy is rebuilt from


def test_a_pickle_anywhere_in_the_zip_never_runs(theirs, tmp_path):
    trap = tmp_path / "ran"
    poison = pickle.dumps(Trap(trap))
    text = base64.b64encode(poison).decode()
    settings = settings_of(theirs)
    pickled = [key for key, value in settings.items() if isinstance(value, dict) and ":serialized:" in value]
    for key in pickled:
        if key not in NEEDED:
            settings[key][":serialized:"] = text
    settings["unused"] = {":type:": "x", ":serialized:": text}
    path = remade(theirs, tmp_path / "data.zip", data=json.dumps(settings).encode(), pytorch_variables_pth=poison)
    import_sb3_zip(path, OBSERVATIONS, ACTIONS)  # what it is rebuilt from is good
    told = inspect_sb3_zip(path)
    asked = {name for part in ("data: unused", "pytorch_variables.pth") for name in told["pickled"][part]}
    touched = {"pathlib.Path.touch", "pathlib._local.Path.touch"}  # the second since Python 3.13
    assert touched & asked or {"builtins.getattr", "pathlib.Path"} <= asked
    for key in NEEDED:
        made = {**settings_of(theirs), key: {":type:": "x", ":serialized:": text}}
        with pytest.raises(BadInput) as error:
            import_sb3_zip(remade(theirs, tmp_path / "x.zip", data=json.dumps(made).encode()), OBSERVATIONS, ACTIONS)
        assert "\n" not in str(error.value)
    (tmp_path / "vecnormalize.pkl").write_bytes(poison)
    with pytest.raises(BadInput, match=r"vecnormalize\.pkl beside the zip"):
        import_sb3_zip(path, OBSERVATIONS, ACTIONS)
    (tmp_path / "vecnormalize.pkl").unlink()
    for weights in (poison, packed(Trap(trap)), packed({"a": Trap(trap)}, _use_new_zipfile_serialization=False)):
        path = remade(theirs, tmp_path / "weights.zip", policy_pth=weights)
        with pytest.raises(BadInput, match=r"policy\.pth"):
            import_sb3_zip(path, OBSERVATIONS, ACTIONS)
    assert not trap.exists()
    pickle.loads(poison)  # noqa: S301 - the trap itself works
    assert trap.exists()


REFUSED = {
    "another extractor": (
        {"policy_kwargs": {"features_extractor_class": "<class 'mine.Extractor'>"}},
        r"policy_kwargs: features_extractor_class",
    ),
    "pictures not divided": ({"policy_kwargs": {"normalize_images": False}}, "normalize_images"),
    "unknown key": ({"policy_kwargs": {"magic": 1}}, "magic"),
    "unknown activation": ({"policy_kwargs": {"activation_fn": "Swish"}}, "activation_fn.*tanh"),
    "activation of another type": ({"policy_kwargs": {"activation_fn": ["x"]}}, "activation_fn"),
    "no policy_kwargs": ({"policy_kwargs": 3}, "policy_kwargs = 3"),
    "another class": ({"policy_class": "mine.Mine"}, r"class 'mine\.Mine'; taken are .* PPO, .*ARS"),
    "no class": ({"policy_class": None}, "class 'None'; taken are"),
    "no space": ({"observation_space": None}, "observation_space is no space"),
}


def test_settings_that_our_policies_do_not_have_are_refused_by_name(theirs, tmp_path):
    for case, (changes, message) in REFUSED.items():
        data = json.dumps({**settings_of(theirs), **changes}).encode()
        path = remade(theirs, tmp_path / "x.zip", data=data)
        with pytest.raises(BadInput, match=message) as error:
            import_sb3_zip(path, OBSERVATIONS, ACTIONS)
        assert "\n" not in str(error.value), case


OTHERS = {  # what PPO here does not train: it acts
    "narrower critic": {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [4]}}},
    "ELU": {"policy_kwargs": {"activation_fn": torch.nn.ELU}},
    "leaky ReLU": {"policy_kwargs": {"activation_fn": torch.nn.LeakyReLU}},
    "gSDE": {"use_sde": True},
    "squashed gSDE": {"use_sde": True, "policy_kwargs": {"squash_output": True}},
    "Dict": {"env": StillDict, "policy": "MultiInputPolicy"},
    "pictures": {"env": StillPictures, "policy": "CnnPolicy"},
    "MultiDiscrete": {"env": StillMultiDiscrete, "policy_kwargs": {"activation_fn": torch.nn.ELU}},
    "SAC": {"algorithm": SAC, "buffer_size": 10},
    "SAC of gSDE": {"algorithm": SAC, "buffer_size": 10, "use_sde": True},
    "SAC, own actor": {"algorithm": SAC, "buffer_size": 10, "policy_kwargs": {"net_arch": {"pi": [8], "qf": [4]}}},
    "SAC on pictures": {"algorithm": SAC, "env": StillPictures, "policy": "CnnPolicy", "buffer_size": 10},
    "TD3": {"algorithm": TD3, "buffer_size": 10},
    "DDPG": {"algorithm": DDPG, "buffer_size": 10},
    "DQN": {"algorithm": DQN, "env": StillDiscrete, "buffer_size": 10},
}


@pytest.mark.parametrize("case", OTHERS)
def test_any_actor_of_sb3_acts_as_it_does_there(case, tmp_path):
    env = OTHERS[case].get("env", Still)
    path = saved(tmp_path / "theirs.zip", **OTHERS[case])
    imported = import_sb3_zip(path, env.observation_space, env.action_space)
    assert isinstance(imported, FrozenActor)
    save_policy(imported, tmp_path / "ours", {})
    stored = load_policy(tmp_path / "ours")
    assert tensor_digests(stored) == tensor_digests(imported)
    observations = probe_batch(env.observation_space, 64)
    original = OTHERS[case].get("algorithm", PPO).load(path, device="cpu")
    theirs, _ = original.predict(observations, deterministic=True)
    ours = act_function(stored)(observations)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=5e-6)
    with pytest.raises(BadInput, match="only acts"):
        load_trainable(tmp_path / "ours")
    with pytest.raises(BadInput, match="deterministically alone"):
        act_function(stored, deterministic=False)


def test_ppo_trained_behind_vecnormalize_reads_what_the_environment_gives_and_is_trained_further(tmp_path):
    env = VecNormalize(DummyVecEnv([Moving]), clip_obs=1.5, epsilon=1e-4)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, policy_kwargs={"net_arch": [8]}, device="cpu", seed=1)
    model.learn(64)
    model.save(tmp_path / "theirs.zip")
    env.save(tmp_path / "vecnormalize.pkl")
    (tmp_path / "config.yml").write_text("!!python/object/apply:collections.OrderedDict\n- - - normalize\n    - true\n")
    policy = import_sb3_zip(tmp_path / "theirs.zip", OBSERVATIONS, ACTIONS)
    observations = np.random.default_rng(0).uniform(-1, 1, (64, 4)).astype(np.float32)
    theirs, _ = model.predict(env.normalize_obs(observations), deterministic=True)
    np.testing.assert_allclose(act_function(policy)(observations), theirs, atol=5e-6)
    # its statistics are the units of a policy that PPO trains, the bound of what it reads with them
    save_policy(policy, tmp_path / "ours", {})
    stored = load_trainable(tmp_path / "ours")
    units = scaling_of(stored).observations
    assert (units.clip, scaling_of(stored).digest) == (1.5, scaling_of(policy).digest)
    np.testing.assert_allclose(units.offset, env.obs_rms.mean, rtol=1e-6)
    assert (abs(units.inward(observations)) == 1.5).any(), "nothing was cut: this shows nothing"
    np.testing.assert_array_equal(act_function(stored)(observations), act_function(policy)(observations))
    # its critic learnt from divided rewards, and values them as they are
    scale = np.sqrt(env.ret_rms.var + env.epsilon)
    assert read_sb3_zip(tmp_path / "theirs.zip").return_scale == pytest.approx(scale)
    values = scale * model.policy.predict_values(torch.as_tensor(env.normalize_obs(observations).astype(np.float32)))
    torch.testing.assert_close(stored.predict_values(torch.as_tensor(observations)), values.float(), rtol=0, atol=5e-6)
    fresh = build_policy(OBSERVATIONS, ACTIONS, network_of(stored), 2, scaling_of(stored))
    assert transfer(fresh, str(tmp_path / "ours"), network_of(stored), None).action_distance == 0
    # a zip for `PPO.load` cuts nothing, and acts the same within the bound
    export_sb3_zip(stored, tmp_path / "away.zip")
    inside = units.outward(np.random.default_rng(1).uniform(-1.4, 1.4, (64, 4)).astype(np.float32))
    away, _ = PPO.load(tmp_path / "away.zip", device="cpu").predict(inside, deterministic=True)
    np.testing.assert_allclose(away, act_function(policy)(inside), atol=5e-6)
    assert inspect_sb3_zip(tmp_path / "theirs.zip")["normalized"] == {"shape": [4], "clip": 1.5, "epsilon": 1e-4}
    # in the folder of the zip's name, where the RL Zoo has both
    (tmp_path / "theirs").mkdir()
    for name in ("vecnormalize.pkl", "config.yml"):
        (tmp_path / name).rename(tmp_path / "theirs" / name)
    again = import_sb3_zip(tmp_path / "theirs.zip", OBSERVATIONS, ACTIONS)
    np.testing.assert_array_equal(act_function(again)(observations), act_function(policy)(observations))
    # and that of its best model beside them, unless there are two such folders
    (tmp_path / "theirs.zip").rename(tmp_path / "best_model.zip")
    best = import_sb3_zip(tmp_path / "best_model.zip", OBSERVATIONS, ACTIONS)
    np.testing.assert_array_equal(act_function(best)(observations), act_function(policy)(observations))
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "config.yml").write_text("normalize: false\n")
    assert inspect_sb3_zip(tmp_path / "best_model.zip").get("normalized") is None
    (tmp_path / "best_model.zip").rename(tmp_path / "theirs.zip")
    for name in ("vecnormalize.pkl", "config.yml"):
        (tmp_path / "theirs" / name).rename(tmp_path / name)
    (tmp_path / "vecnormalize.pkl").unlink()
    with pytest.raises(BadInput, match=r"put its vecnormalize\.pkl beside it"):
        import_sb3_zip(tmp_path / "theirs.zip", OBSERVATIONS, ACTIONS)
    told = inspect_sb3_zip(tmp_path / "theirs.zip")
    assert "put its vecnormalize.pkl beside it" in told["refused"] and told["network"]["hidden"] == [8]


def test_statistics_of_a_dict_are_refused_in_words(theirs, tmp_path):
    class Goals(gym.Env):
        observation_space, action_space = spaces.Dict(at=OBSERVATIONS), ACTIONS

    VecNormalize(DummyVecEnv([Goals])).save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(BadInput, match=r"vecnormalize\.pkl beside the zip is of observations that are a Dict"):
        import_sb3_zip(remade(theirs, tmp_path / "x.zip"), OBSERVATIONS, ACTIONS)


def test_an_actor_whose_vecnormalize_cuts_nothing_is_taken_and_hostile_figures_are_refused(tmp_path, capsys):
    env = VecNormalize(DummyVecEnv([Moving]), clip_obs=np.inf)
    env.reset()
    for _ in range(32):
        env.step(np.zeros((1, 2)))
    arguments = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 10, "device": "cpu", "seed": 1}
    model, path = SAC("MlpPolicy", env, use_sde=True, **arguments), tmp_path / "theirs.zip"
    model.save(path)
    env.save(tmp_path / "vecnormalize.pkl")
    policy = import_sb3_zip(path, OBSERVATIONS, ACTIONS)
    assert policy.network.normalized.clip is None
    save_policy(policy, tmp_path / "ours", {})
    observations = np.random.default_rng(0).uniform(-1, 1, (64, 4)).astype(np.float32)
    seen = env.normalize_obs(observations)
    assert abs(seen).max() > 10, "nothing would have been cut: this shows nothing"
    theirs, _ = model.predict(seen, deterministic=True)
    np.testing.assert_allclose(act_function(load_policy(tmp_path / "ours"))(observations), theirs, atol=5e-6)
    export_network(policy, tmp_path / "away.pt")  # raises for a file that acts otherwise
    assert ask(["inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no `Infinity`, which is no JSON
    assert told["normalized"] == {"shape": [4], "clip": None, "epsilon": 1e-8}
    assert ask(["inspect", str(path)]) == 0
    assert "observations, by [4] statistics\n" in capsys.readouterr().out
    env.epsilon = -1e-9
    env.save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(BadInput, match="its actor is none of ours"):
        import_sb3_zip(path, OBSERVATIONS, ACTIONS)
    (tmp_path / "vecnormalize.pkl").unlink()
    for cut in (0.0, float("inf")):
        settings = settings_of(path)
        settings["policy_kwargs"]["clip_mean"] = cut
        hostile = remade(path, tmp_path / "x.zip", data=json.dumps(settings).encode())
        with pytest.raises(BadInput, match="its actor is none of ours") as error:
            import_sb3_zip(hostile, OBSERVATIONS, ACTIONS)
        assert "\n" not in str(error.value)


def test_pictures_behind_statistics_are_refused_as_these_would_be_left_out(tmp_path):
    network = FrozenNetwork(layers=(Dense(inputs=4, outputs=2),), image_features=4, normalized=Normalized(epsilon=0.0))
    with pytest.raises(ValueError, match="pictures behind a VecNormalize are not taken"):
        FrozenActor(StillPictures.observation_space, ACTIONS, network)
    path = saved(tmp_path / "theirs.zip", env=StillPictures, policy="CnnPolicy")
    env = VecNormalize(DummyVecEnv([StillPictures]))
    env.save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(BadInput, match="does not fit: pictures behind a VecNormalize are not taken") as error:
        import_sb3_zip(path, StillPictures.observation_space, ACTIONS)
    assert "\n" not in str(error.value)


def test_the_zoo_config_says_what_must_stand_in_front_of_the_policy(theirs, tmp_path):
    path, config = remade(theirs, tmp_path / "x.zip"), tmp_path / "config.yml"
    config.write_text("env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper\n")
    with pytest.raises(BadInput, match=r"add pipeline\.envs\.time_feature:TimeFeature to environment\.wrappers"):
        import_sb3_zip(path, OBSERVATIONS, ACTIONS)
    import_sb3_zip(path, OBSERVATIONS, ACTIONS, [{"name": "pipeline.envs.time_feature:TimeFeature", "kwargs": {}}])
    config.write_text(f"normalize: '{'(' * 9_000}'\n")
    with pytest.raises(BadInput, match=r"config\.yml beside the zip cannot be read"):
        import_sb3_zip(path, OBSERVATIONS, ACTIONS)
    config.write_text(
        "env_wrapper:\n- theirs.Shaping:\n    scale: 2\nnormalize: dict(norm_obs=False, norm_reward=True)\n"
    )
    with pytest.raises(BadInput, match=r"trained behind theirs\.Shaping .* same class name"):
        import_sb3_zip(path, OBSERVATIONS, ACTIONS)
    import_sb3_zip(path, OBSERVATIONS, ACTIONS, [{"name": "ours:Shaping", "kwargs": {}}])
    for written, normalized in (
        ("true", True), ("false", False), ("dict(norm_reward=True)", True), ("{norm_obs: false}", False),
        ("\"{'norm_obs': False, 'norm_reward': True}\"", False), ("\"{'norm_reward': False}\"", True),
    ):  # fmt: skip
        config.write_text(f"normalize: {written}\n")
        assert read_zoo_config(config).normalized == normalized, written
    hostile_texts = ("!!python/object/apply:os.system ['true']", "a: [", "- 1", "normalize: __import__('os')()")
    for hostile in (*hostile_texts, "normalize: \"{'norm_obs': __import__('os')}\""):
        config.write_text(hostile)
        with pytest.raises(BadInput, match=r"config\.yml beside the zip") as error:
            import_sb3_zip(path, OBSERVATIONS, ACTIONS)
        assert "\n" not in str(error.value)


def test_the_time_feature_is_what_remains_of_the_episode():
    env = TimeFeature(gym.make("Pendulum-v1", max_episode_steps=4))
    first, _ = env.reset(seed=0)
    seen = [float(env.step(env.action_space.sample())[0][-1]) for _ in range(4)]
    assert [float(first[-1]), *seen] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert env.reset(seed=0)[0][-1] == 1.0 and env.observation_space.contains(first)
    assert TimeFeature(Still(), max_steps=10).observation_space.shape == (5,)
    for wrong in (lambda: TimeFeature(Still()), lambda: TimeFeature(StillDict(), max_steps=3)):
        with pytest.raises(ValueError, match=r"max_steps|no flat Box"):
            wrong()


def test_the_quantiles_of_an_action_count_by_their_mean():
    """Two actions, three quantiles, one row of both each: (1, 5), (2, 2), (3, 2) have the means 2 and 3."""
    network = FrozenNetwork(layers=(Dense(inputs=1, outputs=6),), quantiles=3)
    actor = FrozenActor(spaces.Box(-1, 1, (1,)), spaces.Discrete(2), network)
    bias = torch.tensor([1.0, 5.0, 2.0, 2.0, 3.0, 2.0])
    actor.load_state_dict({"layers.0.weight": torch.zeros(6, 1), "layers.0.bias": bias})
    assert act_function(actor)(np.zeros((1, 1), np.float32)).tolist() == [1]
    actor.load_state_dict({"layers.0.weight": torch.zeros(6, 1), "layers.0.bias": bias - torch.tensor([0.0, 4.0] * 3)})
    assert act_function(actor)(np.zeros((1, 1), np.float32)).tolist() == [0]


def test_a_policy_of_another_task_is_refused_by_its_space(theirs):
    others = {
        "observations are .*the task's are": (spaces.Box(-1, 1, (7,)), ACTIONS),
        "actions are .*the task's are": (OBSERVATIONS, spaces.Discrete(3)),
        r"its actions are 'Box\(-2\.0": (OBSERVATIONS, spaces.Box(-1, 1, (2,))),
    }
    for message, (observations, actions) in others.items():
        with pytest.raises(BadInput, match=message):
            import_sb3_zip(theirs, observations, actions)


@pytest.mark.parametrize(
    "pickled",
    [
        b"ccollections\nOrderedDict\n)RK\x01a",  # a number appended to a mapping
        b"ccollections\nOrderedDict\n)R]K\x01s",  # a list as a name
        b"}\x8b" + struct.pack("<i", 2_000) + b"\x7f" * 2_000 + b"K\x01s",  # a number of 4,800 digits as a name
    ],
    ids=["no pairs", "a list", "endless"],
)
def test_a_state_that_is_no_mapping_of_names_is_one_line(theirs, tmp_path, pickled):
    given, made = io.BytesIO(packed({})), io.BytesIO()
    with zipfile.ZipFile(given) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\x80\x02" + pickled + b"." if name.endswith("data.pkl") else old.read(name))
    path = remade(theirs, tmp_path / "x.zip", policy_pth=made.getvalue())
    with pytest.raises(BadInput, match="cannot be read") as error:
        read_sb3_zip(path)
    assert "\n" not in str(error.value)


def test_wrong_tensors_are_refused_by_name(theirs, tmp_path):
    good = weights_of(theirs)
    cases = {
        "not finite": {**good, "log_std": torch.full((2,), float("nan"))},
        "log_std' is .*float64": {**good, "log_std": good["log_std"].double()},
        "'extra' is .*, its network needs none": {**good, "extra": torch.zeros(1)},
        "value_net.bias' is none, its network needs": {
            name: tensor for name, tensor in good.items() if name != "value_net.bias"
        },
        r"log_std' is .*\(3,\), its network needs": {**good, "log_std": torch.zeros(3)},
        "tensor 'note' cannot be read": {**good, "note": "text"},
        "expected named tensors": [1, 2],
        "a layer of 16 outputs is followed by one of 5": {
            **good, "mlp_extractor.policy_net.2.weight": torch.zeros(9, 5), "action_net.weight": torch.zeros(2, 9),
        },
        "neither linear nor an activation": {**good, "mlp_extractor.policy_net.1.running_mean": torch.zeros(16),
                                             "mlp_extractor.shared_net.0.weight": torch.zeros(4, 4)},
    }  # fmt: skip
    for message, state in cases.items():
        path = remade(theirs, tmp_path / "x.zip", policy_pth=packed(state))
        with pytest.raises(BadInput, match=message):
            import_sb3_zip(path, OBSERVATIONS, ACTIONS)


def test_weights_in_the_older_format_of_torch_are_read_whatever_their_widths(theirs, tmp_path):
    mixed = {"first": torch.arange(3, dtype=torch.float64), **weights_of(theirs), "last": torch.arange(2)}
    path = remade(theirs, tmp_path / "x.zip", policy_pth=packed(mixed, _use_new_zipfile_serialization=False))
    read = read_sb3_zip(path).tensors
    assert set(read) == set(mixed)
    assert all(np.array_equal(read[name], tensor.numpy()) for name, tensor in mixed.items())


def test_widths_that_the_bytes_cannot_fill_are_refused_before_a_network_of_them_is_built(theirs, tmp_path, monkeypatch):
    """A tensor of stride 0 shows one number as often as it likes, one of no numbers may have any width."""
    good, one = weights_of(theirs), torch.zeros(1, 1)
    layers = [f"mlp_extractor.{role}_net.{n}.weight" for n in (0, 2) for role in ("policy", "value")]
    cases = {
        "claims more than the 1 numbers": {**good, **dict.fromkeys(layers, one.expand(30_000, 30_000))},
        "claims more than the 1 .*it has": {**good, "log_std": one.expand(1, 10**12).reshape(-1)},
        r"is empty, or claims": {**good, **dict.fromkeys(layers[:2], torch.zeros(10**9, 0))},
        r"hidden layers \[30000, 30000\] alone need": {
            **good, **{name: torch.zeros(30_000, 4) for name in layers[:2]},
            **{name: torch.zeros(30_000, 1) for name in layers[2:]},
        },
        r"is empty, or .* numbers": {**good, **dict.fromkeys(layers[:2], torch.zeros(0, 4))},
    }  # fmt: skip
    monkeypatch.setattr("pipeline.policies.sb3.build_policy", lambda *_, **__: pytest.fail("a network was built"))
    for message, state in cases.items():
        path = remade(theirs, tmp_path / "x.zip", policy_pth=packed(state))
        with pytest.raises(BadInput, match=message) as error:
            import_sb3_zip(path, OBSERVATIONS, ACTIONS)
        assert "\n" not in str(error.value)


def test_damaged_and_hostile_zips_are_refused_in_one_line(theirs, tmp_path):
    whole, weights = theirs.read_bytes(), zipfile.ZipFile(theirs).read("policy.pth")
    inner = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(weights)) as old, zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("data", b" " * 40_000_000)
        made.writestr("policy.pth", b"")
    path = tmp_path / "x.zip"
    contents = [b"", b"PK", whole[:500], whole[:-50], whole[:2000] + b"\xff" * 500 + whole[2500:], bomb.getvalue()]
    contents += [remade(theirs, path, policy_pth=inner.getvalue()).read_bytes()]
    contents += [
        remade(theirs, path, data=data).read_bytes() for data in (None, b"", b"[]", b"{", b"[" * 100_000, b"\xff")
    ]
    contents += [
        remade(theirs, path, policy_pth=data).read_bytes() for data in (None, b"", weights[:300], weights[:-40])
    ]
    for number, content in enumerate(contents):
        path.write_bytes(content)
        with pytest.raises(BadInput) as error:
            import_sb3_zip(path, OBSERVATIONS, ACTIONS)
        assert str(error.value).startswith("SB3 zip 'x.zip'") and "\n" not in str(error.value), number
    for missing in (tmp_path, tmp_path / "none.zip"):
        with pytest.raises(BadInput):
            import_sb3_zip(missing, OBSERVATIONS, ACTIONS)


def test_random_damage_is_refused_or_changes_only_weights(theirs, tmp_path):
    """Any byte of the file may be wrong: one line, or a policy; never another exception."""
    rng, whole = np.random.default_rng(0), theirs.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), size=rng.integers(1, 5)):
            damaged[at] = rng.integers(0, 256)
        (tmp_path / "x.zip").write_bytes(damaged)
        try:
            import_sb3_zip(tmp_path / "x.zip", OBSERVATIONS, ACTIONS)
        except BadInput as error:
            assert "\n" not in str(error)

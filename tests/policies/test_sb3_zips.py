"""SB3 zips: read without unpickling, equal in every action; what cannot be read for certain is refused by name."""

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO

from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.policies import build_policy, load_policy, save_policy, tensor_digests
from pipeline.policies.sb3 import export_sb3_zip, import_sb3_zip

OBSERVATIONS, ACTIONS = spaces.Box(-1, 1, (4,)), spaces.Box(-2, 2, (2,))


class Still(gym.Env):
    observation_space, action_space = OBSERVATIONS, ACTIONS


class StillDiscrete(Still):
    action_space = spaces.Discrete(3)


class StillDict(Still):
    observation_space = spaces.Dict({"a": OBSERVATIONS})


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


def test_a_pickle_anywhere_in_the_zip_never_runs(theirs, tmp_path):
    trap = tmp_path / "ran"
    poison = pickle.dumps(Trap(trap))
    text = base64.b64encode(poison).decode()
    settings = settings_of(theirs)
    for value in settings.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = text
    settings["unused"] = {":type:": "x", ":serialized:": text}
    path = remade(theirs, tmp_path / "data.zip", data=json.dumps(settings).encode(), pytorch_variables_pth=poison)
    import_sb3_zip(path, OBSERVATIONS, ACTIONS)  # the readable parts say it all, so it is a good policy
    for weights in (poison, packed(Trap(trap)), packed({"a": Trap(trap)}, _use_new_zipfile_serialization=False)):
        path = remade(theirs, tmp_path / "weights.zip", policy_pth=weights)
        with pytest.raises(BadInput, match=r"policy\.pth"):
            import_sb3_zip(path, OBSERVATIONS, ACTIONS)
    assert not trap.exists()
    pickle.loads(poison)  # noqa: S301 - the trap itself works
    assert trap.exists()


REFUSED = {
    "gSDE": ({"use_sde": True}, "use_sde = True"),
    "another extractor": (
        {"policy_kwargs": {"features_extractor_class": "<class 'mine.Extractor'>"}},
        r"policy_kwargs\.features_extractor_class",
    ),
    "squashed": ({"policy_kwargs": {"squash_output": True}}, r"policy_kwargs\.squash_output = True"),
    "separate extractors": ({"policy_kwargs": {"share_features_extractor": False}}, "share_features_extractor"),
    "unknown key": ({"policy_kwargs": {"magic": 1}}, r"unknown key 'policy_kwargs\.magic'"),
    "unknown activation": (
        {"policy_kwargs": {"activation_fn": "<class 'mine.Swish'>"}},
        "activation_fn.*Tanh.* or .*ReLU",
    ),
    "activation of another type": ({"policy_kwargs": {"activation_fn": ["x"]}}, "activation_fn"),
    "only a pickle": ({"policy_kwargs": {":type:": "dict", ":serialized:": "gAR9lC4="}}, "only there as a pickle"),
    "no policy_kwargs": ({"policy_kwargs": 3}, "policy_kwargs = 3"),
    "another class": (
        {"policy_class": {"__module__": "mine", "__init__": "<function Mine.__init__ at 0x1>"}},
        r"class mine\.Mine; taken is .*ActorCriticPolicy alone, the MlpPolicy of PPO and A2C",
    ),
    "no class": ({"policy_class": None}, "whose class it does not tell; taken is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_our_policies_do_not_have_are_refused_by_name(case, theirs, tmp_path):
    changes, message = REFUSED[case]
    data = json.dumps({**settings_of(theirs), **changes}).encode()
    with pytest.raises(BadInput, match=message) as error:
        import_sb3_zip(remade(theirs, tmp_path / "x.zip", data=data), OBSERVATIONS, ACTIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"policy_kwargs": {"net_arch": {"pi": [8], "vf": [4]}}}, r"actor \[8\] and critic \[4\]"),
        ({"policy_kwargs": {"activation_fn": torch.nn.ELU}}, "ELU"),
        ({"use_sde": True}, "use_sde"),
        ({"algorithm": DQN, "env": StillDiscrete, "buffer_size": 10}, "ActorCriticPolicy"),
        ({"env": StillDiscrete}, "its network needs"),
        (
            {"env": StillDict, "policy": "MultiInputPolicy"},
            "MultiInputActorCriticPolicy, which reads Dict",
        ),
    ],
)
def test_real_zips_of_other_kinds_are_refused_by_name(kwargs, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        import_sb3_zip(saved(tmp_path / "x.zip", **kwargs), OBSERVATIONS, ACTIONS)


def test_a_policy_of_another_task_is_refused_by_the_tensor_that_does_not_fit(theirs):
    with pytest.raises(BadInput, match=r"mlp_extractor\.\w+\.0\.weight.*\(16, 4\).*\(16, 7\)"):
        import_sb3_zip(theirs, spaces.Box(-1, 1, (7,)), ACTIONS)


def test_wrong_tensors_are_refused_by_name(theirs, tmp_path):
    good = weights_of(theirs)
    cases = {
        "not finite": {**good, "log_std": torch.full((2,), float("nan"))},
        "expected plain float32": {**good, "log_std": good["log_std"].double()},
        "'extra' is .*, its network needs none": {**good, "extra": torch.zeros(1)},
        "value_net.bias' is none, its network needs": {
            name: tensor for name, tensor in good.items() if name != "value_net.bias"
        },
        r"log_std' is .*\(3,\), its network needs": {**good, "log_std": torch.zeros(3)},
        "no named tensor": {**good, "note": "text"},
        "expected named tensors": [1, 2],
        "different hidden": {n: t for n, t in good.items() if "value_net.2" not in n},
    }
    for message, state in cases.items():
        path = remade(theirs, tmp_path / "x.zip", policy_pth=packed(state))
        with pytest.raises(BadInput, match=message):
            import_sb3_zip(path, OBSERVATIONS, ACTIONS)


def test_widths_that_the_bytes_cannot_fill_are_refused_before_a_network_of_them_is_built(theirs, tmp_path, monkeypatch):
    """A tensor of stride 0 shows one number as often as it likes, one of no numbers may have any width."""
    good, one = weights_of(theirs), torch.zeros(1, 1)
    layers = [f"mlp_extractor.{role}_net.{n}.weight" for n in (0, 2) for role in ("policy", "value")]
    cases = {
        "claim 14400000308 bytes, it holds": {**good, **dict.fromkeys(layers, one.expand(30_000, 30_000))},
        "claim 4000000.* bytes, it holds": {**good, "log_std": one.expand(1, 10**12).reshape(-1)},
        r"hidden layers \[1000000000, 8\] alone need": {
            **good, **dict.fromkeys(layers[:2], torch.zeros(10**9, 0)),
        },
        r"hidden layers \[30000, 30000\] alone need": {
            **good, **{name: torch.zeros(30_000, 4) for name in layers[:2]},
            **{name: torch.zeros(30_000, 1) for name in layers[2:]},
        },
        r"actor \[0, 8\] and .* empty ones": {**good, **dict.fromkeys(layers[:2], torch.zeros(0, 4))},
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

"""Agents of the public RL Zoo, as published: each acts here as stable-baselines3's own `predict` said it acts.

`zoo_actions.npz` holds, for each, 60 observations of its own episodes and the deterministic actions that
stable-baselines3 2.9.2 and sb3-contrib 2.9.2 gave on them. The agents themselves are in no repository of ours.
"""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from pipeline.envs.time_feature import TimeFeature
from pipeline.policies import act_function, load_policy, save_policy
from pipeline.policies.sb3 import import_sb3_zip
from pipeline.policies.sb3_actor import inspect_sb3_zip

pytestmark = pytest.mark.slow
ZOO = Path(__file__).parents[3] / "shared/data/zoo"  # beside the repository
RECORDED = Path(__file__).with_name("zoo_actions.npz")
TIME = {"name": "pipeline.envs.time_feature:TimeFeature", "kwargs": {}}


def agents() -> list[str]:
    with np.load(RECORDED) as recorded:
        return sorted({name.partition(".")[0] for name in recorded.files})


def environment(agent: str) -> gym.Env:
    """In today's Gymnasium: MuJoCo's v3 is v5, LunarLander's v2 is v3."""
    _, _, name = agent.partition("-")
    mujoco = re.match("HalfCheetah|Hopper|Walker2d|Swimmer", name)
    return gym.make(name.replace("-v3", "-v5") if mujoco else name.replace("LunarLander-v2", "LunarLander-v3"))


@pytest.mark.parametrize("agent", agents())
def test_an_agent_of_the_zoo_acts_as_it_does_in_sb3(agent, tmp_path):
    if not ZOO.is_dir():
        pytest.skip(f"the agents of the RL Zoo are not at {ZOO}: put them there (DLR-RM/rl-trained-agents)")
    (path,) = (ZOO / agent).glob("*.zip")
    held, env = inspect_sb3_zip(path), environment(agent)
    assert held["refused"] is None
    assert held["algorithm"].replace("-", "").lower() == agent.partition("-")[0]
    timed = any(name.endswith("TimeFeatureWrapper") for name in held["wrappers"])
    env = TimeFeature(env) if timed else env
    policy = import_sb3_zip(path, env.observation_space, env.action_space, [TIME] if timed else [])
    save_policy(policy, tmp_path / "policy", {})
    with np.load(RECORDED) as recorded:
        observations, theirs = recorded[f"{agent}.observations"], recorded[f"{agent}.actions"]
    ours = act_function(load_policy(tmp_path / "policy"))(observations)
    assert isinstance(env.observation_space, spaces.Box) and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

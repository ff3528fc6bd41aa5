"""Wrappers by name around a task's environment."""

import gymnasium as gym
import numpy as np
import pytest
from counting_environment import Counting, UnpluggedWrapper
from gymnasium import spaces
from test_tasks import refusal, task

from pipeline.config.training import Network
from pipeline.envs.episodes import Episode
from pipeline.envs.limits import DeclareObservation
from pipeline.play.demonstrators import policy_actions
from pipeline.play.evaluation import record_episodes
from pipeline.policies import WRAPPERS, build_policy, save_policy
from pipeline.tasks import Purpose, Task
from pipeline.validation.replay import TaskReplay, replay_episodes

COUNTING = "counting_environment:Counting"
SCALE = {"name": "counting_environment:Scaled", "kwargs": {"mean": 2.0, "std": 4.0, "clip": 0.25}}


def wrapped(*wrappers: dict, **changes) -> Task:
    return task(environment={"id": COUNTING, "wrappers": list(wrappers)}, **changes)


class DictOfTwo(gym.Env):
    """Observes a vector and a switch."""

    observation_space = spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (2,)), "switch": spaces.Discrete(2)})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {"speed": np.array([0.5, -0.5], np.float32), "switch": np.int64(1)}, {}

    def step(self, action):
        return *self.reset()[:1], 0.0, True, False, {}


# --- by name ---------------------------------------------------------------------------------------------------------


def test_wrappers_are_put_around_the_environment_in_the_order_they_are_listed():
    repeat = {"name": "RescaleObservation", "kwargs": {"min_obs": 0.0, "max_obs": 1.0}}
    one = wrapped(repeat, {**SCALE, "kwargs": {"mean": 0.0, "std": 0.01, "clip": 100.0}})
    env = one.make_env("long")
    env.reset(seed=1)
    assert env.step(1)[0][0] == pytest.approx(1.0)  # 1 of 100 is 0.01, which is one std
    assert type(env.unwrapped) is Counting


def test_observations_pass_the_wrappers_wherever_the_task_plays():
    made = wrapped(SCALE)
    assert made.observation_space == spaces.Box(-0.25, 0.25, (1,), np.float32)
    by_hand = np.array([[-0.25], [-0.25], [0.0], [0.25], [0.25]], np.float32)  # 0, 1, 2, 3, 4 scaled
    episode = Episode("long", 1)
    recorded = record_episodes(made, lambda rows: np.ones(len(rows), np.int64), [episode], 0.0, 1)
    assert np.array_equal(recorded.observations, by_hand)
    env = made.make_vec_env([iter([episode])])
    assert env.reset().tolist() == [[-0.25]]
    (verdict,) = replay_episodes(recorded, TaskReplay(made), [0])
    assert verdict.identical


def test_figures_of_the_task_are_measured_outside_the_wrappers():
    cut = {"name": "TimeLimit", "kwargs": {"max_episode_steps": 2}}
    made = wrapped(cut, metrics={"sum_t": {"info": "t", "over": "sum"}})
    env = made.make_vec_env([iter([Episode("long", 1)])])
    env.reset()
    env.step(np.array([1]))
    _, _, dones, infos = env.step(np.array([1]))
    assert dones[0]
    assert made.outcome(infos[0])["sum_t"] == 1 + 2


@pytest.mark.parametrize(
    ("wrapper", "named"),
    [
        ({"name": "ClipActoin"}, "Did you mean 'ClipAction'?"),
        ({"name": "gymnasium.wrapers:ClipAction"}, "cannot import 'gymnasium.wrapers'"),
        ({"name": "counting_environment:Counting"}, "is no gymnasium.Wrapper"),
        ({"name": "counting_environment:np"}, "is no gymnasium.Wrapper"),
        ({"name": "ClipAction"}, "'ClipAction' refuses"),  # its actions are Discrete
        ({"name": "TimeLimit", "kwargs": {"max_steps": 3}}, "max_steps"),
        ({"name": "NormalizeObservation"}, "policies scale what they see themselves"),
        ({"name": "gymnasium.wrappers:NormalizeReward"}, "training.normalize_reward"),
    ],
)
def test_a_wrong_wrapper_is_refused_by_name(wrapper, named):
    line = refusal(lambda: wrapped(wrapper).observation_space)
    assert "environment.wrappers" in line
    assert named in line


def test_a_wrapper_that_breaks_as_it_is_made_is_told_in_one_line_and_leaves_nothing_open():
    closed, made = UnpluggedWrapper.closed, wrapped({"name": "counting_environment:UnpluggedWrapper"})
    line = refusal(lambda: made.observation_space)
    assert "UnpluggedWrapper" in line and "NotImplementedError" in line
    assert UnpluggedWrapper.closed == closed + 1


def test_a_key_of_a_wrapper_that_nobody_reads_is_refused():
    assert "environment.wrappers.0.kwarg" in refusal(lambda: wrapped({"name": "ClipAction", "kwarg": {}}))


def test_a_batched_environment_shapes_its_observations_itself():
    made = task(environment={"id": COUNTING, "wrappers": [SCALE], "batched": "counting_environment:NoEnvironment"})
    line = refusal(lambda: made.make_vec_env([iter([Episode("long", 1)])]))
    assert "wrappers" in line


# --- a policy remembers what it was trained behind -------------------------------------------------------------------


def test_a_policy_is_not_played_behind_other_figures_than_it_was_made_with(tmp_path):
    made = wrapped(SCALE)
    policy = build_policy(made.observation_space, made.action_space, Network(hidden=(4,)), 1)
    save_policy(policy, tmp_path / "policy", {WRAPPERS: made.wrappers})
    episodes = made.episodes("train", 1, 2, Purpose.EVALUATE)
    assert len(record_episodes(made, policy_actions(made, tmp_path / "policy", "p"), episodes, 0.0, 1)) == 2
    other = wrapped({**SCALE, "kwargs": {**SCALE["kwargs"], "mean": 2.5}})
    assert other.observation_space == made.observation_space  # nothing else would tell the two apart
    line = refusal(lambda: policy_actions(other, tmp_path / "policy", "p"))
    assert "was made behind the wrappers" in line
    assert "2.5" in line


# --- bounds that are declared too narrow -----------------------------------------------------------------------------


def test_wider_bounds_are_declared_for_some_elements_and_the_values_pass_unchanged():
    made = DeclareObservation(gym.make("CartPole-v1"), low=-9.0, high=9.0, elements=[0, 2])
    before = gym.make("CartPole-v1").observation_space
    assert made.observation_space.low.tolist() == [-9.0, before.low[1], -9.0, before.low[3]]
    assert made.observation_space.high.tolist() == [9.0, before.high[1], 9.0, before.high[3]]
    assert np.array_equal(made.reset(seed=3)[0], gym.make("CartPole-v1").reset(seed=3)[0])
    free = DeclareObservation(gym.make("Pendulum-v1"), low=None, high=8.5).observation_space
    assert (free.low == -np.inf).all() and (free.high == 8.5).all()


def test_wider_bounds_are_declared_for_a_key_of_a_mapping():
    space = DeclareObservation(DictOfTwo(), low=-2.0, high=None, key="speed").observation_space
    assert (space["speed"].low == -2.0).all() and (space["speed"].high == np.inf).all()
    assert space["switch"] == spaces.Discrete(2)


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({"low": 1.0, "high": 101.0}, "low and high must hold what Box(0.0, 100.0"),
        ({"low": 0.0, "high": 99.0}, "low and high must hold what Box(0.0, 100.0"),
        ({"low": 0.0, "high": 101.0, "elements": [1]}, "elements must be from 0 to 0"),
        ({"low": 0.0, "high": 101.0, "elements": [0.5]}, "elements must be from 0 to 0"),
        ({"low": 0.0, "high": 101.0, "key": "speed"}, "has no Box of floats under 'speed'"),
        ({"low": 0.0}, "'high'"),
        ({"low": "a", "high": 101.0}, "refuses its arguments"),
    ],
)
def test_bounds_that_mend_nothing_are_refused_in_one_line(kwargs, part):
    made = wrapped({"name": "pipeline.envs.limits:DeclareObservation", "kwargs": kwargs})
    assert part in refusal(lambda: made.observation_space)

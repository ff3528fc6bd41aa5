"""The clock in the observation and the trot that reads it, against the model of the Ant and by hand."""

from dataclasses import replace

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium import spaces

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Collect, Evaluate
from pipeline.envs import quadruped
from pipeline.envs.quadruped import GaitClock, diagonal_trot
from pipeline.errors import BadInput
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import run_episodes
from pipeline.tasks import Purpose, Task

PLAIN = {
    "hip_amplitude": 0.0, "ankle_amplitude": 0.0, "ankle_phase": 0.0, "hip_offset": 0.0, "ankle_offset": 0.0,
    "stiffness": 1.0, "damping": 0.0,
}  # fmt: skip
MIDDLE, HALF_HIP, HALF_ANKLE = np.radians([50, 30, 20])


@pytest.fixture(scope="module")
def model():
    return gym.make("Ant-v5").unwrapped.model


@pytest.fixture
def task(in_repository) -> Task:
    return Task(load_task("configs/tasks/quadruped.yaml"))


class Flat(gym.Env):
    """Observes 3 numbers that never change."""

    observation_space = spaces.Box(-5.0, 5.0, (3,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.array([1.0, 2.0, 3.0]), {}

    def step(self, action):
        return np.array([1.0, 2.0, 3.0]), 0.0, False, False, {}


def at(
    sine: float, cosine: float, angles: np.ndarray | float = 0.0, velocities: np.ndarray | float = 0.0
) -> np.ndarray:
    """An observation with this clock, joint angles and joint velocities, and nothing else."""
    seen = np.zeros(29, np.float32)
    seen[5:13], seen[19:27], seen[27:] = angles, velocities, (sine, cosine)
    return seen


# --- clock -----------------------------------------------------------------------------------------------------------


def test_the_clock_turns_once_in_a_period_and_starts_anew_with_every_episode():
    env = GaitClock(Flat(), period=4)
    assert env.observation_space == spaces.Box(
        np.array([-5, -5, -5, -1, -1], np.float32), np.array([5, 5, 5, 1, 1], np.float32)
    )
    rows = [env.reset()[0], *(env.step(0)[0] for _ in range(4))]
    by_hand = [[0, 1], [1, 0], [0, -1], [-1, 0], [0, 1]]
    assert np.allclose([row[3:] for row in rows], by_hand, atol=1e-6)
    assert all(row[:3].tolist() == [1, 2, 3] and row in env.observation_space for row in rows)
    env.step(0)
    assert env.reset()[0].tolist() == rows[0].tolist()


def test_a_clock_refuses_what_it_cannot_append_to_and_a_cycle_that_steps_cannot_show():
    with pytest.raises(ValueError, match="flat observation"):
        GaitClock(gym.make("FrozenLake-v1"), period=12)
    for period in (1.9, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="2 steps or more"):
            GaitClock(Flat(), period)


# --- the trot --------------------------------------------------------------------------------------------------------


def test_what_the_trot_takes_for_granted_is_so_in_the_model(model):
    joints = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, i) for i in range(1, model.njnt)]
    assert joints == [f"{part}_{leg}" for leg in (1, 2, 3, 4) for part in ("hip", "ankle")]
    low, high = model.jnt_range[1:].reshape(4, 2, 2).transpose(2, 0, 1)  # (4, 2): legs; hip, ankle
    assert np.allclose((low + high)[:, 0], 0)
    assert np.allclose((high - low)[:, 0] / 2, HALF_HIP)
    assert np.allclose(((low + high) / 2)[:, 1], quadruped.ANKLE_SIDES * MIDDLE)
    assert np.allclose((high - low)[:, 1] / 2, HALF_ANKLE)
    motors = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, i) for i in model.actuator_trnid[:, 0]]
    assert motors == [f"{part}_{leg + 1}" for leg in quadruped.MOTOR_LEGS for part in ("hip", "ankle")]
    hips = np.array([model.body(f"aux_{leg}").pos[:2] for leg in (1, 2, 3, 4)])
    assert np.array_equal(hips[[0, 1]], -hips[[2, 3]])  # legs 1 and 3 are opposite, and so are 2 and 4
    assert np.array_equal(np.sign(hips[:, 1]), -quadruped.HIP_DIRECTIONS)  # left and right


def test_torques_pull_to_the_targets_in_the_order_of_the_motors():
    by_leg = np.array([[0, MIDDLE], [0, -MIDDLE], [0, -MIDDLE], [0, MIDDLE]])
    assert np.allclose(diagonal_trot(at(0, 1, by_leg.ravel()), **PLAIN), 0, atol=1e-6)  # at rest on its targets
    off = by_leg + 0.01 * np.arange(8).reshape(4, 2)
    expected = -0.01 * np.array([6, 7, 0, 1, 2, 3, 4, 5])  # leg 4 first
    torques = diagonal_trot(at(0, 1, off.ravel()), **PLAIN)
    assert torques.dtype == np.float32
    assert np.allclose(torques, expected, atol=1e-6)
    assert np.allclose(diagonal_trot(at(0, 1, off.ravel()), **{**PLAIN, "stiffness": 0.5}), expected / 2, atol=1e-6)
    damped = diagonal_trot(at(0, 1, by_leg.ravel(), np.arange(8)), **{**PLAIN, "damping": 0.01})
    assert np.allclose(damped, expected, atol=1e-6)
    assert diagonal_trot(at(0, 1, 9.0), **PLAIN).tolist() == [-1.0] * 8  # no motor gives more


def test_diagonal_legs_swing_together_and_the_others_half_a_cycle_later():
    swing = {**PLAIN, "hip_amplitude": 0.5, "stiffness": 0.1}
    resting = np.array([[0, MIDDLE], [0, -MIDDLE], [0, -MIDDLE], [0, MIDDLE]]).ravel()
    hips = diagonal_trot(at(1, 0, resting), **swing)[::2][[1, 2, 3, 0]]  # a quarter of a cycle; legs 1 to 4
    target = 0.1 * 0.5 * HALF_HIP
    # left hips turn one way to go forwards and right hips the other: legs 1 and 3 forwards, 2 and 4 backwards
    assert np.allclose(hips, [-target, target, target, -target], atol=1e-6)
    assert np.allclose(diagonal_trot(at(-1, 0, resting), **swing)[::2][[1, 2, 3, 0]], -hips, atol=1e-6)
    lift = {**PLAIN, "ankle_amplitude": 0.5, "ankle_phase": np.pi / 2, "stiffness": 0.1}
    ankles = diagonal_trot(at(0, 1, resting), **lift)[1::2][[1, 2, 3, 0]]  # a quarter of a cycle ahead of the hips
    target = 0.1 * 0.5 * HALF_ANKLE
    assert np.allclose(ankles, [target, target, -target, -target], atol=1e-6)  # outwards or inwards, by the side


def test_the_trot_says_which_observation_it_needs():
    with pytest.raises(ValueError, match=r"29 numbers.*\(27,\)"):
        diagonal_trot(np.zeros(27), **PLAIN)


# --- the task --------------------------------------------------------------------------------------------------------


def test_the_shipped_trot_covers_ground_where_standing_still_scores_too(task):
    settings = load(Collect, "configs/quadruped/collect.yaml").scripted
    assert load(Evaluate, "configs/quadruped/trot/evaluate.yaml").scripted == settings  # whose mean is the target
    trot = scripted(settings.demonstrator, settings.kwargs)
    short = Task(replace(task.config, horizon=60))
    episodes = short.episodes("train", 1, 2, Purpose.EVALUATE)
    walked = run_episodes(short, trot.actor, episodes)
    stood = run_episodes(short, lambda rows: np.zeros((len(rows), 8), np.float32), episodes)
    steps = short.config.horizon
    assert (walked.metrics["length"] == steps).all()
    assert (walked.metrics["distance"] > 2).all()  # m in 3 s; it comes about twice as far
    assert (np.abs(stood.metrics["distance"]) < 1).all()
    assert (stood.metrics["return"] > 0.85 * steps).all()


def test_a_misspelt_parameter_of_the_trot_is_refused_by_name():
    with pytest.raises(BadInput, match="hip_amplitud"):
        scripted("pipeline.envs.quadruped:diagonal_trot", {**PLAIN, "hip_amplitud": 1.0})


def test_the_holdout_starts_further_from_rest_than_any_demonstration(task):
    def spread(scenario: str) -> float:
        env = task.make_env(scenario)
        return float(np.std([env.reset(seed=seed)[0][5:13] for seed in range(20)], axis=0).mean())

    assert spread("disturbed_start") / spread("default") == pytest.approx(2, rel=0.1)
    with pytest.raises(BadInput, match="hold-out scenario 'disturbed_start'"):
        task.refuse_holdouts("holdout", "recording")

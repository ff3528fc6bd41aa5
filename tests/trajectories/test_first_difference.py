"""Where two results first differ, with answers known by hand."""

from dataclasses import replace

import numpy as np
from gymnasium import spaces

from pipeline.config.training import Network
from pipeline.data import Trajectories
from pipeline.data.first_difference import between_evaluations, between_trajectories
from pipeline.policies import build_policy, save_policy
from pipeline.policies.artifact import between_policies


def trajectories(**changes) -> Trajectories:
    """Episodes of 2 and 3 steps."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.random((7, 2)).astype(np.float32),
        "actions": rng.random((5, 1)).astype(np.float32),
        "executed_actions": rng.random((5, 1)).astype(np.float32),
        "rewards": np.array([1, 2, 3, np.nan, 0.0], np.float32),
        "terminations": np.array([False, True, False, False, True]),
        "truncations": np.zeros(5, bool),
        "lengths": np.array([2, 3]),
        "seeds": np.array([11, 12]),
        "scenarios": np.array(["easy", "hard"]),
    }
    return Trajectories(**{**arrays, **changes}, metrics={"success": np.array([1.0, 0.0])})


def changed(name: str, row: int, value) -> Trajectories:
    base = trajectories()
    array = getattr(base, name).copy()
    array[row] = value
    return replace(base, **{name: array})


def test_equal_recordings_do_not_differ_nor_does_a_nan_from_itself():
    assert between_trajectories(trajectories(), trajectories()) is None


def test_a_recording_names_array_episode_and_step():
    assert between_trajectories(trajectories(), changed("rewards", 3, 9.0)) == (
        "episode 1: reward at step 1: recorded nan, replayed 9.0"
    )
    # row 3 is the first observation of the second episode: an episode has one more than steps
    assert between_trajectories(trajectories(), changed("observations", 3, 0.0)).startswith(
        "episode 1: observation[0] at step 0: recorded 0."
    )
    assert (
        between_trajectories(trajectories(), changed("seeds", 1, 13)) == "episode 1: hard, seed 13 (was hard, seed 12)"
    )


def test_the_earliest_step_counts_whichever_array_it_is_in():
    later = replace(changed("rewards", 4, 9.0), actions=changed("actions", 1, 9.0).actions)
    assert between_trajectories(trajectories(), later).startswith("episode 0: action[0] at step 1: recorded")


def test_the_sign_of_a_zero_is_a_difference_of_bits():
    assert between_trajectories(trajectories(), changed("rewards", 4, -0.0)) == (
        "episode 1: reward at step 2: recorded 0.0, replayed -0.0"
    )


def test_a_shorter_recording_differs_where_it_ends():
    whole = trajectories()
    assert between_trajectories(whole, whole.select([0])) == "episode 1: not there (was recorded)"
    assert between_trajectories(whole.select([0]), whole) == "episode 1: new"
    figure = replace(whole, metrics={"success": np.array([1.0, 1.0])})
    assert between_trajectories(whole, figure) == "episode 1: success 1.0 (was 0.0)"


def test_a_policy_names_the_first_tensor_and_how_far_it_is_off(tmp_path):
    policy = build_policy(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), Network(hidden=(4,)), 1)
    save_policy(policy, tmp_path / "a", {"seed": 1})
    save_policy(policy, tmp_path / "b", {"seed": 1})
    assert between_policies(tmp_path / "a", tmp_path / "b") is None
    save_policy(policy, tmp_path / "b", {"seed": 2})
    assert "the weights are equal" in between_policies(tmp_path / "a", tmp_path / "b")
    tensor = policy.state_dict()["action_net.bias"]
    tensor[1] += 0.25
    save_policy(policy, tmp_path / "b", {"seed": 1})
    assert between_policies(tmp_path / "a", tmp_path / "b") == (
        "tensor action_net.bias: 1 of 2 values differ, the largest by 0.25"
    )


def test_a_training_names_the_first_evaluation_and_the_figure():
    def record(middle: float, final: float, points: int = 2):
        figures = [{"success_rate": 0.1, "return_mean": float("nan")}, {"success_rate": middle}][:points]
        evaluations = [{"timestep": 100 * i, "figures": f} for i, f in enumerate(figures)]
        return {"evaluations": evaluations, "final_figures": {"success_rate": final}}

    assert between_evaluations(record(0.5, 0.9), record(0.5, 0.9)) is None
    assert between_evaluations(record(0.5, 0.9), record(0.6, 0.7)) == (
        "evaluation at step 100: success_rate 0.6 (was 0.5)"
    )
    assert between_evaluations(record(0.5, 0.9), record(0.5, 0.7)) == "final evaluation: success_rate 0.7 (was 0.9)"
    assert between_evaluations(record(0.5, 0.9), record(0.5, 0.9, points=1)) == (
        "final evaluation (was evaluation at step 100)"
    )

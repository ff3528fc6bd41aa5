"""`check`: demonstrations of anybody held to the rules without a store, and figures that are worked by hand."""

import json
import tracemalloc

import numpy as np
import pytest
from test_corruptions import Corruption, corrupted

from pipeline.cli import ask
from pipeline.data.foreign import ForeignEpisode, ForeignSet, take_in
from pipeline.data.formats import read_foreign
from pipeline.errors import BadInput
from pipeline.validation.check import check, figures_of


def demonstrations(path, episodes: int = 24, **changes):
    """Episodes of 6 to 17 steps, actions a function of what is observed."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 18, episodes)
    observations = rng.normal(size=(lengths.sum() + episodes, 3))
    before = np.delete(observations, np.cumsum(lengths + 1) - 1, axis=0)
    arrays = {"observations": observations, "actions": np.tanh(before[:, :2]), "lengths": lengths}
    np.savez(path, **{**arrays, **changes})
    return path


def test_every_rule_has_a_line_and_the_exit_code_says_whether_all_hold(tmp_path, capsys):
    path = str(demonstrations(tmp_path / "theirs.npz"))
    assert ask(["check", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "missing: rewards, ends, seeds, spaces, metric.return" in lines
    assert "rewards_finite          not run  the dataset has no rewards" in lines
    assert "observations_finite     holds" in lines and "every rule that applies holds" in lines[-1]
    assert "near duplicates         none" in lines
    assert ask(["check", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "validated" and told["figures"]["near_duplicates"] == []

    actions = np.load(path)["actions"]
    actions[7, 1] = np.nan
    assert ask(["check", str(demonstrations(tmp_path / "broken.npz", actions=actions))]) == 1
    out = capsys.readouterr().out
    assert "actions_finite          failed   episode" in out and "actions[1] is nan: nan, bound finite" in out

    lengths = np.load(path)["lengths"]
    rough = np.load(path)["actions"]
    rough[: lengths[0]] = np.where(np.arange(lengths[0]) % 2, 9, -9)[:, None]
    ask(["check", str(demonstrations(tmp_path / "rough.npz", actions=rough))])
    assert "roughest episode        0" in capsys.readouterr().out.splitlines()
    assert ask(["check", path, "--scenario", "calm"]) == 2
    assert "scenario 'calm' is one of a task; give its file as well (--task)" in capsys.readouterr().err

    for bad in (tmp_path / "nowhere.npz", tmp_path, tmp_path / "a.txt"):
        (tmp_path / "a.txt").write_text("x")
        assert ask(["check", str(bad)]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_a_dataset_of_ours_is_checked_as_it_lies_on_disk(good, tmp_path):
    corrupted(good, Corruption("nothing", "none", lambda arrays, metadata: None), tmp_path / "data")
    checked = check(tmp_path / "data")
    assert checked.report.passed and checked.figures["duration_outliers"] == []
    with pytest.raises(BadInput, match="scenario 'typo': this dataset says of each episode which it is"):
        check(tmp_path / "data", "configs/tasks/social_nav.yaml", "typo")
    (tmp_path / "data" / "trajectories.npz").write_bytes(b"no zip")
    checked = check(tmp_path / "data")
    assert checked.report.failed_rules == ("readable",) and checked.figures == {}


def test_the_task_says_what_the_file_does_not(tmp_path):
    (tmp_path / "task.yaml").write_text(
        "name: swing\nenvironment: {id: Pendulum-v1}\nsuccess: {return_at_least: 0}\nthresholds: {}\n"
        "scenarios: {a: {}, b: {}}\nscenario_sets: {train: {a: 1, b: 1}}\n"
    )
    path, task = demonstrations(tmp_path / "theirs.npz"), str(tmp_path / "task.yaml")
    with pytest.raises(
        BadInput, match=r"one row of actions is float64 \(2,\), the task's environment has float32 \(1,\)"
    ):
        check(path, task)
    actions = np.load(path)["actions"][:, :1] * 3
    checked = check(demonstrations(tmp_path / "one.npz", actions=actions), task, "b")
    assert checked.report.failed_rules == ("actions_in_space", "observations_in_space")
    with pytest.raises(BadInput, match="scenario 'c' is not in"):
        check(tmp_path / "one.npz", task, "c")


def test_figures_of_pictures_take_little_more_memory_than_the_pictures():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (31, 3, 64, 64), dtype=np.uint8) for _ in range(20)]
    pictures[2][5] = pictures[2][4]  # a step stands still, and nearly so another, which are told apart
    pictures[3][8] = pictures[3][7]
    pictures[3][8, 0, 0, 1] ^= 1
    pictures[9][:] = pictures[8]
    episodes = tuple(ForeignEpisode(seen, rng.normal(size=(30, 2))) for seen in pictures)
    data, metadata = take_in(ForeignSet("npz", episodes, "shown", "1", "0" * 36), None)
    tracemalloc.start()
    try:
        found = figures_of(data, metadata)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["static_steps"] == 1 / data.steps and found["near_duplicates"] == [[8, 9]]
    assert peak < 5 * data.observations.nbytes  # 13 times before parts of them were looked at


def figures(path, **changes):
    return figures_of(*take_in(read_foreign(demonstrations(path, **changes)), None))


def test_figures_are_those_of_the_arrays(tmp_path):
    plain = np.load(demonstrations(tmp_path / "plain.npz"))
    lengths, observations, actions = plain["lengths"], plain["observations"].copy(), plain["actions"].copy()
    found = figures(tmp_path / "a.npz")
    assert found["static_steps"] == 0 and found["contradiction"] < 0.1 and found["saturated_steps"] is None
    first = np.concatenate([[0], np.cumsum(lengths + 1)])

    observations[1] = observations[0]  # one step of all stands still
    assert figures(tmp_path / "b.npz", observations=observations)["static_steps"] == 1 / lengths.sum()

    shuffled = np.random.default_rng(1).permutation(actions)
    assert figures(tmp_path / "c.npz", actions=shuffled)["contradiction"] > 0.7

    longer = np.append(lengths, lengths[3])  # episode 24 is episode 3 with a little noise
    again = observations[first[3] : first[4]] + 1e-4
    rows, more = np.concatenate([observations, again]), np.concatenate([actions, actions[: lengths[3]]])
    found = figures(tmp_path / "d.npz", observations=rows, actions=more, lengths=longer)
    assert found["near_duplicates"] == [[3, 24]]

    actions[lengths[:5].sum() : lengths[:6].sum()] *= np.where(np.arange(lengths[5]) % 2, 9, -9)[:, None]
    assert figures(tmp_path / "e.npz", actions=actions)["roughest_episode"] == 5

    endless = np.array([10] * 20 + [200])
    rng = np.random.default_rng(2)
    rows, more = rng.normal(size=(421, 3)), rng.normal(size=(400, 2))
    found = figures(tmp_path / "f.npz", observations=rows, actions=more, lengths=endless)
    assert found["duration_outliers"] == [20]

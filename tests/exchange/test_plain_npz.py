"""Plain .npz files: read with what they hold, and with what they lack said; hostile ones are refused in one line."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.loading import validate as validate_config
from pipeline.config.task import TaskConfig, Wrapper
from pipeline.config.training import Cloning, Network
from pipeline.data import DatasetMetadata, Trajectories, content_digest, load_dataset, save_dataset, told_of_source
from pipeline.data.foreign import ImportTarget, take_in
from pipeline.data.formats import read_foreign
from pipeline.data.formats.minari import export_minari
from pipeline.data.formats.npz import export_plain_npz, read_plain_npz
from pipeline.errors import BadInput
from pipeline.learning.cloning import clone, train_critic
from pipeline.policies import build_policy
from pipeline.tasks import Task
from pipeline.validation.facts import Context
from pipeline.validation.rules import validate

DOOR = Path(__file__).resolve().parents[3] / "shared" / "data" / "adroit_door_human" / "demonstrations.npz"
TASK = validate_config(
    TaskConfig,
    {
        "name": "swing", "environment": {"id": "Pendulum-v1"}, "success": {"return_at_least": 0.0}, "thresholds": {},
        "scenarios": {"normal": {}}, "scenario_sets": {"train": {"normal": 1.0}},
    },
    "test",
)  # fmt: skip
TARGET = ImportTarget(Task(TASK), "normal")
LENGTHS = np.array([12, 5, 30] * 8)


def complete() -> dict[str, np.ndarray]:
    """24 episodes of a pendulum's spaces, with every part; float64 as people store it."""
    rng, steps = np.random.default_rng(0), int(LENGTHS.sum())
    ends = np.zeros(steps, bool)
    ends[np.cumsum(LENGTHS) - 1] = True
    return {
        "observations": rng.uniform(-1, 1, (steps + len(LENGTHS), 3)),
        "actions": rng.uniform(-2, 2, (steps, 1)),
        "lengths": LENGTHS,
        "rewards": rng.normal(size=steps),
        "terminations": ends & (rng.uniform(size=steps) < 0.5),
        "truncations": np.zeros(steps, bool),
        "seeds": np.arange(len(LENGTHS)) + 2**40,
    }


def written(path: Path, arrays: dict[str, np.ndarray], compressed: bool = True) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def taken(path: Path, arrays: dict, **choices) -> tuple[Trajectories, DatasetMetadata]:
    return take_in(read_plain_npz(written(path / "theirs.npz", arrays)), TARGET, **choices)


def refusal(action) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("compressed", [True, False])
def test_what_is_complete_comes_in_whole(tmp_path, compressed):
    arrays = complete() | {"extra": np.arange(3.0), "transposed": np.asfortranarray(np.ones((4, 3)))}
    arrays["truncations"] = ~arrays["terminations"] & np.isin(np.arange(LENGTHS.sum()), np.cumsum(LENGTHS) - 1)
    arrays["observations"] = np.asfortranarray(arrays["observations"])
    found = read_plain_npz(written(tmp_path / "theirs.npz", arrays, compressed))
    assert found.ignored == ("extra", "transposed")
    data, metadata = take_in(found, TARGET)
    assert metadata.missing == () and metadata.demonstrator["digest"] == found.digest and found.format == "npz"
    for name in ("observations", "actions", "rewards"):
        assert np.array_equal(getattr(data, name), arrays[name].astype(np.float32))
    assert np.array_equal(data.seeds, arrays["seeds"]) and np.array_equal(data.truncations, arrays["truncations"])
    assert data.metrics["return"][1] == sum(arrays["rewards"][12:17].tolist())
    report = validate((data, metadata), Context(task=TASK, **spaces_of_task()))
    assert report.passed, report.summary()


def spaces_of_task() -> dict[str, spaces.Space]:
    return {"observation_space": TARGET.task.observation_space, "action_space": TARGET.task.action_space}


def test_without_truncations_what_did_not_terminate_was_cut_off(tmp_path):
    arrays = complete()
    del arrays["truncations"]
    data, metadata = taken(tmp_path, arrays)
    last = np.cumsum(LENGTHS) - 1
    assert np.array_equal(data.truncations[last], ~data.terminations[last]) and data.truncations.sum() < len(LENGTHS)
    assert metadata.missing == ()


def lacking(*names: str) -> dict[str, np.ndarray]:
    """The same without some parts; `final` are the observations after the last steps."""
    arrays = {name: array for name, array in complete().items() if name not in names}
    if "final" in names:
        arrays["observations"] = np.delete(arrays["observations"], np.cumsum(LENGTHS + 1) - 1, axis=0)
    return arrays


NOTHING = ("final", "rewards", "terminations", "truncations", "seeds")
LACKING = {
    ("final",): ("final_observations",),
    ("rewards",): ("rewards", "metric.return", "metric.success"),
    ("terminations", "truncations"): ("ends",),
    ("seeds",): ("seeds",),
    NOTHING: ("final_observations", "rewards", "ends", "seeds", "metric.return", "metric.success"),
}


@pytest.mark.parametrize("names", LACKING, ids="-".join)
def test_what_is_missing_is_said_and_nothing_is_made_up(names, tmp_path):
    data, metadata = taken(tmp_path, lacking(*names))
    assert metadata.missing == LACKING[names] and told_of_source(metadata)[0] == f"missing: {', '.join(LACKING[names])}"
    assert ("rewards" in names) == bool(np.isnan(data.rewards).all()) == ("return" not in data.metrics)
    assert ("terminations" in names) == (not (data.terminations | data.truncations).any())
    assert ("final" in names) == (len(data.observations) == data.steps) and len(data.episode(1).actions) == 5
    assert len(data.episode(1).observations) == 5 + ("final" not in names)
    save_dataset(tmp_path / "ours", data, metadata)
    again, described = load_dataset(tmp_path / "ours")
    assert content_digest(again) == metadata.content_digest and described == metadata
    report = validate(tmp_path / "ours", Context(task=TASK, **spaces_of_task()))
    if names not in (("rewards",), ("final",), ("seeds",)):  # of these some episodes of the file have no end
        assert report.passed, report.summary()
    reasons = {outcome.rule: outcome.reason for outcome in report.rules if outcome.reason.startswith("the dataset has")}
    expected = {
        "final": "one_observation_more", "rewards": "rewards_finite", "terminations": "ends", "seeds": "replay"
    }  # fmt: skip
    for part, rule in expected.items():
        assert (part in names) == (rule in reasons) or rule == "replay", reasons


def test_a_part_that_is_missing_without_a_word_is_a_fault(tmp_path):
    for names, rule in ((("final",), "one_observation_more"), (("rewards",), "rewards_finite")):
        data, metadata = taken(tmp_path, lacking(*names))
        report = validate((data, replace(metadata, missing=())), Context())
        assert rule in report.failed_rules or "arrays_present" in report.failed_rules


def test_the_steps_that_were_followed_by_something_are_those_a_critic_learns_from(tmp_path):
    """Worked by hand on episodes of 2 and 3 steps: with T observations, the last step has no successor."""
    arrays = {
        "observations": np.arange(15.0).reshape(5, 3) / 15, "actions": np.zeros((5, 1)),
        "rewards": np.array([1, 2, 3, 4, 5.0]), "lengths": np.array([2, 3]),
    }  # fmt: skip
    data, _ = taken(tmp_path, arrays)
    cut = data.followed()
    assert cut.lengths.tolist() == [1, 2] and cut.rewards.tolist() == [1, 3, 4]
    assert np.array_equal(cut.observations, data.observations) and cut.truncations.tolist() == [True, False, True]
    assert cut.discounted_returns(0.5, np.array([10.0, 20.0])).tolist() == [1 + 5, 3 + 2 + 5, 4 + 10]
    with_final = arrays | {"observations": np.arange(21.0).reshape(7, 3) / 21}
    cut = taken(tmp_path, with_final)[0].followed()
    assert (cut.observations[:, 0] * 21).round().tolist() == [0, 3, 9, 12, 15]
    whole = complete()
    whole["truncations"] = ~whole["terminations"] & np.isin(np.arange(LENGTHS.sum()), np.cumsum(LENGTHS) - 1)
    data, _ = taken(tmp_path, whole)
    assert data.followed() is data


def test_actors_are_cloned_from_what_lacks_everything_and_critics_only_from_rewards(tmp_path):
    for names, trained in ((NOTHING, 0), (("final", "terminations", "truncations"), 2)):
        data, _ = taken(tmp_path, lacking(*names))
        policy = build_policy(*spaces_of_task().values(), Network(), seed=1)
        chosen = Cloning(epochs=1, critic_epochs=2, select="validation_loss")
        result = clone(policy, data, chosen, seed=1)
        assert len(result.critic_epochs) == trained and result.best_epoch == 1
        assert np.isfinite(result.epochs[-1].metrics["bc/val_loss"])
    critic = train_critic(policy, data, np.arange(20), np.arange(20, 24), chosen, seed=1)
    assert np.isfinite([point.metrics["critic/val_loss"] for point in critic]).all()


def test_episodes_are_left_out_by_their_number_and_the_dataset_says_which(tmp_path):
    data, metadata = taken(tmp_path, complete(), leave_out=[0, 2])
    assert len(data) == 22 and data.lengths[0] == 5 and metadata.demonstrator["left_out_episodes"] == [0, 2]
    assert "left out: 0, 2" in told_of_source(metadata)
    whole, _ = taken(tmp_path, complete())
    assert content_digest(whole.select(range(3, 24))) == content_digest(data.select(range(1, 22)))
    assert "no episode 24; there are 24" in refusal(lambda: taken(tmp_path, complete(), leave_out=[24]))
    assert "nothing would be left" in refusal(lambda: taken(tmp_path, complete(), leave_out=range(24)))


@pytest.mark.parametrize("lacks", [(), ("seeds",)])
def test_episodes_are_left_out_of_an_export_of_ours_too_and_the_dataset_says_which(tmp_path, lacks):
    data, metadata = taken(tmp_path, lacking(*lacks))
    export_minari(data, metadata, tmp_path / "out")
    left, described = take_in(read_foreign(tmp_path / "out", "minari"), None, [0, 2])
    assert (len(left), described.episodes, described.steps) == (22, 22, left.steps)
    assert described.content_digest == content_digest(left) != metadata.content_digest
    assert described.demonstrator["left_out_episodes"] == [f"{i} of {metadata.dataset_id}" for i in (0, 2)]
    assert described.left_out == (() if lacks else (2**40, 2**40 + 2))


def test_actions_outside_of_their_space_are_a_finding_and_clipped_when_that_is_asked_for(tmp_path):
    arrays = complete()
    arrays["actions"][[3, 12]] = [[2.5], [-2.25]]
    data, metadata = taken(tmp_path, arrays)
    found = [one for one in validate((data, metadata), Context()).findings if one.rule == "actions_in_space"]
    assert (found[0].episode, found[0].step, found[0].value) == (0, 3, 2.5) and "clip_actions" in found[0].message
    data, metadata = taken(tmp_path, arrays, clip_actions=True)
    assert data.actions[[3, 12]].ravel().tolist() == [2.0, -2.0]
    assert metadata.demonstrator["clipped"] == "2 of 376 action values, up to 0.5 beyond the action space"
    assert "actions_in_space" not in validate((data, metadata), Context()).failed_rules


def test_only_actions_of_the_shape_of_their_space_are_clipped(tmp_path):
    found = read_plain_npz(written(tmp_path / "theirs.npz", complete()))  # one number an action
    declared = {"observation_space": spaces.Box(-8, 8, (3,)), "action_space": spaces.Box(-1, 1, (2,))}
    words = "clip_actions: episode 0: one row of actions is float64 (1,), the action space has (2,)"
    assert words in refusal(lambda: take_in(replace(found, **declared), TARGET, clip_actions=True))
    wide = replace(found.episodes[1], actions=np.zeros((5, 3)))
    found = replace(found, episodes=(found.episodes[0], wide))
    assert "episode 1: one row of actions is" in refusal(lambda: take_in(found, None, clip_actions=True))
    assert len(take_in(found, None, [1], clip_actions=True)[0]) == 1


def test_another_robots_rows_and_odd_lengths_are_refused_by_name(tmp_path):
    arrays, steps = complete(), int(LENGTHS.sum())
    for change, words in (
        ({"observations": np.zeros((steps, 4))}, "one row of observations is float64 (4,)"),
        ({"actions": np.zeros((steps, 2))}, "one row of actions is float64 (2,)"),
        ({"actions": np.full((steps, 1), True).astype(str)}, "actions is <U5"),
        ({"lengths": LENGTHS - 1}, "observations has shape"),
        ({"lengths": LENGTHS.astype(float)}, "lengths must be"),
        ({"lengths": np.array([0, *LENGTHS])}, "lengths must be"),
        ({"lengths": np.array([2**62, 2**62, 2**62, 2**62])}, "expected"),
        ({"rewards": np.zeros(3)}, "rewards has shape (3,)"),
        ({"rewards": np.zeros((steps, 2))}, "one a row"),
        ({"seeds": np.zeros(24)}, "seeds are float64"),
        ({"info.success": np.zeros(2)}, "info.success has shape (2,)"),
    ):
        assert words in refusal(lambda c=change: taken(tmp_path, arrays | c)), words
    del arrays["lengths"]
    assert "no array 'lengths'" in refusal(lambda: taken(tmp_path, arrays))
    assert "truncations without terminations" in refusal(lambda: taken(tmp_path, lacking("terminations")))
    whole = {
        "observations.image": np.zeros((steps, 3)),
        **{k: v for k, v in lacking("final").items() if k != "observations"},
    }
    assert "it observes ('image',)" in refusal(lambda: taken(tmp_path, whole))


def test_figures_come_from_infos_where_the_file_holds_them(tmp_path):
    told = replace(TASK, success=replace(TASK.success, return_at_least=None, info="solved"))
    target = ImportTarget(Task(told), "normal")
    solved = np.isin(np.arange(LENGTHS.sum()), np.cumsum(LENGTHS)[::2] - 1).astype(float)
    found = read_plain_npz(written(tmp_path / "a.npz", complete() | {"info.solved": solved}))
    assert take_in(found, target)[0].metrics["success"].tolist() == [1.0, 0.0] * 12
    found = read_plain_npz(written(tmp_path / "b.npz", complete()))
    assert take_in(found, target)[1].missing == ("metric.success",)
    found = read_plain_npz(written(tmp_path / "c.npz", complete() | {"info.solvd": solved}))
    assert "did you mean" in refusal(lambda: take_in(found, target)).lower()


def test_a_user_can_say_that_it_was_recorded_through_the_wrappers_of_the_task(tmp_path):
    wrapped = replace(TASK, environment=replace(TASK.environment, wrappers=(Wrapper(name="FlattenObservation"),)))
    found = read_plain_npz(written(tmp_path / "a.npz", complete()))
    for behind, remedies in ((False, 1), (True, 0)):
        taken = take_in(found, ImportTarget(Task(wrapped), "normal", behind_wrappers=behind))
        outcomes = {outcome.rule: outcome for outcome in validate(taken, Context(task=wrapped)).rules}
        assert outcomes["matches_task"].findings == remedies
    named = replace(found, environment={"id": "Pendulum-v1", "kwargs": {}, "wrappers": []})
    target = ImportTarget(Task(wrapped), "normal", behind_wrappers=True)
    assert "behind_wrappers: the set says itself" in refusal(lambda: take_in(named, target))


def test_without_a_task_the_file_is_seen_as_it_is(tmp_path):
    data, metadata = take_in(read_foreign(written(tmp_path / "a.npz", lacking("seeds"))), None)
    assert metadata.missing == ("seeds", "spaces") and data.observations.dtype == np.float64
    reasons = {outcome.rule: outcome.reason for outcome in validate((data, metadata), Context()).rules}
    assert reasons["actions_in_space"] == reasons["spaces"] == "the dataset has no spaces"


def test_the_human_door_demonstrations_lack_what_their_description_says():
    if not DOOR.exists():
        pytest.skip(f"the demonstrations that others recorded are not at {DOOR}; this test reads them from there")
    found = read_foreign(DOOR)
    assert len(found.episodes) == 25 and found.ignored == ("initial_qpos", "initial_qvel", "initial_door_body_pos")
    data, metadata = take_in(found, None)
    assert metadata.missing == ("final_observations", "ends", "seeds", "spaces")
    assert (data.steps, data.lengths.min(), data.lengths.max()) == (6729, 223, 300)
    assert validate((data, metadata), Context()).passed


def test_what_is_exported_comes_back_with_the_same_bits_and_the_same_parts_missing(tmp_path):
    for index, names in enumerate((("seeds",), NOTHING)):
        data, metadata = taken(tmp_path, lacking(*names))
        data = replace(data, actions=data.actions / 2)  # labels that noise kept apart
        export_plain_npz(data, tmp_path / f"out-{index}.npz")
        again, described = take_in(read_plain_npz(tmp_path / f"out-{index}.npz"), TARGET)
        assert described.missing == metadata.missing
        same = [name for name in data.to_arrays() if name != "metric.return"]  # of float32 rewards now
        assert all(again.to_arrays()[name].tobytes() == data.to_arrays()[name].tobytes() for name in same)
    assert "exists; give a new one" in refusal(lambda: export_plain_npz(data, tmp_path / "out-0.npz"))


# --- hostile ----------------------------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_hostile_archives_are_refused_in_one_line(tmp_path):
    path = tmp_path / "hostile.npz"
    objects = npy(np.array([Path("/")], dtype=object))
    bomb = npy(np.zeros(1 << 24))  # 128 MiB that deflate packs into 130 kB
    for content in (
        b"", b"no zip", zipped({"lengths.npy": objects}), zipped({"actions.npy": b"\x93NUMPY\x01\x00"}),
        zipped({"observations.npy": bomb, "actions.npy": bomb}, zipfile.ZIP_DEFLATED),
        zipped({f"m{i}.npy": b"" for i in range(300)}),
        zipped({"observations.npy": npy(np.zeros(3)), "observations.a.npy": npy(np.zeros(3))}),
    ):  # fmt: skip
        path.write_bytes(content)
        refusal(lambda: read_plain_npz(path))
    path.write_bytes(zipped({"unused.npy": objects}))  # what is not read is not opened
    assert "no array 'lengths'" in refusal(lambda: read_plain_npz(path))


WHOLE = io.BytesIO()
np.savez_compressed(WHOLE, **lacking("final"))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE.getvalue()) - 1), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_mutated_file_is_read_or_refused_in_one_line(tmp_path_factory, place, put, cut):
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    whole = WHOLE.getvalue()
    path.write_bytes(whole[:place] if cut else whole[:place] + put + whole[place + len(put) :])
    try:
        take_in(read_plain_npz(path), TARGET)
    except BadInput as error:
        assert "\n" not in str(error)

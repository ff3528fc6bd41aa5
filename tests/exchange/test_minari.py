"""Minari datasets: ours survive the round trip bit for bit, others are validated, hostile ones are refused."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from pipeline.config.loading import validate as validate_config
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput
from pipeline.exchange import ImportTarget, export_minari, import_minari
from pipeline.spaces import space_to_json
from pipeline.trajectories import DatasetMetadata, Trajectories, content_digest, save_dataset
from pipeline.validation import Context, validate

TASK = validate_config(
    TaskConfig,
    {
        "name": "swing",
        "environment": {"id": "Pendulum-v1"},
        "success": {"return_at_least": 0.0},
        "thresholds": {"success_rate": {"min": 0.5}},
        "scenarios": {"normal": {}},
        "scenario_sets": {"train": {"normal": 1.0}},
    },
    "test",
)
OBSERVATIONS = spaces.Box(np.array([-1, -np.inf, -8], np.float32), np.array([1, np.inf, 8], np.float32))


def recorded(actions: spaces.Space, noise: bool) -> tuple[Trajectories, DatasetMetadata]:
    """Three episodes of 4, 1 and 6 steps with odd values: subnormal, negative zero, infinite bounds."""
    rng = np.random.default_rng(0)
    lengths = np.array([4, 1, 6])
    ends = np.isin(np.arange(11), np.cumsum(lengths) - 1)
    observations = rng.uniform(-1, 1, (14, 3)).astype(np.float32)
    observations[3] = [-0.0, 1e-42, 7.999999]
    clean = np.array([actions.sample() for _ in range(11)], dtype=actions.dtype)
    executed = np.array([actions.sample() for _ in range(11)], dtype=actions.dtype) if noise else clean
    rewards = rng.normal(size=11).astype(np.float32)
    returns = np.add.reduceat(rewards.astype(np.float64), [0, 4, 5])
    data = Trajectories(
        observations=observations,
        actions=clean,
        executed_actions=executed,
        rewards=rewards,
        terminations=ends & (np.arange(11) < 5),
        truncations=ends & (np.arange(11) >= 5),
        lengths=lengths,
        seeds=np.array([5, 2**31 - 1, 0]),
        scenarios=np.array(["normal", "a_much_longer_name", "normal"]),
        metrics={"return": returns, "length": lengths.astype(np.float64), "success": np.array([1.0, 0.0, 1 / 3])},
    )
    metadata = DatasetMetadata(
        dataset_id="swing-1/odd id",
        created_at="2026-01-01T00:00:00Z",
        task="swing",
        scenario_set="train",
        scenario_coverage={"normal": 2, "a_much_longer_name": 1},
        requested_shares={"normal": 2 / 3, "a_much_longer_name": 1 / 3},
        demonstrator={"kind": "scripted", "name": "pd", "version": "1", "digest": "x", "gain": 0.1},
        seeds=(1,),
        noise_std=0.3 if noise else 0.0,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(OBSERVATIONS),
        action_space=space_to_json(actions),
        environment={"id": "Pendulum-v1", "kwargs": {"g": 5.0}, "scenarios": {}},
        holdout_scenarios=(),
        episodes=3,
        steps=11,
        content_digest=content_digest(data),
    )
    return data, metadata


@pytest.mark.parametrize("noise", [True, False], ids=["noise", "no noise"])
@pytest.mark.parametrize("actions", [spaces.Box(-2, 2, (2,)), spaces.Discrete(4), spaces.MultiBinary(3)], ids=str)
def test_our_datasets_survive_the_round_trip_bit_for_bit(actions, noise, tmp_path):
    data, metadata = recorded(actions, noise)
    export_minari(data, metadata, tmp_path / "out")
    again, described = import_minari(tmp_path / "out")
    assert content_digest(again) == metadata.content_digest and described == metadata
    ours, theirs = data.to_arrays(), again.to_arrays()
    assert all(
        ours[name].tobytes() == theirs[name].tobytes() and ours[name].dtype == theirs[name].dtype for name in ours
    )


def test_minari_itself_reads_what_we_export(tmp_path):
    data, metadata = recorded(spaces.Box(-2, 2, (2,)), noise=True)
    export_minari(data, metadata, tmp_path / "out")
    opened = minari.MinariDataset(tmp_path / "out" / "data")
    assert (opened.total_episodes, opened.total_steps) == (3, 11)
    assert opened.env_spec.id == "Pendulum-v1" and opened.env_spec.kwargs == {"g": 5.0}
    for index, episode in enumerate(opened):
        mine = data.episode(index)
        assert np.array_equal(episode.observations, mine.observations)
        assert np.array_equal(episode.actions, mine.executed_actions)
        assert np.array_equal(episode.infos["label"], mine.actions)
        assert np.array_equal(episode.rewards, mine.rewards)


def foreign(folder: Path, episodes: int = 25, **change) -> Path:
    """What somebody else's Minari dataset of Pendulum looks like: float64 rewards, no seeds, infos of their own."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    storage = MinariStorage.new(
        folder / "data",
        observation_space=spaces.Box(-8, 8, (3,)),
        action_space=spaces.Box(-2, 2, (1,)),
        jpeg_encoding=False,
    )
    storage.update_metadata({"dataset_id": "pendulum/expert-v0", "minari_version": "0.5.4", "algorithm_name": "SAC"})
    buffers = []
    for _ in range(episodes):
        steps = int(rng.integers(5, 9))
        parts = {
            "observations": np.cumsum(rng.normal(0, 0.1, (steps + 1, 3)), axis=0).astype(np.float32),
            "actions": rng.uniform(-2, 2, (steps, 1)).astype(np.float32),
            "rewards": rng.normal(size=steps),
            "terminations": np.zeros(steps, bool),
            "truncations": np.arange(steps) == steps - 1,
            "infos": {"energy": rng.normal(size=steps + 1), "nested": {"x": np.ones(steps)}},
        }
        buffers.append(EpisodeBuffer(**{**parts, **change}))
    storage.update_episodes(buffers)
    return folder


def test_a_foreign_dataset_is_described_and_passes_our_validation(tmp_path):
    data, metadata = import_minari(foreign(tmp_path / "theirs"), ImportTarget(TASK, "normal"))
    assert metadata.demonstrator["kind"] == "imported" and metadata.demonstrator["algorithm"] == "SAC"
    assert data.rewards.dtype == np.float32 and (data.seeds == -1).all() and len(data) == 25
    save_dataset(tmp_path / "ours", data, metadata)
    report = validate(tmp_path / "ours", Context(task=TASK))
    assert report.passed, report.summary()
    assert any("alignment in time" in note for note in report.notes)


def test_a_foreign_dataset_with_a_fault_is_quarantined_by_our_rules(tmp_path):
    """Minari takes an infinite action without a word."""
    folder = foreign(tmp_path / "theirs")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_3/actions"][2, 0] = np.inf
    data, metadata = import_minari(folder, ImportTarget(TASK, "normal"))
    report = validate((data, metadata), Context(task=TASK))
    assert report.failed_rules == ("actions_finite",)
    assert (report.findings[0].episode, report.findings[0].step) == (3, 2)


def test_figures_of_the_task_come_from_infos_or_are_missed_by_name(tmp_path):
    folder = foreign(tmp_path / "theirs")
    measured = validate_config(
        TaskConfig,
        {
            "name": "swing", "environment": {"id": "Pendulum-v1"}, "success": {"info": "solved"},
            "thresholds": {}, "scenarios": {"normal": {}}, "scenario_sets": {"train": {"normal": 1.0}},
            "metrics": {"peak": {"info": "energy", "over": "max"}},
        },
        "test",
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"success needs the info 'solved'.*they have: energy"):
        import_minari(folder, ImportTarget(measured, "normal"))
    with_return = replace(measured, success=TASK.success)
    data, _ = import_minari(folder, ImportTarget(with_return, "normal"))
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        assert data.metrics["peak"][7] == file["episode_7/infos/energy"][()].max()
    with pytest.raises(BadInput, match="scenario 'storm' is not in"):
        import_minari(folder, ImportTarget(TASK, "storm"))
    with pytest.raises(BadInput, match="not exported by this product"):
        import_minari(folder)


def edit(folder: Path, change) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        change(file)


def replaced(name: str, **how):
    def change(file):
        del file[name]
        file.create_dataset(name, **how)

    return change


def linked(kind):
    def change(file):
        del file["episode_0/rewards"]
        file["episode_0/rewards"] = kind

    return change


def virtual(file):
    layout = h5py.VirtualLayout(shape=(6,), dtype="f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(6,))
    del file["episode_0/rewards"]
    file.create_virtual_dataset("episode_0/rewards", layout)


HOSTILE = {
    "bomb": replaced("episode_0/rewards", shape=(10**12,), dtype="f8", chunks=(1000,), compression="gzip"),
    "external storage": replaced("episode_0/rewards", shape=(6,), dtype="u1", external=[("/etc/passwd", 0, 6)]),
    "external link": linked(h5py.ExternalLink("/etc/passwd", "/x")),
    "soft link": linked(h5py.SoftLink("/episode_1/rewards")),
    "virtual": virtual,
    "text": replaced("episode_0/rewards", data=np.array([b"a"] * 6)),
    "objects": replaced("episode_0/rewards", shape=(6,), dtype=h5py.string_dtype()),
    "references": replaced("episode_0/rewards", shape=(6,), dtype=h5py.ref_dtype),
    "scalar": replaced("episode_0/rewards", data=1.0),
    "one row too many": replaced("episode_0/terminations", data=np.zeros(99, bool)),
    "another dtype": replaced("episode_0/actions", data=np.zeros((6, 1))),
    "array missing": lambda file: file.__delitem__("episode_0/truncations"),
    "group for array": lambda file: (file.__delitem__("episode_0/rewards"), file.create_group("episode_0/rewards")),
    "episode missing": lambda file: file.__delitem__("episode_0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_hdf5_is_refused_in_one_line(case, tmp_path):
    folder = foreign(tmp_path / "theirs", episodes=3)
    edit(folder, HOSTILE[case])
    with pytest.raises(BadInput) as error:
        import_minari(folder, ImportTarget(TASK, "normal"))
    assert str(error.value).startswith("minari dataset: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"data_format": "arrow"},
        {"observation_space": None},
        {"observation_space": "{"},
        {"observation_space": '{"type": "Text"}'},
        {"action_space": '{"type": "Box", "dtype": "object", "shape": [1], "low": [0], "high": [1]}'},
        {"minari_version": ["x"]},
        {"dataset_id": "a\nb"},
    ],
    ids=str,
)
def test_a_broken_description_is_refused_in_one_line(change, tmp_path):
    folder = foreign(tmp_path / "theirs", episodes=2)
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput, match=r"^minari dataset: |^space"):
        import_minari(folder, ImportTarget(TASK, "normal"))


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no metadata\.json"):
        import_minari(tmp_path)
    folder = foreign(tmp_path / "theirs", episodes=2)
    whole = (folder / "data" / "main_data.hdf5").read_bytes()
    for damaged in (b"", b"no hdf5", whole[:200], whole[: len(whole) // 2]):
        (folder / "data" / "main_data.hdf5").write_bytes(damaged)
        with pytest.raises(BadInput, match=r"cannot be read|holds 0"):
            import_minari(folder, ImportTarget(TASK, "normal"))
    data, metadata = recorded(spaces.Discrete(2), noise=False)
    with pytest.raises(BadInput, match="exists"):
        export_minari(data, metadata, folder)

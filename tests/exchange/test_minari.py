"""Minari datasets: ours survive the round trip bit for bit, others are validated, hostile ones are refused."""

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from told_environment import Told, walk

from pipeline.config.loading import validate as validate_config
from pipeline.config.task import TaskConfig
from pipeline.data import DatasetMetadata, Trajectories, content_digest, save_dataset
from pipeline.data.foreign import ImportTarget, take_in
from pipeline.data.formats.minari import export_minari, read_minari
from pipeline.data.formats.npz import export_plain_npz
from pipeline.data.spaces import space_to_json
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import record_episodes
from pipeline.tasks import Task
from pipeline.validation.facts import Context
from pipeline.validation.replay import TaskReplay
from pipeline.validation.rules import validate

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


def imported(folder: Path, target: ImportTarget | None = None) -> tuple[Trajectories, DatasetMetadata]:
    return take_in(read_minari(folder), target)


@pytest.mark.parametrize("noise", [True, False], ids=["noise", "no noise"])
@pytest.mark.parametrize("actions", [spaces.Box(-2, 2, (2,)), spaces.Discrete(4), spaces.MultiBinary(3)], ids=str)
def test_our_datasets_survive_the_round_trip_bit_for_bit(actions, noise, tmp_path):
    data, metadata = recorded(actions, noise)
    export_minari(data, metadata, tmp_path / "out")
    again, described = imported(tmp_path / "out")
    assert content_digest(again) == metadata.content_digest and described == metadata
    ours, theirs = data.to_arrays(), again.to_arrays()
    assert all(
        ours[name].tobytes() == theirs[name].tobytes() and ours[name].dtype == theirs[name].dtype for name in ours
    )


def test_an_export_that_failed_leaves_nothing_in_the_way_of_the_next(tmp_path):
    data, metadata = recorded(spaces.Box(-2, 2, (2,)), noise=True)
    exports = (
        lambda: export_minari(data, metadata, tmp_path / "out"),
        lambda: export_plain_npz(data, tmp_path / "o.npz"),
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for export in exports:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # bytes of a file, as on a full disk
        try:
            with pytest.raises(OSError, match="File too large"):
                export()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(tmp_path.iterdir())
    for export in exports:
        export()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.npz", "out"]


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
    data, metadata = imported(foreign(tmp_path / "theirs"), ImportTarget(Task(TASK), "normal"))
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
    data, metadata = imported(folder, ImportTarget(Task(TASK), "normal"))
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
    with pytest.raises(BadInput, match=r"episode 0: .*success\.info = 'solved'.*no such number.*it has: energy"):
        imported(folder, ImportTarget(Task(measured), "normal"))
    with_return = replace(measured, success=TASK.success)
    data, _ = imported(folder, ImportTarget(Task(with_return), "normal"))
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        assert data.metrics["peak"][7] == file["episode_7/infos/energy"][1:].max()
    with pytest.raises(BadInput, match="scenario 'storm' is not in"):
        imported(folder, ImportTarget(Task(TASK), "storm"))


def test_pictures_come_in_with_their_channels_first_as_the_task_has_them(tmp_path):
    declared, rng = spaces.Box(0, 255, (64, 96, 3), np.uint8), np.random.default_rng(0)
    storage = MinariStorage.new(
        tmp_path / "data", observation_space=declared, action_space=spaces.Box(-2, 2, (1,)), jpeg_encoding=False
    )
    storage.update_metadata({"dataset_id": "shown-v0", "minari_version": "0.5.4"})
    pictures = rng.integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    acted, ends = rng.uniform(-2, 2, (2, 1)).astype(np.float32), np.array([False, True])
    cut = np.zeros(2, bool)
    storage.update_episodes(
        [
            EpisodeBuffer(
                observations=pictures, actions=acted, rewards=np.ones(2), terminations=ends, truncations=cut, infos={}
            )
        ]
    )
    environment = {"id": "told_environment:Shown", "kwargs": {"with_state": False}}
    shown = replace(TASK, environment=replace(TASK.environment, **environment))
    task = Task(shown)
    data, metadata = imported(tmp_path, ImportTarget(task, "normal"))
    assert np.array_equal(data.observations, np.moveaxis(pictures, 3, 1))
    assert metadata.observation_space == space_to_json(task.observation_space)


# --- what a set says of its episodes ----------------------------------------------------------------------------------

TOLD = validate_config(
    TaskConfig,
    {
        "name": "told", "environment": {"id": "told_environment:Told"}, "success": {"info": "is_success"},
        "collision": {"info": "hit"}, "thresholds": {}, "scenarios": {"line": {}},
        "scenario_sets": {"train": {"line": 1.0}},
        "metrics": {over: {"info": "effort", "over": over} for over in ("sum", "max", "mean", "last")},
    },
    "test",
)  # fmt: skip
SEEDS = [2**40 + k for k in range(12)]


def told(folder: Path, seeds: list = SEEDS, spec: object = None, **infos) -> Path:
    """Played by hand, written as Minari's collector does: infos have a row of the reset before those of the steps."""
    env, buffers = Told(), []
    for seed in seeds:
        seen, info = env.reset(seed=seed if isinstance(seed, int) and seed >= 0 else 1)
        rows, actions, rewards, ends = [(seen, info)], [], [], []
        while not ends or not any(ends[-1]):
            actions.append(walk(rows[-1][0]))
            seen, reward, *end, info = env.step(actions[-1])
            rows.append((seen, info))
            rewards.append(reward)
            ends.append(end)
        flags = np.array(ends)
        gathered = {key: np.array([info[key] for _, info in rows], np.float64) for key in rows[0][1]}
        buffers.append(
            EpisodeBuffer(
                seed=seed,
                observations=np.stack([seen for seen, _ in rows]),
                actions=np.stack(actions),
                rewards=np.array(rewards),
                terminations=flags[:, 0],
                truncations=flags[:, 1] & ~flags[:, 0],
                infos={**gathered, **{key: change(gathered) for key, change in infos.items()}},
            )
        )
    folder.mkdir()
    storage = MinariStorage.new(
        folder / "data", observation_space=env.observation_space, action_space=env.action_space, env_spec=spec,
        jpeg_encoding=False,
    )  # fmt: skip
    storage.update_metadata({"dataset_id": "told/walk-v0", "minari_version": "0.5.4"})
    storage.update_episodes(buffers)
    return folder


def taken_in(folder: Path, task: TaskConfig = TOLD) -> tuple[Trajectories, DatasetMetadata]:
    return imported(folder, ImportTarget(Task(task), "line"))


def refusal(action) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_imported_episode_has_the_figures_that_it_has_when_it_is_recorded_here(tmp_path):
    """The reset's effort of 100, and that it tells of a hit, are no step's; 64-bit seeds play the same episodes."""
    task = Task(TOLD)
    data, metadata = taken_in(told(tmp_path / "theirs"))
    ours = record_episodes(
        task, scripted("told_environment:walk", {}).actor, [Episode("line", s) for s in SEEDS], 0.0, 1
    )
    assert content_digest(data) == content_digest(ours)
    assert data.seeds.tolist() == SEEDS and data.metrics["max"].max() < 1
    report = validate((data, metadata), Context(task=TOLD, min_episodes=12, replay=TaskReplay(task)))
    assert report.passed, report.summary()
    assert "re-simulation: 12 of 12 episodes bit-identical" in report.notes


def test_an_outcome_that_is_not_a_number_is_no_no(tmp_path):
    folder = told(tmp_path / "theirs", hit=lambda told: np.append(told["hit"][:-1], np.nan))
    assert "episode 0: task 'told': collision.info = 'hit' is nan" in refusal(lambda: taken_in(folder))
    folder = told(tmp_path / "short", hit=lambda told: told["hit"][:3])
    assert "'hit'" in refusal(lambda: taken_in(folder))


def test_infos_without_a_row_of_the_reset_and_with_numbers_in_boxes_are_read_as_well(tmp_path):
    without = {key: lambda told, key=key: told[key][1:, None] for key in ("effort", "hit", "is_success")}
    plain, _ = taken_in(told(tmp_path / "plain"))
    boxed, _ = taken_in(told(tmp_path / "boxed", **without))
    assert content_digest(boxed) == content_digest(plain)


def test_seeds_are_kept_as_far_as_they_can_be_and_what_cannot_is_said(tmp_path):
    data, metadata = taken_in(told(tmp_path / "large", [3, 2**63 - 1, 2**63, 2**64 - 1, None]))
    assert data.seeds.tolist() == [3, 2**63 - 1, -1, -1, -1]
    assert metadata.demonstrator["seeds"].startswith("those of 2 episodes have more than 63 bits")
    report = validate((data, metadata), Context(min_episodes=5))
    assert report.passed and "the seeds of 3 of 5 episodes are not known" in report.notes

    folder = told(tmp_path / "odd", [3, 4])

    def with_seed(value) -> Path:
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            file["episode_1"].attrs["seed"] = value
        return folder

    assert taken_in(with_seed(5.0))[0].seeds.tolist() == [3, 5]
    assert taken_in(with_seed("None"))[0].seeds.tolist() == [3, -1]
    for value in (5.5, float(2**60), float("nan"), -3, "five", True, [1, 2]):
        assert "episode_1" in refusal(lambda v=value: taken_in(with_seed(v))) or isinstance(value, list)


def test_a_label_that_is_missing_is_not_the_action_that_was_executed(tmp_path):
    data, metadata = recorded(spaces.Box(-2, 2, (2,)), noise=True)
    executed = data.executed_actions.copy()
    executed[4:5] = data.actions[4:5]  # the one step of an episode in which no noise happened to fall
    data = replace(data, executed_actions=executed)
    export_minari(data, replace(metadata, content_digest=content_digest(data)), tmp_path / "out")
    assert content_digest(imported(tmp_path / "out")[0]) == content_digest(data)
    edit(tmp_path / "out", lambda file: file.__delitem__("episode_2/infos/label"))
    assert "episode 2 has no infos/label, others have" in refusal(lambda: imported(tmp_path / "out"))


def test_what_a_set_says_of_its_environment_is_held_to_the_task(tmp_path):
    """By id, arguments and wrappers; where it says nothing, that it passed no wrapper of the task's."""

    def failed(task: dict, spec: object = None) -> tuple[str, ...]:
        name = f"set-{len(list(tmp_path.iterdir()))}"
        facts = {"success": {"return_at_least": -1.0}, "thresholds": {}, "scenario_sets": {"train": {"line": 1.0}}}
        config = validate_config(TaskConfig, {"name": "told", "scenarios": {"line": {}}, **facts, **task}, "test")
        data, metadata = imported(told(tmp_path / name, spec=spec), ImportTarget(Task(config), "line"))
        report = validate((data, metadata), Context(task=config, min_episodes=2))
        return tuple(f.message for f in report.findings)

    pendulum = gym.spec("Pendulum-v1")
    light = gym.make("Pendulum-v1", g=5.0, render_mode="rgb_array").spec
    clipped = gym.wrappers.ClipAction(gym.make("Pendulum-v1")).spec
    of = lambda **more: {"environment": {"id": "Pendulum-v1", **more}}  # noqa: E731
    clip = {"wrappers": [{"name": "ClipAction"}]}
    assert failed(of(), pendulum) == failed(of(**clip), clipped) == failed(of(kwargs={"g": 5.0}), light) == ()
    assert failed({**of(), "scenarios": {"line": {"g": 5.0}}}, light) == failed(of()) == ()
    differs = "environment.wrappers differs from the task file"
    through = f"{differs}; if it was recorded through them: behind_wrappers of collect's source"
    assert failed(of(**clip), pendulum) == failed(of(**clip)) == (through,)
    assert failed(of(), clipped) == (differs,)
    assert failed(of(), light) == ("environment.kwargs differs from the task file",)
    assert failed({"environment": {"id": "CartPole-v1"}}, pendulum) == ("environment.id differs from the task file",)
    folder = told(tmp_path / "broken", spec=pendulum)
    path = folder / "data" / "metadata.json"
    for broken in ("{", "[]", '{"id": 3}', '{"id": "Pendulum-v1", "kwargs": {"g": NaN}}', '{"id": "x", "kwargs": [1]}'):
        path.write_text(json.dumps({**json.loads(path.read_text()), "env_spec": broken}))
        assert refusal(lambda: taken_in(folder)).startswith("minari dataset: ")


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


def test_a_hostile_hdf5_is_refused_in_one_line(tmp_path):
    whole = foreign(tmp_path / "theirs", episodes=3)
    for case, change in HOSTILE.items():
        folder = Path(shutil.copytree(whole, tmp_path / case))
        edit(folder, change)
        with pytest.raises(BadInput) as error:
            imported(folder, ImportTarget(Task(TASK), "normal"))
        assert str(error.value).startswith("minari dataset: ") and "\n" not in str(error.value), case


def test_a_broken_description_is_refused_in_one_line(tmp_path):
    folder = foreign(tmp_path / "theirs", episodes=2)
    path = folder / "data" / "metadata.json"
    described = json.loads(path.read_text())
    for change in (
        {"data_format": "arrow"},
        {"observation_space": None},
        {"observation_space": "{"},
        {"observation_space": '{"type": "Text"}'},
        {"action_space": '{"type": "Box", "dtype": "object", "shape": [1], "low": [0], "high": [1]}'},
        {"action_space": '{"type": "Box", "dtype": "U900000000", "shape": [1], "low": [0], "high": [1]}'},
        {"minari_version": ["x"]},
        {"dataset_id": "a\nb"},
    ):
        path.write_text(json.dumps({**described, **change}))
        assert refusal(lambda: imported(folder, ImportTarget(Task(TASK), "normal"))).startswith("minari dataset: ")


def test_a_dataset_with_observations_of_another_kind_is_told_what_is_read(tmp_path):
    storage = MinariStorage.new(
        tmp_path / "data", observation_space=spaces.Dict(a=OBSERVATIONS), action_space=spaces.Discrete(2)
    )
    seen, flags = {"a": np.zeros((2, 3), np.float32)}, np.ones(1, bool)
    one = EpisodeBuffer(
        observations=seen, actions=np.zeros(1, int), rewards=np.ones(1), terminations=flags, truncations=~flags
    )
    storage.update_episodes([one])
    said = refusal(lambda: read_minari(tmp_path))
    assert "observation_space is {'type': 'Dict'" in said and "read are Box, Discrete" in said


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no metadata\.json"):
        imported(tmp_path)
    folder = foreign(tmp_path / "theirs", episodes=2)
    whole = (folder / "data" / "main_data.hdf5").read_bytes()
    for damaged in (b"", b"no hdf5", whole[:200], whole[: len(whole) // 2]):
        (folder / "data" / "main_data.hdf5").write_bytes(damaged)
        with pytest.raises(BadInput, match=r"cannot be read|holds 0"):
            imported(folder, ImportTarget(Task(TASK), "normal"))
    data, metadata = recorded(spaces.Discrete(2), noise=False)
    with pytest.raises(BadInput, match="exists"):
        export_minari(data, metadata, folder)

"""LeRobot, imitation and robomimic: what was written is what is read; what is broken is refused in one line."""

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.data import serialize
from imitation.data.types import TrajectoryWithRew

from pipeline.data.foreign import take_in
from pipeline.data.formats import read_foreign
from pipeline.errors import BadInput
from pipeline.validation.facts import Context
from pipeline.validation.rules import validate

LENGTHS = [5, 3, 9] * 8
rng = np.random.default_rng(0)
SEEN = [rng.normal(size=(length + 1, 4)).astype(np.float32) for length in LENGTHS]
ACTED = [rng.normal(size=(length, 2)).astype(np.float32) for length in LENGTHS]
REWARDS = [rng.normal(size=length).astype(np.float32) for length in LENGTHS]


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        take_in(read_foreign(path), None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- LeRobot ----------------------------------------------------------------------------------------------------------


def table(numbers: range, fixed: bool) -> pa.Table:
    def lists(rows: list[np.ndarray]) -> pa.Array:
        flat = np.concatenate(rows)
        kind = pa.list_(pa.float32(), flat.shape[1]) if fixed else pa.list_(pa.float32())
        return pa.array(list(flat), kind)

    lengths = [LENGTHS[number] for number in numbers]
    return pa.table(
        {
            "observation.state": lists([SEEN[number][:-1] for number in numbers]),
            "action": lists([ACTED[number] for number in numbers]),
            "episode_index": np.repeat(list(numbers), lengths),
            "frame_index": np.concatenate([np.arange(length) for length in lengths]),
            "next.reward": np.concatenate([REWARDS[number] for number in numbers]),
            "next.done": np.concatenate([np.arange(length) == length - 1 for length in lengths]),
            "timestamp": np.concatenate([np.arange(length) / 10 for length in lengths]).astype(np.float32),
        }
    )


def lerobot(folder: Path, version: str = "v3.0", **info) -> Path:
    """As LeRobot lays it out: v2.1 a file an episode, v3.0 many episodes a file."""
    shapes = {"observation.state": [4], "action": [2], "next.reward": [1], "next.done": [1], "timestamp": [1]}
    features = {name: {"dtype": "float32", "shape": shape} for name, shape in shapes.items()}
    features |= {name: {"dtype": "int64", "shape": [1]} for name in ("episode_index", "frame_index")}
    features["observation.images.top"] = {"dtype": "video", "shape": [3, 96, 96]}
    said = {
        "codebase_version": version, "fps": 10, "features": features, "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
    }  # fmt: skip
    chunk = folder / "data" / "chunk-000"
    chunk.mkdir(parents=True)
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(said | info))
    if version == "v3.0":
        pq.write_table(table(range(10), True), chunk / "file-000.parquet")
        pq.write_table(table(range(10, len(LENGTHS)), True), chunk / "file-001.parquet")
    else:
        for number in range(len(LENGTHS)):
            pq.write_table(table(range(number, number + 1), False), chunk / f"episode_{number:06d}.parquet")
    return folder


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_lerobot_set_is_read_in_either_layout(version, tmp_path):
    found = read_foreign(lerobot(tmp_path / "pusher", version))
    assert (found.format, found.name, found.version) == ("lerobot", "pusher", version)
    assert found.ignored == ("next.done", "timestamp", "observation.images.top")
    data, metadata = take_in(found, None)
    assert metadata.missing == ("final_observations", "ends", "seeds", "spaces")
    assert data.lengths.tolist() == LENGTHS
    assert np.array_equal(data.observations, np.concatenate([seen[:-1] for seen in SEEN]))
    assert np.array_equal(data.actions, np.concatenate(ACTED)) and np.array_equal(data.rewards, np.concatenate(REWARDS))
    assert validate((data, metadata), Context()).passed


def test_a_lerobot_set_that_is_not_what_its_description_says_is_refused(tmp_path):
    for case, (info, words) in enumerate(
        (
            ({"codebase_version": "v1.6"}, "it is 'v1.6'; read are"),
            ({"total_frames": 7}, "info.json says (24, 7)"),
            ({"features": {"action": {"shape": [2]}}}, "no 'observation.state'"),
        )
    ):
        assert words in refusal(lerobot(tmp_path / str(case), **info))
    whole = table(range(len(LENGTHS)), True)
    ragged = pa.array([[0.0] * (4 + row % 2) for row in range(len(whole))], pa.list_(pa.float32()))
    fewer = pa.array([[0.0] * (4 - row % 2) for row in range(len(whole))], pa.list_(pa.float32()))
    texts, holes = pa.array(["x"] * len(whole)), pa.array([None, *[1.0] * (len(whole) - 1)])
    for case, (column, changed, words) in enumerate(
        (
            ("observation.state", ragged, "observation.state.list.element holds more than 4 a row"),
            ("observation.state", fewer, "its lists differ in length, from 3 to 4"),
            ("next.reward", texts, "allowed are plain numbers"),
            ("next.reward", holes, "1 of them missing"),
            ("frame_index", pa.array([1] * len(whole)), "not numbered 0, 1, 2"),
            ("action", None, "has no column 'action'"),
        )
    ):
        folder = lerobot(tmp_path / f"table-{case}")
        for file in folder.rglob("*.parquet"):
            file.unlink()
        left = whole.drop_columns([column])
        pq.write_table(left if changed is None else left.append_column(column, changed), folder / "data" / "a.parquet")
        assert words in refusal(folder), words


def test_a_parquet_bomb_is_refused_by_what_it_claims(tmp_path):
    folder = lerobot(tmp_path / "bomb")
    many = 40_000_000  # rows of zeros that a run-length code packs into some kilobytes
    zeros = pa.table({name: np.zeros(many, np.int8) for name in ("episode_index", "frame_index")})
    for name in ("observation.state", "action", "next.reward"):
        zeros = zeros.append_column(name, pa.array(np.zeros(many, np.int8)))
    for file in folder.rglob("*.parquet"):
        file.unlink()
    pq.write_table(zeros, folder / "data" / "a.parquet", compression="zstd")
    assert (folder / "data" / "a.parquet").stat().st_size < 1_000_000
    assert "are allowed for its size" in refusal(folder)


# --- imitation --------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    serialize.save(
        folder,
        [
            TrajectoryWithRew(
                obs=seen, acts=acted, rews=rewards, infos=np.array([{"x": 1}] * len(acted)), terminal=i % 2 == 0
            )
            for i, (seen, acted, rewards) in enumerate(zip(SEEN, ACTED, REWARDS, strict=True))
        ],
    )
    return folder


def test_trajectories_saved_by_imitation_are_read_without_their_infos(tmp_path):
    found = read_foreign(saved(tmp_path / "saved"))
    assert (found.format, found.ignored) == ("imitation", ("infos",))
    data, metadata = take_in(found, None)
    assert metadata.missing == ("seeds", "spaces") and data.lengths.tolist() == LENGTHS
    assert np.array_equal(data.observations, np.concatenate(SEEN)) and np.array_equal(
        data.rewards, np.concatenate(REWARDS)
    )
    last = np.cumsum(LENGTHS) - 1
    assert (
        data.terminations[last].tolist() == [True, False] * 12 and data.truncations[last].tolist() == [False, True] * 12
    )
    assert validate((data, metadata), Context()).passed


def test_broken_trajectories_of_imitation_are_refused(tmp_path):
    def stream(columns: dict) -> Path:
        made = pa.table(columns)
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
            writer.write_table(made)
        return tmp_path

    good = {"obs": [[[0.0], [1.0]]], "acts": [[[1.0]]], "terminal": [True]}
    assert "there is no 'acts'" in refusal(stream({"obs": good["obs"]}))
    assert "has 2 observations, 2 actions" in refusal(stream({**good, "acts": [[[1.0], [2.0]]]}))
    assert "lists differ in length" in refusal(stream({**good, "obs": [[[0.0], [1.0, 2.0]]]}))
    assert "allowed are plain numbers" in refusal(stream({**good, "obs": [[["a"], ["b"]]]}))
    (tmp_path / "a.arrow").write_bytes(b"ARROW1\0\0")
    assert "imitation trajectories: " in refusal(tmp_path)


# --- robomimic --------------------------------------------------------------------------------------------------------


def robomimic(path: Path, after: bool = True, keys: tuple[str, ...] = ("object", "robot0_eef_pos")) -> Path:
    with h5py.File(path, "w") as file:
        for number, (seen, acted, rewards) in enumerate(zip(SEEN, ACTED, REWARDS, strict=True)):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["rewards"], demo["dones"] = acted, rewards, np.zeros(len(acted))
            for half, key in enumerate(keys):
                demo[f"obs/{key}"] = seen[:-1, 2 * half : 2 * half + 2]
                if after:
                    demo[f"next_obs/{key}"] = seen[1:, 2 * half : 2 * half + 2]
    return path


def test_robomimics_demonstrations_are_read_in_the_order_of_their_numbers(tmp_path):
    path = robomimic(tmp_path / "a.hdf5")
    assert read_foreign(path).ignored == ("dones",)
    with h5py.File(path, "a") as file:
        file["data/demo_1/states"], file["data/demo_2/camera\x1b"] = np.zeros(3), np.zeros(2)
    assert read_foreign(path).ignored == ("camera\\x1b", "dones", "states")
    data, metadata = take_in(read_foreign(path), None)
    assert metadata.missing == ("ends", "seeds", "spaces") and data.lengths.tolist() == LENGTHS
    assert np.array_equal(data.observations["robot0_eef_pos"], np.concatenate(SEEN)[:, 2:])
    assert np.array_equal(data.actions, np.concatenate(ACTED)) and validate((data, metadata), Context()).passed
    data, metadata = take_in(read_foreign(robomimic(tmp_path / "b.hdf5", after=False, keys=("object",))), None)
    assert metadata.missing == ("final_observations", "ends", "seeds", "spaces") and data.observations.shape[1:] == (2,)


def test_links_and_what_is_no_demonstration_are_refused(tmp_path):
    for case, change in enumerate(
        (
            lambda file: file.__setitem__("data/demo_0/actions", h5py.ExternalLink("/etc/passwd", "/x")),
            lambda file: file.__setitem__("data/demo_0/actions", h5py.SoftLink("/data/demo_1/actions")),
            lambda file: file.create_dataset(
                "data/demo_0/actions", shape=(10**12,), chunks=(1000,), compression="gzip"
            ),
            lambda file: file.__setitem__("data/demo_0/actions", np.zeros((4, 2))),
        )
    ):
        path = robomimic(tmp_path / f"{case}.hdf5")
        with h5py.File(path, "a") as file:
            del file["data/demo_0/actions"]
            change(file)
        assert "robomimic dataset: " in refusal(path)
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file.create_group("data")
    assert "no demo_0" in refusal(tmp_path / "empty.hdf5")


# --- any of them ------------------------------------------------------------------------------------------------------


class Files(tuple):
    """Without its bytes when a test fails."""

    def __repr__(self) -> str:
        return "Files"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Files:
    root = tmp_path_factory.mktemp("whole")
    folder, trajectories = lerobot(root / "l", "v3.0"), saved(root / "i")
    files = {
        folder: next(folder.rglob("*.parquet")),
        trajectories: next(trajectories.rglob("*.arrow")),
        robomimic(root / "r.hdf5"): root / "r.hdf5",
    }
    return Files((path, file, file.read_bytes()) for path, file in files.items())


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2), st.floats(0, 1), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_mutated_file_is_read_or_refused_in_one_line(whole, index, place, put, cut):
    path, file, content = whole[index]
    at = int(place * (len(content) - 1))
    try:
        file.write_bytes(content[:at] if cut else content[:at] + put + content[at + len(put) :])
        take_in(read_foreign(path), None)
    except BadInput as error:
        assert "\n" not in str(error)
    finally:
        file.write_bytes(content)

"""LeRobot: what its package wrote is read, videos frame by frame; what we write is read again, with what it lacks."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.loading import validate as validate_config
from pipeline.config.task import TaskConfig
from pipeline.data import Trajectories
from pipeline.data.foreign import ForeignEpisode, ForeignSet, ImportTarget, take_in
from pipeline.data.formats import lerobot, read_foreign
from pipeline.data.formats.lerobot import export_lerobot
from pipeline.data.metadata import DatasetMetadata
from pipeline.data.observations import row_dtype
from pipeline.errors import BadInput
from pipeline.tasks import Task
from pipeline.validation.facts import Context
from pipeline.validation.rules import validate

THEIRS = Path(__file__).with_name("written_by_lerobot")  # by benchmarks/lerobot_exchange.py, lerobot 0.4.4
KEYS = ("state", "top")


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_foreign(folder, keys=KEYS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def joined(found: ForeignSet, part: str) -> np.ndarray:
    return np.concatenate([getattr(episode, part) for episode in found.episodes])


def test_what_lerobot_wrote_is_read_with_its_video():
    given = np.load(THEIRS.with_suffix(".npz"))
    found = read_foreign(THEIRS, keys=KEYS)
    assert [len(episode.actions) for episode in found.episodes] == given["lengths"].tolist()
    assert np.array_equal(joined(found, "actions"), given["actions"])
    assert np.array_equal(joined(found, "rewards"), given["rewards"][:, 0])
    seen = joined(found, "observations")
    assert np.array_equal(seen["state"], given["states"])
    assert seen["top"].shape == (21, 64, 96, 3) and seen["top"].dtype == np.uint8
    # AV1 of one colour a frame: each is that of its own row, but for what the codec rounds
    assert np.abs(seen["top"].astype(int) - given["pictures"][:, None, None, :]).max() <= 3
    assert found.ignored == ("next.done", "timestamp", "index", "task_index")
    assert "observation.images.top" in read_foreign(THEIRS).ignored


def filmed(folder: Path, version: str, lengths=(4, 2, 3), size=(16, 32), fps=10, video_fps=10, more=0) -> np.ndarray:
    """A set of one colour a frame, coded without loss; its frames (S, height, width, 3)."""
    steps = sum(lengths)
    colours = np.random.default_rng(1).integers(0, 256, (steps + abs(more), 1, 1, 3), dtype=np.uint8)
    frames = np.broadcast_to(colours, (steps + abs(more), *size, 3))
    shapes = {"observation.state": [1], "action": [1], "episode_index": [1], "frame_index": [1]}
    features = {name: {"dtype": "float32", "shape": shape} for name, shape in shapes.items()}
    features["observation.images.top"] = {"dtype": "video", "shape": [*size, 3]}
    info = {
        "codebase_version": version, "fps": fps, "features": features, "total_episodes": len(lengths),
        "total_frames": steps, "chunks_size": 1000,
    }  # fmt: skip
    columns = {
        "observation.state": np.arange(steps, dtype=np.float32),
        "action": np.arange(steps, dtype=np.float32),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
    }
    begins = np.cumsum(lengths) - lengths
    name = "observation.images.top"
    if version == "v3.0":
        told = {
            "episode_index": np.arange(len(lengths)), f"videos/{name}/chunk_index": np.zeros(len(lengths), int),
            f"videos/{name}/file_index": np.zeros(len(lengths), int), f"videos/{name}/from_timestamp": begins / fps,
        }  # fmt: skip
        films = {f"videos/{name}/chunk-000/file-000.mp4": frames[: steps + more]}
        (folder / "meta" / "episodes").mkdir(parents=True)
        pq.write_table(pa.table(told), folder / "meta" / "episodes" / "a.parquet")
    else:
        ends = [*np.cumsum(lengths)[:-1], steps + more]
        films = {
            f"videos/chunk-000/{name}/episode_{number:06d}.mp4": frames[begin:end]
            for number, (begin, end) in enumerate(zip(begins, ends, strict=True))
        }
        (folder / "meta").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    pq.write_table(pa.table(columns), folder / "data" / "a.parquet")
    for path, film in films.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        coded = {"codec": "libx264rgb", "pixelformat": "rgb24", "output_params": ["-crf", "0"], "macro_block_size": 1}
        imageio.mimwrite(folder / path, list(film), fps=video_fps, **coded)
    return frames[:steps]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_each_row_has_the_frame_of_its_own_episode_and_step(version, tmp_path):
    frames = filmed(tmp_path / "set", version)
    seen = joined(read_foreign(tmp_path / "set", keys=KEYS), "observations")
    assert np.array_equal(seen["top"], frames)
    assert seen["state"].ravel().tolist() == list(range(9))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"more": 1}, r"has more frames than its \d rows"),
        ({"more": -1}, r"has \d frames, its rows are \d"),
        ({"video_fps": 20}, r"is 32 x 16 at 20 frames a second, info.json says 32 x 16 at 10"),
    ],
)
def test_a_video_that_is_not_that_of_its_rows_is_refused(version, changes, words, tmp_path):
    filmed(tmp_path / "set", version, **changes)
    assert re.search(words, refusal(tmp_path / "set"))
    assert len(read_foreign(tmp_path / "set").episodes) == 3, "who does not ask for the pictures needs none"


def test_a_video_without_one_frame_is_refused(tmp_path):
    shutil.copytree(THEIRS, tmp_path / "set")
    (film,) = (tmp_path / "set").rglob("*.mp4")
    content = film.read_bytes()
    at = content.index(b"mdat") + 4
    pictures = int.from_bytes(content[at - 8 : at - 4], "big") - 8
    film.write_bytes(content[:at] + bytes(pictures) + content[at + pictures :])  # what is around them stays
    # or not even that, as another ffmpeg may have it
    assert re.search("has 0 frames, its rows are 21|is no mp4", refusal(tmp_path / "set"))


def test_what_is_no_video_leads_nowhere(tmp_path):
    filmed(tmp_path / "set", "v3.0")
    (film,) = (tmp_path / "set").rglob("*.mp4")
    other = tmp_path / "other.mp4"
    shutil.copy(film, other)
    film.write_text(f"ffconcat version 1.0\nfile '{other}'\n")  # ffmpeg would follow it
    assert "is no mp4" in refusal(tmp_path / "set")
    film.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{other}\n#EXT-X-ENDLIST\n")
    assert "is no mp4" in refusal(tmp_path / "set")
    film.write_bytes(other.read_bytes()[:200])
    assert refusal(tmp_path / "set")
    film.unlink()
    assert "there is no videos/observation.images.top/chunk-000/file-000.mp4" in refusal(tmp_path / "set")


def test_so_many_pictures_of_all_keys_together_are_refused_before_one_is_decoded(tmp_path, monkeypatch):
    filmed(tmp_path / "set", "v3.0")
    path = tmp_path / "set" / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.side"] = info["features"]["observation.images.top"]
    path.write_text(json.dumps(info))
    monkeypatch.setattr(lerobot, "MAX_PICTURE_BYTES", 9 * 16 * 32 * 3)  # as many as those of one have
    for film in (tmp_path / "set").rglob("*.mp4"):
        film.unlink()
    with pytest.raises(
        BadInput, match=r"9 pictures of observation.images.top, observation.images.side are 27648 bytes"
    ):
        read_foreign(tmp_path / "set", keys=("top", "side"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info["features"]["observation.images.top"].update(shape=[1 << 14, 1 << 14, 3]), "allowed are"),
        (lambda info: info["features"]["observation.images.top"].update(shape=[16, 32, 1]), "3 channels"),
        (lambda info: info["features"]["observation.images.top"].update(shape=[32, 16, 3]), "info.json says 16 x 32"),
        (lambda info: info["features"].pop("observation.images.top"), "there is no 'observation.top'"),
        (lambda info: info.update(fps="fast"), "cannot be read"),
    ],
)
def test_pictures_of_another_kind_than_described_are_refused(change, words, tmp_path):
    filmed(tmp_path / "set", "v3.0")
    path = tmp_path / "set" / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    assert words in refusal(tmp_path / "set")


# --- pictures in the parquet ------------------------------------------------------------------------------------------


def encoded(frame: np.ndarray, kind: str = "PNG", mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).convert(mode).save(stream, kind, **({} if kind == "PNG" else {"quality": 100}))
    return stream.getvalue()


def pictured(folder: Path, version: str, spoil=lambda held: None, kind: str = "PNG", column=None) -> np.ndarray:
    """As `filmed`, with the frames in two files of parquet as the package `datasets` lays them; its frames."""
    filmed(folder, version)
    for film in folder.rglob("*.mp4"):
        film.unlink()
    frames = np.random.default_rng(2).integers(0, 256, (9, 16, 32, 3), dtype=np.uint8)
    if kind == "JPEG":
        frames[:] = frames[:, :1, :1]  # of one colour, which it keeps but for a rounding
    held = [{"bytes": encoded(frame, kind), "path": f"frame_{i:06d}.png"} for i, frame in enumerate(frames)]
    spoil(held)
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.top"]["dtype"] = "image"
    path.write_text(json.dumps(info))
    as_struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = pa.array(held, as_struct) if column is None else column(held)
    table = pq.read_table(folder / "data" / "a.parquet").append_column("observation.images.top", column)
    pq.write_table(table.slice(6), folder / "data" / "a.parquet")  # the last episode in the first file
    pq.write_table(table.slice(0, 6), folder / "data" / "b.parquet", row_group_size=4)
    return frames


@pytest.mark.parametrize(("version", "kind"), [("v2.1", "PNG"), ("v3.0", "PNG"), ("v3.0", "JPEG")])
def test_each_row_has_the_picture_that_stands_in_it(version, kind, tmp_path):
    frames = pictured(tmp_path / "set", version, kind=kind)
    found = read_foreign(tmp_path / "set", keys=KEYS)
    seen = joined(found, "observations")
    assert np.abs(seen["top"].astype(int) - frames).max() <= (0 if kind == "PNG" else 3)
    assert seen["state"].ravel().tolist() == list(range(9))
    assert found.ignored == ()
    assert read_foreign(tmp_path / "set").ignored == ("observation.images.top",)


def as_another(change):
    """A row of the set with other bytes."""

    def spoil(held):
        held[5]["bytes"] = change(held[5]["bytes"])

    return spoil


BLANK = np.zeros((16, 32, 3), np.uint8)
BAD_PICTURES = {
    "not in the file": (as_another(lambda content: None), "is not in the file; read are PNG and JPEG within it"),
    "another size": (as_another(lambda content: encoded(BLANK.swapaxes(0, 1))), "is 16 x 32 RGB, info.json says 32 x"),
    "grey": (as_another(lambda content: encoded(BLANK, mode="L")), "is 32 x 16 L, info.json says 32 x 16 RGB"),
    "GIF": (as_another(lambda content: encoded(BLANK, "GIF")), "is no PNG or JPEG"),
    "cut short": (as_another(lambda content: content[: len(content) // 2]), "is no PNG or JPEG"),
    "a letter": (as_another(lambda content: b"dear reader"), "is no PNG or JPEG"),
    "nothing": (as_another(lambda content: b""), "is no PNG or JPEG"),
    "a billion pixels": (
        as_another(lambda content: content[:16] + (40_000).to_bytes(4, "big") * 2 + content[24:]), "row 5 of b.parquet"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_a_picture_that_is_none_of_the_set_is_named_by_its_row(case, tmp_path):
    spoil, words = BAD_PICTURES[case]
    pictured(tmp_path / "set", "v3.0", spoil)
    line = refusal(tmp_path / "set")
    assert "observation.images.top in row 5 of b.parquet" in line and words in line


def test_a_column_without_pictures_is_refused(tmp_path):
    pictured(tmp_path / "set", "v3.0", column=lambda held: pa.array(range(9)))
    assert "has no column 'observation.images.top.bytes'" in refusal(tmp_path / "set")


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.binary(min_size=1, max_size=8))
def test_a_mutated_file_of_pictures_is_read_or_refused_in_one_line(tmp_path_factory, place, put):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.exists():
        pictured(folder, "v3.0")
    file = folder / "data" / "b.parquet"
    content = file.read_bytes()
    at = int(place * (len(content) - 1))
    try:
        file.write_bytes(content[:at] + put + content[at + len(put) :])
        take_in(read_foreign(folder, keys=KEYS), None)
    except BadInput as error:
        assert "\n" not in str(error)
    finally:
        file.write_bytes(content)


# --- export -----------------------------------------------------------------------------------------------------------

LENGTHS = np.array([6, 4, 5] * 8)
SEEN = {"array": spaces.Box(-1, 1, (3,), np.float32), "keyed": spaces.Dict(
    a=spaces.Box(-1, 1, (2,), np.float64), b=spaces.Box(-1, 1, (3,), np.float32))}  # fmt: skip


def recorded(observed: str, acts: spaces.Space, noisy: bool) -> tuple[Trajectories, DatasetMetadata]:
    """24 episodes that a plain .npz might have held."""
    rng, episodes = np.random.default_rng(0), []
    for length in LENGTHS:
        if observed == "keyed":
            rows = np.empty(length + 1, [("a", np.float64, (2,)), ("b", np.float32, (3,))])
            rows["a"], rows["b"] = rng.uniform(-1, 1, (length + 1, 2)), rng.uniform(-1, 1, (length + 1, 3))
        else:
            rows = rng.uniform(-1, 1, (length + 1, 3)).astype(np.float32)
        continuous = isinstance(acts, spaces.Box)
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32) if continuous else rng.integers(0, 3, length)
        labels = np.roll(actions, 1, axis=0) if noisy else None
        ends = np.arange(length) == length - 1
        episodes.append(ForeignEpisode(rows, actions, labels, rng.normal(size=length), ends, seed=len(episodes)))
    return take_in(ForeignSet("npz", tuple(episodes), "made", "1", "0" * 36), None)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("acts", [spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)])
@pytest.mark.parametrize("observed", list(SEEN))
def test_what_is_written_for_lerobot_is_read_again_less_what_it_has_no_room_for(observed, acts, noisy, tmp_path):
    data, metadata = recorded(observed, acts, noisy)
    export_lerobot(data, metadata, tmp_path / "away")
    again, said = take_in(read_foreign(tmp_path / "away", keys=("a", "b") if observed == "keyed" else ()), None)
    before = np.ones(len(data.observations), bool)
    before[np.cumsum(data.lengths + 1) - 1] = False
    assert again.observations.tobytes() == data.observations[before].tobytes()
    for part in ("actions", "executed_actions", "rewards", "lengths"):
        assert np.array_equal(getattr(again, part).ravel(), getattr(data, part).ravel()), part
    assert set(said.missing) == {"final_observations", "ends", "seeds", "spaces"}
    assert validate((again, said), Context()).passed
    with pytest.raises(BadInput, match="exists; give a new one"):
        export_lerobot(data, metadata, tmp_path / "away")


def test_pictures_are_not_written_for_lerobot(tmp_path):
    data, metadata = recorded("array", spaces.Discrete(3), False)
    pictures = np.zeros((len(data.observations), 4, 4, 3), np.uint8)
    with pytest.raises(BadInput, match=r"observation\.state is no row of numbers"):
        export_lerobot(replace(data, observations=pictures), metadata, tmp_path / "away")
    assert not list(tmp_path.iterdir())


def test_a_task_with_a_dict_takes_the_keys_it_observes_its_pictures_channels_first():
    config = validate_config(
        TaskConfig,
        {
            "name": "shown", "environment": {"id": "told_environment:Shown"}, "success": {"return_at_least": 0.0},
            "thresholds": {}, "scenarios": {"normal": {}}, "scenario_sets": {"train": {"normal": 1.0}},
        },
        "test",
    )  # fmt: skip
    task, found = Task(config), read_foreign(THEIRS, keys=KEYS)
    data, metadata = take_in(found, ImportTarget(task, "normal"))
    assert data.observations.dtype == row_dtype(task.observation_space)
    assert np.array_equal(data.observations["top"], np.moveaxis(joined(found, "observations")["top"], 3, 1))
    assert "final_observations" in metadata.missing
    spaces_of_task = {"observation_space": task.observation_space, "action_space": task.action_space}
    report = validate((data, metadata), Context(task=config, min_episodes=3, **spaces_of_task))
    assert report.passed, report.summary()


def test_a_success_beside_infos_that_lerobot_has_no_room_for_is_read_and_they_are_missing(tmp_path):
    folder = Path(shutil.copytree(THEIRS, tmp_path / "theirs"))
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["next.success"] = {"dtype": "bool", "shape": [1]}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    (file,) = (folder / "data").rglob("*.parquet")
    rows = pq.read_table(file)
    solved = pc.equal(rows["frame_index"], 4)  # of two episodes no last step
    pq.write_table(rows.append_column("next.success", solved), file)

    def taken(success: str) -> tuple[Trajectories, DatasetMetadata]:
        config = {
            "name": "swing", "environment": {"id": "Pendulum-v1"}, "success": {"info": success}, "thresholds": {},
            "scenarios": {"normal": {}}, "scenario_sets": {"train": {"normal": 1.0}},
            "metrics": {"peak": {"info": "effort", "over": "max"}, "effort": {"info": "effort"}},
        }  # fmt: skip
        return take_in(read_foreign(folder), ImportTarget(Task(validate_config(TaskConfig, config, "test")), "normal"))

    data, metadata = taken("success")
    assert data.lengths.tolist() == [7, 5, 9] and data.metrics["success"].tolist() == [0.0, 1.0, 0.0]
    figures = ("metric.peak", "metric.effort")
    assert metadata.missing == ("final_observations", "ends", "seeds", *figures)
    assert taken("is_success")[1].missing == ("final_observations", "ends", "seeds", "metric.success", *figures)

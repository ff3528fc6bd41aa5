"""Datasets on disk: what is saved is what is loaded, and hostile files are refused before they do anything."""

import hashlib
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import (
    DatasetMetadata,
    Trajectories,
    content_digest,
    load_dataset,
    metadata_digest,
    read_archive,
    read_metadata,
    save_dataset,
    write_dataset,
)
from pipeline.data.formats.npz import write_archive
from pipeline.errors import BadInput


def trajectories(episodes: int = 3, steps: int = 5) -> Trajectories:
    rng = np.random.default_rng(0)
    total = episodes * steps
    ends = np.arange(total) % steps == steps - 1
    actions = rng.normal(size=(total, 2)).astype(np.float32)
    return Trajectories(
        observations=rng.normal(size=(total + episodes, 4)).astype(np.float32),
        actions=actions,
        executed_actions=actions.copy(),
        rewards=rng.normal(size=total).astype(np.float32),
        terminations=ends,
        truncations=np.zeros(total, bool),
        lengths=np.full(episodes, steps),
        seeds=np.arange(episodes),
        scenarios=np.array(["left", "right"] * episodes)[:episodes],
        metrics={"return": rng.normal(size=episodes), "length": np.full(episodes, float(steps))},
    )


def metadata(data: Trajectories, **changes) -> DatasetMetadata:
    facts = {
        "dataset_id": "d", "created_at": "2026-01-01T00:00:00.25Z", "task": "t", "scenario_set": "train",
        "scenario_coverage": {"left": 2, "right": 1}, "requested_shares": {"left": 0.7, "right": 0.3},
        "demonstrator": {"kind": "scripted", "name": "pd", "version": "1", "digest": "x", "kwargs": {"gain": 0.1}},
        "seeds": (1, 2), "noise_std": 0.0, "filter": {"min_return": None, "only_success": False},
        "observation_space": {"type": "Box"}, "action_space": {"type": "Box"},
        "environment": {"id": "E-v0", "kwargs": {}, "scenarios": {"left": {"a": 1}}}, "holdout_scenarios": ("up",),
        "episodes": len(data), "steps": data.steps, "content_digest": content_digest(data),
    }  # fmt: skip
    return DatasetMetadata(**{**facts, **changes})


@pytest.fixture
def saved(tmp_path) -> Path:
    data = trajectories()
    save_dataset(tmp_path / "data", data, metadata(data))
    return tmp_path / "data"


def test_what_is_saved_is_what_is_loaded(saved):
    data, described = load_dataset(saved)
    assert content_digest(data) == content_digest(trajectories()) and described == metadata(data)
    assert data.scenarios.tolist() == ["left", "right", "left"] and data.lengths.dtype == np.int64


def test_numpy_reads_the_archive_without_pickle(saved):
    with np.load(saved / "trajectories.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["actions"], trajectories().actions)
        assert archive["metric.return"].dtype == np.float64


def test_equal_data_gives_equal_bytes(saved, tmp_path):
    save_dataset(tmp_path / "again", trajectories(), metadata(trajectories()))
    for name in ("trajectories.npz", "metadata.json"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_small_archive_has_the_bytes_it_always_had(tmp_path):
    rows = np.zeros(2, [("a", "<f4", (2,)), ("b", "|u1")])
    scenarios = np.array(["left", "right"], "<U5")
    with open(tmp_path / "t.npz", "wb") as file:
        write_archive(file, {"rewards": np.arange(6, dtype="<f4"), "scenarios": scenarios, "observations": rows})
    expected = "e883ff61e25e617c70be6e582aa96399cfae6b7e1069570dc52a500a7f8d2043"
    assert hashlib.sha256((tmp_path / "t.npz").read_bytes()).hexdigest() == expected


def test_an_archive_beyond_what_a_plain_zip_holds_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10_000)  # 2 GiB take too long here
    data = trajectories(episodes=40, steps=50)
    assert data.observations.nbytes > 2 * 10_000 and data.rewards.nbytes < 10_000
    save_dataset(tmp_path / "data", data, metadata(data))
    assert content_digest(load_dataset(tmp_path / "data")[0]) == content_digest(data)
    with np.load(tmp_path / "data" / "trajectories.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["observations"], data.observations)


def test_what_no_file_may_hold_is_refused_before_it_is_written(tmp_path):
    data = trajectories()
    picture = np.broadcast_to(np.uint8(0), (len(data.observations), 1 << 28))  # of 4.5 GiB, in one byte of memory
    with pytest.raises(BadInput, match=r"the arrays have 48\d+ bytes, the file of a dataset may have 4294967295"):
        write_dataset(tmp_path / "data", {**data.to_arrays(), "observations": picture}, {})
    assert not list(tmp_path.iterdir())


def test_a_dataset_is_never_overwritten_and_nothing_half_written_stays(saved, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="never overwritten"):
        save_dataset(saved, trajectories(), metadata(trajectories()))

    def broken(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="no space"):
        save_dataset(tmp_path / "other", trajectories(), metadata(trajectories()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_metadata_of_other_trajectories_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="other trajectories"):
        save_dataset(tmp_path / "data", trajectories(), metadata(trajectories(), episodes=4))


def test_an_empty_existing_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    save_dataset(tmp_path / "data", trajectories(), metadata(trajectories()))
    (tmp_path / "made").mkdir()  # as anybody's folder, not as the temporary one that was moved there
    assert (tmp_path / "data").stat().st_mode == (tmp_path / "made").stat().st_mode


class Trap:
    """Leaves a file behind when anything unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_header(description: str) -> bytes:
    text = description.encode() + b" " * (117 - len(description)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, content in members:
            made.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return buffer.getvalue()


def flip(data: bytes, position: int, mask: int = 0xFF) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


GOOD = npy(np.arange(3.0))
ONE = archive([("rewards.npy", GOOD)])
END = ONE.index(b"PK\x05\x06")
ENTRY = ONE.index(b"PK\x01\x02")


def huge(description: str) -> bytes:
    return archive([("rewards.npy", npy_header(description) + b"\0" * 64)])


def overlapping() -> bytes:
    """Two directory entries over the bytes of one member, which therefore claim more than there is."""
    body, count = archive([("a.npy", b"\0" * 4000)]), 20
    start = body.index(b"PK\x01\x02")
    entry = body[start : body.index(b"PK\x05\x06")]
    entries = b"".join(entry.replace(b"a.npy", bytes([97 + i]) + b".npy") for i in range(count))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0)
    return body[:start] + entries + end


HOSTILE = {
    "empty file": b"",
    "no zip": b"not a zip at all" * 10,
    "only an end record": b"PK\x05\x06" + b"\0" * 17,
    "cut short": ONE[:-30],
    "cut inside a member": ONE[:100],
    "something appended": ONE + b"x",
    "with a comment": flip(ONE, END + 20, 1) + b"x",
    "compressed": archive([("rewards.npy", GOOD)], zipfile.ZIP_DEFLATED),
    "zip bomb": archive([("rewards.npy", npy(np.zeros(4_000_000)))], zipfile.ZIP_DEFLATED),
    "bzip2": archive([("rewards.npy", GOOD)], zipfile.ZIP_BZIP2),
    "lzma": archive([("rewards.npy", GOOD)], zipfile.ZIP_LZMA),
    "unknown compression": flip(ONE, ENTRY + 10, 99),
    "encrypted": flip(flip(ONE, ENTRY + 8, 1), 6, 1),
    "damaged byte": flip(ONE, 150),
    "wrong magic": archive([("rewards.npy", b"NUMPY" + GOOD)]),
    "later npy version": archive([("rewards.npy", flip(GOOD, 6, 3))]),
    "header claims 80 TB": huge("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"),
    "header claims 2**200": huge(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**200},), }}"),
    "negative shape": huge("{'descr': '<f8', 'fortran_order': False, 'shape': (-8,), }"),
    "negative product": huge("{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -4), }"),
    "boolean shape": huge("{'descr': '<f8', 'fortran_order': False, 'shape': (True, 8), }"),
    "float shape": huge("{'descr': '<f8', 'fortran_order': False, 'shape': (8.0,), }"),
    "many dimensions": huge("{'descr': '<f8', 'fortran_order': False, 'shape': (8" + ",1" * 9 + "), }"),
    "huge text of no elements": huge("{'descr': '<U100000000', 'fortran_order': False, 'shape': (0,), }"),
    "texts without a size": huge("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }"),
    "text that is not unicode": archive([("scenarios.npy", npy_header(
        "{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }") + b"\xff\xff\xff\xff")]),
    "code in a header": huge("{'descr': __import__('os').system('true'), 'shape': (8,)}"),
    "deeply nested header": huge("(" * 110),
    "header of another kind": huge("[1, 2]"),
    "fewer bytes than claimed": archive([("rewards.npy", GOOD[:-8])]),
    "more bytes than claimed": archive([("rewards.npy", GOOD + b"\0" * 8)]),
    "fortran order": archive([("rewards.npy", npy(np.asfortranarray(np.ones((2, 3)))))]),
    "structured": archive([("rewards.npy", npy(np.zeros(2, dtype=[("a", "f4")])))]),
    "bytes": archive([("rewards.npy", npy(np.array([b"a"])))]),
    "dates": archive([("rewards.npy", npy(np.array(["2026-01-01"], "M8[D]")))]),
    "complex": archive([("rewards.npy", npy(np.ones(2, complex)))]),
    "foreign byte order": archive([("rewards.npy", npy(np.ones(2, ">f4")))]),
    "path out": archive([("../rewards.npy", GOOD)]),
    "absolute path": archive([("/etc/rewards.npy", GOOD)]),
    "backslash path": archive([("..\\rewards.npy", GOOD)]),
    "drive": archive([("C:rewards.npy", GOOD)]),
    "folder": archive([("rewards/", b"")]),
    "name with a newline": archive([("rewards\n.npy", GOOD)]),
    "no npy": archive([("rewards.pkl", GOOD)]),
    "dunder": archive([("__class__.npy", GOOD)]),
    "many members": archive([(f"metric.m{i}.npy", GOOD) for i in range(300)]),
    "overlapping members": overlapping(),
    "directory outside": ONE[: END + 16] + struct.pack("<L", 0xFFFFFF00) + ONE[END + 20 :],
    "huge directory": ONE[: END + 12] + struct.pack("<L", 0x7FFFFFFF) + ONE[END + 16 :],
}  # fmt: skip


def test_a_hostile_archive_is_refused_in_one_line_and_little_memory(tmp_path):
    path, wrong = tmp_path / "trajectories.npz", {}
    for case, content in HOSTILE.items():
        path.write_bytes(content)
        said = "nothing"
        tracemalloc.start()
        try:
            read_archive(path)
        except BadInput as error:
            said = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if "\n" in said or "trajectories.npz" not in said or len(said) >= 400 or peak >= 3_000_000:
            wrong[case] = (said, peak)
    assert wrong == {}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_member_twice_is_refused(tmp_path):
    (tmp_path / "t.npz").write_bytes(archive([("rewards.npy", GOOD), ("rewards.npy", GOOD)]))
    with pytest.raises(BadInput, match="the same one twice"):
        read_archive(tmp_path / "t.npz")


def test_a_pickled_object_array_is_refused_and_its_code_never_runs(tmp_path):
    trap = tmp_path / "ran"
    objects = np.empty(1, dtype=object)
    objects[0] = Trap(trap)
    for content in (npy(objects), pickle.dumps(Trap(trap))):
        (tmp_path / "t.npz").write_bytes(archive([("rewards.npy", content)]))
        with pytest.raises(BadInput):
            read_archive(tmp_path / "t.npz")
    (tmp_path / "t.npz").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(BadInput):
        read_archive(tmp_path / "t.npz")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))  # noqa: S301 - the trap itself works
    assert trap.exists()


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(BadInput):
            read_archive(path)
        with pytest.raises(BadInput):
            read_metadata(path)


def test_metadata_that_is_no_strict_json_is_refused(saved):
    for text in (
        "", "{", "[]", "null", '{"a": NaN}', '{"a": Infinity}', '{"a": 1, "a": 2}', "[" * 100_000, "\ud800",
        '{"a": 1e999}', "{" + '"a": ' + "9" * 5000 + "}", "\x00",
    ):  # fmt: skip
        (saved / "metadata.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(BadInput) as error:
            load_dataset(saved)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400, text[:20]


def test_oversized_metadata_is_not_read(saved):
    with open(saved / "metadata.json", "ab") as file:
        file.truncate(9_000_000)
    with pytest.raises(BadInput, match="9000000 bytes"):
        load_dataset(saved)


def test_each_key_of_the_metadata_is_demanded_by_name(saved):
    data = json.loads((saved / "metadata.json").read_text())
    for key in data:
        rest = {k: v for k, v in data.items() if k != key}
        with pytest.raises(BadInput, match=f"{key} = None: is missing"):
            DatasetMetadata.from_data(rest)
        with pytest.raises(BadInput, match=key):
            DatasetMetadata.from_data({**data, key: object()})


def test_changed_metadata_or_content_is_not_loaded(saved, tmp_path):
    data = json.loads((saved / "metadata.json").read_text())
    (saved / "metadata.json").write_text(json.dumps({**data, "run_id": "other"}))
    with pytest.raises(BadInput, match="was changed after it was written"):
        load_dataset(saved)
    arrays = trajectories().to_arrays()
    arrays["rewards"][0] += 1
    write_dataset(tmp_path / "changed", arrays, data)
    with pytest.raises(BadInput, match=r"digest .* differs"):
        load_dataset(tmp_path / "changed")
    later = {**data, "schema_version": 2}
    write_dataset(tmp_path / "later", trajectories().to_arrays(), {**later, "metadata_digest": metadata_digest(later)})
    with pytest.raises(BadInput, match="schema_version = 2, this code reads 1"):
        load_dataset(tmp_path / "later")


def test_missing_and_foreign_arrays_are_named(saved, tmp_path):
    data, arrays = json.loads((saved / "metadata.json").read_text()), trajectories().to_arrays()
    write_dataset(tmp_path / "missing", {n: a for n, a in arrays.items() if n != "seeds"}, data)
    with pytest.raises(BadInput, match="missing: seeds"):
        load_dataset(tmp_path / "missing")
    write_dataset(tmp_path / "foreign", {**arrays, "extra": np.zeros(2)}, data)
    with pytest.raises(BadInput, match="extra"):
        load_dataset(tmp_path / "foreign")

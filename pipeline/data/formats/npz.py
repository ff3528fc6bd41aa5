"""Datasets on disk: written as a whole or not at all, read without trusting a byte.

    trajectories.npz   one uncompressed .npy member per array of `Trajectories.to_arrays`; of a Dict one per key
    metadata.json      the fields of `DatasetMetadata` and `metadata_digest`, the digest of the others

Reading never runs code and never allocates more than the file holds: sizes are checked before anything is read, and
object arrays, compressed members, foreign names and anything else that `save_dataset` does not write are refused.
"""

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from pipeline.data.foreign import EXPANSION, SPARE_BYTES, ForeignEpisode, ForeignSet, source_digest
from pipeline.data.metadata import SCHEMA_VERSION, DatasetMetadata
from pipeline.data.observations import join_fields, split_fields
from pipeline.data.trajectories import ENDS, REWARDS, SEEDS, UNKNOWN_SEED, Trajectories, content_digest
from pipeline.errors import BadInput, printable, shortened
from pipeline.files import appearing, readable, strict_json, sync, write_folder
from pipeline.names import METADATA_FILE, TRAJECTORIES_FILE

MAX_ARCHIVE_BYTES: Final = (1 << 32) - 1
MAX_METADATA_BYTES: Final = 8_000_000
MAX_MEMBERS: Final = 256
MAX_DIRECTORY_BYTES: Final = 1 << 17
MAX_HEADER_BYTES: Final = 4096
OPTIONAL: Final = ("labels", "rewards", "terminations", "truncations")
INFO: Final = "info."
# a .npy of version 1.0 exactly as numpy begins it; its own parser takes far more than that: little-endian or byte-sized
# booleans, integers, floats and texts, C order, at most 8 axes
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00([\x00-\xff]{2})"
    rb"\{'descr': '([|<](?:b1|[iu][1248]|f[248]|U[1-9]\d{0,8}))', 'fortran_order': (False|True), "
    rb"'shape': \(((?:\d{1,18},|\d{1,18}(?:, \d{1,18}){1,7})?)\), \} *\n"
)
_MEMBER = re.compile(r"[a-z][a-z_]{0,63}(\.[A-Za-z0-9_]{1,64})?\.npy")
_PLAIN_MEMBER = re.compile(
    rf"(lengths|seeds|actions|{'|'.join(OPTIONAL)}|info\.[A-Za-z0-9_]{{1,64}}|observations(\.[A-Za-z0-9_]{{1,64}})?)\.npy"
)


def save_dataset(folder: str | Path, trajectories: Trajectories, metadata: DatasetMetadata) -> None:
    """Write a dataset as a whole or not at all. Raises BadInput when the folder holds anything already.

    `metadata.content_digest` must be `content_digest(trajectories)` (ValueError).
    """
    digest = content_digest(trajectories)
    if (metadata.content_digest, metadata.episodes, metadata.steps) != (digest, len(trajectories), trajectories.steps):
        raise ValueError(f"metadata describes other trajectories: {metadata.content_digest} instead of {digest}")
    write_dataset(folder, trajectories.to_arrays(), metadata.to_data())


def write_dataset(folder: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write arrays and metadata as they are, right or wrong, as a whole or not at all."""
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"dataset folder {str(target)!r} is not empty; datasets are never overwritten, give a new one")
    text = json.dumps(metadata, indent=1, allow_nan=False)
    write_folder(
        target,
        {
            TRAJECTORIES_FILE: lambda file: write_archive(file, arrays),
            METADATA_FILE: lambda file: file.write(text.encode()),
        },
    )


def load_dataset(folder: str | Path) -> tuple[Trajectories, DatasetMetadata]:
    """Read a dataset and hold it to its own digest. Raises BadInput, one line, on anything wrong with the files.

    That the files are whole does not make the data right: only a dataset that `pipeline.validation` passed is.
    """
    metadata = DatasetMetadata.from_data(read_metadata(Path(folder) / METADATA_FILE))
    if metadata.schema_version != SCHEMA_VERSION:
        raise BadInput(f"{METADATA_FILE}: schema_version = {metadata.schema_version}, this code reads {SCHEMA_VERSION}")
    trajectories = Trajectories.from_arrays(read_archive(Path(folder) / TRAJECTORIES_FILE))
    digest = content_digest(trajectories)
    if digest != metadata.content_digest:
        raise BadInput(
            f"{TRAJECTORIES_FILE}: digest {digest} differs from {metadata.content_digest} in {METADATA_FILE}"
        )
    return trajectories, metadata


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The JSON object of a metadata file, unchecked. Raises BadInput when it is no strict, bounded JSON object."""
    file = Path(path)
    try:
        _bounded(file, MAX_METADATA_BYTES)
        data = strict_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{file.name} cannot be read: {shortened(str(error))}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{file.name} must hold a JSON object, got {shortened(data)}")
    return data


def _bounded(file: Path, limit: int) -> int:
    size = file.stat().st_size
    if not file.is_file() or size > limit:
        raise ValueError(f"it has {size} bytes, allowed is a file of at most {limit}")
    return size


def write_archive(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an uncompressed .npz that `np.load(allow_pickle=False)` reads; equal arrays give equal bytes.

    Raises BadInput for more than `read_archive` would read again.
    """
    plain = split_fields(arrays)
    refuse_oversize(sum(array.nbytes + MAX_HEADER_BYTES for array in plain.values()))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(plain):
            array = np.ascontiguousarray(plain[name]).reshape(plain[name].shape)
            large = array.nbytes + MAX_HEADER_BYTES > zipfile.ZIP64_LIMIT  # said before it is written, or zipfile fails
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=large) as member:
                np.lib.format.write_array(member, array, (1, 0), allow_pickle=False)


def refuse_oversize(size: int) -> None:
    """Raise BadInput for so many bytes of arrays when they are more than the file of a dataset may have."""
    if size > MAX_ARCHIVE_BYTES:
        raise BadInput(
            f"the arrays have {size} bytes, the file of a dataset may have {MAX_ARCHIVE_BYTES}; record fewer or "
            "shorter episodes, or smaller observations"
        )


def read_archive(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of an archive that `write_archive` wrote, by name.

    Raises BadInput, without reading more than the file has, on anything else: a damaged zip, compressed or
    encrypted members, names with a path, a header that claims another size, object or structured arrays.
    """
    return _arrays_of(Path(path))[0]


def read_plain_npz(path: str | Path) -> ForeignSet:
    """Demonstrations in a plain .npz as numpy writes it, compressed or not: S steps of N episodes, one after the other.

    `lengths` (N,); `actions` (S, ...); `observations` (S + N, ...), or (S, ...) without the one after each last step,
    or `observations.<key>` of a Dict; where they are known `rewards`, `terminations`, `truncations`, `info.<key>` (S,)
    and `seeds` (N,); `labels` (S, ...) where what was executed is not what the demonstrator answered. Other members are
    not read. Raises BadInput.
    """
    file = Path(path)
    arrays, ignored = _arrays_of(file, _PLAIN_MEMBER)
    for name in ("lengths", "actions", "observations"):
        if name not in arrays:
            raise BadInput(f"{file.name}: there is no array {name!r}; it has: {', '.join(sorted(arrays)) or 'none'}")
    lengths = arrays["lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths) or lengths.min() < 1:
        raise BadInput(f"{file.name}: lengths must be the number of steps of each episode, 1 or more")
    steps, count = sum(lengths.tolist()), len(lengths)
    for name, array in arrays.items():
        rows = {"observations": (steps + count, steps), "lengths": (count,), "seeds": (count,)}.get(name, (steps,))
        if array.ndim < 1 or len(array) not in rows:
            expected = " or ".join(map(str, rows))
            raise BadInput(f"{file.name}: {name} has shape {array.shape}, expected {expected} rows, by lengths")
        if array.dtype.kind not in "biufV" or (array.ndim > 1 and name not in ("observations", "actions", "labels")):
            raise BadInput(f"{file.name}: {name} is {array.dtype} {array.shape}; allowed are plain numbers, one a row")
    if "seeds" in arrays and arrays["seeds"].dtype.kind not in "iu":
        raise BadInput(
            f"{file.name}: seeds are {arrays['seeds'].dtype}; a seed is a whole number, -1 where none is known"
        )
    if "truncations" in arrays and "terminations" not in arrays:
        raise BadInput(f"{file.name}: truncations without terminations do not say how the other episodes ended")
    more = int(len(arrays["observations"]) > steps)
    told = {name.removeprefix(INFO): array for name, array in arrays.items() if name.startswith(INFO)}
    episodes, end = [], 0
    for index, length in enumerate(lengths.tolist()):
        begin, end = end, end + length
        endings: dict[str, Any] = {name: arrays[name][begin:end] for name in OPTIONAL if name in arrays}
        seed = int(arrays["seeds"][index]) if "seeds" in arrays else UNKNOWN_SEED
        episodes.append(
            ForeignEpisode(
                observations=arrays["observations"][begin + more * index : end + more * (index + 1)],
                actions=arrays["actions"][begin:end],
                **endings,
                seed=None if seed < 0 else seed,
                infos={key: array[begin:end] for key, array in told.items()} or None,
            )
        )
    digest = source_digest(file)
    return ForeignSet("npz", tuple(episodes), printable(file.stem)[:100], digest[:8], digest, ignored=ignored)


def export_plain_npz(trajectories: Trajectories, path: str | Path) -> None:
    """Write what `read_plain_npz` reads to a new file; what the demonstrator answered as `labels`, where it differs.

    As a whole or not at all. Raises BadInput when the file exists.
    """
    file, data = Path(path), trajectories
    if file.exists():
        raise BadInput(f"export file {str(file)!r} exists; give a new one")
    arrays = {"observations": data.observations, "actions": data.executed_actions, "lengths": data.lengths}
    if not np.array_equal(data.actions, data.executed_actions):
        arrays["labels"] = data.actions
    parts = {REWARDS: ("rewards",), ENDS: ("terminations", "truncations"), SEEDS: ("seeds",)}
    for name in (name for part, names in parts.items() if part not in data.missing for name in names):
        arrays[name] = getattr(data, name)
    with appearing(file) as written, open(written, "wb") as stream:
        write_archive(stream, arrays)
        sync(stream)


def _arrays_of(file: Path, wanted: re.Pattern[str] | None = None) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Arrays by name, and members passed over: those that are not `wanted`. None: an archive of `write_archive`."""
    with readable(f"{file.name} cannot be read", kind=True):
        size = _bounded(file, MAX_ARCHIVE_BYTES)
        with open(file, "rb") as stream:
            # a large directory is refused before `zipfile` reads it into memory
            stream.seek(max(0, size - 22))
            end = stream.read(22)  # the end record of a zip without a comment, as `write_archive` makes it
            if len(end) < 22 or end[:4] != b"PK\x05\x06":
                raise ValueError("it does not end as a complete .npz archive; was it cut short?")
            if int.from_bytes(end[12:16], "little") > MAX_DIRECTORY_BYTES:
                raise ValueError(f"it lists more than {MAX_MEMBERS} members")
            with zipfile.ZipFile(stream) as archive:
                members, foreign = archive.infolist(), wanted is not None
                _refuse_members(members, size, foreign)
                taken = [one for one in members if wanted is None or wanted.fullmatch(one.filename)]
                plain = {one.filename.removesuffix(".npy"): _read_array(archive, one, foreign) for one in taken}
        ignored = tuple(printable(one.filename.removesuffix(".npy"))[:100] for one in members if one not in taken)
        return join_fields(plain, "observations"), ignored


def _refuse_members(members: list[zipfile.ZipInfo], size: int, foreign: bool) -> None:
    if len(members) > MAX_MEMBERS or len({member.filename for member in members}) != len(members):
        raise ValueError(f"it holds more than {MAX_MEMBERS} members or the same one twice")
    # subtle: overlapping members would read the same bytes again and again
    if sum(member.file_size for member in members) > (SPARE_BYTES + EXPANSION * size if foreign else size):
        raise ValueError("its members claim more bytes than the file can hold")
    for member in () if foreign else members:
        faults = {
            "is not named like actions.npy or metric.return.npy": not _MEMBER.fullmatch(member.filename),
            "is compressed or encrypted; members must be stored as they are": member.compress_type != zipfile.ZIP_STORED
            or member.flag_bits & 0x1,
            f"claims {member.file_size} bytes and stores others": member.file_size != member.compress_size,
        }
        for fault, found in faults.items():
            if found:
                raise ValueError(f"member {shortened(member.filename)} {fault}")


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, foreign: bool) -> np.ndarray:
    with archive.open(member) as stream:
        begin = stream.read(MAX_HEADER_BYTES)
    header = _HEADER.match(begin)
    transposed = header is not None and header[3] == b"True"
    if header is None or header.end() != 10 + int.from_bytes(header[1], "little") or (transposed and not foreign):
        raise ValueError(
            f"{member.filename} begins {shortened(begin)}; allowed are numbers, booleans, texts in C order"
        )
    dtype = np.dtype(header[2].decode())
    expected = math.prod(map(int, re.findall(rb"\d+", header[4]))) * dtype.itemsize
    if header.end() + expected != member.file_size or dtype.itemsize > max(1024, expected):
        raise ValueError(f"{member.filename} claims {expected} bytes of data in a member of {member.file_size}")
    with archive.open(member) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # only reading to the end makes zipfile compare the checksum
    if dtype.kind == "U" and array.size:
        codes = array.reshape(-1).view(np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError(f"{member.filename} holds what is no text")
    return array

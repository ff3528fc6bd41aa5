"""Datasets on disk: written as a whole or not at all, read without trusting a byte.

    trajectories.npz   one uncompressed .npy member per array of `Trajectories.to_arrays`; of a Dict one per key
    metadata.json      the fields of `DatasetMetadata` and `metadata_digest`, the digest of the others

Reading never runs code and never allocates more than the file holds: sizes are checked before anything is read, and
object arrays, compressed members, foreign names and anything else that `save_dataset` does not write are refused.
"""

import json
import math
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from pipeline.data.metadata import SCHEMA_VERSION, DatasetMetadata
from pipeline.data.observations import join_fields, split_fields
from pipeline.data.trajectories import Trajectories, content_digest
from pipeline.errors import BadInput, shortened
from pipeline.files import sync, sync_folder
from pipeline.names import METADATA_FILE, TRAJECTORIES_FILE

MAX_ARCHIVE_BYTES: Final = (1 << 32) - 1  # a plain zip, without its 64-bit extension
MAX_METADATA_BYTES: Final = 8_000_000
MAX_MEMBERS: Final = 256
MAX_DIRECTORY_BYTES: Final = 1 << 17
_MAX_NPY_HEADER: Final = 4096
_CHUNK: Final = 1 << 22
# little-endian or byte-sized booleans, integers, floats and texts, C order, at most 8 axes
_NPY_HEADER = re.compile(
    rb"\{'descr': '([|<](?:b1|[iu][1248]|f[248]|U[1-9]\d{0,8}))', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,18}(?:, \d{1,18}){0,7},?)?)\), \} *\n"
)
_MEMBER = re.compile(r"[a-z][a-z_]{0,63}(\.[A-Za-z0-9_]{1,64})?\.npy")


def save_dataset(folder: str | Path, trajectories: Trajectories, metadata: DatasetMetadata) -> None:
    """Write a dataset as a whole or not at all. Raises BadInput when the folder holds anything already.

    `metadata.content_digest` must be `content_digest(trajectories)` (ValueError).
    """
    digest = content_digest(trajectories)
    if (metadata.content_digest, metadata.episodes, metadata.steps) != (digest, len(trajectories), trajectories.steps):
        raise ValueError(f"metadata describes other trajectories: {metadata.content_digest} instead of {digest}")
    write_dataset(folder, trajectories.to_arrays(), metadata.to_data())


def write_dataset(folder: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write arrays and metadata as they are, right or wrong, atomically: a temporary folder, fsync, rename."""
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"dataset folder {str(target)!r} is not empty; datasets are never overwritten, give a new one")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.writing-", dir=target.parent))
    try:
        with open(temporary / TRAJECTORIES_FILE, "wb") as file:
            write_archive(file, arrays)
            sync(file)
        with open(temporary / METADATA_FILE, "wb") as file:
            file.write(json.dumps(metadata, indent=1, allow_nan=False).encode())
            sync(file)
        temporary.chmod(0o755)
        sync_folder(temporary)
        os.rename(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
        size = file.stat().st_size
        if not file.is_file() or size > MAX_METADATA_BYTES:
            raise BadInput(f"{file.name} has {size} bytes, allowed is a file of at most {MAX_METADATA_BYTES}")
        data = json.loads(
            file.read_bytes().decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file.name} cannot be read: {shortened(str(error))}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{file.name} must hold a JSON object, got {shortened(data)}")
    return data


def write_archive(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an uncompressed .npz that `np.load(allow_pickle=False)` reads; equal arrays give equal bytes."""
    plain = split_fields(arrays)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name in sorted(plain):
            array = np.ascontiguousarray(plain[name]).reshape(plain[name].shape)
            if array.dtype.hasobject:
                raise ValueError(f"{name} is an object array; only numbers, booleans and texts can be stored")
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
                flat = array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
                for start in range(0, len(flat), _CHUNK):
                    member.write(flat[start : start + _CHUNK].data)


def read_archive(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of an archive that `write_archive` could have written, by name, fields of observations joined.

    Raises BadInput, before allocating more than the file holds, on anything else: no zip, damaged, compressed or
    encrypted members, names with a path, a header that claims another size, object or structured arrays.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if not file.is_file() or size > MAX_ARCHIVE_BYTES:
            raise BadInput(f"{file.name} has {size} bytes, allowed is a file of at most {MAX_ARCHIVE_BYTES}")
        with open(file, "rb") as stream:
            _bound_directory(stream, size, file.name)
            with zipfile.ZipFile(stream) as archive:
                members = _checked_members(archive, size, file.name)
                plain = {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members}
        return join_fields(plain, "observations")
    except (
        OSError, ValueError, EOFError, RuntimeError, NotImplementedError, MemoryError, OverflowError, TypeError,
        LookupError, struct.error, zlib.error, zipfile.BadZipFile,
    ) as error:  # what zipfile raises on damaged input  # fmt: skip
        raise BadInput(f"{file.name} cannot be read: {type(error).__name__}: {shortened(str(error))}") from None


def _bound_directory(stream: IO[bytes], size: int, name: str) -> None:
    """Refuse a zip whose directory is large before `zipfile` reads it into memory."""
    stream.seek(max(0, size - 22))
    end = stream.read(22)  # the end record of a zip without a comment, as `write_archive` makes it
    if len(end) < 22 or end[:4] != b"PK\x05\x06":
        raise BadInput(f"{name} is not a complete .npz archive: it does not end as one; was it cut short?")
    if int.from_bytes(end[10:12], "little") > MAX_MEMBERS or int.from_bytes(end[12:16], "little") > MAX_DIRECTORY_BYTES:
        raise BadInput(f"{name} lists more than {MAX_MEMBERS} members")


def _checked_members(archive: zipfile.ZipFile, size: int, name: str) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(members) > MAX_MEMBERS or len(set(names)) != len(names):
        raise BadInput(f"{name} holds more than {MAX_MEMBERS} members or the same one twice")
    for member in members:
        shown = shortened(member.filename)
        if not _MEMBER.fullmatch(member.filename):
            raise BadInput(f"{name} holds a member {shown}; members are named like actions.npy or metric.return.npy")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
            raise BadInput(f"{name}: member {shown} is compressed or encrypted; members must be stored as they are")
        if member.file_size != member.compress_size:
            raise BadInput(f"{name}: member {shown} claims {member.file_size} bytes and stores {member.compress_size}")
    # subtle: overlapping members would read the same bytes again and again
    if sum(member.file_size for member in members) > size:
        raise BadInput(f"{name}: its members claim more bytes than the file has")
    return members


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        dtype, shape = _read_header(stream, member.filename)
        expected = math.prod(shape) * dtype.itemsize
        if stream.tell() + expected != member.file_size or dtype.itemsize > max(1024, expected):
            raise ValueError(f"{member.filename} claims {expected} bytes of data in a member of {member.file_size}")
        array = np.empty(shape, dtype=dtype)
        if array.size:
            _fill(stream, array.reshape(-1).view(np.uint8), member.filename)
        if stream.read(1):  # reading to the end also makes zipfile compare the checksum
            raise ValueError(f"{member.filename} holds more than its header says")
    if dtype.kind == "U" and array.size:
        codes = array.reshape(-1).view(np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError(f"{member.filename} holds what is no text")
    return array


def _read_header(stream: IO[bytes], name: str) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and shape of a .npy header exactly as numpy writes it; numpy's own parser takes far more than that."""
    prefix = stream.read(10)
    if prefix[:8] != b"\x93NUMPY\x01\x00" or len(prefix) != 10:
        raise ValueError(f"{name} is not a .npy of version 1.0")
    header = stream.read(min(_MAX_NPY_HEADER, int.from_bytes(prefix[8:], "little")))
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise ValueError(
            f"{name} has the header {shortened(header)}; allowed are numbers, booleans and texts in C order"
        )
    shape = tuple(int(length) for length in re.findall(rb"\d+", match[2]))
    if match[2] and len(shape) == 1 and not match[2].endswith(b","):
        raise ValueError(f"{name} has a shape that is no tuple")
    return np.dtype(match[1].decode()), shape


def _fill(stream: IO[bytes], flat: np.ndarray, name: str) -> None:
    done = 0
    while done < len(flat):
        part = stream.read(min(_CHUNK, len(flat) - done))
        if not part:
            raise ValueError(f"{name} ends after {done} of {len(flat)} bytes")
        flat[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key is given twice")
    return data


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is too large a number")
    return float(text)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")

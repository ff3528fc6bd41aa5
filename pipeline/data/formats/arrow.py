"""Demonstrations that Apache Arrow holds: LeRobot datasets (parquet) and trajectories saved by `imitation` (IPC files).

Numbers alone are read: no pictures or videos, no texts, and never `imitation`'s infos, from which its own reader makes
objects. What a reader passes over, the set names.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.foreign import EXPANSION, SPARE_BYTES, ForeignEpisode, ForeignSet, source_digest
from pipeline.errors import BadInput, printable, shortened
from pipeline.files import DAMAGE, strict_json

MAX_JSON_BYTES: Final = 8_000_000
MAX_FILES: Final = 100_000
LEROBOT_VERSIONS: Final = ("v2.0", "v2.1", "v3.0")
STATE, ACTION, REWARD, SUCCESS = "observation.state", "action", "next.reward", "next.success"
INDICES: Final = ("episode_index", "frame_index")


def read_lerobot(folder: str | Path) -> ForeignSet:
    """A LeRobot dataset: `observation.state`, `action`, and `next.reward` and `next.success` where they are there.

    Frames are what was seen before each action, so that the observation after the last one is missing. `next.done` says
    that a recording ended, not whether the environment ended it, and is passed over. Raises BadInput.
    """
    root = Path(folder)
    try:
        info = _json(root / "meta" / "info.json")
        version, features = info["codebase_version"], info["features"]
        if version not in LEROBOT_VERSIONS:
            raise BadInput(f"lerobot dataset: it is {shortened(version)}; read are {', '.join(LEROBOT_VERSIONS)}")
        for name in (STATE, ACTION):
            if name not in features:
                raise BadInput(f"lerobot dataset: there is no {name!r}; it has {shortened(sorted(features))}")
        wanted = [*INDICES, *(name for name in (STATE, ACTION, REWARD, SUCCESS) if name in features)]
        widths = {name: int(np.prod(features[name]["shape"], dtype=np.int64)) for name in wanted}
        files = sorted((root / "data").rglob("*.parquet"))
        if not 1 <= len(files) <= MAX_FILES:
            raise BadInput(f"lerobot dataset: it holds {len(files)} parquet files, allowed are 1 to {MAX_FILES}")
        parts = [_columns(file, widths) for file in files]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
        order = np.lexsort((columns["frame_index"].ravel(), columns["episode_index"].ravel()))
        columns = {name: array[order] for name, array in columns.items()}
        numbers, lengths = np.unique(columns["episode_index"], return_counts=True)
        counted = len(numbers), len(order)
        if counted != (info["total_episodes"], info["total_frames"]):
            stated = info["total_episodes"], info["total_frames"]
            raise BadInput(
                f"lerobot dataset: it has (episodes, frames) {counted}, its info.json says {shortened(stated)}"
            )
        frames = np.concatenate([np.arange(length) for length in lengths])
        if not np.array_equal(columns["frame_index"].ravel(), frames):
            raise BadInput("lerobot dataset: the frames of an episode are not numbered 0, 1, 2, ...; rows are missing")
        episodes, end = [], 0
        for length in lengths.tolist():
            begin, end = end, end + length
            one = {name: columns[name][begin:end] for name in wanted}
            episodes.append(
                ForeignEpisode(
                    observations=one[STATE],
                    actions=one[ACTION],
                    rewards=one[REWARD][:, 0].astype(np.float64) if REWARD in one else None,
                    infos={"success": one[SUCCESS][:, 0]} if SUCCESS in one else None,
                )
            )
        passed_over = tuple(printable(name)[:100] for name in features if name not in wanted)[:100]
        digest = source_digest(root)
        name = printable(root.resolve().name)[:100]
        return ForeignSet("lerobot", tuple(episodes), name, version, digest, ignored=passed_over)
    except DAMAGE as error:
        raise BadInput(f"lerobot dataset: cannot be read: {type(error).__name__}: {shortened(str(error))}") from None


def read_imitation(folder: str | Path) -> ForeignSet:
    """Trajectories that `imitation.data.serialize.save` wrote: T + 1 observations, and whether the last is terminal.

    What is not terminal was cut off. Raises BadInput.
    """
    root = Path(folder)
    try:
        files = sorted(root.glob("*.arrow"))
        if not 1 <= len(files) <= MAX_FILES:
            raise BadInput(f"imitation trajectories: there are {len(files)} .arrow files in {str(root)!r}")
        episodes: list[ForeignEpisode] = []
        left = SPARE_BYTES + EXPANSION * sum(file.stat().st_size for file in files)
        passed_over: set[str] = set()
        for file in files:
            with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
                names = stream.schema.names
                if missing := [name for name in ("obs", "acts", "terminal") if name not in names]:
                    raise BadInput(f"imitation trajectories: there is no {missing[0]!r}; there are {shortened(names)}")
                passed_over |= {*names} - {"obs", "acts", "terminal", "rews"}
                for batch in stream:
                    batch.validate(full=True)  # before it is looked at: offsets may lead out of its buffers
                    left -= batch.nbytes
                    if left < 0:
                        raise BadInput(f"imitation trajectories: {file.name} unpacks to more than it can hold")
                    for index in range(batch.num_rows):
                        one = {n: batch.column(n)[index] for n in ("obs", "acts", "rews") if n in names}
                        arrays = {
                            name: _dense(value.values, f"{name} of trajectory {index}") for name, value in one.items()
                        }
                        length, terminal = len(arrays["acts"]), batch.column("terminal")[index].as_py()
                        rewards = arrays.get("rews", np.zeros(length))
                        if len(arrays["obs"]) != length + 1 or rewards.shape != (length,) or not length:
                            raise BadInput(
                                f"imitation trajectories: number {len(episodes)} has {len(arrays['obs'])} "
                                f"observations, {length} actions, {len(rewards)} rewards; expected T + 1, T and T"
                            )
                        ends = (np.arange(length) == length - 1) & bool(terminal)
                        told = arrays.get("rews")
                        episodes.append(ForeignEpisode(arrays["obs"], arrays["acts"], rewards=told, terminations=ends))
        if not episodes:
            raise BadInput("imitation trajectories: there are none in it")
        ignored, digest = tuple(printable(name)[:100] for name in sorted(passed_over)), source_digest(root)
        name = printable(root.resolve().name)[:100]
        return ForeignSet("imitation", tuple(episodes), name, digest[:8], digest, ignored=ignored)
    except (*DAMAGE, SystemError) as error:  # the latter is Arrow's, of some damaged schemas
        raise BadInput(
            f"imitation trajectories: cannot be read: {type(error).__name__}: {shortened(str(error))}"
        ) from None


def _json(path: Path) -> Any:
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        raise BadInput(
            f"lerobot dataset: there is no {path.name} of at most {MAX_JSON_BYTES} bytes in {str(path.parent)!r}"
        )
    return strict_json(path.read_bytes())


def _columns(file: Path, widths: dict[str, int]) -> dict[str, np.ndarray]:
    """(rows, width) of each column of a parquet file, whose claims are held against its size before it is read."""
    parquet = pq.ParquetFile(file)
    held, rows = parquet.metadata, parquet.metadata.num_rows
    allowed = SPARE_BYTES + EXPANSION * file.stat().st_size
    if missing := [name for name in widths if name not in parquet.schema_arrow.names]:
        raise BadInput(f"lerobot dataset: {file.name} has no column {missing[0]!r}")
    claimed = max(
        8 * rows * sum(widths.values()), sum(held.row_group(i).total_byte_size for i in range(held.num_row_groups))
    )
    if claimed > allowed:
        raise BadInput(f"lerobot dataset: {file.name} claims {claimed} bytes, {allowed} are allowed for its size")
    for group in (held.row_group(i) for i in range(held.num_row_groups)):
        for column in (group.column(i) for i in range(group.num_columns)):
            width = widths.get(re.split(r"\.(?:list|element|item)\b", column.path_in_schema)[0])
            if width is not None and column.num_values > width * group.num_rows:
                raise BadInput(f"lerobot dataset: {file.name}: {column.path_in_schema} holds more than {width} a row")
    table = parquet.read(columns=list(widths), use_threads=False)
    table.validate(full=True)
    found = {name: _dense(table.column(name).combine_chunks(), f"{file.name}: {name}") for name in widths}
    for name, array in found.items():
        if array.size != rows * widths[name]:
            raise BadInput(
                f"lerobot dataset: {file.name}: {name} has {array.shape}, info.json says {widths[name]} a row"
            )
    return {name: array.reshape(rows, widths[name]) for name, array in found.items()}


def _dense(array: Any, what: str) -> np.ndarray:
    """Numbers in lists of equal lengths, however deep, as one array."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    shape: Sequence[int] = [len(array)]
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        lengths = pc.min_max(pc.list_value_length(array)).as_py()
        if array.null_count or lengths["min"] != lengths["max"] or len(shape) > 4:
            raise BadInput(f"{what}: its lists differ in length, from {lengths['min']} to {lengths['max']}")
        shape, array = [*shape, lengths["min"] or 0], array.flatten()
    kind = array.type
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not plain or array.null_count:
        raise BadInput(
            f"{what}: it is {shortened(str(kind))}, {array.null_count} of them missing; allowed are plain numbers"
        )
    numbers: np.ndarray = array.to_numpy(zero_copy_only=False)
    return numbers.reshape(shape)

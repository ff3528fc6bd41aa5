"""LeRobot datasets (https://github.com/huggingface/lerobot): parquet, with pictures in it or videos beside it.

    read_lerobot("theirs")                               # observation.state and action, rewards where there are any
    read_lerobot("theirs", ("state", "top"))             # a Dict: the state, and the frames of observation.images.top
    export_lerobot(trajectories, metadata, "out/swing")  # v3.0, numbers alone

Frames are what was seen before each action, so that the observation after the last one is missing; `next.done` says
that a recording ended, not whether the environment ended it. What a reader passes over, the set names.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.foreign import EXPANSION, SPARE_BYTES, ForeignEpisode, ForeignSet, source_digest
from pipeline.data.formats.arrow import MAX_FILES, dense
from pipeline.data.metadata import DatasetMetadata
from pipeline.data.observations import join_fields
from pipeline.data.trajectories import ENDS, REWARDS, Trajectories
from pipeline.errors import BadInput, printable, shortened
from pipeline.files import readable, strict_json, write_folder
from pipeline.names import Metric

MAX_JSON_BYTES: Final = 8_000_000
MAX_PICTURE_BYTES: Final = 1 << 31  # of all frames that are read
VERSIONS: Final = ("v2.0", "v2.1", "v3.0")
STATE, ACTION, REWARD, SUCCESS = "observation.state", "action", "next.reward", "next.success"
LABEL: Final = "label"  # ours: what the demonstrator answered, where something else was executed
INDICES: Final = ("episode_index", "frame_index")
FPS: Final = 1  # of what is exported: steps are counted, nobody knows how long they took


def read_lerobot(folder: str | Path, keys: Sequence[str] = ()) -> ForeignSet:
    """`observation.state`, `action`, and `label`, `next.reward` and `next.success` where they are there.

    With `keys` the observations are a Dict of these: of `observation.images.<key>` or `observation.<key>`, which are
    numbers, pictures (height, width, 3) in the parquet, or the frames of a video. Raises BadInput for what is not what
    its description says: other columns, rows that are missing, a picture of another size, a video of another length,
    size or frame rate.
    """
    root = Path(folder)
    with readable("lerobot dataset: cannot be read", kind=True):
        info = _json(root / "meta" / "info.json")
        version, features = info["codebase_version"], info["features"]
        if version not in VERSIONS:
            raise BadInput(f"lerobot dataset: it is {shortened(version)}; read are {', '.join(VERSIONS)}")
        observed = {
            key: picture if (picture := f"observation.images.{key}") in features else f"observation.{key}"
            for key in keys
        } or {"": STATE}
        for name in (*observed.values(), ACTION):
            if name not in features:
                raise BadInput(f"lerobot dataset: there is no {name!r}; it has {shortened(sorted(features))}")
        videos = [name for name in observed.values() if features[name]["dtype"] == "video"]
        images = [name for name in observed.values() if features[name]["dtype"] == "image"]
        numbers = [name for name in observed.values() if name not in (*videos, *images)]
        wanted = [*INDICES, *numbers, *(name for name in (ACTION, LABEL, REWARD, SUCCESS) if name in features)]
        widths = {name: int(np.prod(features[name]["shape"], dtype=np.int64)) for name in wanted}
        files = sorted((root / "data").rglob("*.parquet"))
        if not 1 <= len(files) <= MAX_FILES:
            raise BadInput(f"lerobot dataset: it holds {len(files)} parquet files, allowed are 1 to {MAX_FILES}")
        parts = [_columns(file, widths) for file in files]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
        order = np.lexsort((columns["frame_index"].ravel(), columns["episode_index"].ravel()))
        columns = {name: array[order] for name, array in columns.items()}
        episode_numbers, lengths = np.unique(columns["episode_index"], return_counts=True)
        counted = len(episode_numbers), len(order)
        if counted != (info["total_episodes"], info["total_frames"]):
            stated = info["total_episodes"], info["total_frames"]
            raise BadInput(
                f"lerobot dataset: it has (episodes, frames) {counted}, its info.json says {shortened(stated)}"
            )
        frames = np.concatenate([np.arange(length) for length in lengths])
        if not np.array_equal(columns["frame_index"].ravel(), frames):
            raise BadInput("lerobot dataset: the frames of an episode are not numbered 0, 1, 2, ...; rows are missing")
        of_episode = dict(zip(episode_numbers.tolist(), lengths.tolist(), strict=True))
        sizes = _picture_sizes(info, (*videos, *images), len(order))
        columns |= {name: _frames(root, info, name, sizes[name], of_episode) for name in videos}
        columns |= {name: _pictures(files, name, sizes[name], order) for name in images}
        episodes, end = [], 0
        for length in lengths.tolist():
            begin, end = end, end + length
            one = {name: columns[name][begin:end] for name in (*wanted, *videos, *images)}
            fields = {f"observations.{key}" if key else "observations": one[name] for key, name in observed.items()}
            episodes.append(
                ForeignEpisode(
                    observations=join_fields(fields, "observations")["observations"],
                    actions=one[ACTION],
                    labels=one.get(LABEL),
                    rewards=one[REWARD][:, 0].astype(np.float64) if REWARD in one else None,
                    infos={"success": one[SUCCESS][:, 0]} if SUCCESS in one else None,
                )
            )
        passed_over = [printable(name)[:100] for name in features if name not in (*wanted, *videos, *images)]
        digest = source_digest(root)
        name = printable(root.resolve().name)[:100]
        ignored = tuple(passed_over[:100])
        return ForeignSet("lerobot", tuple(episodes), name, version, digest, ignored=ignored, partial_infos=True)


def _json(path: Path) -> Any:
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        raise BadInput(
            f"lerobot dataset: there is no {path.name} of at most {MAX_JSON_BYTES} bytes in {str(path.parent)!r}"
        )
    return strict_json(path.read_bytes())


def _columns(file: Path, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
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
    found = {name: dense(table.column(name).combine_chunks(), f"{file.name}: {name}") for name in widths}
    for name, array in found.items():
        if array.size != rows * widths[name]:
            raise BadInput(
                f"lerobot dataset: {file.name}: {name} has {array.shape}, info.json says {widths[name]} a row"
            )
    return {name: array.reshape(rows, widths[name]) for name, array in found.items()}


# ------------------------------------------------------------------------------------------------ pictures and videos


def _picture_sizes(info: Mapping[str, Any], names: Sequence[str], rows: int) -> dict[str, tuple[int, int]]:
    """Height and width of each feature of pictures. Raises BadInput when so many rows of all of them are too large."""
    sizes = {}
    for name in names:
        height, width, channels = (int(number) for number in info["features"][name]["shape"])
        if channels != 3 or min(height, width) < 1:
            raise BadInput(
                f"lerobot dataset: {name} is {height} x {width} x {channels}; read are pictures of 3 channels"
            )
        sizes[name] = height, width
    total = rows * sum(height * width * 3 for height, width in sizes.values())
    if total > MAX_PICTURE_BYTES:
        raise BadInput(
            f"lerobot dataset: {rows} pictures of {', '.join(names)} are {total} bytes, allowed are "
            f"{MAX_PICTURE_BYTES}; leave them out, or scale them down"
        )
    return sizes


def _pictures(files: Sequence[Path], name: str, size: tuple[int, int], order: np.ndarray) -> np.ndarray:
    """(rows, height, width, 3) uint8 of PNG or JPEG in a column of the parquet, in this order of its rows.

    A few are held at a time: a dictionary of the parquet may say that one large value stands in many rows.
    """
    height, width = size
    shown, place = np.empty((len(order), height, width, 3), np.uint8), iter(np.argsort(order))
    for file in files:
        parquet, column = pq.ParquetFile(file), f"{name}.bytes"  # its path leads out of the set, or nowhere
        if column not in [parquet.schema.column(i).path for i in range(len(parquet.schema))]:
            raise BadInput(f"lerobot dataset: {file.name} has no column {column!r}, which holds pictures")
        batches = parquet.iter_batches(batch_size=8, columns=[column], use_threads=False)
        for row, held in enumerate(value for batch in batches for value in batch.column(0).field("bytes")):
            where = f"{name} in row {row} of {file.name}"
            if not held.is_valid:
                raise BadInput(f"lerobot dataset: {where} is not in the file; read are PNG and JPEG within it")
            broken = SyntaxError, Image.DecompressionBombError  # Pillow's, of PNG
            with (
                readable(f"lerobot dataset: {where} is no PNG or JPEG", *broken),
                Image.open(io.BytesIO(held.as_buffer()), formats=("PNG", "JPEG")) as picture,
            ):
                found = (*picture.size, picture.mode)
                if found == (width, height, "RGB"):  # before anything is unpacked
                    shown[next(place)] = np.asarray(picture)
            if found != (width, height, "RGB"):
                stated = f"{width} x {height} RGB"
                raise BadInput(
                    f"lerobot dataset: {where} is {found[0]} x {found[1]} {found[2]}, info.json says {stated}"
                )
    return shown


def _frames(
    root: Path, info: Mapping[str, Any], name: str, size: tuple[int, int], lengths: Mapping[int, int]
) -> np.ndarray:
    """(frames, height, width, 3) uint8 of a video feature, episode after episode; `lengths` are those of the episodes.

    Before v3.0 a file an episode; since then files of several, of which `meta/episodes` says where each begins.
    """
    parts: dict[str, list[tuple[int, int, int]]] = {}  # file -> episodes in it: first frame, number, length
    if info["codebase_version"] == "v3.0":
        prefix = f"videos/{name}/"
        wanted = dict.fromkeys(("episode_index", *(prefix + part for part in ("chunk_index", "file_index"))), 1)
        for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
            told = _columns(file, {**wanted, f"{prefix}from_timestamp": 1})
            for number, chunk, which, start in zip(*(column[:, 0].tolist() for column in told.values()), strict=True):
                path = f"videos/{name}/chunk-{int(chunk):03d}/file-{int(which):03d}.mp4"
                first = round(start * info["fps"])
                parts.setdefault(path, []).append((first, int(number), lengths.get(int(number), -1)))
    else:
        of_chunk = int(info.get("chunks_size", 1000))
        for number, length in lengths.items():
            parts[f"videos/chunk-{number // of_chunk:03d}/{name}/episode_{number:06d}.mp4"] = [(0, number, length)]
    found: dict[int, np.ndarray] = {}
    for path, episodes in parts.items():
        follow = 0
        for first, number, length in sorted(episodes):
            if first != follow or length < 1:
                raise BadInput(
                    f"lerobot dataset: in {path} episode {number} begins at frame {first}, expected {follow}"
                )
            follow += length
        shown = _decoded(root / path, path, float(info["fps"]), size, follow)
        found |= {number: shown[first : first + length] for first, number, length in episodes}
    if found.keys() != lengths.keys():
        raise BadInput(f"lerobot dataset: {name} has videos of {len(found)} episodes, there are {len(lengths)}")
    return np.concatenate([found[number] for number in lengths])


def _decoded(file: Path, what: str, fps: float, size: tuple[int, int], count: int) -> np.ndarray:
    """(count, height, width, 3) uint8 of an mp4; never more of it than that. The bundled ffmpeg decodes (AV1, H.264).

    It is told that this is an mp4, and may open no other file: what calls itself a playlist leads nowhere.
    """
    import imageio_ffmpeg  # late: a moment

    if not file.is_file():
        raise BadInput(f"lerobot dataset: there is no {what}")
    given = ["-f", "mov", "-protocol_whitelist", "file"]
    stream: Iterator[Any] = imageio_ffmpeg.read_frames(
        str(file), pix_fmt="rgb24", input_params=given, output_params=["-fps_mode", "passthrough"]
    )
    with closing(stream):  # type: ignore[type-var]
        try:
            told = next(stream)
        except (OSError, RuntimeError, StopIteration) as error:
            raise BadInput(f"lerobot dataset: {what} is no mp4: {shortened(str(error).splitlines()[-1:])}") from None
        if tuple(told["source_size"]) != size[::-1] or abs(told["fps"] - fps) > 0.01 * fps:
            stated = f"{size[1]} x {size[0]} at {fps:g} a second"
            raise BadInput(
                f"lerobot dataset: {what} is {told['source_size'][0]} x {told['source_size'][1]} at {told['fps']:g} "
                f"frames a second, info.json says {stated}"
            )
        shown, index = np.empty((count, *size, 3), np.uint8), -1
        for index, frame in enumerate(stream):
            if index == count:
                raise BadInput(f"lerobot dataset: {what} has more frames than its {count} rows")
            shown[index] = np.frombuffer(frame, np.uint8).reshape(*size, 3)
    if index + 1 < count:
        raise BadInput(f"lerobot dataset: {what} has {index + 1} frames, its rows are {count}")
    return shown


# -------------------------------------------------------------------------------------------------------------- export


def _written_columns(data: Trajectories, metadata: DatasetMetadata) -> dict[str, np.ndarray]:
    """LeRobot's features, a row a step: (S, width) each, under the names that its readers know. Raises BadInput."""
    seen = data.observations[data.step_rows]
    columns = {f"observation.{key}": seen[key] for key in seen.dtype.names} if seen.dtype.names else {STATE: seen}
    if pictures := [name for name, array in columns.items() if array.ndim > 2]:
        raise BadInput(f"dataset {metadata.dataset_id!r}: {pictures[0]} is no row of numbers, and is not exported")
    columns[ACTION] = data.executed_actions
    if not np.array_equal(data.actions, data.executed_actions):
        columns[LABEL] = data.actions
    steps = np.concatenate([np.arange(length) for length in data.lengths])
    ends = np.cumsum(data.lengths)
    last = np.isin(np.arange(data.steps), ends - 1)
    if REWARDS not in data.missing:
        columns[REWARD] = data.rewards
    if ENDS not in data.missing:
        columns["next.done"] = last
    if Metric.SUCCESS in data.metrics:
        columns[SUCCESS] = last & (np.repeat(data.metrics[Metric.SUCCESS], data.lengths) > 0.5)
    columns |= {
        "timestamp": (steps / FPS).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.repeat(np.arange(len(data)), data.lengths),
        "index": np.arange(data.steps),
        "task_index": np.zeros(data.steps, np.int64),
    }
    return {name: array.reshape(len(array), -1) for name, array in columns.items()}


def export_lerobot(trajectories: Trajectories, metadata: DatasetMetadata, folder: str | Path) -> None:
    """Write a LeRobot dataset of version 3.0 to a new folder: what was executed as `action`, clean labels as `label`.

    Left out, for which the format has no room: the observation after each last step, seeds, scenarios and figures but
    success; its `next.done` does not tell how an episode ended. Raises BadInput when the folder exists, and for
    pictures.
    """
    root, data = Path(folder), trajectories
    if root.exists():
        raise BadInput(f"export folder {str(root)!r} exists; give a new one")
    columns = _written_columns(data, metadata)
    ends = np.cumsum(data.lengths)

    def statistics(part: slice) -> dict[str, dict[str, list[float]]]:
        told = {}
        for name, array in columns.items():
            rows = array[part].astype(np.float64)
            figures = {figure: getattr(rows, figure)(axis=0).tolist() for figure in ("min", "max", "mean", "std")}
            told[name] = {**figures, "count": [len(rows)]}
        return told

    about = []
    for number, (begin, end) in enumerate(zip(ends - data.lengths, ends, strict=True)):
        flat = {
            f"stats/{name}/{figure}": values
            for name, figures in statistics(slice(begin, end)).items()
            for figure, values in figures.items()
        }
        places = {f"{part}/{kind}_index": 0 for part in ("data", "meta/episodes") for kind in ("chunk", "file")}
        about.append(
            {
                "episode_index": number, "tasks": [metadata.task], "length": int(end - begin),
                "dataset_from_index": int(begin), "dataset_to_index": int(end), **places, **flat,
            }
        )  # fmt: skip
    info = {
        "codebase_version": "v3.0",
        "robot_type": metadata.environment["id"],
        "total_episodes": len(data),
        "total_frames": data.steps,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{len(data)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": {
            name: {"dtype": array.dtype.name, "shape": [array.shape[1]], "names": None}
            for name, array in columns.items()
        },
    }
    table = pa.table(
        {
            name: pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
            if array.shape[1] > 1
            else pa.array(array.ravel())
            for name, array in columns.items()
        }
    )
    task = pd.DataFrame({"task_index": [0]}, index=pd.Index([metadata.task], name="task"))
    files: dict[str, Any] = {
        "data/chunk-000/file-000.parquet": table,
        "meta/episodes/chunk-000/file-000.parquet": pa.Table.from_pylist(about),
        "meta/tasks.parquet": pa.Table.from_pandas(task),
    }
    texts = {"meta/info.json": info, "meta/stats.json": statistics(slice(None))}
    write_folder(
        root,
        {
            **{name: partial(pq.write_table, one) for name, one in files.items()},
            **{name: json.dumps(one, indent=1, allow_nan=False).encode() for name, one in texts.items()},
        },
    )

"""Demonstrations that `imitation` saved (Arrow's IPC files), and what every reader of Arrow's files needs.

Numbers alone are read, and never `imitation`'s infos, from which its own reader makes objects; the set names them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.foreign import EXPANSION, SPARE_BYTES, ForeignEpisode, ForeignSet, source_digest
from pipeline.errors import BadInput, printable, shortened
from pipeline.files import readable

MAX_FILES: Final = 100_000


def read_imitation(folder: str | Path) -> ForeignSet:
    """Trajectories that `imitation.data.serialize.save` wrote: T + 1 observations, and whether the last is terminal.

    What is not terminal was cut off. Raises BadInput.
    """
    root = Path(folder)
    # SystemError is Arrow's, of some damaged schemas
    with readable("imitation trajectories: cannot be read", SystemError, kind=True):
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
                            name: dense(value.values, f"{name} of trajectory {index}") for name, value in one.items()
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


def dense(array: Any, what: str) -> np.ndarray:
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

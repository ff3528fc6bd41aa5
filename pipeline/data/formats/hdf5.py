"""Plain arrays inside one HDF5 file: no links, no virtual or external storage, no more bytes than the file can hold."""

from pathlib import Path
from typing import Any, Final, Self

import h5py
import numpy as np

from pipeline.data.foreign import EXPANSION, SPARE_BYTES
from pipeline.errors import BadInput

MAX_FILE_BYTES: Final = 1 << 32


class PlainHdf5:
    """with PlainHdf5(path, "minari dataset") as file: file.array(file.group(file.root, "episode_0"), "rewards")

    Raises BadInput, which begins with `what`, for what is no such thing; h5py's own errors for a damaged file.
    """

    def __init__(self, path: Path, what: str) -> None:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_FILE_BYTES:
            raise BadInput(f"{what}: {path.name} has {size} bytes, allowed is a file of {MAX_FILE_BYTES}")
        self._what, self._left = what, SPARE_BYTES + EXPANSION * size
        self.root = h5py.File(path, "r")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.root.close()

    def group(self, group: h5py.Group, name: str) -> h5py.Group:
        return self._member(group, name, h5py.Group)

    def array(self, group: h5py.Group, name: str) -> np.ndarray:
        """A dataset of numbers with at least one axis."""
        dataset = self._member(group, name, h5py.Dataset)
        if not _is_plain(dataset) or dataset.ndim < 1:
            raise BadInput(f"{self._what}: {dataset.name} is {dataset.dtype} {dataset.shape}; allowed are plain arrays")
        self._left -= int(dataset.nbytes)
        if self._left < 0:
            raise BadInput(f"{self._what}: {dataset.name} claims more bytes than the file can hold")
        array: np.ndarray = dataset[()]
        return array

    def plain_arrays(self, group: h5py.Group) -> dict[str, np.ndarray]:
        """Those of a group that are arrays of numbers; links, texts and groups are passed over."""
        here = [key for key in group if isinstance(group.get(key, getlink=True), h5py.HardLink)]
        return {key: self.array(group, key) for key in here if _is_plain(group[key])}

    def _member(self, group: h5py.Group, name: str, kind: type) -> Any:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], kind):
            raise BadInput(f"{self._what}: {group.name}/{name} is missing, a link, or no {kind.__name__.lower()}")
        return group[name]


def _is_plain(item: Any) -> bool:
    return (
        isinstance(item, h5py.Dataset)
        and not item.is_virtual
        and item.external is None
        and item.shape is not None
        and item.dtype.kind in "biuf"
        and item.dtype.isnative
    )

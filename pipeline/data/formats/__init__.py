"""One module a file format of recorded data, and which of them a path of others is in."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from pipeline.data.foreign import ForeignSet
from pipeline.errors import BadInput

READERS: Final = {  # format -> module of this room, and its function
    "npz": "npz:read_plain_npz",
    "minari": "minari:read_minari",
    "robomimic": "robomimic:read_robomimic",
    "lerobot": "lerobot:read_lerobot",
    "imitation": "arrow:read_imitation",
}


def read_foreign(path: str | Path, format: str | None = None, keys: Sequence[str] = ()) -> ForeignSet:
    """Demonstrations of others in a format by name, or in the one that the path looks like. Raises BadInput.

    `keys`: those of the observations that are wanted, where they are a Dict and the format leaves a choice.
    """
    path = Path(path).expanduser()  # `~/.minari/datasets/...`: no shell expands what follows `key=`
    if format is None:
        looks_like = {
            "npz": path.suffix == ".npz",
            "minari": any((path / part / "main_data.hdf5").exists() for part in ("", "data")),
            "robomimic": path.suffix in (".hdf5", ".h5"),
            "lerobot": (path / "meta" / "info.json").exists(),
            "imitation": path.is_dir() and any(path.glob("*.arrow")),
        }
        format = next((name for name, does in looks_like.items() if does), None)
        if format is None:
            raise BadInput(
                f"{str(path)!r} is no file of demonstrations: known are a plain .npz, robomimic's .hdf5, and the "
                "folders of a Minari dataset, a LeRobot dataset and trajectories that imitation saved"
            )
    if not path.exists():
        raise BadInput(f"{format}.path {str(path)!r}: there is no such file or folder")
    module, _, reader = READERS[format].partition(":")
    read = getattr(import_module(f"{__name__}.{module}"), reader)  # late: Minari and HDF5 take a second
    found: ForeignSet = read(path, keys) if format == "lerobot" else read(path)
    return found

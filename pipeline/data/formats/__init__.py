"""One module a file format of recorded data, and which of them a path of others is in."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.foreign import ForeignSet
from pipeline.errors import BadInput


def read_foreign(path: str | Path, format: str | None = None, keys: Sequence[str] = ()) -> ForeignSet:
    """Demonstrations of others in a format by name, or in the one that the path looks like. Raises BadInput.

    `keys`: those of the observations that are wanted, where they are a Dict and the format leaves a choice.
    """
    path = Path(path).expanduser()  # `~/.minari/datasets/...`: no shell expands what follows `key=`
    if format is None:
        format = _format_of(path)
    if not path.exists():
        raise BadInput(f"{format}.path {str(path)!r}: there is no such file or folder")
    if format == "minari":
        from pipeline.data.formats.minari import read_minari  # late: Minari and HDF5 take a second

        return read_minari(path)
    if format == "robomimic":
        from pipeline.data.formats.robomimic import read_robomimic

        return read_robomimic(path)
    if format == "npz":
        from pipeline.data.formats.npz import read_plain_npz

        return read_plain_npz(path)
    if format == "lerobot":
        from pipeline.data.formats.lerobot import read_lerobot

        return read_lerobot(path, keys)
    from pipeline.data.formats.arrow import read_imitation

    return read_imitation(path)


def _format_of(path: Path) -> str:
    looks_like = {
        "npz": path.suffix == ".npz",
        "minari": any((path / part / "main_data.hdf5").exists() for part in ("", "data")),
        "robomimic": path.suffix in (".hdf5", ".h5"),
        "lerobot": (path / "meta" / "info.json").exists(),
        "imitation": path.is_dir() and any(path.glob("*.arrow")),
    }
    for name, does in looks_like.items():
        if does:
            return name
    raise BadInput(
        f"{str(path)!r} is no file of demonstrations: known are a plain .npz, robomimic's .hdf5, and the folders of "
        "a Minari dataset, a LeRobot dataset and trajectories that imitation saved"
    )

"""Demonstrations in robomimic's HDF5: `data/demo_<k>` with `actions`, `obs/<key>`, `next_obs/<key>` and `rewards`."""

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.data.foreign import ForeignEpisode, ForeignSet, source_digest
from pipeline.data.formats.hdf5 import PlainHdf5
from pipeline.data.observations import join_fields
from pipeline.errors import BadInput, printable
from pipeline.files import readable

READ: Final = ("actions", "obs", "next_obs", "rewards")  # of a demonstration


def read_robomimic(path: str | Path) -> ForeignSet:
    """Observations are a Dict of the keys that are there, or the one array of a single key. Raises BadInput.

    `dones` says that a task was solved or a recording ended, not whether the environment ended it, and is passed over.
    """
    file, what = Path(path), "robomimic dataset"
    with readable(f"{what}: cannot be read", kind=True):
        with PlainHdf5(file, what) as stored:
            group = stored.group(stored.root, "data")
            names = sorted(
                (name for name in group if re.fullmatch(r"demo_\d{1,9}", name)), key=lambda name: int(name[5:])
            )
            if not names:
                raise BadInput(f"{what}: there is no demo_0 in it")
            demos = [stored.group(group, name) for name in names]
            episodes = tuple(_episode(stored, demo) for demo in demos)
            passed_over = {key for demo in demos for key in demo} - {*READ}
        digest = source_digest(file)
        ignored = tuple(printable(key)[:100] for key in sorted(passed_over)[:100])
        return ForeignSet("robomimic", episodes, printable(file.stem)[:100], digest[:8], digest, ignored=ignored)


def _episode(stored: PlainHdf5, demo: Any) -> ForeignEpisode:
    actions = stored.array(demo, "actions")
    seen = stored.plain_arrays(stored.group(demo, "obs"))
    if "next_obs" in demo:
        after = stored.group(demo, "next_obs")
        seen = {key: np.concatenate([rows, stored.array(after, key)[-1:]]) for key, rows in seen.items()}
    if not seen:
        raise BadInput(f"robomimic dataset: {demo.name}/obs holds no array")
    rows = join_fields({f"observations.{key}": array for key, array in seen.items()}, "observations")["observations"]
    return ForeignEpisode(
        observations=rows if len(seen) > 1 else next(iter(seen.values())),
        actions=actions,
        rewards=stored.array(demo, "rewards") if "rewards" in demo else None,
    )

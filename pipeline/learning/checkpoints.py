"""Checkpoints of a training on disk: whole or not there at all, whatever moment the process is killed at.

    folder = CheckpointFolder(path, job="digest of what is trained")
    folder.save(1, to_bytes(state, job))
    state = folder.newest()

At a boundary between rollouts the episodes of all slots start anew and every generator is seeded from (seed, number of
the boundary), in a training that runs on as in one that comes back, so neither environments nor generators hold any
state there. What does hold some says so in a plain dict: `WarmPPO.state`, `EvaluationCallback.state`, `Emitter.state`.
"""

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.files import digest, sync, sync_folder

FILE_NAME: Final = re.compile(r"(\d{6})-([0-9a-f]{36})\.safetensors")
UNFINISHED: Final = ".unfinished"
MAX_BYTES: Final = 4_000_000_000
STATE: Final = "state"  # tensor of bytes: the JSON beside the other tensors
TENSOR: Final = "$tensor"  # in that JSON: the name of a tensor that stands there

State = dict[str, Any]  # nested plain data and tensors; its "number" is 1, 2, ...; "ended": nothing is left to train


def to_bytes(state: Mapping[str, Any], job: str) -> bytes:
    """A state as safetensors: `{"a": {"b": tensor}}` holds the tensor `a/b`. `job` says what is trained."""
    tensors: dict[str, torch.Tensor] = {}

    def plain(value: Any, place: str) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(part, f"{place}/{key}" if place else str(key)) for key, part in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        tensors[place] = value.detach().cpu().clone().contiguous()
        return {TENSOR: place}

    text = json.dumps({"job": job, STATE: plain(state, "")}, default=float)
    return save({**tensors, STATE: torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())})


def from_bytes(content: bytes, job: str) -> State:
    """The inverse of `to_bytes`, but that all keys are texts.

    Raises ValueError for anything else, and for another job's checkpoint.
    """
    try:
        tensors = load(content)
        text = tensors.pop(STATE).numpy().tobytes()
        data = json.loads(text, object_hook=lambda part: tensors[part[TENSOR]].clone() if TENSOR in part else part)
        if data["job"] != job:
            raise ValueError("it is of another training")
        return dict(data[STATE])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not a checkpoint: {error}") from None


class CheckpointFolder:
    """The checkpoints of one training: files named by their number and the digest of their bytes; the last two stay."""

    def __init__(self, folder: Path, job: str) -> None:
        self._folder, self._job = folder, job
        self.damaged: list[str] = []  # names of files that `newest` passed over

    def save(self, number: int, content: bytes) -> None:
        """Put a checkpoint beside the one before it. Raises OSError; what was there before is then still there.

        Also for one that is too large to be taken again.
        """
        if len(content) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"larger than {MAX_BYTES:,} bytes")
        path = self._folder / f"{number:06d}-{digest(content)}.safetensors"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep_unfinished()
        unfinished = path.with_name(path.name + UNFINISHED)
        with unfinished.open("wb") as file:
            file.write(content)
            sync(file)
        os.replace(unfinished, path)
        sync_folder(self._folder)
        for other, its_number in self._files():
            if other != path and its_number != number - 1:
                other.unlink(missing_ok=True)

    def newest(self) -> State | None:
        """The newest checkpoint of this training whose bytes are those that were written; None without one."""
        self._sweep_unfinished()
        self.damaged = []
        for path, _ in self._files():
            try:
                if not path.is_file() or path.stat().st_size > MAX_BYTES:
                    raise ValueError("no file, or too large")
                content = path.read_bytes()
                if digest(content) not in path.name:
                    raise ValueError("its bytes are not those that were written")
                return from_bytes(content, self._job)
            except (ValueError, OSError):
                self.damaged.append(path.name)
        return None

    def before_end(self) -> Path | None:
        """The last checkpoint of a training that ended, from which a longer one goes on; None when it took none."""
        files = self._files()
        return files[1][0] if len(files) > 1 else None

    def _files(self) -> list[tuple[Path, int]]:
        """Checkpoint files and their numbers, newest first."""
        if not self._folder.is_dir():
            return []
        found = [(path, match) for path in self._folder.iterdir() if (match := FILE_NAME.fullmatch(path.name))]
        return sorted(((path, int(match[1])) for path, match in found), key=lambda item: item[1], reverse=True)

    def _sweep_unfinished(self) -> None:
        for path in self._folder.glob(f"*{UNFINISHED}"):
            path.unlink(missing_ok=True)

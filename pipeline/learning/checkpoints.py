"""Checkpoints of a training on disk: whole or not there at all, whatever moment the process is killed at.

    folder = CheckpointFolder(path, job="digest of what is trained")
    folder.save(checkpoint)
    checkpoint = folder.newest()

A file is safetensors, named by its number and the digest of its bytes; the last two stay. What is in a checkpoint is
decided in `pipeline.learning.training_state`.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.files import sync, sync_folder

FILE_NAME: Final = re.compile(r"(\d{6})-([0-9a-f]{36})\.safetensors")
UNFINISHED: Final = ".unfinished"
STATE: Final = "state"  # tensor of bytes: the JSON beside the other tensors
MAX_BYTES: Final = 4_000_000_000


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training goes on from."""

    number: int  # 1, 2, ...
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]  # plain JSON data

    @property
    def ended(self) -> bool:
        """Nothing is left to train."""
        return bool(self.state["ended"])

    def to_bytes(self, job: str) -> bytes:
        """The content of a file; `job` says what is trained."""
        text = json.dumps({"job": job, "number": self.number, "state": self.state}, sort_keys=True, default=float)
        content = torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
        return save({**self.tensors, STATE: content})

    @classmethod
    def from_bytes(cls, content: bytes, job: str) -> Self:
        """The inverse of `to_bytes`. Raises ValueError for anything else, and for another job's checkpoint."""
        try:
            tensors = load(content)
            data = json.loads(tensors.pop(STATE).numpy().tobytes())
            if data["job"] != job:
                raise ValueError("it is of another training")
            return cls(int(data["number"]), tensors, dict(data["state"]))
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"not a checkpoint: {error}") from None


class CheckpointFolder:
    """The checkpoints of one training."""

    def __init__(self, folder: Path, job: str) -> None:
        self._folder, self._job = folder, job
        self.damaged: list[str] = []  # names of files that `newest` passed over

    def save(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint beside the one before it. Raises OSError; what was there before is then still there."""
        content = checkpoint.to_bytes(self._job)
        name = f"{checkpoint.number:06d}-{_digest(content)}.safetensors"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep_unfinished()
        _write_whole(self._folder / name, content)
        for path, number in self._files():
            if path.name != name and number != checkpoint.number - 1:
                path.unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint of this training whose bytes are those that were written; None without one."""
        self._sweep_unfinished()
        self.damaged = []
        for path, _ in self._files():
            try:
                if not path.is_file() or path.stat().st_size > MAX_BYTES:
                    raise ValueError("no file, or too large")
                content = path.read_bytes()
                if _digest(content) not in path.name:
                    raise ValueError("its bytes are not those that were written")
                return Checkpoint.from_bytes(content, self._job)
            except (ValueError, OSError):
                self.damaged.append(path.name)
        return None

    def _files(self) -> list[tuple[Path, int]]:
        """Checkpoint files and their numbers, newest first."""
        if not self._folder.is_dir():
            return []
        found = [(path, match) for path in self._folder.iterdir() if (match := FILE_NAME.fullmatch(path.name))]
        return sorted(((path, int(match[1])) for path, match in found), key=lambda item: item[1], reverse=True)

    def _sweep_unfinished(self) -> None:
        for path in self._folder.glob(f"*{UNFINISHED}"):
            path.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:36]


def _write_whole(path: Path, content: bytes) -> None:
    """A file that is there with all its bytes, even after a loss of power, or not there. Raises OSError."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        sync(file)
    os.replace(unfinished, path)
    sync_folder(path.parent)

"""Trainings on other machines: each has a folder that every node sees, through which everything about it goes.

    <folder>/<training>/inputs       the policy and the demonstrations that it begins with
                       /output       its policies, as if it had run here
                       /checkpoints  what it goes on from when its node is lost
                       /events-*     what it says, one JSON a line; a file for every time that it was begun

A cluster (`ray`, `slurm`) only begins a job on some node, says how it ended, and ends it before its time. A node that
is lost costs the steps since the last checkpoint: the job is begun again, and says everything from its first point on
(`Emitter.restore`), to the same bits. So points are known by their number, and a training that two nodes do, because
one of them was wrongly given up, is done twice and heard once.
"""

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Hashable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from pipeline.config.task import ExecutorSettings
from pipeline.errors import BadInput
from pipeline.executors.local import LocalProcesses
from pipeline.executors.news import News, TrainingCrashed, TrainingKilled
from pipeline.files import copy_folder, digest, sync
from pipeline.learning.jobs import Job, TrainingEvent
from pipeline.names import RUN_VARIABLE

LOOK_SECONDS: Final = 0.5
LOOK_SECONDS_EACH: Final = 0.005  # a thousand trainings are looked at every 5 seconds: a shared folder is slow
LATE_SECONDS: Final = 60.0  # by which what a node wrote may come after the end of its job


@dataclass(frozen=True)
class Ended:
    """The end of a job, as its node said it."""

    end: News  # no event
    points: int  # events with metrics that it said, those before its checkpoint included


class Cluster(Protocol):
    """What begins jobs on nodes, and again elsewhere when a node is lost. A job is data; `place` is its folder."""

    def begin(self, key: Hashable, job: Job[Any], place: Path) -> None:
        """Begin a job, or go on waiting for one that was begun before this process."""

    def ended(self, seconds: float) -> list[tuple[Hashable, Ended]]:
        """Jobs whose end has become known within so many seconds."""

    def cancel(self, key: Hashable) -> None:
        """End a job; nothing is heard of it any more."""


@dataclass
class Heard:
    """A training as it is known here."""

    job: Job[Any]  # as it was submitted
    place: Path
    offsets: dict[str, int] = field(default_factory=dict)  # file of events -> bytes read
    said: dict[str, int] = field(default_factory=dict)  # file of events -> points in what was read
    points: int = 0  # handed on
    ended: Ended | None = None
    ended_at: float = 0.0

    def news(self) -> list[TrainingEvent]:
        """Events since the last time, without points that another attempt has said."""
        found = []
        for file in sorted(self.place.glob("events-*")):
            with file.open("rb") as stream:
                stream.seek(self.offsets.setdefault(file.name, 0))
                content = stream.read()
            whole = content[: content.rfind(b"\n") + 1]
            self.offsets[file.name] += len(whole)
            for line in whole.splitlines():
                event = TrainingEvent(**json.loads(line))
                if event.metrics:
                    self.said[file.name] = self.said.get(file.name, 0) + 1
                    if self.said[file.name] <= self.points:
                        continue
                    self.points += 1
                found.append(event)
        return found


class Elsewhere:
    """Trainings of a cluster, as an `Executor`."""

    def __init__(self, settings: ExecutorSettings, cluster: Cluster) -> None:
        self.at_once = settings.at_once
        self._cluster = cluster
        self._folder = Path(str(settings.folder))
        self._running: dict[Hashable, Heard] = {}
        self._done: list[Path] = []
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"executor.folder = {settings.folder!r}: {error.strerror}; give another one") from None

    def __len__(self) -> int:
        return len(self._running)

    def submit(self, key: Hashable, job: Job[Any]) -> None:
        """Hand a training to the cluster, or find the one that a process before this one had begun there."""
        if job.checkpoints is None:
            place = Path(tempfile.mkdtemp(prefix="training-", dir=self._folder))
        else:  # the same command, given again, comes to the same place
            place = self._folder / f"training-{digest(job.checkpoints + job.checkpoint_key)[:24]}"
            place.mkdir(exist_ok=True)
            if Path(job.checkpoints).is_dir():
                copy_folder(job.checkpoints, place / "checkpoints")
        self._running[key] = Heard(job, place)
        self._cluster.begin(key, job.moved(place), place)

    def wait(self, seconds: float | None = None) -> list[tuple[Hashable, News]]:
        """All news of all trainings."""
        until = None if seconds is None else time.monotonic() + seconds
        news: list[tuple[Hashable, News]] = []
        while not news and (until is None or time.monotonic() < until):
            for key, ended in self._cluster.ended(LOOK_SECONDS + LOOK_SECONDS_EACH * len(self._running)):
                self._running[key].ended, self._running[key].ended_at = ended, time.monotonic()
            for key, heard in list(self._running.items()):
                news += [(key, event) for event in heard.news()]
                if heard.ended is not None:
                    end = heard.ended.end
                    if heard.points < heard.ended.points:  # the shared folder does not show all of it yet
                        if time.monotonic() < heard.ended_at + LATE_SECONDS:
                            continue
                        missing = f"{heard.ended.points - heard.points} of its points are missing in {heard.place}"
                        end = TrainingCrashed(f"{heard.job.name}: {missing}")
                    # what was killed may be writing still, and goes on from there
                    if not isinstance(end, TrainingKilled):
                        for name, home in (("output", heard.job.output), ("checkpoints", heard.job.checkpoints)):
                            if home is not None and (heard.place / name).is_dir():
                                shutil.copytree(heard.place / name, home, dirs_exist_ok=True)
                    if not isinstance(end, TrainingKilled) or heard.job.checkpoints is None:
                        self._done.append(heard.place)
                    news.append((key, end))
                    del self._running[key]
        return news

    def close(self, discard: bool = False) -> None:
        """End what still runs; where that can go on later, everything about it and the others stays until then."""
        for key, heard in self._running.items():
            self._cluster.cancel(key)
            if discard or heard.job.checkpoints is None:
                shutil.rmtree(heard.place, ignore_errors=True)
        if discard or not self._running:
            for place in self._done:
                shutil.rmtree(place, ignore_errors=True)
        self._running.clear()


class EventFile:
    """On a node: what the training there says, one line each, on disk before it goes on."""

    def __init__(self, place: Path) -> None:
        # a name of its own for every time that the training is begun: an earlier one may still be writing
        name = f"events-{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}"
        self._file = (place / name).open("w", encoding="utf-8")
        self.points = 0

    def __call__(self, event: TrainingEvent) -> None:
        self.points += bool(event.metrics)
        self._file.write(json.dumps(asdict(event), default=float) + "\n")
        sync(self._file)


def train_on_node(job: Job[Any], place: Path, folder: str, forks: bool = False) -> Ended:
    """What a job does: train in a process of its own (`LocalProcesses`), in the folder of the command, and say so.

    Ends this process without a word when that one is killed, as when both are: then the job is begun again.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        node = socket.gethostname()
        text = f"folder {folder!r}, where the command was given, is not on node {node} ({error.strerror})"
        return Ended(BadInput(f"{text}; give it where every node sees it under the same path"), 0)
    os.environ.pop(RUN_VARIABLE, None)  # the run that MLflow would take for that of whoever asks first
    # else every process of a training would begin with the script of Ray's that this one runs
    vars(sys.modules["__main__"]).pop("__file__", None)
    say = EventFile(place)
    with closing(LocalProcesses(at_once=1, forks=forks)) as processes:
        try:
            processes.submit("training", job)
        except (EOFError, ConnectionError):  # the fork server was killed, as everything of a cancelled job is
            os._exit(1)
        while True:
            for _, news in processes.wait():
                if isinstance(news, TrainingEvent):
                    say(news)
                elif isinstance(news, TrainingKilled):
                    os._exit(1)
                else:
                    return Ended(news, say.points)

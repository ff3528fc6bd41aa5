"""Fail every write of a stage, one run of it for each, and look at what it left and whether it then goes on.

    python benchmarks/failing_writes.py --folder /tmp/failing-writes
    python benchmarks/failing_writes.py --folder /tmp/failing-writes --stage collect --every 10

Makes a store in which an expert is approved, a dataset is recorded and a second expert waits at the gate. Plays a stage
on it once undisturbed and counts its calls to the disk (`faulty_disk`); then again from the same store for every one of
them, with that call failing once, and from then on: the disk full, read-only, or broken (that one fails at statements
which only read as well). Then the same command again, undisturbed. Prints a line for every fault found, and a table.
Needs a POSIX system.
"""

import argparse
import contextlib
import errno
import importlib
import itertools
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"})  # a fork has no other threads

# imported before the forks, so that each of them starts at once
import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import numpy as np
from faulty_disk import FaultyDisk

from pipeline.cli import stage_main
from pipeline.config.loading import load_task
from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.names import Gate, Quality, Tag, VersionTag, registered_model
from pipeline.play.evaluation import record_episodes
from pipeline.policies import build_policy
from pipeline.policies.sb3 import export_sb3_zip
from pipeline.stages import collect, promote, validate  # noqa: F401
from pipeline.tasks import Purpose, Task
from pipeline.tracking.datasets import approvals, fetch_for_training
from pipeline.tracking.models import fetch_version
from pipeline.tracking.registry import require_approved
from pipeline.tracking.runs import search
from pipeline.tracking.spool import FILE, Spool
from pipeline.tracking.store import connect, local_folder

TASK = "configs/tasks/social_nav.yaml"
SMALL = ("--min_episodes", "2", "--replay_episodes", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "collect": ("--config", "configs/smoke/collect.yaml", "--episodes", "8", *SMALL),
    "validate": ("--config", "configs/smoke/validate.yaml", *SMALL),
    "promote": ("--config", "configs/smoke/promote.yaml", "--expert", "2"),
}
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "broken": errno.EIO}
ALLOWED = (0, 3)  # done all the same, or one line for what the system refused


@dataclass(frozen=True)
class Ended:
    """How a child process ended, what it wrote and what it answered."""

    code: int
    out: str
    err: str
    answer: Any


def forked(work: Callable[[], Any]) -> Ended:
    """Do it in a child; an integer that it returns is its exit code, anything else (JSON) its answer."""
    with tempfile.TemporaryDirectory(prefix="forked-") as folder:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                for number, name in ((1, "out"), (2, "err")):
                    os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
                # whatever stood for them before
                sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
                answer = work()
                code = answer if isinstance(answer, int) else 0
                Path(folder, "answer").write_text(json.dumps(answer))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
        answer = Path(folder, "answer")
        return Ended(code, out, err, json.loads(answer.read_text()) if answer.exists() else None)


class Campaign:
    """A store as it was before, and stages that are played on it from there."""

    def __init__(self, folder: Path) -> None:
        """Makes the store, or takes the one that is there."""
        self.store, self._before = folder / "store", folder / "before"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.store}/mlflow.db"
        task = Task(load_task(TASK))
        episode = task.episodes("train_small", 1, 1, Purpose.RECORD)
        # its kernels are compiled here, once for all children
        record_episodes(task, lambda seen: np.zeros((len(seen), 2), np.float32), episode, 0.0, 1, 1)
        if not self._before.exists():
            self.store.mkdir(parents=True)
            told = forked(self._tell)
            if told.code != 0:
                raise SystemExit(f"the store could not be made: {told.out}{told.err}")
            shutil.copytree(self.store, self._before)

    def _tell(self) -> int:
        """The first expert is approved and recorded from; the second one is refused, so that it waits."""
        task = Task(load_task(TASK))
        gate = ("--config", "configs/smoke/promote.yaml", "--episodes", "100")
        never = '[{"scenario_set": "train_small", "metric": "success_rate", "min": 2.0}]'
        for seed, rules in ((3, ()), (4, ("--rules", never))):
            somebodys = self.store / f"theirs-{seed}.zip"
            policy = build_policy(task.observation_space, task.action_space, Network(hidden=(8,)), seed)
            export_sb3_zip(policy, somebodys)
            code = stage_main("promote", [*gate, "--expert", str(somebodys), *rules])
            if code != (1 if rules else 0):
                return 1
        code = stage_main("collect", COMMANDS["collect"])
        with contextlib.closing(sqlite3.connect(self.store / "mlflow.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return code

    def restore(self) -> None:
        """The store as it was."""
        shutil.rmtree(self.store)
        shutil.copytree(self._before, self.store)

    def calls(self, stage: str, error: int) -> list[str]:
        """What the stage asks of the disk when nothing fails."""
        self.restore()

        def work() -> tuple[list[str], list[str]]:
            with FaultyDisk(error) as disk:
                code = stage_main(stage, COMMANDS[stage])
            return [f"ended with {code}"] if code else disk.calls, list(sys.modules)

        calls, modules = forked(work).answer
        for module in modules:  # what the stage imports late: once for all children
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        return calls

    def faults(self, stage: str, error: int, at: int, for_good: bool) -> list[str]:
        """What is wrong with how the stage ends when its call number `at` fails, and with what it leaves."""
        self.restore()

        def disturbed() -> int:
            with FaultyDisk(error, at, for_good):
                return stage_main(stage, COMMANDS[stage])

        def afterwards() -> list[str]:
            found = [f"then {fault}" for fault in broken(stage)]
            code = stage_main(stage, COMMANDS[stage])
            found += [f"the same command again ended with {code}"] if code else []
            return found + [f"after the same command again {fault}" for fault in broken(stage, ended=True)]

        ended = forked(disturbed)
        later = forked(afterwards)
        seen = [f"it cannot be looked at: {later.err}"] if later.answer is None else later.answer
        return wrong_end(ended) + seen


def wrong_end(ended: Ended) -> list[str]:
    """What is wrong with an exit code and the lines that go with it."""
    lines = ended.err.splitlines()
    found = [] if ended.code in ALLOWED else [f"it ended with code {ended.code}"]
    if "Traceback" in ended.out + ended.err:
        found.append("it wrote a traceback")
    wanted = 1 if ended.code == 3 else 0
    if len(lines) != wanted or not all(line.startswith("error: ") for line in lines):
        found.append(f"it wrote {len(lines)} lines to standard error: {ended.err[-400:]!r}")
    return found


def broken(stage: str, ended: bool = False) -> list[str]:
    """What nobody may see in the store, whatever happened; `ended` when the last command was done."""
    client = connect()
    found = []
    for run in search(client, {Tag.DATASET_QUALITY: Quality.VALIDATED, Tag.STAGE: "collect"}, status=None):
        try:
            fetch_for_training(client, run.data.tags[Tag.DATASET_ID], None)
        except (BadInput, KeyError) as error:
            found.append(f"a dataset claims to be validated: {error!r}")
    found += _broken_versions(client, ended)
    if (local_folder("spool") / FILE).exists():
        Spool().next(1_000)
    running = search(client, {}, status="RUNNING")
    if ended and running:
        found.append(f"{len(running)} runs are open")
    if ended and (status := search(client, {Tag.STAGE: stage}, limit=1, status=None)[0].info.status) != "FINISHED":
        found.append(f"the run of a command that is done is {status}")
    return found


def _broken_versions(client: Any, ended: bool) -> list[str]:
    found, approved, say_so = [], [], []
    task = load_task(TASK).name
    for listed in client.search_model_versions(f"name = '{registered_model(task)}'"):
        version = client.get_model_version(listed.name, listed.version)
        try:
            fetch_version(version)
        except BadInput as error:
            found.append(f"a registered version is not what it was: {error}")
        with contextlib.suppress(BadInput):
            require_approved(version, "the look")
            approved.append(version.version)
        if version.tags.get(VersionTag.GATE) == Gate.APPROVED:
            say_so.append(version.version)
    if len(approved) != 1:
        found.append(f"approved versions are {approved}")
    if ended and say_so != approved:
        found.append(f"versions {say_so} say that they are approved, {approved} is")
    periods = approvals(client, task, {})
    for one, next_one in itertools.pairwise(periods):
        if ended and (one.until is None or one.until > next_one.since):
            found.append(f"periods of approval overlap: {one}, {next_one}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stage", choices=COMMANDS, action="append", help="only these")
    parser.add_argument("--error", choices=ERRORS, action="append", help="only these")
    parser.add_argument("--every", type=int, default=1, help="only every so many calls")
    given = parser.parse_args()
    campaign = Campaign(given.folder.resolve())
    table, bad = [], 0
    for stage in given.stage or COMMANDS:
        for name in given.error or ERRORS:
            calls = campaign.calls(stage, ERRORS[name])
            for for_good in (False, True):
                started, tried, faulty = time.monotonic(), 0, 0
                for at in range(1, len(calls) + 1, given.every):
                    found = campaign.faults(stage, ERRORS[name], at, for_good)
                    tried += 1
                    faulty += bool(found)
                    for fault in found:
                        how = "from then on" if for_good else "once"
                        print(f"{stage}, disk {name} {how} at call {at} ({calls[at - 1]}): {fault}", flush=True)
                seconds = time.monotonic() - started
                table.append((stage, name, "for good" if for_good else "once", len(calls), tried, faulty, seconds))
                print("{} | {} | {} | {} calls | {} failed | {} with faults | {:.0f} s".format(*table[-1]), flush=True)
                bad += faulty
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()

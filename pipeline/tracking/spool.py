"""The spool: what is written while trainings run, kept on this machine until the store has it.

One SQLite file a store, shared by all processes of this machine. A record is one row, the files of its operation in it:
what was appended survives the death of its process whole, and a torn last record costs that record alone (SQLite's
write-ahead log checks every one of its pages). The disk is made to hold the records whenever they are forwarded, every
few seconds; until then a loss of power, which no process survives, can take them.

Delivery may be repeated: every operation has the same effect twice as once. Of all processes of a machine one at a time
delivers. While the store does not answer, everything waits; what it refuses is kept and passed over.
"""

import contextlib
import io
import json
import sqlite3
import tempfile
import threading
import traceback
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import BadInput, shortened
from pipeline.files import scratch
from pipeline.tracking import operations
from pipeline.tracking.operations import Batch, Files, LoggedPolicy, Operation
from pipeline.tracking.store import connect, local_folder, refuses

BUSY_SECONDS = 10.0
RECORDS_AT_ONCE = 200
FILE = "spool.db"
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, operation TEXT NOT NULL, files BLOB, refused TEXT
)
"""
OF_RUNS = "(?1 IS NULL OR run_id IN (SELECT value FROM json_each(?1)))"


@dataclass(frozen=True)
class Record:
    """An operation that waits."""

    id: int
    run_id: str
    operation: Operation


class Spool:
    """Access to a spool, that of the configured store, for threads. Raises BadInput when its file cannot be used."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or local_folder("spool")
        self._turn = threading.Lock()
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            # every statement is a transaction of its own
            self._database = sqlite3.connect(
                self.folder / FILE, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            with FileLock(self.folder / "open.lock"):  # for a file that is new SQLite does not wait here
                self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            # whoever delivers empties the log: whoever appends never waits for the disk
            self._database.execute("PRAGMA wal_autocheckpoint=0")
            self._database.execute(SCHEMA)

    def append(self, run_id: str, operation: Operation) -> None:
        """Keep an operation, with a copy of the file or folder it names."""
        local, files = getattr(operation, "local", None), None
        if local is not None:
            files, root = io.BytesIO(), Path(local)
            with self._usable(), zipfile.ZipFile(files, "w", strict_timestamps=False) as archive:
                for path in (root, *sorted(root.rglob("*"))):
                    archive.write(path, path.relative_to(root.parent))
        record = (run_id, operations.written(operation), files and files.getvalue())
        self._sql("INSERT INTO records (run_id, operation, files) VALUES (?, ?, ?)", *record)

    def next(self, limit: int) -> list[Record]:
        """The first operations that wait and are not refused, in the order in which they were appended.

        What is no operation of ours is refused here.
        """
        records: list[Record] = []
        while not records:
            rows = self._sql(
                "SELECT id, run_id, operation FROM records WHERE refused IS NULL ORDER BY id LIMIT ?", limit
            )
            if not rows:
                break
            for id, run_id, text in rows:
                try:
                    if not isinstance(run_id, str):
                        raise BadInput("its run is no text")
                    records.append(Record(id, run_id, operations.read(text)))
                except BadInput as fault:
                    self.refuse(id, f"record {id}: {fault}")
        return records

    def files(self, record: Record) -> bytes | None:
        """The archive of the file or folder that was kept with a record."""
        ((files,),) = self._sql("SELECT files FROM records WHERE id = ?", record.id)
        return files if isinstance(files, bytes) else None

    def waiting(self, run_ids: Sequence[str] | None = None) -> int:
        """How many operations wait and are not refused, of these runs or of all."""
        query = f"SELECT count(*) FROM records WHERE refused IS NULL AND {OF_RUNS}"
        ((count,),) = self._sql(query, _listed(run_ids))
        return int(count)

    def first(self) -> int | None:
        """Number of the first operation that waits and is not refused: it changes as long as the store takes any."""
        ((id,),) = self._sql("SELECT min(id) FROM records WHERE refused IS NULL")
        return None if id is None else int(id)

    def refusals(self, run_ids: Sequence[str] | None = None) -> list[str]:
        """Why operations of these runs, or of all, were refused."""
        query = f"SELECT refused FROM records WHERE refused IS NOT NULL AND {OF_RUNS} ORDER BY id"
        return [refused for (refused,) in self._sql(query, _listed(run_ids))]

    def refuse(self, id: int, reason: str) -> None:
        """The store will not take a record; it is kept and passed over."""
        self._sql("UPDATE records SET refused = ? WHERE id = ?", reason, id)

    def try_refused_again(self) -> None:
        """Let what was refused wait like everything else."""
        self._sql("UPDATE records SET refused = NULL")

    def delivered(self, records: Sequence[Record]) -> None:
        """Forget what the store has."""
        ids = json.dumps([record.id for record in records])
        self._sql("DELETE FROM records WHERE id IN (SELECT value FROM json_each(?))", ids)

    def to_disk(self) -> None:
        """Make the disk hold what was appended."""
        self._sql("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        self._database.close()

    def _sql(self, statement: str, *values: Any) -> list[Any]:
        with self._usable(), self._turn:
            return self._database.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            raise BadInput(
                f"spool {self.folder} cannot be used: {shortened(str(error))}; what trainings log waits there for the "
                f"store: free the disk or make it writable (docs/reliability.md)"
            ) from None


def _listed(run_ids: Sequence[str] | None) -> str | None:
    return None if run_ids is None else json.dumps(list(run_ids))


def deliver(spool: Spool, client: MlflowClient) -> str | None:
    """Deliver everything that waits. None when nothing stood in the way, else what did: the rest waits on."""
    try:
        with FileLock(spool.folder / "delivery.lock").acquire(blocking=False):
            while records := spool.next(RECORDS_AT_ONCE):
                records.sort(key=lambda record: record.run_id)  # stable: a run's stay in their order
                # batches of a run that follow one another go together, anything else alone
                groups = groupby(records, lambda r: (r.run_id, None if isinstance(r.operation, Batch) else r.id))
                for _, group in groups:
                    _deliver_together(spool, client, list(group))
    except Timeout:  # another process delivers
        return None
    except (MlflowException, SQLAlchemyError, OSError) as error:
        return shortened(str(error), 300)
    return None


def _deliver_together(spool: Spool, client: MlflowClient, records: list[Record]) -> None:
    """One record, or batches of one run. Raises what the store raises when it gives no answer."""
    first, operation = records[0], records[0].operation
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(
                operation, Files | LoggedPolicy
            ):  # what was kept with it: whatever path it names, no other is read
                place = stack.enter_context(tempfile.TemporaryDirectory(prefix="spooled-", dir=scratch()))
                try:
                    with zipfile.ZipFile(io.BytesIO(spool.files(first) or b"")) as archive:
                        archive.extractall(place)  # it leaves `place` never, and makes no links
                    (local,) = Path(place).iterdir()
                except (zipfile.BadZipFile, ValueError):
                    raise BadInput(f"the spool has no file {shortened(operation.local)} of it") from None
                operation = replace(operation, local=str(local))
            elif len(records) > 1:
                batches = [record.operation for record in records if isinstance(record.operation, Batch)]
                operation = Batch(
                    points=tuple(point for batch in batches for point in batch.points),
                    params={key: value for batch in batches for key, value in batch.params.items()},
                    tags={key: value for batch in batches for key, value in batch.tags.items()},
                )
            # an earlier attempt may have come through, wholly or in part
            operation.perform(client, first.run_id, again=True)
    except Exception as error:
        may_pass = isinstance(error, MlflowException | SQLAlchemyError | OSError)
        if may_pass and not refuses(error):
            raise
        if len(records) > 1:  # one of them may spoil the others
            for record in records:
                _deliver_together(spool, client, [record])
            return
        reason = str(error) if may_pass or isinstance(error, BadInput) else traceback.format_exc(limit=-3)
        spool.refuse(first.id, f"{first.operation.do} of run {first.run_id}: {' '.join(reason.split())}"[:1_000])
    else:
        spool.delivered(records)


def sync() -> tuple[bool, list[str]]:
    """Deliver what waits for the configured store, what it refused before included; is all done, and lines for people.

    Raises BadInput without a store.
    """
    client = connect()
    with contextlib.closing(Spool()) as spool:
        spool.try_refused_again()
        before = spool.waiting()
        trouble = deliver(spool, client)
        refusals, left = spool.refusals(), spool.waiting()
    delivered = before - left - len(refusals)
    if not left and not refusals:
        return True, [f"sync: {delivered} records delivered, nothing waits"]
    if left and trouble is None:
        trouble = "another process delivers them"
    why = f": {trouble}" if trouble else ""
    told = f"sync: {delivered} records delivered, {left} wait, {len(refusals)} refused (kept in {spool.folder}){why}"
    return False, [told, *(f"  - {reason}" for reason in dict.fromkeys(refusals))]


def deliver_leftovers() -> None:
    """Deliver what earlier processes left for the configured store; a store that does not answer keeps it waiting."""
    if not (local_folder("spool") / FILE).exists():
        return
    with contextlib.closing(Spool()) as spool:
        if spool.waiting():
            with contextlib.suppress(BadInput):  # whoever opens a run next says that the store cannot be used
                deliver(spool, connect())

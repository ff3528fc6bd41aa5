"""The outbox: what is written while trainings run, kept on this machine until the store has it.

One SQLite file a store, shared by all processes of this machine: an operation that was appended survives the death of
its process, and a torn last record costs that record alone (SQLite's write-ahead log checks every one of its pages).
The disk is made to hold the records whenever they are forwarded, every few seconds; until then a loss of power, which
no process survives, can take them.
"""

import contextlib
import json
import shutil
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadInput, shortened
from pipeline.tracking.operations import Operation
from pipeline.tracking.store import local_folder

BUSY_MILLISECONDS = 10_000
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, operation TEXT NOT NULL,
    tried INTEGER NOT NULL DEFAULT 0, refused TEXT
);
CREATE TABLE IF NOT EXISTS numbered (run_id TEXT PRIMARY KEY, last INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Record:
    """An operation that waits."""

    id: int
    run_id: str
    operation: Operation
    tried: bool  # somebody began to deliver it: the store may have it, or a part


def outbox_folder() -> Path:
    """Of the configured store: beside a SQLite file; for a server in the user's state folder, or in PIPELINE_OUTBOX."""
    return local_folder("outbox")


class Outbox:
    """One thread's access to an outbox, that of the configured store. Raises BadInput when its file cannot be used."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or outbox_folder()
        self._files = self.folder / "files"
        with self._readable_errors():
            self._files.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.folder / "outbox.db", timeout=BUSY_MILLISECONDS / 1000, isolation_level=None
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            # the forwarder empties the log: whoever appends never waits for the disk
            self._database.execute("PRAGMA wal_autocheckpoint=0")
            self._database.executescript(SCHEMA)

    def append(self, run_id: str, operation: Operation, number: int | None = None) -> bool:
        """Keep an operation, with a copy of the files it names.

        Numbered operations of a run come in rising order; one whose number was there before is not taken again, which
        is what False says: a resumed training repeats itself.
        """
        if number is not None and number <= self.last_number(run_id):
            return False
        if "local" in operation:
            operation = {**operation, "local": str(self._copied(Path(operation["local"])))}
        with self._transaction() as database:
            if number is not None:
                database.execute(
                    "INSERT INTO numbered VALUES (?, ?) ON CONFLICT (run_id) DO UPDATE SET last = excluded.last",
                    (run_id, number),
                )
            database.execute(
                "INSERT INTO records (run_id, operation) VALUES (?, ?)",
                (run_id, json.dumps(operation, allow_nan=False)),
            )
        return True

    def last_number(self, run_id: str) -> int:
        """The highest number of the run's operations so far, 0 without any."""
        with self._readable_errors():
            row = self._database.execute("SELECT last FROM numbered WHERE run_id = ?", (run_id,)).fetchone()
        return 0 if row is None else int(row[0])

    def next(self, limit: int) -> list[Record]:
        """The first operations that wait and are not refused, in the order in which they were appended."""
        query = "SELECT id, run_id, operation, tried FROM records WHERE refused IS NULL ORDER BY id LIMIT ?"
        with self._readable_errors():
            rows = self._database.execute(query, (limit,)).fetchall()
            return [Record(id, run_id, json.loads(operation), bool(tried)) for id, run_id, operation, tried in rows]

    def waiting(self, run_ids: Sequence[str] | None = None) -> int:
        """How many operations wait and are not refused, of these runs or of all."""
        with self._readable_errors():
            rows = self._database.execute(
                "SELECT run_id, count(*) FROM records WHERE refused IS NULL GROUP BY run_id"
            ).fetchall()
        return sum(count for run_id, count in rows if run_ids is None or run_id in run_ids)

    def refusals(self, run_ids: Sequence[str] | None = None) -> list[str]:
        """Why operations of these runs, or of all, were refused."""
        with self._readable_errors():
            rows = self._database.execute("SELECT run_id, refused FROM records WHERE refused IS NOT NULL").fetchall()
        return [refused for run_id, refused in rows if run_ids is None or run_id in run_ids]

    def trying(self, record: Record) -> None:
        """Remember that its delivery begins."""
        with self._transaction() as database:
            database.execute("UPDATE records SET tried = 1 WHERE id = ?", (record.id,))

    def refuse(self, record: Record, reason: str) -> None:
        """The store will not take it; it is kept and passed over."""
        with self._transaction() as database:
            database.execute("UPDATE records SET refused = ? WHERE id = ?", (reason, record.id))

    def try_refused_again(self) -> None:
        """Let what was refused wait like everything else."""
        with self._transaction() as database:
            database.execute("UPDATE records SET refused = NULL")

    def delivered(self, records: Sequence[Record]) -> None:
        """Forget what the store has."""
        with self._transaction() as database:
            database.executemany("DELETE FROM records WHERE id = ?", [(record.id,) for record in records])
            # nothing of a finished run is ever said again
            ended = [
                (r.run_id,) for r in records if r.operation == {**r.operation, "do": "close", "status": "FINISHED"}
            ]
            database.executemany("DELETE FROM numbered WHERE run_id = ?", ended)
        for record in records:
            if "local" in record.operation:
                shutil.rmtree(Path(record.operation["local"]).parent, ignore_errors=True)

    def to_disk(self) -> None:
        """Make the disk hold what was appended."""
        with self._readable_errors():
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        self._database.close()

    def _copied(self, local: Path) -> Path:
        """A copy of a file or folder, of the same name, that stays until it is delivered."""
        place = self._files / uuid.uuid4().hex / local.name
        with self._readable_errors():
            place.parent.mkdir()
            if local.is_dir():
                shutil.copytree(local, place)
            else:
                shutil.copy2(local, place)
        return place

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._readable_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                self._database.rollback()  # nothing, where SQLite has done so itself
                raise

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInput(
                f"outbox {self.folder} cannot be used: {shortened(str(error))}; what trainings log waits there for the "
                f"store: free the disk or make it writable (docs/reliability.md)"
            ) from None


@dataclass
class RunOutbox:
    """Operations of one run, numbered as they come: what a resumed training says again is recognised by its number."""

    outbox: Outbox
    run_id: str
    number: int = 0  # of the last operation

    def append(self, operation: Operation) -> None:
        self.number += 1
        self.outbox.append(self.run_id, operation, self.number)

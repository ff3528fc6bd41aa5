"""The outbox: what is written while trainings run, kept on this machine until the store has it.

One SQLite file a store, shared by all processes of this machine, and beside it a folder for the files of each record:
an operation that was appended survives the death of its process, and a torn last record costs that record alone
(SQLite's write-ahead log checks every one of its pages). The disk is made to hold the records whenever they are
forwarded, every few seconds; until then a loss of power, which no process survives, can take them.
"""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, shortened
from pipeline.tracking import operations
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
            if self._files.is_symlink():
                raise OSError(f"{self._files} is a link")
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
        local = Path(operation["local"]) if "local" in operation else None
        if local is not None:
            operation = {**operation, "local": local.name}
        with self._transaction() as database:
            if number is not None:
                database.execute(
                    "INSERT INTO numbered VALUES (?, ?) ON CONFLICT (run_id) DO UPDATE SET last = excluded.last",
                    (run_id, number),
                )
            record = database.execute(
                "INSERT INTO records (run_id, operation) VALUES (?, ?)",
                (run_id, json.dumps(operation, allow_nan=False)),
            ).lastrowid
            if local is not None:
                place = self._files / str(record)
                shutil.rmtree(place, ignore_errors=True)  # of a record that a kill kept from being appended
                place.mkdir()
                copy: Callable[..., Any] = shutil.copytree if local.is_dir() else shutil.copy2
                copy(local, place / local.name)
        return True

    def last_number(self, run_id: str) -> int:
        """The highest number of the run's operations so far, 0 without any."""
        with self._readable_errors():
            row = self._database.execute("SELECT last FROM numbered WHERE run_id = ?", (run_id,)).fetchone()
        return 0 if row is None else int(row[0])

    def next(self, limit: int) -> list[Record]:
        """The first operations that wait and are not refused, in the order in which they were appended.

        What is no operation of ours is refused here. Files are named by their place in the outbox.
        """
        query = "SELECT id, run_id, operation, tried FROM records WHERE refused IS NULL ORDER BY id LIMIT ?"
        records: list[Record] = []
        while not records:
            with self._readable_errors():
                rows = self._database.execute(query, (limit,)).fetchall()
            if not rows:
                break
            for id, run_id, text, tried in rows:
                try:
                    records.append(Record(id, run_id, self._read(id, run_id, text), bool(tried)))
                except BadInput as fault:
                    self.refuse(id, f"record {id}: {fault}")
        return records

    def _read(self, id: int, run_id: Any, text: Any) -> Operation:
        """The operation of a record. Raises BadInput for one that no `append` wrote.

        Its file or folder is what was put there for this very record: whatever the record says, no other place is read
        or removed, and links are not followed.
        """
        if not isinstance(run_id, str) or not isinstance(text, str):
            raise BadInput("it is no text")
        operation = operations.read(text)
        if "local" not in operation:
            return operation
        name = operation["local"]
        place = self._files / str(id)
        try:
            plain = Path(name).name == name
            found = [place, place / name, *(place / name).rglob("*")] if plain else []
            ours = plain and all(not p.is_symlink() and (p.is_dir() or p.is_file()) for p in found)
        except (OSError, ValueError):
            ours = False
        if not ours:
            raise BadInput(f"the outbox has no file {shortened(name)} of it")
        return {**operation, "local": str(place / name)}

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

    def refuse(self, id: int, reason: str) -> None:
        """The store will not take a record; it is kept and passed over."""
        with self._transaction() as database:
            database.execute("UPDATE records SET refused = ? WHERE id = ?", (reason, id))

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
                shutil.rmtree(self._files / str(record.id), ignore_errors=True)

    def sweep(self) -> None:
        """Remove the files of records that are not there: a kill came between the one and the other."""
        with self._transaction() as database:  # files are copied in one as well
            known = {str(id) for (id,) in database.execute("SELECT id FROM records")}
            for place in self._files.iterdir():
                if place.name.isdecimal() and place.name not in known:
                    shutil.rmtree(place, ignore_errors=True)

    def to_disk(self) -> None:
        """Make the disk hold what was appended."""
        with self._readable_errors():
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        self._database.close()

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
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
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

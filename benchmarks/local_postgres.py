"""A PostgreSQL server of its own on loopback, in a temporary folder, gone afterwards."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Its address `postgresql+psycopg://...`, with an empty database. Ends the program when it is not installed."""
    folder_of_programs = programs()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data = str(folder / "data")

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*as_user, str(folder_of_programs / program), *arguments], cwd=folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"error: {program} failed: {done.stdout[-1000:]}")

    try:
        run("initdb", "-D", data, "-U", "race", "--auth=trust", "--no-sync")
        settings = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        settings += " -c max_connections=300"
        run("pg_ctl", "-D", data, "-l", str(folder / "log"), "-w", "-t", "300", "-o", settings, "start")
        try:
            yield f"postgresql+psycopg://race@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def programs() -> Path:
    """The folder of `initdb` and `pg_ctl`; Debian keeps it out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: int(place.parent.name), reverse=True)
    found = shutil.which("initdb")
    for place in [*places, *([Path(found).parent] if found else [])]:
        if (place / "initdb").is_file() and (place / "pg_ctl").is_file():
            return place
    raise SystemExit("error: PostgreSQL is not installed; on Debian: apt-get install postgresql")

"""What a team would run, on loopback: PostgreSQL, a store that speaks S3, an MLflow server that asks who you are.

    python -m benchmarks.team        # `make team`: says what each user exports, and runs until Ctrl-C

trainer and approver read everything, write into every experiment, make versions and move aliases; reader reads; admin
may do anything. A trial: the database lies in a temporary folder, the bucket in memory (moto's server), and both are
gone afterwards. Needs PostgreSQL (Debian: `apt-get install postgresql`).
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

from benchmarks.local_postgres import postgres
from benchmarks.local_server import LocalServer

BUCKET: Final = "artifacts"
WRITERS: Final = ("trainer", "approver")
USERS: Final = (*WRITERS, "reader")
PATIENCE_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Team:
    """A running server, what it keeps everything in, and how each user speaks to it."""

    address: str
    database: str  # as SQLAlchemy writes it: runs, versions, users and their permissions
    objects: str  # http address of what speaks S3
    passwords: Mapping[str, str]  # of every user, `admin` among them

    def environment(self, user: str) -> dict[str, str]:
        """What this user exports."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.passwords[user],
        }


@contextlib.contextmanager
def team() -> Iterator[Team]:
    """A server with an empty bucket and its users. Ends the program where PostgreSQL is not installed."""
    with tempfile.TemporaryDirectory(prefix="team-") as folder, postgres() as database, object_store() as objects:
        s3(objects).create_bucket(Bucket=BUCKET)
        passwords = {user: secrets.token_urlsafe(12) for user in ("admin", *USERS)}
        with serving(Path(folder), database, objects, BUCKET, passwords) as server:
            its_team = Team(server.uri, database, objects, passwords)
            admit(its_team)
            yield its_team


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """The address of a process that speaks S3 and holds everything in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("error: moto's server does not start; it is in the extra dev")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def serving(
    folder: Path, database: str, objects: str, bucket: str, passwords: Mapping[str, str]
) -> Iterator[LocalServer]:
    """An MLflow server over a database and a bucket, which it alone knows: clients send it their artifacts."""
    settings = folder / "basic_auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\nadmin_username = admin\n"
        # without it each request takes the hash of its password again
        "auth_cache_ttl_seconds = 60\n"
    )
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_S3_ENDPOINT_URL": objects,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "team",  # moto takes any
        "AWS_SECRET_ACCESS_KEY": "team",
    }
    options = ["--app-name", "basic-auth", "--workers", "2"]
    server = LocalServer(folder, None, database, f"s3://{bucket}", options, variables)
    try:
        server.start()
        yield server
    finally:
        server.close()


def s3(objects: str) -> Any:
    """A client of what speaks S3."""
    import boto3

    keys = {"aws_access_key_id": "team", "aws_secret_access_key": "team"}
    return boto3.client("s3", endpoint_url=objects, region_name="us-east-1", **keys)


def admit(its_team: Team) -> None:
    """Make the users and, as the administrator, say what each may do."""
    from mlflow.server import get_app_client

    with mock.patch.dict(os.environ, its_team.environment("admin")):
        client = get_app_client("basic-auth", its_team.address)
        writers = client.create_role("default", "writers")
        client.add_role_permission(writers.id, "experiment", "*", "EDIT")
        client.add_role_permission(writers.id, "registered_model", "*", "MANAGE")  # EDIT does not take an alias away
        for user in USERS:
            client.create_user(user, its_team.passwords[user])
        for user in WRITERS:
            client.assign_role(user, writers.id)


def main() -> int:
    with team() as its_team:
        print(f"A team's server runs at {its_team.address} until Ctrl-C. What each user exports:\n")
        for user in (*USERS, "admin"):
            print(" ".join(f"{name}={value}" for name, value in its_team.environment(user).items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

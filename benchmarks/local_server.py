"""A real MLflow server on loopback that can be stopped, killed and started again at the same address."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path


class LocalServer:
    """Its database, a copy of `empty_store` when one is given, and artifacts lie in `folder`, unless said otherwise."""

    def __init__(
        self,
        folder: Path,
        empty_store: Path | None = None,
        database: str | None = None,
        artifacts: str | None = None,
        options: Sequence[str] = ("--workers", "1"),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._options = [*options, "--backend-store-uri", database or f"sqlite:///{folder}/server.db"]
        self._options += ["--artifacts-destination", artifacts or str(folder / "artifacts")]
        self._variables = variables or {}
        if empty_store is not None:  # making one takes seconds
            shutil.copy(empty_store, folder / "server.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), *self._options]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
        environment |= self._variables
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # it would start processes that nobody needs here
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.folder
            )
        deadline = time.monotonic() + 900  # of a machine that is busy with a dozen other things
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.close()
                raise RuntimeError(
                    f"no MLflow server at {self.uri}: {(self.folder / 'server.log').read_text()[-2000:]}"
                )
            time.sleep(0.1)

    def hang(self) -> None:
        """It takes connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Nobody listens any more."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

"""What every test runs under: no telemetry, one thread a process, and never the store of the person who runs it."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# before anything imports numpy, torch or mlflow: they read these once
os.environ.update(dict.fromkeys(THREADS, "1"))
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
for name in [name for name in os.environ if name.startswith(("MLFLOW_RUN", "MLFLOW_EXPERIMENT", "MLFLOW_PROJECT"))]:
    del os.environ[name]
os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tempfile.mkdtemp(prefix='store-of-tests-')}/mlflow.db"


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture
def in_repository(monkeypatch):
    """Configs name their task by a path relative to the repository."""
    monkeypatch.chdir(ROOT)

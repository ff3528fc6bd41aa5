"""Where a result comes from besides its inputs: commit, dirty tree, package versions, machine."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.content_key import installed, machine, processor_kind

PACKAGES = ("gymnasium", "imitation", "mlflow", "numba", "numpy", "optuna", "scipy", "stable-baselines3", "torch")


@cache
def git_state() -> tuple[str, bool]:
    """(commit, tree was dirty). A tree that is no git checkout is ("unknown", True): nothing vouches for it."""
    root = Path(__file__).parents[2]
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root, capture_output=True, text=True, check=True, timeout=30,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown", True
    return commit, bool(changes)


def package_versions() -> dict[str, str]:
    """Name -> version of the packages that decide a result."""
    return {name: installed(name) or "not installed" for name in PACKAGES}


def environment_record() -> dict[str, Any]:
    """What a run stores as `environment.json`."""
    commit, dirty = git_state()
    return {
        "git": {"commit": commit, "dirty": dirty},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_kind(machine(threads=1)),
        "packages": package_versions(),
    }

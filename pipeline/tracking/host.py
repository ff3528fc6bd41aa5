"""What a result was made with besides its inputs: commit, dirty tree, package versions, processor."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from pipeline.learning.processor import machine, processor_kind

# versions that can change the bits of a result; physics engines only where they are installed
PACKAGES: Final = ("gymnasium", "imitation", "numba", "numpy", "safetensors", "scipy", "stable-baselines3", "torch")
ENGINES: Final = ("box2d", "box2d-py", "mujoco")


@cache
def git_state() -> tuple[str, bool]:
    """(commit, tree was dirty). Code that no git checkout holds is ("unknown", True): nothing vouches for it."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed package may lie inside somebody's own checkout
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", True


@cache
def installed(package: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def untested(pins: Path = Path(__file__).parents[2] / "constraints.txt") -> tuple[str, ...]:
    """`("mujoco 3.3.0 (tested: 4.0.0)",)`: packages in other versions than were tested together.

    The list of those is in the checkout; where it is not, nothing is said.
    """
    found = []
    for line in pins.read_text(encoding="utf-8").splitlines() if pins.is_file() else ():
        name, _, tested = line.partition("#")[0].strip().partition("==")
        here = installed(name) if tested else None
        if here is not None and here.partition("+")[0] != tested.partition("+")[0]:  # +cpu: built elsewhere
            found.append(f"{name} {here} (tested: {tested})")
    return tuple(found)


def environment_record() -> dict[str, Any]:
    """What a run stores as `environment.json`."""
    commit, dirty = git_state()
    packages = {name: installed(name) or "not installed" for name in (*PACKAGES, *ENGINES, "mlflow", "optuna")}
    return {
        "git": {"commit": commit, "dirty": dirty},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_kind(machine(threads=1)),
        "packages": packages,  # those that decide a result, and what it was kept and searched for with
    }

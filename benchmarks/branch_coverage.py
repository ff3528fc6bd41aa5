"""Branch coverage of the gate, the validator, the checkpoint writer and the spool by the tests of their rooms.

    python benchmarks/branch_coverage.py

Prints what `coverage report` says, with the lines and branches that no test reaches. Exit code 1 below 100 %.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("gate.py", "validation/*", "learning/checkpoints.py", "tracking/spool.py")
TESTS = ("tests/gate", "tests/validation", "tests/learning/test_checkpoints.py", "tests/tracking/test_spool.py")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        coverage = [sys.executable, "-m", "coverage"]
        data = f"--data-file={folder}/data"
        include = f"--include={','.join(f'pipeline/{module}' for module in MODULES)}"
        run = [*coverage, "run", "--branch", include, data, "-m", "pytest", "-q", *TESTS]
        if subprocess.run(run, cwd=ROOT).returncode != 0:
            return 1
        return subprocess.run([*coverage, "report", "-m", "--fail-under=100", data], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())

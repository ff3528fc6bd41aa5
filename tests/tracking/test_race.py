"""A sample of the race at the registry; all of it, and PostgreSQL: `make race`."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def race(repository, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/registry_race.py", "--processes", "4", "--operations", "100", *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


def test_promotions_roll_backs_recordings_and_logging_at_once_lose_nothing(repository):
    done = race(repository, "--points", "200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 operations of 4 processes" in done.stdout
    assert "8 processes logged 200 points each" in done.stdout
    assert done.stdout.endswith("0 faults\n")


def test_without_the_lock_the_same_race_loses_updates_and_is_found_out(repository):
    done = race(repository, "--unlocked", "--operations", "300")  # of 100 it may lose none
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG:" in done.stdout and "should be" in done.stdout

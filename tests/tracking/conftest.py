"""A store with quick ways to put real things into it."""

import sys
from pathlib import Path

import pytest
from real_things import Bench

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # its server is used here as well


@pytest.fixture
def bench(store) -> Bench:
    return Bench(store)

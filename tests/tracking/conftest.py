"""A store with quick ways to put real things into it."""

import pytest
from real_things import Bench


@pytest.fixture
def bench(store) -> Bench:
    return Bench(store)

"""Good datasets, recorded once for all tests of validation."""

import pytest
from pendulum_dataset import NOISE, Recorded, recorded


@pytest.fixture(scope="session")
def good() -> Recorded:
    """30 episodes of 40 steps with execution noise."""
    return recorded(NOISE)


@pytest.fixture(scope="session")
def good_without_noise() -> Recorded:
    return recorded(0.0)

"""Random numbers inside the kernels: splitmix64 (Steele, Lea, Flood 2014), one 64-bit state per slot."""

import numpy as np
from numba import njit

from pipeline.envs.social_nav.layout import Slot

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@njit
def uniform(slot: Slot, low: float, high: float) -> float:
    """A number in [low, high)."""
    slot.random_state = slot.random_state + _STEP
    z = slot.random_state
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    z = z ^ (z >> _S31)
    return low + (high - low) * (np.float64(z >> _S11) * (1.0 / 9007199254740992.0))


@njit
def either(slot: Slot, low: float, high: float) -> float:
    """A number with size in [low, high) and either sign."""
    size = uniform(slot, low, high)
    return size if uniform(slot, 0.0, 1.0) < 0.5 else -size


@njit
def bell(slot: Slot, mean: float, spread: float) -> float:
    """Nearly normal: the sum of four uniforms scaled to the mean and standard deviation (Irwin-Hall)."""
    total = uniform(slot, 0.0, 1.0) + uniform(slot, 0.0, 1.0) + uniform(slot, 0.0, 1.0) + uniform(slot, 0.0, 1.0)
    return mean + spread * (total - 2.0) * 1.7320508075688772

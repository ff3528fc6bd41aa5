"""Observations on which two policies are compared."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.policies.acting import Observations
from pipeline.policies.artifact import DIGEST_LENGTH, array_digest

PROBE_COUNT: Final = 256


def probe_batch(observation_space: gym.Space[Any], count: int = PROBE_COUNT) -> Observations:
    """Fixed observations to compare two policies on: uniform where bounded, standard normal elsewhere.

    The same space gives the same bits.
    """
    rng = np.random.default_rng(0)

    def probe(space: gym.Space[Any]) -> np.ndarray:
        shape = (count, *(space.shape or ()))
        if isinstance(space, spaces.Box):
            low, high = (np.asarray(b, np.float64) for b in (space.low, space.high))
            bounded = np.isfinite(low) & np.isfinite(high) & (high - low < 1e6)
            uniform = rng.random(shape) * np.where(bounded, high - low, 0.0) + np.where(bounded, low, 0.0)
            return np.where(bounded, uniform, np.clip(rng.standard_normal(shape), low, high)).astype(space.dtype)
        choices = 2 if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", 2))
        return rng.integers(choices, size=shape).astype(space.dtype)

    if isinstance(observation_space, spaces.Dict):
        return {key: probe(observation_space[key]) for key in sorted(observation_space.spaces)}
    return probe(observation_space)


def batch_digest(batch: Observations) -> str:
    """sha256 (36 characters) over dtype, shape and bytes of an array, or of a mapping of arrays with their names."""
    if isinstance(batch, Mapping):
        text = json.dumps({key: array_digest(array) for key, array in batch.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
    return array_digest(batch)

"""What the fork server does once, so that no training does it again: it imports, and loads what Numba compiled.

The first optimiser of a process imports torch._dynamo, and the first call of a compiled function most of Numba, which
together take far longer than a short training.
"""

from contextlib import suppress

import numpy as np
import torch._dynamo  # noqa: F401

import pipeline.learning.train  # noqa: F401
from pipeline.policies.acting import dense, tanh

with suppress(OSError, RuntimeError):  # a disk that keeps no cache: whoever needs the functions says so
    tanh(dense(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32)))

"""How many threads a training may use: one. Two trainings of two threads each are several times slower than of one."""

import torch


def one_thread() -> None:
    """Hold torch to one thread in this process; the number of threads also decides the last bits of a training."""
    torch.set_num_threads(1)

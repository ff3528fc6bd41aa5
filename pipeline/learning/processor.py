"""The kind of processor that something is trained on: within one kind the same work gives the same bits."""

import os
import platform
from collections.abc import Mapping
from typing import Final

import torch
from llvmlite.binding import get_host_cpu_name

from pipeline.config.task import CPU
from pipeline.learning.device import device_kind

# variables by which a person makes libraries take the kernels of another processor
DISPATCH: Final = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "GLIBC_TUNABLES", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES", "NUMBA_CPU_FEATURES", "NUMBA_CPU_NAME", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE",
)  # fmt: skip


def machine(threads: int, device: str = CPU) -> dict[str, str]:
    """What of this machine can change the bits of a result."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.machine(),
        "microarchitecture": get_host_cpu_name(),  # what kernels are chosen by: `znver4`, `sapphirerapids`, `apple-m1`
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{name: os.environ[name] for name in DISPATCH if os.environ.get(name)},
        "device": device_kind(device),
        "threads": str(threads),
    }


def processor_kind(machine: Mapping[str, str]) -> str:
    """The kind of processor within which the same work gives the same bits: `x86_64 znver4, AVX512`."""
    told = [f"{name}={machine[name]}" for name in DISPATCH if name in machine]
    kind = f"{machine.get('processor', 'unknown')} {machine.get('microarchitecture', 'unknown')}"
    gpu = [device for device in [machine.get("device", CPU)] if device != CPU]
    return ", ".join([kind, machine.get("instructions", "unknown"), *told, *gpu])

"""A device of torch's that computes on the CPU and is as strict as a GPU: what lies there and what does not never meet.

    with pretended_gpu() as device:
        model.to(device)

It gives the CPU's bits, so a training there comes to the CPU's digest, if all of it does what is right on a GPU.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)  # before anything is differentiated: then torch counts the devices
# what CUDA allows between a GPU and the CPU: to copy, and to say on the CPU which elements are meant
computed: Counter[str] = Counter()  # operations on it, by name
BETWEEN = {"aten._to_copy.default", "aten.copy_.default", "aten.index.Tensor", "aten.index_put_.default"}


class There(torch.Tensor):
    """A tensor on the device; its numbers lie in `held`."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        facts = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=f"{NAME}:0", **facts)
        made.held = held
        return made

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the CPU makes of it, on the device that it belongs to."""
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = [isinstance(tensor, There) for tensor in given]
    if str(operation) not in BETWEEN and any(there):
        for tensor in given:
            if not isinstance(tensor, There) and tensor.dim():
                raise RuntimeError(f"{operation}: tensors on two devices")
    device = kwargs.get("device")
    if str(operation) == "aten.copy_.default":
        result_there = there[0]
    else:
        result_there = any(there) if device is None else torch.device(device).type == NAME
    args, kwargs = tree_map(lambda value: value.held if isinstance(value, There) else value, (args, kwargs))
    result = operation(*args, **kwargs if device is None else {**kwargs, "device": "cpu"})
    if not result_there:
        return result
    computed[str(operation)] += 1
    known = {id(tensor.held): tensor for tensor in given if isinstance(tensor, There)}  # changed in place
    return tree_map(
        lambda value: known.get(id(value), There(value)) if isinstance(value, torch.Tensor) else value, result
    )


class _Made(TorchDispatchMode):
    """Tensors that are made on the device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME:
            return compute(operation, args, kwargs)
        return operation(*args, **kwargs)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """The device. A module that is moved there keeps its parameters, which its optimiser knows, as with CUDA."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Made():
            yield torch.device(NAME)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)

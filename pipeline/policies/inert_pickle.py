"""What a pickle says, without doing it: plain values, arrays, and a record of everything that it would have called.

    read = decode(content, "vecnormalize.pkl")
    read.names                        # ("numpy.dtype", "gym.spaces.box.Box", ...): what it asks Python for
    array_of(read.value.attributes["obs_rms"].attributes["mean"], "vecnormalize.pkl")

An interpreter of its own over the opcodes that `pickletools` tells apart: a name never becomes the thing it names, it
becomes a `Named`, and a call is a record of the call. So no module is imported, no function runs, and nothing is made
but plain values and records, no more of them than the pickle has opcodes.
"""

import pickletools
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from pipeline.files import readable

_KEYS: Final = (str, bytes, int, float, bool, type(None))  # what hashes in no time: nested tuples may take for ever
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Final[dict[str, type]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}
_MARK: Final = object()


@dataclass(eq=False)
class Named:
    """Something that a pickle names, and what it would have been called with, filled with and given as its state."""

    name: str  # `module.qualified_name`, or "persistent" for what lies outside the pickle
    arguments: tuple[Any, ...] | None = None  # None: named and not called
    state: Any = None
    items: list[Any] = field(default_factory=list)  # values, or pairs of key and value

    @property
    def attributes(self) -> dict[Any, Any]:
        """Of an object whose state is its `__dict__`, maybe with slots; empty for any other."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else {}


@dataclass(frozen=True)
class Pickled:
    """One pickle, read."""

    value: Any  # sets are given as lists
    names: tuple[str, ...]  # everything it asks Python for, in order of appearance
    end: int  # where the bytes after it begin
    persistent: tuple[Named, ...] = ()  # what it names that lies outside of it


def decode(content: bytes, what: str, start: int = 0) -> Pickled:
    """The pickle that begins at `start`. Raises BadInput for damage and for what no pickle of plain objects has."""
    machine = _Machine({})
    with readable(f"{what} is no readable pickle"):
        value, end = machine.run(content, start)
    return Pickled(value, tuple(machine.names), end, tuple(machine.persistent))


class _Machine:
    def __init__(self, names: dict[str, None]) -> None:
        self.names = names
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.persistent: list[Named] = []

    def run(self, content: bytes, start: int) -> tuple[Any, int]:
        for opcode, argument, position in pickletools.genops(content[start:]):
            if opcode.name == "STOP":
                return self.stack.pop(), start + (position or 0) + 1
            self.step(opcode.name, argument)
        raise ValueError("it does not end")

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        at = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def named(self, module: str, name: str) -> Named:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name in it is no text")
        self.names[f"{module}.{name}"] = None
        return Named(f"{module}.{name}")

    def step(self, name: str, argument: Any) -> None:
        """One opcode; the language is documented in Lib/pickletools.py."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.marked()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[name])
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(_EMPTY[name]())
            case "LIST" | "FROZENSET":
                stack.append(self.marked())
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                values = self.marked()
                stack.append({})
                _put(stack[-1], values[::2], values[1::2])
            case "APPEND":
                _add(stack[-2], [stack.pop()])
            case "APPENDS" | "ADDITEMS":
                values = self.marked()
                _add(stack[-1], values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], [key], [value])
            case "SETITEMS":
                values = self.marked()
                _put(stack[-1], values[::2], values[1::2])
            case "GLOBAL":
                stack.append(self.named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self.named(module, attribute))
            case "INST":
                arguments = self.marked()
                stack.append(_called(self.named(*argument.split(" ", 1)), tuple(arguments)))
            case "OBJ":
                made, *arguments = self.marked()
                stack.append(_called(made, tuple(arguments)))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_called(stack.pop(), arguments))
            case "NEWOBJ_EX":
                keywords, arguments = stack.pop(), stack.pop()
                stack.append(_called(stack.pop(), (*arguments, *keywords.items())))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], Named):
                    raise ValueError("it gives a state to a plain value")
                stack[-1].state = state
            case "PERSID" | "BINPERSID":
                stack.append(Named("persistent", (stack.pop() if name == "BINPERSID" else argument,)))
                self.persistent.append(stack[-1])
            case "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(f"opcode {name} points outside the file")
            case _:  # every other one pushes its argument: a number, a text or bytes
                stack.append(argument)


def _called(made: Any, arguments: Any) -> Named:
    if not isinstance(made, Named) or not isinstance(arguments, tuple):
        raise ValueError("it calls what has no name")
    return Named(made.name, arguments)


def _add(target: Any, values: list[Any]) -> None:
    (target.items if isinstance(target, Named) else _only(list, target)).extend(values)


def _put(target: Any, keys: list[Any], values: list[Any]) -> None:
    pairs = list(zip(keys, values, strict=True))
    if isinstance(target, Named):
        target.items.extend(pairs)
    elif all(isinstance(key, _KEYS) for key in keys):
        _only(dict, target).update(pairs)
    else:
        raise ValueError("a key of a mapping is no plain value")


def _only(kind: type, target: Any) -> Any:
    if type(target) is not kind:
        raise ValueError(f"it fills a {type(target).__name__} as if it were a {kind.__name__}")
    return target


# ------------------------------------------------------------------------------------------------------- NumPy's own


def array_of(record: Any, what: str) -> np.ndarray:
    """The array, or the scalar as an array of shape (), that NumPy's records describe. Raises BadInput for any other.

    Numbers only: no objects, no text, no structured types; as many bytes as shape and dtype need.
    """
    with readable(f"{what} holds no array of numbers where one belongs"):
        if isinstance(record, (bool, int, float)):
            return np.asarray(record)
        name, arguments = record.name.rpartition(".")[2], record.arguments
        shape: tuple[int, ...]
        if name == "scalar":
            dtype, shape, content, order = _dtype(arguments[0]), (), _bytes(arguments[1]), "C"
        elif name == "_frombuffer":
            content, dtype, shape, order = _bytes(arguments[0]), _dtype(arguments[1]), arguments[2], arguments[3]
        elif name == "_reconstruct":
            shape, dtype, content = record.state[1], _dtype(record.state[2]), _bytes(record.state[4])
            order = "F" if record.state[3] else "C"
        else:
            raise ValueError(f"{record.name} is no array")
        if order not in ("C", "F") or len(content) != prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(content)} bytes for shape {shape} of {dtype}")
        numbers: np.ndarray = np.frombuffer(content, dtype)
        return numbers.reshape(shape, order="F" if order == "F" else "C")


def _dtype(record: Any) -> np.dtype:
    code = record.arguments[0]
    byte_order = record.state[1] if record.state else "|"
    if record.name != "numpy.dtype" or not isinstance(code, str) or byte_order not in ("<", ">", "|", "="):
        raise ValueError("its type is not NumPy's")
    dtype: np.dtype = np.dtype(code).newbyteorder(byte_order)  # type: ignore[arg-type]
    if dtype.kind not in "biuf" or len(code) > 3:
        raise ValueError(f"its type {code!r} is no number's")
    return dtype


def _bytes(value: Any) -> bytes:
    if isinstance(value, Named) and value.name == "_codecs.encode" and value.arguments:  # as protocol 2 writes bytes
        text, encoding = value.arguments
        if encoding != "latin1":
            raise ValueError(f"bytes in {encoding!r}")
        return bytes(text, "latin1")
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError(f"a {type(value).__name__} in the place of bytes")
    return bytes(value)

"""Change one comparison after the other in what says no, and count how often the tests of its room notice.

    python benchmarks/comparison_mutants.py [--modules gate spool ...] [--share 0.25] [--list]

Mutants: `<` and `<=` (`>` and `>=`) swapped, `==` and `!=`, `is`, `in` and their opposites, `and` and `or`, `not` left
out, and numbers in comparisons one more and one less. Each runs in a child process with the changed module in the place
of the real one; a child that fails a test, or takes five minutes of processor time, has killed it. Exit code 1 below
90 % of the mutants that could be told from the original; those that cannot are in `EQUIVALENT`, with the reason.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VALIDATION = (
    "test_thresholds.py", "test_unusual_datasets.py", "test_inspection.py", "test_corruptions.py",
    "test_random_corruption.py",
)  # fmt: skip
ROOMS: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> module, its tests: the quickest first
    "gate": ("pipeline.gate", ("tests/gate/test_gate.py",)),
    "checkpoints": ("pipeline.learning.checkpoints", ("tests/learning/test_checkpoints.py",)),
    "spool": ("pipeline.tracking.spool", ("tests/tracking/test_spool.py",)),
    **{
        name: (f"pipeline.validation.{name}", tuple(f"tests/validation/{test}" for test in VALIDATION))
        for name in ("alignment", "facts", "findings", "inspection", "replay", "rules")
    },
}
SECONDS = 300  # of processor time a mutant
ENOUGH = 0.9
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
EQUIVALENT = {  # (name, change) -> why nothing can tell it from the original
    ("alignment", "onset < 0  ->  onset <= 0"): "an onset of 0 is another branch",
    ("alignment", "onset < 0  ->  onset < 1"): "an onset of 0 is another branch",
    ("alignment", "done == value  ->  done != value"): (
        "noise of the other sign: only the size of its correlation counts"
    ),
    ("inspection", "value > median  ->  value >= median"): "what equals the median is no outlier",
    ("rules", "smallest >= low  ->  smallest > low"): "only chooses the columns that are looked at value by value",
    ("rules", "largest <= high  ->  largest < high"): "only chooses the columns that are looked at value by value",
}


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    name: str  # of the room
    line: int
    change: str  # "a < b  ->  a <= b"
    tree: ast.Module


def mutants(name: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    source = (ROOT / ROOMS[name][0].replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    for index, node in enumerate(ast.walk(tree)):
        for way in range(_ways(node)):
            changed = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(changed)) if i == index)
            after = _changed(target, way)
            whole = changed if after is target else _Replace(target, after).visit(changed)
            change = f"{ast.unparse(node)}  ->  {ast.unparse(after)}"
            yield Mutant(name, node.lineno, change, ast.fix_missing_locations(whole))  # type: ignore[attr-defined]


def _numbers(node: ast.Compare) -> list[ast.Constant]:
    return [
        part
        for part in (node.left, *node.comparators)
        if isinstance(part, ast.Constant) and type(part.value) in (int, float)
    ]


def _ways(node: ast.AST) -> int:
    if isinstance(node, ast.Compare):
        return len(node.ops) + 2 * len(_numbers(node))
    return int(isinstance(node, ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)))


def _changed(node: Any, way: int) -> ast.AST:
    """Change a node of a copied tree in place; a `not` gives way to what it stands before."""
    if isinstance(node, ast.UnaryOp):
        return node.operand
    if isinstance(node, ast.BoolOp):
        node.op = SWAPS[type(node.op)]()
    elif way < len(node.ops):
        node.ops[way] = SWAPS[type(node.ops[way])]()
    else:
        number = _numbers(node)[(way - len(node.ops)) // 2]
        number.value += 1 if (way - len(node.ops)) % 2 else -1
    return node


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self._new if node is self._old else super().visit(node)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the mutant to whoever imports the module."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self._module, self._tree = module, tree

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._module:
            return None
        place = (ROOT / name.replace(".", "/")).with_suffix(".py")
        return importlib.util.spec_from_loader(name, self, origin=str(place))

    def exec_module(self, module: types.ModuleType) -> None:
        module.__file__ = str((ROOT / self._module.replace(".", "/")).with_suffix(".py"))
        exec(compile(self._tree, module.__file__, "exec"), module.__dict__)


def survives(mutant: Mutant | None, name: str) -> bool:
    """Do all tests of the room pass with the mutant, or (None) with the module as it is."""
    pid = os.fork()
    if pid == 0:
        _run_tests(mutant, name)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _run_tests(mutant: Mutant | None, name: str) -> None:
    """In a child process: never returns."""
    import pytest

    code = 1
    with contextlib.suppress(BaseException):
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        module, tests = ROOMS[name]
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(module, mutant.tree))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/tests", *tests])
    os._exit(int(code))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modules", nargs="+", choices=sorted(ROOMS), default=list(ROOMS))
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants of every module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="only say what the mutants are")
    known = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    import gymnasium  # noqa: F401  # what the tests import and no mutant touches, once for all children
    import hypothesis  # noqa: F401
    import scipy.spatial  # noqa: F401
    import stable_baselines3  # noqa: F401

    killed = total = 0
    for name in known.modules:
        rng = random.Random(f"{known.seed}:{name}")
        chosen = [m for m in mutants(name) if (name, m.change) not in EQUIVALENT and rng.random() < known.share]
        if known.list:
            print(*(f"{name}:{m.line}: {m.change}" for m in chosen), sep="\n")
            continue
        if not survives(None, name):
            raise RuntimeError(f"the tests of {name} fail without any mutant")
        alive = _alive(name, chosen)
        killed, total = killed + len(chosen) - alive, total + len(chosen)
        print(f"{name}: {len(chosen) - alive} of {len(chosen)} mutants killed", flush=True)
    if total:
        print(f"{killed} of {total} mutants killed: {killed / total:.1%}")
    return 0 if killed >= ENOUGH * total else 1


def _alive(name: str, chosen: Sequence[Mutant]) -> int:
    alive = 0
    for mutant in chosen:
        if survives(mutant, name):
            alive += 1
            print(f"  survives: {name}:{mutant.line}: {mutant.change}", flush=True)
    return alive


if __name__ == "__main__":
    sys.exit(main())

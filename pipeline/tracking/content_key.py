"""The content key: everything that decides what a stage or a training comes to, ingredient by ingredient.

Equal keys need not be done twice; different ones say what differs. Where a file lies, when it was written, the order of
its keys, comments, names of runs and groups, and how many processes work side by side decide nothing and are not in it.
"""

import ast
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from sys import stdlib_module_names
from types import CodeType
from typing import Any, Final

import gymnasium as gym
import torch
from llvmlite.binding import get_host_cpu_name

from pipeline.config.loading import flatten, parse_json, to_data, validate
from pipeline.config.stages import Pretrain
from pipeline.config.task import Snqi, TaskConfig
from pipeline.data import DatasetMetadata
from pipeline.errors import printable
from pipeline.learning.jobs import TrainingJob
from pipeline.policies import policy_digest
from pipeline.statistics.snqi import load_baseline, load_weights
from pipeline.tasks import REFERENCE

ROOT: Final = Path(__file__).parents[1]
DIGEST_LENGTH: Final = 36  # as long as MLflow takes for a dataset
# versions that can change the bits of a result; physics engines only where they are installed
PACKAGES: Final = ("gymnasium", "imitation", "numba", "numpy", "safetensors", "scipy", "stable-baselines3", "torch")
ENGINES: Final = ("box2d", "box2d-py", "mujoco")
# settings that say where, when or how fast, not what: the content behind a path is an input
NEUTRAL: Final = frozenset({"task", "workers", "reuse", "minari.path", "repaired.folder"})
REPORT: Final = "report"  # the room of this package that no training, clone or recording depends on
DIGESTS: Final = ("input", "code")  # sections whose values no person wants to read
ABSENT: Final = "absent"
# variables by which a person makes libraries take the kernels of another processor
DISPATCH: Final = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "GLIBC_TUNABLES", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES", "NUMBA_CPU_FEATURES", "NUMBA_CPU_NAME", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One ingredient in which two keys differ."""

    section: str
    name: str
    before: str
    now: str

    def sentence(self) -> str:
        """`config differs: training.ppo.gamma = 0.9 (was 0.99)`, `code differs: pipeline/tasks/__init__.py`."""
        section, name = printable(self.section), printable(self.name)
        if self.section not in DIGESTS:
            return f"{section} differs: {name} = {_short(self.now)} (was {_short(self.before)})"
        change = {self.before: " (new)", self.now: " (gone)"}.get(ABSENT, "")
        return f"{section} differs: {name}{change}"


@dataclass(frozen=True)
class ContentKey:
    """Section -> ingredient -> value or digest. Sections stand in the order in which a difference explains itself."""

    ingredients: Mapping[str, Mapping[str, str]]

    @property
    def digest(self) -> str:
        return digest_of(self.ingredients)

    @property
    def processor(self) -> str:
        """`processor_kind` of the machine in it."""
        return processor_kind(self.ingredients.get("machine", {}))

    def to_json(self) -> str:
        """For people and for `from_json`."""
        return json.dumps(self.ingredients, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ContentKey":
        """The inverse of `to_json`. Raises BadInput for anything it cannot have written."""
        return validate(cls, {"ingredients": parse_json(text, "content key")}, "content key")

    def differences(self, before: "ContentKey") -> tuple[Difference, ...]:
        """What is not as it was in an earlier key, likeliest cause first."""
        found = []
        for section in dict.fromkeys((*SECTIONS, *self.ingredients, *before.ingredients)):
            ours, theirs = self.ingredients.get(section, {}), before.ingredients.get(section, {})
            for name in sorted(ours.keys() | theirs.keys()):
                was, now = theirs.get(name, ABSENT), ours.get(name, ABSENT)
                if was != now:
                    found.append(Difference(section, name, was, now))
        return tuple(found)


SECTIONS: Final = ("config", "task", "input", "code", "package", "machine")


def content_key(
    settings: Mapping[str, Any], task: TaskConfig, inputs: Mapping[str, str], threads: int | None = None
) -> ContentKey:
    """Of work with these settings (plain data) in this task on inputs given by digest.

    `threads`: None takes this process's. Raises BadInput for a SNQI file that cannot be read.
    """
    described = {**to_data(task), "snqi": None}
    references = [text for text in (*_texts(settings), *_texts(described)) if REFERENCE.fullmatch(text)]
    code, packages = code_behind((*references, *_entry_point(task.environment.id)))
    # subtle: the place of a scenario in its set decides which episodes play it
    orders = {f"scenario_sets.{name}: order": ", ".join(shares) for name, shares in task.scenario_sets.items()}
    return ContentKey(
        {
            "config": {key: text for key, text in flatten(settings).items() if key not in NEUTRAL},
            "task": {**flatten(described), **orders},
            "input": {**inputs, **({} if task.snqi is None else _snqi_files(task.snqi))},
            "code": {**package_code(), **code},
            "package": {**{name: text for name in (*PACKAGES, *ENGINES) if (text := installed(name))}, **packages},
            "machine": machine(torch.get_num_threads() if threads is None else threads),
        }
    )


def training_key(job: TrainingJob) -> ContentKey:
    """The content key of a training; a worker trains with one thread."""
    data = to_data(job)
    training = {key: value for key, value in data["training"].items() if key != "total_timesteps"}
    elsewhere = (
        "task",
        "training",
        "output",
        "checkpoints",
        "checkpoint_key",
        "initial_policy",
        "initial_digest",
        "total_timesteps",
    )
    settings = {key: value for key, value in data.items() if key not in elsewhere}
    start = job.initial_policy
    inputs = {} if start is None else {"initial policy": job.initial_digest or policy_digest(start)}
    return content_key({**settings, "training": training, "budget": job.budget}, job.task, inputs, threads=1)


def cloning_inputs(config: Pretrain, metadata: DatasetMetadata) -> dict[str, str]:
    """The data; who answers to the clone, for the algorithm that asks."""
    asked = {"demonstrator": str(metadata.demonstrator["digest"])} if config.algorithm == "dagger" else {}
    return {"dataset": metadata.content_digest, **asked}


def clone_key(config: Pretrain, task: TaskConfig, metadata: DatasetMetadata, seed: int) -> ContentKey:
    """The content key of one clone."""
    settings = {key: value for key, value in to_data(config).items() if key != "seeds"}
    return content_key({**settings, "seed": seed}, task, cloning_inputs(config, metadata))


def digest_of(data: Any) -> str:
    """sha256 over canonical JSON, 36 characters."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, allow_nan=False).encode()).hexdigest()[:DIGEST_LENGTH]


def installed(package: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- code ------------------------------------------------------------------------------------------------------------


@cache
def package_code(root: Path = ROOT) -> Mapping[str, str]:
    """File of this package that can change a result -> digest. Comments and layout of Python files do not count.

    Nor does the room that makes words and pixels of results: see `report_code`.
    """
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".json"))
    decisive = [path for path in files if not path.is_relative_to(root / REPORT)]
    return {str(path.relative_to(root.parent)): _file_digest(path) for path in decisive}


@cache
def report_code(root: Path = ROOT) -> str:
    """One digest of the room that makes reports, which is an input of the stage whose result is a report."""
    files = sorted(path for path in (root / REPORT).rglob("*") if path.suffix in (".py", ".html", ".css"))
    return digest_of({str(path.relative_to(root)): _file_digest(path) for path in files})


def code_behind(references: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Files and installed packages behind `module:Name` references outside this package: name -> digest, or version.

    Follows the import statements of a user's own modules through their source; nothing is imported. Data files that
    such a module reads are not seen.
    """
    files: dict[str, str] = {}
    packages: dict[str, str] = {}
    waiting, seen = [reference.partition(":")[0] for reference in references], set()
    while waiting:
        module = waiting.pop()
        top = module.partition(".")[0]
        if module in seen or top in stdlib_module_names or top == ROOT.name:
            continue
        seen.add(module)
        source = _source_of(module)
        if source is None:
            continue
        if any(source.is_relative_to(place) for place in _site_packages()):
            packages.update({name: version(name) for name in _distributions().get(top, ())})
            continue
        files[module] = _file_digest(source)
        if source.suffix == ".py":
            waiting.extend(_imports(module, source))
    return files, packages


def _texts(data: Any) -> Iterator[str]:
    """Every text in plain data, but for keys."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        yield from (text for value in data.values() for text in _texts(value))
    elif isinstance(data, list):
        yield from (text for value in data for text in _texts(value))


def _entry_point(environment: str) -> tuple[str, ...]:
    """What a registered Gymnasium id stands for; `module:Id-v0` names the module that registers it."""
    if ":" in environment:
        return (environment,)
    spec = gym.registry.get(environment)
    target = None if spec is None else spec.entry_point
    if target is None:
        return ()
    return (target if isinstance(target, str) else f"{target.__module__}:{environment}",)


def _source_of(module: str) -> Path | None:
    """The file of a module, found without importing anything; None for what is no module or has no file."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin).resolve() if spec.origin and Path(spec.origin).is_file() else None
    for place in spec.submodule_search_locations or ():
        path = Path(place).joinpath(*rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file.resolve()
    return None


def _imports(module: str, source: Path) -> Iterator[str]:
    """Names of modules, and of what may be modules, that a file imports."""
    package = module.split(".") if source.name == "__init__.py" else module.split(".")[:-1]
    yield from (".".join(package[:depth]) for depth in range(1, len(package) + 1))  # their `__init__` runs first
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)


def _file_digest(path: Path) -> str:
    """Of what Python makes of a source file, which comments and layout do not change; of the bytes of any other."""
    digest = hashlib.sha256()
    try:
        # subtle: this is the bytecode that an import would run, from its cache where that is up to date
        code = SourceFileLoader(path.stem, str(path)).get_code(path.stem) if path.suffix == ".py" else None
    except (SyntaxError, ValueError):  # whoever imports it says so in better words
        code = None
    if code is None:
        digest.update(path.read_bytes())
    else:
        _feed(digest, code)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _feed(digest: Any, code: CodeType) -> None:
    """All of a code object but where its lines stand."""
    digest.update(code.co_code + code.co_exceptiontable)
    arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    digest.update(repr((arguments, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed(digest, constant)
        else:
            digest.update(_stable(constant).encode())


def _stable(constant: Any) -> str:
    """`repr`, with the items of sets in an order that every process agrees on."""
    if isinstance(constant, frozenset):
        return f"frozenset({sorted(map(_stable, constant))})"
    return f"({', '.join(map(_stable, constant))},)" if isinstance(constant, tuple) else repr(constant)


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def _site_packages() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib"))


# --- files and machine -----------------------------------------------------------------------------------------------


def _snqi_files(setting: Snqi) -> dict[str, str]:
    baseline = {metric: [spread.med, spread.p95] for metric, spread in load_baseline(Path(setting.baseline)).items()}
    return {"snqi.weights": digest_of(load_weights(Path(setting.weights))), "snqi.baseline": digest_of(baseline)}


def machine(threads: int) -> dict[str, str]:
    """What of this machine can change the bits of a result."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.machine(),
        "microarchitecture": get_host_cpu_name(),  # what kernels are chosen by: `znver4`, `sapphirerapids`, `apple-m1`
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{name: os.environ[name] for name in DISPATCH if os.environ.get(name)},
        "device": "cpu",
        "threads": str(threads),
    }


def processor_kind(machine: Mapping[str, str]) -> str:
    """The kind of processor within which the same work gives the same bits: `x86_64 znver4, AVX512`."""
    told = [f"{name}={machine[name]}" for name in DISPATCH if name in machine]
    kind = f"{machine.get('processor', 'unknown')} {machine.get('microarchitecture', 'unknown')}"
    return ", ".join([kind, machine.get("instructions", "unknown"), *told])


def _short(text: str, limit: int = 80) -> str:
    text = printable(text)
    return text if len(text) <= limit else f"{text[:limit]}…"

"""The content key: everything that decides what a stage or a training comes to, ingredient by ingredient.

Equal keys need not be done twice; different ones say what differs. Where a file lies, when it was written, the order of
its keys, comments, names of runs and groups, and how many processes work side by side decide nothing and are not in it.
"""

import ast
import contextlib
import json
import re
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from sys import stdlib_module_names
from typing import Any, Final

import gymnasium as gym
import torch

from pipeline.config.loading import flatten, parse_json, to_data, validate
from pipeline.config.stages import FORMATS, Pretrain
from pipeline.config.task import UNDECISIVE, TaskConfig
from pipeline.data import DatasetMetadata
from pipeline.errors import printable
from pipeline.files import digest
from pipeline.learning.device import chosen_device
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.processor import machine, processor_kind
from pipeline.policies import policy_digest
from pipeline.statistics.snqi import load_baseline, load_weights
from pipeline.tasks.user_code import REFERENCE
from pipeline.tracking.host import ENGINES, PACKAGES, installed

ROOT: Final = Path(__file__).parents[1]
# settings that say where, when or how fast, not what: the content behind a path is an input
NEUTRAL: Final = frozenset({"task", "workers", "reuse", "repaired.folder", *(f"{name}.path" for name in FORMATS)})
REPORT: Final = "report"
# of this package, what no training, clone, recording or judgement depends on
APART: Final = (REPORT, "tracking", "cli.py", "query.py", "__main__.py")
BILL: Final = ("groups.py", "lineage.py", "liveness.py")  # of `tracking`: they read what a report counts
DIGESTS: Final = ("input", "code")  # sections whose values no person wants to read
ABSENT: Final = "absent"


@dataclass(frozen=True)
class Ingredient:
    """One ingredient in which two keys differ."""

    section: str
    name: str
    before: str
    now: str

    def sentence(self) -> str:
        """`config differs: training.ppo.gamma = 0.9 (was 0.99)`, `code differs: pipeline/gate.py`."""
        section, name, now, before = map(printable, (self.section, self.name, self.now, self.before))
        if self.section not in DIGESTS:
            now, before = (text if len(text) <= 80 else f"{text[:80]}…" for text in (now, before))
            return f"{section} differs: {name} = {now} (was {before})"
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

    @property
    def budget(self) -> int:
        """Environment steps of a training."""
        return int(self.ingredients["config"]["budget"])

    @property
    def but_budget(self) -> str:
        """Digest of all but the budget of a training."""
        config = {name: value for name, value in self.ingredients["config"].items() if name != "budget"}
        return digest_of({**self.ingredients, "config": config})

    @property
    def but_machine(self) -> str:
        """Digest of all but the machine."""
        return digest_of({**self.ingredients, "machine": {}})

    def to_json(self) -> str:
        """For people and for `from_json`."""
        return json.dumps(self.ingredients, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ContentKey":
        """The inverse of `to_json`. Raises BadInput for anything it cannot have written."""
        return validate(cls, {"ingredients": parse_json(text, "content key")}, "content key")

    def made_on(self, machines: Sequence[Mapping[str, str]]) -> "ContentKey":
        """The key of what other machines than this one made; where several did, it is like that of none of them."""
        names = dict.fromkeys(name for machine in machines for name in machine)
        together = {
            name: " + ".join(dict.fromkeys(machine[name] for machine in machines if name in machine)) for name in names
        }
        return replace(self, ingredients={**self.ingredients, "machine": together})

    def differences(self, before: "ContentKey") -> tuple[Ingredient, ...]:
        """What is not as it was in an earlier key, likeliest cause first."""
        found = []
        for section in dict.fromkeys((*SECTIONS, *self.ingredients, *before.ingredients)):
            ours, theirs = self.ingredients.get(section, {}), before.ingredients.get(section, {})
            for name in sorted(ours.keys() | theirs.keys()):
                was, now = theirs.get(name, ABSENT), ours.get(name, ABSENT)
                if was != now:
                    found.append(Ingredient(section, name, was, now))
        return tuple(found)


PARSING: Final = threading.Lock()
SECTIONS: Final = ("config", "task", "input", "code", "package", "machine")


def content_key(
    settings: Mapping[str, Any],
    task: TaskConfig,
    inputs: Mapping[str, str],
    threads: int | None = None,
    device: str | None = None,
) -> ContentKey:
    """Of work with these settings (plain data) in this task on inputs given by digest.

    `threads`: None takes this process's; `device`: None takes what the task says. Raises BadInput for a SNQI file that
    cannot be read.
    """
    described = {**to_data(task), "snqi": None}
    for name in UNDECISIVE:
        del described[name]
    texts = json.dumps([settings, described], ensure_ascii=False)
    references = [found[1] for found in re.finditer(f'"({REFERENCE.pattern})"', texts)]
    if ":" in (environment := task.environment.id):  # `module:Id-v0` names the module that registers it
        references.append(environment)
    elif (spec := gym.registry.get(environment)) is not None and (made_by := spec.entry_point) is not None:
        references.append(made_by if isinstance(made_by, str) else made_by.__module__)
    code, packages = code_behind(references)
    # subtle: the place of a scenario in its set decides which episodes play it
    orders = {f"scenario_sets.{name}: order": ", ".join(shares) for name, shares in task.scenario_sets.items()}
    inputs = dict(inputs)
    if task.snqi is not None:
        baseline = {name: [spread.med, spread.p95] for name, spread in load_baseline(Path(task.snqi.baseline)).items()}
        inputs["snqi.weights"] = digest_of(load_weights(Path(task.snqi.weights)))
        inputs["snqi.baseline"] = digest_of(baseline)
    return ContentKey(
        {
            "config": {key: text for key, text in flatten(settings).items() if key not in NEUTRAL},
            "task": {**flatten(described), **orders},
            "input": inputs,
            "code": {**package_code(), **code},
            "package": {**{name: text for name in (*PACKAGES, *ENGINES) if (text := installed(name))}, **packages},
            "machine": machine(torch.get_num_threads() if threads is None else threads, device or task.device),
        }
    )


def training_key(job: TrainingJob) -> ContentKey:
    """The content key of a training; a worker trains with one thread."""
    settings = to_data(replace(job, scaling=None))
    del settings["training"]["total_timesteps"]
    settings["budget"] = job.budget
    for elsewhere in (
        "task", "output", "checkpoints", "checkpoint_key", "initial_policy", "initial_digest", "total_timesteps",
        "scaling", "demonstrations", "demonstrations_digest",
    ):  # fmt: skip
        del settings[elsewhere]
    settings["left_policy"] = job.left_policy is not None  # why does not matter
    start = job.initial_policy
    inputs = {} if start is None else {"initial policy": job.initial_digest or policy_digest(start)}
    if job.demonstrations_digest is not None:
        inputs["demonstrations"] = job.demonstrations_digest
    if start is None and job.scaling:
        inputs["scaling"] = job.scaling.digest
    return content_key(settings, job.task, inputs, threads=1, device=job.device)


def cloning_inputs(config: Pretrain, metadata: DatasetMetadata) -> dict[str, str]:
    """The data; who answers to the clone, for the algorithm that asks."""
    asked = {"demonstrator": str(metadata.demonstrator["digest"])} if config.algorithm == "dagger" else {}
    return {"dataset": metadata.content_digest, **asked}


def clone_key(config: Pretrain, task: TaskConfig, metadata: DatasetMetadata, seed: int) -> ContentKey:
    """The content key of one clone."""
    settings = {key: value for key, value in to_data(config).items() if key != "seeds"}
    device = chosen_device(task, {}, config.use_camera)
    return content_key({**settings, "seed": seed}, task, cloning_inputs(config, metadata), device=device)


def digest_of(data: Any) -> str:
    """sha256 over canonical JSON, 36 characters."""
    return digest(json.dumps(data, sort_keys=True, allow_nan=False))


# --- code ------------------------------------------------------------------------------------------------------------


@cache
def package_code(root: Path = ROOT) -> Mapping[str, str]:
    """File of this package that can change a result -> digest. Comments and layout of Python files do not count."""
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".json"))
    decisive = [path for path in files if path.relative_to(root).parts[0] not in APART]
    return {str(path.relative_to(root.parent)): _file_digest(path) for path in decisive}


@cache
def report_code(root: Path = ROOT) -> str:
    """One digest of what makes reports, their bills too, which is an input of the stage whose result is a report."""
    room = [path for path in (root / REPORT).rglob("*") if path.suffix in (".py", ".html", ".css", ".md")]
    files = sorted([*room, *(root / "tracking" / name for name in BILL)])
    return digest_of({str(path.relative_to(root)): _file_digest(path) for path in files})


def code_behind(references: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Files and installed packages behind `module:Name` references outside this package: name -> digest, or version.

    Follows the import statements of a user's own modules through their source; nothing is imported. Data files that
    such a module reads are not seen.
    """
    files: dict[str, str] = {}
    packages: dict[str, str] = {}
    waiting = [reference.partition(":")[0] for reference in references]
    ours = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    while waiting:
        module = waiting.pop()
        top = module.partition(".")[0]
        source = None if module in files or top in (*stdlib_module_names, ROOT.name) else _source_of(module)
        if source is None:
            continue
        if any(source.is_relative_to(place) for place in ours):
            packages.update({name: version(name) for name in _distributions().get(top, ())})
            continue
        files[module] = _file_digest(source)
        package = module if source.name == "__init__.py" else module.rpartition(".")[0]
        waiting += [package, *_imports(source, package)]  # the package's own `__init__` runs first
    return files, packages


def _source_of(module: str) -> Path | None:
    """The file of a module, found without importing anything; None for what is no module or has no file."""
    name, *below = module.split(".")
    try:
        spec = find_spec(name)
        for part in below:
            name = f"{name}.{part}"
            spec = spec and PathFinder.find_spec(name, spec.submodule_search_locations or ())
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec and spec.origin and Path(spec.origin).is_file() else None


def _imports(source: Path, package: str) -> Iterator[str]:
    """Names of modules, and of what may be modules, that a file of a package imports."""
    try:
        tree = _parsed(source.read_bytes())
    except (SyntaxError, ValueError):  # whoever imports it says so in better words
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (start, *(f"{start}.{alias.name}" for alias in node.names))


def _parsed(content: bytes) -> ast.Module:
    """The syntax of a file. Raises SyntaxError or ValueError."""
    # subtle: CPython 3.11 counts the depth of every thread's tree in one place; a sweep's threads met its SystemError
    with PARSING:
        return ast.parse(content)


def _file_digest(path: Path) -> str:
    """Of what Python reads in a source file, which comments and layout do not change; of the bytes of any other."""
    content = path.read_bytes()
    if path.suffix == ".py":
        with contextlib.suppress(SyntaxError, ValueError):
            content = ast.dump(_parsed(content)).encode()
    return digest(content)


_distributions = cache(packages_distributions)

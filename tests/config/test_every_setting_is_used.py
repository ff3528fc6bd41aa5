"""Every setting can be set on the command line, and is read by the code that it is for."""

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

import pipeline
from pipeline.cli import parse
from pipeline.config.loading import load, to_data
from pipeline.config.stages import STAGE_CONFIGS, Main
from pipeline.config.task import Camera, TaskConfig
from pipeline.envs.camera import CameraView
from pipeline.errors import BadInput
from pipeline.stages.main import KNOBS

# what the settings without a default are given
NEEDED = {
    "stages": {"collect": "t", "pretrain": "t", "finetune": "t", "compare": "t"},
    "rules": [{"scenario_set": "t", "metric": "t", "min": 0.0}],
    "search_space": {"training.n_envs": {"type": "int", "low": 1, "high": 2}},
    "total_timesteps": 1,
    "rounds": 1,
}


def inner(hint: Any) -> list[type]:
    """The configuration classes in a type: `dict[str, Bound] | None` -> `[Bound]`."""
    return [hint] if is_dataclass(hint) else [cls for part in get_args(hint) for cls in inner(part)]


def classes() -> dict[str, type]:
    found: dict[str, type] = {}
    todo: list[type] = [*STAGE_CONFIGS.values(), TaskConfig]
    while todo:
        cls = todo.pop()
        if cls.__name__ not in found:
            found[cls.__name__] = cls
            todo += [c for hint in get_type_hints(cls).values() for c in inner(hint)]
    return found


# --- set -------------------------------------------------------------------------------------------------------------


def needed(cls: type) -> dict[str, Any]:
    """The least that a configuration of the class says."""
    return {f.name: NEEDED.get(f.name, "t") for f in fields(cls) if f.default is f.default_factory is MISSING}


def settings(cls: type, data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Dotted key of every setting, and a config in which the sections around it are complete."""
    for name, hint in get_type_hints(cls).items():
        sections = [] if get_origin(hint) in (tuple, dict) else inner(hint)
        if sections:
            for key, below in settings(sections[0], needed(sections[0])):
                yield f"{name}.{key}", {**data, name: below}
        else:
            yield name, data


@pytest.mark.parametrize("stage", STAGE_CONFIGS)
def test_every_setting_can_be_set_on_the_command_line(tmp_path, stage):
    cls, file, lost = STAGE_CONFIGS[stage], tmp_path / "c.yaml", []
    for key, data in settings(cls, needed(cls)):
        file.write_text(yaml.safe_dump(data))
        config, _, overrides = parse(stage, ["--config", str(file), f"--{key}", "[[]]"])
        try:  # nothing but a text takes this
            value: Any = to_data(load(cls, config, overrides))
            for part in key.split("."):
                value = value[part]
            arrived = value == "[[]]"
        except BadInput as refusal:
            arrived = f": {key} = " in str(refusal) or f": {key}." in str(refusal)
        if not arrived:
            lost.append(key)
    assert not lost


# --- read ------------------------------------------------------------------------------------------------------------


def names_of(node: ast.AST | None) -> set[str]:
    """Every name in an annotation, those in quotes too."""
    found = set()
    for part in () if node is None else ast.walk(node):
        text = getattr(part, "id", getattr(part, "attr", getattr(part, "value", None)))
        found |= {text} if isinstance(text, str) else set()
    return found


def last_name(node: ast.AST) -> str:
    """`task.config`, `self._config`, `read_config(...)` -> `config`, `config`, `read_config`."""
    if isinstance(node, ast.Call):
        of_a_mapping = getattr(node.func, "attr", "") in ("items", "values")
        return last_name(node.func.value if of_a_mapping else node.func)
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return getattr(node, "attr", getattr(node, "id", "")).lstrip("_")


def reads() -> set[tuple[str, str]]:
    """(class, setting) of every attribute that the package reads of something that may be of that class.

    What a name may be is told by annotations: of parameters and variables in the same module, of attributes anywhere.
    """
    known = set(classes())
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(pipeline.__file__).parent.rglob("*.py")]
    anywhere: dict[str, set[str]] = defaultdict(set)
    modules = []
    for tree in trees:
        here: dict[str, set[str]] = defaultdict(set)
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                here[node.arg] |= names_of(node.annotation) & known
            elif isinstance(node, ast.AnnAssign):
                here[last_name(node.target)] |= names_of(node.annotation) & known
            elif isinstance(node, ast.FunctionDef):
                here[node.name] |= names_of(node.returns) & known
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            for node in ast.walk(cls):
                if isinstance(node, ast.AnnAssign | ast.FunctionDef):
                    name = node.name if isinstance(node, ast.FunctionDef) else last_name(node.target)
                    anywhere[name] |= here[name]
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                    anywhere[last_name(node.targets[0])] |= here[last_name(node.value)]
        modules.append((tree, here))
    found = set()
    for tree, here in modules:
        for node in ast.walk(tree):
            if isinstance(node, ast.For | ast.comprehension):
                for target in (t for t in ast.walk(node.target) if isinstance(t, ast.Name)):
                    here[target.id] |= here[last_name(node.iter)] | anywhere[last_name(node.iter)]
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in known):
            own = (n for n in ast.walk(cls) if isinstance(n, ast.Attribute) and last_name(n.value) == "self")
            found |= {(cls.name, node.attr) for node in own}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                name = last_name(node.value)
                found |= {(cls, node.attr) for cls in here[name] | anywhere[name]}
    return found


def test_every_setting_is_read_somewhere():
    found = reads()
    handed_on = set(inspect.signature(CameraView).parameters)  # the task's camera is given to it whole
    every = {(name, f.name) for name, cls in classes().items() for f in fields(cls)}
    given_whole = {(Camera.__name__, name) for name in handed_on} | {(Main.__name__, name) for name in KNOBS}
    assert sorted(every - found - given_whole) == []

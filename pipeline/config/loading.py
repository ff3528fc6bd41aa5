"""From a YAML file and dotted overrides to a validated configuration, and back to plain data."""

import copy
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from pipeline.config.base import NAME
from pipeline.config.task import ExecutorSettings, TaskConfig
from pipeline.errors import BadInput, did_you_mean, shortened

C = TypeVar("C")

MAX_CONFIG_BYTES = 1_000_000
EXECUTOR_VARIABLE: Final = "PIPELINE_EXECUTOR"


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads plain words as YAML 1.2 does, and refuses a key given twice, and aliases.

    PyYAML speaks YAML 1.1, in which `1:30` is 90, `010` is 8, `on` and `no` are booleans and `1e5` is a text.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # a few lines of aliases to aliases unfold into more data than any memory holds
            raise yaml.composer.ComposerError(
                None, None, "aliases are not read; write the value out", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        mapping, seen = super().construct_mapping(node, deep), set()
        for key in keys:
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
            seen.add(key)
        return mapping

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node).replace("_", "")
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        text = self.construct_scalar(node).replace("_", "").lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Safe YAML without aliases, which `_Loader` does not read, and with texts in quotes that are numbers to it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# the core schema of YAML 1.2, and `_` among the digits of a number: the first that fits decides
_PLAIN: Final = (
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"(?:0o[0-7]+|0x[0-9a-fA-F]+|[-+]?[0-9][0-9_]*)$", list("-+0123456789")),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
)
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)
_QUOTED: Final = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def parse_yaml(text: str, source: str) -> Any:
    """Safe YAML from text. Raises BadInput naming `source`."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (  # what PyYAML lets through for tags whose values do not fit them
        yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError, OverflowError
    ) as error:  # fmt: skip
        raise BadInput(f"{source} is not valid YAML: {' '.join(str(error).split())[:300]}") from None


def parse_json(text: str, source: str) -> Any:
    """JSON from text. Raises BadInput naming `source`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{source} is not valid JSON: {error}") from None


def read_text(path: str | Path, what: str) -> str:
    """The text of a small file. Raises BadInput when it is missing, no file, too large or not UTF-8."""
    file = Path(path)
    try:
        if not file.is_file():
            raise BadInput(f"{what}: no such file: {shortened(str(path))}; give the path of an existing file")
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise BadInput(f"{what}: {str(path)!r} is larger than {MAX_CONFIG_BYTES} bytes; is it a config file?")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # the text of an OSError repeats the path, however long
        raise BadInput(f"{what}: cannot read {shortened(str(path))}: {reason}") from None


def load(cls: type[C], path: str | Path, overrides: Mapping[str, str] | None = None) -> C:
    """Read a YAML file as `cls`, with dotted overrides such as `{"training.total_timesteps": "50000"}` on top.

    Raises BadInput, one line, naming the file, the dotted key, the value and what is allowed.
    """
    data = parse_yaml(read_text(path, "config"), f"config {str(path)!r}")
    if not isinstance(data, dict):
        raise BadInput(f"config {str(path)!r} must be a mapping of settings, got {type(data).__name__}")
    return override(cls, data, overrides or {}, f"config {str(path)!r}")


def override(cls: type[C], data: Mapping[str, Any], overrides: Mapping[str, str], source: str) -> C:
    """Settings as plain data, with dotted overrides on top, as `cls`. Raises BadInput that names `source`."""
    changed = copy.deepcopy(dict(data))
    for key, text in overrides.items():
        _override(cls, changed, key, text, source)
    return validate(cls, changed, source)


def load_task(path: str | Path) -> TaskConfig:
    """Read a task file. Raises BadInput."""
    return load(TaskConfig, path)


def executor_settings(task: TaskConfig) -> ExecutorSettings:
    """Where the trainings of a task run: as its file says, unless PIPELINE_EXECUTOR does, as YAML on one line.

    `PIPELINE_EXECUTOR='{kind: slurm, folder: /scratch/anna}'`. Raises BadInput.
    """
    text = os.environ.get(EXECUTOR_VARIABLE)
    if not text:
        return task.executor
    data = parse_yaml(text, EXECUTOR_VARIABLE)
    return validate(ExecutorSettings, {"kind": data} if isinstance(data, str) else data, EXECUTOR_VARIABLE)


def validate(cls: type[C], data: Any, source: str) -> C:
    """Plain data -> `cls`, any dataclass. Raises BadInput with the first fault, and how many more there are."""
    try:
        text = json.dumps(data, allow_nan=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{source}: holds a value that is no number, text, list or mapping: {error}") from None
    try:
        return TypeAdapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        raise BadInput(f"{source}: {_explain(cls, error)}") from None


def to_data(value: Any) -> Any:
    """A configuration as plain data that `validate` reads back to an equal one; a result as what JSON can hold of it.

    `Estimate(1, 0, nan)` -> `{"value": 1, "low": 0, "high": None}`: JSON has no number that is not finite.
    """
    return json.loads(to_json(value, inf_nan_mode="null"))


def to_yaml(config: Any) -> str:
    """A configuration as YAML text that `load` reads back to an equal one."""
    return yaml.dump(to_data(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}, "c": [1, 2]}` -> `{"a.b": "1", "c": "[1, 2]"}`: dotted keys and JSON texts."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def set_dotted(data: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set `data["a"]["b"]` for the key `a.b`. Raises BadInput where a single value is in the way."""
    *sections, name = key.split(".")
    for section in sections:
        if data.get(section) is None:
            data[section] = {}
        data = data[section]
        if not isinstance(data, dict):
            raise BadInput(f"{source}: {section!r} is a single value, it has no settings below it")
    data[name] = value


def _written_out(cls: type, data: dict[str, Any], sections: Sequence[str], source: str) -> None:
    """Write out what is not said, or said in one word, on the way to a setting: of it one setting changes, no other.

    `warm_start: adaptive`, `arms: [naive]`, an arm that ships. Raises BadInput.
    """
    here: Any = data
    for depth, name in enumerate(sections):
        if name not in here:
            default = _schema_at(cls, sections[:depth]).get("properties", {}).get(name, {}).get("default")
            here[name] = copy.deepcopy(default) if isinstance(default, dict) else {}
        elif not isinstance(here[name], dict):
            try:
                whole: Any = to_data(validate(cls, data, source))
            except BadInput:
                if here[name] is not None:
                    raise
                whole = {}  # an empty section, which may be what this override is to mend
            for section in sections[: depth + 1]:
                whole = whole.get(section) or {}
            if not isinstance(whole, dict):
                return
            here[name] = whole
        here = here[name]


def _override(cls: type, data: dict[str, Any], key: str, text: str, source: str) -> None:
    """Set what a dotted key names.

    A setting that is a text is given as it stands, quotes around the whole of it left away; any other is read as YAML,
    as it would be in the file.
    """
    parts = key.split(".")
    if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", part) for part in parts):
        raise BadInput(f"override {shortened(key)}: not a dotted key; write -P section.setting=value")
    _written_out(cls, data, parts[:-1], source)
    options = _schema_at(cls, parts)
    kinds = {option.get("type") for option in options.get("anyOf", [options])}
    none = "null" in kinds and text in ("", "~", "null")
    if "string" in kinds and kinds <= {"string", "null"} and not none and not _QUOTED.fullmatch(text):
        set_dotted(data, key, text, f"override {key!r}")
        return
    set_dotted(data, key, parse_yaml(text, f"override {key!r}"), f"override {key!r}")
    # subtle: what ends blocks and documents has no length
    read = [t.end_mark.index for t in yaml.scan(text) if t.end_mark.index > t.start_mark.index]
    if max(read, default=0) < len(text.rstrip()):
        raise BadInput(f"override {key!r} = {shortened(text)}: what follows # is a comment in YAML; put it in quotes")


def _explain(cls: type, error: ValidationError) -> str:
    """The first fault of a validation as one line: dotted key, what is wrong, value, what to do."""
    every = error.errors(include_url=False)
    # subtle: faulty items are also reported as missing ones ("too short"), which would count a fault twice
    items = {fault["loc"][:-1] for fault in every}
    faults = [fault for fault in every if not (fault["type"] == "too_short" and fault["loc"] in items)]
    kinds = ("constrained-", "literal[")  # of a union, which pydantic puts into the location, are no keys
    keys = [".".join(str(part) for part in f["loc"] if not str(part).startswith(kinds)) for f in faults]
    fault, key = faults[0], keys[0] or "(top level)"
    more = f" (and {len(set(keys)) - 1} more)" if len(set(keys)) > 1 else ""
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        allowed = sorted(_schema_at(cls, fault["loc"][:-1]).get("properties", {}))
        hint = did_you_mean(str(fault["loc"][-1]), allowed)
        return f"unknown key {key!r}.{hint} Allowed here: {', '.join(allowed)}{more}"
    if fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"key {key!r} is missing; add it{more}"
    messages = [f["msg"].removeprefix("Value error, ") for f, its in zip(faults, keys, strict=True) if its == keys[0]]
    message = ", or ".join(text[:1].lower() + text[1:] for text in messages)
    value = fault["input"]
    if fault["type"] == "string_type" and not isinstance(value, dict | list):
        message += "; put it in quotes"
    elif fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == NAME:
        message = "a name is a lower-case letter of a to z, then such letters, digits and _, at most 64 in all"
    elif fault["type"] == "bool_type" and isinstance(value, str):
        message += "; write true or false"
    shown = "" if isinstance(value, dict) and fault["type"] == "value_error" else f" = {shortened(value)}"
    return f"{key}{shown}: {message}{more}"


def _schema_at(cls: Any, location: Sequence[int | str]) -> Any:
    """What the JSON schema of `cls` says of a location; nothing where it knows none."""
    schema = TypeAdapter(cls).json_schema()
    definitions = schema.get("$defs", {})

    def resolve(entry: Any) -> Any:
        if "$ref" in entry:
            return definitions[entry["$ref"].rsplit("/", 1)[1]]
        for option in entry.get("anyOf", ()):
            if "$ref" in option or "properties" in option:
                return resolve(option)
        return entry

    node: Any = resolve(schema)
    for part in location:
        if isinstance(part, int):
            node = node.get("items") or {}
        else:
            named: Any = next(iter(node.get("patternProperties", {}).values()), {})  # of any name that fits
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or named
        node = resolve(node if isinstance(node, dict) else {})
    return node

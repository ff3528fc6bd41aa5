"""From a YAML file and dotted overrides to a validated configuration, and back to plain data."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput, did_you_mean, shortened

C = TypeVar("C")

MAX_CONFIG_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-4` as a number and refuses a key given twice, and aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # a few lines of aliases to aliases unfold into more data than any memory holds
            raise yaml.composer.ComposerError(
                None, None, "aliases are not read; write the value out", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe YAML without aliases, which `_Loader` does not read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)|\.\d+(?:[eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)


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
    for key, text in (overrides or {}).items():
        _override(data, key, text)
    return validate(cls, data, f"config {str(path)!r}")


def load_task(path: str | Path) -> TaskConfig:
    """Read a task file. Raises BadInput."""
    return load(TaskConfig, path)


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


def to_data(config: Any) -> dict[str, Any]:
    """A configuration as plain data that `validate` reads back to an equal one."""
    data: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return data


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


def _override(data: dict[str, Any], key: str, text: str) -> None:
    """Set `data["a"]["b"]` for the key `a.b`; the text is read as YAML, as it would be in the file."""
    parts = key.split(".")
    if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", part) for part in parts):
        raise BadInput(f"override {shortened(key)}: not a dotted key; write -P section.setting=value")
    here = data
    for part in parts[:-1]:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            raise BadInput(f"override {key!r}: {part!r} is a single value, it has no settings below it")
    here[parts[-1]] = parse_yaml(text, f"override {key!r}")


def _explain(cls: type, error: ValidationError) -> str:
    """The first fault of a validation as one line: dotted key, what is wrong, value, what to do."""
    every = error.errors(include_url=False)
    # subtle: faulty items are also reported as missing ones ("too short"), which would count a fault twice
    items = {fault["loc"][:-1] for fault in every}
    faults = [fault for fault in every if not (fault["type"] == "too_short" and fault["loc"] in items)]
    fault = faults[0]
    # dataclass names that pydantic puts into the location of a union are no keys
    key = ".".join(str(part) for part in fault["loc"]) or "(top level)"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        allowed = _fields_at(cls, fault["loc"][:-1])
        hint = did_you_mean(str(fault["loc"][-1]), allowed)
        return f"unknown key {key!r}.{hint} Allowed here: {', '.join(allowed)}{more}"
    if fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"key {key!r} is missing; add it{more}"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = fault["input"]
    shown = "" if isinstance(value, dict) and fault["type"] == "value_error" else f" = {shortened(value)}"
    return f"{key}{shown}: {message}{more}"


def _fields_at(cls: Any, location: tuple[int | str, ...]) -> list[str]:
    """Names of the settings below a location, read from the JSON schema of `cls`."""
    schema = TypeAdapter(cls).json_schema()
    definitions = schema.get("$defs", {})
    node: Any = schema

    def resolve(entry: Any) -> Any:
        if "$ref" in entry:
            return definitions[entry["$ref"].rsplit("/", 1)[1]]
        for option in entry.get("anyOf", ()):
            if "$ref" in option or "properties" in option:
                return resolve(option)
        return entry

    for part in location:
        node = resolve(node)
        if isinstance(part, int):
            node = node.get("items") or {}
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
            node = node if isinstance(node, dict) else {}
    return sorted(resolve(node).get("properties", {}))

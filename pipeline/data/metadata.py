"""Where a dataset comes from and what it claims to hold: `metadata.json`, every key checked by name."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

from pipeline.data.trajectories import DIGEST_LENGTH
from pipeline.errors import BadInput, shortened
from pipeline.names import METADATA_FILE

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class DatasetMetadata:
    """Where a dataset comes from and what it claims to hold. `from_data` raises BadInput on anything incomplete."""

    dataset_id: str
    created_at: str  # when recording began: UTC, "2026-01-31T12:00:00Z"
    task: str
    scenario_set: str
    scenario_coverage: dict[str, int]  # scenario -> episodes
    requested_shares: dict[str, float]  # scenario -> share of the episodes that was asked for
    demonstrator: dict[str, Any]  # kind ("expert", "scripted" or "imported"), name, version, digest, anything else
    seeds: tuple[int, ...]  # listed seeds, from which the episode seeds were derived
    noise_std: float  # execution noise, as a share of the half range of the action space
    filter: dict[str, Any]  # {"min_return": float or None, "only_success": bool}
    observation_space: dict[str, Any]  # pipeline.data.spaces
    action_space: dict[str, Any]
    environment: dict[str, Any]  # {"id": str, "kwargs": {...}, "wrappers": [...], "scenarios": {scenario: {...}}}
    holdout_scenarios: tuple[str, ...]
    episodes: int
    steps: int
    content_digest: str
    run_id: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    horizon: int | None = None  # steps after which an episode is truncated
    requested_episodes: int | None = None  # how many were asked for; None: nobody here asked
    left_out: tuple[int, ...] = ()  # seeds of recorded episodes that a repair left out on purpose
    schema_version: int = SCHEMA_VERSION

    @property
    def origin(self) -> str:
        """Whose demonstrations these are, in one line, and plainly when nobody approved an expert for them."""
        return origin_of(self.demonstrator)

    def to_data(self) -> dict[str, Any]:
        """Plain JSON data, `metadata_digest` included."""
        data = json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, allow_nan=False))
        return {**data, METADATA_DIGEST: metadata_digest(data)}

    @classmethod
    def from_data(cls, data: Any) -> "DatasetMetadata":
        """The inverse of `to_data`. Raises BadInput naming the key, its value and what is allowed."""
        for fault in metadata_faults(data):
            raise BadInput(f"{METADATA_FILE}: {fault.key} = {shortened(fault.value)}: {fault.allowed}")
        if data[METADATA_DIGEST] != metadata_digest(data):
            raise BadInput(f"{METADATA_FILE}: metadata_digest does not fit: the file was changed after it was written")
        values = {f.name: data[f.name] for f in fields(cls)}
        values["seeds"] = tuple(values["seeds"])
        values["holdout_scenarios"] = tuple(values["holdout_scenarios"])
        values["left_out"] = tuple(values["left_out"])
        return cls(**values)


METADATA_DIGEST: Final = "metadata_digest"
METADATA_KEYS: Final = (*(f.name for f in fields(DatasetMetadata)), METADATA_DIGEST)
DEMONSTRATORS: Final = ("expert", "scripted", "imported")
UNAPPROVED: Final = "no expert was approved for this dataset"


def origin_of(demonstrator: Mapping[str, Any]) -> str:
    """`"expert walk-expert/1"`, or `"script my.gait:Trot (version 3f2a); no expert was approved for this dataset"`."""
    name, version = demonstrator["name"], demonstrator["version"]
    if demonstrator["kind"] == "expert":
        return f"expert {name}/{version}"
    what = "script" if demonstrator["kind"] == "scripted" else "imported from"
    return f"{what} {name} (version {version}); {UNAPPROVED}"


def metadata_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of every key but `metadata_digest`, cut to 36 characters."""
    rest = {key: value for key, value in data.items() if key != METADATA_DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


@dataclass(frozen=True)
class MetadataFault:
    key: str
    value: Any  # None when the key is missing
    allowed: str


def metadata_faults(data: Any) -> list[MetadataFault]:
    """Every key that is missing, unknown or of the wrong kind. Contents are judged by `pipeline.validation`."""
    if not isinstance(data, dict):
        return [MetadataFault("(top level)", data, "must be a JSON object")]
    faults = [MetadataFault(key, None, "is missing; it must be there") for key in METADATA_KEYS if key not in data]
    for key, value in data.items():
        if key not in _METADATA_CHECKS:
            faults.append(MetadataFault(shortened(key).strip("'"), value, "is not a key of the metadata"))
        elif not _METADATA_CHECKS[key][0](value):
            faults.append(MetadataFault(key, value, f"must be {_METADATA_CHECKS[key][1]}"))
    return faults


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 500 and value.isprintable()


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(_text(k) and _integer(v) and v >= 0 for k, v in value.items())


def _shares(value: Any) -> bool:
    return isinstance(value, dict) and all(_text(k) and _number(v) and v >= 0 for k, v in value.items())


def _demonstrator(value: Any) -> bool:
    keys = ("kind", "name", "version", "digest")
    return isinstance(value, dict) and all(_text(value.get(k)) for k in keys) and value["kind"] in DEMONSTRATORS


def _environment(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"id", "kwargs", "scenarios"} <= set(value) <= {"id", "kwargs", "wrappers", "scenarios"}
        and _text(value["id"])
        and isinstance(value.get("wrappers", []), list)  # datasets without wrappers need not say so
        and isinstance(value["kwargs"], dict)
        and isinstance(value["scenarios"], dict)
        and all(isinstance(kwargs, dict) for kwargs in value["scenarios"].values())
    )


def _filter(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"min_return", "only_success"}
        and (value["min_return"] is None or _number(value["min_return"]))
        and isinstance(value["only_success"], bool)
    )


def _digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{36}", value) is not None


def _utc(value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:  # the 31st of February
        return False
    return True


_METADATA_CHECKS: Final[dict[str, tuple[Any, str]]] = {
    "schema_version": (_integer, "an integer"),
    "dataset_id": (_text, "a non-empty text"),
    "created_at": (_utc, 'a UTC time such as "2026-01-31T12:00:00Z"'),
    "task": (_text, "a non-empty text"),
    "scenario_set": (_text, "a non-empty text"),
    "scenario_coverage": (_counts, "a mapping of scenario to number of episodes"),
    "requested_shares": (_shares, "a mapping of scenario to share"),
    "demonstrator": (_demonstrator, f"a mapping with kind ({', '.join(DEMONSTRATORS)}), name, version and digest"),
    "seeds": (lambda v: isinstance(v, list) and all(map(_integer, v)), "a list of integers"),
    "noise_std": (lambda v: _number(v) and v >= 0, "a number of 0 or more"),
    "filter": (_filter, "a mapping with min_return (number or null) and only_success (true or false)"),
    "observation_space": (lambda v: isinstance(v, dict), "a space as JSON"),
    "action_space": (lambda v: isinstance(v, dict), "a space as JSON"),
    "environment": (_environment, "a mapping with id, kwargs, wrappers and scenarios"),
    "holdout_scenarios": (lambda v: isinstance(v, list) and all(map(_text, v)), "a list of scenario names"),
    "episodes": (lambda v: _integer(v) and v >= 0, "an integer of 0 or more"),
    "steps": (lambda v: _integer(v) and v >= 0, "an integer of 0 or more"),
    "content_digest": (_digest, "36 hexadecimal digits"),
    "run_id": (lambda v: v is None or _text(v), "a text or null"),
    "git_commit": (lambda v: v is None or _text(v), "a text or null"),
    "git_dirty": (lambda v: v is None or isinstance(v, bool), "true, false or null"),
    "horizon": (lambda v: v is None or (_integer(v) and v >= 1), "an integer of 1 or more, or null"),
    "requested_episodes": (lambda v: v is None or (_integer(v) and v >= 1), "an integer of 1 or more, or null"),
    "left_out": (lambda v: isinstance(v, list) and all(map(_integer, v)), "a list of seeds"),
    METADATA_DIGEST: (_digest, "36 hexadecimal digits"),
}

"""Where a dataset comes from and what it claims to hold: `metadata.json`, every key checked by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)  # fmt: skip

from pipeline.errors import BadInput, shortened
from pipeline.files import digest
from pipeline.names import METADATA_FILE

SCHEMA_VERSION: Final = 1
METADATA_DIGEST: Final = "metadata_digest"
MISSING: Final = "missing"  # the one key that may be left out, by what lacks nothing
UNAPPROVED: Final = "no expert was approved for this dataset"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("should be printable")
    return text


def _utc(text: str) -> str:
    datetime.fromisoformat(text)  # ValueError: the 31st of February
    return text


_UTC = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$"
ShortText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=500), AfterValidator(_printable)]
Time = Annotated[str, StringConstraints(strict=True, pattern=_UTC), AfterValidator(_utc)]
Digest = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{36}$")]
Whole = Annotated[StrictInt, Field(gt=-(1 << 62), lt=1 << 62)]
Amount = Annotated[Whole, Field(ge=0)]
Number = Annotated[StrictFloat, Field(gt=-1e300, lt=1e300)]
Share = Annotated[Number, Field(ge=0)]


class _Demonstrator(BaseModel, extra="allow"):
    kind: Literal["expert", "scripted", "imported"]
    name: ShortText
    version: ShortText
    digest: ShortText


class _Filter(BaseModel, extra="forbid"):
    min_return: Number | None
    only_success: StrictBool


class _Environment(BaseModel, extra="forbid"):
    id: ShortText
    kwargs: dict[str, Any]
    wrappers: list[Any] = []  # datasets without wrappers need not say so
    scenarios: dict[str, dict[str, Any]]


def _checked_as(model: type[BaseModel]) -> GetPydanticSchema:
    return GetPydanticSchema(lambda _, handler: handler(model))


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
    """Where a dataset comes from and what it claims to hold. `from_data` raises BadInput on anything incomplete."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset_id: ShortText
    created_at: Time  # when recording began: UTC, "2026-01-31T12:00:00Z"
    task: ShortText
    scenario_set: ShortText
    scenario_coverage: dict[ShortText, Amount]  # scenario -> episodes
    requested_shares: dict[ShortText, Share]  # scenario -> share of the episodes that was asked for
    demonstrator: Annotated[dict[str, Any], _checked_as(_Demonstrator)]  # and anything else that says who it was
    seeds: tuple[Whole, ...]  # listed seeds, from which the episode seeds were derived
    noise_std: Share  # execution noise, as a share of the half range of the action space
    filter: Annotated[dict[str, Any], _checked_as(_Filter)]
    observation_space: dict[str, Any]  # pipeline.data.spaces
    action_space: dict[str, Any]
    environment: Annotated[dict[str, Any], _checked_as(_Environment)]
    holdout_scenarios: tuple[ShortText, ...]
    episodes: Amount
    steps: Amount
    content_digest: Digest
    run_id: ShortText | None = None
    git_commit: ShortText | None = None
    git_dirty: StrictBool | None = None
    horizon: Annotated[Whole, Field(ge=1)] | None = None  # steps after which an episode is truncated
    requested_episodes: Annotated[Whole, Field(ge=1)] | None = None  # None: nobody here asked
    left_out: tuple[Whole, ...] = ()  # seeds of recorded episodes that a repair left out on purpose
    # what nobody recorded: parts of `Trajectories.missing`, `metric.<name>`, spaces
    missing: tuple[ShortText, ...] = ()
    schema_version: Whole = SCHEMA_VERSION

    @property
    def origin(self) -> str:
        """Whose demonstrations these are, in one line, and plainly when nobody approved an expert for them."""
        return origin_of(self.demonstrator)

    def to_data(self) -> dict[str, Any]:
        """Plain JSON data, `metadata_digest` included."""
        data = json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, allow_nan=False))
        if not self.missing:  # as datasets say it that were written before anything could be missing
            del data[MISSING]
        return {**data, METADATA_DIGEST: metadata_digest(data)}

    @classmethod
    def from_data(cls, data: Any) -> "DatasetMetadata":
        """The inverse of `to_data`. Raises BadInput naming the key, its value and what is allowed."""
        for key, value, allowed in metadata_faults(data):
            raise BadInput(f"{METADATA_FILE}: {key} = {shortened(value)}: {allowed}")
        if data[METADATA_DIGEST] != metadata_digest(data):
            raise BadInput(f"{METADATA_FILE}: metadata_digest does not fit: the file was changed after it was written")
        # as it stands in the file: what was read as a number would be another text, and another digest
        values: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class _File(DatasetMetadata):
    metadata_digest: Digest


_FILE: Final = TypeAdapter(_File)
METADATA_KEYS: Final = tuple(f.name for f in fields(_File))


def origin_of(demonstrator: Mapping[str, Any]) -> str:
    """`"expert walk-expert/1"`, or `"script my.gait:Trot (version 3f2a); no expert was approved for this dataset"`."""
    name, version = demonstrator["name"], demonstrator["version"]
    if demonstrator["kind"] == "expert":
        return f"expert {name}/{version}"
    what = "script" if demonstrator["kind"] == "scripted" else "imported from"
    return f"{what} {name} (version {version}); {UNAPPROVED}"


def told_of_source(metadata: DatasetMetadata) -> list[str]:
    """What its file lacked, and what was done to it on the way in, a line each: `"missing: rewards, ends"`."""
    named = metadata.demonstrator
    told = {
        "missing": ", ".join(metadata.missing),
        "left out": ", ".join(map(str, named.get("left_out_episodes", ()))),
        "clipped": named.get("clipped", ""),
        "not read": ", ".join(map(str, named.get("ignored", ()))),
    }
    return [f"{what}: {line}" for what, line in told.items() if line]


def metadata_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of every key but `metadata_digest`, cut to 36 characters."""
    rest = {key: value for key, value in data.items() if key != METADATA_DIGEST}
    return digest(json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True))


def metadata_faults(data: Any) -> list[tuple[str, Any, str]]:
    """`(key, value or None, what it should be)` for each that is missing, unknown or of the wrong kind.

    Contents are judged by `pipeline.validation`.
    """
    if not isinstance(data, dict):
        return [("(top level)", data, "should be a JSON object")]
    faults: list[tuple[str, Any, str]] = [
        (key, None, "is missing; it must be there") for key in METADATA_KEYS if key not in {*data, MISSING}
    ]
    try:
        _FILE.validate_python(data)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            key = shortened(".".join(map(str, fault["loc"]))).strip("'")
            if fault["type"] == "unexpected_keyword_argument":
                faults.append((key, fault["input"], "is not a key of the metadata"))
            elif fault["loc"][0] in data:
                faults.append((key, fault["input"], fault["msg"].removeprefix("Value error, ")))
    return faults

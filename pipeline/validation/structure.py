"""Rules about form: is everything there, of the right kind, and as long as it says."""

from collections.abc import Iterable

import numpy as np
from gymnasium import spaces

from pipeline.data import (
    ARRAYS,
    METADATA_DIGEST,
    METRIC_PREFIX,
    SCHEMA_VERSION,
    metadata_digest,
    metadata_faults,
    origin_of,
    shape_faults,
)
from pipeline.data.observations import check_action_space, check_observation_space, row_dtype
from pipeline.errors import BadInput, shortened
from pipeline.names import Metric
from pipeline.validation.report import Finding
from pipeline.validation.rules import Context, Dataset, rule

READABLE = "readable"
READABLE_STATEMENT = "Both files can be read safely: bounded sizes, no pickle, strict JSON."

DTYPES = {
    "rewards": "float32", "terminations": "bool", "truncations": "bool", "lengths": "int64", "seeds": "int64",
}  # fmt: skip


@rule("metadata_complete", "Every metadata key is there, of the right kind, and none that nobody reads.")
def metadata_complete(dataset: Dataset, context: Context) -> Iterable[Finding]:
    faults = metadata_faults(dataset.metadata)
    for fault in faults:
        message = f"metadata key {fault.key} {fault.allowed}"
        yield Finding("metadata_complete", None, None, shortened(fault.value), fault.allowed, message)
    if not faults:
        dataset.notes.append(f"demonstrations: {origin_of(dataset.metadata['demonstrator'])}")


@rule("metadata_unchanged", "The metadata has its own digest, and the one the store recorded.", ("metadata_complete",))
def metadata_unchanged(dataset: Dataset, context: Context) -> Iterable[Finding]:
    actual = metadata_digest(dataset.metadata)
    for expected, source in (
        (dataset.metadata[METADATA_DIGEST], "the metadata file"),
        (context.expected_metadata_digest, "the store"),
    ):
        if expected is not None and expected != actual:
            message = f"the metadata was changed after it was written: its digest is not the one in {source}"
            yield Finding("metadata_unchanged", None, None, actual, expected, message)


@rule("schema_version", f"The schema version is {SCHEMA_VERSION}.", ("metadata_complete",))
def schema_version(dataset: Dataset, context: Context) -> Iterable[Finding]:
    version = dataset.metadata["schema_version"]
    if version != SCHEMA_VERSION:
        message = f"schema version {version} is not the one this code reads"
        yield Finding("schema_version", None, None, version, f"= {SCHEMA_VERSION}", message)


@rule("arrays_present", "Every array is there, and every figure the task measures.")
def arrays_present(dataset: Dataset, context: Context) -> Iterable[Finding]:
    required = [*ARRAYS, METRIC_PREFIX + Metric.RETURN, METRIC_PREFIX + Metric.LENGTH]
    if context.task is not None:
        figures = [Metric.SUCCESS, *context.task.metrics, *([Metric.COLLISION] if context.task.collision else [])]
        required += [METRIC_PREFIX + name for name in figures]
    for name in required:
        if name not in dataset.arrays:
            yield Finding("arrays_present", None, None, None, f"array {name}", f"the array {name} is missing")
    for name in dataset.arrays:
        if name not in ARRAYS and not name.startswith(METRIC_PREFIX):
            bound = f"{', '.join(ARRAYS)} and metric.<name>"
            yield Finding("arrays_present", None, None, name, bound, f"there is an array {shortened(name)} too much")


@rule("dtypes", "Rewards, ends, lengths, seeds, scenarios and metrics have their fixed dtypes.", ("arrays_present",))
def dtypes(dataset: Dataset, context: Context) -> Iterable[Finding]:
    expected = DTYPES | {name: "float64" for name in dataset.arrays if name.startswith(METRIC_PREFIX)}
    for name, dtype in expected.items():
        actual = dataset.arrays[name].dtype
        if actual != np.dtype(dtype):
            yield Finding("dtypes", None, None, str(actual), dtype, f"{name} is {actual}, expected {dtype}")
    if dataset.scenarios.dtype.kind != "U":
        actual = dataset.scenarios.dtype
        yield Finding("dtypes", None, None, str(actual), "text", f"scenarios is {actual}, expected text")


@rule("lengths_aligned", "Every array has one row per step, or per episode.", ("arrays_present", "dtypes"))
def lengths_aligned(dataset: Dataset, context: Context) -> Iterable[Finding]:
    for name, actual, expected in shape_faults(dataset.arrays):
        if name != "observations":
            yield Finding("lengths_aligned", None, None, actual, expected, f"{name} has {actual}, expected {expected}")


@rule(
    "one_observation_more",
    "Every episode of T steps has T + 1 observations.",
    ("arrays_present", "dtypes", "lengths_aligned"),
)
def one_observation_more(dataset: Dataset, context: Context) -> Iterable[Finding]:
    rows, steps, episodes = len(dataset.arrays["observations"]), int(dataset.lengths.sum()), len(dataset.lengths)
    if rows != steps + episodes:
        message = f"{rows} observations for {steps} steps in {episodes} episodes"
        yield Finding("one_observation_more", None, None, rows, f"= {steps + episodes}", message)


@rule("no_empty_episode", "There is an episode, and each has at least one step.", ("lengths_aligned",))
def no_empty_episode(dataset: Dataset, context: Context) -> Iterable[Finding]:
    if not len(dataset.lengths):
        yield Finding("no_empty_episode", None, None, 0, ">= 1 episode", "the dataset holds no episode")
    for episode in np.flatnonzero(dataset.lengths < 1):
        yield Finding("no_empty_episode", int(episode), None, 0, ">= 1 step", "the episode has no step")


@rule("digest", "The content has the digest in the metadata and in the store.", ("arrays_present", "metadata_complete"))
def digest(dataset: Dataset, context: Context) -> Iterable[Finding]:
    for expected, source in (
        (dataset.metadata["content_digest"], "the metadata"),
        (context.expected_digest, "the store"),
    ):
        if expected is not None and dataset.digest != expected:
            message = f"the arrays are not those that were recorded: their digest differs from the one in {source}"
            yield Finding("digest", None, None, dataset.digest, f"= {expected}", message)


@rule(
    "counts", "The metadata counts the episodes and steps that are there.", ("metadata_complete", "lengths_aligned")
)  # fmt: skip
def counts(dataset: Dataset, context: Context) -> Iterable[Finding]:
    actual = {"episodes": len(dataset.lengths), "steps": int(dataset.lengths.sum())}
    for key, value in actual.items():
        if dataset.metadata[key] != value:
            message = f"the metadata claims {dataset.metadata[key]} {key}, the arrays hold {value}"
            yield Finding("counts", None, None, dataset.metadata[key], f"= {value}", message)


@rule("spaces", "The declared spaces can be read, and are those of the task's environment.", ("metadata_complete",))
def declared_spaces(dataset: Dataset, context: Context) -> Iterable[Finding]:
    for key, of_task in (("observation_space", context.observation_space), ("action_space", context.action_space)):
        try:
            space = getattr(dataset, key)
        except BadInput as error:
            yield Finding("spaces", None, None, shortened(dataset.metadata[key]), "a space as JSON", f"{key}: {error}")
            continue
        try:
            check_action_space(space) if key == "action_space" else check_observation_space(space)
        except BadInput as error:
            yield Finding("spaces", None, None, shortened(space), "a space that policies take", f"{key}: {error}")
            continue
        if of_task is not None and not same_space(space, of_task):
            message = f"{key} is not the one of the task's environment"
            yield Finding("spaces", None, None, shortened(space), shortened(of_task), message)


@rule(
    "fits_spaces",
    "Observations and actions have the dtype and shape of the declared spaces.",
    ("spaces", "one_observation_more", "lengths_aligned", "no_empty_episode"),
)
def fits_spaces(dataset: Dataset, context: Context) -> Iterable[Finding]:
    kinds = (
        ("observations", dataset.observation_space),
        ("actions", dataset.action_space),
        ("executed_actions", dataset.action_space),
    )
    for name, space in kinds:
        array, row = dataset.arrays[name], row_dtype(space)
        actual, expected = f"{array.dtype} {array.shape[1:]}", f"{row.base} {row.shape}"
        if actual != expected:
            message = f"one row of {name} is {actual}, the declared space says {expected}"
            yield Finding("fits_spaces", None, None, actual, expected, message)


def same_space(a: spaces.Space, b: spaces.Space) -> bool:
    """Equal in kind, dtype, shape and every bound; gymnasium's `==` allows a tolerance."""
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if isinstance(a, spaces.Dict):
        assert isinstance(b, spaces.Dict)  # for the type checker
        return set(a.spaces) == set(b.spaces) and all(same_space(a[key], b[key]) for key in a.spaces)
    if isinstance(a, spaces.Box):
        assert isinstance(b, spaces.Box)
        return np.array_equal(a.low, b.low) and np.array_equal(a.high, b.high)
    return bool(a == b)


STRUCTURE = (
    metadata_complete, metadata_unchanged, schema_version, arrays_present, dtypes, lengths_aligned,
    one_observation_more, no_empty_episode, digest, counts, declared_spaces, fits_spaces,
)  # fmt: skip

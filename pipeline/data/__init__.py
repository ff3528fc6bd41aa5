"""Recorded episodes: arrays in memory, files on disk.

Whether the data is *right* (ends, bounds, provenance, ...) is decided in `pipeline.validation`, not here.
"""

from pipeline.data.formats.npz import load_dataset, read_archive, read_metadata, save_dataset, write_dataset
from pipeline.data.metadata import (
    METADATA_DIGEST,
    MISSING,
    SCHEMA_VERSION,
    UNAPPROVED,
    DatasetMetadata,
    metadata_digest,
    metadata_faults,
    origin_of,
    told_of_source,
)
from pipeline.data.trajectories import (
    ARRAYS,
    ENDS,
    FINAL_OBSERVATIONS,
    METRIC_PREFIX,
    REWARDS,
    SEEDS,
    STEP_ARRAYS,
    UNKNOWN_SEED,
    EpisodeData,
    Trajectories,
    arrays_digest,
    concatenate,
    content_digest,
    offsets,
    shape_faults,
)

__all__ = [
    "ARRAYS", "ENDS", "FINAL_OBSERVATIONS", "METADATA_DIGEST", "METRIC_PREFIX", "MISSING", "REWARDS", "SCHEMA_VERSION",
    "SEEDS", "STEP_ARRAYS", "UNAPPROVED", "UNKNOWN_SEED",
    "DatasetMetadata", "EpisodeData", "Trajectories", "arrays_digest", "concatenate",
    "content_digest", "load_dataset", "metadata_digest", "metadata_faults", "offsets", "origin_of", "read_archive",
    "read_metadata", "save_dataset", "shape_faults", "told_of_source", "write_dataset",
]  # fmt: skip

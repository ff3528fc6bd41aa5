"""Questions to the store from Python, answered as pandas frames; the filters run in the store.

    from pipeline import query
    query.runs(stage="pretrain")
    query.curves(["0a1b..."], ["eval/success_rate"])
    query.datasets(); query.policies("social_nav"); query.lineage("social_nav-expert/1").to_text()
    query.load_policy("models:/social_nav-expert@approved")(observations)
    query.load_ppo("models:/social_nav-expert@approved").learn(100_000)
    query.load_demonstrations("social_nav-0a1b2c3d").trajectories
    query.export_dataset("social_nav-0a1b2c3d", "out/minari")
    query.export_policy("social_nav-expert@approved", "out/policy.zip")

The store is the one that MLFLOW_TRACKING_URI names. Nothing here changes it.
"""

from collections.abc import Sequence
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.config.loading import load_task
from pipeline.errors import BadInput, did_you_mean, shortened
from pipeline.names import SEED_STAGES, STAGES, SWEEP_FRESH, SWEEP_TRIAL, Tag, VersionTag, registered_model
from pipeline.tracking.lineage import Lineage, trace
from pipeline.tracking.references import Reference
from pipeline.tracking.registry import require_approved
from pipeline.tracking.runs import metric_history, recorded_metadata, search, tag_value
from pipeline.tracking.signatures import require_signature
from pipeline.tracking.store import connect, pages

if TYPE_CHECKING:
    from stable_baselines3 import PPO

    from pipeline.policies import ActFunction
    from pipeline.tracking.datasets import StoredDataset
    from pipeline.tracking.models import StoredPolicy

RUN_COLUMNS = ("run_id", "stage", "task", "group", "arm", "seed", "status", "started", "verdict", "taint")
STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
DATASET_COLUMNS = (
    "dataset_id", "quality", "episodes", "steps", "coverage", "demonstrator", "digest", "recorded", "run_id", "taint",
)  # fmt: skip
POLICY_COLUMNS = (
    "model", "version", "gate", "aliases", "digest", "reason", "gate_run_id", "run_id", "created", "taint",
)  # fmt: skip
CURVE_COLUMNS = ("run_id", "metric", "step", "value")


def runs(
    stage: str | None = None,
    task: str | None = None,
    group: str | None = None,
    arm: str | None = None,
    status: str | None = None,
    metrics: Sequence[str] = (),
    limit: int | None = None,
) -> pd.DataFrame:
    """Runs of the pipeline, newest first: `RUN_COLUMNS` and one column for each of `metrics` (its last value, or NaN).

    `stage` is an entry point, one of `SEED_STAGES` (`finetune_seed`, ...) for the runs of single seeds, or one of the
    runs nested in a sweep (`sweep_trial`, `sweep_fresh`).
    Raises BadInput for an unknown stage or status.
    """
    known = (*STAGES, *SEED_STAGES, SWEEP_TRIAL, SWEEP_FRESH)
    if stage is not None and stage not in known:
        raise BadInput(f"stage {stage!r} is unknown.{did_you_mean(stage, known)} There are: {', '.join(known)}")
    if status is not None and status not in STATUSES:
        hint = did_you_mean(status.upper(), STATUSES)
        raise BadInput(f"status {shortened(status)} is unknown.{hint} There are: {', '.join(STATUSES)}")
    named = {Tag.TASK: task, Tag.GROUP: group, Tag.ARM: arm}
    wanted = {Tag.STAGE: stage, **{key: value for key, value in named.items() if value is not None}}
    rows = [
        {
            **{column: run.data.tags.get(column) for column in RUN_COLUMNS},
            "run_id": run.info.run_id,
            "status": run.info.status,
            "started": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
            **{metric: run.data.metrics.get(metric, float("nan")) for metric in metrics},
        }
        for run in search(connect(), wanted, limit, status)
    ]
    return pd.DataFrame(rows, columns=[*RUN_COLUMNS, *metrics])


def curves(run_ids: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Every logged point of metrics of runs: `CURVE_COLUMNS`, ordered by run, metric and step."""
    client = connect()
    rows = [
        (run_id, metric, step, value)
        for run_id in run_ids
        for metric in metrics
        for step, value in metric_history(client, run_id, metric)
    ]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def datasets(task: str | None = None) -> pd.DataFrame:
    """Recorded datasets, newest first: `DATASET_COLUMNS`; coverage is a mapping of scenario to episodes.

    Damaged ones are shown as well: what stands in their metadata is None then.
    """
    client = connect()
    rows: list[dict[str, Any]] = []
    for run in search(client, {Tag.STAGE: "collect", **({} if task is None else {Tag.TASK: task})}, status=None):
        tags = run.data.tags
        if Tag.DATASET_ID not in tags:
            continue
        metadata = recorded_metadata(run)
        demonstrator = metadata.get("demonstrator")
        rows.append(
            {
                "dataset_id": tags[Tag.DATASET_ID],
                "quality": tags.get(Tag.DATASET_QUALITY),
                "episodes": metadata.get("episodes"),
                "steps": metadata.get("steps"),
                "coverage": metadata.get("scenario_coverage"),
                "demonstrator": f"{demonstrator['name']}/{demonstrator['version']}" if demonstrator else None,
                "digest": tags.get(Tag.DATASET_DIGEST),
                "recorded": metadata.get("created_at"),
                "run_id": run.info.run_id,
                "taint": tags.get(Tag.TAINT),
            }
        )
    return pd.DataFrame(rows, columns=list(DATASET_COLUMNS))


def policies(task: str | None = None) -> pd.DataFrame:
    """Registered versions of the experts, newest first, with their state in the gate: `POLICY_COLUMNS`."""
    client = connect()
    name = None if task is None else registered_model(tag_value(task))
    condition = f"tags.`{VersionTag.GATE}` != ''" if name is None else f"name = '{name}'"
    rows = []
    for found in pages(client.search_model_versions, condition, order_by=["creation_timestamp DESC"]):
        version = client.get_model_version(found.name, found.version)  # a search does not return aliases
        created = pd.Timestamp(version.creation_timestamp // 1000, unit="s", tz="UTC")
        rows.append(
            {
                "model": version.name,
                "version": int(version.version),
                "gate": version.tags.get(VersionTag.GATE),
                "aliases": ", ".join(sorted(version.aliases)),
                "digest": version.tags.get(VersionTag.POLICY_DIGEST),
                "reason": version.tags.get(VersionTag.GATE_REASON),
                "gate_run_id": version.tags.get(VersionTag.GATE_RUN_ID),
                "run_id": version.run_id,
                "created": created.isoformat(),
                "taint": version.tags.get(VersionTag.TAINT),
            }
        )
    return pd.DataFrame(rows, columns=list(POLICY_COLUMNS))


def lineage(reference: str) -> Lineage:
    """The whole chain around a run id, `model/version` or dataset id: what it came from and what came from it."""
    return trace(connect(), reference, up=True, down=True)


def why(reference: str) -> Lineage:
    """Everything that a run, version or dataset came from."""
    return trace(connect(), reference, up=True)


def impact(reference: str) -> Lineage:
    """Everything that came from a run, version or dataset."""
    return trace(connect(), reference, down=True)


# --- what is loaded, or written for others; what that needs, torch above all, is imported when it is asked for --------


def load_policy(reference: str) -> "ActFunction":
    """What a policy does, as a function: `models:/<name>@approved`, `<name>/<version>`, a run id or a folder.

    Observations (n, *observation shape), a mapping of arrays for a Dict, -> deterministic actions (n, *action shape).
    Its files are held to the digest on record first, and nothing that lies in the store is run. Raises BadInput.
    """
    return _policy(reference).acts()


def load_ppo(reference: str) -> "PPO":
    """An SB3 PPO with the weights of a policy: `models:/<name>@approved`, `<name>/<version>`, a run id or a folder.

    Nothing is unpickled: the network is rebuilt from the artifact, whose bytes are held to the digest on record.
    """
    from pipeline.policies import load_trainable
    from pipeline.policies.sb3 import as_ppo

    return as_ppo(load_trainable(_policy(reference).folder))


def load_demonstrations(reference: str) -> "StoredDataset":
    """`.trajectories` and `.metadata` of a dataset id, the run that recorded it, or `latest`.

    Raises BadInput unless the dataset is validated and untainted, and its bytes are those on record.
    """
    from pipeline.tracking.datasets import fetch_for_training

    return fetch_for_training(connect(), reference, None)


def export_dataset(reference: str, path: str, format: str | None = None) -> str:
    """Write a validated dataset to a new folder or file; returns a line for people.

    `format`: `minari`, `lerobot` or `npz`; by its ending a `.npz`, and Minari otherwise. Raises BadInput.
    """
    stored = load_demonstrations(reference)
    format = format or ("npz" if path.endswith(".npz") else "minari")
    written = f"dataset {stored.metadata.dataset_id}: {stored.metadata.episodes} episodes written to {path} ({format})"
    if format == "npz":
        from pipeline.data.formats.npz import export_plain_npz

        export_plain_npz(stored.trajectories, path)
        return written
    if format == "lerobot":
        from pipeline.data.formats.lerobot import export_lerobot

        export_lerobot(stored.trajectories, stored.metadata, path)
        return f"{written}; without last observations, ends, seeds and scenarios, for which the format has no room"
    if format != "minari":
        raise BadInput(f"format {shortened(format)} is unknown; datasets are written as minari, lerobot and npz")
    from pipeline.data.formats.minari import export_minari

    export_minari(stored.trajectories, stored.metadata, path)
    return written


def export_policy(reference: str, file: str) -> str:
    """Write a policy that the store holds to a new file; returns a line for people.

    `.zip`: for `PPO.load` of SB3; `.pt`: TorchScript; `.onnx`: ONNX. A registered version must be approved, and signed
    where its task's file in configs/tasks names approvers.
    Raises BadInput.
    """
    from pipeline.policies import load_policy as load
    from pipeline.policies import load_trainable, scaling_of
    from pipeline.policies.exports import FORMATS, export_network
    from pipeline.policies.sb3 import export_sb3_zip

    policy = _policy(reference)
    if policy.version is not None:
        require_approved(policy.version, "export_policy")
        task_file = Path("configs/tasks") / f"{policy.version.name.removesuffix(registered_model(''))}.yaml"
        if task_file.is_file() and (approvers := load_task(str(task_file)).approvers) is not None:
            require_signature(connect(), policy.version, approvers, "export_policy")
    written = f"policy {policy.reference} ({policy.digest}) written to {file}"
    if Path(file).suffix in FORMATS:
        export_network(load(policy.folder), file)
        return f"{written}; what it answers is in {file}.expected.npz"
    if Path(file).suffix != ".zip":
        raise BadInput(f"file {file!r}: its ending says the format: .zip (SB3), {' or '.join(FORMATS)}")
    trainable = load_trainable(policy.folder)
    export_sb3_zip(trainable, file)
    units = scaling_of(trainable).observations
    uncut = "" if units is None or isinf(units.clip) else f"; it no longer cuts observations at {units.clip:g} units"
    return f"{written}{uncut}; whoever loads an SB3 zip trusts it"


def fit_snqi_baseline(reference: str, file: str) -> str:
    """Fit the SNQI baseline (medians, 95th percentiles) from a dataset's episodes to a new file; returns a line.

    Raises BadInput for a metric that the episodes lack or that has no spread, and for a file that exists.
    """
    from pipeline.statistics.snqi import fit_baseline, write_baseline

    stored = load_demonstrations(reference)
    if Path(file).exists():
        raise BadInput(f"file {file!r} exists; give a new one")
    write_baseline(Path(file), fit_baseline(stored.trajectories.metrics))
    return f"SNQI baseline of {stored.metadata.episodes} episodes of {stored.metadata.dataset_id} written to {file}"


def _policy(reference: str) -> "StoredPolicy":
    from pipeline.tracking.models import find_policy

    local = Reference.parse(reference).run_id or Path(reference).is_dir()
    return find_policy(connect(), reference, "" if local else _task_of(reference), {})


def _task_of(reference: str) -> str:
    """`"models:/walk-expert@approved"` -> `"walk"`. Raises BadInput for what names no registered expert."""
    model, suffix = Reference.parse(reference).model, registered_model("")
    if model is None or not model.endswith(suffix):
        raise BadInput(
            f"policy {reference!r} is not understood; give <task>{suffix}@approved, <task>{suffix}/<version>, or, to "
            "load it, the id of the run that made it"
        )
    return model.removesuffix(suffix)

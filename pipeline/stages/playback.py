"""`playback`: look at a dataset: statistics, outliers, animated episodes, and whether they replay bit for bit."""

from collections.abc import Mapping
from contextlib import closing

from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Playback
from pipeline.data import UNKNOWN_SEED
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.names import Artifact, Quality, Tag
from pipeline.play.filming import film
from pipeline.play.rollouts import from_record
from pipeline.report.clips import Clip, annotate, encode
from pipeline.report.stage_pages import inspection_files
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.datasets import StoredDataset, fetch_dataset, find_dataset_run, log_dataset_input
from pipeline.tracking.stage_run import StageRun
from pipeline.validation.inspection import Inspection, inspect_dataset
from pipeline.validation.replay import TaskReplay, replay_episodes

UPSTREAM = ("dataset",)


def run(run: StageRun, config: Playback, upstream: Mapping[str, str]) -> StageOutcome:
    task_config = load_task(config.task)
    recorded = find_dataset_run(run.client, upstream.get("dataset", "latest"), task_config.name)
    dataset = fetch_dataset(recorded)
    count = len(dataset.trajectories)
    for index in config.episodes:
        if index >= count:
            raise BadInput(f"episodes: {index} is not in the dataset; it has episodes 0 to {count - 1}")
    run.record_config(config, task_config, {"dataset": dataset.metadata.content_digest})
    run.tag({**lineage.from_dataset(recorded), Tag.DATASET_ID: dataset.metadata.dataset_id})
    log_dataset_input(run, dataset.metadata, dataset.run_id, "inspected")
    quality = recorded.data.tags.get(Tag.DATASET_QUALITY)
    warnings = [*([] if quality == Quality.VALIDATED else [f"the dataset is {quality}"]), *lineage.inherit_taint(run)]
    inspection = inspect_dataset(dataset.trajectories, dataset.metadata)
    task = Task(task_config, dataset.metadata.environment["kwargs"])
    run.json(to_data(inspection), "inspection/inspection.json")
    for name, content in inspection_files(inspection, warnings, task.feature_names).items():
        run.text(content.decode(), f"inspection/{name}")
    summary = [
        f"playback: {dataset.metadata.dataset_id}: {count} episodes, {len(inspection.outliers)} outliers; "
        f"demonstrations: {dataset.metadata.origin}; see inspection/inspection.md of run {run.run_id}"
    ]
    summary += [f"  WARNING: {warning}" for warning in warnings]
    if not config.inspect_only:
        summary += _play(run, config, task, dataset, inspection)
    return StageOutcome(tuple(summary))


def _play(
    run: StageRun, config: Playback, task: Task, dataset: StoredDataset, inspection: Inspection
) -> tuple[str, ...]:
    """Simulate the chosen episodes again, say whether they match, and film them where the environment can be drawn."""
    for index in config.episodes:
        if dataset.trajectories.seeds[index] == UNKNOWN_SEED:
            raise BadInput(f"episodes: {index} was imported without its seed and cannot be played; use inspect_only")
    with closing(TaskReplay(task)) as play_again:
        replays = replay_episodes(dataset.trajectories, play_again, config.episodes)
    run.json([{"episode": r.episode, "identical": r.identical, "verdict": str(r)} for r in replays], "replay.json")
    run.metrics({"replay/episodes": len(replays), "replay/identical": sum(r.identical for r in replays)})
    lines = tuple(f"  {replay}" for replay in replays)
    if not task.renders:
        return (*lines, "  no animation: the environment has no render mode rgb_array")
    for replay in replays:
        data = dataset.trajectories.episode(replay.episode)
        seen = film(task, Episode(data.scenario, data.seed), from_record(data.executed_actions))
        figures = {name.replace("_", " "): f"{value:.3g}" for name, value in data.metrics.items()}
        anomalies = [outlier.reason for outlier in inspection.outliers if outlier.episode == replay.episode]
        clip = Clip(
            title=f"{dataset.metadata.dataset_id}, episode {replay.episode}: {data.scenario}, seed {data.seed}",
            frames=seen.frames,
            statistics={**figures, "replay": "bit-identical" if replay.identical else "DIFFERS from the recording"},
            marks=seen.events,
            note="; ".join(f"unusual: {anomaly}" for anomaly in anomalies),
            steps=seen.steps,
        )
        ending, content = encode(annotate(clip), config.frames_per_second, config.video)
        path = run.folder / f"episode-{replay.episode}.{ending}"
        path.write_bytes(content)
        run.file(path, Artifact.PLAYBACK)
    return lines

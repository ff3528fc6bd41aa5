"""`playback`: look at a dataset: statistics, outliers, animated episodes, and whether they replay bit for bit."""

import json
from collections.abc import Mapping

from pipeline.config.loading import load_task
from pipeline.config.stages import Playback
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.names import Artifact, Tag
from pipeline.playback import film_actions
from pipeline.report.inspection import inspection_files
from pipeline.report.playback import Clip, annotate, to_gif
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.datasets import StoredDataset, fetch_dataset, find_dataset_run, log_dataset_input
from pipeline.tracking.runs import StageRun
from pipeline.validation import EpisodeReplay, TaskReplay, replay_episodes
from pipeline.validation.inspection import Inspection, inspect_dataset

UPSTREAM = ("dataset",)
SHOWN_METRICS = 6


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
    inspection = inspect_dataset(dataset.trajectories, dataset.metadata)
    _log_inspection(run, inspection)
    summary = [
        f"playback: {dataset.metadata.dataset_id}: {count} episodes, {len(inspection.outliers)} outliers; "
        f"see inspection/inspection.md of run {run.run_id}"
    ]
    if not config.inspect_only:
        task = Task(task_config, dataset.metadata.environment["kwargs"])
        replays = replay_episodes(dataset.trajectories, TaskReplay(task), config.episodes)
        run.json([{"episode": r.episode, "identical": r.identical, "verdict": str(r)} for r in replays], "replay.json")
        run.metrics({"replay/episodes": len(replays), "replay/identical": sum(r.identical for r in replays)})
        for replay in replays:
            _film(run, config, task, dataset, inspection, replay)
        summary += [f"  {replay}" for replay in replays]
    return StageOutcome(tuple(summary))


def _log_inspection(run: StageRun, inspection: Inspection) -> None:
    run.json(json.loads(inspection.to_json()), "inspection/inspection.json")
    for name, content in inspection_files(inspection).items():
        run.text(content.decode(), f"inspection/{name}")


def _film(
    run: StageRun, config: Playback, task: Task, dataset: StoredDataset, inspection: Inspection, replay: EpisodeReplay
) -> None:
    """The animation of one recorded episode, its recorded statistics below, its anomalies named."""
    data = dataset.trajectories.episode(replay.episode)
    film = film_actions(task, Episode(data.scenario, data.seed), data.executed_actions)
    figures = {name: f"{value:.3g}" for name, value in list(data.metrics.items())[:SHOWN_METRICS]}
    anomalies = [outlier.reason for outlier in inspection.outliers if outlier.episode == replay.episode]
    title = f"episode {replay.episode}: {data.scenario}" + (f" – {'; '.join(anomalies)}" if anomalies else "")
    clip = Clip(title, film.frames, {**figures, "replay": "identical" if replay.identical else "differs"}, film.events)
    path = run.folder / f"episode-{replay.episode}.gif"
    path.write_bytes(to_gif(annotate(clip), config.frames_per_second))
    run.file(path, Artifact.PLAYBACK)

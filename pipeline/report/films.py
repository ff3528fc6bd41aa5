"""Animations of whoever acts, in a few episodes: a policy while it trains, what an evaluation is asked to show."""

from pathlib import Path
from typing import Final

from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.learning.ppo import evaluation_episodes
from pipeline.names import Artifact
from pipeline.play.demonstrators import Actor, policy_actions
from pipeline.play.filming import film_actor
from pipeline.report.clips import Clip, annotate, encode
from pipeline.tasks import Task

FRAMES_PER_SECOND: Final = 20.0


def check_drawable(task: Task, setting: str, value: int) -> None:
    """Raise BadInput when a setting asks for pictures and the environment cannot be drawn."""
    if value and not task.renders:
        raise BadInput(
            f"{setting} = {value}: the environment of task {task.config.name!r} has no render mode rgb_array; use 0"
        )


def film_of(job: TrainingJob, event: TrainingEvent) -> Path:
    """Draw what the policy in the event's folder does in the first evaluation episode; the file, below the job's."""
    task = Task(job.task, job.training.environment, job.training.use_camera)
    episode = evaluation_episodes(task, job.training.scenario_set, job.training.evaluation)[0]
    actor = policy_actions(task, event.text, f"of step {event.timestep}")
    title = f"{job.task.name}, seed {job.seed}, after {event.timestep:,} steps of training"
    return draw_episode(
        task, episode, actor, title, Path(job.output) / Artifact.PLAYBACK / f"step-{event.timestep:09d}"
    )


def draw_episode(task: Task, episode: Episode, actor: Actor, title: str, path: Path) -> Path:
    """Let somebody play an episode to its end; the file of it, which is `path` with the ending of its format."""
    film = film_actor(task, episode, actor)
    clip = Clip(
        title=title,
        frames=film.frames,
        statistics={"return": f"{film.episode_return:.4g}", "steps": str(len(film.rewards))},
        marks=film.events,
    )
    ending, content = encode(annotate(clip), FRAMES_PER_SECOND)
    file = path.with_name(f"{path.name}.{ending}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file

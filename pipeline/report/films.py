"""Pictures of a policy while it trains: the same episode, played by what the policy was at several moments."""

from pathlib import Path
from typing import Final

from pipeline.demonstrators import policy_actions
from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.learning.ppo import evaluation_episodes
from pipeline.names import Artifact
from pipeline.playback import film_policy
from pipeline.report.playback import Clip, annotate, encode
from pipeline.tasks import Task

FRAMES_PER_SECOND: Final = 20.0


def check_films(job: TrainingJob) -> None:
    """Raise BadInput when pictures are asked for and the environment cannot be drawn."""
    if job.training.visualize_every and not Task(job.task, job.training.environment, job.training.use_camera).renders:
        raise BadInput(
            f"training.visualize_every = {job.training.visualize_every}: the environment of task {job.task.name!r} has "
            "no render mode rgb_array; use 0"
        )


def film_of(job: TrainingJob, event: TrainingEvent) -> Path:
    """Draw what the policy in the event's folder does in the first evaluation episode; the file, below the job's."""
    task = Task(job.task, job.training.environment, job.training.use_camera)
    episode = evaluation_episodes(task, job.training.scenario_set, job.training.evaluation)[0]
    film = film_policy(task, episode, policy_actions(task, event.text, f"of step {event.timestep}"))
    clip = Clip(
        title=f"{job.task.name}, seed {job.seed}, after {event.timestep:,} steps of training",
        frames=film.frames,
        statistics={"return": f"{film.episode_return:.4g}", "steps": str(len(film.rewards))},
        marks=film.events,
    )
    ending, content = encode(annotate(clip), FRAMES_PER_SECOND, "auto")
    file = Path(job.output) / Artifact.PLAYBACK / f"step-{event.timestep:09d}.{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file

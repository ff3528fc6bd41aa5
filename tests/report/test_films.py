"""Pictures of a policy in training: drawn where they can be, refused before the first step where they cannot."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.config.training import EvaluationSchedule, Network, PPOTraining, Segment
from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train
from pipeline.names import Tag
from pipeline.play.filming import film
from pipeline.play.rollouts import from_actor
from pipeline.report.progress import TrainingProgress
from pipeline.stages import run_stage
from pipeline.tasks import Purpose, Task
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect


def job(tmp_path: Path, environment: str, every: int) -> TrainingJob:
    task = {
        "name": "filmed",
        "environment": {"id": environment},
        "success": {"return_at_least": 0.0},
        "thresholds": {"success_rate": {"min": 0.5}},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1}},
        "horizon": 10,
    }
    training = PPOTraining(
        total_timesteps=192,
        n_envs=2,
        network=Network(hidden=(4,)),
        ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 1},
        evaluation=EvaluationSchedule(segments=(Segment(every_steps=64),), episodes=2),
        visualize_every=every,
    )
    return TrainingJob(validate(TaskConfig, task, "test"), training, 1, str(tmp_path / "out"), final_episodes=2)


def test_a_film_at_the_first_evaluation_from_every_so_many_steps_on(tmp_path):
    filmed = job(tmp_path, "CartPole-v1", 100)
    with TrainingProgress("test", [filmed], {0}) as progress:
        result = train(filmed, lambda event: progress.on_event(0, event))
    assert [point.timestep for point in result.evaluations] == [0, 64, 128, 192]
    films = sorted((tmp_path / "out" / "playback").iterdir())
    steps = ["step-000000000", "step-000000128"]
    assert [film.name for film in films] == [f"{step}.{ending}" for step in steps for ending in ("gif", "webp")]
    with Image.open(films[0]) as gif, Image.open(films[1]) as webp:
        assert gif.n_frames == webp.n_frames > 5
        assert max(webp.size) <= 340
    unseen = job(tmp_path / "unseen", "CartPole-v1", 100)
    with TrainingProgress("test", [filmed, unseen], {0}) as progress:
        train(unseen, lambda event: progress.on_event(1, event))
    assert not (tmp_path / "unseen" / "out" / "playback").exists()
    silent = job(tmp_path / "silent", "CartPole-v1", 0)
    assert train(silent, lambda event: None).last_weights == result.last_weights  # looking changes nothing
    assert not (tmp_path / "silent" / "out" / "playback").exists()


def test_what_cannot_be_drawn_is_refused_before_the_first_step(tmp_path):
    TrainingProgress("test", [job(tmp_path, "undrawable:Undrawable", 0)])  # nothing is to be drawn
    undrawable = job(tmp_path, "undrawable:Undrawable", 10)
    with pytest.raises(BadInput, match=r"visualize_every = 10.*no render mode rgb_array"):
        TrainingProgress("test", [undrawable])


def test_main_refuses_films_of_what_cannot_be_drawn_before_its_first_stage(store, in_repository, tmp_path):
    task = yaml.safe_load(Path("configs/tasks/lunar_lander.yaml").read_text())
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump({**task, "environment": {"id": "undrawable:Undrawable"}}))
    options = {f"{stage}.task": str(path) for stage in ("collect", "pretrain", "finetune", "compare")}
    with pytest.raises(BadInput, match=r"finetune\.training\.visualize_every = 9: .* no render mode rgb_array"):
        run_stage("main", "configs/smoke/lunar_lander/main.yaml", {}, {**options, "visualize_every": "9"})
    assert {run.data.tags[Tag.STAGE] for run in search(connect(), {}, status=None)} == {"main"}


def test_a_long_film_shows_its_start_its_end_and_every_so_many_steps_between_no_larger_than_asked(
    tmp_path, monkeypatch
):
    """Frames that are left out or made smaller: the others are those of the whole film."""
    task = replace(job(tmp_path, "CartPole-v1", 0).task, horizon=200)
    seen = Task(task)
    (episode,) = seen.episodes("train", 3, 1, Purpose.EVALUATE)
    balance = lambda observations: (observations[:, 2] + observations[:, 3] > 0).astype(np.int64)  # noqa: E731

    def played(*limits):
        return film(seen, episode, from_actor(balance, seen.action_space), *limits)

    drawn = []
    make_env = Task.make_env

    def watched(*arguments):
        env = make_env(*arguments)
        render = env.render
        env.render = lambda: drawn.append(1) or render()
        return env

    monkeypatch.setattr(Task, "make_env", watched)
    whole, sampled, small = played(), played(20), played(20, 100)
    last = len(whole.rewards)
    assert last > 60 and whole.steps == tuple(range(last + 1))
    stride = sampled.steps[1]
    assert stride in (4, 8, 16) and sampled.steps == (*range(0, last, stride), last)
    assert all((whole.frames[step] == f).all() for step, f in zip(sampled.steps, sampled.frames, strict=True))
    assert (sampled.rewards == whole.rewards).all()
    drawn.clear()
    known = played(20, None, last)  # how long it is: nothing is drawn that is not kept
    assert known.steps == sampled.steps and len(drawn) == len(known.frames)
    assert small.steps == sampled.steps and {max(f.shape) for f in small.frames} == {100}

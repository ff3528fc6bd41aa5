"""What is said of where trainings run, and what is heard of one that is begun on several nodes."""

import errno
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.loading import executor_settings, validate
from pipeline.config.task import ExecutorSettings
from pipeline.errors import BadInput
from pipeline.executors import side_by_side
from pipeline.executors.elsewhere import Elsewhere, Ended, EventFile, Heard
from pipeline.executors.news import TrainingCrashed, TrainingKilled
from pipeline.executors.side_by_side import executor
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.learning.processor import machine
from pipeline.learning.train import train
from pipeline.names import Arm, Artifact, Tag
from pipeline.stages import say_mixed_processors
from pipeline.tracking.content_key import training_key
from pipeline.tracking.reuse import find_finished
from pipeline.tracking.runs import read_text_artifact
from pipeline.tracking.seed_runs import seed_runs
from pipeline.tracking.stage_run import open_run


def _points(count: int) -> list[TrainingEvent]:
    return [TrainingEvent("metrics", 100 * i, {"loss": 0.1 + i, "nan": float("inf")}) for i in range(count)]


@pytest.fixture
def training(make_jobs, tmp_path) -> Heard:
    return Heard(make_jobs(tmp_path, 1)[0], tmp_path)


def test_points_that_a_second_node_says_again_are_heard_once(training):
    first, heard = EventFile(training.place), []
    for point in _points(4):
        first(point)
    heard += training.news()
    second = EventFile(training.place)
    second(TrainingEvent("note", 200, text="goes on from its checkpoint at step 200"))
    for point in _points(3):  # what the checkpoint holds
        second(point)
    heard += training.news()
    assert [event.kind for event in heard] == ["metrics"] * 4 + ["note"]
    for point in _points(6)[3:]:
        second(point)
    first(_points(5)[4])  # a node that was given up wrongly is heard as well
    heard += training.news()
    assert [event for event in heard if event.metrics] == _points(6)
    assert (first.points, second.points, training.points) == (5, 6, 6)
    assert training.news() == []


def test_half_a_line_is_not_read(training):
    EventFile(training.place)(_points(1)[0])
    (file,) = training.place.glob("events-*")
    line = file.read_bytes()
    file.write_bytes(line + line[:20])
    assert len(training.news()) == 1 and training.news() == []
    file.write_bytes(line + line.replace(b'"timestep": 0', b'"timestep": 7'))
    assert [event.timestep for event in training.news()] == [7]


def test_the_environment_stands_above_the_task(make_jobs, tmp_path, monkeypatch):
    asked = {"kind": "slurm", "folder": "/scratch", "options": {"time": 60}}
    (job,) = make_jobs(tmp_path, 1, asked)
    assert executor_settings(job.task) == validate(ExecutorSettings, asked, "test")
    monkeypatch.setenv("PIPELINE_EXECUTOR", "local")
    assert executor_settings(job.task) == ExecutorSettings()
    monkeypatch.setenv("PIPELINE_EXECUTOR", "{kind: ray, folder: /scratch, options: {num_cpus: 2}}")
    assert executor_settings(job.task).options == {"num_cpus": 2}
    monkeypatch.setenv("PIPELINE_EXECUTOR", "kubernetes")
    with pytest.raises(BadInput, match="PIPELINE_EXECUTOR: kind = 'kubernetes'"):
        executor_settings(job.task)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "ray"}, "kind 'ray' needs folder: an absolute path"),
        ({"kind": "slurm", "folder": "scratch"}, "kind 'slurm' needs folder: an absolute path"),
        ({"folder": "/scratch"}, "folder is for kind ray or slurm"),
        ({"options": {"time": 1}}, "options is for kind ray or slurm"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        validate(ExecutorSettings, settings, "task")


@pytest.mark.parametrize(("kind", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_what_is_not_installed_is_named(kind, package, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package or name == f"pipeline.executors.{kind}"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    settings = ExecutorSettings(kind=kind, folder=str(tmp_path), options={"time": 1} if kind == "slurm" else {})
    with pytest.raises(BadInput, match=rf"{kind}'.* '{package}' is not installed; pip install '.*\[{kind}\]'"):
        executor(settings, 1)


class OneThatEnds:
    """A cluster on which the second training ends, in its own way, while the others run on."""

    def __init__(self, end: Exception) -> None:
        self._end = end

    def begin(self, key: int, job: TrainingJob, place: Path) -> None:
        (place / "output").mkdir()

    def ended(self, seconds: float) -> list[tuple[int, Ended]]:
        return [(1, Ended(self._end, 0))]

    def cancel(self, key: int) -> None:
        pass


@pytest.mark.parametrize(
    ("end", "left"),
    [
        (BadInput("seed 2 diverged"), 0),
        (TrainingCrashed("seed 2 crashed"), 0),
        (TrainingKilled("seed 2 was killed"), 3),
        (OSError(f"seed 2 could not go on: [Errno {errno.ENOSPC}] No space left on device"), 3),
    ],
)
def test_what_a_failed_stage_left_in_the_shared_folder_goes_unless_the_same_command_goes_on(
    make_jobs, tmp_path, monkeypatch, end, left
):
    shared = tmp_path / "shared"
    settings = ExecutorSettings(kind="slurm", folder=str(shared), options={"time": 1})
    monkeypatch.setattr(side_by_side, "executor", lambda *given: Elsewhere(settings, OneThatEnds(end)))
    jobs = [replace(job, checkpoints=str(tmp_path / f"{job.seed}"), checkpoint_key="k") for job in make_jobs(tmp_path)]
    with pytest.raises(type(end)):
        side_by_side.run_side_by_side(jobs, 3, lambda index, event: None, settings=settings)
    assert len(list(shared.iterdir())) == left


def test_where_a_training_runs_is_not_in_its_key_but_the_machine_is(make_jobs, tmp_path):
    (here,), (there,) = make_jobs(tmp_path, 1), make_jobs(tmp_path, 1, {"kind": "ray", "folder": "/scratch"})
    key = training_key(here)
    assert training_key(there) == key
    ours = machine(threads=1)
    assert key.made_on([ours]) == key
    other = {**ours, "microarchitecture": "znver9"}
    assert key.made_on([other]).ingredients["machine"] == other
    assert key.made_on([ours, other]).ingredients["machine"] == {
        **ours, "microarchitecture": f"{ours['microarchitecture']} + znver9",
    }  # fmt: skip


def test_no_cluster_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(BadInput, match="no sbatch in PATH"):
        executor(ExecutorSettings(kind="slurm", folder=str(tmp_path), options={"time": 1}), 1)


def test_what_another_kind_of_processor_made_has_its_key_and_a_mixture_is_said(store, make_jobs, tmp_path, capsys):
    (job,) = make_jobs(tmp_path, 1, steps=256)
    ours = machine(threads=1)
    theirs = {**ours, "microarchitecture": "znver9"}
    with open_run("finetune") as run:
        with seed_runs(run, [job], [{Tag.STAGE: "finetune_seed", Tag.ARM: Arm.PRETRAINED}]) as (seed,):
            result = train(seed.job, lambda event: None)
            assert result.machines == (ours,)
            seed.finish(replace(result, machines=(theirs,)))
        say_mixed_processors(run, "finetune", [ours, ours])
        assert "kinds of processor" not in capsys.readouterr().out
        say_mixed_processors(run, "finetune", [ours, theirs])
    made = training_key(job).made_on([theirs])
    tags = run.client.get_run(seed.run.run_id).data.tags
    assert (tags[Tag.CONTENT_KEY], tags[Tag.KEY_BUT_BUDGET]) == (made.digest, made.but_budget)
    assert tags[Tag.COMMAND] == training_key(job).digest  # what the same command finds it by
    assert read_text_artifact(run.client, seed.run.run_id, Artifact.CONTENT_KEY) == made.to_json()
    assert "finetune: trained on 2 kinds of processor" in capsys.readouterr().out
    found = [find_finished(run.client, "finetune_seed", "known", training_key(job), anywhere) for anywhere in (0, 1)]
    assert [one.run and one.run.info.run_id for one in found] == [None, seed.run.run_id]
    assert "machine differs: microarchitecture" in found[0].words
    assert "znver9" in run.client.get_run(run.run_id).data.tags[Tag.PROCESSORS]

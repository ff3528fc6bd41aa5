"""A SLURM cluster of one machine: trainings come to what they come to here, whatever befalls their jobs."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.local_slurm import slurm
from pipeline.errors import BadInput, Interrupted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    with slurm() as folder:
        yield folder


@pytest.fixture
def executor(cluster, tmp_path):
    return {"kind": "slurm", "folder": str(tmp_path / "shared"), "options": {"time": 30}}


def _job_ids(folder: Path) -> list[list[str]]:
    return [ids.read_text().split() for ids in sorted(folder.glob("*/slurm-jobs"))]


def _command(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_trainings_in_the_queue_come_to_what_they_come_to_here(
    executor, make_jobs, heard, at_home, tmp_path, monkeypatch
):
    """SLURM does not take the second of them at first, as when so many are queued as it allows."""
    sbatch, first, second = tmp_path / "bin" / "sbatch", tmp_path / "first", tmp_path / "second"
    sbatch.parent.mkdir()
    refuses = f'[ -d "{first}" ] && mkdir "{second}" 2> /dev/null && exit 1'
    sbatch.write_text(f'#!/bin/sh\n{refuses}\nmkdir -p "{first}"\nexec "{shutil.which("sbatch")}" "$@"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=os.pathsep)
    assert heard().train(make_jobs(tmp_path, executor=executor)) == at_home
    assert second.is_dir() and not list((tmp_path / "shared").iterdir())  # nothing is left there


def test_a_training_on_a_gpu_asks_for_one(executor, make_jobs, heard, tmp_path):
    (job,) = make_jobs(tmp_path, 1, executor)
    with pytest.raises(BadInput, match=r"SLURM does not take them: .*[Gg]res"):  # this cluster has none
        heard().train([replace(job, task=replace(job.task, device="cuda"))])


def _queue_again(training: int, folder: Path) -> None:
    """What SLURM does before the time of a job is over."""
    _command("scancel", "--signal=USR2", f"--name=training_of_seed_{training}")


def _kill(training: int, folder: Path) -> None:
    """Its process, whose number is in the name of what it writes, dies without a word."""
    name = _command("squeue", "--noheader", "--format=%i", f"--name=training_of_seed_{training}").strip()
    (place,) = (ids.parent for ids in folder.glob("*/slurm-jobs") if name in ids.read_text().split())
    (events,) = place.glob("events-*")
    os.kill(int(events.name.rpartition("-")[2]), signal.SIGKILL)


@pytest.mark.parametrize("end", [_queue_again, _kill])
def test_jobs_that_end_early_are_begun_again(executor, make_jobs, heard, at_home, tmp_path, monkeypatch, end):
    monkeypatch.setattr("pipeline.executors.slurm.LATE_SECONDS", 2.0)
    # to queue a job again ends what runs in it, before that is told; and the controller may be away at that moment
    scontrol, once = tmp_path / "bin" / "scontrol", tmp_path / "once"
    scontrol.parent.mkdir()
    late = f'mkdir "{once}" && "{shutil.which("scontrol")}" "$@" && sleep 5'
    scontrol.write_text(f"#!/bin/sh\n{late}\n")
    scontrol.chmod(0o755)
    executor["options"]["setup"] = [f'export PATH="{scontrol.parent}:$PATH"']
    jobs, ended, submitted = make_jobs(tmp_path, executor=executor), [], {}

    def end_once(index, event):
        submitted.update({ids[0]: len(ids) for ids in _job_ids(tmp_path / "shared")})
        if index not in ended and event.timestep > 2000:
            ended.append(index)
            end(jobs[index].seed, tmp_path / "shared")

    found = heard().train(jobs, end_once)
    assert any("goes on from its checkpoint" in note for note in found.notes)
    assert found == at_home
    # one was queued again by SLURM, under its own number; the others it refused, or knew nothing of
    assert sorted(submitted.values()) == ([1, 2, 2] if end is _queue_again else [2, 2, 2])


def test_a_cancelled_job_ends_the_stage_and_the_same_command_goes_on(executor, make_jobs, heard, at_home, tmp_path):
    def cancel(index, event):
        if event.timestep > 2000:
            for ids in _job_ids(tmp_path / "shared"):
                subprocess.run(["scancel", *ids], capture_output=True)

    with pytest.raises(Interrupted, match=r"training of seed .: its job .* was cancelled"):
        heard().train(make_jobs(tmp_path, executor=executor), cancel)
    assert not _job_ids(tmp_path / "shared")  # the others were ended as well
    found = heard().train(make_jobs(tmp_path, executor=executor))
    assert any("goes on from its checkpoint" in note for note in found.notes)
    assert found == at_home


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import conftest
jobs = conftest.make_trainings(Path({folder!r}), executor={executor!r})
conftest.Heard().train(jobs, lambda index, event: print("heard", flush=True))
"""


def test_jobs_outlive_the_driver_and_are_waited_for(executor, make_jobs, heard, at_home, tmp_path):
    script = textwrap.dedent(DRIVER).format(tests=str(Path(__file__).parent), folder=str(tmp_path), executor=executor)
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "heard\n"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = _job_ids(tmp_path / "shared")
    assert len(before) == 3
    after = []
    found = heard().train(
        make_jobs(tmp_path, executor=executor), lambda index, event: after.append(_job_ids(tmp_path / "shared"))
    )
    assert found == at_home
    assert after[0] == before  # nothing was submitted a second time


def test_a_time_limit(executor, make_jobs, heard, tmp_path, monkeypatch):
    """SLURM itself ends a job, half a minute after it said so; it looks at the time twice a minute."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # of this process and its children
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # of jobs
    executor = {**executor, "options": {"time": 30, "signal_delay_s": 30}}
    limited = []

    def limit_once(index, event):
        if not limited and event.timestep > 4000:  # there is a checkpoint
            ((job_id,),) = _job_ids(tmp_path / "shared")
            limited.append(job_id)
            _command("scontrol", "update", f"JobId={job_id}", "TimeLimit=1")
            while _command("squeue", "--states=all", "--noheader", "--format=%T", f"--jobs={job_id}") == "RUNNING\n":
                time.sleep(1)
            subprocess.run(["scontrol", "update", f"JobId={job_id}", "TimeLimit=30"])  # of what is begun again

    def jobs(folder, executor, seconds):
        environment = {"id": "sleeping_environment:SleepingCartPole", "kwargs": {"seconds": seconds}}
        return make_jobs(folder, 1, executor, steps=20_000, environment=environment)

    found = heard().train(jobs(tmp_path, executor, 0.005), limit_once)  # at least 100 seconds of sleep
    assert any("goes on from its checkpoint" in note for note in found.notes)
    assert found == heard().train(jobs(tmp_path / "home", None, 0.0))


def test_what_slurm_does_not_take_is_said(executor, make_jobs, heard, tmp_path):
    with pytest.raises(BadInput, match=r"executor.options.time is missing"):
        heard().train(make_jobs(tmp_path, 1, {**executor, "options": {}}))
    with pytest.raises(BadInput, match=r"executor.options: SLURM does not take them: .*pratition"):
        heard().train(make_jobs(tmp_path, 1, {**executor, "options": {"time": 1, "pratition": "x"}}))
    with pytest.raises(BadInput, match=r"executor.options: SLURM does not take them: .*invalid partition"):
        heard().train(make_jobs(tmp_path, 1, {**executor, "options": {"time": 1, "partition": "nowhere"}}))

"""Trainings on a SLURM cluster through submitit: a job each, which goes back into the queue before its time is over.

SLURM begins jobs again itself when it preempts them or their node fails; what it gives up is submitted again here. The
ids of its jobs stand in the training's folder, so that the same command, given again, waits for what still runs.
"""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, UncompletedJobError
from submitit.helpers import Checkpointable

from pipeline.config.task import GPU, ExecutorSettings
from pipeline.errors import BadInput, shortened
from pipeline.executors.elsewhere import LATE_SECONDS, Ended, train_on_node
from pipeline.executors.news import TrainingCrashed, TrainingKilled
from pipeline.learning.jobs import Job
from pipeline.names import THREAD_VARIABLES

JOB_IDS: Final = "slurm-jobs"  # in the folder of a training, the last one is the one that counts
NOT_TAKEN: Final = (FailedJobError, FailedSubmissionError)  # by `sbatch`
REFUSED_SECONDS: Final = 3600.0  # for which a job is offered again that SLURM does not take: its controller may be away
QUEUE_SECONDS: Final = 5.0  # between looks into the queue, which the scheduler of a whole cluster answers
LOST: Final = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT")
OVER: Final = (*LOST, "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY")


class TrainingOnNode(Checkpointable):
    """What a job of SLURM's does. `Checkpointable`: queued again, it does the same, which goes on from a checkpoint."""

    def __call__(self, job: Job[Any], place: Path, folder: str) -> Ended:
        # what loads everything loads it once: this process, to read the job
        return train_on_node(job, place, folder, forks=True)

    def checkpoint(self, *arguments: Any, **named: Any) -> DelayedSubmission:
        """What is queued again: the same. Called right before `scontrol requeue`."""
        # that ends whatever runs in the job, before it answers perhaps the very `scontrol` that asked for it; submitit
        # would take its death for a refusal, and the job that was queued again for one that has failed
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return super().checkpoint(*arguments, **named)


@dataclass
class Submitted:
    """A training, and the job of SLURM's that does it."""

    job: Job[Any]
    place: Path
    slurm: "submitit.Job[Ended] | None" = None  # None: SLURM has taken none yet
    silent_since: float | None = None  # the job is over, and no end of the training is there to be read
    lost: str = ""  # how, where the next one is to be submitted
    refused_since: float | None = None  # SLURM does not take the next one
    again_at: float = 0.0  # when it is asked again


class SlurmCluster:
    """Jobs in the queue of the cluster that this machine submits to."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self._settings = settings
        if "time" not in settings.options:
            raise BadInput(
                "executor.options.time is missing: minutes after which SLURM takes a node back; a training that is not "
                "done by then is queued again"
            )
        if shutil.which("sbatch") is None:
            raise BadInput("executor.kind = 'slurm': no sbatch in PATH; give the command where jobs are submitted")
        self._submitted: dict[Hashable, Submitted] = {}
        self._looked = time.monotonic()
        self._takes = False  # these options; once it did, what it refuses is not for their sake

    def begin(self, key: Hashable, job: Job[Any], place: Path) -> None:
        """Submit a job, or go on waiting for the one that a process before this one had submitted."""
        submitted = Submitted(job, place)
        if earlier := _ids(place):
            submitted.slurm = submitit.SlurmJob[Ended](place / "slurm", earlier[-1])
        else:
            try:
                submitted.slurm = self._submit(job, place)
            except NOT_TAKEN as error:
                if not self._takes:
                    raise BadInput(f"executor.options: SLURM does not take them: {error}") from None
                submitted.lost = "which SLURM did not take"  # now: as many are queued as it allows, or it is away
        self._submitted[key] = submitted

    def _submit(self, job: Job[Any], place: Path) -> "submitit.Job[Ended]":
        options = dict(self._settings.options)
        if job.device.startswith(GPU) and not any(
            "gres" in text or "gpus" in text for text in map(str, options.items())
        ):
            options["additional_parameters"] = {**options.get("additional_parameters", {}), "gres": "gpu:1"}
        setup = [*(f"export {name}=1" for name in THREAD_VARIABLES), *options.pop("setup", ())]
        known = set((place / "slurm").glob("*"))
        try:
            executor = submitit.SlurmExecutor(place / "slurm", max_num_timeout=self._settings.retries)
            executor.update_parameters(job_name=job.name.replace(" ", "_"), setup=setup, **options)
            slurm = executor.submit(TrainingOnNode(), job, place, str(Path.cwd()))
        except NOT_TAKEN:
            for left in set((place / "slurm").glob("*")) - known:
                left.unlink(missing_ok=True)  # the job with all that it begins with
            raise
        except (ValueError, TypeError) as error:
            raise BadInput(f"executor.options: SLURM does not take them: {error}") from None
        self._takes = True
        with (place / JOB_IDS).open("a", encoding="utf-8") as file:
            file.write(f"{slurm.job_id}\n")
        return slurm

    def ended(self, seconds: float) -> list[tuple[Hashable, Ended]]:
        """Jobs whose end has become known within so many seconds."""
        time.sleep(seconds)
        states: dict[str, str] | None = None  # of every job of this user's that SLURM knows; None: not asked, no answer
        if time.monotonic() - self._looked > QUEUE_SECONDS:
            command = ["squeue", "--me", "--states=all", "--noheader", "--format=%i %T"]
            answer = subprocess.run(command, capture_output=True, text=True)
            self._looked = time.monotonic()
            if not answer.returncode:
                states = dict(line.split() for line in answer.stdout.splitlines())
        found = []
        for key, submitted in list(self._submitted.items()):
            ended = None
            if submitted.slurm is not None and not submitted.lost and submitted.slurm.paths.result_pickle.exists():
                try:
                    ended = submitted.slurm.result()
                except UncompletedJobError as error:
                    name, text = submitted.job.name, str(error)  # in submitit's own words
                    if "timed-out too many times" in text:
                        ended = Ended(TrainingKilled(f"{name}: its time was over too often: {shortened(text)}"), 0)
                    elif "in checkpoint_and_try_requeue" in text:  # SLURM was away when it was to queue the job again
                        submitted.slurm.cancel(check=False)  # and may have done so all the same
                        submitted.lost = "which SLURM did not queue again"
                    else:
                        ended = Ended(TrainingCrashed(f"{name} crashed: {text}"), 0)
            elif states is not None:
                ended = self._over(submitted, states)
            if ended is not None:
                if isinstance(ended.end, Exception):
                    (submitted.place / JOB_IDS).unlink(missing_ok=True)
                del self._submitted[key]
                found.append((key, ended))
        return found

    def _over(self, submitted: Submitted, states: Mapping[str, str]) -> Ended | None:
        """The end of a training whose job is over without one; None when there is hope, or it is submitted again."""
        if submitted.lost or submitted.slurm is None:
            return self._again(submitted)
        state = states.get(submitted.slurm.job_id)
        if state is not None and state not in OVER:
            submitted.silent_since = None
            return None
        if submitted.silent_since is None:
            submitted.silent_since = time.monotonic()
        late = time.monotonic() - submitted.silent_since > LATE_SECONDS
        training, job_id = submitted.job.name, submitted.slurm.job_id
        if state == "CANCELLED":
            return Ended(TrainingKilled(f"{training}: its job {job_id} was cancelled"), 0)
        if state not in LOST and not late:
            return None
        if state == "OUT_OF_MEMORY":
            text = "memory ran out: raise executor.options.mem_gb, or lower training.n_envs"
            return Ended(TrainingCrashed(f"{training} crashed: {text}"), 0)
        # whatever it could say of itself it would have said: it was killed
        submitted.lost = f"as {state}"
        return self._again(submitted)

    def _again(self, submitted: Submitted) -> Ended | None:
        """Submit a training whose job was lost; its end where that was the last time."""
        now, training, ids = time.monotonic(), submitted.job.name, _ids(submitted.place)
        if len(ids) > self._settings.retries:
            lost = f"its jobs were lost {len(ids)} times, the last, {ids[-1]}, {submitted.lost}"
            return Ended(TrainingKilled(f"{training}: {lost}; see {submitted.place / 'slurm'}"), 0)
        if now < submitted.again_at:
            return None
        try:
            submitted.slurm = self._submit(submitted.job, submitted.place)
        except NOT_TAKEN as error:
            submitted.refused_since = submitted.refused_since or now
            waited = now - submitted.refused_since
            submitted.again_at = now + max(QUEUE_SECONDS, waited)  # twice as long as the last time
            why = f"{training}: SLURM has not taken its job for {waited / 60:.0f} minutes: {shortened(str(error))}"
            return Ended(TrainingKilled(why), 0) if waited > REFUSED_SECONDS else None
        submitted.lost, submitted.silent_since, submitted.refused_since = "", None, None
        return None

    def cancel(self, key: Hashable) -> None:
        """End a job, whether it runs or waits."""
        submitted = self._submitted.pop(key, None)
        if submitted is not None and submitted.slurm is not None:
            submitted.slurm.cancel(check=False)
            (submitted.place / JOB_IDS).unlink(missing_ok=True)


def _ids(place: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return (place / JOB_IDS).read_text(encoding="utf-8").split()
    return []

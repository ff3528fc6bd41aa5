"""Whole stages on a disk that fails: one line, exit code 3, nothing half-written, and the same command again is done.

A sample of what `benchmarks/failing_writes.py` does at every call.
"""

import errno
import resource
import subprocess
import sys

import failing_writes
import pytest
from failing_writes import Campaign, Ended, wrong_end

from pipeline.cli import stage_main
from pipeline.names import Tag
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect

pytestmark = pytest.mark.slow

NOTE = "mlflow.note.content"


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        patch.setenv("MLFLOW_TRACKING_URI", "")  # put back afterwards
        yield Campaign(tmp_path_factory.mktemp("campaign"))


# --- a real refusal ---------------------------------------------------------------------------------------------------


def in_a_process(stage: str, arguments: list[str], limit: int) -> Ended:
    """A stage in a process of its own that may write no file larger than `limit` bytes."""
    done = subprocess.run(
        [sys.executable, "-B", "-m", f"entrypoints.{stage}", *arguments],  # -B: Python would cut its own caches
        capture_output=True, text=True, timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr, None)


def test_what_the_system_refuses_is_one_line_code_3_and_the_failed_run_says_it(store, in_repository, capfd):
    (store / "mlartifacts").write_text("a file stands where the folder would be made")
    assert stage_main("collect", ["--config", "configs/smoke/lunar_lander/collect.yaml"]) == 3
    said = capfd.readouterr()
    assert wrong_end(Ended(3, said.out, said.err, None)) == []
    assert said.err.startswith("error: collect could not go on: [Errno 20] Not a directory: ")
    (run,) = search(connect(), {Tag.STAGE: "collect"}, status=None)
    assert (run.info.status, f"error: {run.data.tags[NOTE]}\n") == ("FAILED", said.err)


def test_a_defect_is_told_with_its_traceback_and_code_3(store, in_repository, capfd, monkeypatch):
    monkeypatch.setattr("pipeline.stages.collect.recording", lambda *given: {}["nothing"])
    assert stage_main("collect", ["--config", "configs/smoke/lunar_lander/collect.yaml"]) == 3
    assert "KeyError: 'nothing'" in capfd.readouterr().err.splitlines()[-1]
    (run,) = search(connect(), {Tag.STAGE: "collect"}, status=None)
    assert (run.info.status, run.data.tags[NOTE]) == ("FAILED", "failed: KeyError: \"'nothing'\"")


def test_a_store_that_may_not_grow_is_one_line_and_code_3(store, in_repository):
    ended = in_a_process("collect", ["--config", "configs/smoke/lunar_lander/collect.yaml"], 40_000)
    assert (ended.code, wrong_end(ended)) == (3, [])


# --- every kind of call -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "error", "among", "share"),
    [
        ("collect", errno.ENOSPC, "copy", 0.3),  # a file of the expert, fetched
        ("collect", errno.EIO, "write trajectories", 0.5),
        ("collect", errno.EROFS, "replace", 1.0),  # the last artifact
        ("collect", errno.EIO, "SELECT", 0.3),
        ("collect", errno.ENOSPC, "COMMIT", 0.7),
        ("validate", errno.EIO, "SELECT", 0.6),
        ("promote", errno.EIO, "SELECT", 0.9),
        ("promote", errno.ENOSPC, "COMMIT", 0.9),
    ],
)
def test_a_stage_ends_in_one_line_leaves_nothing_broken_and_is_done_when_given_again(
    campaign, stage, error, among, share
):
    calls = [at for at, call in enumerate(campaign.calls(stage, error), 1) if call.startswith(among)]
    at = calls[int(share * (len(calls) - 1))]
    assert campaign.faults(stage, error, at, for_good=error != errno.EIO) == []


# --- that this finds something ----------------------------------------------------------------------------------------


def test_a_traceback_a_second_line_and_another_code_are_found():
    assert wrong_end(Ended(3, "", "error: full\n", None)) == []
    assert wrong_end(Ended(0, "done\n", "", None)) == []
    assert len(wrong_end(Ended(1, "", "Traceback (most recent call last):\n  ...\nOSError: full\n", None))) == 3
    assert len(wrong_end(Ended(3, "", "error: full\nerror: full\n", None))) == 1


def test_a_stage_that_does_not_know_a_refusal_is_found(campaign, monkeypatch):
    monkeypatch.setattr("pipeline.cli.machine_fault", lambda doing, error: None)
    assert any("traceback" in fault for fault in campaign.faults("collect", errno.ENOSPC, 40, False))


def test_a_dataset_that_is_shown_before_it_is_whole_is_found(campaign, monkeypatch):
    from pipeline.stages import collect

    recorded = collect._recorded

    def hasty(run, *given):
        demonstrations = recorded(run, *given)
        run.tag(collect.dataset_tags(demonstrations.metadata, "validated"))
        return demonstrations

    monkeypatch.setattr(collect, "_recorded", hasty)
    calls = campaign.calls("collect", errno.ENOSPC)
    at = next(at for at, call in enumerate(calls, 1) if call.startswith("write trajectories"))
    found = campaign.faults("collect", errno.ENOSPC, at, False)
    assert any("claims to be validated" in fault for fault in found)


def test_two_approved_versions_are_found(campaign, monkeypatch):
    monkeypatch.setattr(failing_writes, "require_approved", lambda version, doing: None)
    campaign.restore()
    assert any(
        "approved versions are" in fault
        for fault in failing_writes.forked(lambda: failing_writes.broken("promote")).answer
    )

"""A run whose process is gone is closed, a live one never; the same command goes on with a run that was interrupted."""

import errno
import os
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.errors import BadInput
from pipeline.names import Tag
from pipeline.tracking import liveness
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.groups import _duration, trainings
from pipeline.tracking.operations import Batch, Close
from pipeline.tracking.spool import Spool
from pipeline.tracking.stage_run import checkpoint_folder, open_run
from pipeline.tracking.store import connect

NOTE = "mlflow.note.content"


@pytest.fixture
def left_open(store):
    """`left_open(process, alive)`: a RUNNING run of that process, and one of a seed nested in it."""
    client = connect()

    def make(process: str, alive: float) -> list[str]:
        tags = {Tag.STAGE: "baseline", Tag.PROCESS: process, Tag.ALIVE: f"{alive:.0f}", Tag.COMMAND: "c"}
        parent = client.create_run("0", tags=tags).info.run_id
        return [parent, client.create_run("0", tags={"mlflow.parentRunId": parent}).info.run_id]

    return make


def statuses(run_ids):
    return {connect().get_run(run_id).info.status for run_id in run_ids}


def ended_process() -> str:
    """What a process of this machine would have written, that is gone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f"{liveness.machine()} {ended.pid} {time.time():.0f}"


def test_a_run_of_a_process_that_is_gone_is_closed_with_what_is_nested_in_it(left_open):
    seen = int(time.time()) - 3
    run_ids = left_open(ended_process(), seen)
    with open_run("validate"):
        pass
    assert statuses(run_ids) == {"KILLED"}
    for run_id in run_ids:
        closed = connect().get_run(run_id)
        assert "is gone, last sign of life" in closed.data.tags[NOTE]
        assert closed.info.end_time == seen * 1000
    assert connect().get_run(run_ids[0]).data.tags[Tag.COMMAND] == "c"


def test_what_ended_while_another_process_looked_stays_as_it_ended(left_open):
    run_ids = left_open(ended_process(), time.time())
    client = connect()
    seen = [client.get_run(run_id) for run_id in run_ids]
    client.set_terminated(run_ids[0], status="FINISHED")
    assert liveness.close_stale(client, seen, "") == run_ids[1:]
    Close(status="KILLED", time=5).perform(client, run_ids[0])  # it had waited in a spool
    assert [client.get_run(run_id).info.status for run_id in run_ids] == ["FINISHED", "KILLED"]


def test_a_training_that_was_begun_anew_in_the_same_stage_is_the_one_that_finished(store):
    client = connect()
    stage = client.create_run("0", tags={Tag.STAGE: "finetune"})
    about = {"mlflow.parentRunId": stage.info.run_id, Tag.STAGE: "finetune_seed", Tag.ARM: "pretrained"}
    begun = {
        (seed, status): client.create_run("0", start, tags={**about, Tag.SEED: seed}).info.run_id
        for seed, status, start in (("1", "FINISHED", 2), ("1", "KILLED", 3), ("2", "KILLED", 1), ("2", "FAILED", 2))
    }
    for (_, status), run_id in begun.items():
        client.set_terminated(run_id, status)
    found = {run.data.tags[Tag.SEED]: run.info.status for run in trainings(client, client.get_run(stage.info.run_id))}
    assert found == {"1": "FINISHED", "2": "FAILED"}


def test_a_process_is_known_by_its_start_in_ticks_and_as_earlier_versions_wrote_it():
    number, seconds = os.getpid(), psutil.Process().create_time()
    where = liveness.machine()
    assert liveness.has_ended(liveness.this_process()) is False
    assert liveness.has_ended(f"{where} {number} {seconds:.0f}") is False
    assert liveness.has_ended(f"{where} {number} {seconds - 60:.0f}") is True
    assert liveness.has_ended(f"{where} {number} t1") is True
    assert liveness.has_ended(f"{where} {number} x1") is None


def test_a_process_number_that_another_process_has_now_is_gone(left_open):
    run_ids = left_open(f"{liveness.machine()} {os.getpid()} 1", time.time())
    with open_run("validate"):
        pass
    assert statuses(run_ids) == {"KILLED"}


@pytest.mark.parametrize(
    ("process", "silent", "status"),
    [
        (None, 1e6, "RUNNING"),  # it lives here, however long it said nothing
        ("elsewhere/boot/pid:[1] 1 1", liveness.SILENT_SECONDS - 60, "RUNNING"),
        ("elsewhere/boot/pid:[1] 1 1", liveness.SILENT_SECONDS + 60, "KILLED"),
        ("nonsense", 1e6, "RUNNING"),
    ],
)
def test_a_run_elsewhere_is_closed_only_when_it_is_silent(left_open, process, silent, status):
    run_ids = left_open(process or liveness.signs_of_life()[Tag.PROCESS], time.time() - silent)
    with open_run("validate"):
        pass
    assert statuses(run_ids) == {status}


@pytest.mark.parametrize("text", ["", "x", "²", "9" * 30, "-1", "1.5"])
def test_signs_of_life_that_are_none_stop_no_stage(left_open, text):
    client, here = connect(), liveness.machine()
    odd = [
        left_open(process, 1)[0] for process in (liveness.INTERRUPTED, f"{here} {text} 1", f"{here} 1 {text}", "e 1 1")
    ]
    client.set_tag(odd[0], Tag.ALIVE, text)
    client.set_tag(odd[3], Tag.ALIVE, text)
    with open_run("validate"):
        pass
    assert [statuses([run_id]) for run_id in odd] == [{"KILLED"}, *[{"RUNNING"}] * 3]


def test_another_boot_of_this_host_is_another_machine(left_open):
    host, boot, space = liveness.machine().split("/", 2)
    run_ids = left_open(f"{host}/{boot[::-1]}/{space} 1 1", time.time())
    with open_run("validate"):
        pass
    assert statuses(run_ids) == {"RUNNING"}


def test_the_same_command_goes_on_with_a_run_that_was_interrupted(store):
    with pytest.raises(KeyboardInterrupt), open_run("baseline", command="a") as run:
        run.metric_series([("loss", 1.0, 1), ("loss", 2.0, 2)])
        raise KeyboardInterrupt
    killed = connect().get_run(run.run_id)
    assert (killed.info.status, killed.data.tags[NOTE]) == ("KILLED", "interrupted")
    with open_run("baseline", command="b") as other:
        assert other.run_id != run.run_id
    with open_run("baseline", command="a") as again:
        assert (again.run_id, again.continued) == (run.run_id, True)
        assert connect().get_run(run.run_id).info.status == "RUNNING"
        again.metric_series([("loss", 2.0, 2), ("loss", 3.0, 3)])
    ended = connect().get_run(run.run_id)
    assert (ended.info.status, ended.data.tags[NOTE]) == ("FINISHED", "")
    assert [point.step for point in connect().get_metric_history(run.run_id, "loss")] == [1, 2, 3]
    with open_run("baseline", command="a") as fresh:
        assert fresh.run_id != run.run_id


@pytest.mark.parametrize("where", ["here", "in a training"])
def test_what_a_full_disk_ended_keeps_its_checkpoints_and_goes_on(store, tmp_path, where):
    spool = Spool(tmp_path / "spool")
    spool._database.execute("PRAGMA max_page_count = 4")
    with pytest.raises((BadInput, OSError)), open_run("baseline", command="a") as run:
        checkpoint_folder(run).mkdir(parents=True)
        if where == "here":
            spool.append(run.run_id, Batch(tags={"text": "long" * 10_000}))
        raise OSError(f"baseline seed 1 could not go on: {OSError(errno.ENOSPC, 'No space left on device')}")
    assert statuses([run.run_id]) == {"FAILED"}
    with open_run("baseline", command="a") as again:
        assert (again.run_id, again.continued, checkpoint_folder(run).exists()) == (run.run_id, True, True)
    assert not checkpoint_folder(run).exists()


def test_checkpoints_that_a_kill_left_of_a_finished_run_go_and_no_others(store):
    with pytest.raises(KeyboardInterrupt), open_run("baseline", command="a") as interrupted:
        raise KeyboardInterrupt
    with open_run("baseline", command="b") as finished:
        pass
    needed, left, foreign = (
        checkpoint_folder(interrupted), checkpoint_folder(finished), checkpoint_folder(finished).with_name("0" * 32)
    )  # fmt: skip
    for folder in (needed, left, foreign):
        folder.mkdir(parents=True, exist_ok=True)
    with open_run("baseline", command="c"):
        assert (needed.exists(), left.exists(), foreign.exists()) == (True, False, True)


def test_what_ended_in_order_or_lives_is_not_gone_on_with(store):
    with pytest.raises(BadInput), open_run("baseline", command="a") as refused:
        raise BadInput("seeds: none")
    with open_run("baseline", command="a") as living, open_run("baseline", nested=True, command="a") as second:
        assert len({refused.run_id, living.run_id, second.run_id}) == 3


@pytest.mark.parametrize(
    ("status", "process", "goes_on"),
    [("FAILED", "", False), ("FAILED", liveness.INTERRUPTED, True), ("FINISHED", None, False)],
)
def test_a_run_that_an_ended_stage_left_open_is_closed_and_one_of_another_project_is_not(
    left_open, status, process, goes_on
):
    client = connect()
    parent, left = left_open(liveness.this_process() if process is None else process, time.time())
    foreign = client.create_run("0").info.run_id
    nested = client.create_run("0", tags={"mlflow.parentRunId": foreign}).info.run_id
    for ended in (parent, foreign):
        client.set_terminated(ended, status=status)
    with open_run("validate"):
        pass
    assert (statuses([parent]), statuses([left]), statuses([nested])) == ({status}, {"KILLED"}, {"RUNNING"})
    note = client.get_run(left).data.tags[NOTE]
    assert note.startswith("killed: its stage has ended, last sign") and ("goes on" in note) == goes_on


def test_the_time_between_a_kill_and_the_same_command_is_not_the_stages(store):
    night, client = 9 * 3600, connect()
    now = int(time.time())
    run_id = client.create_run("0", start_time=(now - night - 60) * 1000, tags={
        Tag.STAGE: "baseline", Tag.COMMAND: "c", Tag.PROCESS: ended_process(), Tag.ALIVE: f"{now - night}",
    }).info.run_id  # fmt: skip
    child = client.create_run("0", start_time=(now - night - 30) * 1000, tags={
        "mlflow.parentRunId": run_id, Tag.COMMAND: "t",
    }).info.run_id  # fmt: skip
    with open_run("baseline", command="c") as run, Forwarder(run) as forwarder:
        again = forwarder.child("seed 1", {Tag.COMMAND: "t"})
        again.close("FINISHED")
    assert (run.run_id, again.run_id) == (run_id, child)
    told = [_duration(client.get_run(one)) for one in (run_id, child)]
    assert [took // 600 for took in told] == [0, 0] and told[0] >= 59


def test_the_run_that_mlflow_made_names_the_one_that_goes_on(store, monkeypatch):
    with pytest.raises(KeyboardInterrupt), open_run("baseline", command="a") as run:
        raise KeyboardInterrupt
    made = connect().create_run(run.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    with open_run("baseline", command="a") as again:
        assert again.run_id == run.run_id
    tags = connect().get_run(made).data.tags
    assert (tags[Tag.CONTINUES], Tag.STAGE in tags) == (run.run_id, False)


def test_the_run_that_mlflow_made_for_one_that_goes_on_ends_with_it(store, monkeypatch):
    with pytest.raises(KeyboardInterrupt), open_run("baseline", command="a") as run:
        raise KeyboardInterrupt
    made = connect().create_run(run.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    with open_run("baseline", command="a"), open_run("collect", nested=True) as nested:
        assert nested.run_id not in (made, run.run_id)
        assert statuses([made]) == {"RUNNING"}
        connect().set_tag(run.run_id, Tag.PROCESS, ended_process())  # killed now, and `mlflow run` with it
        monkeypatch.setattr(liveness, "signs_of_life", lambda: {})
        with open_run("validate", nested=True):
            assert statuses([made, run.run_id]) == {"KILLED"}
    assert "is gone" in connect().get_run(made).data.tags[NOTE]


@pytest.mark.parametrize(
    ("silent", "tags", "status"),
    [
        (liveness.UNCLAIMED_SECONDS + 60, {"mlflow.project.entryPoint": "main"}, "KILLED"),
        (liveness.UNCLAIMED_SECONDS - 60, {"mlflow.project.entryPoint": "main"}, "RUNNING"),  # it makes an environment
        (1e6, {"mlflow.project.entryPoint": "train"}, "RUNNING"),  # of another project
        (1e6, {"mlflow.project.entryPoint": "main", "mlflow.source.name": "file:///there"}, "RUNNING"),  # the same
        (1e6, {"mlflow.project.entryPoint": "main", Tag.STAGE: "main"}, "RUNNING"),
        (1e6, {}, "RUNNING"),
    ],
)
def test_a_run_that_mlflow_made_and_no_stage_came_to_is_closed_after_an_hour(store, monkeypatch, silent, tags, status):
    client, here = connect(), {"mlflow.source.name": "file:///here"}
    made = client.create_run("0", tags=here | tags, start_time=int((time.time() - silent) * 1000)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run("0", tags=here).info.run_id)
    with open_run("validate"):
        pass
    assert statuses([made]) == {status}
    assert status == "RUNNING" or "no stage" in client.get_run(made).data.tags[NOTE]

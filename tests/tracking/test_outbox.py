"""The outbox: nothing that was appended is lost, nothing is delivered twice, and what is refused is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from real_things import TASK, Bench

from pipeline.cli import DONE, VERDICT_NO, ask
from pipeline.errors import BadInput
from pipeline.names import Alias, Artifact, Gate, VersionTag
from pipeline.policies import policy_digest
from pipeline.tracking import candidates, models, operations
from pipeline.tracking.forwarder import deliver_leftovers, forward, forwarding, sync
from pipeline.tracking.outbox import Outbox, RunOutbox
from pipeline.tracking.runs import StageRun
from pipeline.tracking.store import connect

APPENDER = Path(__file__).with_name("outbox_appender.py")


@pytest.fixture
def outbox(bench) -> Outbox:
    outbox = Outbox()
    yield outbox
    outbox.close()


def point(value: float, step: int) -> operations.Operation:
    return operations.metrics([("loss", value, step)])


def points_of(bench: Bench, run_id: str) -> list[tuple[int, float]]:
    """Every row of the store, repeated ones too."""
    return sorted((p.step, p.value) for p in bench.client.get_metric_history(run_id, "loss"))


def append_and_die(run_id: str, count: int, go_on: bool) -> None:
    """Another process appends points, each acknowledged, and is killed by SIGKILL: at rest, or while it goes on."""
    command = [sys.executable, str(APPENDER), run_id, "0" if go_on else str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    for expected in range(1, count + 1):
        assert int(process.stdout.readline()) == expected
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_what_a_killed_process_appended_is_delivered_once(bench):
    run_id = bench.run("baseline_seed", status=None)
    append_and_die(run_id, 50, go_on=True)
    assert ask(["sync"]) == DONE
    found = points_of(bench, run_id)
    assert len(found) >= 50
    assert found == [(n, float(n)) for n in range(1, len(found) + 1)]


def test_a_torn_last_record_costs_that_record_alone(bench):
    run_id = bench.run("baseline_seed", status=None)
    append_and_die(run_id, 20, go_on=False)
    folder = bench.folder / "mlflow.db.outbox"
    shutil.copytree(folder, bench.folder / "whole")
    log = folder / "outbox.db-wal"
    with log.open("r+b") as handle:
        handle.truncate(log.stat().st_size - 100)
    assert Outbox(bench.folder / "whole").waiting() == 20  # it was there: the tear cost it, nothing else
    assert sync().done
    assert points_of(bench, run_id) == [(n, float(n)) for n in range(1, 20)]


def test_points_delivered_twice_are_stored_once_because_they_keep_their_time(bench):
    run_id = bench.run("baseline_seed", status=None)
    operation = point(1.0, 7)
    for _ in range(2):
        operations.perform(bench.client, run_id, operation)
    assert points_of(bench, run_id) == [(7, 1.0)]
    time.sleep(0.002)
    operations.perform(bench.client, run_id, point(1.0, 7))  # measured again: another time, another point
    assert points_of(bench, run_id) == [(7, 1.0), (7, 1.0)]


def test_delivery_that_broke_off_after_the_store_took_it_is_repeated_without_effect(bench, outbox, monkeypatch):
    run_id = bench.run("baseline_seed", status=None)
    run = StageRun(bench.client, run_id, bench.experiment, bench.folder, RunOutbox(outbox, run_id))
    folder = bench.policy_folder()
    run.metric_series([("loss", float(n), n) for n in range(1_500)])
    run.metric_series([("loss", 0.5, 5_000)])
    run.tag({"colour": "blue"})
    run.text("told", "note.txt")
    models.log_policy(run, folder, "best", 3, {"success_rate": 0.5}, Artifact.POLICY)
    run.close("FINISHED")

    class Killed(BaseException):
        """As final as SIGKILL for the delivery."""

    def killed(records):
        raise Killed

    appended = outbox.waiting()
    monkeypatch.setattr(outbox, "delivered", killed)
    for _ in range(appended):  # every record in turn is the one whose acknowledgement is lost
        with pytest.raises(Killed):
            forward(outbox, bench.client)
        first = outbox.next(1)
        Outbox.delivered(outbox, first)
    assert outbox.waiting() == 0
    stored = bench.client.get_run(run_id)
    assert stored.info.status == "FINISHED"
    assert points_of(bench, run_id) == [*((n, float(n)) for n in range(1_500)), (5_000, 0.5)]
    assert stored.data.tags["colour"] == "blue"
    (model,) = bench.client.search_logged_models([bench.experiment])
    assert [output.model_id for output in stored.outputs.model_outputs] == [model.model_id]
    assert [metric.value for metric in model.metrics] == [0.5]
    assert {item.path for item in bench.client.list_artifacts(run_id)} == {"note.txt", Artifact.POLICY}
    assert not list((outbox.folder / "files").iterdir())


def test_a_policy_whose_delivery_broke_off_anywhere_becomes_one_model(bench, outbox, monkeypatch):
    """Every call to the store fails once after it was done; without the search for what was begun there are several."""
    calls = ("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs", "log_artifacts")
    run_id = bench.run("baseline_seed", status=None)
    run = StageRun(bench.client, run_id, bench.experiment, bench.folder)
    operation = models.policy_operation(run, bench.policy_folder(), "best", 3, {"success_rate": 0.5}, Artifact.POLICY)
    failed = set()

    def once(name):
        real = getattr(bench.client, name)

        def call(*args, **kwargs):
            answer = real(*args, **kwargs)
            if name not in failed:
                failed.add(name)
                raise ConnectionError("the answer was lost")
            return answer

        return call

    for name in calls:
        monkeypatch.setattr(bench.client, name, once(name))
    outbox.append(run_id, operation)
    attempts = 1
    while forward(outbox, bench.client) is not None:
        attempts += 1
    assert attempts == len(calls) + 1
    (model,) = bench.client.search_logged_models([bench.experiment])
    assert model.status == "READY"
    assert [output.model_id for output in bench.client.get_run(run_id).outputs.model_outputs] == [model.model_id]
    models.store_policy(bench.client, run_id, operation, again=False)
    assert len(bench.client.search_logged_models([bench.experiment])) == 2


def test_a_candidate_that_waited_is_registered_once_as_it_was(bench, outbox, monkeypatch):
    run_id = bench.run("train_expert", status=None)
    run = StageRun(bench.client, run_id, bench.experiment, bench.folder, RunOutbox(outbox, run_id))
    folder = bench.policy_folder()
    digest = policy_digest(folder)
    record = {"digest": digest, "promotable": True, "description": "made for a test"}
    assert candidates.submit_candidate(run, folder, TASK, 3, {}, Artifact.POLICY, **record) is None
    shutil.rmtree(folder)  # the stage's temporary folder is gone when the store comes back
    real = operations.perform

    def lost_at_the_end(client, run_id, operation):
        real(client, run_id, operation)
        if operation["do"] == "tags" and not outbox_was_told:
            outbox_was_told.append(True)
            raise ConnectionError("the answer was lost")

    outbox_was_told: list[bool] = []
    monkeypatch.setattr(operations, "perform", lost_at_the_end)
    assert forward(outbox, bench.client) is not None
    assert forward(outbox, bench.client) is None
    (version,) = bench.client.search_model_versions(f"name = '{TASK}-expert'")
    assert version.tags[VersionTag.GATE] == Gate.PENDING
    assert models.fetch_version(version).digest == digest
    assert bench.client.get_run(run_id).data.tags["output.expert"] == f"models:/{TASK}-expert/1"


@pytest.mark.parametrize("continued", [True, False])
def test_a_stage_that_goes_on_after_it_had_registered_registers_no_second_version(bench, continued):
    run_id, folder = bench.run("train_expert", status=None), bench.policy_folder()
    record = {"digest": policy_digest(folder), "promotable": True, "description": "made for a test"}
    killed = StageRun(bench.client, run_id, bench.experiment, bench.folder)
    first = candidates.submit_candidate(killed, folder, TASK, 3, {"success_rate": 0.5}, Artifact.POLICY, **record)
    bench.client.delete_registered_model_alias(first.name, Alias.CANDIDATE)  # the kill came before it was set
    run = replace(killed, continued=continued)
    version = candidates.submit_candidate(run, folder, TASK, 3, {"success_rate": 0.5}, Artifact.POLICY, **record)
    found = bench.client.search_model_versions(f"name = '{TASK}-expert'")
    models_made = bench.client.search_logged_models([bench.experiment])
    assert (len(found), len(models_made)) == (
        (1, 1) if continued else (2, 2)
    )  # a new attempt of its own is a new version
    assert int(version.version) == len(found)
    assert bench.client.get_model_version_by_alias(version.name, Alias.CANDIDATE).version == version.version
    assert len(bench.client.get_metric_history(run_id, "success_rate")) == 1


def test_what_a_resumed_training_says_again_is_kept_once(bench, outbox):
    run_id = bench.run("baseline_seed", status=None)
    first = RunOutbox(outbox, run_id)
    for n in range(1, 11):
        first.append(point(float(n), n))
    assert forward(outbox, bench.client) is None  # a repeat is recognised whether delivered or not
    resumed = RunOutbox(outbox, run_id, number=6)  # its checkpoint knew six
    for n in range(7, 13):
        time.sleep(0.001)
        resumed.append(point(float(n), n))
    assert sync().done
    assert points_of(bench, run_id) == [(n, float(n)) for n in range(1, 13)]
    outbox.append(run_id, point(12.0, 12))  # without a number nothing is recognised
    assert sync().done
    assert len(points_of(bench, run_id)) == 13


def test_a_refused_record_is_kept_and_holds_nobody_up(bench, outbox, capsys):
    good, unknown = bench.run("baseline_seed", status=None), "0" * 32
    outbox.append(unknown, point(1.0, 1))
    outbox.append(good, operations.metrics([("bad \n name", 1.0, 1)]))
    outbox.append(good, point(2.0, 2))
    assert ask(["sync"]) == VERDICT_NO
    told = capsys.readouterr().out
    assert "1 records delivered, 0 wait, 2 refused" in told
    assert unknown in told and str(outbox.folder) in told
    assert points_of(bench, good) == [(2, 2.0)]
    assert ask(["sync"]) == VERDICT_NO  # they are tried again, and kept again
    with pytest.raises(BadInput, match="refused 1 records"), forwarding(in_store(bench)) as forwarder:
        child = forwarder.child(in_store(bench), "gone", {})
        bench.client.delete_run(child.run_id)
        child.metrics({"loss": 3.0})


def test_the_next_stage_delivers_what_an_earlier_one_left(bench):
    run_id = bench.run("baseline_seed", status=None)
    deliver_leftovers()  # nothing there: nothing happens
    append_and_die(run_id, 3, go_on=False)
    deliver_leftovers()
    assert points_of(bench, run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_figure_that_the_store_did_not_keep_decides_nothing(bench, monkeypatch):
    run = StageRun(bench.client, bench.run("promote", status=None), bench.experiment, bench.folder)
    run.confirmed_metrics({"gate/success": 0.1 + 0.2, "gate/not_measured": float("nan")})
    monkeypatch.setattr(operations, "perform", lambda *args: None)
    with pytest.raises(BadInput, match=r"the store keeps 0\.30000000000000004 as gate/success, measured was 0\.5"):
        run.confirmed_metrics({"gate/success": 0.5})
    with pytest.raises(BadInput, match="the store keeps None as gate/collision"):
        run.confirmed_metrics({"gate/collision": 0.0})


def test_a_patience_that_is_no_number_is_one_line(bench, monkeypatch):
    monkeypatch.setenv("PIPELINE_PATIENCE_SECONDS", "soon")
    with pytest.raises(BadInput, match="PIPELINE_PATIENCE_SECONDS = 'soon'"), forwarding(in_store(bench)):
        pass


def test_an_outbox_that_cannot_be_used_is_one_line(bench, outbox):
    (bench.folder / "elsewhere").write_text("a file, not a folder")
    with pytest.raises(BadInput, match=r"outbox .*elsewhere cannot be used"):
        Outbox(bench.folder / "elsewhere")
    outbox.close()
    for left in outbox.folder.glob("outbox.db*"):
        left.write_bytes(b"no database at all" * 100)
    with pytest.raises(BadInput, match=r"outbox .* cannot be used: .file is not a database"):
        sync()


def plant(outbox: Outbox, run_id: object, operation: object) -> int:
    """A record that no append wrote; anything but text is written as JSON. Its id."""
    text = operation if isinstance(operation, str | bytes) else json.dumps(operation)
    return outbox._database.execute("INSERT INTO records (run_id, operation) VALUES (?, ?)", (run_id, text)).lastrowid


def test_records_that_are_no_operations_are_refused_one_by_one_and_hold_nobody_up(bench, outbox, capsys):
    run_id = bench.run("baseline", status=None)
    damaged = [
        "{", "[]", "5", '"metrics"', "{}", '{"do": []}', '{"do": "explode"}', '{"do": "metrics"}', "[" * 100_000,
        {"do": "metrics", "points": [["loss", "high", 1, 1]], "model_id": None},
        {"do": "metrics", "points": [["loss", 1.0, 1]], "model_id": None},
        {"do": "metrics", "points": [], "model_id": None, "local": "x"}, {"do": "tags", "tags": ["a"]},
        {"do": "text", "path": "a.txt"}, {"do": "close", "status": "DONE", "time": 1}, {"do": "files", "folder": None},
        {"do": "policy", "local": "x"}, b"\xff\xfe",
    ]  # fmt: skip
    for operation in damaged:
        plant(outbox, run_id, operation)
    plant(outbox, b"\xff", point(1.0, 1))
    outbox.append(run_id, point(2.0, 2))
    assert ask(["sync"]) == VERDICT_NO
    told = capsys.readouterr()
    assert f"1 records delivered, 0 wait, {len(damaged) + 1} refused" in told.out
    assert "Traceback" not in told.out + told.err
    assert points_of(bench, run_id) == [(2, 2.0)]


def test_a_record_reads_and_removes_only_what_the_outbox_put_there_for_it(bench, outbox, tmp_path):
    """Whatever it says of its file, a folder elsewhere is neither sent nor touched; nor is another record's file."""
    run_id = bench.run("baseline", status=None)
    victim, beside = tmp_path / "thesis", outbox.folder / "files" / "beside"
    for folder in (victim, beside):
        folder.mkdir()
        (folder / "chapter.txt").write_text("years of work")
    (tmp_path / "note.txt").write_text("a note")
    outbox.append(run_id, operations.files(tmp_path / "note.txt", None))
    (waiting,) = outbox.next(9)
    kept = Path(waiting.operation["local"])
    outbox.refuse(waiting.id, "kept, to be attacked")
    names = [victim / "chapter.txt", victim, beside / "chapter.txt", "../beside/chapter.txt", kept, "../../../thesis",
             f"../{waiting.id}/note.txt", "..", ".", "", "a\0b", "x" * 5_000, 5, None]  # fmt: skip
    for local in names:
        named = local if local is None or isinstance(local, int) else str(local)
        plant(outbox, run_id, {"do": "files", "local": named, "folder": None})
        plant(outbox, run_id, {**point(1.0, 1), "local": named})
        policy = {"do": "policy", "name": "best", "step": 1, "points": [], "artifact": None, "experiment_id": "0"}
        plant(outbox, run_id, {**policy, "local": named})
    places = {
        "the file a link": lambda place: (place.mkdir(), (place / "a.txt").symlink_to(victim / "chapter.txt")),
        "a folder a link": lambda place: (place.mkdir(), (place / "a.txt").symlink_to(victim)),
        "its place a link": lambda place: place.symlink_to(victim),
        "a link inside": lambda place: ((place / "a.txt").mkdir(parents=True), (place / "a.txt/b").symlink_to(victim)),
        "a pipe": lambda place: (place.mkdir(), os.mkfifo(place / "a.txt")),
    }
    for make in places.values():
        make(outbox.folder / "files" / str(plant(outbox, run_id, {"do": "files", "local": "a.txt", "folder": None})))
    assert forward(outbox, bench.client) is None
    assert len(outbox.refusals()) == 1 + 3 * len(names) + len(places)
    assert bench.client.list_artifacts(run_id) == []
    for folder in (victim, beside):
        assert (folder / "chapter.txt").read_text() == "years of work"
    assert kept.read_text() == "a note"
    outbox.try_refused_again()
    forward(outbox, bench.client)
    assert [item.path for item in bench.client.list_artifacts(run_id)] == ["note.txt"]
    assert not kept.parent.exists() and victim.exists()


def test_an_outbox_whose_files_are_a_link_elsewhere_is_not_used(bench, tmp_path):
    (tmp_path / "victim" / "1").mkdir(parents=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "files").symlink_to(tmp_path / "victim")
    with pytest.raises(BadInput, match=r"outbox .*linked cannot be used: .*is a link"):
        Outbox(tmp_path / "linked")


@pytest.mark.parametrize("path", ["../../outside", "/tmp/outside", "a/../../outside"])
def test_a_record_writes_nothing_outside_its_runs_artifacts(bench, outbox, tmp_path, path):
    run_id = bench.run("baseline", status=None)
    (tmp_path / "a.txt").write_text("a")
    plant(outbox, run_id, {"do": "text", "content": "x", "path": f"{path}/a.txt"})
    outbox.append(run_id, operations.files(tmp_path / "a.txt", path))
    outbox.append(run_id, models.policy_operation(in_store(bench), bench.policy_folder(), "b", 1, {}, path))
    outbox.append(run_id, point(1.0, 1))
    assert forward(outbox, bench.client) is None  # they hold nobody up
    assert len(outbox.refusals()) == 3
    assert points_of(bench, run_id) == [(1, 1.0)]
    assert not list(tmp_path.rglob("outside")) and not Path("/tmp/outside").exists()


def test_files_that_a_kill_left_of_no_record_go_when_the_next_process_delivers(bench, outbox, tmp_path):
    run_id = bench.run("baseline", status=None)
    (tmp_path / "note.txt").write_text("a note")
    outbox.append("0" * 32, operations.files(tmp_path / "note.txt", None))  # refused, and kept
    (orphan := outbox.folder / "files" / "77").mkdir()
    (orphan / "note.txt").write_text("its record was delivered")
    assert not sync().done
    assert not orphan.exists()
    (kept,) = (outbox.folder / "files").iterdir()
    outbox.append(run_id, point(1.0, 1))
    deliver_leftovers()
    assert (kept / "note.txt").read_text() == "a note"


def test_an_operation_that_cannot_be_kept_leaves_nothing_half_appended(bench, outbox):
    run_id = bench.run("baseline", status=None)
    with pytest.raises(ValueError, match="Out of range float"):
        outbox.append(run_id, {"do": "metrics", "points": [float("nan")]}, 1)
    assert (outbox.waiting(), outbox.last_number(run_id)) == (0, 0)
    outbox._database.execute("DROP TABLE numbered")
    with pytest.raises(BadInput, match="no such table"):
        outbox.append(run_id, point(1.0, 1), 1)


def test_files_and_folders_are_copied_when_they_are_appended(bench, outbox, tmp_path):
    run_id = bench.run("baseline", status=None)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file.txt", tmp_path / "folder" / "inside.txt"):
        path.write_text("as it was")
    outbox.append(run_id, operations.files(tmp_path / "file.txt", None))
    outbox.append(run_id, operations.files(tmp_path / "folder", "place"))
    (tmp_path / "file.txt").write_text("as it is now")
    copies = [Path(record.operation["local"]) for record in outbox.next(10)]
    assert [copy.name for copy in copies] == ["file.txt", "folder"]
    assert copies[0].read_text() == (copies[1] / "inside.txt").read_text() == "as it was"
    outbox.delivered(outbox.next(1))
    assert not copies[0].exists() and copies[1].exists()
    with pytest.raises(BadInput, match=r"cannot be used: .*No such file"):
        outbox.append(run_id, operations.files(tmp_path / "gone", None))


def test_what_waits_and_what_is_refused_is_told_by_run(bench, outbox):
    for run_id, number in (("a", 1), ("a", 2), ("b", 1)):
        outbox.append(run_id, point(float(number), number), number)
    assert (outbox.waiting(), outbox.waiting(["a"]), outbox.waiting([])) == (3, 2, 0)
    first = outbox.next(1)[0]
    assert not first.tried
    outbox.trying(first)
    assert outbox.next(1)[0].tried
    outbox.refuse(first.id, "no such run")
    assert (outbox.waiting(), outbox.waiting(["a"])) == (2, 1)
    assert (outbox.refusals(), outbox.refusals(["a"]), outbox.refusals(["b"])) == (["no such run"], ["no such run"], [])
    outbox.try_refused_again()
    assert outbox.waiting() == 3 and outbox.refusals() == []
    assert not outbox.append("a", point(2.0, 2), 2) and outbox.append("a", point(3.0, 3), 3)
    outbox.append("a", operations.close("FINISHED"))
    outbox.delivered(outbox.next(100))
    assert (outbox.waiting(), outbox.last_number("a"), outbox.last_number("b")) == (0, 0, 1)


def in_store(bench: Bench) -> StageRun:
    return StageRun(bench.client, bench.run("baseline", status=None), bench.experiment, bench.folder)


def test_points_of_one_step_that_are_equal_are_two_points_however_fast_they_came(store):
    client = connect()
    run_id = client.create_run("0").info.run_id
    for _ in range(50):
        operations.perform(client, run_id, operations.metrics([("train/std", 1.0, 512)]))
    assert len(client.get_metric_history(run_id, "train/std")) == 50
    several = [operations.metrics([("a", 1.0, 0)])["points"][0][3] for _ in range(1000)]
    assert several == sorted(set(several))

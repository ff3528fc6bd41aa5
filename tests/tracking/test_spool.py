"""The spool: nothing that was appended is lost, nothing is delivered twice, and what is refused is kept."""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from real_things import TASK, Bench
from requests import HTTPError, Response

from pipeline.cli import DONE, VERDICT_NO, ask
from pipeline.errors import BadInput
from pipeline.names import Alias, Artifact, Gate, Tag, VersionTag
from pipeline.policies import policy_digest
from pipeline.tracking import forwarder, models, operations
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.operations import Batch, Close, Files, LoggedPolicy, Operation, Text, measured
from pipeline.tracking.spool import FILE, Spool, deliver, deliver_leftovers, sync
from pipeline.tracking.stage_run import StageRun
from pipeline.tracking.store import connect, refuses


@pytest.fixture
def spool(bench) -> Spool:
    spool = Spool()
    yield spool
    spool.close()


def point(value: float, step: int) -> Operation:
    return Batch(points=measured([("loss", value, step)]))


def policy(bench: Bench, folder: Path, artifact: str | None = Artifact.POLICY) -> Operation:
    return LoggedPolicy(
        local=str(folder), name="best", step=3, points=measured([("success_rate", 0.5, 3)]), artifact=artifact,
        experiment_id=bench.experiment,
    )  # fmt: skip


def in_store(bench: Bench, **given) -> StageRun:
    return StageRun(bench.client, bench.run("baseline", status=None), bench.experiment, bench.folder, **given)


def points_of(bench: Bench, run_id: str) -> list[tuple[int, float]]:
    """Every row of the store, repeated ones too."""
    return sorted((p.step, p.value) for p in bench.client.get_metric_history(run_id, "loss"))


def append_and_die(run_id: str, count: int, go_on: bool) -> None:
    """Another process appends points, each acknowledged, and is killed by SIGKILL: at rest, or while it goes on."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        spool = Spool()
        for number in itertools.count(1):
            if number > count and not go_on:
                time.sleep(600)
            spool.append(run_id, point(float(number), number))
            os.write(writing, b".")
    os.close(writing)
    with os.fdopen(reading, "rb") as acknowledged:
        assert acknowledged.read(count) == b"." * count
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


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
    folder = bench.folder / "mlflow.db.spool"
    shutil.copytree(folder, bench.folder / "whole")
    log = folder / "spool.db-wal"
    with log.open("r+b") as handle:
        handle.truncate(log.stat().st_size - 100)
    assert Spool(bench.folder / "whole").waiting() == 20  # it was there: the tear cost it, nothing else
    assert sync()[0]
    assert points_of(bench, run_id) == [(n, float(n)) for n in range(1, 20)]


def test_points_delivered_twice_are_stored_once_because_they_keep_their_time(bench):
    run_id = bench.run("baseline_seed", status=None)
    operation = point(1.0, 7)
    for _ in range(2):
        operation.perform(bench.client, run_id)
    assert points_of(bench, run_id) == [(7, 1.0)]
    time.sleep(0.002)
    point(1.0, 7).perform(bench.client, run_id)  # measured again: another time, another point
    assert points_of(bench, run_id) == [(7, 1.0), (7, 1.0)]


def test_delivery_that_broke_off_after_the_store_took_it_is_repeated_without_effect(bench, spool, monkeypatch):
    run_id = bench.run("baseline_seed", status=None)
    run = StageRun(bench.client, run_id, bench.experiment, bench.folder, spool)
    folder = bench.policy_folder()
    run.metric_series([("loss", float(n), n) for n in range(1_500)])
    run.metric_series([("loss", 0.5, 5_000)])
    run.tag({"colour": "blue"})
    run.text("told", "note.txt")
    assert run.policy(folder, "best", 3, {"success_rate": 0.5}, Artifact.POLICY) is None
    run.close("FINISHED")

    class Killed(BaseException):
        """As final as SIGKILL for the delivery."""

    def killed(records):
        raise Killed

    appended = spool.waiting()
    monkeypatch.setattr(spool, "delivered", killed)
    for _ in range(appended):  # every record in turn is the one whose acknowledgement is lost
        with pytest.raises(Killed):
            deliver(spool, bench.client)
        first = spool.next(1)
        Spool.delivered(spool, first)
    assert spool.waiting() == 0
    stored = bench.client.get_run(run_id)
    assert stored.info.status == "FINISHED"
    assert points_of(bench, run_id) == [*((n, float(n)) for n in range(1_500)), (5_000, 0.5)]
    assert stored.data.tags["colour"] == "blue"
    (model,) = bench.client.search_logged_models([bench.experiment])
    assert [output.model_id for output in stored.outputs.model_outputs] == [model.model_id]
    assert [metric.value for metric in model.metrics] == [0.5]
    assert {item.path for item in bench.client.list_artifacts(run_id)} == {"note.txt", Artifact.POLICY}


def test_a_policy_whose_delivery_broke_off_anywhere_becomes_one_model(bench, spool, monkeypatch):
    """Every call to the store fails once after it was done; without the search for what was begun there are several."""
    calls = ("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs", "log_artifacts")
    run_id = bench.run("baseline_seed", status=None)
    operation = policy(bench, bench.policy_folder())
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
    spool.append(run_id, operation)
    attempts = 1
    while deliver(spool, bench.client) is not None:
        attempts += 1
    assert attempts == len(calls) + 1
    (model,) = bench.client.search_logged_models([bench.experiment])
    assert model.status == "READY"
    assert [output.model_id for output in bench.client.get_run(run_id).outputs.model_outputs] == [model.model_id]
    operation.perform(bench.client, run_id, again=False)
    assert len(bench.client.search_logged_models([bench.experiment])) == 2


def test_a_candidate_that_waited_is_registered_once_as_it_was(bench, spool, monkeypatch):
    run_id = bench.run("train_expert", status=None)
    run = StageRun(bench.client, run_id, bench.experiment, bench.folder, spool)
    folder = bench.policy_folder()
    digest = policy_digest(folder)
    record = {"task": TASK, "digest": digest, "promotable": True, "description": "made for a test"}
    assert run.policy(folder, "candidate", 3, {}, Artifact.POLICY, **record) is None
    shutil.rmtree(folder)  # the stage's temporary folder is gone when the store comes back
    real = bench.client.set_tag
    spool_was_told: list[bool] = []

    def lost_at_the_end(*tag):
        real(*tag)
        if not spool_was_told:
            spool_was_told.append(True)
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(bench.client, "set_tag", lost_at_the_end)
    assert deliver(spool, bench.client) is not None
    assert deliver(spool, bench.client) is None
    (version,) = bench.client.search_model_versions(f"name = '{TASK}-expert'")
    assert version.tags[VersionTag.GATE] == Gate.PENDING
    assert models.fetch_version(version).digest == digest
    assert bench.client.get_run(run_id).data.tags["output.expert"] == f"models:/{TASK}-expert/1"


@pytest.mark.parametrize("continued", [True, False])
def test_a_stage_that_goes_on_after_it_had_registered_registers_no_second_version(bench, continued):
    run_id, folder = bench.run("train_expert", status=None), bench.policy_folder()
    record = {"task": TASK, "digest": policy_digest(folder), "promotable": True, "description": "made for a test"}
    killed = StageRun(bench.client, run_id, bench.experiment, bench.folder)
    killed.policy(folder, "candidate", 3, {"success_rate": 0.5}, Artifact.POLICY, **record)
    bench.client.delete_registered_model_alias(f"{TASK}-expert", Alias.CANDIDATE)  # the kill came before it was set
    run = replace(killed, continued=continued)
    reference = run.policy(folder, "candidate", 3, {"success_rate": 0.5}, Artifact.POLICY, **record)
    found = bench.client.search_model_versions(f"name = '{TASK}-expert'")
    models_made = bench.client.search_logged_models([bench.experiment])
    assert (len(found), len(models_made)) == (
        (1, 1) if continued else (2, 2)
    )  # a new attempt of its own is a new version
    assert reference == f"models:/{TASK}-expert/{len(found)}"
    holder = bench.client.get_model_version_by_alias(f"{TASK}-expert", Alias.CANDIDATE)
    assert int(holder.version) == len(found)
    assert len(bench.client.get_metric_history(run_id, "success_rate")) == 1


def test_what_a_resumed_training_says_again_is_kept_once(bench, monkeypatch):
    """It says again all that it had said, whether that was delivered or not, and goes on."""
    monkeypatch.setattr(forwarder, "FAREWELL_SECONDS", 0.0)
    steps = [1, 2, 2, 3, 4, 5]  # two points of one step are two

    def trained(until: int, **stage) -> str:
        parent.continued = stage.get("continued", False)
        with contextlib.suppress(KeyboardInterrupt), Forwarder(parent) as forwarding:
            run = forwarding.child("seed", {Tag.COMMAND: "train"})
            for step in steps[:until]:
                run.metrics({"loss": 0.5}, step)
            run.metrics({"final": 1.0})
            if until == len(steps):
                assert forwarding.settle(60.0)
            else:
                forwarding._stop.set()
                raise KeyboardInterrupt  # some of it waits in the spool
        return run.run_id

    parent = in_store(bench)
    killed = trained(4)
    assert trained(len(steps), continued=True) == killed
    assert [step for step, _ in points_of(bench, killed)] == steps
    assert len(bench.client.get_metric_history(killed, "final")) == 1
    assert trained(len(steps), continued=False) != killed


def test_two_arms_that_are_trained_alike_go_on_each_with_its_own_run(bench, monkeypatch):
    monkeypatch.setattr(forwarder, "FAREWELL_SECONDS", 0.0)
    parent = in_store(bench)

    def begun() -> list[str]:
        made = []
        with contextlib.suppress(KeyboardInterrupt), Forwarder(parent) as forwarding:
            made = [forwarding.child(arm, {Tag.COMMAND: "train", Tag.ARM: arm}).run_id for arm in ("a", "b")]
            raise KeyboardInterrupt
        return made

    first = begun()
    parent.continued = True
    assert begun() == first and len(set(first)) == 2


def test_a_refused_record_is_kept_and_holds_nobody_up(bench, spool, capsys):
    good, unknown = bench.run("baseline_seed", status=None), "0" * 32
    spool.append(unknown, point(1.0, 1))
    spool.append(good, Batch(points=measured([("bad \n name", 1.0, 1)])))
    spool.append(good, point(2.0, 2))
    assert ask(["sync"]) == VERDICT_NO
    told = capsys.readouterr().out
    assert "1 records delivered, 0 wait, 2 refused" in told
    assert unknown in told and str(spool.folder) in told
    assert points_of(bench, good) == [(2, 2.0)]
    assert ask(["sync"]) == VERDICT_NO  # they are tried again, and kept again
    with pytest.raises(BadInput, match="refused 1 records"), Forwarder(in_store(bench)) as forwarding:
        child = forwarding.child("gone", {})
        bench.client.delete_run(child.run_id)
        child.metrics({"loss": 3.0})


class TooLarge(BaseHTTPRequestHandler):
    """A proxy that lets no artifact through."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(413)

    def log_message(self, *about) -> None:
        pass


def test_an_artifact_that_a_proxy_refuses_holds_nobody_up(bench, spool):
    with ThreadingHTTPServer(("127.0.0.1", 0), TooLarge) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        place = bench.client.create_experiment("behind a proxy", f"http://127.0.0.1:{server.server_port}/artifacts")
        refused, other = bench.client.create_run(place).info.run_id, bench.run("baseline_seed", status=None)
        spool.append(refused, Text(content="long", path="a.txt"))
        spool.append(other, point(1.0, 1))
        assert deliver(spool, bench.client) is None
        server.shutdown()
    assert points_of(bench, other) == [(1, 1.0)]
    (reason,) = spool.refusals()
    assert f"text of run {refused}: 413 Client Error" in reason


@pytest.mark.parametrize(
    ("status", "refused"),
    [(400, True), (404, True), (413, True), *((passing, False) for passing in (401, 403, 408, 429, 500, 503))],
)
def test_an_answer_that_a_login_or_time_may_change_is_no_refusal(status, refused):
    response = Response()
    response.status_code, response._content = status, b""
    with pytest.raises(HTTPError) as caught:
        response.raise_for_status()
    assert refuses(caught.value) is refused


def test_what_stands_behind_another_runs_records_waits_as_long_as_the_store_takes_those(bench, spool, monkeypatch):
    """Two seconds of patience, and another process that delivers eight records in four."""
    ours, theirs = in_store(bench), bench.run("baseline")
    for step in range(8):
        spool.append(theirs, point(1.0, step))
    monkeypatch.setattr(forwarder, "deliver", lambda spool, client: None)  # another process has the turn

    def deliver_slowly() -> None:
        with contextlib.closing(Spool()) as other:
            while records := other.next(1):
                time.sleep(0.5)
                other.delivered(records)

    with Forwarder(ours) as own:
        own.child("seed 1", {Tag.STAGE: "baseline_seed"}).tag({"note": "x"})
        assert spool.waiting() > 8
        other = threading.Thread(target=deliver_slowly)
        other.start()
        assert own.settle(2.0)
        other.join()


def test_the_next_stage_delivers_what_an_earlier_one_left(bench):
    run_id = bench.run("baseline_seed", status=None)
    deliver_leftovers()  # nothing there: nothing happens
    append_and_die(run_id, 3, go_on=False)
    deliver_leftovers()
    assert points_of(bench, run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_figure_that_the_store_did_not_keep_decides_nothing(bench, monkeypatch):
    run = StageRun(bench.client, bench.run("promote", status=None), bench.experiment, bench.folder)
    run.confirmed_metrics({"gate/success": 0.1 + 0.2, "gate/not_measured": float("nan")})
    monkeypatch.setattr(Batch, "perform", lambda *args: None)
    with pytest.raises(BadInput, match=r"the store keeps 0\.30000000000000004 as gate/success, measured was 0\.5"):
        run.confirmed_metrics({"gate/success": 0.5})
    with pytest.raises(BadInput, match="the store keeps None as gate/collision"):
        run.confirmed_metrics({"gate/collision": 0.0})


def test_a_patience_that_is_no_number_is_one_line(bench, monkeypatch):
    monkeypatch.setenv("PIPELINE_PATIENCE_SECONDS", "soon")
    with pytest.raises(BadInput, match="PIPELINE_PATIENCE_SECONDS = 'soon'"), Forwarder(in_store(bench)):
        pass


def test_a_spool_that_cannot_be_used_is_one_line(bench, spool):
    (bench.folder / "elsewhere").write_text("a file, not a folder")
    with pytest.raises(BadInput, match=r"spool .*elsewhere cannot be used"):
        Spool(bench.folder / "elsewhere")
    spool.close()
    for left in spool.folder.glob(f"{FILE}*"):
        left.write_bytes(b"no database at all" * 100)
    with pytest.raises(BadInput, match=r"spool .* cannot be used: .file is not a database"):
        sync()


def plant(spool: Spool, run_id: object, operation: object, files: object = None) -> int:
    """A record that no append wrote; anything but text is written as JSON. Its id."""
    text = operation if isinstance(operation, str | bytes) else json.dumps(operation)
    row = (run_id, text, files)
    return spool._database.execute("INSERT INTO records (run_id, operation, files) VALUES (?, ?, ?)", row).lastrowid


def test_records_that_are_no_operations_are_refused_one_by_one_and_hold_nobody_up(bench, spool, capsys):
    run_id = bench.run("baseline", status=None)
    damaged = [
        "{", "[]", "5", '"metrics"', "{}", '{"do": []}', '{"do": "explode"}', '{"do": "text"}', "[" * 100_000,
        {"do": "metrics", "points": [["loss", "high", 1, 1]], "model_id": None},
        {"do": "metrics", "points": [["loss", 1.0, 1]], "model_id": None},
        {"do": "metrics", "points": [], "model_id": None, "local": "x"}, {"do": "tags", "tags": ["a"]},
        {"do": "text", "path": "a.txt"}, {"do": "close", "status": "DONE", "time": 1}, {"do": "files", "folder": None},
        {"do": "policy", "local": "x"}, b"\xff\xfe",
    ]  # fmt: skip
    for operation in damaged:
        plant(spool, run_id, operation)
    plant(spool, b"\xff", operations.written(point(1.0, 1)))
    spool.append(run_id, point(2.0, 2))
    assert ask(["sync"]) == VERDICT_NO
    told = capsys.readouterr()
    assert f"1 records delivered, 0 wait, {len(damaged) + 1} refused" in told.out
    assert "Traceback" not in told.out + told.err
    assert points_of(bench, run_id) == [(2, 2.0)]


def test_what_an_earlier_version_left_is_delivered(bench, spool):
    """It kept points, parameters and tags apart, and had a kind of its own for a candidate."""
    run_id, folder = bench.run("train_expert", status=None), bench.policy_folder()
    plant(spool, run_id, {"do": "metrics", "points": [["loss", 1.0, 1, 1]], "model_id": None})
    plant(spool, run_id, {"do": "params", "params": {"a": "1"}})
    plant(spool, run_id, {"do": "tags", "tags": {"colour": "blue"}})
    spool.append(run_id, policy(bench, folder))
    ((id, written),) = spool._database.execute("SELECT max(id), operation FROM records").fetchall()
    old = {key: value for key, value in json.loads(written).items() if value is not None}
    old |= {"do": "candidate", "task": TASK, "digest": policy_digest(folder), "promotable": True, "description": "old"}
    spool._database.execute("UPDATE records SET operation = ? WHERE id = ?", (json.dumps(old), id))
    assert deliver(spool, bench.client) is None
    assert spool.refusals() == [] and spool.waiting() == 0
    data = bench.client.get_run(run_id).data
    assert (data.metrics["loss"], data.params["a"], data.tags["colour"]) == (1.0, "1", "blue")
    assert bench.client.get_model_version(f"{TASK}-expert", "1").description == "old"


def archive(**files: str) -> bytes:
    """What `append` keeps of a folder; a name `link` becomes a symbolic link."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as zipped:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o120777 if name.endswith("link") else 0o100644) << 16
            zipped.writestr(entry, text)
    return content.getvalue()


def test_a_record_reads_only_what_was_kept_with_it(bench, spool, tmp_path):
    """Whatever it says of its file, a folder elsewhere is neither sent nor touched."""
    run_id = bench.run("baseline", status=None)
    victim = tmp_path / "thesis"
    victim.mkdir()
    (victim / "chapter.txt").write_text("years of work")
    damaged = [None, b"", b"no archive", 5, archive(), archive(a="1", b="2"), archive(a="1" * 99)[:-30]]
    for files in damaged:
        plant(spool, run_id, {"do": "files", "local": str(victim), "folder": None}, files)
        about = {"name": "best", "step": 1, "points": [], "artifact": None, "experiment_id": "0"}
        plant(spool, run_id, {"do": "policy", "local": str(victim / "chapter.txt"), **about}, files)
    for name in (str(victim), "../../../thesis", "..", "a\0b", "x" * 5_000, 5, None):
        plant(spool, run_id, {**json.loads(operations.written(point(1.0, 1))), "local": name})
    outside = {"../../outside.txt": "x", f"{tmp_path}/outside.txt": "x"}
    for name, text in outside.items():
        plant(spool, run_id, {"do": "files", "local": "kept", "folder": None}, archive(**{name: text}))
    plant(spool, run_id, {"do": "files", "local": "kept", "folder": "f"}, archive(link=str(victim / "chapter.txt")))
    assert deliver(spool, bench.client) is None
    assert len(spool.refusals()) == 2 * len(damaged) + 7
    stored = [path for path in bench.folder.rglob("artifacts/**/*") if path.is_file()]
    assert "years of work" not in {path.read_text() for path in stored}
    assert (victim / "chapter.txt").read_text() == "years of work"
    assert not list(tmp_path.glob("outside.txt")) and not Path("/outside.txt").exists()


@pytest.mark.parametrize("path", ["../../outside", "/tmp/outside", "a/../../outside"])
def test_a_record_writes_nothing_outside_its_runs_artifacts(bench, spool, tmp_path, path):
    run_id = bench.run("baseline", status=None)
    (tmp_path / "a.txt").write_text("a")
    plant(spool, run_id, {"do": "text", "content": "x", "path": f"{path}/a.txt"})
    plant(spool, run_id, {"do": "files", "local": "a.txt", "folder": path}, archive(a="x"))
    with pytest.raises(ValueError, match="no path inside the artifacts of a run"):
        Files(local=str(tmp_path / "a.txt"), folder=path)
    spool.append(run_id, point(1.0, 1))
    assert deliver(spool, bench.client) is None  # they hold nobody up
    assert len(spool.refusals()) == 2
    assert points_of(bench, run_id) == [(1, 1.0)]
    assert not list(tmp_path.rglob("outside")) and not Path("/tmp/outside").exists()


def test_an_operation_that_cannot_be_kept_leaves_nothing_half_appended(bench, spool):
    run_id = bench.run("baseline", status=None)
    with pytest.raises(ValueError, match="finite number"):
        Batch(points=(("loss", float("nan"), 1, 1),))
    spool._database.execute("DROP TABLE records")
    with pytest.raises(BadInput, match="no such table"):
        spool.append(run_id, point(1.0, 1))


def test_files_and_folders_are_copied_when_they_are_appended(bench, spool, tmp_path):
    run_id = bench.run("baseline", status=None)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file.txt", tmp_path / "folder" / "inside.txt"):
        path.write_text("as it was")
    os.utime(tmp_path / "file.txt", (0, 0))
    spool.append(run_id, Files(local=str(tmp_path / "file.txt")))
    spool.append(run_id, Files(local=str(tmp_path / "folder"), folder="place"))
    (tmp_path / "file.txt").write_text("as it is now")
    (tmp_path / "folder" / "inside.txt").unlink()
    assert deliver(spool, bench.client) is None
    stored = {path.name: path.read_text() for path in bench.folder.rglob("artifacts/**/*.txt")}
    assert stored == {"file.txt": "as it was", "inside.txt": "as it was"}
    assert [item.path for item in bench.client.list_artifacts(run_id, "place")] == ["place/inside.txt"]
    with pytest.raises(BadInput, match=r"cannot be used: .*No such file"):
        spool.append(run_id, Files(local=str(tmp_path / "gone")))


def test_what_waits_and_what_is_refused_is_told_by_run(bench, spool):
    for run_id, step in (("a", 1), ("a", 2), ("b", 1)):
        spool.append(run_id, point(1.0, step))
    assert (spool.waiting(), spool.waiting(["a"]), spool.waiting([])) == (3, 2, 0)
    spool.refuse(spool.next(1)[0].id, "no such run")
    assert (spool.waiting(), spool.waiting(["a"])) == (2, 1)
    assert (spool.refusals(), spool.refusals(["a"]), spool.refusals(["b"])) == (["no such run"], ["no such run"], [])
    spool.try_refused_again()
    assert spool.waiting() == 3 and spool.refusals() == []
    spool.append("a", Close(status="FINISHED", time=1))
    spool.delivered(spool.next(100))
    assert spool.waiting() == 0


def test_points_of_one_step_that_are_equal_are_two_points_however_fast_they_came(store):
    client = connect()
    run_id = client.create_run("0").info.run_id
    for _ in range(50):
        Batch(points=measured([("train/std", 1.0, 512)])).perform(client, run_id)
    assert len(client.get_metric_history(run_id, "train/std")) == 50
    several = [measured([("a", 1.0, 0)])[0][3] for _ in range(1000)]
    assert several == sorted(set(several))

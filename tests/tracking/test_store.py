"""The store behind a URI, and what lies on this machine on its behalf: found where it should be, and nowhere else."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE

from pipeline.cli import DONE, ask, stage_main
from pipeline.errors import BadInput
from pipeline.files import scratch, sqlite_file
from pipeline.names import Tag
from pipeline.sweep.study import storage
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.stage_run import open_run
from pipeline.tracking.store import (
    connect,
    exclusive,
    experiment_id,
    how_to_look,
    local_folder,
    permitted,
    unanswered,
)

ODD = "a b ü #1 100%"


@pytest.fixture
def odd_folder(tmp_path, monkeypatch, empty_store) -> Path:
    """The working folder, with a space, an umlaut and what URLs quote in its name; a prepared store in it."""
    folder = tmp_path / ODD
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    return folder


def uris(folder: Path) -> list[str | None]:
    """Ways to name `mlflow.db` in a folder which is the working folder; None is MLflow's own default."""
    whole = f"sqlite:///{quote(str(folder / 'mlflow.db'))}"
    return [None, "sqlite:///mlflow.db", whole, f"{whole}?timeout=60", "sqlite:///mlflow.db?timeout=60",
            "sqlite+pysqlite:///mlflow.db", "sqlite:///./mlflow.db?check_same_thread=false"]  # fmt: skip


@pytest.mark.parametrize("way", range(7))
def test_a_sqlite_store_is_found_where_sqlalchemy_finds_it(odd_folder, monkeypatch, way, capsys):
    uri = uris(odd_folder)[way]
    if uri is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with open_run("evaluate") as run:
        run.tag({Tag.TASK: "walk"})
        run.text("hello", "deep/note.txt")
    assert read_text_artifact(run.client, run.run_id, "deep/note.txt") == "hello"
    assert Path(run.artifact_place("deep/note.txt")).read_text() == "hello"
    assert sqlite_file(mlflow.get_tracking_uri()) == odd_folder / "mlflow.db"
    assert local_folder("spool") == odd_folder / "mlflow.db.spool"
    assert ask(["runs"]) == DONE
    assert run.run_id in capsys.readouterr().out
    assert {path.name.partition(".")[0] for path in odd_folder.iterdir()} == {"mlflow", "mlartifacts"}
    assert [path.name for path in odd_folder.parent.iterdir()] == [ODD]


@pytest.mark.parametrize("query", ["", "?timeout=60"])
def test_a_store_is_made_where_its_uri_says(tmp_path, monkeypatch, query):
    database = tmp_path / ODD / "new.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{quote(str(database))}{query}")
    assert connect().search_experiments()
    assert {path.name.partition("-")[0] for path in database.parent.iterdir()} == {"new.db", "new.db.create.lock"}
    assert [path.name for path in tmp_path.iterdir()] == [ODD]


@pytest.mark.parametrize("query", ["", "?timeout=60"])
def test_a_study_lies_where_its_url_says(tmp_path, query):
    database = tmp_path / ODD / "sweep.db"
    storage(f"sqlite:///{quote(str(database))}{query}", 60).get_all_studies()
    assert {path.name.partition("-")[0] for path in database.parent.iterdir()} == {"sweep.db"}
    assert [path.name for path in tmp_path.iterdir()] == [ODD]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite://", "name a file"),
        ("sqlite:///", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite:///file:mlflow.db?mode=ro&uri=true", "name a file"),
        ("sqlite:nonsense", "cannot be used"),
        ("sqlite:///mlflow.db?timeout=soon", "cannot be used"),
    ],
)
def test_a_sqlite_uri_without_a_file_of_its_own_is_one_line(tmp_path, monkeypatch, in_repository, capfd, uri, words):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = str(Path("configs/smoke/collect.yaml").resolve())
    monkeypatch.chdir(tmp_path)
    assert stage_main("collect", ["--config", config]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and repr(uri) in line and words in line
    assert ask(["runs"]) == 2
    with pytest.raises(BadInput):
        connect()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("mlflow.db")] == []


def test_a_database_whose_password_has_a_slash_is_looked_for_at_its_host(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg://anna:s3c/ret@127.0.0.1:{port}/runs")
    with pytest.raises(BadInput, match=rf"//anna:\*\*\*@127.0.0.1:{port}/runs' cannot be used: .*refused"):
        connect()


def test_two_users_of_a_machine_take_turns_at_a_server_and_a_link_in_the_way_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:5000")
    before = os.umask(0o022)
    try:
        with exclusive("open"):
            (lock,) = tmp_path.iterdir()
    finally:
        os.umask(before)
    assert lock.stat().st_mode & 0o666 == 0o666
    (thesis := tmp_path / "thesis").write_text("years of work")
    thesis.chmod(0o600)
    lock.unlink()
    lock.symlink_to(thesis)
    with pytest.raises(OSError, match="symbolic"), exclusive("open"):
        pass
    assert (thesis.read_text(), thesis.stat().st_mode & 0o777) == ("years of work", 0o600)


def test_the_command_to_look_at_a_store_can_be_typed(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////a b/mlflow.db")
    typed = "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    assert how_to_look("#/experiments/1") == f"{typed}, then open http://127.0.0.1:5000/#/experiments/1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://lab.example/mlflow/")
    assert how_to_look("#/experiments/1") == "open https://lab.example/mlflow/#/experiments/1"


def test_what_a_server_does_not_let_a_user_do_is_one_line_and_no_outage(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    error = MlflowException("API request to endpoint /runs/create failed with error code 403", PERMISSION_DENIED)
    line = "collect: MLFLOW_TRACKING_USERNAME = 'reader' may not do that"
    with pytest.raises(BadInput, match=line), permitted("collect"):
        raise error
    assert not unanswered(error)
    other = MlflowException("API request to endpoint /runs/create failed with error code 503", TEMPORARILY_UNAVAILABLE)
    with pytest.raises(MlflowException), permitted("collect"):
        raise other
    assert unanswered(other)


def test_the_store_can_be_made_by_a_command_that_does_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/deep/mlflow.db")
    for _ in range(2):
        assert ask(["store"]) == DONE
        assert capsys.readouterr().out == f"store: ready; look at it: {how_to_look('')}\n"
    assert search(connect(), {}, status=None) == []
    assert (tmp_path / "deep" / "mlflow.db").is_file()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "walks")
    assert ask(["store"]) == DONE
    beside = (tmp_path / "deep" / "mlartifacts" / "walks").as_uri()
    assert connect().get_experiment_by_name("walks").artifact_location == beside


def test_an_experiment_opens_in_the_view_for_machine_learning_and_is_described(store):
    client = connect()
    kind, note = "mlflow.experimentKind", "mlflow.note.content"
    made = client.get_experiment(experiment_id(client, "ours")).tags
    assert made[kind] == "custom_model_development" and "`train_expert` → `promote`" in made[note]
    cases = [  # of earlier versions, of `mlflow run`, with a guess of the UI's, with what a person chose
        ({}, (made[kind], made[note])),
        ({kind: "genai_development_inferred"}, (made[kind], made[note])),
        ({kind: "genai_development", note: "mine"}, ("genai_development", "mine")),
    ]
    for number, (tags, expected) in enumerate(cases):
        there = client.create_experiment(f"there-{number}", tags=tags)
        with open_run("evaluate", f"there-{number}"):
            pass
        seen = client.get_experiment(there).tags
        assert (seen[kind], seen[note]) == expected


# --- temporary files -------------------------------------------------------------------------------------------------

STAGE = """
import sys, time
from pipeline.tracking.stage_run import open_run
with open_run("evaluate") as run:
    (run.folder / "large").write_bytes(bytes(100_000))
    print(run.folder, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_what_a_killed_process_left_goes_when_the_next_one_starts_and_what_a_living_one_has_stays(store, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    stages = [
        subprocess.Popen([sys.executable, "-c", STAGE], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    (foreign := temporary / "imitation-pretraining-of-somebody").mkdir()
    (victim := tmp_path / "victim").mkdir()
    (victim / "lock").touch()
    (linked := temporary / "imitation-pretraining-link").symlink_to(victim)
    try:
        living, killed = (Path(stage.stdout.readline().strip()) for stage in stages)
        assert {living.parents[1], killed.parents[1]} == {temporary}
        stages[1].send_signal(signal.SIGKILL)
        stages[1].wait()
        assert killed.is_dir()
        code = "from pipeline.files import scratch; print(scratch())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert (living / "large").is_file()
        assert not killed.parent.exists()
        assert not Path(done.stdout.strip()).exists()  # its own went with it
        assert foreign.is_dir() and linked.is_symlink() and (victim / "lock").is_file()
    finally:
        for stage in stages:
            stage.kill()
            stage.wait()


def test_temporary_files_of_a_process_lie_in_its_own_folder_until_they_are_read(store):
    with open_run("evaluate") as run:
        run.text("hello", "note.txt")
        before = set(scratch().iterdir())
        assert read_text_artifact(run.client, run.run_id, "note.txt") == "hello"
        assert set(scratch().iterdir()) == before
        assert run.folder.parent == scratch()
    assert not run.folder.exists() and scratch().parent == Path(tempfile.gettempdir())

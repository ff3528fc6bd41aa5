"""Several processes at one store at the same moment: creation and promotion."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
from real_things import TASK, Bench, Crowd

from pipeline.errors import BadInput
from pipeline.names import Alias, Gate, VersionTag
from pipeline.tracking import datasets, registry
from pipeline.tracking.store import connect


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A crowd, and the path of a store that does not exist yet."""
    database = tmp_path_factory.mktemp("crowded") / "deep" / "mlflow.db"
    crowd = Crowd(f"sqlite:///{database}")
    yield crowd, database
    crowd.close()


@pytest.mark.slow
def test_a_crowd_creates_one_store_one_experiment_and_loses_nothing(fresh, monkeypatch):
    crowd, database = fresh
    assert not database.exists()
    answers = crowd.at_once([{"do": "create", "experiment": "crowded"}] * Crowd.SIZE)
    assert [set(answer) for answer in answers] == [{"answer"}] * Crowd.SIZE, answers
    (experiment,) = {answer["answer"] for answer in answers}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    client = Bench(database.parent).client
    assert len(client.search_runs([experiment])) == Crowd.SIZE
    assert client.search_runs(["0"]) == []
    location = client.get_experiment(experiment).artifact_location
    assert location == (database.parent / "mlartifacts" / "crowded").as_uri()


@pytest.mark.slow
def test_a_kill_while_the_store_is_made_leaves_none(tmp_path, monkeypatch):
    database, unfinished = tmp_path / "mlflow.db", tmp_path / "mlflow.db.new"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    # however fast the machine: it never comes to the end, where the file gets its name
    script = "import os, time; os.replace = lambda *_: time.sleep(600); from pipeline.tracking.store import connect; "
    process = subprocess.Popen([sys.executable, "-c", f"{script}connect()"])
    until = time.monotonic() + 60
    while not (unfinished.exists() and unfinished.stat().st_size > 100_000):  # a whole one has 900 kB
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not database.exists()
    assert [e.name for e in connect().search_experiments()] == ["Default"]
    assert not list(tmp_path.glob("mlflow.db.new*"))


def test_a_store_that_mlflow_made_only_half_is_named_as_one(tmp_path, empty_store, monkeypatch):
    half = tmp_path / "mlflow.db"
    shutil.copy(empty_store, half)
    with contextlib.closing(sqlite3.connect(half)) as connection, connection:
        connection.execute("DROP TABLE webhook_events")  # the last ones, and the word that everything is there
        connection.execute("DELETE FROM alembic_version")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{half}")
    with pytest.raises(BadInput, match=r"make it first: python -m pipeline store.*it holds no runs: delete the file"):
        connect()


@pytest.mark.slow
def test_simultaneous_promotions_end_with_one_approved_version_and_a_full_record(fresh, monkeypatch):
    crowd, database = fresh
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    bench = Bench(database.parent)
    versions = [bench.candidate(seed=seed) for seed in range(Crowd.SIZE)]
    gates = [bench.run("promote") for _ in versions]
    commands = [
        {"do": "approve", "version": v.version, "run_id": gate} for v, gate in zip(versions, gates, strict=True)
    ]
    answers = crowd.at_once(commands)
    assert [set(answer) for answer in answers] == [{"answer"}] * Crowd.SIZE, answers

    now = {str(v.version): bench.version(v) for v in versions}
    approved = [number for number, v in now.items() if v.tags[VersionTag.GATE] == Gate.APPROVED]
    assert len(approved) == 1
    assert [number for number, v in now.items() if Alias.APPROVED in v.aliases] == approved
    assert all(v.tags[VersionTag.GATE] == Gate.SUPERSEDED for number, v in now.items() if number not in approved)
    # every version keeps the run that approved it
    assert [now[str(v.version)].tags[VersionTag.GATE_RUN_ID] for v in versions] == gates
    # what was replaced by what is one chain through all of them, told alike by both ends and by the answers
    order = sorted(now, key=lambda number: now[number].tags[VersionTag.APPROVED_AT] + number)
    replaced = {number: now[number].tags.get(VersionTag.REPLACED) for number in order}
    assert sorted(old for old in replaced.values() if old) == sorted(set(now) - set(approved))
    assert {number: old for number, old in (answer["answer"] for answer in answers)} == replaced
    assert all(now[old].tags[VersionTag.REPLACED_BY] == new for new, old in replaced.items() if old)
    # exactly one period is open, and the others ended when the next began
    periods = datasets.approvals(bench.client, TASK, {})
    assert len(periods) == Crowd.SIZE
    assert [p.version for p in periods if p.until is None] == approved
    ends = {p.version: p.until for p in periods}
    begins = {p.version: p.since for p in periods}
    assert all(ends[old] == begins[new] for new, old in replaced.items() if old)


@pytest.mark.slow
def test_promotions_and_roll_backs_at_once_leave_one_approved_version(fresh, monkeypatch):
    crowd, database = fresh
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    bench = Bench(database.parent)
    *fresh_ones, earlier, latest = (bench.candidate(seed=10 + i) for i in range(Crowd.SIZE + 1))
    gate = bench.run("promote")
    for version in (earlier, latest):
        registry.approve(bench.client, version, gate, "before the others")
    commands = [{"do": "approve", "version": v.version, "run_id": gate} for v in fresh_ones]
    commands += [{"do": "roll_back", "version": earlier.version, "run_id": gate}]
    answers = crowd.at_once(commands)
    assert not any("crashed" in answer for answer in answers), answers
    versions = registry_versions(bench)
    assert sum(v.tags[VersionTag.GATE] == Gate.APPROVED for v in versions) == 1
    assert sum(Alias.APPROVED in v.aliases for v in versions) == 1
    open_periods = [v for v in versions for _, until in json.loads(v.tags[VersionTag.HISTORY]) if until is None]
    assert len(open_periods) == 1
    assert Alias.APPROVED in open_periods[0].aliases


def registry_versions(bench):
    found = bench.client.search_model_versions(f"name = '{TASK}-expert'")
    return [bench.version(v) for v in found]

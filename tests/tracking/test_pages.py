"""A store larger than one answer of it: nothing that is searched for is missed."""

import contextlib
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from real_things import TASK, Bench

from pipeline import query
from pipeline.names import Tag, lineage_run_tag
from pipeline.tracking import datasets, registry
from pipeline.tracking.datasets import find_dataset_run
from pipeline.tracking.lineage import trace
from pipeline.tracking.runs import PAGE, experiment_ids, search
from pipeline.tracking.stage_run import StageRun
from pipeline.tracking.store import pages

MANY = 1_100  # MLflow answers with 1,000 experiments or runs, and with 100 models


@pytest.fixture
def crowded(bench) -> Bench:
    """More experiments than an answer holds, all newer than the one with the runs."""
    moment = bench.client.get_experiment(bench.experiment).creation_time
    with contextlib.closing(sqlite3.connect(bench.folder / "mlflow.db")) as database, database:
        columns = "experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time, workspace"
        (workspace,) = database.execute("SELECT workspace FROM experiments LIMIT 1").fetchone()
        rows = [(10_000 + n, f"e{n}", "nowhere", "active", moment + n, moment + n, workspace) for n in range(MANY)]
        database.executemany(f"INSERT INTO experiments ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    return bench


def test_an_experiment_beyond_the_first_thousand_is_searched_like_the_others(crowded):
    assert len(crowded.client.search_experiments()) == PAGE
    assert crowded.experiment in experiment_ids(crowded.client)
    run_id = crowded.dataset_run()
    made = crowded.run("pretrain", **{lineage_run_tag("dataset"): run_id})
    assert find_dataset_run(crowded.client, "latest", TASK).info.run_id == run_id
    assert list(query.datasets().run_id) == [run_id]
    assert set(query.runs().run_id) == {run_id, made}
    assert {node.run_id for node in trace(crowded.client, run_id, down=True).nodes} == {run_id, made}


def test_more_runs_than_an_answer_holds_are_all_found_and_no_more_than_were_asked_for(bench):
    first = bench.run("collect")
    with contextlib.closing(sqlite3.connect(bench.folder / "mlflow.db")) as database, database:
        names = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
        others = ", ".join(name for name in names if name not in ("run_uuid", "start_time"))
        for n in range(MANY):
            database.execute(
                f"INSERT INTO runs (run_uuid, start_time, {others}) SELECT ?, start_time + ?, {others} FROM runs "
                "WHERE run_uuid = ?",
                (f"{n:032x}", n + 1, first),
            )
        database.executemany(
            "INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)",
            [
                (f"{n:032x}", key, value)
                for n in range(MANY)
                for key, value in ((Tag.STAGE, "collect"), (Tag.TASK, TASK))
            ],
        )
    wanted = {Tag.STAGE: "collect"}
    found = [run.info.run_id for run in search(bench.client, wanted)]
    assert found == [*(f"{n:032x}" for n in reversed(range(MANY))), first]
    for limit in (1, 999, PAGE, PAGE + 1):
        assert [run.info.run_id for run in search(bench.client, wanted, limit=limit)] == found[:limit]
    assert len(query.runs(stage="collect")) == MANY + 1
    assert len(query.runs(stage="collect", limit=5)) == 5


def test_versions_and_models_are_found_on_every_page(bench, monkeypatch):
    """MLflow's answers made small, since a version takes long to make."""
    versions = [bench.candidate(seed=seed) for seed in range(5)]
    approved = [registry.approve(bench.client, version, bench.run("promote"), "good") for version in versions]
    run_id = bench.run("train_expert", status=None)
    run = StageRun(bench.client, run_id, bench.experiment, bench.folder)
    for n in range(3):
        run.policy(bench.policy_folder(seed=n), "best", n, {})

    def small(search):
        return lambda *args, **options: search(*args, **{**options, "max_results": 2})

    for name in ("search_model_versions", "search_logged_models"):
        monkeypatch.setattr(bench.client, name, small(getattr(bench.client, name)))
    assert len(bench.client.search_model_versions(f"name = '{TASK}-expert'")) == 2
    assert len(list(pages(bench.client.search_model_versions, f"name = '{TASK}-expert'"))) == 5
    assert [period.since for period in datasets.approvals(bench.client, TASK, {})] == [moved.at for moved in approved]
    replace(run, continued=True).policy(bench.policy_folder(seed=0), "best", 0, {})
    assert len(list(pages(bench.client.search_logged_models, [bench.experiment]))) == 3


def test_no_search_of_the_product_reads_one_page_alone(repository):
    """Every search goes through `pages`; what only knocks at a store asks for one result."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((repository / "pipeline").rglob("*.py"))
        for line in Path(path).read_text().splitlines()
        if re.search(r"client(\(.*\))?\.search_", line, re.I) and "pages(" not in line and "max_results=1)" not in line
    ]
    assert found == ['runs.py: client.search_runs, everywhere, " and ".join(conditions),']

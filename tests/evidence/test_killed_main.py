"""A whole `main` killed in the middle and called again ends as the one that was never killed, under the same runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.names import Tag
from pipeline.stages import run_stage
from pipeline.tracking.runs import experiment_ids
from pipeline.tracking.spool import Spool
from pipeline.tracking.store import connect

pytestmark = pytest.mark.slow

DIGESTS = (Tag.POLICY_DIGEST, "policy.weights_digest")


def killed_in_its_second_training_stage(config: Path, repository: Path, checkpoints: Path) -> None:
    """Run `main` in a process of its own, and kill it when the second stage that trains has checkpoints."""
    command = [sys.executable, "-m", "entrypoints.main", "--config", str(config)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        stages: set[str] = set()
        until = time.monotonic() + 600
        while len(stages) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
            stages |= {path.parts[-3] for path in checkpoints.glob("*/*/*.safetensors")}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def trainings(client) -> dict[tuple[str, ...], dict]:
    """What every run of a training came to, and how many points of every metric it has."""
    found = {}
    for run in client.search_runs(experiment_ids(client)):
        tags = run.data.tags
        if tags[Tag.STAGE].endswith("_seed") and tags[Tag.STAGE] != "pretrain_seed":
            points = {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
            what = {"points": points, **{key: tags[key] for key in DIGESTS}}
            assert found.setdefault((tags[Tag.STAGE], tags.get(Tag.ARM), tags[Tag.SEED]), what) is what
    return found


def test_a_killed_main_goes_on_to_the_same_end(finished, tmp_path, repository, monkeypatch, in_repository, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.folder}/mlflow.db")
    reached = trainings(connect())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    checkpoints = tmp_path / "mlflow.db.checkpoints"
    killed_in_its_second_training_stage(finished.main_config, repository, checkpoints)
    client = connect()
    before = {run.info.run_id: run for run in client.search_runs(experiment_ids(client))}
    assert "RUNNING" in {run.info.status for run in before.values()}
    outcome = run_stage("main", str(finished.main_config), {}, {})
    assert outcome.verdict is not None
    shown = capsys.readouterr()
    assert "main: goes on with run" in shown.out
    assert "goes on from its checkpoint" in shown.err
    after = client.search_runs(experiment_ids(client))
    assert {run.info.status for run in after} == {"FINISHED"}
    assert set(before) <= {run.info.run_id for run in after}
    stages = [run.data.tags[Tag.STAGE] for run in after if not run.data.tags[Tag.STAGE].endswith("_seed")]
    assert sorted(stages) == sorted(set(stages))  # one run each
    assert trainings(client) == reached
    assert list(checkpoints.glob("*")) == []
    assert Spool().waiting() == 0

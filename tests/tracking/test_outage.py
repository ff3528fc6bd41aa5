"""A real MLflow server stops in the middle of a training: it neither dies nor waits, and every point arrives once."""

import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from local_server import LocalServer
from mlflow.exceptions import MlflowException

from pipeline.cli import DONE, ask, stage_main
from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train
from pipeline.names import Tag
from pipeline.report.progress import TrainingProgress
from pipeline.tracking import stage_run
from pipeline.tracking.models import find_policy
from pipeline.tracking.seed_runs import seed_runs
from pipeline.tracking.stage_run import open_run
from pipeline.tracking.store import connect, unanswered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_store) -> LocalServer:
    server = LocalServer(tmp_path_factory.mktemp("server"), empty_store)
    server.start()
    yield server
    server.close()


@pytest.fixture
def on_server(server, in_repository, monkeypatch, tmp_path) -> LocalServer:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("PIPELINE_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    return server


def said(events) -> Counter:
    return Counter((name, value, e.timestep) for e in events for name, value in e.metrics.items())


def stored(client, run_id: str, names) -> Counter:
    """Every row of the store, repeated ones too."""
    history = [(name, client.get_metric_history(run_id, name)) for name in names]
    return Counter((name, point.value, point.step) for name, points in history for point in points)


def test_a_server_that_hangs_for_two_seconds_costs_the_training_no_time_and_no_point(on_server, tmp_path):
    config = load(Finetune, "configs/smoke/finetune.yaml")
    job = TrainingJob(load_task(config.task), config.training, 1, str(tmp_path / "out"), final_episodes=5)
    events, waits = [], []
    pause = threading.Timer(2.0, on_server.go_on)
    with open_run("baseline") as run:
        with seed_runs(run, [job], [{Tag.STAGE: "baseline_seed"}]) as seeds:

            def on_event(event):
                if len(events) == 5:
                    on_server.hang()
                    pause.start()
                events.append(event)
                started = time.perf_counter()
                seeds[0].on_event(event)
                waits.append(time.perf_counter() - started)

            result = train(job, on_event)
            pause.join()
            child = seeds[0].run
            control = replace(child, spool=None)
            on_server.hang()  # the same call without the spool
            with pytest.MonkeyPatch.context() as patch, pytest.raises(MlflowException) as error:
                patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
                patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
                control.metrics({"loss": 1.0})
            assert unanswered(error.value)
            on_server.go_on()
            seeds[0].finish(result)
        assert run.spool is None  # the store has everything, the stage writes to it directly
    assert max(waits) < 1.5, waits  # the first call that waited for the server would have waited for all of its 2 s
    client = connect()
    names = {name for event in events for name in event.metrics}
    assert stored(client, child.run_id, names) == said(events)
    assert client.get_run(child.run_id).info.status == "FINISHED"


def test_a_server_that_never_returns_leaves_a_finished_training_that_sync_delivers(on_server, monkeypatch, capfd):
    monkeypatch.setenv("PIPELINE_PATIENCE_SECONDS", "1")
    events = []
    show = TrainingProgress.on_event

    def kill_in_the_middle(progress, index, event):
        events.append(event)
        if len(events) == 5:
            on_server.kill()
        return show(progress, index, event)

    monkeypatch.setattr(TrainingProgress, "on_event", kill_in_the_middle)
    command = ["--config", "configs/smoke/finetune.yaml", "--seeds", "[1]", "--control_timesteps", "0"]
    command += ["--final_episodes", "5", "--reuse", "false", "--training.visualize_every", "2048"]
    assert stage_main("baseline", command) == DONE
    told = [line for line in capfd.readouterr().err.splitlines() if "does not answer" in line]
    assert len(told) == 1
    assert "deliver them with python -m pipeline sync" in told[0]
    assert ask(["sync"]) == 2  # still nobody there
    assert "cannot be used" in capfd.readouterr().err

    on_server.start()
    assert ask(["sync"]) == DONE
    assert "nothing waits" in capfd.readouterr().out
    client = connect()
    everywhere = [e.experiment_id for e in client.search_experiments()]
    (child,) = client.search_runs(everywhere, "tags.stage = 'baseline_seed' and tags.group != ''")
    (parent,) = client.search_runs(everywhere, f"attributes.run_id = '{child.data.tags['mlflow.parentRunId']}'")
    assert [child.info.status, parent.info.status] == ["FINISHED", "FINISHED"]
    names = {name for event in events for name in event.metrics}
    assert stored(client, child.info.run_id, names) == said(events)
    shown = sorted(event.timestep for event in events if event.kind == "policy")
    assert len(shown) > 1
    films = [Path(item.path).stem for item in client.list_artifacts(child.info.run_id, "playback")]
    assert films == [f"step-{step:09d}" for step in shown]
    assert len(client.list_artifacts(child.info.run_id, "images")) == 2 * len(shown)
    assert parent.data.metrics["bill/environment_steps"] == child.data.metrics["bill/environment_steps"]
    assert find_policy(client, child.info.run_id, "smoke", {}).run_id == child.info.run_id
    assert stage_run._opened == []

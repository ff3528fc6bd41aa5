"""The approved policy outside of this pipeline: as a pyfunc model, and behind `mlflow models serve`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import mlflow
import numpy as np
import pytest

from pipeline import query

MODEL = "models:/social_nav-expert@approved"
WAIT_SECONDS = 120.0


@pytest.fixture
def observations() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, query.load_ppo(MODEL).observation_space.shape[0])).astype("f4")


def expected(observations: np.ndarray) -> np.ndarray:
    return query.load_ppo(MODEL).predict(observations, deterministic=True)[0]


def test_the_approved_version_predicts_as_a_pyfunc_model(story, observations):
    actions = mlflow.pyfunc.load_model(MODEL).predict(observations)
    np.testing.assert_allclose(actions, expected(observations), atol=1e-6)
    assert actions.shape == (3, 2)


def test_one_observation_and_double_precision_are_taken_and_another_shape_is_refused(story, observations):
    model, actions = mlflow.pyfunc.load_model(MODEL), expected(observations)
    np.testing.assert_allclose(model.predict(observations.astype(np.float64)), actions, atol=1e-6)
    np.testing.assert_allclose(model.predict(observations[1]), actions[1], atol=1e-6)
    for wrong in (observations[:, :-1], observations[None], np.array("text")):
        with pytest.raises(ValueError, match=r"observations.* expected numbers of shape"):
            model.predict(wrong)


@pytest.fixture
def server(story):
    """`mlflow models serve` on a free port of this machine; it and its workers end with the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", MODEL, "--env-manager", "local"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(server) -> str:
    process, address = server
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with code {process.returncode}"
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5):
                return address
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise AssertionError(f"the server did not answer within {WAIT_SECONDS:.0f} s")


@pytest.mark.slow
def test_a_running_server_answers_a_request_with_actions(server, observations):
    address = wait_for(server)
    request = urllib.request.Request(
        f"{address}/invocations",
        json.dumps({"inputs": observations.tolist()}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        actions = np.array(json.load(answer)["predictions"])
    np.testing.assert_allclose(actions, expected(observations), atol=1e-6)

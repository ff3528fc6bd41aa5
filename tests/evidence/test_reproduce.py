"""`reproduce` does a finished training, cloning or recording again and says whether it is the same, or what differs."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.cli import BAD_INPUT, DONE, VERDICT_NO, stage_main
from pipeline.config.loading import parse_yaml
from pipeline.learning.processor import machine, processor_kind
from pipeline.names import Arm, Tag, lineage_run_tag
from pipeline.tracking.liveness import this_process
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect


def a_run(stage: str, **tags: str):
    return search(connect(), {Tag.STAGE: stage, **tags}, limit=1)[0]


def own_artifacts(run, to: Path) -> Path:
    """The run's artifacts copied, so that a test may spoil them; gives the folder."""
    folder = to / run.info.run_id
    shutil.copytree(unquote(urlparse(run.info.artifact_uri).path), folder)
    with sqlite3.connect(to / "mlflow.db") as connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (folder.as_uri(), run.info.run_id))
    return folder


@pytest.fixture
def reproduce(copied, capsys):
    """Reproduce a run from another working directory than the repository; gives code, standard output and error."""

    def again(run_id: str, *arguments: str):
        capsys.readouterr()
        code = stage_main("reproduce", ["--config", "configs/reproduce.yaml", "--run", run_id, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return again


@pytest.mark.parametrize(
    ("stage", "tags"),
    [
        ("train_expert_seed", {}),
        ("finetune_seed", {Tag.ARM: Arm.PRETRAINED, Tag.SEED: "2"}),
        ("baseline_seed", {Tag.ARM: Arm.SCRATCH_LR0, Tag.SEED: "3"}),
        ("pretrain_seed", {Tag.SEED: "1"}),
        ("collect", {}),
    ],
)
def test_what_is_done_again_from_its_record_is_equal(reproduce, stage, tags):
    run = a_run(stage, **tags)
    code, out, _ = reproduce(run.info.run_id)
    assert code == DONE
    digest = run.data.tags[Tag.DATASET_DIGEST if stage == "collect" else Tag.POLICY_DIGEST]
    assert "is EQUAL, bit for bit" in out and digest in out
    assert f"  made on {processor_kind(machine(threads=1))}\n" in out
    made = a_run("reproduce")
    assert made.data.tags[lineage_run_tag("reproduced")] == run.info.run_id
    assert made.data.tags[Tag.CONTENT_KEY] == run.data.tags[Tag.CONTENT_KEY]
    assert json.loads(read_text_artifact(connect(), made.info.run_id, "reproduction.json"))["equal"] is True


@pytest.mark.slow
def test_a_clone_is_reproduced_through_mlflow_run(copied, tmp_path, repository):
    run = a_run("pretrain_seed", **{Tag.SEED: "2"})
    command = [str(Path(sys.executable).parent / "mlflow"), "run", str(repository), "-e", "reproduce"]
    done = subprocess.run(
        [*command, "--env-manager", "local", "-P", f"run={run.info.run_id}"],
        cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"is EQUAL, bit for bit: policy {run.data.tags[Tag.POLICY_DIGEST]}" in done.stdout


def test_a_record_that_was_changed_is_not_equal_and_named_with_the_first_evaluation_that_differs(
    reproduce, tmp_path, copied
):
    run = a_run("baseline_seed", **{Tag.ARM: Arm.SCRATCH, Tag.SEED: "1"})
    config = own_artifacts(connect().get_run(run.data.tags["mlflow.parentRunId"]), tmp_path) / "config.yaml"
    gamma = config.read_text().replace("n_epochs: 2", "n_epochs: 3")
    assert parse_yaml(gamma, "test")["training"]["ppo"]["n_epochs"] == 3
    config.write_text(gamma)
    code, out, _ = reproduce(run.info.run_id)
    assert code == VERDICT_NO
    assert "is NOT equal: best policy" in out or "is NOT equal: last policy" in out
    # the first evaluation is of the untrained policy, which no epoch has touched
    assert "first difference: evaluation at step 1024" in out
    assert "likely cause: config: training.ppo.n_epochs (its record was changed since)" in out
    assert "config differs: training.ppo.n_epochs = 3 (was 2)" in out
    assert a_run("reproduce").data.tags[Tag.VERDICT] == "no"


def test_weights_that_were_changed_in_the_store_are_named_tensor_by_tensor(reproduce, tmp_path, copied):
    run = a_run("pretrain_seed", **{Tag.SEED: "1"})
    file = own_artifacts(run, tmp_path) / "policy" / "policy.safetensors"
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        described = opened.metadata()
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + np.float32(0.5)
    save_file(tensors, file, described)
    code, out, _ = reproduce(run.info.run_id)
    assert code == VERDICT_NO
    assert f"first difference: tensor {name}: {tensors[name].size} of {tensors[name].size} values differ" in out
    assert "likely cause: the files of the policy in the store were changed after they were recorded" in out


def test_a_run_that_cannot_be_done_again_is_one_line_and_code_2(reproduce):
    for run_id, said in (
        ("", "run is missing"),
        ("0" * 32, "no such run"),
        (a_run("compare").info.run_id, "is of stage 'compare'; only these can be done again: train_expert_seed"),
        (a_run("pretrain").info.run_id, "a pretrain is reproduced seed by seed: give a run nested in it"),
    ):
        code, out, errors = reproduce(run_id)
        assert (code, out) == (BAD_INPUT, "")
        (line,) = errors.splitlines()
        assert said in line
    running = a_run("baseline_seed").info.run_id
    connect().update_run(running, status="RUNNING")
    connect().set_tag(running, Tag.PROCESS, this_process())  # which lives
    assert "is RUNNING, not FINISHED" in reproduce(running)[2]

"""Policies in the store: found by reference, bound to their bytes, never mistaken for another."""

import json
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import mlflow
import mlflow.pyfunc
import numpy as np
import pytest
from gymnasium import spaces
from mlflow.models import Model
from real_things import TASK

from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.names import POLICY_SPEC_FILE, POLICY_WEIGHTS_FILE, Alias, Artifact, Quality, Tag, VersionTag
from pipeline.policies import act_function, build_policy, policy_digest, probe_batch, save_policy
from pipeline.tracking import models, packing, registry
from pipeline.tracking.datasets import fetch_dataset, fetch_for_training, find_dataset_run
from pipeline.tracking.models import fetch_version, find_policy, find_version, seeds_of
from pipeline.tracking.reuse import refuse_unsound

UNKNOWN = "0" * 32
PRETRAIN = {Tag.STAGE: "pretrain"}


def refusal(action) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_one_byte(file) -> None:
    """The last byte of weights, or a letter inside the JSON's free text: still readable, no longer the same."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(bytes(content))


# --- bound to bytes --------------------------------------------------------------------------------------------------


def test_a_registered_policy_comes_back_as_the_bytes_that_were_registered(bench):
    version = bench.candidate()
    stored = fetch_version(bench.version(version))
    assert stored.digest == version.tags[VersionTag.POLICY_DIGEST] == policy_digest(bench.files_of(version))
    assert (stored.reference, stored.name_and_version, stored.run_id) == ("walk-expert/1",) * 2 + (version.run_id,)


@pytest.mark.parametrize("file", [POLICY_WEIGHTS_FILE, POLICY_SPEC_FILE])
def test_one_changed_byte_of_a_registered_policy_is_refused_by_name(bench, file):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    change_one_byte(bench.files_of(version) / file)
    message = refusal(lambda: fetch_version(bench.version(version)))
    assert "walk-expert/1" in message
    assert "files changed" in message
    assert version.tags[VersionTag.POLICY_DIGEST] in message


def test_a_version_without_a_digest_on_record_is_refused(bench):
    version = bench.candidate()
    bench.client.delete_model_version_tag(version.name, version.version, VersionTag.POLICY_DIGEST)
    said = refusal(lambda: fetch_version(bench.version(version)))
    assert "walk-expert/1: it has no digest on record (tag policy.digest)" in said
    assert "changed" not in said


@pytest.mark.parametrize(
    "source",
    ["http://127.0.0.1:9/x", "https://nowhere.invalid/x", "sftp://127.0.0.1/x", "s3://bucket/x", "b2://", "no://x"],
)
def test_a_version_whose_files_lie_where_nobody_can_read_them_is_refused_by_name(bench, source):
    bench.candidate()
    version = bench.client.create_model_version("walk-expert", source, tags={VersionTag.POLICY_DIGEST: "0" * 36})
    said = refusal(lambda: fetch_version(version))
    assert said.startswith("policy of walk-expert/2 cannot be fetched: ")


def test_a_version_whose_files_are_gone_is_refused_by_name(bench):
    version = bench.candidate()
    for file in bench.files_of(version).iterdir():
        file.unlink()
    assert "walk-expert/1" in refusal(lambda: fetch_version(bench.version(version)))


def test_one_changed_byte_of_a_runs_policy_is_refused_by_its_run(bench):
    run_id = bench.policy_run()
    (weights,) = bench.folder.glob(f"mlartifacts/**/{run_id}/**/{POLICY_WEIGHTS_FILE}")
    change_one_byte(weights)
    message = refusal(lambda: find_policy(bench.client, run_id, TASK, {}))
    assert run_id in message
    assert "files changed" in message


# --- references ------------------------------------------------------------------------------------------------------


def test_every_way_to_name_a_version_finds_the_same_one(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, first, bench.run("promote"), "good")
    for reference in ("1", "walk-expert/1", "models:/walk-expert/1", "models:/walk-expert@approved", "latest"):
        assert int(find_version(bench.client, reference, TASK, Alias.APPROVED).version) == 1, reference
    assert int(find_version(bench.client, "latest", TASK, Alias.CANDIDATE).version) == int(second.version) == 2


def test_latest_without_an_approved_version_is_refused_and_takes_no_other(bench):
    bench.candidate()
    message = refusal(lambda: find_version(bench.client, "latest", TASK, Alias.APPROVED))
    assert "approved" in message
    assert "mlflow run . -e promote" in message


@pytest.mark.parametrize(
    ("reference", "part"),
    [
        ("9", "no such version"),
        ("walk-expert/9", "no such version"),
        ("models:/walk-expert@best", "no such version"),
        ("swim-expert/1", "belongs to another task"),
        ("walk-expert", "no model reference"),
        ("a b", "no model reference"),
        ("models:/walk-expert/1' or '1'='1", "no model reference"),
        ("", "no model reference"),
    ],
)
def test_a_wrong_version_is_refused_and_takes_no_other(bench, reference, part):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    assert part in refusal(lambda: find_version(bench.client, reference, TASK, Alias.APPROVED))


def test_an_unknown_run_never_stands_for_the_latest_one(bench):
    bench.policy_run()
    message = refusal(lambda: find_policy(bench.client, UNKNOWN, TASK, {Tag.STAGE: "pretrain"}))
    assert UNKNOWN in message
    assert "no such run" in message


@pytest.mark.parametrize("status", ["FAILED", "KILLED", None])
def test_the_policy_of_a_run_that_did_not_finish_is_refused(bench, status):
    run_id = bench.policy_run(status=status)
    assert "not FINISHED" in refusal(lambda: find_policy(bench.client, run_id, TASK, {}))


def test_a_run_without_a_policy_is_refused_with_its_stage(bench):
    run_id = bench.run("collect")
    message = refusal(lambda: find_policy(bench.client, run_id, TASK, {}))
    assert "'collect'" in message
    assert "holds no policy" in message


def test_latest_is_the_newest_finished_run_of_the_stage_and_task(bench):
    bench.policy_run(seed=1)
    newest = bench.policy_run(seed=2)
    bench.policy_run(seed=3, status="FAILED")
    bench.policy_run("finetune_seed", seed=4)
    bench.policy_run(seed=5, task="swim")
    assert find_policy(bench.client, "latest", TASK, {Tag.STAGE: "pretrain"}).run_id == newest


def test_latest_of_an_empty_store_is_refused(bench):
    assert "no finished run" in refusal(lambda: find_policy(bench.client, "latest", TASK, {Tag.STAGE: "pretrain"}))


@pytest.mark.parametrize("reference", ["nowhere", "nowhere/at all", "x'y", "../..", "policy.json", "é" * 2000])
def test_a_policy_that_is_no_reference_is_refused_in_one_short_line(bench, reference):
    assert len(refusal(lambda: find_policy(bench.client, reference, TASK, {}))) < 500


def test_a_folder_may_be_a_policy(bench):
    folder = bench.policy_folder()
    stored = find_policy(bench.client, str(folder), TASK, {})
    assert (stored.digest, stored.run_id, stored.version) == (policy_digest(folder), None, None)


def test_the_seeds_of_a_training_are_found_by_number(bench):
    parent = bench.policy_run("train_expert")
    children = {
        seed: bench.policy_run("train_expert_seed", seed=seed, seed_=str(seed), mlflow__parentRunId=parent)
        for seed in (10, 2)
    }
    for seed, run_id in children.items():
        bench.client.set_tag(run_id, Tag.SEED, str(seed))
    found = seeds_of(bench.client, parent, "train_expert_seed")
    assert [(seed, policy.run_id) for seed, policy in found.items()] == [(2, children[2]), (10, children[10])]


# --- as MLflow has it ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_a_policy_is_packed_as_mlflow_itself_would_and_nothing_is_warned_of(tmp_path):
    space = spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float32), "b": spaces.Discrete(4)})
    policy = build_policy(space, spaces.Discrete(2), Network(hidden=(8,)), seed=0)
    save_policy(policy, tmp_path / "policy", {})
    packed = packing.pack(tmp_path / "ours", tmp_path / "policy", f"m-{UNKNOWN}", UNKNOWN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            tmp_path / "theirs",
            python_model=str(packing.MODEL_CODE),
            artifacts={"policy": str(tmp_path / "policy")},
            signature=packing.signature(policy.action_space),
            pip_requirements=packing.REQUIREMENTS,
            mlflow_model=Model(model_id=f"m-{UNKNOWN}", run_id=UNKNOWN),
        )
        ours, theirs = (Model.load(str(folder)).to_dict() for folder in (packed, tmp_path / "theirs"))
        observations = probe_batch(space)
        actions = mlflow.pyfunc.load_model(str(packed)).predict(observations)
    np.testing.assert_array_equal(actions, act_function(policy)(observations))
    for described in (ours, theirs):
        for varies in ("utc_time_created", "model_uuid", "model_size_bytes"):
            described.pop(varies, None)
        flavor = described["flavors"]["python_function"]
        flavor["model_code_path"] = flavor["model_code_path"].rpartition("/")[2]
        flavor["artifacts"]["policy"].pop("uri")
        for not_needed in ("code", "cloudpickle_version"):
            flavor.pop(not_needed, None)
    assert ours == theirs

    def files(folder):
        found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")  # it was loaded
        return sorted(str(path.relative_to(folder)) for path in found)

    assert files(packed) == sorted([*files(tmp_path / "theirs"), packing.CODE])


@pytest.mark.slow
def test_a_model_runs_where_this_package_is_not_installed(tmp_path):
    """`-S` leaves out the .pth files by which the package is found; what the model needs of it is in the model."""
    policy = build_policy(spaces.Box(-1, 1, (4,)), spaces.Box(-2, 2, (2,)), Network(hidden=(8,)), seed=1)
    save_policy(policy, tmp_path / "policy", {})
    packed = packing.pack(tmp_path / "made", tmp_path / "policy", f"m-{UNKNOWN}", UNKNOWN)
    script = f"""
import importlib.util, json, sys
sys.path.append({sysconfig.get_path("purelib")!r})
assert importlib.util.find_spec("pipeline") is None
import mlflow
print(json.dumps(mlflow.pyfunc.load_model({str(packed)!r}).predict([[0.25] * 4, [-1.0] * 4]).tolist()))
"""
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    observations = np.array([[0.25] * 4, [-1.0] * 4], np.float32)
    np.testing.assert_array_equal(np.float32(json.loads(done.stdout)), act_function(policy)(observations))


# --- fetched once ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fetches(monkeypatch) -> list[str]:
    """What is downloaded from the store from now on, by its URI."""
    seen: list[str] = []
    real = mlflow.artifacts.download_artifacts

    def counted(*args, **kwargs):
        seen.append(kwargs["artifact_uri"])
        return real(*args, **kwargs)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", counted)
    return seen


def test_an_artifact_is_fetched_and_digested_once_a_process_whoever_asks_and_its_record_is_read_every_time(
    bench, fetches, monkeypatch
):
    digested: list[Path] = []
    monkeypatch.setattr(models, "policy_digest", lambda folder: digested.append(folder) or policy_digest(folder))
    version, run_id = bench.candidate(), bench.policy_run()
    data = bench.dataset_run()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    for _ in range(3):
        first = [fetch_version(bench.version(version)), find_policy(bench.client, "walk-expert/1", TASK, {})]
        second = [find_policy(bench.client, run_id, TASK, {}), find_policy(bench.client, "latest", TASK, PRETRAIN)]
        loaded = [fetch_for_training(bench.client, data, TASK), fetch_dataset(bench.client.get_run(data))]
    assert first[0].folder == first[1].folder and second[0].folder == second[1].folder
    assert loaded[0].trajectories is loaded[1].trajectories
    assert len(fetches) == 3 and len(digested) == 2
    bench.client.set_tag(run_id, Tag.POLICY_DIGEST, "0" * 36)
    assert "files changed" in refusal(lambda: find_policy(bench.client, run_id, TASK, {}))
    bench.client.set_tag(data, Tag.DATASET_QUALITY, Quality.QUARANTINED)
    assert "quarantined" in refusal(lambda: fetch_for_training(bench.client, data, TASK))
    assert len(fetches) == 3


def test_a_fetch_that_failed_is_tried_again(bench, fetches):
    run_id = bench.policy_run()
    (weights,) = bench.folder.glob(f"mlartifacts/**/{run_id}/**/{POLICY_WEIGHTS_FILE}")
    away = weights.parent.rename(bench.folder / "away")
    assert "cannot be fetched" in refusal(lambda: find_policy(bench.client, run_id, TASK, {}))
    away.rename(weights.parent)
    assert find_policy(bench.client, run_id, TASK, {}).run_id == run_id
    assert len(fetches) == 2


def test_what_is_asked_before_a_run_is_reused_is_fetched_once_for_all_that_came_from_it(bench, fetches):
    """Twelve trainings that rest on one dataset, one expert and one clone, as `left_to_train` asks after them."""
    version, data = bench.candidate(), bench.dataset_run()
    clone = bench.policy_run("pretrain")
    tags = {
        "lineage__expert": f"{version.name}/{version.version}",
        "lineage__dataset_run_id": data,
        "lineage__pretrain_run_id": clone,
        "arm": "pretrained",
    }
    final = {"scenario": ["default"], "seed": [1], "metrics": {"return": [1.0]}}
    curve = [{"timestep": 0, "figures": {"return_mean": 1.0}}]
    evaluations = {"seed": 1, "evaluations": curve, "final_figures": {"return_mean": 1.0}, "final": final}
    members = [bench.policy_run("finetune_seed", **tags) for _ in range(12)]
    for member in members:
        bench.client.set_tag(member, Tag.SEED, "1")
        bench.client.log_text(member, json.dumps(evaluations), Artifact.EVALUATIONS)
        refuse_unsound(bench.client, bench.client.get_run(member))
    policies = [uri for uri in fetches if not uri.endswith(Artifact.EVALUATIONS)]
    assert len(policies) == 3 + len(members)


# --- deleted ---------------------------------------------------------------------------------------------------------


def test_a_deleted_run_is_no_policy_and_no_dataset(bench):
    for run_id, find in (
        (bench.policy_run(), lambda run_id: find_policy(bench.client, run_id, TASK, {})),
        (bench.dataset_run(), lambda run_id: fetch_for_training(bench.client, run_id, TASK)),
        (bench.dataset_run(), lambda run_id: find_dataset_run(bench.client, run_id, None)),
    ):
        find(run_id)
        bench.client.delete_run(run_id)
        message = refusal(lambda find=find, run_id=run_id: find(run_id))
        assert run_id in message and "was deleted" in message and "mlflow runs restore" in message
        bench.client.restore_run(run_id)
        find(run_id)

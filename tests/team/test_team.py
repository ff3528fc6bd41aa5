"""A team's deployment (`make team`): the pipeline by its trainer, a race of promotions, a reader, a backup."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest import mock
from urllib.parse import urlparse

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from benchmarks.local_postgres import programs
from benchmarks.team import BUCKET, Team, s3, serving, team
from pipeline.names import Alias, Gate, Tag, VersionTag, registered_model
from pipeline.tracking.runs import search

pytestmark = pytest.mark.slow
EXPERT = registered_model("social_nav")
REPORT = "report/report.html"
SHORTER = ("--compare.playback_episodes", "0", "--finetune.control_timesteps", "0", "--ppo_timesteps", "2048")


@pytest.fixture(scope="module")
def lab():
    with team() as its_team:
        yield its_team


def ask(its_team: Team, user: str, repository, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m ...` as one of its users."""
    command, variables = [sys.executable, "-m", *arguments], its_team.environment(user)
    return subprocess.run(command, cwd=repository, env={**os.environ, **variables}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(lab, repository):
    """The runs of a `main`, by stage, that trainer ran."""
    done = ask(lab, "trainer", repository, "entrypoints.main", "--config", "configs/smoke/main.yaml", *SHORTER)
    assert done.returncode == 0, done.stdout + done.stderr
    with mock.patch.dict(os.environ, lab.environment("trainer")):
        client = MlflowClient(lab.address)
        return {stage: search(client, {Tag.STAGE: stage})[0] for stage in ("main", "train_expert", "compare")}


def report_as(its_team: Team, user: str, address: str, run_id: str, folder) -> bytes:
    """What a user of the server at this address downloads as the report."""
    with mock.patch.dict(os.environ, {**its_team.environment(user), "MLFLOW_TRACKING_URI": address}):
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=REPORT, dst_path=folder, tracking_uri=address
        )
    with open(path, "rb") as file:
        return file.read()


def test_trainer_ran_everything_and_the_reader_reads_what_lies_in_the_bucket(lab, trained, repository, tmp_path):
    compared = trained["compare"].info
    assert trained["main"].data.tags["mlflow.user"] == "trainer"
    assert compared.artifact_uri.startswith("mlflow-artifacts:/")
    key = f"{compared.experiment_id}/{compared.run_id}/artifacts/{REPORT}"
    stored = s3(lab.objects).get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert report_as(lab, "reader", lab.address, compared.run_id, tmp_path) == stored != b""
    told = ask(lab, "reader", repository, "pipeline", "policies")
    assert told.returncode == 0 and "approved" in told.stdout, told.stderr


def test_the_reader_changes_nothing_and_who_is_nobody_reads_nothing(lab, trained, repository):
    run_id, experiment = trained["main"].info.run_id, trained["main"].info.experiment_id
    with mock.patch.dict(os.environ, lab.environment("reader")):
        client = MlflowClient(lab.address)
        for change in (
            lambda: client.log_metric(run_id, "sample_efficiency/ratio", 0.0),
            lambda: client.set_tag(run_id, Tag.TAINT, "none"),
            lambda: client.delete_run(run_id),
            lambda: client.create_run(experiment),
            lambda: client.set_registered_model_alias(EXPERT, Alias.APPROVED, "1"),
            lambda: client.set_model_version_tag(EXPERT, "1", VersionTag.GATE, Gate.REFUSED),
            lambda: client.delete_registered_model(EXPERT),
        ):
            with pytest.raises(MlflowException, match="403"):
                change()
        with pytest.raises(Exception, match="403"):
            client.log_text(run_id, "another report", REPORT)
        assert client.get_run(run_id).data.metrics == trained["main"].data.metrics
    refused = ask(lab, "reader", repository, "entrypoints.validate", "--config", "configs/smoke/validate.yaml")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: validate: MLFLOW_TRACKING_USERNAME = 'reader' may not do that")
    stranger = Team(lab.address, lab.database, lab.objects, {"reader": "guessed"})
    told = ask(stranger, "reader", repository, "pipeline", "runs")
    assert told.returncode == 2 and told.stderr.startswith("error: ") and told.stdout == ""


def test_of_two_promotions_at_once_one_version_is_approved_in_the_end(lab, trained, repository):
    smaller = ("--training.total_timesteps", "2048", "--final_episodes", "10")
    for seed in (31, 32):
        command = ("entrypoints.train_expert", "--config", "configs/smoke/train_expert.yaml", "--seeds", f"[{seed}]")
        done = ask(lab, "trainer", repository, *command, *smaller)
        assert done.returncode in (0, 1), done.stdout + done.stderr
    with ThreadPoolExecutor(2) as lanes:
        racing = [
            lanes.submit(
                ask, lab, user, repository, "entrypoints.promote", "--config", "configs/smoke/promote.yaml",
                "--expert", version,
            )
            for user, version in (("trainer", "2"), ("approver", "3"))
        ]  # fmt: skip
        ended = [race.result() for race in racing]
    assert [done.returncode for done in ended] == [0, 0], [done.stderr for done in ended]
    with mock.patch.dict(os.environ, lab.environment("reader")):
        client = MlflowClient(lab.address)
        approved = client.get_model_version_by_alias(EXPERT, Alias.APPROVED).version
        gates = {v: client.get_model_version(EXPERT, v).tags[VersionTag.GATE] for v in ("1", "2", "3")}
    assert approved in ("2", "3")
    assert gates == {v: Gate.APPROVED if v == approved else Gate.SUPERSEDED for v in gates}


def test_an_approver_signs_what_trainer_made_and_nobody_else_can(lab, trained, repository, tmp_path):
    task, lines = tmp_path / "social_nav.yaml", []
    for user in ("trainer", "approver"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / user], check=True)
        lines.append(f"{user} {(tmp_path / user).with_suffix('.pub').read_text()}")
    (tmp_path / "approvers").write_text("".join(lines))
    known = (repository / "configs/tasks/social_nav.yaml").read_text()
    task.write_text(f"{known}approvers: {tmp_path / 'approvers'}\n")

    def stage(user: str, name: str, *more: str) -> subprocess.CompletedProcess:
        config = f"configs/smoke/{name}.yaml"
        return ask(lab, user, repository, f"entrypoints.{name}", "--config", config, "--task", str(task), *more)

    def sign(user: str, key: str) -> subprocess.CompletedProcess:
        return stage(user, "promote", "--expert", version, "--sign", str(tmp_path / key))

    with mock.patch.dict(os.environ, lab.environment("trainer")):
        client = MlflowClient(lab.address)
        version = client.get_model_version_by_alias(EXPERT, Alias.APPROVED).version  # by the gate alone
        for refused, why in (
            (stage("trainer", "collect", "--expert", version), "was signed by nobody"),
            (sign("trainer", "trainer"), "was trained by 'trainer'"),
            (sign("reader", "approver"), "MLFLOW_TRACKING_USERNAME = 'reader' may not do that"),
        ):
            assert refused.returncode == 2 and why in refused.stderr, refused.stdout + refused.stderr
        assert VersionTag.SIGNATURE not in client.get_model_version(EXPERT, version).tags
        signed = sign("approver", "approver")
        assert signed.returncode == 0, signed.stdout + signed.stderr
        assert client.get_model_version(EXPERT, version).tags[VersionTag.APPROVED_BY] == "approver"
        assert search(client, {Tag.STAGE: "promote"})[0].data.tags["mlflow.user"] == "approver"
        assert stage("trainer", "collect", "--expert", version).returncode == 0
        # trainer may write tags, but no signature
        client.set_model_version_tag(EXPERT, version, VersionTag.APPROVED_BY, "trainer")
        forged = stage("trainer", "collect", "--expert", version)
        assert forged.returncode == 2 and "the signature of 'trainer' is not of this version" in forged.stderr
        client.set_model_version_tag(EXPERT, version, VersionTag.APPROVED_BY, "approver")


def test_a_dump_and_a_copy_of_the_bucket_are_a_backup(lab, trained, tmp_path):
    server = urlparse(lab.database)
    where = ["-h", str(server.hostname), "-p", str(server.port), "-U", str(server.username)]
    dump, bucket, copy = tmp_path / "dump.sql", "restored", lab.database.removesuffix("postgres") + "restored"
    for command in (
        ["pg_dump", *where, "-f", str(dump), "postgres"],
        ["createdb", *where, "restored"],
        ["psql", *where, "-q", "-v", "ON_ERROR_STOP=1", "-f", str(dump), "restored"],
    ):
        subprocess.run([programs() / command[0], *command[1:]], check=True, capture_output=True)
    client = s3(lab.objects)
    client.create_bucket(Bucket=bucket)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page["Contents"]:
            client.copy_object(Bucket=bucket, Key=item["Key"], CopySource={"Bucket": BUCKET, "Key": item["Key"]})
    upgrade = subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", copy], capture_output=True, text=True)
    assert upgrade.returncode == 0, upgrade.stderr
    run_id = trained["compare"].info.run_id
    with serving(tmp_path, copy, lab.objects, bucket, lab.passwords) as restored:
        again = report_as(lab, "reader", restored.uri, run_id, tmp_path / "again")
        assert again == report_as(lab, "reader", lab.address, run_id, tmp_path / "before") != b""
        with mock.patch.dict(os.environ, {**lab.environment("reader"), "MLFLOW_TRACKING_URI": restored.uri}):
            ours, theirs = (MlflowClient(uri) for uri in (lab.address, restored.uri))
            approved = [c.get_model_version_by_alias(EXPERT, Alias.APPROVED) for c in (ours, theirs)]
            assert approved[0].version == approved[1].version and approved[0].tags == approved[1].tags
            with pytest.raises(MlflowException, match="403"):
                theirs.set_tag(run_id, Tag.TAINT, "none")

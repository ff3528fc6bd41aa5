"""The command line: what it reads, what it answers, and how it ends."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.cli import _told, ask, parse, stage_main
from pipeline.errors import BadInput, printable
from pipeline.executors.news import TrainingKilled
from pipeline.names import STAGES, Tag, lineage_run_tag
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect

NOTE = "mlflow.note.content"


@pytest.fixture
def refused(store, capfd, in_repository):
    """Run a stage that must end with code 2; returns the one line that it wrote to standard error."""

    def run(stage: str, *arguments: str) -> str:
        assert stage_main(stage, arguments) == 2
        errors = capfd.readouterr().err
        assert errors.startswith("error: ")
        assert errors.endswith("\n")
        assert len(errors.splitlines()) == 1, errors
        return errors.removeprefix("error: ").rstrip("\n")

    return run


# --- arguments -------------------------------------------------------------------------------------------------------


def test_arguments_become_a_config_references_and_overrides():
    arguments = ["--config", "c.yaml", "--dataset", "latest", "--cloning.epochs", "3", "--seeds=[1, 2]"]
    assert parse("pretrain", arguments) == ("c.yaml", {"dataset": "latest"}, {"cloning.epochs": "3", "seeds": "[1, 2]"})


def test_arguments_may_stand_in_any_order_and_values_may_be_negative_empty_or_hold_an_equals_sign():
    arguments = ["--filter.min_return", "-100", "--config", "c.yaml", "--group", "g", "--a", "x=y", "--b=", "--c", ""]
    config, upstream, overrides = parse("collect", arguments)
    assert (config, upstream) == ("c.yaml", {"group": "g"})
    assert overrides == {"filter.min_return": "-100", "a": "x=y", "b": "", "c": ""}


def test_an_empty_reference_is_one_that_was_not_given():
    assert parse("finetune", ["--config", "c.yaml", "--policy", "", "--group", ""])[1] == {}


def test_an_abbreviation_is_no_argument_of_ours():
    assert parse("pretrain", ["--config", "c.yaml", "--data", "x"])[1:] == ({}, {"data": "x"})


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "required: --config"),
        (["--config"], "expected one argument"),
        (["--config", "c", "stray"], "'stray' is not understood"),
        (["--config", "c", "--epochs"], "--epochs has no value"),
        (["--config", "c", "-e", "3"], "'-e' is not understood"),
        (["--config", "c", "--", "3"], "not understood"),
    ],
)
def test_what_is_not_an_argument_is_refused_in_one_line(arguments, part):
    with pytest.raises(BadInput) as caught:
        parse("pretrain", arguments)
    assert part in str(caught.value)
    assert "usage" not in str(caught.value)


def test_an_unknown_stage_is_refused_with_those_there_are():
    with pytest.raises(BadInput, match=r"stage 'pretrian' is unknown.*pretrain"):
        parse("pretrian", ["--config", "c"])


def test_help_answers_at_once_without_loading_the_stages(repository):
    started = time.perf_counter()
    code = "import sys; from pipeline.cli import stage_main\ntry: stage_main('pretrain', ['--help'])\nfinally: "
    code += "print('loaded', sorted({'torch', 'mlflow', 'pydantic', 'numpy'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert "--config" in answer.stdout
    assert "loaded []" in answer.stdout
    assert time.perf_counter() - started < 60


def test_questions_are_answered_without_loading_what_only_trains(repository, store):
    code = "import sys; from pipeline.cli import ask\n"
    code += "assert [ask([verb]) for verb in ('runs', 'datasets', 'policies')] == [0, 0, 0]\n"
    code += f"assert [ask([verb, '{'0' * 32}']) for verb in ('lineage', 'why', 'impact')] == [2, 2, 2]\n"
    code += "print('loaded', sorted({'torch', 'numba', 'stable_baselines3', 'scipy.stats'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "loaded []" in answer.stdout


# --- how a stage ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_config_that_is_not_there_is_one_line_code_2_and_a_failed_run_with_that_line(refused, stage):
    line = refused(stage, "--config", "configs/nowhere.yaml")
    assert "'configs/nowhere.yaml'" in line
    (run,) = search(connect(), {Tag.STAGE: stage}, status=None)
    assert (run.info.status, run.data.tags[NOTE]) == ("FAILED", line)


def test_a_misspelt_setting_is_one_line_with_the_right_spelling(refused):
    line = refused("collect", "--config", "configs/smoke/collect.yaml", "--episode", "10")
    assert "unknown key 'episode'. Did you mean 'episodes'?" in line


def test_a_reference_that_the_stage_does_not_take_is_refused_with_those_it_takes(refused):
    line = refused("train_expert", "--config", "configs/smoke/train_expert.yaml", "--dataset", "latest")
    assert "'train_expert' takes no reference 'dataset'; it takes: none" in line
    line = refused("collect", "--config", "configs/smoke/collect.yaml", "--policy", "latest")
    assert "it takes: expert" in line
    line = refused("main", "--config", "configs/smoke/main.yaml", "--dataset", "latest")
    assert "'main' takes no reference 'dataset'; it takes: expert, policy" in line


def test_a_wrong_argument_is_one_line_and_leaves_no_run(refused):
    assert "'stray'" in refused("collect", "--config", "configs/smoke/collect.yaml", "stray")
    assert search(connect(), {Tag.STAGE: "collect"}, status=None) == []


def test_a_value_with_newlines_cannot_forge_a_second_line(refused):
    assert "\n" not in refused("collect", "--config", "configs/smoke/collect.yaml", "--task", "'a\n\nerror: b'")


@pytest.mark.slow
def test_an_unreachable_server_is_one_line_and_code_2_within_seconds(monkeypatch, capfd, in_repository):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.perf_counter()
    assert stage_main("collect", ["--config", "configs/smoke/collect.yaml"]) == 2
    assert time.perf_counter() - started < 60
    errors = capfd.readouterr().err
    assert errors.splitlines()[-1].startswith("error: tracking store 'http://127.0.0.1:9' cannot be used")
    assert "MLFLOW_TRACKING_URI" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "uri", ["sqlite:////dev/null/mlflow.db", "nonsense://x", "http://", "postgresql://127.0.0.1:9/runs"]
)
def test_a_store_that_cannot_be_is_one_line_and_code_2(uri, monkeypatch, capfd, in_repository):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert stage_main("collect", ["--config", "configs/smoke/collect.yaml"]) == 2
    errors = capfd.readouterr().err
    assert "cannot be used" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_a_file_that_is_no_database_is_one_line_and_code_2(tmp_path, monkeypatch, capfd, in_repository):
    (tmp_path / "mlflow.db").write_text("this is no database, whatever its name says\n" * 50)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert stage_main("collect", ["--config", "configs/smoke/collect.yaml"]) == 2
    errors = capfd.readouterr().err
    assert "cannot be used" in errors.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.slow
def test_sigterm_ends_a_training_within_seconds_closes_its_runs_and_leaves_no_process(store, repository):
    command = [sys.executable, "-m", "entrypoints.train_expert", "--config", "configs/smoke/train_expert.yaml"]
    command += ["--training.total_timesteps", "50000000"]
    process = subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        client = connect()
        until = time.monotonic() + 300
        while not trained_steps(client):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.5)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.25)
        os.kill(process.pid, signal.SIGTERM)  # as `mlflow run` does to what a person has interrupted
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "train_expert: interrupted" in errors
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    (run,) = search(client, {Tag.STAGE: "train_expert"}, status=None)
    assert run.info.status in ("FAILED", "KILLED")
    assert run.data.tags[NOTE] == "interrupted"
    seeds = search(client, {Tag.STAGE: "train_expert_seed"}, status=None)
    assert {seed.info.status for seed in seeds} <= {"FAILED", "KILLED"}
    assert len(seeds) == 2


def trained_steps(client) -> bool:
    """Whether both seeds have started to train: their processes exist and have said something."""
    seeds = search(client, {Tag.STAGE: "train_expert_seed"}, status=None)
    return any(seed.data.metrics for seed in seeds)


# --- questions -------------------------------------------------------------------------------------------------------


def test_questions_to_an_empty_store_say_that_there_is_nothing(store, capsys):
    for verb in ("datasets", "policies", "runs"):
        assert ask([verb]) == 0
        assert capsys.readouterr().out == f"no {verb}\n"
        assert ask([verb, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []


def test_a_run_is_told_as_a_table_and_as_json(store, capsys):
    from pipeline.tracking.stage_run import open_run

    with open_run("evaluate") as run:
        run.tag({Tag.TASK: "walk"})
    assert ask(["runs", "--task", "walk"]) == 0
    assert run.run_id in capsys.readouterr().out
    assert ask(["runs", "--task", "walk", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run_id"], row["stage"], row["status"]) == (run.run_id, "evaluate", "FINISHED")
    assert ask(["lineage", run.run_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["start"] == run.run_id


HOSTILE = "a\x1b[2J\x1b]0;title\x07\u202eb\nrun forged  FINISHED\r\x9bc\u2028d"
SHOWN = "a\\x1b[2J\\x1b]0;title\\x07\\u202eb run forged  FINISHED \\x9bc d"


def test_what_the_store_says_reaches_a_terminal_as_text_alone_and_forges_no_line(store, capsys):
    """Tags, names and aliases come from whoever may write to the store."""
    client = connect()
    experiment = client.create_experiment("bench")
    tags = {Tag.STAGE: "collect", Tag.TASK: HOSTILE, Tag.GROUP: HOSTILE, Tag.ARM: HOSTILE, Tag.SEED: HOSTILE}
    tags |= {Tag.VERDICT: HOSTILE, Tag.TAINT: HOSTILE, Tag.DATASET_ID: "walk-0001", Tag.DATASET_QUALITY: HOSTILE}
    recorded = client.create_run(experiment, tags=tags).info.run_id
    other = {Tag.STAGE: HOSTILE, Tag.POLICY_DIGEST: HOSTILE, lineage_run_tag("dataset"): recorded, Tag.TAINT: HOSTILE}
    made = client.create_run(experiment, tags=other).info.run_id
    client.create_registered_model(HOSTILE)
    version = {tag: HOSTILE for tag in ("gate", "gate.reason", "gate.run_id", "policy.digest", "taint")}
    client.create_model_version(HOSTILE, str(store), run_id=made, tags=version)
    lines = {"runs": 3, "datasets": 2, "policies": 2, "why": 2, "impact": 2, "lineage": 2}
    for verb, count in lines.items():
        asked = [recorded if verb == "impact" else made] if verb in ("why", "impact", "lineage") else []
        assert ask([verb, *asked]) == 0
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable(), verb
        assert len(out.splitlines()) == count, out
        assert SHOWN[:40] in out, verb
        assert ask([verb, *asked, "--json"]) == 0
        assert capsys.readouterr().out.replace("\n", "").isprintable(), verb
    assert ask(["why", HOSTILE]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


GROUP_NAME = "täglich – 一"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_is_not_utf_8_is_shown_what_it_can_show(store, in_repository, monkeypatch, encoding):
    connect().create_run("0", tags={Tag.STAGE: "collect", Tag.GROUP: GROUP_NAME})
    shown = {name: io.TextIOWrapper(io.BytesIO(), encoding, "strict") for name in ("stdout", "stderr")}
    for name, stream in shown.items():
        monkeypatch.setattr(sys, name, stream)
    assert ask(["runs"]) == 0
    assert b"glich \\u2013 \\u4e00" in shown["stdout"].buffer.getvalue()
    assert stage_main("evaluate", ["--config", "configs/smoke/évaluate –.yaml"]) == 2
    assert b"valuate \\u2013.yaml" in shown["stderr"].buffer.getvalue()


@pytest.mark.slow
def test_a_process_at_such_a_terminal_answers(store, repository):
    connect().create_run("0", tags={Tag.STAGE: "collect", Tag.GROUP: GROUP_NAME})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "pipeline", "runs"]
    answer = subprocess.run(command, cwd=repository, capture_output=True, timeout=120, env=environment)
    assert answer.returncode == 0, answer.stderr
    assert b"glich \\u2013 \\u4e00" in answer.stdout


def test_a_stage_says_its_figures_to_a_terminal_that_is_not_utf_8(store, in_repository, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", shown)
    arguments = ["--config", "configs/smoke/lunar_lander/collect.yaml", "--episodes", "2", "--min_episodes", "1"]
    assert stage_main("collect", [*arguments, "--filter.min_return", "-1000", "--n_envs", "2"]) == 0
    said = shown.buffer.getvalue().decode("latin-1")
    assert "collect: dataset" in said and "\\u2588" in said  # of a bar


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_what_nobody_can_read_ends_with_code_3(store, repository):
    for verb in ("runs", "datasets"):
        with open("/dev/full", "w") as full:
            code = subprocess.run([sys.executable, "-m", "pipeline", verb], cwd=repository, stdout=full, timeout=120)
        assert code.returncode == 3


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_fault(store, repository):
    for _ in range(3):
        connect().create_run("0", tags={Tag.STAGE: "collect"})
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", "runs"], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as asking:
        asking.stdout.close()
        errors = asking.stderr.read()
        assert (asking.wait(timeout=120), errors) == (0, b"")


def test_a_password_in_an_address_is_not_shown():
    address = "postgresql+psycopg://anna:se:cret@host:5432/runs"
    assert printable(f"store '{address}?a=b'") == "store 'postgresql+psycopg://anna:***@host:5432/runs?a=b'"
    assert str(BadInput(f"no answer from {address}")).endswith("//anna:***@host:5432/runs")
    assert printable("mysql://anna:s3/e#c?ret/8@host/runs") == "mysql://anna:***@host/runs"
    for plain in ("sqlite:////a/b.db", "http://host:5000/a@b", "s3://bucket/x", "module:Class", "a: b@c"):
        assert printable(plain) == plain


def test_whatever_ends_a_stage_unexpectedly_is_code_3_never_1(store, in_repository, tmp_path, monkeypatch, capfd):
    """A code of 1 says that the work was done, and that the verdict is no."""
    (tmp_path / "leaves.py").write_text("import sys\nclass Walk:\n    def __init__(self, **kwargs): sys.exit(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["--config", "configs/new_task.yaml", "--env", "leaves:Walk", "--name", "x", "--folder", str(tmp_path)]
    assert stage_main("new_task", arguments) in (2, 3)
    (run,) = search(connect(), {Tag.STAGE: "new_task"}, status=None)
    assert run.info.status == "FAILED"


def test_what_was_ended_from_outside_is_one_line_and_code_130(capsys):
    assert _told("finetune", TrainingKilled("training of seed 3: its job 7 was cancelled")) == 130
    said = "finetune: interrupted: training of seed 3: its job 7 was cancelled; the same command goes on\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "required: verb"),
        (["dataset"], "invalid choice: 'dataset'"),
        (["lineage"], "required: reference"),
        (["lineage", "nothing"], "lineage of 'nothing'"),
        (["why", "0" * 32], "no such run"),
        (["datasets", "--task", "a'b"], "names hold no quotes"),
    ],
)
def test_a_wrong_question_is_one_line_and_code_2(store, capsys, arguments, part):
    assert ask(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert part in errors


def test_help_of_an_entry_point_is_answered_and_is_no_fault(capsys):
    with pytest.raises(SystemExit) as ended:
        stage_main("compare", ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert "overrides the config by dotted key" in said.out and said.err == ""

"""docs/index.md: the command that answers each question does, on the store of a `main`."""

import json
import re
import shlex

import pytest
from mlflow.artifacts import download_artifacts
from project import ROOT

from pipeline.cli import ask
from pipeline.names import Tag
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect
from pipeline.tracking.views import VIEWS

PAGE = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
ROWS = [row.split(" | ") for row in PAGE.splitlines() if row.startswith("| ")][1:]
COMMANDS = [match[1] for _, command, _ in ROWS if (match := re.fullmatch(r"`(.+)`", command))]


def filled_in(command: str) -> list[str]:
    """The words of a command, with runs of the store for what stands in angles."""
    ids = {"<compare>": {Tag.STAGE: "compare"}, "<training>": {Tag.STAGE: "baseline_seed"}}
    for name, tags in ids.items():
        if name in command:
            command = command.replace(name, search(connect(), tags, limit=1)[0].info.run_id)
    assert "<" not in command
    return shlex.split(command)


def test_there_are_ten_questions_and_each_has_a_command_and_a_place_in_the_ui():
    assert len(ROWS) == len(COMMANDS) == 10
    for name in ("What main came to", "Films by step"):
        assert name in PAGE
        assert name in [view["name"] for view in VIEWS.values()]


@pytest.mark.parametrize("stage", ["main", "promote", "collect", "pretrain", "finetune", "compare"])
def test_a_run_that_an_expert_is_behind_leads_to_its_page_in_the_registry(whole, stage):
    (run,) = search(connect(), {Tag.STAGE: stage}, limit=1)
    (version,) = set(re.findall(r"\(#/models/(.+?)/versions/(.+?)\?", run.data.tags["mlflow.note.content"]))
    assert run.data.tags.get(Tag.LINEAGE_EXPERT, "/".join(version)) == "/".join(version)
    assert connect().get_model_version(*version)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_the_ui_searches_for_what_the_store_understands(whole, view):
    client = connect()
    (main,) = search(client, {Tag.STAGE: "main"}, limit=1)
    found = client.search_runs([main.info.experiment_id], json.loads(VIEWS[view]["state"])["searchFilter"])
    assert found or view == "films"  # this store has none


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m pipeline")])
def test_a_question_to_the_store_is_answered(whole, command, capfd):
    assert ask(filled_in(command)[3:]) == 0
    assert len(capfd.readouterr().out.splitlines()) > 1


def test_why_the_gate_approved_a_version_is_said(whole, capfd):
    (command,) = [command for row, command in zip(ROWS, COMMANDS, strict=True) if "approved, or refused" in row[0]]
    assert ask(filled_in(command)[3:]) == 0
    assert [version["reason"] for version in json.loads(capfd.readouterr().out)] == ["all 6 checks hold"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("mlflow artifacts download")])
def test_what_is_downloaded_is_there(whole, command, tmp_path):
    words = filled_in(command)
    options = dict(zip(words[3::2], words[4::2], strict=True))
    run, path = options["--run-id"], options["--artifact-path"]
    download_artifacts(run_id=run, artifact_path=path, dst_path=str(tmp_path / options["--dst-path"]))
    assert any("bill" in file.read_text() for file in tmp_path.rglob("report.json"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("mlflow run")])
def test_what_is_run_is_an_entry_point_with_settings_that_exist(whole, command):
    from pipeline.config.loading import load
    from pipeline.config.stages import STAGE_CONFIGS
    from pipeline.stages import stage_module

    words = filled_in(command)
    stage, given = words[words.index("-e") + 1], dict(w.split("=", 1) for w in words if "=" in w)
    module, config = stage_module(stage), given.pop("config", None)
    settings = {key: value for key, value in given.items() if key not in module.UPSTREAM}
    if config is not None:
        load(STAGE_CONFIGS[stage], config, settings)
    assert set(given) - set(settings) <= set(module.UPSTREAM)
    assert config is not None or not settings

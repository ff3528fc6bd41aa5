"""docs/own-task.md holds: its environment, its demonstrator and its commands lead to the report, on small budgets."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.cli import stage_main
from pipeline.names import Artifact, Tag
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "own-task.md").read_text()
MODULES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^mlflow run \. -e .*$", TEXT, re.MULTILINE)

# what makes minutes of seconds: the path is tested here, and not what is learnt on it
SMALL = {
    "train_expert": {"seeds": [1], "final_episodes": 20},
    "promote": {"rules": [{"scenario_set": "train", "metric": "success_rate", "min": 0.0}]},
    "collect": {"episodes": 24},
    "pretrain": {"seeds": [1, 2], "final_episodes": 20, "cloning": {"epochs": 8, "critic_epochs": 2}},
    "finetune": {"seeds": [1, 2], "final_episodes": 20},
    "compare": {"resamples": 200, "patience": 1, "playback_episodes": 1},
}
SMALL_TRAINING = {"total_timesteps": 4096, "evaluation": {"episodes": 20, "segments": [{"every_steps": 2048}]}}


@pytest.fixture
def project(tmp_path, store, monkeypatch) -> Path:
    """A folder with the reader's modules in it, and the config that the repository ships."""
    folder = tmp_path / "project"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "new_task.yaml").write_text((ROOT / "configs" / "new_task.yaml").read_text())
    for name, source in MODULES:
        (folder / name).write_text(source)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def execute(command: str) -> int:
    """What `mlflow run . -e <stage> --env-manager local -P key=value ...` starts, in this process."""
    words = shlex.split(command)
    stage = words[words.index("-e") + 1]
    parameters = [words[i + 1].partition("=") for i, word in enumerate(words) if word == "-P"]
    arguments = {"config": f"configs/{stage}.yaml", **{key: value for key, _, value in parameters}}
    return stage_main(stage, [word for key, value in arguments.items() for word in (f"--{key}", value)])


def shrink(folder: Path) -> None:
    """Small budgets in the configs of a task."""
    for stage, changes in SMALL.items():
        path = folder / f"{stage}.yaml"
        if path.exists():
            data = {**yaml.safe_load(path.read_text()), **changes}
            if "training" in data:
                seed = data["training"]["evaluation"]["seed"]
                data["training"] |= SMALL_TRAINING | {"evaluation": {**SMALL_TRAINING["evaluation"], "seed": seed}}
            path.write_text(yaml.safe_dump(data))


def test_the_document_names_what_it_gives_and_four_commands():
    assert [name for name, _ in MODULES] == ["corridor.py", "walker.py"]
    assert [command.split()[4] for command in COMMANDS] == ["new_task", "main"] * 2


@pytest.mark.slow
def test_an_environment_of_the_readers_comes_to_a_report(project, capfd):
    assert execute(COMMANDS[0]) == 0, capfd.readouterr().err
    shrink(project / "configs" / "corridor")
    code = execute(f"{COMMANDS[1]} -P finetune_failed_clones=true")
    assert code in (0, 1), capfd.readouterr().err  # so short a training may or may not meet the target
    out = capfd.readouterr().out
    assert "report.html" in out
    (compared,) = search(connect(), {Tag.STAGE: "compare"}, status=None)
    page = read_text_artifact(connect(), compared.info.run_id, f"{Artifact.REPORT}/report.html")
    assert page is not None
    assert "corridor" in page
    (recorded,) = search(connect(), {Tag.STAGE: "collect"})
    assert recorded.data.tags[Tag.DATASET_QUALITY] == "validated"
    (tuned,) = search(connect(), {Tag.STAGE: "finetune"})
    assert tuned.data.tags[Tag.SHIFT] in ("alike", "shifted")


def test_the_readers_demonstrator_saves_the_expert(project, capfd):
    assert execute(COMMANDS[2]) == 0, capfd.readouterr().err
    shrink(project / "configs" / "walked")
    command = f"{COMMANDS[3]} -P ppo_timesteps=0 -P finetune_failed_clones=true"  # eight epochs may teach nothing
    assert execute(command) == 0, capfd.readouterr().err
    (recorded,) = search(connect(), {Tag.STAGE: "collect"})
    assert recorded.data.tags[Tag.DATASET_QUALITY] == "validated"
    assert recorded.data.metrics["eval/success_rate"] > 0.9
    assert not search(connect(), {Tag.STAGE: "train_expert"}, status=None)
    assert "corridor" in sys.modules  # what was played is the reader's own

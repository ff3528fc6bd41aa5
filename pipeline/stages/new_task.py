"""`new_task`: probe an environment, and write the task file and the stage configs that fit it."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.config.loading import parse_yaml, to_data, validate
from pipeline.config.stages import STAGE_CONFIGS, NewTask
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput
from pipeline.play.demonstrators import Script, scripted
from pipeline.play.probing import probe_environment
from pipeline.report.task_files import summary, task_files
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking.host import untested
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ()
TASKS: Final = "tasks"
TAKEN: Final = (TASKS, "smoke")  # folders of configs that belong to no task


def run(run: StageRun, config: NewTask, upstream: Mapping[str, str]) -> StageOutcome:
    if config.name in TAKEN:
        raise BadInput(f"name = {config.name!r} is the name of a folder of configs; choose another")
    for path in (Path(config.folder, TASKS, f"{config.name}.yaml"), Path(config.folder, config.name)):
        if path.exists() or path.is_symlink():
            raise BadInput(f"name = {config.name!r}: {str(path)!r} exists and is not overwritten; choose another name")
    wrappers = [to_data(wrapper) for wrapper in config.wrappers]
    playable = {  # what success is, nobody knows yet
        "name": config.name,
        "environment": {"id": config.env, "kwargs": config.kwargs, "wrappers": wrappers},
        "success": {"return_at_least": 0.0},
        "thresholds": {},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1.0}},
    }
    task = Task(validate(TaskConfig, playable, "new_task"))
    shows = None if config.demonstrator is None else scripted(config.demonstrator, {}).actor
    assert shows is None or isinstance(shows, Script)
    probe = probe_environment(task, config.episodes, config.seed, shows)
    files = task_files(config, probe)
    read: dict[str, Any] = {}
    for name, text in files.items():  # as the stages will read them, before any is written
        folder, _, stem = name.removesuffix(".yaml").rpartition("/")
        read[name] = validate(TaskConfig if folder == TASKS else STAGE_CONFIGS[stem], parse_yaml(text, name), name)
    written = read[f"{TASKS}/{config.name}.yaml"]
    Task(written).make_env(next(iter(written.scenarios))).close()  # with the wrappers that were chosen
    run.record_config(config, written, {})
    for name, text in files.items():
        run.text(text, f"configs/{name}")
    write_new(Path(config.folder), config.name, files)
    return StageOutcome(summary(config, probe, list(files), untested()))


def write_new(root: Path, name: str, files: Mapping[str, str]) -> None:
    """Write all files of a task or none, and never over one that is there. Raises BadInput."""
    task_file, folder = root / TASKS / f"{name}.yaml", root / name
    try:
        (root / TASKS).mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    except OSError as error:
        raise BadInput(f"folder = {str(root)!r} cannot be written: {error.strerror}; give another") from None
    try:
        for path, text in files.items():
            (temporary / path).parent.mkdir(exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
        os.link(temporary / TASKS / f"{name}.yaml", task_file)  # fails where a file is
        try:
            os.rename(temporary / name, folder)  # fails where a folder with anything in it is
        except OSError:
            task_file.unlink()
            raise
    except OSError as error:
        raise BadInput(f"name = {name!r}: {str(root)!r} takes no new task of this name: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

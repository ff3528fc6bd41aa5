"""The smoke pipeline, made once a test session and read by all rooms: as a person runs it, and stage by stage.

`whole` is `mlflow run . -e main`; `staged` has every stage alone, in another order, one of them by `mlflow run` too.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
GROUP = "trial"
EXPERIMENT = "smoke"
TASK = "social_nav"
ORDER = (
    "baseline", "train_expert", "promote", "collect", "validate", "playback", "pretrain", "finetune", "evaluate",
    "compare",
)  # fmt: skip
GROUPED = ("finetune", "baseline", "compare")
SMALLER = {  # than the smoke configs already are
    "train_expert": {"training.checkpoint_every": "2048"},
    "playback": {"episodes": "[19, 9]"},  # short ones
    "pretrain": {"cloning.epochs": "2"},
    "finetune": {
        "control_timesteps": "512",
        "training.total_timesteps": "2048",
        "training.checkpoint_every": "1024",
    },
}
UNDRAWN = {"compare": {"playback_episodes": "0"}}  # `whole`: films take most of a report's time, `staged` has them


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A store in a folder, the configs that it was made with, and how its commands ended."""

    folder: Path
    configs: dict[str, Path]  # stage -> its config
    ended: dict[str, Ended]

    @property
    def main_config(self) -> Path:
        return self.configs["main"]


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def make_projects(folder: Path, empty_store: Path) -> None:
    """`folder/whole` and `folder/staged`, side by side; `ended.json` of each says how its commands ended."""
    import numpy as np

    from pipeline.config.loading import load_task
    from pipeline.tasks import Purpose, Task
    from pipeline.tracking.store import connect, experiment_id

    for name in ("whole", "staged"):
        (folder / name).mkdir(parents=True)
        shutil.copy(empty_store, folder / name / "mlflow.db")
        write_configs(folder / name, SMALLER | (UNDRAWN if name == "whole" else {}))
        with mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=uri_of(folder / name)):
            experiment_id(connect(), EXPERIMENT)  # before `mlflow run` makes it, whose artifacts would lie elsewhere
    with contextlib.chdir(ROOT):  # on a fresh clone the kernels are compiled here once, not in both lanes
        task = Task(load_task("configs/tasks/social_nav.yaml"))
        with contextlib.closing(task.make_vec_env([iter(task.episodes("train_small", 1, 1, Purpose.RECORD))])) as env:
            env.reset()
            env.step(np.zeros((1, 2), np.float32))
    with ThreadPoolExecutor(2) as lanes:
        making = lanes.submit(in_process_of_its_own, folder / "staged")
        main = lanes.submit(mlflow_run, folder / "whole", "main")
        remember(folder / "whole", {"main": main.result()})
        making.result()


def recall(folder: Path) -> Project:
    """A project that this or another process made."""
    ended = {stage: Ended(**how) for stage, how in json.loads((folder / "ended.json").read_text()).items()}
    return Project(folder, {path.stem: path for path in folder.glob("*.yaml")}, ended)


def remember(folder: Path, ended: dict[str, Ended]) -> None:
    (folder / "ended.json").write_text(json.dumps({stage: asdict(how) for stage, how in ended.items()}))


def write_configs(folder: Path, smaller: dict[str, dict[str, str]]) -> None:
    from pipeline.config.loading import load, to_yaml
    from pipeline.config.stages import STAGE_CONFIGS, Main

    with contextlib.chdir(ROOT):
        of_main = {stage: path for stage, path in vars(load(Main, "configs/smoke/main.yaml").stages).items() if path}
        for stage in ORDER:
            path = of_main.get(stage, f"configs/smoke/{'finetune' if stage == 'baseline' else stage}.yaml")
            config = load(STAGE_CONFIGS[stage], path, smaller.get("finetune" if stage == "baseline" else stage, {}))
            (folder / f"{stage}.yaml").write_text(to_yaml(config))
    lines = [f"  {stage}: {folder}/{stage}.yaml" for stage in of_main]
    lines = ["stages:", *lines, f"group: {GROUP}", "finetune_failed_clones: true", ""]
    (folder / "main.yaml").write_text("\n".join(lines))


def mlflow_run(folder: Path, stage: str, *parameters: str) -> Ended:
    """`mlflow run . -e <stage> -P config=<folder>/<stage>.yaml -P ...` on the store of a folder."""
    command = [str(Path(sys.executable).parent / "mlflow"), "run", ".", "-e", stage, "--env-manager", "local"]
    command += ["--experiment-name", EXPERIMENT]
    for parameter in (f"config={folder}/{stage}.yaml", *parameters):
        command += ["-P", parameter]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri_of(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    return Ended(done.returncode, done.stdout, done.stderr)


def in_process_of_its_own(folder: Path) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri_of(folder), "MLFLOW_EXPERIMENT_NAME": EXPERIMENT}
    subprocess.run([sys.executable, __file__, str(folder)], cwd=ROOT, env=environment, check=True, timeout=900)


def stage_by_stage(folder: Path) -> None:
    """Every stage alone, here; `validate` as a project of MLflow."""
    from pipeline.cli import stage_main

    ended = {}
    for stage in ORDER:
        group = ["--group", GROUP] if stage in GROUPED else []
        out, err = io.StringIO(), io.StringIO()
        if stage == "validate":
            ended[stage] = mlflow_run(folder, stage)
            continue
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = stage_main(stage, ["--config", f"{folder}/{stage}.yaml", *group])
        ended[stage] = Ended(code, out.getvalue(), err.getvalue())
    remember(folder, ended)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    stage_by_stage(Path(sys.argv[1]))

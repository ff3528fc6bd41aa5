"""The pipeline as a person runs it: `mlflow run . -e <stage>` on the smoke configs, in a store of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUP = "smoke-group"
EXPERIMENT = "smoke"
TASK = "social_nav"


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Project:
    """A store in a folder, with the experiment there before anything runs, so that artifacts land beside it."""

    folder: Path
    ended: dict[str, Ended] = field(default_factory=dict)

    def prepare(self) -> None:
        self.folder.mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", uri_of(self.folder))
            from pipeline.tracking.store import connect, experiment_id

            experiment_id(connect(), EXPERIMENT)

    def run(self, stage: str, *parameters: str) -> None:
        """`mlflow run . -e <stage> -P config=configs/smoke/<stage>.yaml -P ...`, kept under the stage's name."""
        config = "finetune" if stage == "baseline" else stage
        command = [str(Path(sys.executable).parent / "mlflow"), "run", ".", "-e", stage, "--env-manager", "local"]
        command += ["--experiment-name", EXPERIMENT]
        for parameter in (f"config=configs/smoke/{config}.yaml", *parameters):
            command += ["-P", parameter]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "MLFLOW_TRACKING_URI": uri_of(self.folder)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        self.ended[stage] = Ended(done.returncode, done.stdout, done.stderr)

    def remember(self) -> None:
        """Write down how the commands ended, for another process of the test session."""
        (self.folder / "ended.json").write_text(json.dumps({stage: asdict(e) for stage, e in self.ended.items()}))

    def recall(self) -> None:
        self.ended = {s: Ended(**e) for s, e in json.loads((self.folder / "ended.json").read_text()).items()}


def run_everything(staged: Project, whole: Project) -> None:
    """Every stage alone in one store, and `main` in another, on two lanes; what waits for nothing runs first."""
    for project in (staged, whole):
        project.prepare()
    with ThreadPoolExecutor(2) as lanes:
        cloned = lanes.submit(in_order, staged, ("train_expert", "promote", "collect", "pretrain"))
        both: Sequence[Future[None]] = [
            lanes.submit(in_order, staged, ("baseline",)),
            lanes.submit(whole.run, "main"),
        ]
        cloned.result()
        finished = lanes.submit(in_order, staged, ("finetune",))
        rest = lanes.submit(in_order, staged, ("validate", "playback", "evaluate"))
        for future in (*both, finished, rest):
            future.result()
    in_order(staged, ("compare",))


PARAMETERS = {"finetune": (f"group={GROUP}",), "baseline": (f"group={GROUP}",), "compare": (f"group={GROUP}",)}


def in_order(project: Project, stages: Sequence[str]) -> None:
    for stage in stages:
        project.run(stage, *PARAMETERS.get(stage, ()))

"""One whole comparison on the smoke configs, made once, and copies of its store to be spoilt."""

import contextlib
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest
from one_group import GROUP

SMALLER = {  # than the smoke configs already are
    "train_expert": {"seeds": "[1]", "training.checkpoint_every": "2048"},
    "pretrain": {"cloning.epochs": "2", "cloning.evaluate_every_epochs": "2"},
    "finetune": {
        "control_timesteps": "512",
        "training.total_timesteps": "2048",
        "training.checkpoint_every": "1024",
    },
}


@dataclass(frozen=True)
class Finished:
    """A store with the group `trial`, finished by `main`."""

    folder: Path
    main_config: Path
    configs: dict[str, Path]  # stage -> its config


@pytest.fixture(scope="session")
def finished(tmp_path_factory, repository) -> Finished:
    from pipeline.config.loading import load, to_yaml
    from pipeline.config.stages import STAGE_CONFIGS, Main
    from pipeline.stages.main import run_stage

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        paths = vars(load(Main, "configs/smoke/main.yaml").stages)
        configs = {}
        for stage, path in paths.items():
            configs[stage] = folder / f"{stage}.yaml"
            configs[stage].write_text(to_yaml(load(STAGE_CONFIGS[stage], path, SMALLER.get(stage, {}))))
        lines = [f"  {stage}: {path}" for stage, path in configs.items()]
        main = folder / "main.yaml"
        main.write_text("\n".join(["stages:", *lines, f"group: {GROUP}"]))
        assert run_stage("main", str(main), {}, {}).verdict is not None
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Finished(folder, main, configs)


@pytest.fixture
def copied(finished, tmp_path, monkeypatch, in_repository) -> Finished:
    """The finished store, this test's own; the artifacts of finished runs are shared and only read."""
    shutil.copy(finished.folder / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return finished


@pytest.fixture
def runs(copied):
    """`runs(stage, seed)`: ids of the group's runs, newest first."""
    from pipeline.tracking.runs import search
    from pipeline.tracking.store import connect

    def find(stage: str, seed: int | None = None) -> list[str]:
        tags = {"group": GROUP, "stage": stage} | ({} if seed is None else {"seed": str(seed)})
        return [run.info.run_id for run in search(connect(), tags, status=None)]

    return find

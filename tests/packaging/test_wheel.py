"""The package as others have it: built as a wheel, installed where no checkout is, run from another folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.names import Artifact, Tag
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_main_runs_from_an_installed_wheel_with_nothing_of_the_checkout_but_configs(tmp_path, monkeypatch):
    built, elsewhere, installed = tmp_path / "source", tmp_path / "elsewhere", tmp_path / "elsewhere" / "site"
    keep = shutil.ignore_patterns("__pycache__")
    for package in ("pipeline", "entrypoints"):
        shutil.copytree(ROOT / package, built / package, ignore=keep)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, built)
    shutil.copytree(ROOT / "configs", elsewhere / "configs")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # the packages that it needs are there; what builds it is that of this environment
    done([*pip, "wheel", str(built), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    done([*pip, "install", str(wheel), "--no-deps", "--no-index", "--target", str(installed)], tmp_path)
    shutil.rmtree(built)
    # somebody's own checkout around it says nothing of the package
    done(["git", "init", "--quiet"], elsewhere)
    done(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "a"], elsewhere
    )

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", str(installed))
    where = done([sys.executable, "-c", "import pipeline, entrypoints; print(pipeline.__file__)"], elsewhere)
    assert Path(where.strip()).is_relative_to(installed)
    shorter = ["--compare.playback_episodes", "0", "--finetune.control_timesteps", "0", "--ppo_timesteps", "2048"]
    out = done([sys.executable, "-m", "entrypoints.main", "--config", "configs/smoke/main.yaml", *shorter], elsewhere)
    assert "report: " in out
    (compared,) = search(connect(), {Tag.STAGE: "compare"})
    record = json.loads(read_text_artifact(connect(), compared.info.run_id, Artifact.ENVIRONMENT))
    assert record["git"] == {"commit": "unknown", "dirty": True}
    snqi = done([sys.executable, "-c", SNQI_STEP], elsewhere)
    assert snqi.strip() == "100"


SNQI_STEP = """
from pipeline.envs.social_nav.environment import SocialNavEnv
files = {name: f"configs/social_nav/snqi_{name}.json" for name in ("weights", "baseline")}
env = SocialNavEnv(reward_name="snqi_step", reward_kwargs=files, horizon=100)
env.reset(seed=0)
print(next(step for step in range(1, 200) if any(env.step(env.action_space.sample() * 0)[2:4])))
"""


def done(command: list[str], folder: Path) -> str:
    """Its standard output; it must end with code 0."""
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1_200, env=dict(os.environ))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout

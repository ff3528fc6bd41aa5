"""Kill the whole pipeline at random moments, call it again until it ends, and hold what it left to one never killed.

    python benchmarks/kills.py --kills 200 --folder /tmp/kills

Plays `main` on the smoke configs, with a checkpoint every 1,024 steps, once without a kill and then in campaigns: a
fresh store, SIGKILL after a random time, the same command again, some kills more, and the last call to its end. Prints
a line for every campaign. Needs a POSIX system.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import psutil
import stable_baselines3  # noqa: F401  (imported before the forks, so that they start at once)

from pipeline.config.loading import load, to_yaml
from pipeline.config.stages import STAGE_CONFIGS, Main
from pipeline.names import Tag
from pipeline.stages import run_stage
from pipeline.tracking.runs import experiment_ids

SMALLER = {
    "train_expert": {"seeds": "[1]", "training.checkpoint_every": "1024"},
    "pretrain": {"cloning.epochs": "2", "cloning.evaluate_every_epochs": "2"},
    "finetune": {
        "control_timesteps": "512",
        "training.total_timesteps": "4096",
        "training.checkpoint_every": "1024",
        "seeds": "[1, 2]",
    },
}
PER_CAMPAIGN = 6


def configs(folder: Path) -> Path:
    """The smoke configs, a little smaller, with checkpoints; returns that of `main`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["stages:"]
    for stage, path in vars(load(Main, "configs/smoke/main.yaml").stages).items():
        (folder / f"{stage}.yaml").write_text(to_yaml(load(STAGE_CONFIGS[stage], path, SMALLER.get(stage, {}))))
        lines.append(f"  {stage}: {folder / stage}.yaml")
    (folder / "main.yaml").write_text("\n".join(lines))
    return folder / "main.yaml"


def start(config: Path, store: Path) -> int:
    """`main` in a process of its own; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    code = 99
    try:
        with (store / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}/mlflow.db"
        code = 0 if run_stage("main", str(config), {}, {}).verdict is not None else 98
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended_within(pid: int, seconds: float) -> int | None:
    """The exit code of a process, None when it still runs after that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def kill(pid: int, alone: bool) -> None:
    """The process alone, which its workers survive for a moment, or all of them at once."""
    family = psutil.Process(pid).children(recursive=True)
    if alone:
        os.kill(pid, signal.SIGKILL)
    else:
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    psutil.wait_procs(family, timeout=120)


def interrupted(store: Path) -> str:
    """The stage that a kill fell into; `main` between two of them, and before the first."""
    if not (store / "mlflow.db").exists():
        return "main"
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    client = mlflow.MlflowClient()
    open_runs = client.search_runs(experiment_ids(client), "attributes.status = 'RUNNING'")
    stages = {run.data.tags.get(Tag.STAGE, "main") for run in open_runs}
    return next((stage for stage in sorted(stages - {"main"}) if not stage.endswith("_seed")), "main")


def left_behind(store: Path) -> dict[str, Any]:
    """What a store holds, without what differs from call to call: ids, times and places."""
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    client = mlflow.MlflowClient()
    runs = client.search_runs(experiment_ids(client))
    trained, repeated = {}, 0
    for run in runs:
        tags = run.data.tags
        counts = {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
        if Tag.POLICY_DIGEST in tags and "policy.weights_digest" in tags:
            key = f"{tags[Tag.STAGE]} {tags.get(Tag.ARM)} {tags[Tag.SEED]}"
            repeated += key in trained
            trained[key] = [tags[Tag.POLICY_DIGEST], tags["policy.weights_digest"], counts]
    finished = [r for r in runs if r.info.status == "FINISHED"]
    return {
        "trained": trained,
        "repeated": repeated,
        "datasets": sorted(r.data.tags[Tag.DATASET_DIGEST] for r in finished if Tag.DATASET_DIGEST in r.data.tags),
        "half datasets": sum(Tag.DATASET_ID in r.data.tags and Tag.DATASET_QUALITY not in r.data.tags for r in runs),
        "versions": sorted(v.tags["policy.digest"] for v in client.search_model_versions()),
        "open": sum(r.info.status == "RUNNING" for r in runs),
        "mains": sum(r.data.tags.get(Tag.STAGE) == "main" for r in runs),
        "checkpoints left": len(list(Path(f"{store}/mlflow.db.checkpoints").glob("*"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/kills"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new campaign after this time")
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    config, chance, began = configs(given.folder / "configs"), random.Random(given.seed), time.monotonic()
    reference = given.folder / "never-killed"
    reference.mkdir()
    duration = time.monotonic()
    assert ended_within(start(config, reference), 36_000) == 0, (reference / "log.txt").read_text()
    duration = time.monotonic() - duration
    expected = left_behind(reference)
    print(f"never killed: {duration:.0f} s, {len(expected['trained'])} trainings", flush=True)
    kills, hit = 0, Counter[str]()
    campaigns: list[dict[str, Any]] = []
    while kills < given.kills and time.monotonic() - began < 60 * given.minutes:
        store = given.folder / f"campaign-{len(campaigns) + 1}"
        store.mkdir()
        planned = min(PER_CAMPAIGN, given.kills - kills)
        done = 0
        while True:
            pid = start(config, store)
            # what a call finishes is reused by the next: these waits add up to about one whole job
            wait = chance.uniform(0, 2 / (PER_CAMPAIGN + 1)) * duration if done < planned else 36_000
            code = ended_within(pid, wait)
            if code is not None:
                break
            kill(pid, alone=chance.random() < 0.5)
            done += 1
            hit[interrupted(store)] += 1
        kills += done
        found = left_behind(store)
        differs = sorted(key for key in expected if found[key] != expected[key])
        campaigns.append({"kills": done, "exit code": code, "differs": differs})
        print(json.dumps(campaigns[-1]), flush=True)
        if not differs and code == 0:
            shutil.rmtree(store)
    good = sum(c["exit code"] == 0 and not c["differs"] for c in campaigns)
    print(f"{kills} kills in {len(campaigns)} campaigns: {good} ended as the one that was never killed")
    print("kills by stage: " + ", ".join(f"{stage} {count}" for stage, count in hit.most_common()))
    sys.exit(good != len(campaigns))


if __name__ == "__main__":
    main()

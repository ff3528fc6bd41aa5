"""The golden net of a change that must not change a bit: everything that the smoke pipelines leave, as digests.

    make golden         # before: writes .golden/<kind of processor>.json (not committed; it belongs to this machine)
    make golden-check   # after: the same again, compared; code 1 and the names of what differs

Run: `main` on social navigation and on LunarLander, a sweep, GAIL, AIRL and DAgger on the same data, and a training
with checkpoints. Held: digests of datasets, policies (best and last), checkpoints, and of every metric point,
parameter, evaluation and figure of the report, but for clocks, ids and paths.
"""

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.learning.checkpoints import STATE
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.processor import machine, processor_kind
from pipeline.learning.train import train

ROOT = Path(__file__).resolve().parents[1]
CLOCK = re.compile(r"time|seconds|minutes|fps|per_second|epoch_ms|_at$|utc|date|moment|started|ended|elapsed|^t$")
IDENTITY = re.compile(
    r"run_id|\.id$|^id$|uri|path|folder|commit|version|link|digest|group|run$|experiment|command|source"
    r"|^dataset$|^job$"
)
COMMANDS = (
    ("main", "configs/smoke/main.yaml"),
    ("main", "configs/smoke/lunar_lander/main.yaml"),
    ("sweep", "configs/smoke/sweep.yaml"),
    *(("pretrain", f"configs/smoke/{algorithm}/pretrain.yaml") for algorithm in ("gail", "airl", "dagger")),
)


def digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def figures(data: Any) -> Any:
    """Numbers, flags and plain words of a JSON document; not its clocks, ids and paths."""
    if isinstance(data, dict):
        kept = {
            key: value
            for key, value in data.items()
            if not CLOCK.search(key) and not (isinstance(value, str) and IDENTITY.search(key))
        }
        return {key: figures(value) for key, value in kept.items()}
    if isinstance(data, list):
        return [figures(value) for value in data]
    return data if not isinstance(data, str) or len(data) < 32 else None


def leaves(data: Any, name: str) -> dict[str, str]:
    """`{"a": {"b": 1}}` -> `{"name a.b": "1"}`; long lists as digests."""
    if isinstance(data, dict):
        return {key: text for part in data for key, text in leaves(data[part], f"{name}.{part}").items()}
    text = json.dumps(data)
    return {name: text if len(text) < 80 else digest(data)}


def run_pipelines(folder: Path) -> None:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "1",
    }
    for stage, config in COMMANDS:
        task = "lunar_lander" if "lunar" in config else "social_nav"
        more = {
            "pretrain": ["--dataset", "latest"],
            "sweep": ["--storage", f"sqlite:///{folder}/sweep.db"],  # a study that is finished would only be told again
        }.get(stage, [])
        done = subprocess.run(
            [sys.executable, "-m", f"entrypoints.{stage}", "--config", config, *more],
            cwd=ROOT, env={**environment, "MLFLOW_EXPERIMENT_NAME": task}, capture_output=True, text=True,
        )  # fmt: skip
        print(f"{stage} {config}: code {done.returncode}", flush=True)
        if done.returncode not in (0, 1):
            sys.exit(done.stdout + done.stderr)


def store(folder: Path) -> dict[str, str]:
    """What the runs say: `main/finetune_seed/pretrained/3#1 policy.digest` -> value or digest."""
    held: dict[str, str] = {}
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = database.execute("SELECT run_uuid, artifact_uri FROM runs ORDER BY start_time, rowid").fetchall()
        tags: dict[str, dict[str, str]] = defaultdict(dict)
        for run, key, value in database.execute("SELECT run_uuid, key, value FROM tags"):
            tags[run][key] = value
        seen: Counter[str] = Counter()
        for run, uri in runs:
            own = tags[run]
            parts = (own.get(key) for key in ("task", "stage", "arm", "seed", "algorithm", "trial.number"))
            name = "/".join(part for part in parts if part)
            seen[name] += 1
            name = f"{name}#{seen[name]}"
            for key in ("policy.digest", "policy.last_digest", "dataset.digest", "dataset.quality", "verdict", "gate"):
                if key in own:
                    held[f"{name} {key}"] = own[key]
            points = database.execute("SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ?", (run,))
            metrics: dict[str, list[Any]] = defaultdict(list)
            for key, *point in points:
                if not CLOCK.search(key):
                    metrics[key].append(point)
            for key, found in metrics.items():
                held[f"{name} metric {key}"] = f"{len(found)} points, {digest(sorted(found))}"
            for key, value in database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,)):
                if key.startswith("cfg.") and key != "cfg.storage":
                    held[f"{name} {key}"] = value
            for file in sorted(Path(uri.removeprefix("file://")).rglob("*.json")):
                if file.name in ("report.json", "evaluations.json", "diagnostics.json", "distribution_shift.json"):
                    held |= leaves(figures(json.loads(file.read_text())), f"{name} {file.name}")
    return held


def checkpointed(folder: Path) -> dict[str, str]:
    """One training from scratch that leaves checkpoints: their files, the policies, the evaluations."""
    training = replace(load(Finetune, "configs/smoke/finetune.yaml").training, checkpoint_every=2048)
    job = TrainingJob(
        load_task("configs/tasks/social_nav.yaml"),
        training,
        1,
        str(folder / "out"),
        checkpoints=str(folder / "kept"),
        checkpoint_key="0" * 36,
    )
    result = train(job, lambda _: None)
    files: dict[str, str] = {}
    for number, file in enumerate(sorted((folder / "kept").rglob("*.safetensors"))):
        tensors = load_file(file)
        state = figures(json.loads(tensors.pop(STATE).tobytes()))
        held = [(name, tensor.shape, tensor.tobytes().hex()) for name, tensor in sorted(tensors.items())]
        files[f"checkpoint {number}"] = digest([held, state])
    return {**files, "best policy": result.best_digest, "last policy": result.last_digest}


def main() -> None:
    write = sys.argv[1:] == ["write"]
    path = ROOT / ".golden" / f"{re.sub(r'[^a-zA-Z0-9_.-]+', '-', processor_kind(machine(threads=1)))}.json"
    if not write and not path.is_file():
        sys.exit(f"{path} does not exist: run `make golden` on the state that is to be kept")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_pipelines(folder)
        held = {**store(folder), **{f"training {key}": value for key, value in checkpointed(folder).items()}}
    if write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
        print(f"{len(held)} things held in {path}")
        return
    golden = json.loads(path.read_text())
    different = [
        f"{name}: {held.get(name, 'missing')} (was {golden.get(name, 'missing')})"
        for name in sorted(golden.keys() | held.keys())
        if golden.get(name) != held.get(name)
    ]
    print("\n".join(different))
    sys.exit(f"{len(different)} of {len(golden)} differ" if different else print(f"all {len(golden)} equal"))


if __name__ == "__main__":
    main()

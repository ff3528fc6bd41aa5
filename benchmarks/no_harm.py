"""Does a start from demonstrations do harm? Demonstrators of three grades, three sizes, three arms, matched seeds.

    python -m benchmarks.no_harm                        # every cell, one after the other; goes on where it was
    python -m benchmarks.no_harm --cells social_nav/bad/10
    python -m benchmarks.no_harm --table                # of docs/no-harm.json, where the figures of every cell are kept

A cell is a run of `main` with a config of configs/no_harm, in a store of its own, with its report: PPO from scratch,
PPO from the clones as people start it today (`naive`), and with the adaptive warm start (`pretrained`). Grades:
`expert`; `mediocre`, the same with two actions in ten at random, which it demonstrates too; `bad`, random actions of
which the best tenth of the episodes is kept; and for social navigation the dynamic-window `planner`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false")

import yaml
from mlflow import MlflowClient

from pipeline.names import Alias, Tag
from pipeline.report.text import aligned
from pipeline.statistics.efficiency import SIGNS, TimeToTarget, mean_kind
from pipeline.tracking.models import fetch_version, find_version
from pipeline.tracking.runs import search

GRADES = {
    "social_nav": ("expert", "planner", "mediocre", "bad"),
    "lunar_lander": ("expert", "mediocre", "bad"),
    "quadruped": ("expert", "mediocre", "bad"),
}
SIZES = (10, 200, 50)
CELLS = tuple(f"{task}/{grade}/{size}" for size in SIZES for task, grades in GRADES.items() for grade in grades)
# the 0.9 quantiles of the returns of 1,000 random episodes
BEST_TENTH = {"social_nav": 0.30, "lunar_lander": -77.6, "quadruped": 3.53}
RESULTS = Path("docs/no-harm.json")
KEPT_OF_FIVE_ROUNDS = 2  # a tenth of five rounds of recording is half of what is asked for


def settings(task: str, grade: str, size: int, client: MlflowClient) -> Iterator[tuple[str, object]]:
    """What a cell says to `main`, on top of configs/no_harm/<task>."""
    graded = "benchmarks.graded_demonstrators:Slipping"
    kwargs: dict[str, object] = {"task": f"configs/tasks/{task}.yaml"}
    shipped = yaml.safe_load(Path(f"configs/{task}/collect.yaml").read_text())
    recorded = size
    if (task, grade, size) == ("social_nav", "bad", 10):  # of so few, not every scenario has one that is kept
        recorded = 50
        yield "pretrain.episodes", size
    yield "collect.episodes", recorded if grade != "bad" else KEPT_OF_FIVE_ROUNDS * recorded
    yield "finetune_failed_clones", True
    if grade == "bad":
        yield "collect.filter", {"min_return": BEST_TENTH[task]}
        yield "collect.scripted", {"demonstrator": graded, "kwargs": kwargs}
    elif grade == "mediocre":
        kwargs["share"] = 0.2
        if task == "social_nav":
            approved = find_version(client, "latest", task, Alias.APPROVED)
            kwargs["policy"] = str(fetch_version(approved).folder)
        else:
            kwargs |= shipped["scripted"]
        yield "collect.scripted", {"demonstrator": graded, "kwargs": kwargs}
    elif grade == "planner":
        yield "collect.scripted", {"demonstrator": "benchmarks.social_nav_planners:dynamic_window"}
        yield "collect.noise", {"std": 0.3}
        yield "collect.filter", {"only_success": True}
    else:  # as the shipped config records
        for key in ("scripted", "noise", "filter"):
            if key in shipped:
                yield f"collect.{key}", shipped[key]


def run(cell: str, store: str) -> int:
    task, grade, size = cell.split("/")
    config = "expert" if (task, grade) == ("social_nav", "expert") else "main"
    given = dict(settings(task, grade, int(size), MlflowClient(store)))
    command = ["mlflow", "run", ".", "-e", "main", "--env-manager", "local", "--experiment-name", "no_harm"]
    command += ["-P", f"config=configs/no_harm/{task}/{config}.yaml", "-P", f"group={cell.replace('/', '-')}"]
    for key, value in given.items():
        command += ["-P", f"{key}={json.dumps(value)}"]
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": "."}
    return subprocess.run(command, env={**os.environ, **paths, "MLFLOW_TRACKING_URI": store}).returncode


def compared(store: str) -> dict[str, dict]:
    """Cell -> figures of its last finished comparison: by arm and seed when the target was met and how it ended."""
    client, found = MlflowClient(store), dict[str, dict]()
    for made in reversed(search(client, {Tag.STAGE: "compare"})):
        cell = made.data.tags[Tag.GROUP].replace("-", "/")
        if cell not in CELLS:
            continue  # a comparison of another study
        file = client.download_artifacts(made.info.run_id, "report/report.json")
        report = json.loads(Path(file).read_text())["comparison"]
        decisive = report["settings"]["final_figure"]
        (final,) = [f for f in report["finals"][report["settings"]["training_set"]] if f["figure"] == decisive]
        arms = {name: {"times": arm["times"], "finals": final["values"][name]} for name, arm in report["arms"].items()}
        found[cell] = {"arms": arms, "ranking": report["ranking"]}
    return found


def table(reports: Mapping[str, dict]) -> str:
    """Each cell with both arms against PPO from scratch: 95 % intervals over matched seeds."""
    header = ("demonstrator", "episodes", "arm", "steps to target", "ratio to scratch", "p", "final difference", "p")
    rows = [header, ("---", "--:", "---", "--:", "--:", "--:", "--:", "--:")]
    for task, grades in GRADES.items():
        for grade in grades:
            for size in sorted(SIZES):
                if (report := reports.get(f"{task}/{grade}/{size}")) is None:
                    continue
                for arm in report["ranking"]:
                    times = [TimeToTarget(**time) for time in report["arms"][arm["arm"]]["times"]]
                    sign = "> " if all(time.censored for time in times) else SIGNS[mean_kind(times)]
                    steps = f"{sign}{arm['steps']['value']:,.0f}"
                    ratio = p = "–"  # no run of either met the target
                    if arm["ratio_kind"] is not None:
                        ratio, p = f"{SIGNS[arm['ratio_kind']]}{_interval(arm['ratio'])}", f"{arm['ratio_p']:.2g}"
                    rows.append(
                        (f"{task}, {grade}", str(size), arm["arm"], steps, ratio, p,
                         _interval(arm["difference"]), f"{arm['difference_p']:.2g}")
                    )  # fmt: skip
    return aligned("\n".join(f"| {' | '.join(row)} |" for row in rows))


def _interval(estimate: dict) -> str:
    value, low, high = (estimate[end] for end in ("value", "low", "high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", default=CELLS, help="task/grade/size; default: all")
    parser.add_argument("--store", default="sqlite:///no_harm.db")
    parser.add_argument("--table", action="store_true", help="only say what is there")
    arguments = parser.parse_args()
    os.environ["MLFLOW_TRACKING_URI"] = arguments.store
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not arguments.table:
        for cell in arguments.cells:
            if cell not in compared(arguments.store):
                print(f"{cell}: code {run(cell, arguments.store)}", flush=True)
        found |= compared(arguments.store)
        RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()

"""The public benchmark: what a start from demonstrations is worth on environments that everybody knows.

    make benchmark ZOO=path/to/rl-trained-agents                # every task, one after the other; goes on where it was
    make benchmark ZOO=path/to/rl-trained-agents TASK=hopper
    python -m benchmarks.public --table                         # those of docs/benchmark.md, from docs/benchmark/*.json
    python -m benchmarks.public --picture docs/img/benchmark.png

A task is a run of `main` with configs/benchmark/<task>.yaml in one store (benchmark.db), or two: groups <task>-ppo and
<task>-sac. Its reports stay there; what tables and picture need of it is written to docs/benchmark/<task>.json.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false")

import matplotlib.pyplot as plt
import numpy as np
import yaml
from mlflow import MlflowClient
from scipy.stats import trim_mean

from pipeline.config.base import Bound
from pipeline.names import Arm, Metric, Tag
from pipeline.report.text import aligned
from pipeline.statistics.efficiency import (
    RatioKind,
    TimeToTarget,
    matched_pair,
    mean_kind,
    never_met,
    ratio_kind,
    timesteps_to_target,
)
from pipeline.statistics.estimate import MeanOverSeeds
from pipeline.tracking.runs import search

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "benchmark"
# task -> the agent of the RL Zoo that demonstrates; None: the task's config names its demonstrations
TASKS = {
    "half_cheetah": "tqc-HalfCheetah-v3",
    "half_cheetah_a2c": "a2c-HalfCheetah-v3",
    "walker2d": "sac-Walker2d-v3",
    "hopper": "tqc-Hopper-v3",
    "hopper_sac": "sac-Hopper-v3",
    "swimmer": "sac-Swimmer-v3",
    "bipedal_walker": "ppo-BipedalWalker-v3",
    "adroit_door": None,
    "metaworld_reach": None,
    "metaworld_drawer_open": None,
    "metaworld_door_open": None,
    "lunar_lander": None,
    "social_nav": None,
    "quadruped": None,
}
METAWORLD = ROOT / ".venv-metaworld" / "bin"  # metaworld asks for another MuJoCo
DOOR = ROOT / "work" / "adroit_door.npz"
PPO_ARMS = ("clone", "naive", "residual")  # beside scratch and warm
SEEDS_OF_SAC = 3
RESAMPLES = 2_000
ENDS = {"best": "best checkpoint", "last": "last evaluation"}
ASCII: dict[RatioKind, str] = {"exact": "", "upper bound": "<= ", "lower bound": ">= ", "undetermined": "? "}
WORDS = {Arm.PRETRAINED: "warm"}
ARMS = (Arm.SCRATCH, Arm.PRETRAINED, "clone", "naive", "residual", "sac", "sac_demos")


def config_of(task: str) -> str:
    """The config of `main`: that of the benchmark, or the one that the task ships with."""
    own = f"configs/benchmark/{task}.yaml"
    return own if ROOT.joinpath(own).exists() else f"configs/{task}/main.yaml"


def zip_of(agent: str, zoo: str) -> Path:
    """The agent in a clone of rl-trained-agents (`tqc/Hopper-v3_1/Hopper-v3.zip`), or in a folder of its own name.

    Raises SystemExit when it is in neither.
    """
    algorithm, _, name = agent.partition("-")
    places = Path(zoo, algorithm, f"{name}_1", f"{name}.zip"), Path(zoo, agent, f"{name}.zip")
    found = [place for place in places if place.is_file()]
    if not found:
        print(f"error: {agent} is not in {zoo}: neither {places[0]} nor {places[1]}; give --zoo", file=sys.stderr)
        raise SystemExit(2)
    return found[0].resolve()


def comparisons(task: str, zoo: str | None) -> dict[str, list[str]]:
    """Group -> `mlflow run` of it: the arms of PPO on five seeds, and those of SAC, which cost more, on three."""
    said = ["mlflow", "run", ".", "-e", "main", "--env-manager", "local", "--experiment-name", "benchmark"]
    said += ["-P", f"config={config_of(task)}"]
    if (agent := TASKS[task]) is not None and zoo is not None:
        said += ["-P", f"expert={zip_of(agent, zoo)}"]
    ppo = f"{task}-ppo"
    commands = {ppo: [*said, "-P", f"group={ppo}", "-P", f"finetune.arms=[{', '.join(PPO_ARMS)}]"]}
    stages = yaml.safe_load(ROOT.joinpath(config_of(task)).read_text())["stages"]
    arms = stages["finetune"]["arms"] if isinstance(stages["finetune"], dict) else PPO_ARMS
    if sac := {name: arms[name] for name in arms if name not in PPO_ARMS}:
        group = f"{task}-sac"
        commands[group] = [*said, "-P", f"group={group}", "-P", f"finetune.arms={json.dumps(sac)}"]
        commands[group] += ["-P", f"matched_seeds={SEEDS_OF_SAC}"]
    return commands


def extract(report: dict[str, Any], task: str) -> dict[str, Any]:
    """What the tables need of a report: every arm's evaluations, final figures, costs, and where they come from."""
    compared, context = report["comparison"], report["context"]
    settings = compared["settings"]
    figure = next(name for name, bound in settings["target"].items() if bound["min"] is not None)
    final = next(f for f in compared["finals"][settings["training_set"]] if f["figure"] == figure)
    shown = [
        r["figures"][figure]["value"] for r in context["references"] if r["scenario_set"] == settings["training_set"]
    ]
    return {
        "task": task,
        "demonstrator": TASKS[task],
        "figure": figure,
        "target": settings["target"],
        "unit": shown[0] if figure == Metric.RETURN_MEAN else 1.0,  # of the figure: scores are shares of it
        "patience": settings["patience"],
        "clones": float(np.mean(final["values"]["start"])),
        "arms": {
            name: {
                "budget": arm["budget"],
                "wall_seconds": arm["wall_seconds"]["value"],
                "gradient_steps": arm["gradient_steps"],
                "runs": [
                    {
                        "seed": run["seed"],
                        "steps": run["steps"],
                        "evaluations": {name: run["figures"][name] for name in settings["target"]},
                        "final": final["values"][name][index],
                    }
                    for index, run in enumerate(arm["runs"])
                ],
            }
            for name, arm in ((name, compared["arms"].get(name)) for name in ARMS)
            if arm is not None
        },
        "ratios": {row["arm"]: row["ratio"] for row in compared["ranking"]},
        "commit": context["commit"],
        "dirty": context["dirty"],
        "machine": context["machine"],
        "versions": context["versions"],
        "created_at": context["created_at"],
    }


def keep(task: str, store: str) -> None:
    """Write the JSON of the task's last comparisons, if the store has them; SAC's arms join those of PPO."""
    client, found = MlflowClient(store), dict[str, dict[str, Any]]()
    for group in (f"{task}-ppo", f"{task}-sac"):
        for made in search(client, {Tag.STAGE: "compare", Tag.GROUP: group})[:1]:
            report = client.download_artifacts(made.info.run_id, "report/report.json")
            found[group] = extract(json.loads(Path(report).read_text()), task)
    if not found:
        return
    result, *further = found.values()
    for of_sac in further:
        result["arms"] = {**of_sac["arms"], **result["arms"]}
        result["ratios"] = {**of_sac["ratios"], **result["ratios"]}
    result["arms"] = {arm: result["arms"][arm] for arm in ARMS if arm in result["arms"]}
    RESULTS.mkdir(exist_ok=True)
    RESULTS.joinpath(f"{task}.json").write_text(json.dumps(result, indent=1) + "\n")


def times_to_target(result: dict[str, Any], arm: str) -> dict[int, TimeToTarget]:
    """Of every run, by seed."""
    times = {}
    for run in result["arms"][arm]["runs"]:
        met = np.ones(len(run["steps"]), bool)
        for figure, bound in result["target"].items():
            met &= [Bound(**bound).holds(value) for value in run["evaluations"][figure]]
        times[run["seed"]] = timesteps_to_target(run["steps"], met, result["patience"])
    return times


def scores(result: dict[str, Any], arm: str) -> dict[str, np.ndarray]:
    """Of an arm's best checkpoints and of its last evaluations, as shares of the demonstrator's, (runs,) each."""
    runs = result["arms"][arm]["runs"]
    best, last = [run["final"] for run in runs], [run["evaluations"][result["figure"]][-1] for run in runs]
    return {"best": np.array(best) / result["unit"], "last": np.array(last) / result["unit"]}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Of every task and arm: steps to target, their ratio to scratch, how it ends, and what it lacks of warm there."""
    header = (
        "task, demonstrator", "arm", "met", "steps to target", "ratio to scratch", "best", "warm - arm", "last",
        "warm - arm", "s",
    )  # fmt: skip
    rows = [header, ("---", "---", *["--:"] * 8)]
    for result in results:
        title = ", ".join(part for part in (result["task"], result["demonstrator"]) if part)
        times: dict[str, dict[int, TimeToTarget]] = {arm: times_to_target(result, arm) for arm in result["arms"]}
        for arm, costs in result["arms"].items():
            ratio, ends, of_arm = "", list[str](), scores(result, arm)
            if arm in result["ratios"]:
                pairs = [matched_pair(seed, times[Arm.SCRATCH][seed], time) for seed, time in times[arm].items()]
                ratio = "" if never_met(pairs) else ASCII[ratio_kind(pairs)] + interval(result["ratios"][arm])
            for end, of_warm in scores(result, Arm.PRETRAINED).items():
                warm = dict(zip(times[Arm.PRETRAINED], of_warm, strict=True))
                matched = np.array([warm[seed] for seed in times[arm]])  # SAC's arms have fewer seeds
                over = interval(vars(MeanOverSeeds.of(matched - of_arm[end]).estimate))
                ends += [f"{of_arm[end].mean():.2f}", "" if arm == Arm.PRETRAINED else over]
            reached = [not time.censored for time in times[arm].values()]
            kind = mean_kind([*times[arm].values()])
            steps = np.mean([time.steps for time in times[arm].values()])
            rows.append(
                (
                    title if arm == Arm.SCRATCH else "",
                    WORDS.get(arm, arm),
                    f"{sum(reached)} of {len(reached)}",
                    f"{ASCII[kind] if any(reached) else '> '}{steps:,.0f}",
                    ratio,
                    *ends,
                    f"{costs['wall_seconds']:,.0f}",
                )
            )
    return markdown(rows)


def over_tasks(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """End -> arm that every task has -> its scores (runs,), and the same drawn again, (resamples, runs).

    The runs of every task are drawn by themselves (Agarwal et al. 2021, *Deep RL at the edge of the statistical
    precipice*).
    """
    arms = [arm for arm in ARMS if all(arm in result["arms"] for result in results)]
    found = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]()
    for end in ("best", "last"):
        for arm in arms:
            random, of_tasks = np.random.default_rng(0), [scores(result, arm)[end] for result in results]
            drawn = np.concatenate([random.choice(runs, (RESAMPLES, len(runs))) for runs in of_tasks], axis=1)
            found.setdefault(end, {})[arm] = np.concatenate(of_tasks), drawn
    return found


def interquartile_mean(runs: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Of scores, with its 95 % interval by those drawn again."""
    low, high = np.quantile(trim_mean(drawn, 0.25, axis=1), (0.025, 0.975))
    return {"value": float(trim_mean(runs, 0.25)), "low": float(low), "high": float(high)}


def aggregate_table(results: Sequence[dict[str, Any]]) -> str:
    """Interquartile mean over tasks and runs of every arm that all tasks have."""
    of_arms, header = over_tasks(results), ("arm", "best", "last")
    rows = [header, ("---", "--:", "--:")]
    for arm in of_arms["best"]:
        rows.append((WORDS.get(arm, arm), *(interval(interquartile_mean(*of_arms[end][arm])) for end in header[1:])))
    return markdown(rows)


def origin_table(results: Sequence[dict[str, Any]]) -> str:
    """When, by which commit, on what kind of processor and with which packages figures were made: a row an origin."""
    made = dict[tuple[str, ...], list[str]]()
    for result in results:
        commit = result["commit"][:7] + (" and changes" if result.get("dirty") else "")
        packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        processor = result["machine"].partition(", ")[2]
        made.setdefault((result["created_at"][:10], commit, processor, packages), []).append(result["task"])
    rows = [(", ".join(tasks), *origin) for origin, tasks in made.items()]
    return markdown([("tasks", "made", "commit", "processor", "packages"), ("---",) * 5, *rows])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return aligned("\n".join(f"| {' | '.join(row)} |" for row in rows))


def interval(estimate: dict[str, float | None]) -> str:
    value, low, high = (estimate[end] for end in ("value", "low", "high"))
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def picture(results: Sequence[dict[str, Any]], path: str) -> None:
    """Performance profiles of the best checkpoints and of the last evaluations, and their interquartile means."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), width_ratios=(3, 3, 2), layout="constrained")
    at, right = np.linspace(0, 1.4, 281), axes[2]
    for (end, of_arms), left, shift in zip(over_tasks(results).items(), axes, (-0.16, 0.16), strict=False):
        for row, (arm, (runs, drawn)) in enumerate(of_arms.items()):
            shares, mean = np.array([(drawn > x).mean(axis=1) for x in at]), interquartile_mean(runs, drawn)
            left.plot(at, [(runs > x).mean() for x in at], color=f"C{row}", label=WORDS.get(arm, arm))
            left.fill_between(
                at, *np.quantile(shares, (0.025, 0.975), axis=1), color=f"C{row}", alpha=0.12, linewidth=0
            )
            right.plot([mean["low"], mean["high"]], [row + shift] * 2, color=f"C{row}", linewidth=5, alpha=0.35)
            right.plot(mean["value"], row + shift, "o" if end == "best" else "D", color=f"C{row}", markersize=5)
        left.set(xlabel="score x (1: the demonstrator)", ylim=(0, 1.02), title=ENDS[end])
        right.set(yticks=range(len(of_arms)), yticklabels=[WORDS.get(arm, arm) for arm in of_arms])
    axes[0].set(ylabel="share of runs above x")
    axes[0].legend(frameon=False)
    right.set(xlabel="score", title="interquartile mean\n(circle: best, diamond: last)")
    right.invert_yaxis()
    tasks = ", ".join(result["task"].replace("_", " ") for result in results)
    figure.suptitle(f"{tasks}: 95 % intervals over matched seeds", fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help="default: all")
    parser.add_argument("--zoo", help="folder of github.com/DLR-RM/rl-trained-agents")
    parser.add_argument("--only", choices=("ppo", "sac"), help="only the arms of this algorithm")
    parser.add_argument("--store", default="sqlite:///benchmark.db")
    parser.add_argument("--from-store", action="store_true", help="run nothing, only write the JSON files again")
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    parser.add_argument("--picture", help="only the picture of what is there, to this file")
    known = parser.parse_args()
    unknown = [task for task in known.tasks if task not in TASKS]
    if unknown:
        parser.error(f"task {unknown[0]!r} is not of the benchmark; there are: {', '.join(TASKS)}")
    if not (known.table or known.picture or known.from_store):
        for task in known.tasks:
            if TASKS[task] is not None and known.zoo is None:
                parser.error(f"task {task!r} is demonstrated by {TASKS[task]} of the RL Zoo; say where it is: --zoo")
            if task.startswith("metaworld") and not METAWORLD.exists():
                parser.error(f"task {task!r} has an environment of its own: run `make metaworld` first")
            if task == "adroit_door" and importlib.util.find_spec("gymnasium_robotics") is None:
                parser.error(f"task {task!r}: no gymnasium-robotics; uv pip install -c constraints.txt -e '.[adroit]'")
            if task == "adroit_door" and not DOOR.is_file():
                parser.error(f"task {task!r}: no {DOOR}; python -m benchmarks.adroit_door demonstrations.npz {DOOR}")
        commands = {task: comparisons(task, known.zoo) for task in known.tasks}  # a zip that is missing is told at once
        # the store first: two tasks, begun in the same second, would both make its tables
        store = {**os.environ, "MLFLOW_TRACKING_URI": known.store}
        subprocess.run([sys.executable, "-m", "pipeline", "store"], cwd=ROOT, env=store, check=True)
        unfinished = []
        for task, of_task in commands.items():
            venv = METAWORLD if task.startswith("metaworld") else Path(sys.executable).parent
            paths = {"PATH": f"{venv}:{os.environ['PATH']}"}
            for group, command in of_task.items():
                if known.only is None or group.endswith(known.only):
                    code = subprocess.run(command, cwd=ROOT, env={**store, **paths}).returncode
                    print(f"{group}: code {code}", flush=True)
                    unfinished += [group] * (code not in (0, 1))  # 1: compared, and the target is missed
                    keep(task, known.store)
        if unfinished:
            print(f"error: no comparison of {', '.join(unfinished)}; the same command goes on", file=sys.stderr)
            raise SystemExit(1)
    elif known.from_store:
        for task in known.tasks:
            keep(task, known.store)
    results = [json.loads(file.read_text()) for task in TASKS if (file := RESULTS / f"{task}.json").exists()]
    if known.picture:
        picture(results, known.picture)
    else:
        print(table(results), aggregate_table(results), origin_table(results), sep="\n\n")


if __name__ == "__main__":
    main()

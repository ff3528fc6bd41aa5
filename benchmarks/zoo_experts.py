"""Agents of the RL Zoo, each by five commands of a user's: a task, the gate, demonstrations, a clone.

    python -m benchmarks.zoo_experts ../shared/data/zoo work            # prints the table of docs/experts.md

For every folder of the zoo: `new_task` for its environment of today, `promote` of the zip as it was published (the
rule: better than the best of 20 random episodes), `collect` of 20 episodes under the noise that `new_task` proposes,
`pretrain` of one clone. An agent whose row is in `work/table.jsonl` is not run again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from mlflow import MlflowClient

from pipeline.policies.sb3_actor import inspect_sb3_zip

TIME = {"name": "pipeline.envs.time_feature:TimeFeature", "kwargs": {}}
SMALL = {
    "collect": {"episodes": 20, "seeds": [42], "min_episodes": 20},
    "pretrain": {"seeds": [1], "final_episodes": 20, "evaluation": {"episodes": 10, "seed": 6}},
}
CLONE = {"network": {"hidden": [256, 256]}, "cloning": {"epochs": 60, "evaluate_every_epochs": 10, "critic_epochs": 5}}


def environment(agent: str) -> str:
    """Today's id: MuJoCo's v3 is v5, LunarLander's v2 is v3."""
    name = agent.partition("-")[2]
    mujoco = re.match("HalfCheetah|Hopper|Walker2d|Swimmer", name)
    return name.replace("-v3", "-v5") if mujoco else name.replace("LunarLander-v2", "LunarLander-v3")


def stage(name: str, folder: Path, *arguments: str) -> str:
    """Run an entry point on the store of `folder`; what it printed. Ends the program when it fails."""
    command = [sys.executable, "-m", f"entrypoints.{name}", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "MLFLOW_TRACKING_URI": store(folder)}, capture_output=True, text=True
    )
    if done.returncode > 1:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def study(zip_file: Path, folder: Path) -> dict:
    """One agent from its zip to its clone; a row of the table."""
    held, agent = inspect_sb3_zip(zip_file), zip_file.parent.name
    name = re.sub("[^a-z0-9]+", "_", agent.lower())
    configs = folder / "configs"
    timed = any(wrapper.endswith("TimeFeatureWrapper") for wrapper in held["wrappers"])
    wrappers = ["--wrappers", json.dumps([TIME])] if timed else []
    if not configs.exists():
        stage("new_task", folder, "--config", "configs/new_task.yaml", "--env", environment(agent), "--name", name,
              "--folder", str(configs), *wrappers)  # fmt: skip
    task = yaml.safe_load((configs / "tasks" / f"{name}.yaml").read_text())
    random_best = float(re.search(r"return [-\d.]+ to ([-\d.]+)", (configs / "tasks" / f"{name}.yaml").read_text())[1])
    for stage_name, changes in {"promote": {}, **SMALL}.items():
        path = configs / name / f"{stage_name}.yaml"
        settings = {**yaml.safe_load(path.read_text()), **changes}
        if stage_name == "promote":
            settings["rules"] = [{"scenario_set": "train", "metric": "return_mean", "min": random_best}]
        if stage_name == "pretrain":
            settings |= {**CLONE, "cloning": {**settings["cloning"], **CLONE["cloning"]}}
        path.write_text(yaml.safe_dump(settings))
    config = {each: ["--config", str(configs / name / f"{each}.yaml")] for each in ("promote", *SMALL)}
    stage("promote", folder, *config["promote"], "--expert", str(zip_file))
    stage("collect", folder, *config["collect"])
    stage("pretrain", folder, *config["pretrain"])
    client = MlflowClient(store(folder))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]

    def newest(kind: str) -> dict:
        (run, *_) = client.search_runs(experiments, f"tags.stage = '{kind}'", order_by=["attributes.start_time DESC"])
        return {**run.data.metrics, **run.data.tags}

    gate, recorded, clone = newest("promote"), newest("collect"), newest("pretrain")
    return {
        "agent": agent,
        "environment": task["environment"]["id"],
        "algorithm": held["algorithm"],
        "fine_tuned_by_ppo": held["fine_tuned_by_ppo"],
        "random_best": random_best,
        "gate": next(value for key, value in gate.items() if key.startswith("gate/candidate/train/return_mean")),
        "quality": recorded["dataset.quality"],
        "recorded": recorded["eval/return_mean"],
        "clone": clone["final/return_mean"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default="", help="agents whose name contains this")
    known = parser.parse_args()
    table = known.work.resolve() / "table.jsonl"
    known.work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    for zip_file in sorted(known.zoo.resolve().glob(f"*{known.only}*/*.zip")):
        if zip_file.parent.name in {row["agent"] for row in rows}:
            continue
        folder = known.work.resolve() / zip_file.parent.name
        folder.mkdir(exist_ok=True)
        rows.append(study(zip_file, folder))
        with table.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"{rows[-1]['agent']}: done", flush=True)
    print("| agent | environment | comes in as | best random episode | gate, 100 episodes | recorded | clone |")
    print("|---|---|---|--:|--:|--:|--:|")
    for row in rows:
        comes_in = "a policy PPO can go on from" if row["fine_tuned_by_ppo"] else "an actor"
        recorded = f"{row['recorded']:,.1f}" + (f" ({row['quality']})" if row["quality"] != "validated" else "")
        figures = f"{row['random_best']:,.1f} | {row['gate']:,.1f} | {recorded} | {row['clone']:,.1f}"
        print(f"| {row['agent']} | {row['environment']} | {comes_in} | {figures} |")


if __name__ == "__main__":
    main()

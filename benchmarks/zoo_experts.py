"""Agents of the RL Zoo, each by the commands of a user: a task, the gate, demonstrations, a clone.

    python -m benchmarks.zoo_experts zoo work            # prints the table of docs/experts.md

For every folder of the zoo (`zoo/tqc-Hopper-v3/Hopper-v3.zip` with what the Zoo keeps beside it): 10 episodes of reset
seeds 1000 to 1009, `new_task` for its environment of today, `promote` of the zip as it was published (the rule: better
than the best of 20 random episodes), `collect` of 20 episodes under the noise that `new_task` proposes, and `pretrain`
of one clone of them, by 3,000 gradient steps; where episodes are short also of 20 episodes without noise. An agent
whose row is in `work/table.jsonl` is not run again.
"""

import argparse
import contextlib
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor, as_completed
from math import ceil
from multiprocessing import get_context
from pathlib import Path

from pipeline.names import THREAD_VARIABLES

TIME = {"name": "pipeline.envs.time_feature:TimeFeature", "kwargs": {}}
SEEDS = range(1000, 1010)  # of the episodes that were measured with stable-baselines3
UPDATES = 3_000  # gradient steps of a clone
COLLECT = {"episodes": 20, "seeds": [42], "min_episodes": 20}
PRETRAIN = {
    "seeds": [1],
    "network": {"hidden": [128, 128]},
    "final_episodes": 20,
    "evaluation": {"episodes": 5, "seed": 6},
}
WITHOUT_NOISE_TOO = ("CartPole", "Pendulum", "MountainCar", "LunarLander")
CHEAP_FIRST = ("CartPole", "Pendulum", "MountainCar", "LunarLander", "Hopper", "Bipedal", "Walker2d", "Swimmer", "Half")


def environment(agent: str) -> str:
    """Today's id: MuJoCo's v3 is v5, LunarLander's v2 is v3."""
    name = agent.partition("-")[2]
    mujoco = re.match("HalfCheetah|Hopper|Walker2d|Swimmer", name)
    return name.replace("-v3", "-v5") if mujoco else name.replace("LunarLander-v2", "LunarLander-v3")


def study(zip_file: Path, folder: Path) -> dict:
    """One agent from its zip to its clones, in a process and a store of its own; a row of the table."""
    folder.mkdir(exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    # late: the store is named, and numpy and torch see that they have one thread, as in an entry point
    import gymnasium as gym
    import numpy as np
    import yaml
    from mlflow import MlflowClient

    from pipeline.cli import stage_main
    from pipeline.envs.time_feature import TimeFeature
    from pipeline.policies import act_function
    from pipeline.policies.sb3 import import_sb3_zip
    from pipeline.policies.sb3_actor import inspect_sb3_zip

    def stage(name: str, *arguments: str) -> None:
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            code = stage_main(name, arguments)
        if code > 1:
            raise SystemExit(f"{zip_file.parent.name}: {name} ended with {code}; see {folder / 'log.txt'}")

    held, agent = inspect_sb3_zip(zip_file), zip_file.parent.name
    timed = any(wrapper.endswith("TimeFeatureWrapper") for wrapper in held["wrappers"])
    wrappers = [TIME] if timed else []
    env = gym.make(environment(agent))
    env = TimeFeature(env) if timed else env
    act = act_function(import_sb3_zip(zip_file, env.observation_space, env.action_space, wrappers))
    returns = []
    for seed in SEEDS:
        (observation, _), over, earned = env.reset(seed=seed), False, 0.0
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation[None])[0])
            over, earned = terminated or truncated, earned + float(reward)
        returns.append(earned)

    name, configs = re.sub("[^a-z0-9]+", "_", agent.lower()), folder / "configs"
    if not configs.exists():
        stage("new_task", "--config", "configs/new_task.yaml", "--env", environment(agent), "--name", name,
              "--folder", str(configs), *(["--wrappers", json.dumps(wrappers)] if timed else []))  # fmt: skip
    random_best = float(re.search(r"return [-\d.]+ to ([-\d.]+)", (configs / "tasks" / f"{name}.yaml").read_text())[1])
    client = MlflowClient()

    def run(kind: str, changes: dict, *arguments: str) -> dict:
        """A stage with these settings changed; metrics and tags of its run."""
        path = configs / name / f"{kind}.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
        stage(kind, "--config", str(path), *arguments)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        (found, *_) = client.search_runs(experiments, f"tags.stage = '{kind}'", order_by=["attributes.start_time DESC"])
        return {**found.data.metrics, **found.data.tags}

    rule = {"scenario_set": "train", "metric": "return_mean", "min": random_best}
    gate = run("promote", {"rules": [rule]}, "--expert", str(zip_file))
    row = {
        "agent": agent,
        "environment": environment(agent),
        "fine_tuned_by_ppo": held["fine_tuned_by_ppo"],
        "ten_episodes": float(np.mean(returns)),
        "random_best": random_best,
        "gate": next(value for key, value in gate.items() if key.startswith("gate/candidate/train/return_mean")),
        "noise": yaml.safe_load((configs / name / "collect.yaml").read_text())["noise"]["std"],
    }
    without = [("clean", 0.0)] if any(kind in agent for kind in WITHOUT_NOISE_TOO) else []
    for which, noise in [("noisy", row["noise"]), *without]:
        recorded = run("collect", {**COLLECT, "noise": {"std": noise}})
        epochs = ceil(UPDATES / ceil(0.9 * recorded["dataset/steps"] / 256))
        often = {"epochs": epochs, "evaluate_every_epochs": ceil(epochs / 4), "critic_epochs": ceil(epochs / 10)}
        clone = run("pretrain", {**PRETRAIN, "cloning": often}, "--dataset", recorded["dataset.id"])
        row[which] = {
            "quality": recorded["dataset.quality"],
            "recorded": recorded["eval/return_mean"],
            "clone": clone["final/return_mean"],
            "imitation": clone["imitation"],
            "demonstrator": clone.get("imitation/demonstrator"),
            "share": clone.get("imitation/share"),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default="", help="agents whose name contains this")
    parser.add_argument("--processes", type=int, default=1, help="agents at once")
    known = parser.parse_args()
    table = known.work.resolve() / "table.jsonl"
    known.work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    agents = sorted(
        known.zoo.resolve().glob(f"*{known.only}*/*.zip"),
        key=lambda file: next(rank for rank, kind in enumerate(CHEAP_FIRST) if f"-{kind}" in file.parent.name),
    )
    fresh = [file for file in agents if file.parent.name not in {row["agent"] for row in rows}]
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # before numpy and torch see them
    context = get_context("forkserver")
    context.set_forkserver_preload(["pipeline.stages.pretrain", "pipeline.stages.collect", "pipeline.stages.promote"])
    with ProcessPoolExecutor(known.processes, context, max_tasks_per_child=1) as processes:
        for done in as_completed(
            processes.submit(study, file, known.work.resolve() / file.parent.name) for file in fresh
        ):
            rows.append(done.result())
            with table.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{rows[-1]['agent']}: done", flush=True)
    print("| agent | PPO trains it on | 10 episodes | gate, 100 | noise | recorded | clone | no noise | clone |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in sorted(rows, key=lambda row: row["agent"]):
        noisy, clean = (
            f"{row[which]['recorded']:,.1f} | {row[which]['clone']:,.1f}, {row[which]['imitation']}"
            if which in row
            else "|"
            for which in ("noisy", "clean")
        )
        print(
            f"| {row['agent']} | {'yes' if row['fine_tuned_by_ppo'] else 'no'} | {row['ten_episodes']:,.1f} | "
            f"{row['gate']:,.1f} | {row['noise']} | {noisy} | {clean} |"
        )


if __name__ == "__main__":
    main()

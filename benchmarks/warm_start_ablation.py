"""What a start from a clone is worth, by who demonstrated and by how PPO starts: arms over matched seeds.

    python -m benchmarks.warm_start_ablation --cases "planner;expert" --arms "scratch;fixed;adaptive" --seeds 2
    python -m benchmarks.warm_start_ablation --table

A case says who demonstrates what; its dataset and a clone a seed are made once. An arm says how PPO starts from those
clones, or that it does not. Whatever ended is a file below `--folder`: run again, it goes on where it was, and it
prints a table of all that is there. Nothing here is logged to MLflow.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")

import numpy as np
import torch

from pipeline.config.loading import load, load_task, to_data, validate
from pipeline.config.stages import STAGE_CONFIGS, Finetune, TrainExpert
from pipeline.config.training import ADAPTIVE, ADAPTIVE_WARM_START
from pipeline.data import Trajectories
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.arms import Start, arm_jobs, expert_jobs
from pipeline.learning.clones import CloneJob, return_scale
from pipeline.learning.jobs import TrainingJob, TrainingResult
from pipeline.learning.train import train
from pipeline.play.demonstrators import Actor, policy_actions, scripted
from pipeline.play.evaluation import point_figures, record
from pipeline.policies import Observations, policy_digest
from pipeline.report.text import aligned, number
from pipeline.statistics.efficiency import timesteps_to_target
from pipeline.tasks import Task

PATIENCE = 3
Changes = Mapping[str, Any]  # dotted key -> value


@dataclass(frozen=True)
class Case:
    """Who demonstrates what: changes to the shipped configs of a folder."""

    configs: str
    collect: Changes = field(default_factory=dict)
    pretrain: Changes = field(default_factory=dict)
    finetune: Changes = field(default_factory=dict)
    random_actions: float = 0.0  # share of the demonstrated actions that are random ones
    final_episodes: int = 1_000


PLANNER: Changes = {
    "scripted": {"demonstrator": "benchmarks.social_nav_planners:dynamic_window"},
    "episodes": 400,
    "filter": {"only_success": True},
}
HEURISTIC: Changes = {
    "scripted": {"demonstrator": "pipeline.envs.lunar_lander:heuristic"},
    "episodes": 50,
    "noise.std": 0.1,
    "filter": {"min_return": 200},
}
WIDE: Changes = {"network.hidden": [128, 128], "cloning.epochs": 40}
ASKED: Changes = {
    "algorithm": "dagger",
    "dagger": {"rounds": 20, "episodes_per_round": 100},
    "network.hidden": [128, 128],
    "cloning.epochs": 4,
}
FAR_SIGHTED: Changes = {
    "training.network.hidden": [128, 128],
    "training.ppo.gamma": 0.999,
    "training.ppo.gae_lambda": 0.95,
}
CASES = {
    "planner": Case("configs/social_nav", PLANNER, WIDE, {"training.network.hidden": [128, 128]}),
    "planner, fresh critic": Case(
        "configs/social_nav", PLANNER, {**WIDE, "cloning.critic_epochs": 0}, {"training.network.hidden": [128, 128]}
    ),
    "planner, weight decay": Case(
        "configs/social_nav", PLANNER, {**WIDE, "cloning.weight_decay": 0.001}, {"training.network.hidden": [128, 128]}
    ),
    # what to do where the clone goes, the planner is asked (DAgger)
    "planner, asked": Case(
        "configs/social_nav", PLANNER, ASKED, {"training.network.hidden": [128, 128]}, final_episodes=3_000
    ),
    "planner, discount 0.999": Case(
        "configs/social_nav", PLANNER, {**WIDE, "cloning.gamma": 0.999}, FAR_SIGHTED, final_episodes=3_000
    ),
    "planner, asked, discount 0.999": Case(
        "configs/social_nav",
        PLANNER,
        {**ASKED, "cloning.gamma": 0.999},
        FAR_SIGHTED,
        final_episodes=3_000,
    ),
    "expert": Case("configs/social_nav"),
    "bad": Case("configs/social_nav", {"episodes": 10}, random_actions=0.2),
    "random": Case("configs/social_nav", {"episodes": 50}, random_actions=1.0),
    "lander": Case("configs/lunar_lander", final_episodes=200),
    "few": Case("configs/no_harm/social_nav", {"episodes": 10, "noise.std": 0.3}, final_episodes=400),
    "planner, 200": Case(
        "configs/no_harm/social_nav", {**PLANNER, "episodes": 200, "noise.std": 0.3}, final_episodes=400
    ),
    "heuristic": Case("configs/no_harm/lunar_lander", HEURISTIC, final_episodes=100),
    "quadruped": Case("configs/quadruped", final_episodes=20),
    "full": Case("configs/social_nav/full"),
    **{f"full, noise {std}": Case("configs/social_nav/full", {"noise.std": std}) for std in (0.0, 0.6)},
    **{f"full, {count} episodes": Case("configs/social_nav/full", {"episodes": count}) for count in (50, 400)},
    "full, fresh critic": Case("configs/social_nav/full", pretrain={"cloning.critic_epochs": 0}),
}
FULL_RATE: Changes = {**to_data(ADAPTIVE_WARM_START), "learning_rate_factor": 1.0}
FADING = {"clone_penalty": 1.0, "clone_penalty_fade_steps": 150_000}
# arm -> what it says to warm_start; None: from scratch
ARMS: dict[str, Any] = {
    "scratch": None,
    "clone": {"initial_action_std": None, "learning_rate_factor": 0.0},
    "fixed": {"initial_action_std": 0.2, **FADING},
    "fixed, no penalty": {"initial_action_std": 0.2},
    "naive": {"initial_action_std": None},
    "adaptive": ADAPTIVE,
    "adaptive, 400 to choose by": ADAPTIVE,
    "adaptive, std of the clone": {**to_data(ADAPTIVE_WARM_START), "initial_action_std": None},
    "adaptive, burn-in 0": {**to_data(ADAPTIVE_WARM_START), "critic_burn_in_steps": 0},
    "adaptive, no penalty": {**to_data(ADAPTIVE_WARM_START), "clone_penalty": 0.0},
    "full rate": FULL_RATE,
    "full rate, burn-in 0": {**FULL_RATE, "critic_burn_in_steps": 0},
    "full rate, std 0.2": {**FULL_RATE, "initial_action_std": 0.2},
    "full rate, no penalty": {**FULL_RATE, "clone_penalty": 0.0},
    "small rate": FULL_RATE,
    **{f"std {std}": {"initial_action_std": std} for std in (0.1, 0.5, 1.0)},
    **{f"std {s}, burn-in": {"initial_action_std": s, "critic_burn_in_steps": 50_000} for s in (0.2, 0.5, 1.0)},
}
# arm -> what it trains with otherwise than the case
OTHERWISE: Mapping[str, Changes] = {
    "small rate": {"training.learning_rate": {"initial": 3e-4, "final": 1e-4}},
    "adaptive, 400 to choose by": {"training.evaluation.episodes": 400},
}


def config_of(case: Case, stage: str, changes: Changes) -> Any:
    """A shipped configuration with settings replaced by dotted key."""
    data = to_data(load(STAGE_CONFIGS[stage], f"{case.configs}/{stage}.yaml"))
    for key, value in changes.items():
        *sections, last = key.split(".")
        here = data
        for section in sections:
            here = here[section]
        here[last] = value
    return validate(STAGE_CONFIGS[stage], data, "ablation")


class Bench:
    """Datasets, clones and trainings below a folder, each made unless it is there."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._workers = folder, workers

    def expert(self, case: Case) -> Path:
        """The best policy of the first seed of the case's own expert."""
        place = self._folder / f"expert of {Path(case.configs).name}"
        if not (place / "done").exists():
            config = config_of(
                replace(case, configs=case.configs.replace("/no_harm", "")), "train_expert", {"seeds": [1]}
            )
            assert isinstance(config, TrainExpert)
            (job,) = expert_jobs(config, Task(load_task(config.task), config.training.environment), place)
            train(job, lambda event: None)
            (place / "done").touch()
        return place / "seed-1" / "best"

    def demonstrations(self, name: str, case: Case) -> Trajectories:
        file = self._folder / name / "demonstrations.npz"
        if not file.exists():
            config = config_of(case, "collect", case.collect)
            task = Task(load_task(config.task), config.environment)
            if config.scripted is None:
                actor: Actor = policy_actions(task, self.expert(case), "expert")
            else:
                actor = scripted(config.scripted.demonstrator, config.scripted.kwargs).actor
            if case.random_actions:
                actor = at_random(actor, case.random_actions)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **record(task, config, actor)[0].to_arrays())
        with np.load(file) as arrays:
            return Trajectories.from_arrays(dict(arrays))

    def clone(self, name: str, case: Case, seed: int) -> Path:
        place = self._folder / name / f"clone-{seed}"
        if not (place / "done").exists():
            config = config_of(case, "pretrain", case.pretrain)
            data = self.demonstrations(name, case)
            collect = config_of(case, "collect", case.collect)
            asked = None
            if config.algorithm == "dagger":
                asked = scripted(collect.scripted.demonstrator, collect.scripted.kwargs)
            CloneJob(load_task(config.task), config, data, name, seed, str(place), asked).perform(lambda _: None)
            (place / "done").touch()
        return place / "policy"

    def job(self, name: str, arm: str, seed: int, steps: int | None) -> tuple[Path, TrainingJob]:
        """A training, and the file that says what it came to."""
        case, setting = CASES[name], ARMS[arm]
        changes: dict[str, Any] = {**case.finetune, "seeds": [seed], "control_timesteps": 0, "arms": {}}
        changes["final_episodes"] = case.final_episodes
        if setting is not None:
            changes["warm_start"] = setting
        if steps is not None:
            changes["training.total_timesteps"] = steps
        changes |= OTHERWISE.get(arm, {})
        config = config_of(case, "finetune", changes)
        assert isinstance(config, Finetune)
        place = self._folder / name / f"{arm}, {config.training.total_timesteps:,} steps"
        start = None
        if setting is not None:
            folder = self.clone(name, case, seed)
            scale = return_scale(
                self.demonstrations(name, case), config_of(case, "pretrain", case.pretrain).cloning.gamma
            )
            start = {seed: Start(str(folder), folder, policy_digest(folder), True, scale)}
        (made,) = arm_jobs(config, Task(load_task(config.task), config.training.environment), place, start)
        return place / f"seed-{seed}.json", made.job

    def train(self, names: Sequence[str], arms: Sequence[str], seeds: int, steps: int | None) -> None:
        every = [self.job(n, arm, seed + 1, steps) for arm in arms for n in names for seed in range(seeds)]
        files, jobs = zip(*[made for made in every if not made[0].exists()] or [((), ())], strict=True)

        def keep(index: int, result: TrainingResult) -> None:
            curve = [(point.timestep, point_figures(point.records)) for point in result.evaluations]
            decisions = [asdict(decision) for decision in result.decisions]
            found = {"curve": curve, "final": point_figures(result.final), "decisions": decisions}
            files[index].write_text(json.dumps(found) + "\n")
            print(f"{files[index]}: {found['final']}", flush=True)

        run_side_by_side(jobs, self._workers, lambda index, event: None, keep)

    def table(self) -> str:
        """Markdown: an arm of a case in a row, means over seeds where not each is given."""
        header = (
            "case", "arm", "seeds", "before", "lowest", "steps to target", "mean of curve", "final", "seed by seed",
        )  # fmt: skip
        rows = [header, ("---", "---", *["--:"] * (len(header) - 2))]
        for place in sorted(self._folder.glob("*/*, * steps")):
            name, arm = place.parent.name, place.name
            target = load_task(config_of(CASES[name], "finetune", {}).task).thresholds
            figure = next(iter(target))
            ended = [json.loads(file.read_text()) for file in sorted(place.glob("seed-*.json"))]
            if not ended:
                continue
            curves = [np.array([figures[figure] for _, figures in run["curve"]]) for run in ended]
            steps = [np.array([step for step, _ in run["curve"]]) for run in ended]
            met = [[all(b.holds(f[n]) for n, b in target.items()) for _, f in run["curve"]] for run in ended]
            times = [timesteps_to_target(at, held, PATIENCE) for at, held in zip(steps, met, strict=True)]
            areas = [np.trapezoid(c, at) / (at[-1] - at[0]) for c, at in zip(curves, steps, strict=True)]
            finals = [run["final"][figure] for run in ended]
            rows.append(
                (
                    name,
                    arm,
                    str(len(ended)),
                    number(float(np.mean([c[0] for c in curves]))),
                    number(float(np.mean([c.min() for c in curves]))),
                    " ".join("never" if time.censored else f"{time.steps:,}" for time in times),
                    number(float(np.mean(areas))),
                    number(float(np.mean(finals))),
                    " ".join(number(value) for value in finals),
                )
            )
        return aligned("\n".join(f"| {' | '.join(row)} |" for row in rows))


def at_random(actor: Actor, share: float) -> Actor:
    """The policy, but for a share of actions that are random ones."""
    assert callable(actor)
    rng = np.random.default_rng(1)

    def act(observations: Observations) -> np.ndarray:
        actions = actor(observations)
        wrong = rng.random(len(actions)) < share
        return np.where(wrong[:, None], rng.uniform(-1, 1, actions.shape).astype(actions.dtype), actions)

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="planner;expert", help=f"separated by ';', of: {'; '.join(CASES)}")
    parser.add_argument("--arms", default="scratch;fixed;adaptive", help=f"separated by ';', of: {'; '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="budget of a training; default: that of the config")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("ablation"))
    parser.add_argument("--table", action="store_true", help="only say what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.folder, arguments.workers)
    if not arguments.table:
        bench.train(arguments.cases.split(";"), arguments.arms.split(";"), arguments.seeds, arguments.steps)
    print(bench.table())


if __name__ == "__main__":
    main()

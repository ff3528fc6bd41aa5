"""The trainings of a group, the clones and the expert on many fresh episodes that chose none of them.

    python benchmarks/study_on_fresh_episodes.py [--group social-nav-study] [--episodes 1000]

`compare` plays as many final episodes as the trainings were configured for (200), which tells a policy from another
that succeeds 2 % more often only over many seeds. This plays more, and sets the fine-tuned policies against the expert
they learned from as well.
"""

import argparse
import os
from collections.abc import Mapping

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")

import numpy as np
import torch

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.names import Arm, Metric, Tag, lineage_run_tag
from pipeline.play.evaluation import point_figures, run_episodes
from pipeline.policies import act_function, load_policy
from pipeline.report.text import aligned, change, interval
from pipeline.statistics.efficiency import matched_pair, restricted_mean_ratio, timesteps_to_target
from pipeline.statistics.estimate import Estimate, MeanOverSeeds
from pipeline.statistics.matched import met_target
from pipeline.tasks import Purpose, Task
from pipeline.tracking.groups import ArmRun, find_group, policy_of
from pipeline.tracking.models import StoredPolicy, find_policy
from pipeline.tracking.store import connect

PATIENCE, FRESH = 3, 4242
Figures = Mapping[str, Mapping[str, float]]  # scenario set -> figure -> mean over episodes


def over_seeds(values: np.ndarray) -> Estimate:
    """Mean of (n,) values, one a seed, with its interval over seeds."""
    return MeanOverSeeds.of(values).estimate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", default="social-nav-study")
    parser.add_argument("--episodes", type=int, default=1_000)
    parser.add_argument("--config", default="configs/social_nav/finetune.yaml")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    client, config = connect(), load(Finetune, arguments.config)
    task = Task(load_task(config.task), config.training.environment)
    group = find_group(client, arguments.group, task.config.name)
    arms = {arm: {run.seed: run for run in group.arms[arm]} for arm in (Arm.SCRATCH, Arm.PRETRAINED)}
    seeds = sorted(set(arms[Arm.SCRATCH]) & set(arms[Arm.PRETRAINED]))
    print_ratio(arms, seeds, task, config)
    sets = (config.training.scenario_set, *task.config.holdout_sets)
    episodes = {
        name: task.episodes(name, (FRESH, i), arguments.episodes, Purpose.EVALUATE) for i, name in enumerate(sets)
    }

    def play(policy: StoredPolicy) -> Figures:
        act = act_function(load_policy(policy.folder))
        return {name: point_figures(run_episodes(task, act, chosen)) for name, chosen in episodes.items()}

    tags = arms[Arm.PRETRAINED][seeds[0]].run.data.tags
    clones = [arms[Arm.PRETRAINED][seed].run.data.tags[lineage_run_tag("policy")] for seed in seeds]
    played = {
        "from scratch": [play(policy_of(client, arms[Arm.SCRATCH][seed].run)) for seed in seeds],
        "clone": [play(find_policy(client, run_id, task.config.name, {})) for run_id in clones],
        "fine-tuned": [play(policy_of(client, arms[Arm.PRETRAINED][seed].run)) for seed in seeds],
        "expert": [play(find_policy(client, tags[Tag.LINEAGE_EXPERT], task.config.name, {}))],
    }
    print_table(played, sets)


def print_ratio(arms: Mapping[str, Mapping[int, ArmRun]], seeds: list[int], task: Task, config: Finetune) -> None:
    pairs = []
    for seed in seeds:
        before, after = (
            timesteps_to_target(
                run.steps,
                met_target(run.figures, task.config.thresholds),
                PATIENCE,
            )
            for run in (arms[Arm.SCRATCH][seed], arms[Arm.PRETRAINED][seed])
        )
        pairs.append(matched_pair(seed, before, after))
    ratio = restricted_mean_ratio(pairs)
    print(f"ratio of timesteps to target over {len(pairs)} matched seeds: {interval(ratio)}")
    print("steps from scratch:", ", ".join(f"{pair.baseline.steps:,}" for pair in pairs))
    print("steps pre-trained: ", ", ".join(f"{pair.pretrained.steps:,}" for pair in pairs), "\n")


def print_table(played: Mapping[str, list[Figures]], sets: tuple[str, ...]) -> None:
    rows = [("scenarios", "policy", "success", "collision", "fine-tuned better by (success)")]
    rows.append(("---", "---", "--:", "--:", "--:"))
    for scenario_set in sets:
        values = {
            (who, figure): np.array([figures[scenario_set][figure] for figures in of_who])
            for who, of_who in played.items()
            for figure in (Metric.SUCCESS_RATE, Metric.COLLISION_RATE)
        }
        tuned = values["fine-tuned", Metric.SUCCESS_RATE]
        for who in played:
            difference = over_seeds(tuned - values[who, Metric.SUCCESS_RATE])
            shown = [interval(over_seeds(values[who, f])) for f in (Metric.SUCCESS_RATE, Metric.COLLISION_RATE)]
            rows.append((scenario_set, who, *shown, "" if who == "fine-tuned" else change(difference)))
    print(aligned("\n".join(f"| {' | '.join(row)} |" for row in rows)))


if __name__ == "__main__":
    main()

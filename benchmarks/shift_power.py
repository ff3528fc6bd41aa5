"""How often the distribution-shift measure cries wolf on matching scenarios, and how often it finds a real shift.

    python benchmarks/shift_power.py [--episodes 120] [--trials 30] [--seed 1000]

The dynamic-window planner plays social navigation on both sides, so that only scenarios or the robot differ.
"""

import argparse

import numpy as np

from pipeline.config.loading import load_task
from pipeline.envs.social_nav.observation import FEATURES
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import record_episodes
from pipeline.statistics.shift import Shift, measure_shift
from pipeline.tasks import Purpose, Task

PLANNER = scripted("social_nav_planners:dynamic_window", {})

Sample = tuple[list[np.ndarray], list[str]]  # observations of each episode, its scenario


def play(task: Task, scenario_set: str, seed: int, count: int) -> Sample:
    """Fresh episodes of a scenario set."""
    episodes = task.episodes(scenario_set, seed, count, Purpose.EVALUATE)
    recorded = record_episodes(task, PLANNER.actor, episodes, noise_std=0.0, noise_seed=0)
    ends = recorded.observation_offsets
    observations = [recorded.observations[ends[i] : ends[i + 1]] for i in range(count)]
    return observations, [episode.scenario for episode in episodes]


def measure(a: Sample, b: Sample, seed: int) -> Shift:
    return measure_shift(a[0], b[0], FEATURES, seed=seed, permutations=199, scenarios=(a[1], b[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1_000, help="first seed; other seeds play other episodes")
    arguments = parser.parse_args()
    first = arguments.seed
    config = load_task("configs/tasks/social_nav.yaml")
    task = Task(config)
    matching = [play(task, "train_small", first + k, arguments.episodes) for k in range(arguments.trials + 1)]
    alarms = np.array([measure(matching[k], matching[k + 1], k).p_value for k in range(arguments.trials)])
    print(f"matching: p <= 0.05 in {(alarms <= 0.05).mean():.1%}, p <= 0.01 in {(alarms <= 0.01).mean():.1%}")
    changed = {
        "hold-out scenarios": (task, "holdout"),
        "more and denser scenarios": (task, "train"),
        "robot 1.5 times as fast": (Task(config, {"max_speed": 1.5}), "train_small"),
        "robot 0.6 times as fast": (Task(config, {"max_speed": 0.6}), "train_small"),
    }
    for name, (other, scenario_set) in changed.items():
        trials = range(max(1, arguments.trials // 3))
        shifts = [
            measure(matching[k], play(other, scenario_set, first + 500_000 + k, arguments.episodes), k) for k in trials
        ]
        distance, alike = (np.mean([getattr(s, f) for s in shifts]) for f in ("distance", "expected_distance"))
        found = np.mean([s.shifted for s in shifts])
        print(f"{name}: found in {found:.0%} of {len(shifts)}, distance {distance:.3f} (alike: {alike:.3f})")


if __name__ == "__main__":
    main()

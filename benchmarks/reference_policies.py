"""What the reference policies reach in every scenario family.

    python benchmarks/reference_policies.py [episodes per scenario] [--fit-baseline PATH]

Prints the Markdown table of docs/social_nav.md; `--fit-baseline` writes the SNQI baseline of these episodes.
"""

import argparse
from pathlib import Path

import numpy as np

from pipeline.envs.episodes import Episode
from pipeline.envs.social_nav.scenarios import DENSITIES, FAMILIES
from pipeline.envs.social_nav.vector import SocialNavVecEnv
from pipeline.play.demonstrators import Actor, ActorSlots, scripted
from pipeline.statistics.snqi import fit_baseline, load_weights, snqi, write_baseline

SCRIPTS = "social_nav_planners"
RANDOM = np.random.default_rng(0)
POLICIES: dict[str, Actor] = {
    "stand still": scripted(f"{SCRIPTS}:stand_still", {}).actor,
    "random": lambda observations: RANDOM.uniform(-1.0, 1.0, (len(observations), 2)).astype(np.float32),
    "straight to the goal": scripted(f"{SCRIPTS}:straight_to_goal", {}).actor,
    "dynamic window": scripted(f"{SCRIPTS}:dynamic_window", {}).actor,
}
SCENARIOS = {f"{f}_{d}": {"scenario": f, "density": d} for f in FAMILIES for d in DENSITIES}


def play(policy: Actor, names: list[str], each: int) -> list[dict]:
    """Outcomes of `each` episodes of every named scenario; each slot plays one episode."""
    streams = [iter([Episode(name, 900_000 + k)]) for name in names for k in range(each)]
    env = SocialNavVecEnv(SCENARIOS, streams)
    outcomes: list[dict] = []
    slots = ActorSlots(policy, env.num_envs, env.action_space)
    observations = env.reset()
    while env.running.any():
        observations, _, done, infos = env.step(slots.act(observations, env.running))
        slots.ended(done)
        outcomes += [infos[i]["outcome"] for i in np.flatnonzero(done)]
    return outcomes


def columns(outcomes: list[dict]) -> dict[str, np.ndarray]:
    return {key: np.array([outcome[key] for outcome in outcomes]) for key in outcomes[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("episodes", nargs="?", type=int, default=200, help="per scenario")
    parser.add_argument("--fit-baseline", type=Path, help="where to write the SNQI baseline of all these episodes")
    arguments = parser.parse_args()
    records = {
        (label, family): columns(play(policy, [f"{family}_{d}" for d in DENSITIES], arguments.episodes))
        for label, policy in POLICIES.items()
        for family in FAMILIES
    }
    everything = {key: np.concatenate([r[key] for r in records.values()]) for key in next(iter(records.values()))}
    baseline = fit_baseline(everything)
    if arguments.fit_baseline:
        write_baseline(arguments.fit_baseline, baseline)
    weights = load_weights(Path("configs/social_nav/snqi_weights.json"))
    print("| policy | family | success | collision | near misses | comfort exposure | jerk (m/s^3) | time (s) | SNQI |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (label, family), record in records.items():
        mean = {key: float(values.mean()) for key, values in record.items()}
        print(
            f"| {label} | {family} | {mean['success']:.2f} | {mean['collision']:.2f} | {mean['near_misses']:.1f} | "
            f"{mean['comfort_exposure']:.3f} | {mean['jerk_mean']:.1f} | {mean['time_to_goal']:.1f} | "
            f"{float(snqi(record, weights, baseline).mean()):.2f} |"
        )


if __name__ == "__main__":
    main()

"""The search behind the trot of configs/quadruped: Optuna's TPE over its eight parameters.

    python benchmarks/trot_search.py                 # 400 trials, about 7 minutes of processor time
    python benchmarks/trot_search.py --trials 20     # a look

A trial is the mean return of `EPISODES` episodes of the task, each under a tenth of the motors' range as noise, so that
a gait that only just holds together does not win. The winner then plays fresh episodes, with and without noise.
"""

import argparse
import json

import gymnasium as gym
import numpy as np
import optuna

from pipeline.envs.quadruped import DiagonalTrot, GaitClock

EPISODES = 3
NOISE = 0.1
FRESH_EPISODES = 20


def play(parameters: dict[str, float], seed: int, noise: float) -> tuple[float, float]:
    """Return and distance (m) of one episode."""
    gait = {name: value for name, value in parameters.items() if name != "period"}
    trot = DiagonalTrot(**gait)
    env = GaitClock(gym.make("Ant-v5", include_cfrc_ext_in_observation=False), parameters["period"])
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        action = np.clip(trot.act(observation) + noise * rng.standard_normal(8), -1, 1).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        total, over = total + float(reward), terminated or truncated
    env.close()
    return total, float(info["x_position"])


def suggest(trial: optuna.Trial) -> dict[str, float]:
    stiffness = trial.suggest_float("stiffness", 0.4, 1.5)
    return {
        "period": trial.suggest_float("period", 8.0, 20.0),  # steps of 0.05 s
        "hip_amplitude": trial.suggest_float("hip_amplitude", 0.3, 1.2),
        "ankle_amplitude": trial.suggest_float("ankle_amplitude", 0.0, 1.2),
        "ankle_phase": trial.suggest_float("ankle_phase", -np.pi, np.pi),
        "hip_offset": trial.suggest_float("hip_offset", -0.3, 0.3),
        "ankle_offset": trial.suggest_float("ankle_offset", -1.0, 1.0),
        "stiffness": stiffness,
        "damping": stiffness * trial.suggest_float("damping_share", 0.02, 0.3),
    }


def objective(trial: optuna.Trial) -> float:
    parameters = suggest(trial)
    trial.set_user_attr("parameters", parameters)
    total = 0.0
    for seed in range(EPISODES):
        total += play(parameters, seed, NOISE)[0]
        trial.report(total / (seed + 1), seed)
        if trial.should_prune():
            raise optuna.TrialPruned
    return total / EPISODES


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=400)
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=chosen.seed, multivariate=True, n_startup_trials=60),
        pruner=optuna.pruners.PercentilePruner(30.0, n_startup_trials=20),
    )
    study.optimize(objective, chosen.trials)
    best = {name: round(value, 3) for name, value in study.best_trial.user_attrs["parameters"].items()}
    print(f"best of {chosen.trials} trials: {study.best_value:.0f} under noise {NOISE:g}")
    print(json.dumps(best, indent=2))
    for noise in (0.0, NOISE):
        played = np.array([play(best, 1000 + seed, noise) for seed in range(FRESH_EPISODES)])
        (value, distance), (spread, _) = played.mean(axis=0), played.std(axis=0, ddof=1)
        print(f"{FRESH_EPISODES} fresh episodes, noise {noise:g}: return {value:.0f} +- {spread:.0f}, {distance:.1f} m")


if __name__ == "__main__":
    main()

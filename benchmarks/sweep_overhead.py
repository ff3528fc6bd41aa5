"""What a trial of a sweep costs beyond its training: study, process, nested run, curves, verdict.

    python benchmarks/sweep_overhead.py [--trials 12] [--steps 20000]

Runs a real sweep on one worker in a fresh store and a fresh study, and sets the seconds from the start of every trial
to the start of the next, everything included, against the seconds that its training says it took. The first trial
also starts the fork server, once a sweep, and is shown apart; the last has no next and is left out.
"""

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")

# subtle: every training's process imports this file again, so what is heavy is imported where it is used
if TYPE_CHECKING:
    from pipeline.config.sweep import Sweep

WANTED = 0.5  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20_480)
    parser.add_argument("--config", default="configs/social_nav/sweep.yaml")
    arguments = parser.parse_args()
    from pipeline.config.loading import load
    from pipeline.config.sweep import Pruner, Sweep

    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            load(Sweep, arguments.config),
            storage=f"sqlite:///{folder}/sweep.db",
            trials=arguments.trials,
            trial_timesteps=arguments.steps,
            workers=1,
            best_k=1,
            fresh_seeds=(101,),
            pruner=Pruner(name="none"),
            constraint_collision_rate_max=None,
        )
        trials = measured(config, Path(folder))
    for trial in trials:
        print(f"trial {trial['number']:3d}: training {trial['training']:6.2f} s, overhead {trial['overhead']:5.3f} s")
    later = [trial["overhead"] for trial in trials[1:]]
    print(f"first trial, with the start of the fork server: {trials[0]['overhead']:.2f} s")
    print(
        f"median of the others {statistics.median(later):.3f} s, largest {max(later):.3f} s (wanted: at most {WANTED})"
    )


def measured(config: "Sweep", folder: Path) -> list[dict[str, float]]:
    """Every trial's number, seconds of training and seconds beyond it."""
    import mlflow
    import optuna

    from pipeline.stages import sweep
    from pipeline.tracking.stage_run import open_run

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    with open_run("sweep") as run:
        sweep.run(run, config, {})
    trials = optuna.load_study(study_name=config.study_name, storage=config.storage).get_trials()
    rows = []
    for trial, following in pairwise(trials):
        assert trial.datetime_start is not None and following.datetime_start is not None
        whole = (following.datetime_start - trial.datetime_start).total_seconds()
        training = trial.user_attrs["notes"]["training_seconds"]
        rows.append({"number": trial.number, "training": training, "overhead": whole - training})
    return rows


if __name__ == "__main__":
    main()

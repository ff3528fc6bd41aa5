"""Sweeps run for real: trials that succeed, collide, break and lag; kills; two processes; the exported config."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml

from pipeline.cli import stage_main
from pipeline.config.loading import load
from pipeline.config.stages import TrainExpert
from pipeline.errors import BadInput, Interrupted
from pipeline.stages import run_stage
from pipeline.stages.sweep import Trainings
from pipeline.sweep.study import MOST_ATTEMPTS
from pipeline.tracking.runs import read_text_artifact
from pipeline.tracking.stage_run import StageRun

KINDS = {
    "training.environment.skill": {"type": "categorical", "choices": [0.3, 0.6, 0.9]},
    "training.environment.reckless": {"type": "categorical", "choices": [0.0, 0.5]},
    "training.environment.breaks": {"type": "categorical", "choices": [False, True]},
    "training.ppo.n_steps": {"type": "categorical", "choices": [7, 20, 60]},
}

RATE = "training.learning_rate.initial"
SEED = 7  # draws each kind in five trials


def sweep(files, **changes):
    return run_stage("sweep", str(files.sweep(**changes)), {}, {})


def summary_of(left) -> dict:
    (run,) = [run for run in left.runs("sweep") if run.info.status == "FINISHED"]
    return json.loads(read_text_artifact(left.client, run.info.run_id, "sweep/summary.json"))


def trials(summary, kind=None):
    return [t for t in summary["trials"] if kind is None or t["kind"] == kind]


@pytest.fixture
def varied(files, store_of):
    """Feasible, infeasible and failing trials of three rollout lengths."""
    files.base(total_timesteps=480)
    outcome = sweep(
        files, trials=12, trial_timesteps=240, search_space=KINDS, constraint_collision_rate_max=0.2, best_k=2,
        sampler={"name": "random"}, seed=3,
    )  # fmt: skip
    return outcome, store_of()


def test_a_sweep_of_good_unsafe_and_broken_trials(varied, files):
    outcome, left = varied
    summary = summary_of(left)
    everything_is_what_its_values_make_it(summary)
    every_trial_is_a_nested_run_with_its_parameters_curves_and_verdict(left, summary)
    the_parent_holds_tables_and_pictures(left)
    the_winner_is_feasible_and_reported_on_fresh_seeds(outcome, summary)
    the_exported_config_is_what_train_expert_takes(left, summary, files)


def everything_is_what_its_values_make_it(summary):
    assert summary["counts"] == {k: len(trials(summary, k)) for k in ("feasible", "infeasible", "pruned", "failed")}
    assert min(summary["counts"][k] for k in ("feasible", "infeasible", "failed")) > 0 == summary["counts"]["pruned"]
    for trial in trials(summary):
        values = {key.rpartition(".")[2]: value for key, value in trial["values"].items()}
        if values["breaks"]:
            assert trial["kind"] == "failed" and "ArithmeticError: the wheels came off" in trial["reason"]
            continue
        assert trial["kind"] == ("infeasible" if values["reckless"] else "feasible")
        assert trial["value"] == pytest.approx(values["skill"], abs=0.25)
        assert trial["violation"] == pytest.approx(values["reckless"] - 0.2, abs=0.25)
        assert trial["notes"]["steps"] == 240  # whatever n_steps is: 28, 80 or 240 steps a rollout
    assert len({t["values"]["training.ppo.n_steps"] for t in trials(summary, "feasible")}) > 1


def every_trial_is_a_nested_run_with_its_parameters_curves_and_verdict(left, summary):
    (parent,) = left.runs("sweep")
    runs = {run.info.run_id: run for run in left.runs("sweep_trial")}
    assert set(runs) == {trial["notes"]["run_id"] for trial in trials(summary)}
    for trial in trials(summary):
        run = runs[trial["notes"]["run_id"]]
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["trial.number"], tags["trial.state"]) == (str(trial["number"]), trial["state"])
        assert {f"cfg.{key}" for key in trial["values"]} <= set(run.data.params)
        if trial["state"] == "failed":
            assert run.info.status == "FAILED" and "wheels" in tags["mlflow.note.content"]
            continue
        assert run.info.status == "FINISHED"
        assert tags["trial.feasible"] == str(trial["feasible"]).lower()
        assert float(tags["trial.violation"]) == trial["violation"]
        assert run.data.metrics["objective"] == trial["value"]
        curve = left.client.get_metric_history(run.info.run_id, "eval/success_rate")
        # the same objective follows from the recorded curve
        assert (curve[-1].step, curve[-1].value) == (240, trial["value"])
        assert curve[0].step == 0
        (recorded,) = json.loads(read_text_artifact(left.client, run.info.run_id, "evaluations.json"))
        assert recorded["evaluations"][-1]["figures"]["success_rate"] == trial["value"]


def the_parent_holds_tables_and_pictures(left):
    (parent,) = left.runs("sweep")
    held = {item.path for item in left.client.list_artifacts(parent.info.run_id, "sweep")}
    pictures = ("optimization_history", "parameter_importance", "parallel_coordinate", "pareto")
    assert held >= {f"sweep/{name}.png" for name in pictures}
    assert held >= {"sweep/summary.md", "sweep/summary.json", "sweep/best_config.yaml"}
    text = read_text_artifact(left.client, parent.info.run_id, "sweep/summary.md")
    assert "Constraints: collision_rate <= 0.2" in text and "the wheels came off" in text


def the_winner_is_feasible_and_reported_on_fresh_seeds(outcome, summary):
    feasible = {trial["number"]: trial for trial in trials(summary, "feasible")}
    names = [contender["name"] for contender in summary["contenders"]]
    assert names[-1] == "default" and len(names) == 3
    (best,) = [c for c in summary["contenders"] if c["name"] == summary["winner"]]
    assert best["trial"] in feasible and best["eligible"]
    assert best["sweep_value"] == feasible[best["trial"]]["value"]
    assert [fresh["seed"] for fresh in best["fresh"]] == [101]
    assert outcome.verdict is True
    assert re.search(r"winner: trial \d+: \S+ on fresh seeds \(\S+ in the sweep\)", "\n".join(outcome.summary))


def the_exported_config_is_what_train_expert_takes(left, summary, files):
    (parent,) = left.runs("sweep")
    path = files.folder / "best.yaml"
    path.write_text(read_text_artifact(left.client, parent.info.run_id, "sweep/best_config.yaml"))
    config = load(TrainExpert, path)
    (best,) = [t for t in trials(summary) if f"trial {t['number']}" == summary["winner"]]
    assert config.training.ppo["n_steps"] == best["values"]["training.ppo.n_steps"]
    assert config.training.environment["skill"] == best["values"]["training.environment.skill"]
    assert config.training.total_timesteps == 480  # of the base config, not of a trial
    assert run_stage("train_expert", str(path), {}, {}).outputs["expert"] == "models:/fated-expert/1"


@pytest.mark.slow
def test_an_expert_that_needs_no_training_converged_at_step_0(files, store):
    files.task(thresholds={"success_rate": {"min": 0.5}})
    outcome = run_stage("train_expert", str(files.base(environment={"skill": 0.9})), {}, {"seeds": "[1]"})
    assert outcome.summary[0].endswith("converged at steps 0")


def test_when_nothing_is_feasible_nothing_wins(files, store_of, capsys):
    reckless = {"training.environment.reckless": {"type": "float", "low": 0.8, "high": 0.9}}
    path = files.sweep(trials=2, search_space=reckless, constraint_collision_rate_max=0.1)
    assert stage_main("sweep", ["--config", str(path)]) == 1
    assert "no winner: no trial is complete and feasible" in capsys.readouterr().out
    left = store_of()
    (run,) = left.runs("sweep")
    assert read_text_artifact(left.client, run.info.run_id, "sweep/best_config.yaml") is None
    assert run.data.tags["verdict"] == "no" and left.runs("sweep_fresh") == []


def test_unsafe_and_diverging_trials_are_stopped_in_training_and_the_study_goes_on(files, store_of):
    space = {
        "training.environment.reckless": {
            "type": "categorical",
            "choices": [0.0, 0.9],
            "when": {"0.0": {"training.learning_rate.initial": {"type": "categorical", "choices": [1e-3, 1e37]}}},
        }
    }
    outcome = sweep(
        files, trials=5, workers=1, search_space=space, constraint_collision_rate_max=0.3, best_k=1,
        constraint_handling="prune", constraint_prune_from=0.5, sampler={"name": "random"}, seed=SEED,
    )  # fmt: skip
    summary = summary_of(store_of())
    seen = set()
    for trial in trials(summary):
        reckless, rate = trial["values"]["training.environment.reckless"], trial["values"].get(RATE)
        seen.add((trial["kind"], reckless, rate))
        if reckless:
            assert trial["feasible"] is False
            assert 120 <= trial["notes"]["steps"] < 240  # after half of the budget, at the evaluation due at 160
            assert trial["reason"].startswith("infeasible at step 160: collision_rate")
        elif rate > 1:
            assert trial["reason"].startswith("training of seed 1 diverged at step")
    assert summary["counts"]["infeasible"] == sum(t["state"] == "pruned" and not t["feasible"] for t in trials(summary))
    assert seen == {("infeasible", 0.9, None), ("pruned", 0.0, 1e37), ("feasible", 0.0, 1e-3)}
    assert outcome.verdict is True


def test_trials_behind_the_median_are_stopped_in_training(files, store_of):
    space = {"training.environment.skill": {"type": "float", "low": 0.0, "high": 1.0}}
    sweep(
        files, trials=6, workers=1, search_space=space, best_k=1, sampler={"name": "random"},
        pruner={"name": "median", "arguments": {"n_startup_trials": 2}},
    )  # fmt: skip
    left = store_of()
    summary = summary_of(left)
    pruned = trials(summary, "pruned")
    assert pruned and trials(summary, "feasible")
    assert all(t["notes"]["steps"] < 240 and t["reason"].startswith("pruner median at step") for t in pruned)
    assert max(t["value"] for t in pruned) < max(t["value"] for t in trials(summary, "feasible"))
    runs = {run.info.run_id: run for run in left.runs("sweep_trial")}
    assert all(runs[t["notes"]["run_id"]].info.status == "KILLED" for t in pruned)


@pytest.mark.slow
def test_several_seeds_a_trial_are_compared_seed_by_seed(files, store_of):
    files.base(evaluation={"segments": [{"every_steps": 120}], "episodes": 40}, total_timesteps=120)
    base = yaml.safe_load((files.folder / "train_expert.yaml").read_text())
    base["seeds"] = [1, 2, 3, 4, 5]
    files.write("train_expert.yaml", base)
    space = {"training.environment.skill": {"type": "categorical", "choices": [0.1, 0.9]}}
    sweep(
        files, trials=3, workers=1, search_space=space, best_k=1, seeds_per_trial=5, sampler={"name": "random"}, seed=4,
        pruner={"name": "wilcoxon", "arguments": {"p_threshold": 0.2, "n_startup_steps": 2}},
    )  # fmt: skip
    left = store_of()
    summary = summary_of(left)
    complete, pruned = trials(summary, "feasible"), trials(summary, "pruned")
    assert all(t["notes"]["steps"] == 5 * 120 for t in complete)
    assert pruned and all(re.match(r"pruner wilcoxon after [234] seeds", t["reason"]) for t in pruned)
    runs = {run.info.run_id: run for run in left.runs("sweep_trial")}
    for trial in complete:
        run = runs[trial["notes"]["run_id"]]
        last = [left.client.get_metric_history(run.info.run_id, f"seed_{s}/eval/success_rate")[-1] for s in range(1, 6)]
        assert trial["value"] == pytest.approx(sum(point.value for point in last) / 5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_on_one_worker(files, store_of):
    pruner = {"name": "median", "arguments": {"n_startup_trials": 1}}
    for name in ("once", "twice"):
        sweep(files, study_name=name, workers=1, trials=3, best_k=1, pruner=pruner)
    left = store_of()
    both = [
        json.loads(read_text_artifact(left.client, run.info.run_id, "sweep/summary.json")) for run in left.runs("sweep")
    ]
    first, second = ([(t["values"], t["value"], t["kind"]) for t in summary["trials"]] for summary in both)
    assert first == second


@pytest.mark.slow
def test_a_fault_ends_every_training_and_leaves_its_trials_to_be_tried_again(files, store_of, monkeypatch):
    def broken(*arguments):
        raise BadInput("outbox cannot be used: no space left")

    path = files.sweep(
        trials=4, search_space={"training.environment.slow": {"type": "float", "low": 0.02, "high": 0.03}}
    )
    with monkeypatch.context() as patch, pytest.raises(BadInput, match="no space left"):
        patch.setattr(StageRun, "metric_series", broken)
        run_stage("sweep", str(path), {}, {})
    assert multiprocessing.active_children() == []
    study = optuna.load_study(study_name="known", storage=files.storage)
    states = Counter(trial.state.name for trial in study.get_trials())
    assert states["FAIL"] == states["WAITING"] > 0 and set(states) == {"FAIL", "WAITING"}


@pytest.mark.slow
def test_a_full_disk_and_a_kill_use_up_neither_a_trial_nor_a_contender(files, store_of):
    fault = files.folder / "fault"
    files.base(environment={"fault": str(fault)})
    fault.write_text("full")
    with pytest.raises(OSError, match="No space left"):
        sweep(files, trials=2, workers=1, best_k=1)
    fault.write_text("")
    assert sweep(files, trials=2, workers=1, best_k=1).verdict is True
    fault.write_text("kill")
    with pytest.raises(Interrupted):
        sweep(files, trials=2, workers=1, best_k=1, fresh_seeds=[101, 102])
    assert {run.info.status for run in store_of().runs("sweep_fresh")} == {"KILLED", "FINISHED"}
    fault.write_text("")
    assert sweep(files, trials=2, workers=1, best_k=1, fresh_seeds=[101, 102]).verdict is True
    fault.write_text("kill")
    for _ in range(2 * (MOST_ATTEMPTS - 1)):  # the best, then the default: what always is killed is given up on
        with pytest.raises(Interrupted):
            sweep(files, trials=2, workers=1, best_k=1, fresh_seeds=[103])
    assert sweep(files, trials=2, workers=1, best_k=1, fresh_seeds=[103]).verdict is False
    fault.write_text("")
    assert sweep(files, trials=2, workers=1, best_k=1, fresh_seeds=[101, 102]).verdict is True
    left = store_of()
    newest = max(left.runs("sweep"), key=lambda run: run.info.start_time)
    summary = json.loads(read_text_artifact(left.client, newest.info.run_id, "sweep/summary.json"))
    assert len(trials(summary, "feasible")) == 2 and trials(summary, "failed") == []
    assert [[fresh["seed"] for fresh in c["fresh"]] for c in summary["contenders"]] == [[101, 102]] * 2
    assert all(fresh["value"] is not None for c in summary["contenders"] for fresh in c["fresh"])
    params = [run.data.params for run in left.runs("sweep_fresh") if run.data.tags["trial.number"] != "default"]
    assert params and all("cfg.training.environment.skill" in of for of in params)


def test_a_fault_of_a_later_worker_ends_an_earlier_one_that_still_runs():
    two = SimpleNamespace(config=SimpleNamespace(workers=2))
    trainings, ended = Trainings(None, None, two, None), []

    def breaks():
        raise ArithmeticError("the wheels came off")

    with pytest.raises(ArithmeticError, match="the wheels came off"):
        trainings._side_by_side([lambda: ended.append(trainings.stop.wait(5)), breaks])
    assert ended == [True]  # told to stop, not at the end of its patience


# --- processes that come and go ---------------------------------------------------------------------------------------


@pytest.fixture
def start(subprocess_environment, store):
    """Start the entry point in a process of its own, in which every step takes long enough to be interrupted."""
    processes = []

    def started(path: Path, slow: float) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "entrypoints.sweep", "--config", str(path)],
            env={**subprocess_environment, "FATED_SLOW": str(slow), "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"},
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield started
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def quick(files):
    """Trainings of 560 environment steps in all, evaluations included."""
    files.base(evaluation={"segments": [{"every_steps": 120}], "episodes": 10})


def wait_for(process: subprocess.Popen, text: str) -> None:
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never said")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_continues_and_no_finished_trial_is_run_again(files, quick, store_of, start, how):
    path = files.sweep(trials=4, workers=1, best_k=1)
    process = start(path, 0.002)
    wait_for(process, "2 of 4 done")
    time.sleep(0.3)
    os.kill(process.pid, how)
    process.communicate()
    run_stage("sweep", str(path), {}, {})
    left = store_of()
    summary = summary_of(left)
    kinds = [t["kind"] for t in trials(summary)]
    assert kinds.count("feasible") == 4 and kinds.count("lost") <= 1 and len(kinds) <= 5
    lost = trials(summary, "lost")
    again = [t["values"] for t in trials(summary, "feasible")]
    # the kill may come before the values of a trial are drawn
    assert all(t["values"] in again for t in lost if t["values"])
    assert len({json.dumps(values) for values in again}) == 4
    runs = left.runs("sweep_trial")
    # the kill may come between the study's giving out a trial and the beginning of its run
    assert len(kinds) - len(lost) <= len(runs) <= len(kinds) and all(run.info.status != "RUNNING" for run in runs)


@pytest.mark.slow
def test_two_processes_share_the_trials_and_come_to_the_same_winner(files, quick, store_of, start):
    path = files.sweep(trials=4, workers=1, best_k=1)
    outputs = [process.communicate(timeout=900) for process in [start(path, 0.001), start(path, 0.001)]]
    left = store_of()
    runs = left.runs("sweep_trial")
    assert sorted(int(run.data.tags["trial.number"]) for run in runs) == list(range(4)), outputs
    # usually both, but who starts late on a busy machine may find everything done
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} <= {run.info.run_id for run in left.runs("sweep")}
    assert [run.info.status for run in left.runs("sweep")] == ["FINISHED", "FINISHED"]
    assert len(left.runs("sweep_fresh")) == 2  # the best and the default, once
    winners = {re.search(r"winner: .*", out).group() for out, _ in outputs}
    assert len(winners) == 1


def test_bad_input_is_one_line_and_exit_code_2(files, store_of, capsys, store):
    path = files.sweep(search_space={"training.ppo.n_stepz": {"type": "int", "low": 2, "high": 4}})
    assert stage_main("sweep", ["--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'training.ppo.n_stepz'" in line and "Did you mean 'n_steps'?" in line
    (run,) = store_of().runs("sweep")
    assert run.info.status == "FAILED" and line == f"error: {run.data.tags['mlflow.note.content']}"
    path = files.sweep(storage=f"sqlite:///{store}/mlflow.db")
    assert stage_main("sweep", ["--config", str(path)]) == 2
    assert "is the tracking store; give the study a database of its own" in capsys.readouterr().err
    assert not (files.folder / "sweep.db").exists()

"""The study of a sweep: what is drawn, what survives a kill, and what never wins."""

import json
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack, closing

import optuna
import pytest

from pipeline.config.loading import load, validate
from pipeline.config.sweep import Pruner, Sampler, Sweep
from pipeline.errors import BadInput
from pipeline.sweep.study import (
    SweepStudy,
    TrialFailed,
    TrialRecord,
    conclude,
    made,
    ranking,
)

SPACE = {
    "training.learning_rate.initial": {"type": "log", "low": 1.0e-4, "high": 1.0e-2},
    "training.ppo.n_epochs": {"type": "int", "low": 2, "high": 8, "step": 2},
    "training.ppo.vf_coef": {"type": "float", "low": 0.2, "high": 1.0, "step": 0.2},
    "training.normalize_reward": {
        "type": "categorical",
        "choices": [True, False],
        "when": {"true": {"training.ppo.gamma": {"type": "float", "low": 0.9, "high": 0.99}}},
    },
}


@pytest.fixture
def make_study(files):
    def make(settings=None, maximise=True, **changes) -> SweepStudy:
        config = load(Sweep, files.sweep(**{"search_space": SPACE, "trials": 8, **changes}))
        return SweepStudy(config, settings or {"base": 1}, maximise)

    return make


def play(study: SweepStudy, count: int) -> list[dict]:
    """Run trials whose value follows from their parameters."""
    drawn = []

    def train(trial, values):
        drawn.append(dict(values))
        rate = values["training.learning_rate.initial"]
        conclude(trial, None, {"collision_rate": rate - 0.005})
        return 1.0 - rate

    for _ in range(count):
        study.run_trial(train)
    return drawn


def interrupt(study: SweepStudy) -> dict:
    """Begin a trial that is interrupted; returns its values."""
    drawn = []

    def train(trial, values):
        drawn.append(dict(values))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run_trial(train)
    return drawn[0]


def ending(value, **excess):
    """A training that comes to a value."""

    def train(trial, values):
        conclude(trial, None, excess)
        return value

    return train


def of_this_machine(alive=()):
    """Whether a process has ended, of processes that are known by name."""
    return lambda process: None if process == "elsewhere" else process not in alive


def test_a_study_is_never_continued_in_the_other_direction(make_study):
    make_study()
    with pytest.raises(BadInput, match="was made to maximise success_rate; give another study_name"):
        make_study(maximise=False)


def test_values_lie_in_their_ranges_and_nested_ones_exist_only_with_their_choice(make_study):
    for values in play(make_study(), 8):
        assert 1e-4 <= values["training.learning_rate.initial"] <= 1e-2
        assert values["training.ppo.n_epochs"] in (2, 4, 6, 8)
        assert round(values["training.ppo.vf_coef"] / 0.2, 6) == round(values["training.ppo.vf_coef"] / 0.2)
        assert values["training.normalize_reward"] in (True, False)
        assert ("training.ppo.gamma" in values) == values["training.normalize_reward"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_whether_or_not_the_study_was_reopened(make_study):
    for name in ("tpe", "random", "gp", "nsgaii"):
        arguments = {} if name in ("random", "nsgaii") else {"n_startup_trials": 2}

        def study_of(study_name, seed=0, sampler={"name": name, "arguments": arguments}):  # noqa: B006
            return make_study(study_name=study_name, seed=seed, sampler=sampler)

        whole = play(study_of(f"{name}_whole"), 4)
        parts = [values for _ in range(2) for values in play(study_of(f"{name}_parts"), 2)]
        assert parts == whole, name
        assert play(study_of(f"{name}_other", seed=1), 1) != whole[:1], name
        assert len({json.dumps(values, sort_keys=True) for values in whole}) == 4, name


def test_no_more_trials_are_started_than_asked_for(make_study):
    study = make_study(trials=3)

    def train(trial, values):
        left.append(study.remaining())
        return 0.5

    left = [study.remaining()]
    while study.remaining():
        study.run_trial(train)
    assert left == [3, 2, 1, 0]
    assert make_study(trials=4).remaining() == 1


def test_failed_and_pruned_trials_count_and_keep_their_reason(make_study):
    study, ended = make_study(trials=3), []

    def fail(trial, values):
        trial.set_user_attr("notes", {"run_id": "a"})
        conclude(trial, "out of memory", None)
        raise TrialFailed

    def prune(trial, values):
        trial.report(0.25, 10)
        assert not trial.should_prune()
        conclude(trial, "hopeless", {"collision_rate": 0.1})
        raise optuna.TrialPruned

    study.run_trial(fail, ended=ended.append)
    study.run_trial(prune, ended=ended.append)
    first, second = study.records()
    assert ended == [first, second]
    assert (first.state, first.reason, first.notes, first.value) == ("failed", "out of memory", {"run_id": "a"}, None)
    assert (second.state, second.reason, second.value, second.feasible) == ("pruned", "hopeless", 0.25, False)
    assert study.remaining() == 1


def test_feasibility_and_violation_are_user_attributes_and_constraints_of_optuna(make_study):
    study = make_study()
    study.run_trial(ending(0.9, collision_rate=0.02, comfort_exposure=-0.1))
    study.run_trial(ending(0.8, collision_rate=0.0, comfort_exposure=-0.1))
    bad, good = study.study.get_trials()
    assert (bad.user_attrs["feasible"], bad.user_attrs["violation"]) == (False, 0.02)
    assert (good.user_attrs["feasible"], good.user_attrs["violation"]) == (True, 0.0)
    # Optuna itself knows: its best trial is the feasible one
    assert study.study.best_trial.number == 1


def test_optuna_knows_the_constraints_whatever_the_sampler(make_study):
    for name in ("tpe", "random", "gp", "nsgaii"):
        study = make_study(study_name=name, sampler={"name": name})
        study.run_trial(ending(0.9, collision_rate=0.5))
        study.run_trial(ending(0.1, collision_rate=-0.5))
        assert study.study.best_trial.number == 1, name


def record(number, value, feasible=True, state="complete"):
    return TrialRecord(number, state, {}, value, {}, feasible, None, {})


def test_only_complete_and_feasible_trials_are_ranked_and_ties_go_to_the_earlier():
    trials = [
        record(0, 0.5), record(1, 0.99, feasible=False), record(2, 0.7), record(3, 0.98, state="pruned"),
        record(4, None, state="failed"), record(5, 0.7), record(6, 0.95, feasible=None),
    ]  # fmt: skip
    assert [t.number for t in ranking(trials, maximise=True)] == [2, 5, 0]
    assert [t.number for t in ranking(trials, maximise=False)] == [0, 2, 5]


# --- several processes ------------------------------------------------------------------------------------------------

DIE = """
    import os, sys
    from pipeline.config.loading import load
    from pipeline.config.sweep import Sweep
    from pipeline.sweep.study import SweepStudy, conclude
    study = SweepStudy(load(Sweep, sys.argv[1]), {"base": 1}, True)

    def complete(trial, values):
        rate = values["training.learning_rate.initial"]
        conclude(trial, None, {"collision_rate": rate - 0.005})
        return 1.0 - rate

    def die(trial, values):
        trial.set_user_attr("notes", {"run_id": "of the dead"})
        os.kill(os.getpid(), 9)

    study.run_trial(complete, "dead")
    study.run_trial(die, "dead")
"""


def test_the_trial_of_a_killed_process_is_tried_again_as_if_nothing_had_been(make_study, files):
    whole = play(make_study(study_name="whole", trials=4), 4)
    make_study(trials=4)
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DIE), str(files.folder / "sweep.yaml")], capture_output=True, text=True
    )
    assert process.returncode == -9, process.stderr
    study = make_study(trials=4)
    assert [r.state for r in study.records()] == ["complete", "running"] and study.remaining() == 2
    study.release_dead(of_this_machine(alive=["dead"]))
    assert study.records()[1].state == "running"
    for _ in range(2):
        study.release_dead(of_this_machine())
        assert [r.state for r in study.records()] == ["complete", "lost", "waiting"]
    assert study.records()[1].notes == {"run_id": "of the dead"} and study.remaining() == 3
    continued = play(study, 3)
    assert continued[0] == dict(study.records()[1].values)
    # the others are what an uninterrupted study draws
    assert [dict(study.records()[0].values), *continued] == whole
    assert study.remaining() == 0
    assert [r.state for r in study.records()] == ["complete", "lost", "complete", "complete", "complete"]


def test_an_interrupted_trial_is_given_back_as_often_as_it_takes(make_study):
    study, ended = make_study(trials=1), []
    seen = [interrupt(study) for _ in range(5)]
    assert all(values == seen[0] for values in seen) and study.remaining() == 1

    def fault(trial, values):
        raise ArithmeticError("a defect")

    with pytest.raises(ArithmeticError):
        study.run_trial(fault, ended=ended.append)
    assert [(r.number, r.state) for r in ended] == [(5, "lost")] and "interrupted" in ended[0].reason
    assert study.records()[6].state == "waiting"


@pytest.fixture
def silent(files):
    """Set back the last sign of life of every trial."""

    def set_back():
        of_running = "trial_id IN (SELECT trial_id FROM trials WHERE state = 'RUNNING')"
        with closing(sqlite3.connect(files.folder / "sweep.db", timeout=60)) as database:
            while not database.execute(f"SELECT * FROM trial_heartbeats WHERE {of_running}").fetchall():
                time.sleep(0.01)  # for the first beat, of a thread of Optuna's
            database.execute(
                f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '-61 seconds') WHERE {of_running}"
            )
            database.commit()

    return set_back


def test_what_dies_three_times_is_replaced_by_fresh_values(make_study, silent):
    here, seen, ended = make_study(trials=1), [], []

    def slept_through(trial, values):
        seen.append(dict(values))
        silent()
        here.release_dead(of_this_machine())
        return ending(0.5)(trial, values)

    for _ in range(4):
        make_study(trials=1).run_trial(slept_through, "elsewhere", ended=ended.append)
    assert seen[0] == seen[1] == seen[2] != seen[3]
    assert [r.state for r in ended] == ["lost"] * 4 and "taken over by another process" in ended[0].reason
    here.run_trial(ending(0.5))
    assert here.remaining() == 0


def test_a_trial_of_another_machine_is_left_alone_until_it_is_silent_for_too_long(make_study, silent):
    there, here = make_study(), make_study()

    def train(trial, values):
        here.release_dead(of_this_machine())
        assert here.records()[0].state == "running"
        silent()
        here.release_dead(of_this_machine())
        assert [r.state for r in here.records()] == ["lost", "waiting"]
        trial.report(0.5, 1)
        raise AssertionError("a trial that was taken over goes on")

    there.run_trial(train, "elsewhere")


def test_a_process_that_died_before_it_could_name_itself_is_found_by_its_silence(make_study):
    study = make_study()
    study.study.ask()
    study.release_dead(of_this_machine())
    assert study.records()[0].state == "running"
    make_study(stale_after_seconds=1.0e-6).release_dead(of_this_machine())
    assert [r.state for r in study.records()] == ["lost", "waiting"]


def test_threads_and_processes_never_run_the_same_trial(make_study):
    studies, turn, trained = [make_study(trials=8), make_study(trials=8)], threading.Lock(), []

    def work(study):
        def train(trial, values):
            trained.append((trial.number, json.dumps(values, sort_keys=True)))
            return 0.5

        while True:
            with ExitStack() as mine:
                mine.enter_context(turn)
                if not study.remaining():
                    return
                study.run_trial(train, "here", drawn=mine.close)

    workers = [threading.Thread(target=work, args=(study,)) for study in studies for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(number for number, _ in trained) == list(range(8))
    assert len({values for _, values in trained}) == 8


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_study_is_continued_only_with_the_settings_it_was_made_with(make_study):
    def settings(rate: float, **here) -> dict:
        base = {"training": {"long": "x" * 200, "rate": rate}, "workers": 2, "task": "there.yaml"}
        return {"base": {**base, **here.pop("base", {})}, "task": {"horizon": 9, **here}, "objective": "auc"}

    make_study(settings(1.0, environment_workers=4, executor={"kind": "local"}))
    make_study(settings(1.0, approvers=["anna"], meanings={"a": "b"}, device="cpu", base={"workers": 9, "task": "x"}))
    told = r"study 'known' in .* was made with another base.training.rate: '1.0', now '2.0'; give another study_name"
    with pytest.raises(BadInput, match=told):
        make_study(settings(2.0))
    with pytest.raises(BadInput, match="another objective: 'auc', now 'absent'"):
        make_study({key: value for key, value in settings(1.0).items() if key != "objective"})


def test_a_study_of_somebody_else_is_not_continued(make_study, files):
    foreign = optuna.create_study(study_name="known", storage=files.storage)
    foreign.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(BadInput, match="was not made by a sweep"):
        make_study()


def test_a_storage_that_cannot_be_used_is_one_line(make_study):
    for storage in ("nonsense", "sqlite:////proc/no/where.db", "unknowndb://host/x", "postgresql://127.0.0.1:1/x"):
        with pytest.raises(BadInput, match=r"^storage .* cannot be used: ") as caught:
            make_study(storage=storage)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_line(make_study, tmp_path):
    (tmp_path / "notes.txt").write_text("not a database\n" * 100)
    with pytest.raises(BadInput, match=r"cannot be used: .*not a database"):
        make_study(storage=f"sqlite:///{tmp_path}/notes.txt")


def test_arguments_of_samplers_and_pruners_are_checked_by_name_and_value():
    with pytest.raises(BadInput, match=r"unknown argument 'n_startup_trial'. Did you mean 'n_startup_trials'\?"):
        made(validate(Sampler, {"arguments": {"n_startup_trial": 3}}, "test"))
    with pytest.raises(BadInput, match=r"pruner.arguments of 'percentile': "):
        made(validate(Pruner, {"name": "percentile"}, "test"))
    with pytest.raises(BadInput, match="Percentile must be between 0 and 100"):
        made(validate(Pruner, {"name": "percentile", "arguments": {"percentile": 101.0}}, "test"))
    with pytest.raises(BadInput, match="unknown argument 'seed'"):
        made(validate(Sampler, {"arguments": {"seed": 3}}, "test"))


def test_every_pruner_can_be_made_by_its_name():
    for name in ("none", "median", "successive_halving", "hyperband", "wilcoxon"):
        assert isinstance(made(validate(Pruner, {"name": name}, "test")), optuna.pruners.BasePruner)

"""The study of a sweep: what is drawn, what survives a kill, and what never wins."""

import json
import subprocess
import sys
import textwrap

import optuna
import pytest

from pipeline.config.loading import load, validate
from pipeline.config.sweep import Pruner, Sampler, Sweep
from pipeline.errors import BadInput
from pipeline.sweep.study import SweepStudy, TakenOver, TrialRecord, make_pruner, ranking, sampler_maker

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
    for _ in range(count):
        trial = study.next()
        drawn.append(dict(trial.values))
        rate = trial.values["training.learning_rate.initial"]
        study.complete(trial, 1.0 - rate, {"collision_rate": rate - 0.005}, {})
    return drawn


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


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "nsgaii"])
def test_the_same_seed_gives_the_same_trials_whether_or_not_the_study_was_reopened(make_study, name):
    changes = {"sampler": {"name": name, "arguments": {} if name in ("random", "nsgaii") else {"n_startup_trials": 3}}}
    whole = play(make_study(study_name="whole", **changes), 6)
    parts = [values for _ in range(3) for values in play(make_study(study_name="parts", **changes), 2)]
    assert parts == whole
    assert play(make_study(study_name="other", seed=1, **changes), 2) != whole[:2]
    assert len({json.dumps(values, sort_keys=True) for values in whole}) == 6


def test_no_more_trials_are_started_than_asked_for(make_study):
    study = make_study(trials=3)
    assert [study.next().number for _ in range(3)] == [0, 1, 2]
    assert study.next() is None
    assert make_study(trials=4).next().number == 3


def test_failed_and_pruned_trials_count_and_keep_their_reason(make_study):
    study = make_study(trials=3)
    study.fail(study.next(), "out of memory", {"run_id": "a"})
    pruned = study.next()
    assert study.report(pruned, 10, 0.25) is False
    study.prune(pruned, "hopeless", {"collision_rate": 0.1}, {})
    first, second = study.records()
    assert (first.state, first.reason, first.notes, first.value) == ("failed", "out of memory", {"run_id": "a"}, None)
    assert (second.state, second.reason, second.value, second.feasible) == ("pruned", "hopeless", 0.25, False)
    assert study.remaining() == 1


def test_feasibility_and_violation_are_user_attributes_and_constraints_of_optuna(make_study):
    study = make_study()
    study.complete(study.next(), 0.9, {"collision_rate": 0.02, "comfort_exposure": -0.1}, {})
    study.complete(study.next(), 0.8, {"collision_rate": 0.0, "comfort_exposure": -0.1}, {})
    bad, good = study.optuna_study.get_trials()
    assert (bad.user_attrs["feasible"], bad.user_attrs["violation"]) == (False, 0.02)
    assert (good.user_attrs["feasible"], good.user_attrs["violation"]) == (True, 0.0)
    # Optuna itself knows: its best trial is the feasible one
    assert study.optuna_study.best_trial.number == 1


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "nsgaii"])
def test_every_sampler_tells_optuna_about_constraints(make_study, name):
    study = make_study(sampler={"name": name})
    study.complete(study.next(), 0.9, {"collision_rate": 0.5}, {})
    study.complete(study.next(), 0.1, {"collision_rate": -0.5}, {})
    assert study.optuna_study.best_trial.number == 1


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
    from pipeline.sweep.study import SweepStudy
    study = SweepStudy(load(Sweep, sys.argv[1]), {"base": 1}, True)
    trial = study.next()
    study.complete(trial, 0.5, {}, {})
    trial = study.next()
    study.note(trial, {"run_id": "of the dead"})
    print(trial.number, dict(trial.values), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_the_trial_of_a_killed_process_is_started_again_with_its_values_and_no_other_is_touched(make_study, files):
    make_study(trials=3)
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DIE), str(files.folder / "sweep.yaml")], capture_output=True, text=True
    )
    assert process.returncode == -9, process.stderr
    study = make_study(trials=3)
    assert study.running_elsewhere() == [1] and study.remaining() == 1
    (dead,) = study.release_dead()
    assert (dead.number, dead.notes) == (1, {"run_id": "of the dead"})
    assert study.release_dead() == []
    assert [r.state for r in study.records()] == ["complete", "lost", "waiting"]
    again = study.next()
    assert (again.number, dict(again.values)) == (2, dict(dead.values))
    study.complete(again, 0.7, {}, {})
    study.complete(study.next(), 0.1, {}, {})
    assert study.next() is None
    assert [r.state for r in study.records()] == ["complete", "lost", "complete", "complete"]


def test_a_killed_and_continued_study_draws_what_an_uninterrupted_one_draws(make_study, files):
    whole = play(make_study(study_name="whole", trials=4), 4)
    make_study(trials=4)
    rate = 'trial.values["training.learning_rate.initial"]'
    script = textwrap.dedent(DIE).replace("0.5, {}", f'1.0 - {rate}, {{"collision_rate": {rate} - 0.005}}')
    subprocess.run([sys.executable, "-c", script, str(files.folder / "sweep.yaml")], capture_output=True)
    study = make_study(trials=4)
    assert len(study.release_dead()) == 1
    continued = play(study, 3)
    assert [dict(study.records()[0].values), *continued] == whole


def test_an_interrupted_trial_is_given_back_as_often_as_it_takes(make_study):
    study = make_study(trials=1)
    seen = []
    for _ in range(5):
        seen.append(study.next().values)
        study.give_back()
    assert all(values == seen[0] for values in seen)


def test_what_dies_three_times_is_replaced_by_fresh_values(make_study, monkeypatch):
    here = make_study(trials=1, stale_after_seconds=1.0e-6)
    seen = []
    for _ in range(4):
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        seen.append(make_study(trials=1).next().values)
        monkeypatch.undo()
        assert len(here.release_dead()) == 1
    assert seen[0] == seen[1] == seen[2] != seen[3]
    here.complete(here.next(), 0.5, {}, {})
    assert here.next() is None and here.remaining() == 0


def test_a_trial_of_another_machine_is_left_alone_until_it_is_silent_for_too_long(make_study, monkeypatch):
    there, here = make_study(), make_study()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    trial = there.next()
    monkeypatch.undo()
    assert here.release_dead() == [] and here.running_elsewhere() == [trial.number]
    impatient = make_study(stale_after_seconds=1.0e-6)
    assert [r.number for r in impatient.release_dead()] == [trial.number]
    with pytest.raises(TakenOver, match=f"trial {trial.number} was taken over"):
        there.complete(trial, 0.5, {}, {})
    with pytest.raises(TakenOver):
        there.report(trial, 1, 0.5)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_study_is_continued_only_with_the_settings_it_was_made_with(make_study):
    make_study({"base": {"rate": 1}, "objective": "auc"})
    make_study({"base": {"rate": 1}, "objective": "auc"})
    with pytest.raises(BadInput, match=r"study 'known' in .* was made with another objective: 'auc', now 'final_eval'"):
        make_study({"base": {"rate": 1}, "objective": "final_eval"})


def test_a_study_of_somebody_else_is_not_continued(make_study, files):
    foreign = optuna.create_study(study_name="known", storage=files.storage)
    foreign.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(BadInput, match="was not made by a sweep"):
        make_study()


@pytest.mark.parametrize(
    "storage", ["nonsense", "sqlite:////proc/no/where.db", "unknowndb://host/x", "postgresql://127.0.0.1:1/x"]
)
def test_a_storage_that_cannot_be_used_is_one_line(make_study, storage):
    with pytest.raises(BadInput, match=r"^storage .* cannot be used: ") as caught:
        make_study(storage=storage)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_line(make_study, tmp_path):
    (tmp_path / "notes.txt").write_text("not a database\n" * 100)
    with pytest.raises(BadInput, match=r"cannot be used: .*not a database"):
        make_study(storage=f"sqlite:///{tmp_path}/notes.txt")


def test_arguments_of_samplers_and_pruners_are_checked_by_name_and_value():
    with pytest.raises(BadInput, match=r"unknown argument 'n_startup_trial'. Did you mean 'n_startup_trials'\?"):
        sampler_maker(validate(Sampler, {"arguments": {"n_startup_trial": 3}}, "test"))
    with pytest.raises(BadInput, match=r"pruner.arguments of 'percentile': "):
        make_pruner(validate(Pruner, {"name": "percentile"}, "test"))
    with pytest.raises(BadInput, match="Percentile must be between 0 and 100"):
        make_pruner(validate(Pruner, {"name": "percentile", "arguments": {"percentile": 101.0}}, "test"))
    with pytest.raises(BadInput, match="unknown argument 'seed'"):
        sampler_maker(validate(Sampler, {"arguments": {"seed": 3}}, "test"))


@pytest.mark.parametrize("name", ["none", "median", "successive_halving", "hyperband", "wilcoxon"])
def test_every_pruner_can_be_made_by_its_name(name):
    assert isinstance(make_pruner(validate(Pruner, {"name": name}, "test")), optuna.pruners.BasePruner)

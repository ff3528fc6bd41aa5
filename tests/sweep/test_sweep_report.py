"""The report claims what was measured, and no more."""

import pytest

from pipeline.config.sweep import Objective, Parameter, Sweep
from pipeline.report.sweep_report import SweepReport, sweep_markdown
from pipeline.sweep.objectives import Contender, FreshResult
from pipeline.sweep.study import TrialRecord


def contender(trial, values, excess=-0.1, sweep_value=None):
    fresh = [FreshResult(101 + i, v, {"collision_rate": excess}, {"success_rate": v}) for i, v in enumerate(values)]
    return Contender(trial, sweep_value, tuple(fresh))


def report_of(*contenders, maximise=True):
    trials = (
        TrialRecord(0, "complete", {"training.n_envs": 4}, 0.95, {"collision_rate": -0.1}, True, None, {}),
        TrialRecord(1, "complete", {"training.n_envs": 8}, 0.99, {"collision_rate": 0.2}, False, None, {}),
        TrialRecord(2, "failed", {}, None, {}, None, "a | b\nc", {}),
        TrialRecord(3, "lost", {}, None, {}, None, None, {}),
    )
    config = Sweep(
        base="base.yaml",
        study_name="s",
        search_space={"training.n_envs": Parameter(type="categorical", choices=(4, 8))},
        objective=Objective(metric="success_rate" if maximise else "collision_rate"),
        constraint_collision_rate_max=0.1,
    )
    return SweepReport(config, maximise, 240, trials, contenders)


def test_both_figures_and_the_gain_over_the_default_are_reported_seed_by_seed():
    report = report_of(contender(0, [0.8, 0.9], sweep_value=0.95), contender(None, [0.7, 0.95]))
    assert report.gain == pytest.approx(0.025)
    assert report.seed_gains() == pytest.approx((0.1, -0.05))
    assert report.lines() == (
        "sweep: study 's', best_checkpoint of success_rate, maximised: 1 feasible, 1 infeasible, 0 pruned, 1 failed",
        "  winner: trial 0: 0.85 on fresh seeds (0.95 in the sweep)",
        "  default: 0.825 on the same seeds; gain +0.025, from seed to seed -0.05 to +0.1",
    )


def test_a_gain_is_positive_when_a_minimised_figure_is_lower():
    report = report_of(contender(0, [0.1], sweep_value=0.05), contender(None, [0.3]), maximise=False)
    assert report.gain == pytest.approx(0.2) and report.seed_gains() == pytest.approx((0.2,))


def test_a_default_that_is_infeasible_is_said_to_be():
    report = report_of(contender(0, [0.8], sweep_value=0.95), contender(None, [0.9], excess=0.01))
    assert "default: 0.9 on the same seeds, where it is infeasible; gain -0.1" in report.lines()[2]


def test_without_a_winner_there_is_no_gain():
    report = report_of(contender(0, [0.9], excess=0.1), contender(None, [0.5]))
    assert report.winner is None and report.gain is None and report.seed_gains() == ()
    assert "none of the best trials is feasible on every fresh seed" in report.lines()[1]


def test_reasons_cannot_break_the_tables():
    text = sweep_markdown(report_of(contender(0, [0.8, 0.9], sweep_value=0.95)), ["pareto: a | b"])
    *_, trials = text.split("## Trials")
    rows = [line for line in trials.splitlines() if line.startswith("|")]
    assert "a | b" not in text and len(rows) == 6 and len({row.count("|") for row in rows}) == 1

"""Is an expert good enough, and what to try: trends and shortfalls worked out by hand."""

import numpy as np
import pytest

from pipeline.config.base import Bound
from pipeline.envs.episodes import Episode
from pipeline.learning.diagnosis import ADVICE, diagnose, trend_of
from pipeline.learning.jobs import EvaluationPoint, TrainingResult, WallSeconds
from pipeline.play.evaluation import EpisodeRecords

STEP = 100_000
THRESHOLDS = {"success_rate": Bound(min=0.9), "collision_rate": Bound(max=0.05)}


def records(success: float, collision: float = 0.0, worst: str = "a") -> EpisodeRecords:
    """20 episodes of scenarios a and b; failures and collisions fall into `worst` first."""
    order = [worst] * 10 + ["b" if worst == "a" else "a"] * 10
    metrics = {
        "return": np.zeros(20),
        "length": np.ones(20),
        "success": (np.arange(20) >= round(20 * (1 - success))).astype(float),
        "collision": (np.arange(20) < round(20 * collision)).astype(float),
    }
    return EpisodeRecords(tuple(Episode(scenario, i) for i, scenario in enumerate(order)), metrics, None, 20)


def result(seed: int, curve: list[float], final: EpisodeRecords, converged_at: int | None = None) -> TrainingResult:
    points = tuple(EvaluationPoint(i * STEP, records(value)) for i, value in enumerate(curve))
    seconds = WallSeconds(1.0, 0.1, 0.1)
    return TrainingResult(seed, points, converged_at, 0, "d", "d", "w", "w", 1, 1, 1, seconds, None, final)


# --- trends ----------------------------------------------------------------------------------------------------------


def test_a_straight_rise_is_improving_at_its_slope():
    assert trend_of([0, STEP, 2 * STEP, 3 * STEP], [0.0, 0.1, 0.2, 0.3], "higher") == (
        "improving",
        pytest.approx(0.1),
    )


def test_what_falls_improves_when_lower_is_better():
    steps, falling = [0, STEP, 2 * STEP, 3 * STEP], [0.4, 0.3, 0.2, 0.1]
    assert trend_of(steps, falling, "lower") == ("improving", pytest.approx(-0.1))
    assert trend_of(steps, falling, "higher")[0] == "worsening"


def test_a_slope_within_twice_its_standard_error_is_flat():
    # x = 0 1 2 3, y = 0 1 0 1: slope 1/5, residuals -.2 .6 -.6 .2, standard error sqrt(.8 / 2 / 5) = 0.283
    assert trend_of([0, STEP, 2 * STEP, 3 * STEP], [0.0, 1.0, 0.0, 1.0], "higher") == ("flat", pytest.approx(0.2))


def test_a_slope_just_beyond_twice_its_standard_error_is_a_trend():
    # x = 0 1 2 3, y = 0 1 1 2: slope 3/5, residuals -.1 .3 -.3 .1, standard error sqrt(.2 / 2 / 5) = 0.141
    assert trend_of([0, STEP, 2 * STEP, 3 * STEP], [0.0, 1.0, 1.0, 2.0], "higher") == (
        "improving",
        pytest.approx(0.6),
    )


def test_no_change_at_all_is_flat():
    assert trend_of([0, STEP, 2 * STEP, 3 * STEP], [0.5] * 4, "higher") == ("flat", 0.0)


def test_three_evaluations_are_too_few_for_a_trend():
    assert trend_of([0, STEP, 2 * STEP], [0.0, 0.5, 1.0], "higher") == ("too short to tell", 0.0)
    assert trend_of([0] * 5, [0.0, 0.5, 1.0, 0.0, 1.0], "higher")[0] == "too short to tell"


def test_only_the_last_ten_evaluations_make_the_trend():
    rise_then_plateau = [i / 20 for i in range(20)] + [0.95] * 10
    steps = [i * STEP for i in range(30)]
    assert trend_of(steps, rise_then_plateau, "higher") == ("flat", 0.0)


# --- diagnosis -------------------------------------------------------------------------------------------------------


def test_an_expert_exactly_at_its_thresholds_is_promotable():
    diagnosis = diagnose([result(1, [0.0, 0.9], records(0.9, 0.05), converged_at=STEP)], THRESHOLDS)
    assert diagnosis.promotable
    assert diagnosis.shortfalls == ()
    assert diagnosis.to_json() == {"promotable": True, "converged_at": {"1": STEP}, "shortfalls": []}


def test_one_seed_below_makes_the_expert_not_promotable_and_is_named():
    good, bad = records(1.0), records(0.5, worst="b")
    rising = [0.0, 0.1, 0.2, 0.3, 0.4]
    diagnosis = diagnose([result(1, rising, good), result(2, rising, bad)], THRESHOLDS)
    assert not diagnosis.promotable
    (shortfall,) = diagnosis.shortfalls
    assert (shortfall.seed, shortfall.figure, shortfall.value, shortfall.needs) == (2, "success_rate", 0.5, ">= 0.9")
    assert shortfall.missed_by == pytest.approx(0.4)
    assert (shortfall.worst_scenario, shortfall.worst_value) == ("b", 0.0)
    assert (shortfall.trend, shortfall.slope_per_100k_steps) == ("improving", pytest.approx(0.1))
    assert "seed 2: success_rate 0.500 (needs >= 0.9, missed by 0.400; worst in b: 0.000)" in shortfall.sentence()
    assert "total_timesteps" in shortfall.sentence()


def test_too_many_collisions_are_read_the_other_way_round():
    diagnosis = diagnose([result(1, [1.0] * 5, records(1.0, collision=0.25))], THRESHOLDS)
    (shortfall,) = diagnosis.shortfalls
    assert (shortfall.figure, shortfall.needs) == ("collision_rate", "<= 0.05")
    assert shortfall.missed_by == pytest.approx(0.2)
    assert (shortfall.worst_scenario, shortfall.worst_value) == ("a", 0.5)
    assert shortfall.trend == "flat"  # no evaluation of the curve collided


def test_the_verdict_rests_on_fresh_episodes_not_on_the_curve():
    assert not diagnose([result(1, [1.0] * 5, records(0.5), converged_at=0)], THRESHOLDS).promotable


def test_every_trend_has_an_advice():
    assert set(ADVICE) == {"improving", "flat", "worsening", "too short to tell"}
    assert len(set(ADVICE.values())) == 4

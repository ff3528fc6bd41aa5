import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config.base import Bound
from pipeline.config.loading import to_data
from pipeline.errors import BadInput
from pipeline.names import START
from pipeline.statistics.comparison import UpfrontCost, compare
from pipeline.statistics.efficiency import TimeToTarget, matched_pair
from pipeline.statistics.estimate import Estimate, MeanOverSeeds
from pipeline.statistics.finals import FinalVerdict, decide_final, measure_regression
from pipeline.statistics.matched import ComparisonSettings, RunData, Verdict, decide, met_target
from pipeline.statistics.planning import seeds_needed

BUDGET, INTERVAL = 100_000, 10_000
SETTINGS = ComparisonSettings(
    target={"success_rate": Bound(min=0.9), "collision_rate": Bound(max=0.05)},
    patience=2,
    evaluation_interval=INTERVAL,
    ratio_target=0.7,
    resamples=2_000,
    seed=0,
    final_figure="success_rate",
    training_set="train",
    minimised=("collision_rate",),
    primary=("success_rate", "collision_rate"),
)


def finals(success: float) -> dict[str, dict[str, np.ndarray]]:
    """Of one episode, whose share of success is given."""
    return {
        name: {"success_rate": np.array([success - less]), "collision_rate": np.array([1 - success + less])}
        for name, less in (("train", 0.0), ("holdout", 0.1))
    }


def run(seed: int, solved_at: int | None, final: float = 0.95, budget: int = BUDGET) -> RunData:
    """A run that is perfect from `solved_at` on and hopeless before."""
    steps = np.arange(0, budget + 1, INTERVAL)
    good = np.zeros(len(steps), bool) if solved_at is None else steps >= solved_at
    return RunData(
        seed=seed,
        steps=steps,
        figures={"success_rate": np.where(good, 0.95, 0.2), "collision_rate": np.where(good, 0.01, 0.6)},
        final=finals(final),
        budget=budget,
    )


PAIRS = [matched_pair(s, TimeToTarget(50, False, 40), TimeToTarget(20, False, 10)) for s in range(5)]
SCRATCH = [run(s, at, f) for s, at, f in ((1, 50_000, 0.90), (2, 60_000, 0.92), (3, 70_000, 0.91), (4, 60_000, 0.93))]
PRETRAINED = [run(s, at, f) for s, at, f in ((1, 0, 0.97), (2, 10_000, 0.98), (3, 20_000, 0.96), (4, 10_000, 0.98))]


def test_a_comparison_worked_by_hand() -> None:
    result = compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS)
    assert [p.ratio for p in result.pairs] == [1 / 5, 1 / 6, 2 / 7, 1 / 6]
    assert [p.kind for p in result.pairs] == ["upper bound", "exact", "exact", "exact"]
    assert result.ratio_kind == "upper bound"
    assert result.ratio.value == 50_000 / 240_000  # step 0 counts as one interval
    assert result.median.estimate.value == pytest.approx((1 / 5 + 1 / 6) / 2)
    assert result.reduction.value == pytest.approx(1 - 50 / 240)
    assert result.reduction.low < result.reduction.value < result.reduction.high
    assert (result.verdict, result.target_met) == (Verdict.FASTER, True)
    assert (result.sign_test.faster, result.sign_test.p_value) == (4, 2 / 16)
    assert result.seeds_for_verdict is None
    assert result.seeds_for_target is None


def test_final_performance_is_compared_by_figure_and_scenario_set_with_its_direction() -> None:
    result = compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS)
    assert list(result.finals) == ["train", "holdout"]
    success, collision = result.finals["train"]
    of_success, of_collision = success.contrasts["scratch"], collision.contrasts["scratch"]
    assert of_success.difference.value == pytest.approx((0.07 + 0.06 + 0.05 + 0.05) / 4)
    assert (of_success.verdict, of_collision.verdict) == (FinalVerdict.BETTER, FinalVerdict.BETTER)
    assert of_collision.difference.value == pytest.approx(-of_success.difference.value)
    assert of_success.corrected_p == pytest.approx(4 * of_success.p_value)  # two figures on two sets, all alike
    assert success.probability_of_improvement.value == 1.0
    assert collision.probability_of_improvement.value == 1.0  # fewer collisions are better
    assert result.final_verdict is FinalVerdict.BETTER


def test_the_last_policies_are_described_beside_the_best_ones() -> None:
    """On the episodes of the curves: the last evaluation of every arm, and as start the first of the pre-trained."""
    scratch = [replace(r, best_step=50_000) for r in SCRATCH]
    ends = [
        replace(r, figures={f: np.append(v[:-1], [0.85]) for f, v in r.figures.items()}, best_step=0) for r in scratch
    ]
    result = compare({"scratch": scratch, "pretrained": ends}, SETTINGS)
    success, collision = result.last
    assert (success.means["scratch"].value, success.means["pretrained"].value) == (0.95, 0.85)
    assert (success.means[START].value, collision.means[START].value) == (0.2, 0.6)
    assert success.contrasts["scratch"].difference.value == pytest.approx(-0.1)
    assert success.contrasts[START].difference.value == pytest.approx(0.65)
    assert {one.verdict for f in result.last for one in f.contrasts.values()} == {None}
    assert [run.best_step for run in result.arms["pretrained"].runs] == [0, 0, 0, 0]


def test_the_last_policies_have_the_spread_over_the_episodes_of_their_evaluations() -> None:
    generator = np.random.default_rng(0)
    played = [generator.random((11, 20)) < 0.9 for _ in SCRATCH]
    runs = [
        replace(r, figures={**r.figures, "success_rate": table.mean(axis=1)}, episodes={"success_rate": table * 1.0})
        for r, table in zip(SCRATCH, played, strict=True)
    ]
    success = compare({"scratch": runs, "pretrained": runs}, SETTINGS).last[0]
    for arm, at in (("scratch", -1), (START, 0)):
        over = MeanOverSeeds.of(np.stack([table[at] for table in played])).estimate
        assert success.means[arm] == replace(over, high=min(1.0, over.high))  # no rate is above 1


def test_exchanging_the_arms_turns_the_verdict_around() -> None:
    result = compare({"scratch": PRETRAINED, "pretrained": SCRATCH}, SETTINGS)
    assert (result.verdict, result.final_verdict) == (Verdict.SLOWER, FinalVerdict.WORSE)
    assert result.ratio.value == pytest.approx(240 / 50)


def test_the_same_runs_against_themselves_show_nothing() -> None:
    result = compare({"scratch": SCRATCH, "pretrained": SCRATCH}, SETTINGS)
    assert result.ratio == Estimate(1.0, 200 / 240, 240 / 200)  # as far as the grid of evaluations can tell
    assert (result.verdict, result.target_met) == ("no difference found", False)
    assert result.final_verdict == "no difference found"
    assert all(f.probability_of_improvement.value == 0.5 for fs in result.finals.values() for f in fs)
    assert result.seeds_for_verdict is not None
    assert result.seeds_for_verdict.more is None


def test_two_seeds_decide_nothing_however_large_the_effect() -> None:
    result = compare({"scratch": SCRATCH[:2], "pretrained": PRETRAINED[:2]}, SETTINGS)
    assert (result.verdict, result.target_met, result.final_verdict) == ("not decided", False, "not decided")
    assert "too few" in result.reasons[0]
    assert result.seeds_for_verdict is not None
    assert result.seeds_for_verdict.more == 1


def test_more_episodes_or_evaluations_add_no_seeds() -> None:
    result = compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS)
    assert len(result.pairs) == len(result.arms["scratch"].times) == 4
    assert all(len(values) == 4 for values in result.finals["train"][0].values.values())


def test_censored_runs_are_shown_as_bounds_and_never_dropped() -> None:
    scratch = [*SCRATCH[:3], run(4, None)]
    pretrained = [*PRETRAINED[:2], run(3, None), PRETRAINED[3]]
    result = compare({"scratch": scratch, "pretrained": pretrained}, SETTINGS)
    assert [p.kind for p in result.pairs] == ["upper bound", "exact", "lower bound", "upper bound"]
    assert result.ratio_kind == "undetermined"
    assert result.ratio.value == (10 + 10 + 100 + 10) / (50 + 60 + 70 + 100)
    assert (result.arms["scratch"].reached, result.arms["pretrained"].reached) == (3, 3)
    assert any("1 of 4 runs from scratch did not meet" in reason for reason in result.reasons)


def test_where_no_run_met_the_target_nothing_is_compared_and_no_target_is_met() -> None:
    none = {arm: [run(seed, None) for seed in range(1, 5)] for arm in ("scratch", "pretrained")}
    result = compare(none, replace(SETTINGS, ratio_target=1.5))  # which the ratio of the budgets, 1, would meet
    assert result.unanswered
    assert (result.verdict, result.target_met) == ("not decided", False)
    assert result.reasons == (
        "no run of either arm met the target in 2 evaluations in a row within 100,000 steps, so their times cannot be "
        "compared",
    )
    assert result.seeds_for_verdict is not None and "train longer" in result.seeds_for_verdict.explanation
    one = compare({**none, "scratch": [*none["scratch"][:3], run(4, 50)]}, SETTINGS)
    assert not one.unanswered


@pytest.mark.parametrize(("high", "met"), [(0.7, True), (0.7000001, False)])
def test_exactly_at_the_ratio_target_it_is_met_and_just_above_not(high: float, met: bool) -> None:
    assert decide(Estimate(0.5, 0.4, high), PAIRS, 0.7) == (Verdict.FASTER, met)


def test_an_interval_that_touches_1_shows_nothing() -> None:
    assert decide(Estimate(0.9, 0.8, 1.0), PAIRS, 0.7)[0] is Verdict.NO_DIFFERENCE
    assert decide(Estimate(1.1, 1.0, 1.2), PAIRS, 0.7)[0] is Verdict.NO_DIFFERENCE
    assert decide(Estimate(1.1, 1.01, 1.2), PAIRS, 0.7)[0] is Verdict.SLOWER


def test_a_difference_is_better_worse_equal_or_not_found() -> None:
    more, settings = Estimate(0.1, 0.01, 0.2), replace(SETTINGS, smallest_difference={"success_rate": 0.02})
    assert decide_final(more, 0.04, 5, "success_rate", settings) is FinalVerdict.BETTER
    assert decide_final(more, 0.04, 5, "collision_rate", settings) is FinalVerdict.WORSE
    assert decide_final(more, 0.06, 5, "success_rate", settings) is FinalVerdict.NO_DIFFERENCE
    assert decide_final(more, 0.01, 2, "success_rate", settings) is FinalVerdict.UNDECIDED
    little = Estimate(0.01, 0.005, 0.02)
    assert (
        decide_final(little, 0.01, 5, "success_rate", settings) is FinalVerdict.EQUAL
    )  # certainly more, by too little
    assert decide_final(little, 0.01, 5, "success_rate", SETTINGS) is FinalVerdict.BETTER  # nobody said what is little
    assert decide_final(Estimate(0.01, -0.001, 0.021), 0.06, 5, "success_rate", settings) is FinalVerdict.NO_DIFFERENCE


def test_figures_that_are_not_primary_are_described_and_get_no_verdict() -> None:
    settings = replace(SETTINGS, primary=(), undirected=("collision_rate",))
    success, collision = compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, settings).finals["train"]
    assert success.primary and not collision.primary  # the figure that decides always is
    assert (collision.contrasts["scratch"].verdict, collision.probability_of_improvement) == (None, None)
    assert collision.episodes == {} and success.episodes["scratch"][0] == (0.9,)
    with pytest.raises(
        BadInput, match=r"primary 'sucess_rate' is not measured in this task. Did you mean 'success_rate'"
    ):
        compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, replace(SETTINGS, primary=("sucess_rate",)))


def test_what_fine_tuning_added_to_the_clones_is_a_contrast_of_its_own() -> None:
    clones = [finals(success) for success in (0.87, 0.88, 0.86, 0.87)]  # 0.1, 0.1, 0.1 and 0.11 less than after
    result = compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS, None, clones, 4)
    contrast = result.finals["holdout"][0].contrasts[START]
    assert contrast.difference.value == pytest.approx(0.1025)
    assert contrast.verdict is FinalVerdict.BETTER
    assert result.clones == 4
    assert START not in compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS).finals["train"][0].contrasts


def test_a_faster_arm_that_ends_worse_is_faster_with_costs() -> None:
    worse = [replace(r, final=finals(0.7 + r.seed / 100)) for r in PRETRAINED]
    result = compare({"scratch": SCRATCH, "pretrained": worse}, SETTINGS)
    assert result.badge == "faster, with costs"
    assert "success rate on train" in result.costs and "collision rate on holdout" in result.costs
    assert compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS).badge == "faster"


def test_later_violations_and_episodes_to_spare_are_counted() -> None:
    lost = run(1, 50_000)
    lost.figures["success_rate"][8] = 0.8  # at 80,000, when it had held for three evaluations
    settings = replace(SETTINGS, evaluation_episodes=100)
    arm = compare({"scratch": [lost, *SCRATCH[1:]], "pretrained": PRETRAINED}, settings).arms["scratch"]
    # met at 50, 60, 70 and 60 thousand, held for two evaluations; up to 100 thousand there are 4, 3, 2 and 3 more
    assert (arm.later_evaluations, arm.later_violations) == (12, 1)
    assert arm.margins == {"success_rate": (5, 5, 5, 5), "collision_rate": (4, 4, 4, 4)}  # 0.95 and 0.01


def test_a_figure_that_was_not_measured_meets_no_target() -> None:
    unmeasured = replace(run(1, 0), figures={"success_rate": np.full(11, np.nan), "collision_rate": np.zeros(11)})
    assert not met_target(unmeasured.figures, SETTINGS.target).any()


def test_the_control_arms_are_summarised_beside_the_two() -> None:
    controls = [run(s, None, 0.5, budget=20_000) for s in (1, 2)]
    result = compare({"scratch": SCRATCH, "pretrained": PRETRAINED, "scratch_lr0": controls}, SETTINGS)
    assert result.arms["scratch_lr0"].seeds == (1, 2)
    assert result.finals["train"][0].means["scratch_lr0"].value == 0.5
    assert len(result.pairs) == 4


def test_the_bill_worked_by_hand() -> None:
    upfront = UpfrontCost(expert_steps=300_000, demonstration_steps=20_000)
    bill = compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS, upfront).bill
    assert bill is not None
    assert (bill.baseline_steps.value, bill.pretrained_steps.value, bill.saving.value) == (60_000, 12_500, 47_500)
    assert bill.break_even.reuses == 7  # 320,000 / 47,500 = 6.7
    assert bill.total_ratio == (320_000 + 50_000) / 240_000
    assert (bill.spent, bill.trainings) == (320_000 + 8 * BUDGET, 320_000 / BUDGET + 8)


def test_evaluations_are_charged_to_neither_side_and_all_of_them_are_counted() -> None:
    upfront = UpfrontCost(expert_steps=300_000, demonstration_steps=20_000, evaluation_steps=1_000_000)
    runs = {"scratch": [replace(r, evaluation_steps=7) for r in SCRATCH], "pretrained": PRETRAINED}
    result = compare(runs, SETTINGS, upfront)
    assert result.bill is not None and result.bill.break_even.reuses == 7
    assert result.arms["scratch"].evaluation_steps == 28
    assert result.bill.spent == 320_000 + 8 * BUDGET + 1_000_000 + 28


def test_curves_are_means_over_seeds_with_intervals() -> None:
    curve = compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS).arms["scratch"].curves["success_rate"]
    assert curve.steps == tuple(range(0, BUDGET + 1, INTERVAL))
    assert curve.mean[6] == pytest.approx((0.95 * 3 + 0.2) / 4)
    assert curve.low[6] < curve.mean[6] < curve.high[6]
    assert curve.low[0] == curve.high[0] == 0.2


def test_a_training_that_ended_early_because_it_met_the_target_is_finished() -> None:
    early = [replace(r, steps=r.steps[:4], figures={k: v[:4] for k, v in r.figures.items()}) for r in PRETRAINED]
    assert compare({"scratch": SCRATCH, "pretrained": early}, SETTINGS).ratio.value == 50 / 240


def unfinished(r: RunData) -> RunData:
    return replace(r, steps=r.steps[:3], figures={k: v[:3] for k, v in r.figures.items()})


@pytest.mark.parametrize(
    ("scratch", "pretrained", "message"),
    [
        ([], PRETRAINED, "no run of arm 'scratch'"),
        (SCRATCH, [], "no run of arm 'pretrained'"),
        (SCRATCH, PRETRAINED[:3], r"only from scratch \[4\]"),
        (SCRATCH[:3], PRETRAINED, r"only pre-trained \[4\]"),
        ([*SCRATCH, SCRATCH[0]], PRETRAINED, "several runs of seed 1"),
        ([unfinished(SCRATCH[0]), *SCRATCH[1:]], PRETRAINED, "scratch seed 1: unfinished, it stopped at step 20000"),
        ([run(s, 50_000, budget=200_000) for s in (1, 2, 3, 4)], PRETRAINED, r"budgets differ: \[100000, 200000\]"),
        ([replace(SCRATCH[0], figures={}), *SCRATCH[1:]], PRETRAINED, "no figure 'success_rate'"),
        ([replace(SCRATCH[0], final={}), *SCRATCH[1:]], PRETRAINED, "no final 'success_rate' on 'train'"),
        ([replace(SCRATCH[0], steps=SCRATCH[0].steps + 1), *SCRATCH[1:]], PRETRAINED, "must start at step 0"),
        ([replace(SCRATCH[0], steps=SCRATCH[0].steps[:-1]), *SCRATCH[1:]], PRETRAINED, "11 values of 'success_rate'"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_refused_by_name(
    scratch: list[RunData], pretrained: list[RunData], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        compare({"scratch": scratch, "pretrained": pretrained}, SETTINGS)


def test_a_regression_is_measured_seed_by_seed_worked_by_hand() -> None:
    # every seed loses 0.1, however different the clones are
    loses = measure_regression("train", "success_rate", [0.9, 0.5, 0.7], [0.8, 0.4, 0.6], 3, SETTINGS)
    assert (loses.difference.value, loses.difference.low, loses.difference.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert (loses.before, loses.after.value, loses.regressed) == (pytest.approx(0.7), pytest.approx(0.6), True)
    # all end alike, and the clones spread: -0.4, 0.1 and 0.0. That the ends agree says nothing
    spread = measure_regression("train", "success_rate", [1.0, 0.5, 0.6], [0.6, 0.6, 0.6], 3, SETTINGS)
    assert spread.difference.value == pytest.approx(-0.1) and not spread.regressed
    # standard deviation 0.2646 of three: 4.303 standard errors of 0.1528
    assert (spread.difference.low, spread.difference.high) == pytest.approx((-0.757, 0.557), abs=1e-3)
    assert (spread.after.low, spread.after.high) == pytest.approx((0.6, 0.6))


def test_the_same_comparison_twice_is_equal_and_fits_json() -> None:
    runs = {"scratch": SCRATCH, "pretrained": PRETRAINED}
    first, second = (to_data(compare(runs, SETTINGS, UpfrontCost(1, 2))) for _ in range(2))
    assert first == second
    text = json.dumps(first, allow_nan=False)
    assert json.loads(text)["verdict"] == "faster"
    assert json.loads(text)["settings"]["target"]["success_rate"] == {"min": 0.9, "max": None}


def test_more_seeds_are_said_to_help_when_the_spread_is_what_hides_the_effect() -> None:
    generator = np.random.default_rng(8)
    scratch = [run(s, int(at)) for s, at in enumerate(generator.choice([30_000, 60_000, 90_000], 6))]
    pretrained = [run(s, int(at)) for s, at in enumerate([10_000, 10_000, 70_000, 10_000, 60_000, 10_000])]
    result = compare({"scratch": scratch, "pretrained": pretrained}, SETTINGS)
    assert result.verdict is Verdict.NO_DIFFERENCE
    needed = result.seeds_for_verdict
    assert needed is not None
    assert needed.more is not None
    assert needed.more >= 1
    assert needed.power >= 0.8


def test_where_the_grid_of_evaluations_hides_the_difference_more_seeds_are_not_said_to_help() -> None:
    runs = {"scratch": [run(s, 20_000) for s in range(4)], "pretrained": [run(s, 10_000) for s in range(4)]}
    needed = compare(runs, SETTINGS).seeds_for_verdict  # 10,000 and 20,000 may both be just above 10,000
    assert needed is not None and needed.more is None
    assert "evaluate more often" in needed.explanation


def test_the_number_of_seeds_needed_is_about_what_the_normal_approximation_says() -> None:
    """Baseline 100,000 always; the pre-trained arm 80,000 +- 30,000: the mean ratio 0.8 needs 1.96 + 0.84 standard
    errors to 1, so n = (2.8 * 0.3 / 0.2)^2 = 18 pairs in all."""
    times = [50_000, 110_000, 50_000, 110_000]
    pairs = [
        matched_pair(s, TimeToTarget(100_000, False, 100_000), TimeToTarget(t, False, t)) for s, t in enumerate(times)
    ]
    needed = seeds_needed(pairs, None, 3, seed=0)
    assert needed.more is not None
    assert 12 <= needed.more + 4 <= 24
    assert seeds_needed(pairs, 0.7, 3, seed=0).more is None  # the observed ratio is above 0.7 itself
    assert seeds_needed(pairs[:1], None, 3, seed=0).more is None


def test_a_regression_on_the_demonstrated_scenarios_is_flagged_in_the_direction_of_the_figure() -> None:
    worse = measure_regression("train", "success_rate", [0.95] * 3, [0.90, 0.91, 0.89], 1, SETTINGS)
    assert worse.regressed and worse.clones == 1
    assert worse.difference.value == pytest.approx(-0.05)
    assert not measure_regression("train", "success_rate", [0.90] * 3, [0.90, 0.91, 0.89], 1, SETTINGS).regressed
    assert measure_regression("train", "collision_rate", [0.02] * 3, [0.05, 0.06, 0.04], 1, SETTINGS).regressed
    assert not measure_regression("train", "collision_rate", [0.05] * 3, [0.01, 0.02, 0.01], 1, SETTINGS).regressed
    assert worse.verdict == "worse"
    lost = measure_regression("train", "success_rate", [1.0, 1.0], [0.0, 0.0], 2, SETTINGS)
    assert (lost.verdict, lost.regressed) == ("not decided", False)  # two seeds decide nothing, whatever they lose

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from made_up import made_up_comparison

from pipeline.report import figures, inspection_figures
from pipeline.report.context import LineageNode, ReferencePolicy
from pipeline.report.drawings import grouped, lineage_rails, ratio_gauge
from pipeline.report.html_page import blocks
from pipeline.report.palette import VARIABLES, for_file, for_page
from pipeline.statistics.comparison import Comparison
from pipeline.statistics.efficiency import SIGNS, RatioKind
from pipeline.statistics.estimate import Estimate


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


def test_a_learning_curve_names_its_arms_and_its_target(comparison: Comparison) -> None:
    found = texts(figures.learning_curve(comparison, "collision_rate"))
    assert {"from scratch", "pre-trained", "target ≤ 0.05"} <= set(found)
    assert {"learning rate 0", "learning rate 0 ↑"} <= set(found)  # below the name of the arm; one beyond the axis


def test_a_censored_run_gets_an_arrow_and_an_uncensored_figure_none() -> None:
    comparison = made_up_comparison("faster")
    with_censored = figures.time_to_target(comparison)
    met = [
        replace(
            pair, baseline=replace(pair.baseline, censored=False), pretrained=replace(pair.pretrained, censored=False)
        )
        for pair in comparison.pairs
    ]
    without = figures.time_to_target(replace(comparison, pairs=tuple(met)))
    censored = sum(pair.baseline.censored + pair.pretrained.censored for pair in comparison.pairs)
    arrows = 'id="time-to-target-patch_'  # an arrow is a patch
    assert censored and with_censored.count(arrows) - without.count(arrows) == censored
    assert len(re.findall("seed [0-9]", with_censored)) >= 5
    assert {"seed 1", "seed 5"} <= set(texts(with_censored))


def test_every_figure_uses_marker_colours_alone_so_that_it_follows_the_page(comparison: Comparison) -> None:
    drawn = [
        figures.learning_curve(comparison, "success_rate"),
        figures.time_to_target(comparison),
        figures.sensitivity_rows(comparison),
        figures.expert_curve(comparison.arms["scratch"].runs, "success_rate"),
        figures.performance_profile(comparison),
        figures.forest(comparison.finals, "success_rate", ()),
        figures.bill_lines(comparison.bill) if comparison.bill else "",
        inspection_figures.histogram("h", [0, 1, 2], [3, 4], "t", "l", "steps", [1.5]),
        inspection_figures.ranges("r", ["a", "b"], np.array([[0, 1, 2, 3, 4.0]] * 2), [(0, 5), (None, None)]),
    ]
    for svg in drawn:
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= set(VARIABLES), svg[:200]
        assert "var(--" in for_page(svg)
        assert not set(VARIABLES) & set(re.findall(r"#[0-9a-f]{6}\b", for_file(svg).decode()))


def test_ids_of_two_figures_never_meet(comparison: Comparison) -> None:
    a, b = (figures.learning_curve(comparison, f) for f in ("success_rate", "collision_rate"))
    assert not set(re.findall(r'id="([^"]+)"', a)) & set(re.findall(r'id="([^"]+)"', b))


def test_a_dollar_sign_in_a_name_is_text_and_no_formula(comparison: Comparison) -> None:
    svg = inspection_figures.histogram("h", [0, 1], [1, 2], "price in $x_1$ <b>", "l", "steps")
    assert "price in $x_1$ <b>" in texts(svg)


def test_a_forest_shows_every_policy_and_difference_on_every_scenario_set(comparison: Comparison) -> None:
    expert = ReferencePolicy("expert", "holdout", {"success_rate": Estimate(0.9, 0.8, 0.95)}, 200)
    found = texts(figures.forest(comparison.finals, "success_rate", (expert,)))
    for name in ("train_small", "holdout"):
        assert {f"from scratch, {name}", f"clone at start, {name}", f"pre-trained, {name}"} <= set(found)
        assert {f"minus scratch, {name}", f"minus clone at start, {name}"} <= set(found)
    assert "expert, holdout" in found and "expert, train_small" not in found


def test_a_bill_that_is_never_paid_back_is_drawn_without_a_crossing() -> None:
    bill = made_up_comparison("slower").bill
    assert bill is not None
    assert bill.break_even.reuses is None
    assert "Never paid back" in texts(figures.bill_lines(bill))


@pytest.mark.parametrize(("steps", "text"), [(0, "0"), (950, "950"), (250_000, "250k"), (1_500_000, "1.5M")])
def test_steps_are_written_short(steps: float, text: str) -> None:
    assert figures.short_steps(steps) == text


@pytest.mark.parametrize(
    "ratio", [Estimate(0.05, 0.01, 0.1), Estimate(1, 1, 1), Estimate(9, 3, 40), Estimate(1e-6, 0, 1)]
)
def test_the_gauge_keeps_every_mark_inside_its_picture(ratio: Estimate) -> None:
    svg = blocks().gauge(ratio_gauge(ratio, "exact", 0.7), 0.7)
    ElementTree.fromstring(svg)
    for x in re.findall(r'(?:x|x1|x2|cx)="([0-9.-]+)"', svg):
        assert 0 <= float(x) <= 440


@pytest.mark.parametrize("kind", SIGNS)
def test_the_gauge_shows_a_ratio_that_is_not_exact_with_its_sign(kind: RatioKind) -> None:
    svg = blocks().gauge(ratio_gauge(Estimate(0.4, 0.2, 0.7), kind, 0.7), 0.7)
    sign = {"exact": "", "upper bound": "≤ ", "lower bound": "≥ ", "undetermined": "? "}[kind]
    assert f">{sign}0.4</text>" in svg


def nodes() -> list[LineageNode]:
    return [
        LineageNode("e", "expert", "expert"),
        LineageNode("d", "dataset", "data", parents=("e",)),
        LineageNode("f1", "finetune", "seed 1", parents=("d",), url="http://x"),
        LineageNode("f2", "finetune", "seed 2", parents=("d",)),
        LineageNode("b", "baseline", "scratch"),
        LineageNode("r", "report", "report", parents=("f1", "f2", "b", "unknown")),
    ]


def test_runs_that_stand_in_the_same_place_share_a_row() -> None:
    merged = grouped(nodes())
    assert [n.key for n in merged] == ["e", "d", "f1", "b", "r"]
    assert merged[2].title == "2 runs: seed 1 … seed 2"
    assert merged[4].parents == ("f1", "b", "unknown")


def test_no_rail_runs_through_a_node_it_does_not_belong_to() -> None:
    rails = lineage_rails(nodes())
    for rail in rails:
        assert f"M{rail.x} 0V64" not in rail.paths
    assert rails[-1].parents == ("2 runs: seed 1 … seed 2", "scratch")


def test_a_lineage_of_one_node_is_a_dot_without_rails() -> None:
    (rail,) = lineage_rails([replace(nodes()[0], parents=("gone",))])
    assert rail.paths == ()

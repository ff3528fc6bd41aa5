"""How far a verdict carries, worked by hand."""

from dataclasses import replace

import numpy as np
from test_comparison import PRETRAINED, SCRATCH, SETTINGS, run

from pipeline.statistics.comparison import compare
from pipeline.statistics.sensitivity import EVERY_NTH, PATIENCE, carries, sensitivity

RUNS = {"scratch": SCRATCH, "pretrained": PRETRAINED}


def test_the_row_that_is_as_the_comparison_has_it_is_the_comparison():
    result = compare(RUNS, SETTINGS)
    own = [row for row in result.sensitivity if row.chosen]
    assert [(row.varied, row.level) for row in own] == [
        ("success_rate", 0.9), ("collision_rate", 0.05), (PATIENCE, 2), (EVERY_NTH, 1),
    ]  # fmt: skip
    assert {row.ratio for row in own} == {result.ratio}
    assert {row.kind for row in own} == {result.ratio_kind}


def test_a_limit_that_the_clones_miss_by_one_episode_changes_the_ratio():
    """One of 100 episodes more collides at first: from 0.02 on nothing changes, at 0.01 the clone is not there yet."""
    collided = [
        replace(r, figures={**r.figures, "collision_rate": r.figures["collision_rate"].copy()}) for r in PRETRAINED
    ]
    for r in collided:
        r.figures["collision_rate"][r.steps < 40_000] = 0.02
    settings = replace(
        SETTINGS, target={**SETTINGS.target, "collision_rate": replace(SETTINGS.target["collision_rate"], max=0.03)}
    )
    rows = {
        row.level: row
        for row in sensitivity({"scratch": SCRATCH, "pretrained": collided}, settings)
        if row.sign == "<="
    }
    assert rows[0.02].ratio.value == rows[0.03].ratio.value == 50 / 240
    assert rows[0.01].ratio.value == 160 / 240  # all four at 40,000
    assert sorted(rows) == [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    assert rows[0.0].reached == {"scratch": 0, "pretrained": 0} and rows[0.0].verdict == "not decided"


def test_levels_reach_as_far_as_the_best_that_a_run_held_and_as_far_on_the_other_side():
    rows = sensitivity(RUNS, SETTINGS)  # every run ends with a success of 0.95
    assert [r.level for r in rows if r.sign == ">="] == [0.85, 0.87, 0.88, 0.89, 0.9, 0.91, 0.92, 0.93, 0.95]
    better = [r.figures["success_rate"].copy() for r in PRETRAINED]
    better[0][4] = 1.0  # once, which is not for two evaluations in a row
    better[1][4:6] = 0.99, 0.98
    runs = [
        replace(r, figures={**r.figures, "success_rate": success})
        for r, success in zip(PRETRAINED, better, strict=True)
    ]
    levels = [r.level for r in sensitivity({"scratch": SCRATCH, "pretrained": runs}, SETTINGS) if r.sign == ">="]
    assert (levels[0], levels[-2:]) == (0.82, [0.95, 0.98])


def test_patience_and_grid_are_varied_and_every_time_is_recomputed():
    rows = {(row.varied, row.level): row for row in sensitivity(RUNS, SETTINGS)}
    assert rows[EVERY_NTH, 2].ratio.value == (20 + 20 + 20 + 20) / (60 + 60 + 80 + 60)
    assert rows[PATIENCE, 5].reached == {"scratch": 3, "pretrained": 4}  # the one from 70,000 on has four evaluations
    assert rows[PATIENCE, 5].kind == "upper bound"


def test_it_is_said_up_to_where_the_verdict_holds():
    said = carries(sensitivity(RUNS, SETTINGS))
    assert said[0] == "holds for all limits of success rate from 0.85 to 0.95 that were tried"
    assert said[1] == "holds for all limits of collision rate from 0.01 to 0.09 that were tried"
    # runs that never come above 0.895 succeed where 0.89 is asked for, before their first update
    figures = {"success_rate": np.full(11, 0.895), "collision_rate": np.zeros(11)}
    slow = {"scratch": [replace(run(s, None), figures=figures) for s in (1, 2, 3, 4)], "pretrained": PRETRAINED}
    assert carries(sensitivity(slow, SETTINGS))[0].startswith(
        "holds for the tried limits of success rate from 0.9 to 0.95; at 0.89 "
    )

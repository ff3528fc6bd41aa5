"""The study of demonstrators of three grades: cells are what they are named after, the page is what figures say."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from scipy import stats

from benchmarks.no_harm import BEST_TENTH, CELLS, RESULTS, settings, table
from pipeline.config.loading import load
from pipeline.config.stages import Main
from pipeline.names import Arm
from pipeline.stages.main import plan

PAGE = Path("docs/no-harm.md")
SIGNS = {(False, False): "", (True, False): "≤ ", (False, True): "≥ ", (True, True): "? "}


@pytest.fixture(autouse=True)
def _in_repository(in_repository):
    """Configs are named relative to the repository."""


def test_a_cell_clones_as_many_episodes_as_it_is_named_after_and_trains_three_arms_on_five_seeds(store):
    for cell in CELLS:
        task, grade, size = cell.split("/")
        if (task, grade) == ("social_nav", "mediocre"):
            continue  # its demonstrator is the expert that a store has approved
        config = load(
            Main, f"configs/no_harm/{task}/{'expert' if cell.startswith('social_nav/expert') else 'main'}.yaml"
        )
        given = dict(settings(task, grade, int(size), MlflowClient()))
        assert given.pop("finetune_failed_clones")
        stages = plan(replace(config, overrides={key: json.dumps(value) for key, value in given.items()}))
        kept = stages.collect.episodes / (2 if grade == "bad" else 1)
        assert (stages.pretrain.episodes or kept) == int(size), cell
        assert grade != "bad" or stages.collect.filter.min_return == BEST_TENTH[task], cell
        assert len(stages.finetune.seeds) == 5 and set(stages.finetune.arms) == {"naive"}, cell


def rows_of(page: str) -> dict[tuple[str, str, str], list[str]]:
    """(demonstrator, episodes, arm) -> the other cells of a table."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    return {(row[0], row[1], row[2]): row[3:] for row in rows if len(row) == 8 and row[1].isdigit()}


def test_the_page_has_the_table_and_the_table_says_what_the_seeds_came_to():
    figures = json.loads(RESULTS.read_text())
    rows = rows_of(table(figures))
    assert rows_of(PAGE.read_text()) == rows and len(rows) == 2 * len(figures)
    for cell, found in figures.items():
        task, grade, size = cell.split("/")
        scratch, ranked = found["arms"][Arm.SCRATCH], {one["arm"]: one for one in found["ranking"]}
        assert set(ranked) == {Arm.PRETRAINED, "naive"}
        reached = {name: np.mean([time["steps"] for time in arm["times"]]) for name, arm in found["arms"].items()}
        for name, one in ranked.items():
            times, finals = found["arms"][name]["times"], found["arms"][name]["finals"]
            steps, ratio, _, difference, _ = rows[f"{task}, {grade}", size, name]
            early, never = (any(time[sign] for time in times) for sign in ("at_floor", "censored"))
            sign = "> " if all(time["censored"] for time in times) else SIGNS[early, never]
            assert steps == f"{sign}{reached[name]:,.0f}", cell
            if all(time["censored"] for time in (*times, *scratch["times"])):
                assert ratio == "–", cell
            else:
                shown = float(ratio.split("[")[0].strip("≤≥? "))
                assert shown == pytest.approx(reached[name] / reached["scratch"], abs=6e-4), cell
            gains = np.array(finals) - scratch["finals"]
            middle, spread = gains.mean(), stats.sem(gains)
            half = stats.t.ppf(0.975, len(gains) - 1) * spread
            shown = [float(number) for number in re.findall(r"-?[\d.]+", difference)]
            assert shown == pytest.approx([middle, middle - half, middle + half], abs=6e-4), cell
            # every sign that the paired differences might have had as well
            signs = np.array(np.meshgrid(*[[-1, 1]] * len(gains))).reshape(len(gains), -1)
            as_far = np.abs((signs * gains[:, None]).mean(axis=0)) >= abs(middle) - 1e-12
            assert one["difference_p"] >= (as_far.mean() if gains.any() else 1) - 1e-12  # corrected, so no smaller

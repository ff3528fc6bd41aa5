import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from made_up import inspection

from pipeline.envs.episodes import Episode
from pipeline.gate import GateDecision, GateRow
from pipeline.learning.diagnosis import Diagnosis, Shortfall
from pipeline.play.evaluation import ActionHistogram, EpisodeRecords
from pipeline.report.stage_pages import diagnosis_markdown, inspection_files, statistics_table
from pipeline.report.text import aligned, change, interval, markdown_page, number, one_line, percent
from pipeline.statistics.estimate import Estimate
from pipeline.validation.inspection import Outlier


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.93333, "0.933"), (1.0, "1"), (12.345, "12.3"), (-3.25, "−3.25"), (1234567.0, "1,234,567"), (1234.6, "1,235"),
        (0.0, "0"), (-0.0, "0"), (None, "–"), (float("nan"), "–"), (float("inf"), "∞"), (0.000012, "1.2e−05"),
    ],
)  # fmt: skip
def test_numbers_are_written_to_three_digits_and_missing_ones_as_a_dash(value: float | None, text: str) -> None:
    assert number(value) == text


def test_intervals_signs_and_shares_are_written_alike() -> None:
    assert interval(Estimate(0.9, 0.85, 0.94)) == "0.9 [0.85, 0.94]"
    assert interval(None) == interval(Estimate(float("nan"), 0, 1)) == "–"
    assert change(Estimate(0.02, -0.01, 0.05)) == "+0.020 [−0.010, 0.050]"
    assert change(Estimate(-0.02, -0.1, 0.05)).startswith("−0.020")
    assert percent(0.061) == "6.1\u00a0%"


def test_a_table_is_aligned_and_no_cell_can_break_it() -> None:
    names = (one_line("a|b\nc"), one_line("<b>x</b>"))
    page = f"# x\n\n| name | value |\n|---|--:|\n| {names[0]} | 1 |\n| {names[1]} | <= 2 |\n| | |\n\ny | z"
    assert aligned(page).splitlines()[2:-2] == [
        "| name           | value |",
        "| -------------- | ----: |",
        "| a&#124;b c     |     1 |",
        "| &lt;b>x&lt;/b> |  <= 2 |",
        "|                |       |",
    ]
    assert aligned(aligned(page)) == aligned(page)


def records() -> EpisodeRecords:
    metrics = {
        "return": np.array([1.0, 2.0, 3.0, 10.0]),
        "length": np.array([10.0, 20.0, 30.0, 40.0]),
        "success": np.array([1.0, 1.0, 1.0, 0.0]),
        "jerk_mean": np.array([0.1, 0.2, 0.3, 0.4]),
    }
    histogram = ActionHistogram(np.array([[-1.0, 0.0, 1.0]]), np.array([[25, 75]]))
    episodes = tuple(Episode("low" if i < 2 else "high", i) for i in range(4))
    return EpisodeRecords(episodes, metrics, histogram, 100)


def test_the_statistics_table_holds_steps_return_outcomes_scenarios_and_actions() -> None:
    table = statistics_table(records())
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("|")}
    assert "4 episodes, 100 environment steps" in table
    mean, median, std, low, high = 4.0, 2.5, np.std([1, 2, 3, 10]), 1, 10
    for value in (mean, median, std, low, high):
        assert number(float(value)) in rows["return"]
    assert "0.75" in rows["success_rate"]
    assert "0.5" in rows["high"]
    assert "75.0%" in rows["0 to 1"]
    assert rows["0 to 1"].count("█") == 3 * rows["-1 to 0"].count("█")
    for_console = statistics_table(records(), strips=True)
    assert table.partition("| action ")[0].rstrip() == for_console.partition("action[0]")[0].rstrip()
    assert for_console.endswith("action[0] from -1 to 1: ▃█\n")


def shortfall(seed: int) -> Shortfall:
    return Shortfall(seed, "success_rate", 0.85, ">= 0.9", 0.05, "narrow_doorway_high", 0.6, "improving", 0.02)


def test_a_diagnosis_says_which_threshold_seed_and_scenario_by_how_much_and_what_to_try() -> None:
    page = diagnosis_markdown(Diagnosis((shortfall(2), shortfall(3)), {1: 480_000, 2: None, 3: None}))
    assert page.startswith("# Training diagnosis: NOT promotable")
    for part in (
        "success_rate",
        ">= 0.9",
        "0.05",
        "narrow_doorway_high (0.6)",
        "raise training.total_timesteps",
        "480,000",
        "not within the budget",
        "worst scenario in 2 of 2 misses",
        "+0.02 per 100,000 steps",
    ):
        assert part in page
    assert "# Training diagnosis: promotable" in diagnosis_markdown(Diagnosis((), {1: 480_000}))


def gate_row(holds: bool, missed_by: float, confidence: float | None = None) -> GateRow:
    return GateRow(
        "candidate",
        "train",
        101,
        "success_rate",
        200,
        0.92,
        0.88,
        ">= 0.9",
        confidence,
        holds,
        missed_by,
        "blind_corner",
    )


def test_the_gate_page_lists_failures_first_and_what_was_compared() -> None:
    rows = (gate_row(True, 0.0), gate_row(False, 0.02, 0.95))
    page = markdown_page("gate", decision=GateDecision(rows), reference="social_nav-expert/3")
    assert page.startswith("# Gate: social_nav-expert/3 REFUSED")
    assert "1 of 2 checks failed" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert "**FAILS**" in table[2]
    assert "0.88 (95% bound)" in table[2]
    assert "holds" in table[3]
    assert "the mean" in table[3]
    assert "approved" in markdown_page("gate", decision=GateDecision(rows[:1]), reference="x/1").splitlines()[0]
    assert "not approved" in markdown_page("gate", decision=GateDecision(()), reference="x/1")


ODD = Outlier(7, "only|one", 1842, "return", 9.5, 3.0, 6.2, "return 9.5 is 6.2 robust standard deviations above")


def test_outlying_episodes_come_first_with_seed_figure_and_score() -> None:
    page = inspection_files(inspection((ODD,)))["inspection.md"].decode()
    assert "## 1 of 10 episodes stand out" in page
    row = next(line for line in page.splitlines() if "1842" in line)
    assert all(part in row for part in ("7", "only&#124;one", "return", "9.50", "+6.2"))
    assert page.index("stand out") < page.index("## Per episode")
    assert "Constant over the whole dataset: observation[1]." in page


def test_every_figure_the_page_shows_is_there_and_is_svg() -> None:
    files = inspection_files(inspection((ODD,)))
    page = files["inspection.md"].decode()
    drawn = [name for name in files if name.endswith(".svg")]
    assert sorted(drawn) == ["figures/action-0.svg", "figures/episodes-return.svg", "figures/features.svg"]
    for name in drawn:
        assert f"({name})" in page
        assert ElementTree.fromstring(files[name]).tag.endswith("svg")
    assert b"outliers" in files["figures/episodes-return.svg"]


def test_a_dataset_without_outliers_says_so() -> None:
    assert "No episode stands out" in inspection_files(inspection(()))["inspection.md"].decode()

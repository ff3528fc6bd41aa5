import xml.etree.ElementTree as ElementTree

from pipeline.report.inspection import inspection_files
from pipeline.validation.inspection import (
    Distribution,
    FeatureStatistics,
    Histogram,
    Inspection,
    Outlier,
    ScenarioOutcome,
)


def inspection(outliers: tuple[Outlier, ...]) -> Inspection:
    percentiles = {"5": 1.0, "25": 2.0, "50": 3.0, "75": 4.0, "95": 5.0}
    counts = Histogram("return", (0.0, 5.0, 10.0), (7, 3))
    return Inspection(
        dataset_id="pendulum-10-ab12",
        origin="script my.gait:trot (version 3f2a); no expert was approved for this dataset",
        episodes=10,
        steps=2_000,
        features=(
            FeatureStatistics(0, 0.1, 0.5, -1.0, 1.0, -1.0, 1.0, False),
            FeatureStatistics(1, 4.0, 0.0, 4.0, 4.0, None, None, True),
        ),
        actions=(Histogram("action[0]", (0.0, 1.0, 2.0), (5, 5, 1990)),),
        distributions=(Distribution("return", 3.1, 1.2, 0.5, 9.5, percentiles, counts),),
        scenarios=(ScenarioOutcome("only|one", 10, {"return": 3.1}),),
        outliers=outliers,
    )


ODD = Outlier(7, "only|one", 1842, "return", 9.5, 3.0, 6.2, "return 9.5 is 6.2 robust standard deviations above")


def test_outlying_episodes_come_first_with_seed_figure_and_score() -> None:
    page = inspection_files(inspection((ODD,)))["inspection.md"].decode()
    assert "## 1 of 10 episodes stand out" in page
    row = next(line for line in page.splitlines() if "1842" in line)
    assert all(part in row for part in ("7", "only\\|one", "return", "9.50", "+6.2"))
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

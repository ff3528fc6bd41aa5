import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from markdown_it import MarkdownIt

from pipeline.gate import GateDecision
from pipeline.report.content import Missing, Paragraph, Section, Summary, Table, markdown
from pipeline.report.diagnostics import gate_markdown
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


FOREIGN = (
    "[a](javascript:alert(1))", "![a](javascript:x)", "[a]: javascript:x", "[a][a]", "<javascript:x>", "<b>x</b>",
    "[a](<javascript:x>)", "[a\\](javascript:x)", "[a]\n(javascript:x)", "[a]\n: javascript:x",
)  # fmt: skip


def test_no_text_from_outside_becomes_a_link_a_picture_or_markup_in_a_page() -> None:
    """Held against a Markdown parser that takes every address; figures are the only things that a page refers to."""
    parser = MarkdownIt("commonmark").enable("table")
    parser.validateLink = lambda address: True
    escaped = []
    for text in FOREIGN:
        seen = replace(inspection((replace(ODD, scenario=text, reason=text),)), dataset_id=text, origin=text)
        page = inspection_files(seen, warnings=(text,), names=(text, "b"))["inspection.md"].decode()
        table = Table((text, "b"), ((text, text),), caption=text)
        blocks = (Paragraph(text), Missing(text), table)
        summary = Summary("t", "bad", text, text, (text,), (), (text,), "", "", text)
        report = markdown(text, summary, (Section("a", text, blocks),), "figures")
        gate = gate_markdown(GateDecision(()), text)
        for made in (page, report, gate):
            inline = [part for token in parser.parse(made + "\n\n[a]") for part in (token, *(token.children or ()))]
            targets = [part.attrs.get("href") or part.attrs.get("src") for part in inline if part.attrs]
            wrong = [t for t in targets if t and not t.startswith("figures/")]
            if wrong or any(part.type.startswith("html") for part in inline):
                escaped.append((text, wrong))
    assert not escaped

"""What users give is shown as it is, wherever it stands on a page: it is no link, no picture, no markup."""

import html
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from made_up import inspection, made_up_context
from markdown_it import MarkdownIt
from outline import outline
from test_stage_pages import ODD, gate_row, records, shortfall

from pipeline.envs.episodes import Episode
from pipeline.errors import printable
from pipeline.gate import GateDecision
from pipeline.learning.diagnosis import Diagnosis
from pipeline.report.comparison_report import build_report
from pipeline.report.context import Animation, LineageNode, ReferencePolicy, ReportContext, RunLink, SettingDifference
from pipeline.report.stage_pages import (
    diagnosis_markdown,
    inspection_files,
    statistics_table,
)
from pipeline.report.text import markdown_page, one_line
from pipeline.statistics.comparison import Comparison
from pipeline.statistics.shift import measure_shift
from pipeline.validation.findings import Finding, RuleOutcome, ValidationReport
from pipeline.validation.inspection import ScenarioOutcome

FOREIGN = (
    "[a](javascript:alert(1))", "![a](javascript:x)", "[a]: javascript:x", "[a][a]", "<javascript:x>", "<b>x</b>",
    "[a](<javascript:x>)", "[a\\](javascript:x)", "[a]\n(javascript:x)", "[a]\n: javascript:x", "*a* **b** a*b*c",
    '<script>alert(1)</script>"|\n# x \x1b[2J\u202e',
    "_a_ __b__ ___", "`a`", "&lt;b&gt; &amp; &#60;", "a|b\\|c", "{{ 7 * 7 }}", "\\*a\\*", "~~a~~ ---",
)  # fmt: skip
KEPT = ("snake_case_", "<= 0.05", "[1, 2]", "a & b", "5 %", "C:\\runs", "\\")


@pytest.fixture(scope="module")
def report(comparison: Comparison) -> dict[str, bytes]:
    """With foreign text in every place of the context."""
    made, everything = made_up_context(), " ".join(FOREIGN)
    sample = [np.random.default_rng(i).normal(size=(9, 12)) for i in range(8)]
    context = ReportContext(
        task=everything,
        group=everything,
        created_at=everything,
        taints=FOREIGN,
        differences=tuple(SettingDifference(text, text, text) for text in FOREIGN),
        shared_settings=dict(zip(FOREIGN, FOREIGN, strict=True)),
        references=tuple(ReferencePolicy(text, text, {"success_rate": made.references[0].figures["success_rate"]}, 9)
                         for text in FOREIGN),
        animations=tuple(Animation(text, text, b"film", b"picture") for text in FOREIGN),
        shift=measure_shift(sample, sample, FOREIGN[-12:], permutations=19),
        shift_samples=(everything, everything),
        regressions=tuple(replace(made.regressions[0], figure=text, scenario_set=text) for text in FOREIGN),
        lineage=tuple(LineageNode(text, text, text, text, text, (FOREIGN[0],)) for text in FOREIGN),
        runs=tuple(RunLink(text, 1, text, f"http://x/{text}") for text in FOREIGN),
        dataset=dict(zip(FOREIGN, FOREIGN, strict=True)),
        commands=FOREIGN,
        versions=dict(zip(FOREIGN, FOREIGN, strict=True)),
        commit=everything,
        machine=everything,
        resume=everything,
    )  # fmt: skip
    return build_report(comparison, context)


def judged(texts: tuple[str, ...]) -> ValidationReport:
    """A dataset that says such things of itself."""
    findings = tuple(Finding(text, text, text, 1, 2, rule="ends") for text in texts)
    rules = tuple(RuleOutcome("ends", text, "not run", reason=text) for text in texts)
    return ValidationReport(findings, rules, 1, 2, "d", texts, 20, 0)


def test_no_text_from_outside_becomes_a_link_a_picture_or_markup_in_a_page(report: dict[str, bytes]) -> None:
    """Held against a Markdown parser that takes every address; figures are the only things that a page refers to."""
    seen = replace(
        inspection(tuple(replace(ODD, scenario=text, reason=text) for text in FOREIGN)),
        scenarios=tuple(ScenarioOutcome(text, 10, {"return": 3.1}) for text in FOREIGN),
        dataset_id=" ".join(FOREIGN),
        origin=" ".join(FOREIGN),
    )
    pages = [
        report["report.md"].decode(),
        *(inspection_files(seen, FOREIGN, (text, "b"))["inspection.md"].decode() for text in FOREIGN[:2]),
        markdown_page(
            "gate",
            decision=GateDecision(tuple(replace(gate_row(False, 0.1), worst_scenario=t) for t in FOREIGN)),
            reference="x/1",
        ),
        *(diagnosis_markdown(Diagnosis((replace(shortfall(1), worst_scenario=t),), {})) for t in FOREIGN),
        markdown_page("validation", report=judged(FOREIGN)),
        statistics_table(replace(records(), episodes=tuple(Episode(t, 1) for t in FOREIGN[:4]))),
    ]
    parser = MarkdownIt("commonmark").enable("table")
    parser.validateLink = lambda address: True
    for page in pages:
        inline = [part for token in parser.parse(page + "\n\n[a]") for part in (token, *(token.children or ()))]
        targets = [part.attrs.get("href") or part.attrs.get("src") for part in inline if part.attrs]
        assert [target for target in targets if target and not target.startswith("figures/")] == []
        assert {part.type for part in inline if part.type.startswith(("html", "em_", "code_inline", "link"))} <= {
            "em_open", "em_close"  # of the page itself, which says so of what is missing
        }  # fmt: skip


def test_the_page_shows_foreign_text_as_it_is_and_takes_no_link_or_tag_from_it(report: dict[str, bytes]) -> None:
    page, text = report["report.html"].decode(), report["report.md"].decode()
    assert "script" not in outline(page).tags
    ElementTree.fromstring(report["figures/shift.svg"])
    assert not [a for a in outline(page).attributes if a[1].startswith("on") or a[2].startswith("javascript:")]
    assert text.replace("\n", "").isprintable() and "\n# x" not in text and "<script" not in text
    assert not re.search(r"<(b|script)\b|href=\"(?!#|http://x/)|href=\"[^\"]*[<>]", page[page.index("<main>") :])
    shown = " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())
    for text in FOREIGN:
        assert shown.count(printable(" ".join(text.split()))) > 15, text


def test_what_is_no_markup_is_kept_on_one_line() -> None:
    parser = MarkdownIt("commonmark").enable("table")
    assert one_line("a\n# b") == "a # b"
    assert [one_line(text) for text in KEPT[1:5]] == list(KEPT[1:5])
    assert [html.unescape(parser.renderInline(one_line(text))) for text in KEPT] == list(KEPT)

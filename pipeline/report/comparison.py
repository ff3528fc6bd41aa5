"""The comparison report: one self-contained HTML page, and the same facts in Markdown and JSON.

    files = build_report(comparison, context)      # {"report.html": b"...", "report.md": ..., "report.json": ..., ...}

What is not known is said to be missing; nothing is filled in.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from pipeline.names import Arm
from pipeline.report.content import Figure, Summary, Tile, markdown
from pipeline.report.context import ReportContext
from pipeline.report.drawings import ratio_gauge
from pipeline.report.page import render_page
from pipeline.report.palette import for_file
from pipeline.report.sections import build_sections
from pipeline.report.text import interval, number, percent, signed, words
from pipeline.statistics import Estimate
from pipeline.statistics.comparison import Comparison, FinalVerdict, Verdict
from pipeline.statistics.plain import to_plain

SCHEMA_VERSION: Final = 1
FIGURE_FOLDER: Final = "figures"

_MOODS: Final = {Verdict.FASTER: "good", Verdict.NOT_SHOWN: "open", Verdict.SLOWER: "bad"}
_FINAL_MOODS: Final = {
    FinalVerdict.BETTER: "good",
    FinalVerdict.NOT_SHOWN: "",
    FinalVerdict.WORSE: "bad",
    FinalVerdict.DIFFERS: "",
}


def build_report(comparison: Comparison, context: ReportContext) -> dict[str, bytes]:
    """All files of the report by their path: `report.html`, `report.md`, `report.json` and `figures/<name>.svg`."""
    title = f"Does pre-training save timesteps? {context.task}, group {context.group}"
    summary, sections = summarise_verdict(comparison, context), build_sections(comparison, context)
    data = json.dumps(report_data(comparison, context), indent=1, allow_nan=False, ensure_ascii=False)
    drawn = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    return {
        "report.html": render_page(title, summary, sections).encode(),
        "report.md": markdown(title, summary, sections, FIGURE_FOLDER).encode(),
        "report.json": data.encode(),
        **{f"{FIGURE_FOLDER}/{figure.name}.svg": _standalone(figure.svg) for figure in drawn},
    }


def report_data(comparison: Comparison, context: ReportContext) -> dict[str, Any]:
    """The report as JSON data; the schema is documented in docs/report-schema.md."""
    about = {f.name: getattr(context, f.name) for f in fields(context) if f.name != "animations"}
    animations = context.animations and [
        {"title": a.title, "caption": a.caption, "media_type": a.media_type, "bytes": len(a.data)}
        for a in context.animations
    ]
    return {
        "schema": "comparison_report",
        "schema_version": SCHEMA_VERSION,
        "comparison": to_plain(comparison),
        "context": {**to_plain(about), "animations": animations},
    }


# --- the first screen ------------------------------------------------------------------------------------------------


def summarise_verdict(comparison: Comparison, context: ReportContext) -> Summary:
    """Verdict, its confidence and the figures that matter most."""
    c = comparison
    few = (
        f" Intervals over so few seeds are optimistic: in simulated studies of this size they held the truth in"
        f" {percent(c.interval_coverage, 0)}."
        if c.interval_coverage is not None and c.interval_coverage < 0.94
        else ""
    )
    return Summary(
        task=context.task,
        mood=_MOODS[c.verdict],
        verdict=c.verdict.value,
        headline=_headline(c),
        sentences=tuple(_sentences(c)),
        tiles=tuple(_tiles(c)),
        warnings=tuple(f"Do not rely on this report: {reason}." for reason in context.taints),
        gauge="" if c.unanswered else ratio_gauge(c.ratio, c.settings.ratio_target),
        gauge_alt=f"ratio of timesteps {interval(c.ratio)} against 1 and target {c.settings.ratio_target:g}",
        footer=f"{len(c.pairs)} matched seeds; 95 % percentile bootstrap over seed pairs, "
        f"{c.settings.resamples:,} resamples.{few} Group {context.group}, made {context.created_at}.",
    )


def _headline(c: Comparison) -> str:
    seeds = f"{len(c.pairs)} matched {'seed' if len(c.pairs) == 1 else 'seeds'}"
    if c.unanswered:
        return f"No run of either arm met the target: nothing is known of the timesteps that are saved ({seeds})."
    often = c.ratio.value >= 1.5
    amount = f"{number(c.ratio.value)} times" if often else f"{percent(c.ratio.value)} of"
    share = f"{amount} the timesteps that PPO from scratch needs"
    interval_text = f"95 % interval {_range(c.ratio) if often else _percents(c.ratio)}, {seeds}"
    if c.verdict is Verdict.FASTER:
        return f"Pre-trained PPO meets the target after {share} ({interval_text})."
    if c.verdict is Verdict.SLOWER:
        return f"Pre-trained PPO is slower: it takes {share} ({interval_text})."
    return f"These runs do not show whether pre-training saves timesteps: observed {share} ({interval_text})."


def _sentences(c: Comparison) -> list[str]:
    lines = [f"{reason[:1].upper()}{reason[1:]}." for reason in c.reasons]
    if c.seeds_for_verdict is not None:
        lines.append(f"To decide faster or slower: {c.seeds_for_verdict.explanation}.")
    if c.seeds_for_target is not None:
        lines.append(f"To meet the efficiency target: {c.seeds_for_target.explanation}.")
    decisive = c.decisive
    lines.append(
        f"Final {words(decisive.figure)} on {c.settings.training_set}: {_final_verdict(c.final_verdict)} "
        f"(pre-trained minus scratch {signed(decisive.difference)})."
    )
    return lines


def _tiles(c: Comparison) -> list[Tile]:
    decisive, s = c.decisive, c.settings
    mood = _MOODS[c.verdict].replace("open", "")
    saved = Estimate(c.reduction.value * 100, c.reduction.low * 100, c.reduction.high * 100)
    tiles = [
        Tile("ratio of timesteps", number(c.ratio.value),
             f"95 % interval {_range(c.ratio)}; target ≤ {s.ratio_target:g}", mood),
        Tile("timesteps saved", f"{number(saved.value)} %", f"95 % interval {_range(saved)} %", mood),
        Tile("seeds faster", f"{c.sign_test.faster} of {len(c.pairs)}",
             f"{c.sign_test.decided} certain; exact sign test p = {number(c.sign_test.p_value)}"),
        Tile(f"final {words(decisive.figure)}", c.final_verdict.value,
             f"{interval(decisive.means[Arm.PRETRAINED])} against {interval(decisive.means[Arm.SCRATCH])}",
             _FINAL_MOODS[c.final_verdict]),
    ]  # fmt: skip
    if c.unanswered:
        tiles[:2] = [Tile(tile.label, "–", "no run met the target") for tile in tiles[:2]]
    if c.bill is not None:
        reuses = c.bill.break_even.reuses
        paid = (
            "–" if c.unanswered else "never" if reuses is None else f"{reuses:,} {'reuse' if reuses == 1 else 'reuses'}"
        )
        tiles.append(Tile("paid back after", paid, f"{c.bill.upfront.steps:,} environment steps spent before"))
    return tiles


def _range(estimate: Estimate) -> str:
    return f"{number(estimate.low)} to {number(estimate.high)}"


def _percents(estimate: Estimate) -> str:
    return f"{percent(estimate.low)} to {percent(estimate.high)}"


def _final_verdict(verdict: FinalVerdict) -> str:
    words: Mapping[FinalVerdict, str] = {
        FinalVerdict.BETTER: "better than from scratch",
        FinalVerdict.NOT_SHOWN: "no difference shown",
        FinalVerdict.WORSE: "worse than from scratch",
        FinalVerdict.DIFFERS: "other than from scratch",
    }
    return words[verdict]


def _standalone(svg: str) -> bytes:
    return for_file(svg).replace("<svg ", '<svg style="background:#ffffff" ', 1).encode()

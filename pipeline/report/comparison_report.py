"""The comparison report: one self-contained HTML page, and the same facts in Markdown and JSON.

    files = build_report(comparison, context)      # {"report.html": b"...", "report.md": ..., "report.json": ..., ...}

What is not known is said to be missing; nothing is filled in. What it says is written in `templates/comparison.md`.
"""

import json
from dataclasses import dataclass, fields
from typing import Any, Final

from pipeline.config.loading import to_data
from pipeline.names import Arm
from pipeline.report import figures
from pipeline.report.context import ReportContext
from pipeline.report.drawings import lineage_rails, ratio_gauge
from pipeline.report.page import blocks, html_page, markdown_link
from pipeline.report.palette import ARM_LABELS, for_file
from pipeline.report.text import interval, markdown_page, number, percent, signed, words
from pipeline.statistics import Estimate
from pipeline.statistics.comparison import Comparison, FinalVerdict, Verdict
from pipeline.statistics.efficiency import TimeToTarget

SCHEMA_VERSION: Final = 1
MOST_SHIFTED: Final = 12
MOST_REFERENCE_FIGURES: Final = 5

_MOODS: Final = {Verdict.FASTER: "good", Verdict.NOT_SHOWN: "open", Verdict.SLOWER: "bad"}
_FINAL: Final = {  # mood and words
    FinalVerdict.BETTER: ("good", "better than from scratch"),
    FinalVerdict.NOT_SHOWN: ("", "no difference shown"),
    FinalVerdict.WORSE: ("bad", "worse than from scratch"),
    FinalVerdict.DIFFERS: ("", "other than from scratch"),
}
_RATIO_SIGNS: Final = {"exact": "", "upper bound": "≤", "lower bound": "≥", "undetermined": "?"}


def build_report(comparison: Comparison, context: ReportContext) -> dict[str, bytes]:
    """All files of the report by their path: `report.html`, `report.md`, `report.json` and `figures/<name>.svg`."""
    c, x = comparison, context
    title = f"Does pre-training save timesteps? {x.task}, group {x.group}"
    summary, drawn = summarise_verdict(c, x), _figures(c, x)
    titles = {node.key: node.title for node in x.lineage or ()}
    measured = {name for policy in x.references or () for name in policy.figures}
    compared = [f.figure for f in c.finals[c.settings.training_set] if f.figure in measured]

    def said(page: bool) -> str:
        return markdown_page(
            "comparison", page=page, title=title, summary=summary, c=c, s=c.settings, x=x, figures=drawn,
            curves=[name.removeprefix("curve-") for name in drawn if name.startswith("curve-")],
            reference_figures=(compared or sorted(measured))[:MOST_REFERENCE_FIGURES], most_shifted=MOST_SHIFTED,
            signs=_RATIO_SIGNS, time=_time, duration=_duration, label=lambda arm: ARM_LABELS.get(arm, arm),
            parents=lambda node: ", ".join(titles.get(parent, parent) for parent in node.parents),
            linked=markdown_link if page else lambda text, url: text,
        )  # fmt: skip

    pictures = {f"figures/{name}.svg": svg for name, svg in drawn.items()} | {
        "playback": blocks().playback(x.animations or ()),
        "lineage": blocks().lineage(lineage_rails(x.lineage or ())),
    }
    gauge = "" if c.unanswered else ratio_gauge(c.ratio, c.settings.ratio_target)
    alt = f"ratio of timesteps {interval(c.ratio)} against 1 and target {c.settings.ratio_target:g}"
    page = html_page(
        "comparison", said(page=True), pictures, title=title, task=x.task, summary=summary, gauge=gauge, gauge_alt=alt
    )
    data = json.dumps(report_data(c, x), indent=1, allow_nan=False, ensure_ascii=False)
    return {
        "report.html": page.encode(),
        "report.md": said(page=False).encode(),
        "report.json": data.encode(),
        **{f"figures/{name}.svg": for_file(svg) for name, svg in drawn.items()},
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
        "comparison": to_data(comparison),
        "context": {**to_data(about), "animations": animations},
    }


def _figures(c: Comparison, x: ReportContext) -> dict[str, str]:
    """Name -> SVG in marker colours, in the order of the page."""
    common = [f for f in c.arms[Arm.SCRATCH].curves if f in c.arms[Arm.PRETRAINED].curves]
    curves = dict.fromkeys([*c.settings.target, *(f for f in common if f in ("return_mean", "snqi"))])
    drawn = {
        **{f"curve-{f}": figures.learning_curve(c, f) for f in curves if f in common},
        "reached-by": figures.reached_by(c),
        "time-to-target": figures.time_to_target(c),
        "profile": figures.performance_profile(c),
        "outcomes": figures.outcome_bars(c.finals),
        "bill": None if c.bill is None else figures.bill_lines(c.bill),
        "shift": None if x.shift is None else figures.shift_bars(x.shift),
    }
    return {name: svg for name, svg in drawn.items() if svg is not None}


# --- the first screen ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A figure of the first screen."""

    label: str
    value: str
    detail: str
    mood: str = ""  # "good", "bad" or neither


@dataclass(frozen=True)
class Summary:
    """The first screen."""

    mood: str  # "good", "bad" or "open"
    verdict: str  # "faster"
    headline: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    warnings: tuple[str, ...]  # shown above everything else
    footer: str


def summarise_verdict(comparison: Comparison, context: ReportContext) -> Summary:
    """Verdict, its confidence and the figures that matter most."""
    c = comparison
    few = (
        f" Intervals over so few seeds are optimistic: in simulated studies of this size they held the truth in"
        f" {percent(c.interval_coverage, 0)}."
        if c.interval_coverage is not None and c.interval_coverage < 0.94
        else ""
    )
    sentences = [f"{reason[:1].upper()}{reason[1:]}." for reason in c.reasons]
    if c.seeds_for_verdict is not None:
        sentences.append(f"To decide faster or slower: {c.seeds_for_verdict.explanation}.")
    if c.seeds_for_target is not None:
        sentences.append(f"To meet the efficiency target: {c.seeds_for_target.explanation}.")
    sentences.append(
        f"Final {words(c.decisive.figure)} on {c.settings.training_set}: {_FINAL[c.final_verdict][1]} "
        f"(pre-trained minus scratch {signed(c.decisive.difference)})."
    )
    return Summary(
        mood=_MOODS[c.verdict],
        verdict=c.verdict.value,
        headline=_headline(c),
        sentences=tuple(sentences),
        tiles=_tiles(c),
        warnings=tuple(f"Do not rely on this report: {reason}." for reason in context.taints),
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
    low, high = (number(end) if often else percent(end) for end in (c.ratio.low, c.ratio.high))
    sure = f"95 % interval {low} to {high}, {seeds}"
    if c.verdict is Verdict.FASTER:
        return f"Pre-trained PPO meets the target after {share} ({sure})."
    if c.verdict is Verdict.SLOWER:
        return f"Pre-trained PPO is slower: it takes {share} ({sure})."
    return f"These runs do not show whether pre-training saves timesteps: observed {share} ({sure})."


def _tiles(c: Comparison) -> tuple[Tile, ...]:
    decisive, mood = c.decisive, _MOODS[c.verdict].replace("open", "")

    def range_of(estimate: Estimate, times: int = 1) -> str:
        return f"{number(estimate.low * times)} to {number(estimate.high * times)}"

    if c.unanswered:
        ratio = Tile("ratio of timesteps", "–", "no run met the target")
        saved = Tile("timesteps saved", "–", "no run met the target")
    else:
        target = f"95 % interval {range_of(c.ratio)}; target ≤ {c.settings.ratio_target:g}"
        ratio = Tile("ratio of timesteps", number(c.ratio.value), target, mood)
        value = f"{number(c.reduction.value * 100)} %"
        saved = Tile("timesteps saved", value, f"95 % interval {range_of(c.reduction, 100)} %", mood)
    certain = f"{c.sign_test.decided} certain; exact sign test p = {number(c.sign_test.p_value)}"
    means = f"{interval(decisive.means[Arm.PRETRAINED])} against {interval(decisive.means[Arm.SCRATCH])}"
    tiles = (
        ratio,
        saved,
        Tile("seeds faster", f"{c.sign_test.faster} of {len(c.pairs)}", certain),
        Tile(f"final {words(decisive.figure)}", c.final_verdict.value, means, _FINAL[c.final_verdict][0]),
    )
    if c.bill is None:
        return tiles
    reuses = c.bill.break_even.reuses
    paid = "never" if reuses is None else f"{reuses:,} {'reuse' if reuses == 1 else 'reuses'}"
    spent = f"{c.bill.upfront.steps:,} environment steps spent before"
    return (*tiles, Tile("paid back after", "–" if c.unanswered else paid, spent))


def _time(time: TimeToTarget) -> str:
    return f"> {time.steps:,}" if time.censored else f"{time.steps:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"

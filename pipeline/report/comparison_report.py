"""The comparison report: one self-contained HTML page, and the same facts in Markdown and JSON.

    files = build_report(comparison, context)      # {"report.html": b"...", "report.md": ..., "report.json": ..., ...}

What is not known is said to be missing; nothing is filled in. What it says is written in `templates/comparison.md`.
"""

import json
from dataclasses import fields
from typing import Any, Final

from pipeline.config.loading import to_data
from pipeline.names import Arm
from pipeline.report import figures
from pipeline.report.context import ReportContext
from pipeline.report.drawings import lineage_rails, ratio_gauge
from pipeline.report.html_page import blocks, html_page, markdown_link
from pipeline.report.palette import ARM_LABELS, for_file
from pipeline.report.text import markdown_page
from pipeline.statistics.comparison import Comparison
from pipeline.statistics.matched import Verdict

SCHEMA_VERSION: Final = 2
MOST_REFERENCE_FIGURES: Final = 5

_MOODS: Final = {Verdict.FASTER: "good", Verdict.SLOWER: "bad"}


def build_report(comparison: Comparison, context: ReportContext) -> dict[str, bytes]:
    """All files of the report by their path: `report.html`, `report.md`, `report.json` and `figures/<name>.svg`."""
    c, x, target = comparison, context, comparison.settings.ratio_target
    rails = lineage_rails(x.lineage or ())
    pictures = {
        "gauge": str(blocks().gauge(ratio_gauge(c.ratio, c.ratio_kind, target), target)),
        "playback": blocks().playback(x.animations or ()),
        "lineage": blocks().lineage(rails),
    }
    common = [f for f in c.arms[Arm.SCRATCH].curves if f in c.arms[Arm.PRETRAINED].curves]
    shown = dict.fromkeys([*c.settings.target, *(f for f in common if f in ("return_mean", "snqi"))])
    curves = [figure for figure in shown if figure in common]
    forests = [f.figure for f in c.finals[c.settings.training_set] if f.primary]
    expert = next((f for f in c.settings.target if x.experts and all(f in run.figures for run in x.experts)), None)
    made = {
        **{f"forest-{figure}": figures.forest(c.finals, figure, x.references or ()) for figure in forests},
        "sensitivity": figures.sensitivity_rows(c),
        **{f"curve-{figure}": figures.learning_curve(c, figure) for figure in curves},
        "time-to-target": figures.time_to_target(c),
        "profile": figures.performance_profile(c),
        "expert": None if expert is None else figures.expert_curve(x.experts or (), expert),
        "bill": None if c.bill is None else figures.bill_lines(c.bill),
        "shift": None if x.shift is None else figures.shift_bars(x.shift, "fine-tuning"),
        **{f"shift-{name}": figures.shift_bars(shift, name) for name, shift in (x.holdout_shifts or {}).items()},
    }
    drawn = {name: svg for name, svg in made.items() if svg is not None}
    pictures |= {f"figures/{name}.svg": svg for name, svg in drawn.items()}
    measured = {name for policy in x.references or () for name in policy.figures}
    compared = [f.figure for f in c.finals[c.settings.training_set] if f.figure in measured]

    def said(page: bool) -> str:
        return markdown_page(
            "comparison",
            page=page,
            c=c,
            s=c.settings,
            x=x,
            figures=drawn,
            curves=curves,
            forests=forests,
            labels=ARM_LABELS,
            reference_figures=(compared or sorted(measured))[:MOST_REFERENCE_FIGURES],
            rails=rails,
            linked=markdown_link if page else lambda text, url: text,
        )

    page = html_page(said(page=True), pictures, "costs" if c.costs else _MOODS.get(c.verdict, "open"))
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
        {"title": a.title, "caption": a.caption, "media_type": "video/mp4", "bytes": len(a.data)}
        for a in context.animations
    ]
    return {
        "schema": "comparison_report",
        "schema_version": SCHEMA_VERSION,
        "comparison": to_data(comparison),
        "context": {**to_data(about), "animations": animations},
    }

"""What a person reads when an expert or a candidate is not good enough: what failed, where, by how much, what to try.

The decisions themselves are made in `pipeline.gate` and `pipeline.learning.diagnosis`.
"""

from pipeline.gate import GateDecision, GateRow
from pipeline.learning.diagnosis import ADVICE, Diagnosis, Shortfall
from pipeline.report.text import markdown_table, number, one_line


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """The diagnosis of a training over several seeds as a Markdown page."""
    lines = [f"# Training diagnosis: {'promotable' if diagnosis.promotable else 'NOT promotable'}", ""]
    if diagnosis.promotable:
        lines += ["Every threshold holds for the best checkpoint of every seed, on fresh episodes.", ""]
    else:
        lines += ["## What missed its threshold (best checkpoint of the seed, on fresh episodes)", ""]
        lines += [_shortfall_table(diagnosis.shortfalls), "", "## What to try", "", *_advice(diagnosis.shortfalls), ""]
    lines += ["## Convergence", "", "First timestep from which all thresholds held for the asked-for evaluations.", ""]
    converged = [
        [str(seed), "not within the budget" if step is None else f"{step:,}"]
        for seed, step in diagnosis.converged_at.items()
    ]
    return "\n".join([*lines, markdown_table(["seed", "converged at timestep"], converged), ""])


def gate_markdown(decision: GateDecision, reference: str) -> str:
    """Every rule of the gate held against every measurement, failures first, as a Markdown page."""
    failed = [row for row in decision.rows if not row.holds]
    lines = [f"# Gate: {one_line(reference)} {'approved' if decision.approved else 'REFUSED'}", ""]
    if failed:
        lines += [f"{len(failed)} of {len(decision.rows)} checks failed, worst first:", ""]
        lines += [f"- {one_line(reason)}" for reason in decision.reasons]
    elif decision.rows:
        lines += [f"All {len(decision.rows)} checks hold, on episodes that the gate played itself."]
    else:
        lines += ["No rule was checked, and what was not checked is not approved."]
    ordered = sorted(decision.rows, key=lambda row: (row.holds, -row.missed_by))
    header = ["check", "policy", "scenarios", "seed", "figure", "mean", "compared", "needs", "missed by", "worst in"]
    table = markdown_table([*header, "episodes"], [_gate_row(row) for row in ordered], numbers_from=5)
    return "\n".join([*lines, "", "## All checks", "", table, ""])


def _shortfall_table(shortfalls: tuple[Shortfall, ...]) -> str:
    rows = [
        [
            str(s.seed),
            s.figure,
            number(s.value),
            s.needs,
            number(s.missed_by),
            f"{s.worst_scenario} ({number(s.worst_value)})",
            f"{s.trend} ({s.slope_per_100k_steps:+.3g} per 100,000 steps)",
        ]
        for s in shortfalls
    ]
    header = ["seed", "figure", "value", "needs", "missed by", "worst scenario", "last evaluations"]
    return markdown_table(header, rows, numbers_from=2)


def _advice(shortfalls: tuple[Shortfall, ...]) -> list[str]:
    """One line per trend, naming the seeds and figures it was seen in."""
    lines = []
    for trend in dict.fromkeys(s.trend for s in shortfalls):
        where = ", ".join(f"seed {s.seed} {s.figure}" for s in shortfalls if s.trend == trend)
        lines.append(f"- {where}: {ADVICE[trend]}.")
    worst = [s.worst_scenario for s in shortfalls]
    most = max(map(worst.count, worst))
    common = one_line(max(dict.fromkeys(worst), key=worst.count))
    lines.append(f"- Look at `{common}` first: it is the worst scenario in {most} of {len(worst)} misses.")
    return lines


def _gate_row(row: GateRow) -> list[str]:
    compared = "the mean" if row.confidence is None else f"{number(row.compared)} ({row.confidence:.0%} bound)"
    return [
        "holds" if row.holds else "**FAILS**",
        row.subject,
        row.scenario_set,
        str(row.seed),
        row.metric,
        number(row.value),
        compared,
        row.limit,
        "" if row.holds else number(row.missed_by),
        row.worst_scenario,
        str(row.episodes),
    ]

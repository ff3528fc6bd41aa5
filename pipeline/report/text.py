"""Numbers and tables as text: Markdown whose columns are aligned, so that it reads as well on a console."""

import re
from collections.abc import Sequence
from math import isfinite

from pipeline.errors import printable
from pipeline.statistics import Estimate

NOT_MEASURED = "–"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """Header and rows as an aligned Markdown table; columns from `numbers_from` on are right-aligned.

    Cells come from users as well: `|` and line breaks in them cannot break the table, nor can backslashes before them.
    """
    table = [[_cell(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            c.rjust(w) if i >= numbers_from else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * (w - 1) + ":" if i >= numbers_from else "-" * w for i, w in enumerate(widths)]
    return "\n".join([line(table[0]), "| " + " | ".join(rule) + " |", *(line(row) for row in table[1:])])


def number(value: float | None, digits: int = 3) -> str:
    """`0.93333` -> `0.933`, `1234567.0` -> `1,234,567`, None and NaN -> a dash: nothing is invented."""
    if value is None or value != value:
        return NOT_MEASURED
    if not isfinite(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}" if abs(value) < 1 else f"{value:.{max(0, digits - len(str(int(abs(value)))))}f}"
    return f"{value:.1e}" if "e" in text else text


def interval(estimate: Estimate | None) -> str:
    """`Estimate(0.9, 0.85, 0.94)` -> `0.9 [0.85, 0.94]`."""
    if estimate is None or estimate.value != estimate.value:
        return NOT_MEASURED
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def signed(estimate: Estimate) -> str:
    """`Estimate(0.02, -0.01, 0.05)` -> `+0.02 [-0.01, 0.05]`."""
    return f"{'+' if estimate.value > 0 else ''}{interval(estimate)}"


def percent(share: float, digits: int = 1) -> str:
    """`0.061` -> `6.1 %`, with a space that does not break."""
    return f"{share * 100:.{digits}f}\u00a0%"


def words(name: str) -> str:
    """`success_rate` -> `success rate`."""
    return name.replace("_", " ")


def one_line(text: str) -> str:
    """Text of a user on one line of Markdown: it can start neither a block nor an HTML tag, nor be a link.

    `<= 0.05` and `[1, 2]` are kept. An entity, unlike a backslash, is no markup whatever stands before it.
    """
    line = printable(" ".join(str(text).split()))
    return re.sub(r"\](?=[(\[:])", "&#93;", re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line))


def _cell(text: str) -> str:
    return one_line(text).replace("|", "&#124;")

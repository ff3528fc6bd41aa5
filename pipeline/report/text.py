"""Numbers, tables and pages as text: Markdown whose columns are aligned, so that it reads as well on a console.

    markdown_page("gate", decision=decision, reference="social_nav-expert/3")       # templates/gate.md, filled in

Whatever a template shows is escaped, since it may come from a user; only `Markup` is taken as it is.
"""

import re
from functools import cache
from html.entities import codepoint2name
from math import exp, isfinite
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.errors import printable
from pipeline.statistics.efficiency import BOUNDS, SIGNS
from pipeline.statistics.estimate import Estimate

NOT_MEASURED: Final = "–"
MINUS: Final = "\u2212"
# tags and autolinks, links, entities, escapes, code, emphasis (but no snake_case), cells
_MARKS: Final = re.compile(r"<(?=[A-Za-z/!?])|\](?=[(\[:])|&(?=#?\w+;)|[\\`*|]|(?<![^\W_])_|_(?![^\W_])")


def markdown_page(template: str, **values: Any) -> str:
    """`templates/<template>.md` filled in; every value is escaped by `one_line`, and never are two lines empty."""
    page = _templates().get_template(f"{template}.md").render(**values)
    return aligned(re.sub(r"\n{3,}", "\n\n", page).strip() + "\n")


@cache
def _templates() -> Environment:
    # subtle: Jinja escapes for HTML what is no Markup, so that what is escaped for Markdown must come as Markup
    found = environment(
        autoescape=True, finalize=lambda value: value if isinstance(value, Markup) else Markup(one_line(value))
    )
    found.filters.update(decimals=decimals_of, exp=exp)
    # subtle: as Markup they keep the space at their end
    found.filters.update(sign=lambda kind: Markup(SIGNS[kind]), bound=lambda kind: Markup(BOUNDS[kind]))
    found.filters.update(
        {f.__name__: f for f in (number, fixed, spread, change, p_value, interval, percent, duration, limits, words)}
    )
    return found


def environment(**options: Any) -> Environment:
    """Of the templates of this room; a name that a template misspells is an error."""
    return Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


def aligned(markdown: str) -> str:
    """The same page, the columns of its tables as wide as their widest cell; `--:` in the rule aligns to the right."""

    def padded(table: re.Match[str]) -> str:
        rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table[0].splitlines()]
        right = [cell.endswith(":") for cell in rows[1]]
        widths = [max(3, *map(len, column)) for column in zip(rows[0], *rows[2:], strict=True)]
        rows[1] = ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)]
        return "\n".join(
            f"| {' | '.join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))} |"
            for row in rows
        )

    return re.sub(r"^\|.*\|(?:\n\|.*\|)+$", padded, markdown, flags=re.MULTILINE)


def number(value: float | None, digits: int = 3) -> str:
    """`0.93333` -> `0.933`, `1234567.0` -> `1,234,567`, None and NaN -> a dash: nothing is invented."""
    if value is None or value != value:
        return NOT_MEASURED
    if not isfinite(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) or abs(value) >= 1_000:
        return fixed(value, 0)
    text = f"{value:.{digits}g}" if abs(value) < 1 else f"{value:.{max(0, digits - len(str(int(abs(value)))))}f}"
    return (f"{value:.1e}" if "e" in text else text).replace("-", MINUS)


def fixed(value: float | None, decimals: int) -> str:
    """`-0.0125, 3` -> `−0.013`: the same number of digits all over a column."""
    if value is None or not isfinite(value):
        return number(value)
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def spread(estimate: Estimate | None, decimals: int | None = None) -> str:
    """`Estimate(0.9, 0.85, 0.94)` -> `0.900 [0.850, 0.940]`; None: fewer decimals for larger figures."""
    if estimate is None or estimate.value != estimate.value:
        return NOT_MEASURED
    decimals = decimals_of(estimate) if decimals is None else decimals
    low, high = fixed(estimate.low, decimals), fixed(estimate.high, decimals)
    return f"{fixed(estimate.value, decimals)} [{low}, {high}]"


def decimals_of(estimate: Estimate) -> int:
    """Fewer for larger figures."""
    largest = max((abs(end) for end in (estimate.value, estimate.low, estimate.high) if isfinite(end)), default=0)
    return 3 if largest < 10 else 1 if largest < 1_000 else 0


def change(difference: Estimate | None, decimals: int | None = None) -> str:
    """`Estimate(0.02, -0.01, 0.05)` -> `+0.020 [−0.010, 0.050]`."""
    text = spread(difference, decimals)
    return f"+{text}" if difference is not None and difference.value > 0 and text.split()[0].strip("0.") else text


def p_value(p: float | None) -> str:
    """`0.00021` -> `< 0.001`."""
    return NOT_MEASURED if p is None else "< 0.001" if p < 0.001 else fixed(p, 3)


def interval(estimate: Estimate | None) -> str:
    """`Estimate(0.9, 0.85, 0.94)` -> `0.9 [0.85, 0.94]`."""
    if estimate is None or estimate.value != estimate.value:
        return NOT_MEASURED
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def percent(share: float, digits: int = 1) -> str:
    """`0.061` -> `6.1 %`, with a space that does not break."""
    return f"{fixed(share * 100, digits)}\u00a0%"


def duration(seconds: float) -> str:
    """`98.3` -> `1 min 38 s`, `6.1` -> `6.1 s`."""
    if not isfinite(seconds):
        return NOT_MEASURED
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def limits(text: object) -> str:
    """`<= 0.05` -> `≤ 0.05`."""
    return str(text).replace("<=", "≤").replace(">=", "≥")


def words(name: str) -> str:
    """`success_rate` -> `success rate`."""
    return name.replace("_", " ")


def one_line(text: object) -> str:
    """Text of a user on one line of Markdown: it is shown as it is, and is no link, tag, emphasis or cell.

    What would be markup is an entity, which, unlike a backslash, is none whatever stands before it. `<= 0.05`, `[1, 2]`
    and `snake_case` are kept. Not for the beginning of a line, where `# ` and `- ` start blocks.
    """
    line = printable(" ".join(str(text).split()))
    return _MARKS.sub(lambda mark: f"&{codepoint2name.get(ord(mark[0]), f'#{ord(mark[0])}')};", line)

"""A Markdown page as one self-contained HTML page: no scripts, nothing fetched, values of users escaped.

The Markdown library turns text into HTML and lets no tag of the text through; what a page shows beside its text is
rendered by Jinja2 with autoescape. A content security policy in the page itself forbids every request.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup

from pipeline.report.palette import DARK, LIGHT, for_page
from pipeline.report.text import environment, number, one_line

_WEB_ADDRESS: Final = re.compile(r"https?://[^\s<>()|\\]+", re.IGNORECASE)
# spaces at which no line breaks: before %, between a sign and its number, inside an interval
_KEPT: Final = re.compile(r" (?=%)|(?<=[≤≥>?]) (?=\d)|(?<=\d,) (?=[-+\d.,e]+\])")


class Section(NamedTuple):
    """A heading of the first or second level with what follows it."""

    anchor: str
    title: Markup
    body: Markup
    folded: tuple[tuple[Markup, Markup], ...]  # headings of the third level and what stands below them


def html_page(markdown: str, pictures: Mapping[str, str], mood: str = "") -> str:
    """`templates/page.html` of a Markdown page: what stands before its sections is the first screen, `mood` its class.

    `pictures`: address of an image -> drawing in marker colours, or `Markup` that takes its place as it is.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(_: Any, tokens: Any, index: int, *__: Any) -> str:
        picture = pictures[tokens[index].attrs["src"]]
        return picture if isinstance(picture, Markup) else blocks().figure(tokens[index].content, picture)

    parser.add_render_rule("image", image)
    parts = re.split("^##? ", _KEPT.sub("\u00a0", markdown), flags=re.MULTILINE)[1:]
    first, *sections = (_section(parser, part) for part in parts)
    template = _templates().get_template("page.html")
    return template.render(first=first, sections=sections, mood=mood, light=LIGHT, dark=DARK)


def _section(parser: MarkdownIt, text: str) -> Section:
    (title, body), *folded = (
        (Markup(parser.renderInline(title)), _body(parser.render(body)))
        for title, _, body in (part.partition("\n") for part in re.split("^### ", text, flags=re.MULTILINE))
    )
    return Section("-".join(title.lower().split()), title, body, tuple(folded))


def _body(html: str) -> Markup:
    """Tables may be wider than the page and name their rows; images that stand alone are no text."""
    html = html.replace("<table>", '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>')
    html = html.replace("</table>", "</table></div>").replace(' style="text-align:right"', ' class="n"')
    html = html.replace("<blockquote>", '<blockquote role="alert">')
    html = re.sub(r"<tr>\n<td>(.*?)</td>", r'<tr>\n<th scope="row">\1</th>', html)
    for mark, mood in (("▲", "up"), ("▼", "down")):
        html = re.sub(f'<td(?: class="(n)")?>{mark}', rf'<td class="\1 {mood}">{mark}', html)
    return Markup(re.sub(r"<p>(<(?:figure|div|ol) .*?)</p>", r'<div class="figures">\1</div>', html, flags=re.DOTALL))


@cache
def _templates() -> Environment:
    found = environment(autoescape=True)
    found.filters.update(
        drawing=lambda svg: Markup(for_page(svg)),  # drawn by our own code, from values it escaped
        web_address=lambda url: url if url and _WEB_ADDRESS.fullmatch(url) else None,
        data_uri=lambda data, media_type: f"data:{media_type};base64,{b64encode(data).decode()}",
        number=number,
        px="{:.1f}".format,
    )
    return found


def blocks() -> Any:
    """What stands in a page in the place of an image: the macros of `templates/pictures.html`."""
    return _templates().get_template("pictures.html").module


def markdown_link(text: str, url: str | None) -> str:
    """`[text](<url>)` where the address is one of the web, else the text."""
    return Markup(f"[{one_line(text)}](<{url}>)") if url and _WEB_ADDRESS.fullmatch(url) else text

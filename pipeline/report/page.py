"""Summary and sections as one self-contained HTML page: no scripts, nothing fetched, values of users escaped.

Rendered by Jinja2 with autoescape. A content security policy in the page itself forbids every request.
"""

import re
from base64 import b64encode
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pipeline.report.content import Section, Summary
from pipeline.report.context import Animation
from pipeline.report.drawings import lineage_rails
from pipeline.report.palette import DARK, LIGHT, css_variables, for_page

if TYPE_CHECKING:
    from jinja2 import Environment

MEDIA_TYPES: Final = ("image/gif", "image/png", "video/mp4")
_WEB_ADDRESS: Final = re.compile(r"https?://", re.IGNORECASE)


def render_page(title: str, summary: Summary, sections: tuple[Section, ...]) -> str:
    """The whole page. Raises ValueError for an animation of a media type that browsers do not play."""
    template = _templates().get_template("report.html")
    return template.render(
        title=title, summary=summary, sections=sections, light=css_variables(LIGHT), dark=css_variables(DARK)
    )


@lru_cache(maxsize=1)
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # drawn by our own code, from values it escaped
    environment.filters["drawing"] = lambda svg: Markup(for_page(svg))
    environment.filters["data_uri"] = _data_uri
    environment.filters["web_address"] = lambda url: url if url and _WEB_ADDRESS.match(url) else None
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["rails"] = lineage_rails
    return environment


def _data_uri(animation: Animation) -> str:
    if animation.media_type not in MEDIA_TYPES:
        raise ValueError(f"media type {animation.media_type!r} is none of {', '.join(MEDIA_TYPES)}")
    return f"data:{animation.media_type};base64,{b64encode(animation.data).decode()}"

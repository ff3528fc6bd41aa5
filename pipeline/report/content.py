"""What a report says, before it is a page: sections of texts, tables, figures and animations.

HTML and Markdown are two renderings of the same sections, so they cannot say different things.
"""

from dataclasses import dataclass

from pipeline.report.context import Animation, LineageNode
from pipeline.report.text import markdown_table, one_line


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Missing:
    """A part that nobody provided: said plainly instead of shown."""

    text: str


@dataclass(frozen=True)
class Code:
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    numbers_from: int = 1  # columns from here on are right-aligned
    folded: bool = False  # long and secondary: closed until someone opens it
    links: tuple[str | None, ...] = ()  # address of the first cell of each row


@dataclass(frozen=True)
class Figure:
    name: str  # file name without ending
    svg: str  # in marker colours
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Animations:
    items: tuple[Animation, ...]


@dataclass(frozen=True)
class Lineage:
    nodes: tuple[LineageNode, ...]


Block = Paragraph | Missing | Code | Table | Figure | Animations | Lineage


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    blocks: tuple[Block, ...]


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

    task: str
    mood: str  # "good", "bad" or "open"
    verdict: str  # "faster"
    headline: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    warnings: tuple[str, ...]  # shown above everything else
    gauge: str  # SVG in marker colours
    gauge_alt: str
    footer: str


def markdown(title: str, summary: Summary, sections: tuple[Section, ...], figure_folder: str) -> str:
    """The report as Markdown; figures are referred to as `<figure_folder>/<name>.svg`."""
    lines = [f"# {one_line(title)}", ""]
    lines += [f"> **{one_line(warning)}**\n" for warning in summary.warnings]
    lines += [f"**{one_line(summary.verdict.upper())}.** {one_line(summary.headline)}", ""]
    lines += [f"- {one_line(sentence)}" for sentence in summary.sentences]
    tiles = [(tile.label, tile.value, tile.detail) for tile in summary.tiles]
    lines += [
        "",
        markdown_table(("figure", "value", "meaning"), tiles, numbers_from=3),
        "",
        one_line(summary.footer),
        "",
    ]
    for section in sections:
        lines += [f"## {one_line(section.title)}", ""]
        for block in section.blocks:
            lines += [_block(block, figure_folder), ""]
    return "\n".join(lines)


def _block(block: Block, figure_folder: str) -> str:
    match block:
        case Paragraph(text):
            return one_line(text)
        case Missing(text):
            return f"*{one_line(text)}*"
        case Code(lines):
            return "\n".join(f"    {one_line(line)}" for line in lines)
        case Table():
            caption = f"\n\n{one_line(block.caption)}" if block.caption else ""
            return markdown_table(block.header, block.rows, block.numbers_from) + caption
        case Figure():
            return f"![{one_line(block.alt)}]({figure_folder}/{block.name}.svg)\n\n{one_line(block.caption)}".rstrip()
        case Animations(items):
            return "\n".join(
                f"- {one_line(item.title)}: {one_line(item.caption)} (shown in the HTML report)" for item in items
            )
        case Lineage(nodes):
            titles = {node.key: node.title for node in nodes}
            return "\n".join(_lineage_line(node, titles) for node in nodes)


def _lineage_line(node: LineageNode, titles: dict[str, str]) -> str:
    parents = ", ".join(titles.get(parent, parent) for parent in node.parents)
    made_from = f"; from {parents}" if parents else ""
    return f"- **{one_line(node.kind)}** {one_line(node.title)} {one_line(node.detail)}{one_line(made_from)}"

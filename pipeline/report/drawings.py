"""Small drawings by hand, in the marker colours of `palette`: the verdict's interval and the lineage's rails."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

from pipeline.report.context import LineageNode
from pipeline.report.palette import GRID, INK, MUTED, PRETRAINED, TARGET
from pipeline.report.text import number
from pipeline.statistics import Estimate

ROW_HEIGHT = 64  # pixels of one lineage row, as in page.css
LANE_WIDTH = 16


@dataclass(frozen=True)
class Rail:
    """The drawing beside one row of the lineage."""

    node: LineageNode
    svg: str
    parents: tuple[str, ...]  # titles


def ratio_gauge(ratio: Estimate, target: float) -> str:
    """The interval of the ratio on a logarithmic scale against "as fast" (1) and the target."""
    low, high = max(1e-4, min(ratio.low, target, 0.1) / 1.3), max(ratio.high, 1.0) * 1.6

    def x(value: float) -> float:
        return 14 + 412 * log(max(value, low) / low) / log(high / low)

    value, one, goal = x(ratio.value), x(1.0), x(target)
    above = abs(value - one) > 70  # away from 1 the value stands above its dot, close to it below
    beside = "middle" if 100 < goal < 340 else "end" if goal > 220 else "start"
    dash = ' stroke-dasharray="4 3"'
    ticks = (
        (f"{one:.1f}", "1 = equal", INK, 20, 62, "middle" if one < 390 else "end", ""),
        (f"{goal:.1f}", f"target {number(target)}", TARGET, 95, 78, beside, dash),
    )
    return "".join(
        [
            '<svg viewBox="0 0 440 116" font-size="14" xmlns="http://www.w3.org/2000/svg">',
            f'<line x1="14" x2="426" y1="50" y2="50" stroke="{GRID}" stroke-width="2"/>',
            *(
                f'<line x1="{at}" x2="{at}" y1="28" y2="{end}" stroke="{colour}" stroke-width="1.6"{dashed}/>'
                f'<text x="{at}" y="{y}" text-anchor="{anchor}" fill="{colour}">{label}</text>'
                for at, label, colour, y, end, anchor, dashed in ticks
            ),
            f'<line x1="{x(ratio.low):.1f}" x2="{x(ratio.high):.1f}" y1="50" y2="50" stroke="{PRETRAINED}" '
            'stroke-width="10" stroke-linecap="round" opacity="0.45"/>',
            f'<circle cx="{value:.1f}" cy="50" r="8" fill="{PRETRAINED}"/>',
            f'<text x="{value:.1f}" y="{36 if above else 77}" text-anchor="middle" fill="{INK}" '
            f'font-weight="700">{number(ratio.value)}</text>',
            f'<text x="14" y="113" fill="{MUTED}" font-size="12.5">← fewer timesteps</text>',
            f'<text x="426" y="113" fill="{MUTED}" font-size="12.5" text-anchor="end">more timesteps →</text>',
            "</svg>",
        ]
    )


def lineage_rails(nodes: Sequence[LineageNode]) -> tuple[Rail, ...]:
    """One row a node, parents above children, as `git log --graph` draws it.

    A node keeps its lane down to its last child, so no line runs through a node that it has nothing to do with.
    Parents that are not among the nodes are left out of the drawing; runs that stand in the same place, such as the
    seeds of an arm, share a row.
    """
    nodes = grouped(nodes)
    rows = {node.key: row for row, node in enumerate(nodes)}
    parents = {n.key: [p for p in n.parents if p in rows and rows[p] < rows[n.key]] for n in nodes}
    last_child = {
        key: max((rows[n.key] for n in nodes if key in parents[n.key]), default=row) for key, row in rows.items()
    }
    x: dict[str, int] = {}  # of a node's lane
    free_from: dict[int, int] = {}  # lane -> first row in which it is free
    for key, row in rows.items():
        lane = next(i for i in range(len(nodes) + 1) if free_from.get(i, 0) <= row)
        x[key] = LANE_WIDTH * lane + 11
        # subtle: a lane whose owner ends here may be taken over by the child that ends it, and by nobody else before
        free_from[lane] = max(last_child[key], row + 1)
    width, middle = LANE_WIDTH * len(free_from) + 4, ROW_HEIGHT // 2
    rails = []
    for row, node in enumerate(nodes):
        passing = [f"M{x[key]} 0V{ROW_HEIGHT}" for key, start in rows.items() if start < row < last_child[key]]
        beginning = [f"M{x[node.key]} {middle}V{ROW_HEIGHT}"] if row < last_child[node.key] else []
        here = x[node.key]
        joining = [
            f"M{x[p]} 0C{x[p]} {middle * 0.7:.0f} {here} {middle * 0.3:.0f} {here} {middle}" for p in parents[node.key]
        ]
        lines = "".join(
            f'<path d="{path}" fill="none" stroke="{MUTED}" stroke-width="2"/>'
            for path in (*passing, *beginning, *joining)
        )
        svg = (
            f'<svg width="{width}" height="{ROW_HEIGHT}" viewBox="0 0 {width} {ROW_HEIGHT}" aria-hidden="true" '
            f'xmlns="http://www.w3.org/2000/svg">{lines}'
            f'<circle cx="{here}" cy="{middle}" r="6" fill="{PRETRAINED}"/></svg>'
        )
        rails.append(Rail(node, svg, tuple(nodes[rows[parent]].title for parent in parents[node.key])))
    return tuple(rails)


def grouped(nodes: Sequence[LineageNode]) -> tuple[LineageNode, ...]:
    """Nodes of the same kind with the same parents and the same children as one, named after the first and last."""
    children = {node.key: frozenset(n.key for n in nodes if node.key in n.parents) for node in nodes}
    groups: dict[tuple[str, tuple[str, ...], frozenset[str]], list[LineageNode]] = {}
    for node in nodes:
        groups.setdefault((node.kind, node.parents, children[node.key]), []).append(node)
    leader = {node.key: group[0].key for group in groups.values() for node in group}
    merged = []
    for first, *others in groups.values():  # in the order of their first nodes
        parents = tuple(dict.fromkeys(leader.get(parent, parent) for parent in first.parents))
        title = f"{len(others) + 1} runs: {first.title} … {others[-1].title}" if others else first.title
        merged.append(replace(first, title=title, url=None if others else first.url, parents=parents))
    return tuple(merged)

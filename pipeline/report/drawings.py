"""Small drawings by hand, in the marker colours of `palette`: the verdict's interval and the lineage's rails."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

from pipeline.report.context import LineageNode
from pipeline.report.palette import GRID, INK, MUTED, PRETRAINED, TARGET
from pipeline.report.text import number
from pipeline.statistics import Estimate

ROW_HEIGHT = 64  # pixels of one lineage row, as in report.css
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

    def tick(value: float, label: str, colour: str, y: int, end: int, anchor: str, dash: str = "") -> str:
        at = f"{x(value):.1f}"
        return (
            f'<line x1="{at}" x2="{at}" y1="28" y2="{end}" stroke="{colour}" stroke-width="1.6"{dash}/>'
            f'<text x="{at}" y="{y}" text-anchor="{anchor}" fill="{colour}">{label}</text>'
        )

    def beside(value: float) -> str:
        return "middle" if 100 < x(value) < 340 else ("end" if x(value) > 220 else "start")

    dash = ' stroke-dasharray="4 3"'
    value = x(ratio.value)
    parts = [
        '<svg viewBox="0 0 440 116" font-size="14" xmlns="http://www.w3.org/2000/svg">',
        f'<line x1="14" x2="426" y1="50" y2="50" stroke="{GRID}" stroke-width="2"/>',
        tick(1.0, "1 = equal", INK, 20, 62, "middle" if x(1.0) < 390 else "end"),
        tick(target, f"target {number(target)}", TARGET, 95, 78, beside(target), dash),
        f'<line x1="{x(ratio.low):.1f}" x2="{x(ratio.high):.1f}" y1="50" y2="50" stroke="{PRETRAINED}" '
        'stroke-width="10" stroke-linecap="round" opacity="0.45"/>',
        f'<circle cx="{value:.1f}" cy="50" r="8" fill="{PRETRAINED}"/>',
        # away from 1 the value stands above its dot, close to it below
        f'<text x="{value:.1f}" y="{36 if abs(value - x(1.0)) > 70 else 77}" text-anchor="middle" fill="{INK}" '
        f'font-weight="700">{number(ratio.value)}</text>',
        f'<text x="14" y="113" fill="{MUTED}" font-size="12.5">← fewer timesteps</text>',
        f'<text x="426" y="113" fill="{MUTED}" font-size="12.5" text-anchor="end">more timesteps →</text>',
        "</svg>",
    ]
    return "".join(parts)


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
    lanes = _lanes(nodes, parents, last_child, rows)
    width = LANE_WIDTH * (max(lanes.values(), default=0) + 1) + 4
    titles = {node.key: node.title for node in nodes}
    return tuple(
        Rail(
            node,
            _rail(node, rows, parents, last_child, lanes, width),
            tuple(titles[parent] for parent in parents[node.key]),
        )
        for node in nodes
    )


def grouped(nodes: Sequence[LineageNode]) -> tuple[LineageNode, ...]:
    """Nodes of the same kind with the same parents and the same children as one, named after the first and last."""
    children = {node.key: frozenset(n.key for n in nodes if node.key in n.parents) for node in nodes}
    groups: dict[tuple[str, tuple[str, ...], frozenset[str]], list[LineageNode]] = {}
    for node in nodes:
        groups.setdefault((node.kind, node.parents, children[node.key]), []).append(node)
    leader = {node.key: group[0].key for group in groups.values() for node in group}
    merged = []
    for group in groups.values():
        first = group[0]
        many = len(group) > 1
        merged.append(
            replace(
                first,
                title=f"{len(group)} runs: {first.title} … {group[-1].title}" if many else first.title,
                url=None if many else first.url,
                parents=tuple(dict.fromkeys(leader.get(parent, parent) for parent in first.parents)),
            )
        )
    return tuple(sorted(merged, key=lambda node: [n.key for n in nodes].index(node.key)))


def _lanes(
    nodes: Sequence[LineageNode], parents: dict[str, list[str]], last_child: dict[str, int], rows: dict[str, int]
) -> dict[str, int]:
    """The leftmost lane that is free from a node's row to that of its last child."""
    lanes: dict[str, int] = {}
    free_from: dict[int, int] = {}  # lane -> first row in which it is free
    for node in nodes:
        row = rows[node.key]
        lane = next(i for i in range(len(nodes) + 1) if free_from.get(i, 0) <= row)
        lanes[node.key] = lane
        # a lane whose owner ends here may be taken over by the child that ends it, and by nobody else before
        free_from[lane] = max(last_child[node.key], row + 1)
    return lanes


def _rail(
    node: LineageNode,
    rows: dict[str, int],
    parents: dict[str, list[str]],
    last_child: dict[str, int],
    lanes: dict[str, int],
    width: int,
) -> str:
    row, middle = rows[node.key], ROW_HEIGHT // 2

    def x(key: str) -> int:
        return LANE_WIDTH * lanes[key] + 11

    paths = []
    for key, start in rows.items():
        if start < row < last_child[key]:  # passes by
            paths.append(f"M{x(key)} 0V{ROW_HEIGHT}")
        elif start == row < last_child[key]:  # begins here
            paths.append(f"M{x(key)} {middle}V{ROW_HEIGHT}")
    for parent in parents[node.key]:
        here, there = x(node.key), x(parent)
        paths.append(f"M{there} 0C{there} {middle * 0.7:.0f} {here} {middle * 0.3:.0f} {here} {middle}")
    lines = "".join(f'<path d="{path}" fill="none" stroke="{MUTED}" stroke-width="2"/>' for path in paths)
    return (
        f'<svg width="{width}" height="{ROW_HEIGHT}" viewBox="0 0 {width} {ROW_HEIGHT}" aria-hidden="true" '
        f'xmlns="http://www.w3.org/2000/svg">{lines}'
        f'<circle cx="{x(node.key)}" cy="{middle}" r="6" fill="{PRETRAINED}"/></svg>'
    )

"""Where the marks of small drawings lie: the verdict's interval and the lineage's rails, drawn by `pictures.html`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.report.context import LineageNode
from pipeline.statistics.efficiency import SIGNS, RatioKind
from pipeline.statistics.estimate import Estimate

ROW_HEIGHT = 64  # pixels of one lineage row, as in page.css and pictures.html
LANE_WIDTH = 16


@dataclass(frozen=True)
class Gauge:
    """Marks on a line from 14 to 426 pixels."""

    ratio: Estimate
    sign: str  # of what is not exact
    low: float
    value: float
    high: float
    one: float  # as fast
    target: float


@dataclass(frozen=True)
class Rail:
    """What is drawn beside one row of the lineage."""

    node: LineageNode
    parents: tuple[str, ...]  # titles
    x: int  # pixels: of its dot
    width: int
    paths: tuple[str, ...]  # SVG path data of the lines through the row


def ratio_gauge(ratio: Estimate, kind: RatioKind, target: float) -> Gauge:
    """The interval of the ratio against 0, "as fast" (1) and the target; what is beyond three times ends the line."""
    end = min(max(ratio.high, target, 1.0) * 1.15, max(3.0, 1.15 * target, 1.15 * ratio.value))

    def x(value: float) -> float:
        return 14 + 412 * min(max(value, 0.0), end) / end

    return Gauge(ratio, SIGNS[kind], x(ratio.low), x(ratio.value), x(ratio.high), x(1.0), x(target))


def lineage_rails(nodes: Sequence[LineageNode]) -> tuple[Rail, ...]:
    """One row a node, parents above children, as `git log --graph` draws it.

    A node keeps its lane down to its last child, so no line runs through a node that it has nothing to do with.
    Parents that are not among the nodes are left out of the drawing; runs that stand in the same place, such as the
    seeds of an arm, share a row.
    """
    nodes = grouped(nodes)
    rows = {node.key: row for row, node in enumerate(nodes)}
    parents = {n.key: [p for p in n.parents if p in rows and rows[p] < rows[n.key]] for n in nodes}
    below = {key: [rows[n.key] for n in nodes if key in parents[n.key]] for key in rows}
    last_child = {key: max(children, default=rows[key]) for key, children in below.items()}
    x: dict[str, int] = {}  # of a node's lane
    free_from: dict[int, int] = {}  # lane -> first row in which it is free
    for key, row in rows.items():
        lane = next(i for i in range(len(nodes) + 1) if free_from.get(i, 0) <= row)
        x[key] = LANE_WIDTH * lane + 11
        # subtle: a lane whose owner ends here may be taken over by the child that ends it, and by nobody else before
        free_from[lane] = max(last_child[key], row + 1)
    middle, rails = ROW_HEIGHT // 2, []
    for row, node in enumerate(nodes):
        here, of_node = x[node.key], parents[node.key]
        passing = [f"M{x[key]} 0V{ROW_HEIGHT}" for key, start in rows.items() if start < row < last_child[key]]
        beginning = [f"M{here} {middle}V{ROW_HEIGHT}"] if row < last_child[node.key] else []
        joining = [f"M{x[p]} 0C{x[p]} {middle * 0.7:.0f} {here} {middle * 0.3:.0f} {here} {middle}" for p in of_node]
        titles = tuple(nodes[rows[parent]].title for parent in of_node)
        width = LANE_WIDTH * len(free_from) + 4
        rails.append(Rail(node, titles, here, width, (*passing, *beginning, *joining)))
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

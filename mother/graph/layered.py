"""Layered drawings of families: each model right of all its parents, long edges led around the names between.

Layers are longest ways from the roots. The order within layers and the rows are those of fast-sugiyama (Sugiyama's
method; Brandes and Koepf's coordinates). Page, static picture and figures share them.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mother.graph.model_graph import ModelGraph

SEPARATORS = "/-_. "
LONGEST = 48  # characters of a name that are drawn
LEAST = 4  # characters that a common beginning must have to be left out


@dataclass(frozen=True)
class Family:
    """The drawing of one family. A place is (column, row); two names of one column are one row apart or more."""

    name: str  # its first root
    members: list[str]
    place: dict[str, tuple[int, float]]
    bends: dict[tuple[str, str], list[tuple[int, float]]]  # of edges over more than one column: a place for each

    @property
    def rows(self) -> float:
        """Height of the drawing."""
        ends = [row for _, row in self.place.values()] + [row for way in self.bends.values() for _, row in way]
        return 1 + max(ends, default=0.0)

    @property
    def columns(self) -> int:
        """Width of the drawing."""
        return 1 + max((column for column, _ in self.place.values()), default=0)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def free_place(
    places: Iterable[tuple[float, float]], half: tuple[float, float], taken: list[Box], left: float, right: float
) -> tuple[float, float] | None:
    """The first place at which a text of half a width and half a height lies on none that is there; it is then taken.

    None where there is no such place between `left` and `right`.
    """
    for x, y in places:
        box = (x - half[0], y - half[1], x + half[0], y + half[1])
        free = all(box[0] > b[2] or box[2] < b[0] or box[1] > b[3] or box[3] < b[1] for b in taken)
        if free and box[0] > left and box[2] < right:
            taken.append(box)
            return x, y
    return None


def _columns(members: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Longest way from a root; a root whose children stand further right stands before the first of them."""
    import networkx as nx

    graph = nx.DiGraph(edges)
    graph.add_nodes_from(members)
    column = {node: at for at, layer in enumerate(nx.topological_generations(graph)) for node in layer}
    for node in members:
        below = list(graph.successors(node))
        if below and not graph.in_degree(node):
            column[node] = min(column[child] for child in below) - 1
    return column


def layered(name: str, members: Sequence[str], edges: Sequence[tuple[str, str]]) -> Family:
    """The drawing of a family whose edges close no circle."""
    if not edges:
        return Family(name, list(members), {model: (0, float(at)) for at, model in enumerate(members)}, {})
    from fast_sugiyama import from_edges

    column = _columns(members, edges)
    number = {model: at for at, model in enumerate(members)}
    steps, ways, dummies = [], {}, len(members)
    for parent, child in sorted(edges, key=lambda edge: (number[edge[0]], number[edge[1]])):
        way = list(range(dummies, dummies + column[child] - column[parent] - 1))
        dummies += len(way)
        ways[parent, child] = way
        line = [number[parent], *way, number[child]]
        steps += list(zip(line, line[1:]))
    rows: dict[int, float] = {}
    foot = 0.0
    for part in from_edges(steps, vertex_spacing=1.0, check_layout=False):
        drawn = dict(part[0] if isinstance(part, tuple) else part)
        top = min(x for x, _ in drawn.values())
        rows |= {node: foot + x - top for node, (x, _) in drawn.items()}
        foot = max(rows.values()) + 1.0
    for at in number.values():  # models without edges stand below
        if at not in rows:
            rows[at], foot = foot, foot + 1.0
    place = {model: (column[model], rows[number[model]]) for model in members}
    bends = {
        (parent, child): [(column[parent] + 1 + at, rows[dummy]) for at, dummy in enumerate(way)]
        for (parent, child), way in ways.items()
        if way
    }
    return Family(name, list(members), place, bends)


def families(graph: ModelGraph) -> tuple[list[Family], list[str]]:
    """All families, the largest first, and the models that have no relatives."""
    below: dict[str, list[str]] = {}
    for model, facts in graph.nodes.items():
        below.setdefault(facts["tree"], []).append(model)
    tree = {model: facts["tree"] for model, facts in graph.nodes.items()}
    inside: dict[str, list[tuple[str, str]]] = {}
    for edge in graph.edges:
        inside.setdefault(tree[edge.child], []).append((edge.parent, edge.child))
    children = {edge.child for edge in graph.edges}
    found, alone = [], []
    for number, members in below.items():
        if number not in inside:
            alone += members
            continue
        first = [model for model in members if model not in children and not graph.nodes[model].get("hidden")]
        found.append(layered((first or members)[0], members, inside[number]))
    return sorted(found, key=lambda one: -len(one.members)), alone


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names without the beginning that all of them have, cut where a word ends; very long ones without their middle."""
    start = min(names, default="")
    for name in names:
        while not name.startswith(start):
            start = start[:-1]
    while start and start[-1] not in SEPARATORS:
        start = start[:-1]
    if len(names) < 2 or len(start) < LEAST or any(len(name) <= len(start) for name in names):
        start = ""
    found = {name: f"…{name[len(start) :]}" if start else name for name in names}
    return {
        name: text if len(text) <= LONGEST else f"{text[: LONGEST - 19]}…{text[-18:]}" for name, text in found.items()
    }


def labels(graph: ModelGraph) -> dict[str, str]:
    """What stands beside each model: its short name; copies are counted elsewhere, so that no two names are joined."""
    there = [model for model, facts in graph.nodes.items() if not facts.get("hidden")]
    return short_names(there) | {model: "not here" for model, facts in graph.nodes.items() if facts.get("hidden")}


def width_of(text: str) -> float:
    """Width of a text in heights of its letters, at most, in an ordinary font."""
    return sum(1.05 if unicodedata.east_asian_width(c) in "WF" else 0.64 for c in text)

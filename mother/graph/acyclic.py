"""No model is above its own ancestors: circles among edges, and the error where a graph has one."""

from collections.abc import Hashable, Iterable
from graphlib import CycleError, TopologicalSorter


def find_circle(edges: Iterable[tuple[Hashable, Hashable]]) -> list[tuple[Hashable, Hashable]]:
    """The (parent, child) edges of one circle, always the same one for the same edges in the same order; else none."""
    above: dict[Hashable, list[Hashable]] = {}
    for parent, child in edges:
        above.setdefault(child, []).append(parent)
    try:
        TopologicalSorter(above).prepare()
    except CycleError as error:
        nodes = error.args[1]  # each is a predecessor of the next, and the first is the last
        return list(zip(nodes, nodes[1:]))
    return []


def require_acyclic(edges: Iterable[tuple[Hashable, Hashable]]) -> None:
    """Raises ValueError, which names the models, where (parent, child) edges close a circle."""
    circle = find_circle(edges)
    if circle:
        path = " -> ".join(str(parent) for parent, _ in [*circle, circle[0]])
        raise ValueError(f"a model is above its own ancestors: {path}")


def descents(edges: Iterable[tuple[Hashable, Hashable]]) -> set[tuple[Hashable, Hashable]]:
    """All (ancestor, descendant) of (parent, child) edges without a circle. Raises ValueError where there is one."""
    edges = list(edges)
    require_acyclic(edges)
    above: dict[Hashable, set[Hashable]] = {}
    for parent, child in edges:
        above.setdefault(child, set()).add(parent)
    found: dict[Hashable, set[Hashable]] = {}
    for node in TopologicalSorter(above).static_order():
        found[node] = set().union(*({parent} | found[parent] for parent in above.get(node, ())))
    return {(ancestor, node) for node, ancestors in found.items() for ancestor in ancestors}

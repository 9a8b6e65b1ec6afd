"""No model is above its own ancestors: circles among edges, trees without, and the error where a graph has one."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

Pair = tuple[int, int]  # (parent, child)


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


def without_circles(
    best: Callable[[Sequence[Pair]], tuple[dict[int, int], float]],
    known: Sequence[Pair],
    possible: Callable[[Pair], bool] = lambda edge: True,
) -> tuple[dict[int, int], list[Pair]]:
    """The best tree, [child] -> parent, that closes no circle with `known` edges, and the edges that it does without.

    A merge has more parents than a tree tells. Of each circle that they close the edge that the tree can best do
    without is ruled out. `best` gives the tree and its log weight where some edges are ruled out; an edge that is not
    `possible` is none of the tree, and stands for having no parent.
    """

    def on_circle(tree: dict[int, int]) -> list[Pair]:
        named = [(parent, child) for child, parent in tree.items()]
        circle = set(find_circle([*known, *named])) - set(known)
        return [edge for edge in named if edge in circle and possible(edge)]

    banned: list[Pair] = []
    tree, _ = best(banned)
    while edges := on_circle(tree):
        without = {edge: best([*banned, edge]) for edge in edges}
        banned.append(max(edges, key=lambda edge: without[edge][1]))
        tree, _ = without[banned[-1]]
    # Where two models are nearly equal the one takes the place of the other, and closes the same circle. Once another
    # edge of it is impossible, the first may be possible again.
    for edge in banned[:-1]:
        others = [other for other in banned if other != edge]
        again, _ = best(others)
        if not on_circle(again):
            tree, banned = again, others
    return tree, banned

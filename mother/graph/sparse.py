"""Trees of a sparse directed graph: the cheapest forest (Edmonds in O(E log V)), and probabilities of its edges."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mother.graph.arborescence import edge_marginals
from mother.numeric.branchings import cheapest_edges

EXACT = 500  # budget: models of a component whose probabilities are exact, by edge_marginals in O(n^3): 1 s


@dataclass(frozen=True)
class Edges:
    """Edges parent[e] -> child[e] with a value each, among `models` models."""

    models: int
    parent: Int[np.ndarray, "edges"]
    child: Int[np.ndarray, "edges"]
    value: Float[np.ndarray, "edges"]

    def components(self) -> Int[np.ndarray, "models"]:
        """Which models are joined by edges, in whatever direction: labels 0, 1, ..."""
        ones = coo_matrix((np.ones(len(self.child)), (self.parent, self.child)), (self.models, self.models))
        return connected_components(ones, directed=False)[1].astype(np.int64)


def minimum_spanning_forest(
    cost: Edges, root_price: Float[np.ndarray, "models"] | None = None
) -> Int[np.ndarray, "models"]:
    """Parent of each model in the cheapest forest among those of the fewest trees; -1 for a root. O(E log V).

    `root_price` is what a model costs as a root. Loops are ignored; of several edges between two models the cheapest
    counts. Of equally cheap forests one is chosen, always the same for the same edges in the same order.
    Raises ValueError for a cost that is not finite, or a model that is none.
    """
    if not np.isfinite(cost.value).all():
        raise ValueError("every edge must have a finite cost")
    ends = np.concatenate([cost.parent, cost.child])
    if len(ends) and not (0 <= ends.min() and ends.max() < cost.models):
        raise ValueError(f"an edge has an end that is none of the {cost.models} models")
    order = np.lexsort((cost.value, cost.child))
    start = np.searchsorted(cost.child[order], np.arange(cost.models + 1))
    price = np.zeros(cost.models) if root_price is None else np.asarray(root_price, dtype=np.float64)
    source = cost.parent[order].astype(np.int64)
    chosen = cheapest_edges(start, source, cost.value[order].astype(np.float64), price)
    return np.where(chosen >= 0, source[chosen.clip(0)] if len(source) else -1, -1)


@dataclass(frozen=True)
class Forest:
    """The most probable forest. Of model j: its parent (-1: a root) and probabilities.

    adjacency   that j and its parent are parent and child, in either direction; 1 for a root
    arrow       that the arrow points to j, given that; 1 for a root
    root        that j is the root of its tree
    exact       whether these are exact, by the Matrix-Tree theorem, or local (see `_local`)
    """

    parent: Int[np.ndarray, "models"]
    adjacency: Float[np.ndarray, "models"]
    arrow: Float[np.ndarray, "models"]
    root: Float[np.ndarray, "models"]
    exact: Bool[np.ndarray, "models"]


def most_probable_forest(
    log_weight: Edges, largest: int = EXACT, parent: Int[np.ndarray, "models"] | None = None
) -> Forest:
    """The most probable tree of each component, with probabilities that are exact up to `largest` models, else local.

    A component in which no tree reaches all models has several roots, and local probabilities. `parent` is a forest of
    these edges that is taken instead.
    """
    n = log_weight.models
    if parent is None:
        parent = minimum_spanning_forest(Edges(n, log_weight.parent, log_weight.child, -log_weight.value))
    forest = Forest(parent, np.ones(n), np.ones(n), np.zeros(n), np.zeros(n, dtype=bool))
    labels = log_weight.components()
    order, of_edge = np.argsort(labels, kind="stable"), np.argsort(labels[log_weight.child], kind="stable")
    ends = np.searchsorted(labels[order], np.arange(labels.max(initial=-1) + 2))
    edge_ends = np.searchsorted(labels[log_weight.child][of_edge], np.arange(len(ends)))
    rest = []
    for label in range(len(ends) - 1):
        members, edges = order[ends[label] : ends[label + 1]], of_edge[edge_ends[label] : edge_ends[label + 1]]
        if len(members) <= largest and (parent[members] < 0).sum() == 1:
            _exact(log_weight, members, edges, forest)
        else:
            rest.append(members)
    if rest:
        _local(log_weight, np.sort(np.concatenate(rest)), forest)
    return forest


@dataclass(frozen=True)
class Shares:
    """Of each edge the probability that it is in the forest, of each model that it is a root; and which are exact."""

    edge: Float[np.ndarray, "edges"]
    root: Float[np.ndarray, "models"]
    exact: Bool[np.ndarray, "models"]


def edge_shares(log_weight: Edges, forest: Forest, largest: int = EXACT) -> Shares:
    """Probabilities of all edges, of which there is one at most from one model to another.

    Exact in components of at most `largest` models that some tree reaches all of. Elsewhere `forest` is taken for true:
    of the parents that a model could have without closing a circle each has its share.
    """
    n = log_weight.models
    shares = Shares(np.zeros(len(log_weight.child)), forest.root.copy(), np.zeros(n, dtype=bool))
    labels = log_weight.components()
    order, of_edge = np.argsort(labels, kind="stable"), np.argsort(labels[log_weight.child], kind="stable")
    ends = np.searchsorted(labels[order], np.arange(labels.max(initial=-1) + 2))
    edge_ends = np.searchsorted(labels[log_weight.child][of_edge], np.arange(len(ends)))
    place = np.zeros(n, dtype=np.int64)
    for label in range(len(ends) - 1):
        members, edges = order[ends[label] : ends[label + 1]], of_edge[edge_ends[label] : edge_ends[label + 1]]
        if len(members) <= largest and (forest.parent[members] < 0).sum() == 1:
            place[members] = np.arange(len(members))
            i, j = place[log_weight.parent[edges]], place[log_weight.child[edges]]
            dense = np.full((len(members), len(members)), -np.inf)
            dense[i, j] = log_weight.value[edges]
            probability, shares.root[members], _ = edge_marginals(dense)
            shares.edge[edges], shares.exact[members] = probability[i, j], True
    some = np.flatnonzero(~shares.exact[log_weight.child] & (log_weight.parent != log_weight.child))
    some, odds, total = _against_own(log_weight, some, forest.parent)
    shares.edge[some] = odds / total[log_weight.child[some]].clip(1)
    return shares


def _against_own(
    log_weight: Edges, some: Int[np.ndarray, "some"], parent: Int[np.ndarray, "models"]
) -> tuple[Int[np.ndarray, "above"], Float[np.ndarray, "above"], Float[np.ndarray, "models"]]:
    """Of some edges those from no descendant of their child, what each weighs over the child's own, and their sums."""
    order, size = _tree_order(parent)
    at = np.empty(len(order), dtype=np.int64)
    at[order] = np.arange(len(order))
    i, j, value = log_weight.parent[some], log_weight.child[some], log_weight.value[some]
    own = np.full(log_weight.models, -np.inf)
    mine = i == parent[j]
    np.maximum.at(own, j[mine], value[mine])
    above = ~((at[i] >= at[j]) & (at[i] < at[j] + size[j])) & np.isfinite(own[j])
    odds = np.exp((value[above] - own[j[above]]).clip(None, 700))
    total = np.zeros(log_weight.models)
    np.add.at(total, j[above], odds)
    return some[above], odds, total


def _exact(
    log_weight: Edges, members: Int[np.ndarray, "members"], edges: Int[np.ndarray, "some"], forest: Forest
) -> None:
    """Fill in the exact probabilities of one component."""
    place = {int(member): at for at, member in enumerate(members)}
    dense = np.full((len(members), len(members)), -np.inf)
    from_, to = (
        np.array([place[int(end)] for end in ends[edges]], int) for ends in (log_weight.parent, log_weight.child)
    )
    np.maximum.at(dense, (from_, to), log_weight.value[edges])
    probability, roots, _ = edge_marginals(dense)
    forest.root[members], forest.exact[members] = roots, True
    child = members[forest.parent[members] >= 0]
    i, j = [place[int(one)] for one in forest.parent[child]], [place[int(one)] for one in child]
    forth, back = probability[i, j], probability[j, i]
    forest.adjacency[child] = (forth + back).clip(0, 1)
    forest.arrow[child] = forth / (forth + back).clip(1e-300)


def _tree_order(parent: Int[np.ndarray, "models"]) -> tuple[list[int], Int[np.ndarray, "models"]]:
    """Models so that each comes before its descendants, which follow at once; and the size of each subtree."""
    children: list[list[int]] = [[] for _ in parent]
    for child in np.flatnonzero(parent >= 0).tolist():
        children[parent[child]].append(child)
    order, stack = [], np.flatnonzero(parent < 0).tolist()
    while stack:
        order.append(stack.pop())
        stack += children[order[-1]]
    size = np.ones(len(parent), dtype=np.int64)
    for one in reversed(order):
        if parent[one] >= 0:
            size[parent[one]] += size[one]
    return order, size


def _local(log_weight: Edges, members: Int[np.ndarray, "members"], forest: Forest) -> None:
    """Fill in local probabilities: each is exact where all else of the most probable tree is taken for true. O(E).

    Adjacency: of the parents that a model could have instead without closing a circle, the share of its own. Arrows and
    roots: the undirected tree is kept, and each of its models may be the root, which turns the edges on the way there.
    """
    parent, inside = forest.parent, np.zeros(log_weight.models, dtype=bool)
    inside[members] = True
    order, _ = _tree_order(parent)
    some = np.flatnonzero(inside[log_weight.child] & (log_weight.parent != log_weight.child))
    i, j, value = log_weight.parent[some], log_weight.child[some], log_weight.value[some]
    own, back = np.full(log_weight.models, -np.inf), np.full(log_weight.models, -np.inf)
    mine, turned = i == parent[j], parent[i] == j
    np.maximum.at(own, j[mine], value[mine])
    np.maximum.at(back, i[turned], value[turned])
    total = _against_own(log_weight, some, parent)[2]
    has = inside & (parent >= 0)
    forest.adjacency[has] = 1 / total[has].clip(1)
    gain = np.where(np.isfinite(own), back, -np.inf) - np.where(np.isfinite(own), own, 0)
    _turn(order, parent, gain, inside, forest)


def _turn(
    order: Sequence[int],
    parent: Int[np.ndarray, "models"],
    gain: Float[np.ndarray, "models"],
    inside: Bool[np.ndarray, "models"],
    forest: Forest,
) -> None:
    """Roots and arrows of the trees: `gain[j]` is what turning the edge above j adds to the log weight of its tree."""
    below, odds = np.zeros(len(parent)), np.zeros(len(parent))  # log sums over roots at or below, against the one here
    for one in reversed(order):
        if parent[one] >= 0 and inside[one]:
            below[parent[one]] = np.logaddexp(below[parent[one]], gain[one] + below[one])
    top = np.zeros(len(parent))
    for one in order:
        if not inside[one]:
            continue
        if parent[one] < 0:
            top[one] = below[one]
        else:
            odds[one], top[one] = odds[parent[one]] + gain[one], top[parent[one]]
            forest.arrow[one] = -np.expm1(min(odds[one] + below[one] - top[one], 0.0))
        forest.root[one] = np.exp(odds[one] - top[one])

"""The most probable tree of a large family from the offers of all its blocks, as method "map" has it of a small one."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mother.graph.acyclic import find_circle
from mother.graph.certainty import KNOWN
from mother.graph.model_graph import HIDDEN_EDGE, Edge
from mother.graph.sparse import EXACT, edge_shares, minimum_spanning_forest, most_probable_forest
from mother.heritage.trees import hang, hidden_name
from mother.heritage.typed_graph import POSSIBLE
from mother.index.exact import Exact, read_exact
from mother.index.offers import Offers, by_exact, prefer_casts, read_offers, with_priors, without_ancestors

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Tree:
    """Of each model: its parent in the tree (-1: none), the offer, probabilities, and whether these are exact.

    `absent` is the probability that its parent is not there: that it is the root, or hangs beside another one.
    """

    parent: Int[np.ndarray, "models"]
    offer: Int[np.ndarray, "models"]
    adjacency: Float[np.ndarray, "models"]
    arrow: Float[np.ndarray, "models"]
    absent: Float[np.ndarray, "models"]
    exact: Bool[np.ndarray, "models"]
    share: Float[np.ndarray, "offers"]  # that an offer is the parent


def likeliest_tree(offers: Offers, largest: int = EXACT) -> Tree:
    """The tree in which most models are expected to hang where they do; of a large component the most probable one."""
    both = offers.both()
    forest = most_probable_forest(both, 0)
    shares = edge_shares(both, forest, largest)
    if shares.exact.any():
        best = minimum_spanning_forest(replace(both, value=-shares.edge), -shares.root)
        parent = np.where(shares.exact, best, forest.parent)
    else:
        parent = forest.parent
    of_parent = offers.by_parent()
    share = shares.edge * of_parent
    back = offers.back(share)
    offer = np.full(offers.models, -1)
    mine = np.flatnonzero(offers.parent == parent[offers.child])
    offer[offers.child[mine]] = mine
    has = np.flatnonzero(offer >= 0)
    chosen = offer[has]
    adjacency, arrow = forest.adjacency.copy(), forest.arrow.copy()
    adjacency[has] *= of_parent[chosen]
    sure = shares.exact[has]
    adjacency[has[sure]] = (share + back)[chosen[sure]].clip(0, 1)
    arrow[has[sure]] = (share / (share + back).clip(1e-300))[chosen[sure]]
    beside = np.bincount(offers.child, shares.edge - share, offers.models)
    # Local shares are those of a model that is no root.
    absent = shares.root + np.where(shares.exact, 1, 1 - shares.root) * beside
    return Tree(parent, offer, adjacency, arrow, absent.clip(0, 1), shares.exact, share)


def acyclic_tree(offers: Offers, exact: Exact, largest: int) -> tuple[Offers, Tree]:
    """The tree of these offers, which closes no circle with the further parents of merges, and the offers left.

    Of each circle the least sure of the tree's edges is taken out.
    """
    while True:
        tree = likeliest_tree(offers, largest)
        named = [(int(parent), child) for child, parent in enumerate(tree.parent) if parent >= 0]
        merged = [(other, child) for parent, child in named if parent in exact.get(child, ()) for other in exact[child]]
        circle = find_circle([*named, *merged]) if merged else []
        if not circle:
            return offers, tree
        drop = [edge for edge in circle if tree.parent[edge[1]] == edge[0]]
        drop = [edge for edge in drop if edge[0] not in exact.get(edge[1], ())] or drop
        if not drop:  # merges of each other: no more than one parent of theirs is told
            for _, child in circle:
                exact.pop(child, None)
            continue
        least = min(drop, key=lambda edge: tree.adjacency[edge[1]])
        some = np.ones(len(offers.parent), dtype=bool)
        some[tree.offer[least[1]]] = False
        offers = offers.chosen(some)


def best_edges(
    nodes: dict[str, dict[str, Any]],
    ids: list[str],
    table: "pa.Table",
    largest: int = EXACT,
    copies: Mapping[str, str] = MappingProxyType({}),
) -> list[Edge]:
    """The edges of the tree of a family by what was traced of it, typed; fills in `nodes`, hidden ones as well.

    `copies` are models that some block took for those that they are copies of.
    """
    place = {one: at for at, one in enumerate(ids)}
    place |= {copy: place[original] for copy, original in copies.items() if original in place}
    exact, stored = read_exact(table, place)
    offers = with_priors(by_exact(read_offers(table, place), exact), largest)
    offers = without_ancestors(prefer_casts(offers, exact, stored), exact, stored.quantized)
    offers, tree = acyclic_tree(offers, exact, largest)
    above = {child: int(parent) for child, parent in enumerate(tree.parent.tolist()) if parent >= 0}
    below = {child for child in above if offers.beside[tree.offer[child]] > offers.as_parent[tree.offer[child]]}
    parents, hidden = hang(above, below, list(range(len(ids))))
    others = _others(offers, tree, ids)
    edges = []
    group = nodes[ids[0]].get("group") if ids else None
    for at, one in enumerate(ids):
        how = "exact" if tree.exact[at] else "local"
        nodes[one] |= {"root": round(float(tree.absent[at]), 4), "how": how}
        if parents.get(at, -1) in exact.get(at, ()):
            edges += [Edge(ids[other], one, facts | {"how": "exact relation"}) for other, facts in exact[at].items()]
        elif at in parents:
            facts = json.loads(table["facts"][int(offers.row[tree.offer[at]])].as_py())
            edges.append(Edge(ids[parents[at]], one, _tree_facts(tree, at, how) | facts | others(at, parents[at])))
    for one in hidden:
        name = hidden_name(one, ids)
        nodes[name] = {"tree": "", "group": group, "hidden": True}
        if one.parent is not None:
            edges.append(Edge(ids[one.parent], name, dict(HIDDEN_EDGE)))
        for child in one.children:
            facts = HIDDEN_EDGE | {"probability": round(float(tree.absent[child]), 4)} | others(child, -1)
            edges.append(Edge(name, ids[child], facts | stored.packed.get(child, {})))
    return edges


def _tree_facts(tree: Tree, at: int, how: str) -> dict[str, Any]:
    """The attributes of the edge into a model that probabilities give."""
    adjacency, arrow = round(float(tree.adjacency[at]), 4), round(float(tree.arrow[at]), 4)
    direction = "known" if arrow >= KNOWN else "unknown"
    return {"kind": None, "adjacency": adjacency, "arrow": arrow, "direction": direction, "how": how}


def _others(offers: Offers, tree: Tree, ids: list[str]) -> Any:
    """A function of a model and its parent: the attribute that lists other models that may be the parent as well."""
    some = np.flatnonzero(tree.share >= POSSIBLE)
    of_child: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for place in some.tolist():
        of_child[int(offers.child[place])].append((-float(tree.share[place]), int(offers.parent[place])))

    def listed(child: int, parent: int) -> dict[str, list[str]]:
        found = [ids[other] for _, other in sorted(of_child[child]) if other != parent]
        return {"or": found} if found else {}

    return listed

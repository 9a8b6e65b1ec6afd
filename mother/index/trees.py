"""The most probable tree of a large family from the offers of all its blocks, as method "map" has it of a small one."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mother.graph.acyclic import Pair, find_circle, without_circles
from mother.graph.model_graph import HIDDEN_EDGE, Edge, above_hidden, stated
from mother.graph.sparse import EXACT, Edges, edge_shares, minimum_spanning_forest, most_probable_forest
from mother.heritage.absent import chances_of
from mother.heritage.calibration import STANDS_IN
from mother.heritage.trees import NO_PARENT, below_first, hang, hidden_name
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


def likeliest_tree(offers: Offers, largest: int = EXACT, instead: Int[np.ndarray, "models"] | None = None) -> Tree:
    """The tree in which most models are expected to hang where they do; of a large component the most probable one.

    `instead` are the parents in a tree that is taken for this one.
    """
    both = offers.both()
    forest = most_probable_forest(both, 0, instead)
    shares = edge_shares(both, forest, largest)
    if instead is None and shares.exact.any():
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
    """The tree of these offers, which closes no circle with exact relations, and the offers left.

    As among all pairs, see mother/heritage/trees.py: the edges without which the most probable tree closes no circle
    are taken out; that tree is returned where the one of most right edges closes one.
    """
    known = [(parent, child) for child, parents in exact.items() for parent in parents]
    key, best = offers.key(), np.maximum(offers.as_parent, offers.beside)

    def left(banned: Sequence[Pair]) -> Bool[np.ndarray, "offers"]:
        return ~np.isin(key, [parent * offers.models + child for parent, child in banned])

    def most_probable(banned: Sequence[Pair]) -> tuple[dict[int, int], float]:
        some = left(banned)
        parent = minimum_spanning_forest(Edges(offers.models, offers.parent[some], offers.child[some], -best[some]))
        child = np.flatnonzero(parent >= 0)
        # Trees of fewest roots: another root is worse than all else.
        places = np.searchsorted(key, parent[child] * offers.models + child)
        weight = float(best[places].sum()) - NO_PARENT * (offers.models - len(child))
        return dict(zip(child.tolist(), parent[child].tolist())), weight

    parents, banned = without_circles(most_probable, known)
    offers = offers.chosen(left(banned))
    tree = likeliest_tree(offers, largest)
    if find_circle([*known, *((int(parent), child) for child, parent in enumerate(tree.parent) if parent >= 0)]):
        instead = np.array([parents.get(child, -1) for child in range(offers.models)])
        tree = likeliest_tree(offers, largest, instead)
    return offers, tree


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
    forth = dict(enumerate((tree.adjacency * tree.arrow).tolist()))
    tree = _doubting(tree, [child for _, child in below_first(parents, hidden, exact, forth)])
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
    absent = dict(enumerate(tree.absent.tolist()))
    for one in hidden:
        name = hidden_name(one, ids)
        nodes[name] = {"tree": "", "group": group, "hidden": True}
        there, each = chances_of(one, absent)
        if one.parent is not None:
            of_first = float(tree.adjacency[one.first]), float(tree.arrow[one.first])
            edges.append(Edge(ids[one.parent], name, above_hidden(*of_first, there)))
        for child in one.children:
            facts = HIDDEN_EDGE | {"adjacency": round(each[child], 4)} | others(child, -1)
            edges.append(Edge(name, ids[child], facts | stored.packed.get(child, {})))
    return edges


def _doubting(tree: Tree, children: list[int]) -> Tree:
    """The same, no surer than may be that these models are no siblings of what they hang from."""
    adjacency = tree.adjacency.copy()
    adjacency[children] = adjacency[children].clip(0, 1 - STANDS_IN)
    absent = (tree.absent + (tree.adjacency - adjacency) * tree.arrow).clip(0, 1)
    return replace(tree, adjacency=adjacency, absent=absent)


def _tree_facts(tree: Tree, at: int, how: str) -> dict[str, Any]:
    """The attributes of the edge into a model that probabilities give."""
    adjacency, arrow = round(float(tree.adjacency[at]), 4), round(float(tree.arrow[at]), 4)
    return {"kind": None, **stated(adjacency, arrow), "how": how}


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

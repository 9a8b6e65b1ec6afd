"""The most probable tree of a large family from the offers of all its blocks, as method "map" has it of a small one.

What depends on all of a family is done here, on edges alone: with which model one shares most entries, models in the
middle that another block knows, the prior for hubs, casts, and models that are not there.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mother.evidence.edges import STRUCTURE
from mother.graph.acyclic import descents, find_circle
from mother.graph.certainty import KNOWN
from mother.graph.model_graph import HIDDEN_EDGE, Edge
from mother.graph.sparse import EXACT, Edges, edge_shares, minimum_spanning_forest, most_probable_forest
from mother.heritage.calibration import EXACT_WEIGHT, elder_priors, hub_priors, read_coefficients, soft_arrow
from mother.heritage.casts import is_trained_in
from mother.heritage.trees import by_cast, hang, hidden_name
from mother.heritage.typed_graph import POSSIBLE
from mother.index.exact import Exact, read_exact
from mother.index.traced import OFFER

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Offers:
    """Edges that may be, of which there is one at most from one model to another: log weights as in `Weights`.

    `arrow` are log odds of the direction alone, nan where something exact decides. `row` is where each is in the table
    of what was traced.
    """

    models: int
    parent: Int[np.ndarray, "offers"]
    child: Int[np.ndarray, "offers"]
    as_parent: Float[np.ndarray, "offers"]
    beside: Float[np.ndarray, "offers"]
    arrow: Float[np.ndarray, "offers"]
    row: Int[np.ndarray, "offers"]

    def edges(self, value: Float[np.ndarray, "offers"]) -> Edges:
        """The same with one value each."""
        return Edges(self.models, self.parent, self.child, value)

    def both(self) -> Edges:
        """Log weights of either."""
        return self.edges(np.logaddexp(self.as_parent, self.beside))

    def by_parent(self) -> Float[np.ndarray, "offers"]:
        """Of the odds of each edge the share of those that it is from a parent that is there."""
        both = np.logaddexp(self.as_parent, self.beside)
        return np.exp(self.as_parent - np.where(np.isneginf(both), 0, both))

    def chosen(self, some: Bool[np.ndarray, "offers"]) -> "Offers":
        """Some of them."""
        arrays = (getattr(self, name)[some] for name in ("parent", "child", "as_parent", "beside", "arrow", "row"))
        return Offers(self.models, *arrays)

    def key(self, turned: bool = False) -> Int[np.ndarray, "offers"]:
        """A number for each (parent, child), or for (child, parent)."""
        one, other = (self.child, self.parent) if turned else (self.parent, self.child)
        return one * self.models + other

    @cached_property
    def turned(self) -> tuple[Bool[np.ndarray, "offers"], Int[np.ndarray, "offers"]]:
        """Of each edge whether it is there turned round, too, and where. Edges are in the order of their keys."""
        key, back = self.key(), self.key(turned=True)
        places = np.searchsorted(key, back).clip(0, max(0, len(key) - 1))
        return (key[places] == back if len(key) else np.zeros(0, bool)), places

    def back(self, value: Float[np.ndarray, "offers"], none: float = 0.0) -> Float[np.ndarray, "offers"]:
        """Of each edge the value of the same one turned round; `none` where that is not there."""
        there, places = self.turned
        return np.where(there, value[places], none)


@dataclass(frozen=True)
class Tree:
    """Of each model: its parent in the tree (-1: none), the offer, probabilities, and whether these are exact."""

    parent: Int[np.ndarray, "models"]
    offer: Int[np.ndarray, "models"]
    adjacency: Float[np.ndarray, "models"]
    arrow: Float[np.ndarray, "models"]
    root: Float[np.ndarray, "models"]
    exact: Bool[np.ndarray, "models"]
    share: Float[np.ndarray, "offers"]  # that an offer is the parent


def read_offers(table: "pa.Table", place: dict[str, int]) -> Offers:
    """The offers in a table of what was traced; of several of one edge that of its child's own block counts."""
    ends = [[place.get(one, -1) for one in table[name].to_pylist()] for name in ("parent", "child")]
    parent, child = (np.array(some, dtype=np.int64) for some in ends)
    is_offer = np.array([one == OFFER for one in table["what"].to_pylist()], dtype=bool)
    row = np.flatnonzero(is_offer & (parent >= 0) & (child >= 0) & (parent != child))
    names = ("weight", "beside", "between", "private", "arrow", "most", "own")
    columns = (table[name].to_numpy()[row].astype(np.float64) for name in names)
    weight, beside, between, private, told, most, own = columns
    parent, child = parent[row], child[row]
    order = np.lexsort((-own, child, parent))
    models = max(place.values(), default=-1) + 1
    key = (parent * max(1, models) + child)[order]
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.zeros(0, np.int64)
    # A model in the middle, or one that lacks what another has, may be in one of the blocks alone.
    middle, lacking = (np.maximum.reduceat(one[order], first) if len(first) else one for one in (between, private))
    largest = np.full(models, -np.inf)
    np.maximum.at(largest, child, most)
    slope, worth = (read_coefficients().structure[STRUCTURE.index(name)] for name in ("equality", "private"))
    kept = order[first]
    shift = slope * (most[kept] - largest[child[kept]])
    values = weight[kept] + shift, beside[kept] + shift, told[kept], row[kept]
    found = Offers(models, parent[kept], child[kept], *values)
    # A pair is one of two blocks', both ways alike.
    middle, lacking = (np.maximum(one, found.back(one, -np.inf)) for one in (middle, lacking))
    return replace(found, as_parent=found.as_parent + worth * lacking - middle, beside=found.beside - middle)


def with_priors(offers: Offers, largest: int) -> Offers:
    """The same with the priors of hubs and of elders, see mother/heritage/calibration.py."""
    both, coefficients = offers.both(), read_coefficients()
    edge = edge_shares(both, most_probable_forest(both, 0), largest).edge
    there, places = offers.turned
    once = (offers.parent < offers.child) | ~there
    number = np.cumsum(once) - 1
    pair = np.where(once, number, number[places])  # of each edge; a pair reads as the edge that counts it
    shares = (share + offers.back(share) for share in (edge * offers.by_parent(), edge))
    made, joined = (share[once] for share in shares)
    ends = offers.models, offers.parent[once], offers.child[once]
    hub, elder = hub_priors(*ends, made)[pair], np.where(once, 1, -1) * elder_priors(*ends, joined)[pair]
    older = np.log(soft_arrow(offers.arrow + coefficients.elder * elder)) - np.log(soft_arrow(offers.arrow))
    told = np.where(np.isnan(offers.arrow), 0, older) + coefficients.hub * hub
    return replace(offers, as_parent=offers.as_parent + told)


def prefer_casts(offers: Offers, exact: Exact, stored: dict[int, float]) -> Offers:
    """What is stored in the type of a cast comes from the cast, not from its original: see mother/heritage/trees.py."""
    key, value = offers.key(), offers.as_parent.copy()
    for cast, parents in exact.items():
        if any(facts["kind"] == "cast" and is_trained_in(facts["dtype"]) for facts in parents.values()):
            one = np.arange(*np.searchsorted(offers.parent, [cast, cast + 1]))
            child = offers.child[one]
            wanted = next(iter(parents)) * offers.models + child  # from the original
            other = np.searchsorted(key, wanted).clip(0, max(0, len(key) - 1))
            alike = np.array([stored.get(at) == stored.get(cast) for at in child.tolist()], dtype=bool)
            some = alike & (key[other] == wanted)
            value[one[some]], value[other[some]] = by_cast(value[one[some]], value[other[some]])
    return replace(offers, as_parent=value)


def by_exact(offers: Offers, exact: Exact) -> Offers:
    """The same, but into a model that an exact relation made that one alone, and none back.

    That of a merge has the weight of what is exact; of the others the blocks gave it.
    """
    firsts = {child: next(iter(parents)) for child, parents in exact.items()}
    key, told = offers.key(), np.isin(offers.child, list(exact))
    own = np.isin(key, [parent * offers.models + child for child, parent in firsts.items()])
    back = np.isin(key, [child * offers.models + parent for child, parent in firsts.items()])
    merges = [child for child, parent in firsts.items() if exact[child][parent]["kind"] == "merge"]
    value = offers.as_parent + EXACT_WEIGHT * (own & np.isin(offers.child, merges))
    beside = np.where(told, -np.inf, offers.beside)
    some = (own | ~told) & ~back & np.isfinite(np.maximum(value, beside))
    return replace(offers, as_parent=value, beside=beside).chosen(some)


def without_ancestors(offers: Offers, exact: Exact, quantized: list[int]) -> Offers:
    """The same without edges from what exact relations put below a model.

    No quantized model is made from another one, see mother/heritage/trees.py. As there the priors know of neither.
    """
    known = [(parent, child) for child, parents in exact.items() for parent in parents]
    above = [descendant * offers.models + ancestor for ancestor, descendant in descents(known)]
    of_another = np.isin(offers.parent, quantized) & np.isin(offers.child, quantized)
    of_another &= ~np.isin(offers.key(), [parent * offers.models + child for parent, child in known])
    value = np.where(of_another, -np.inf, offers.as_parent)
    some = ~np.isin(offers.key(), above) & np.isfinite(np.maximum(value, offers.beside))
    return replace(offers, as_parent=value).chosen(some)


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
    return Tree(parent, offer, adjacency, arrow, shares.root, shares.exact, share)


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
    exact, stored, quantized = read_exact(table, place)
    offers = with_priors(by_exact(read_offers(table, place), exact), largest)
    offers = without_ancestors(prefer_casts(offers, exact, stored), exact, quantized)
    offers, tree = acyclic_tree(offers, exact, largest)
    above = {child: int(parent) for child, parent in enumerate(tree.parent.tolist()) if parent >= 0}
    below = {child for child in above if offers.beside[tree.offer[child]] > offers.as_parent[tree.offer[child]]}
    parents, hidden = hang(above, below, list(range(len(ids))))
    others = _others(offers, tree, ids)
    edges = []
    group = nodes[ids[0]].get("group") if ids else None
    for at, one in enumerate(ids):
        how = "exact" if tree.exact[at] else "local"
        nodes[one] |= {"root": round(float(tree.root[at]), 4), "how": how}
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
            edges.append(Edge(name, ids[child], HIDDEN_EDGE | {"probability": round(float(tree.root[child]), 4)}))
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

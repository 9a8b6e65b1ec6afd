"""The parents that models of a large family may have, from what all its blocks tell, as log weights of edges.

What depends on all of a family is added here, on edges alone: with which model one shares most entries, models in the
middle that another block knows, exact relations, casts, the priors.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from mother.evidence.edges import STRUCTURE
from mother.graph.acyclic import descents
from mother.graph.sparse import Edges, edge_shares, most_probable_forest
from mother.heritage.calibration import EXACT_WEIGHT, elder_priors, hub_priors, read_coefficients, soft_arrow
from mother.heritage.casts import is_trained_in
from mother.heritage.trees import RECAST, by_twins
from mother.index.exact import Exact, Stored
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


def prefer_casts(offers: Offers, exact: Exact, stored: Stored) -> Offers:
    """Whether models come from a cast or from its original, by their types and by the rounding that they hold.

    As among all pairs, see `_prefer_casts` in mother/heritage/trees.py.
    """
    value, beside = offers.as_parent.copy(), offers.beside.copy()
    place = {pair: at for at, pair in enumerate(zip(offers.parent.tolist(), offers.child.tolist()))}
    originals = {child: next(iter(parents)) for child, parents in exact.items()}
    facts = {child: exact[child][parent] for child, parent in originals.items()}
    casts = {child for child, said in facts.items() if said["kind"] == "cast" and is_trained_in(said["dtype"])}
    for cast in sorted(casts):
        original = originals[cast]
        for one in range(*np.searchsorted(offers.parent, [cast, cast + 1]).tolist()):
            child = int(offers.child[one])
            other, bits = place.get((original, child)), stored.bits.get(child)
            ratio = stored.twins.get((cast, original, child))
            if other is None or (ratio is None and bits != stored.bits.get(cast)):
                continue
            recast = (bits == stored.bits.get(cast)) - (bits == stored.bits.get(original))
            value[one], value[other] = by_twins(value[one], value[other], RECAST * recast + (ratio or 0.0))
    for (twin, original, child), ratio in stored.twins.items():
        ends = [place.get((twin, child)), place.get((original, child))]
        if originals.get(twin) != original or None in ends:
            continue
        loss = [min(0.0, ratio), min(0.0, -ratio)]
        beside[ends] += loss
        if twin not in casts:
            value[ends] += loss
    return replace(offers, as_parent=value, beside=beside)


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

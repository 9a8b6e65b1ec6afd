"""The most probable tree of each cluster of related models."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import numpy as np
from jaxtyping import Float, Int

from mother.evidence.candidates import comparable_square
from mother.evidence.edges import Evidence, gather
from mother.evidence.facts import mantissa
from mother.evidence.first_pass import FirstPass
from mother.evidence.second_pass import SecondPass
from mother.graph.acyclic import descents, find_circle, without_circles
from mother.graph.arborescence import edge_marginals, minimum_spanning_arborescence
from mother.graph.certainty import KNOWN
from mother.heritage.absent import Hidden, hidden_name, under_absent
from mother.heritage.calibration import STANDS_IN, Coefficients, Weights, log_weights
from mother.heritage.casts import is_trained_in
from mother.heritage.quantized import is_quantized
from mother.heritage.relation import ABSENT_ORIGINAL, ABSENT_PARENT, Relation
from mother.heritage.relations import is_rough
from mother.heritage.terms import all_terms, changes, factors

NO_PARENT = 1e6  # log weight that a tree loses by each model that nothing it could hang from is left for
RECAST = 2.0  # log odds that a model was trained from the one of two twins that is stored as it is


@dataclass
class Cluster:
    """Recovered heritage of related models. Places are those of the first pass."""

    members: list[int]
    parents: dict[int, int]
    probability: Float[np.ndarray, "members members"]  # that i is the parent of j, by the Matrix-Tree theorem
    roots: Float[np.ndarray, "members"]  # that the parent is not there
    evidence: Evidence
    forced: dict[int, int]
    hidden: list[Hidden]
    coefficients: Coefficients
    adjusted: dict[str, Float[np.ndarray, "members members"]] = field(default_factory=dict)  # see `terms`

    @cached_property
    def terms(self) -> dict[str, Float[np.ndarray, "members members"]]:
        """What each evidence added to the log weights that the probabilities come from, and what was done after that.

        twins            by the rounding that a model holds, a cast in place of its original, or the reverse
        quantized        -inf: a quantized model is not made from another one
        circle           -inf: the edge would close one with the edges of exact relations
        absent parent    log of what the probability was multiplied by, which is no part of the log weight: who hangs
                         from the first of a tree may be its sibling (STANDS_IN)
        absent original  the same where the child is one of several quantizations of a model that is not there
        """
        return all_terms(self.evidence, self.coefficients, self.forced) | self.adjusted


@dataclass
class Heritage:
    """All that was found about a collection."""

    first_pass: FirstPass
    second_pass: SecondPass
    labels: Int[np.ndarray, "models"]
    aliases: dict[int, int]
    relations: dict[int, Relation]
    not_trained: set[int]
    clusters: list[Cluster]
    reused: float = 0.0  # seconds that earlier runs took for measurements that were read again
    row_scaled: dict[tuple[int, int], int | None] = field(default_factory=dict)  # see `row_scaled_ranks`
    twins: dict[tuple[int, int, int], float] = field(default_factory=dict)  # see `casts.twin_ratios`
    left_out: dict[str, str] = field(default_factory=dict)  # models that could not be used, and why
    absent: list[tuple[int, ...]] = field(default_factory=list)  # quantizations of one model, see `find_absent`
    matched: dict[str, str] = field(default_factory=dict)  # models whose matrices had other names, and how they matched

    def hidden_name(self, hidden: Hidden) -> str:
        """Id of a hidden ancestor."""
        return hidden_name(hidden, self.first_pass.models)


def recover_clusters(heritage: Heritage, coefficients: Coefficients) -> Heritage:
    """The trees of all clusters from what was measured, with these coefficients."""
    square = comparable_square(heritage.first_pass, turned=True)
    clusters = []
    for label in range(heritage.labels.max() + 1 if len(heritage.labels) else 0):
        places = np.flatnonzero(heritage.labels == label).tolist()
        members = [place for place in places if place not in heritage.aliases]
        if members:
            clusters.append(_recover_cluster(heritage, square, members, coefficients))
    return replace(heritage, clusters=clusters)


def _recover_cluster(
    heritage: Heritage, square: Float[np.ndarray, "models models"], members: list[int], coefficients: Coefficients
) -> Cluster:
    """Evidence, marginals and the most probable tree of one cluster."""
    evidence, forced = gather_all(heritage, square, members)
    facts, place = heritage.first_pass.facts, {member: at for at, member in enumerate(members)}
    weights = log_weights(evidence, coefficients, forced)
    stored = [mantissa(facts[member]) for member in members]
    ratios = {(place[c], place[o], place[j]): r for (c, o, j), r in heritage.twins.items() if {c, o, j} <= place.keys()}
    stages = {"": weights.parent.copy()}
    _prefer_casts(weights, cast_twins(heritage, members), stored, ratios)
    stages["twins"] = weights.parent.copy()
    none_of_another(weights.parent, [place[m] for m in members if is_quantized(facts[m])], forced)
    stages["quantized"] = weights.parent.copy()
    known = known_pairs(heritage, members)
    for ancestor, descendant in descents(known):  # no model is above its own ancestors
        weights = weights.without(place[descendant], place[ancestor])
    tree, weights = acyclic_tree(weights, [(place[parent], place[child]) for parent, child in known])
    stages["circle"] = weights.parent
    marginals, root, _ = edge_marginals(weights.both)
    probability = weights.parents(marginals)
    chances = {"": probability.copy()}
    tree = likeliest_edges(marginals, root, tree, members, known)
    parents, hidden = read_tree(tree, weights, members)
    exact = {child: heritage.relations[child].parents for child in members if child in heritage.relations}
    stated = {child: float(probability[place[parent], place[child]]) for child, parent in parents.items()}
    for parent, child in below_first(parents, hidden, exact, stated):
        ways = [place[parent], place[child]], [place[child], place[parent]]
        probability[ways] *= min(1.0, (1 - STANDS_IN) / max(probability[ways].sum(), 1e-300))
    chances[ABSENT_PARENT] = probability.copy()
    for group in heritage.absent:
        if set(group) <= place.keys():
            own = [place[child] for child in group]
            children = dict(zip(members, probability[:, own].sum(axis=1).tolist()))
            parents, hidden = under_absent(parents, hidden, known, group, children)
            for at, member in enumerate(members):  # what is made from one of them keeps the odds of its arrow
                probability[at, [one for one in own if parents.get(member) != members[one]]] = 0.0
    roots = (1 - probability.sum(axis=0)).clip(0, 1)
    adjusted = changes(stages) | factors(chances | {ABSENT_ORIGINAL: probability})
    return Cluster(members, parents, probability, roots, evidence, forced, hidden, coefficients, adjusted)


def below_first(
    parents: Mapping[int, int],
    hidden: Sequence[Hidden],
    exact: Mapping[int, Collection[int]],
    stated: Mapping[int, float],
) -> list[tuple[int, int]]:
    """(parent, child) of the edges that training made below what may be the first model of a tree, or below its casts.

    The parent may be one more child of a model that is absent: it is the one that moved least, and lies among its
    siblings much as their parent would. Where it is not known to come from the model above it (`stated`: how probable
    that is of each child), which of the two is the first is open. `exact` are the parents by exact relations.
    """
    under = {child for one in hidden if one.parent is not None for child in one.children}

    def is_first(place: int) -> bool:
        while len(made_from := exact.get(place, ())) == 1:
            place = next(iter(made_from))
        return place not in {*under, *exact} and (place not in parents or stated[place] < KNOWN)

    return [(parent, child) for child, parent in parents.items() if child not in exact and is_first(parent)]


def known_pairs(heritage: Heritage, members: list[int]) -> list[tuple[int, int]]:
    """(parent, child) of all exact relations of some models: of a merge all its parents."""
    relations = heritage.relations
    return [(parent, child) for child in members if child in relations for parent in relations[child].parents]


def cast_twins(heritage: Heritage, members: list[int]) -> list[tuple[int, int]]:
    """Casts among some models to a type that models are trained in, and their originals, as places among them."""
    place = {member: at for at, member in enumerate(members)}
    casts = (
        (child, one.parents[0])
        for child, one in heritage.relations.items()
        if one.kind == "cast" and is_trained_in(one.attributes["dtype"])
    )
    return [(place[cast], place[original]) for cast, original in casts if {cast, original} <= place.keys()]


def gather_all(
    heritage: Heritage, square: Float[np.ndarray, "models models"], members: list[int], core: set[int] | None = None
) -> tuple[Evidence, dict[int, int]]:
    """Evidence among some models, and the parents known exactly, as places among these; `core` is as in gather."""
    first_pass, relations, not_trained = heritage.first_pass, heritage.relations, heritage.not_trained
    made = not_trained | {place for place in members if place in relations}
    rounded = {place for place in not_trained if is_rough(first_pass, place)}
    altered = made - {place for place in members if place in relations and relations[place].kind == "merge"}
    evidence = gather(first_pass, heritage.second_pass, square, members, altered, rounded, core)
    place = {member: at for at, member in enumerate(members)}
    return evidence, {place[m]: place[relations[m].parents[0]] for m in members if m in relations}


def _prefer_casts(
    weights: Weights, casts: list[tuple[int, int]], stored: list[int], ratios: dict[tuple[int, int, int], float]
) -> None:
    """Tell whether a model comes from a cast or from its original, which differ by rounding alone.

    By the rounding that it holds, where that was measured, and by RECAST: training in a type begins with a cast to it.
    Changes `weights`; all places are of members, `casts` are pairs of a cast and its original, `ratios` are those of
    `twin_ratios`.
    """
    for cast, original in casts:
        for j, bits in enumerate(stored):
            ratio = ratios.get((cast, original, j))
            if j in (cast, original) or (ratio is None and bits != stored[cast]):
                continue
            own = RECAST * ((bits == stored[cast]) - (bits == stored[original])) + (ratio or 0.0)
            pair = [cast, original], j
            weights.parent[pair] = by_twins(*weights.parent[pair], own)
    for (twin, original, j), ratio in ratios.items():  # those of quantized models, too, which have no such prior
        loss = [min(0.0, ratio), min(0.0, -ratio)]
        weights.beside[[twin, original], j] += loss  # who holds the rounding is not beside the original
        if (twin, original) not in casts:
            weights.parent[[twin, original], j] += loss


Some = Float[np.ndarray, "*some"] | float


def by_twins(cast: Some, original: Some, odds: float) -> tuple[Some, Some]:
    """Log weights of a cast and of its original as parents of models, from the log odds that it is the cast."""
    best = np.maximum(cast, original)
    return best + min(0.0, odds), best - max(0.0, odds)


def none_of_another(
    weights: Float[np.ndarray, "members members"], quantized: list[int], forced: dict[int, int]
) -> None:
    """No quantized model is made from another one, unless its codes say so: two of an absent one are siblings.

    Changes `weights`.
    """
    for child in quantized:
        weights[[other for other in quantized if forced.get(child) != other], child] = -np.inf


def acyclic_tree(weights: Weights, known: list[tuple[int, int]]) -> tuple[dict[int, int], Weights]:
    """The most probable tree, [child] -> where it hangs, that closes no circle with the edges of exact relations.

    Places are among the members. Returns the weights without the edges that would close one, too.
    """

    def without(edges: Sequence[tuple[int, int]]) -> Weights:
        return reduce(lambda some, edge: some.without(*edge), edges, weights)

    def possible(edge: tuple[int, int]) -> bool:
        return bool(np.isfinite(weights.best[edge]))

    tree, banned = without_circles(lambda edges: best_tree(without(edges)), known, possible)
    return tree, without(banned)


def likeliest_edges(
    marginals: Float[np.ndarray, "members members"],
    root: Float[np.ndarray, "members"],
    tree: dict[int, int],
    members: list[int],
    known: list[tuple[int, int]],
) -> dict[int, int]:
    """The tree in which most models are expected to hang where they truly do, [child] -> where it hangs.

    The most probable tree is one of very many, and may be right in few places: this one has the largest sum of the
    probabilities of its edges and its root (Goodman 1996; Smith and Smith 2007). `tree`, which closes no circle with
    the edges of exact relations, is returned where this one does.
    """
    parents = minimum_spanning_arborescence(root[None, :] - marginals)
    found = {child: int(parent) for child, parent in enumerate(parents.tolist()) if parent >= 0}
    named = [(members[parent], members[child]) for child, parent in found.items()]
    return tree if find_circle([*known, *named]) else found


def best_tree(weights: Weights) -> tuple[dict[int, int], float]:
    """The tree of the largest log weight, [child] -> where it hangs, and this weight."""
    finite = np.where(np.isfinite(weights.best), weights.best, -NO_PARENT)
    np.fill_diagonal(finite, 0)
    parents = minimum_spanning_arborescence(-finite)
    child = np.flatnonzero(parents >= 0)
    return dict(zip(child.tolist(), parents[child].tolist())), float(finite[parents[child], child].sum())


def read_tree(tree: dict[int, int], weights: Weights, members: list[int]) -> tuple[dict[int, int], list[Hidden]]:
    """[child] -> parent, and the models that are not there, from where each model hangs and how.

    Models beside one another hang from one that is not there, which itself hangs where the first of them does. The
    first keeps its own parent: it may have been made from that one directly. Of the root nobody knows the parent.
    """
    below = {child for child, at in tree.items() if weights.beside[at, child] > weights.parent[at, child]}
    return hang(tree, below, members)


def hang(tree: dict[int, int], below: set[int], members: list[int]) -> tuple[dict[int, int], list[Hidden]]:
    """The same, where `below` are the models that hang beside another one, from one that is not there."""
    beside = {child: tree[child] for child in below}
    families: dict[int, list[int]] = {}
    for child in sorted(beside):
        first = beside[child]
        while first in beside:
            first = beside[first]
        families.setdefault(first, []).append(child)
    hidden = []
    for first, others in sorted(families.items()):
        children = others if first in tree else [first, *others]
        above = members[tree[first]] if first in tree else None
        ends = tuple(sorted(members[child] for child in children))
        hidden.append(Hidden(ends, above, first=members[first]))
    return {members[child]: members[at] for child, at in tree.items() if child not in beside}, hidden

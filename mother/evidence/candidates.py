"""Which pairs of models are worth a look: near ones, and those that join a cluster."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree

from mother.evidence.first_pass import FirstPass

CANDIDATES = 8  # budget: nearest models that may be a parent
NEIGHBOURS = 16  # budget: nearest models that a model in the middle, and the parents of a merge, are looked for among
SHARING = 3  # budget: models that share most tensors with one
HUBS = 2  # budget: models of a cluster that are nearest to most others
HUB_AMONG = 4  # budget: nearest models that count for that
MOST_HOLDERS = 64  # budget: models that may hold one tensor for it to say who belongs to whom
SMALL = 16  # budget: clusters of at most so many models: every pair is a candidate


def comparable_square(first_pass: FirstPass, turned: bool = False) -> Float[np.ndarray, "models models"]:
    """Squared distances, scaled up where only part of the entries could be compared; `turned`: without lengths."""
    square = first_pass.turned if turned else first_pass.square
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(first_pass.shared > 0, square / first_pass.shared, np.inf)


def _sharing(first_pass: FirstPass, places: list[int]) -> dict[int, list[int]]:
    """For each model of a cluster those that share most tensors with it: no training makes equal ones again."""
    holders: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place in places:
        for item in first_pass.facts[place].digests.items():
            holders[item].append(place)
    found = {}
    for place in places:
        # What most models hold (norms that never moved, fixed tables) tells nothing, and would cost n^2.
        count = Counter(
            other
            for item in first_pass.facts[place].digests.items()
            if len(holders[item]) <= MOST_HOLDERS
            for other in holders[item]
            if other != place
        )
        found[place] = [other for other, _ in count.most_common(SHARING)]
    return found


def _of_core(chosen: list[list[int]], core: set[int]) -> set[tuple[int, int]]:
    """Pairs of models of a core with those they chose, and pairs of two that one of them chose, if one chose the other.

    `chosen` are the candidates of each model.
    """
    asked: dict[int, set[int]] = defaultdict(set)  # of each model those of the core that chose it
    for one in core:
        for other in [one, *chosen[one]]:
            asked[other].add(one)
    return {(min(i, j), max(i, j)) for i, some in enumerate(chosen) for j in some if asked[i] & asked[j]}


def spanning_pairs(
    square: Float[np.ndarray, "models models"], allowed: Bool[np.ndarray, "models models"]
) -> list[tuple[int, int]]:
    """The edges of the minimum spanning tree of allowed pairs, or of one for each cluster, the smaller place first.

    No pair is among them that is farther apart than both of the two are from a third model, as most siblings are from
    their parent: such pairs are left out before.
    """
    near = np.where(allowed, square, np.inf)
    middle = near[np.median(near, axis=1).argmin()]  # distances of the model that is nearest to most others
    first, second = np.nonzero(np.triu(allowed & (near <= np.maximum.outer(middle, middle)), 1))
    weight = square[first, second] + np.finfo(float).tiny  # scipy takes a weight of 0 for no edge
    tree = minimum_spanning_tree(csr_matrix((weight, (first, second)), square.shape)).tocoo()
    return [(min(i, j), max(i, j)) for i, j in zip(tree.row.tolist(), tree.col.tolist())]


def candidate_pairs(
    first_pass: FirstPass,
    labels: Int[np.ndarray, "models"],
    aliases: dict[int, int],
    not_trained: set[int],
    core: set[int] | None = None,
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Pairs that may be edges, and the neighbours of each model, nearest first.

    Within a cluster: the nearest models that training may have made, the two nearest of the others, those that share
    most tensors, the hubs (models that are nearest to most others), the edges of the minimum spanning tree, and all
    pairs of small clusters. Whoever is added to a collection, the hubs and those that share tensors stay candidates.
    With a `core` the pairs of its models alone, and of two models that are candidates of one of them.
    """
    square = comparable_square(first_pass, turned=True)
    n = len(square)
    usable = np.array([k not in aliases for k in range(n)], dtype=bool)
    allowed = usable[:, None] & usable[None, :] & (labels[:, None] == labels[None, :]) & np.isfinite(square)
    np.fill_diagonal(allowed, False)
    sharing: dict[int, list[int]] = {}
    for label in np.unique(labels[usable]):
        sharing |= _sharing(first_pass, np.flatnonzero(usable & (labels == label)).tolist())
    hubs: dict[int, Counter] = defaultdict(Counter)
    # Whoever is allowed comes first.
    orders = np.where(allowed, square, np.inf).argsort(axis=1, kind="stable")
    for k in np.flatnonzero(usable).tolist():
        hubs[int(labels[k])].update(m for m in orders[k, :HUB_AMONG].tolist() if allowed[k, m])
    candidates, neighbours = [], []
    sizes = np.bincount(labels[usable], minlength=labels.max() + 1)
    trained = ~np.isin(np.arange(n), list(not_trained))
    most_near = {label: [m for m, _ in count.most_common(HUBS)] for label, count in hubs.items()}
    for k in range(n):
        order = orders[k, : int(allowed[k].sum())]
        near = order[trained[order]][:NEIGHBOURS].tolist()
        few = near[:CANDIDATES] + order[~trained[order]][:2].tolist() + sharing.get(k, [])
        few += most_near.get(int(labels[k]), [])
        candidates.append(order.tolist() if sizes[labels[k]] <= SMALL else [m for m in few if allowed[k, m]])
        neighbours.append(near)
    ends = spanning_pairs(square, allowed)
    if core is not None:
        return sorted(_of_core(candidates, core) | {pair for pair in ends if core.issuperset(pair)}), neighbours
    return sorted({(min(k, m), max(k, m)) for k, some in enumerate(candidates) for m in some} | {*ends}), neighbours


def third_models(
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    neighbours: Sequence[list[int]],
    core: set[int] | None = None,
) -> tuple[Int[np.ndarray, "asked"], Int[np.ndarray, "asked"]]:
    """All third models that pairs are compared with, ascending, and which pair each time; see `candidate_pairs`.

    The neighbours of both, and models that both are a pair with: of three models that are pairs each may lie between
    the other two, however many others crowd around these. Of pairs outside of the core only models of it.
    """
    n = len(neighbours)
    near, beside, inside = np.zeros((n, n), dtype=bool), np.zeros((n, n), dtype=bool), np.zeros(n, dtype=bool)
    for model, some in enumerate(neighbours):
        near[model, some] = True
    beside[first, second] = beside[second, first] = True
    asked = near[first] | near[second] | (beside[first] & beside[second])
    if core is not None:
        inside[list(core)] = True
        asked[np.ix_(~(inside[first] | inside[second]), ~inside)] = False
    return np.nonzero(asked.T)

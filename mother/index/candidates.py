"""Which models of a group may be parent and child, by their signatures: near ones, hubs, those that share tensors.

Distances are those of signatures of length 1, so that what changes the length of weights alone does not count. faiss
finds for each model the MANY nearest by the first COARSE values, which are a sample, too; all values say which K of
these are nearest. In a star of thousands of children siblings look as near as the base, but the base is the nearest of
most: every model is held against the models that are nearest to many of its relatives, too.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from mother.errors import InputError
from mother.index.related import scores

COARSE = 512  # budget: values of a signature that all pairs are compared by
MANY = 64  # budget: nearest models by these
K = 16  # budget: nearest models that are candidates
HUBS_SEEN, HUBS = 64, 4  # budget: hubs of a family that a model is held against, and the nearest that are candidates
FIRST_HUBS = 2  # budget: models that are nearest to most of a family: candidates of all of it
FLAT = 200_000  # budget: models of a group up to which the search is exact
CELLS_SEEN = 0.05  # budget: share of the cells that is searched above that
CHECKED = 256  # budget: models whose neighbours are searched exactly, too, to measure the recall
ROWS = 4096  # budget: pairs whose signatures are compared at a time
NEAR_MISS = 3.0  # score of signatures from which more is looked at: sketches tell whether two models are related
MISSES = 4  # budget: such pairs of a family and others, those of the largest scores
MOST_HOLDERS = 64  # budget: models that may hold one tensor for it to say who belongs to whom


@dataclass
class Near:
    """Pairs of models of a group: `square` is the squared distance of unit signatures, `z` the score of relatedness.

    `exact` says of which digests tell that they belong together.
    """

    first: Int[np.ndarray, "pairs"]
    second: Int[np.ndarray, "pairs"]
    square: Float[np.ndarray, "pairs"]
    z: Float[np.ndarray, "pairs"]
    recall: float = 1.0  # share of the MANY nearest that the search found, by measure; 1 where it is exact
    exact: Bool[np.ndarray, "pairs"] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if len(self.exact) != len(self.first):
            self.exact = np.zeros(len(self.first), dtype=bool)

    def chosen(self, some: np.ndarray) -> "Near":
        """Some of the pairs, by their places or by a mask."""
        arrays = (getattr(self, name)[some] for name in ("first", "second", "square", "z"))
        return Near(*arrays, self.recall, self.exact[some])


def _unit(signatures: Float[np.ndarray, "models samples"]) -> Float[np.ndarray, "models samples"]:
    """Signatures of length 1 in float32; one that is all zero stays so."""
    values = signatures.astype(np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", values, values))
    return values / np.where(length > 0, length, 1)[:, None]


def faiss_search(
    values: Float[np.ndarray, "models values"], count: int, flat: int = FLAT
) -> tuple[Int[np.ndarray, "models count"], float]:
    """The `count` nearest of each model, itself among them (-1: there are not so many), and the recall.

    Exact up to `flat` models, above by cells around centres (IVF). Raises InputError where faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise InputError("an index needs faiss, which is not installed. Install `mother[index]`.") from None
    n, width = values.shape
    values = np.ascontiguousarray(values - values.mean(axis=0))  # else float32 cancels
    count = min(count, n)
    exact = faiss.IndexFlatL2(width)
    if n <= flat:
        exact.add(values)
        return exact.search(values, count)[1], 1.0
    cells = int(4 * n**0.5)
    found = faiss.IndexIVFFlat(exact, width, cells)
    found.cp.max_points_per_centroid, found.cp.seed = 64, 1
    found.train(values)
    found.add(values)
    found.nprobe = max(1, int(cells * CELLS_SEEN))
    nearest = found.search(values, count)[1]
    some = np.random.default_rng(0).permutation(n)[:CHECKED]
    true = faiss.knn(values[some], values, count)[1]
    return nearest, float(np.mean([len(set(a) & set(b)) / count for a, b in zip(nearest[some], true)]))


def _compare(
    signatures: Float[np.ndarray, "models samples"],
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Float[np.ndarray, "pairs"]:
    """A measure of the unit signatures of pairs, some at a time."""
    found = np.empty(len(first))
    for at in range(0, len(first), ROWS):
        part = slice(at, at + ROWS)
        # Each model once, however many pairs it is in.
        some, places = np.unique(np.concatenate([first[part], second[part]]), return_inverse=True)
        units = _unit(signatures[some])
        found[part] = measure(units[places[: len(places) // 2]], units[places[len(places) // 2 :]])
    return found


def square_distance(
    one: Float[np.ndarray, "pairs samples"], other: Float[np.ndarray, "pairs samples"]
) -> Float[np.ndarray, "pairs"]:
    """Squared distances of pairs, by their differences, so that nothing cancels."""
    difference = one - other
    return np.einsum("ij,ij->i", difference, difference)


def _smallest(
    owner: Int[np.ndarray, "pairs"], value: Float[np.ndarray, "pairs"], count: int
) -> Bool[np.ndarray, "pairs"]:
    """Which pairs are among the `count` of the smallest value of their owner."""
    order = np.lexsort((value, owner))
    start = np.searchsorted(owner[order], owner[order])
    chosen = np.zeros(len(owner), dtype=bool)
    chosen[order] = np.arange(len(owner)) - start < count
    return chosen


def near_models(signatures: Float[np.ndarray, "models samples"], flat: int = FLAT) -> Near:
    """The K nearest of each model of a group, each pair once, by signatures in float16."""
    n = len(signatures)
    nearest, recall = faiss_search(_unit(signatures)[:, :COARSE], MANY + 1, flat)
    first, second = np.repeat(np.arange(n), nearest.shape[1]), nearest.ravel().astype(np.int64)
    some = (first != second) & (second >= 0)
    first, second = first[some], second[some]
    square = _compare(signatures, first, second, square_distance)
    some = _smallest(first, square, K)
    return _once(signatures, first[some], second[some], square[some], recall)


def _once(
    signatures: Float[np.ndarray, "models samples"],
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    square: Float[np.ndarray, "pairs"],
    recall: float = 1.0,
) -> Near:
    """Each pair once, the smaller place first, with its score."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    keep = _firsts(low, high)
    low, high = low[keep], high[keep]
    return Near(low, high, square[keep], _compare(signatures, low, high, scores), recall)


def _firsts(low: Int[np.ndarray, "pairs"], high: Int[np.ndarray, "pairs"]) -> Int[np.ndarray, "some"]:
    """The first place of each pair, in the order of pairs."""
    order = np.lexsort((high, low))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(low[order]) != 0) | (np.diff(high[order]) != 0)
    return order[new]


def hubs_of(near: Near, models: int) -> list[int]:
    """Models that are the nearest of others, those that are so of most first."""
    first, second = np.concatenate([near.first, near.second]), np.concatenate([near.second, near.first])
    nearest = _smallest(first, np.concatenate([near.square] * 2), 1)
    count = np.bincount(second[nearest], minlength=models)
    order = np.argsort(-count, kind="stable")
    return order[count[order] > 0].tolist()


def with_hubs(signatures: Float[np.ndarray, "models samples"], near: Near, labels: Int[np.ndarray, "models"]) -> Near:
    """The same and for each model the first hubs of its family, and of all of them those that are nearest to it."""
    of_label: dict[int, list[int]] = defaultdict(list)
    for hub in hubs_of(near, len(labels)):
        if len(some := of_label[int(labels[hub])]) < HUBS_SEEN:
            some.append(hub)
    pairs = [
        np.stack([np.repeat(members, len(hubs)), np.tile(hubs, len(members))])
        for label, hubs in of_label.items()
        if len(members := np.flatnonzero(labels == label)) > K
    ]
    if not pairs:
        return near
    first, second = np.concatenate(pairs, axis=1)
    first, second = first[first != second], second[first != second]
    square = _compare(signatures, first, second, square_distance)
    first_hubs = [hub for hubs in of_label.values() for hub in hubs[:FIRST_HUBS]]
    some = _smallest(first, square, HUBS) | np.isin(second, first_hubs)
    return joined(near, _once(signatures, first[some], second[some], square[some]))


def joined(one: Near, other: Near) -> Near:
    """The pairs of both, each once."""
    first, second, square, z, exact = (
        np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("first", "second", "square", "z", "exact")
    )
    order = np.argsort(~exact, kind="stable")  # of two that are one pair the exact one
    both = Near(first[order], second[order], square[order], z[order], min(one.recall, other.recall), exact[order])
    return both.chosen(np.sort(_firsts(both.first, both.second)))


def sharing_pairs(
    tensors: Integer[np.ndarray, "tensors"], owner: Integer[np.ndarray, "tensors"], most: int = 3
) -> list[tuple[int, int]]:
    """Pairs that share most tensors, `most` for each model: digests, and the model that each is of.

    No training makes a tensor equal to another. What more than MOST_HOLDERS hold, as norms that never moved, says
    nothing.
    """
    order = np.lexsort((owner, tensors))
    tensors, owner = tensors[order], owner[order]
    starts = np.flatnonzero(np.r_[True, tensors[1:] != tensors[:-1]]) if len(tensors) else np.zeros(0, int)
    sizes = np.diff(np.r_[starts, len(tensors)])
    shared: dict[int, Counter[int]] = defaultdict(Counter)
    for at in np.flatnonzero((sizes > 1) & (sizes <= MOST_HOLDERS)).tolist():
        some = owner[starts[at] : starts[at] + sizes[at]].tolist()
        for place in some:
            shared[place].update(other for other in some if other != place)
    pairs = {(place, other) for place, count in shared.items() for other, _ in count.most_common(most)}
    return sorted({(min(pair), max(pair)) for pair in pairs})


def with_pairs(
    signatures: Float[np.ndarray, "models samples"], near: Near, pairs: list[tuple[int, int]], exact: bool = False
) -> Near:
    """The same with these pairs, which digests tell if they are `exact`."""
    if not pairs:
        return near
    first, second = (np.array(ends, dtype=np.int64) for ends in zip(*pairs))
    more = _once(signatures, first, second, _compare(signatures, first, second, square_distance))
    more.exact[:] = exact
    return joined(near, more)


def near_misses(signatures: Float[np.ndarray, "models samples"], near: Near, labels: Int[np.ndarray, "models"]) -> Near:
    """Pairs of models of different families that may be related all the same: MISSES of each family at most.

    Beside the candidates the first hub of each family is held against those of all others, by all values.
    """
    order = np.r_[hubs_of(near, len(labels)), np.arange(len(labels))].astype(np.int64)
    hubs = order[np.unique(labels[order], return_index=True)[1]]
    nearest, _ = faiss_search(_unit(signatures[hubs]), MISSES + 1)
    first, second = np.repeat(hubs, nearest.shape[1]), hubs[nearest.ravel()]
    apart = labels[near.first] != labels[near.second]
    first, second = np.r_[near.first[apart], first], np.r_[near.second[apart], second]
    some = labels[first] != labels[second]
    first, second = np.minimum(first[some], second[some]), np.maximum(first[some], second[some])
    z = _compare(signatures, first, second, scores)
    order = np.argsort(-z, kind="stable")[: int((z > NEAR_MISS).sum())]
    first, second, z = first[order], second[order], z[order]
    ends = np.sort([labels[first], labels[second]], axis=0)
    once = _firsts(ends[0], ends[1])  # one pair of two families is enough
    twice = np.tile(once, 2)
    chosen = _smallest(labels[np.r_[first[once], second[once]]], -z[twice], MISSES).reshape(2, -1).any(axis=0)
    first, second, z = first[once][chosen], second[once][chosen], z[once][chosen]
    return Near(first, second, _compare(signatures, first, second, square_distance), z)

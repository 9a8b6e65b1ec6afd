"""Which pairs of models are worth a look: near ones, and those that join a cluster."""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.csgraph import minimum_spanning_tree

from mother.evidence.first_pass import FirstPass

CANDIDATES = 8  # budget: nearest models that may be a parent
NEIGHBOURS = 16  # budget: nearest models that a model in the middle, and the parents of a merge, are looked for among
SMALL = 12  # budget: clusters of at most so many models: every pair is a candidate


def comparable_square(first_pass: FirstPass) -> Float[np.ndarray, "models models"]:
    """Squared distances, scaled up where only part of the entries could be compared."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(first_pass.shared > 0, first_pass.square / first_pass.shared, np.inf)


def candidate_pairs(
    first_pass: FirstPass,
    labels: Int[np.ndarray, "models"],
    aliases: dict[int, int],
    not_trained: set[int],
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Pairs that may be edges, and the neighbours of each model, nearest first.

    Within a cluster: the nearest models that training may have made, the two nearest of the others, the edges of the
    minimum spanning tree, and all pairs of small clusters.
    """
    square = comparable_square(first_pass)
    n = len(square)
    usable = np.array([k not in aliases for k in range(n)], dtype=bool)
    allowed = usable[:, None] & usable[None, :] & (labels[:, None] == labels[None, :]) & np.isfinite(square)
    np.fill_diagonal(allowed, False)
    pairs: set[tuple[int, int]] = set()
    neighbours = []
    sizes = np.bincount(labels[usable], minlength=labels.max() + 1)
    for k in range(n):
        order = [int(m) for m in np.argsort(square[k], kind="stable") if allowed[k, m]]
        near = [m for m in order if m not in not_trained][:NEIGHBOURS]
        few = near[:CANDIDATES] + [m for m in order if m in not_trained][:2]
        chosen = order if sizes[labels[k]] <= SMALL else few
        pairs |= {(min(k, m), max(k, m)) for m in chosen}
        neighbours.append(near)
    tree = minimum_spanning_tree(np.where(allowed, square + np.finfo(float).tiny, 0)).tocoo()
    pairs |= {(min(i, j), max(i, j)) for i, j in zip(tree.row.tolist(), tree.col.tolist())}
    return sorted(pairs), neighbours

"""How well a recovered graph agrees with the truth."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

EdgeSet = set[tuple[str, str]]


def directed_accuracy(recovered: EdgeSet, truth: EdgeSet) -> float | None:
    """Share of the true (parent, child) edges that were recovered: the paper's score. None without edges."""
    return len(recovered & truth) / len(truth) if truth else None


def undirected_accuracy(recovered: EdgeSet, truth: EdgeSet) -> float | None:
    """The same without regard to the arrows."""
    either = recovered | {(child, parent) for parent, child in recovered}
    return len(either & truth) / len(truth) if truth else None


def kurtosis_accuracy(
    contradicts: Float[np.ndarray, "models models"], models: Sequence[str], truth: EdgeSet
) -> float | None:
    """Share of the true edges that kurtosis does not contradict (T[i, j] = 0): the direction by itself."""
    place = {model: row for row, model in enumerate(models)}
    right = [contradicts[place[parent], place[child]] == 0 for parent, child in truth]
    return float(np.mean(right)) if right else None


def match_labels(labels: Int[np.ndarray, "models"], truth: Int[np.ndarray, "models"]) -> Int[np.ndarray, "models"]:
    """Rename cluster labels to those of the true classes, one to one, so that most models agree.

    A cluster that is left without a class gets -1. The best of all permutations, which the authors' code
    tries one by one; found by the Hungarian method, it also works for many clusters.
    """
    names, columns = np.unique(truth, return_inverse=True)
    clusters, rows = np.unique(labels, return_inverse=True)
    agreement = np.zeros((len(clusters), len(names)), dtype=np.int64)
    np.add.at(agreement, (rows, columns), 1)
    renamed = np.full(len(clusters), -1)
    row, column = linear_sum_assignment(agreement, maximize=True)
    renamed[row] = names[column]
    return renamed[rows]


def cluster_accuracy(labels: Int[np.ndarray, "models"], truth: Int[np.ndarray, "models"]) -> float:
    """Share of models in the right cluster under the best naming of the clusters (as in the authors' code)."""
    return float((match_labels(labels, truth) == truth).mean())

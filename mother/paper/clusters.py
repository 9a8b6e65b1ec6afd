"""Which models share a tree, by the paper: Ward's clusters with K given."""

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform


def ward_clusters(distance: Float[np.ndarray, "models models"], clusters: int) -> Int[np.ndarray, "models"]:
    """Labels 0 .. K-1 (at most) by Ward's linkage on a symmetric distance matrix with zero diagonal.

    As in the authors' code the pairwise distances go to Ward's formula as they are, although it is derived
    for Euclidean ones. Fewer than K models give one cluster each.
    """
    if clusters < 1:
        raise ValueError(f"the number of clusters must be at least 1, not {clusters}")
    if not np.isfinite(distance).all():
        raise ValueError("distances must be finite")
    if len(distance) < 2:
        return np.zeros(len(distance), dtype=np.int64)
    tree = linkage(squareform(distance), method="ward")
    return fcluster(tree, clusters, criterion="maxclust").astype(np.int64) - 1

"""Which models are related, by signatures: the same control of errors as among sketches, over all pairs there are."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import log_ndtr

CONTROLS = ("family", "fdr")


def scores(
    one: Float[np.ndarray, "pairs samples"], other: Float[np.ndarray, "#pairs samples"]
) -> Float[np.ndarray, "pairs"]:
    """Standard normal scores under independent initialisation: sum of products over the root of their squares' sum.

    Given their sizes, the signs of independent centred weights are free, so this is the cosine over its deviation,
    whatever the scales of the matrices are.
    """
    products = one * other
    squares = np.einsum("...i,...i->...", products, products, dtype=np.float64)
    total = products.sum(axis=-1, dtype=np.float64)
    return np.where(squares > 0, total / np.sqrt(np.where(squares > 0, squares, 1)), 0.0)


def significant(
    z: Float[np.ndarray, "pairs"], tests: float | int, error: float, control: str = "family"
) -> Bool[np.ndarray, "pairs"]:
    """Which of the tested pairs are related, if `tests` pairs could have been tested (those not here have smaller z).

    family   Holm: the probability of a single false relation is at most `error`
    fdr      Benjamini and Hochberg: the expected share of false ones among the relations is at most `error`
    Raises ValueError for another control, or an error that is none.
    """
    if control not in CONTROLS or not 0 < error < 1:
        raise ValueError(f"the control must be one of {', '.join(CONTROLS)}, the error between 0 and 1")
    order = np.argsort(-z, kind="stable")
    log_p = log_ndtr(-z[order])
    rank = np.arange(len(z))
    passed = np.zeros(len(z), dtype=bool)
    if control == "family":
        fails = np.flatnonzero(log_p > np.log(error) - np.log(np.maximum(tests - rank, 1)))
        passed[order[: fails[0] if len(fails) else len(z)]] = True
    else:
        fits = np.flatnonzero(log_p <= np.log(error) + np.log((rank + 1) / max(tests, 1)))
        passed[order[: fits[-1] + 1 if len(fits) else 0]] = True
    return passed


def families(
    models: int, first: Int[np.ndarray, "pairs"], second: Int[np.ndarray, "pairs"]
) -> Int[np.ndarray, "models"]:
    """Labels 0, 1, ... of the components of related pairs, in the order of the models."""
    graph = coo_matrix((np.ones(len(first)), (first, second)), (models, models))
    return connected_components(graph, directed=False)[1].astype(np.int64)

"""Which models are related at all: a test whose null is independent initialisation, without K."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri
from torch import Tensor

from mother.evidence.permutation import Permuted, some_part, window, without_profiles


def layer_cosine(
    weights: Float[Tensor, "models rows columns"],
) -> tuple[Float[Tensor, "models models"], Bool[Tensor, "models models"]]:
    """Cosines of one layer of all models in units of their deviation under independent initialisation.

    Also returns which pairs have a cosine: a constant matrix has none.
    """
    cosine, deviation, valid = cosine_and_deviation(weights)
    return cosine / deviation, valid


def cosine_and_deviation(
    weights: Float[Tensor, "models rows columns"],
) -> tuple[Float[Tensor, "models models"], Float[Tensor, "models models"], Bool[Tensor, "models models"]]:
    """Cosines of one layer of all models, their deviation under independent initialisation, and which pairs have one.

    The profiles of a matrix over rows, over columns and along the diagonal are taken off first
    (`without_profiles`): what is left of matrices of units in any order has the mean cosine 0. A matrix of which
    nothing is left is a table that is computed, and has no cosine.
    For independent isotropic matrices the variance is 1 over their freedoms. Trained ones are not isotropic,
    and where both prefer the same inputs the variance is larger: for matrices with row covariances R, R' and
    column covariances C, C' it is tr(R R') tr(C C') over the squared norms, and R = W W', C = W' W are at hand. The
    larger of the two is taken; it makes related models somewhat less significant, never unrelated ones more.
    Of a large matrix a fixed random part is looked at.
    """
    rest, valid, freedoms = without_profiles(some_part(weights))
    flat = rest.flatten(1)
    cosine = (flat @ flat.T).double()
    rows = (rest @ rest.transpose(1, 2)).flatten(1)
    columns = (rest.transpose(1, 2) @ rest).flatten(1)
    alike = (rows @ rows.T).double() * (columns @ columns.T).double()
    variance = torch.maximum(alike, torch.full_like(cosine, 1 / freedoms))
    return cosine, variance.sqrt(), valid[:, None] & valid[None, :]


def near_threshold(
    relatedness: Float[np.ndarray, "models models"],
    tested: Float[np.ndarray, "models models"],
    test: Callable[[int, int], Permuted],
) -> tuple[Float[np.ndarray, "models models"], dict[tuple[int, int], Permuted]]:
    """The same scores, of pairs near the threshold by their own permutations; and these tests.

    `tested` counts the layers of a pair. A pair's score follows from its two models; the others decide, as Holm's
    correction does, by their number alone.
    """
    found = {pair: test(*pair) for pair in window(relatedness, tested)}
    scores = relatedness.copy()
    for (i, j), one in found.items():
        scores[i, j] = scores[j, i] = one.score
    return scores, found


def significant(scores: Float[np.ndarray, "tests"], error: float) -> Bool[np.ndarray, "tests"]:
    """Which standard normal scores pass Holm's correction: the probability of a single false one is below `error`."""
    order = np.argsort(-scores, kind="stable")
    # The k-th smallest p-value is compared with error / (number of tests - k).
    bound = -ndtri(error / np.arange(len(scores), 0, -1))
    fails = np.flatnonzero(scores[order] <= bound)
    found = np.zeros(len(scores), dtype=bool)
    found[order[: fails[0] if len(fails) else len(order)]] = True
    return found


def pairs_that_count(models: Sequence[str], based: Mapping[str, str]) -> Bool[np.ndarray, "models models"]:
    """Pairs whose relation says something of both models; `based` gives the base that each adapter is applied to.

    An adapter on a base that it was not trained on is related to the family that it was trained in: not so its base.
    """
    place = {model: at for at, model in enumerate(models)}
    counted = np.ones((len(models), len(models)), dtype=bool)
    applied = [(place[model], place[base]) for model, base in based.items() if model in place and base in place]
    for model, _ in applied:
        counted[model, :] = counted[:, model] = False
    for model, base in applied:
        counted[model, base] = counted[base, model] = True
    return counted


def related_components(
    relatedness: Float[np.ndarray, "models models"],
    error: float = 0.01,
    counted: Bool[np.ndarray, "models models"] | None = None,
) -> Int[np.ndarray, "models"]:
    """Clusters without K: connected components of the pairs whose cosine is significant.

    `relatedness` holds standard normal scores under independent initialisation. Holm's correction over all pairs
    keeps the probability of a single false relation below `error`. Returns labels 0, 1, ... in the order of
    the models. Without `counted` all pairs count.
    """
    if not 0 < error < 1:
        raise ValueError(f"the error level must be between 0 and 1, not {error}")
    n = len(relatedness)
    first, second = np.nonzero(np.triu(np.ones((n, n), dtype=bool) if counted is None else counted, k=1))
    scores = relatedness[first, second]
    passed = significant(scores, error)
    related = np.zeros((n, n), dtype=bool)
    related[first[passed], second[passed]] = True
    return connected_components(related, directed=False)[1].astype(np.int64)

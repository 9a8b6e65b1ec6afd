"""Which models are related at all: a test whose null is independent initialisation, without K."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri
from torch import Tensor

SIDE = 256  # budget: rows and columns of a matrix that the test of relatedness looks at


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

    For independent isotropic matrices the cosine has mean 0 and variance 1/P. Trained ones are not isotropic,
    and where both prefer the same inputs the variance is larger: for matrices with row covariances R, R' and
    column covariances C, C' it is tr(R R') tr(C C') over the squared norms, and R = W W', C = W' W are at hand. The
    larger of the two is taken; it makes related models somewhat less significant, never unrelated ones more.
    Of a large matrix a fixed random part is looked at.
    """
    generator = torch.Generator().manual_seed(0)
    for axis in (1, 2):
        if weights.shape[axis] > SIDE:
            some = torch.randperm(weights.shape[axis], generator=generator)[:SIDE].sort().values
            weights = weights.index_select(axis, some.to(weights.device))
    # Mean and norm in float64: nothing is left of a constant matrix, no square overflows or vanishes. The rest needs
    # no more digits.
    centred = weights - weights.mean(dim=(1, 2), keepdim=True, dtype=torch.float64).float()
    norms = torch.linalg.vector_norm(centred, dim=(1, 2), dtype=torch.float64)
    valid = norms > 0
    centred = centred / norms.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
    flat = centred.flatten(1)
    cosine = (flat @ flat.T).double()
    rows = (centred @ centred.transpose(1, 2)).flatten(1)
    columns = (centred.transpose(1, 2) @ centred).flatten(1)
    alike = (rows @ rows.T).double() * (columns @ columns.T).double()
    variance = torch.maximum(alike, torch.full_like(cosine, 1 / flat.shape[1]))
    return cosine, variance.sqrt(), valid[:, None] & valid[None, :]


def related_components(
    relatedness: Float[np.ndarray, "models models"], error: float = 0.01
) -> Int[np.ndarray, "models"]:
    """Clusters without K: connected components of the pairs whose cosine is significant.

    `relatedness` holds standard normal scores under independent initialisation. Holm's correction over all pairs
    keeps the probability of a single false relation below `error`. Returns labels 0, 1, ... in the order of
    the models.
    """
    if not 0 < error < 1:
        raise ValueError(f"the error level must be between 0 and 1, not {error}")
    n = len(relatedness)
    first, second = np.triu_indices(n, k=1)
    scores = relatedness[first, second]
    order = np.argsort(-scores, kind="stable")
    # Holm: the k-th smallest p-value is compared with error / (number of pairs - k).
    bound = -ndtri(error / np.arange(len(scores), 0, -1))
    fails = np.flatnonzero(scores[order] <= bound)
    passed = order[: fails[0] if len(fails) else len(order)]
    related = np.zeros((n, n), dtype=bool)
    related[first[passed], second[passed]] = True
    return connected_components(related, directed=False)[1].astype(np.int64)

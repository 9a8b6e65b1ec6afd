"""Which relative is the base of an adapter: how probable its directions are under each, and whom it moves away from.

Relatives have nearly the same weights, and the test of `adapter_base.py` names them all. Two figures tell them apart.
One is the likelihood of the update's singular directions under an angular Gaussian whose covariance is that of the
consumers (or writers) of the candidate (Tyler 1987): unlike an energy it does not favour weights of large spread. The
other is a cosine: training corrects what is peculiar to its own start, so the update points away from the difference
between its base and the mean of the base's relatives.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from mother.evidence.adapter_base import directions
from mother.evidence.consumers import Surroundings

LOADING = 0.3  # added to a covariance with the mean eigenvalue 1: directions off the consumers are rare, not impossible
COEFFICIENTS = (0.842, -0.503)  # of likelihood and cosine, as fitted by `python -m benchmarks.adapters` on all families

Updates = Mapping[str, Float[torch.Tensor, "rows columns"]]


def _likelihoods(updates: Updates, family: Sequence[Surroundings]) -> Float[np.ndarray, "models"]:
    """Log likelihood of all directions under each candidate, directions of a side as one where one outweighs them."""
    total = np.zeros(len(family))
    for name, at in family[0].ordered(updates):
        sides = [base.inputs(name) if at else base.outputs(name) for base in family]
        if any(side is None for side in sides):
            continue
        found = directions(updates[name], at, sides[0].kernel)
        if found.shape[1] == 0 or any(len(side.gram) != len(found) for side in sides):
            continue
        squares = (found**2).sum(0)
        shares = squares / squares.sum()
        for place, side in enumerate(sides):
            loaded = side.gram.double() + LOADING * torch.eye(len(side.gram), dtype=torch.float64)
            factor = torch.linalg.cholesky(loaded)
            lengths = (torch.linalg.solve_triangular(factor, found, upper=False) ** 2).sum(0) / squares
            each = -factor.diagonal().log().sum() - len(found) / 2 * lengths.log()
            total[place] += float((shares * each).sum() / (shares**2).sum().sqrt())
    return total


def _cosines(updates: Updates, family: Sequence[Surroundings]) -> Float[np.ndarray, "models"]:
    """Mean over matrices of the cosine of the update and of what is peculiar to a candidate, in deviations."""
    found = []
    for name, update in updates.items():
        matrices = torch.stack([base.matrices[name] for base in family])
        own = (matrices - matrices.mean(0)).flatten(1)
        size = own.norm(dim=1) * update.norm()
        cosine = (own @ update.flatten()) / size.clamp(min=1e-30) * update.numel() ** 0.5
        found.append(cosine.numpy())
    return np.mean(found, axis=0)


def figures(updates: Updates, family: Sequence[Surroundings]) -> Float[np.ndarray, "models two"]:
    """Both figures of each relative, less their means.

    Likelihoods grow with the size of a model faster than what they tell: they are divided by the root of their spread.
    """
    both = np.stack([_likelihoods(updates, family), _cosines(updates, family)], axis=1)
    both -= both.mean(0)
    both[:, 0] /= max(float(both[:, 0].std()), 1e-12) ** 0.5
    return both


def probabilities(
    updates: Updates, family: Sequence[Surroundings], coefficients: Sequence[float] = COEFFICIENTS
) -> Float[np.ndarray, "models"]:
    """Probability of each relative that it is the base, given that one of them is."""
    if len(family) == 1:
        return np.ones(1)
    return softmax(figures(updates, family) @ np.asarray(coefficients))


def softmax(scores: Float[np.ndarray, "models"]) -> Float[np.ndarray, "models"]:
    """Scores as probabilities."""
    found = np.exp(scores - scores.max())
    return found / found.sum()

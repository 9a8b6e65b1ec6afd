"""Statistics of weight matrices: kurtosis, and the range that the paper normalises differences with."""

import torch
from jaxtyping import Float
from torch import Tensor


def kurtosis(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models"]:
    """Fisher's excess kurtosis of each matrix, biased: m4 / m2^2 - 3 (0 for a Gaussian).

    The same as `scipy.stats.kurtosis` with its defaults; two passes in float64. NaN for a matrix of which
    all entries are equal. Source: the paper's directional score, the quantity that falls while a model specialises.
    """
    flat = weights.flatten(1)
    moments = []
    for row in flat:  # one model at a time: a float64 copy of all would be twice the stack
        centred = row.double()
        mean = centred.mean()
        centred = centred - mean
        square = centred.square()
        m2, m4 = square.mean(), square.square().mean()
        # Equal entries leave a rounding residue instead of zero: scipy calls that NaN as well.
        constant = m2 <= (torch.finfo(torch.float64).eps * mean) ** 2
        moments.append(torch.where(constant, torch.nan, m4 / m2**2 - 3))
    return torch.stack(moments)


def moments(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models four"]:
    """Minimum, maximum, mean and mean square of each matrix, in float64."""
    flat = weights.flatten(1)
    low, high = flat.aminmax(dim=1)
    mean = flat.mean(dim=1, dtype=torch.float64)
    square = torch.stack([row.double().square().mean() for row in flat])
    return torch.stack([low.double(), high.double(), mean, square], dim=1)

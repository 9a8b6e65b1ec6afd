"""Statistics of weight matrices: kurtosis, and the range that the paper normalises differences with."""

import torch
from jaxtyping import Float
from torch import Tensor

CACHED = 1 << 17  # entries of all models that are worked on at a time: they stay in the processor's cache
LARGE = 1 << 26  # and on a GPU


def _power_sums(weights: Float[Tensor, "models rows columns"]) -> tuple[Tensor, Float[Tensor, "four models"]]:
    """A value near each mean, and the means of the first four powers of the distance to it, in float64.

    The means of powers about a value near the mean give those about the mean without loss (no large numbers are
    subtracted), in one pass.
    """
    flat = weights.flatten(1)
    near = flat.mean(dim=1).double()
    size = max(1024, (CACHED if flat.device.type == "cpu" else LARGE) // len(flat))
    sums = torch.zeros(4, len(flat), dtype=torch.float64, device=flat.device)
    for part in flat.split(size, dim=1):
        away = part - near[:, None]
        square = away * away
        sums[0] += away.sum(dim=1)
        sums[1] += square.sum(dim=1)
        sums[2] += away.mul_(square).sum(dim=1)
        sums[3] += square.mul_(square).sum(dim=1)
    return near, sums / flat.shape[1]


def _kurtosis(near: Tensor, sums: Float[Tensor, "four models"]) -> Float[Tensor, "models"]:
    a1, a2, a3, a4 = sums
    m2 = a2 - a1**2
    m4 = a4 - 4 * a1 * a3 + 6 * a1**2 * a2 - 3 * a1**4
    # Equal entries leave a rounding residue instead of zero: scipy calls that NaN as well.
    constant = m2 <= (torch.finfo(torch.float64).eps * (near + a1)) ** 2
    return torch.where(constant, torch.nan, m4 / m2**2 - 3)


def kurtosis(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models"]:
    """Fisher's excess kurtosis of each matrix, biased: m4 / m2^2 - 3 (0 for a Gaussian).

    The same as `scipy.stats.kurtosis` with its defaults, in float64. NaN for a matrix of which
    all entries are equal. Source: the paper's directional score, the quantity that falls while a model specialises.
    """
    return _kurtosis(*_power_sums(weights))


def moments(weights: Float[Tensor, "models rows columns"]) -> dict[str, Tensor]:
    """From one look at each matrix: "moments", (models, four), and "kurtosis", (models,), as `kurtosis` gives it.

    The moments are minimum, maximum, mean and mean square, in float64.
    """
    near, sums = _power_sums(weights)
    flat = weights.flatten(1)
    low, high = flat.amin(dim=1).double(), flat.amax(dim=1).double()  # aminmax is six times slower
    square = sums[1] + 2 * near * sums[0] + near**2
    found = torch.stack([low, high, near + sums[0], square], dim=1)
    return {"moments": found, "kurtosis": _kurtosis(near, sums)}

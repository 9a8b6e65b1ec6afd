"""Statistics of weight matrices: kurtosis, and the range that the paper normalises differences with."""

import torch
from jaxtyping import Float
from torch import Tensor

from mother.numeric import kernels
from mother.numeric.kernels import has_kernels
from mother.numeric.threads import in_chunks


def _look(weights: Float[Tensor, "models rows columns"]) -> tuple[Tensor, Tensor, Float[Tensor, "models four"]]:
    """Minimum and maximum, a value near each mean, and the means of the first four powers of the distance to it.

    In float64. The means of powers about a value near the mean give those about the mean without loss: no large numbers
    are subtracted.
    """
    if has_kernels(weights):
        ends, near, sums = (torch.from_numpy(found) for found in kernels.power_sums(weights.flatten(1).numpy()))
    else:
        flat = weights.flatten(1)
        ends = torch.stack([flat.amin(dim=1), flat.amax(dim=1)], dim=1)  # aminmax is slower than both
        near, sums = _power_sums(flat)
    return ends.double(), near, sums / weights[0].numel()


def _power_sums(flat: Float[Tensor, "models entries"]) -> tuple[Tensor, Float[Tensor, "models four"]]:
    """A value near each mean, and the sums of the first four powers of the distance to it, by torch."""
    near = flat.mean(dim=1).double()
    sums = near.new_zeros(len(flat), 4)
    parts = in_chunks(flat, 1 << 16)
    away, square = (torch.empty_like(parts[0], dtype=torch.float64) for _ in range(2))
    for part in parts:
        one = torch.sub(part, near[:, None], out=away[:, : part.shape[1]])
        two = torch.mul(one, one, out=square[:, : part.shape[1]])
        products = torch.linalg.vecdot(two, one), torch.linalg.vecdot(two, two)
        sums += torch.stack([one.sum(dim=1), two.sum(dim=1), *products], dim=1)
    return near, sums


def _kurtosis(near: Tensor, means: Float[Tensor, "models four"]) -> Float[Tensor, "models"]:
    a1, a2, a3, a4 = means.T
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
    _, near, means = _look(weights)
    return _kurtosis(near, means)


def moments(weights: Float[Tensor, "models rows columns"]) -> dict[str, Tensor]:
    """From one look at each matrix: "moments", (models, four), and "kurtosis", (models,), as `kurtosis` gives it.

    The moments are minimum, maximum, mean and mean square, in float64.
    """
    ends, near, means = _look(weights)
    square = means[:, 1] + 2 * near * means[:, 0] + near**2
    found = torch.cat([ends, (near + means[:, 0])[:, None], square[:, None]], dim=1)
    return {"moments": found, "kurtosis": _kurtosis(near, means)}

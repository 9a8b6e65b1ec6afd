"""What the order of hidden units says of two models: the null distribution of their cosines near the threshold.

The units of a hidden layer have no order, so a model whose units are permuted is as probable as it was. What all
permutations leave alone (the profile of a matrix over its rows, over its columns, and along its diagonal where a unit
comes back to itself) is alike in unrelated models of one kind: it is taken off. How far permutations spread the rest is
the deviation that unrelated models have (Aldous 1985; Zhu et al., "Independence Tests for Language Models", ICML 2025).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri
from torch import Tensor

from mother.io.layers import Layer

SIDE = 256  # budget: rows and columns of a matrix that the test of relatedness looks at
LEFT = 1e-3  # share of a matrix's squares that must be left without its profiles: else it is a table that is computed
DRAWS = 999  # budget: permutations; smaller p-values come from their spread
LOOSEST, STRICTEST = 0.5, 1e-6  # levels that may be asked for


@dataclass(frozen=True)
class Permuted:
    """The test of two models by permutations: a standard normal score, and what it rests on."""

    score: float  # of the p-value, or, where that is too small to be counted, cosine over deviation
    p: float  # exact: (1 + permutations that reach the cosine) / (1 + permutations), of rows or columns the larger
    layers: int
    left_out: tuple[Layer, ...]  # computed tables: nothing is left of them without their profiles


def some_part(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models some few"]:
    """At most SIDE rows and columns of large matrices, the same of all that have one shape.

    Where columns are rows times a kernel, whole kernels, and of rows and columns the same units.
    """
    rows, columns = weights.shape[1:]
    kernel = _kernel(rows, columns)
    generator = torch.Generator().manual_seed(0)

    def some(size: int, count: int) -> Int[Tensor, "count"]:
        return torch.randperm(size, generator=generator)[:count].sort().values.to(weights.device)

    if kernel and columns > SIDE:
        units = some(rows, SIDE // kernel)
        own = (units[:, None] * kernel + torch.arange(kernel, device=weights.device)).flatten()
        return weights.index_select(1, units).index_select(2, own)
    for axis, size in ((1, rows), (2, columns)):
        if size > SIDE:
            weights = weights.index_select(axis, some(size, SIDE))
    return weights


def _kernel(rows: int, columns: int) -> int:
    """Columns of each unit where inputs may be the outputs' own units: 1, or an odd kernel; 0 where they are not."""
    kernel, odd = divmod(columns, rows)
    return kernel if not odd and kernel % 2 and kernel < min(rows, SIDE) else 0


def without_profiles(
    weights: Float[Tensor, "models rows columns"],
) -> tuple[Float[Tensor, "models rows columns"], Bool[Tensor, "models"], int]:
    """Matrices of length 1 without the means that permutations of units leave alone; which have any rest; freedoms.

    <A, P B Q> has mean 0 over all permutations P of rows and over all Q of columns, and, where inputs are the outputs'
    own units, over those that permute both alike. Means are float64: nothing is left of a constant matrix. What has no
    rest is 0.
    """
    rows, columns = weights.shape[1:]
    rest = weights - weights.mean(dim=(1, 2), keepdim=True, dtype=torch.float64).float()
    whole = torch.linalg.vector_norm(rest, dim=(1, 2), dtype=torch.float64)
    for axis in (1, 2):
        rest = rest - rest.mean(dim=axis, keepdim=True, dtype=torch.float64).float()
    freedoms = (rows - 1) * (columns - 1)
    if kernel := _kernel(rows, columns):
        # The matrix that is 1 where a unit meets itself, without its own profiles, has the square n - 1.
        rest = rest.contiguous()
        blocks = rest.view(-1, rows, rows, kernel)
        share = blocks.diagonal(dim1=1, dim2=2).sum(dim=2, dtype=torch.float64).float() / (rows - 1)
        blocks += share[:, None, None] / rows
        blocks.diagonal(dim1=1, dim2=2).sub_(share[:, :, None])
        freedoms -= kernel
    length = torch.linalg.vector_norm(rest, dim=(1, 2), dtype=torch.float64)
    there = length.square() > LEFT * whole.square()
    rest = there[:, None, None] * rest / length.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
    return rest, there, max(1, freedoms)


def window(
    relatedness: Float[np.ndarray, "models models"], tested: Float[np.ndarray, "models models"]
) -> list[tuple[int, int]]:
    """Pairs whose relation permutations can change at some level between STRICTEST and LOOSEST.

    `tested` counts layers. Clear of the threshold is what would pass Holm's first step if all layers were copies of
    one: no spread of the sum is larger. The least of the others that can pass is as Holm has it with these alone:
    permutations raise no score.
    """
    first, second = np.triu_indices(len(relatedness), k=1)
    z, layers = relatedness[first, second], tested[first, second]
    pairs = max(1, len(z))
    clear = z > -ndtri(STRICTEST / pairs) * np.sqrt(layers)
    low = -ndtri(LOOSEST / max(1, pairs - int(clear.sum())))
    near = (layers > 0) & ~clear & (z > low)
    return list(zip(first[near].tolist(), second[near].tolist()))


def permuted(pairs: Iterable[tuple[Layer, Float[Tensor, "two rows columns"]]]) -> Permuted:
    """The test of two models, from both matrices of each layer; a score of 0 where no layer says anything.

    Of all layers with axes of one length the same permutation is drawn, as one of hidden units goes through a model:
    layers are then no replicates where they are not independent. For permutations of one axis the sums of
    <A, P B> over layers follow from one small matrix for each length, so that a thousand cost as much as one.
    The mean is 0 and the variance is known without drawing (Hoeffding 1951). Only one axis is permuted at a time: what
    both models prefer on the other stays, as the pixels that a first layer looks at. The axis that says less counts.
    """
    total, layers, left_out = 0.0, 0, []
    sums: tuple[dict[int, Tensor], ...] = (defaultdict(lambda: torch.zeros(())), defaultdict(lambda: torch.zeros(())))
    for layer, weights in pairs:
        (one, other), there, freedoms = _rest(weights)
        if not there.all():
            left_out.append(layer)
            continue
        deviation = _deviation(one, other, freedoms)
        total += float((one * other).sum(dtype=torch.float64)) / deviation
        layers += 1
        for axis, (a, b) in enumerate(((one, other), (one.T, other.T))):
            sums[axis][len(a)] = sums[axis][len(a)] + (a @ b.T).double() / deviation
    if not layers:
        return Permuted(0.0, 1.0, 0, tuple(left_out))
    spreads, reached = [float(layers)], []
    for axis in sums:
        spreads.append(sum(_variance(one) for one in axis.values()))
        reached.append(int((_drawn(axis) >= total).sum()))
    score = total / max(spreads) ** 0.5
    p = (1 + max(reached)) / (1 + DRAWS)
    counted = -float(ndtri(min(p, DRAWS / (1 + DRAWS))))  # finite where all permutations reach it
    return Permuted(min(score, counted) if max(reached) else score, p, layers, tuple(left_out))


def _rest(weights: Float[Tensor, "two rows columns"]) -> tuple[Tensor, Bool[Tensor, "two"], int]:
    return without_profiles(some_part(weights))


def _deviation(one: Float[Tensor, "rows columns"], other: Float[Tensor, "rows columns"], freedoms: int) -> float:
    """The deviation of their cosine for what both prefer of rows and of columns, as in `cosine_and_deviation`."""
    alike = [float(((a @ a.T) * (b @ b.T)).sum(dtype=torch.float64)) for a, b in ((one, other), (one.T, other.T))]
    return max(alike[0] * alike[1], 1 / freedoms) ** 0.5


def _variance(sums: Float[Tensor, "units units"]) -> float:
    """Of the sum of the entries (i, P(i)) over all permutations P."""
    rest = sums - sums.mean(dim=0, keepdim=True) - sums.mean(dim=1, keepdim=True) + sums.mean()
    return float(rest.square().sum()) / (len(sums) - 1)


@lru_cache(maxsize=16)
def _orders(units: int) -> Int[Tensor, "draws units"]:
    return torch.rand(DRAWS, units, generator=torch.Generator().manual_seed(units)).argsort(dim=1)


def _drawn(sums: dict[int, Float[Tensor, "units units"]]) -> Float[Tensor, "draws"]:
    """What permutations make of the cosines' sum; which ones follows from the lengths alone."""
    drawn = torch.zeros(DRAWS, dtype=torch.float64)
    for units, one in sums.items():
        drawn += one[torch.arange(units), _orders(units)].sum(dim=1)
    return drawn

"""Distances between models: the paper's two for trees, its two for clusters.

The pairwise functions take the weights of one layer of all models and return one [i, j] entry for each
pair, so that every weight is read once and only one layer is in memory. The others put layers together.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mother.numeric import kernels
from mother.numeric.kernels import has_kernels
from mother.numeric.threads import in_chunks


def pairwise_differences(weights: Float[Tensor, "models rows columns"]) -> dict[str, Float[Tensor, "models models"]]:
    """From one look at each pair: "pair_max_difference" and "pair_mean_square_difference".

    They are max(W_i - W_j), so that the minimum of W_i - W_j is minus entry [j, i], and mean (W_i - W_j)^2 in float64.
    """
    if has_kernels(weights):
        largest, square = (torch.from_numpy(found) for found in kernels.differences(weights.flatten(1).numpy()))
        square /= weights[0].numel()
    else:
        largest, square = _max_difference(weights), _pairwise_mean_power(weights, 2)
    return {"pair_max_difference": largest, "pair_mean_square_difference": square}


def _max_difference(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models models"]:
    """[i, j] = max(W_i - W_j), by torch."""
    count = len(weights)
    first, second = torch.triu_indices(count, count, 1, device=weights.device)
    result = weights.new_full((count, count), -torch.inf).fill_diagonal_(0)
    if count < 2:
        return result
    parts = in_chunks(weights)
    room = torch.empty_like(parts[0])
    for part in parts:
        extremes = []
        for i in range(count - 1):
            apart = torch.sub(part[i], part[i + 1 :], out=room[: count - 1 - i, : part.shape[1]])
            extremes.append((apart.amax(dim=1), apart.amin(dim=1)))  # aminmax is slower than both
        high, low = (torch.cat(each) for each in zip(*extremes))
        result[first, second] = torch.maximum(result[first, second], high)
        result[second, first] = torch.maximum(result[second, first], -low)
    return result


def _pairwise_mean_power(weights: Float[Tensor, "models rows columns"], power: int) -> Float[Tensor, "models models"]:
    """[i, j] = mean |W_i - W_j|^power, in float64."""
    count = len(weights)
    first, second = torch.triu_indices(count, count, 1, device=weights.device)
    sums = weights.new_zeros(len(first), dtype=torch.float64)
    for part in in_chunks(weights, 1 << 16):  # small ones: sums of few float32 lose little
        sums += torch.nn.functional.pdist(part.contiguous(), p=power).double() ** power
    result = sums.new_zeros(count, count)
    result[first, second] = result[second, first] = sums / weights[0].numel()
    return result


def pairwise_mean_absolute_difference(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models models"]:
    """[i, j] = mean |W_i - W_j| over the entries (paper's code: clusters of fully fine-tuned models)."""
    return _pairwise_mean_power(weights, 1).to(weights.dtype)


def difference_range(
    max_difference: Float[np.ndarray, "layers models models"], both_orders: bool = False
) -> tuple[Float[np.ndarray, "layers"], Float[np.ndarray, "layers"]]:
    """Smallest and largest entry of W_i - W_j over all pairs, for each layer (paper: the statistics file).

    A pair counts in the order of the collection, i before j, as in the authors' code; with `both_orders`
    it counts as W_j - W_i as well.
    """
    first, second = np.triu_indices(max_difference.shape[1], k=1)
    high, low = max_difference[:, first, second], -max_difference[:, second, first]
    if both_orders:
        high = np.maximum(high, -low)
        low = -high
    return low.min(axis=1), high.max(axis=1)


def minmax_distance(
    max_difference: Float[np.ndarray, "layers models models"],
    low: Float[np.ndarray, "layers"],
    high: Float[np.ndarray, "layers"],
    both_orders: bool = False,
) -> Float[np.ndarray, "models models"]:
    """d(i, j) = max over layers of max(minmax(W_i - W_j)), minmax(x) = (x - low) / (high - low).

    Source: first version of the paper and the authors' code (l_FT). low and high are those of the layer over
    all pairs. The maximum has a sign, so it depends on which of the two is subtracted: i before j in the order of the
    collection, as in the authors' code, or the larger of the two with `both_orders`. Layers in which no two
    models differ (high = low) say nothing and are passed over. Symmetric, zero diagonal.
    """
    spread = high - low
    if (spread < 0).any():
        raise ValueError("high must not be below low")
    informative = spread > 0
    if both_orders:
        signed = np.maximum(max_difference, max_difference.transpose(0, 2, 1))
    else:
        upper = np.triu(max_difference, k=1)
        signed = upper + upper.transpose(0, 2, 1)
    if not informative.any():
        return np.zeros(max_difference.shape[1:])
    scaled = (signed[informative] - low[informative, None, None]) / spread[informative, None, None]
    distance = scaled.max(axis=0)
    np.fill_diagonal(distance, 0)
    return distance


def sum_over_layers(
    distances: Float[np.ndarray, "layers models models"] | Int[np.ndarray, "layers models models"],
) -> Float[np.ndarray, "models models"]:
    """d(i, j) = sum over layers: of ranks for LoRA trees and clusters, of mean |W_i - W_j| for FT clusters."""
    return distances.sum(axis=0).astype(float)

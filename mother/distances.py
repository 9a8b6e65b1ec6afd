"""Distances between models: the paper's two for trees, its two for clusters.

The pairwise functions take the weights of one layer of all models and return one [i, j] entry for each
pair, so that every weight is read once and only one layer is in memory. The others put layers together.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CACHED = 1 << 19  # entries of all models that are worked on at a time: they stay in the cores' caches
LARGE = 1 << 26  # and on a GPU


def _chunks(weights: Float[Tensor, "models rows columns"]) -> tuple[Float[Tensor, "models entries"], ...]:
    """Stretches of entries of all models."""
    flat = weights.flatten(1)
    return flat.split(max(1024, (CACHED if flat.device.type == "cpu" else LARGE) // len(flat)), dim=1)


def pairwise_max_difference(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models models"]:
    """[i, j] = max(W_i - W_j) over the entries. The minimum of W_i - W_j is minus entry [j, i]."""
    result = weights.new_full((len(weights), len(weights)), -torch.inf).fill_diagonal_(0)
    for part in _chunks(weights):
        room = torch.empty_like(part)
        for i in range(len(part) - 1):
            # amax and amin are each vectorised; aminmax is six times slower.
            apart = torch.sub(part[i], part[i + 1 :], out=room[: len(part) - 1 - i])
            result[i, i + 1 :] = torch.maximum(result[i, i + 1 :], apart.amax(dim=1))
            result[i + 1 :, i] = torch.maximum(result[i + 1 :, i], -apart.amin(dim=1))
    return result


def pairwise_mean_absolute_difference(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models models"]:
    """[i, j] = mean |W_i - W_j| over the entries (paper's code: clusters of fully fine-tuned models)."""
    total = weights.new_zeros(len(weights), len(weights), dtype=torch.float64)
    for part in _chunks(weights):
        room = torch.empty_like(part)
        for i in range(len(part) - 1):
            apart = torch.sub(part[i], part[i + 1 :], out=room[: len(part) - 1 - i])
            total[i, i + 1 :] += apart.abs_().sum(dim=1)
    return ((total + total.T) / weights[0].numel()).to(weights.dtype)


def pairwise_mean_square_difference(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models models"]:
    """[i, j] = mean (W_i - W_j)^2 over the entries, in float64.

    By one product of all models with themselves, from the mean model on: without that the difference of two large
    numbers would be left.
    """
    gram = torch.zeros(len(weights), len(weights), dtype=torch.float64, device=weights.device)
    for part in _chunks(weights):
        centred = part.double()
        centred -= centred.mean(dim=0)
        gram += centred @ centred.T
    norms = gram.diagonal()
    square = (norms[:, None] + norms[None] - 2 * gram).clamp(min=0) / weights[0].numel()
    return square.fill_diagonal_(0)


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

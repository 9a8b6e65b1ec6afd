"""Distances between models: the paper's two for trees, its two for clusters.

The pairwise functions take the weights of one layer of all models and return one [i, j] entry for each
pair, so that every weight is read once and only one layer is in memory. The others put layers together.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mother.threads import in_threads

CACHED = 1 << 18  # entries of all models that a core works on at a time
LARGE = 1 << 26  # and a GPU, of all pairs


def _over_chunks(
    weights: Float[Tensor, "models rows columns"], work: Callable[[Float[Tensor, "models entries"]], Tensor]
) -> list[Tensor]:
    """What `work` gives for stretches of entries of all models that fit a core's cache; on a GPU, for large ones."""
    flat = weights.flatten(1)
    size = max(1024, CACHED // len(flat)) if flat.device.type == "cpu" else max(1024, LARGE // len(flat) ** 2)
    parts = flat.split(size, dim=1)
    return in_threads(work, parts) if flat.device.type == "cpu" else [work(part) for part in parts]


def pairwise_max_difference(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models models"]:
    """[i, j] = max(W_i - W_j) over the entries. The minimum of W_i - W_j is minus entry [j, i]."""

    def work(part: Float[Tensor, "models entries"]) -> Tensor:
        result, room = part.new_zeros(len(part), len(part)), torch.empty_like(part)
        for i in range(len(part) - 1):
            # amax and amin are each vectorised; aminmax is six times slower.
            apart = torch.sub(part[i], part[i + 1 :], out=room[: len(part) - 1 - i])
            result[i, i + 1 :], result[i + 1 :, i] = apart.amax(dim=1), -apart.amin(dim=1)
        return result

    found = _over_chunks(weights, work)
    result = found[0]
    for other in found[1:]:
        result = torch.maximum(result, other)
    return result


def pairwise_mean_absolute_difference(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models models"]:
    """[i, j] = mean |W_i - W_j| over the entries (paper's code: clusters of fully fine-tuned models)."""

    def work(part: Float[Tensor, "models entries"]) -> Tensor:
        result, room = part.new_zeros(len(part), len(part), dtype=torch.float64), torch.empty_like(part)
        for i in range(len(part) - 1):
            apart = torch.sub(part[i], part[i + 1 :], out=room[: len(part) - 1 - i])
            result[i, i + 1 :] = apart.abs_().sum(dim=1)
        return result

    total = sum(_over_chunks(weights, work)) / weights[0].numel()
    return (total + total.T).to(weights.dtype)


def pairwise_mean_square_difference(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models models"]:
    """[i, j] = mean (W_i - W_j)^2 over the entries, in float64.

    By one product of all models with themselves, from the mean model on: without that the difference of two large
    numbers would be left.
    """

    def work(part: Float[Tensor, "models entries"]) -> Tensor:
        centred = part.double()
        centred -= centred.mean(dim=0)
        return centred @ centred.T

    gram = sum(_over_chunks(weights, work))
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

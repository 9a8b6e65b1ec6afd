"""Which models are near one another, from a sample of their entries: that says where to look first, never an answer."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SAMPLE = 1 << 14  # entries of each matrix
UNRELATED = 0.5  # squared distance over the sum of the squared norms from which two models share nothing


def sample_of(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models entries"]:
    """Entries at equal steps, in float64, on the CPU."""
    flat = weights.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // SAMPLE)].double().cpu()


def near_groups(some: Float[Tensor, "models entries"]) -> list[list[int]]:
    """Models in groups around the first of each, from a sample; groups share nothing at all.

    Two models are in one group where their squared distance is less than that of models with nothing in common.
    """
    norms = some.square().sum(dim=1)
    groups: list[list[int]] = []
    for at in range(len(some)):
        for group in groups:
            apart = (some[at] - some[group[0]]).square().sum()
            if apart < UNRELATED * (norms[at] + norms[group[0]]) or apart == 0:
                group.append(at)
                break
        else:
            groups.append([at])
    return groups


def nearest_neighbours(some: Float[Tensor, "models entries"]) -> list[tuple[int, int]]:
    """Edges (earlier, later) of a minimum spanning tree (Prim) of a sample, each model but the first once the later.

    A model comes as the earlier one only after it was the later one, or first.
    """
    some = some - some[0]
    apart = torch.cdist(some, some, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    nearest, distance = np.zeros(len(apart), dtype=int), apart[0].copy()
    edges = []
    left = np.ones(len(apart), dtype=bool)
    left[0] = False
    while left.any():
        new = int(np.where(left, distance, np.inf).argmin())
        edges.append((int(nearest[new]), new))
        left[new] = False
        closer = apart[new] < distance
        nearest[closer], distance[closer] = new, apart[new][closer]
    return edges

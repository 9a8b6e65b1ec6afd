"""Two adapters by what they add: whether their bases are of one family, and whether they are of one run.

Gradients of relatives reach the outputs of a matrix through nearly the same weights, so their adapters lie in like
directions there. The null: units of unrelated bases are in no common order, so the overlap is drawn again with the
outputs of the second adapter in other orders. The inputs take no part: they begin with a draw that many share, that of
the usual seed. The cosine of the updates tells of one run, in which B A goes on from what it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mother.evidence.adapter_base import DRAWS, deviations, factored, orders, standard_score
from mother.io.layers import Layer

Updates = Mapping[Layer, Float[Tensor, "_ _"]]  # (outputs, inputs) of each weight that an adapter changes


@dataclass(frozen=True)
class Pair:
    """How alike two adapters are."""

    z: float  # standard normal score of the overlap of their outputs under the null
    cosine: float  # mean over the weights that both change
    weights: int  # that both change, with updates of one shape


def compare(one: Updates, other: Updates) -> Pair | None:
    """Hold the updates of two adapters against one another; None where they change no weight of equal shape.

    The overlap of a weight is the energy of the products of both updates' output directions. Scores of weights are in
    deviations over the draws and are added; those of one width share the draws, as they may have the same units.
    """
    drawn: dict[tuple[str, int], Tensor] = {}
    scores, cosines = [], []
    both = [layer for layer in sorted(one.keys() & other.keys()) if one[layer].shape == other[layer].shape]
    rows = [one[layer].shape[0] for layer in both]
    for layer in both:
        first, second = one[layer], other[layer]
        if min(first.shape) < 2 or not first.any() or not second.any():
            continue
        (u, a), (v, b) = factored(first), factored(second)
        cosines.append(float(((u.T @ v) * (a.T @ b)).sum()))
        shared = len(first) == max(set(rows), key=rows.count)
        key = ("" if shared else layer.block, len(first))
        if key not in drawn:
            drawn[key] = orders(DRAWS, len(first), torch.Generator().manual_seed(len(drawn)))
        energies = torch.cat([(u.T @ v[some]).square().sum((1, 2)) for some in drawn[key].split(64)])
        score = deviations(energies)
        if score is not None:
            scores.append(score)
    if not scores:
        return None
    return Pair(standard_score(torch.stack(scores).sum(0).numpy()), float(np.mean(cosines)), len(cosines))

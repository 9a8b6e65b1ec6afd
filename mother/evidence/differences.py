"""The numbers of the differences D = W_second - W_first of some pairs in one layer, and where third models lie."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mother.evidence.direction import directions_added, newness, precision_test, rounding_test
from mother.evidence.grids import Grid, quantization_noise
from mother.numeric.floats import MANTISSA
from mother.numeric.spectra import rounding_noise, spectrum

DIRECTIONS = 8  # singular directions that newness and inheritance look at
NEAR = 0.25  # how near to 0 or 1 the part of a direction that a third model kept must be


def compare_pairs(
    i: Float[Tensor, "pairs rows columns"],
    j: Float[Tensor, "pairs rows columns"],
    grids: list[list[tuple[Grid | None, float]]],
    bits: Int[Tensor, "pairs two"],
    zeros: Bool[Tensor, "pairs two"],
) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """All numbers of one layer of some pairs; leading u, s, v of D above rounding noise, u' W_first v, what is new."""
    difference = (j - i).double()  # what rounds here is below the noise of the arithmetic that made the update
    energy = difference.square().sum(dim=(1, 2))
    values: dict[str, Any] = {"energy": energy.cpu().numpy(), "entries": i[0].numel()}
    same = i == j
    values["equal"] = same.sum(dim=(1, 2)).cpu().numpy()
    for key, child, end in (("zeroed", j, 1), ("zeroed_back", i, 0)):
        some = zeros[:, end].any()  # few models have zeros
        values[key] = ((child == 0) & ~same).sum(dim=(1, 2)).cpu().numpy() if some else 0
    precision = bits.amin(dim=1)
    whole = (bits == MANTISSA["float32"]).tolist()
    for key, parent, child, end in (("quantized", i, j, 1), ("quantized_back", j, i, 0)):
        # Without a grid only a half precision, which hides fine ones, can be quantized, and only from full precision.
        values[key] = [
            (grids[p][end][0] is not None or (whole[p][1 - end] and not whole[p][end]))
            and quantization_noise(parent[p], child[p], *grids[p][end])
            for p in range(len(i))
        ]
    # Between two types, parent and update may both have been rounded to the coarser.
    noise = rounding_noise(i, j, precision) * torch.where(bits[:, 0] == bits[:, 1], 1.0, 2**0.5)
    found = spectrum(difference, noise, DIRECTIONS)
    values |= {name: getattr(found, name).cpu().numpy() for name in ("rank", "full", "gap")}
    values["rounding"] = np.zeros(len(i))
    if len(found.low):
        parts = i[found.low], j[found.low], found.residual
        tested = rounding_test(*parts) + precision_test(*parts, bits[found.low])
        values["rounding"][found.low.cpu().numpy()] = tested.cpu().numpy()
    start = ((i @ found.v.float()) * found.u.float()).sum(dim=1)
    added = directions_added(start, found.s)
    values["newness"] = newness(added, found.s).cpu().numpy()
    return values, tuple(value.float() for value in (found.u, found.s, found.v, start, added))


def find_sides(
    weights: Float[Tensor, "members rows columns"],
    place: dict[int, int],
    triples: tuple[Tensor, ...],
    chosen: list[int],
    thirds: dict[int, list[int]],
    sides: np.ndarray,
    weight: np.ndarray,
) -> None:
    """Add one layer to the shares of each pair's directions that third models kept, or never had (inheritance).

    beta = u' (W_third - W_first) v / s is 1 where the third kept what the second learned, 0 where it never had it.
    """
    u, s, v, start, added = triples
    share = s / s.sum(dim=1, keepdim=True).clamp(min=1e-30)
    u, v = (ends.permute(1, 0, 2).contiguous() for ends in (u, v))
    asking: dict[int, list[int]] = {}
    for at, some in enumerate(s.any(dim=1).tolist()):
        if some:
            for third in thirds[chosen[at]]:
                asking.setdefault(third, []).append(at)
    for third, rows in asking.items():
        # One product for all pairs that ask for this model.
        at = torch.tensor(rows, device=s.device)
        projected = weights[place[third]].T @ u.index_select(1, at).flatten(1)
        kept = (projected * v.index_select(1, at).flatten(1)).sum(dim=0).unflatten(0, (len(rows), -1))
        kept = (kept - start[at]) / s[at].clamp(min=1e-30)
        like = torch.stack([kept.abs() < NEAR, (kept - 1).abs() < NEAR]) * share[at]
        found = torch.cat([like.sum(dim=2), (like * added[at]).sum(dim=2)]).cpu().numpy()
        pairs = [chosen[at] for at in rows]
        sides[:, pairs, third] += found
        weight[pairs, third] += 1

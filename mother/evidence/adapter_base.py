"""Whose adapter: how far the update of an adapter lies where a base's other weights are strong.

The energy of the update's singular directions under the Gram matrix of the weights that consume a matrix's output, and
of those that write its inputs, is compared with what it is under the same weights when their units are in another
order. The units of a base that has nothing to do with the adapter have no order that the adapter could know, so this
null is exact up to the number of draws. Units of attention heads keep their places, which positions may give a
meaning, and are drawn with other signs.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtri
from scipy.stats import pearson3, skew
from torch import Tensor

from mother.evidence.consumers import Side, Surroundings

DRAWS, MORE, MOST = 499, 1999, 19_999  # budget: orders of the units; near where families begin, as many as WORK allows
NEAR, WORK = (2.5, 6.0), 1e13  # such scores; multiplications
COUNTED = 10  # draws that must reach the score for their number to be the p-value
HIGHEST = 200  # draws that tell the tail
RANGE = 160  # random vectors by which the range of a large update is found: usual ranks, and some more
LARGEST = 38.0  # of a score; smaller p-values are no numbers


@dataclass(frozen=True)
class Fit:
    """How well an adapter fits a candidate base."""

    z: float  # standard normal score under the null
    raw: float  # the statistic before the null's mean and deviation are taken off
    terms: int  # sides of matrices that took part
    by_kind: dict[str, float]  # kind of matrix and side -> its own score


def directions(update: Float[Tensor, "rows columns"], side: int, kernel: int) -> Float[Tensor, "units directions"]:
    """Singular directions of an update on a side, each times its share of the update's norm."""
    if update.norm() == 0:
        return update.new_zeros(update.shape[side] // kernel, 0)
    left, shares, right = _singular(update)
    if side == 0:
        return left * shares
    found = right * shares
    return found.unflatten(0, (-1, kernel)).flatten(1)


def _singular(update: Float[Tensor, "rows columns"]) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, rank), (rank,) and (columns, rank): singular vectors, and values as shares of the norm."""
    left, sizes, right = _decomposed(update.double())
    kept = sizes > 1e-5 * sizes[0]
    return left[:, kept], sizes[kept] / sizes[kept].norm(), right[kept].T


def _decomposed(update: Float[Tensor, "rows columns"]) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values and vectors; of a large matrix of low rank from its range, which is found with random vectors."""
    if min(update.shape) > 4 * RANGE:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(update.shape[1], RANGE, generator=generator, dtype=update.dtype)
        basis = torch.linalg.qr(update @ drawn).Q
        inside = basis.T @ update
        if (update - basis @ inside).norm() < 1e-6 * update.norm():
            left, sizes, right = torch.linalg.svd(inside, full_matrices=False)
            return basis @ left, sizes, right
    return torch.linalg.svd(update, full_matrices=False)


def factored(update: Float[Tensor, "rows columns"]) -> tuple[Tensor, Tensor]:
    """Two factors of an update, (rows, rank) and (columns, rank), of norm 1 together."""
    left, shares, right = _singular(update)
    return left * shares, right


def orders(draws: int, units: int, generator: torch.Generator) -> Int[Tensor, "draws1 units"]:
    """Orders of units; the first leaves all as it is."""
    drawn = torch.rand(draws + 1, units, generator=generator).argsort(1)
    drawn[0] = torch.arange(units)
    return drawn


def deviations(energies: Float[Tensor, "draws1"]) -> Float[Tensor, "draws1"] | None:
    """Energies in deviations over all draws but the first; None where these are equal."""
    spread = energies[1:].std()
    return (energies - energies[1:].mean()) / spread if spread > 1e-9 * energies.abs().mean() else None


class _Null:
    """The same draws for all sides that share their units."""

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.kept: dict[tuple, Tensor] = {}

    def of(self, side: Side, units: int) -> Tensor:
        """(draws, units): orders, or signs; the first draw leaves all as it is."""
        key = (*side.space, side.signs, units // side.shared)
        if key not in self.kept:
            generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
            if side.signs:
                drawn = torch.randint(0, 2, (self.draws + 1, units // side.shared), generator=generator) * 2 - 1
                drawn[0] = 1
            else:
                drawn = orders(self.draws, units, generator)
            self.kept[key] = drawn
        drawn = self.kept[key]
        if side.shared > 1:  # what the heads of a group have in common is no sign of this base
            drawn = drawn.unflatten(1, (-1, 1, side.head)).expand(-1, -1, side.shared, -1).flatten(1)
        return drawn


def _energies(side: Side, found: Float[Tensor, "units directions"], drawn: Tensor) -> Float[Tensor, "draws"]:
    """Energy of directions under a Gram matrix, for each draw."""
    gram, energies = side.gram, []
    found = found.to(gram.dtype)
    if side.signs:
        signs, both = drawn.to(gram.dtype), gram * (found @ found.T)
        return ((signs @ both) * signs).sum(1).double()
    for some in drawn.split(max(1, (1 << 22) // found.numel())):
        moved = found[some].transpose(0, 1).flatten(1)  # units before draws: one product for all
        energies.append((moved * (gram @ moved)).unflatten(1, (len(some), -1)).sum((0, 2)))
    return torch.cat(energies).double()


def fit(updates: Mapping[str, Float[Tensor, "rows columns"]], base: Surroundings) -> Fit | None:
    """Hold the updates of an adapter, by the pieces of a base, against that base; None where nothing can be compared.

    Two figures of the scores of all sides of matrices: their sum, and the squares of those above 0. Both as normal
    scores, the larger one is held against the larger one under each of the draws. Sides that share units share the
    draws, so that what they have in common counts once.
    """
    found, work = _fit(updates, base, DRAWS)
    if found is not None and NEAR[0] < found.z < NEAR[1]:
        found, _ = _fit(updates, base, int(min(max(WORK / work, MORE), MOST)))
    return found


def _fit(
    updates: Mapping[str, Float[Tensor, "rows columns"]], base: Surroundings, draws: int
) -> tuple[Fit | None, int]:
    """The fit by so many draws, and the multiplications that one draw takes."""
    null, scores, kinds, work = _Null(draws), [], [], 0
    for name, at in base.ordered(updates):
        side = base.inputs(name) if at else base.outputs(name)
        if side is None:
            continue
        found = directions(updates[name], at, side.kernel)
        if len(found) != len(side.gram) or found.shape[1] == 0:
            continue
        score = deviations(_energies(side, found, null.of(side, len(found))))
        if score is not None:
            scores.append(score)
            work += len(found) ** 2 * (1 if side.signs else found.shape[1])
            layer = base.pieces[name].layer
            kinds.append(f"{'outputs' if at == 0 else 'inputs'} of {layer.kind if layer else name}")
    if not scores:
        return None, 0
    table = torch.stack(scores).numpy()
    total = table.sum(0) / np.sqrt(len(table))
    # What all sides have a little of the sum tells, and what few sides have the squares.
    z = standard_score(np.maximum(normal_scores(total), normal_scores((table.clip(min=0) ** 2).sum(0))))
    by_kind = {
        kind: float(table[[one == kind for one in kinds]].sum(0)[0] / np.sqrt(kinds.count(kind)))
        for kind in dict.fromkeys(kinds)
    }
    return Fit(z, float(total[0]), len(table), by_kind), work


def normal_scores(figure: Float[np.ndarray, "draws"]) -> Float[np.ndarray, "draws"]:
    """All values as standard normal scores under all but the first, as if these were of Pearson III."""
    null = figure[1:]
    p = pearson3.sf((figure - null.mean()) / max(float(null.std()), 1e-12), max(float(skew(null)), 1e-3))
    return -ndtri(np.clip(p, 1e-300, 1 - 1e-12))


def standard_score(total: Float[np.ndarray, "draws"]) -> float:
    """The first value as a standard normal score under the others: by their number, in the tail by their shape.

    The tail is that of Pearson III, by mean, deviation and skewness. A sum of squares falls off exponentially, which
    that may miss: of MORE draws the highest give a second tail, and the larger p-value counts.
    """
    null = total[1:]
    above = int((null >= total[0]).sum())
    if above >= COUNTED:
        return float(-ndtri((1 + min(above, len(null) - 1)) / (1 + len(null))))
    z = float((total[0] - null.mean()) / null.std())
    p = float(pearson3.sf(z, max(float(skew(null)), 1e-3)))
    if len(null) >= MORE:
        highest = np.sort(null)[-min(HIGHEST, len(null) // 20) :]
        excess = (total[0] - highest[0]) / (highest - highest[0]).mean()
        p = max(p, len(highest) / len(null) * float(np.exp(-max(excess, 0.0))))
    return float(min(-ndtri(p), LARGEST)) if p > 0 else LARGEST

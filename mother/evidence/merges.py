"""Exact relations: what floating-point numbers give away about how a model was made.

A trained weight is a random real number, so what follows never happens by chance: two equal tensors, a tensor that
is another one rounded to a coarser type, entries that are equal but for zeros, values on a grid, a
model that is an affine combination of others. Each test is exact up to the rounding of the stored type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mother.numeric.floats import ulp

RESIDUAL = 32.0  # times the expected rounding noise: what the arithmetic of a merge may leave
SCATTERED = 0.05  # share of equal entries from which an update was applied in part
SUPPORT = 0.1  # share of entries that have one ratio: by chance hardly one in a hundred
EXPLAINED = 0.95  # share of entries that a merge of parts must explain
DEPENDENT_AMONG = 10  # budget: nearest neighbours among which the parts of a combination are looked for
INSIDE = 0.01  # least coefficient of a parent of a merge


@dataclass(frozen=True)
class Merge:
    """A model that is a combination of others: places among its neighbours, mean coefficients, and how it was mixed."""

    parents: tuple[int, ...]
    coefficients: tuple[float, ...]
    method: str  # "linear": the same everywhere; "by layer": coefficients (SLERP: and lengths) of each layer


def _affine_fit(gram: Float[np.ndarray, "sets k k"]) -> tuple[Float[np.ndarray, "sets k"], Float[np.ndarray, "sets"]]:
    """Least |sum a_i D_i|^2 with sum a_i = 1, for each Gram matrix of the D_i: coefficients and residuals."""
    k = gram.shape[1]
    scale = np.trace(gram, axis1=1, axis2=2)[:, None, None]
    ridge = np.where(scale > 0, scale, 1) * np.eye(k) * 1e-14
    try:
        solved = np.linalg.solve(gram + ridge, np.ones((len(gram), k, 1)))[..., 0]
    except np.linalg.LinAlgError:  # of dependent differences the ridge may be lost in rounding
        solved = np.linalg.pinv(gram + ridge, hermitian=True).sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):  # no sum of 1: no combination, and no number is below NaN
        coefficients = solved / solved.sum(axis=1, keepdims=True)
        return coefficients, np.einsum("si,sij,sj->s", coefficients, gram, coefficients).clip(0)


def find_merge(gram: Float[np.ndarray, "layers k1 k1"], size: float, bits: int) -> Merge | None:
    """The merge that a model is of its neighbours, if it is one.

    `gram` holds, for each layer, the inner products of W_neighbour - W and, last, of W; `size` is the sum of W^2 and
    `bits` are the mantissa bits of the stored type. A merge is a convex combination of two to four
    neighbours with a residual at the level of rounding: of an affine dependent set only the merge is
    one. Spherical interpolation also scales each layer, so W itself joins the basis of each layer. Of several sets of
    neighbours the smallest is taken, and of these the one whose members lie farthest apart.
    """
    k = gram.shape[1] - 1
    whole = gram[:, :k, :k].sum(axis=0)
    if k < 2 or not (whole.diagonal() > 0).all():
        return None
    noise = RESIDUAL * size * 4.0**-bits / 12
    if noise > 0.01 * whole.diagonal().min():
        return None  # rounding hides what a combination would leave
    found: list[tuple[float, Merge]] = []
    for count in range(2, min(4, k) + 1):
        sets = np.array(list(combinations(range(k), count)))
        blocks = whole[sets[:, :, None], sets[:, None, :]]
        coefficients, residual = _affine_fit(blocks)
        for at in np.flatnonzero((residual <= noise) & (coefficients > INSIDE).all(axis=1)):
            spread = float(blocks[at].diagonal().sum())
            values = tuple(float(value) for value in coefficients[at])
            found.append((spread, Merge(tuple(int(p) for p in sets[at]), values, "linear")))
        if count == 2 and not found:
            found = _by_layer(gram, sets, noise)
        if found:
            return max(found, key=lambda entry: entry[0])[1]
    return None


def depends_on(gram: Float[np.ndarray, "layers k1 k1"], size: float, bits: int, neighbour: int) -> bool:
    """Whether a model is a combination, of any signs, of this neighbour and up to four others.

    Arguments as of `find_merge`. Of models on one line, or in one plane, each is a combination of the others.
    """
    k = gram.shape[1] - 1
    whole = gram[:, :k, :k].sum(axis=0)
    noise = RESIDUAL * size * 4.0**-bits / 12
    rest = [at for at in range(k) if at != neighbour and whole[at, at] > 0][:DEPENDENT_AMONG]
    if whole[neighbour, neighbour] <= 0:
        return False
    for count in range(1, min(4, len(rest)) + 1):
        sets = np.array([(neighbour, *others) for others in combinations(rest, count)])
        coefficients, residual = _affine_fit(whole[sets[:, :, None], sets[:, None, :]])
        if ((residual <= noise) & (np.abs(coefficients[:, 0]) > INSIDE)).any():
            return True
    return False


def _by_layer(
    gram: Float[np.ndarray, "layers k1 k1"], sets: Int[np.ndarray, "sets two"], noise: float
) -> list[tuple[float, Merge]]:
    """Pairs of neighbours that each layer, up to its length, is a convex combination of."""
    k = gram.shape[1] - 1
    residuals, weights = np.zeros(len(sets)), np.zeros(len(sets))
    coefficients, inside = np.zeros((len(sets), 2)), np.ones(len(sets), dtype=bool)
    for layer in gram:
        blocks = layer[sets[:, :, None], sets[:, None, :]]
        length = layer[k, k]
        if length > 0:  # leave out the part along W: its length is free
            along = layer[sets, k]
            blocks = blocks - along[:, :, None] * along[:, None, :] / length
        moved = np.trace(blocks, axis1=1, axis2=2)
        some = moved > 1e-12 * max(length, 1e-300)
        if not some.any():
            continue
        values, residual = _affine_fit(blocks)
        residuals += np.where(some, residual, moved)
        inside &= ~some | (values > INSIDE).all(axis=1)
        weight = np.where(some, moved, 0)
        coefficients += weight[:, None] * values
        weights += weight
    found = []
    for at in np.flatnonzero(inside & (residuals <= noise) & (weights > 0)):
        values = tuple(float(value) for value in coefficients[at] / weights[at])
        found.append((float(weights[at]), Merge(tuple(int(p) for p in sets[at]), values, "by layer")))
    return found


def scattered_equality(equal: Float[np.ndarray, "layers"], changed: Bool[np.ndarray, "layers"]) -> bool:
    """Whether most changed matrices share a good part of their entries: what dropping or trimming updates leaves."""
    partly = (equal > SCATTERED) & (equal < 1 - SCATTERED)
    return bool(changed.any()) and float(partly[changed].mean()) > 0.5


def _common_ratio(update: Float[Tensor, "entries"], of: Float[Tensor, "entries"]) -> tuple[float, float]:
    """The ratio update / of that most entries have, and the share of the entries that have it."""
    strong = (of.abs() > of.abs().median()) & (update != 0)
    if int(strong.sum()) < 64:
        return 0.0, 0.0
    ratios = (update[strong] / of[strong]).sort().values
    width = 0.002 * (1 + ratios.abs())
    counts = torch.searchsorted(ratios, ratios + width) - torch.arange(len(ratios), device=ratios.device)
    best = int(counts.argmax())
    return float(ratios[best : best + int(counts[best])].median()), float(counts[best]) / len(ratios)


def common_ratio(
    base: Float[Tensor, "entries"], other: Float[Tensor, "entries"], child: Float[Tensor, "entries"]
) -> float | None:
    """The multiple of other - base that a good share of the entries of child - base are, or None without any."""
    ratio, support = _common_ratio(child.double() - base.double(), other.double() - base.double())
    return ratio if support > SUPPORT and ratio > INSIDE else None


def explained_share(
    base: Float[Tensor, "entries"],
    parts: Sequence[tuple[float, Float[Tensor, "entries"]]],
    child: Float[Tensor, "entries"],
) -> float:
    """Share of entries of child - base that parts of two task vectors explain, given (multiple, model) of each.

    TIES and DARE merges drop entries of first - base and second - base, rescale what is left and add it: each entry is
    nothing, a multiple of one, the sum of both, or (TIES) their mean. The tolerance is the rounding of the weights.
    """
    update = child.double() - base.double()
    one, two = (multiple * (model.double() - base.double()) for multiple, model in parts)
    tolerance = 1e-3 * update.abs() + 4 * ulp(base, 23).double()
    explained = update.abs() <= tolerance
    for part in (one, two, one + two, (one + two) / 2):
        explained |= (update - part).abs() <= tolerance
    return float(explained.double().mean())

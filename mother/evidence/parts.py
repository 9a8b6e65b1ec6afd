"""Merges of parts (TIES, DARE): models that hold entries of others' updates, on top of the model that these share."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mother.numeric.floats import ulp

SCATTERED = 0.05  # share of equal entries from which an update was applied in part
SUPPORT = 0.1  # share of entries that have one ratio, beyond those of an update moved out of place: hardly one in 100
EXPLAINED = 0.98  # share of entries that a merge of parts must explain
BY_CHANCE = 0.25  # of the entries that updates moved out of place leave unexplained: what a merge may leave
LEAST_RATIO = 0.01  # of an update that a merge holds parts of
ROUNDINGS = 0.55  # units in the last place that a merge may be off: half of one where it is rounded once
RESOLVED = 2.0  # units in the last place that the median change must have: sums of updates explain smaller ones anyway
RATIO_WIDTH = 0.001  # ratios nearer than this, relative to 1 + |ratio|, are the same


def scattered_equality(equal: Float[np.ndarray, "layers"], changed: Bool[np.ndarray, "layers"]) -> bool:
    """Whether most changed matrices share a good part of their entries: what dropping or trimming updates leaves."""
    partly = (equal > SCATTERED) & (equal < 1 - SCATTERED)
    return bool(changed.any()) and float(partly[changed].mean()) > 0.5


def _common_ratio(
    update: Float[Tensor, "entries"], of: Float[Tensor, "entries"], noise: Float[Tensor, "entries"]
) -> tuple[float, float]:
    """The ratio update / of that most entries may have, given their noise, and the share of the entries that may.

    Each entry admits an interval of ratios; where most intervals overlap is the end of one.
    """
    strong = (of.abs() > of.abs().median()) & (update.abs() > noise)
    if int(strong.sum()) < 64:
        return 0.0, 0.0
    ratios, width = update[strong] / of[strong], noise[strong] / of[strong].abs()
    width = width + RATIO_WIDTH * (1 + ratios.abs())
    starts, ends = (ratios - width).sort().values, (ratios + width).sort().values
    counts = torch.arange(1, len(starts) + 1, device=of.device) - torch.searchsorted(ends, starts)
    best = int(counts.argmax())
    start = starts[best]
    inside = (ratios - width <= start) & (start <= ratios + width)
    # The ratio itself is where the sharpest of these agree.
    sharp = inside & (width <= width[inside].quantile(0.25))
    return float(ratios[sharp].median()), float(counts[best]) / len(ratios)


def common_ratio(
    base: Float[Tensor, "entries"], other: Float[Tensor, "entries"], child: Float[Tensor, "entries"], bits: int
) -> float | None:
    """The multiple of other - base that a good share of the entries of child - base are, or None without any.

    `bits` are the mantissa bits of the child.
    """
    update, of = child.double() - base.double(), other.double() - base.double()
    noise = ROUNDINGS * ulp(child, bits).double()
    ratio, support = _common_ratio(update, of, noise)
    if not (support > SUPPORT and ratio > LEAST_RATIO):
        return None
    by_chance = _common_ratio(update, of.roll(1), noise)[1]
    return ratio if support > by_chance + SUPPORT else None


def explained_share(
    base: Float[Tensor, "entries"],
    parts: Sequence[tuple[float, Float[Tensor, "entries"]]],
    child: Float[Tensor, "entries"],
    bits: int,
) -> float:
    """Share of the entries that child - base changed that parts of updates explain, given (multiple, model) of each.

    TIES and DARE merges (Yadav et al. 2023, Yu et al. 2024) drop entries of the updates, rescale what is left and add
    it: each entry is nothing, the sum of some of them, or (TIES) their mean. The tolerance is the rounding of the
    child, of `bits` mantissa bits. What this tolerance alone explains is told by the same updates out of their place:
    0 where it is not much less.
    """
    update = child.double() - base.double()
    updates = [multiple * (model.double() - base.double()) for multiple, model in parts]
    tolerance = 1e-3 * update.abs() + ROUNDINGS * ulp(torch.maximum(child.abs(), base.abs()), bits).double()
    tolerance += 4 * ulp(base, 23).double()

    changed = update.abs() > tolerance
    if int(changed.sum()) < 64 or float((update.abs() / ulp(child, bits))[changed].median()) < RESOLVED:
        return 0.0

    def explained(some: Sequence[Tensor]) -> float:
        found = torch.zeros_like(changed)
        for count in range(1, len(some) + 1):
            for chosen in combinations(some, count):
                total = sum(chosen, torch.zeros_like(update))
                found |= ((update - total).abs() <= tolerance) | ((update - total / count).abs() <= tolerance)
        return float(found[changed].double().mean())

    share, by_chance = explained(updates), explained([one.roll(1) for one in updates])
    return share if 1 - share <= BY_CHANCE * (1 - by_chance) else 0.0

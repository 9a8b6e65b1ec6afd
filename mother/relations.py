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

from mother.floats import mantissa_bits, ulp
from mother.spectra import rank_above_noise, rounding_noise

LEVELS = 256  # a grid has at most so many levels: 8 bits
SAMPLE = 1 << 13  # entries that the search for a grid looks at
REPEATED = 0.02  # share of a block's entries that repeat another one: on a grid far more, else nearly none
CASTS = ("float32", "bfloat16", "float16")  # float32: not cast at all
DORA_STEPS = 20  # of the fit of row lengths and row space; each gains about a digit
STALLED = 0.9  # part of the residual that a step of this fit leaves once it gets no better
RESIDUAL = 32.0  # times the expected rounding noise: what the arithmetic of a merge may leave
SCATTERED = 0.05  # share of equal entries from which an update was applied in part
SUPPORT = 0.1  # share of entries that have one ratio: by chance hardly one in a hundred
EXPLAINED = 0.95  # share of entries that a merge of parts must explain
OUTLIERS = 0.001  # share of entries that quantizing may have moved by more than half a step
INSIDE = 0.01  # least coefficient of a parent of a merge
_BLOCKS = ("tensor", "row", 32, 64, 128, 256)  # what shares one scale in the usual quantizers


@dataclass(frozen=True)
class Grid:
    """A tensor whose values, divided by the scale of their block, take few levels."""

    block: str | int
    zero_point: bool  # levels between the block's minimum and maximum, not symmetric about zero
    levels: int

    @property
    def bits(self) -> int:
        """Bits that number the levels."""
        return max(1, (self.levels - 1).bit_length())


def _blocks(weight: Float[Tensor, "rows columns"], block: str | int) -> Float[Tensor, "blocks entries"] | None:
    """The weight cut into the blocks that share one scale, one a row; None where it does not divide."""
    if block == "tensor":
        return weight.reshape(1, -1)
    if block == "row":
        return weight
    return weight.reshape(-1, block) if weight.numel() % block == 0 else None


def _part(weight: Float[Tensor, "rows columns"], block: str | int) -> Float[Tensor, "blocks entries"] | None:
    """Whole blocks of SAMPLE entries or fewer; the block of a tensor with its largest entry, which is its scale."""
    blocks = _blocks(weight, block)
    if blocks is None or weight.numel() <= SAMPLE:
        return blocks
    if block == "tensor":
        largest, smallest = weight.max().reshape(1, 1), weight.min().reshape(1, 1)
        return torch.cat([blocks[:, :SAMPLE], largest, smallest], dim=1)
    return blocks[: max(1, SAMPLE // blocks.shape[1])]


def _normalised(blocks: Float[Tensor, "blocks entries"], zero_point: bool) -> Float[Tensor, "blocks entries"]:
    """Entries in units of their block's largest magnitude, or of its range."""
    blocks = blocks.double()
    if zero_point:
        low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
        return (blocks - low) / (high - low).clamp(min=1e-300)
    return blocks / blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)


def _count_levels(
    values: Float[Tensor, "blocks entries"], tolerance: float, zero_point: bool, share: float
) -> int | None:
    """Number of levels of normalised values, or None where they are not few.

    Only values up to `share` of the largest are looked at: rounding is relative to a value's size, so in
    half precision the fine levels are told apart near zero only.
    """
    values = values.flatten()
    if not zero_point:
        values = values[values != 0]  # zero is a level, and is what pruning leaves
    values = values[values.abs() <= share].sort().values
    if len(values) < 16:
        return None
    scale = torch.ones_like(values) if zero_point else values.abs()
    gaps = values.diff() > tolerance * scale[1:].clamp(min=2.0**-10)
    starts = torch.cat([torch.ones(1, dtype=torch.bool, device=values.device), gaps])
    group = starts.long().cumsum(0) - 1
    levels = int(group[-1]) + 1 + (not zero_point)
    # Continuous values crowd into chains of small gaps; those of one level differ by rounding only.
    spread = (values - values[starts][group]) / scale.clamp(min=2.0**-10)
    if zero_point and levels * tolerance > 0.5:
        return None  # levels closer together than rounding
    few = 2 < levels <= max(3, LEVELS * share) and len(values) >= 4 * levels and spread.max() <= 2 * tolerance
    return round(levels / share) if few else None


def _repeats(weight: Float[Tensor, "rows columns"]) -> bool:
    """Whether magnitudes repeat, within the rows or within the tensor: a quick sign of few levels."""
    for part in (weight, weight.reshape(1, -1)):
        part = part.abs().sort(dim=1).values
        if ((part.diff(dim=1) == 0) & (part[:, 1:] != 0)).double().mean() > REPEATED:
            return True
    return False


def find_grid(weight: Float[Tensor, "rows columns"]) -> Grid | None:
    """The grid that all entries lie on, or None: levels counted after dividing by the scale of each block.

    Tried are one scale for the tensor, a row, or a block of consecutive entries, with and without a zero
    point. Levels are told apart above the rounding of the type that holds the values; a tensor counts as quantized
    if it has no more than LEVELS, and at least four times as many entries as levels, so that continuous
    weights, of which no two are equal, never do. The coarsest grid that fits is returned.
    """
    if weight.numel() < 4 or not weight.any():
        return None
    sample = _part(weight, "row")
    if not _repeats(sample):
        return None
    tolerance = 4 * 2.0 ** -mantissa_bits(sample)
    found = None
    for block in _BLOCKS:
        blocks = _part(weight, block)
        if blocks is None:
            continue
        blocks = blocks[blocks.abs().amax(dim=1) > 0]  # pruned ones have no scale
        for zero_point in (False, True):
            values = _normalised(blocks, zero_point)
            # Beside a zero point the rounding of a value has nothing to do with its place in the range.
            shares = (1.0,) if zero_point else (1.0, 0.25)
            counts = (_count_levels(values, tolerance, zero_point, share) for share in shares)
            levels = next((count for count in counts if count is not None), None)
            if levels is not None and (found is None or levels < found.levels):
                found = Grid(block, zero_point, levels)
    return found


def grid_step(weight: Float[Tensor, "rows columns"], grid: Grid) -> float:
    """The widest gap between levels, in units of a block's scale (levels may be spaced unevenly)."""
    blocks = _blocks(weight, grid.block)
    if blocks is None:
        return 0.0
    values = _normalised(blocks, grid.zero_point).flatten().sort().values
    return float(values.diff().max()) if len(values) > 1 else 0.0


def quantization_noise(
    parent: Float[Tensor, "rows columns"],
    child: Float[Tensor, "rows columns"],
    grid: Grid | None,
    grid_step: float,
) -> bool:
    """Whether child - parent is what rounding the parent to a grid leaves: within half a step almost everywhere.

    `grid` is the child's, with its `grid_step`. Without one (half precision hides fine grids) one of 8 bits is
    tried, and the noise must then be as large as that of a uniform error, too.
    """
    difference = (child - parent).abs()
    largest, bits = float(difference.max()), mantissa_bits(child)
    # No error is above half a step, give or take the rounding of the stored type: most pairs end here.
    bound = (0.6 * (grid_step if grid else 1 / 127) + 2.0**-bits) * 2 * float(child.abs().max())
    if largest == 0 or (largest > bound and (grid is None or (difference > bound).double().mean() > OUTLIERS)):
        return False
    difference = difference.double()
    stored = ulp(torch.maximum(parent.abs(), child.abs()), bits).double() / 2
    for block, zero_point in (
        [(grid.block, grid.zero_point)] if grid else [(b, z) for b in _BLOCKS for z in (False, True)]
    ):
        blocks, noise, rounding = (_blocks(x, block) for x in (child, difference, stored))
        if blocks is None:
            continue
        values = blocks.double()
        step = grid_step if grid is not None else 1 / 255 if zero_point else 1 / 127
        if zero_point:
            scale = values.amax(dim=1, keepdim=True) - values.amin(dim=1, keepdim=True)
        else:
            scale = values.abs().amax(dim=1, keepdim=True)
        bound = 0.55 * step * scale + rounding
        if (noise > bound).double().mean() > OUTLIERS:
            continue
        uniform = (step * scale).square().mean() / 12
        if grid is not None or noise.square().mean() > 0.5 * uniform:
            return True
    return False


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
    solved = np.linalg.solve(gram + ridge, np.ones((len(gram), k, 1)))[..., 0]
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


def _row_scaled_residual(w: Float[Tensor, "rows columns"], c: Float[Tensor, "rows columns"], rank: int) -> bool:
    """Whether child - diag(g) parent has no more than this rank above rounding noise, for the best g."""
    outside_w, outside_c, left = w, c, float("inf")
    for _ in range(DORA_STEPS):
        scale = (outside_c * outside_w).sum(dim=1) / outside_w.square().sum(dim=1).clamp(min=1e-300)
        rest = c - scale[:, None] * w
        values, vectors = torch.linalg.eigh(rest.T @ rest)
        before, left = left, float(values[:-rank].sum())
        if left > STALLED * before:
            break  # as good as it gets: rounding, or no DoRA
        basis = vectors[:, -rank:]
        outside_w, outside_c = w - (w @ basis) @ basis.T, c - (c @ basis) @ basis.T
    scaled = (scale[:, None] * w).float()
    bits = torch.tensor([min(mantissa_bits(w.float()), mantissa_bits(c.float()))], dtype=torch.int32, device=w.device)
    noise = rounding_noise(scaled[None], c.float()[None], bits)
    return int(rank_above_noise(torch.linalg.svdvals(rest)[None], 2 * noise)[0]) <= rank


def row_scaled_rank(parent: Float[Tensor, "rows columns"], child: Float[Tensor, "rows columns"]) -> int | None:
    """Rank r of the update if child = diag(g) (parent + B A) up to rounding, as DoRA leaves it, else None.

    DoRA gives every row of parent + B A a new length, which makes the difference one of full rank. The lengths g
    are those that fit the part of the rows outside A's row space; the row space is that of the leading singular
    vectors of child - diag(g) parent; the two are found in turn. The least rank for which nothing but rounding is
    left, up to a quarter of the smaller side, is found by bisection.
    """
    w, c = parent.double(), child.double()
    high = min(w.shape) // 4
    if high < 1 or torch.equal(parent, child) or not _row_scaled_residual(w, c, high):
        return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if _row_scaled_residual(w, c, middle):
            high = middle
        else:
            low = middle
    return high

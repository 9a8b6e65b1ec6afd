"""Grids: tensors whose values take few levels, and differences that rounding to a grid leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mother.numeric.floats import mantissa_bits, ulp

LEVELS = 256  # a grid has at most so many levels: 8 bits
GRID_ENTRIES = 1 << 13  # budget: entries that the search for a grid looks at
REPEATED = 0.02  # share of a block's entries that repeat another one: on a grid far more, else nearly none
OUTLIERS = 0.001  # share of entries that quantizing may have moved by more than half a step
MULTIPLE = 0.05  # mean distance to the next multiple: of others it is a quarter
UNEVEN = 0.08  # by how much the share of rounding errors in a quarter of half a step may differ from a quarter
FEW_LEVELS = 8  # levels from which on weights are even between them
_BLOCKS = ("tensor", "row", 32, 64, 128, 256)  # what shares one scale in the usual quantizers


@dataclass(frozen=True)
class Grid:
    """A tensor whose values, divided by the scale of their block, take few levels."""

    block: str | int
    zero_point: bool  # levels between the block's minimum and maximum, not symmetric about zero
    levels: int
    turned: bool = False  # blocks of the transposed matrix

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
    """Whole blocks of GRID_ENTRIES or fewer; the block of a tensor with its largest entry, which is its scale."""
    blocks = _blocks(weight, block)
    if blocks is None or weight.numel() <= GRID_ENTRIES:
        return blocks
    if block == "tensor":
        largest, smallest = weight.max().reshape(1, 1), weight.min().reshape(1, 1)
        return torch.cat([blocks[:, :GRID_ENTRIES], largest, smallest], dim=1)
    return blocks[: max(1, GRID_ENTRIES // blocks.shape[1])]


def _normalised(blocks: Float[Tensor, "blocks entries"], zero_point: bool) -> Float[Tensor, "blocks entries"]:
    """Entries in units of their block's largest magnitude, or of its range."""
    blocks = blocks.double()
    if zero_point:
        low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
        return (blocks - low) / (high - low).clamp(min=1e-300)
    return blocks / _scale(blocks).clamp(min=1e-300)


def _scale(blocks: Float[Tensor, "blocks entries"]) -> Float[Tensor, "blocks one"]:
    """The magnitude of each block's last positive level: of signed integers -128 is one beyond 127, and -8 beyond 7.

    A block that has it is told by its values: multiples of a 128th of the largest, not of a 127th.
    """
    scale = blocks.abs().amax(dim=1, keepdim=True)
    relative, open_ = blocks / scale.clamp(min=1e-300), torch.ones_like(scale, dtype=torch.bool)
    for last in (7, 127):
        signed, full = (
            ((relative * k) - (relative * k).round()).abs().mean(dim=1, keepdim=True) < MULTIPLE
            for k in (last, last + 1)
        )
        scale = torch.where(open_ & full & ~signed, scale * (last / (last + 1)), scale)
        open_ &= ~(signed | full)
    return scale


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


def find_turned_grid(weight: Float[Tensor, "rows columns"]) -> Grid | None:
    """The grid of the columns: of matrices that files hold the other way round (Conv1D), whose rows were quantized."""
    few = max(1, -(-GRID_ENTRIES // len(weight)))
    found = find_grid(weight[:, :few].T.contiguous())
    return None if found is None else replace(found, turned=True)


@dataclass(frozen=True)
class OnGrid:
    """A matrix on its grid: what is the same for each model that it may have been made from."""

    grid: Grid
    step: float  # the widest gap between levels, in units of a block's scale: levels may be spaced unevenly
    largest: float  # magnitude of an entry
    bits: int  # of the mantissa that it is stored with
    scale: Float[Tensor, "blocks one"] | None  # None where blocks do not divide it

    @property
    def most(self) -> float:
        """No error of quantizing is above half a step, give or take the rounding of the stored type."""
        return _most(self.step, self.bits, self.largest)


def _most(step: float, bits: int, largest: float) -> float:
    return (0.6 * step + 2.0**-bits) * 2 * largest


def may_be_noise(
    parents: Float[Tensor, "pairs rows columns"], children: Float[Tensor, "pairs rows columns"], on: Sequence[OnGrid]
) -> list[bool]:
    """Whether `quantization_noise` of some pairs, whose children lie on grids, has to look closer: most end here.

    The children of one kind of grid are looked at together: few errors may be above half a step of their block.
    """
    found = [False] * len(on)
    kinds: dict[tuple[str | int, bool, int], list[int]] = {}
    for at, one in enumerate(on):
        if one.scale is not None:
            kinds.setdefault((one.grid.block, one.grid.turned, one.bits), []).append(at)
    for (_, turned, bits), some in kinds.items():
        parent, child = (one[some].mT if turned else one[some] for one in (parents, children))
        scale = torch.stack([scale for at in some if (scale := on[at].scale) is not None])
        step = scale.new_tensor([0.55 * on[at].step for at in some])[:, None, None]
        most = child.new_tensor([on[at].most for at in some])[:, None, None]
        error = (child - parent).abs()
        rounding = ulp(torch.maximum(parent.abs(), child.abs()), bits).double() / 2
        of_blocks, rounding = (one.reshape(len(some), scale.shape[1], -1) for one in (error.double(), rounding))
        first, second = (
            beyond.double().mean(dim=(1, 2)) <= OUTLIERS
            for beyond in (error > most, of_blocks > step * scale + rounding)
        )
        for at, may in zip(some, (first & second).tolist()):
            found[at] = may
    return found


def on_grid(weight: Float[Tensor, "rows columns"], grid: Grid) -> OnGrid:
    """What `quantization_noise` needs to know of a matrix that lies on a grid."""
    weight = weight.T.contiguous() if grid.turned else weight
    blocks, step, scale = _blocks(weight, grid.block), 0.0, None
    if blocks is not None:
        scale = _unit(blocks.double(), grid.zero_point)
        values = _normalised(blocks, grid.zero_point).flatten().sort().values
        step = float(values.diff().max()) if len(values) > 1 else 0.0
    return OnGrid(grid, step, float(weight.abs().max()), mantissa_bits(weight), scale)


def _unit(values: Float[Tensor, "blocks entries"], zero_point: bool) -> Float[Tensor, "blocks one"]:
    """What levels are counted in: the range of a block, or the magnitude of its last level."""
    if zero_point:
        return values.amax(dim=1, keepdim=True) - values.amin(dim=1, keepdim=True)
    return _scale(values)


def quantization_noise(
    parent: Float[Tensor, "rows columns"], child: Float[Tensor, "rows columns"], on: OnGrid | None
) -> bool:
    """Whether child - parent is what rounding the parent to a grid leaves: within half a step almost everywhere.

    `on` is the child on its grid. Without one (half precision hides fine grids) one of 8 bits is tried. The noise must
    be spread evenly between no step and half a step: an update of one unit in the last place is not.
    """
    grid = None if on is None else on.grid
    if grid is not None and grid.turned:
        parent, child = parent.T.contiguous(), child.T.contiguous()
    difference = (child - parent).abs()
    largest, bits = float(difference.max()), mantissa_bits(child) if on is None else on.bits
    bound = _most(1 / 127, bits, float(child.abs().max())) if on is None else on.most
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
        if on is not None:
            step, scale = on.step, on.scale
        else:
            step, values = 1 / 255 if zero_point else 1 / 127, blocks.double()
            scale = _unit(values, True) if zero_point else values.abs().amax(dim=1, keepdim=True)
        bound = 0.55 * step * scale + rounding
        if (noise > bound).double().mean() > OUTLIERS:
            continue
        values = blocks.double()
        error, values = _blocks(parent, block) - values, values / scale.clamp(min=1e-300)
        if grid is None:  # where the stored type hides nothing of the step
            clear = rounding < step * scale / 16
            position = (error.abs() / (step * scale / 2))[clear & (scale > 0)]
        else:
            position = _positions(values, error / scale.clamp(min=1e-300), 2.0**-bits, grid.levels)
        if (grid is not None and grid.levels < FEW_LEVELS) or _is_even(position):
            return True
    return False


def _positions(
    values: Float[Tensor, "blocks entries"], error: Float[Tensor, "blocks entries"], precision: float, count: int
) -> Float[Tensor, "some"]:
    """Where rounded entries were between their level (0) and the middle to the next (1); not those beyond the ends."""
    values, error = values.flatten(), error.flatten()
    ordered = values.sort().values
    first = torch.ones(1, dtype=torch.bool, device=values.device)
    levels = ordered[torch.cat([first, ordered.diff() > 4 * precision * ordered[1:].abs().clamp(min=2.0**-4)])]
    if len(levels) < 3:
        return values.new_zeros(0)
    at = (torch.searchsorted(levels, values + 1e-12) - 1).clamp(min=0)
    inside = (at > 0) & (at < len(levels) - 1) & (error != 0)
    inside &= values.abs() * precision * 8 < 1 / count  # where the levels are told apart
    at, error = at[inside], error[inside]
    gap = torch.where(error > 0, levels[at + 1] - levels[at], levels[at] - levels[at - 1])
    return error.abs() / (gap / 2)


def _is_even(position: Float[Tensor, "some"]) -> bool:
    """Whether positions are spread evenly over 0 .. 1, as those of rounding errors are and those of updates are not."""
    if len(position) < 64:
        return False
    share = torch.histc(position.clamp(max=1).float(), 4, 0, 1) / len(position)
    return float((share - 0.25).abs().max()) <= UNEVEN + 3 * (0.19 / len(position)) ** 0.5

"""Merged twins: a stored model that is another one with an adapter's update, up to the rounding of its numbers."""

import math
from collections.abc import Mapping
from enum import IntEnum

import torch

from mother.evidence.consumers import Surroundings
from mother.io.checkpoint import Checkpoint
from mother.io.reader import DTYPES
from mother.numeric.floats import MANTISSA, cast

# Half a step over the number; all is read in float32.
EPSILON = {key: 2.0 ** -(MANTISSA.get(name, MANTISSA["float32"]) + 1) for key, name in DTYPES.items()}
SLACK = 4.0  # times the rounding error that the residual may have: products of factors are rounded on their way, too
CLEAR = 0.25  # share of an update that rounding may hide: where it is more, nothing is told
BY_CHANCE = 1e-9  # probability that an update which has nothing to do with a model is taken for the one merged into it
HALF = ("F16", "BF16")


class Merged(IntEnum):
    """How a model is a base with an update; what explains it best comes first."""

    EXACT = 1  # the sum is the model, entry by entry, once it is rounded to what the model is stored in
    CAST_FIRST = 2  # the same, where the base was rounded before the update was added
    NEARLY = 3  # the residual is as small as rounding


def is_merged(
    updates: Mapping[str, torch.Tensor], base: Checkpoint, merged: Checkpoint, one: Surroundings, other: Surroundings
) -> Merged | None:
    """Whether a model is a base with an update: all matrices that it changes, and none else; and how."""
    dtypes = {info.dtype for _, info in merged.tensors.values()}
    if not dtypes <= EPSILON.keys() or base.tensors.keys() != merged.tensors.keys():
        return None
    if not updates or any(name not in one.matrices or name not in other.matrices for name in updates):
        return None
    names = sorted(updates, key=lambda name: math.prod(one.pieces[name].shape))  # the smallest may tell
    if any(one.pieces[name].shape != other.pieces[name].shape for name in names):
        return None
    stored = {name: merged.tensors[other.pieces[name].raw][1].dtype for name in names}
    changed = {one.pieces[name].raw for name in names}
    rest = [name for name in base.tensors if name not in changed and base.tensors[name][1].dtype in EPSILON]
    how = _exactly(names, updates, stored, one, other) if set(stored.values()) <= {*HALF} else None
    if how is not None:
        return how if all(_is_same(base, merged, name, rounded=True) for name in rest) else None
    if not _nearly(names, updates, max(EPSILON[dtype] for dtype in dtypes), one, other):
        return None
    return Merged.NEARLY if all(_is_same(base, merged, name, rounded=False) for name in rest) else None


def _exactly(
    names: list[str],
    updates: Mapping[str, torch.Tensor],
    stored: Mapping[str, str],
    one: Surroundings,
    other: Surroundings,
) -> Merged | None:
    """Whether the sum of base and update, rounded, is the model in every entry that can tell.

    An entry can tell where base and sum round to different numbers, and where what rounding the update did to it, in
    float32 or in the type of the model, does not matter. The null: of an update that has nothing to do with the model
    the sign is wrong in every other entry, so that all of n such entries are equal with probability 2^-n at most.
    """
    ways = [(how, wide) for how in (Merged.EXACT, Merged.CAST_FIRST) for wide in (False, True)]
    telling = dict.fromkeys(ways, 0)
    for name in names:
        before, after, update = one.matrices[name], other.matrices[name], updates[name]
        if before.shape != after.shape or before.shape != update.shape:
            return None
        rounded = cast(before, DTYPES[stored[name]])
        for how, wide in list(telling):
            start = before if how == Merged.EXACT else rounded
            found = _equal(start, update, after, rounded, DTYPES[stored[name]], wide)
            if found is None:
                del telling[how, wide]
            else:
                telling[how, wide] += found
        if not telling:
            return None
    return next((how for (how, _), count in telling.items() if 0.5**count <= BY_CHANCE), None)


def _equal(
    start: torch.Tensor, update: torch.Tensor, after: torch.Tensor, alone: torch.Tensor, dtype: str, wide: bool
) -> int | None:
    """How many entries tell that a matrix is the sum of two others, rounded; None where one tells that it is not.

    `alone` is the base, rounded. In a `wide` look the update may have been rounded to the type, and scaled after that.
    """
    size, step = update.abs(), torch.finfo(getattr(torch, dtype))
    error = SLACK * EPSILON["F32"] * (start.abs() + size + size.max())
    if wide:
        error = error + step.eps * size + step.smallest_normal * step.eps
    total = start.double() + update.double()
    low, high = (cast((total + sign * error).float(), dtype) for sign in (-1, 1))
    sure = low == high
    if not torch.equal(after[sure], low[sure]):
        return None
    return int((sure & (low != alone)).sum())


def _nearly(
    names: list[str], updates: Mapping[str, torch.Tensor], step: float, one: Surroundings, other: Surroundings
) -> bool:
    """Whether the residual of each changed matrix is its rounding, which must be far smaller than the update."""
    for name in names:
        before, after, update = one.matrices[name], other.matrices[name], updates[name]
        if before.shape != after.shape or before.shape != update.shape:
            return False
        rounding = SLACK * step * float(torch.maximum(before.abs(), after.abs()).norm())
        if rounding > CLEAR * float(update.norm()) or float((after - before - update).norm()) > rounding:
            return False
    return True


def _is_same(base: Checkpoint, merged: Checkpoint, name: str, rounded: bool) -> bool:
    """Whether two models have one tensor; or once it is `rounded` to the type of the second."""
    (_, first), (_, second) = base.tensors[name], merged.tensors[name]
    if first.shape != second.shape:
        return False
    before, after = base.read_tensor(name), merged.read_tensor(name)
    if rounded and second.dtype in HALF:
        before = cast(before, DTYPES[second.dtype])
    return torch.equal(before, after)

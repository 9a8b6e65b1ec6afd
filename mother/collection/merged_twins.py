"""Merged twins: a stored model that is another one with an adapter's update, up to the rounding of its numbers."""

import math
from collections.abc import Mapping
from enum import IntEnum

import torch

from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.checkpoint import Checkpoint
from mother.io.layers import canonical_name
from mother.io.reader import DTYPES
from mother.numeric.floats import MANTISSA, cast

# Half a step over the number; all is read in float32.
EPSILON = {key: 2.0 ** -(MANTISSA.get(name, MANTISSA["float32"]) + 1) for key, name in DTYPES.items()}
SLACK = 4.0  # times the rounding error that the residual may have: products of factors are rounded on their way, too
CLEAR = 0.25  # share of an update that rounding may hide: where it is more, nothing is told
BY_CHANCE = 1e-9  # probability that an update which has nothing to do with a model is taken for the one merged into it
HALF = ("F16", "BF16")
# (the base is rounded first, the factors are rounded first, roundings of the update on its way)
WAYS = ((False, False, 0), (False, False, 2), (True, False, 0), (True, False, 2), (True, True, 0), (True, True, 4))
UNDERFLOW = 8  # smallest numbers of a type that such roundings may leave


class Merged(IntEnum):
    """How a model is a base with an update; what explains it best comes first."""

    EXACT = 1  # the sum is the model, entry by entry, once it is rounded to what the model is stored in
    CAST_FIRST = 2  # the same, where the base was rounded before the update was added
    NEARLY = 3  # the residual is as small as rounding


def is_merged(adapted: AdaptedCheckpoint, merged: Checkpoint) -> Merged | None:
    """Whether a model is a base with an adapter: all tensors that it changes, and none else; and how.

    In half precision every entry is looked at; in float32 a residual of its rounding says as much.
    """
    own, there = _floats(adapted), _floats(merged)
    if own is None or there is None or own.keys() != there.keys():
        return None
    pairs = {own[name]: there[name] for name in own}
    if any(adapted.tensors[one][1].shape != merged.tensors[other][1].shape for one, other in pairs.items()):
        return None
    # The smallest may tell.
    names = sorted(adapted.update_of, key=lambda name: math.prod(adapted.tensors[name][1].shape))
    stored = {name: merged.tensors[pairs[name]][1].dtype for name in names if name in pairs}
    if not names or len(stored) < len(names):
        return None
    how = _exactly(adapted, merged, pairs, stored) if set(stored.values()) <= {*HALF} else None
    if how is not None:
        return how if _rest_is_same(adapted, merged, pairs, rounded=True) else None
    step = max(EPSILON[merged.tensors[other][1].dtype] for other in pairs.values())
    if not all(_nearly(adapted, merged, name, pairs[name], step) for name in names):
        return None
    if not _rest_is_same(adapted, merged, pairs, rounded=False):
        return None
    return Merged.EXACT if not {*stored.values()} & {*HALF} else Merged.NEARLY


def _floats(checkpoint: Checkpoint) -> dict[str, str] | None:
    """The floating-point tensors by their names without wrappers; None where two would have one name."""
    names = [name for name, (_, info) in checkpoint.tensors.items() if info.dtype in DTYPES]
    found = {canonical_name(name): name for name in names}
    return found if len(found) == len(names) else None


def _exactly(
    adapted: AdaptedCheckpoint, merged: Checkpoint, pairs: Mapping[str, str], stored: Mapping[str, str]
) -> Merged | None:
    """Whether the sum of base and update, rounded, is the model in every entry that can tell.

    An entry can tell where base and sum round to different numbers, and where what rounding the update did to it, in
    float32 or in the type of the model, does not matter. The null: of an update that has nothing to do with the model
    the sign is wrong in every other entry, so that all of n such entries are equal with probability 2^-n at most.
    """
    telling = dict.fromkeys(WAYS, 0)
    for name, dtype in stored.items():
        before, after, kind = adapted.before(name), merged.read_tensor(pairs[name]), DTYPES[dtype]
        rounded = cast(before, kind)
        for way in list(telling):
            start = rounded if way[0] else before
            total = adapted.applied_to(name, start, kind if way[1] else "float32")
            found = _equal(start, total, after, rounded, kind, way[2])
            if found is None:
                del telling[way]
            else:
                telling[way] += found
        if not telling:
            return None
    first = next((way for way, count in telling.items() if 0.5**count <= BY_CHANCE), None)
    return None if first is None else Merged.CAST_FIRST if first[0] else Merged.EXACT


def _equal(
    start: torch.Tensor, total: torch.Tensor, after: torch.Tensor, alone: torch.Tensor, dtype: str, roundings: int
) -> int | None:
    """How many entries tell that a tensor is this total, rounded; None where one tells that it is not.

    `alone` is the base, rounded. `roundings` to the type, each of half a step, may have moved the update on its way.
    """
    size, step = (total - start).abs(), torch.finfo(getattr(torch, dtype))
    error = SLACK * EPSILON["F32"] * (start.abs() + size + size.max())
    if roundings:
        error = error + roundings / 2 * step.eps * size + UNDERFLOW * step.smallest_normal * step.eps
    low, high = (cast((total.double() + sign * error).float(), dtype) for sign in (-1, 1))
    sure = low == high
    if not torch.equal(after[sure], low[sure]):
        return None
    return int((sure & (low != alone)).sum())


def _nearly(adapted: AdaptedCheckpoint, merged: Checkpoint, name: str, there: str, step: float) -> bool:
    """Whether the residual of a changed tensor is its rounding, which must be far smaller than the update."""
    before, after = adapted.before(name), merged.read_tensor(there)
    update = adapted.applied_to(name, before).double() - before
    rounding = SLACK * step * float(torch.maximum(before.abs(), after.abs()).norm())
    if rounding > CLEAR * float(update.norm()):
        return False
    return float((after.double() - before - update).norm()) <= rounding


def _rest_is_same(adapted: AdaptedCheckpoint, merged: Checkpoint, pairs: Mapping[str, str], rounded: bool) -> bool:
    """Whether all that the adapter does not change is the same; or once it is `rounded` to the types of the second.

    A head that is stored beside the embedding that it is tied to changes with that one.
    """
    for name, there in pairs.items():
        if name in adapted.update_of:
            continue
        before, after, dtype = adapted.read_tensor(name), merged.read_tensor(there), merged.tensors[there][1].dtype
        kept = cast(before, DTYPES[dtype]) if rounded and dtype in HALF else before
        if not torch.equal(kept, after) and not any(
            before.shape == adapted.tensors[other][1].shape
            and torch.equal(adapted.before(other), before)
            and torch.equal(merged.read_tensor(pairs[other]), after)
            for other in adapted.update_of
        ):
            return False
    return True

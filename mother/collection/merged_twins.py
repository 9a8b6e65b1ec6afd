"""Merged twins: a stored model that is another one with an adapter's update, up to the rounding of its numbers."""

import math
from collections.abc import Mapping

import torch

from mother.evidence.consumers import Surroundings
from mother.io.checkpoint import Checkpoint
from mother.io.reader import DTYPES
from mother.numeric.floats import MANTISSA

# Half a step over the number; all is read in float32.
EPSILON = {key: 2.0 ** -(MANTISSA.get(name, MANTISSA["float32"]) + 1) for key, name in DTYPES.items()}
SLACK = 4.0  # times the rounding error that the residual may have: products of factors are rounded on their way, too
CLEAR = 0.25  # share of an update that rounding may hide: where it is more, nothing is told


def is_merged(
    updates: Mapping[str, torch.Tensor], base: Checkpoint, merged: Checkpoint, one: Surroundings, other: Surroundings
) -> bool:
    """Whether a model is a base with an update: all matrices that it changes, and none else.

    The residual of each changed matrix must be its rounding, which must be far smaller than the update.
    """
    dtypes = {info.dtype for _, info in merged.tensors.values()}
    if not dtypes <= EPSILON.keys() or base.tensors.keys() != merged.tensors.keys():
        return False
    step = max(EPSILON[dtype] for dtype in dtypes)
    if not updates or any(name not in one.matrices or name not in other.matrices for name in updates):
        return False
    names = sorted(updates, key=lambda name: math.prod(one.pieces[name].shape))  # the smallest may tell
    for name in names:
        before, after, update = one.matrices[name], other.matrices[name], updates[name]
        if before.shape != after.shape or before.shape != update.shape:
            return False
        rounding = SLACK * step * float(torch.maximum(before.abs(), after.abs()).norm())
        if rounding > CLEAR * float(update.norm()) or float((after - before - update).norm()) > rounding:
            return False
    changed = {one.pieces[name].raw for name in names}
    rest = [name for name in base.tensors if name not in changed and base.tensors[name][1].dtype in EPSILON]
    return all(
        base.tensors[name][1].shape == merged.tensors[name][1].shape
        and torch.equal(base.read_tensor(name), merged.read_tensor(name))
        for name in rest
    )

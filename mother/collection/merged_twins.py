"""Merged twins: a stored model that is another one with an adapter's update, up to the rounding of its numbers."""

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
    updates: dict[str, torch.Tensor], base: Checkpoint, merged: Checkpoint, one: Surroundings, other: Surroundings
) -> bool:
    """Whether a model is a base with an update: all matrices that it changes, and none else.

    The residual of each changed matrix must be its rounding, which must be far smaller than the update.
    """
    dtypes = {info.dtype for _, info in merged.tensors.values()}
    if not dtypes <= EPSILON.keys() or base.tensors.keys() != merged.tensors.keys():
        return False
    step = max(EPSILON[dtype] for dtype in dtypes)
    names = sorted(updates, key=lambda name: updates[name].numel())
    if not names or any(name not in one.matrices or name not in other.matrices for name in names):
        return False
    for name in names:
        before, after, update = one.matrices[name], other.matrices[name], updates[name]
        if before.shape != after.shape or before.shape != update.shape:
            return False
        rounding = SLACK * step * float(torch.maximum(before.abs(), after.abs()).norm())
        if rounding > CLEAR * float(update.norm()) or float((after - before - update).norm()) > rounding:
            return False
    changed = {one.pieces[name].raw for name in names}
    rest = [name for name in base.tensors if name not in changed and base.tensors[name][1].dtype in EPSILON]
    first, second = (checkpoint.read_tensors(rest) for checkpoint in (base, merged))
    return all(first[name].shape == second[name].shape and torch.equal(first[name], second[name]) for name in rest)

"""From which numbers each entry of a matrix may have been rounded: the interval around a code, or around a half.

Where the interval of a format is known exactly, two models whose intervals do not meet in one entry were not rounded
from one model. Two that meet in all of very many entries were, or from two that are nearer to each other than a step.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mother.evidence.codes import FP4, GGUF_RULES, NF4, TOLERANCE, Matrix, block_of, cut, largest, nearest, steps_of
from mother.io.reader import Storage
from mother.numeric.floats import stored_precision, ulp

SCALE = 2.0**-11  # of a scale that GGUF rounds to float16 after the codes were chosen
FLOAT8 = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
CLIPPED = {"Q4_0": 7, "Q5_0": 15}  # the last code on the side without the largest entry: what lies beyond is cut off


class Interval(NamedTuple):
    """Lowest and highest number that each entry may have come from; infinite where that is not known."""

    low: Float[Tensor, "rows columns"]
    high: Float[Tensor, "rows columns"]

    @property
    def known(self) -> Bool[Tensor, "rows columns"]:
        """Where both ends are known."""
        return self.low.isfinite() & self.high.isfinite()


def interval_of(storage: Storage | None, weight: Matrix) -> Interval | None:
    """The interval of a matrix that is stored so; None of a format whose rounding is not known exactly.

    Conv1D stands the other way round in its file, and its blocks with it.
    """
    if storage is None or (storage.format == "fp8" and storage.bits is None):
        return _cast(FLOAT8[storage.detail] if storage is not None else stored_precision(weight), weight)
    found = [_blocks(storage, weight), _blocks(storage, weight.T.contiguous())]
    best = max((one for one in found if one is not None), key=lambda one: int(one.known.sum()), default=None)
    if best is None or 2 * int(best.known.sum()) <= weight.numel():
        return None
    return best if best is found[0] else Interval(best.low.T, best.high.T)


def _cast(kind: str, weight: Matrix) -> Interval:
    """Half a unit in the last place on either side of what was rounded to a type; nothing in full precision."""
    if kind == "float32":
        return Interval(weight.double(), weight.double())
    type_ = torch.finfo(getattr(torch, kind))
    # Numbers below the normal ones are no closer than these.
    half = ulp(weight, round(-math.log2(type_.eps))).double().clamp(min=type_.smallest_normal * type_.eps) / 2
    return Interval(weight.double() - half, weight.double() + half)


def _blocks(storage: Storage, weight: Matrix) -> Interval | None:
    named = storage.format == "gguf" and storage.detail in GGUF_RULES
    if not named and (storage.format not in ("nf4", "fp4") or storage.detail == "double"):
        return None
    blocks = cut(weight, block_of(storage))
    if blocks is None:
        return None
    blocks = blocks.double()
    low, high = _gguf(storage.detail, blocks) if named else _coded(NF4 if storage.format == "nf4" else FP4, blocks)
    return Interval(low.reshape(weight.shape), high.reshape(weight.shape))


def _gguf(kind: str, blocks: Float[Tensor, "blocks entries"]) -> tuple[Tensor, Tensor]:
    """Half a step on either side, and what rounding the scale, and the lowest level of those of kind 1, may add."""
    step, size = steps_of(blocks), largest(blocks)
    known = step > 0
    error = SCALE * (blocks.abs() + (3 * size if kind.endswith("1") else 0)) + TOLERANCE * size
    half = torch.where(known, step / 2, torch.inf) + error
    beyond = torch.zeros_like(blocks)
    if kind in CLIPPED:
        beyond = torch.where((blocks.abs() / torch.where(known, step, 1)).round() == CLIPPED[kind], step / 2, 0)
    return blocks - half - beyond * (blocks < 0), blocks + half + beyond * (blocks > 0)


def _coded(levels: tuple[float, ...], blocks: Float[Tensor, "blocks entries"]) -> tuple[Tensor, Tensor]:
    """Up to the middle between a level and the next; the outermost are the largest magnitude of the block."""
    ordered, size = torch.tensor(levels, dtype=torch.float64), largest(blocks)
    middles = (ordered[1:] + ordered[:-1]) / 2
    edges = torch.cat([ordered[:1], middles, ordered[-1:]])
    at = torch.bucketize((blocks / size).contiguous(), middles)
    known = ((nearest(ordered, blocks / size) - blocks / size).abs() <= 1e-4).all(dim=1, keepdim=True)
    error = torch.where(known, 4 * TOLERANCE * size, torch.inf)
    return edges[at] * size - error, edges[at + 1] * size + error


def apart(one: Interval, other: Interval) -> tuple[int, int]:
    """In how many entries two intervals do not meet, of how many where both are known."""
    known = one.known & other.known
    return int((known & ((one.low > other.high) | (other.low > one.high))).sum()), int(known.sum())

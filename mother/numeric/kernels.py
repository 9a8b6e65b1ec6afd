"""The loops over weights that torch needs several passes for, in one: compiled for the CPU on first use, and kept.

Extremes are taken of the bits of the numbers. A processor finds the largest of many integers several at a time; for
floating-point numbers the compiler does not let it, since NaN makes the order of comparisons matter. The bits of a
float32 are a sign and a magnitude that grows with the number's. So, of finite numbers,

* as int32, those that are not negative are ordered as the numbers are, and are above all negative ones: the largest
  int32 is the maximum, if any number is not negative;
* as uint32, negative numbers are above all others, the more negative the higher: the largest uint32 is the minimum, if
  any number is negative.

Where all numbers have one sign, one of the two extremes is not found so; numpy then looks for it, which is rare. By
`python -m benchmarks kernels` this is 9 times as fast as the same loops that compare the numbers.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from mother.numeric.threads import in_threads

STRETCH = 2048  # budget: entries of all models that are worked on at a time; they stay in the cache
MINUS_ZERO = np.int32(-(1 << 31))  # its bits
PART = 64  # of so many entries one says about where the mean is
ALONE = 1 << 20  # budget: entries, times the models they are compared with, that one thread has sooner than two


def has_kernels(weights: Tensor) -> bool:
    """Whether the loops below take these weights: those of a GPU, and other precisions, are torch's."""
    return weights.device.type == "cpu" and weights.dtype == torch.float32


def compiled(function: Callable) -> Callable:
    """The function in machine code, which is kept between runs where there is a place for it.

    Sums may be reordered; infinities and NaN stay what they are. Other threads go on meanwhile.
    """
    options = {"nogil": True, "fastmath": {"reassoc", "contract"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's can be written to
        return njit(**options)(function)


@compiled
def _apart(one: np.ndarray, other: np.ndarray) -> tuple:
    """Largest bits of one - other as int32 and as uint32 (see above), and the sum of squares."""
    high, low, square = MINUS_ZERO, np.uint32(0), np.float32(0)
    for k in range(len(one)):
        difference = np.float32(one[k] - other[k])
        high = max(high, difference.view(np.int32))
        low = max(low, difference.view(np.uint32))
        square += difference * difference
    return high, low, square


@compiled
def _all_apart(flat: np.ndarray, start: int, stop: int, high: np.ndarray, low: np.ndarray, square: np.ndarray) -> None:
    """`_apart` of all pairs i < j over the entries from start to stop, put together with what is there."""
    for begin in range(start, stop, STRETCH):
        end = min(begin + STRETCH, stop)
        for i in range(len(flat)):
            for j in range(i + 1, len(flat)):
                most, least, sum_of_squares = _apart(flat[i, begin:end], flat[j, begin:end])
                high[i, j] = max(high[i, j], most)
                low[i, j] = max(low[i, j], least)
                square[i, j] += sum_of_squares


def differences(
    flat: Float[np.ndarray, "models entries"],
) -> tuple[Float[np.ndarray, "models models"], Float[np.ndarray, "models models"]]:
    """[i, j] = max(W_i - W_j), and the sum of (W_i - W_j)^2 in float64; of float32, each row contiguous."""
    count, entries = flat.shape
    threads = torch.get_num_threads() if count * count * entries > ALONE else 1
    ends = [entries * part // threads for part in range(threads + 1)]

    def look(part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        high, low = np.full((count, count), MINUS_ZERO), np.zeros((count, count), dtype=np.uint32)
        square = np.zeros((count, count))
        _all_apart(flat, ends[part], ends[part + 1], high, low, square)
        return high, low, square

    highs, lows, squares = (np.stack(found) for found in zip(*in_threads(look, range(threads))))
    high, low, square = highs.max(axis=0), lows.max(axis=0), squares.sum(axis=0)
    largest = np.zeros((count, count), dtype=np.float32)
    largest += high.view(np.float32) - low.view(np.float32).T  # max(W_j - W_i) is minus the minimum of W_i - W_j
    for i, j in zip(*np.triu_indices(count, 1)):
        if high[i, j] < 0:  # every difference is negative: the largest int32 belongs to the minimum
            largest[i, j] = (flat[i] - flat[j]).max()
        if 0 < low[i, j] < 1 << 31:  # every difference is positive: the largest uint32 belongs to the maximum
            largest[j, i] = (flat[j] - flat[i]).max()
    return largest, square + square.T


@compiled
def _look(values: np.ndarray) -> tuple:
    """Largest bits as int32 and as uint32, a value near the mean, and sums of four powers of the distance to it."""
    part = len(values) // PART + 1
    near = 0.0
    for k in range(part):
        near += values[k]
    near /= part
    high, low = MINUS_ZERO, np.uint32(0)
    one, two, three, four = 0.0, 0.0, 0.0, 0.0
    for k in range(len(values)):
        value = np.float32(values[k])
        high = max(high, value.view(np.int32))
        low = max(low, value.view(np.uint32))
        away = value - near
        square = away * away
        one += away
        two += square
        three += square * away
        four += square * square
    return high, low, near, one, two, three, four


def power_sums(
    flat: Float[np.ndarray, "models entries"],
) -> tuple[Float[np.ndarray, "models two"], Float[np.ndarray, "models"], Float[np.ndarray, "models four"]]:
    """(minimum and maximum, a value near the mean, sums of the first four powers of the distance to it); of float32.

    What is near is the mean of the first entries, at least one of `PART`. By Cauchy and Schwarz it is within
    sqrt(PART - 1) standard deviations of the mean of all, whatever the entries are.
    """
    found = in_threads(_look, list(flat)) if flat.size > ALONE else [_look(values) for values in flat]
    highs, lows, near, *sums = (np.array(values) for values in zip(*found))
    high, low = highs.astype(np.int32), lows.astype(np.uint32)
    ends = np.stack([low.view(np.float32), high.view(np.float32)], axis=1)
    for place in ((high < 0) | (low < 1 << 31)).nonzero()[0]:  # all of one sign
        ends[place] = flat[place].min(), flat[place].max()
    return ends, near, np.stack(sums, axis=1)

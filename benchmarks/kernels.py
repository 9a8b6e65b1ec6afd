"""Time of the compiled loops for one layer of 21 ViT-B models, of torch for the same numbers, and of plain loops.

    python -m benchmarks.kernels

Plain loops compare numbers instead of bits. Fails where a loop is not at least twice as fast as torch: then neither it
nor numba is worth having.
"""

import statistics as of_times
import sys
import time
from unittest.mock import patch

import numpy as np
import torch

from mother.graph.text import format_table
from mother.numeric import kernels
from mother.numeric.kernels import compiled
from mother.paper import clusters, distances, statistics  # noqa: F401  numba would load scipy, which the scripts have

MODELS, SIDE, TIMES = 21, 768, 15
LEAST = 2.0


@compiled
def _plain_extremes(one: np.ndarray, other: np.ndarray) -> tuple:
    """Maximum, minimum and sum of squares of one - other, by comparing numbers."""
    high, low, square = np.float32(-np.inf), np.float32(np.inf), np.float32(0)
    for k in range(len(one)):
        difference = np.float32(one[k] - other[k])
        high = max(high, difference)
        low = min(low, difference)
        square += difference * difference
    return high, low, square


def gain_of_bits(weights: np.ndarray) -> float:
    """How many times as fast the loop over bits is as the plain one, on one thread: all pairs of some models."""
    pairs = [(i, j) for i in range(len(weights)) for j in range(i)]
    seconds: dict[str, list[float]] = {"bits": [], "plain": []}
    for function in (kernels._apart, _plain_extremes):
        function(weights[0], weights[1])  # compiled now
    for _ in range(TIMES):
        for how, function in (("bits", kernels._apart), ("plain", _plain_extremes)):
            started = time.perf_counter()
            for i, j in pairs:
                function(weights[i], weights[j])
            seconds[how].append(time.perf_counter() - started)
    return of_times.median(seconds["plain"]) / of_times.median(seconds["bits"])


def main() -> bool:
    """Measure in turns, print, and say whether the threshold is kept."""
    weights = torch.randn(MODELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    rows, kept = [], True
    for name, module in (("pairwise_differences", distances), ("moments", statistics)):
        function = getattr(module, name)
        first = time.perf_counter()
        function(weights)
        first = time.perf_counter() - first
        seconds: dict[str, list[float]] = {"compiled": [], "torch": []}
        for _ in range(TIMES):
            for how, times in seconds.items():
                with patch.object(module, "has_kernels", lambda _, how=how: how == "compiled"):
                    started = time.perf_counter()
                    function(weights)
                    times.append(time.perf_counter() - started)
        ours, other = (1e3 * of_times.median(seconds[how]) for how in ("compiled", "torch"))
        rows.append(
            [name, format(first, ".2f"), format(ours, ".1f"), format(other, ".1f"), format(other / ours, ".1f")]
        )
        kept &= other >= LEAST * ours
    print(f"{MODELS} models of {SIDE} x {SIDE} entries, medians of {TIMES}, {torch.get_num_threads()} threads")
    print(format_table(("function", "first call s", "compiled ms", "torch ms", "times as fast"), rows))
    gain = gain_of_bits(weights[:6].flatten(1).numpy())
    print(f"extremes of bits are {gain:.1f} times as fast as extremes of numbers, on one thread")
    return kept


if __name__ == "__main__":
    sys.exit(0 if main() else "a compiled loop is hardly faster than torch")

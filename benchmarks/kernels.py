"""Time of the compiled loops for one layer of 21 ViT-B models, and of torch for the same numbers.

    python -m benchmarks.kernels

Fails where a loop is not at least twice as fast as torch: then neither it nor numba is worth having.
"""

import statistics as of_times
import sys
import time
from unittest.mock import patch

import torch

from mother.graph.text import format_table
from mother.paper import clusters, distances, statistics  # noqa: F401  numba would load scipy, which the scripts have

MODELS, SIDE, TIMES = 21, 768, 15
LEAST = 2.0


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
    return kept


if __name__ == "__main__":
    sys.exit(0 if main() else "a compiled loop is hardly faster than torch")

"""How the time of method "map" grows with the number of models: 21, 105 and 420 small ViTs in trees of 21.

    python -m benchmarks.growth

Bytes and seconds for each model (reading), for each pair of models (first pass), for each model (second pass, which
looks at near pairs), and of what follows, with the share of the work that grows with the pairs. Fails where reading
420 models takes more than twice as long a model as reading 105, or the pairs more than a tenth of the whole.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.vit_b import write_family
from mother.heritage import trace
from mother.model_graph import read_manifest
from mother.results import format_table, open_models

WIDTH, BLOCKS = 128, 4


def traced(trees: int) -> tuple[int, int, dict[str, float]]:
    """(models, bytes read, seconds of each stage) of one collection."""
    started: dict[str, float] = {}
    read = [0]

    def progress(title: str) -> Callable[[int], Callable[..., object]]:
        def start(total: int) -> Callable[..., object]:
            started[title] = time.perf_counter()

            def step(count: int = 1) -> None:
                if title == "reading":
                    read[0] += count

            return step

        return start

    with tempfile.TemporaryDirectory(prefix="growth.") as scratch:
        manifest = read_manifest(write_family(Path(scratch), "growth", trees, None, BLOCKS, WIDTH))
        checkpoints, _ = open_models(manifest)
        trace(checkpoints, torch.device("cpu"), progress=progress)
        ended = time.perf_counter()
    marks = [started["reading"], started["first pass"], started["second pass"], ended]
    seconds = dict(zip(("reading", "first pass", "second pass"), (b - a for a, b in zip(marks, marks[1:]))))
    return len(manifest.nodes), read[0], seconds


def main() -> bool:
    """Measure, print, and say whether the growth is as it should be."""
    rows, reading, share = [], {}, 0.0
    traced(1)  # imports and caches
    for trees in (1, 5, 20):
        models, size, seconds = traced(trees)
        whole = sum(seconds.values())
        reading[models], share = seconds["reading"] / models, seconds["first pass"] / whole
        pairs = models * (models - 1) / 2
        per_pair = 1e6 * seconds["first pass"] / pairs
        rows.append(
            [models, f"{size / 1e6:.0f}", *(f"{value:.1f}" for value in seconds.values()), f"{whole:.1f}"]
            + [f"{1e3 * reading[models]:.0f}", f"{per_pair:.0f}", f"{1e3 * seconds['second pass'] / models:.0f}"]
            + [f"{100 * share:.0f} %"]
        )
    head = ("models", "MB read", "reading s", "first s", "second s", "all s", "reading ms/model", "first us/pair")
    print(format_table((*head, "second ms/model", "share of first"), rows))
    return reading[420] <= 2 * reading[105] and share <= 0.1


if __name__ == "__main__":
    sys.exit(0 if main() else "the time grows faster than it may")

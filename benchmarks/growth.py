"""How the time of method "map" grows with the number of models: 21, 105 and 420 small ViTs in trees of 21.

    python -m benchmarks.growth

Bytes and seconds for each model (reading; the second pass, which looks at near pairs), and of the work on all pairs of
models, which is most of the first pass, with its share of the whole. Fails where reading 420 models takes more than
twice as long a model as reading 105, or the pairs more than a tenth of the whole.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.vit_b import write_family
from mother.evidence import first_pass
from mother.graph.collection import open_models
from mother.graph.manifest_io import read_manifest
from mother.graph.text import format_table
from mother.heritage.trace import trace

WIDTH, BLOCKS = 128, 4


@contextmanager
def pairs_timed(seconds: list[float]) -> Iterator[None]:
    """Add to `seconds` what the functions of the first pass take that look at all pairs."""
    functions = {name: getattr(first_pass, name) for name in ("square_distances", "layer_cosine")}

    def timed(function: Callable) -> Callable:
        def run(weights: torch.Tensor) -> object:
            started = time.perf_counter()
            result = function(weights)
            seconds[0] += time.perf_counter() - started
            return result

        return run

    for name, function in functions.items():
        setattr(first_pass, name, timed(function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(first_pass, name, function)


def traced(trees: int) -> tuple[int, int, dict[str, float]]:
    """(models, bytes read, seconds of each stage and of the pairs) of one collection."""
    pairs = [0.0]
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
        with pairs_timed(pairs):
            trace(checkpoints, torch.device("cpu"), progress=progress)
        ended = time.perf_counter()
    marks = [started["reading"], started["first pass"], started["second pass"], ended]
    seconds = dict(zip(("reading", "first pass", "second pass"), (b - a for a, b in zip(marks, marks[1:]))))
    return len(manifest.nodes), read[0], seconds | {"pairs": pairs[0]}


def main() -> bool:
    """Measure, print, and say whether the growth is as it should be."""
    rows, reading, share = [], {}, 0.0
    traced(1)  # imports and caches
    for trees in (1, 5, 20):
        models, size, seconds = traced(trees)
        pairs = seconds.pop("pairs")
        whole = sum(seconds.values())
        reading[models], share = seconds["reading"] / models, pairs / whole
        rows.append(
            [models, f"{size / 1e6:.0f}", *(f"{value:.1f}" for value in seconds.values()), f"{whole:.1f}"]
            + [f"{1e3 * reading[models]:.0f}", f"{1e3 * seconds['second pass'] / models:.0f}"]
            + [f"{pairs:.2f}", f"{100 * share:.1f} %"]
        )
    head = ("models", "MB read", "reading s", "first s", "second s", "all s", "reading ms/model", "second ms/model")
    print(format_table((*head, "all pairs s", "their share"), rows))
    return reading[420] <= 2 * reading[105] and share <= 0.1


if __name__ == "__main__":
    sys.exit(0 if main() else "the time grows faster than it may")

"""How long `mother explain` takes on the 102 models of mini_wild, the start of the process included.

    python -m benchmarks.explain

Fails where the median of one question takes a second of wall time.
"""

import statistics
import subprocess
import sys
import tempfile

from benchmarks.processes import run
from mother.graph.text import format_table

TIMES = 9
LIMIT = 1.0  # seconds
QUESTIONS = {
    "two models": ("dupagu", "kemufi"),
    "two models, by matrix": ("dupagu", "kemufi", "--layers", "-"),
    "two models of two families": ("dupagu", "vebiza"),
    "line of descent": ("gufibu",),
}


def main() -> bool:
    """Measure, print, and say whether the limit is kept."""
    subprocess.run(
        [sys.executable, "-m", "dataset.grow", "--splits", "mini_wild"], check=True, stdout=subprocess.DEVNULL
    )
    rows, kept = [], True
    with tempfile.TemporaryDirectory() as folder:
        run(["recover.py", "--manifest", "dataset/mini_wild.json", "--out", folder, "--quiet"])
        for question, words in QUESTIONS.items():
            costs = [run(["-m", "mother", "explain", *words, "--to", folder]) for _ in range(TIMES)]
            walls = sorted(cost.wall for cost in costs)
            processor = statistics.median(cost.processor for cost in costs)
            rows.append([question, *(f"{value:.2f}" for value in (statistics.median(walls), walls[-1], processor))])
            kept &= statistics.median(walls) < LIMIT
    print("seconds, of new processes")
    print(format_table(("mother explain", "wall, median", "wall, most", "processor"), rows))
    return kept


if __name__ == "__main__":
    sys.exit(0 if main() else "an explanation takes too long")

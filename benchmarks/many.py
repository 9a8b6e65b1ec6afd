"""recover.py on thousands of small models in one folder: seconds, memory, size of the page.

    python -m benchmarks.many [--models 10000] [--families 50]

Models are those of benchmarks/tiny.py. Families have sizes that fall as a power of their rank, as in the simulated hub.
Seconds are of the processor, in one process: other programs do not count.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tiny import shares_right, write_models
from mother.graph.model_graph import read_model_graph
from mother.graph.text import format_table


def main() -> bool:
    """Write, recover, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--families", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="many.") as scratch:
        truth = write_models(Path(scratch) / "models", args.models, args.families)
        result = Path(scratch) / "result"
        started = time.perf_counter()
        command = [sys.executable, "recover.py", str(Path(scratch) / "models"), "--out", str(result), "--quiet"]
        done = subprocess.run(command, check=False)
        wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        graph = read_model_graph(result / "model_graph.json")
        joined, right = shares_right(graph.nodes, graph.edges, truth)
        sizes = [
            sum(path.stat().st_size for path in result.rglob(name) if path.is_file()) for name in ("*", "report.html")
        ]
    trees = len({facts["tree"] for facts in graph.nodes.values()})
    head = [
        "models",
        "trees",
        "seconds",
        "on the clock",
        "GB",
        "result, MB",
        "page, MB",
        "edges without arrows",
        "edges",
    ]
    row = [args.models, trees, f"{used.ru_utime + used.ru_stime:.0f}", f"{wall:.0f}", f"{used.ru_maxrss / 1e6:.2f}"]
    row += [f"{size / 1e6:.0f}" for size in sizes] + [f"{joined:.3f}", f"{right:.3f}"]
    print(format_table(head, [row]))
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(0 if main() else 1)

"""The same index by one process, by a pool of two, and by a local Ray cluster of two workers: edges, seconds.

    python -m benchmarks.engines [--models 500]

Seconds are on the clock, with the start of processes and of the cluster, and with everything read and traced anew.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tiny import write_models
from mother.collection.find import search
from mother.graph.text import format_table
from mother.index.build import build
from mother.index.engine import Engine
from mother.index.graph import index_graph
from mother.index.store import create_index

ENGINES = {"one process": Engine(), "two processes": Engine(2), "Ray, two workers": Engine(2, "local")}


def main() -> bool:
    """All engines; whether they found the same edges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=500)
    args = parser.parse_args()
    rows, found = [], []
    with tempfile.TemporaryDirectory(prefix="engines.") as scratch:
        write_models(Path(scratch) / "models", args.models, 1)
        sources = search([str(Path(scratch) / "models")]).sources
        for number, (name, engine) in enumerate(ENGINES.items()):
            index = create_index(Path(scratch) / f"index{number}", 4096, 1 << 16, True)
            started = time.perf_counter()
            build(index, sources, engine)
            read = time.perf_counter() - started
            graph = index_graph(index, Path(scratch) / f"traced{number}", engine)
            found.append([(edge.parent, edge.child, edge.attributes) for edge in graph.edges])
            traced = time.perf_counter() - started - read
            rows.append([name, f"{read:.1f}", f"{traced:.1f}", "the same" if found[-1] == found[0] else "others"])
    print(format_table(["engine", "seconds to read", "seconds to trace", "edges"], rows))
    return all(one == found[0] for one in found)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)

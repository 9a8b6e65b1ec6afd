"""Time of our Edmonds on dense random graphs, and of networkx' on the small ones.

    python -m benchmarks.arborescence

Fails where 1,000 nodes take longer than half a second (median of five), or 4,000 longer than ten seconds.
"""

import statistics
import sys
import time
from collections.abc import Callable

import networkx as nx
import numpy as np

from mother.graph.arborescence import minimum_spanning_arborescence
from mother.graph.text import format_table

LIMITS = {1000: 0.5, 4000: 10.0}  # seconds by number of nodes


def seconds(call: Callable[[], object], times: int) -> tuple[float, float, float]:
    """Minimum, median and maximum of the time of a call."""
    measured = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        measured.append(time.perf_counter() - started)
    return min(measured), statistics.median(measured), max(measured)


def main() -> bool:
    """Measure, print, and say whether the threshold is kept."""
    rng = np.random.default_rng(0)
    rows, kept = [], True
    for nodes in (21, 105, 1000, 4000):
        cost = rng.normal(size=(nodes, nodes))
        ours = seconds(lambda: minimum_spanning_arborescence(cost), 1 if nodes > 1000 else 5)
        rows.append(["ours", nodes, *ours])
        kept &= ours[1] <= LIMITS.get(nodes, np.inf)
        if nodes <= 105:
            graph = nx.DiGraph()
            graph.add_weighted_edges_from((i, j, cost[i, j]) for i in range(nodes) for j in range(nodes) if i != j)
            rows.append(["networkx", nodes, *seconds(lambda: nx.minimum_spanning_arborescence(graph), 3)])
    print(format_table(("Edmonds", "nodes", "least s", "median s", "most s"), rows))
    return kept


if __name__ == "__main__":
    sys.exit(0 if main() else "it took longer than it may")

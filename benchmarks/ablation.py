"""What each evidence of method "map" is worth: each alone beside the distance, and each left out.

    python -m benchmarks.ablation

Coefficients are fitted on the other splits each time (leave one recipe out), so no row has seen its own split.
"""

from dataclasses import replace

import numpy as np

from benchmarks.traced import SPLITS, Case, cases, traced
from mother.evidence.edges import DIRECTION, STRUCTURE, Evidence
from mother.graph.arborescence import minimum_spanning_arborescence
from mother.graph.text import format_table
from mother.heritage.calibration import fit, log_weights

EVIDENCE = ("blocked", "between", "equality", "altered", "newness", "rounding")


def masked(case: Case, kept: set[str]) -> Case:
    """The same case with only the distance and this evidence."""
    evidence = case.example.evidence
    structure, direction = evidence.structure.copy(), evidence.direction.copy()
    for at, name in enumerate(STRUCTURE):
        if name not in kept | {"log_square"}:
            structure[..., at] = 0
    for at, name in enumerate(DIRECTION):
        if name.removesuffix("_t") not in kept:
            direction[..., at] = 0
    exact = evidence.exact if "rounding" in kept else np.zeros_like(evidence.exact)
    reduced = Evidence(structure, direction, exact, evidence.candidate)
    return replace(case, example=replace(case.example, evidence=reduced))


def accuracy(everything: list[Case], split: str) -> tuple[float, float]:
    """Undirected and directed accuracy of one split with coefficients from the others."""
    coefficients = fit([case.example for case in everything if case.split != split])
    undirected = directed = total = 0
    for case in everything:
        if case.split == split:
            weights = log_weights(case.example.evidence, coefficients, case.example.forced)
            finite = np.where(np.isfinite(weights), weights, -1e6)
            np.fill_diagonal(finite, 0)
            parents = minimum_spanning_arborescence(-finite)
            for child, parent in case.example.parents.items():
                right = parents[child] == parent
                directed += right
                undirected += right or parents[parent] == child
                total += 1
    return undirected / total, directed / total


def main() -> None:
    """Print one row for each set of evidence."""
    everything = [case for split in SPLITS for case in cases(*traced(split))]
    rows = []
    sets = {"everything": set(EVIDENCE), "distance only": set()}
    sets |= {f"only {name}": {name} for name in EVIDENCE}
    sets |= {f"without {name}": set(EVIDENCE) - {name} for name in EVIDENCE}
    for title, kept in sets.items():
        reduced = [masked(case, kept) for case in everything]
        scores = [accuracy(reduced, split) for split in SPLITS]
        rows.append([title, *(f"{undirected:.2f} / {directed:.2f}" for undirected, directed in scores)])
    print(format_table(("evidence beside the distance", *SPLITS), rows))
    print("undirected / directed accuracy; merges count with their first parent")


if __name__ == "__main__":
    main()

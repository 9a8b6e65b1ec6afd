"""What each evidence of method "map" is worth: each alone beside the distance, and each left out.

    python -m benchmarks.ablation                        on the mini splits and the zoo
    python -m benchmarks.ablation --collections mini_zoo

Coefficients are fitted on the other plots and splits each time, so no figure has seen its own.
"""

from dataclasses import dataclass, replace

import numpy as np
import tyro

from benchmarks.incomplete import taught
from benchmarks.traced import SPLITS, Case, cases, traced
from mother.evidence.edges import DIRECTION, STRUCTURE
from mother.evidence.triples import FEATURES
from mother.graph.text import format_table
from mother.heritage.calibration import Coefficients, log_weights
from mother.heritage.fitting import HUB_ROUNDS, fit
from mother.heritage.trees import best_tree

THIRD = {name: (name,) for name in FEATURES}
EVIDENCE = (*(name for name in STRUCTURE if name != "log_square"), *THIRD, "newness", "exact", "batches", "hub")


@dataclass
class Args:
    """Leave out each evidence, and use each alone."""

    collections: tuple[str, ...] = (*SPLITS, "mini_zoo")
    """grown splits; each plot of the zoo counts as one more"""


def masked(case: Case, kept: set[str]) -> Case:
    """The same case with only the distance and this evidence: the columns of all other are zero."""
    evidence = case.example.evidence
    columns = {name for item in kept & THIRD.keys() for name in THIRD[item]}
    structure = evidence.structure * [name in kept | {"log_square"} for name in STRUCTURE]
    between = evidence.between * [name in columns for name in FEATURES]
    direction = evidence.direction * [name.removesuffix("_t") in kept for name in DIRECTION]
    exact, counted = evidence.exact * ("exact" in kept), evidence.counted * ("batches" in kept)
    arrows = {"direction": direction, "exact": exact, "counted": counted}
    reduced = replace(evidence, structure=structure, between=between, **arrows)
    return replace(case, example=replace(case.example, evidence=reduced))


def group(case: Case) -> str:
    """What is left out at once: a plot of the zoo, or a split."""
    return case.group.get("plot", case.split)


def right(case: Case, coefficients: Coefficients) -> tuple[int, int, int]:
    """How many true edges there are, how many are found, and how many with the right arrow."""
    weights = log_weights(case.example.evidence, coefficients, case.example.forced)
    tree, _ = best_tree(weights)
    parents = {child: at for child, at in tree.items() if weights.parent[at, child] >= weights.beside[at, child]}
    ends = case.example.parents.items()
    directed = sum(parents.get(child) == parent for child, parent in ends)
    turned = sum(parents.get(child) != parent and parents.get(parent) == child for child, parent in ends)
    return len(ends), directed + turned, directed


def accuracy(everything: list[Case], kept: set[str]) -> dict[str, np.ndarray]:
    """By group: true edges, edges found, arrows right, with coefficients from all other groups."""
    everything = [masked(case, kept) for case in everything]
    counts = {}
    for name in sorted({group(case) for case in everything}):
        others = [case for case in everything if group(case) != name]
        coefficients = fit(taught(others), rounds=HUB_ROUNDS if "hub" in kept else 0)
        counts[name] = sum(np.array(right(case, coefficients)) for case in everything if group(case) == name)
    return counts


def evidence_sets() -> dict[str, set[str]]:
    """By title, the evidence that a row keeps beside the distance."""
    everything = set(EVIDENCE)
    sets = {"everything": everything, "distance only": set(), "without third models": everything - THIRD.keys()}
    sets |= {f"without {name}": everything - {name} for name in EVIDENCE}
    return sets | {"only third models": set(THIRD)} | {f"only {name}": {name} for name in EVIDENCE}


def main(args: Args) -> None:
    """Print one row for each set of evidence."""
    everything = [case for name in args.collections for case in cases(*traced(name))]
    rows, names = [], sorted({group(case) for case in everything})
    for title, kept in evidence_sets().items():
        counts = accuracy(everything, kept)
        edges, found, directed = sum(counts.values())
        shares = (f"{counts[name][2] / counts[name][0]:.3f}" for name in names)
        rows.append([title, *shares, f"{directed / edges:.3f}", f"{found / edges:.3f}"])
    print(format_table(("evidence beside the distance", *names, "all", "all, undirected"), rows))
    print("share of true edges found with the right arrow; merges count with their first parent")


if __name__ == "__main__":
    main(tyro.cli(Args))

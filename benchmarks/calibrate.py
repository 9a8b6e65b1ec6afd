"""Fit what evidence is worth, on some plots, splits, roots and architectures, and test it on those left out.

python -m benchmarks.calibrate            # cross-validate, check against the thresholds, draw the diagram
python -m benchmarks.calibrate --write    # fit on everything and write mother/heritage/calibration.json
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro
from scipy.stats import binomtest

from benchmarks.traced import SPLITS, ZOO, Case, cases, expected_calibration_error, traced
from mother.evidence.edges import DIRECTION, STRUCTURE
from mother.graph.arborescence import edge_marginals, minimum_spanning_arborescence
from mother.graph.text import format_table
from mother.heritage.calibration import BETWEEN, PATH, Coefficients, fit, log_weights
from mother.io.files import write_figure, write_json

LARGEST_ERROR = 0.05  # expected calibration error of edges on recipes and roots left out


@dataclass
class Args:
    """Cross-validate the calibration of edge probabilities."""

    write: bool = False
    """fit on all splits and write mother/heritage/calibration.json"""
    figure: Path = Path("imgs/reliability.png")
    """where the reliability diagram goes"""


def judge(case: Case, coefficients: Coefficients) -> list[tuple[float, float, bool, bool]]:
    """(P(edge), P(adjacent), edge right, adjacent right) of each recovered edge whose relation is not exact."""
    example = case.example
    weights = log_weights(example.evidence, coefficients, example.forced)
    marginals, _, _ = edge_marginals(weights)
    finite = np.where(np.isfinite(weights), weights, -1e6)
    np.fill_diagonal(finite, 0)
    found = []
    for child, parent in enumerate(minimum_spanning_arborescence(-finite).tolist()):
        if parent < 0 or child in example.forced or parent in example.forced and example.forced[parent] == child:
            continue
        both = marginals[parent, child] + marginals[child, parent]
        right = example.parents.get(child) == parent
        found.append((marginals[parent, child], both, right, right or example.parents.get(parent) == child))
    return found


def draw(probability: np.ndarray, right: np.ndarray, error: float) -> plt.Figure:
    """Reliability: share of right edges against their probability, in tenths, with 95 % intervals (Wilson)."""
    figure, axes = plt.subplots(figsize=(3.4, 3.0), layout="constrained")
    number = np.minimum((probability * 10).astype(int), 9)
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls="--")
    for k in sorted(set(number.tolist())):
        chosen = number == k
        share, count, place = right[chosen].mean(), int(chosen.sum()), probability[chosen].mean()
        low, high = binomtest(int(right[chosen].sum()), count).proportion_ci(method="wilson")
        # Rounding may leave a limit on the wrong side of 0 or 1.
        bar = [[max(share - low, 0)], [max(high - share, 0)]]
        axes.errorbar(place, share, yerr=bar, fmt="o", ms=4, lw=1.2, color="#0072b2", capsize=2)
        axes.annotate(str(count), (place, share), (5, 3 if share < 0.1 else -9), textcoords="offset points", fontsize=6)
    axes.set_xlabel("probability of the edge")
    axes.set_ylabel("share of edges that are right")
    axes.set_title(f"recovered edges of groups left out, ECE {error:.3f}", loc="left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(-0.02, 1.04)
    axes.set_ylim(-0.02, 1.04)
    return figure


def main(args: Args) -> None:
    """Leave out each recipe (a split, or a plot of the zoo), each root and each architecture in turn."""
    everything = [case for split in (*SPLITS, ZOO) for case in cases(*traced(split))]
    rows, failed, pooled = [], False, []
    for title, key in (("recipe", "recipe"), ("root", "root"), ("architecture", "architecture")):
        judged = []
        for group in sorted({getattr(case, key) for case in everything}):
            rest = [case.example for case in everything if getattr(case, key) != group]
            coefficients = fit(rest)
            part = [edge for case in everything if getattr(case, key) == group for edge in judge(case, coefficients)]
            judged += part
            values = np.array(part)
            rows.append([title, group, len(part), values[:, 2].mean(), values[:, 3].mean(), None, None])
        values = np.array(judged, dtype=float)
        errors = [expected_calibration_error(values[:, k], values[:, 2 + k]) for k in (0, 1)]
        rows.append([title, "all", len(judged), values[:, 2].mean(), values[:, 3].mean(), *errors])
        # What is left of an architecture when the other is left out is too little to calibrate on: reported only.
        failed |= key != "architecture" and max(errors) > LARGEST_ERROR
        pooled.append((values, errors[0]))
    head = ("left out", "group", "edges", "right", "adjacent", "ECE", "ECE adjacent")
    print(format_table(head, rows))
    values, error = pooled[0]
    write_figure(args.figure, draw(values[:, 0], values[:, 2], error), dpi=200)
    if args.write:
        coefficients = fit([case.example for case in everything])
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        counts = {split: sum(case.split == split for case in everything) for split in (*SPLITS, ZOO)}
        content = {
            "structure": dict(zip(STRUCTURE, coefficients.structure.round(4).tolist())),
            "between": dict(zip(BETWEEN, coefficients.between.round(4).tolist())),
            "direction": dict(zip(DIRECTION, coefficients.direction.round(4).tolist())),
            "hub": round(coefficients.hub, 4),
            "provenance": {
                "script": "python -m benchmarks.calibrate --write",
                "commit": commit,
                "trees": counts,
                "edges": sum(len(case.example.parents) for case in everything),
                "error_left_out": {
                    name: round(e, 4) for name, (_, e) in zip(("recipe", "root", "architecture"), pooled)
                },
            },
        }
        write_json(PATH, content)
        print(f"written: {PATH.name}")
    if failed:
        sys.exit(f"a calibration error is above {LARGEST_ERROR}")


if __name__ == "__main__":
    main(tyro.cli(Args))

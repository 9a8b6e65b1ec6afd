"""Fit what evidence is worth, on some recipes, roots and architectures, and test it on those left out.

python -m benchmarks.calibrate            # cross-validate, check against the thresholds, draw the diagram
python -m benchmarks.calibrate --write    # fit on everything and write mother/heritage/calibration.json
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro
from scipy.stats import binomtest

from benchmarks.incomplete import taught
from benchmarks.traced import SPLITS, ZOOS, Case, cases, expected_calibration_error, traced
from mother.evidence.edges import DIRECTION, STRUCTURE
from mother.graph.arborescence import edge_marginals
from mother.graph.text import format_table
from mother.heritage.calibration import BETWEEN, PATH, PRIORS, Coefficients, log_weights
from mother.heritage.fitting import fit
from mother.heritage.trees import best_tree, likeliest_edges
from mother.io.files import write_figure, write_json

LARGEST_ERROR = 0.05  # expected calibration error of edges on recipes and roots left out


@dataclass
class Args:
    """Cross-validate the calibration of edge probabilities."""

    collections: tuple[str, ...] = (*SPLITS, *ZOOS)
    """grown models to fit on; each plot of the zoos counts as a recipe"""
    write: bool = False
    """fit on all of them and write mother/heritage/calibration.json"""
    figure: Path = Path("imgs/reliability.png")
    """where the reliability diagram goes"""


def judge(case: Case, coefficients: Coefficients) -> list[tuple[float, float, bool, bool]]:
    """(P(edge), P(adjacent), edge right, adjacent right) of each recovered edge whose relation is not exact."""
    example = case.example
    weights = log_weights(example.evidence, coefficients, example.forced)
    for way in example.excluded:
        weights = weights.without(*way)
    edges, root, _ = edge_marginals(weights.both)
    marginals = weights.parents(edges)
    tree = likeliest_edges(edges, root, best_tree(weights)[0], list(range(len(root))), [])
    found = []
    for child, parent in tree.items():
        exact = child in example.forced or example.forced.get(parent) == child
        if exact or weights.beside[parent, child] > weights.parent[parent, child]:
            continue
        both = marginals[parent, child] + marginals[child, parent]
        right = parent in {example.parents.get(child), example.twins.get(child)}
        back = child in {example.parents.get(parent), example.twins.get(parent)}
        found.append((marginals[parent, child], both, right, right or back))
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


# What is left out at once; None: the case is in no such group. The families of the zoo share no roots.
GROUPS: dict[str, Callable[[Case], str | None]] = {
    "recipe": lambda case: case.group.get("plot", case.split),
    "root": lambda case: None if "plot" in case.group else case.root,
    "architecture": lambda case: case.architecture,
}


def leave_out(everything: list[Case], group: Callable[[Case], str | None]) -> dict[str, np.ndarray]:
    """By group, the judged edges of its cases with coefficients from all others."""
    found = {}
    for name in sorted({name for case in everything if (name := group(case)) is not None}):
        coefficients = fit(taught(case for case in everything if group(case) != name))
        edges = [edge for case in everything if group(case) == name for edge in judge(case, coefficients)]
        if edges:
            found[name] = np.array(edges, dtype=float)
    return found


def errors(edges: np.ndarray) -> list[float]:
    """Expected calibration errors of the edges and of the pairs."""
    return [expected_calibration_error(edges[:, k], edges[:, 2 + k]) for k in (0, 1)]


def to_json(coefficients: Coefficients, everything: list[Case], left_out: dict[str, float]) -> dict:
    """What calibration.json holds: coefficients, and where they come from."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    named = {"structure": STRUCTURE, "between": BETWEEN, "direction": DIRECTION}
    content: dict = {
        part: dict(zip(names, getattr(coefficients, part).round(4).tolist())) for part, names in named.items()
    }
    provenance = {
        "script": "python -m benchmarks.calibrate --write",
        "commit": commit,
        "trees": dict(Counter(case.split for case in everything)),
        "edges": sum(len(case.example.parents) for case in everything),
        "error_left_out": {name: round(error, 4) for name, error in left_out.items()},
    }
    priors = {name: round(getattr(coefficients, name), 4) for name in PRIORS}
    return content | priors | {"provenance": provenance}


def main(args: Args) -> None:
    """Leave out each recipe, each root and each architecture in turn."""
    everything = [case for name in args.collections for case in cases(*traced(name))]
    rows, failed, left_out = [], False, {}
    for title, group in GROUPS.items():
        found = leave_out(everything, group)
        if not found:
            continue
        judged = np.concatenate(list(found.values()))
        for name, edges in [*found.items(), ("all", judged)]:
            rows.append([title, name, len(edges), edges[:, 2].mean(), edges[:, 3].mean(), *errors(edges)])
        left_out[title] = errors(judged)[0]
        # What is left of an architecture when others are left out may be too little to calibrate on: reported only.
        failed |= title != "architecture" and max(errors(judged)) > LARGEST_ERROR
        if title == "recipe":
            write_figure(args.figure, draw(judged[:, 0], judged[:, 2], left_out[title]), dpi=200)
    print(format_table(("left out", "group", "edges", "right", "adjacent", "ECE", "ECE adjacent"), rows))
    if args.write:
        write_json(PATH, to_json(fit(taught(everything)), everything, left_out))
        print(f"written: {PATH.name}")
    if failed:
        sys.exit(f"a calibration error is above {LARGEST_ERROR}")


if __name__ == "__main__":
    main(tyro.cli(Args))

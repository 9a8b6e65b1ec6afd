"""Coefficients from cases of known truth: fitted to whole trees, then sharpened to be as sure as they are right."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from benchmarks.incomplete import taught
from benchmarks.traced import Case
from mother.graph.arborescence import edge_marginals
from mother.heritage.calibration import Coefficients, log_weights
from mother.heritage.fitting import fit
from mother.heritage.trees import best_tree, likeliest_edges

SHARPEST = 2.0  # factor on coefficients, at most


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


def sharper(coefficients: Coefficients, factor: float) -> Coefficients:
    """All that tells who is next to whom, times a factor; arrows and priors stay."""
    own = coefficients
    return replace(own, structure=own.structure * factor, between=own.between * factor, beside=own.beside * factor)


def fitted(cases: Iterable[Case]) -> Coefficients:
    """Coefficients from some cases.

    The likelihood of whole trees pays most for the few edges that evidence misleads about, and so makes the edges that
    are stated less sure than they are right. One factor puts that straight (Platt 1999; Guo et al. 2017): that of the
    largest likelihood of whether stated edges are right.
    """
    cases = list(cases)
    found = fit(taught(cases))

    def loss(factor: float) -> float:
        edges = np.array([edge for case in cases for edge in judge(case, sharper(found, factor))], dtype=float)
        stated, right = edges[:, 0].clip(1e-9, 1 - 1e-9), edges[:, 2]
        return -float((right * np.log(stated) + (1 - right) * np.log1p(-stated)).mean())

    return sharper(found, float(minimize_scalar(loss, bounds=(1, SHARPEST), options={"xatol": 0.02}).x))

"""Edge probabilities by the Matrix-Tree theorem against the enumeration of all trees, and their calibration."""

from itertools import product

import numpy as np
import pytest

from mother.evidence.edges import DIRECTION, STRUCTURE, Evidence
from mother.graph.arborescence import edge_marginals
from mother.heritage.calibration import Coefficients, Example, arrow_probability, fit, log_weights, read_coefficients


def enumerate_trees(log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Edge and root probabilities, and the log sum, by going through all arborescences."""
    n = len(log_weight)
    edges, roots, total = np.zeros((n, n)), np.zeros(n), 0.0
    for parents in product(range(-1, n), repeat=n):
        if parents.count(-1) != 1 or any(parent == child for child, parent in enumerate(parents)):
            continue
        reached = {parents.index(-1)}
        for _ in range(n):
            reached |= {child for child, parent in enumerate(parents) if parent in reached}
        if len(reached) < n:
            continue
        weight = np.exp(sum(log_weight[parent, child] for child, parent in enumerate(parents) if parent >= 0))
        total += weight
        roots[parents.index(-1)] += weight
        for child, parent in enumerate(parents):
            if parent >= 0:
                edges[parent, child] += weight
    return edges / total, roots / total, float(np.log(total))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0])
def test_marginals_equal_enumeration(n: int, scale: float, rng: np.random.Generator) -> None:
    log_weight = scale * rng.normal(size=(n, n)) + rng.normal() * 50
    edges, roots, log_sum = edge_marginals(log_weight)
    true_edges, true_roots, true_sum = enumerate_trees(log_weight)
    assert edges == pytest.approx(true_edges, abs=1e-9) and roots == pytest.approx(true_roots, abs=1e-9)
    assert log_sum == pytest.approx(true_sum, abs=1e-6)


def test_impossible_edges_and_a_model_without_a_possible_parent(rng: np.random.Generator) -> None:
    log_weight = rng.normal(size=(4, 4))
    log_weight[1, 2] = log_weight[2, 1] = -np.inf
    edges, roots, _ = edge_marginals(log_weight)
    true_edges, true_roots, _ = enumerate_trees(np.where(np.isinf(log_weight), -60, log_weight))
    assert edges == pytest.approx(true_edges, abs=1e-9) and roots == pytest.approx(true_roots, abs=1e-9)
    log_weight[:, 3] = -np.inf
    edges, roots, _ = edge_marginals(log_weight)
    assert roots[3] == pytest.approx(1) and edges.sum(axis=0)[:3] == pytest.approx([1, 1, 1])


def test_large_and_decided_graphs_sum_to_one(rng: np.random.Generator) -> None:
    log_weight = 200 * rng.normal(size=(300, 300))
    edges, roots, _ = edge_marginals(log_weight)
    assert edges.sum(axis=0) + roots == pytest.approx(np.ones(300), abs=1e-6)
    assert roots.sum() == pytest.approx(1, abs=1e-6)


def test_groups_bound_far_more_to_each_other_than_to_the_rest() -> None:
    log_weight = np.full((40, 40), -500.0)
    for k in range(0, 40, 4):
        log_weight[k : k + 4, k : k + 4] = 300.0
    edges, roots, log_sum = edge_marginals(log_weight)
    assert np.isfinite(log_sum)
    assert edges.sum(axis=0) + roots == pytest.approx(np.ones(40), abs=1e-4)
    assert edges[0, 1] > 0.2 and edges[0, 5] < 0.01


def test_one_model_and_bad_weights() -> None:
    edges, roots, log_sum = edge_marginals(np.zeros((1, 1)))
    assert edges == 0 and roots == 1 and log_sum == 0
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="below infinity"):
            edge_marginals(np.array([[0, bad], [0.0, 0]]))
    with pytest.raises(ValueError, match="no possible parent"):
        edge_marginals(np.full((2, 2), -np.inf))


def all_trees(n: int) -> list[dict[int, int]]:
    """Every arborescence of n nodes: child -> parent."""
    found = []
    for parents in product(range(-1, n), repeat=n):
        reached = {child for child, parent in enumerate(parents) if parent == -1}
        if len(reached) == 1:
            for _ in range(n):
                reached |= {child for child, parent in enumerate(parents) if parent in reached}
            if len(reached) == n:
                found.append({child: parent for child, parent in enumerate(parents) if parent >= 0})
    return found


def random_example(rng: np.random.Generator, n: int, truth: Coefficients) -> Example:
    """Random evidence and a tree drawn from the model's own distribution."""
    structure = rng.normal(size=(n, n, len(STRUCTURE)))
    direction = rng.normal(size=(n, n, len(DIRECTION)))
    direction = direction - direction.transpose(1, 0, 2)
    evidence = Evidence(structure, direction, np.zeros((n, n)), np.ones((n, n), dtype=bool))
    weights = log_weights(evidence, truth)
    trees = all_trees(n)
    total = np.array([sum(weights[parent, child] for child, parent in tree.items()) for tree in trees])
    chances = np.exp(total - total.max())
    return Example(evidence, trees[rng.choice(len(trees), p=chances / chances.sum())], {})


def test_fit_recovers_the_coefficients_that_made_the_trees(rng: np.random.Generator) -> None:
    truth = Coefficients(np.array([-1.0, -2.0, 0.5, 1.0, -0.5]), np.array([1.5, 0.5]))
    examples = [random_example(rng, 4, truth) for _ in range(500)]
    found = fit(examples, ridge=0.001)
    assert found.structure == pytest.approx(truth.structure, abs=0.4)
    assert found.direction == pytest.approx(truth.direction, abs=0.4)


def test_exact_relations_decide_and_rounding_beats_newness() -> None:
    coefficients = read_coefficients()
    n = 4
    evidence = Evidence(
        np.zeros((n, n, len(STRUCTURE))),
        np.zeros((n, n, len(DIRECTION))),
        np.zeros((n, n)),
        np.ones((n, n), dtype=bool),
    )
    evidence.exact[0, 1], evidence.exact[1, 0] = 500.0, -500.0
    evidence.direction[0, 1], evidence.direction[1, 0] = -1.0, 1.0
    arrow = arrow_probability(evidence, coefficients)
    assert arrow[0, 1] > 0.999 and arrow[1, 0] < 0.001 and arrow[2, 3] == pytest.approx(0.5)
    edges, _, _ = edge_marginals(log_weights(evidence, coefficients, {3: 2}))
    assert edges[2, 3] > 0.999 and edges[3].sum() > 0  # its own children stay possible

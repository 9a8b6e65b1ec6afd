"""Edge probabilities by the Matrix-Tree theorem against the enumeration of all trees, and their calibration."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mother.graph.arborescence import edge_marginals


@cache
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


def enumerate_trees(log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Edge and root probabilities, and the log sum, by going through all arborescences."""
    n = len(log_weight)
    trees = all_trees(n)
    total = np.array([sum(log_weight[parent, child] for child, parent in tree.items()) for tree in trees])
    log_sum = np.logaddexp.reduce(total)
    edges, roots = np.zeros((n, n)), np.zeros(n)
    for tree, chance in zip(trees, np.exp(total - log_sum)):
        roots[[node for node in range(n) if node not in tree]] += chance
        for child, parent in tree.items():
            edges[parent, child] += chance
    return edges, roots, float(log_sum)


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


@st.composite
def hostile_weights(draw: st.DrawFn) -> np.ndarray:
    """Log weights hundreds of nats apart, with ties, groups bound to each other, and impossible edges."""
    n = draw(st.integers(2, 5))
    levels = draw(st.lists(st.floats(-400, 400), min_size=1, max_size=4))
    value = st.one_of(st.sampled_from(levels), st.floats(-400, 400))
    weights = np.array(draw(st.lists(value, min_size=n * n, max_size=n * n))).reshape(n, n)
    group = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    weights += draw(st.sampled_from([0.0, 30.0, 800.0])) * (group[:, None] == group[None])
    barred = np.array(draw(st.lists(st.integers(0, 5), min_size=n * n, max_size=n * n))).reshape(n, n) == 0
    return np.where(barred & draw(st.booleans()), -np.inf, weights)


@settings(max_examples=300, deadline=None)
@given(hostile_weights())
def test_marginals_of_hostile_weights_equal_enumeration(log_weight: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        true_edges, true_roots, true_sum = enumerate_trees(log_weight)
    if np.isneginf(true_sum):
        with pytest.raises(ValueError, match="no tree"):
            edge_marginals(log_weight)
        return
    edges, roots, log_sum = edge_marginals(log_weight)
    assert edges == pytest.approx(true_edges, abs=1e-9) and roots == pytest.approx(true_roots, abs=1e-9)
    assert log_sum == pytest.approx(true_sum, abs=1e-9)
    assert (edges + edges.T <= 1).all() and (edges[np.isneginf(log_weight)] == 0).all()


def test_two_arrows_that_exclude_each_other_never_sum_above_one() -> None:
    """Two sure groups whose one pair 5/8 and 3/8 would sum to 1 + 2^-52 by rounding."""
    log_weight = np.full((5, 5), 168.0)
    log_weight[:3, :3] = log_weight[3:, 3:] = 968.0
    log_weight[2, 1], log_weight[2, 4], log_weight[4, 2] = 800.0, 198.0, 198.0
    edges, _, _ = edge_marginals(log_weight)
    assert (edges + edges.T).max() == 1.0


def test_marginals_equal_the_inverse_of_the_laplacian_on_tame_weights(rng: np.random.Generator) -> None:
    """Koo, Globerson, Carreras, Collins (2007), as long as its subtractions cancel nothing."""
    log_weight = 2 * rng.normal(size=(60, 60))
    np.fill_diagonal(log_weight, -np.inf)
    weight = np.exp(log_weight)
    laplacian = np.diag(weight.sum(axis=0)) - weight
    laplacian[0] = 1
    inverse = np.linalg.inv(laplacian)
    below = np.arange(60) > 0
    expected = weight * (below * inverse.diagonal()) - weight * below[:, None] * inverse.T
    edges, roots, log_sum = edge_marginals(log_weight)
    assert edges == pytest.approx(expected, abs=1e-9) and roots == pytest.approx(inverse[:, 0], abs=1e-9)
    assert log_sum == pytest.approx(np.linalg.slogdet(laplacian)[1], abs=1e-9)


@pytest.mark.parametrize("size", [2, 4])
def test_groups_bound_far_more_to_each_other_than_to_the_rest(size: int) -> None:
    """By symmetry each member is one group's root, or hangs under one of the others, equally often."""
    log_weight = np.full((40, 40), -500.0)
    for k in range(0, 40, size):
        log_weight[k : k + size, k : k + size] = 300.0
    edges, roots, log_sum = edge_marginals(log_weight)
    groups, away = 40 // size, 40 - size
    assert roots == pytest.approx(np.full(40, 1 / 40), abs=1e-9)
    assert edges[0, 1] == pytest.approx(1 / size, abs=1e-9)
    assert edges[0, -1] == pytest.approx((1 / size - 1 / 40) / away, abs=1e-9)
    inside = 40 - groups
    trees = groups * (size - 2) * np.log(size) + (groups - 2) * np.log(groups) + (groups - 1) * 2 * np.log(size)
    assert log_sum == pytest.approx(300 * inside - 500 * (groups - 1) + trees + np.log(40), abs=1e-6)


def test_sums_that_fail_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mother.graph.arborescence.SUMS_TO_ONE", -1.0)
    with pytest.raises(ArithmeticError, match="do not sum to 1"):
        edge_marginals(np.zeros((3, 3)))


def test_one_model_and_bad_weights() -> None:
    edges, roots, log_sum = edge_marginals(np.zeros((1, 1)))
    assert edges == 0 and roots == 1 and log_sum == 0
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="below infinity"):
            edge_marginals(np.array([[0, bad], [0.0, 0]]))
    with pytest.raises(ValueError, match="no tree"):
        edge_marginals(np.full((2, 2), -np.inf))

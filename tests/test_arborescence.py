"""Our dense Edmonds against networkx, on random graphs with ties and negative costs."""

import time

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mother.graph.arborescence import minimum_spanning_arborescence


def price(cost: np.ndarray, parents: np.ndarray) -> float:
    """Sum of the chosen edges, after checking that they are an arborescence."""
    edges = [(int(parent), child) for child, parent in enumerate(parents) if parent >= 0]
    tree = nx.DiGraph(edges)
    tree.add_nodes_from(range(len(parents)))
    assert nx.is_arborescence(tree)
    return sum(cost[edge] for edge in edges)


def networkx_price(cost: np.ndarray) -> float:
    """Price of networkx' minimum spanning arborescence; zero-weight edges are kept."""
    graph = nx.DiGraph()
    n = len(cost)
    graph.add_weighted_edges_from((i, j, float(cost[i, j])) for i in range(n) for j in range(n) if i != j)
    tree = nx.minimum_spanning_arborescence(graph)
    return sum(weight for _, _, weight in tree.edges(data="weight"))


def costs(elements: st.SearchStrategy) -> st.SearchStrategy:
    return st.integers(2, 12).flatmap(lambda n: arrays(np.float64, (n, n), elements=elements))


@settings(max_examples=500, deadline=None)
@given(costs(st.integers(-4, 4).map(float) | st.floats(-100, 100, allow_subnormal=False)))
def test_price_equals_networkx(cost: np.ndarray) -> None:
    assert price(cost, minimum_spanning_arborescence(cost)) == pytest.approx(networkx_price(cost), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(costs(st.integers(0, 2).map(float)), st.floats(-1e3, 1e3))
def test_a_constant_changes_nothing(cost: np.ndarray, constant: float) -> None:
    shifted = price(cost, minimum_spanning_arborescence(cost + constant))
    assert shifted == pytest.approx(networkx_price(cost), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e300])
def test_any_scale(scale: float, rng: np.random.Generator) -> None:
    for _ in range(20):
        cost = rng.normal(size=(9, 9))
        np.testing.assert_array_equal(minimum_spanning_arborescence(cost * scale), minimum_spanning_arborescence(cost))


def test_planted_tree_is_found(rng: np.random.Generator) -> None:
    n = 60
    order = rng.permutation(n)
    truth = np.full(n, -1)
    cost = rng.uniform(1, 2, (n, n))
    for place in range(1, n):
        truth[order[place]] = order[rng.integers(place)]
        cost[truth[order[place]], order[place]] = 0.5
    np.testing.assert_array_equal(minimum_spanning_arborescence(cost), truth)


def test_nested_cycles() -> None:
    """Chains of cheap two-cycles, which contract many times over."""
    n = 40
    cost = np.full((n, n), 1000.0)
    for i in range(n - 1):
        cost[i, i + 1] = cost[i + 1, i] = i
    assert price(cost, minimum_spanning_arborescence(cost)) == networkx_price(cost)


@pytest.mark.parametrize("n, expected", [(0, []), (1, [-1])])
def test_trivial_sizes(n: int, expected: list[int]) -> None:
    assert minimum_spanning_arborescence(np.zeros((n, n))).tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    cost = np.zeros((3, 3))
    np.fill_diagonal(cost, value)
    minimum_spanning_arborescence(cost)  # the diagonal is ignored
    cost[0, 1] = value
    with pytest.raises(ValueError, match="finite"):
        minimum_spanning_arborescence(cost)


def test_a_thousand_nodes_in_seconds(rng: np.random.Generator) -> None:
    cost = rng.normal(size=(1000, 1000))
    started = time.perf_counter()
    parents = minimum_spanning_arborescence(cost)
    assert time.perf_counter() - started < 10  # far above what `make bench` measures; quadratic, not cubic
    price(cost, parents)

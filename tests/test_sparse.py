"""Sparse Edmonds against the dense one and networkx; probabilities against sums over all trees."""

import time

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mother.graph.arborescence import edge_marginals, minimum_spanning_arborescence
from mother.graph.sparse import Edges, minimum_spanning_forest, most_probable_forest


def edges_of(cost: np.ndarray) -> Edges:
    """All edges of a dense matrix that are finite."""
    parent, child = np.nonzero(np.isfinite(cost) & ~np.eye(len(cost), dtype=bool))
    return Edges(len(cost), parent, child, cost[parent, child])


def price(cost: np.ndarray, parents: np.ndarray) -> float:
    child = np.flatnonzero(parents >= 0)
    return float(cost[parents[child], child].sum())


def is_forest(parents: np.ndarray) -> bool:
    graph = nx.DiGraph([(int(parent), child) for child, parent in enumerate(parents) if parent >= 0])
    return nx.is_directed_acyclic_graph(graph)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([3, 1000]))
def test_of_a_complete_graph_the_tree_is_as_cheap_as_the_dense_one(n: int, seed: int, levels: int) -> None:
    cost = np.random.default_rng(seed).integers(-levels, levels, (n, n)).astype(float)  # few levels: many are equal
    sparse, dense = minimum_spanning_forest(edges_of(cost)), minimum_spanning_arborescence(cost)
    assert is_forest(sparse) and (sparse < 0).sum() == 1
    assert price(cost, sparse) == pytest.approx(price(cost, dense))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.floats(0, 1), st.integers(0, 10**6))
def test_of_a_sparse_graph_the_forest_is_as_cheap_as_that_of_networkx(n: int, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    cost = np.where(draw.random((n, n)) < share, draw.integers(-9, 9, (n, n)), np.inf)
    found = minimum_spanning_forest(edges_of(cost), root := draw.integers(0, 9, n).astype(float))
    graph = nx.DiGraph()  # a dear virtual root
    graph.add_edges_from((n, v, {"weight": 10_000 + root[v]}) for v in range(n))
    graph.add_edges_from((i, j, {"weight": cost[i, j]}) for i, j in np.argwhere(np.isfinite(cost)) if i != j)
    best = nx.minimum_spanning_arborescence(graph).size(weight="weight")
    roots = np.flatnonzero(found < 0)
    assert is_forest(found)
    assert price(cost, found) + root[roots].sum() + 10_000 * len(roots) == pytest.approx(best)


def test_nested_cycles_are_opened_in_the_right_place() -> None:
    """Two cycles that become one, entered from outside at its dearest place: by hand the root edge enters at 2."""
    edges = [(0, 1, 1), (1, 0, 1), (2, 3, 1), (3, 2, 1), (1, 2, 2), (3, 0, 2), (4, 2, 5), (4, 0, 9)]
    parent, child, cost = (np.array(column) for column in zip(*edges))
    found = minimum_spanning_forest(Edges(5, parent, child, cost.astype(float)))
    assert found.tolist() == [3, 0, 4, 2, -1]


def test_nothing_and_odd_edges() -> None:
    none = np.zeros(0, dtype=int)
    assert minimum_spanning_forest(Edges(3, none, none, np.zeros(0))).tolist() == [-1, -1, -1]
    assert minimum_spanning_forest(Edges(0, none, none, np.zeros(0))).tolist() == []
    loop = Edges(2, np.array([0, 0, 0]), np.array([0, 1, 1]), np.array([-9.0, 4.0, 2.0]))
    assert minimum_spanning_forest(loop).tolist() == [-1, 0]
    with pytest.raises(ValueError, match="finite"):
        minimum_spanning_forest(Edges(2, np.array([0]), np.array([1]), np.array([np.nan])))
    with pytest.raises(ValueError, match="none of the 2"):
        minimum_spanning_forest(Edges(2, np.array([0]), np.array([2]), np.array([1.0])))


def test_small_components_have_exact_probabilities(rng: np.random.Generator) -> None:
    one, other = rng.normal(size=(6, 6)), rng.normal(size=(4, 4))
    both = np.full((10, 10), np.inf)
    both[:6, :6], both[6:, 6:] = one, other
    found = most_probable_forest(edges_of(both))
    assert found.exact.all()
    for weights, start in ((one, 0), (other, 6)):
        probability, roots, _ = edge_marginals(weights)
        parents = minimum_spanning_arborescence(-weights)
        inside = slice(start, start + len(weights))
        assert np.allclose(found.root[inside], roots)
        assert np.array_equal(found.parent[inside], np.where(parents >= 0, parents + start, -1))
        child = np.flatnonzero(parents >= 0)
        forth, back = probability[parents[child], child], probability[child, parents[child]]
        assert np.allclose(found.adjacency[start + child], forth + back)
        assert np.allclose(found.arrow[start + child], forth / (forth + back))


def test_local_probabilities_are_those_of_single_changes(rng: np.random.Generator) -> None:
    """Arrows: of a graph that is a tree they are exact. Adjacency: by trying every other parent."""
    tree = np.full((7, 7), np.inf)
    for child in range(1, 7):
        parent = int(rng.integers(child))
        tree[parent, child], tree[child, parent] = rng.normal(size=2)
    local, exact = (most_probable_forest(edges_of(tree), largest) for largest in (0, 7))
    assert not local.exact.any() and exact.exact.all()
    assert np.allclose(local.root, exact.root) and np.allclose(local.arrow, exact.arrow)
    weights = rng.normal(size=(7, 7))
    found = most_probable_forest(edges_of(weights), 0)
    for child in np.flatnonzero(found.parent >= 0):
        others = []
        for parent in set(range(7)) - {int(child)}:
            changed = found.parent.copy()
            changed[child] = parent
            others += [weights[parent, child]] if is_forest(changed) else []
        expected = np.exp(weights[found.parent[child], child]) / np.exp(others).sum()
        assert found.adjacency[child] == pytest.approx(expected)


@pytest.mark.slow
def test_two_hundred_thousand_models_and_five_million_edges() -> None:
    draw, n = np.random.default_rng(0), 200_000
    minimum_spanning_forest(edges_of(draw.normal(size=(4, 4))))  # compiles
    parent, child = draw.integers(n, size=(2, 5_000_000))
    started = time.perf_counter()
    found = minimum_spanning_forest(Edges(n, parent, child, draw.normal(size=len(parent))))
    assert (found < 0).sum() == 1
    assert time.perf_counter() - started < 60

"""No model is above its ancestors: the helper against networkx, and parents of merges that would be below them."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mother.graph.acyclic import descents, find_circle, require_acyclic
from mother.graph.arborescence import edge_marginals
from mother.heritage.calibration import Weights
from mother.heritage.trees import acyclic_tree, likeliest_edges
from mother.index.offers import Offers
from mother.index.trees import acyclic_tree as sparse_tree

EDGES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=14)


@given(EDGES)
def test_circles_equal_networkx(edges: list[tuple[int, int]]) -> None:
    graph = nx.DiGraph(edges)
    circle = find_circle(edges)
    assert bool(circle) != nx.is_directed_acyclic_graph(graph)
    if circle:
        assert set(circle) <= set(edges) and [end for _, end in circle] == [
            *(start for start, _ in circle[1:]),
            circle[0][0],
        ]
        with pytest.raises(ValueError, match="above its own ancestors"):
            require_acyclic(edges)
    else:
        assert descents(edges) == {(a, node) for node in graph for a in nx.ancestors(graph, node)}


def test_a_circle_is_named() -> None:
    with pytest.raises(ValueError, match="a -> b -> a|b -> a -> b"):
        require_acyclic([("a", "b"), ("b", "a")])


def test_the_tree_hangs_no_parent_of_a_merge_below_it() -> None:
    """2 is a merge of 0 and 1; its child 3 is the likeliest parent of 1."""
    weights = np.full((4, 4), -5.0)
    weights[0, 2], weights[2, 3], weights[3, 1], weights[0, 1] = 100.0, 10.0, 8.0, 4.0
    weights[2, :2] = -np.inf
    never = np.full((4, 4), -np.inf)
    tree, left = acyclic_tree(Weights(weights, never), [(0, 2), (1, 2)])
    assert tree == {2: 0, 3: 2, 1: 0} and left.both[3, 1] == -np.inf and weights[3, 1] == 8


def test_an_edge_is_possible_again_once_another_breaks_the_circle() -> None:
    """Models 2 and 3 are nearly equal merges of 0 and 1, 4 was trained from 2, and 1 looks trained from 4."""
    weights, never = np.full((5, 5), -20.0), np.full((5, 5), -np.inf)
    weights[0, 2] = weights[0, 3] = 60.0
    weights[2, 4], weights[3, 4], weights[4, 1], weights[0, 1] = 4.0, 3.0, 2.0, 0.5
    tree, left = acyclic_tree(Weights(weights, never), [(0, 2), (1, 2), (0, 3), (1, 3)])
    assert tree == {1: 0, 2: 0, 3: 0, 4: 2}
    assert np.argwhere(np.isneginf(left.parent)).tolist() == [[4, 1]]


@st.composite
def exact_relations(draw: st.DrawFn) -> tuple[int, dict[int, list[int]]]:
    """How many models, and of some the parents that exact operations had: of casts and copies one, of merges more.

    These close no circle: parents come first in some order of the models.
    """
    models = draw(st.integers(3, 8))
    order = draw(st.permutations(range(models)))
    parents = {}
    for at in range(1, models):
        if draw(st.integers(0, 2)) == 0:
            parents[order[at]] = draw(st.lists(st.sampled_from(order[:at]), min_size=1, max_size=3, unique=True))
    return models, parents


@settings(deadline=None, max_examples=300)
@given(exact_relations(), st.integers(0, 2**32 - 1))
def test_the_sparse_tree_is_the_dense_one(relations: tuple[int, dict[int, list[int]]], seed: int) -> None:
    """With weights that like circles: what made a model is often the likeliest child of its children."""
    (n, exact), rng = relations, np.random.default_rng(seed)
    known = [(parent, child) for child, parents in exact.items() for parent in parents]
    weights = Weights(rng.normal(size=(n, n)) * 3, rng.normal(size=(n, n)) * 3)
    for matrix in (weights.parent, weights.beside):
        np.fill_diagonal(matrix, -np.inf)
    for child, parents in exact.items():  # as in mother/heritage: such a model has this parent for sure
        weights.parent[:, child] = weights.beside[:, child] = -np.inf
        weights.parent[parents[0], child] = 100.0
        for between in sorted(set(range(n)) - exact.keys()):
            weights.parent[child, between] += 10 * rng.random()
            weights.parent[between, parents[1:]] += 10 * rng.random(len(parents) - 1)
    for ancestor, descendant in descents(known):
        weights = weights.without(descendant, ancestor)
    parent, child = np.nonzero(np.isfinite(weights.best))
    values = weights.parent[parent, child], weights.beside[parent, child]
    offers = Offers(n, parent, child, *values, np.zeros(len(parent)), np.arange(len(parent)))
    tree, left = acyclic_tree(weights, known)
    assume(all(np.isfinite(weights.best[above, below]) for below, above in tree.items()))
    marginals, root, _ = edge_marginals(left.both)
    tree = likeliest_edges(marginals, root, tree, list(range(n)), known)
    assume(all(np.isfinite(left.best[above, below]) for below, above in tree.items()))
    offers_left, found = sparse_tree(offers, {one: dict.fromkeys(some, {}) for one, some in exact.items()}, n)
    assert {one: int(above) for one, above in enumerate(found.parent) if above >= 0} == tree
    ends = zip(offers_left.parent.tolist(), offers_left.child.tolist())
    assert sorted(ends) == [tuple(pair) for pair in np.argwhere(np.isfinite(left.best)).tolist()]

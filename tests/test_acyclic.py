"""No model is above its ancestors: the helper against networkx, and parents of merges that would be below them."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mother.graph.acyclic import descents, find_circle, require_acyclic
from mother.heritage.calibration import Weights
from mother.heritage.trees import _acyclic_tree

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
    tree, left = _acyclic_tree(Weights(weights, never), [0, 1, 2, 3], [(0, 2), (1, 2)])
    assert tree == {2: 0, 3: 2, 1: 0} and left.both[3, 1] == -np.inf and weights[3, 1] == 8


def test_an_edge_is_possible_again_once_another_breaks_the_circle() -> None:
    """Models 2 and 3 are nearly equal merges of 0 and 1, 4 was trained from 2, and 1 looks trained from 4."""
    weights, never = np.full((5, 5), -20.0), np.full((5, 5), -np.inf)
    weights[0, 2] = weights[0, 3] = 60.0
    weights[2, 4], weights[3, 4], weights[4, 1], weights[0, 1] = 4.0, 3.0, 2.0, 0.5
    tree, left = _acyclic_tree(Weights(weights, never), [0, 1, 2, 3, 4], [(0, 2), (1, 2), (0, 3), (1, 3)])
    assert tree == {1: 0, 2: 0, 3: 0, 4: 2}
    assert np.argwhere(np.isneginf(left.parent)).tolist() == [[4, 1]]

"""In how many orders a tree can have grown from each of its models."""

from itertools import permutations

import numpy as np
import pytest

from mother.graph.growth import growth_orders


def random_tree(n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Edges of a random labelled tree."""
    order = rng.permutation(n).tolist()
    return [(order[k], order[int(rng.integers(k))]) for k in range(1, n)]


def counted(n: int, tree: list[tuple[int, int]]) -> list[int]:
    """By brute force: orders of the models in which each but the first comes after a neighbour of it."""
    near = {v: {a + b - v for a, b in tree if v in (a, b)} for v in range(n)}
    found = [0] * n
    for order in permutations(range(n)):
        found[order[0]] += all(near[v] & {*order[:k]} for k, v in enumerate(order) if k)
    return found


@pytest.mark.parametrize("n", [2, 3, 5, 6])
def test_orders_are_those_that_can_be_counted(n: int, rng: np.random.Generator) -> None:
    for _ in range(5):
        tree = random_tree(n, rng)
        first, second = np.array(tree).T
        found, expected = growth_orders(n, first, second, np.ones(n - 1)), np.log(counted(n, tree))
        assert found - found[0] == pytest.approx(expected - expected[0])


def test_the_likeliest_tree_counts_and_guesses_count_less() -> None:
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    sure = growth_orders(3, first, second, np.array([1.0, 1.0, 0.0]))
    assert sure[0] - sure[1] == pytest.approx(np.log(2)) and sure[1] == pytest.approx(sure[2])
    guess = growth_orders(3, first, second, np.array([0.8, 0.7, 0.5]))
    assert guess[0] - guess[1] == pytest.approx(0.8 * np.log(2))
    assert guess[0] - guess[2] == pytest.approx(0.7 * np.log(2))


def test_components_do_not_count_for_one_another() -> None:
    first, second = np.array([0, 0, 4]), np.array([1, 2, 5])
    found = growth_orders(6, first, second, np.ones(3))
    assert found[0] - found[1] == pytest.approx(np.log(2)) and found[4] == found[5] and found[3] == 0
    assert growth_orders(1, first[:0], second[:0], np.zeros(0)).tolist() == [0]

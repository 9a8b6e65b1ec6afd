"""Distances against plain loops over pairs, written from the paper's description."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mother.io.checkpoint import LARGEST
from mother.paper import distances, statistics
from mother.paper.distances import (
    difference_range,
    minmax_distance,
    pairwise_differences,
    pairwise_mean_absolute_difference,
    sum_over_layers,
)
from mother.paper.ranks import pairwise_rank


def stack(rng: np.random.Generator, layers: int = 3, models: int = 6, size: int = 10) -> np.ndarray:
    """Random weights, one scale for each layer: (layers, models, size, size)."""
    scales = 10.0 ** rng.uniform(-2, 1, (layers, 1, 1, 1))
    return (rng.normal(size=(layers, models, size, size)) * scales).astype(np.float32)


def max_difference(weights: torch.Tensor) -> torch.Tensor:
    return pairwise_differences(weights)["pair_max_difference"]


@pytest.fixture(params=["compiled", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the loops for the CPU, and as on a GPU."""
    if request.param == "torch":
        for module in (distances, statistics):
            monkeypatch.setattr(module, "has_kernels", lambda weights: False)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("models, size", [(6, 10), (1, 4), (4, 300)])
def test_pairwise_differences(models: int, size: int, rng: np.random.Generator) -> None:
    for weights in stack(rng, models=models, size=size):
        tensor = torch.from_numpy(weights)
        mean = pairwise_mean_absolute_difference(tensor).numpy()
        largest, square = (values.numpy() for values in pairwise_differences(tensor).values())
        for i in range(len(weights)):
            for j in range(len(weights)):
                difference = weights[i].astype(np.float64) - weights[j]
                assert largest[i, j] == (weights[i] - weights[j]).max()
                assert mean[i, j] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
                assert square[i, j] == pytest.approx((difference**2).mean(), rel=1e-6)


@pytest.mark.usefixtures("either_way")
def test_largest_difference_may_be_negative() -> None:
    low, high = torch.zeros(4, 4), torch.arange(1.0, 17).reshape(4, 4)
    assert max_difference(torch.stack([low, high])).tolist() == [[0, -1], [16, 0]]
    assert max_difference(torch.stack([high, low])).tolist() == [[0, 16], [-1, 0]]
    assert max_difference(low[None]).tolist() == [[0]]


SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 1e-38, -1e-38, LARGEST, -LARGEST, 1 + 2**-23]


@pytest.mark.usefixtures("either_way")
@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_extremes_equal_numpy(data: st.DataObject) -> None:
    """Of numbers of one sign, zeros of both, equal models, numbers that only just exist, and very large ones."""
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 40)))
    pool = data.draw(
        st.lists(st.sampled_from(SPECIAL) | st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=6)
    )
    weights = np.random.default_rng(data.draw(st.integers(0, 99))).choice(np.array(pool, dtype=np.float32), shape)
    largest = max_difference(torch.from_numpy(weights)).numpy()
    np.testing.assert_array_equal(largest, (weights[:, None] - weights[None]).max(axis=(2, 3)))
    found = statistics.moments(torch.from_numpy(weights))["moments"].numpy()
    np.testing.assert_array_equal(found[:, :2].T, [weights.min(axis=(1, 2)), weights.max(axis=(1, 2))])


@pytest.mark.parametrize("rank", [0, 1, 3, 8, 24])
def test_rank_equals_numpy(rank: int, rng: np.random.Generator) -> None:
    base = rng.normal(size=(24, 24)).astype(np.float32)
    moves = [rng.normal(size=(24, rank)) @ rng.normal(size=(rank, 24)) for _ in range(3)]
    weights = np.stack([base, *(base + move for move in moves)]).astype(np.float32)
    found = pairwise_rank(torch.from_numpy(weights)).numpy()
    for i in range(4):
        for j in range(4):
            assert found[i, j] == np.linalg.matrix_rank(weights[i] - weights[j])
            if 0 in (i, j) and i != j:
                assert found[i, j] == rank


def reference_distance(weights: np.ndarray) -> np.ndarray:
    """The paper's distance as one would write it down: statistics first, then each pair in each layer."""
    layers, n = weights.shape[:2]
    distance = np.zeros((n, n))
    for layer in weights:
        pairs = {(i, j): layer[i] - layer[j] for i in range(n) for j in range(i + 1, n)}
        low = min(difference.min() for difference in pairs.values())
        high = max(difference.max() for difference in pairs.values())
        for (i, j), difference in pairs.items():
            value = ((difference - low) / (high - low)).max()
            distance[i, j] = distance[j, i] = max(distance[i, j], value)
    return distance


def max_differences(weights: np.ndarray) -> np.ndarray:
    return np.stack([max_difference(torch.from_numpy(layer)).numpy() for layer in weights])


def test_minmax_distance_equals_the_plain_recipe(rng: np.random.Generator) -> None:
    weights = stack(rng)
    largest = max_differences(weights)
    np.testing.assert_allclose(
        minmax_distance(largest, *difference_range(largest)), reference_distance(weights), rtol=1e-5
    )


def test_both_orders_do_not_depend_on_the_order(rng: np.random.Generator) -> None:
    weights = stack(rng)
    order = rng.permutation(weights.shape[1])
    results = []
    for ordered in (weights, weights[:, order]):
        largest = max_differences(ordered)
        low, high = difference_range(largest, both_orders=True)
        np.testing.assert_array_equal(low, -high)
        results.append(minmax_distance(largest, low, high, both_orders=True))
    np.testing.assert_array_equal(results[0][np.ix_(order, order)], results[1])


def test_layers_without_any_difference_are_passed_over(rng: np.random.Generator) -> None:
    weights = stack(rng)
    frozen = np.concatenate([weights, np.repeat(weights[:1, :1], weights.shape[1], axis=1)])
    for_all, for_moved = (max_differences(some) for some in (frozen, weights))
    np.testing.assert_array_equal(
        minmax_distance(for_all, *difference_range(for_all)), minmax_distance(for_moved, *difference_range(for_moved))
    )
    nothing = max_differences(frozen[-1:])
    assert not minmax_distance(nothing, *difference_range(nothing)).any()


def test_reversed_range_is_refused(rng: np.random.Generator) -> None:
    largest = max_differences(stack(rng))
    low, high = difference_range(largest)
    with pytest.raises(ValueError, match="below"):
        minmax_distance(largest, high, low)


def test_sum_over_layers() -> None:
    assert sum_over_layers(np.arange(8).reshape(2, 2, 2)).tolist() == [[4, 6], [8, 10]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run pytest on a machine with one")
def test_gpu_gives_the_same_numbers(rng: np.random.Generator) -> None:
    weights = torch.from_numpy(stack(rng)[0])
    for function in (max_difference, pairwise_mean_absolute_difference, pairwise_rank):
        np.testing.assert_allclose(function(weights.cuda()).cpu(), function(weights), rtol=1e-5)

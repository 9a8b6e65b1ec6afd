"""Ranks by sketch are the exact ones, or the exact path is taken."""

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.sparse.csgraph
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mother.numeric.floats import cast
from mother.paper import ranks
from mother.paper.rank_paths import low_rank_factors, near_groups, nearest_neighbours, ranks_along_paths, sample_of
from mother.paper.ranks import exact_ranks, pairwise_rank


def lora_family(rank: int, seed: int, size: int = 160, models: int = 4, spread: float = 1.0) -> torch.Tensor:
    """A root and descendants by updates of one rank; singular values fall off by `spread` decimal orders."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    found = [0.04 * draw(size, size + 32)]
    for at in range(1, models):
        strength = torch.logspace(0, -spread, rank)
        found.append(found[at // 2] + 2e-4 * (draw(size, rank) * strength) @ draw(rank, size + 32))
    return torch.stack(found)


def by_numpy(weights: torch.Tensor) -> np.ndarray:
    found = np.zeros((len(weights), len(weights)), dtype=int)
    for i in range(len(weights)):
        for j in range(i):
            found[i, j] = found[j, i] = np.linalg.matrix_rank((weights[i] - weights[j]).numpy())
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@settings(deadline=None, max_examples=25)
@given(rank=st.integers(1, 64), seed=st.integers(0, 1000), spread=st.floats(0, 3))
def test_ranks_are_those_of_numpy(precision: str, rank: int, seed: int, spread: float) -> None:
    weights = lora_family(rank, seed, spread=spread)
    if precision != "float32":
        weights = torch.stack([cast(weight, precision) for weight in weights])
    assert np.array_equal(pairwise_rank(weights).numpy(), by_numpy(weights))


def along_paths(weights: torch.Tensor, members: Sequence[int], tolerance: float) -> dict[tuple[int, int], int]:
    """What is proved of some members with the tree of their nearest neighbours."""
    edges = nearest_neighbours(sample_of(weights)[list(members)])
    return ranks_along_paths(weights, members, edges, tolerance)


@settings(deadline=None, max_examples=30)
@given(
    ranks=st.lists(st.integers(0, 24), min_size=5, max_size=5),
    shared=st.integers(0, 8),
    seed=st.integers(0, 1000),
    spread=st.floats(0, 6),
)
def test_what_paths_prove_is_so(ranks: list[int], shared: int, seed: int, spread: float) -> None:
    """Updates may share directions, or fall off below the tolerance: then nothing may be claimed that is not so."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(130, 8, generator=generator)
    weights = [0.04 * torch.randn(130, 150, generator=generator)]
    for at, rank in enumerate(ranks):
        left = torch.randn(130, rank, generator=generator)
        left[:, : min(rank, shared)] = common[:, : min(rank, shared)]
        update = (left * torch.logspace(0, -spread, rank)) @ torch.randn(rank, 150, generator=generator)
        weights.append(weights[at // 2] + 1e-3 * update)
    stack = torch.stack(weights)
    expected = by_numpy(stack)
    for (i, j), rank in along_paths(stack, range(6), 150 * torch.finfo(torch.float32).eps).items():
        assert rank == expected[i, j]


def test_ranks_add_up_along_paths() -> None:
    """All pairs of such a family are proved, unless a model in between is not there."""
    weights, tolerance = lora_family(8, 1, models=7, spread=0), 192 * torch.finfo(torch.float32).eps
    proved = along_paths(weights, range(7), tolerance)
    assert len(proved) == 21 and proved[6, 5] == 32
    assert len(along_paths(weights, [3, 4, 5, 6], tolerance)) < 6
    factors = low_rank_factors(weights[1] - weights[0], tolerance)
    assert factors is not None
    assert torch.allclose((factors.u * factors.s.float()) @ factors.v.T, weights[1] - weights[0], atol=1e-7)
    assert low_rank_factors(torch.randn(160, 192), tolerance) is None


def test_the_tree_of_neighbours_is_that_of_scipy() -> None:
    weights = torch.randn(40, 6, 7, generator=torch.Generator().manual_seed(0))
    edges = nearest_neighbours(sample_of(weights))
    apart = scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(weights.flatten(1).double().numpy()))
    expected = scipy.sparse.csgraph.minimum_spanning_tree(apart)
    assert {frozenset(edge) for edge in edges} == {frozenset(edge) for edge in zip(*map(list, expected.nonzero()))}
    seen = {0}
    for earlier, later in edges:
        assert earlier in seen and later not in seen
        seen.add(later)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs took the exact path."""
    left = [0]
    exact = ranks.exact_ranks

    def count(difference: torch.Tensor) -> torch.Tensor:
        left[0] += len(difference)
        return exact(difference)

    monkeypatch.setattr(ranks, "exact_ranks", count)
    return left


@pytest.mark.parametrize("rank", [1, 8, 16])
def test_low_ranks_need_no_exact_path(rank: int, counted: list[int]) -> None:
    weights = lora_family(rank, 1, size=700, models=5)
    found = pairwise_rank(weights)
    assert found[0, 1] == rank and found[1, 2] == min(700, int(by_numpy(weights[1:3])[0, 1])) and counted == [0]


def test_what_a_sketch_cannot_decide_is_decided_exactly(counted: list[int]) -> None:
    full = lora_family(1, 2, size=200, models=3)
    full[2] += 1e-4 * torch.randn(200, 232, generator=torch.Generator().manual_seed(5))  # of full rank
    assert np.array_equal(pairwise_rank(full).numpy(), by_numpy(full)) and counted[0] == 2
    counted[0] = 0
    near = lora_family(4, 3, size=200, models=2)
    u, s, v = torch.linalg.svd(near[1] - near[0], full_matrices=False)
    s[3] = 1.5 * 232 * torch.finfo(torch.float32).eps * s[0]  # just above the tolerance
    near[1] = near[0] + (u * s) @ v
    pairwise_rank(near)
    assert counted == [1]


def test_equal_and_constant_models() -> None:
    weights = torch.stack([torch.ones(150, 150), torch.ones(150, 150), torch.zeros(150, 150), 2 * torch.ones(150, 150)])
    assert pairwise_rank(weights).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1e20, 1e37])
def test_ranks_of_extreme_numbers(scale: float) -> None:
    """Nothing is raised where squares overflow or underflow; ranks that numpy can tell are told."""
    weights = lora_family(4, 1, models=4) * scale
    found = pairwise_rank(weights)
    assert torch.equal(found, found.T) and (found.diagonal() == 0).all()
    if 1e-38 < scale < 1e37:
        assert np.array_equal(found.numpy(), by_numpy(weights))


def test_groups_of_models_that_share_something() -> None:
    one, other = lora_family(4, 1, models=3), lora_family(4, 2, models=3)
    mixed = torch.stack([one[0], other[0], one[1], other[1], one[2], other[2]])
    assert near_groups(sample_of(mixed)) == [[0, 2, 4], [1, 3, 5]]
    found = pairwise_rank(mixed)
    assert (found[::2, 1::2] == 160).all() and found[0, 2] == 4
    # A low rank beats a large distance.
    far = torch.stack([one[0], one[0] + 5 * torch.outer(torch.ones(160), torch.ones(192))])
    assert len(near_groups(sample_of(far))) == 2 and pairwise_rank(far)[0, 1] == 1


@pytest.mark.parametrize("shape", [(100, 100), (90, 300), (300, 90)])
def test_the_exact_path_counts_as_numpy_does(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.zeros(shape), torch.ones(shape)]
    for rank in (1, 30, 60, 90):
        matrices.append(
            torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
        )
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrices.append((u * torch.logspace(0, -8, min(shape))) @ v)
    batch = torch.stack(matrices)
    assert exact_ranks(batch).tolist() == [int(np.linalg.matrix_rank(matrix.numpy())) for matrix in matrices]


def test_order_does_not_matter() -> None:
    weights = lora_family(8, 4, size=200, models=6)
    order = [3, 1, 5, 0, 4, 2]
    straight, shuffled = pairwise_rank(weights).numpy(), pairwise_rank(weights[order]).numpy()
    assert np.array_equal(shuffled, straight[np.ix_(order, order)])

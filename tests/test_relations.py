"""Exact relations: what floating-point numbers give away, and that training never looks like it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mother.evidence.differences import compare_pairs
from mother.evidence.direction import directions_added, newness
from mother.evidence.dora import row_scaled_rank
from mother.evidence.grids import find_grid, on_grid, quantization_noise
from mother.evidence.low_rank import SCATTERED
from mother.evidence.merges import candidate_merges, depends_on
from mother.evidence.parts import common_ratio, explained_share, scattered_equality
from mother.numeric.floats import MANTISSA, cast, exponent, mantissa_bits, stored_precision, ulp
from mother.numeric.spectra import (
    changed_sides,
    leading_triples,
    rank_above_noise,
    rounding_noise,
    singular_triples,
    spectrum,
    surely_full,
)


def weights(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def test_exponent_and_ulp_against_numpy() -> None:
    values = torch.cat([weights(0, 500), torch.tensor([1.0, 2.0, -0.75, 1e-30])])
    assert (exponent(values).numpy() == np.floor(np.log2(np.abs(values.numpy().astype(np.float64))))).all()
    assert (ulp(values, 23).numpy() == np.spacing(np.abs(values.numpy()))).all()
    assert float(ulp(torch.zeros(1), 7)) == 0


@pytest.mark.parametrize("name", MANTISSA)
def test_precision_is_read_off_the_values(name: str) -> None:
    values = cast(weights(1, 64, 64), name)
    assert stored_precision(values) == name and mantissa_bits(values) == MANTISSA[name]


def symmetric(weight: torch.Tensor, bits: int, block: tuple[int, int]) -> torch.Tensor:
    blocks = weight.reshape(block)
    scale = blocks.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((blocks / scale).round() * scale).reshape(weight.shape)


def with_zero_point(weight: torch.Tensor, bits: int) -> torch.Tensor:
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    return ((weight / scale + zero).round().clamp(0, 2**bits - 1) - zero) * scale


QUANTIZED = {
    "tensor 8": lambda w: symmetric(w, 8, (1, -1)),
    "row 8": lambda w: symmetric(w, 8, tuple(w.shape)),
    "zero point 8": lambda w: with_zero_point(w, 8),
    "row 4": lambda w: symmetric(w, 4, tuple(w.shape)),
    "block 4": lambda w: symmetric(w, 4, (-1, 64)),
}


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("shape", [(96, 96), (64, 192), (192, 64)])
def test_grids_are_found_with_their_bits(name: str, shape: tuple[int, int]) -> None:
    grid = find_grid(QUANTIZED[name](weights(2, *shape)))
    assert grid is not None and grid.bits == int(name[-1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_coarse_grids_survive_half_precision(dtype: str) -> None:
    assert find_grid(cast(QUANTIZED["block 4"](weights(3, 96, 96)), dtype)) is not None


@pytest.mark.parametrize("dtype", MANTISSA)
@pytest.mark.parametrize("seed", range(5))
def test_continuous_and_pruned_weights_have_no_grid(dtype: str, seed: int) -> None:
    weight = weights(seed, 96, 96) * torch.rand(96, 1, generator=torch.Generator().manual_seed(seed)) ** 2
    assert find_grid(cast(weight, dtype)) is None
    assert find_grid(cast(weight * (weight.abs() > 0.01), dtype)) is None


def test_tensors_that_have_no_grid_to_speak_of() -> None:
    assert find_grid(torch.zeros(8, 8)) is None
    assert find_grid(torch.ones(8, 8)) is None
    assert find_grid(weights(0, 1, 3)) is None


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("dtype", MANTISSA)
def test_quantization_noise_tells_a_parent_from_a_relative(name: str, dtype: str) -> None:
    parent = weights(4, 96, 96)
    child = cast(QUANTIZED[name](parent), dtype)
    grid = find_grid(child)
    if grid is None:
        assert name.endswith("8") and dtype != "float32"
    on = None if grid is None else on_grid(child, grid)
    assert quantization_noise(parent, child, on)
    assert not quantization_noise(parent + 0.2 * weights(5, 96, 96), child, on)
    assert not quantization_noise(child, child, on)


def family(count: int) -> list[torch.Tensor]:
    base = weights(6, 3, 24, 24)
    return [base, *(base + 0.1 * weights(7 + k, 3, 24, 24) for k in range(count))]


@pytest.mark.parametrize("method", ["dare", "ties"])
def test_sparse_merges_are_explained_by_their_parents_only(method: str) -> None:
    base, first, second, other = (model[0].flatten() for model in family(3))
    one, two = first - base, second - base
    generator = torch.Generator().manual_seed(1)
    if method == "dare":
        keep = [torch.rand(one.shape, generator=generator) < 0.5 for _ in range(2)]
        update = one * keep[0] + two * keep[1]
    else:
        trimmed = [x * (x.abs() > x.abs().median()) for x in (one, two)]
        sign = (trimmed[0] + trimmed[1]).sign()
        agreeing = [x * (x.sign() == sign) for x in trimmed]
        count = sum((x != 0).float() for x in agreeing).clamp(min=1)
        update = (agreeing[0] + agreeing[1]) / count
    child = base + update
    ratios = [common_ratio(base, model, child, 23) for model in (first, second, other)]
    assert ratios[:2] == pytest.approx([1.0, 1.0], abs=1e-3) and ratios[2] is None
    assert explained_share(base, [(1.0, first), (1.0, second)], child, 23) > 0.99
    assert explained_share(base, [(1.0, first), (1.0, other)], child, 23) < 0.9


def test_scattered_equality() -> None:
    changed = np.array([True, True, True, False])
    assert scattered_equality(np.array([0.3, 0.5, 0.3, 1.0]), changed)
    assert not scattered_equality(np.array([0.0, 0.0, 0.3, 1.0]), changed)
    assert not scattered_equality(np.array([0.5]), np.array([False]))


@pytest.mark.parametrize("shape", [(96, 96), (96, 32), (32, 96)])
@pytest.mark.parametrize("dtype", MANTISSA)
@pytest.mark.parametrize("rank", [0, 1, 4, 8])
def test_rank_above_the_noise_is_exact(shape: tuple[int, int], dtype: str, rank: int) -> None:
    parent = cast(weights(8, *shape), dtype)
    update = weights(9, shape[0], rank) @ weights(10, rank, shape[1]) * 8
    child = cast(parent + update, dtype)
    difference = (child.double() - parent.double())[None]
    _, s, _ = singular_triples(difference)
    exact = np.linalg.svd(difference[0].numpy())[1]
    assert s[0].numpy() == pytest.approx(exact, abs=1e-7 * exact[0] + 1e-12)
    noise = rounding_noise(parent[None], child[None], torch.tensor([MANTISSA[dtype]]))
    found = spectrum(difference, noise, 8)
    assert int(rank_above_noise(s, noise)[0]) == int(found.rank[0]) == rank and not found.full
    assert int((found.s > 0).sum()) == rank
    if rank:
        assert np.linalg.norm(found.residual[0].numpy(), 2) == pytest.approx(exact[rank], rel=1e-6)
        assert float(found.gap[0]) == pytest.approx(exact[rank - 1] / exact[rank], rel=0.5)
    else:
        assert len(found.low) == 0


@given(rank=st.integers(1, 64), rows=st.integers(2, 80), columns=st.integers(2, 80), scale=st.floats(1e-6, 1e3))
@settings(max_examples=60, deadline=None)
def test_full_rank_is_proved_only_where_it_is_there(rank: int, rows: int, columns: int, scale: float) -> None:
    difference = (weights(9, rows, rank) @ weights(10, rank, columns)).double()[None]
    noise = difference.new_full((1,), 0.05 * scale)
    exact = int((np.linalg.svd(difference[0].numpy())[1] > 1.2 * 0.05 * scale).sum())
    found = spectrum(difference, noise, 8)
    assert bool(found.full) == (exact > 0.6 * min(rows, columns))
    if found.full:
        assert int(found.rank) <= exact
    else:
        assert int(found.rank) == exact
    if surely_full(difference, noise):
        assert found.full


@pytest.mark.parametrize("shape", [(96, 96), (300, 40), (40, 300), (280, 300), (5, 9)])
def test_leading_directions_without_the_others(shape: tuple[int, int]) -> None:
    # A spectrum that falls slowly, as that of an update does.
    left, right = (np.linalg.qr(weights(20 + k, side, min(shape)).numpy())[0] for k, side in enumerate(shape))
    values = np.arange(1, min(shape) + 1) ** -0.5
    matrix = (left * values) @ right.T
    u, s, v = (part[0].numpy() for part in leading_triples(torch.from_numpy(matrix)[None], 8))
    assert s == pytest.approx(values[:8], rel=0.03)
    assert ((u.T @ matrix) * v.T).sum(axis=1) == pytest.approx(s, rel=1e-9)
    assert u.T @ u == pytest.approx(np.eye(len(s)), abs=1e-9)
    assert (u[:, 0] @ left[:, 0]) ** 2 > 0.99


def test_cast_has_rank_zero_and_full_fine_tune_full_rank() -> None:
    parent = weights(11, 64, 64)
    for child, bits, full in ((cast(parent, "bfloat16"), 7, False), (parent + 0.1 * weights(12, 64, 64), 23, True)):
        noise = rounding_noise(parent[None], child[None], torch.tensor([bits]))
        found = spectrum((child.double() - parent.double())[None], noise, 8)
        assert bool(found.full) == full and int(found.rank) == (39 if full else 0)


def test_sketch_of_a_large_matrix_sees_the_leading_directions() -> None:
    low = weights(13, 400, 12) @ weights(14, 12, 300)
    u, s, v = singular_triples(low.double()[None])
    exact = np.linalg.svd(low.double().numpy())[1]
    assert s[0, :12].numpy() == pytest.approx(exact[:12], rel=1e-9)
    assert float(s[0, 12]) < 1e-7 * float(s[0, 0])
    rebuilt = (u[0, :, :12] * s[0, :12]) @ v[0, :, :12].T
    assert float((rebuilt - low).abs().max()) < 1e-7


@pytest.mark.parametrize("turned", [False, True])
def test_rank_is_full_where_few_units_changed(turned: bool) -> None:
    """Units that never fire have no gradient: what full training leaves in the others is no low rank."""
    parent, update = weights(17, 96, 96), torch.zeros(96, 96)
    update[:50, :72] = 0.1 * weights(18, 50, 72)
    parent, update = (parent.T, update.T) if turned else (parent, update)
    low = torch.zeros(96, 96)
    low[:50, :72] = 0.1 * weights(19, 50, 8) @ weights(20, 8, 72)
    both = torch.stack([update, low])
    noise = rounding_noise(torch.stack([parent, parent]), parent + both, torch.tensor([23, 23]))
    found = spectrum(both, noise, 8)
    assert found.full.tolist() == [True, False] and found.rank.tolist() == [50, 8]
    assert changed_sides(both).tolist() == [50, 50]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_rounding_once_moves_no_weight_against_a_low_rank_update(stored: str, strength: float) -> None:
    """Small updates to bfloat16 change few weights; those that training changes go against what is of low rank, too."""
    parent, unit = cast(weights(21, 128, 192), stored), 0.05 / 256  # about a unit in the last place of most weights
    low = weights(22, 128, 4) @ weights(23, 4, 192)
    low *= strength * unit / low.std()
    full = 0.7 * weights(24, 128, 192) / 0.05 + weights(25, 128, 1) @ weights(26, 1, 192) / 0.05**2
    children = torch.stack([cast(parent + update, "bfloat16") for update in (low, 0.2 * unit * full)])
    parents, bits = torch.stack([parent, parent]), torch.tensor([[MANTISSA[stored], MANTISSA["bfloat16"]]] * 2)
    grids = [[None, None]] * 2
    values, _ = compare_pairs(parents, children, grids, bits, torch.zeros(2, 2, dtype=torch.bool))
    assert not values["full"].any() and (values["rank"] > 0).all()
    assert values["scattered"][0] < SCATTERED
    # Between two types a model may have been rounded twice, which leaves as much as these steps do.
    assert stored == "float32" or values["scattered"][1] > 2 * SCATTERED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dora_has_the_rank_of_its_update(dtype: str) -> None:
    parent = cast(weights(15, 64, 96), dtype)
    moved = parent + weights(16, 64, 4) @ weights(17, 4, 96) * 8
    lengths = 1 + 0.1 * weights(18, 64, 1) / 0.05
    child = cast(lengths * moved, dtype)
    assert row_scaled_rank(parent, child) == 4
    assert row_scaled_rank(parent, cast(parent + 0.1 * weights(19, 64, 96), dtype)) is None
    assert row_scaled_rank(parent, parent) is None


def test_dependent_differences_end_no_search() -> None:
    """Gram matrices that are exactly singular: copies among neighbours, neighbours in one line, nothing at all."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((3, 40))
    for rows in (
        [drawn[0], drawn[0], drawn[1]],
        [drawn[0], 2 * drawn[0], 4 * drawn[0]],
        [drawn[0], -drawn[0], np.zeros(40)],
        [np.ones(40), np.ones(40), np.ones(40)],
        [drawn[0], drawn[1], drawn[0] + drawn[1], drawn[0] - drawn[1]],
    ):
        vectors = np.array([*rows, drawn[2]])
        gram = (vectors @ vectors.T)[None]
        for scale in (1e-30, 1.0, 1e30):
            for merge in candidate_merges(gram * scale, float(gram[0, -1, -1] * scale), 23):
                assert np.isfinite(merge.coefficients).all()
            for neighbour in range(len(rows)):
                assert depends_on(gram * scale, float(gram[0, -1, -1] * scale), 23, neighbour) in (True, False)


def test_models_on_one_line_depend_on_one_another() -> None:
    """As seen from W: neighbours at W + d and W - 2 d lie on a line with it; one beside the line does not matter."""
    rng = np.random.default_rng(1)
    d, aside, weight = rng.standard_normal((3, 500))
    vectors = np.array([d, -2 * d, aside, 100 * weight])
    gram = (vectors @ vectors.T)[None]
    size = float(gram[0, -1, -1])
    assert depends_on(gram, size, 23, 0) and depends_on(gram, size, 23, 1) and not depends_on(gram, size, 23, 2)
    merge = next(candidate_merges(gram, size, 23))
    assert np.allclose(merge.coefficients, (2 / 3, 1 / 3))


def test_directions_of_a_difference_of_low_rank_are_numbers() -> None:
    """A permuted matrix differs from itself by one of lower rank: the directions that it lacks add nothing."""
    projection, s = torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    added = directions_added(projection, s)
    assert added.tolist() == [[0.5, 0.0, 0.0]] and torch.isfinite(newness(added, s)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_white_noise_is_no_dora_however_small(dtype: str, size: float) -> None:
    parent = cast(weights(3, 64, 96), dtype)
    child = cast(parent + size * weights(19, 64, 96), dtype)
    assert row_scaled_rank(parent, child) is None

"""The arrow that a pair stored in two types has by its cast residuals: the law both ways, and where nothing is told."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from mother.evidence.direction import CAST_BINS, FEWEST_CAST, cast_direction, cast_residuals
from mother.evidence.edges import DECISIVE
from mother.numeric.floats import MANTISSA, cast, ulp

HALVES = ["bfloat16", "float16"]
SIDE = 256


def weights(seed: int, side: int = SIDE) -> Tensor:
    """Rows and columns of very different sizes, as of trained models."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randn(*shape, generator=generator) for shape in ((side, 1), (1, side)))
    return 0.02 * torch.randn(side, side, generator=generator) * torch.exp(0.7 * rows + 0.7 * columns)


def step(like: Tensor, seed: int, size: float) -> Tensor:
    """An update of this size relative to the weights, of rows that learn faster and slower."""
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = torch.exp(0.8 * torch.randn(len(like), 1, generator=generator))
    update = torch.randn(like.shape, generator=generator) * rows
    return update * (size * like.norm() / update.norm())


def ratio(coarse: Tensor, fine: Tensor, dtype: str) -> float:
    """Log likelihood ratio that the coarse one came last, asked both ways round."""
    bits = torch.tensor([[MANTISSA[dtype], 23], [23, MANTISSA[dtype]]])
    counts = cast_residuals(torch.stack([coarse, fine]), torch.stack([fine, coarse]), bits)
    assert torch.equal(counts[0], counts[1])
    return cast_direction(counts[0].numpy())


def test_residuals_are_counted_by_size() -> None:
    """By hand: half a unit of 1.5 in bfloat16 is 2^-8; powers of two and zeros are left out."""
    unit = 2.0**-7
    coarse = torch.tensor([[1.5, 1.5, 1.5, 1.5, 1.0, 0.0]])
    fine = coarse + unit * torch.tensor([[0.0, 0.1, -0.3, 2.0, 0.1, 0.1]])
    (counts,) = cast_residuals(coarse[None], fine[None], torch.tensor([[7, 23]]))
    expected = torch.zeros(CAST_BINS + 1, dtype=torch.float64)
    for share in (0.0, 0.1, 0.3):
        expected[int(share * 2 * CAST_BINS)] += 1
    expected[-1] = 1
    assert torch.equal(counts, expected)
    same_type = cast_residuals(coarse[None], fine[None], torch.tensor([[23, 23]]))
    assert not same_type.any()
    assert cast_direction(expected.numpy()) == 0  # FEWEST_CAST


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_coarse_child_of_a_fine_parent(dtype: str, seed: int) -> None:
    parent = weights(seed)
    plain = cast(parent, dtype)
    assert ratio(plain, parent, dtype) > DECISIVE
    # Trained in the type: small updates vanish, so that most weights stay what the cast made of them.
    child, unit = plain, 2.0 ** -MANTISSA[dtype]
    for k in range(10):
        child = cast(child + step(parent, 10 * seed + k, 0.04 * unit), dtype)
    assert 0.3 < float((child == plain).float().mean()) < 0.999
    assert ratio(child, parent, dtype) > DECISIVE
    # Trained in full precision, and rounded at the end: told by small moves, and not told wrong by larger ones.
    for size, least in ((0.01, DECISIVE), (0.05, DECISIVE), (0.2, 0), (1.0, -DECISIVE / 2), (5.0, -DECISIVE / 2)):
        assert ratio(cast(parent + step(parent, seed, size * unit), dtype), parent, dtype) > least


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3, 3e-3])
def test_a_fine_child_of_a_coarse_parent(dtype: str, size: float) -> None:
    """The finer a type, the smaller the moves that it tells: these of bfloat16, and an eighth of them of float16."""
    size *= 2.0 ** (MANTISSA["bfloat16"] - MANTISSA[dtype])
    for seed in range(2):
        parent = cast(weights(seed), dtype)
        assert ratio(parent, parent + step(parent, seed, size), dtype) < -DECISIVE


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("units", [20.0, 200.0])
def test_moves_above_some_units_tell_nothing(dtype: str, units: float) -> None:
    """Both ways the residuals of the few entries that are still alike are uniform."""
    for seed in range(3):
        parent = weights(seed)
        generator = torch.Generator().manual_seed(seed)
        move = units * ulp(parent, MANTISSA[dtype]) * torch.randn(parent.shape, generator=generator)
        coarse = cast(parent, dtype)
        for pair in ((coarse, coarse + move), (cast(parent + move, dtype), parent)):
            assert abs(ratio(*pair, dtype)) < DECISIVE


def test_the_law_of_residuals() -> None:
    """Uniform where the coarser one came last, up to half a unit; in a plain cast nothing is outside."""
    parent = weights(3)
    coarse = cast(parent, "bfloat16")
    (counts,) = cast_residuals(coarse[None], parent[None], torch.tensor([[7, 23]]))
    assert counts[-1] == 0 and chisquare(counts[:-1].numpy()).pvalue > 1e-3
    away = coarse + 0.1 * ulp(coarse, 7) * torch.randn(coarse.shape, generator=torch.Generator().manual_seed(0))
    (counts,) = cast_residuals(coarse[None], away[None], torch.tensor([[7, 23]]))
    assert counts[-1] < 0.01 * counts.sum() and counts[0] > 3 * counts[4]


def test_chance_alone_hardly_ever_says_the_wrong_thing() -> None:
    """Of 200 small samples of each law none is wrong by DECISIVE, and hardly one by a third of it."""
    rng = np.random.default_rng(0)
    edges = np.arange(CAST_BINS + 1) / (2 * CAST_BINS)
    wrong = []
    for _ in range(100):
        size = int(rng.integers(FEWEST_CAST, 4 * FEWEST_CAST))
        inside = rng.multinomial(size, np.full(CAST_BINS, 1 / CAST_BINS))
        rest = int(size * rng.exponential(0.2))
        wrong.append(-cast_direction(np.append(inside, rest).astype(float)))
        spread = rng.choice([0.1, 0.5, 2.0])
        moved = np.abs(rng.normal(size=4 * size)) * spread
        counts = np.append(np.histogram(moved, edges)[0], (moved > 0.5).sum()).astype(float)
        if counts[:-1].sum() >= FEWEST_CAST:
            wrong.append(cast_direction(counts))
    assert len(wrong) > 120 and max(wrong) < DECISIVE
    assert np.mean(np.array(wrong) > DECISIVE / 3) < 0.02

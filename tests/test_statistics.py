"""Statistics against scipy and numpy."""

import numpy as np
import pytest
import scipy.stats
import torch

from mother.paper import statistics
from mother.paper.statistics import kurtosis, moments


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the loops for the CPU, and as on a GPU."""
    if request.param == "torch":
        monkeypatch.setattr(statistics, "has_kernels", lambda weights: False)


@pytest.mark.parametrize("draw", ["normal", "uniform", "laplace", "standard_t"])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-3, 0), (1e-4, 1), (1e4, 0)])
def test_kurtosis_equals_scipy(draw: str, scale: float, shift: float, rng: np.random.Generator) -> None:
    arguments = (5,) if draw == "standard_t" else ()
    weights = (getattr(rng, draw)(*arguments, size=(4, 30, 20)) * scale + shift).astype(np.float32)
    expected = scipy.stats.kurtosis(weights.astype(np.float64).reshape(4, -1), axis=1)
    np.testing.assert_allclose(kurtosis(torch.from_numpy(weights)).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3e5])
def test_kurtosis_of_a_constant_is_nan(value: float) -> None:
    weights = torch.full((2, 7, 7), value)
    weights[1, 0, 0] += 1
    result = kurtosis(weights)
    assert result[0].isnan() and result[1].isfinite()


def test_moments_equal_numpy(rng: np.random.Generator) -> None:
    weights = rng.normal(size=(3, 8, 9)).astype(np.float32)
    flat = weights.astype(np.float64).reshape(3, -1)
    expected = np.stack([flat.min(1), flat.max(1), flat.mean(1), (flat**2).mean(1)], axis=1)
    np.testing.assert_allclose(moments(torch.from_numpy(weights))["moments"].numpy(), expected, rtol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run pytest on a machine with one")
def test_gpu_gives_the_same_numbers(rng: np.random.Generator) -> None:
    weights = torch.from_numpy(rng.normal(size=(3, 64, 64)).astype(np.float32))
    np.testing.assert_allclose(kurtosis(weights.cuda()).cpu(), kurtosis(weights), rtol=1e-9)

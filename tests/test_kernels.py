"""The loops compiled for the CPU: where nothing can be kept, and in parts. See also test_distances, test_statistics."""

from collections.abc import Callable

import numpy as np
import pytest

from mother.numeric import kernels
from mother.numeric.threads import in_threads


def test_without_a_place_for_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As numba does in an image that cannot be written to."""
    compile_it = kernels.njit

    def njit(cache: bool = False, **options: object) -> Callable:
        if cache:
            raise RuntimeError("cannot cache function 'add': no locator available")
        return compile_it(**options)

    def add(one: float, other: float) -> float:
        return one + other

    monkeypatch.setattr(kernels, "njit", njit)
    assert kernels.compiled(add)(1.0, 2.0) == 3.0


def test_parts_of_the_entries_add_up(rng: np.random.Generator) -> None:
    """Whatever the number of threads: stretches that do not end where a thread's part does."""
    flat = rng.normal(size=(17, 3 * kernels.STRETCH + 7)).astype(np.float32)
    assert flat.shape[1] * len(flat) ** 2 > kernels.ALONE
    found = [kernels.differences(flat) for _ in range(2)]
    found += in_threads(kernels.differences, [flat, flat])  # one thread each
    for largest, square in found:
        np.testing.assert_array_equal(largest, (flat[:, None] - flat[None]).max(axis=2))
        differences = flat[:, None].astype(np.float64) - flat[None]
        np.testing.assert_allclose(square, (differences**2).sum(axis=2), rtol=1e-6)

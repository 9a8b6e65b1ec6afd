"""Singular directions of weight differences, and how many of them are above the noise of rounding."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mother.floats import MANTISSA, ulp

FULL_SIDE = 256  # up to this smaller side all singular values are computed; beyond it those of a sketch
SKETCH = 160  # columns of the sketch: ranks up to about three quarters of it are seen exactly
ARITHMETIC = 3.0  # units in the last place that computing an update in float32 leaves
NOISE_MARGIN = 1.2  # singular values up to this many times the norm of the rounding noise are noise


def singular_triples(
    difference: Float[Tensor, "pairs rows columns"],
) -> tuple[Float[Tensor, "pairs rows k"], Float[Tensor, "pairs k"], Float[Tensor, "pairs columns k"]]:
    """Singular triples (u, s, v) of each matrix in float64, largest first; all of them, or those of a sketch.

    Small matrices go through the eigenvectors of D D', which in float64 lose singular values below 1e-8 of
    the largest: rounding to float32 leaves more noise than that. Large ones are projected on the
    range of D applied to Gaussian vectors, with one power iteration (Halko, Martinsson, Tropp 2011), so
    only the first SKETCH triples come back.
    """
    difference = difference.double()
    if difference.shape[1] > difference.shape[2]:
        v, s, u = singular_triples(difference.transpose(1, 2))
        return u, s, v
    rows, columns = difference.shape[1:]
    basis = None
    if rows > FULL_SIDE:
        generator = torch.Generator(device="cpu").manual_seed(0)
        probe = torch.randn(columns, SKETCH, generator=generator, dtype=torch.float64).to(difference.device)
        basis = torch.linalg.qr(difference @ probe).Q
        basis = torch.linalg.qr(difference @ (difference.transpose(1, 2) @ basis)).Q
        difference = basis.transpose(1, 2) @ difference
    values, u = torch.linalg.eigh(difference @ difference.transpose(1, 2))
    s, u = values.flip(1).clamp(min=0).sqrt(), u.flip(2)
    v = difference.transpose(1, 2) @ u / s.clamp(min=torch.finfo(torch.float64).tiny)[:, None, :]
    return (u if basis is None else basis @ u), s, v


def rounding_noise(
    first: Float[Tensor, "pairs rows columns"], second: Float[Tensor, "pairs rows columns"], bits: Int[Tensor, "pairs"]
) -> Float[Tensor, "pairs"]:
    """Spectral norm to expect of the rounding noise in second - first, stored with so many mantissa bits.

    The noise of an entry is uniform within half a unit in the last place of the larger of the two weights; and
    updates are computed in float32 before they are added, so a few of its units of the difference come on top. The
    norm of a matrix of independent entries with deviations b_ij is about the largest row norm of b plus the
    largest column norm (Bandeira, van Handel 2016): no entry has to be drawn.
    """
    stored = ulp(torch.maximum(first.abs(), second.abs()), bits[:, None, None]).double()
    computed = ARITHMETIC * ulp(second - first, MANTISSA["float32"]).double()
    square = (stored.square() + computed.square()) / 12
    return square.sum(dim=2).amax(dim=1).sqrt() + square.sum(dim=1).amax(dim=1).sqrt()


def rank_above_noise(s: Float[Tensor, "pairs k"], noise: Float[Tensor, "pairs"]) -> Int[Tensor, "pairs"]:
    """Number of singular values above NOISE_MARGIN times the norm of the noise."""
    return (s > NOISE_MARGIN * noise[:, None]).sum(dim=1)

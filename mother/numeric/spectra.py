"""Singular directions of weight differences, and how many of them are above the noise of rounding."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mother.numeric.floats import MANTISSA, ulp

FULL_SIDE = 256  # budget: up to this smaller side all singular values are computed; beyond it those of a sketch
PROBES = 160  # budget: columns of the sketch: ranks up to about three quarters of it are seen exactly
ARITHMETIC = 3.0  # units in the last place that computing an update in float32 leaves
UNIT = 3 / (8 * math.log(2))  # mean of (ulp(x) 2^bits / x)^2 where the logarithm of x is uniform
NOISE_MARGIN = 1.2  # singular values up to this many times the norm of the rounding noise are noise
RANK_SHARE = 0.6  # of the directions seen, or of the rows or columns that changed: a higher rank counts as full
LEAST_SHARE = 1e-10  # of the mean squared singular value: the least that flatness tells from 0
ITERATIONS = 2  # budget: of the search for leading directions
TINY = torch.finfo(torch.float64).tiny


def singular_triples(
    difference: Float[Tensor, "pairs rows columns"], count: int | None = None
) -> tuple[Float[Tensor, "pairs rows k"], Float[Tensor, "pairs k"], Float[Tensor, "pairs columns count"]]:
    """Singular triples (u, s, v) of each matrix in float64, largest first; all of them, or those of a sketch.

    Small matrices go through the eigenvectors of D D', which in float64 lose singular values below 1e-8 of
    the largest: rounding to float32 leaves more noise than that. Large ones are projected on the
    range of D applied to Gaussian vectors, with one power iteration (Halko, Martinsson, Tropp 2011), so
    only the first PROBES triples come back. With `count` the vectors of the longer side are those of the first only.
    """
    difference = difference.double()
    if difference.shape[1] > difference.shape[2]:
        v, s, u = singular_triples(difference.transpose(1, 2), count)
        return u, s, v
    basis = None
    if difference.shape[1] > FULL_SIDE:
        basis = torch.linalg.qr(difference @ _probe(difference, PROBES)).Q
        basis = torch.linalg.qr(difference @ (difference.transpose(1, 2) @ basis)).Q
        difference = basis.transpose(1, 2) @ difference
    values, u = torch.linalg.eigh(difference @ difference.transpose(1, 2))
    s, u = values.flip(1).clamp(min=0).sqrt(), u.flip(2)
    v = difference.transpose(1, 2) @ u[:, :, :count] / s[:, None, :count].clamp(min=TINY)
    return (u if basis is None else basis @ u), s, v


def leading_triples(
    difference: Float[Tensor, "pairs rows columns"], count: int, gram: Float[Tensor, "pairs rows rows"] | None = None
) -> tuple[Float[Tensor, "pairs rows k"], Float[Tensor, "pairs k"], Float[Tensor, "pairs columns k"]]:
    """The `count` leading singular triples by subspace iteration, in float64: much less work than all of them.

    In a flat spectrum the last of them mix with their neighbours; v = D' u / s, and so u' D v = s, is exact. `gram` is
    D D' of no more rows than FULL_SIDE and columns, where it is at hand.
    """
    difference = difference.double()
    if difference.shape[1] > difference.shape[2]:
        v, s, u = leading_triples(difference.transpose(1, 2), count)
        return u, s, v
    rows, width = difference.shape[1], min(difference.shape[1], 3 * count)
    small = rows <= FULL_SIDE
    product = difference @ difference.transpose(1, 2) if small and gram is None else gram
    basis = difference @ _probe(difference, width)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(basis).Q
        basis = product @ basis if small else difference @ (difference.transpose(1, 2) @ basis)
    basis = torch.linalg.qr(basis).Q
    projected = difference.transpose(1, 2) @ basis
    values, mixed = torch.linalg.eigh(projected.transpose(1, 2) @ projected)
    s, mixed = values.flip(1)[:, :count].clamp(min=0).sqrt(), mixed.flip(2)[:, :, :count]
    return basis @ mixed, s, projected @ mixed / s.clamp(min=TINY)[:, None, :]


def _probe(difference: Float[Tensor, "pairs rows columns"], width: int) -> Float[Tensor, "columns width"]:
    """Gaussian vectors, the same in every run and on every device."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(difference.shape[2], width, generator=generator, dtype=torch.float64).to(difference.device)


def rounding_noise(
    first: Float[Tensor, "pairs rows columns"], second: Float[Tensor, "pairs rows columns"], bits: Int[Tensor, "pairs"]
) -> Float[Tensor, "pairs"]:
    """Spectral norm to expect of the rounding noise in second - first, stored with so many mantissa bits.

    The noise of an entry is uniform within half a unit in the last place of the larger of the two weights; and
    updates are computed in float32 before they are added, so a few of its units of the difference come on top (the
    mean square of a unit is UNIT times the square of the number). The norm of a matrix of independent entries with
    deviations b_ij is about the largest row norm of b plus the largest column norm (Bandeira, van Handel 2016): no
    entry has to be drawn.
    """
    stored = ulp(torch.maximum(first.abs(), second.abs()), 0).square_()  # weights below 1e-19 count as zero
    computed = (second - first).square_()
    scale = torch.exp2(-2.0 * bits.double())[:, None]
    share = UNIT * (ARITHMETIC * 2.0 ** -MANTISSA["float32"]) ** 2
    squares = (scale * stored.sum(dim=axis) + share * computed.sum(dim=axis) for axis in (1, 2))
    return sum((square.amax(dim=1) / 12).sqrt() for square in squares)


def rank_above_noise(s: Float[Tensor, "pairs k"], noise: Float[Tensor, "pairs"]) -> Int[Tensor, "pairs"]:
    """Number of singular values above NOISE_MARGIN times the norm of the noise."""
    return (s > NOISE_MARGIN * noise[:, None]).sum(dim=1)


@dataclass
class Spectrum:
    """What the singular values and directions of some differences say.

    rank   singular values above the noise; where full a lower bound
    full   whether the rank is more than RANK_SHARE of the directions that can be seen, or of what changed
    gap    smallest singular value above the noise over the next: large where a low rank ends, near 1 in a continuum
    flatness   see `flatness`
    side   the largest rank that it can have, see `changed_sides`
    u, s, v   leading triples; s is 0 beyond the rank
    low, residual   places of differences of low rank, not 0, and what is left of these beyond it
    """

    rank: Int[Tensor, "pairs"]
    full: Bool[Tensor, "pairs"]
    gap: Float[Tensor, "pairs"]
    flatness: Float[Tensor, "pairs"]
    side: Int[Tensor, "pairs"]
    u: Float[Tensor, "pairs rows k"]
    s: Float[Tensor, "pairs k"]
    v: Float[Tensor, "pairs columns k"]
    low: Int[Tensor, "low"]
    residual: Float[Tensor, "low rows columns"]


def _directions_seen(difference: Float[Tensor, "pairs rows columns"]) -> int:
    """How many singular triples `singular_triples` finds."""
    side = min(difference.shape[1:])
    return side if side <= FULL_SIDE else PROBES


def changed_sides(difference: Float[Tensor, "pairs rows columns"]) -> Int[Tensor, "pairs"]:
    """Number of rows or of columns with any change, whichever is less: the largest rank that each difference can have.

    Units that never fire and tokens that were never seen have no gradient: their rows and columns stay as they were.
    """
    there = difference != 0
    return torch.minimum(there.any(dim=2).sum(dim=1), there.any(dim=1).sum(dim=1))


def surely_full(
    difference: Float[Tensor, "pairs rows columns"],
    noise: Float[Tensor, "pairs"],
    gram: Float[Tensor, "pairs rows rows"] | None = None,
) -> Bool[Tensor, "pairs"]:
    """Whether the rank is more than RANK_SHARE of the directions seen, where that is cheap to prove.

    All m singular values of some rows R of D are above t if D_R D_R' - t^2 has a Cholesky factor; and then D has m
    above t, too (Cauchy's interlacing theorem). False proves nothing. `gram` is as for `leading_triples`.
    """
    if difference.shape[1] > difference.shape[2]:
        difference = difference.transpose(1, 2)
    count = int(RANK_SHARE * _directions_seen(difference)) + 1
    if gram is None:
        some = difference[:, :count].double()
        gram = some @ some.transpose(1, 2)
    product = gram[:, :count, :count].clone()
    product.diagonal(dim1=1, dim2=2).sub_((NOISE_MARGIN * noise.double()).square()[:, None])
    return torch.linalg.cholesky_ex(product).info == 0


def flatness(difference: Float[Tensor, "pairs rows columns"]) -> Float[Tensor, "pairs"]:
    """Log of the geometric over the arithmetic mean of the squared singular values of each matrix, at most 0.

    As log det(D D' / n) it is the entropy of D against that of noise of the same size, where D is normal with a
    covariance of its rows that is learnt from D. Of more rows than FULL_SIDE it looks at as many, evenly spread. 0
    where D is 0.
    """
    if difference.shape[1] > difference.shape[2]:
        difference = difference.transpose(1, 2)
    difference = difference[:, :: -(-difference.shape[1] // FULL_SIDE)].double()
    return _flatness(difference @ difference.transpose(1, 2))


def _flatness(gram: Float[Tensor, "pairs rows rows"]) -> Float[Tensor, "pairs"]:
    """The same from D D'."""
    mean = gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    gram = gram / torch.where(mean > 0, mean, 1)[:, None, None]
    gram.diagonal(dim1=1, dim2=2).add_(LEAST_SHARE)
    roots = torch.linalg.cholesky_ex(gram).L.diagonal(dim1=1, dim2=2)
    return torch.where(mean > 0, 2 * roots.clamp(min=LEAST_SHARE**0.5).log().mean(dim=1), 0)


def spectrum(difference: Float[Tensor, "pairs rows columns"], noise: Float[Tensor, "pairs"], count: int) -> Spectrum:
    """Rank, and up to `count` leading triples, of each difference; `noise` is the norm of what rounding leaves in it.

    Differences that are surely of full rank, most of those that training leaves, need their leading triples only; of a
    `count` of 0 nothing more is computed of them.
    """
    difference = difference.double()
    pairs, rows, columns = difference.shape
    if rows > columns:
        turned = spectrum(difference.transpose(1, 2), noise, count)
        return replace(turned, u=turned.v, v=turned.u, residual=turned.residual.transpose(1, 2))
    count, seen = min(count, rows, columns), _directions_seen(difference)
    gram = difference @ difference.transpose(1, 2) if rows <= FULL_SIDE else None
    full, side = surely_full(difference, noise, gram), changed_sides(difference)
    rank = torch.full((pairs,), int(RANK_SHARE * seen) + 1, device=difference.device)
    gap, s = difference.new_ones(pairs), difference.new_zeros(pairs, count)
    u, v = difference.new_zeros(pairs, rows, count), difference.new_zeros(pairs, columns, count)
    low, residual = rank[:0], difference[:0]
    if count and full.any():
        u[full], s[full], v[full] = leading_triples(difference[full], count, None if gram is None else gram[full])
    if not full.all():
        rest = (~full).nonzero()[:, 0]
        left, values, right = singular_triples(difference[rest], count)
        above = rank_above_noise(values, noise[rest])
        rank[rest] = above
        full[rest] = above > RANK_SHARE * side[rest].clamp(max=seen)
        number = torch.arange(seen, device=rank.device)
        kept = torch.where(number < above[:, None], values, 0)
        u[rest], s[rest], v[rest] = left[:, :, :count], kept[:, :count], right
        some = (~full[rest] & (above > 0)).nonzero()[:, 0]
        low, end = rest[some], above[some, None]
        gap[low] = (values[some].gather(1, end - 1) / values[some].gather(1, end).clamp(min=TINY))[:, 0]
        largest = int(end.max()) if len(low) else 0
        basis = left[some][:, :, :largest] * (number[:largest] < end)[:, None, :]
        residual = difference[low] - basis @ (basis.transpose(1, 2) @ difference[low])
    flat = flatness(difference) if gram is None else _flatness(gram)
    return Spectrum(rank, full, gap, flat, side, u, s, v, low, residual)

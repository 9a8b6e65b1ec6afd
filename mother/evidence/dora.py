"""DoRA: whether rows of one matrix are those of another, each with a length of its own, plus a low rank."""

import torch
from jaxtyping import Float
from torch import Tensor

from mother.numeric.floats import mantissa_bits
from mother.numeric.spectra import rank_above_noise, rounding_noise

DORA_STEPS = 20  # budget: of the fit of row lengths and row space; each gains about a digit
STALLED = 0.9  # part of the residual that a step of this fit leaves once it gets no better


def _row_scaled_residual(w: Float[Tensor, "rows columns"], c: Float[Tensor, "rows columns"], rank: int) -> bool:
    """Whether child - diag(g) parent has no more than this rank above rounding noise, for the best g."""
    outside_w, outside_c, left = w, c, float("inf")
    for _ in range(DORA_STEPS):
        scale = (outside_c * outside_w).sum(dim=1) / outside_w.square().sum(dim=1).clamp(min=1e-300)
        rest = c - scale[:, None] * w
        values, vectors = torch.linalg.eigh(rest.T @ rest)
        before, left = left, float(values[:-rank].sum())
        if left > STALLED * before:
            break  # as good as it gets: rounding, or no DoRA
        basis = vectors[:, -rank:]
        outside_w, outside_c = w - (w @ basis) @ basis.T, c - (c @ basis) @ basis.T
    return _risen(rest, scale[:, None] * w, c, w) <= rank


def _risen(
    rest: Float[Tensor, "rows columns"],
    first: Float[Tensor, "rows columns"],
    c: Float[Tensor, "rows columns"],
    w: Float[Tensor, "rows columns"],
) -> int:
    """How many directions of a residual between two matrices are above the noise of their rounding."""
    bits = torch.tensor([min(mantissa_bits(w.float()), mantissa_bits(c.float()))], dtype=torch.int32, device=c.device)
    noise = rounding_noise(first.float()[None], c.float()[None], bits)
    return int(rank_above_noise(torch.linalg.svdvals(rest)[None], 2 * noise)[0])


def row_scaled_rank(parent: Float[Tensor, "rows columns"], child: Float[Tensor, "rows columns"]) -> int | None:
    """Rank r of the update if child = diag(g) (parent + B A) up to rounding, as DoRA leaves it, else None.

    DoRA gives every row of parent + B A a new length, which makes the difference one of full rank. The lengths g
    are those that fit the part of the rows outside A's row space; the row space is that of the leading singular
    vectors of child - diag(g) parent; the two are found in turn. The least rank for which nothing but rounding is
    left, up to a quarter of the smaller side, is found by bisection.
    """
    w, c = parent.double(), child.double()
    high = min(w.shape) // 4
    if high < 1 or torch.equal(parent, child):
        return None
    # White noise of the size of rounding leaves nothing above it, either: there must be something that lengths explain.
    if _risen(c - w, w, c, w) <= high or not _row_scaled_residual(w, c, high):
        return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if _row_scaled_residual(w, c, middle):
            high = middle
        else:
            low = middle
    return high

"""Which of two models came first: new singular directions, the grain of rounding, cast residuals, the decay of rows."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import ndtr
from torch import Tensor

from mother.numeric.floats import MANTISSA, cast, exponent, ulp

UNROUNDED = 0.2  # part of a type's rounding error that no rounding to it leaves; three bits finer leave 1/64
TYPES = 20.0  # log likelihood ratio, as good as certain, of what a matrix says about types
MIN_ROWS = 4  # rows of a table that must shrink by one factor; rows of fewer columns may lie along anything
MIN_COLUMNS = 16
# Cosine of a row's change and the row from which it only shrank. Each step rounds a weight the same way, so slow decay
# is some per cent off. Rows of MIN_COLUMNS come so near by chance once in ten thousand millions.
PARALLEL = 0.98
SAME_ROW = 0.999  # cosine of a row before and after decay
AGREE = 0.05  # relative difference of the factors of rows that decayed together
UNIFORM_SQUARE = 9 / 5 - 1  # variance of the square of a uniform error over the square of its mean
FEWEST_CAST = 256  # weights that casting leaves alike, to say anything by their residuals
TOP_EXPONENTS = 4  # largest binary exponents of a matrix that the rounding test looks at


def directions_added(projection: Float[Tensor, "pairs k"], s: Float[Tensor, "pairs k"]) -> Float[Tensor, "pairs k"]:
    """How far each direction of D = W_second - W_first is new in the second model: +1 all, -1 all old.

    A training step adds directions that its parent did not have. `projection` is u' W_first v; with
    a = u' W_first v / s and b = u' W_second v / s = a + 1 it is min(|b|, 1) - min(|a|, 1). Clipping silences directions
    that both models have much of, such as those that weight decay shrinks.
    """
    there = s > 0  # a difference of low rank has fewer directions than are asked for
    a = projection / torch.where(there, s, 1)
    return torch.where(there, (a + 1).abs().clamp(max=1) - a.abs().clamp(max=1), 0)


def newness(added: Float[Tensor, "pairs k"], s: Float[Tensor, "pairs k"]) -> Float[Tensor, "pairs"]:
    """Mean of what the directions of D add, weighted by s^2. Zero where D is."""
    weight = s.square()
    return (weight * added).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-300)


def leads(
    s: Float[Tensor, "pairs k"], energy: Float[Tensor, "pairs"], rows: int, columns: int
) -> Bool[Tensor, "pairs"]:
    """Whether the first direction of D stands above those of noise of the same energy.

    The largest singular value of noise of deviation sigma is about sigma (sqrt(rows) + sqrt(columns)) (Marchenko,
    Pastur 1967). What training learns stands above. Updates that an optimizer made equal in all directions do not, and
    their first direction is an accident.
    """
    edge = energy * (rows**0.5 + columns**0.5) ** 2 / (rows * columns)
    return s[:, 0].square() > edge


def rounding_test(
    first: Float[Tensor, "pairs rows columns"],
    second: Float[Tensor, "pairs rows columns"],
    residual: Float[Tensor, "pairs rows columns"],
) -> Float[Tensor, "pairs"]:
    """Log likelihood ratio that the second model, not the first, was rounded after a low-rank update.

    The residual of D beyond its rank is the rounding error of the child, with the grain of the child's values. Where
    exponents differ by one, the mean square error on {first has q - 1, second q} over that on {first q, second
    q - 1} tends to 4 if the second was rounded and to 1/4 if the first was. The square of a uniform error has a
    relative variance of 0.8, hence the variance of the log ratio. Only the top exponents count: in small weights
    the error that truncation spreads over the matrix hides their own.
    """
    a, b = exponent(first).flatten(1), exponent(second).flatten(1)
    top = torch.maximum(a.amax(dim=1), b.amax(dim=1))
    pair, entry = ((a - b).abs() == 1).nonzero().T
    larger = torch.maximum(a[pair, entry], b[pair, entry])
    depth = top[pair] - larger
    counted = depth < TOP_EXPONENTS
    pair, entry, depth = pair[counted], entry[counted], depth[counted]
    # For each pair the top exponents where the first is the larger, then those where the second is.
    shape = (len(a), 2, TOP_EXPONENTS)
    cell = (2 * pair + (a[pair, entry] < b[pair, entry])) * TOP_EXPONENTS + depth
    size, square = len(a) * 2 * TOP_EXPONENTS, residual.flatten(1)[pair, entry].double().square()
    counts = torch.bincount(cell, minlength=size).double().reshape(shape)
    sums = torch.bincount(cell, weights=square, minlength=size).reshape(shape)
    (finer, coarser), (finer_count, coarser_count) = sums.unbind(1), counts.unbind(1)
    enough = (counts >= 8).all(dim=1) & (sums > 0).all(dim=1)
    log_four = math.log(4)
    ratio = ((coarser / coarser_count) / (finer / finer_count)).log().clamp(-log_four, log_four)
    result = 2 * log_four * ratio / (UNIFORM_SQUARE * (1 / finer_count + 1 / coarser_count))
    return torch.where(enough, result, 0).sum(dim=1)


def agreed(ratios: Float[np.ndarray, "layers"]) -> float:
    """Sum of the log likelihood ratios of layers, less where they disagree: one model was rounded last in all.

    Between models that were both rounded since they parted each layer says something else, and says it surely. The sum
    is taken times the square of |sum| over the sum of sizes, which is 1 where all agree.
    """
    total, sizes = float(ratios.sum()), float(np.abs(ratios).sum())
    return total * (total / sizes) ** 2 if sizes > 0 else 0.0


def precision_test(
    first: Float[Tensor, "pairs rows columns"],
    second: Float[Tensor, "pairs rows columns"],
    residual: Float[Tensor, "pairs rows columns"],
    bits: Int[Tensor, "pairs two"],
) -> Float[Tensor, "pairs"]:
    """Log likelihood ratio that the second model came last, where the two are stored in different types; else 0.

    `bits` are the mantissa bits of the two. If the coarser model is the child, the residual of D beyond its rank is as
    large as its rounding; if it is the parent, its values are exact, and only the finer rounding is left.
    """
    if (bits[:, 0] == bits[:, 1]).all():
        return torch.zeros(len(bits), dtype=torch.float64, device=bits.device)
    coarse = bits.amin(dim=1)
    unit = ulp(torch.maximum(first.abs(), second.abs()), coarse[:, None, None]).double()
    rounded = residual.double().square().sum(dim=(1, 2)) > UNROUNDED * unit.square().sum(dim=(1, 2)) / 12
    second_coarser = bits[:, 1] < bits[:, 0]
    result = torch.where(rounded == second_coarser, TYPES, -TYPES).double()
    return torch.where(bits[:, 0] == bits[:, 1], 0.0, result)


CAST_BINS = 8  # of the size of a cast residual, from 0 to half a unit in the last place
SPREADS = np.geomspace(0.02, 640, 24)  # standard deviations, in units in the last place, of what training adds
EM_STEPS = 500  # budget: of fitting a mixture of these


def cast_residuals(
    first: Float[Tensor, "pairs rows columns"],
    second: Float[Tensor, "pairs rows columns"],
    bits: Int[Tensor, "pairs two"],
) -> Float[Tensor, "pairs bins1"]:
    """Of pairs stored in two types, how the finer model's weights lie about the coarser's: counts of |r| by size, rest.

    r is the distance in units in the last place of the coarser type where casting gives the coarser weight; the last
    count is that of the entries where it gives another one. Zeros for pairs of one type. Powers of two are left out,
    since units differ on their two sides, as are zeros.
    """
    counts = torch.zeros(len(first), CAST_BINS + 1, dtype=torch.float64, device=first.device)
    for name, mantissa in MANTISSA.items():
        for end in (0, 1):
            chosen = ((bits[:, end] == mantissa) & (bits[:, 1 - end] > mantissa)).nonzero()[:, 0]
            for at in chosen.tolist():
                coarse, fine = (first[at], second[at])[:: 1 - 2 * end]
                unit = ulp(coarse, mantissa)
                counted = (coarse != 0) & (coarse.abs() != unit * 2**mantissa)
                same = counted & (cast(fine, name) == coarse)
                size = ((fine - coarse)[same] / unit[same]).abs()
                bins = (size * (2 * CAST_BINS)).long().clamp(max=CAST_BINS - 1)
                counts[at, :-1] = torch.bincount(bins, minlength=CAST_BINS).double()
                counts[at, -1] = (counted & ~same).sum()
    return counts


def _mixture(cells: Float[np.ndarray, "spreads cells"], counts: Float[np.ndarray, "cells"]) -> float:
    """Largest log likelihood of counts under a mixture of these distributions over cells (EM), up to a constant."""
    share = np.full(len(cells), 1 / len(cells))
    for _ in range(EM_STEPS):
        fitted = share @ cells
        share = share * (cells @ (counts / fitted)) / counts.sum()
    return float(counts @ np.log(share @ cells))


def _centred(spreads: Float[np.ndarray, "spreads"]) -> Float[np.ndarray, "spreads cells"]:
    """Probabilities of |r| by size, and of more than half a unit, for normal r of these deviations."""
    edges = np.arange(CAST_BINS + 1) / (2 * CAST_BINS)
    inside = 2 * np.diff(ndtr(edges[None] / spreads[:, None]), axis=1)
    return np.concatenate([inside, 1 - inside.sum(axis=1, keepdims=True)], axis=1).clip(1e-12)


def _uniform(spreads: Float[np.ndarray, "spreads"]) -> Float[np.ndarray, "spreads cells"]:
    """The same, of those inside only, for uniform r kept where r and a normal number stay within half a unit."""
    middle = (np.arange(CAST_BINS) + 0.5) / (2 * CAST_BINS)
    stays = ndtr((0.5 - middle) / spreads[:, None]) - ndtr((-0.5 - middle) / spreads[:, None])
    return (stays / stays.sum(axis=1, keepdims=True)).clip(1e-12)


def cast_direction(counts: Float[np.ndarray, "bins1"]) -> float:
    """Log likelihood ratio that the coarser of two models came from the finer, from `cast_residuals`.

    If it did, the finer one's weights lie evenly between those that are rounded alike: r is uniform, but for edges from
    which small updates before the rounding drove it away. If the finer one was trained from the coarser, r is what
    training added: normal of some deviations, so that few r are as large as half a unit unless most are larger. Both
    are mixtures over SPREADS. What neither explains counts as dispersion, as in a quasi-likelihood.
    """
    inside, total = counts[:-1], counts.sum()
    if inside.sum() < FEWEST_CAST:
        return 0.0
    # What share is inside is free where the coarser model came last: an update may jump, or vanish.
    rest = counts[-1] * np.log(counts[-1] / total) if counts[-1] else 0.0
    outside = rest + inside.sum() * np.log(inside.sum() / total)
    rounded = _mixture(_uniform(SPREADS), inside) + outside
    grown = _mixture(_centred(SPREADS), counts)
    saturated = float((counts[counts > 0] * np.log(counts[counts > 0] / total)).sum())
    dispersion = max(1.0, 2 * (saturated - max(rounded, grown)) / CAST_BINS)
    return float((rounded - grown) / dispersion)


def shrunk_rows(first: Float[Tensor, "rows columns"], second: Float[Tensor, "rows columns"]) -> tuple[float, int]:
    """The factor by which rows of the second table are those of the first, and how many share it; (1, 0) without any.

    Decoupled weight decay shrinks rows without a gradient, such as embeddings of tokens that a fine-tune never sees,
    by one factor; nothing makes rows grow so. The difference of such a row lies along the row, which no update does
    by chance. At least MIN_ROWS must agree on the factor.
    """
    a, b = first.double(), second.double()
    if a.shape[1] < MIN_COLUMNS:
        return 1.0, 0
    difference, length = b - a, a.norm(dim=1)
    size = difference.norm(dim=1)
    along = (difference * a).sum(dim=1)
    # A row that grew from almost nothing lies along its change, too: the two rows must be parallel and of one size.
    same = (a * b).sum(dim=1) > SAME_ROW * length * b.norm(dim=1)
    straight = (size > 0) & (size < length / 2) & same & (along.abs() > PARALLEL * size * length)
    shrinkage = (along[straight] / length[straight].square()).sort().values
    if len(shrinkage) < MIN_ROWS:
        return 1.0, 0
    middle = shrinkage[len(shrinkage) // 2]
    agree = (shrinkage - middle).abs() < AGREE * middle.abs()
    count = int(agree.sum())
    return (1.0 + float(middle), count) if count >= max(MIN_ROWS, len(shrinkage) / 2) else (1.0, 0)

"""Ranks of the differences of all pairs of models: exact, or from random sketches where these decide.

The rank is that of `np.linalg.matrix_rank`: singular values in float32 above max(rows, columns) * eps * the largest. A
Gaussian sketch S D T of k x k entries has the rank of D where that is well below k, and costs a product of each *model*
instead of a decomposition of each pair. It decides only where no singular value of it is near the tolerance, and when
at most a part of its own directions are used up. What it cannot decide goes to a larger one, and then to the exact
path.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mother.numeric.threads import in_threads
from mother.paper.rank_paths import near_groups, nearest_neighbours, ranks_along_paths, sample_of

# Sides of the sketches that are tried. Those of one line are parts of the largest of them.
SIDES = ((64, 96, 144), (216, 324), (486,))
LARGEST_SHARE = 0.65  # budget: of the smaller side of a matrix: a larger sketch of it is not worth its time
USED = 0.6  # share of a sketch's directions beyond which it says only that the rank is large
MARGIN = 8.0  # times the tolerance that the singular values which count must be above in a sketch that decides
NEAR_TOLERANCE = (0.9, 1.2)  # the same on the exact path, where only the largest singular value is estimated
POWER = 8  # budget: iterations for that estimate
AT_ONCE = 1 << 24  # budget: entries of the differences that are worked on together

Pair = tuple[int, int]


def _tolerance(rows: int, columns: int) -> float:
    return max(rows, columns) * torch.finfo(torch.float32).eps


def exact_ranks(difference: Float[Tensor, "pairs rows columns"]) -> Int[Tensor, "pairs"]:
    """The rank of each matrix, as `np.linalg.matrix_rank` gives it.

    Large matrices are counted without a decomposition into singular values: as many of them are above t as the
    symmetric D'D - t^2 has positive eigenvalues, and the signs of an LDL' factorization tell that (Sylvester's law of
    inertia). Where one is so near the tolerance that its estimate matters, the decomposition decides.
    """
    rows, columns = difference.shape[1:]
    if min(rows, columns) <= SIDES[0][0] or difference.is_cuda:
        return torch.linalg.matrix_rank(difference)
    wide = difference.double() if rows >= columns else difference.double().transpose(1, 2)
    gram = wide.transpose(1, 2) @ wide
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(gram.shape[1], 4, generator=generator, dtype=torch.float64).expand(len(gram), -1, -1)
    for _ in range(POWER):
        block = torch.linalg.qr(gram @ block).Q
    largest = torch.linalg.eigvalsh(block.transpose(1, 2) @ gram @ block)[:, -1].clamp(min=0)
    counts = []
    for margin in NEAR_TOLERANCE:
        level = largest * (margin * _tolerance(rows, columns)) ** 2
        factor, pivots, _ = torch.linalg.ldl_factor_ex(gram - torch.diag_embed(level[:, None].expand(-1, len(gram[0]))))
        two = pivots < 0  # blocks of two have one eigenvalue of either sign
        diagonal = factor.diagonal(dim1=1, dim2=2)
        counts.append(((diagonal > 0) & ~two).sum(dim=1) + two.sum(dim=1) // 2)
    ranks = torch.where(largest > 0, counts[0], 0)
    unsure = ((counts[0] != counts[1]) & (largest > 0)).nonzero()[:, 0]
    if len(unsure):
        ranks[unsure] = torch.linalg.matrix_rank(difference[unsure])
    return ranks


def _sketch(weights: Float[Tensor, "models rows columns"], origin: Tensor, side: int) -> Float[Tensor, "models k k"]:
    """S (W - origin) T of each model, with the same S and T for all."""
    rows, columns = weights.shape[1:]
    generator = torch.Generator().manual_seed(side)
    left = torch.randn(side, rows, generator=generator).to(weights.device) / side**0.5
    right = torch.randn(columns, side, generator=generator).to(weights.device) / side**0.5
    # One model at a time: a copy of all would be as large as all.
    return torch.stack([left @ ((weight - origin) @ right) for weight in weights])


def _decide(difference: Float[Tensor, "pairs k k"], tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """(rank, whether it is sure, whether the sketch is used up) of each pair."""
    side = difference.shape[1]
    wide = difference.double()
    # Half the time of a decomposition into singular values; their squares have twice the digits that are needed.
    values = torch.linalg.eigvalsh(wide @ wide.transpose(1, 2)).clamp(min=0).sqrt()
    tolerance = tolerance * values[:, -1:]
    high = (values > MARGIN * tolerance).sum(dim=1)
    # Of a rank r the smallest singular value shrinks in the sketch, by (1 - sqrt(r / k))^2 or not much more.
    shrunk = (1 - (high.clamp(max=int(USED * side)) / side).sqrt()).square() / 2
    low = (values > shrunk[:, None] * tolerance).sum(dim=1)
    full = low > USED * side
    return high, (low == high) & ~full, full


def _in_parts(pairs: Sequence[tuple[int, int]], entries: int, threads: int) -> list[list[tuple[int, int]]]:
    step = max(1, min(AT_ONCE // entries, -(-len(pairs) // threads)))
    return [list(pairs[start : start + step]) for start in range(0, len(pairs), step)]


def _related_groups(
    weights: Float[Tensor, "models rows columns"], sample: Float[Tensor, "models entries"]
) -> list[list[int]]:
    """Groups of models that share something: near ones, joined where two groups differ by a low rank."""
    rows, columns = weights.shape[1:]
    groups = near_groups(sample)
    leaders = [(one[0], other[0]) for at, one in enumerate(groups) for other in groups[:at]]
    for i, j in leaders:  # two far from one another may still differ by a low rank
        apart = (weights[i] - weights[j])[None]
        if SIDES[0][0] <= LARGEST_SHARE * min(rows, columns):
            low = not _decide(_sketch(apart, torch.zeros_like(apart[0]), SIDES[0][0]), _tolerance(rows, columns))[2]
        else:
            low = bool(exact_ranks(apart) <= USED * min(rows, columns))
        one, other = (next(group for group in groups if leader in group) for leader in (i, j))
        if low and one is not other:
            one.extend(other)
            groups.remove(other)
    return groups


def _by_sketches(
    weights: Float[Tensor, "models rows columns"],
    origin: Float[Tensor, "rows columns"],
    pairs: list[Pair],
    sides: Sequence[int],
    threads: int,
) -> dict[Pair, int]:
    """Ranks of those pairs that a sketch of one of these sides decides."""
    rows, columns = weights.shape[1:]
    involved = sorted({end for pair in pairs for end in pair})
    place = {model: at for at, model in enumerate(involved)}
    sketches = _sketch(weights[involved] if len(involved) < len(weights) else weights, origin, sides[-1])
    found: dict[Pair, int] = {}
    for side in sides:

        def look(part: list[Pair], side: int = side) -> dict[Pair, int]:
            first, second = ([place[pair[end]] for pair in part] for end in (0, 1))
            apart = sketches[first, :side, :side] - sketches[second, :side, :side]
            rank, sure, _ = _decide(apart, _tolerance(rows, columns))
            return {pair: value for pair, value, known in zip(part, rank.tolist(), sure.tolist()) if known}

        left = [pair for pair in pairs if pair not in found]
        for some in _each(look, _in_parts(left, side * side, threads), threads):
            found |= some
    return found


def _exactly(weights: Float[Tensor, "models rows columns"], pairs: list[Pair], threads: int) -> dict[Pair, int]:
    """Ranks by the exact path."""

    def look(part: list[Pair]) -> dict[Pair, int]:
        ranks = exact_ranks(torch.stack([weights[i] - weights[j] for i, j in part]))
        return dict(zip(part, ranks.tolist()))

    found: dict[Pair, int] = {}
    for some in _each(look, _in_parts(pairs, weights[0].numel(), threads), threads):
        found |= some
    return found


def _each(look: Callable[[list[Pair]], dict[Pair, int]], parts: list[list[Pair]], threads: int) -> list[dict]:
    return in_threads(look, parts) if threads > 1 else list(map(look, parts))


def pairwise_rank(weights: Float[Tensor, "models rows columns"]) -> Int[Tensor, "models models"]:
    """[i, j] = rank(W_i - W_j) (paper: l_LoRA), as `np.linalg.matrix_rank` counts it.

    It is blind to the rounding noise of weights stored in half precision, which it takes for rank. Models that share
    nothing (see `near_groups`) get min(rows, columns): the numerical rank of a random matrix is now and then one less.
    """
    count, rows, columns = weights.shape
    result = torch.full((count, count), min(rows, columns), dtype=torch.int64, device=weights.device)
    result.fill_diagonal_(0)
    threads = torch.get_num_threads() if weights.device.type == "cpu" else 1
    sample = sample_of(weights)
    for group in _related_groups(weights, sample):
        found: dict[Pair, int] = {}
        proved = ranks_along_paths(weights, group, nearest_neighbours(sample[group]), _tolerance(rows, columns))
        left = []
        for pair in ((i, j) for at, i in enumerate(group) for j in group[:at]):
            if pair in proved:
                found[pair] = proved[pair]
            else:
                left.append(pair)
        for sides in SIDES:
            sides = [side for side in sides if side <= LARGEST_SHARE * min(rows, columns)]
            if not left or not sides:
                break
            found |= _by_sketches(weights, weights[group[0]], left, sides, threads)
            left = [pair for pair in left if pair not in found]
        found |= _exactly(weights, left, threads)
        for (i, j), rank in found.items():
            result[i, j] = result[j, i] = rank
    return result

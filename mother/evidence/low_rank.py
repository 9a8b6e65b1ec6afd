"""Whether an update is of low rank, as those of LoRA are."""

import numpy as np
from jaxtyping import Float, Int

from mother.evidence.second_pass import SecondPass
from mother.numeric.spectra import RANK_SHARE

# Share of entries that changed as no rounding of what is of low rank does, from which an update is no LoRA.
SCATTERED = 0.005
LORA_GAP = 1.25  # median ratio of singular values across the end of the rank: a continuum has hardly more than 1


def is_lora(second_pass: SecondPass, p: int) -> bool:
    """Whether the difference of a pair has low rank in every matrix that changed, ends there, and explains the rest.

    A matrix may be too small for its rank to be low: one that has fewer directions than the rank of others counts for
    nothing.
    """
    if p not in second_pass.low:
        second_pass.low[p] = _is_lora(second_pass, p)
    return second_pass.low[p]


def _is_lora(second_pass: SecondPass, p: int) -> bool:
    rank, changed = second_pass.arrays["rank"][:, p], second_pass.arrays["energy"][:, p] > 0
    full = second_pass.arrays["full"][:, p] > 0
    low = changed & (rank > 0) & ~full
    if not low.any() or (second_pass.arrays["side"][changed & full, p] * RANK_SHARE >= rank[low].max()).any():
        return False
    if np.median(second_pass.arrays["scattered"][low, p]) >= SCATTERED:
        return False
    return float(np.median(second_pass.arrays["gap"][low, p])) > LORA_GAP


def own_ranks(second_pass: SecondPass, p: int, thirds: Int[np.ndarray, "thirds"]) -> Float[np.ndarray, "thirds"]:
    """Share of the rank of a pair of low rank that each of its two models has for itself, the lesser, by third models.

    Ranks of updates add up along the ways of a tree. So the first of three models has (d12 + d13 - d23) / 2 for itself:
    the rank of the way from it to where all three meet. A model in which they meet has 0; siblings have a share each,
    since their parent is neither. 0 where a side is not of low rank, or was not looked at.
    """
    found = np.zeros(len(thirds))
    i, j = int(second_pass.first[p]), int(second_pass.second[p])
    sides = [(second_pass.number(i, third), second_pass.number(j, third)) for third in thirds.tolist()]
    low = [all(side is not None and is_lora(second_pass, side) for side in some) for some in sides]
    if not any(low):
        return found
    one, other = np.array([some for some, told in zip(sides, low) if told]).T
    energy, rank, full = (second_pass.arrays[name] for name in ("energy", "rank", "full"))
    used = (full[:, [p]] == 0) & (full[:, one] == 0) & (full[:, other] == 0)
    ways = (np.where(used & (energy[:, side] > 0), rank[:, side], 0).sum(axis=0) for side in ([p], one, other))
    whole, first, second = ways
    found[low] = (np.minimum(whole + first - second, whole + second - first) / 2 / whole.clip(1)).clip(0)
    return found

"""Whether an update is of low rank, as those of LoRA are."""

import numpy as np

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

"""From measurements to evidence: how well each pair fits an edge, and which way it points.

Every number is free of scale, so that it means the same for a ViT of a million weights and a language model of
billions. What it is worth as a probability is calibrated elsewhere (`mother/heritage/calibration.py`).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mother.evidence.direction import shrunk_rows
from mother.evidence.facts import Facts
from mother.evidence.first_pass import FirstPass
from mother.evidence.second_pass import SecondPass

LORA_GAP = 1.25  # median ratio of singular values across the end of the rank: a continuum has hardly more than 1
DECISIVE = 20.0  # log likelihood ratio from which rounding alone tells the arrow
SHRUNK = 40.0  # log likelihood ratio, as good as certain, of rows that shrank by one factor
CHANCE = 30.0  # entries that may be equal by chance
STRUCTURE = ("log_square", "blocked", "between", "equality", "altered")
DIRECTION = ("newness", "newness_t")


@dataclass
class Evidence:
    """Evidence for each edge i -> j of one cluster, as [i, j].

    structure[..., k], names in STRUCTURE
        log_square   log of the squared distance
        blocked      share of directions by which some third model lies between the two (inheritance)
        between      the same from squared distances: 1 where one lies on the way, -1 where none does
        equality     log of how many entries equal those of j, against the model that shares most with it
        altered      whether i was pruned, quantized, cast or merged: few models are trained from such
    direction[..., k], names in DIRECTION: positive where j is the newer one, antisymmetric
    exact     log likelihood ratio of the rounding test, or of shrunk rows; 0 where neither applies
    candidate whether the pair was looked at
    """

    structure: Float[np.ndarray, "models models five"]
    direction: Float[np.ndarray, "models models two"]
    exact: Float[np.ndarray, "models models"]
    candidate: Bool[np.ndarray, "models models"]


def is_lora(second_pass: SecondPass, p: int) -> bool:
    """Whether the difference of a pair has low rank in every matrix that changed, and ends there."""
    rank, changed = second_pass.arrays["rank"][:, p], second_pass.arrays["energy"][:, p] > 0
    risen = changed & (rank > 0)
    if not risen.any() or second_pass.arrays["full"][risen, p].any():
        return False
    return float(np.median(second_pass.arrays["gap"][risen, p])) > LORA_GAP


def decay_direction(first: Facts, second: Facts) -> int:
    """1 where rows of the second model's tables are those of the first, shrunk by decay, -1 the reverse, else 0."""
    votes = 0
    for key in first.tables.keys() & second.tables.keys():
        one, other = first.tables[key], second.tables[key]
        rows = min(len(one), len(other))
        factor, count = shrunk_rows(one[:rows], other[:rows])
        votes += count if factor < 1 else -count
    return int(np.sign(votes))


def pooled_newness(newness: Float[np.ndarray, "layers"], energy: Float[np.ndarray, "layers"]) -> tuple[float, float]:
    """Mean newness over layers, weighted by how much each changed, and its t statistic: layers are replicates."""
    if not energy.any():
        return 0.0, 0.0
    share = energy / energy.sum()
    mean = float(share @ newness)
    error = float(np.sqrt(share**2 @ (newness - mean) ** 2))
    return mean, mean / max(error, 1e-3)


def between(square: Float[np.ndarray, "models models"], i: int, j: int, others: Int[np.ndarray, "others"]) -> float:
    """How far the best third model k lies on the way from i to j: 1 if d_ij^2 = d_ik^2 + d_kj^2.

    Both (d_ij^2 - d_kj^2) / d_ik^2 and (d_ij^2 - d_ik^2) / d_kj^2 are 1 for a model on the way, and -1 for one that
    hangs off either end. In units of the smaller step, so a step of any size counts.
    """
    toward_i, toward_j = square[i, others], square[j, others]
    fine = (toward_i > 0) & (toward_j > 0)
    if not fine.any():
        return -1.0
    toward_i, toward_j = toward_i[fine], toward_j[fine]
    both = np.minimum((square[i, j] - toward_j) / toward_i, (square[i, j] - toward_i) / toward_j)
    return float(max(-1.0, both.max()))


def gather(
    first_pass: FirstPass,
    second_pass: SecondPass,
    square: Float[np.ndarray, "models models"],
    members: list[int],
    may_lie_between: list[int],
    not_trained: set[int],
    rounded: set[int],
) -> Evidence:
    """Evidence among the models of one cluster.

    `may_lie_between` are those that may lie between two others. `not_trained` are those that no training made, and
    `rounded` those of them that are on a grid or have zeros.
    """
    place = {model: at for at, model in enumerate(members)}
    n = len(members)
    looked_at = [(i, j, p) for (i, j), p in second_pass.index.items() if i in place and j in place]
    structure, direction = np.zeros((n, n, len(STRUCTURE))), np.zeros((n, n, len(DIRECTION)))
    exact, candidate = np.zeros((n, n)), np.zeros((n, n), dtype=bool)
    structure[..., 0] = _log_square(square[np.ix_(members, members)])
    structure[..., 1:3] = 1.0
    third = np.array(may_lie_between, dtype=int)
    for i, j, p in looked_at:
        a, b = place[i], place[j]
        candidate[a, b] = candidate[b, a] = True
        others = third[(third != i) & (third != j)]
        structure[a, b, 1] = structure[b, a, 1] = _blocked(second_pass, i, j, others)
        structure[a, b, 2] = structure[b, a, 2] = between(square, i, j, others)
        # What prunes and quantizes takes directions away or adds noise: newness is about training.
        if not {i, j} & rounded:
            direction[a, b] = _newness(second_pass, p)
            direction[b, a] = -direction[a, b]
        exact[a, b] = _exact_direction(first_pass, second_pass, i, j, p)
        exact[b, a] = -exact[a, b]
    equal = np.full((n, n), np.nan)
    for i, j, p in looked_at:
        equal[place[i], place[j]] = equal[place[j], place[i]] = second_pass.arrays["equal"][:, p].sum()
    structure[..., 3] = _equality(equal)
    structure[..., 4] = np.array([member in not_trained for member in members], dtype=float)[:, None]
    return Evidence(structure, direction, exact, candidate)


def _log_square(square: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Log of squared distances; equal models count as the nearest others, incomparable ones as the farthest."""
    smallest = square[(square > 0) & np.isfinite(square)].min(initial=np.inf)
    floor = smallest if np.isfinite(smallest) else 1.0
    return np.log(np.where(np.isfinite(square), square, np.nan_to_num(square, posinf=0).max()).clip(floor))


def _blocked(second_pass: SecondPass, i: int, j: int, others: Int[np.ndarray, "others"]) -> float:
    """Share of directions by which the best third model lies between: its difference to either end the other shares."""
    sides = [(second_pass.alike(i, k, j), second_pass.alike(j, k, i)) for k in others.tolist()]
    middles = [min(one.share, other.share) for one, other in sides if one is not None and other is not None]
    return max(middles, default=0.0)


def _newness(second_pass: SecondPass, p: int) -> tuple[float, float]:
    """Mean newness of a pair over its layers, and its t statistic, squashed."""
    arrays = second_pass.arrays
    risen = (arrays["energy"][:, p] > 0) & (arrays["rank"][:, p] > 0)
    mean, t = pooled_newness(arrays["newness"][risen, p], arrays["energy"][risen, p])
    return mean, float(np.tanh(t / 4))


def _exact_direction(first_pass: FirstPass, second_pass: SecondPass, i: int, j: int, p: int) -> float:
    """Log likelihood ratio that j came last: the rounding test for low ranks, shrunk rows for others."""
    if is_lora(second_pass, p):
        return float(second_pass.arrays["rounding"][:, p].sum())
    return SHRUNK * decay_direction(first_pass.facts[i], first_pass.facts[j])


def _equality(equal: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Log of how many entries equal those of j, against the model that shares most with it; 0 where not looked at."""
    count = np.nan_to_num(equal, nan=0.0) + CHANCE
    return np.where(np.isnan(equal), 0, np.log(count / count.max(axis=0)[None, :]))

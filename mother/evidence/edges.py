"""From measurements to evidence: how well each pair fits an edge, and which way it points.

Every number is free of scale, so that it means the same for a ViT of a million weights and a language model of
billions. What it is worth as a probability is calibrated elsewhere (`mother/heritage/calibration.py`).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mother.evidence.direction import agreed, cast_direction, shrunk_rows
from mother.evidence.facts import HALVES, Facts, batches_later, mantissa
from mother.evidence.first_pass import FirstPass
from mother.evidence.low_rank import is_lora, own_ranks
from mother.evidence.second_pass import EQUAL, SecondPass
from mother.evidence.triples import FEW, look_between
from mother.numeric.floats import MANTISSA

DECISIVE = 20.0  # log likelihood ratio from which rounding alone tells the arrow
CERTAIN = 200.0  # log likelihood ratio that no other evidence outweighs
SHRUNK = 40.0  # log likelihood ratio, as good as certain, of rows that shrank by one factor
OWN = 0.01  # share of directions that a model may seem to have for itself: true parents have as much
OWN_RANK = 0.001  # the same of ranks, which are counted, not estimated: true parents have none
CHANCE = 30.0  # entries that may be equal by chance
EQUAL_BITS = (MANTISSA["float32"], *(MANTISSA[name] for name in HALVES))
STRUCTURE = ("log_square", "equality", "altered", "private", "flatness")
DIRECTION = ("newness", "newness_t")
NEWNESS = ("energy", "rank", "leads", "newness")  # what it takes, of the second pass


@dataclass
class Evidence:
    """Evidence for each edge i -> j of one cluster, as [i, j].

    structure[..., k], names in STRUCTURE
        log_square   log of the squared distance, but for what changes a matrix's length alone
        equality     log of how many entries equal those of j, against the model that shares most with it
        altered      whether i was pruned, quantized, cast or merged: few models are trained from such
        private      log of the share of what differs that i has for itself, other models lack it like j; or that j has,
                     if that is less: a parent has nothing of its own against its child. Of low ranks, whose few
                     directions cannot be told as new, what another model shares partly with i and partly with j
        flatness     of the spectrum of what differs: small where it lies in few directions, see `spectra.flatness`
    between[t, k], names in triples.FEATURES: whether the model third[t] lies between the two of ends[:, t]
    direction[..., k], names in DIRECTION: positive where j is the newer one, antisymmetric
    exact     log likelihood ratio of the rounding test, of cast residuals or of shrunk rows; 0 where none applies
    one_way   whether `exact` only says which of the two was not made from the other: of the absent parent of the one
              the other may be a cast
    counted   1 where j counted more batches than i, -1 where fewer, 0 where neither is known
    candidate whether the pair was looked at
    most      log of how many entries equal those of j in the model that shares most with it
    """

    structure: Float[np.ndarray, "models models five"]
    between: Float[np.ndarray, "triples features"]
    ends: Int[np.ndarray, "two triples"]
    third: Int[np.ndarray, "triples"]
    direction: Float[np.ndarray, "models models two"]
    exact: Float[np.ndarray, "models models"]
    one_way: Bool[np.ndarray, "models models"]
    counted: Float[np.ndarray, "models models"]
    candidate: Bool[np.ndarray, "models models"]
    most: Float[np.ndarray, "models"]


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


def pair_newness(arrays: dict[str, Float[np.ndarray, "layers"]]) -> tuple[float, float, Float[np.ndarray, "some"]]:
    """Pooled newness of a pair, its t statistic, and the energies that layers were weighted by.

    `arrays` are those of the second pass for this pair, NEWNESS at least. Layers whose first direction is that of noise
    weigh nothing.
    """
    risen = (arrays["energy"] > 0) & (arrays["rank"] > 0)
    energy = (arrays["energy"] * arrays["leads"])[risen]
    return *pooled_newness(arrays["newness"][risen], energy), energy


def gather(
    first_pass: FirstPass,
    second_pass: SecondPass,
    square: Float[np.ndarray, "models models"],
    members: list[int],
    not_trained: set[int],
    rounded: set[int],
    core: set[int] | None = None,
) -> Evidence:
    """Evidence among the models of one cluster.

    `square` holds distances that lengths do not count in. `not_trained` are the models that no training made, and
    `rounded` those of them that are on a grid or have zeros. With a `core` arrows, and what third models say, are
    gathered for pairs with a model of the core alone, and of third models those that may fit best.
    """
    place = {model: at for at, model in enumerate(members)}
    n = len(members)
    looked_at = [(i, j, p) for (i, j), p in second_pass.index.items() if i in place and j in place]
    structure, direction = np.zeros((n, n, len(STRUCTURE))), np.zeros((n, n, len(DIRECTION)))
    exact, counted = np.zeros((n, n)), np.zeros((n, n))
    one_way, candidate = np.zeros((n, n), dtype=bool), np.zeros((n, n), dtype=bool)
    structure[..., 0] = _log_square(square[np.ix_(members, members)])
    bits = [mantissa(facts) for facts in first_pass.facts]
    asked = [(i, j, p) for i, j, p in looked_at if core is None or {i, j} & core]
    pairs, rough = [p for *_, p in asked], sorted(rounded)
    triples = look_between(first_pass, second_pass, square, rough, pairs, members, core is not None)
    ends = np.stack([second_pass.first[triples.pair], second_pass.second[triples.pair]])
    inside = np.zeros(len(square), dtype=int)
    inside[members] = np.arange(n)
    if looked_at:
        one, other = np.array([(place[i], place[j]) for i, j, _ in looked_at]).T
        candidate[one, other] = candidate[other, one] = True
    for i, j, p in asked:
        a, b = place[i], place[j]
        # What prunes and quantizes takes directions away or adds noise: newness is about training.
        if not {i, j} & rounded:
            direction[a, b] = _newness(second_pass, p)
            direction[b, a] = -direction[a, b]
            counted[a, b] = batches_later(first_pass.facts[i], first_pass.facts[j])
            counted[b, a] = -counted[a, b]
        exact[a, b], one_way[a, b] = _exact_direction(first_pass, second_pass, i, j, p)
        exact[b, a], one_way[b, a] = -exact[a, b], one_way[a, b]
    equal = np.full((n, n), np.nan)
    counts = {bits: second_pass.arrays[kind].sum(axis=0) for kind, bits in zip(EQUAL, EQUAL_BITS)}
    for i, j, p in looked_at:
        equal[place[i], place[j]] = counts[bits[j]][p]  # in the type of the one that may be the child
        equal[place[j], place[i]] = counts[bits[i]][p]
    structure[..., 1], most = _equality(equal)
    structure[..., 2] = np.array([member in not_trained for member in members], dtype=float)[:, None]
    structure[..., 4] = _flatness(second_pass, [(place[i], place[j], p) for i, j, p in looked_at], n)
    trained = np.array([member for member in members if member not in not_trained], dtype=int)
    for i, j, p in asked:
        if not {i, j} & not_trained:
            own = _private(second_pass, p, trained[(trained != i) & (trained != j)])
            structure[place[i], place[j], 3] = structure[place[j], place[i], 3] = own
    between = triples.features, inside[ends], inside[triples.third]
    return Evidence(structure, *between, direction, exact, one_way, counted, candidate, most)


def _log_square(square: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Log of squared distances; equal models count as the nearest others, incomparable ones as the farthest."""
    smallest = square[(square > 0) & np.isfinite(square)].min(initial=np.inf)
    floor = smallest if np.isfinite(smallest) else 1.0
    return np.log(np.where(np.isfinite(square), square, np.nan_to_num(square, posinf=0).max()).clip(floor))


def _flatness(second_pass: SecondPass, pairs: list[tuple[int, int, int]], n: int) -> Float[np.ndarray, "n n"]:
    """Mean flatness of what differs between pairs (i, j, number), each layer by how many directions it has.

    Equal models count as those that differ in the fewest directions, others that were not looked at as those in all.
    """
    arrays, found = second_pass.arrays, np.zeros((n, n))
    for i, j, p in pairs:
        changed = arrays["energy"][:, p] > 0
        sides = arrays["side"][changed, p]
        found[i, j] = found[j, i] = arrays["flatness"][changed, p] @ sides / sides.sum() if changed.any() else np.nan
    return np.nan_to_num(found, nan=np.nanmin(found, initial=0.0))


def _private(second_pass: SecondPass, p: int, thirds: Int[np.ndarray, "thirds"]) -> float:
    """Log of the share of a pair's difference that each of the two has for itself, the lesser, see `Evidence`."""
    as_first, as_second, of_second, not_of_first = second_pass.beyond[:, p, thirds]
    if is_lora(second_pass, p):
        # Of a merge with a third model ranks alone would say the same, of small updates directions would.
        own = np.minimum(as_first, as_second)
        asked = np.flatnonzero(own > 0)  # few: of all others nothing is shared with both, or it was not looked at
        own[asked] = np.minimum(own[asked], own_ranks(second_pass, p, thirds[asked]))
        return _second_largest(own, OWN_RANK)
    return min(_second_largest(of_second, OWN), _second_largest(-not_of_first, OWN))


def _second_largest(share: Float[np.ndarray, "thirds"], floor: float) -> float:
    """Log of the second largest of several shares, so that one odd model tells little.

    NaN where it was not looked at; of a model that has more it is below 0. Shares below the `floor` say little.
    """
    largest = np.sort(np.nan_to_num(share, nan=0.0).clip(0))[::-1]
    return float(np.log1p((largest[1] if len(largest) > 1 else largest.sum() / 2) / floor))


def _newness(second_pass: SecondPass, p: int) -> tuple[float, float]:
    """Mean newness of a pair over its layers, and its t statistic, squashed: 0 where too few layers changed."""
    mean, t, energy = pair_newness({name: second_pass.arrays[name][:, p] for name in NEWNESS})
    layers = energy.sum() ** 2 / max(float(energy @ energy), 1e-300)
    return mean, float(np.tanh(t / 4)) if layers >= FEW else 0.0


def _exact_direction(first_pass: FirstPass, second_pass: SecondPass, i: int, j: int, p: int) -> tuple[float, bool]:
    """Log likelihood ratio that j came last: cast residuals, rounding for low ranks, or shrunk rows.

    And whether it only says that i was not made from j, see `Evidence.one_way`.
    """
    low = is_lora(second_pass, p)
    if second_pass.cast[p].any():
        # These first: what small updates of full rank leave below the rank of their leading part is no rounding.
        finer = mantissa(first_pass.facts[i]) > mantissa(first_pass.facts[j])
        ratio = float(np.clip(cast_direction(second_pass.cast[p]), -CERTAIN, CERTAIN)) * (1 if finer else -1)
        if abs(ratio) > DECISIVE or not low:
            return ratio, True
    if low:
        ratio = agreed(second_pass.arrays["rounding"][:, p])
        return ratio, coarser_last(first_pass, i, j, ratio)
    # A sibling may have shrunk them, too; but where there is decay newness cannot tell, since decay turns it round.
    return SHRUNK * decay_direction(first_pass.facts[i], first_pass.facts[j]), False


def coarser_last(first_pass: FirstPass, i: int, j: int, ratio: float) -> bool:
    """Whether by the rounding of a low rank the one of two models came last that is stored more coarsely.

    A cast of the parent of i looks the same to i as a model that was made from i: both are as coarse as they are.
    """
    before, after = mantissa(first_pass.facts[i]), mantissa(first_pass.facts[j])
    return after < before if ratio > 0 else before < after


def _equality(equal: Float[np.ndarray, "n n"]) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n"]]:
    """Log of how many entries equal those of j, against the model that shares most with it; 0 where not looked at.

    And the log of how many equal those of j in that one.
    """
    count = np.nan_to_num(equal, nan=0.0) + CHANCE
    most = count.max(axis=0, initial=CHANCE)
    return np.where(np.isnan(equal), 0, np.log(count / most[None, :])), np.log(most)

"""Who stands between whom: what three models say about the way from one to another.

An edge i - j is wrong where a third model r lies on the way. Several measures add up along the ways of a tree: the
squared distance, the number of entries that differ, the rank. Of three models the one in the middle is opposite the
longest side. Each feature is a comparison of that kind, free of scale, positive where it speaks for r in the middle.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mother.evidence.facts import mantissa
from mother.evidence.first_pass import FirstPass
from mother.evidence.low_rank import is_lora
from mother.evidence.second_pass import SecondPass
from mother.numeric.floats import MANTISSA

FEATURES = ("share", "length", "kurtosis", "equal", "rank", "flatness")
CHANCE = 30.0  # entries that may be equal by chance
HEAVY = 3.0  # degrees of freedom of the spread of shares over layers, which are few and not alike
SMALLEST = 1e-3  # squared length that counts beside those of the other two
LEAST = 0.05  # standard error of a share that no number of layers makes smaller
ROUNDING = 0.045  # mean square of what rounding changes, over that of the weight and 4^-bits (spectra.UNIT / 12)
ABOVE = 30.0  # times the energy of rounding from which a difference is what training made
PARTLY = 0.2  # share of equal entries from which a difference is no cloud of small changes
FEW = 3.0  # effective number of layers below which a standard error over layers says nothing


@dataclass
class Triples:
    """Third models of some pairs: features[t] are those of model third[t] between the models of pair[t]."""

    pair: Int[np.ndarray, "triples"]  # number in the second pass
    third: Int[np.ndarray, "triples"]
    features: Float[np.ndarray, "triples features"]


def paired_t(
    one: Float[np.ndarray, "layers #pairs"], other: Float[np.ndarray, "layers pairs"], used: np.ndarray
) -> Float[np.ndarray, "pairs"]:
    """t statistic over the layers that are used of one - other; 0 where they are fewer than FEW."""
    count = used.sum(axis=0)
    difference = np.where(used, one - other, 0)
    mean = difference.sum(axis=0) / count.clip(min=1)
    variance = (np.where(used, difference - mean, 0) ** 2).sum(axis=0) / (count - 1).clip(min=1)
    error = np.sqrt(variance / count.clip(min=1))
    return np.where(count >= FEW, mean / error.clip(min=1e-6), 0)


def _longest(whole: float, one: np.ndarray, other: np.ndarray, floor: float) -> np.ndarray:
    """How a measure that adds up along ways places the third model: 1 in the middle, -1 outside, 0 not told."""
    longer, shorter = np.maximum(one, other), np.minimum(one, other)
    return ((whole - longer) / (np.minimum(shorter, whole) + floor)).clip(-1, 1)


class _Measured:
    """What the second pass says of all pairs, as comparisons of three models need it; models are places."""

    def __init__(self, first_pass: FirstPass, second_pass: SecondPass, models: int, rough: list[int]) -> None:
        self.second_pass, arrays = second_pass, second_pass.arrays
        first, second = second_pass.first, second_pass.second
        self.index = np.full((models, models), -1)
        self.index[first, second] = self.index[second, first] = np.arange(len(first))
        self.risen = (arrays["energy"] > 0) & (arrays["rank"] > 0)
        entries = arrays["entries"].sum(axis=0)
        self.differ = {
            MANTISSA[name]: entries - arrays["equal" if name == "float32" else f"equal_{name}"].sum(axis=0)
            for name in MANTISSA
        }
        self.stored = np.array([mantissa(facts) for facts in first_pass.facts])
        # Kurtosis is about training: not where rounding makes the difference, or zeros, or a grid.
        size = np.minimum(first_pass.size[first], first_pass.size[second])
        rounding = size * ROUNDING * 4.0 ** -np.minimum(self.stored[first], self.stored[second])
        partly = arrays["equal"].sum(axis=0) > PARTLY * entries
        self.trained = (arrays["energy"].sum(axis=0) > ABOVE * rounding) & ~partly
        self.trained &= ~np.isin(first, rough) & ~np.isin(second, rough)
        self.low = np.array([is_lora(second_pass, p) for p in range(len(first))], dtype=bool)
        self.rank = np.where(self.risen, arrays["rank"], 0).sum(axis=0)

    def _paired(self, name: str, p: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """By how much a statistic of pair p is above that of both pairs with each third model over layers, squashed."""
        values, risen = self.second_pass.arrays[name], self.risen
        t = [paired_t(values[:, [p]], values[:, side], risen[:, [p]] & risen[:, side]) for side in (one, other)]
        return np.tanh(np.minimum(*t) / 4)

    def looked_at(self, i: int, j: int, third: Int[np.ndarray, "thirds"]) -> Bool[np.ndarray, "thirds"]:
        """Which third models the second pass compared with both of a pair."""
        return (self.index[i, third] >= 0) & (self.index[third, j] >= 0)

    def features(
        self, square: Float[np.ndarray, "models models"], p: int, third: Int[np.ndarray, "thirds"]
    ) -> Float[np.ndarray, "thirds features"]:
        """Features of these third models of pair p; 0 where a side was not looked at."""
        i, j = int(self.second_pass.first[p]), int(self.second_pass.second[p])
        values = np.zeros((len(third), len(FEATURES)))
        values[:, 1] = np.log(square[i, j] / np.maximum(square[i, third], square[j, third]) + SMALLEST)
        one, other = self.index[i, third], self.index[third, j]
        known = self.looked_at(i, j, third)
        a, b = one[known], other[known]
        # A low rank beside full updates is fewer directions, and other kurtosis, by itself: they tell no middle there.
        alike = (self.low[a] == self.low[p]) & (self.low[b] == self.low[p])
        told = self.trained[p] & self.trained[a] & self.trained[b] & alike
        for k, name in ((2, "kurtosis"), (5, "flatness")):
            values[known, k] = np.where(told, self._paired(name, p, a, b), 0)
        # All three are compared in the coarsest of their types.
        coarsest = np.minimum(self.stored[third[known]], min(self.stored[i], self.stored[j]))
        for bits, count in self.differ.items():
            values[known, 3] += np.where(coarsest == bits, _longest(count[p], count[a], count[b], CHANCE), 0)
        lengths = _longest(self.rank[p], self.rank[a], self.rank[b], 0.5)
        values[known, 4] = np.where(self.low[p] & self.low[a] & self.low[b], lengths, 0)
        values[known, 0] = np.minimum(_kept(self.second_pass, a, i, j), _kept(self.second_pass, b, j, i))
        return values


def look_between(
    first_pass: FirstPass,
    second_pass: SecondPass,
    square: Float[np.ndarray, "models models"],
    rough: list[int],
    pairs: list[int],
    may: list[int],
    likeliest: bool = False,
) -> Triples:
    """Features of all third models that may lie between the two of each pair; 0 where a side was not looked at.

    Of models that were not looked at beside both of a pair, most of a large family, length alone tells: where only the
    `likeliest` third models count, these are the nearest and the farthest of them.
    """
    measured = _Measured(first_pass, second_pass, len(square), rough)
    thirds, features = [], []
    usable = np.array(may, dtype=int)
    own = square[:, usable]
    there = np.isfinite(own) & (own > 0)
    for p in pairs:
        i, j = int(second_pass.first[p]), int(second_pass.second[p])
        # A model that equals one end in all that is compared stands beside it, not between.
        some = np.flatnonzero(there[i] & there[j])
        if likeliest and len(some):
            told = measured.looked_at(i, j, usable[some])
            some, rest = some[told], some[~told]
            farther = np.maximum(own[i, rest], own[j, rest])
            ends = np.unique([farther.argmin(), farther.argmax()]) if len(rest) else slice(0)
            some = np.sort(np.r_[some, rest[ends]])
        thirds.append(usable[some])
        if len(some):
            features.append(measured.features(square, p, thirds[-1]))
    return Triples(
        np.repeat(np.array(pairs, dtype=int), [len(some) for some in thirds]),
        np.concatenate(thirds) if thirds else np.zeros(0, dtype=int),
        np.concatenate(features) if features else np.zeros((0, len(FEATURES))),
    )


def _kept(
    second_pass: SecondPass, pairs: Int[np.ndarray, "pairs"], start: int, third: int
) -> Float[np.ndarray, "pairs"]:
    """Log likelihood ratio that the way from the start to a third model leads through the other model of each pair.

    If it does, the third kept all that changed up to there: a share of 1 of the difference, in each layer; if the start
    is in the middle, a share of 0. Layers are replicates: their spread is the noise, whatever the model (Student's t).
    """
    sums = second_pass.triple
    weight = sums["weight"][pairs, third]
    known = weight > 0
    weight = np.where(known, weight, 1)
    share = sums["kept"][pairs, third] / weight
    share = np.where(second_pass.first[pairs] == start, share, 1 - share)
    variance = (sums["kept2"][pairs, third] / weight - (sums["kept"][pairs, third] / weight) ** 2).clip(0)
    layers = weight**2 / sums["weight2"][pairs, third].clip(min=1e-300)
    error = variance / (layers - 1).clip(min=1) + LEAST**2
    ratio = (HEAVY + 1) / 2 * np.log((1 + share**2 / error / HEAVY) / (1 + (share - 1) ** 2 / error / HEAVY))
    return np.where(known & (layers >= FEW), ratio, 0)

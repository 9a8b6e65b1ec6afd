"""Merges: models that are combinations of others, up to the rounding of the type that they are stored in.

A trained weight is a random real number, so no model is a combination of others by chance. Of an affine dependent set
each member is a combination of the others: that it is the merge its convexity tells, or its rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mother.numeric.floats import ulp

# What a combination may leave: in units of the expected rounding noise, as share of the squared distance to the nearest
# parent, and in units in the last place of almost every entry. Rounded once; several times; and far from any parent.
ACCEPTED = ((2.0, 1 / 4, 0.505), (8.0, 1 / 8, 1.5), (32.0, 1 / 100, np.inf))
OUTSIDE = 0.002  # share of entries that may be left more
ROUNDED = 0.7  # of the expected rounding noise: what rounding once leaves at the least; other members may be left less
DIFFERING = 64  # entries in which the models differ, for each parent: fewer are combinations by chance
ERRORS = 4.0  # standard errors by which the coefficients may be off
SIZE_OVER_ULP = 2.0  # least mean of (x / 2^q)^2 with 2^q <= |x|: 7 / 3 for even mantissas, 2.16 for even logarithms
COMBINED = 32.0  # times the rounding noise: below it a claim is not judged, since a merge may have been there
DEPENDENT_AMONG = 10  # budget: nearest neighbours among which the parts of a combination are looked for
PARENTS = 5  # budget: parents of a merge, at most
INSIDE = 0.01  # least coefficient of a parent of a merge
GRAM_CHUNK = 1 << 16  # budget: entries of each neighbour that are worked on together, in the processor's cache
TINIEST = {10: 2.0**-24}  # least unit in the last place by mantissa bits, where it matters: that of float16


@dataclass(frozen=True)
class Merge:
    """A model that is a combination of others: places among its neighbours, mean coefficients, and how it was mixed."""

    parents: tuple[int, ...]
    coefficients: tuple[float, ...]
    method: str  # "linear": the same everywhere; "by layer": coefficients (SLERP: and lengths) of each layer

    @property
    def convex(self) -> bool:
        """Whether the model lies between its parents."""
        return min(self.coefficients) > 0


def local_gram(
    weight: Float[Tensor, "rows columns"], near: Sequence[Float[Tensor, "rows columns"]]
) -> Float[np.ndarray, "k1 k1"]:
    """Inner products of W_neighbour - W for the neighbours of a model and, last, of W itself."""
    differ = [at for at, other in enumerate(near) if not torch.equal(other, weight)]  # frozen matrices add nothing
    flat, others = weight.flatten(), [near[at].flatten() for at in differ]
    gram = torch.zeros(len(differ) + 1, len(differ) + 1, dtype=torch.float64, device=weight.device)
    for start in range(0, len(flat), GRAM_CHUNK):
        own = flat[start : start + GRAM_CHUNK].double()
        rows = torch.stack([*(other[start : start + GRAM_CHUNK] for other in others), torch.zeros_like(own)]).double()
        rows[:-1] -= own
        rows[-1] = own
        gram += rows @ rows.T
    result = np.zeros((len(near) + 1, len(near) + 1))
    result[np.ix_([*differ, -1], [*differ, -1])] = gram.cpu().numpy()
    return result


def _affine_fit(gram: Float[np.ndarray, "sets k k"]) -> tuple[Float[np.ndarray, "sets k"], Float[np.ndarray, "sets"]]:
    """Least |sum a_i D_i|^2 with sum a_i = 1, for each Gram matrix of the D_i: coefficients and residuals."""
    k = gram.shape[1]
    scale = np.trace(gram, axis1=1, axis2=2)[:, None, None]
    ridge = np.where(scale > 0, scale, 1) * np.eye(k) * 1e-14
    try:
        solved = np.linalg.solve(gram + ridge, np.ones((len(gram), k, 1)))[..., 0]
    except np.linalg.LinAlgError:  # of dependent differences the ridge may be lost in rounding
        solved = np.linalg.pinv(gram + ridge, hermitian=True).sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):  # no sum of 1: no combination, and no number is below NaN
        coefficients = solved / solved.sum(axis=1, keepdims=True)
        return coefficients, np.einsum("si,sij,sj->s", coefficients, gram, coefficients).clip(0)


def _rounding(size: float, bits: int) -> float:
    """Expected squared rounding noise of a model, at most: the sum of ulp^2 / 12."""
    return size * 4.0**-bits / 12 / SIZE_OVER_ULP


def candidate_merges(gram: Float[np.ndarray, "layers k1 k1"], size: float, bits: int) -> Iterator[Merge]:
    """The combinations of its neighbours that a model may be, by its Gram matrices: `left_by` looks at the entries.

    `gram` holds, for each layer, the inner products of W_neighbour - W and, last, of W; `size` is the sum of W^2 and
    `bits` are the mantissa bits of the stored type. The coefficients, two to PARENTS of any sign, sum to 1.
    Spherical interpolation also scales each layer, so W itself joins the basis of each layer. Smaller sets of
    neighbours come first, of these convex combinations, and of these those whose members lie farthest apart.
    """
    k = gram.shape[1] - 1
    whole = gram[:, :k, :k].sum(axis=0)
    if k < 2 or not (whole.diagonal() > 0).all():
        return
    most = ACCEPTED[-1][0] * _rounding(size, bits)
    for count in range(2, min(PARENTS, k) + 1):
        sets = np.array(list(combinations(range(k), count)))
        blocks = whole[sets[:, :, None], sets[:, None, :]]
        coefficients, residual = _affine_fit(blocks)
        distance = blocks.diagonal(axis1=1, axis2=2)
        near = (residual <= most) & (residual <= ACCEPTED[0][1] * distance.min(axis=1))
        found: list[tuple[bool, float, Merge]] = []
        for at in np.flatnonzero(near & (np.abs(coefficients) > INSIDE).all(axis=1)):
            values = tuple(float(value) for value in coefficients[at])
            merge = Merge(tuple(int(p) for p in sets[at]), values, "linear")
            found.append((merge.convex, float(distance[at].sum()), merge))
        yield from (merge for _, _, merge in sorted(found, key=lambda entry: entry[:2], reverse=True))
        if count == 2:
            yield from _by_layer(gram, sets, most)


@dataclass(frozen=True)
class Left:
    """What the best combination leaves of a model, and of each of its parents as a combination of the other members.

    All arrays start with the model; its parents follow.
    """

    entries: int  # in which models differ
    energy: Float[np.ndarray, "members"]  # sum of squares
    expected: Float[np.ndarray, "members"]  # of it if each member was rounded last: sum of ulp^2 / 12
    outside: Float[np.ndarray, "members"]  # share of entries that are left more than rounding once leaves
    several: float  # share of entries of the model that are left more than rounding several times leaves
    nearest: float  # squared distance of the nearest parent

    @property
    def level(self) -> int | None:
        """Which row of ACCEPTED first takes it for rounding, much less than the distance to any parent; None: none."""
        if self.entries < DIFFERING * (len(self.energy) - 1):
            return None
        for level, (out, (times, share, _)) in enumerate(zip((self.outside[0], self.several, 0.0), ACCEPTED)):
            if self.energy[0] <= min(times * self.expected[0], share * self.nearest) and out <= OUTSIDE:
                return level
        return None

    @property
    def noise(self) -> float:
        """Energy in units of what rounding the model once leaves."""
        return float(self.energy[0] / max(self.expected[0], 1e-300))

    @property
    def too_little(self) -> bool:
        """Whether a model that is left more than rounding it once leaves is left less energy than that.

        So is what lies between a base and a model that was led away from it (negation, extrapolation), the last of
        which was rounded in several steps: solved for the model, the equation leaves |a| of its error.
        """
        return bool(self.outside[0] > OUTSIDE and self.energy[0] < ROUNDED * self.expected[0])

    @property
    def rounded_last(self) -> int | None:
        """The only member of the set that is left what rounding it once leaves: 0 is the model; None if none is.

        Solved for a parent, the equation leaves 1 / |a| as much, in other places. That is less for a model between the
        merge and another parent, but then too little.
        """
        once = self.outside <= OUTSIDE
        if once.sum() > 1:
            once &= self.energy >= ROUNDED * self.expected
        return int(np.flatnonzero(once)[0]) if once.sum() == 1 else None


def _weights(stacks: Sequence[Tensor], member: int) -> Float[Tensor, "others"]:
    """Coefficients of the other members, with the sum 1, whose combination comes nearest to one."""
    gram = torch.zeros(len(stacks[0]) - 1, len(stacks[0]) - 1, dtype=torch.float64)
    for stack in stacks:
        others = torch.cat([stack[:member], stack[member + 1 :]]) - stack[member]
        gram += others @ others.T
    return torch.from_numpy(_affine_fit(gram.numpy()[None])[0][0])


def left_by(layers: Sequence[Sequence[Float[Tensor, "_ _"]]], bits: Sequence[int], alike: bool) -> Left:
    """What combinations leave, over these layers: of each the model and its parents, `bits` their mantissa bits.

    `alike`: the same coefficients, of the sum 1, in all layers; else the model alone is looked at, and each layer has
    its own, of any sum.
    """
    stacks = []
    for models in layers:
        stack = torch.stack([model.flatten() for model in models])
        stacks.append(stack[:, (stack[1:] != stack[0]).any(dim=0) & (stack != 0).all(dim=0)].double())
    looked_at = [_look(stacks, member, alike) for member in range(len(bits) if alike else 1)]
    energy, expected, outside = (np.full(len(bits), np.inf) for _ in range(3))
    for member, (rest, own, _, _, slack) in enumerate(looked_at):
        unit = _unit(own, bits[member])
        energy[member], expected[member] = float(rest.square().sum()), float(unit.square().sum()) / 12
        outside[member] = float((rest > ACCEPTED[0][2] * unit + slack).double().mean())
    rest, _, terms, distance, slack = looked_at[0]
    several = float((rest > ACCEPTED[1][2] * _unit(terms, bits[0]) + slack).double().mean())
    return Left(len(rest), energy, expected, outside, several, distance)


def _look(stacks: Sequence[Tensor], member: int, alike: bool) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """Of one member, entry by entry: what its combination leaves, itself, the largest term, and what fitting adds.

    The last but one is the squared distance of the nearest other member.
    """
    fitted = _weights(stacks, member) if alike else None
    rest, terms = [], []
    for stack in stacks:
        own, others = stack[member], torch.cat([stack[:member], stack[member + 1 :]])
        weights = torch.linalg.lstsq(others.T, own[:, None]).solution[:, 0] if fitted is None else fitted
        rest.append((own - weights @ others).abs())
        terms.append(torch.cat([own[None], weights[:, None] * others]).abs().amax(dim=0))
    whole = torch.cat(stacks, dim=1)
    differences = (torch.cat([whole[:member], whole[member + 1 :]]) - whole[member]).abs()
    mean = differences.square().mean(dim=1).sqrt()
    left = torch.cat(rest)
    # The standard error of the fitted coefficients, times the differences that they weigh.
    error = (left.square().sum().sqrt() / max(1, len(left))) * (differences / mean[:, None]).amax(dim=0)
    return left, whole[member], torch.cat(terms), float(differences.square().sum(dim=1).min()), ERRORS * error


def _unit(values: Float[Tensor, "entries"], bits: int) -> Float[Tensor, "entries"]:
    """Unit in the last place of each value in a type with so many mantissa bits."""
    return ulp(values, bits).double().clamp(min=TINIEST.get(bits, 0.0))


def depends_on(gram: Float[np.ndarray, "layers k1 k1"], size: float, bits: int, neighbour: int) -> bool:
    """Whether a model is a combination, of any signs, of this neighbour and up to four others.

    Arguments as of `candidate_merges`. Of models on one line, or in one plane, each is a combination of the others.
    """
    k = gram.shape[1] - 1
    whole = gram[:, :k, :k].sum(axis=0)
    noise = COMBINED * size * 4.0**-bits / 12
    rest = [at for at in range(k) if at != neighbour and whole[at, at] > 0][:DEPENDENT_AMONG]
    if whole[neighbour, neighbour] <= 0:
        return False
    for count in range(1, min(4, len(rest)) + 1):
        sets = np.array([(neighbour, *others) for others in combinations(rest, count)])
        coefficients, residual = _affine_fit(whole[sets[:, :, None], sets[:, None, :]])
        if ((residual <= noise) & (np.abs(coefficients[:, 0]) > INSIDE)).any():
            return True
    return False


def _by_layer(gram: Float[np.ndarray, "layers k1 k1"], sets: Int[np.ndarray, "sets two"], noise: float) -> list[Merge]:
    """Pairs of neighbours that each layer, up to its length, is a convex combination of; the farthest apart first."""
    k = gram.shape[1] - 1
    residuals, weights = np.zeros(len(sets)), np.zeros(len(sets))
    coefficients, inside = np.zeros((len(sets), 2)), np.ones(len(sets), dtype=bool)
    for layer in gram:
        blocks = layer[sets[:, :, None], sets[:, None, :]]
        length = layer[k, k]
        if length > 0:  # leave out the part along W: its length is free
            along = layer[sets, k]
            blocks = blocks - along[:, :, None] * along[:, None, :] / length
        moved = np.trace(blocks, axis1=1, axis2=2)
        some = moved > 1e-12 * max(length, 1e-300)
        if not some.any():
            continue
        values, residual = _affine_fit(blocks)
        residuals += np.where(some, residual, moved)
        inside &= ~some | (values > INSIDE).all(axis=1)
        weight = np.where(some, moved, 0)
        coefficients += weight[:, None] * values
        weights += weight
    found: list[tuple[float, Merge]] = []
    for at in np.flatnonzero(inside & (residuals <= noise) & (weights > 0)):
        values = tuple(float(value) for value in coefficients[at] / weights[at])
        found.append((float(weights[at]), Merge(tuple(int(p) for p in sets[at]), values, "by layer")))
    return [merge for _, merge in sorted(found, key=lambda entry: entry[0], reverse=True)]

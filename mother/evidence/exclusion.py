"""What weights exclude: inheritance that is not there, updates that a model lacks, differences that rounding left.

A fitted tree says what is most probable. These statistics are free of it: each has a value that follows from "this
model was made from that one", so that a claim can be rejected by a test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mother.evidence.facts import Facts
from mother.evidence.relatedness import cosine_and_deviation
from mother.evidence.sketch import Sketch
from mother.io.layers import Layer

RUN = 32  # entries that every quantizer gives one scale, and enough to tell a box from a bell
FEW = 3.0  # effective number of layers below which a standard error over layers says nothing
ELSEWHERE = 0.3  # by eye: cosine of two matrices at different places that no independent ones come to
ADJACENT = 0.95  # by eye: of the smallest entry kept, what the largest one pruned comes to among thousands
LARGE = 1024  # by eye: entries of a matrix that is looked for at other places
SAME_SPECTRUM = 0.01  # by eye: relative difference of singular values; those of independent runs differ more
MEDIAN = (np.pi / 2) ** 0.5  # standard error of a median of normal numbers, over that of their mean
FEWEST_UNITS, MOST_UNITS = 32, 512  # by eye; budget: rows or columns whose inner products are compared


@dataclass(frozen=True)
class Inheritance:
    """What two models share, matrix by matrix."""

    z: float  # of the mean cosine, standard normal under independent initialisation
    unit: float  # what z would be for equal models: how much of the cosine the matrices can show
    layers: int

    def lacks(self, cosine: float, errors: float) -> bool:
        """Whether the mean cosine is below `cosine` by so many deviations."""
        return self.layers > 0 and self.z + errors < cosine * self.unit


@dataclass(frozen=True)
class Share:
    """How much of an update another model holds: 1 for all who descend from it, 0 for those that it is new to."""

    mean: float
    error: float  # standard error over layers
    layers: float  # effective number: 1 over the sum of squared shares of the update's energy

    def is_near(self, value: float, within: float, errors: float) -> bool:
        """Whether the share lies so near to a value, by so many standard errors."""
        return self.layers >= FEW and abs(self.mean - value) + errors * self.error < within


def common_layers(sketches: Sequence[Sketch]) -> list[Layer]:
    """Matrices that all models have in one shape."""
    first, *others = sketches
    return [layer for layer, shape in first.shapes.items() if all(one.shapes.get(layer) == shape for one in others)]


def inheritance(one: Sketch, other: Sketch) -> Inheritance:
    """The test of relatedness for two models, with what it could have found."""
    z = unit = 0.0
    layers = 0
    for layer in common_layers((one, other)):
        cosine, deviation, valid = cosine_and_deviation(torch.stack([one.read(layer), other.read(layer)]))
        if valid[0, 1]:
            z += float(cosine[0, 1] / deviation[0, 1])
            unit += float(1 / deviation[0, 1])
            layers += 1
    return Inheritance(z / max(1, layers) ** 0.5, unit / max(1, layers) ** 0.5, layers)


def alike_elsewhere(one: Sketch, other: Sketch) -> bool:
    """Whether a matrix of one model resembles one of the other at another place, or its transpose.

    So do models whose layers were dropped, doubled or renamed, or whose matrices are stored the other way round.
    """
    # Equal shapes keep equal parts. Small matrices resemble one another by chance.
    places: dict[tuple[int, int], list[Tensor]] = {}
    for layer, shape in other.shapes.items():
        if shape[0] * shape[1] >= LARGE:
            places.setdefault(shape, []).append(_unit(other.read(layer)))
    stacked = {shape: torch.stack(units) for shape, units in places.items()}
    for layer, shape in one.shapes.items():
        own = one.read(layer)
        for turned in (own, own.T) if one.scale(layer) == 1 else (own,):
            rivals = stacked.get(shape if turned is own else shape[::-1])
            if rivals is not None and float((rivals @ _unit(turned)).abs().max()) > ELSEWHERE:
                return True
    return False


def alike_tables(first: Facts, second: Facts) -> bool:
    """Whether embeddings or heads of two models resemble one another: they may be all that was inherited.

    Tables of positions do not count: those that are computed are equal in unrelated models.
    """
    for key in first.tables.keys() & second.tables.keys():
        one, other = first.tables[key], second.tables[key]
        rows = min(len(one), len(other))
        if "pos" not in key[0] and rows * one.shape[1] >= LARGE:
            if abs(float(_unit(one[:rows]) @ _unit(other[:rows]))) > ELSEWHERE:
                return True
    return False


def alike_in_another_basis(one: Float[Tensor, "rows columns"], other: Float[Tensor, "rows columns"]) -> bool:
    """Whether two whole matrices are one up to a rotation, or another order, of their inputs or their outputs.

    Inner products of rows do not change when the inputs are rotated, nor those of columns with the outputs. Between
    the units of independent models they are unrelated. Singular values change with neither.
    """
    if max(one.shape) <= MOST_UNITS:
        first, second = torch.linalg.svdvals(one), torch.linalg.svdvals(other)
        if float((first - second).norm()) < SAME_SPECTRUM * float(first.norm()):
            return True
    for first, second in ((one, other), (one.T, other.T)):
        few = first[:MOST_UNITS], second[:MOST_UNITS]
        if len(few[0]) < FEWEST_UNITS:
            continue
        apart = ~torch.eye(len(few[0]), dtype=torch.bool)
        products = [(rows @ rows.T)[apart][None] for rows in few]
        if float(_unit(products[0]) @ _unit(products[1])) > ELSEWHERE:
            return True
    return False


def _unit(weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "entries"]:
    """A matrix as a centred vector of length 1."""
    centred = (weight - weight.mean()).flatten()
    return centred / centred.norm().clamp(min=torch.finfo(torch.float32).tiny)


def update_share(model: Sketch, start: Sketch, end: Sketch) -> Share | None:
    """The share of the update from `start` to `end` that `model` holds, as seen from `start`.

    <W - W_start, W_end - W_start> / |W_end - W_start|^2, pooled over layers: what was made from `end` holds all of it
    (1), a merge with it its coefficient, a sibling that learned something else nothing. None where nothing differs.
    """
    along, energy = [], []
    for layer in common_layers((model, start, end)):
        origin = start.read(layer)
        update = (end.read(layer) - origin).double()
        scale = start.scale(layer)
        if update.any():
            along.append(scale * float((update * (model.read(layer) - origin)).sum()))
            energy.append(scale * float(update.square().sum()))
    if not energy:
        return None
    top, below = np.array(along), np.array(energy)
    mean = top.sum() / below.sum()
    few = len(below) / max(1, len(below) - 1)
    error = np.sqrt(few * np.square(top - mean * below).sum()) / below.sum()
    return Share(float(mean), float(error), float(below.sum() ** 2 / np.square(below).sum()))


def radial_share(start: Sketch, end: Sketch) -> float:
    """Share of the energy of an update that only scales matrices: large where weights decayed more than they learned.

    Directions of a matrix that shrank look new in the model that did not shrink.
    """
    radial = whole = 0.0
    for layer in common_layers((start, end)):
        origin = start.read(layer).double()
        update = end.read(layer).double() - origin
        size = float(origin.square().sum())
        if size > 0:
            radial += start.scale(layer) * float((update * origin).sum()) ** 2 / size
            whole += start.scale(layer) * float(update.square().sum())
    return radial / whole if whole else 0.0


def leading_energy(start: Sketch, end: Sketch) -> float:
    """Energy of the first direction of an update over the most that noise of that size has; the median over matrices.

    The largest squared singular value of n x m noise is (1 + sqrt(n / m))^2 times the mean of all n (Marchenko and
    Pastur). Training pushes a few directions far above it; what steps at random leave, as between the end of a run and
    the mean of its snapshots, stays near. 0 where nothing differs.
    """
    found = []
    for layer in common_layers((start, end)):
        update = end.read(layer) - start.read(layer)
        if update.any():
            squares = torch.linalg.svdvals(update).double().square()
            n, m = sorted(update.shape)
            found.append(float(squares[0] / squares.sum()) * n / (1 + (n / m) ** 0.5) ** 2)
    return float(np.median(found)) if found else 0.0


def _by_matrix(found: Sequence[Tensor], median: bool) -> list[tuple[float, float]]:
    """The mean or median of what was found in each matrix, and its standard error; of RUN values at least."""
    middle = torch.median if median else torch.mean
    spread = MEDIAN if median else 1.0
    enough = [one for one in found if len(one) >= RUN]
    return [(float(middle(one)), spread * float(one.std()) / len(one) ** 0.5) for one in enough]


def rounding_shapes(start: Sketch, end: Sketch, binary: bool) -> list[tuple[float, float]]:
    """Root mean square over the largest of RUN neighbouring differences: its mean over each matrix, and its error.

    Rounding errors fill their step evenly: E[rms] / E[max] of 32 uniform numbers is .577 / .970 = .60, whatever the
    step. Training leaves other shapes: .48 for a bell, 1 for steps of one size, less for heavy tails. With `binary`
    differences are taken in units of the exponent of the value, as a cast leaves them. Matrices that differ in few runs
    are left out.
    """
    found = []
    for layer in common_layers((start, end)):
        one, other = start.read(layer), end.read(layer)
        if one.shape[1] % RUN or torch.equal(one, other):
            continue
        residual = (other - one).double()
        if binary:
            residual = residual / torch.exp2(torch.frexp(one).exponent.double())
        runs = residual.reshape(-1, RUN)
        largest = runs.abs().amax(dim=1)
        found.append((runs.square().mean(dim=1).sqrt() / largest)[largest > 0])
    return _by_matrix(found, median=False)


def pruned_by_size(start: Sketch, end: Sketch) -> bool:
    """Whether zeros took the place of the smallest entries of each matrix that changed, right up to the smallest kept.

    Pruning by magnitude leaves the two adjacent. Entries that were trained from zero stop short of the others, or pass
    them.
    """
    adjacent = []
    for layer in common_layers((start, end)):
        one, other = start.read(layer), end.read(layer)
        gone, kept = one[(other == 0) & (one != 0)].abs(), one[other != 0].abs()
        if len(gone) and len(kept):
            adjacent.append(ADJACENT * float(kept.min()) <= float(gone.max()) <= float(kept.min()))
    return len(adjacent) >= FEW and all(adjacent)


def step_errors(start: Sketch, end: Sketch) -> list[tuple[float, float]]:
    """Root mean square of a difference in steps of the grid that `end` lies on: .289 where rounding to it left it.

    Its median over each matrix, and the standard error of that.

    The step is the smallest gap between values of RUN neighbours, as it is where there are few levels. Training from a
    model on a grid leaves less, or more. Matrices without a gap are left out.
    """
    found = []
    for layer in common_layers((start, end)):
        one, other = start.read(layer), end.read(layer)
        if other.shape[1] % RUN or torch.equal(one, other):
            continue
        runs, residual = other.double().reshape(-1, RUN), (other - one).double().reshape(-1, RUN)
        gaps = runs.sort(dim=1).values.diff(dim=1)
        gaps = torch.where(gaps > 1e-4 * runs.abs().amax(dim=1, keepdim=True), gaps, torch.inf).amin(dim=1)
        there = gaps.isfinite()
        found.append(residual[there].square().mean(dim=1).sqrt() / gaps[there])
    return _by_matrix(found, median=True)

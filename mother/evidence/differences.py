"""The numbers of the differences D = W_second - W_first of some pairs in one layer, and where third models lie."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mother.evidence.direction import (
    cast_residuals,
    directions_added,
    leads,
    newness,
    precision_test,
    rounding_test,
)
from mother.evidence.grids import OnGrid, may_be_noise, quantization_noise
from mother.numeric.floats import MANTISSA, ulp
from mother.numeric.spectra import leading_triples, rounding_noise, spectrum

DIRECTIONS = 8  # singular directions that newness and inheritance look at
RADIAL = 0.01  # share of the energy of a difference, in the length alone, from which length is taken out
ONCE, TWICE = 0.75, 1.25  # units in the last place beyond what rounding once, or twice, leaves
CLEAR = 4.0  # deviations of the error of truncation in a unit in the last place that this error does not hide
TURNED = 1e-3  # share of the energy of a difference that is more than a change of length
ASKED_ENTRIES = 1 << 18  # budget: entries of third models, and of directions of pairs, that are multiplied at a time
NEAR = 0.25  # how near to 0 or 1 the part of a direction that a third model kept must be


def compare_pairs(
    i: Float[Tensor, "pairs rows columns"],
    j: Float[Tensor, "pairs rows columns"],
    grids: list[list[OnGrid | None]],
    bits: Int[Tensor, "pairs two"],
    zeros: Bool[Tensor, "pairs two"],
    directions: bool = True,
) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """All numbers of one layer of some pairs; leading u, s, v of D above rounding noise, u' W_first v, what is new.

    Without `directions` none of the latter, and no numbers that say which of the two is the newer: half of the work.
    """
    difference = (j - i).double()  # what rounds here is below the noise of the arithmetic that made the update
    energy = difference.square().sum(dim=(1, 2))
    values: dict[str, Any] = {"energy": energy.cpu().numpy(), "entries": i[0].numel()}
    same = i == j
    values["equal"] = same.sum(dim=(1, 2)).cpu().numpy()
    for key, child, end in (("zeroed", j, 1), ("zeroed_back", i, 0)):
        some = zeros[:, end].any()  # few models have zeros
        values[key] = ((child == 0) & ~same).sum(dim=(1, 2)).cpu().numpy() if some else 0
    precision = bits.amin(dim=1)
    whole = bits == MANTISSA["float32"]
    for key, parent, child, end in (("quantized", i, j, 1), ("quantized_back", j, i, 0)):
        # Without a grid only a half precision, which hides fine ones, can be quantized, and only from full precision.
        # What lies on a grid itself is not taken for the parent, so it is not looked at.
        on = {p: grid for p, pair in enumerate(grids) if pair[1 - end] is None and (grid := pair[end]) is not None}
        told = may_be_noise(parent[list(on)], child[list(on)], list(on.values()))
        halves = (whole[:, 1 - end] & ~whole[:, end]).nonzero()[:, 0].tolist()
        some = [p for p, may in zip(on, told) if may] + [p for p in halves if grids[p] == [None, None]]
        values[key] = np.zeros(len(i), dtype=bool)
        for p in some:  # few pairs
            values[key][p] = quantization_noise(parent[p], child[p], grids[p][end])
    # Between two types, parent and update may both have been rounded to the coarser.
    noise = rounding_noise(i, j, precision) * torch.where(bits[:, 0] == bits[:, 1], 1.0, 2**0.5)
    found = spectrum(difference, noise, DIRECTIONS if directions else 0)
    values |= {name: getattr(found, name).cpu().numpy() for name in ("rank", "full", "gap", "flatness", "side")}
    values["rounding"], values["scattered"] = np.zeros(len(i)), np.zeros(len(i))
    if len(found.low):
        parts, types = (i[found.low], j[found.low], found.residual), bits[found.low]
        low = found.low.cpu().numpy()
        values["scattered"][low] = _scattered(*parts, types, found.rank[found.low]).cpu().numpy()
        if directions:
            values["rounding"][low] = (rounding_test(*parts) + precision_test(*parts, types)).cpu().numpy()
    if not directions:
        _without_length(i, j, difference, found.full)
        values["kurtosis"] = scaled_kurtosis(difference).cpu().numpy()
        return values, ()
    start = ((i @ found.v.float()) * found.u.float()).sum(dim=1)
    added = directions_added(start, found.s)
    told = {"newness": newness(added, found.s), "leads": leads(found.s, energy, *i.shape[1:])}
    _without_length(i, j, difference, found.full, told)
    values |= {name: value.cpu().numpy() for name, value in told.items()}
    values["kurtosis"] = scaled_kurtosis(difference).cpu().numpy()
    values["cast"] = cast_residuals(i, j, bits).cpu().numpy()
    return values, tuple(value.float() for value in (found.u, found.s, found.v, start, added))


def _scattered(
    i: Float[Tensor, "pairs rows columns"],
    j: Float[Tensor, "pairs rows columns"],
    residual: Float[Tensor, "pairs rows columns"],
    types: Int[Tensor, "pairs two"],
    rank: Int[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """Share of the entries that changed of which a low rank leaves what no rounding leaves; 1 where none tells.

    Rounding moves a weight by half a unit in the last place at most, and between two types a model may have been
    rounded before the update and after it. Steps so small that most weights round back change few of them, by a whole
    unit: what is above the norm of rounding noise then has a low rank, too, but other weights change as well. Where
    few do, what is seen of a low rank is less than was added: so only large weights, or those that moved against it,
    tell. Only entries count whose unit is CLEAR times the error that truncation to the rank spreads over the matrix: a
    rank of r keeps r (rows + columns - r) dimensions of the rounding noise. 0 in full precision, where the arithmetic
    of an update leaves as much.
    """
    rows, columns = i.shape[1:]
    bits, moved = types.amin(dim=1), torch.where(types[:, 0] == types[:, 1], ONCE, TWICE)
    unit = ulp(torch.maximum(i.abs(), j.abs()), bits[:, None, None]).double()
    kept = rank * (rows + columns - rank) / (rows * columns)
    spread = (unit.square().mean(dim=(1, 2)) / 12 * kept).sqrt()
    told = (unit >= CLEAR * spread[:, None, None]) & (i != j)
    difference = (j - i).double()
    large = unit >= unit.square().mean(dim=(1, 2), keepdim=True).sqrt()
    tells = large | (difference * (difference - residual) <= 0)
    beyond = told & tells & (residual.abs() > moved[:, None, None] * unit)
    count = told.sum(dim=(1, 2))
    share = torch.where(count > 0, beyond.sum(dim=(1, 2)) / count.clamp(min=1), 1.0)
    return torch.where(bits < MANTISSA["float32"], share, 0)


def _without_length(
    i: Float[Tensor, "pairs rows columns"],
    j: Float[Tensor, "pairs rows columns"],
    difference: Float[Tensor, "pairs rows columns"],
    full: Bool[Tensor, "pairs"],
    told: dict[str, Float[Tensor, "pairs"]] | None = None,
) -> None:
    """Where a good part of a difference of full rank changes the matrix's length alone, take both at one length.

    Weight decay shrinks what both models have: its directions look old in the child. Both matrices are scaled to
    their mean length, which favours neither (what is left after a regression of one on the other would). Changes
    `difference` and what is `told`.
    """
    one, other = (torch.linalg.vector_norm(w, dim=(1, 2), dtype=torch.float64) for w in (i, j))
    energy = difference.square().sum(dim=(1, 2))
    scaled = full & (one > 0) & (other > 0) & ((other - one).square() > RADIAL * energy)
    chosen = scaled.nonzero()[:, 0]
    if not len(chosen):
        return
    factor = (other / one).sqrt()[chosen, None, None]
    first, second = i[chosen].double() * factor, j[chosen].double() / factor
    difference[chosen] = second - first
    if told is None:
        return
    u, s, v = leading_triples(second - first, DIRECTIONS)
    told["newness"][chosen] = newness(directions_added(((first @ v) * u).sum(dim=1), s), s)
    told["leads"][chosen] = leads(s, difference[chosen].square().sum(dim=(1, 2)), *i.shape[1:])


def scaled_kurtosis(difference: Float[Tensor, "pairs rows columns"]) -> Float[Tensor, "pairs"]:
    """Excess kurtosis of each matrix with its rows, then its columns, scaled to one mean square; 0 where it is 0.

    The paper looks at the kurtosis of weights, this at that of an update. An update by Adam is bounded by the sum of
    its steps, so its entries are below Gaussian; whatever is added to it brings them nearer to Gaussian. Rows and
    columns that learn faster than others would hide that.
    """
    for axis in (2, 1):
        size = difference.square().mean(dim=axis, keepdim=True).sqrt()
        difference = difference / torch.where(size > 0, size, 1)
    square = difference.square_()
    variance = square.mean(dim=(1, 2))
    fourth = square.square_().mean(dim=(1, 2))
    return torch.where(variance > 0, fourth / variance.square().clamp(min=1e-300) - 3, 0)


TRIPLE = ("weight", "weight2", "kept", "kept2")


def find_sides(
    weights: Float[Tensor, "members rows columns"],
    place: Int[np.ndarray, "models"],
    triples: tuple[Tensor, ...],
    chosen: list[int],
    asked: tuple[Int[np.ndarray, "asked"], Int[np.ndarray, "asked"]],
    sides: np.ndarray,
) -> None:
    """Add one layer to the shares of each pair's directions that third models kept, or never had (inheritance).

    beta = u' (W_third - W_first) v / s is 1 where the third kept what the second learned, 0 where it never had it.
    `place` is that of each model among the weights. `asked` are which third models (ascending) which of the chosen
    pairs ask for, by its place among these.
    """
    u, s, v, start, added = triples
    share = s / s.sum(dim=1, keepdim=True).clamp(min=1e-30)
    u, v = (one.transpose(1, 2).contiguous() for one in (u, v))
    thirds, rows = asked
    risen = s.any(dim=1).cpu().numpy()[rows]
    thirds, rows = thirds[risen], rows[risen]
    numbers = np.array(chosen)
    members = place[thirds]
    for at, there in _by_third(thirds, weights[0].numel(), u[:1].numel() + v[:1].numel()):
        # One product for each of these models and all pairs that ask for it.
        model, pair = (torch.from_numpy(one).to(s.device) for one in (members[at[:, 0]], rows[at].reshape(-1)))
        left, right = (one.index_select(0, pair).view(len(at), -1, one.shape[2]) for one in (u, v))
        kept = ((left @ weights.index_select(0, model)) * right).sum(dim=2).view(*at.shape, -1)
        kept, some = kept[torch.from_numpy(there).to(s.device)], at[there]
        own = torch.from_numpy(rows[some]).to(s.device)
        kept = (kept - start[own]) / s[own].clamp(min=1e-30)
        like = torch.stack([kept.abs() < NEAR, (kept - 1).abs() < NEAR]) * share[own]
        found = torch.cat([like.sum(dim=2), (like * added[own]).sum(dim=2)]).cpu().numpy()
        sides[:, numbers[rows[some]], thirds[some]] += found


def _by_third(
    thirds: Int[np.ndarray, "asked"], entries: int, each: int
) -> Iterator[tuple[Int[np.ndarray, "models width"], Bool[np.ndarray, "models width"]]]:
    """What is asked of several models at a time: a row for each model, and where it is filled up, with its first.

    `thirds` ascend. Rows are at most a quarter longer than what is asked of their model. A model has so many `entries`,
    and whatever is asked so many of `each`; of several models these are ASKED_ENTRIES at most.
    """
    starts = np.flatnonzero(np.r_[True, thirds[1:] != thirds[:-1]]) if len(thirds) else np.zeros(0, int)
    count = np.diff(np.r_[starts, len(thirds)])
    unit = 1 << np.maximum(np.log2(count).astype(int) - 2, 0)
    widths = -(-count // unit) * unit
    for width in np.unique(widths).tolist():
        alike = np.flatnonzero(widths == width)
        step = max(1, ASKED_ENTRIES // (entries + width * each))
        for some in (alike[at : at + step] for at in range(0, len(alike), step)):
            there = np.arange(width) < count[some, None]
            yield starts[some, None] + np.where(there, np.arange(width), 0), there


def add_kept(
    square: Float[np.ndarray, "members members"],
    length: Float[np.ndarray, "members"],
    place: Int[np.ndarray, "models"],
    chosen: Int[np.ndarray, "pairs"],
    ends: Int[np.ndarray, "pairs two"],
    asked: tuple[Int[np.ndarray, "asked"], Int[np.ndarray, "asked"]],
    triple: dict[str, np.ndarray],
) -> None:
    """Add one layer to the shares of each pair's difference that third models have.

    `square` holds the squared distances in this layer, `length` the squared lengths, `ends` the places in it of the two
    models of each pair; `place` and `asked` are as in `find_sides`.
    """
    thirds, rows = asked
    where = chosen[rows], thirds
    triple["looked"][where] += 1
    first, second = ends[rows].T
    weight, whole = _share_kept(square, length, first, second, place[thirds])
    values = weight, weight**2, weight * whole, weight * whole**2
    for name, value in zip(TRIPLE, values):
        triple[name][where] += value


def _share_kept(
    square: Float[np.ndarray, "members members"],
    length: Float[np.ndarray, "members"],
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    third: Int[np.ndarray, "pairs"],
) -> tuple[Float[np.ndarray, "pairs"], Float[np.ndarray, "pairs"]]:
    """Energy of D = W_second - W_first, and the share of it that a third model has: <W_third - W_first, D> / |D|^2.

    What lies along W_first + W_second is taken out of both: decay shrinks all that it trains alike, so that siblings
    share it. `square` are squared distances, `length` squared lengths. The energy is 0 where nothing else changed.
    """
    energy, start, end = square[first, second], square[first, third], square[second, third]
    along, third_along = length[second] - length[first], length[third] - length[first] + (energy - start - end) / 2
    both = np.maximum(2 * (length[first] + length[second]) - energy, 1e-300)  # |W_first + W_second|^2
    left = energy - along**2 / both
    some = left > TURNED * energy
    inner = (start + energy - end) / 2 - along * third_along / both
    return np.where(some, left, 0), np.where(some, inner / np.where(some, left, 1), 0)

"""Second pass of method "map": look at the differences of near models, and at each model among its neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mother.evidence.direction import directions_added, newness, precision_test, rounding_test
from mother.evidence.first_pass import groups, stacks
from mother.evidence.grids import Grid, grid_step, quantization_noise
from mother.evidence.sketch import Sketch
from mother.io.layers import Layer
from mother.io.snapshots import Snapshot
from mother.numeric.floats import MANTISSA
from mother.numeric.spectra import rounding_noise, spectrum
from mother.numeric.threads import in_threads

LARGE = 1 << 26  # entries of a stack of differences, at most
CACHED = 1 << 19  # entries of the differences that are worked on together: they stay in the processor's cache
DIRECTIONS = 8  # singular directions that newness and inheritance look at
NEAR = 0.25  # how near to 0 or 1 the part of a direction that a third model kept must be


@dataclass
class SecondPass:
    """Second pass: pair p is (first[p], second[p]), D = W_second - W_first; arrays[name] is [layer, pair].

    energy     sum of D^2
    entries, equal   entries, and how many of them are equal
    zeroed, zeroed_back   entries in which the two differ and second is zero (back: first is zero)
    quantized, quantized_back   whether D looks like what quantizing first to second (back: reversed) leaves
    rank, full   rank of D above rounding noise, and whether it is as large as can be told
    gap   smallest singular value above the noise over the next
    newness   what D adds is new in second (+1) or was there in first (-1)
    rounding   log likelihood ratio of "second was rounded last" to "first was", for low ranks

    beyond[0, p, m] is the share of D's directions in which model m is like the first of the pair, beyond[1, p, m]
    like the second (nan: not looked at). beyond[2] and beyond[3] are the newness of these directions, times the share.
    """

    first: np.ndarray
    second: np.ndarray
    layers: list[Layer]
    arrays: dict[str, np.ndarray]
    beyond: Float[np.ndarray, "four pairs models"]
    neighbours: list[list[int]]
    grams: list[Float[np.ndarray, "_ _ _"]]  # of each model, see `_local_gram`; layers that all of them have

    @cached_property
    def index(self) -> dict[tuple[int, int], int]:
        """Number of each pair by its two models, the smaller place first."""
        return {(int(i), int(j)): p for p, (i, j) in enumerate(zip(self.first, self.second))}

    def number(self, one: int, other: int) -> int | None:
        """Number of the pair of two models in either order; None if it was not looked at."""
        return self.index.get((min(one, other), max(one, other)))

    def alike(self, start: int, end: int, third: int) -> tuple[float, float] | None:
        """Directions from start to end in which a third model is like the end: share, and newness times the share.

        Newness is positive where what they have is new as seen from the start. None if it was not looked at.
        """
        p = self.number(start, end)
        if p is None:
            return None
        far, sign = (1, 1) if start < end else (0, -1)
        share = self.beyond[far, p, third]
        return None if np.isnan(share) else (float(share), sign * float(self.beyond[2 + far, p, third]))


ARRAYS = ("energy", "entries", "equal", "rank", "full", "newness", "rounding")

ARRAYS += ("gap", "zeroed", "zeroed_back", "quantized", "quantized_back")


def _local_gram(
    weight: Float[Tensor, "rows columns"], near: Sequence[Float[Tensor, "rows columns"]]
) -> Float[np.ndarray, "k1 k1"]:
    """Inner products of W_neighbour - W for the neighbours of a model and, last, of W itself."""
    differ = [at for at, other in enumerate(near) if not torch.equal(other, weight)]  # frozen matrices add nothing
    flat, others = weight.flatten(), [near[at].flatten() for at in differ]
    gram = torch.zeros(len(differ) + 1, len(differ) + 1, dtype=torch.float64, device=weight.device)
    for start in range(0, len(flat), CACHED // 8):
        own = flat[start : start + CACHED // 8].double()
        rows = torch.stack([*(other[start : start + CACHED // 8] for other in others), torch.zeros_like(own)]).double()
        rows[:-1] -= own
        rows[-1] = own
        gram += rows @ rows.T
    result = np.zeros((len(near) + 1, len(near) + 1))
    result[np.ix_([*differ, -1], [*differ, -1])] = gram.cpu().numpy()
    return result


def take_second_pass(
    sketches: Sequence[Sketch],
    pairs: Sequence[tuple[int, int]],
    neighbours: Sequence[list[int]],
    grids: Sequence[Grid | None],
    bits: Sequence[int],
    device: torch.device,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
    snapshot: Snapshot | None = None,
) -> SecondPass:
    """Second pass: look at the differences of these pairs, and at each model among its neighbours.

    `pairs` and `neighbours` are places in `sketches`; `grids` and `bits` are the grid and the mantissa bits of each
    model. With a `snapshot` an interrupted pass goes on, and a finished one is read from it.
    """
    snapshot = snapshot or Snapshot(None, {})
    first, second = (np.array([pair[end] for pair in pairs], dtype=int) for end in (0, 1))
    found, done, n = groups(sketches) if pairs else [], 0, len(sketches)
    order = {layer: row for row, layer in enumerate(dict.fromkeys(layer for layer, _, _ in found))}
    arrays = {name: np.zeros((len(order), len(pairs))) for name in ARRAYS}
    sides, weight = np.zeros((4, len(pairs), n)), np.zeros((len(pairs), n))
    grams: list[list[np.ndarray]] = [[] for _ in sketches]
    if (saved := snapshot.load()) is not None:
        done, stored, _ = saved
        arrays = {name: stored[name] for name in ARRAYS}
        sides, weight = stored["sides"], stored["weight"]
        grams = [list(stored[f"gram_{place}"]) for place in range(n)]

    def so_far() -> tuple[dict[str, np.ndarray], None]:
        sizes = [len(near) + 1 for near in neighbours]
        local = {f"gram_{m}": np.array(some).reshape(-1, sizes[m], sizes[m]) for m, some in enumerate(grams)}
        return arrays | local | {"sides": sides, "weight": weight}, None

    left = sum(len(members) for _, _, members in found[done:])
    read = progress(left) if left else lambda: None
    for layer, members, scale, weights in stacks(sketches, read, done) if left else ():
        row, weights = order[layer], weights.to(device)
        place = {member: at for at, member in enumerate(members)}
        there = [p for p in range(len(pairs)) if first[p] in place and second[p] in place]

        small = max(1, CACHED // weights[0].numel())
        zeros = (weights == 0).flatten(1).any(dim=1)
        steps = {m: grid_step(weights[at], grids[m]) for m, at in place.items() if grids[m] is not None}

        def look(chosen: list[int]) -> None:
            equal = [p for p in chosen if torch.equal(weights[place[first[p]]], weights[place[second[p]]])]
            for name, value in (("entries", weights[0].numel()), ("equal", weights[0].numel()), ("gap", 1)):
                arrays[name][row, equal] = value
            chosen = sorted({*chosen} - {*equal})  # frozen matrices have nothing to decompose
            if not chosen:
                return
            triples = []
            for start in range(0, len(chosen), small):
                part = chosen[start : start + small]
                ends = torch.tensor([(place[first[p]], place[second[p]]) for p in part], device=device)
                i, j = weights[ends[:, 0]], weights[ends[:, 1]]
                on_grid = [[(grids[m], steps.get(m, 0.0)) for m in (first[p], second[p])] for p in part]
                stored = torch.tensor([(bits[first[p]], bits[second[p]]) for p in part], device=device)
                values, some = _compare_pairs(i, j, on_grid, stored, zeros[ends])
                values["energy"] = scale * values["energy"]
                triples.append(some)
                for name, value in values.items():
                    arrays[name][row, part] = value
            thirds = {p: [m for m in {*neighbours[first[p]], *neighbours[second[p]]} if m in place] for p in chosen}
            joined = tuple(torch.cat(parts) for parts in zip(*triples))
            _find_sides(weights, place, joined, chosen, thirds, sides, weight)

        _in_parts(look, there, max(1, LARGE // weights[0].numel()), device)
        ready = [m for m in members if len(neighbours[m]) > 1 and all(other in place for other in neighbours[m])]
        in_threads(
            lambda m: grams[m].append(
                scale * _local_gram(weights[place[m]], [weights[place[k]] for k in neighbours[m]])
            ),
            ready,
        )
        done += 1
        snapshot.save(done, so_far, now=done == len(found))
    with np.errstate(invalid="ignore"):
        beyond = sides / weight
    stacked = [np.array(some).reshape(-1, len(near) + 1, len(near) + 1) for some, near in zip(grams, neighbours)]
    return SecondPass(first, second, list(order), arrays, beyond, [list(near) for near in neighbours], stacked)


def _in_parts(look: Callable[[list[int]], None], pairs: list[int], largest: int, device: torch.device) -> None:
    """Look at pairs in parts of at most `largest`; on a CPU one thread each: LAPACK uses no more for one matrix."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    step = max(1, min(largest, -(-len(pairs) // threads)))
    parts = [pairs[start : start + step] for start in range(0, len(pairs), step)]
    if device.type == "cpu":
        in_threads(look, parts)
    else:
        for part in parts:
            look(part)


def _compare_pairs(
    i: Float[Tensor, "pairs rows columns"],
    j: Float[Tensor, "pairs rows columns"],
    grids: list[list[tuple[Grid | None, float]]],
    bits: Int[Tensor, "pairs two"],
    zeros: Bool[Tensor, "pairs two"],
) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """All numbers of one layer of some pairs; leading u, s, v of D above rounding noise, u' W_first v, what is new."""
    difference = (j - i).double()  # what rounds here is below the noise of the arithmetic that made the update
    energy = difference.square().sum(dim=(1, 2))
    values: dict[str, Any] = {"energy": energy.cpu().numpy(), "entries": i[0].numel()}
    same = i == j
    values["equal"] = same.sum(dim=(1, 2)).cpu().numpy()
    for key, child, end in (("zeroed", j, 1), ("zeroed_back", i, 0)):
        some = zeros[:, end].any()  # few models have zeros
        values[key] = ((child == 0) & ~same).sum(dim=(1, 2)).cpu().numpy() if some else 0
    precision = bits.amin(dim=1)
    whole = (bits == MANTISSA["float32"]).tolist()
    for key, parent, child, end in (("quantized", i, j, 1), ("quantized_back", j, i, 0)):
        # Without a grid only a half precision, which hides fine ones, can be quantized, and only from full precision.
        values[key] = [
            (grids[p][end][0] is not None or (whole[p][1 - end] and not whole[p][end]))
            and quantization_noise(parent[p], child[p], *grids[p][end])
            for p in range(len(i))
        ]
    # Between two types, parent and update may both have been rounded to the coarser.
    noise = rounding_noise(i, j, precision) * torch.where(bits[:, 0] == bits[:, 1], 1.0, 2**0.5)
    found = spectrum(difference, noise, DIRECTIONS)
    values |= {name: getattr(found, name).cpu().numpy() for name in ("rank", "full", "gap")}
    values["rounding"] = np.zeros(len(i))
    if len(found.low):
        parts = i[found.low], j[found.low], found.residual
        tested = rounding_test(*parts) + precision_test(*parts, bits[found.low])
        values["rounding"][found.low.cpu().numpy()] = tested.cpu().numpy()
    start = ((i @ found.v.float()) * found.u.float()).sum(dim=1)
    added = directions_added(start, found.s)
    values["newness"] = newness(added, found.s).cpu().numpy()
    return values, tuple(value.float() for value in (found.u, found.s, found.v, start, added))


def _find_sides(
    weights: Float[Tensor, "members rows columns"],
    place: dict[int, int],
    triples: tuple[Tensor, ...],
    chosen: list[int],
    thirds: dict[int, list[int]],
    sides: np.ndarray,
    weight: np.ndarray,
) -> None:
    """Add one layer to the shares of each pair's directions that third models kept, or never had (inheritance).

    beta = u' (W_third - W_first) v / s is 1 where the third kept what the second learned, 0 where it never had it.
    """
    u, s, v, start, added = triples
    share = s / s.sum(dim=1, keepdim=True).clamp(min=1e-30)
    u, v = (ends.permute(1, 0, 2).contiguous() for ends in (u, v))
    asking: dict[int, list[int]] = {}
    for at, some in enumerate(s.any(dim=1).tolist()):
        if some:
            for third in thirds[chosen[at]]:
                asking.setdefault(third, []).append(at)
    for third, rows in asking.items():
        # One product for all pairs that ask for this model.
        at = torch.tensor(rows, device=s.device)
        projected = weights[place[third]].T @ u.index_select(1, at).flatten(1)
        kept = (projected * v.index_select(1, at).flatten(1)).sum(dim=0).unflatten(0, (len(rows), -1))
        kept = (kept - start[at]) / s[at].clamp(min=1e-30)
        like = torch.stack([kept.abs() < NEAR, (kept - 1).abs() < NEAR]) * share[at]
        found = torch.cat([like.sum(dim=2), (like * added[at]).sum(dim=2)]).cpu().numpy()
        pairs = [chosen[at] for at in rows]
        sides[:, pairs, third] += found
        weight[pairs, third] += 1

"""Measure a collection for the probabilistic method: every model once, then near pairs in depth.

The first pass reads every tensor once, layer by layer, and keeps what can be said of single models (precision, zeros,
grids, digests) and of all pairs (squared distance, relatedness). The second reads the matrices again for
pairs that may be edges, and looks at the singular directions of their differences.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mother.checkpoints import Checkpoint
from mother.clusters import layer_cosine
from mother.direction import directions_added, newness, precision_test, rounding_test
from mother.errors import CheckpointError
from mother.floats import MANTISSA, cast
from mother.headers import DTYPES
from mother.layers import Layer, canonical_name, sort_key
from mother.measurements import is_backbone, lacks
from mother.relations import Grid, find_grid, grid_step, quantization_noise
from mother.snapshots import Snapshot
from mother.spectra import rounding_noise, spectrum
from mother.streaming import read_ahead, read_each

CHUNK = 1 << 22  # entries of a Gram product, or of a stack of differences, at a time
CACHED = 1 << 19  # entries of the differences that are worked on together: they stay in the processor's cache
DIRECTIONS = 8  # singular directions that newness and inheritance look at
HALVES = ("bfloat16", "float16")
GRIDS = 8  # matrices of each model that are searched for a grid
SAMPLE_BITS = (10, 5)  # of a table at most so many rows and columns, as powers of two, are kept
NEAR = 0.25  # how near to 0 or 1 the part of a direction that a third model kept must be


@dataclass
class Facts:
    """What is known of one model by itself."""

    digests: dict[str, str] = field(default_factory=dict)  # of the values of each tensor
    cast_digests: dict[str, dict[str, str]] = field(default_factory=lambda: {name: {} for name in HALVES})
    fits: set[str] = field(default_factory=lambda: set(HALVES))  # half precisions that hold all matrices exactly
    grids: list[Grid | None] = field(default_factory=list)  # of the first matrices inside the blocks
    tables: dict[tuple, Tensor] = field(default_factory=dict)  # samples of embeddings and other tables
    zeros: int = 0
    entries: int = 0

    def to_json(self) -> dict[str, Any]:
        """All but the tables as JSON values."""
        content = asdict(replace(self, tables={}))
        return content | {"fits": sorted(self.fits), "tables": [list(key) for key in self.tables]}

    @classmethod
    def from_json(cls, content: dict[str, Any], tables: list[np.ndarray]) -> "Facts":
        """What `to_json` gave, with the tables in its order."""
        keys = [(name, tuple(steps), columns) for name, steps, columns in content["tables"]]
        grids = [grid and Grid(**grid) for grid in content["grids"]]
        found = {key: torch.from_numpy(table) for key, table in zip(keys, tables)}
        return cls(**content | {"fits": set(content["fits"]), "grids": grids, "tables": found})


@dataclass
class Survey:
    """First pass. Matrices are [i, j]; models of other shapes, or unrelated by name, share nothing."""

    models: list[str]
    layers: list[Layer]
    facts: list[Facts]
    square: Float[np.ndarray, "models models"]  # sum of (W_i - W_j)^2 over shared matrices; inf without any
    shared: Float[np.ndarray, "models models"]  # entries compared, as share of those of the larger model
    size: Float[np.ndarray, "models"]  # sum of W^2
    relatedness: Float[np.ndarray, "models models"]  # z of the cosine under independent initialisation
    left_out: dict[str, str] = field(default_factory=dict)
    transient: bool = False  # whether a model is left out for a reason that may pass


def matrices(checkpoint: Checkpoint) -> dict[Layer, tuple[int, int]]:
    """Backbone weights as matrices: (rows, everything else) of each weight with two or more dimensions."""
    found = {}
    for layer in checkpoint.layers:
        shape = checkpoint.shape(layer)
        if len(shape) >= 2 and is_backbone(layer):
            rows, columns = shape[0], int(np.prod(shape[1:]))
            if min(rows, columns) >= 2:
                found[layer] = (rows, columns)
    return found


def _outside(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors that are no backbone matrices, of the types that are read."""
    inside = {checkpoint.layers[layer] for layer in matrices(checkpoint)}
    return [name for name, (_, info) in checkpoint.tensors.items() if name not in inside and info.dtype in DTYPES]


def _groups(checkpoints: Sequence[Checkpoint]) -> list[tuple[Layer, tuple[int, int], list[int]]]:
    """Each layer in each of its shapes, with the places of the models that have it so."""
    places: dict[Layer, dict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, checkpoint in enumerate(checkpoints):
        for layer, shape in matrices(checkpoint).items():
            places[layer][shape].append(place)
    return [
        (layer, shape, members)
        for layer in sorted(places, key=sort_key)
        for shape, members in sorted(places[layer].items())
    ]


def _stacks(
    checkpoints: Sequence[Checkpoint],
    failed: dict[str, CheckpointError],
    read: Callable[[], object],
    start: int = 0,
) -> Iterator[tuple[Layer, list[int], Float[Tensor, "members rows columns"]]]:
    """The weights of each group from `start` on as matrices, and of which places; models that fail go into `failed`."""
    groups = _groups(checkpoints)[start:]
    requests = [(layer, members) for layer, _, members in groups]
    for (layer, shape, _), (there, weights) in zip(groups, read_ahead(checkpoints, requests, failed, read)):
        stack = torch.zeros(len(there), *shape)
        for row in reversed(range(len(there))):
            stack[row] = weights.pop().reshape(shape)
        yield layer, there, stack


def _square_distances(weights: Float[Tensor, "members rows columns"]) -> Float[np.ndarray, "members members"]:
    """Squared distances of all pairs by one Gram matrix, centred on the mean model (else float64 cancels)."""
    flat = weights.flatten(1)
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    for part in flat.split(max(1, CHUNK // len(flat)), dim=1):
        centred = part.double()
        centred -= centred.mean(dim=0)
        gram += centred @ centred.T
    norms = gram.diagonal()
    return (norms[:, None] + norms[None] - 2 * gram).clamp(min=0).fill_diagonal_(0).cpu().numpy()


def _local_gram(
    weight: Float[Tensor, "rows columns"], near: Sequence[Float[Tensor, "rows columns"]]
) -> Float[np.ndarray, "k1 k1"]:
    """Inner products of W_neighbour - W for the neighbours of a model and, last, of W itself."""
    flat, others = weight.flatten(), [other.flatten() for other in near]
    gram = torch.zeros(len(near) + 1, len(near) + 1, dtype=torch.float64, device=weight.device)
    for start in range(0, len(flat), CACHED // 8):
        own = flat[start : start + CACHED // 8].double()
        rows = torch.stack([*(other[start : start + CACHED // 8] for other in others), torch.zeros_like(own)]).double()
        rows[:-1] -= own
        rows[-1] = own
        gram += rows @ rows.T
    return gram.cpu().numpy()


def _digest(values: Tensor) -> str:
    """Digest of a tensor's float32 values: equal for equal values, whatever type they are stored in."""
    return hashlib.blake2b((values + 0.0).contiguous().numpy().data, digest_size=8).hexdigest()


def survey(
    checkpoints: Sequence[Checkpoint],
    device: torch.device,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
    snapshot: Snapshot | None = None,
) -> Survey:
    """First pass over a collection. Models without any matrix, or broken ones, are left out with the reason.

    With a `snapshot` an interrupted pass goes on, and a finished one is read from it.
    """
    snapshot = snapshot or Snapshot(None, {})
    left_out: dict[str, str] = {}
    usable = []
    for checkpoint in checkpoints:
        if matrices(checkpoint):
            usable.append(checkpoint)
        else:
            left_out[checkpoint.model] = str(lacks(checkpoint, "weight matrix outside embeddings and heads"))
    checkpoints = usable
    n, failed = len(checkpoints), {}
    facts = [Facts() for _ in checkpoints]
    sums = {name: np.zeros((n, n)) for name in ("square", "cosine", "compared", "tested")} | {"size": np.zeros(n)}
    outside = [_outside(checkpoint) for checkpoint in checkpoints]
    groups = len(_groups(checkpoints))
    done = 0
    if (saved := snapshot.load()) is not None:
        done, sums, content = saved
        failed = {model: CheckpointError(model, *words) for model, words in content["failed"].items()}
        tables = {
            place: [sums.pop(f"table_{place}_{k}") for k in range(len(one["tables"]))]
            for place, one in enumerate(content["facts"])
        }
        facts = [Facts.from_json(one, tables[place]) for place, one in enumerate(content["facts"])]

    def so_far() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        words = {model: [error.file, error.reason, error.remedy] for model, error in failed.items()}
        tables = {
            f"table_{place}_{k}": table.numpy()
            for place, fact in enumerate(facts)
            for k, table in enumerate(fact.tables.values())
        }
        return sums | tables, {"failed": words, "facts": [fact.to_json() for fact in facts]}

    def keep(now: bool = False) -> None:
        if not any(error.transient for error in failed.values()):
            snapshot.save(done, so_far, now)

    left = [sum(len(members) for _, _, members in _groups(checkpoints)[done:])] + [len(some) for some in outside]
    read = progress(sum(left)) if done < groups + n else lambda: None
    for layer, members, weights in _stacks(checkpoints, failed, read, min(done, groups)):
        done += 1
        if not members:
            continue
        in_threads(lambda at: _note_facts(facts[members[at]], layer, weights[at]), range(len(members)))
        sums["size"][members] += weights.square().sum(dim=(1, 2), dtype=torch.float64).numpy()
        weights = weights.to(device)
        chosen = np.ix_(members, members)
        sums["square"][chosen] += _square_distances(weights)
        sums["compared"][chosen] += weights[0].numel()
        z, valid = layer_cosine(weights)
        sums["cosine"][chosen] += z.cpu().numpy()
        sums["tested"][chosen] += valid.cpu().numpy()
        keep()
    if done < groups + n:
        for place, tensors in read_each(checkpoints, outside, failed, done - groups):
            for name, values in tensors.items():
                _note_digests(facts[place], canonical_name(name), values)
                _keep_sample(facts[place], canonical_name(name), values)
                read()
            done = groups + place + 1
            keep()
        done = groups + n
        keep(now=True)
    square, cosine, compared, tested, size = (sums[name] for name in ("square", "cosine", "compared", "tested", "size"))
    layers = dict.fromkeys(layer for layer, _, _ in _groups(checkpoints))
    left_out |= {model: str(error) for model, error in failed.items()}
    kept = [place for place, checkpoint in enumerate(checkpoints) if checkpoint.model not in failed]
    largest = np.maximum.outer(np.diagonal(compared), np.diagonal(compared)).clip(min=1)
    with np.errstate(invalid="ignore"):
        relatedness = np.where(tested > 0, cosine / np.sqrt(tested.clip(min=1)), 0)
    square = np.where(compared > 0, square, np.inf)
    chosen = np.ix_(kept, kept)
    return Survey(
        [checkpoints[place].model for place in kept],
        list(layers),
        [facts[place] for place in kept],
        square[chosen],
        (compared / largest)[chosen],
        size[kept],
        relatedness[chosen],
        left_out,
        any(error.transient for error in failed.values()),
    )


def _keep_sample(fact: Facts, name: str, values: Tensor) -> None:
    """Keep rows and columns of a table at equal steps: the same ones of a resized table, unless its steps differ."""
    if values.ndim == 2:
        steps = tuple(1 << max(0, (size - 1).bit_length() - bits) for size, bits in zip(values.shape, SAMPLE_BITS))
        fact.tables[name, steps, values.shape[1]] = values[:: steps[0], :: steps[1]].clone()


def _note_digests(fact: Facts, name: str, values: Tensor) -> None:
    """Digest of a tensor as it is and as it would be after a cast: equal digests are an exact relation."""
    fact.digests[name] = _digest(values)
    for half in HALVES:
        fact.cast_digests[half][name] = _digest(cast(values, half))


def _note_facts(fact: Facts, layer: Layer, weight: Float[Tensor, "rows columns"]) -> None:
    """Add one matrix to what is known of its model."""
    _note_digests(fact, str(layer), weight)
    fact.fits = {name for name in fact.fits if fact.cast_digests[name][str(layer)] == fact.digests[str(layer)]}
    fact.zeros += int((weight == 0).sum())
    fact.entries += weight.numel()
    if layer.block and len(fact.grids) < GRIDS and fact.grids.count(None) <= GRIDS // 2:  # else most have none
        fact.grids.append(find_grid(weight))


@dataclass
class Pairs:
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


def compare(
    checkpoints: Sequence[Checkpoint],
    pairs: Sequence[tuple[int, int]],
    neighbours: Sequence[list[int]],
    grids: Sequence[Grid | None],
    bits: Sequence[int],
    device: torch.device,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
    snapshot: Snapshot | None = None,
) -> Pairs:
    """Second pass: look at the differences of these pairs, and at each model among its neighbours.

    `pairs` and `neighbours` are places in `checkpoints`; `grids` and `bits` are the grid and the mantissa bits of each
    model. With a `snapshot` an interrupted pass goes on, and a finished one is read from it. Raises CheckpointError for
    a model that has changed since the first pass.
    """
    snapshot = snapshot or Snapshot(None, {})
    first, second = (np.array([pair[end] for pair in pairs], dtype=int) for end in (0, 1))
    layers: dict[Layer, int] = {}
    for checkpoint in checkpoints:
        for layer in matrices(checkpoint):
            layers.setdefault(layer, 0)
    order = {layer: row for row, layer in enumerate(sorted(layers, key=sort_key))}
    arrays = {name: np.zeros((len(order), len(pairs))) for name in ARRAYS}
    n = len(checkpoints)
    sides, weight = np.zeros((4, len(pairs), n)), np.zeros((len(pairs), n))
    grams: list[list[np.ndarray]] = [[] for _ in checkpoints]
    failed: dict[str, CheckpointError] = {}
    groups, done = _groups(checkpoints), 0
    if (saved := snapshot.load()) is not None:
        done, stored, _ = saved
        arrays = {name: stored[name] for name in ARRAYS}
        sides, weight = stored["sides"], stored["weight"]
        grams = [list(stored[f"gram_{place}"]) for place in range(n)]

    def so_far() -> tuple[dict[str, np.ndarray], None]:
        sizes = [len(near) + 1 for near in neighbours]
        local = {f"gram_{m}": np.array(found).reshape(-1, sizes[m], sizes[m]) for m, found in enumerate(grams)}
        return arrays | local | {"sides": sides, "weight": weight}, None

    left = sum(len(members) for _, _, members in groups[done:])
    read = progress(left) if left else lambda: None
    for layer, members, weights in _stacks(checkpoints, failed, read, done):
        if failed:
            raise next(iter(failed.values()))
        row, weights = order[layer], weights.to(device)
        place = {member: at for at, member in enumerate(members)}
        there = [p for p in range(len(pairs)) if first[p] in place and second[p] in place]

        small = max(1, CACHED // weights[0].numel())
        steps = {m: grid_step(weights[at], grids[m]) for m, at in place.items() if grids[m] is not None}

        def look(chosen: list[int]) -> None:
            triples = []
            for start in range(0, len(chosen), small):
                part = chosen[start : start + small]
                i = weights[[place[first[p]] for p in part]]
                j = weights[[place[second[p]] for p in part]]
                on_grid = [[(grids[m], steps.get(m, 0.0)) for m in (first[p], second[p])] for p in part]
                stored = torch.tensor([(bits[first[p]], bits[second[p]]) for p in part], device=device)
                values, found = _compare_pairs(i, j, on_grid, stored)
                triples.append(found)
                for name, value in values.items():
                    arrays[name][row, part] = value
            thirds = {p: [m for m in {*neighbours[first[p]], *neighbours[second[p]]} if m in place] for p in chosen}
            joined = tuple(torch.cat(parts) for parts in zip(*triples))
            _find_sides(weights, place, joined, chosen, thirds, sides, weight)

        _in_parts(look, there, max(1, 16 * CHUNK // weights[0].numel()), device)
        ready = [m for m in members if len(neighbours[m]) > 1 and all(other in place for other in neighbours[m])]
        in_threads(
            lambda m: grams[m].append(_local_gram(weights[place[m]], [weights[place[k]] for k in neighbours[m]])), ready
        )
        done += 1
        snapshot.save(done, so_far, now=done == len(groups))
    with np.errstate(invalid="ignore"):
        beyond = sides / weight
    stacked = [np.array(found).reshape(-1, len(near) + 1, len(near) + 1) for found, near in zip(grams, neighbours)]
    return Pairs(first, second, list(order), arrays, beyond, [list(near) for near in neighbours], stacked)


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


def in_threads(work: Callable[[Any], object], items: Sequence[Any]) -> None:
    """Do the work for each item, each by one of as many threads as torch would use for one."""
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        for item in items:
            work(item)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)


def _compare_pairs(
    i: Float[Tensor, "pairs rows columns"],
    j: Float[Tensor, "pairs rows columns"],
    grids: list[list[tuple[Grid | None, float]]],
    bits: Int[Tensor, "pairs two"],
) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """All numbers of one layer of some pairs; leading u, s, v of D above rounding noise, u' W_first v, what is new."""
    difference = (j - i).double()  # what rounds here is below the noise of the arithmetic that made the update
    energy = difference.square().sum(dim=(1, 2))
    values: dict[str, Any] = {"energy": energy.cpu().numpy(), "entries": i[0].numel()}
    same = i == j
    values["equal"] = same.sum(dim=(1, 2)).cpu().numpy()
    for key, child in (("zeroed", j), ("zeroed_back", i)):
        some = not child.all()  # few models have zeros
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

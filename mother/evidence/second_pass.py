"""Second pass of method "map": look at the differences of near models, and at each model among its neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mother.evidence.candidates import third_models
from mother.evidence.differences import TRIPLE, add_kept, compare_pairs, find_sides
from mother.evidence.direction import CAST_BINS
from mother.evidence.facts import HALVES
from mother.evidence.first_pass import Distances, groups, stacks
from mother.evidence.grids import Grid, OnGrid, on_grid
from mother.evidence.merges import local_gram
from mother.evidence.sketch import Sketch
from mother.io.layers import Layer
from mother.io.snapshots import Snapshot
from mother.numeric.floats import MANTISSA
from mother.numeric.threads import in_parts, in_threads

STACK_ENTRIES = 1 << 26  # budget: entries of a stack of differences, at most
CHUNK_ENTRIES = 1 << 19  # budget: entries of differences that are worked on together, in the processor's cache


class Alike(NamedTuple):
    """What one model shares with the end of a pair, against its start."""

    share: float  # of the directions between the two
    newness: float  # times the share; positive where these directions are new as seen from the start


@dataclass
class SecondPass:
    """Second pass: pair p is (first[p], second[p]), D = W_second - W_first; arrays[name] is [layer, pair].

    energy     sum of D^2
    entries, equal   entries, and how many of them are equal
    equal_bfloat16, equal_float16   how many are equal once both are cast; where no model is stored so, those equal
    zeroed, zeroed_back   entries in which the two differ and second is zero (back: first is zero)
    quantized, quantized_back   whether D looks like what quantizing first to second (back: reversed) leaves
    kurtosis   excess kurtosis of D with rows and columns scaled
    flatness, side   of D, see `spectra.flatness`, and the largest rank that it can have, see `changed_sides`
    rank, full   rank of D above rounding noise, and whether it is as large as can be told
    gap   smallest singular value above the noise over the next
    newness   what D adds is new in second (+1) or was there in first (-1)
    leads   whether the first direction of D stands above those of noise: else newness says nothing
    rounding   log likelihood ratio of "second was rounded last" to "first was", for low ranks
    scattered   share of entries that changed as no rounding of what is of low rank does, see `_scattered`

    beyond[0, p, m] is the share of D's directions in which model m is like the first of the pair, beyond[1, p, m]
    like the second (nan: not looked at). beyond[2] and beyond[3] are the newness of these directions, times the share.

    Of pairs without a model of the core, where there is one, nobody asks which model is the newer: beyond is nan, and
    newness, leads, rounding and cast are 0.
    """

    first: np.ndarray
    second: np.ndarray
    layers: list[Layer]
    arrays: dict[str, np.ndarray]
    beyond: Float[np.ndarray, "four pairs models"]
    neighbours: list[list[int]]
    grams: list[Float[np.ndarray, "_ _ _"]]  # of each model, see `local_gram`; layers that all of them have
    triple: dict[str, Float[np.ndarray, "pairs models"]] = field(default_factory=dict)
    cast: Float[np.ndarray, "pairs bins1"] = field(default_factory=lambda: np.zeros((0, CAST_BINS + 1)))
    low: dict[int, bool] = field(default_factory=dict)  # by pair what `is_lora` has found

    @cached_property
    def index(self) -> dict[tuple[int, int], int]:
        """Number of each pair by its two models, the smaller place first."""
        return {(int(i), int(j)): p for p, (i, j) in enumerate(zip(self.first, self.second))}

    def number(self, one: int, other: int) -> int | None:
        """Number of the pair of two models in either order; None if it was not looked at."""
        return self.index.get((min(one, other), max(one, other)))

    def alike(self, start: int, end: int, third: int) -> "Alike | None":
        """Directions from start to end in which a third model is like the end; None if it was not looked at."""
        p = self.number(start, end)
        if p is None:
            return None
        far, sign = (1, 1) if start < end else (0, -1)
        share = self.beyond[far, p, third]
        return None if np.isnan(share) else Alike(float(share), sign * float(self.beyond[2 + far, p, third]))


ARRAYS = ("energy", "entries", "equal", "rank", "full", "newness", "rounding", "scattered", "kurtosis", "flatness")
ARRAYS += ("side", "equal_bfloat16", "equal_float16", "gap", "zeroed", "zeroed_back", "quantized", "quantized_back")
ARRAYS += ("leads",)
EQUAL = ("equal", *(f"equal_{name}" for name in HALVES))


class _Stack(NamedTuple):
    """One layer of all models that have it, and what all its pairs need.

    Which row of the results it is, the place of each model in it (-1: none), those of both models of each pair, entries
    of the whole over those of a part, the weights and the same in half precisions, squared distances and lengths, which
    have zeros, and which are on a grid.
    """

    row: int
    place: Int[np.ndarray, "models"]
    ends: Int[np.ndarray, "pairs two"]
    scale: float
    weights: Float[Tensor, "members rows columns"]
    coarse: dict[str, Tensor]
    square: Float[np.ndarray, "members members"]
    length: Float[np.ndarray, "members"]
    zeros: Bool[Tensor, "members"]
    on: dict[int, OnGrid]


class _Layers:
    """What the second pass has found so far, added to layer by layer."""

    def __init__(
        self,
        count: int,
        pairs: Sequence[tuple[int, int]],
        neighbours: Sequence[list[int]],
        grids: Sequence[Grid | None],
        bits: Sequence[int],
        layers: Sequence[Layer],
        core: set[int] | None = None,
    ):
        self.first, self.second = (np.array([pair[end] for pair in pairs], dtype=int) for end in (0, 1))
        self.neighbours, self.grids, self.bits, self.core = neighbours, grids, bits, core
        self.stored = np.array(bits, dtype=np.int64)
        self.order = {layer: row for row, layer in enumerate(dict.fromkeys(layers))}
        self.arrays = {name: np.zeros((len(self.order), len(pairs))) for name in ARRAYS}
        # Of pairs outside of a core only what third models of the core are told by, see `SecondPass`.
        self.inside = np.array([core is None or not core.isdisjoint(pair) for pair in pairs], dtype=bool)
        self.sides = np.zeros((4, len(pairs), count))
        self.triple = {name: np.zeros((len(pairs), count)) for name in ("looked", *TRIPLE)}
        self.cast = np.zeros((len(pairs), CAST_BINS + 1))
        self.grams: list[list[np.ndarray]] = [[] for _ in range(count)]

    def restore(self, stored: dict[str, np.ndarray]) -> None:
        """Go on from what `content` gave."""
        self.arrays = {name: stored[name] for name in ARRAYS}
        self.sides, self.cast = stored["sides"], stored["cast"]
        self.triple = {name: stored[f"triple_{name}"] for name in self.triple}
        self.grams = [list(stored[f"gram_{place}"]) for place in range(len(self.grams))]

    def _stacked(self) -> list[np.ndarray]:
        sizes = [len(near) + 1 for near in self.neighbours]
        return [np.array(some).reshape(-1, size, size) for some, size in zip(self.grams, sizes)]

    def content(self) -> tuple[dict[str, np.ndarray], None]:
        """Everything, for a snapshot."""
        local = {f"gram_{place}": gram for place, gram in enumerate(self._stacked())}
        triple = {f"triple_{name}": values for name, values in self.triple.items()}
        return self.arrays | local | triple | {"sides": self.sides, "cast": self.cast}, None

    def result(self) -> SecondPass:
        """Everything, as evidence is gathered from it."""
        beyond = self.sides  # in place: of a large block it is most of what is kept
        with np.errstate(invalid="ignore"):
            beyond /= self.triple["looked"]
        beyond[:, ~self.inside] = np.nan
        near, order = [list(some) for some in self.neighbours], list(self.order)
        measured = self.arrays, beyond, near, self._stacked(), self.triple, self.cast
        return SecondPass(self.first, self.second, order, *measured)

    def add(
        self,
        layer: Layer,
        members: list[int],
        scale: float,
        weights: Float[Tensor, "members rows columns"],
        square: Float[np.ndarray, "members members"],
    ) -> None:
        """Look at all pairs that have this layer, of these distances, and at each model among its neighbours."""
        place = {member: at for at, member in enumerate(members)}
        at = np.full(len(self.neighbours), -1)
        at[members] = np.arange(len(members))
        ends = np.stack([at[self.first], at[self.second]], axis=1)
        there = np.flatnonzero((ends >= 0).all(axis=1)).tolist()
        zeros = (weights == 0).flatten(1).any(dim=1)
        on = {m: on_grid(weights[row], grid) for m, row in place.items() if (grid := self.grids[m]) is not None}
        stored = {self.bits[m] for m in members}
        coarse = {name: weights.to(getattr(torch, name)) for name in HALVES if MANTISSA[name] in stored}
        length = torch.linalg.vector_norm(weights, dim=(1, 2), dtype=torch.float64).square().cpu().numpy()
        stack = _Stack(self.order[layer], at, ends, scale, weights, coarse, square, length, zeros, on)
        in_parts(lambda some: self._look(stack, some), there, STACK_ENTRIES // weights[0].numel(), weights.device)
        near = self.neighbours
        asked = members if self.core is None else [m for m in members if m in self.core]
        ready = [m for m in asked if len(near[m]) > 1 and all(other in place for other in near[m])]
        in_threads(
            lambda m: self.grams[m].append(scale * local_gram(weights[place[m]], [weights[place[k]] for k in near[m]])),
            ready,
        )

    def _look(self, stack: "_Stack", chosen: list[int]) -> None:
        """Compare some pairs in one layer; another thread may look at others."""
        row, place, weights, entries = stack.row, stack.place, stack.weights, stack.weights[0].numel()
        equal = _equal(weights, chosen, stack.ends[chosen])
        for name, value in (("entries", entries), *((kind, entries) for kind in EQUAL), ("gap", 1)):
            self.arrays[name][row, equal] = value
        chosen = sorted({*chosen} - {*equal})  # frozen matrices have nothing to decompose
        small = max(1, CHUNK_ENTRIES // entries)
        for whole in (True, False):
            some = [p for p in chosen if self.inside[p] == whole]
            parts = [some[start : start + small] for start in range(0, len(some), small)]
            triples = [self._compare(stack, part, whole) for part in parts]
            if whole and triples:
                joined = tuple(torch.cat(parts) for parts in zip(*triples))
                find_sides(weights, place, joined, some, self._asked(some, place), self.sides)
        risen = np.array(chosen, dtype=int)[self.arrays["rank"][row, chosen] > 0]
        add_kept(stack.square, stack.length, place, risen, stack.ends[risen], self._asked(risen, place), self.triple)

    def _compare(self, stack: "_Stack", part: list[int], whole: bool) -> tuple[Tensor, ...]:
        """The numbers of a few pairs in one layer; their leading directions if they are asked for as a `whole`."""
        weights, row = stack.weights, stack.row
        models = np.stack([self.first[part], self.second[part]], axis=1)
        ends = torch.from_numpy(stack.ends[part]).to(weights.device)
        grids = [[stack.on.get(i), stack.on.get(j)] for i, j in models.tolist()]
        stored = torch.from_numpy(self.stored[models]).to(weights.device)
        values, triples = compare_pairs(
            weights[ends[:, 0]], weights[ends[:, 1]], grids, stored, stack.zeros[ends], directions=whole
        )
        values["energy"] = stack.scale * values["energy"]
        self.cast[part] += values.pop("cast", 0)
        for name in HALVES:
            both = stack.coarse.get(name)
            same = None if both is None else (both[ends[:, 0]] == both[ends[:, 1]]).flatten(1).sum(dim=1)
            values[f"equal_{name}"] = values["equal"] if same is None else same.cpu().numpy()
        for name, value in values.items():
            self.arrays[name][row, part] = value
        return triples

    def _asked(
        self, chosen: Sequence[int] | np.ndarray, place: Int[np.ndarray, "models"]
    ) -> tuple[Int[np.ndarray, "asked"], Int[np.ndarray, "asked"]]:
        """Third models that have a layer, ascending, and which of the chosen pairs asks for each, by its place."""
        thirds, pairs = self.asked
        at = np.full(len(self.first), -1)
        at[chosen] = np.arange(len(chosen))
        some = (place[thirds] >= 0) & (at[pairs] >= 0)
        return thirds[some], at[pairs[some]]

    @cached_property
    def asked(self) -> tuple[Int[np.ndarray, "asked"], Int[np.ndarray, "asked"]]:
        """Third models, ascending, and the pair that asks for each, see `third_models`."""
        return third_models(self.first, self.second, self.neighbours, self.core)


def take_second_pass(
    sketches: Sequence[Sketch],
    pairs: Sequence[tuple[int, int]],
    neighbours: Sequence[list[int]],
    grids: Sequence[Grid | None],
    bits: Sequence[int],
    device: torch.device,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
    snapshot: Snapshot | None = None,
    core: set[int] | None = None,
    distances: Distances | None = None,
) -> SecondPass:
    """Second pass: look at the differences of these pairs, and at each model (of the `core`) among its neighbours.

    `pairs` and `neighbours` are places in `sketches`; `grids` and `bits` are the grid and the mantissa bits of each
    model, `distances` what the first pass kept. With a `snapshot` an interrupted pass goes on.
    """
    snapshot, distances = snapshot or Snapshot(None, {}), distances or Distances()
    everything, done = groups(sketches) if pairs else [], 0
    layers = _Layers(len(sketches), pairs, neighbours, grids, bits, [layer for layer, _, _ in everything], core)
    if (saved := snapshot.load()) is not None:
        done, stored, _ = saved
        layers.restore(stored)
    left = sum(len(members) for _, _, members in everything[done:])
    read = progress(left) if left else lambda: None
    for layer, members, scale, weights in stacks(sketches, read, done) if left else ():
        weights = weights.to(device)
        layers.add(layer, members, scale, weights, distances.take(done, weights))
        done += 1
        snapshot.save(done, layers.content, now=done == len(everything))
    return layers.result()


def _equal(
    weights: Float[Tensor, "members rows columns"], chosen: list[int], ends: Int[np.ndarray, "chosen two"]
) -> list[int]:
    """Which of the chosen pairs have the same matrix: most differ in their first rows."""
    one, other = (weights[:, 0].index_select(0, torch.from_numpy(end).to(weights.device)) for end in ends.T)
    alike = (one == other).all(dim=1).nonzero()[:, 0].tolist()
    return [chosen[at] for at in alike if torch.equal(*weights[ends[at]])]

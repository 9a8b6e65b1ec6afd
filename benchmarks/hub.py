"""A simulated hub: models whose heritage is known, as signatures, and the evidence that their sketches would give.

Families have sizes that fall as a power of their rank. Of a family seven in ten models are made from its base, the
others from one of those that are there. Kinds are those of the Hub's declared links: 45 % adapters, 36 % fine-tunes,
19 % quantizations. A fine-tune or an adapter moves by as much as an edge of the grown splits does, drawn from these; a
quantization by the error of 8, 5 or 4 bits.

A signature is its parent's plus independent noise of that size: what an update, of low rank or not, is at a few
thousand places.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mother.evidence.triples import HEAVY, LEAST
from mother.index.signature import group_of, places_in, shuffled
from mother.io.layers import Layer, place_of

KINDS = {"adapter": 0.45, "fine-tune": 0.36, "quantization": 0.19}
BITS = (0.004, 0.03, 0.08)  # error of 8, 5 and 4 bits, over the weights'
FROM_BASE = 0.7
SKETCHED = 442_368  # entries of a sketch of the grown splits
SIDE = 64  # rows and columns of the one matrix of a model
GROUPS = 40  # architectures that the families share
SPREAD = 1.05  # exponent of the sizes of families


@dataclass(frozen=True)
class Family:
    """One family: `parent[j]` is the place of the parent of model j (-1: the base), `move[j]` how far it went."""

    group: int
    parent: np.ndarray
    move: np.ndarray
    kind: np.ndarray
    seed: int

    @property
    def quantized(self) -> np.ndarray:
        """Whether no training made it; nothing is made from such."""
        return self.kind == "quantization"

    def signatures(self, samples: int) -> np.ndarray:
        """In float16; the scale of a base's weights is 1."""
        draw = np.random.default_rng(self.seed)
        values = np.empty((len(self.parent), samples), np.float16)
        values[0] = draw.standard_t(8, size=samples)
        size = float(np.linalg.norm(values[0].astype(float))) / samples**0.5
        for child in range(1, len(values)):
            step = draw.standard_normal(samples, dtype=np.float32)
            values[child] = values[self.parent[child]] + size * self.move[child] * step
        return values


def family_sizes(models: int, families: int) -> np.ndarray:
    """How many models each family has, largest first."""
    share = 1 / np.arange(1, families + 1) ** SPREAD
    return np.maximum(1, np.round(models * share / share.sum())).astype(int)


def simulate(models: int, families: int, moves: np.ndarray, seed: int = 0) -> Iterator[Family]:
    """Families of so many models in all, largest first. `moves` are those of grown edges."""
    draw = np.random.default_rng(seed)
    for rank, size in enumerate(family_sizes(models, families).tolist()):
        kind = draw.choice(list(KINDS), size, p=list(KINDS.values()))
        kind[0] = "base"
        trained = np.flatnonzero(kind != "quantization")
        before = np.searchsorted(trained, np.arange(size))  # how many there are to be made from
        parent = trained[(draw.random(size) * before).astype(int)]
        parent[draw.random(size) < FROM_BASE] = 0
        parent[0] = -1
        move = np.where(kind == "quantization", draw.choice(BITS, size), draw.choice(moves, size))
        move[0] = 0
        yield Family(rank % GROUPS, parent, move, kind, seed + 1000 + rank)


def sides(parent: np.ndarray, move: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared moves from both models of pairs up to where their ways meet; parents come before children."""
    one, other, up, down = one.copy(), other.copy(), np.zeros(len(one)), np.zeros(len(one))
    while (apart := one != other).any():
        later = apart & (one > other)  # the later one cannot be above the other
        up[later] += move[one[later]] ** 2
        one[later] = parent[one[later]]
        later = apart & ~later
        down[later] += move[other[later]] ** 2
        other[later] = parent[other[later]]
    return up, down


def kept_ratio(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """The feature `share` of a model in the middle, `near` and `far` squared from the two: as triples.py computes it.

    What is kept of a difference among SKETCHED entries is told with an error that grows with the distance of the other.
    """
    found = []
    for step, rest in ((near, far), (far, near)):
        error = LEAST**2 + rest / step.clip(1e-12) / SKETCHED
        found.append((HEAVY + 1) / 2 * np.log1p(1 / error / HEAVY))
    return np.minimum(*found)


def hub_shapes(group: int) -> dict[Layer, tuple[int, int]]:
    """Names and shapes of the models of a group: one matrix."""
    return {place_of(f"layers.{group}.mixer.weight"): (SIDE, SIDE)}


def write_model(folder: Path, signature: np.ndarray, group: int) -> None:
    """Write a model of a group that has about this signature of SIDE x SIDE values, of which the mean is near 0."""
    shapes, count = hub_shapes(group), SIDE * SIDE
    (layer,) = shapes
    weights = np.empty(count, np.float32)
    order = places_in(str(layer), SIDE, SIDE, count, count)[shuffled(group_of(shapes), count)]
    weights[order] = signature / SIDE**0.5  # see signature_of
    folder.mkdir(parents=True)
    named = {f"layers.{group}.mixer.weight": torch.from_numpy(weights.reshape(SIDE, SIDE))}
    save_file(named, folder / "model.safetensors")

"""What an index keeps of a model at least: its weights at some thousand places, the same ones in all of its shapes.

The places follow from the shapes and the names alone: of each matrix as many as its share of all entries, drawn
without replacement from the part that a sketch keeps. Values are centred by the mean of that part, times the power of
two next to the root of the matrix's columns (so that float16 holds them), and shuffled: the first values are a smaller
signature. The cosine of two signatures of independently initialised models is about N(0, 1/m).
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from mother.evidence.facts import kept_shape
from mother.evidence.sketch import Sketch
from mother.io.layers import Layer, sort_key

SAMPLES = 4096  # budget: weights of a model in its signature
LARGEST = float(np.finfo(np.float16).max)

Shapes = Mapping[Layer, tuple[int, int]]


def group_of(shapes: Shapes) -> str:
    """Digest of the names and shapes of a model's matrices: models of one group have signatures of the same places."""
    listed = sorted((str(layer), *shape) for layer, shape in shapes.items())
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:16]


def counts(entries: Int[np.ndarray, "matrices"], kept: Int[np.ndarray, "matrices"], samples: int) -> list[int]:
    """How many places each matrix has: by its share of all entries, no more than are kept of it, at most `samples`."""
    share = np.minimum(kept, samples * entries / max(1, entries.sum()))
    whole = np.floor(share).astype(int)
    most = np.argsort(whole - share, kind="stable")[: min(samples, int(kept.sum())) - int(whole.sum())]
    whole[most] += (share > whole)[most]
    return whole.tolist()


@lru_cache(maxsize=4096)
def places_in(name: str, rows: int, columns: int, kept: int, count: int) -> Int[np.ndarray, "count"]:
    """Places of a matrix's weights that are in a signature, among the `kept` of its part, row by row."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return np.random.default_rng([seed, rows, columns]).permutation(kept)[:count]


@lru_cache(maxsize=64)
def shuffled(group: str, count: int) -> Int[np.ndarray, "count"]:
    """The order of the values in signatures of a group, of those of its matrices one after the other."""
    return np.random.default_rng(int(group, 16)).permutation(count)


def signature_of(
    sketch: Sketch, limit: int, samples: int = SAMPLES, among: Shapes | None = None
) -> Float[np.ndarray, "samples"]:
    """The signature of a model, in float16; shorter where it has fewer weights. `limit` is that of its sketch.

    Among models of other shapes it is at their places, and 0 where the model lacks a matrix.
    Raises CheckpointError where the sketch was damaged.
    """
    among = sketch.shapes if among is None else among
    layers = sorted(among, key=sort_key)
    shapes = [among[layer] for layer in layers]
    kept = np.array([int(np.prod(kept_shape(*shape, limit))) for shape in shapes])
    count = counts(np.array([rows * columns for rows, columns in shapes]), kept, samples)
    there = [layer for layer in layers if sketch.shapes.get(layer) == among[layer]]
    values = []
    for layer, shape, size, some in zip(layers, shapes, kept.tolist(), count):
        if layer not in there:
            values.append(np.zeros(some))
            continue
        part = sketch.read(layer).numpy().reshape(-1).astype(np.float64)
        scale = 2.0 ** round(np.log2(shape[1]) / 2)
        values.append((part[places_in(str(layer), *shape, size, some)] - part.mean()) * scale)
    joined = np.concatenate(values)
    order = shuffled(group_of(among), len(joined))
    return joined[order].clip(-LARGEST, LARGEST).astype(np.float16)

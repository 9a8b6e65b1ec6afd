"""Matrices that nobody learned: tables that are computed, such as positions of sines, are equal in unrelated models.

One model alone cannot say so. A matrix outside the blocks, or one that stands in several blocks of a model alike, that
is bit-equal in two models which share nothing else was computed, or was left as every model of its kind begins. It is
no sign of inheritance, and is left out of all models that have it. Where most matrices of two models are so, it may as
well be a backbone that both took over, frozen, with layers of their own: nothing is said then.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from mother.evidence.relatedness import cosine_and_deviation
from mother.evidence.sketch import Sketch
from mother.io.layers import Layer, sort_key

LOOKED_AT = 8  # budget: other matrices of two models, the largest, that say whether they are related
CHANCE = 3.0  # deviations of their mean cosine up to which two models share nothing

Equal = tuple[Layer, tuple[int, int], str]  # a matrix with its shape and its digest


def without_fixed_tables(sketches: Sequence[Sketch]) -> list[Sketch]:
    """The same sketches without what is equal in unrelated models.

    Raises CheckpointError for a sketch that was damaged meanwhile.
    """
    places: dict[Equal, list[int]] = defaultdict(list)
    for place, sketch in enumerate(sketches):
        for one in _suspects(sketch):
            places[one].append(place)
    shared = {one: members for one, members in places.items() if len(members) > 1}
    known: dict[tuple[int, int], bool] = {}

    def unrelated(one: int, other: int) -> bool:
        if (one, other) not in known:
            known[one, other] = _unrelated(sketches[one], sketches[other], shared.keys())
        return known[one, other]

    fixed: dict[int, set[Layer]] = defaultdict(set)
    for one, (first, *others) in shared.items():
        if any(unrelated(first, other) for other in others):
            for place in (first, *others):
                fixed[place].add(one[0])
    return [without(sketch, fixed[place]) if place in fixed else sketch for place, sketch in enumerate(sketches)]


def _as_equal(sketch: Sketch, layer: Layer) -> Equal:
    return layer, sketch.shapes[layer], sketch.facts.digests[str(layer)]


def _suspects(sketch: Sketch) -> list[Equal]:
    """What may be computed: matrices outside the blocks, and equal ones of several blocks."""
    found = [_as_equal(sketch, layer) for layer in sketch.shapes]
    count = Counter(digest for *_, digest in found)
    return [one for one in found if not one[0].block or count[one[2]] > 1]


def _unrelated(one: Sketch, other: Sketch, suspects: Collection[Equal]) -> bool:
    """Whether two models share nothing but suspects, which are fewer than their other matrices."""
    both = [layer for layer, shape in one.shapes.items() if other.shapes.get(layer) == shape]
    equal = [layer for layer in both if _as_equal(one, layer) == _as_equal(other, layer)]
    common = [layer for layer in both if layer not in equal]
    if any(_as_equal(one, layer) not in suspects for layer in equal) or len(common) <= len(equal):
        return False
    scores = []
    common.sort(key=lambda layer: (-one.shapes[layer][0] * one.shapes[layer][1], sort_key(layer)))
    for layer in common[:LOOKED_AT]:
        cosine, deviation, valid = cosine_and_deviation(torch.stack([one.read(layer), other.read(layer)]))
        if valid[0, 1]:
            scores.append(float(cosine[0, 1] / deviation[0, 1]))
    return bool(scores) and sum(scores) / len(scores) ** 0.5 < CHANCE


def without(sketch: Sketch, fixed: set[Layer]) -> Sketch:
    """A sketch without some of its matrices; one that would be left with none keeps them."""
    left = {layer: shape for layer, shape in sketch.shapes.items() if layer not in fixed}
    if not left or len(left) == len(sketch.shapes):
        return sketch
    gone = sum(rows * columns for layer, (rows, columns) in sketch.shapes.items() if layer in fixed)
    facts = replace(sketch.facts, entries=sketch.facts.entries - gone, weights=sketch.facts.weights - gone)
    kept = replace(sketch.kept, layers={layer: sketch.kept.layers[layer] for layer in left})
    key = f"{sketch.key} {hashlib.sha256(repr(sorted(fixed)).encode()).hexdigest()[:12]}"
    return replace(sketch, shapes=left, facts=facts, kept=kept, key=key)

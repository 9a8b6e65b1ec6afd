"""Which matrix of a model is which of another model of the same architecture, where their names do not say so.

By names without their common prefix; by equal values; and, where both were trained on, by the cosine of two matrices,
whose null is known (`relatedness`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import product

import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import ndtri
from torch import Tensor

from mother.evidence.first_pass import COMPARABLE
from mother.evidence.relatedness import cosine_and_deviation
from mother.evidence.sketch import Sketch, turned
from mother.io.layers import Layer, sort_key

ERROR = 1e-3  # probability that any two matrices of unrelated models are matched
PAIRS = 36  # budget: pairs of models of two architectures that are looked at for matrices that resemble one another
MOST = 512  # budget: matrices of one shape of a model that are matched by content

Match = dict[Layer, tuple[Layer, bool]]  # own name -> name of the others, and whether it stands the other way round
Shapes = dict[Layer, tuple[int, int]]


def entries(shapes: Iterable[tuple[int, int]]) -> int:
    """Entries of matrices of these shapes."""
    return sum(rows * columns for rows, columns in shapes)


def worth_matching(own: Shapes, others: Shapes) -> bool:
    """Whether two kinds of models have matrices of the same shapes, and names say too little of which is which."""
    least = COMPARABLE * min(entries(own.values()), entries(others.values()))
    if entries(shape for layer, shape in own.items() if others.get(layer) == shape) >= least:
        return False
    alike = Counter(map(_unordered, own.values())) & Counter(map(_unordered, others.values()))
    return entries(alike.elements()) >= least


def _unordered(shape: tuple[int, int]) -> tuple[int, int]:
    return min(shape), max(shape)


def match_models(own: Sequence[Sketch], others: Sequence[Sketch]) -> tuple[Match, str]:
    """Which matrix is which of the others', and how that was found; {} where too little was.

    All of `own` have the same names and shapes, and so have the others.
    """
    shapes, theirs = own[0].shapes, others[0].shapes
    least = COMPARABLE * min(entries(shapes.values()), entries(theirs.values()))

    def enough(match: Match) -> bool:
        return entries(shapes[layer] for layer in match) >= least

    match = _by_names(shapes, theirs)
    if enough(match):
        return match, "name"
    match = _by_values(own, others)
    for one, other in _pairs(own, others):
        if enough(match) and len(match) == len(shapes):
            break
        more = _by_cosine(one, other, match)
        if enough(match | more):
            match |= more
    return (_completed(match, shapes, theirs), "content") if enough(match) else ({}, "")


def _pairs(own: Sequence[Sketch], others: Sequence[Sketch]) -> list[tuple[Sketch, Sketch]]:
    """Some pairs of models of two kinds: those with most equal matrices first, then from all over both."""
    few = own[:: -(-len(own) // int(PAIRS**0.5))]
    side = PAIRS // len(few)
    digests = [{other.facts.digests[str(layer)] for layer in other.shapes} for other in others]
    found: list[tuple[Sketch, Sketch]] = []
    for one in few:
        mine = {one.facts.digests[str(layer)] for layer in one.shapes} | {kept["whole"] for _, kept in _turned(one)}
        nearest = max(range(len(others)), key=lambda place: len(mine & digests[place]))
        found.append((one, others[nearest]))
    return found + list(product(few, others[:: -(-len(others) // side)]))


def _stripped(layers: Iterable[Layer]) -> dict[Layer, str]:
    """Names without the path that all of them begin with."""
    parts = {layer: str(layer).split(".") for layer in layers}
    least = min(len(path) - 1 for path in parts.values())
    same = 0
    while same < least and len({path[same] for path in parts.values()}) == 1:
        same += 1
    return {layer: ".".join(path[same:]) for layer, path in parts.items()}


def _by_names(shapes: Shapes, theirs: Shapes) -> Match:
    """Matrices whose names are equal but for a prefix."""
    known = {(name, theirs[layer]): layer for layer, name in _stripped(theirs).items()}
    found = {layer: known.get((name, shapes[layer])) for layer, name in _stripped(shapes).items()}
    return {layer: (other, False) for layer, other in found.items() if other is not None}


def _only_once(pairs: Iterable[tuple[str, Layer]]) -> dict[str, Layer]:
    """By digest, those that one matrix of a model has: constant ones are many times there."""
    found: dict[str, list[Layer]] = defaultdict(list)
    for digest, layer in pairs:
        found[digest].append(layer)
    return {digest: layers[0] for digest, layers in found.items() if len(layers) == 1}


def _by_values(own: Sequence[Sketch], others: Sequence[Sketch]) -> Match:
    """Matrices that are equal, as they stand or turned round, in some two models."""
    known: dict[tuple[str, tuple[int, int]], Layer] = {}
    for other in others:
        for digest, layer in _only_once((other.facts.digests[str(layer)], layer) for layer in other.shapes).items():
            known.setdefault((digest, other.shapes[layer]), layer)
    match, taken = {}, set()
    for one in own:
        straight = _only_once((one.facts.digests[str(layer)], layer) for layer in one.shapes)
        back = _only_once((facts["whole"], layer) for layer, facts in _turned(one))
        for digests, is_turned in ((straight, False), (back, True)):
            for digest, layer in digests.items():
                other = known.get((digest, one.shapes[layer][:: -1 if is_turned else 1]))
                if other is not None and layer not in match and other not in taken:
                    match[layer] = (other, is_turned)
                    taken.add(other)
    return match


def _turned(sketch: Sketch) -> list[tuple[Layer, dict[str, str]]]:
    """Matrices of a sketch that are kept the other way round, too, with the digests of that."""
    return [(layer, facts) for layer in sketch.shapes if (facts := sketch.facts.turned.get(str(layer))) is not None]


def _by_cosine(one: Sketch, other: Sketch, known: Match) -> Match:
    """Matrices of two models that resemble one another more than any independent ones would.

    Each matrix is assigned to one other at the most, so that the sum of the scores is largest. A cosine of independent
    matrices is normal around 0, with a deviation that is known; Bonferroni's correction is over all that were tried.
    """
    taken = {layer for layer, _ in known.values()}
    free: dict[tuple[int, int], list[tuple[Layer, Tensor, bool]]] = defaultdict(list)
    for layer, shape in one.shapes.items():
        if layer not in known:
            free[shape].append((layer, one.read(layer), False))
            if str(layer) in one.facts.turned:
                free[shape[::-1]].append((layer, one.kept.read_tensor(turned(str(layer))), True))
    found: list[tuple[float, Layer, Layer, bool]] = []
    tried = 0
    for shape, mine in free.items():
        theirs = [layer for layer, size in other.shapes.items() if size == shape and layer not in taken]
        if not theirs or max(len(mine), len(theirs)) > MOST:
            continue
        stacked = torch.stack([matrix for _, matrix, _ in mine] + [other.read(layer) for layer in theirs])
        cosine, deviation, valid = cosine_and_deviation(stacked)
        z = torch.where(valid, cosine / deviation, 0)[: len(mine), len(mine) :].numpy()
        tried += z.size
        for row, column in zip(*linear_sum_assignment(z, maximize=True)):
            found.append((float(z[row, column]), mine[row][0], theirs[column], mine[row][2]))
    bound = -float(ndtri(ERROR / (2 * PAIRS) / max(1, tried)))
    match: Match = {}
    for score, layer, their, is_turned in sorted(found, key=lambda one: (-one[0], sort_key(one[1]))):
        if score > bound and layer not in match and their not in taken:
            match[layer] = (their, is_turned)
            taken.add(their)
    return match


def _completed(match: Match, shapes: Shapes, theirs: Shapes) -> Match:
    """The same with matrices that are left over, where each side has one of that shape."""
    taken = {layer for layer, _ in match.values()}
    left: dict[tuple[int, int], list[Layer]] = defaultdict(list)
    for layer, shape in shapes.items():
        if layer not in match:
            left[shape].append(layer)
    result = dict(match)
    for shape, layers in left.items():
        free = [layer for layer, size in theirs.items() if size == shape and layer not in taken]
        if len(layers) == len(free) == 1:
            result[layers[0]] = (free[0], False)
    return result

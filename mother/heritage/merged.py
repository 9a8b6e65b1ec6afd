"""Models that were merged from others: linear and spherical combinations, layers of two models, parts of updates."""

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from mother.evidence.edges import EQUAL_BITS
from mother.evidence.facts import mantissa
from mother.evidence.first_pass import FirstPass
from mother.evidence.merges import Left, Merge, candidate_merges, left_by
from mother.evidence.parts import EXPLAINED, common_ratio, explained_share, scattered_equality
from mother.evidence.second_pass import EQUAL, SecondPass
from mother.evidence.sketch import Sketch
from mother.graph.acyclic import find_circle
from mother.heritage.relation import Relation

# Times as much may be left by fewer parents than by more. Of models near the merge ACCEPTED lets none into the
# combination that takes away more than a quarter of what rounding left.
LESS = 1.5
SAMPLED_LAYERS = 3  # budget: matrices that the search for parts of task vectors reads
CHECKED_LAYERS = 16  # budget: matrices of which the entries of a combination are looked at
NEEDED = 0.1  # share of entries that nothing explains without one of the parents: else a frozen matrix has two
SPARSE = "sparse"  # the method of a merge of parts of updates
PARTS = 3  # budget: parents of a merge of parts, at most


def closes_circle(relations: dict[int, Relation], child: int, parents: Sequence[int]) -> bool:
    """Whether a model would be above its own ancestors if these were its parents, too."""
    known = [(parent, place) for place, relation in relations.items() for parent in relation.parents]
    return bool(find_circle([*known, *((parent, child) for parent in parents)]))


def find_merges(
    sketches: Sequence[Sketch], first_pass: FirstPass, second_pass: SecondPass, relations: dict[int, Relation]
) -> dict[int, Relation]:
    """Models without another relation that are combinations of their neighbours, or made of layers of two of them."""
    found: dict[int, Relation] = {}
    for child, near in enumerate(second_pass.neighbours):
        if child in relations or len(near) < 2:
            continue
        for relation in merges_of(sketches, first_pass, second_pass, child):
            if not closes_circle(relations | found, child, relation.parents):
                found[child] = relation
                break
    return found


def merges_of(
    sketches: Sequence[Sketch], first_pass: FirstPass, second_pass: SecondPass, child: int
) -> Iterator[Relation]:
    """What a model may have been merged from, but for parts of updates: the most likely first."""
    near = second_pass.neighbours[child]
    yield from _by_blocks(first_pass, child, near)
    size, bits = float(first_pass.size[child]), mantissa(first_pass.facts[child])
    lines: set[tuple[int, ...]] = set()
    rougher: list[tuple[float, Relation]] = []
    for merge in candidate_merges(second_pass.grams[child], size, bits):
        if merge.parents in lines:
            continue
        parents = tuple(near[k] for k in merge.parents)
        left = _left(sketches, first_pass, [child, *parents], merge)
        if left.level is None:
            continue
        # Of models on one line one lies between the others, but another may be the one that was rounded last.
        lines.add(merge.parents)
        between = merge.convex and left.rounded_last is None and not left.too_little
        if left.rounded_last != 0 and not between and merge.method == "linear":
            continue
        attributes: dict[str, Any] = {"coefficients": [round(a, 4) for a in merge.coefficients], "method": merge.method}
        if not merge.convex:
            base = parents[_base(second_pass.grams[child], merge)]
            attributes |= {"method": "task arithmetic", "base": first_pass.models[base]}
        relation = Relation("merge", parents, attributes)
        if left.level == 0:
            yield relation
        else:
            rougher.append((left.noise, relation))
    yield from _least_left(rougher)


def _least_left(found: list[tuple[float, Relation]]) -> Iterator[Relation]:
    """Combinations that leave more than rounding once, with what they leave: the first of those that leave least.

    Another merge of some parents may stand for these, up to a little; one more model that is no parent leaves nearly
    as much.
    """
    while found:
        least = min(noise for noise, _ in found)
        yield found.pop(next(at for at, (noise, _) in enumerate(found) if noise <= LESS * least))[1]


def _left(sketches: Sequence[Sketch], first_pass: FirstPass, places: Sequence[int], merge: Merge) -> Left:
    """What a combination leaves of the first of some models, in matrices at equal steps among those that all have."""
    shapes = sketches[places[0]].shapes
    layers = [
        layer
        for layer in first_pass.layers
        if layer in shapes and all(sketches[place].shapes.get(layer) == shapes[layer] for place in places)
    ]
    step = -(-len(layers) // CHECKED_LAYERS)
    bits = [mantissa(first_pass.facts[place]) for place in places]
    some = [[sketches[place].read(layer) for place in places] for layer in layers[:: max(1, step)]]
    return left_by(some, bits, merge.method == "linear")


def _base(gram: np.ndarray, merge: Merge) -> int:
    """Which of the models of a combination that is not convex is the base of task arithmetic: its place among them.

    The models that were trained from it lie around it, so it is nearest to the others. Of two models it is the one
    that the merge leads away from.
    """
    if len(merge.parents) == 2:
        return int(np.argmin(merge.coefficients))
    inner = gram.sum(axis=0)[np.ix_(merge.parents, merge.parents)]
    square = inner.diagonal()[:, None] + inner.diagonal()[None] - 2 * inner
    return int(square.sum(axis=1).argmin())


def _by_blocks(first_pass: FirstPass, child: int, near: Sequence[int]) -> Iterator[Relation]:
    """Two models of which a third has whole blocks, bit for bit: "passthrough" merges and swapped layers.

    The two differ in every matrix, as models do that were not trained from each other with frozen blocks. Others that
    have the same blocks as one of them, as its children do that were trained with these frozen, are listed under "or".
    """
    layers = [layer for layer in first_pass.layers if layer.block and str(layer) in first_pass.facts[child].digests]
    own = first_pass.facts[child].digests
    others = {m: first_pass.facts[m].digests for m in near}
    equal = {m: [some.get(str(layer)) == own[str(layer)] for layer in layers] for m, some in others.items()}
    blocks = [layer.block for layer in layers]
    for one, other in combinations([m for m in near if any(equal[m]) and not all(equal[m])], 2):
        if any(a == b for a, b in zip(equal[one], equal[other])):
            continue  # a matrix that both have, or neither
        taken = {block for block, has in zip(blocks, equal[one]) if has}
        if taken & {block for block, has in zip(blocks, equal[other]) if has}:
            continue
        # The rest comes from the model with more blocks, which comes first.
        first, second = sorted((one, other), key=lambda m: -sum(equal[m]))
        shares = [round(sum(equal[m]) / len(layers), 4) for m in (first, second)]
        alike = [m for m in near if m not in (one, other) and equal[m] in (equal[one], equal[other])]
        instead = {"or": [first_pass.models[m] for m in alike]} if alike else {}
        yield Relation("merge", (first, second), {"shares": shares, "method": "layers"} | instead)


def sparse_merges(
    sketches: Sequence[Sketch], first_pass: FirstPass, second_pass: SecondPass, relations: dict[int, Relation]
) -> dict[int, Relation]:
    """TIES and DARE merges: models that hold parts of two or three task vectors on top of another model.

    Only models that share scattered entries with a neighbour, their base, are looked at again, and only some matrices.
    """
    found: dict[int, Relation] = {}
    for child in range(len(second_pass.neighbours)):
        if child not in relations:
            known = relations | found
            relation = sparse_merge(sketches, first_pass, second_pass, child, relations, known)
            if relation is not None:
                found[child] = relation
    return found


def sparse_merge(
    sketches: Sequence[Sketch],
    first_pass: FirstPass,
    second_pass: SecondPass,
    child: int,
    made: Collection[int],
    known: dict[int, Relation],
) -> Relation | None:
    """What one model was so merged from, if it was: nothing in `made`, and no circle with `known`."""
    best: tuple[float, Relation] | None = None
    arrays, near, bits = second_pass.arrays, second_pass.neighbours[child], mantissa(first_pass.facts[child])
    for base in near:
        p = second_pass.number(base, child)
        if p is None or base in made:
            continue
        changed = arrays["energy"][:, p] > 0
        # In the type of the merge: it may be coarser than that of its parents.
        equal = arrays[EQUAL[EQUAL_BITS.index(bits)]][:, p] / arrays["entries"][:, p].clip(min=1)
        if not scattered_equality(equal, changed):
            continue
        others = [m for m in near if m != base and m not in made]
        rows = [row for row in np.argsort(-arrays["energy"][:, p])[:SAMPLED_LAYERS] if changed[row]]
        share, relation = _parts_of(sketches, first_pass, (child, base, others), [second_pass.layers[r] for r in rows])
        if relation is not None and (best is None or share > best[0]):
            if not closes_circle(known, child, relation.parents):
                best = share, relation
    return None if best is None else best[1]


def _parts_of(
    sketches: Sequence[Sketch], first_pass: FirstPass, models: tuple[int, int, list[int]], layers: list
) -> tuple[float, Relation | None]:
    """The merge that a child is of parts of other models' updates since a base, and the share that these explain."""
    child, base, others = models
    read = {
        m: torch.cat([sketches[m].read(layer).flatten() for layer in layers])
        for m in (child, base, *others)
        if all(sketches[m].shapes.get(layer) == sketches[base].shapes.get(layer) for layer in layers)
    }
    if child not in read:
        return 0.0, None
    bits = mantissa(first_pass.facts[child])
    ratios = {m: common_ratio(read[base], read[m], read[child], bits) for m in others if m in read}
    fitting = [m for m in others if ratios.get(m) is not None]
    for count in range(2, PARTS + 1):
        best: tuple[float, Relation | None] = (EXPLAINED, None)
        for some in combinations(fitting, count):
            parts = [(ratios[m], read[m]) for m in some]
            share = explained_share(read[base], parts, read[child], bits)
            if share > best[0] and share > NEEDED + max(
                explained_share(read[base], [*parts[:at], *parts[at + 1 :]], read[child], bits) for at in range(count)
            ):
                attributes = {"weights": [round(ratios[m], 4) for m in some], "method": SPARSE}
                attributes["base"] = first_pass.models[base]
                best = share, Relation("merge", some, attributes)
        if best[1] is not None:
            return best
    return 0.0, None

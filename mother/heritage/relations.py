"""Models that an exact operation made from others: copies, prunes, quantized models, merges; casts are in casts.py."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from mother.evidence.facts import common_grid
from mother.evidence.first_pass import FirstPass
from mother.evidence.second_pass import SecondPass
from mother.evidence.sketch import Sketch
from mother.heritage.merged import closes_circle, find_merges, sparse_merges
from mother.heritage.quantized import find_quantized, grid_described, is_quantized, storage_of
from mother.heritage.relation import Relation
from mother.io.layers import Layer

SAMPLED_LAYERS = 8  # budget: matrices of which the zeros of a prune are looked at
AS_NEAR = 1.02  # times the squared error of the nearest parent: others that a grid may have been made from
SPARSE = 0.02  # share of zeros from which a model may be pruned


def find_aliases(first_pass: FirstPass) -> dict[int, int]:
    """Copies: place of each model whose tensors all equal those of another one -> place of that one.

    Of equal models the one with most tensors stands for all, and of those the one whose id comes first. A
    copy may lack tensors (a head, a pooler), never have other values.
    """
    order = sorted(
        range(len(first_pass.models)), key=lambda k: (-len(first_pass.facts[k].digests), first_pass.models[k])
    )
    aliases: dict[int, int] = {}
    kept: dict[frozenset, list[int]] = {}
    names = [str(layer) for layer in first_pass.layers]
    for k in order:
        digests = first_pass.facts[k].digests
        matrices = frozenset((name, digests[name]) for name in names if name in digests)
        same = [other for other in kept.get(matrices, ()) if digests.items() <= first_pass.facts[other].digests.items()]
        if same:
            aliases[k] = same[0]
        else:
            kept.setdefault(matrices, []).append(k)
    return aliases


def _or(first_pass: FirstPass, places: list[int]) -> dict[str, list[str]]:
    """The attribute that lists other models that may be the parent, if there are any."""
    return {"or": [first_pass.models[place] for place in places]} if places else {}


def is_rough(first_pass: FirstPass, place: int) -> bool:
    """Whether a model is packed, lies on a grid or has zeros."""
    facts = first_pass.facts[place]
    return is_quantized(facts) or facts.zeros > SPARSE * facts.entries


def is_not_trained(first_pass: FirstPass, place: int, casts: dict[int, Relation]) -> bool:
    """Whether a model shows that no training made it: cast, on a grid, or with zeros."""
    return place in casts or is_rough(first_pass, place)


def exact_relations(
    sketches: Sequence[Sketch], first_pass: FirstPass, second_pass: SecondPass, casts: dict[int, Relation]
) -> dict[int, Relation]:
    """Models that an exact operation made from others of the collection: casts first, merges of the others last."""
    found = dict(casts)
    by_codes = find_quantized(sketches, first_pass, second_pass)
    for child, relation in (find_pruned_and_quantized(sketches, first_pass, second_pass) | by_codes).items():
        if child not in found and not closes_circle(found, child, relation.parents):
            found[child] = relation
    found |= find_merges(sketches, first_pass, second_pass, found)
    return found | sparse_merges(sketches, first_pass, second_pass, found)


def find_pruned_and_quantized(
    sketches: Sequence[Sketch], first_pass: FirstPass, second_pass: SecondPass
) -> dict[int, Relation]:
    """Models that zeros, or a grid, made from another; of several parents the nearest, the others under "or".

    Of prunes the nearest changed in the fewest entries: the prune of a prune, by size, is that of the dense one, too.
    Nothing tells these apart; the dense one is named, with the other.
    Pruning comes before quantizing.
    """
    arrays = second_pass.arrays
    fitting: dict[int, list[tuple[bool, float, int, Relation]]] = {}
    for p, turned in np.argwhere(_may_be_rough(second_pass)).tolist():
        ends, back = (int(second_pass.first[p]), int(second_pass.second[p])), "_back" if turned else ""
        parent, child = ends[::-1] if turned else ends
        relation = _pruned_or_quantized(sketches, first_pass, second_pass, p, parent, child, back)
        if relation is not None:
            pruned = relation.kind == "prune"
            change = float((arrays["entries"] - arrays["equal"] if pruned else arrays["energy"])[:, p].sum())
            if pruned and is_rough(first_pass, parent):
                change += float(arrays["entries"][:, p].sum())  # several levels are mostly made from one dense model
            fitting.setdefault(child, []).append((not pruned, change, parent, relation))
    found = {}
    for child, some in fitting.items():
        (_, least, _, nearest), *rest = sorted(some, key=lambda entry: entry[:3])
        pruned = nearest.kind == "prune"
        # A relative of the parent may lie within half a step, too, but it lies farther off.
        others = [m for _, far, m, one in rest if one.kind == nearest.kind and (pruned or far < AS_NEAR * least)]
        found[child] = Relation(nearest.kind, nearest.parents, nearest.attributes | _or(first_pass, others))
    return found


def _may_be_rough(second_pass: SecondPass) -> Bool[np.ndarray, "pairs two"]:
    """Which pairs, and which back, `_pruned_or_quantized` has to look at: all at once, since few are."""
    arrays, found = second_pass.arrays, []
    changed, differing = arrays["energy"] > 0, (arrays["entries"] - arrays["equal"]).sum(axis=0)
    for back in ("", "_back"):
        quantized = (arrays[f"quantized{back}"] * changed).sum(axis=0) > 0.5 * changed.sum(axis=0)
        found.append(changed.any(axis=0) & (quantized | (arrays[f"zeroed{back}"].sum(axis=0) == differing)))
    return np.stack(found, axis=1)


def _pruned_or_quantized(
    sketches: Sequence[Sketch],
    first_pass: FirstPass,
    second_pass: SecondPass,
    p: int,
    parent: int,
    child: int,
    back: str,
) -> Relation | None:
    """Whether pair p, read from parent to child, is a prune or a quantization; `back` ends the names of its arrays."""
    arrays, facts = second_pass.arrays, first_pass.facts
    changed = arrays["energy"][:, p] > 0
    differing, zeroed = (arrays["entries"] - arrays["equal"])[:, p], arrays[f"zeroed{back}"][:, p]
    if zeroed.sum() == differing.sum():
        layers = [second_pass.layers[row] for row in np.flatnonzero(changed)]
        if _looks_pruned(sketches[parent], sketches[child], layers):
            return Relation("prune", (parent,), {"zeros": round(facts[child].zeros / facts[child].entries, 4)})
        return None
    if arrays[f"quantized{back}"][changed, p].mean() <= 0.5 or is_quantized(facts[parent]):
        return None
    if storage_of(facts[child]) is not None:  # its codes say more
        return None
    grid = common_grid(facts[child].grids)
    if grid is None and not facts[child].fits > facts[parent].fits:
        return None
    return Relation("quantize", (parent,), grid_described(facts[child]))


def _looks_pruned(parent: Sketch, child: Sketch, layers: Sequence[Layer]) -> bool:
    """Whether zeros stand among other entries, for the small ones or at random, in most matrices that changed.

    A matrix that is all zero was initialised so, and trained in the other model; so were whole rows of large entries.
    """
    votes = []
    for layer in layers[:: max(1, -(-len(layers) // SAMPLED_LAYERS))]:
        was, now = parent.read(layer), child.read(layer)
        gone, kept = (now == 0) & (was != 0), now != 0
        if not (gone.any() and kept.any()):
            votes.append(False)
            continue
        touched = gone.any(dim=1)
        scattered = float(kept[touched].any(dim=1).double().mean()) > 0.5
        votes.append(scattered or bool(was[gone].abs().median() < was[kept].abs().median()))
    return bool(votes) and sum(votes) > len(votes) / 2

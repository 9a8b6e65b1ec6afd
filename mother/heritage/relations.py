"""Models that an exact operation made from others: copies, casts, prunes, quantized models, merges."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from mother.evidence.facts import common_grid, mantissa
from mother.evidence.first_pass import FirstPass
from mother.evidence.merges import EXPLAINED, common_ratio, explained_share, find_merge, scattered_equality
from mother.evidence.second_pass import SecondPass
from mother.evidence.sketch import Sketch

SAMPLED_LAYERS = 3  # budget: matrices that the search for parts of task vectors reads
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
    for k in order:
        digests = first_pass.facts[k].digests
        matrices = frozenset((name, digests[name]) for name in map(str, first_pass.layers) if name in digests)
        same = [other for other in kept.get(matrices, ()) if digests.items() <= first_pass.facts[other].digests.items()]
        if same:
            aliases[k] = same[0]
        else:
            kept.setdefault(matrices, []).append(k)
    return aliases


def find_casts(
    first_pass: FirstPass, places: list[int], labels: Int[np.ndarray, "models"]
) -> dict[int, tuple[int, str]]:
    """Casts: place of a model in half precision -> (place of the model it was rounded from, type).

    Exact: the digests of every shared tensor, once rounded, are equal (of large ones those of the part that is kept).
    Of several parents the one in full precision with the first id is taken.
    """
    found = {}
    for child in places:
        facts = first_pass.facts[child]
        for half in sorted(facts.fits):
            parents = []
            for parent in places:
                other = first_pass.facts[parent]
                if parent == child or labels[parent] != labels[child] or half in other.fits:
                    continue
                shared = facts.digests.keys() & other.digests.keys()
                if shared >= set(facts.digests) & {str(layer) for layer in first_pass.layers} and all(
                    facts.part_digests["float32"][name] == other.part_digests[half][name] for name in shared
                ):
                    parents.append((bool(other.fits), first_pass.models[parent], parent))
            if parents and child not in found:
                found[child] = (min(parents)[2], half)
    return found


def is_rough(first_pass: FirstPass, place: int) -> bool:
    """Whether a model lies on a grid or has zeros."""
    facts = first_pass.facts[place]
    return common_grid(facts.grids) is not None or facts.zeros > SPARSE * facts.entries


def is_not_trained(first_pass: FirstPass, place: int, casts: dict[int, tuple[int, str]]) -> bool:
    """Whether a model shows that no training made it: cast, on a grid, or with zeros."""
    return place in casts or is_rough(first_pass, place)


@dataclass(frozen=True)
class Relation:
    """How one model came from others, read off exactly."""

    kind: str  # "cast", "prune", "quantize" or "merge"
    parents: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


def exact_relations(
    first_pass: FirstPass, second_pass: SecondPass, casts: dict[int, tuple[int, str]]
) -> dict[int, Relation]:
    """Models that an exact operation made from others of the collection: casts first, merges of the others last."""
    found = {child: Relation("cast", (parent,), {"dtype": half}) for child, (parent, half) in casts.items()}
    found = find_pruned_and_quantized(first_pass, second_pass) | found
    return found | find_merges(first_pass, second_pass, found)


def find_pruned_and_quantized(first_pass: FirstPass, second_pass: SecondPass) -> dict[int, Relation]:
    """Models that zeros, or a grid, made from another; of several parents the nearest.

    A grandparent may lie within half a step of a grid, too.
    """
    arrays = second_pass.arrays
    best: dict[int, tuple[float, Relation]] = {}
    for p, ends in enumerate(zip(second_pass.first.tolist(), second_pass.second.tolist())):
        energy = float(arrays["energy"][:, p].sum())
        if not (arrays["energy"][:, p] > 0).any():
            continue
        for (parent, child), back in ((ends, ""), (ends[::-1], "_back")):
            relation = _pruned_or_quantized(first_pass, second_pass, p, parent, child, back)
            if relation is not None and (child not in best or energy < best[child][0]):
                best[child] = (energy, relation)
    return {child: relation for child, (_, relation) in best.items()}


def _pruned_or_quantized(
    first_pass: FirstPass, second_pass: SecondPass, p: int, parent: int, child: int, back: str
) -> Relation | None:
    """Whether pair p, read from parent to child, is a prune or a quantization; `back` ends the names of its arrays."""
    arrays, facts = second_pass.arrays, first_pass.facts
    differing = (arrays["entries"] - arrays["equal"])[:, p].sum()
    if arrays[f"zeroed{back}"][:, p].sum() == differing:
        return Relation("prune", (parent,), {"zeros": round(facts[child].zeros / facts[child].entries, 4)})
    changed = arrays["energy"][:, p] > 0
    if arrays[f"quantized{back}"][changed, p].mean() <= 0.5 or common_grid(facts[parent].grids) is not None:
        return None
    grid = common_grid(facts[child].grids)
    if grid is None and not facts[child].fits > facts[parent].fits:
        return None
    return Relation("quantize", (parent,), {"bits": grid.bits if grid is not None else 8})


def find_merges(first_pass: FirstPass, second_pass: SecondPass, relations: dict[int, Relation]) -> dict[int, Relation]:
    """Models without another relation that are linear or spherical combinations of their neighbours."""
    found = {}
    for child, near in enumerate(second_pass.neighbours):
        if child in relations or len(near) < 2:
            continue
        merge = find_merge(second_pass.grams[child], float(first_pass.size[child]), mantissa(first_pass.facts[child]))
        if merge is not None:
            parents = tuple(near[k] for k in merge.parents)
            attributes = {"coefficients": [round(a, 4) for a in merge.coefficients], "method": merge.method}
            found[child] = Relation("merge", parents, attributes)
    return found


def sparse_merges(
    sketches: Sequence[Sketch], first_pass: FirstPass, second_pass: SecondPass, relations: dict[int, Relation]
) -> dict[int, Relation]:
    """TIES and DARE merges: models that hold parts of two task vectors on top of a third model.

    Only models that share scattered entries with a neighbour, their base, are looked at again, and only some matrices.
    """
    found = {}
    arrays = second_pass.arrays
    for child, near in enumerate(second_pass.neighbours):
        if child in relations or first_pass.facts[child].fits:
            continue
        best: tuple[float, Relation] | None = None
        for base in near:
            p = second_pass.number(base, child)
            if p is None or base in relations:
                continue
            changed = arrays["energy"][:, p] > 0
            equal = arrays["equal"][:, p] / arrays["entries"][:, p].clip(min=1)
            if not scattered_equality(equal, changed):
                continue
            layers = [second_pass.layers[row] for row in np.argsort(-arrays["energy"][:, p])[:SAMPLED_LAYERS]]
            others = [m for m in near if m != base and m not in relations]
            read = {
                m: torch.cat([sketches[m].read(layer).flatten() for layer in layers])
                for m in (child, base, *others)
                if all(sketches[m].shapes.get(layer) == sketches[base].shapes.get(layer) for layer in layers)
            }
            ratios = {m: common_ratio(read[base], read[m], read[child]) for m in others if m in read}
            fitting = [m for m in others if ratios.get(m) is not None]
            for pair in combinations(fitting, 2):
                share = explained_share(read[base], [(ratios[m], read[m]) for m in pair], read[child])
                if share > EXPLAINED and (best is None or share > best[0]):
                    attributes = {"weights": [round(ratios[m], 4) for m in pair], "method": "sparse"}
                    attributes["base"] = first_pass.models[base]
                    best = share, Relation("merge", pair, attributes)
        if best is not None:
            found[child] = best[1]
    return found

"""Quantized models: packed or on a grid, and which model of the collection they were made from, by their codes."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from mother.evidence.codes import (
    Codes,
    Matrix,
    Rule,
    by_rule,
    columns_apart,
    compare_packed,
    each_by_rule,
    kept_rows,
    rules,
)
from mother.evidence.facts import Facts, common_grid
from mother.evidence.first_pass import FirstPass
from mother.evidence.second_pass import SecondPass
from mother.evidence.sketch import Sketch
from mother.heritage.relation import Relation
from mother.io.layers import Layer
from mother.io.reader import Storage

LAYERS = 8  # budget: matrices whose codes are compared
NEAREST = 6  # budget: models that a packed one may be made from
BY_RULE = 0.998  # share of codes that are equal where the rule of the format is known; ties may break otherwise
BY_LEVELS = 0.99  # where only the levels are: scales are rounded after the codes were chosen
BY_FINE_LEVELS = 0.96  # ... of 8 bits
BY_CODED = 0.985  # ... where the scales are coded themselves
RESIDUAL = 0.75  # steps: what rounding leaves is .29, what GPTQ and AWQ leave is more
AS_NEAR = 1.02  # times the residual of the nearest: others that may be the parent
SEARCHED = ("gptq", "awq", "compressed-tensors")  # formats that move entries farther than to the nearest level
Pair = tuple[Matrix, Matrix]  # of a parent and of its child
_BITS = re.compile(r"(?:IQ|TQ|Q|FP|nf|fp)(\d)")


def storage_of(facts: Facts) -> Storage | None:
    """How most of the matrices of a model are packed; None where most are not."""
    found = Counter(Storage(*one) for one in facts.storage.values())
    if 2 * sum(found.values()) <= facts.matrices:
        return None
    return max(found, key=lambda one: (found[one], astuple(one)[0], str(one)))


def is_quantized(facts: Facts) -> bool:
    """Whether a model is packed, or lies on a grid."""
    return storage_of(facts) is not None or common_grid(facts.grids) is not None


def described(storage: Storage) -> dict[str, Any]:
    """The attributes of an edge that say how its child is packed."""
    said = _BITS.search(str(storage))
    bits = storage.bits or (int(said[1]) if said else None)
    return ({"bits": bits} if bits else {}) | {"format": str(storage)}


def grid_described(facts: Facts) -> dict[str, Any]:
    """The attributes of an edge whose child lies on a grid of no named format."""
    grid = common_grid(facts.grids)
    if grid is None:
        return {"bits": 8}
    words = {"tensor": "one scale", "row": "a scale each row"}.get(grid.block, f"group {grid.block}")
    return {"bits": grid.bits, "format": f"{grid.bits} bit, {words}{', by columns' if grid.turned else ''}"}


def find_quantized(sketches: Sequence[Sketch], first_pass: FirstPass, second_pass: SecondPass) -> dict[int, Relation]:
    """Models whose codes are those of another one, quantized; of several parents that with most equal codes.

    Parents of which as many codes are equal, up to chance, are listed under "or". Packed models, and those that were
    packed once and are stored in plain numbers again: of these the format is the rule that gives their numbers.
    """
    ends = list(zip(second_pass.first.tolist(), second_pass.second.tolist()))
    near: dict[int, list[tuple[float, int]]] = {}
    for p, (i, j) in enumerate(ends):
        energy = float(second_pass.arrays["energy"][:, p].sum())
        for parent, child in ((i, j), (j, i)):
            if energy > 0 and is_quantized(first_pass.facts[child]):
                near.setdefault(child, []).append((energy, parent))
    found = {}
    for child, some in near.items():
        parents = [parent for _, parent in sorted(some)][:NEAREST]
        storage = storage_of(first_pass.facts[child])
        if storage is not None:
            relation = _packed(sketches, first_pass, child, parents, storage)
        else:
            relation = _dequantized(sketches, first_pass, child, parents)
        if relation is not None:
            found[child] = relation
    return found


def some_layers(one: Sketch, other: Sketch, names: set[str] | None = None) -> list[Layer]:
    """Some matrices that both models have in one shape; of `names` only."""
    both = [
        layer
        for layer, shape in one.shapes.items()
        if other.shapes.get(layer) == shape and (names is None or str(layer) in names)
    ]
    return both[:: max(1, -(-len(both) // LAYERS))]


def _sum(parts: Sequence[Codes]) -> Codes:
    residuals = [one.residual for one in parts if np.isfinite(one.residual)]
    middle = float(np.median(residuals)) if residuals else float("inf")
    return Codes(sum(one.equal for one in parts), sum(one.compared for one in parts), middle)


def _packed(
    sketches: Sequence[Sketch], first_pass: FirstPass, child: int, parents: Sequence[int], storage: Storage
) -> Relation | None:
    """What a packed model was made from; None where no model that is there fits."""
    stored = first_pass.facts[child].storage
    fitting: list[tuple[float, int, int, dict[str, Any]]] = []
    for parent in parents:
        layers = some_layers(sketches[child], sketches[parent], set(stored))
        parts = []
        for layer in layers:
            before, after = sketches[parent].read(layer), sketches[child].read(layer)
            # Conv1D stands the other way round in its file, and its groups with it.
            ways = [(before, after), (before.T.contiguous(), after.T.contiguous())]
            compared = [compare_packed(Storage(*stored[str(layer)]), *way) for way in ways]
            parts.append(max(compared, key=lambda one: one[0].share))
            if storage.format == "awq":
                parts[-1] = (columns_apart(Storage(*stored[str(layer)]), before, after), False)
        codes, by_rules = _sum([one for one, _ in parts]), bool(parts) and all(rule for _, rule in parts)
        facts: dict[str, Any] = {"codes": round(codes.share, 4), "codes_compared": codes.compared}
        again = is_quantized(first_pass.facts[parent])  # made from a quantized one: only where every code says so
        if codes.share >= bar_of(storage, by_rules, again) and (by_rules or not again):
            fitting.append((float(codes.compared - codes.equal), codes.compared, parent, facts))
        elif storage.format in SEARCHED and not again and codes.residual <= RESIDUAL:
            fitting.append((codes.residual, 0, parent, {"residual": round(codes.residual, 4)}))
    return _best(first_pass, fitting, described(storage))


def bar_of(storage: Storage, by_rules: bool, again: bool = False) -> float:
    """The share of equal codes from which a packed model counts as made from another one; `again`: a quantized one."""
    if again:
        return 1.0
    if by_rules:
        return BY_RULE
    if storage.detail == "double":
        return BY_CODED
    return BY_LEVELS if (described(storage).get("bits") or 8) < 8 else BY_FINE_LEVELS


def _best(
    first_pass: FirstPass, fitting: list[tuple[float, int, int, dict[str, Any]]], format_: dict[str, Any]
) -> Relation | None:
    """The relation to the parent that fits best; others that fit as well, up to chance, under "or"."""
    if not fitting:
        return None
    # Codes tell more than residuals.
    fitting = [one for one in fitting if one[1]] or fitting
    (least, compared, parent, facts), *rest = sorted(fitting, key=lambda one: one[:3])
    bound = least + 3 * (least + 1) ** 0.5 if compared else AS_NEAR * least  # three deviations of a count
    others = [first_pass.models[place] for off, _, place, _ in rest if off <= bound]
    return Relation("quantize", (parent,), format_ | facts | ({"or": others} if others else {}))


def _dequantized(
    sketches: Sequence[Sketch], first_pass: FirstPass, child: int, parents: Sequence[int]
) -> Relation | None:
    """What a model on a grid was made from, where the rule of a format gives its numbers."""
    fitting: list[tuple[float, int, int, dict[str, Any]]] = []
    said: dict[int, dict[str, Any]] = {}
    pairs: dict[int, dict[Layer, Pair]] = {}
    for parent in parents:
        if is_quantized(first_pass.facts[parent]):
            continue
        both = [
            (layer, sketches[parent].read(layer), sketches[child].read(layer))
            for layer in some_layers(sketches[parent], sketches[child])
        ]
        pairs[parent] = {layer: (before, after) for layer, before, after in both if not before.equal(after)}
    for back in (False, True):
        unsaid = {parent: some for parent, some in pairs.items() if parent not in said}
        for parent, (rule, codes) in _rules_of(unsaid, back).items():
            said[parent] = {"bits": rule.bits, "format": f"{rule.name}{', by columns' if back else ''}"}
            facts = {"codes": round(codes.share, 4), "codes_compared": codes.compared}
            fitting.append((float(codes.compared - codes.equal), codes.compared, parent, facts))
    relation = _best(first_pass, fitting, {})
    if relation is None:
        return None
    return Relation("quantize", relation.parents, said[relation.parents[0]] | relation.attributes)


def _rules_of(pairs: dict[int, dict[Layer, Pair]], back: bool) -> dict[int, tuple[Rule, Codes]]:
    """Of each parent the rule that gives the numbers of all its child's matrices; the first that does.

    `pairs` are the matrices of parent and child, in which they differ; `back` turns them round. Parents of which the
    first of these is the same are quantized together: most fail there.
    """
    turned = {
        parent: {layer: tuple(one.T.contiguous() if back else one for one in both) for layer, both in some.items()}
        for parent, some in pairs.items()
    }
    alike: dict[Layer, list[int]] = {}
    for parent, some in turned.items():
        if some:
            alike.setdefault(next(iter(some)), []).append(parent)
    found: dict[int, tuple[Rule, Codes]] = {}
    for layer, some in alike.items():
        kept = [kept_rows(*turned[parent][layer]) for parent in some]
        for rule in rules():
            firsts = each_by_rule(rule, [before for before, _ in kept], kept[0][1])
            for parent, first in zip(some, firsts):
                if first.share < BY_RULE or parent in found:
                    continue
                both = turned[parent].values()
                codes = _sum([by_rule(rule, *(pair if rule.group == 0 else kept_rows(*pair))) for pair in both])
                if codes.share >= BY_RULE:
                    found[parent] = rule, codes
    return found

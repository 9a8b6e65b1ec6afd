"""Quantized models: packed or on a grid, and which model of the collection they were made from, by their codes."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
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
    equal_codes,
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
TOGETHER = 1 << 22  # budget: entries of parents that are quantized together
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
    quantized = [is_quantized(facts) for facts in first_pass.facts]
    for p, (i, j) in enumerate(ends):
        energy = float(second_pass.arrays["energy"][:, p].sum())
        for parent, child in ((i, j), (j, i)):
            if energy > 0 and quantized[child]:
                near.setdefault(child, []).append((energy, parent))
    found, unpacked = {}, {}
    for child, some in near.items():
        parents = [parent for _, parent in sorted(some)][:NEAREST]
        storage = storage_of(first_pass.facts[child])
        if storage is None:
            unpacked[child] = parents
        elif (relation := _packed(sketches, first_pass, child, parents, storage)) is not None:
            found[child] = relation
    found |= _dequantized(sketches, first_pass, unpacked)
    return {child: found[child] for child in near if child in found}


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


def _dequantized(sketches: Sequence[Sketch], first_pass: FirstPass, near: dict[int, list[int]]) -> dict[int, Relation]:
    """What models on a grid were made from, where the rule of a format gives their numbers; `near` are by child."""
    fitting: dict[int, list[tuple[float, int, int, dict[str, Any]]]] = {child: [] for child in near}
    pairs = [(parent, child) for child, some in near.items() for parent in some]
    left = [ends for ends in pairs if not is_quantized(first_pass.facts[ends[0]])]
    said: dict[tuple[int, int], dict[str, Any]] = {}
    for back in (False, True):
        for (parent, child), (rule, codes) in _rules_of(sketches, left, back).items():
            said[parent, child] = {"bits": rule.bits, "format": f"{rule.name}{', by columns' if back else ''}"}
            facts = {"codes": round(codes.share, 4), "codes_compared": codes.compared}
            fitting[child].append((float(codes.compared - codes.equal), codes.compared, parent, facts))
        left = [ends for ends in left if ends not in said]
    found = {}
    for child, some in fitting.items():
        relation = _best(first_pass, some, {})
        if relation is not None:
            more = said[relation.parents[0], child] | relation.attributes
            found[child] = Relation("quantize", relation.parents, more)
    return found


def _pair(sketches: Sequence[Sketch], ends: tuple[int, int], layer: Layer, back: bool) -> Pair:
    """A matrix of a parent and of its child, turned round if `back`."""
    one, other = (sketches[end].read(layer) for end in ends)
    return (one.T.contiguous(), other.T.contiguous()) if back else (one, other)


def _differing(sketches: Sequence[Sketch], ends: tuple[int, int], back: bool) -> Iterator[tuple[Layer, Pair]]:
    """Those of some matrices in which a parent and its child differ."""
    for layer in some_layers(*(sketches[end] for end in ends)):
        before, after = _pair(sketches, ends, layer, back)
        if not before.equal(after):
            yield layer, (before, after)


def _rules_of(
    sketches: Sequence[Sketch], pairs: Sequence[tuple[int, int]], back: bool
) -> dict[tuple[int, int], tuple[Rule, Codes]]:
    """Of each parent and child the rule that gives the numbers of all matrices of the child; the first that does.

    `back` turns matrices round. All parents are quantized together, by the first matrix in which they differ from their
    children: most fail there.
    """
    alike: dict[tuple[Layer, tuple[int, ...]], list[tuple[int, int]]] = {}
    kept: dict[tuple[int, Layer], Matrix] = {}
    for ends in pairs:
        for layer, pair in _differing(sketches, ends, back):
            kept |= zip(((end, layer) for end in ends), kept_rows(*pair))
            alike.setdefault((layer, pair[1].shape), []).append(ends)
            break
    found: dict[tuple[int, int], tuple[Rule, Codes]] = {}
    for (layer, _), every in alike.items():
        step = max(1, TOGETHER // kept[every[0][0], layer].numel())
        for some in (every[at : at + step] for at in range(0, len(every), step)):
            for rule, ends in _fitting_firsts(kept, layer, some):
                if ends in found:
                    continue
                whole = (pair for _, pair in _differing(sketches, ends, back))
                codes = _sum([by_rule(rule, *(pair if rule.group == 0 else kept_rows(*pair))) for pair in whole])
                if codes.share >= BY_RULE:
                    found[ends] = rule, codes
    return found


def _fitting_firsts(
    kept: dict[tuple[int, Layer], Matrix], layer: Layer, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[Rule, tuple[int, int]]]:
    """By which rules a matrix of a child is that of its parent, rule by rule; each parent is quantized once."""
    number = {parent: at for at, parent in enumerate(dict.fromkeys(parent for parent, _ in pairs))}
    parents: dict[int, list[int]] = {}
    for parent, child in pairs:
        parents.setdefault(child, []).append(parent)
    for rule in rules():
        made = each_by_rule(rule, [kept[parent, layer] for parent in number])
        if made is None:
            continue
        for child, some in parents.items():
            codes = equal_codes(rule, made[[number[parent] for parent in some]], kept[child, layer])
            yield from ((rule, (parent, child)) for parent, one in zip(some, codes) if one.share >= BY_RULE)

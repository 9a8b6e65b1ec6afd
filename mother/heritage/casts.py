"""Casts: models whose tensors are those of another one, each rounded to a coarser type or left as it was."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mother.evidence.facts import CASTS, FLOAT8, Facts, mantissa
from mother.evidence.first_pass import FirstPass
from mother.evidence.second_pass import SecondPass
from mother.evidence.sketch import Sketch
from mother.evidence.twins import Rounding, held_rounding
from mother.heritage.relation import Relation

WORDS = {"float8_e4m3fn": "fp8 e4m3", "float8_e5m2": "fp8 e5m2"}  # others by torch's names
UNCHANGED = "as they were"


def find_casts(first_pass: FirstPass, places: list[int], labels: Int[np.ndarray, "models"]) -> dict[int, Relation]:
    """Casts, to half precision or to FP8 without scales, tensor by tensor.

    Exact, by the digests (of large tensors those of the part that is kept). Of several parents one in full precision is
    taken, of these that with the fewest matrices in FP8, then the nearest, then the first id. An edge says the `dtype`
    that most matrices were rounded to, and under `except` which tensors were not.
    """
    names = {str(layer) for layer in first_pass.layers}
    inside = {place: [name for name in first_pass.facts[place].digests if name in names] for place in places}
    found: dict[int, Relation] = {}
    for child in places:
        facts = first_pass.facts[child]
        digests = facts.part_digests
        own, rounded = digests["float32"], [digests[one] for one in CASTS]
        if not any(one[name] == own[name] for one in rounded for name in inside[child]):
            continue
        fitting = []
        for parent in places:
            if parent == child or labels[parent] != labels[child]:
                continue
            types = _types(first_pass.facts[parent], facts, inside[child])
            if types is not None:
                full = not first_pass.facts[parent].fits
                coarse = sum(_is_in(first_pass.facts[parent], name, FLOAT8) for name in inside[parent])
                fitting.append((not full, coarse, first_pass.square[parent, child], parent, types))
        if fitting:
            (*_, parent, types), *rest = sorted(fitting, key=lambda one: one[:-1])
            others = [first_pass.models[other] for *_, other, _ in rest]
            said = _said(types, facts, inside[child]) | ({"or": others} if others else {})
            found[child] = Relation("cast", (parent,), said)
    return found


def is_trained_in(dtype: str) -> bool:
    """Whether models are trained in what a cast was to, in words: weights in FP8 are not."""
    return dtype not in WORDS.values()


def twin_ratios(
    sketches: Sequence[Sketch],
    first_pass: FirstPass,
    second_pass: SecondPass,
    relations: dict[int, Relation],
    core: set[int] | None = None,
) -> dict[tuple[int, int, int], float]:
    """Log likelihood ratios that a model was trained from a cast, or from a quantized model, and not from its original.

    By (cast, original, model), see `held_rounding`; of models that were looked at with either, and that no exact
    relation has a parent for. Of a block's `core` those that were looked at with both: only these may come from either.
    """
    bits = [mantissa(facts) for facts in first_pass.facts]
    found = {}
    for twin, relation in relations.items():
        cast = relation.kind == "cast" and is_trained_in(relation.attributes["dtype"])
        if not cast and relation.kind != "quantize":
            continue
        original = relation.parents[0]
        rounding = Rounding(sketches[original], sketches[twin])
        for model in range(len(first_pass.models)) if core is None else sorted(core):
            near = second_pass.number(twin, model), second_pass.number(original, model)
            looked = near != (None, None) if core is None else None not in near
            if model in (twin, original) or model in relations or not looked:
                continue
            # The steps of a quantized model are far above the units of what it is stored in.
            coarse = bits[model] if cast and bits[model] <= bits[twin] else None
            found[twin, original, model] = held_rounding(sketches[model], rounding, coarse)
    return found


def _is_in(facts: Facts, name: str, types: Sequence[str]) -> bool:
    """Whether one of some types holds what is kept of a tensor."""
    digests = facts.part_digests
    return any(digests[one][name] == digests["float32"][name] for one in types)


def _types(one: Facts, other: Facts, inside: Sequence[str]) -> dict[str, list[str]] | None:
    """By each tensor of `other` that `one` has, too, the types that it may have been rounded to from there.

    None where a matrix (`inside`) or another tensor is not that of `one`, or where no matrix was rounded.
    """
    before, now, types = one.part_digests, other.part_digests["float32"], {}
    for name in (*inside, *(name for name in other.digests if name in one.digests)):
        if name in types:
            continue
        if name not in one.digests:
            return None
        types[name] = [UNCHANGED] if one.digests[name] == other.digests[name] else []
        types[name] += [kind for kind in CASTS if before[kind][name] == now[name]]
        if not types[name]:  # most pairs end at their first matrix
            return None
    return types if any(UNCHANGED not in types[name] for name in inside) else None


def _said(types: dict[str, list[str]], facts: Facts, inside: Sequence[str]) -> dict[str, str]:
    """The attributes of an edge from a cast's parent: its type, and what is of another one, in words."""
    count = Counter(kind for name in inside for kind in types[name] if UNCHANGED not in types[name])
    dtype = max(count, key=lambda kind: count[kind])
    tables = {key[0] for key in facts.tables}
    groups = {
        "matrices": inside,
        "embeddings and heads": [name for name in types if name in tables],
        "norms and biases": [name for name in types if name not in tables and name not in {*inside}],
    }
    exceptions = []
    for group, members in groups.items():
        apart = Counter(types[name][0] for name in members if dtype not in types[name])
        for kind, many in sorted(apart.items()):
            share = "" if many == len(members) else f"{many} of {len(members)} "
            exceptions.append(f"{share}{group} {WORDS.get(kind, kind)}")
    found = {"dtype": WORDS.get(dtype, dtype)}
    return found | ({"except": ", ".join(exceptions)} if exceptions else {})

"""Models of one architecture under other names: all are brought to one set of names before they are compared.

Most collections need nothing of this: where names and shapes agree, nothing is looked at. Models whose matrices have
the shapes of another model's, turned round or not, are matched to it (mother/evidence/matching.py).
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mother.evidence.facts import Facts
from mother.evidence.matching import Match, entries, match_models, worth_matching
from mother.evidence.sketch import Sketch, turned
from mother.evidence.tables import without, without_fixed_tables
from mother.io.layers import Layer


@dataclass
class Aligned:
    """Sketches in their order, under common names; and for each model that was brought to them how, in words."""

    sketches: list[Sketch]
    matched: dict[str, str] = field(default_factory=dict)


def notes(matched: dict[str, str]) -> tuple[str, ...]:
    """Which models were matched how, in a line for each way: for a Model Graph."""
    models: dict[str, list[str]] = defaultdict(list)
    for model, words in matched.items():
        models[words].append(model)
    some = {words: ", ".join(those[:3]) + (", ..." if len(those) > 3 else "") for words, those in models.items()}
    return tuple(f"{some[words]}: {words}" for words in models)


def align(sketches: Sequence[Sketch]) -> Aligned:
    """Bring models with the same matrices under other names to the names that most of them have.

    Tables that are equal in unrelated models are left out.
    Raises CheckpointError for a sketch that was damaged meanwhile.
    """
    kinds: dict[frozenset, list[int]] = defaultdict(list)
    for place, sketch in enumerate(sketches):
        kinds[frozenset(sketch.shapes.items())].append(place)
    result = Aligned(list(sketches))
    references: list[list[int]] = []

    def order(members: list[int]) -> tuple:
        # Only matrices of unknown names are kept turned round, too: those of known ones are what they are matched to.
        first = sketches[members[0]]
        return len(first.facts.turned), -len(members), -entries(first.shapes.values()), first.model

    for members in sorted(kinds.values(), key=order):
        own = [sketches[place] for place in members]
        for places in references:
            others = [sketches[place] for place in places]
            if not worth_matching(own[0].shapes, others[0].shapes):
                continue
            match, how = match_models(own, others)
            if match:
                words = _in_words(match, how, own[0], others[0])
                # Of models that lack nothing of the others what is left over is what is none of their matrices, either.
                whole = {layer for layer, _ in match.values()} >= others[0].shapes.keys()
                left = own[0].shapes.keys() - match.keys() if whole else set()
                for place in members:
                    result.sketches[place] = renamed(without(sketches[place], left), match)
                    result.matched[sketches[place].model] = words
                break
        else:
            references.append(members)
    result.sketches = without_fixed_tables(_same_vectors(result.sketches))
    return result


def _in_words(match: Match, how: str, own: Sketch, other: Sketch) -> str:
    """How models were matched, as a reader is told."""
    turned_round = sum(is_turned for _, is_turned in match.values())
    ways = f", {turned_round} of them transposed" if turned_round else ""
    return f"{len(match)} of {len(own.shapes)} matrices matched to those of {other.model} by {how}{ways}"


def renamed(sketch: Sketch, match: Match) -> Sketch:
    """A sketch under other names; what is not matched keeps its own, but for those that others have now."""
    taken = {layer for layer, _ in match.values()}
    new: Match = {}
    for layer in sketch.shapes:
        alone = Layer("", f"{layer} ({sketch.model})") if layer in taken else layer
        new[layer] = match.get(layer, (alone, False))
    names = {str(layer): str(other) for layer, (other, _) in new.items()}
    names |= {f"{old}.bias": f"{name}.bias" for old, name in names.items()}
    facts = _under(sketch.facts, names)
    inside = {str(layer) for layer in sketch.shapes}
    facts.turned = {name: digests for name, digests in sketch.facts.turned.items() if name not in inside}  # of tables
    if any(is_turned for _, is_turned in new.values()):
        facts = replace(facts, grids=facts.turned_grids)
    for layer, (other, is_turned) in new.items():
        if is_turned:
            _turn_back(facts, str(other), sketch.facts.turned[str(layer)])
    parts = {layer: sketch.kept.layers[layer] for layer in sketch.shapes}
    layers = {other: turned(parts[layer]) if back else parts[layer] for layer, (other, back) in new.items()}
    shapes = {other: sketch.shapes[layer][:: -1 if back else 1] for layer, (other, back) in new.items()}
    digest = hashlib.sha256(repr(sorted(new.items())).encode()).hexdigest()[:12]
    key, own = f"{sketch.key} {digest}", {other: (layer, back) for layer, (other, back) in new.items()}
    kept = replace(sketch.kept, layers=layers)
    return replace(sketch, facts=facts, shapes=shapes, kept=kept, key=key, own=own)


def _under(facts: Facts, names: dict[str, str]) -> Facts:
    """The same facts under other names; of tensors that are not named they stay."""

    def under(some: dict[str, str]) -> dict[str, str]:
        return {names.get(name, name): digest for name, digest in some.items()}

    tables = {(names.get(key[0], key[0]), *key[1:]): table for key, table in facts.tables.items()}
    halves = {kind: under(kept) for kind, kept in facts.part_digests.items()}
    packed = {names.get(name, name): storage for name, storage in facts.storage.items()}
    return replace(facts, digests=under(facts.digests), part_digests=halves, tables=tables, turned={}, storage=packed)


def _same_vectors(sketches: Sequence[Sketch]) -> list[Sketch]:
    """The same sketches; where all matrices of two are equal, their equal vectors and tables have equal names, too."""
    first: dict[frozenset, Sketch] = {}
    result = list(sketches)
    # Those whose tables may be turned round last: what they are turned to has a name.
    for place in sorted(range(len(sketches)), key=lambda place: len(sketches[place].facts.turned)):
        sketch = sketches[place]
        digests = sketch.facts.digests
        inside = {str(layer) for layer in sketch.shapes}
        other = first.setdefault(frozenset((name, digests[name]) for name in inside), sketch)
        if not digests.keys() <= other.facts.digests.keys() and not other.facts.digests.keys() <= digests.keys():
            result[place] = _with_vectors_of(sketch, other, inside)
    return result


def _with_vectors_of(sketch: Sketch, other: Sketch, inside: set[str]) -> Sketch:
    """Vectors of a model under the names that equal ones of another model have, in their order where many are equal."""
    own, theirs = sketch.facts.digests, other.facts.digests
    free: dict[str, list[str]] = defaultdict(list)
    for name, digest in theirs.items():
        if name not in inside and own.get(name) != digest:
            free[digest].append(name)
    names: dict[str, str] = {}
    back: dict[str, dict[str, str]] = {}
    for name, digest in own.items():
        if name in inside or theirs.get(name) == digest:
            continue
        turned_round = sketch.facts.turned.get(name)
        if free[digest]:
            names[name] = free[digest].pop(0)
        elif turned_round is not None and free[turned_round["whole"]]:
            names[name] = free[turned_round["whole"]].pop(0)
            back[names[name]] = turned_round
    kept = {name for name in own if name not in names}
    names = {old: new for old, new in names.items() if new not in kept}
    if not names:
        return sketch
    digest = hashlib.sha256(repr(sorted(names.items())).encode()).hexdigest()[:12]
    facts = _under(sketch.facts, names)
    for name in back.keys() & set(names.values()):
        _turn_back(facts, name, back[name])
    return replace(sketch, facts=facts, key=f"{sketch.key} {digest}")


def _turn_back(facts: Facts, name: str, digests: dict[str, str]) -> None:
    """Give a tensor the digests that it has the other way round."""
    facts.digests[name] = digests["whole"]
    for kind, kept in facts.part_digests.items():
        kept[name] = digests[kind]

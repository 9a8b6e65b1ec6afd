"""Quantizations of one model that is not there: siblings under it, whatever near model is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import networkx as nx

from mother.evidence.first_pass import FirstPass
from mother.evidence.intervals import apart, interval_of
from mother.evidence.second_pass import SecondPass
from mother.evidence.sketch import Sketch
from mother.graph.model_graph import hidden_called
from mother.heritage.quantized import is_quantized, some_layers, storage_of
from mother.heritage.relation import Relation
from mother.io.reader import Storage

# Entries that must be apart if the two were of siblings as far as the candidate: by chance none is, e^-30.
EXPECTED = 30.0


@dataclass(frozen=True)
class Hidden:
    """A model that is not there: its children, and its parent where that is there (None: it is the root)."""

    children: tuple[int, ...]
    parent: int | None
    quantized: bool = False  # the children are quantizations of it, see `find_absent`
    chance: float = field(default=1.0, compare=False)  # that the parent is the parent, where it is quantized
    first: int | None = field(default=None, compare=False)  # whom the others were found beside, where none is quantized


def hidden_name(hidden: Hidden, models: list[str]) -> str:
    """Id of a hidden ancestor: by its children, so that it is the same in every run."""
    return hidden_called([models[child] for child in hidden.children])


def chances_of(hidden: Hidden, absent: Mapping[int, float]) -> tuple[float, dict[int, float]]:
    """That there is such a model, and that each of its children was made from it.

    `absent` is the probability that the parent of a model is not there. The first of the children would have no parent
    that is there even if nothing stood above it: that there is one only the others say.
    """
    there = max(absent[child] for child in hidden.children if child != hidden.first)
    return there, {child: min(absent[child], there) for child in hidden.children}


def find_absent(
    sketches: Sequence[Sketch],
    first_pass: FirstPass,
    second_pass: SecondPass,
    relations: Mapping[int, Relation],
    labels: Sequence[int],
) -> list[tuple[int, ...]]:
    """Groups of quantized models that were each made from one model, which is none of those that are there.

    The numbers that each entry may have been rounded from meet in every entry, and each near model that is there lies
    outside of them so often that models as far from one another as it is from both would not.
    """
    facts = first_pass.facts
    packed = [place for place, one in enumerate(facts) if storage_of(one) is not None and place not in relations]
    web = nx.Graph()
    for one, other in combinations(packed, 2):
        if labels[one] != labels[other] or second_pass.number(one, other) is None:
            continue
        near = [
            place
            for place in range(len(facts))
            if place not in (one, other)
            and not is_quantized(facts[place])
            and second_pass.number(place, one) is not None
            and second_pass.number(place, other) is not None
        ]
        if near and _one_original(sketches, facts[one].storage, facts[other].storage, one, other, near):
            web.add_edge(one, other)
    groups = [tuple(sorted(members)) for members in nx.connected_components(web)]
    return sorted(group for group in groups if all(web.has_edge(*pair) for pair in combinations(group, 2)))


def _one_original(
    sketches: Sequence[Sketch],
    stored: Mapping[str, Sequence],
    others: Mapping[str, Sequence],
    one: int,
    other: int,
    near: Sequence[int],
) -> bool:
    """Whether two quantized models are of one model, and of none of those that are near."""
    compared = 0
    outside = {place: [0, 0] for place in near}
    for layer in some_layers(sketches[one], sketches[other], stored.keys() & others.keys()):
        ways = Storage(*stored[str(layer)]), Storage(*others[str(layer)])
        if ways[0] == ways[1]:
            continue  # of one model they would be equal
        both = [interval_of(way, sketches[place].read(layer)) for way, place in zip(ways, (one, other))]
        if None in both:
            return False
        differ, count = apart(*both)
        if differ:
            return False
        compared += count
        for place in near:
            if sketches[place].shapes.get(layer) != sketches[one].shapes[layer]:
                continue
            plain = interval_of(None, sketches[place].read(layer))
            for at in (0, 1):
                outside[place][at] += apart(plain, both[at])[0]
    # Of two siblings that moved as far as a candidate lies off, about so many entries would be apart.
    return compared > 0 and all(first * second / (2 * compared) >= EXPECTED for first, second in outside.values())


def under_absent(
    parents: Mapping[int, int],
    hidden: Sequence[Hidden],
    known: Sequence[tuple[int, int]],
    group: Sequence[int],
    chances: Mapping[int, float],
) -> tuple[dict[int, int], list[Hidden]]:
    """A tree in which a group hangs under a model that is not there, and that one where most of the group hung.

    `parents` and `hidden` are the tree as it was, `known` are edges of exact relations, `chances` how many of the group
    each model is expected to be the parent of.
    """
    above = {child: one.parent for one in hidden for child in one.children if one.parent is not None}
    web = nx.DiGraph([*known, *((parent, child) for child, parent in (above | dict(parents)).items())])
    web.add_nodes_from(group)
    below = set(group).union(*(nx.descendants(web, child) for child in group))
    hung = {parents.get(child, above.get(child)) for child in group} - below - {None}
    best = max(hung, key=lambda place: (chances[place], -place), default=None)
    rest = {child: parent for child, parent in parents.items() if child not in group}
    kept = [replace(one, children=tuple(child for child in one.children if child not in group)) for one in hidden]
    # One that is left with a single child, and has no parent, is nothing.
    kept = [one for one in kept if len(one.children) + (one.parent is not None) > 1 and one.children]
    chance = chances[best] / len(group) if best is not None else 1.0
    return rest, [*kept, Hidden(tuple(group), best, quantized=True, chance=chance)]

"""The groups of an index: models of equal shapes, with their candidates and their families."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer

from mother.index.candidates import Near, near_misses, near_models, sharing_pairs, with_hubs, with_pairs
from mother.index.casts import originals
from mother.index.misses import Look
from mother.index.related import families, significant
from mother.index.store import Index, digests, read_rows, signatures

DIGESTS = ("tensors", "parts", "casts")  # columns


@dataclass
class Group:
    """Models of equal shapes: ids, keys of sketches, copies (place -> place), candidates, and families by label.

    `casts` are models that may be casts, by digests, and of which.
    """

    name: str
    ids: list[str]
    keys: list[str]
    copies: dict[int, int]
    near: Near
    labels: Int[np.ndarray, "models"]
    casts: dict[int, list[int]] = field(default_factory=dict)


def group_names(index: Index) -> list[tuple[str, int]]:
    """The groups of an index and how many models each has, largest first."""
    count: dict[str, int] = defaultdict(int)
    for table in index.tables(["group"]):
        for name in table["group"].to_pylist():
            count[name] += 1
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))


def load_group(
    index: Index,
    name: str,
    tests: float,
    error: float,
    control: str,
    more: Sequence[Path] = (),
    looking: Callable[[list[str]], Look] | None = None,
) -> Group:
    """Candidates and families of a group. `tests` is the number of pairs in all groups that could have been tested.

    `more` are files of models of other groups (mother/index/joined.py); `looking` gives, by the keys of models, what
    looks at near misses (mother/index/misses.py).
    """
    found = _read(index, name, more)
    ids, tensors = found.ids, found.digests["tensors"]
    copies = find_copies(ids, *tensors, found.own)
    single = np.array([place for place in range(len(ids)) if place not in copies])
    place = np.full(len(ids), -1, dtype=np.int64)
    place[single] = np.arange(len(single))

    def among(column: str) -> tuple[np.ndarray, np.ndarray]:
        some = place[found.digests[column][1]] >= 0
        return found.digests[column][0][some], place[found.digests[column][1][some]]

    casts = originals(*among("parts"), *among("casts"))
    sharing = sharing_pairs(*among("tensors"))
    sharing += [(min(ends), max(ends)) for child, some in casts.items() for ends in ((child, one) for one in some)]
    look = None if looking is None else looking([found.keys[at] for at in single])
    near, labels = relate(np.concatenate(found.signatures)[single], sharing, tests, error, control, look)
    everywhere = np.full(len(ids), -1, dtype=np.int64)
    everywhere[single] = labels
    for copy, original in copies.items():
        everywhere[copy] = everywhere[original]
    near.first, near.second = single[near.first], single[near.second]
    named = {int(single[child]): single[some].tolist() for child, some in casts.items()}
    return Group(name, ids, found.keys, copies, near, everywhere, named)


@dataclass
class _Read:
    """What an index holds of a group: digests by column, with the models that each is of; `own` models are its own."""

    ids: list[str]
    keys: list[str]
    signatures: list[np.ndarray]
    digests: dict[str, tuple[np.ndarray, np.ndarray]]
    own: int


def _read(index: Index, name: str, more: Sequence[Path]) -> _Read:
    ids, keys, values = [], [], []
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {column: [] for column in DIGESTS}
    own = 0
    for number, tables in enumerate((index.tables(["id", "key", "signature", *DIGESTS], name), map(read_rows, more))):
        for table in tables:
            if not len(table):
                continue
            for column, some in parts.items():
                found, owner = digests(table, column)
                some.append((found, owner + len(ids)))
            ids += table["id"].to_pylist()
            keys += table["key"].to_pylist()
            values.append(signatures(table))
        own = own if number else len(ids)
    joined = {
        column: (np.concatenate([one for one, _ in some]), np.concatenate([owner for _, owner in some]))
        for column, some in parts.items()
    }
    return _Read(ids, keys, values, joined, own)


def find_copies(
    ids: list[str],
    tensors: Integer[np.ndarray, "tensors"],
    owner: Integer[np.ndarray, "tensors"],
    own: int | None = None,
) -> dict[int, int]:
    """Models whose tensors all equal those of another one -> that one, the first by its id. Owners ascend.

    Of the first `own` models, whose matrices have the same names, a copy may lack tensors (a head, a pooler): the one
    with most tensors stands for all.
    """
    ends = np.searchsorted(owner, np.arange(len(ids) + 1))
    first: dict[bytes, int] = {}
    copies = {}
    for place in sorted(range(len(ids)), key=lambda place: ids[place]):
        held = tensors[ends[place] : ends[place + 1]].tobytes()
        if first.setdefault(held, place) != place:
            copies[place] = first[held]
    single = [place for place in range(len(ids) if own is None else own) if place not in copies]
    lacking = _lacking(single, ids, tensors, ends)
    return {copy: lacking.get(original, original) for copy, original in copies.items()} | lacking


def _lacking(
    places: list[int], ids: list[str], tensors: Integer[np.ndarray, "tensors"], ends: Integer[np.ndarray, "models1"]
) -> dict[int, int]:
    """Models whose tensors are some of another one's -> that one: with most tensors, then the first by its id."""
    some = np.concatenate([np.zeros(0, tensors.dtype), *(tensors[ends[at] : ends[at + 1]] for at in places)])
    value, count = np.unique(some, return_counts=True)
    kept: dict[int, list[int]] = defaultdict(list)
    found = {}
    for place in sorted(places, key=lambda at: (ends[at] - ends[at + 1], ids[at])):
        held = tensors[ends[place] : ends[place + 1]]
        many = count[np.searchsorted(value, held)]
        if len(held) and many.min() == 1:  # the most common case: it has a tensor of its own
            whole = None
        else:
            rarest = kept[int(held[many.argmin()])] if len(held) else []
            whole = next((at for at in rarest if np.isin(held, tensors[ends[at] : ends[at + 1]]).all()), None)
        if whole is None:
            for one in held[many > 1].tolist():
                kept[one].append(place)
        else:
            found[place] = whole
    return found


def relate(
    values: Float[np.ndarray, "models samples"],
    sharing: list[tuple[int, int]],
    tests: float,
    error: float,
    control: str,
    look: Look | None = None,
) -> tuple[Near, Int[np.ndarray, "models"]]:
    """Candidate pairs of related models of a group, and the label of each one's family; `sharing` are pairs, too.

    `look` tells which near misses are related after all; the error is then shared by both tests.
    """
    near = with_pairs(values, near_models(values), sharing, exact=True)
    error = error if look is None else error / 2
    passed = significant(near.z, tests, error, control)
    labels = families(len(values), near.first[passed], near.second[passed])
    if labels.max(initial=0) > 0:
        missed = near_misses(values, near, labels)
        found = significant(np.r_[near.z, missed.z], tests, error, control)[len(near.z) :]
        if look is not None:
            found[~found] = look(missed.first[~found], missed.second[~found])
        joining = missed.first[found], missed.second[found]
        labels = families(len(values), np.r_[near.first[passed], joining[0]], np.r_[near.second[passed], joining[1]])
        near = with_pairs(values, near, list(zip(*(ends.tolist() for ends in joining))))
    near = with_hubs(values, near, labels)
    inside = labels[near.first] == labels[near.second]
    return near.chosen(inside), labels


def members_of(group: Group) -> Iterator[tuple[Int[np.ndarray, "members"], Near]]:
    """Each family of a group that has more than one model, without copies, and its candidate pairs."""
    single = np.array([place not in group.copies for place in range(len(group.ids))])
    order = np.argsort(group.labels, kind="stable")
    of_pair = group.labels[group.near.first]
    pairs = np.argsort(of_pair, kind="stable")
    for label in range(group.labels.max() + 1):
        members = order[slice(*np.searchsorted(group.labels[order], [label, label + 1]))]
        members = members[single[members]]
        some = pairs[slice(*np.searchsorted(of_pair[pairs], [label, label + 1]))]
        if len(members) > 1:
            yield members, group.near.chosen(some)

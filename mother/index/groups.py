"""The groups of an index: models of equal shapes, with their candidates and their families."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer

from mother.index.candidates import Near, near_misses, near_models, sharing_pairs, with_hubs, with_pairs
from mother.index.misses import Look
from mother.index.related import families, significant
from mother.index.store import Index, read_rows, signatures, tensor_digests


@dataclass
class Group:
    """Models of equal shapes: ids, keys of sketches, copies (place -> place), candidates, and families by label."""

    name: str
    ids: list[str]
    keys: list[str]
    copies: dict[int, int]
    near: Near
    labels: Int[np.ndarray, "models"]


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
    ids, keys, parts, tensors, owners = [], [], [], [], []
    for table in chain(index.tables(["id", "key", "signature", "tensors"], name), map(read_rows, more)):
        if not len(table):
            continue
        digests, owner = tensor_digests(table)
        tensors.append(digests)
        owners.append(owner + len(ids))
        ids += table["id"].to_pylist()
        keys += table["key"].to_pylist()
        parts.append(signatures(table))
    digests, owner = np.concatenate(tensors), np.concatenate(owners)
    copies = find_copies(ids, digests, owner)
    single = np.array([place for place in range(len(ids)) if place not in copies])
    values = np.concatenate(parts)[single]
    place = np.full(len(ids), -1, dtype=np.int64)
    place[single] = np.arange(len(single))
    some = place[owner] >= 0
    sharing = sharing_pairs(digests[some], place[owner[some]])
    look = None if looking is None else looking([keys[at] for at in single])
    near, labels = relate(values, sharing, tests, error, control, look)
    everywhere = np.full(len(ids), -1, dtype=np.int64)
    everywhere[single] = labels
    for copy, original in copies.items():
        everywhere[copy] = everywhere[original]
    near.first, near.second = single[near.first], single[near.second]
    return Group(name, ids, keys, copies, near, everywhere)


def find_copies(
    ids: list[str], digests: Integer[np.ndarray, "tensors"], owner: Integer[np.ndarray, "tensors"]
) -> dict[int, int]:
    """Models whose tensors all equal those of another one -> that one, the first by its id. Owners ascend."""
    ends = np.searchsorted(owner, np.arange(len(ids) + 1))
    first: dict[bytes, int] = {}
    copies = {}
    for place in sorted(range(len(ids)), key=lambda place: ids[place]):
        own = digests[ends[place] : ends[place + 1]].tobytes()
        if first.setdefault(own, place) != place:
            copies[place] = first[own]
    return copies


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
    near = with_pairs(values, near_models(values), sharing)
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
    return Near(near.first[inside], near.second[inside], near.square[inside], near.z[inside], near.recall), labels


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
            near = group.near
            yield members, Near(near.first[some], near.second[some], near.square[some], near.z[some])

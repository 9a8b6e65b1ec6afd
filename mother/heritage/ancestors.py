"""Ancestors that are not in the collection: siblings whose parent is absent hang under a hidden model.

Of siblings without their parent the tree makes the one that moved least the hub of the others. It gives itself away: it
has directions of its own that all its neighbours lack alike. A true parent has none: what its children share is new
to it (a common drift), or they share nothing.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from mother.evidence.second_pass import SecondPass

# Share of directions that a hub's neighbours must lack together. Independent updates share one or two in a hundred
# by chance (the width of differences.NEAR), siblings of an absent parent a good part of the hub's own.
PRIVATE = 0.06
NEW = 0.05  # mean newness from which shared directions are a drift away from the hub, not its own


@dataclass(frozen=True)
class Hidden:
    """An absent model: its children, and its parent among the models that are there (None: it is a root)."""

    children: tuple[int, ...]
    parent: int | None
    above: int | None  # the model from which the family comes; the parent's own parent, if the parent is of the family
    private: float  # share of the hub's directions that the others lack


@dataclass(frozen=True)
class _Family:
    """Models that stand at one absent model, and the largest share of a hub's directions that the others lack."""

    members: set[int]
    private: float


def _lacking(second_pass: SecondPass, hub: int, one: int, others: list[int]) -> float:
    """Mean share of the directions from the hub to others in which `one` differs from the hub like them."""
    found = [
        value.share for other in others if other not in (hub, one) and (value := second_pass.alike(hub, other, one))
    ]
    return float(np.mean(found)) if found else 0.0


def _newness(second_pass: SecondPass, hub: int, family: list[int]) -> float:
    """Mean newness, seen from the hub, of what two others of the family share against it; 0 if nothing."""
    others = permutations([one for one in family if one != hub], 2)
    found = [value for one, other in others if (value := second_pass.alike(hub, one, other))]
    share = sum(value.share for value in found)
    return sum(value.newness for value in found) / share if share > 0 else 0.0


def find_hidden(second_pass: SecondPass, parents: dict[int, int], fixed: set[int]) -> list[Hidden]:
    """Hidden ancestors in a recovered tree, `parents[child]`; edges into `fixed` models are exact and stay.

    Each hub that its neighbours differ from alike is one of a family of siblings, hubs next to each other of the
    same. Of the family one may be the parent of the hidden model: that to which the shared directions are new. A
    model belongs to one family at most.
    """
    near: dict[int, list[int]] = {}
    for child, parent in parents.items():
        if child not in fixed:
            near.setdefault(child, []).append(parent)
            near.setdefault(parent, []).append(child)
    families: list[_Family] = []
    for hub in sorted(near):
        lacking = {one: _lacking(second_pass, hub, one, near[hub]) for one in near[hub]}
        group = [one for one in near[hub] if lacking[one] > PRIVATE]
        if len(group) < 2 or _newness(second_pass, hub, [hub, *group]) > NEW:
            continue
        new = _Family({hub, *group}, float(np.mean([lacking[one] for one in group])))
        # Two hubs side by side stand at the same absent model.
        for other in [known for known in families if len(known.members & new.members) > 1]:
            families.remove(other)
            new = _Family(new.members | other.members, max(new.private, other.private))
        families.append(new)
    found = []
    taken: set[int] = set()
    for one_family in families:
        family = one_family.members
        if family & taken:
            continue
        for above in [parents[one] for one in sorted(family) if parents.get(one, one) not in family]:
            # The parent of the family's top, too, is either the hidden model's parent or one of its children.
            if max(_lacking(second_pass, one, above, sorted(family)) for one in family) > PRIVATE:
                family = family | {above}
        members = sorted(family)
        newness = {one: _newness(second_pass, one, members) for one in members}
        oldest = max(members, key=lambda one: newness[one])
        above = [parents[one] for one in members if one in parents and parents[one] not in family]
        taken |= family
        top = above[0] if above else None
        if newness[oldest] > NEW:
            found.append(Hidden(tuple(one for one in members if one != oldest), oldest, top, one_family.private))
        else:
            found.append(Hidden(tuple(members), top, top, one_family.private))
    return found


def lift_parents(parents: dict[int, int], hidden: list[Hidden]) -> dict[int, int]:
    """The tree with the parents of hidden models above their families.

    Such a parent may have stood below a sibling; left there, its edges would close a circle through the hidden model.
    """
    lifted = dict(parents)
    for one in hidden:
        if one.parent is not None and parents.get(one.parent) in one.children:
            del lifted[one.parent]
            if one.above is not None:
                lifted[one.parent] = one.above
    return lifted

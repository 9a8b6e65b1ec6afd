"""Cut a large family into blocks that are traced one by one: neighbours with all that may be their parents.

A block's core are neighbours in the spanning tree of least distance; its halo are the candidates of these. Evidence on
a model of the core is complete: whatever it is compared with is in the block. Memory is that of a block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_tree, minimum_spanning_tree

from mother.index.candidates import Near

CORE = 192  # budget: models of a block that it is made for: hubs are in every block, so large ones do less twice
BLOCK = 800  # budget: models of a block with its halo
HALO = 16  # budget: nearest candidates of a core model that are in its block: parents of merges are among these
HUB = 64  # candidates from which a model is a hub, which is in the blocks of all whose candidate it is


@dataclass(frozen=True)
class Block:
    """Places in the group of a block's models: its core, and all of them."""

    core: list[int]
    models: list[int]


def walk(near: Near, members: Int[np.ndarray, "members"]) -> list[int]:
    """The members so that neighbours in the spanning tree of least distance stand together: one subtree at a time."""
    n = len(members)
    first, second = np.searchsorted(members, near.first), np.searchsorted(members, near.second)
    # scipy takes a weight of 0 for no edge; only the order of distances counts.
    weight = np.argsort(np.argsort(near.square, kind="stable")) + 1.0
    tree = minimum_spanning_tree(coo_matrix((weight, (first, second)), (n, n)).tocsr())
    start = int(np.bincount(np.concatenate([first, second]), minlength=n).argmax())
    tree = breadth_first_tree((tree + tree.T).tocsr(), start, directed=False)
    order, stack = [], [start]
    while stack:
        order.append(stack.pop())
        stack += tree.indices[tree.indptr[order[-1]] : tree.indptr[order[-1] + 1]].tolist()
    return members[order].tolist()


def cut(
    near: Near,
    members: Int[np.ndarray, "members"],
    core: int = CORE,
    most: int = BLOCK,
    casts: Mapping[int, list[int]] = MappingProxyType({}),
) -> list[Block]:
    """Blocks whose cores are a family, each of at most `most` models, but for what casts in it may have been made from.

    `near` are the pairs of the family alone, which they connect; `members` are in ascending order. Pairs that digests
    tell are in a block however far the two are apart. By `casts`, see Group, each block can tell which of its models
    are casts, those of its halo as well.
    """
    count = np.bincount(np.concatenate([near.first, near.second]), minlength=int(members.max()) + 1)
    beside: dict[int, list[int]] = {member: [] for member in members.tolist()}
    for pair in np.lexsort((near.square, ~near.exact)):
        i, j = int(near.first[pair]), int(near.second[pair])
        for one, other in ((i, j), (j, i)):
            if near.exact[pair] or len(beside[one]) < HALO or count[other] >= HUB:
                beside[one].append(other)
    blocks: list[Block] = []
    some: list[int] = []
    everyone: set[int] = set()
    for member in walk(near, members):
        own = {member, *beside[member][: most // 4]}
        if some and (len(some) == core or len(everyone | own) > most):
            blocks.append(_closed(some, everyone, casts))
            some, everyone = [], set()
        some.append(member)
        everyone |= own
    return [*blocks, _closed(some, everyone, casts)]


def _closed(core: list[int], models: set[int], casts: Mapping[int, list[int]]) -> Block:
    """A block, with all that its casts may have been made from."""
    return Block(core, sorted(models.union(*(casts.get(one, ()) for one in models))))

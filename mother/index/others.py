"""A model among models of other names and shapes: which groups may be its relatives', and its signature in these.

Wrappers and heads are no part of names and shapes (mother/io/layers.py), so models with others of these are of one
group. A group of other names, or of more or fewer matrices, is looked at where half of the smaller model's weights can
be compared: by equal names, else as mother/evidence/matching.py tells which matrix is which. Of what the model lacks
the signature is 0, which adds nothing to scores.
"""

import json
from collections.abc import Callable, Mapping

from mother.collection.workspace import ALIKE
from mother.evidence.alignment import renamed
from mother.evidence.matching import entries, match_models, worth_matching
from mother.evidence.sketch import Sketch
from mother.index.store import Index
from mother.io.layers import Layer

MOST = 3  # budget: other groups that are looked at, those that share most weights with the model
TRIED = 6  # budget: groups of other names whose sketches are looked at, those that are nearest in size
MATCHED = 8  # budget: models of a group by whose sketches matrices of other names are found

Shapes = dict[Layer, tuple[int, int]]


def shapes_text(shapes: Shapes) -> str:
    """Names and shapes as an index keeps them."""
    return json.dumps(sorted([*layer, *shape] for layer, shape in shapes.items()))


def shapes_of(text: str) -> Shapes:
    """What `shapes_text` gave. Raises ValueError for anything else."""
    return {Layer(block, kind): (rows, columns) for block, kind, rows, columns in json.loads(text)}


def group_shapes(index: Index) -> dict[str, Shapes]:
    """Names and shapes of each group of an index."""
    found: dict[str, str] = {}
    for table in index.tables(["group", "shapes"]):
        for name, text in set(zip(table["group"].to_pylist(), table["shapes"].to_pylist())):
            found.setdefault(name, text or "[]")
    return {name: shapes_of(text) for name, text in found.items()}


def likely_groups(own: Shapes, groups: Mapping[str, Shapes]) -> tuple[list[tuple[int, str]], list[str]]:
    """(entries that can be compared, group) of those with equal names, most first; and groups of other names to try."""
    same, alike, size = [], [], entries(own.values())
    for name, shapes in groups.items():
        theirs = entries(shapes.values())
        common = entries(shape for layer, shape in own.items() if shapes.get(layer) == shape)
        if common >= ALIKE * min(size, theirs):
            same.append((common, name))
        elif worth_matching(own, shapes):
            alike.append((abs(theirs - size), name))
    return sorted(same, key=lambda one: (-one[0], one[1])), [name for _, name in sorted(alike)[:TRIED]]


def other_groups(
    index: Index, sketch: Sketch, own: str, sketches_of: Callable[[str, int], list[Sketch]]
) -> list[tuple[str, Sketch, Shapes]]:
    """(group, the model under its names, its shapes) of the groups that a model may have relatives in, but its own.

    `sketches_of` gives some sketches of a group, as many as can be had.
    """
    shapes = group_shapes(index)
    same, alike = likely_groups(sketch.shapes, {name: some for name, some in shapes.items() if name != own})
    found = [(common, name, sketch, shapes[name]) for common, name in same]
    for name in alike:
        if some := sketches_of(name, MATCHED):
            match, _ = match_models([sketch], some)
            if match:
                size = entries(sketch.shapes[layer] for layer in match)
                found.append((size, name, renamed(sketch, match), shapes[name]))
    found.sort(key=lambda one: (-one[0], one[1]))
    return [(name, one, shapes) for _, name, one, shapes in found[:MOST]]

"""What made models by exact operations, put together from what all blocks of a family tell."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mother.graph.acyclic import find_circle
from mother.heritage.merged import SPARSE
from mother.index.traced import EDGE, MERGE, STORED, TWIN

if TYPE_CHECKING:
    import pyarrow as pa

Parents = dict[int, dict[str, Any]]  # parent -> what is said of the edge
Exact = dict[int, Parents]  # by child


@dataclass
class Stored:
    """How models are stored: the mantissa bits, which are quantized, and how those are packed that are.

    `twins` are log odds by (twin, original, model), as of `twin_ratios`: which rounding a model holds.
    """

    bits: dict[int, float] = field(default_factory=dict)
    quantized: list[int] = field(default_factory=list)
    packed: dict[int, dict[str, Any]] = field(default_factory=dict)
    twins: dict[tuple[int, int, int], float] = field(default_factory=dict)


def read_exact(table: "pa.Table", place: dict[str, int]) -> tuple[Exact, Stored]:
    """What is exact, and how models are stored."""
    exact: Exact = defaultdict(dict)
    merges: dict[int, dict[float, Parents]] = defaultdict(lambda: defaultdict(dict))
    stored = Stored()
    wanted = np.flatnonzero([one in (EDGE, MERGE, STORED, TWIN) for one in table["what"].to_pylist()])
    for row in table.take(wanted).to_pylist():
        child, parent = place.get(row["child"]), place.get(row["parent"])
        if row["what"] == STORED and child is not None:
            facts = json.loads(row["facts"])
            stored.bits[child], stored.packed[child] = row["weight"], facts["packed"]
            stored.quantized += [child] if facts["quantized"] else []
        elif row["what"] == TWIN:
            original = place.get(json.loads(row["facts"])["original"])
            if child is not None and parent is not None and original is not None:
                stored.twins[parent, original, child] = row["weight"]
        elif child is not None and parent is not None:
            parents = exact[child] if row["what"] == EDGE else merges[child][row["weight"]]
            parents[parent] = json.loads(row["facts"])
    # Blocks may tell relations that close a circle.
    while circle := find_circle([(parent, child) for child, parents in exact.items() for parent in parents]):
        del exact[circle[-1][1]]
    name = {at: one for one, at in reversed(place.items())}  # of copies the original's, which comes first
    choose_merges(exact, {at: merges[at] for at in sorted(merges, key=lambda at: name[at])}, place)
    return exact, stored


def choose_merges(exact: Exact, merges: Mapping[int, Mapping[float, Parents]], place: Mapping[str, int]) -> None:
    """Add to `exact` of each merge the likeliest combination that closes no circle with what made the others.

    One model after the other, as mother/heritage/merged.py goes among all models: first combinations, then parts of
    updates, of and since models that no exact operation made.
    """
    for sparse in (False, True):
        made = set(exact)
        for child, options in merges.items():
            for _, parents in sorted(options.items(), key=lambda option: option[0]):
                facts = next(iter(parents.values()))
                if child in exact or (facts["method"] == SPARSE) != sparse:
                    continue
                if sparse and made & {*parents, place.get(facts["base"])}:
                    continue
                if child not in _with_ancestors(exact, parents):
                    exact[child] = parents


def _with_ancestors(exact: Exact, models: Iterable[int]) -> set[int]:
    """Models, and all that exact relations put above them."""
    found, left = set(), list(models)
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += exact.get(one, ())
    return found

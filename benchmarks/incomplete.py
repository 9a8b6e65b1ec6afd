"""Examples with models taken away, so that a fit sees what collections without a root, or of two models, look like."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from benchmarks.traced import Case
from mother.heritage.fitting import Example

WEIGHT = 0.1  # by eye: of an example with models taken away, against a whole one


def without(example: Example, gone: Collection[int]) -> Example | None:
    """The example without some models, and without what was made from these exactly; None where fewer than two stay."""
    evidence, n = example.evidence, len(example.evidence.candidate)
    gone = {*gone} | {child for child, parent in example.forced.items() if parent in gone}
    kept = [place for place in range(n) if place not in gone]
    if len(kept) < 2:
        return None
    new = np.full(n, -1)
    new[kept] = np.arange(len(kept))
    both = np.ix_(kept, kept)
    there = (new[evidence.ends] >= 0).all(axis=0) & (new[evidence.third] >= 0)
    parents: dict[int, int] = {}
    absent: dict[int, str] = {}
    forced = {int(new[child]): int(new[parent]) for child, parent in example.forced.items() if child not in gone}
    for child in kept:
        parent = example.parents.get(child)
        if parent in gone:
            absent[int(new[child])] = f"taken away: {parent}"
        elif child in example.absent:
            absent[int(new[child])] = example.absent[child]
        while parent is not None and parent in gone:
            parent = example.parents.get(parent)
        if parent is not None:
            parents[int(new[child])] = int(new[parent])
    orphans = [place for place in range(len(kept)) if place not in parents]
    twins = {int(new[child]): int(new[twin]) for child, twin in example.twins.items() if not {child, twin} & gone}
    absent |= dict.fromkeys(orphans, "the root") if len(orphans) > 1 else {}
    return Example(
        replace(
            evidence,
            structure=evidence.structure[both],
            between=evidence.between[there],
            ends=new[evidence.ends[:, there]],
            third=new[evidence.third[there]],
            direction=evidence.direction[both],
            exact=evidence.exact[both],
            one_way=evidence.one_way[both],
            counted=evidence.counted[both],
            candidate=evidence.candidate[both],
        ),
        parents,
        forced,
        {child: name for child, name in absent.items() if child not in forced},
        WEIGHT,
        twins,
        [(int(new[parent]), int(new[child])) for parent, child in example.excluded if not {parent, child} & gone],
    )


def _incomplete(example: Example, rng: np.random.Generator) -> Iterable[Example | None]:
    """The example without its root; a parent and a child alone; two siblings alone."""
    everyone = range(len(example.evidence.candidate))
    children = Counter(example.parents.values())
    roots = [place for place in everyone if place not in example.parents and children[place]]
    if roots:
        yield without(example, roots)
    trained = {child: parent for child, parent in example.parents.items() if child not in example.forced}
    edges = [(parent, child) for child, parent in trained.items() if parent not in example.forced]
    siblings = [
        (one, other)
        for one, parent in trained.items()
        for other, same in trained.items()
        if one < other and parent == same and example.evidence.candidate[one, other]
    ]
    for some in (edges, siblings):
        if some:
            pair = some[int(rng.integers(len(some)))]
            yield without(example, [place for place in everyone if place not in pair])


def taught(cases: Iterable[Case]) -> list[Example]:
    """What a fit learns from some cases: each whole, and with models taken away."""
    examples: list[Example] = []
    for case in cases:
        rng = np.random.default_rng(len(case.members))
        examples += [case.example, *(one for one in _incomplete(case.example, rng) if one is not None)]
    return examples

"""Which models of a group may be casts of which, by digests alone: exact, and free where an index is read.

Of some matrices an index keeps the digest as it is, and those that it would have after each cast. A cast has for each
of these one that its original has or would have. That all other tensors agree is told by sketches
(mother/heritage/casts.py).
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from jaxtyping import Integer

from mother.evidence.facts import CASTS
from mother.evidence.sketch import Sketch
from mother.io.layers import Layer, sort_key

PROBED = 8  # budget: matrices of each model of which casts are kept
ORIGINALS = 8  # budget: models that one may be a cast of


def number_of(name: str, digest: str) -> int:
    """64 bits of the digest of a tensor's name and its values."""
    joined = f"{name}\0{digest}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(joined).digest()[:8], "little")


def cast_numbers(sketch: Sketch, among: Mapping[Layer, tuple[int, int]] | None = None) -> dict[str, list[int]]:
    """`parts`: what is kept of some matrices, as numbers; `casts`: what casts would make of these, where it is another.

    Among models of other shapes the matrices are some of theirs.
    """
    layers = sorted(sketch.shapes if among is None else among, key=sort_key)
    digests = sketch.facts.part_digests
    names = [str(layer) for layer in layers[:: max(1, -(-len(layers) // PROBED))]]
    names = [name for name in names if name in digests["float32"]]
    parts = {number_of(name, digests["float32"][name]) for name in names}
    casts = {number_of(name, digests[kind][name]) for name in names for kind in CASTS}
    return {"parts": sorted(parts), "casts": sorted(casts - parts)}


def originals(
    parts: Integer[np.ndarray, "parts"],
    of_part: Integer[np.ndarray, "parts"],
    casts: Integer[np.ndarray, "casts"],
    of_cast: Integer[np.ndarray, "casts"],
) -> dict[int, list[int]]:
    """Model -> those that it may be a cast of, ORIGINALS at most; numbers and the models that each is of."""
    rounded = np.isin(parts, casts)
    if not rounded.any():
        return {}
    wanted = np.isin(of_part, of_part[rounded])  # models of which all parts may be those of another, some rounded
    own: dict[int, set[int]] = defaultdict(set)
    for part, child in zip(parts[wanted].tolist(), of_part[wanted].tolist()):
        own[child].add(part)
    asked = parts[wanted]
    holders: dict[int, list[int]] = defaultdict(list)
    by_cast: dict[int, set[int]] = defaultdict(set)
    for numbers_, owner in ((casts, of_cast), (parts, of_part)):
        some = np.isin(numbers_, asked)
        for one, parent in zip(numbers_[some].tolist(), owner[some].tolist()):
            holders[one].append(parent)
            if numbers_ is casts:
                by_cast[parent].add(one)
    has = {one: set(some) for one, some in holders.items()}
    found = {}
    for child, wants in own.items():
        order = sorted(wants, key=lambda one: len(has[one]))
        fitting = set.intersection(*(has[one] for one in order)) - {child}
        fitting = {parent for parent in fitting if by_cast.get(parent, set()) & wants}
        if fitting:
            found[child] = sorted(fitting)[:ORIGINALS]
    return found

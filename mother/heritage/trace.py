"""From measurements to a typed Model Graph with probabilities (method "map")."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import numpy as np
import torch

from mother.evidence.alignment import align
from mother.evidence.candidates import candidate_pairs
from mother.evidence.dora import row_scaled_rank
from mother.evidence.facts import SKETCH_ENTRIES, common_grid, mantissa
from mother.evidence.first_pass import Distances, take_first_pass
from mother.evidence.low_rank import is_lora
from mother.evidence.relatedness import pairs_that_count, related_components
from mother.evidence.second_pass import take_second_pass
from mother.evidence.sketch import Sketch, sketch_models
from mother.heritage.absent import find_absent
from mother.heritage.calibration import Coefficients, read_coefficients
from mother.heritage.casts import find_casts, twin_ratios
from mother.heritage.relations import exact_relations, find_aliases, is_not_trained
from mother.heritage.trees import Heritage, recover_clusters
from mother.io.checkpoint import Checkpoint
from mother.io.runtime import versions
from mother.io.snapshots import Snapshot

PASSES_SCHEMA = 13  # raise it when a measurement of a pair changes its meaning

# progress(title)(total)(count): how much of the total has been done since the last call, 1 where it does not say
Progress = Callable[[str], Callable[[int], Callable[..., object]]]


def trace(
    checkpoints: Sequence[Checkpoint],
    device: torch.device,
    error: float = 0.01,
    coefficients: Coefficients | None = None,
    progress: Progress = lambda title: lambda total: lambda *count: None,
    keep: Path | None = None,
    sketch: int = SKETCH_ENTRIES,
    based: Mapping[str, str] = MappingProxyType({}),
) -> Heritage:
    """Recover the heritage of models: read each once, then `trace_sketches`.

    Of each matrix at most `sketch` entries are compared. What is measured is kept in the folder `keep`: an interrupted
    run goes on, and a second one of the same files reads none of them. Models that cannot be read are left out.
    """
    with nullcontext(keep) if keep is not None else TemporaryDirectory() as folder:
        taken = sketch_models(checkpoints, Path(folder) / "models", sketch, progress("reading"))
        heritage = trace_sketches(taken.sketches, device, error, coefficients, progress, keep, based)
    return replace(heritage, left_out=taken.left_out, reused=heritage.reused + taken.reused)


def trace_sketches(
    sketches: Sequence[Sketch],
    device: torch.device,
    error: float = 0.01,
    coefficients: Coefficients | None = None,
    progress: Progress = lambda title: lambda total: lambda *count: None,
    keep: Path | None = None,
    based: Mapping[str, str] = MappingProxyType({}),
) -> Heritage:
    """Recover heritage: relatedness, exact relations, evidence, the most probable tree of each cluster.

    `error` bounds the probability of a single false relation among independently initialised models.
    Without `coefficients` those that come with the project are used. Models are sorted by id first, so that the order
    of the collection does not matter. What is measured is kept in the folder `keep`. `based` gives the base that an
    adapter is applied to.
    """
    aligned = align(sorted(sketches, key=lambda sketch: sketch.model))
    sketches = aligned.sketches
    heritage, second = measure(sketches, device, error, progress, keep, based=based)
    heritage = recover_clusters(heritage, coefficients or read_coefficients())
    ranks = Snapshot(keep / "kinds.npz" if keep else None, second.key)
    edges = [(parent, child) for cluster in heritage.clusters for child, parent in cluster.parents.items()]
    scaled = row_scaled_ranks(heritage, sketches, edges, ranks)
    return replace(heritage, row_scaled=scaled, matched=aligned.matched)


def measure(
    sketches: Sequence[Sketch],
    device: torch.device,
    error: float,
    progress: Progress = lambda title: lambda total: lambda *count: None,
    keep: Path | None = None,
    core: set[int] | None = None,
    based: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Heritage, Snapshot]:
    """Both passes and exact relations, without trees; and the snapshot of the second pass. Sketches are sorted by id.

    With a `core` (places) all models are taken for related, and what is measured is what edges to and from models of
    the core need: their pairs, and the pairs of two models that one of them is compared with.
    """
    first = first_pass_snapshot(sketches, keep)
    related = core is None
    distances = Distances()
    found = take_first_pass(sketches, device, progress("first pass"), first, related, distances)
    labels = np.zeros(len(sketches), dtype=np.int64)
    if related:
        labels = related_components(found.relatedness, error, pairs_that_count(found.models, based))
    aliases = find_aliases(found)
    singles = [place for place in range(len(found.models)) if place not in aliases]
    casts = find_casts(found, singles, labels)
    not_trained = {place for place in singles if is_not_trained(found, place, casts)}
    candidates, neighbours = candidate_pairs(found, labels, aliases, not_trained, core)
    grids = [common_grid(facts.grids) for facts in found.facts]
    bits = [mantissa(facts) for facts in found.facts]
    looked_at = hashlib.sha256(repr((found.models, candidates, neighbours, grids, bits)).encode()).hexdigest()
    second = Snapshot(keep / "second_pass.npz" if keep else None, first.key | {"pairs": looked_at})
    second_pass = take_second_pass(
        sketches, candidates, neighbours, grids, bits, device, progress("second pass"), second, core, distances
    )
    if core is not None:  # merges are looked for among the neighbours of a model
        near = [some if place in core else [] for place, some in enumerate(neighbours)]
        second_pass = replace(second_pass, neighbours=near)
    relations = exact_relations(sketches, found, second_pass, casts)
    reused = first.before + second.before
    heritage = Heritage(found, second_pass, labels, aliases, relations, not_trained, [], reused)
    twins = twin_ratios(sketches, found, second_pass, relations, core)
    absent = find_absent(sketches, found, second_pass, relations, labels.tolist()) if related else []
    return replace(heritage, twins=twins, absent=absent), second


def first_pass_snapshot(sketches: Sequence[Sketch], keep: Path | None) -> Snapshot:
    """Where the first pass over these models is kept, in whatever order they are given."""
    if keep is None:
        return Snapshot(None, {})
    keys = sorted((sketch.model, sketch.key) for sketch in sketches)
    digest = hashlib.sha256(repr(keys).encode()).hexdigest()
    return Snapshot(keep / "first_pass.npz", {"models": digest, "versions": versions(), "schema": PASSES_SCHEMA})


def row_scaled_ranks(
    heritage: Heritage, sketches: Sequence[Sketch], edges: Sequence[tuple[int, int]], snapshot: Snapshot
) -> dict[tuple[int, int], int | None]:
    """Ranks of DoRA: by (parent, child) of those of the edges that are of full rank, None where the update was none."""
    known = {(parent, child): rank for parent, child, rank in (snapshot.load() or (0, {}, []))[2]}
    second_pass, found = heritage.second_pass, {}
    for parent, child in edges:
        p = second_pass.number(parent, child)
        if child in heritage.relations or p is None or is_lora(second_pass, p):
            continue
        full = np.flatnonzero((second_pass.arrays["energy"][:, p] > 0) & (second_pass.arrays["full"][:, p] > 0))
        if not len(full):
            continue
        if (parent, child) not in known:
            # The matrix with the fewest columns: the search for a row space goes by their square.
            layer = min((second_pass.layers[row] for row in full), key=lambda layer: sketches[parent].shapes[layer][1])
            known[parent, child] = row_scaled_rank(sketches[parent].read(layer), sketches[child].read(layer))
        found[parent, child] = known[parent, child]
    snapshot.save(1, lambda: ({}, [[*ends, rank] for ends, rank in found.items()]), now=True)
    return found

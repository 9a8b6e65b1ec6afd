"""From measurements to a typed Model Graph with probabilities (method "map")."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.csgraph import minimum_spanning_tree

from mother.ancestors import Hidden, find_hidden, lift_parents
from mother.arborescence import edge_marginals, minimum_spanning_arborescence
from mother.calibration import Coefficients, log_weights, read_coefficients
from mother.checkpoints import Checkpoint
from mother.clusters import related_components
from mother.evidence import Evidence, gather, is_lora
from mother.floats import MANTISSA
from mother.measurements import versions
from mother.pairs import Pairs, compare
from mother.relations import (
    EXPLAINED,
    Grid,
    common_ratio,
    explained_share,
    find_merge,
    row_scaled_rank,
    scattered_equality,
)
from mother.sketches import SKETCH, Facts, Sketch, sketch_models
from mother.snapshots import Snapshot
from mother.survey import Survey, survey

CANDIDATES = 8  # nearest models that may be a parent
NEIGHBOURS = 16  # nearest models that a model in the middle, and the parents of a merge, are looked for among
SMALL = 12  # clusters of at most so many models: every pair is a candidate
SAMPLED_LAYERS = 3  # matrices that the search for parts of task vectors reads
SPARSE = 0.02  # share of zeros from which a model may be pruned
SCHEMA = 2  # raise it when a measurement of a pair changes its meaning

# progress(title)(total)(count): how much of the total has been done since the last call, 1 where it does not say
Progress = Callable[[str], Callable[[int], Callable[..., object]]]


def find_aliases(survey: Survey) -> dict[int, int]:
    """Copies: place of each model whose tensors all equal those of another one -> place of that one.

    Of equal models the one with most tensors stands for all, and of those the one whose id comes first. A
    copy may lack tensors (a head, a pooler), never have other values.
    """
    order = sorted(range(len(survey.models)), key=lambda k: (-len(survey.facts[k].digests), survey.models[k]))
    aliases: dict[int, int] = {}
    kept: dict[frozenset, list[int]] = {}
    for k in order:
        digests = survey.facts[k].digests
        matrices = frozenset((name, digests[name]) for name in map(str, survey.layers) if name in digests)
        same = [other for other in kept.get(matrices, ()) if digests.items() <= survey.facts[other].digests.items()]
        if same:
            aliases[k] = same[0]
        else:
            kept.setdefault(matrices, []).append(k)
    return aliases


def common_grid(grids: list[Grid | None]) -> Grid | None:
    """The grid of a model: that of most of its matrices, or None."""
    found = [grid for grid in grids if grid is not None]
    return max(found, key=found.count) if len(found) > len(grids) / 2 else None


def mantissa(facts: Facts) -> int:
    """Mantissa bits of the coarsest type that holds a model's matrices exactly."""
    return min((MANTISSA[half] for half in facts.fits), default=MANTISSA["float32"])


def find_casts(survey: Survey, places: list[int], labels: Int[np.ndarray, "models"]) -> dict[int, tuple[int, str]]:
    """Casts: place of a model in half precision -> (place of the model it was rounded from, type).

    Exact: the digests of every shared tensor, once rounded, are equal (of large ones those of the part that is kept).
    Of several parents the one in full precision with the first id is taken.
    """
    found = {}
    for child in places:
        facts = survey.facts[child]
        for half in sorted(facts.fits):
            parents = []
            for parent in places:
                other = survey.facts[parent]
                if parent == child or labels[parent] != labels[child] or half in other.fits:
                    continue
                shared = facts.digests.keys() & other.digests.keys()
                if shared >= set(facts.digests) & {str(layer) for layer in survey.layers} and all(
                    facts.part_digests["float32"][name] == other.part_digests[half][name] for name in shared
                ):
                    parents.append((bool(other.fits), survey.models[parent], parent))
            if parents and child not in found:
                found[child] = (min(parents)[2], half)
    return found


def _is_rough(survey: Survey, place: int) -> bool:
    """Whether a model lies on a grid or has zeros."""
    facts = survey.facts[place]
    return common_grid(facts.grids) is not None or facts.zeros > SPARSE * facts.entries


def is_altered(survey: Survey, place: int, casts: dict[int, tuple[int, str]]) -> bool:
    """Whether a model shows that no training made it: cast, on a grid, or with zeros."""
    return place in casts or _is_rough(survey, place)


def comparable_square(survey: Survey) -> Float[np.ndarray, "models models"]:
    """Squared distances, scaled up where only part of the entries could be compared."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(survey.shared > 0, survey.square / survey.shared, np.inf)


def candidate_pairs(
    survey: Survey,
    labels: Int[np.ndarray, "models"],
    aliases: dict[int, int],
    altered: set[int],
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Pairs that may be edges, and the neighbours of each model, nearest first.

    Within a cluster: the nearest models that training may have made, the two nearest of the others, the edges of the
    minimum spanning tree, and all pairs of small clusters.
    """
    square = comparable_square(survey)
    n = len(square)
    usable = np.array([k not in aliases for k in range(n)], dtype=bool)
    allowed = usable[:, None] & usable[None, :] & (labels[:, None] == labels[None, :]) & np.isfinite(square)
    np.fill_diagonal(allowed, False)
    pairs: set[tuple[int, int]] = set()
    neighbours = []
    sizes = np.bincount(labels[usable], minlength=labels.max() + 1)
    for k in range(n):
        order = [int(m) for m in np.argsort(square[k], kind="stable") if allowed[k, m]]
        near = [m for m in order if m not in altered][:NEIGHBOURS]
        few = near[:CANDIDATES] + [m for m in order if m in altered][:2]
        chosen = order if sizes[labels[k]] <= SMALL else few
        pairs |= {(min(k, m), max(k, m)) for m in chosen}
        neighbours.append(near)
    tree = minimum_spanning_tree(np.where(allowed, square + np.finfo(float).tiny, 0)).tocoo()
    pairs |= {(min(i, j), max(i, j)) for i, j in zip(tree.row.tolist(), tree.col.tolist())}
    return sorted(pairs), neighbours


@dataclass(frozen=True)
class Relation:
    """How one model came from others, read off exactly."""

    kind: str  # "cast", "prune", "quantize" or "merge"
    parents: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


def exact_relations(survey: Survey, pairs: Pairs, casts: dict[int, tuple[int, str]]) -> dict[int, Relation]:
    """Models that an exact operation made from others of the collection."""
    found = {child: Relation("cast", (parent,), {"dtype": half}) for child, (parent, half) in casts.items()}
    arrays = pairs.arrays
    grids = [common_grid(facts.grids) for facts in survey.facts]
    best: dict[int, tuple[float, Relation]] = {}
    for p, ends in enumerate(zip(pairs.first.tolist(), pairs.second.tolist())):
        changed = arrays["energy"][:, p] > 0
        if not changed.any():
            continue
        energy = float(arrays["energy"][:, p].sum())
        differing = (arrays["entries"] - arrays["equal"])[:, p].sum()
        for (parent, child), back in ((ends, ""), (ends[::-1], "_back")):
            relation = None
            zeroed = arrays[f"zeroed{back}"][:, p].sum()
            if zeroed == differing:
                share = survey.facts[child].zeros / survey.facts[child].entries
                relation = Relation("prune", (parent,), {"zeros": round(share, 4)})
            elif arrays[f"quantized{back}"][changed, p].mean() > 0.5 and grids[parent] is None:
                grid = grids[child]
                if grid is not None or survey.facts[child].fits > survey.facts[parent].fits:
                    relation = Relation("quantize", (parent,), {"bits": grid.bits if grid is not None else 8})
            # Of several the nearest: a grandparent may lie within half a step, too.
            if relation is not None and (child not in best or energy < best[child][0]):
                best[child] = (energy, relation)
    found |= {child: relation for child, (_, relation) in best.items() if child not in found}
    for child, near in enumerate(pairs.neighbours):
        if child in found or len(near) < 2:
            continue
        merge = find_merge(pairs.grams[child], float(survey.size[child]), mantissa(survey.facts[child]))
        if merge is not None:
            parents = tuple(near[k] for k in merge.parents)
            attributes = {"coefficients": [round(a, 4) for a in merge.coefficients], "method": merge.method}
            found[child] = Relation("merge", parents, attributes)
    return found


def sparse_merges(
    sketches: Sequence[Sketch], survey: Survey, pairs: Pairs, relations: dict[int, Relation]
) -> dict[int, Relation]:
    """TIES and DARE merges: models that hold parts of two task vectors on top of a third model.

    Only models that share scattered entries with a neighbour, their base, are looked at again, and only some matrices.
    """
    found = {}
    arrays = pairs.arrays
    for child, near in enumerate(pairs.neighbours):
        if child in relations or survey.facts[child].fits:
            continue
        best: tuple[float, Relation] | None = None
        for base in near:
            p = pairs.number(base, child)
            if p is None or base in relations:
                continue
            changed = arrays["energy"][:, p] > 0
            equal = arrays["equal"][:, p] / arrays["entries"][:, p].clip(min=1)
            if not scattered_equality(equal, changed):
                continue
            layers = [pairs.layers[row] for row in np.argsort(-arrays["energy"][:, p])[:SAMPLED_LAYERS]]
            others = [m for m in near if m != base and m not in relations]
            read = {
                m: torch.cat([sketches[m].read(layer).flatten() for layer in layers])
                for m in (child, base, *others)
                if all(sketches[m].shapes.get(layer) == sketches[base].shapes.get(layer) for layer in layers)
            }
            ratios = {m: common_ratio(read[base], read[m], read[child]) for m in others if m in read}
            fitting = [m for m in others if ratios.get(m) is not None]
            for pair in combinations(fitting, 2):
                share = explained_share(read[base], [(ratios[m], read[m]) for m in pair], read[child])
                if share > EXPLAINED and (best is None or share > best[0]):
                    attributes = {"weights": [round(ratios[m], 4) for m in pair], "method": "sparse"}
                    attributes["base"] = survey.models[base]
                    best = share, Relation("merge", pair, attributes)
        if best is not None:
            found[child] = best[1]
    return found


@dataclass
class Cluster:
    """Recovered heritage of related models. Places are those in the survey."""

    members: list[int]
    parents: dict[int, int]
    probability: Float[np.ndarray, "members members"]  # of i -> j, by the Matrix-Tree theorem
    roots: Float[np.ndarray, "members"]
    evidence: Evidence
    forced: dict[int, int]
    hidden: list[Hidden]


@dataclass
class Heritage:
    """All that was found about a collection."""

    survey: Survey
    pairs: Pairs
    labels: Int[np.ndarray, "models"]
    aliases: dict[int, int]
    relations: dict[int, Relation]
    altered: set[int]
    clusters: list[Cluster]
    reused: float = 0.0  # seconds that earlier runs took for measurements that were read again
    row_scaled: dict[tuple[int, int], int | None] = field(default_factory=dict)  # see `row_scaled_ranks`
    left_out: dict[str, str] = field(default_factory=dict)  # models that could not be used, and why

    def hidden_name(self, hidden: Hidden) -> str:
        """Id of a hidden ancestor: by its children, so that it is the same in every run."""
        return f"hidden parent of {', '.join(self.survey.models[child] for child in hidden.children[:3])}"


def trace(
    checkpoints: Sequence[Checkpoint],
    device: torch.device,
    error: float = 0.01,
    coefficients: Coefficients | None = None,
    progress: Progress = lambda title: lambda total: lambda *count: None,
    keep: Path | None = None,
    sketch: int = SKETCH,
) -> Heritage:
    """Recover the heritage of models: read each once, then `trace_sketches`.

    Of each matrix at most `sketch` entries are compared. What is measured is kept in the folder `keep`: an interrupted
    run goes on, and a second one of the same files reads none of them. Models that cannot be read are left out.
    """
    with nullcontext(keep) if keep is not None else TemporaryDirectory() as folder:
        taken = sketch_models(checkpoints, Path(folder) / "models", sketch, progress("reading"))
        heritage = trace_sketches(taken.sketches, device, error, coefficients, progress, keep)
    return replace(heritage, left_out=taken.left_out, reused=heritage.reused + taken.reused)


def trace_sketches(
    sketches: Sequence[Sketch],
    device: torch.device,
    error: float = 0.01,
    coefficients: Coefficients | None = None,
    progress: Progress = lambda title: lambda total: lambda *count: None,
    keep: Path | None = None,
) -> Heritage:
    """Recover heritage: relatedness, exact relations, evidence, the most probable tree of each cluster.

    `error` bounds the probability of a single false relation among independently initialised models.
    Without `coefficients` those that come with the project are used. Models are sorted by id first, so that the order
    of the collection does not matter. What is measured is kept in the folder `keep`.
    """
    sketches = sorted(sketches, key=lambda sketch: sketch.model)
    first = first_pass_snapshot(sketches, keep)
    found = survey(sketches, device, progress("first pass"), first)
    labels = related_components(found.relatedness, error)
    aliases = find_aliases(found)
    singles = [place for place in range(len(found.models)) if place not in aliases]
    casts = find_casts(found, singles, labels)
    altered = {place for place in singles if is_altered(found, place, casts)}
    candidates, neighbours = candidate_pairs(found, labels, aliases, altered)
    grids = [common_grid(facts.grids) for facts in found.facts]
    bits = [mantissa(facts) for facts in found.facts]
    looked_at = hashlib.sha256(repr((found.models, candidates, neighbours, grids, bits)).encode()).hexdigest()
    second = Snapshot(keep / "second_pass.npz" if keep else None, first.key | {"pairs": looked_at})
    pairs = compare(sketches, candidates, neighbours, grids, bits, device, progress("second pass"), second)
    relations = exact_relations(found, pairs, casts)
    relations |= sparse_merges(sketches, found, pairs, relations)
    heritage = Heritage(found, pairs, labels, aliases, relations, altered, [], first.before + second.before)
    heritage = recover_clusters(heritage, coefficients or read_coefficients())
    ranks = Snapshot(keep / "kinds.npz" if keep else None, second.key)
    return replace(heritage, row_scaled=row_scaled_ranks(heritage, sketches, ranks))


def first_pass_snapshot(sketches: Sequence[Sketch], keep: Path | None) -> Snapshot:
    """Where the first pass over these models is kept, in whatever order they are given."""
    if keep is None:
        return Snapshot(None, {})
    keys = sorted((sketch.model, sketch.key) for sketch in sketches)
    digest = hashlib.sha256(repr(keys).encode()).hexdigest()
    return Snapshot(keep / "first_pass.npz", {"models": digest, "versions": versions(), "schema": SCHEMA})


def row_scaled_ranks(
    heritage: Heritage, sketches: Sequence[Sketch], snapshot: Snapshot
) -> dict[tuple[int, int], int | None]:
    """Ranks of DoRA: by (parent, child) of the trees' edges of full rank, None where the update was none."""
    known = {(parent, child): rank for parent, child, rank in (snapshot.load() or (0, {}, []))[2]}
    pairs, found = heritage.pairs, {}
    for cluster in heritage.clusters:
        for child, parent in cluster.parents.items():
            p = pairs.number(parent, child)
            if child in heritage.relations or p is None or is_lora(pairs, p):
                continue
            full = np.flatnonzero((pairs.arrays["energy"][:, p] > 0) & (pairs.arrays["full"][:, p] > 0))
            if not len(full):
                continue
            if (parent, child) not in known:
                # The matrix with the fewest columns: the search for a row space goes by their square.
                layer = min((pairs.layers[row] for row in full), key=lambda layer: sketches[parent].shapes[layer][1])
                known[parent, child] = row_scaled_rank(sketches[parent].read(layer), sketches[child].read(layer))
            found[parent, child] = known[parent, child]
    snapshot.save(1, lambda: ({}, [[*ends, rank] for ends, rank in found.items()]), now=True)
    return found


def recover_clusters(heritage: Heritage, coefficients: Coefficients) -> Heritage:
    """The trees of all clusters from what was measured, with these coefficients."""
    square = comparable_square(heritage.survey)
    clusters = []
    for label in range(heritage.labels.max() + 1 if len(heritage.labels) else 0):
        places = np.flatnonzero(heritage.labels == label).tolist()
        members = [place for place in places if place not in heritage.aliases]
        if members:
            parts = heritage.survey, heritage.pairs, square, members, heritage.relations, heritage.altered
            clusters.append(_recover_cluster(*parts, coefficients))
    return replace(heritage, clusters=clusters)


def _recover_cluster(
    survey: Survey,
    pairs: Pairs,
    square: Float[np.ndarray, "models models"],
    members: list[int],
    relations: dict[int, Relation],
    altered: set[int],
    coefficients: Coefficients,
) -> Cluster:
    """Evidence, marginals and the most probable tree of one cluster."""
    made = altered | {place for place in members if place in relations}
    natural = [place for place in members if place not in made]
    rounded = {place for place in altered if _is_rough(survey, place)}
    evidence = gather(survey, pairs, square, members, natural, made, rounded)
    place = {member: at for at, member in enumerate(members)}
    forced = {place[m]: place[relations[m].parents[0]] for m in members if m in relations}
    weights = log_weights(evidence, coefficients, forced)
    for member in members:
        if member in relations and relations[member].kind == "merge":
            for parent in relations[member].parents:  # no merge is its parent's parent
                weights[place[member], place[parent]] = -np.inf
    probability, roots, _ = edge_marginals(weights)
    finite = np.where(np.isfinite(weights), weights, -1e6)
    np.fill_diagonal(finite, 0)
    parents = minimum_spanning_arborescence(-finite)
    tree = {members[child]: members[parent] for child, parent in enumerate(parents) if parent >= 0}
    hidden = find_hidden(pairs, tree, {members[child] for child in forced})
    return Cluster(members, lift_parents(tree, hidden), probability, roots, evidence, forced, hidden)

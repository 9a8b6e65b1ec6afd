"""The typed Model Graph of method "map": kinds, arrows and probabilities of edges, aliases, hidden ancestors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mother.checkpoints import Checkpoint
from mother.errors import CheckpointError
from mother.evidence import is_lora
from mother.heritage import Cluster, Heritage
from mother.layers import Layer
from mother.model_graph import Edge, ModelGraph
from mother.relations import row_scaled_rank
from mother.snapshots import Snapshot

Ranks = dict[tuple[str, str], int | None]  # of DoRA, by (parent, child)

KNOWN = 0.75  # probability of the arrow from which it counts as known


def _round(value: float) -> float:
    return round(float(value), 4)


def _row_scaled_rank(first: Checkpoint, second: Checkpoint, layers: list[Layer]) -> int | None:
    """Rank of the DoRA update that made the second model, read off one of these layers; None if it was none."""
    # The matrix with the fewest columns: the search for a row space goes by their square.
    layer = min(layers, key=lambda layer: np.prod(first.shape(layer)[1:]))
    rows = first.shape(layer)[0]
    return row_scaled_rank(*(model.read(layer).reshape(rows, -1) for model in (first, second)))


def _training_kind(
    heritage: Heritage, checkpoints: dict[str, Checkpoint], ranks: Ranks, parent: int, child: int
) -> dict[str, Any]:
    """Kind of an edge that training made, with the rank of its update where that is low."""
    pairs = heritage.pairs
    p = pairs.number(parent, child)
    if p is None:
        return {"kind": "fine-tune"}
    arrays = pairs.arrays
    energy, rank = arrays["energy"][:, p], arrays["rank"][:, p]
    facts = {"relative_change": _round(np.sqrt(energy.sum() / max(heritage.survey.size[parent], 1e-300)))}
    if not energy.any():
        return {"kind": "fine-tune", **facts, "note": "only tensors outside the compared matrices differ"}
    if is_lora(pairs, p):
        risen = np.flatnonzero((energy > 0) & (rank > 0))
        values, counts = np.unique(rank[risen].astype(int), return_counts=True)
        facts["rank"] = int(values[counts.argmax()])
        if len(values) > 1:
            facts["ranks"] = {str(pairs.layers[row]): int(rank[row]) for row in risen}
        return {"kind": "lora", **facts}
    full = np.flatnonzero((energy > 0) & (arrays["full"][:, p] > 0))
    if len(full):
        ends = heritage.survey.models[parent], heritage.survey.models[child]
        if ends not in ranks:
            try:
                ranks[ends] = _row_scaled_rank(*(checkpoints[end] for end in ends), [pairs.layers[row] for row in full])
            except CheckpointError as error:  # it has gone since it was measured
                return {"kind": "fine-tune", **facts, "note": f"not looked at for DoRA: {error.reason}"}
        if ranks[ends] is not None:
            return {"kind": "lora", **facts, "rank": ranks[ends], "dora": True}
    return {"kind": "fine-tune", **facts}


def _cluster_edges(
    heritage: Heritage, cluster: Cluster, checkpoints: dict[str, Checkpoint], ranks: Ranks
) -> list[Edge]:
    models = heritage.survey.models
    place = {member: at for at, member in enumerate(cluster.members)}
    under = {child: hidden for hidden in cluster.hidden for child in hidden.children}
    edges = []
    for child in cluster.members:
        relation = heritage.relations.get(child)
        if relation is not None:
            for parent in relation.parents:
                facts = {"kind": relation.kind, **relation.attributes, "adjacency": 1.0, "arrow": 1.0}
                if len(relation.parents) > 1 and "coefficients" in facts:
                    facts["coefficient"] = facts["coefficients"][relation.parents.index(parent)]
                facts["direction"] = "known"
                facts["compared"] = _round(heritage.survey.shared[parent, child])
                edges.append(Edge(models[parent], models[child], facts))
        elif child in under:
            name = heritage.hidden_name(under[child])
            edges.append(Edge(name, models[child], {"kind": None, "direction": "known", "hidden": True}))
        elif child in cluster.parents:
            parent = cluster.parents[child]
            forth = float(cluster.probability[place[parent], place[child]])
            back = float(cluster.probability[place[child], place[parent]])
            arrow = forth / max(forth + back, 1e-300)
            facts = _training_kind(heritage, checkpoints, ranks, parent, child)
            facts |= {"adjacency": _round(min(1.0, forth + back)), "arrow": _round(arrow)}
            facts["direction"] = "known" if arrow >= KNOWN else "unknown"
            facts["compared"] = _round(heritage.survey.shared[parent, child])
            edges.append(Edge(models[parent], models[child], facts))
    for hidden in cluster.hidden:
        if hidden.parent is not None:
            facts = {"kind": None, "direction": "known", "hidden": True}
            edges.append(Edge(models[hidden.parent], heritage.hidden_name(hidden), facts))
    return edges


def build_graph(
    name: str, heritage: Heritage, checkpoints: Sequence[Checkpoint], keep: Path | None = None
) -> ModelGraph:
    """The Model Graph of traced models. What it reads of them once more is kept in the folder `keep`.

    Nodes carry their cluster, their aliases (other names of equal weights) and the probability of being the root;
    hidden ancestors are nodes marked as such. Edges carry

    * kind: fine-tune, lora (rank, dora), cast (dtype), prune (zeros), quantize (bits), merge (coefficients, method);
      null beside a hidden ancestor
    * adjacency: probability that the two are parent and child, in either direction
    * arrow: probability that it points this way, given that they are; direction says "unknown" where it is too low
    * compared: share of the matrix entries that both have in common shapes
    """
    snapshot = Snapshot(keep / "kinds.npz" if keep else None, heritage.key)
    ranks: Ranks = {(parent, child): rank for parent, child, rank in (snapshot.load() or (0, {}, []))[2]}
    opened = {checkpoint.model: checkpoint for checkpoint in checkpoints}
    survey = heritage.survey
    aliases: dict[int, list[str]] = {}
    for copy, original in heritage.aliases.items():
        aliases.setdefault(original, []).append(survey.models[copy])
    nodes: dict[str, dict[str, Any]] = {}
    edges: list[Edge] = []
    for number, cluster in enumerate(heritage.clusters):
        for at, member in enumerate(cluster.members):
            facts: dict[str, Any] = {"tree": str(number), "root": _round(cluster.roots[at])}
            if member in aliases:
                facts["aliases"] = sorted(aliases[member])
            nodes[survey.models[member]] = facts
        for hidden in cluster.hidden:
            facts = {"tree": str(number), "hidden": True, "private": _round(hidden.private)}
            nodes[heritage.hidden_name(hidden)] = facts
        edges += _cluster_edges(heritage, cluster, opened, ranks)
    snapshot.save(1, lambda: ({}, [[*ends, rank] for ends, rank in ranks.items()]), now=True)
    return ModelGraph(name, nodes, tuple(edges), dict(survey.left_out))

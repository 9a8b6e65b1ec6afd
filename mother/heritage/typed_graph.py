"""The typed Model Graph of method "map": kinds, arrows and probabilities of edges, aliases, hidden ancestors."""

from typing import Any

import numpy as np

from mother.evidence.alignment import notes
from mother.evidence.low_rank import is_lora
from mother.graph.acyclic import require_acyclic
from mother.graph.model_graph import HIDDEN_EDGE, Edge, ModelGraph, above_hidden, stated
from mother.heritage.absent import chances_of
from mother.heritage.quantized import described, storage_of
from mother.heritage.trees import Cluster, Heritage

POSSIBLE = 0.2  # probability from which another model is named that may be the parent as well


def _round(value: float) -> float:
    return round(float(value), 4)


def _training_kind(heritage: Heritage, parent: int, child: int) -> dict[str, Any]:
    """Kind of an edge that training made, with the rank of its update where that is low."""
    second_pass = heritage.second_pass
    p = second_pass.number(parent, child)
    if p is None:
        return {"kind": "fine-tune"}
    arrays = second_pass.arrays
    energy, rank = arrays["energy"][:, p], arrays["rank"][:, p]
    facts = {"relative_change": _round(np.sqrt(energy.sum() / max(heritage.first_pass.size[parent], 1e-300)))}
    if not energy.any():
        return {"kind": "fine-tune", **facts, "note": "only tensors outside the compared matrices differ"}
    risen = np.flatnonzero((energy > 0) & (rank > 0))
    if is_lora(second_pass, p):
        low = risen[arrays["full"][risen, p] == 0]  # of the others only a lower bound is known
        values, counts = np.unique(rank[low].astype(int), return_counts=True)
        facts["rank"] = int(values[counts.argmax()])
        if len(values) > 1:
            facts["ranks"] = {str(second_pass.layers[row]): int(rank[row]) for row in low}
        return {"kind": "lora", **facts}
    rank = heritage.row_scaled.get((parent, child))
    if rank is not None:
        return {"kind": "lora", **facts, "rank": rank, "dora": True}
    return {"kind": "fine-tune", **facts}


def packed_facts(heritage: Heritage, child: int) -> dict[str, Any]:
    """How a model is packed that no model which is there was quantized to."""
    storage = storage_of(heritage.first_pass.facts[child])
    return {} if storage is None else {"format": str(storage)}


def pair_facts(heritage: Heritage, parent: int, child: int) -> dict[str, Any]:
    """What is said of an edge between two models if training made it, but for probabilities."""
    facts = _training_kind(heritage, parent, child) | packed_facts(heritage, child)
    return facts | {"compared": _round(heritage.first_pass.compared(parent, child))}


def relation_facts(heritage: Heritage, parent: int, child: int) -> dict[str, Any]:
    """What is said of an edge from a parent by an exact operation."""
    relation = heritage.relations[child]
    facts = {"kind": relation.kind, **relation.attributes, "arrow": 1.0}
    facts["adjacency"] = _round(1 / (1 + len(relation.attributes.get("or", ()))))
    if len(relation.parents) > 1 and "coefficients" in facts:
        facts["coefficient"] = facts["coefficients"][relation.parents.index(parent)]
    return facts | {"direction": "known", "compared": _round(heritage.first_pass.compared(parent, child))}


def _others(models: list[str], cluster: Cluster, child: int, named: set[int]) -> dict[str, list[str]]:
    """The attribute that lists other models that may be the parent as well, the most probable first."""
    probability = cluster.probability[:, child]
    order = [at for at in np.argsort(-probability).tolist() if at not in named and probability[at] >= POSSIBLE]
    return {"or": [models[cluster.members[at]] for at in order]} if order else {}


def _adjacency_and_arrow(cluster: Cluster, parent: int, child: int) -> tuple[float, float]:
    """The probabilities of the edge between two members."""
    forth, back = float(cluster.probability[parent, child]), float(cluster.probability[child, parent])
    return min(1.0, forth + back), forth / max(forth + back, 1e-300)


def _cluster_edges(heritage: Heritage, cluster: Cluster) -> list[Edge]:
    models = heritage.first_pass.models
    place = {member: at for at, member in enumerate(cluster.members)}
    under = {child: hidden for hidden in cluster.hidden for child in hidden.children}
    roots = dict(zip(cluster.members, cluster.roots.tolist()))
    chances = {hidden: chances_of(hidden, roots) for hidden in cluster.hidden if not hidden.quantized}
    edges = []
    for child in cluster.members:
        relation = heritage.relations.get(child)
        if relation is not None:
            for parent in relation.parents:
                edges.append(Edge(models[parent], models[child], relation_facts(heritage, parent, child)))
        elif child in under and under[child].quantized:
            said = described(storage_of(heritage.first_pass.facts[child]))
            facts = HIDDEN_EDGE | {"kind": "quantize", "adjacency": 1.0} | said
            edges.append(Edge(heritage.hidden_name(under[child]), models[child], facts))
        elif child in under:
            facts = HIDDEN_EDGE | {"adjacency": _round(chances[under[child]][1][child])}
            facts |= _others(models, cluster, place[child], set()) | packed_facts(heritage, child)
            edges.append(Edge(heritage.hidden_name(under[child]), models[child], facts))
        elif child in cluster.parents:
            parent = cluster.parents[child]
            facts = pair_facts(heritage, parent, child)
            facts |= stated(*_adjacency_and_arrow(cluster, place[parent], place[child]))
            facts |= _others(models, cluster, place[child], {place[parent]})
            edges.append(Edge(models[parent], models[child], facts))
    for hidden in cluster.hidden:
        if hidden.parent is not None:
            if hidden.quantized:  # nothing exact leads from one to the other: training does
                facts = HIDDEN_EDGE | {"kind": "fine-tune", "adjacency": _round(hidden.chance)}
            else:
                of_first = _adjacency_and_arrow(cluster, place[hidden.parent], place[hidden.first])
                facts = above_hidden(*of_first, chances[hidden][0])
            edges.append(Edge(models[hidden.parent], heritage.hidden_name(hidden), facts))
    return edges


def build_graph(name: str, heritage: Heritage) -> ModelGraph:
    """The Model Graph of traced models.

    Nodes carry their cluster, their aliases (other names of equal weights) and the probability that their parent is not
    there. Siblings of such a one hang under a node marked as hidden. Edges carry

    * kind: fine-tune, lora (rank, dora), cast (dtype, except), prune (zeros), quantize (bits, format, codes), merge
      (coefficients, method);
      null beside a hidden ancestor
    * or: other models from which the child may have been made as well: by the same exact operation, or with a
      probability of POSSIBLE or more
    * adjacency: probability that the two are parent and child, in either direction; from a hidden ancestor, that no
      model that is there is the parent
    * arrow: probability that it points this way, given that they are; direction says "unknown" where it is too low
    * compared: entries that both have in common shapes, as share of all weights of the larger one but embeddings and
      heads; what has an unknown name or type counts as not compared
    """
    first_pass = heritage.first_pass
    aliases: dict[int, list[str]] = {}
    for copy, original in heritage.aliases.items():
        aliases.setdefault(original, []).append(first_pass.models[copy])
    nodes: dict[str, dict[str, Any]] = {}
    edges: list[Edge] = []
    for number, cluster in enumerate(heritage.clusters):
        for at, member in enumerate(cluster.members):
            facts: dict[str, Any] = {"tree": str(number), "root": _round(cluster.roots[at])}
            if member in aliases:
                facts["aliases"] = sorted(aliases[member])
            nodes[first_pass.models[member]] = facts
        for hidden in cluster.hidden:
            nodes[heritage.hidden_name(hidden)] = {"tree": str(number), "hidden": True}
        edges += _cluster_edges(heritage, cluster)
    require_acyclic([(edge.parent, edge.child) for edge in edges])
    return ModelGraph(name, nodes, tuple(edges), dict(heritage.left_out), notes(heritage.matched))

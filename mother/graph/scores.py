"""How well a recovered graph agrees with the truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mother.graph.manifest import Manifest, Node
from mother.graph.model_graph import Edge, ModelGraph, standing_for

EdgeSet = set[tuple[str, str]]


def adjusted_rand(truth: Sequence[Any] | np.ndarray, labels: Sequence[Any] | np.ndarray) -> float:
    """Adjusted Rand index of two clusterings: 1 where they agree, about 0 by chance."""
    from sklearn.metrics import adjusted_rand_score  # slow to import, and few need it

    return float(adjusted_rand_score(truth, labels))


def directed_accuracy(recovered: EdgeSet, truth: EdgeSet) -> float | None:
    """Share of the true (parent, child) edges that were recovered: the paper's score. None without edges."""
    return len(recovered & truth) / len(truth) if truth else None


def undirected_accuracy(recovered: EdgeSet, truth: EdgeSet) -> float | None:
    """The same without regard to the arrows."""
    either = recovered | {(child, parent) for parent, child in recovered}
    return len(either & truth) / len(truth) if truth else None


def kurtosis_accuracy(
    contradicts: Float[np.ndarray, "models models"], models: Sequence[str], truth: EdgeSet
) -> float | None:
    """Share of the true edges that kurtosis does not contradict (T[i, j] = 0): the direction by itself."""
    place = {model: row for row, model in enumerate(models)}
    right = [contradicts[place[parent], place[child]] == 0 for parent, child in truth]
    return float(np.mean(right)) if right else None


def match_labels(labels: Int[np.ndarray, "models"], truth: Int[np.ndarray, "models"]) -> Int[np.ndarray, "models"]:
    """Rename cluster labels to those of the true classes, one to one, so that most models agree.

    A cluster that is left without a class gets -1. The best of all permutations, which the authors' code
    tries one by one; found by the Hungarian method, it also works for many clusters.
    """
    names, columns = np.unique(truth, return_inverse=True)
    clusters, rows = np.unique(labels, return_inverse=True)
    agreement = np.zeros((len(clusters), len(names)), dtype=np.int64)
    np.add.at(agreement, (rows, columns), 1)
    renamed = np.full(len(clusters), -1)
    from scipy.optimize import linear_sum_assignment  # here: a program starts half a second sooner

    row, column = linear_sum_assignment(agreement, maximize=True)
    renamed[row] = names[column]
    return renamed[rows]


def cluster_accuracy(labels: Int[np.ndarray, "models"], truth: Int[np.ndarray, "models"]) -> float:
    """Share of models in the right cluster under the best naming of the clusters (as in the authors' code)."""
    return float((match_labels(labels, truth) == truth).mean())


def present_parents(manifest: Manifest) -> dict[str, list[str]]:
    """The true parents of each model; for an absent one a copy of it, or else its nearest ancestor, that is there."""
    nodes = {node.id: node for node in manifest.nodes}
    copies = {node.parent: node.id for node in manifest.present if node.kind == "copy"}
    found: dict[str, list[str]] = {model: [] for model in nodes}
    for model, node in nodes.items():
        for parent in node.all_parents:
            line: str | None = parent
            while line is not None and nodes[line].absent:
                copy = copies.get(line, model)
                line = nodes[line].parent if copy == model else copy
            if line is not None:
                found[model].append(line)
    return found


def models_above(graph: ModelGraph) -> dict[str, str | None]:
    """The hidden ancestors of a graph, each with the model above it or None."""
    hidden: dict[str, str | None] = {model: None for model, facts in graph.nodes.items() if facts.get("hidden")}
    return hidden | {edge.child: edge.parent for edge in graph.edges if edge.child in hidden}


def pass_over(edges: EdgeSet, hidden: dict[str, str | None]) -> EdgeSet:
    """(parent, child) pairs with hidden ancestors passed over, to the model above them if any."""
    raised = {(hidden.get(parent, parent), child) for parent, child in edges if child not in hidden}
    return {(parent, child) for parent, child in raised if parent is not None}


def visible_edges(graph: ModelGraph) -> EdgeSet:
    """The recovered (parent, child) pairs, hidden ancestors passed over."""
    return pass_over({(edge.parent, edge.child) for edge in graph.edges}, models_above(graph))


def score_graph(graph: ModelGraph, manifest: Manifest) -> dict[str, Any]:
    """How a typed Model Graph agrees with the truth; None where there is nothing to score.

    undirected, directed   share of the true edges that were recovered, without and with regard to the arrow
    direction   share of right arrows among the edges recovered
    precision   share of the recovered edges that are true
    kinds       share of the models with known parents whose kind was recovered
    ranks       share of the LoRA edges recovered whose rank is the true one
    clusters    adjusted Rand index of the clusters

    Copies are one node: a copy counts as a recovered edge if it is an alias of the same node as its original. Where a
    parent is absent, a copy of it or its nearest ancestor that is there counts; siblings without any have no edge.
    """
    place = standing_for(graph.nodes)
    nodes = {node.id: node for node in manifest.present if node.id in place}
    truth, copies, right_copies = _true_edges(manifest, nodes, place)
    recovered = visible_edges(graph)
    either = recovered | {(child, parent) for parent, child in recovered}
    total = len(truth) + copies
    undirected, directed = len(truth & either) + right_copies, len(truth & recovered) + right_copies
    kinds, ranks = _right_kinds(graph, manifest, nodes, place)
    known = [model for model, node in nodes.items() if node.tree is not None]
    labels = [str(graph.nodes[place[model]]["tree"]) for model in known]
    trees = [str(nodes[model].tree) for model in known]

    def share(values: list[bool]) -> float | None:
        return float(np.mean(values)) if values else None

    return {
        "models": len(nodes),
        "aliases": sum(place[model] != model for model in nodes),
        "true_edges": total,
        "undirected": undirected / total if total else None,
        "direction": directed / undirected if undirected else None,
        "directed": directed / total if total else None,
        "precision": len(truth & recovered) / len(recovered) if recovered else None,
        "kinds": share(kinds),
        "ranks": share(ranks),
        "clusters": adjusted_rand(trees, labels) if known else None,
    }


def _true_edges(manifest: Manifest, nodes: dict[str, Node], place: dict[str, str]) -> tuple[EdgeSet, int, int]:
    """True edges between the nodes that stand for models; how many copies there are, and how many were recovered."""
    truth: EdgeSet = set()
    copies = right_copies = 0
    true_parents = present_parents(manifest)
    for model, node in nodes.items():
        for parent in true_parents[model]:
            if parent not in place:
                continue
            if node.kind == "copy" and parent == node.parent:  # else it stands for one that is not there
                copies += 1
                right_copies += place[parent] == place[model]
            elif place[parent] != place[model]:
                truth.add((place[parent], place[model]))
    return truth, copies, right_copies


def scored_kind(edge: Edge) -> str:
    """The kind of an edge as it is scored: adapters and models that one was merged into are one kind."""
    return _scored(str(edge.attributes.get("kind")))


def _scored(kind: str) -> str:
    return "lora" if kind == "adapter" else kind


def _right_kinds(
    graph: ModelGraph, manifest: Manifest, nodes: dict[str, Node], place: dict[str, str]
) -> tuple[list[bool], list[bool]]:
    """For each model whose parents are known whether its kind is right, and for each LoRA whether its rank is."""
    incoming = {edge.child: edge for edge in graph.edges}
    kinds, ranks = [], []
    absent = {node.id for node in manifest.nodes if node.absent}
    for model, node in nodes.items():
        if not node.all_parents or absent & set(node.all_parents) or not set(node.all_parents) <= place.keys():
            continue
        if node.kind == "copy":
            kinds.append(place[node.parent] == place[model])
            continue
        edge = incoming.get(place[model])
        kind = _scored(node.kind or ("fine-tune" if node.rank is None else "lora"))
        kinds.append(edge is not None and scored_kind(edge) == kind)
        if kind == "lora" and node.rank is not None and edge is not None:
            if place[node.parent] in (edge.parent, edge.child) and scored_kind(edge) == "lora":
                ranks.append(edge.attributes.get("rank") == node.rank)
    return kinds, ranks

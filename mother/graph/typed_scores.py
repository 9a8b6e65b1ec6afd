"""How well a recovered graph agrees with a list of typed edges, as MDGBench (TensorLock) scores it; and pairs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mother.graph.model_graph import ModelGraph, standing_for
from mother.graph.scores import adjusted_rand, models_above, scored_kind

TypedEdge = tuple[str, str, str]  # parent, child, kind


def typed_edges(graph: ModelGraph) -> set[TypedEdge]:
    """The recovered edges between models that are there, each name of a copy by itself; hidden ones are passed over."""
    hidden, place = models_above(graph), standing_for(graph.nodes)
    names: dict[str, list[str]] = {}
    for name, node in place.items():
        names.setdefault(node, []).append(name)
    found = set()
    for edge in graph.edges:
        parent = hidden.get(edge.parent, edge.parent)
        if parent is not None and edge.child not in hidden:
            found |= {(parent, child, scored_kind(edge)) for child in names[edge.child]}
    return found


def harmonic(precision: float, recall: float) -> float:
    """F1."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def typed_scores(graph: ModelGraph, truth: Iterable[TypedEdge], clusters: Mapping[str, Any]) -> dict[str, Any]:
    """Precision, recall and F1 of directed edges with their kinds, and the adjusted Rand index of the families.

    `clusters` gives the family of every model. One that was left out has no edge, and is a family by itself. A parent
    that has copies is named by the node that stands for all of them; another name of it in `truth` is a miss, as its
    authors count; `one_node` holds the three numbers with all names of a node taken for one.
    """
    truth, found, place = set(truth), typed_edges(graph), standing_for(graph.nodes)

    def scores(found: set[TypedEdge], truth: set[TypedEdge]) -> dict[str, float]:
        right = len(found & truth)
        precision, recall = right / max(1, len(found)), right / max(1, len(truth))
        return {"precision": precision, "recall": recall, "f1": harmonic(precision, recall)}

    def joined(edges: set[TypedEdge]) -> set[TypedEdge]:
        ends = {(place.get(parent, parent), place.get(child, child), kind) for parent, child, kind in edges}
        return {edge for edge in ends if edge[0] != edge[1]}

    labels = [
        f"tree {graph.nodes[place[model]]['tree']}" if model in place else f"left out {model}" for model in clusters
    ]
    by_kind = {
        kind: scores({edge for edge in found if edge[2] == kind}, {edge for edge in truth if edge[2] == kind})
        for kind in sorted({edge[2] for edge in truth})
    }
    untyped = scores(*({(parent, child, "") for parent, child, _ in edges} for edges in (found, truth)))
    return {
        "models": len(clusters),
        "left_out": sum(model not in place for model in clusters),
        "edges": len(truth),
        **scores(found, truth),
        "untyped_f1": untyped["f1"],
        "one_node": scores(joined(found), joined(truth)),
        "kinds": by_kind,
        "ari": adjusted_rand([str(label) for label in clusters.values()], labels),
    }


def pair_scores(graph: ModelGraph, pairs: Sequence[tuple[str, str, bool]]) -> dict[str, Any]:
    """Precision, recall and F1 of "these two are related"; models that were left out are related to none."""
    place = standing_for(graph.nodes)
    tree = {model: graph.nodes[node]["tree"] for model, node in place.items()}
    said = [one in tree and other in tree and tree[one] == tree[other] for one, other, _ in pairs]
    truth = [similar for _, _, similar in pairs]
    right = sum(a and b for a, b in zip(said, truth))
    precision, recall = right / max(1, sum(said)), right / max(1, sum(truth))
    return {
        "pairs": len(pairs),
        "left_out": sum(not {one, other} <= tree.keys() for one, other, _ in pairs),
        "accuracy": sum(a == b for a, b in zip(said, truth)) / max(1, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": harmonic(precision, recall),
    }


def parent_scores(graph: ModelGraph, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How many children have the right parent, or hang below it at all, and the AUROC of the pairs.

    Every child is asked with every parent of the list; a pair scores the probability that it is an edge, where it is
    one of the graph, half of that with the arrow the other way, and a little where both are of one family.
    """
    place, edges = standing_for(graph.nodes), {}
    for edge in graph.edges:
        edges[edge.parent, edge.child] = float(edge.attributes.get("adjacency", 1.0))

    def score(child: str, parent: str) -> float:
        if not {child, parent} <= place.keys():
            return 0.0
        one, other = place[child], place[parent]
        if one == other:
            return 1.0
        related = graph.nodes[one]["tree"] == graph.nodes[other]["tree"]
        return max(edges.get((other, one), 0.0), edges.get((one, other), 0.0) / 2, 0.1 * related)

    import networkx as nx
    from sklearn.metrics import roc_auc_score

    above = graph.to_networkx()
    known = [(place[child], place[parent]) for child, parent in pairs if {child, parent} <= place.keys()]
    children, parents = ({pair[end]: None for pair in pairs} for end in (0, 1))
    every = [(child, parent) for child in children for parent in parents]
    truth = [pair in set(pairs) for pair in every]
    auroc = float(roc_auc_score(truth, [score(*pair) for pair in every])) if 0 < sum(truth) < len(truth) else None
    return {
        "pairs": len(pairs),
        "left_out": len(pairs) - len(known),
        "parents": sum(above.has_edge(parent, child) for child, parent in known),
        "ancestors": sum(parent in nx.ancestors(above, child) for child, parent in known),
        "auroc": auroc,
    }

"""From matrices to a Model Graph: the paper's recovery of one Model Tree."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mother.graph.arborescence import minimum_spanning_arborescence
from mother.graph.model_graph import Edge
from mother.paper.direction import Stage, kurtosis_direction


def merged_cost(
    distance: Float[np.ndarray, "models models"],
    direction: Float[np.ndarray, "models models"],
    direction_weight: float = 0.3,
) -> Float[np.ndarray, "models models"]:
    """M = d + c * mean(d) * T with an infinite diagonal (paper: merged prior; c = 0.3 there).

    mean(d) runs over all entries, the zero diagonal included, as in the authors' code.
    """
    cost = distance + direction_weight * distance.mean() * direction
    np.fill_diagonal(cost, np.inf)
    return cost


def identical_models(difference: Float[np.ndarray, "models models"], models: Sequence[str]) -> list[str]:
    """A note for each pair of models with `difference` 0: which came first cannot be told from these layers."""
    first, second = np.nonzero(np.triu(difference == 0, k=1) & ~np.eye(len(models), dtype=bool))
    return [
        f"{models[i]} and {models[j]} do not differ in the layers compared; which is the parent cannot be told"
        for i, j in zip(first, second)
    ]


def recover_tree(
    models: Sequence[str],
    distance: Float[np.ndarray, "models models"],
    kurtosis: Float[np.ndarray, "models"],
    stage: Stage = "specialization",
    direction_weight: float = 0.3,
) -> list[Edge]:
    """The Model Tree of one cluster: minimum spanning arborescence of M (paper: MDST).

    Each edge carries its distance, its cost, and the change of kurtosis from parent to child. Models are
    sorted by id first, so that ties do not depend on the order of the collection.
    """
    order = np.argsort(np.array(models), kind="stable")
    cost = merged_cost(distance, kurtosis_direction(kurtosis, stage), direction_weight)
    parents = minimum_spanning_arborescence(cost[np.ix_(order, order)])
    edges = []
    for child in range(len(models)):
        place = parents[int(np.flatnonzero(order == child)[0])]
        if place >= 0:
            parent = order[place]
            attributes = {
                "distance": float(distance[parent, child]),
                "cost": float(cost[parent, child]),
                "kurtosis_change": float(kurtosis[child] - kurtosis[parent]),
            }
            edges.append(Edge(models[parent], models[child], attributes))
    return edges

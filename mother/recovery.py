"""From matrices to a Model Graph: the paper's recovery of one Model Tree."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from mother.arborescence import minimum_spanning_arborescence
from mother.direction import Stage, kurtosis_direction
from mother.measurements import Measured
from mother.model_graph import Edge


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


def direction_kurtosis(measured: Measured, kind: str | None) -> tuple[Measured, Float[np.ndarray, "models"]]:
    """Sum of kurtosis over the layers of one kind, or of all layers (None): k in the paper.

    A layer of which some model's weights are all equal has no kurtosis there: it is left out for all
    models, so that sums stay comparable. If none remains, the models with constant layers are left out
    instead. Returns what is kept, with notes that say so, and k.
    """
    chosen = [place for place, layer in enumerate(measured.layers) if kind is None or layer.kind == kind]
    kurtosis = measured.arrays["kurtosis"][chosen]
    usable = np.isfinite(kurtosis)
    notes, left_out = list(measured.notes), dict(measured.left_out)
    whole = usable.all(axis=1)
    if not chosen:
        notes.append(f"no square layers of kind {kind} were read: nothing tells the arrows, only the distance counts")
    elif not whole.any():
        kept = [model for model, fine in zip(measured.models, usable.all(axis=0)) if fine]
        for model in (model for model in measured.models if model not in kept):
            layer = measured.layers[chosen[int(np.flatnonzero(~usable[:, measured.models.index(model)])[0])]]
            left_out[model] = (
                f"model {model}: all entries of layer {layer} are equal, so it has no kurtosis, and no layer is left "
                "that every model has. Leave it out of the manifest, or use another direction layer."
            )
        kurtosis = kurtosis[:, usable.all(axis=0)]
        whole = np.ones(len(chosen), dtype=bool)
        measured = measured.keep(kept)
    elif not whole.all():
        for place in np.flatnonzero(~whole):
            models = [model for model, fine in zip(measured.models, usable[place]) if not fine]
            notes.append(
                f"layer {measured.layers[chosen[place]]} is left out of the direction: all its entries are equal in "
                f"{', '.join(models)}"
            )
    return replace(measured, left_out=left_out, notes=notes), kurtosis[whole].sum(axis=0)


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

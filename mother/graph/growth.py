"""Who can have come first: the orders in which a tree can have grown from each of its models."""

import numpy as np
from jaxtyping import Float, Int


def growth_orders(
    models: int, first: Int[np.ndarray, "pairs"], second: Int[np.ndarray, "pairs"], share: Float[np.ndarray, "pairs"]
) -> Float[np.ndarray, "models"]:
    """Log of the number of orders in which the likeliest tree can have grown from each model, up to a constant.

    `share` is the probability that the two of a pair are next to each other, whatever the arrow. From a model to its
    neighbour the number changes by the ratio of the models on the two sides of their edge (rumour centrality; Shah,
    Zaman 2011). An edge counts by its share: where the tree is a guess, so is who came first. Models that no pair joins
    are not compared: each component has a constant of its own.
    """
    from scipy.sparse import coo_matrix  # here: few need it, and a program starts sooner
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    # Costs of 1 to 2: an edge of cost 0 would be none.
    tree = minimum_spanning_tree(coo_matrix((2 - share, (first, second)), (models, models)).tocsr())
    either = tree + tree.T
    orders, seen = np.zeros(models), np.zeros(models, dtype=bool)
    for root in range(models):
        if seen[root]:
            continue
        found, above = breadth_first_order(either, root, directed=False)
        seen[found] = True
        line = found[:0:-1].tolist()
        size = np.ones(models)
        for model in line:
            size[above[model]] += size[model]
        for model in reversed(line):
            ratio = np.log(size[model] / (len(found) - size[model]))
            orders[model] = orders[above[model]] + (2 - either[above[model], model]) * ratio
    return orders

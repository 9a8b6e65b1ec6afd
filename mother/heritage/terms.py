"""Why an edge has the weight that it has: what each evidence adds to the log weight of i -> j."""

import numpy as np
from jaxtyping import Float

from mother.evidence.edges import DECISIVE, STRUCTURE, Evidence
from mother.graph.arborescence import edge_marginals
from mother.heritage.calibration import (
    EXACT_WEIGHT,
    UNSEEN,
    Coefficients,
    arrow_probability,
    blocked,
    hub_prior,
)

NAMES = {"log_square": "distance", "equality": "equality", "low_rank": "low rank", "altered": "altered"}


def all_terms(
    evidence: Evidence, coefficients: Coefficients, forced: dict[int, int] | None = None
) -> dict[str, Float[np.ndarray, "models models"]]:
    """What each evidence adds to the log weights of all edges, as [i, j]; together they are `log_weights`.

    distance, equality, low rank, altered   as in `Evidence`
    newness, exact arrow    which came first; the second in place of the first where rounding decides
    between                 that the third model which fits best lies between the two
    not looked at           the two are far apart, so hardly an edge
    exact relation          of children whose parent is read off exactly
    hub                     that others hang from i
    """
    found = {NAMES[name]: evidence.structure[..., k] * coefficients.structure[k] for k, name in enumerate(STRUCTURE)}
    arrow, sure = np.log(arrow_probability(evidence, coefficients)), np.abs(evidence.exact) > DECISIVE
    found |= {"newness": np.where(sure, 0, arrow), "exact arrow": np.where(sure, arrow, 0)}
    found["between"] = -blocked(evidence, coefficients)
    found["not looked at"] = -UNSEEN * ~evidence.candidate
    relation = np.zeros_like(evidence.exact)
    for child, parent in (forced or {}).items():
        relation[:, child] -= EXACT_WEIGHT
        relation[parent, child] += 2 * EXACT_WEIGHT
        relation[child, parent] = -np.inf
    found["exact relation"] = relation
    alone = sum(found.values())
    np.fill_diagonal(alone, -np.inf)
    return found | {"hub": coefficients.hub * hub_prior(edge_marginals(alone)[0])}


def terms(
    evidence: Evidence, coefficients: Coefficients, i: int, j: int, forced: dict[int, int] | None = None
) -> dict[str, float]:
    """What each evidence adds to the log weight of the edge i -> j, see `all_terms`."""
    return {name: float(values[i, j]) for name, values in all_terms(evidence, coefficients, forced).items()}


def third_between(evidence: Evidence, coefficients: Coefficients, i: int, j: int) -> int | None:
    """The model that fits best between i and j; None where no third one was looked at."""
    first, second = evidence.ends
    rows = np.flatnonzero(((first == i) & (second == j)) | ((first == j) & (second == i)))
    if not len(rows):
        return None
    return int(evidence.third[rows[(evidence.between[rows] @ coefficients.between[1:]).argmax()]])

"""Why an edge has the weight that it has: what each evidence adds to the log weight of i -> j."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from mother.evidence.edges import Evidence
from mother.heritage.calibration import Coefficients, exact_term, parent_terms, priors_of, shared_terms

DISTANCE = "log_square"


def all_terms(
    evidence: Evidence, coefficients: Coefficients, forced: dict[int, int] | None = None
) -> dict[str, Float[np.ndarray, "models models"]]:
    """What each evidence adds to the log weights that i is the parent of j; together they are `log_weights`.

    distance, equality, flatness, altered   as in `Evidence`
    private                 that i has directions of its own, which a third model lacks like j
    newness, exact arrow    which came first; the second in place of the first where rounding decides; of a pair whose
                            rounding goes one way newness says only whether they are siblings
    between                 that the third model which fits best lies between the two
    not looked at           the two are far apart, so hardly an edge
    exact relation          of children whose parent is read off exactly
    hub                     that others hang from the two
    batches                 that j counted more batches
    elder                   that i has more descendants
    """
    shared, priors = shared_terms(evidence, coefficients), priors_of(evidence, coefficients, forced)
    found = {"distance": shared.pop(DISTANCE)} | shared | parent_terms(evidence, coefficients, *priors)
    found = {name.replace("_", " "): values for name, values in found.items()}
    return found | {"exact relation": exact_term(len(evidence.exact), forced)}


def changes(
    stages: Mapping[str, Float[np.ndarray, "models models"]],
) -> dict[str, Float[np.ndarray, "models models"]]:
    """What each stage but the first added to the log weights that i is the parent of j, where it added anything.

    -inf where it ruled the edge out. An edge that was ruled out before stays so.
    """
    found = {}
    for (_, before), (name, after) in pairwise(stages.items()):
        with np.errstate(invalid="ignore"):
            added = np.where(np.isneginf(before), 0.0, after - before)
        if added.any():
            found[name] = added
    return found


def factors(
    stages: Mapping[str, Float[np.ndarray, "models models"]],
) -> dict[str, Float[np.ndarray, "models models"]]:
    """The same of probabilities that i is the parent of j: the log of what each stage multiplied them by."""
    with np.errstate(divide="ignore"):
        return changes({name: np.log(values) for name, values in stages.items()})


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

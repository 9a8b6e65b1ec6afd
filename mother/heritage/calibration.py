"""What evidence is worth: log weights of edges, and how their coefficients are fitted on trees of known truth.

The model is that of a structured logistic regression: log w(i -> j) = theta . structure + log P(arrow | direction),
and the probability of a tree is proportional to the product of its weights. The coefficients maximise the
probability of the true trees (Koo et al. 2007), whose gradient needs nothing but the marginals of the edges; the
likelihood is a proper score, so that the marginals come out calibrated. The coefficients are data:
`calibration.json`, with its provenance.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from mother.evidence.edges import DECISIVE, DIRECTION, STRUCTURE, Evidence
from mother.graph.arborescence import edge_marginals

PATH = Path(__file__).parent / "calibration.json"

# Probability that newness is confidently wrong (strong decay, averaged weights): its log odds stay below 4.
DOUBT = 0.02
UNSEEN = 8.0  # log weight that a pair loses which is no candidate: far apart, so hardly an edge
EXACT_WEIGHT = 60.0  # log weight of an exact relation


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of the log weight, in the order of STRUCTURE and DIRECTION."""

    structure: Float[np.ndarray, "five"]
    direction: Float[np.ndarray, "two"]


def read_coefficients(path: Path = PATH) -> Coefficients:
    """The fitted coefficients that come with the project."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Coefficients(
        np.array([content["structure"][name] for name in STRUCTURE]),
        np.array([content["direction"][name] for name in DIRECTION]),
    )


def arrow_probability(evidence: Evidence, coefficients: Coefficients) -> Float[np.ndarray, "models models"]:
    """P(i -> j | the pair is an edge) from direction alone: rounding where it is decisive, else newness."""
    soft = DOUBT + (1 - 2 * DOUBT) * expit(evidence.direction @ coefficients.direction)
    return np.where(np.abs(evidence.exact) > DECISIVE, expit(np.clip(evidence.exact / 10, -20, 20)), soft)


def log_weights(
    evidence: Evidence, coefficients: Coefficients, forced: dict[int, int] | None = None
) -> Float[np.ndarray, "models models"]:
    """Log weight of each edge i -> j; `forced` gives the parent of models whose relation is exact."""
    result = evidence.structure @ coefficients.structure + np.log(arrow_probability(evidence, coefficients))
    result = result - UNSEEN * ~evidence.candidate
    for child, parent in (forced or {}).items():
        result[:, child] -= EXACT_WEIGHT
        result[parent, child] += 2 * EXACT_WEIGHT
        result[child, parent] = -np.inf
    np.fill_diagonal(result, -np.inf)
    return result


@dataclass
class Example:
    """One cluster of known truth: `parents[j]` is the place of the parent of j, for all but the root."""

    evidence: Evidence
    parents: dict[int, int]
    forced: dict[int, int]


def fit(examples: Sequence[Example], ridge: float = 0.02) -> Coefficients:
    """Coefficients of the largest penalised likelihood of the true trees (L-BFGS with the exact gradient)."""
    count = len(STRUCTURE)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients = Coefficients(values[:count], values[count:])
        total, gradient = ridge * float(values @ values), 2 * ridge * values
        for example in examples:
            evidence = example.evidence
            weights = log_weights(evidence, coefficients, example.forced)
            marginals, _, log_sum = edge_marginals(weights)
            truth = np.zeros_like(marginals)
            for child, parent in example.parents.items():
                truth[parent, child] = 1
            total += log_sum - float(weights[truth > 0].sum())
            # d(log sum)/d(log weight) is the marginal; that of the true tree is 1 on its edges.
            surplus = marginals - truth
            gradient[:count] += np.einsum("ij,ijk->k", surplus, evidence.structure)
            odds = expit(evidence.direction @ coefficients.direction)
            slope = (1 - 2 * DOUBT) * odds * (1 - odds) / (DOUBT + (1 - 2 * DOUBT) * odds)
            slope = np.where(np.abs(evidence.exact) > DECISIVE, 0, slope)
            gradient[count:] += np.einsum("ij,ij,ijk->k", surplus, slope, evidence.direction)
        return total, gradient

    from scipy.optimize import minimize  # here: a program starts half a second sooner, and few fit anything

    start = np.array([-1.0, -3.0, -3.0, 1.0, -1.0, 2.0, 2.0])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return Coefficients(found.x[:count], found.x[count:])

"""What evidence is worth: log weights of edges, from coefficients that were fitted on trees of known truth.

The probability of a tree is proportional to the product of its edges' weights. An edge i -> j joins j to the tree in
one of two ways: i is its parent, or its parent is not there, and i is next to that one, too ("beside"). Both
share what says that the two are next to each other; only the first has an arrow. The coefficients are data:
`calibration.json`, with its provenance; `mother/heritage/fitting.py` fits them.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from mother.evidence.edges import DECISIVE, DIRECTION, STRUCTURE, Evidence
from mother.evidence.triples import FEATURES
from mother.graph.arborescence import edge_marginals
from mother.graph.growth import growth_orders

PATH = Path(__file__).parent / "calibration.json"

# Probability that newness is confidently wrong (strong decay, averaged weights): its log odds stay below 4.
DOUBT = 0.02
UNSEEN = 8.0  # log weight that a pair loses which is no candidate: far apart, so hardly an edge
MOST_BESIDE = 3.0  # models next to one that make it a hub
ELDEST = math.log(3)  # log odds of who came first that numbers of descendants alone can give: no arrow is known by them
COUNTED = math.log(9)  # log odds that who counted more batches came last: anybody can write a counter, none is sure
EXACT_WEIGHT = 60.0  # log weight of an exact relation
# Probability that who hangs from the first of a tree is its sibling, whose parent is absent, however sure the tree is.
STANDS_IN = 0.1


BETWEEN = ("level", *FEATURES)
PRIORS = ("elder", "hub", "beside")
OF_PARENTS = ("altered", "private")  # of STRUCTURE: what says who is the parent, not who is near


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of the log weight, by STRUCTURE, BETWEEN, DIRECTION; of elders, of hubs, and of a model beside."""

    structure: Float[np.ndarray, "five"]
    between: Float[np.ndarray, "features1"]
    direction: Float[np.ndarray, "two"]
    elder: float
    hub: float
    beside: float

    @classmethod
    def of(cls, values: Float[np.ndarray, "all"]) -> "Coefficients":
        """From one vector of all of them."""
        first, second = len(STRUCTURE), len(STRUCTURE) + len(BETWEEN)
        return cls(values[:first], values[first:second], values[second:-3], *(float(value) for value in values[-3:]))


def read_coefficients(path: Path = PATH) -> Coefficients:
    """The fitted coefficients that come with the project."""
    content = json.loads(path.read_text(encoding="utf-8"))
    parts = (("structure", STRUCTURE), ("between", BETWEEN), ("direction", DIRECTION))
    found = (np.array([content[part][name] for name in names]) for part, names in parts)
    return Coefficients(*found, *(content[name] for name in PRIORS))


def arrow_probability(
    evidence: Evidence, coefficients: Coefficients, besides: Float[np.ndarray, "models models"] | float = 0.0
) -> Float[np.ndarray, "models models"]:
    """P(i -> j | the pair is an edge) from direction alone: rounding where it is decisive, else newness.

    `besides` are log odds from what is not in the weights, see `counted_odds` and `elder_prior`; they do not count
    where rounding decides.
    """
    soft = newness_arrow(evidence, coefficients, besides)
    return np.where(np.abs(evidence.exact) > DECISIVE, expit(np.clip(evidence.exact / 10, -20, 20)), soft)


def newness_arrow(
    evidence: Evidence, coefficients: Coefficients, besides: Float[np.ndarray, "models models"] | float = 0.0
) -> Float[np.ndarray, "models models"]:
    """P(i -> j | the pair is an edge) from newness and these log odds, whatever rounding says."""
    return soft_arrow(evidence.direction @ coefficients.direction + besides)


def counted_odds(evidence: Evidence) -> Float[np.ndarray, "models models"]:
    """Log odds that i came before j, as [i, j], by the batches that their batch norms counted. Not fitted."""
    return COUNTED * evidence.counted


def soft_arrow(log_odds: np.ndarray) -> np.ndarray:
    """Probability of an arrow from its log odds, which may be wrong with probability DOUBT whatever they say."""
    return DOUBT + (1 - 2 * DOUBT) * expit(log_odds)


def blocked(evidence: Evidence, coefficients: Coefficients) -> Float[np.ndarray, "models models"]:
    """log(1 + odds that the model that fits best lies between i and j).

    The best alone counts: a sum would grow with the number of models, however little each of them says.
    """
    n = len(evidence.candidate)
    log_odds = coefficients.between[0] + evidence.between @ coefficients.between[1:]
    best = np.full((n, n), -np.inf)
    for i, j in (evidence.ends, evidence.ends[::-1]):
        np.maximum.at(best, (i, j), log_odds)
    return np.logaddexp(0, best)


@dataclass(frozen=True)
class Weights:
    """Log weights of the edges of one cluster, as [i, j], by how j hangs from i."""

    parent: Float[np.ndarray, "models models"]  # i is the parent of j
    beside: Float[np.ndarray, "models models"]  # the parent of j is not there; i is its child, too, or its parent

    @property
    def both(self) -> Float[np.ndarray, "models models"]:
        """Log weight of either."""
        return np.logaddexp(self.parent, self.beside)

    @property
    def best(self) -> Float[np.ndarray, "models models"]:
        """The larger of the two."""
        return np.maximum(self.parent, self.beside)

    def parents(self, marginals: Float[np.ndarray, "models models"]) -> Float[np.ndarray, "models models"]:
        """P(i is the parent of j), from the probabilities of edges of either way."""
        both = self.both
        return marginals * np.exp(self.parent - np.where(np.isneginf(both), 0, both))

    def without(self, i: int, j: int) -> "Weights":
        """The same, where j does not hang from i."""
        found = Weights(self.parent.copy(), self.beside.copy())
        found.parent[i, j] = found.beside[i, j] = -np.inf
        return found


def log_weights(evidence: Evidence, coefficients: Coefficients, forced: dict[int, int] | None = None) -> Weights:
    """Log weight of each edge i -> j; `forced` gives the parent of models whose relation is exact.

    A model that others hang from for sure is a likelier parent of one more: of two that are nearly equal all children
    have the same. And who has most descendants came first. Both priors follow, once, from the probabilities that the
    edges have without them.
    """
    hub, elder = priors_of(evidence, coefficients, forced)
    return own_weights(evidence, coefficients, forced, hub, elder)


def priors_of(
    evidence: Evidence, coefficients: Coefficients, forced: dict[int, int] | None = None
) -> tuple[Float[np.ndarray, "models models"], Float[np.ndarray, "models models"]]:
    """The priors of hubs and of elders, see `hub_prior` and `elder_prior`, from the log weights without them."""
    alone = own_weights(evidence, coefficients, forced)
    marginals = edge_marginals(alone.both)[0]
    return hub_prior(alone.parents(marginals)), elder_prior(marginals)


def hub_prior(marginals: Float[np.ndarray, "models models"]) -> Float[np.ndarray, "models models"]:
    """The prior for hubs of all pairs, as [i, j], see `hub_priors`: it says nothing of the arrow."""
    first, second, beside = _all_pairs(marginals)
    found = np.zeros_like(marginals)
    found[first, second] = found[second, first] = hub_priors(len(found), first, second, beside)
    return found


def elder_prior(marginals: Float[np.ndarray, "models models"]) -> Float[np.ndarray, "models models"]:
    """Log odds that i came before j, as [i, j], see `elder_priors`."""
    first, second, beside = _all_pairs(marginals)
    found = np.zeros_like(marginals)
    found[first, second] = elder_priors(len(found), first, second, beside)
    return found - found.T


def _all_pairs(
    marginals: Float[np.ndarray, "models models"],
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"], Float[np.ndarray, "pairs"]]:
    """Every two models once, and how probably they are next to each other."""
    first, second = np.triu_indices(len(marginals), 1)
    return first, second, marginals[first, second] + marginals[second, first]


def hub_priors(
    models: int, first: Int[np.ndarray, "pairs"], second: Int[np.ndarray, "pairs"], share: Float[np.ndarray, "pairs"]
) -> Float[np.ndarray, "pairs"]:
    """Sum over the two of a pair of log(1 + other models that are expected next to it).

    `share` is the probability that one of the two is made from the other; each pair is there once at most. No more than
    MOST_BESIDE count: whoever adds many models next to one must not draw others there.
    """
    beside = np.bincount(first, share, models) + np.bincount(second, share, models)
    one, other = (np.log1p((beside[end] - share).clip(0, MOST_BESIDE)) for end in (first, second))
    return one + other


def elder_priors(
    models: int, first: Int[np.ndarray, "pairs"], second: Int[np.ndarray, "pairs"], share: Float[np.ndarray, "pairs"]
) -> Float[np.ndarray, "pairs"]:
    """Log odds that the first of a pair came first, if models come one by one and each is made from any that is there.

    Then a tree has grown from each of its models with a probability that is proportional to the orders in which it can
    have: see `growth_orders`. No more than ELDEST: who has most descendants is seldom sure to have come first.
    """
    orders = growth_orders(models, first, second, share)
    return (orders[first] - orders[second]).clip(-ELDEST, ELDEST)


Prior = Float[np.ndarray, "models models"] | float


def own_weights(
    evidence: Evidence,
    coefficients: Coefficients,
    forced: dict[int, int] | None,
    hub: Prior = 0.0,
    elder: Prior = 0.0,
) -> Weights:
    """The log weights from the evidence and these priors, or without them."""
    near, parent = shared_terms(evidence, coefficients), parent_terms(evidence, coefficients, hub, elder)
    shared = sum(near.values())
    exact = exact_term(len(shared), forced)
    weights = Weights(shared + sum(parent.values()) + exact, shared + coefficients.beside)
    for child, known in (forced or {}).items():
        weights.beside[:, child] = weights.beside[child, known] = -np.inf
    np.fill_diagonal(weights.parent, -np.inf)
    np.fill_diagonal(weights.beside, -np.inf)
    return weights


def exact_term(n: int, forced: dict[int, int] | None) -> Float[np.ndarray, "models models"]:
    """What exact relations add to the log weight that i is the parent of j; a model is not made from its own child."""
    found = np.zeros((n, n))
    for child, known in (forced or {}).items():
        found[:, child] -= EXACT_WEIGHT
        found[known, child] += 2 * EXACT_WEIGHT
        found[child, known] = -np.inf
    return found


def _structure(
    evidence: Evidence, coefficients: Coefficients, of_parents: bool
) -> dict[str, Float[np.ndarray, "models models"]]:
    return {
        name: evidence.structure[..., k] * coefficients.structure[k]
        for k, name in enumerate(STRUCTURE)
        if (name in OF_PARENTS) == of_parents
    }


def shared_terms(evidence: Evidence, coefficients: Coefficients) -> dict[str, Float[np.ndarray, "models models"]]:
    """What each evidence adds to both log weights: whether the two are next to each other."""
    found = _structure(evidence, coefficients, of_parents=False)
    return found | {"between": -blocked(evidence, coefficients), "not looked at": -UNSEEN * ~evidence.candidate}


def parent_terms(
    evidence: Evidence, coefficients: Coefficients, hub: Prior = 0.0, elder: Prior = 0.0
) -> dict[str, Float[np.ndarray, "models models"]]:
    """What each evidence, and the priors, add to the log weight that i is the parent of j."""
    alone, sure = np.log(arrow_probability(evidence, coefficients)), np.abs(evidence.exact) > DECISIVE
    found = _structure(evidence, coefficients, of_parents=True)
    # Which of two siblings holds more that is new is open: newness tells a parent from these, where rounding does not.
    against_siblings = math.log(2) + np.log(newness_arrow(evidence, coefficients))
    newness = np.where(sure, np.where(evidence.one_way, against_siblings, 0), alone)
    found |= {"newness": newness, "exact arrow": np.where(sure, alone, 0)}
    counted = counted_odds(evidence)
    counting = np.log(arrow_probability(evidence, coefficients, counted))
    whole = np.log(arrow_probability(evidence, coefficients, counted + coefficients.elder * elder))
    found |= {"hub": coefficients.hub * (hub + np.zeros_like(alone))}
    return found | {"batches": counting - alone, "elder": whole - counting}

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
from mother.evidence.triples import FEATURES
from mother.graph.arborescence import edge_marginals

PATH = Path(__file__).parent / "calibration.json"

# Probability that newness is confidently wrong (strong decay, averaged weights): its log odds stay below 4.
DOUBT = 0.02
UNSEEN = 8.0  # log weight that a pair loses which is no candidate: far apart, so hardly an edge
MOST_BESIDE = 3.0  # models next to one that make it a hub
EXACT_WEIGHT = 60.0  # log weight of an exact relation


BETWEEN = ("level", *FEATURES)


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of the log weight, in the order of STRUCTURE, BETWEEN, DIRECTION; the last of the hub."""

    structure: Float[np.ndarray, "four"]
    between: Float[np.ndarray, "features1"]
    direction: Float[np.ndarray, "two"]
    hub: float

    @classmethod
    def of(cls, values: Float[np.ndarray, "all"]) -> "Coefficients":
        """From one vector of all of them."""
        first, second = len(STRUCTURE), len(STRUCTURE) + len(BETWEEN)
        return cls(values[:first], values[first:second], values[second:-1], float(values[-1]))


def read_coefficients(path: Path = PATH) -> Coefficients:
    """The fitted coefficients that come with the project."""
    content = json.loads(path.read_text(encoding="utf-8"))
    parts = (("structure", STRUCTURE), ("between", BETWEEN), ("direction", DIRECTION))
    return Coefficients(*(np.array([content[part][name] for name in names]) for part, names in parts), content["hub"])


def arrow_probability(evidence: Evidence, coefficients: Coefficients) -> Float[np.ndarray, "models models"]:
    """P(i -> j | the pair is an edge) from direction alone: rounding where it is decisive, else newness."""
    soft = DOUBT + (1 - 2 * DOUBT) * expit(evidence.direction @ coefficients.direction)
    return np.where(np.abs(evidence.exact) > DECISIVE, expit(np.clip(evidence.exact / 10, -20, 20)), soft)


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


def log_weights(
    evidence: Evidence, coefficients: Coefficients, forced: dict[int, int] | None = None
) -> Float[np.ndarray, "models models"]:
    """Log weight of each edge i -> j; `forced` gives the parent of models whose relation is exact.

    A model that others hang from for sure is a likelier parent of one more: of two that are nearly equal all children
    have the same. So degrees that are expected without the prior for hubs become that prior (once).
    """
    alone = _own_weights(evidence, coefficients, forced)
    return alone + coefficients.hub * hub_prior(edge_marginals(alone)[0])


def hub_prior(marginals: Float[np.ndarray, "models models"]) -> Float[np.ndarray, "models models"]:
    """Sum over the two ends of log(1 + other models that are expected next to it): it says nothing of the arrow.

    No more than MOST_BESIDE count: whoever adds many models next to one must not draw others there.
    """
    beside = marginals + marginals.T
    others = np.log(1 + (beside.sum(axis=1)[:, None] - beside).clip(0, MOST_BESIDE))
    return others + others.T


def _own_weights(
    evidence: Evidence, coefficients: Coefficients, forced: dict[int, int] | None
) -> Float[np.ndarray, "models models"]:
    """The log weights without the prior for hubs."""
    result = evidence.structure @ coefficients.structure + np.log(arrow_probability(evidence, coefficients))
    result = result - blocked(evidence, coefficients) - UNSEEN * ~evidence.candidate
    for child, parent in (forced or {}).items():
        result[:, child] -= EXACT_WEIGHT
        result[parent, child] += 2 * EXACT_WEIGHT
        result[child, parent] = -np.inf
    np.fill_diagonal(result, -np.inf)
    return result


@dataclass
class Example:
    """One cluster of known truth: `parents[j]` is the place of the parent of j, of those whose parent is there."""

    evidence: Evidence
    parents: dict[int, int]
    forced: dict[int, int]


START = (-0.5, 0.2, 1.0, -0.3, 0.0, 0.2, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0, 0.0)
# What a coefficient means keeps its sign: nearer, more alike, and between say what they say on any family.
BOUNDS = (
    [(None, 0), (0, None), (0, None), (None, None)]
    + [(None, None), *[(0, None)] * len(FEATURES)]
    + [(0, None), (0, None), (0, None)]
)


class _Batch:
    """All examples side by side, padded to the size of the largest, as tensors that a fit goes through many times."""

    def __init__(self, examples: Sequence[Example]) -> None:
        import torch

        count, n = len(examples), max(len(example.evidence.candidate) for example in examples)
        self.shape = count, n
        structure, direction = np.zeros((count, n, n, len(STRUCTURE))), np.zeros((count, n, n, len(DIRECTION)))
        fixed, soft = np.full((count, n, n), -np.inf), np.zeros((count, n, n), dtype=bool)
        known = np.ones((count, n, n), dtype=bool)
        root, known_root = np.zeros((count, n), dtype=bool), np.zeros((count, n), dtype=bool)  # who may be the root
        places, triples = [], []
        for at, example in enumerate(examples):
            evidence, m = example.evidence, len(example.evidence.candidate)
            structure[at, :m, :m], direction[at, :m, :m] = evidence.structure, evidence.direction
            soft[at, :m, :m] = np.abs(evidence.exact) <= DECISIVE
            sure = np.log(expit(np.clip(evidence.exact / 10, -20, 20)))
            fixed[at, :m, :m] = np.where(soft[at, :m, :m], 0, sure) - UNSEEN * ~evidence.candidate
            root[at, :m] = known_root[at, :m] = True
            for child, parent in example.forced.items():
                fixed[at, np.arange(n) != parent, child] = -np.inf
                root[at, child] = known_root[at, child] = False
            for child, parent in example.parents.items():
                known[at, np.arange(n) != parent, child] = False
                known_root[at, child] = False
            fixed[at, range(n), range(n)] = -np.inf
            fixed[at, 0, m:] = 0  # what pads hangs under the first model, always
            for i, j in (evidence.ends, evidence.ends[::-1]):
                places.append((at * n + i) * n + j)
                triples.append(evidence.between)
        self.structure, self.direction, self.fixed = (torch.from_numpy(v) for v in (structure, direction, fixed))
        self.soft, self.known = torch.from_numpy(soft), torch.from_numpy(known)
        self.places, self.triples = (torch.from_numpy(np.concatenate(v)) for v in (places, triples))
        self.root, self.known_root = torch.from_numpy(root), torch.from_numpy(known_root)
        self.hub = torch.zeros(count, n, n, dtype=torch.float64)
        self.examples = examples

    def look_for_hubs(self, coefficients: Coefficients) -> None:
        """The prior for hubs that follows from these coefficients."""
        import torch

        for at, example in enumerate(self.examples):
            marginals = edge_marginals(_own_weights(example.evidence, coefficients, example.forced))[0]
            self.hub[at, : len(marginals), : len(marginals)] = torch.from_numpy(hub_prior(marginals))

    def loss(self, values: "torch.Tensor") -> "torch.Tensor":
        """Minus the log probability of the true edges, summed over examples."""
        import torch

        first, second = len(STRUCTURE), len(STRUCTURE) + len(BETWEEN)
        log_odds = values[first] + self.triples @ values[first + 1 : second]
        count, n = self.shape
        best = torch.full((count * n * n,), -1e3, dtype=torch.float64)
        best = best.scatter_reduce(0, self.places, log_odds, "amax").view(count, n, n)
        arrow = torch.log(DOUBT + (1 - 2 * DOUBT) * torch.sigmoid(self.direction @ values[second:-1]))
        weights = self.fixed + self.structure @ values[:first] - torch.nn.functional.softplus(best)
        weights = weights + torch.where(self.soft, arrow, 0) + values[-1] * self.hub
        known = weights.masked_fill(~self.known, -torch.inf)
        return (self.log_sum(weights, self.root) - self.log_sum(known, self.known_root)).sum()

    def log_sum(self, weights: "torch.Tensor", may_be_root: "torch.Tensor") -> "torch.Tensor":
        """Log of the sum over all trees of each example, but for what is FLOOR below the best parent of a model."""
        import torch

        shift = weights.detach().amax(dim=1)
        bare = torch.isneginf(shift)  # a model without a possible parent is the root
        shift = torch.where(bare, 0, shift)
        weight = torch.exp(torch.clamp(weights - shift[:, None], min=-FLOOR))
        weight = torch.where(torch.isneginf(weights), 0, weight)
        level = torch.where(may_be_root, shift, torch.inf).amin(dim=1, keepdim=True)
        root = torch.where(may_be_root, torch.exp(torch.clamp(level - shift, min=-FLOOR)), 0)
        laplacian = torch.diag_embed(weight.sum(dim=1)) - weight
        laplacian = torch.cat([root[:, None], laplacian[:, 1:]], dim=1)
        return torch.linalg.slogdet(laplacian).logabsdet + shift.sum(dim=1) - level[:, 0]


HUB_ROUNDS = 2  # of fitting coefficients and the degrees that follow from them
FLOOR = 30.0  # log weight below the best parent, from where on a fit need not know how far: the inverse keeps digits


def fit(examples: Sequence[Example], ridge: float = 0.02, rounds: int = HUB_ROUNDS) -> Coefficients:
    """Coefficients of the largest penalised likelihood of the true edges (L-BFGS); hubs count after a round."""
    import torch
    from scipy.optimize import minimize  # here: a program starts half a second sooner, and few fit anything

    batch = _Batch(examples)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        total = batch.loss(at) + ridge * at.square().sum()
        total.backward()
        return float(total.detach()), at.grad.numpy()

    options = {"maxiter": 150}
    values = np.array(START)
    for _ in range(rounds):
        values = minimize(loss, values, jac=True, method="L-BFGS-B", bounds=BOUNDS, options=options).x
        batch.look_for_hubs(Coefficients.of(values))
    return Coefficients.of(minimize(loss, values, jac=True, method="L-BFGS-B", bounds=BOUNDS, options=options).x)

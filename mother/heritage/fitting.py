"""Fit what evidence is worth, on trees of known truth.

A structured logistic regression: the coefficients maximise the probability of the true trees (Koo et al. 2007). The
likelihood is a proper score, so that the marginals of edges come out calibrated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from mother.evidence.edges import DECISIVE, DIRECTION, STRUCTURE, Evidence
from mother.evidence.triples import FEATURES
from mother.heritage.calibration import BETWEEN, DOUBT, OF_PARENTS, UNSEEN, Coefficients, counted_odds, priors_of

LOWEST = -1e4  # log weight of what is not known, where something else is


@dataclass
class Example:
    """One cluster of known truth.

    `parents[j]` is the place of the parent of j, or of its nearest ancestor that is there. `absent[j]` names the parent
    of j where that is not there. `twins[j]` is a model that nothing tells from this parent: the original of a cast, or
    the cast. `excluded` are (parent, child) that exact relations exclude.
    """

    evidence: Evidence
    parents: dict[int, int]
    forced: dict[int, int]
    absent: dict[int, str] = field(default_factory=dict)
    weight: float = 1.0
    twins: dict[int, int] = field(default_factory=dict)
    excluded: Sequence[tuple[int, int]] = ()


START = (-0.5, 0.2, -0.3, -0.1, -0.5, 0.0, 0.2, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 0.5, 0.0, -2.0)
# What a coefficient means keeps its sign: nearer, more alike, and between say what they say on any family. That of
# elders is at most that of growth by chance: grown families have more stars than the world, and of a chain it is wrong.
BOUNDS = (
    [(None, 0), (0, None), (None, None), (None, 0), (None, 0)]
    + [(None, None), *[(0, None)] * len(FEATURES)]
    + [(0, None), (0, None), (0, 1), (0, None), (None, None)]
)


class _Batch:
    """All examples side by side, padded to the size of the largest, as tensors that a fit goes through many times."""

    def __init__(self, examples: Sequence[Example]) -> None:
        import torch

        count, n = len(examples), max(len(example.evidence.candidate) for example in examples)
        self.shape = count, n
        structure, direction = np.zeros((count, n, n, len(STRUCTURE))), np.zeros((count, n, n, len(DIRECTION)))
        fixed, counted = np.zeros((count, n, n)), np.zeros((count, n, n))
        soft, one_way = np.zeros((count, n, n), dtype=bool), np.zeros((count, n, n), dtype=bool)
        seen = np.full((count, n, n), -np.inf)
        known = np.zeros((2, count, n, n), dtype=bool)  # whose parent is there, and who is beside whom
        may, root = np.ones((count, n), dtype=bool), np.zeros((count, n), dtype=bool)  # hang beside others; be the root
        known_root = np.zeros((count, n), dtype=bool)
        places, triples = [], []
        for at, example in enumerate(examples):
            evidence, m = example.evidence, len(example.evidence.candidate)
            structure[at, :m, :m], direction[at, :m, :m] = evidence.structure, evidence.direction
            soft[at, :m, :m] = np.abs(evidence.exact) <= DECISIVE
            one_way[at, :m, :m] = ~soft[at, :m, :m] & evidence.one_way
            counted[at, :m, :m] = counted_odds(evidence)
            sure = np.log(expit(np.clip(evidence.exact / 10, -20, 20)))
            fixed[at, :m, :m] = np.where(soft[at, :m, :m], 0, sure)
            seen[at, :m, :m] = -UNSEEN * ~evidence.candidate
            root[at, :m] = known_root[at, :m] = True
            for child, parent in example.forced.items():
                seen[at, np.arange(n) != parent, child] = -np.inf
                root[at, child] = known_root[at, child] = may[at, child] = False
            for child, parent in example.parents.items():
                known[0, at, [parent, example.twins.get(child, parent)], child], known_root[at, child] = True, False
            for child, name in example.absent.items():
                beside = [other for other, one in example.absent.items() if one == name and other != child]
                known[1, at, beside, child] = True
            for parent, child in example.excluded:
                seen[at, parent, child] = -np.inf
            seen[at, range(n), range(n)] = -np.inf
            seen[at, 0, m:], known[0, at, 0, m:], may[at, m:] = 0, True, False  # what pads hangs under the first model
            for i, j in (evidence.ends, evidence.ends[::-1]):
                places.append((at * n + i) * n + j)
                triples.append(evidence.between)
        self.structure, self.direction = torch.from_numpy(structure), torch.from_numpy(direction)
        self.fixed, self.counted = torch.from_numpy(fixed), torch.from_numpy(counted)
        self.soft, self.one_way = torch.from_numpy(soft), torch.from_numpy(one_way)
        self.known, self.seen = torch.from_numpy(known), torch.from_numpy(seen)
        self.may = torch.from_numpy(np.where(may, 0, -np.inf))[:, None]
        self.weight = torch.tensor([example.weight for example in examples], dtype=torch.float64)
        self.places, self.triples = (torch.from_numpy(np.concatenate(v)) for v in (places, triples))
        self.root, self.known_root = torch.from_numpy(root), torch.from_numpy(known_root)
        self.hub, self.elder = torch.zeros(2, count, n, n, dtype=torch.float64)
        self.examples = examples

    def look_for_priors(self, coefficients: Coefficients) -> None:
        """The priors of hubs and elders that follow from these coefficients."""
        import torch

        for at, example in enumerate(self.examples):
            n = len(example.evidence.candidate)
            for into, prior in zip((self.hub, self.elder), priors_of(example.evidence, coefficients, example.forced)):
                into[at, :n, :n] = torch.from_numpy(prior)

    def loss(self, values: "torch.Tensor") -> "torch.Tensor":
        """Minus the log probability of the true edges, summed over examples."""
        import torch

        first, second = len(STRUCTURE), len(STRUCTURE) + len(BETWEEN)
        log_odds = values[first] + self.triples @ values[first + 1 : second]
        count, n = self.shape
        best = torch.full((count * n * n,), -1e3, dtype=torch.float64)
        best = best.scatter_reduce(0, self.places, log_odds, "amax").view(count, n, n)
        new = self.direction @ values[second:-3]
        told = new + values[-3] * self.elder + self.counted
        arrow, own = (torch.log(DOUBT + (1 - 2 * DOUBT) * torch.sigmoid(odds)) for odds in (told, new))
        of_parents = torch.tensor([name in OF_PARENTS for name in STRUCTURE])
        near = self.structure @ torch.where(of_parents, 0, values[:first]) - torch.nn.functional.softplus(best)
        near = near + self.seen
        parent = near + self.structure @ torch.where(of_parents, values[:first], 0) + self.fixed
        parent = parent + torch.where(self.soft, arrow, 0) + torch.where(self.one_way, math.log(2) + own, 0)
        parent = parent + values[-2] * self.hub
        ways = torch.stack([parent, near + self.may + values[-1]]).clamp(min=LOWEST)
        possible = ~torch.isneginf(self.seen)
        both, known = (torch.logsumexp(one, dim=0) for one in (ways, ways.masked_fill(~self.known, LOWEST)))
        both = both.masked_fill(~possible, -torch.inf)
        known = known.masked_fill(~(self.known.any(dim=0) & possible), -torch.inf)
        return self.weight @ (self.log_sum(both, self.root) - self.log_sum(known, self.known_root))

    def log_sum(self, weights: "torch.Tensor", may_be_root: "torch.Tensor") -> "torch.Tensor":
        """Log of the sum over all trees of each example.

        Nodes are eliminated as by `edge_marginals` (Grassmann, Taksar, Heyman 1985): nothing cancels, however
        surely two are the best parents of each other. One more node, eliminated last, is above whichever model is the
        root.
        """
        import torch

        root = torch.where(may_be_root, 0.0, -NEVER).to(weights) - ONE_ROOT
        # [child, parent], the first parent being above the root
        rate = torch.cat([root[:, None], weights.masked_fill(torch.isneginf(weights), -NEVER)], dim=1).transpose(1, 2)
        total = torch.full_like(root[:, 0], ONE_ROOT)
        for k in range(rate.shape[1] - 1, -1, -1):
            own, above = rate[:, k, : k + 1], rate[:, :k, : k + 1]
            out = torch.logsumexp(own, dim=1)
            total = total + out
            rate = torch.logaddexp(above, rate[:, :k, k + 1, None] + (own - out[:, None])[:, None])
        return total


SMALL = 4  # models of an example that is fitted beside others of its size
HUB_ROUNDS = 2  # of fitting coefficients and the degrees that follow from them
ONE_ROOT = 1e3  # log weight that a second root costs
NEVER = 1e5  # the same of what is impossible


def fit(examples: Sequence[Example], ridge: float = 0.02, rounds: int = HUB_ROUNDS) -> Coefficients:
    """Coefficients of the largest penalised likelihood of the true edges (L-BFGS); hubs count after a round."""
    import torch
    from scipy.optimize import minimize  # here: a program starts half a second sooner, and few fit anything

    # Half of the examples are pairs: padded to the size of the others they would take as long as these.
    sizes = [
        [example for example in examples if (len(example.evidence.candidate) > SMALL) == large] for large in (0, 1)
    ]
    batches = [_Batch(some) for some in sizes if some]

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        total = sum(batch.loss(at) for batch in batches) + ridge * at.square().sum()
        total.backward()
        return float(total.detach()), at.grad.numpy()

    options = {"maxiter": 150}
    values = np.array(START)
    for _ in range(rounds):
        values = minimize(loss, values, jac=True, method="L-BFGS-B", bounds=BOUNDS, options=options).x
        for batch in batches:
            batch.look_for_priors(Coefficients.of(values))
    return Coefficients.of(minimize(loss, values, jac=True, method="L-BFGS-B", bounds=BOUNDS, options=options).x)

"""Log weights of edges and the terms they are made of, the prior for hubs, and the fit of coefficients."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from test_marginals import all_trees

from mother.evidence.edges import DECISIVE, DIRECTION, STRUCTURE, Evidence
from mother.evidence.triples import FEATURES
from mother.graph.arborescence import edge_marginals
from mother.graph.certainty import KNOWN
from mother.heritage.calibration import (
    BETWEEN,
    ELDEST,
    MOST_BESIDE,
    OF_PARENTS,
    PRIORS,
    Coefficients,
    Weights,
    arrow_probability,
    elder_prior,
    hub_prior,
    log_weights,
    read_coefficients,
)
from mother.heritage.fitting import BOUNDS, START, Example, _Batch, fit
from mother.heritage.terms import all_terms, terms, third_between

TRUTH = Coefficients(
    np.array([-1.0, 0.8, 0.5, -0.6, -0.7]),
    np.array([-0.5, 1.2, 0.6, 0.9, 0.7, 0.5, 0.8]),
    np.array([1.5, 0.7]),
    elder=0.0,
    hub=0.0,
    beside=-1.0,
)


def random_evidence(rng: np.random.Generator, n: int, exact: float = 0.0, seen: float = 1.0) -> Evidence:
    """Random evidence of n models; a share of pairs has decisive arrows, and a share was looked at."""
    structure = rng.normal(size=(n, n, len(STRUCTURE)))
    direction = rng.normal(size=(n, n, len(DIRECTION)))
    rows = [(i, j, k) for i in range(n) for j in range(i + 1, n) for k in range(n) if k not in (i, j)]
    first, second, third = np.array(rows, dtype=int).reshape(-1, 3).T
    between = rng.normal(size=(len(rows), len(FEATURES)))
    arrows = np.triu(np.where(rng.random((n, n)) < exact, rng.choice([-500.0, 500.0], (n, n)), 0), 1)
    candidate = np.triu(rng.random((n, n)) < seen, 1)
    turned = direction - direction.transpose(1, 0, 2)
    ends = np.stack([first, second])
    counted = np.triu(rng.choice([-1.0, 0.0, 1.0], (n, n)), 1)
    arrows, counted, candidate = arrows - arrows.T, counted - counted.T, candidate | candidate.T
    one_way = rng.random((n, n)) < 0.5
    return Evidence(
        structure, between, ends, third, turned, arrows, one_way | one_way.T, counted, candidate, np.zeros(n)
    )


def permuted(evidence: Evidence, order: np.ndarray) -> Evidence:
    """The same evidence with model order[k] at place k."""
    place = np.argsort(order)
    grid = np.ix_(order, order)
    names = ("structure", "direction", "exact", "one_way", "counted", "candidate")
    pairs = {name: getattr(evidence, name)[grid] for name in names}
    return replace(evidence, ends=place[evidence.ends], third=place[evidence.third], **pairs)


# Terms


@pytest.mark.parametrize("forced", [{}, {2: 4, 0: 1}])
@pytest.mark.parametrize("n", [2, 6])
def test_terms_sum_to_the_log_weight(n: int, forced: dict[int, int], rng: np.random.Generator) -> None:
    forced = {child: parent for child, parent in forced.items() if n > 2}
    evidence = random_evidence(rng, n, exact=0.3, seen=0.7)
    coefficients = replace(TRUTH, hub=0.4, elder=0.8)
    weights = log_weights(evidence, coefficients, forced)
    apart = ~np.eye(n, dtype=bool)
    assert sum(all_terms(evidence, coefficients, forced).values())[apart] == pytest.approx(weights.parent[apart])
    for i, j in ((0, 1), (1, 0)):
        found = terms(evidence, coefficients, i, j, forced)
        assert sum(found.values()) == pytest.approx(weights.parent[i, j])
        assert found["distance"] == -evidence.structure[i, j, 0]
        sure = abs(evidence.exact[i, j]) > DECISIVE
        assert (found["newness"] == 0) == (sure and not evidence.one_way[i, j]) and (found["exact arrow"] == 0) == (
            not sure
        )
    if n > 2:
        found = all_terms(evidence, coefficients, forced)
        assert found["hub"].max() > 0 and found["elder"].max() > 0
        assert (found["elder"][np.abs(evidence.exact) > DECISIVE] == 0).all()  # what is exact outweighs who came first


def test_the_third_model_of_a_term_is_the_one_that_fits_best(rng: np.random.Generator) -> None:
    evidence = random_evidence(rng, 6)
    for i, j in ((1, 4), (4, 1)):
        best = third_between(evidence, TRUTH, i, j)
        said = np.zeros(len(evidence.third))
        for row, (first, second) in enumerate(evidence.ends.T):
            if {first, second} == {i, j}:
                said[row] = TRUTH.between[0] + evidence.between[row] @ TRUTH.between[1:]
                if evidence.third[row] == best:
                    expected = said[row]
        assert terms(evidence, TRUTH, i, j)["between"] == pytest.approx(-np.log1p(np.exp(expected)))
        assert expected == said[said != 0].max()
    assert third_between(random_evidence(rng, 2), TRUTH, 0, 1) is None


# Log weights


def test_log_weights_do_not_depend_on_the_order_of_models(rng: np.random.Generator) -> None:
    evidence, coefficients = random_evidence(rng, 7, exact=0.2, seen=0.8), replace(TRUTH, hub=0.5, elder=0.8)
    order = rng.permutation(7)
    expected, found = log_weights(evidence, coefficients), log_weights(permuted(evidence, order), coefficients)
    apart = ~np.eye(7, dtype=bool)
    for way in ("parent", "beside"):
        assert getattr(found, way)[apart] == pytest.approx(getattr(expected, way)[np.ix_(order, order)][apart])


def test_log_weights_are_finite_but_for_what_cannot_be(rng: np.random.Generator) -> None:
    evidence = random_evidence(rng, 5, exact=0.5, seen=0.3)
    plain = log_weights(evidence, read_coefficients())
    for values in (plain.parent, plain.beside):
        assert np.isneginf(values).tolist() == np.eye(5, dtype=bool).tolist() and not np.isnan(values).any()
    forced = log_weights(evidence, read_coefficients(), {3: 2})
    impossible = np.eye(5, dtype=bool)
    impossible[3, 2] = True  # a model is not made from its own child
    assert np.isneginf(forced.parent).tolist() == impossible.tolist() and not np.isnan(forced.parent).any()
    impossible[:, 3] = True  # nor is it without its parent
    assert np.isneginf(forced.beside).tolist() == impossible.tolist()
    alone = log_weights(random_evidence(rng, 1), read_coefficients())
    assert alone.both.shape == (1, 1) and np.isneginf(alone.both).all()


def test_the_two_ways_share_the_probability_of_an_edge(rng: np.random.Generator) -> None:
    weights = log_weights(random_evidence(rng, 5), TRUTH)
    marginals, apart = edge_marginals(weights.both)[0], ~np.eye(5, dtype=bool)
    parents, beside = weights.parents(marginals), Weights(weights.beside, weights.parent).parents(marginals)
    assert parents + beside == pytest.approx(marginals)
    expected = np.exp(weights.parent[apart] - weights.beside[apart])
    assert parents[apart] / beside[apart] == pytest.approx(expected)
    assert (weights.best[apart] <= weights.both[apart]).all()
    without = weights.without(1, 2)
    assert np.isneginf(without.both[1, 2]) and np.isfinite(weights.both[1, 2])
    assert without.both[2, 1] == weights.both[2, 1]


def test_exact_relations_decide_and_rounding_beats_newness(rng: np.random.Generator) -> None:
    coefficients = read_coefficients()
    evidence = random_evidence(rng, 4)
    evidence.direction[:], evidence.exact[:] = 0, 0
    evidence.exact[0, 1], evidence.exact[1, 0] = 500.0, -500.0
    evidence.direction[0, 1], evidence.direction[1, 0] = -1.0, 1.0
    arrow = arrow_probability(evidence, coefficients)
    assert arrow[0, 1] > 0.999 and arrow[1, 0] < 0.001 and arrow[2, 3] == pytest.approx(0.5)
    edges, _, _ = edge_marginals(log_weights(evidence, coefficients, {3: 2}).both)
    assert edges[2, 3] > 0.999 and edges[3].sum() > 0  # its own children stay possible


def test_rounding_that_goes_one_way_leaves_siblings_to_newness(rng: np.random.Generator) -> None:
    """Of two models newness tells a parent from a sibling where rounding only says that the finer came not last."""
    evidence = random_evidence(rng, 2)
    evidence.direction[:], evidence.counted[:] = 0, 0
    evidence.exact[0, 1], evidence.exact[1, 0] = 500.0, -500.0
    for one_way in (False, True):
        evidence.one_way[:] = one_way
        odds = {}
        for newness in (-3.0, 0.0, 3.0):
            evidence.direction[0, 1], evidence.direction[1, 0] = newness, -newness
            weights = log_weights(evidence, TRUTH)
            odds[newness] = weights.parent[0, 1] - weights.beside[0, 1]
            assert weights.parent[1, 0] < weights.parent[0, 1] - 15  # whatever newness says
        if one_way:
            assert odds[-3.0] < odds[0.0] - 3 and odds[3.0] == pytest.approx(odds[0.0] + np.log(2), abs=0.05)
        else:
            assert odds[-3.0] == pytest.approx(odds[0.0]) == odds[3.0]


def test_third_models_that_lie_nowhere_near_change_nothing(rng: np.random.Generator) -> None:
    """The best of the third models counts alone: a hundred more that fit worse leave the weights as they are."""
    evidence, coefficients = random_evidence(rng, 5), replace(TRUTH, hub=0.0)
    many = 100
    worse = np.minimum(evidence.between.repeat(many, axis=0), evidence.between.min(axis=0) - 1)
    worse[:, FEATURES.index("share")] = evidence.between[:, FEATURES.index("share")].min() - 1
    more = replace(
        evidence,
        between=np.concatenate([evidence.between, worse]),
        ends=np.concatenate([evidence.ends, evidence.ends.repeat(many, axis=1)], axis=1),
        third=np.concatenate([evidence.third, evidence.third.repeat(many)]),
    )
    apart = ~np.eye(5, dtype=bool)
    found, expected = log_weights(more, coefficients), log_weights(evidence, coefficients)
    assert found.parent[apart] == pytest.approx(expected.parent[apart])
    assert found.beside[apart] == pytest.approx(expected.beside[apart])


# The prior for hubs


def test_the_prior_for_hubs_counts_the_others_that_hang_from_a_model(rng: np.random.Generator) -> None:
    star = np.zeros((6, 6))
    star[0, 1:] = 1
    prior = hub_prior(star)
    assert prior[0, 1:] == pytest.approx(np.log(1 + MOST_BESIDE)) and prior == pytest.approx(
        prior.T
    )  # it says nothing of arrows
    assert prior[1, 2] == pytest.approx(2 * np.log(2))
    marginals = edge_marginals(rng.normal(size=(6, 6)))[0]
    prior = hub_prior(marginals)
    assert (prior >= 0).all() and hub_prior(marginals.T) == pytest.approx(prior)  # arrows play no part
    order = rng.permutation(6)
    assert hub_prior(marginals[np.ix_(order, order)]) == pytest.approx(prior[np.ix_(order, order)])
    surer = marginals.copy()
    surer[2, 3] += 0.1
    assert hub_prior(surer)[2, 3] == pytest.approx(prior[2, 3]) and hub_prior(surer)[2, 4] > prior[2, 4]
    assert hub_prior(edge_marginals(rng.normal(size=(2, 2)))[0])[[0, 1], [1, 0]] == pytest.approx([0, 0])


# The prior for elders


def test_who_has_most_descendants_is_the_elder(rng: np.random.Generator) -> None:
    star = np.zeros((3, 3))
    star[0, 1:] = 1
    prior = elder_prior(star)
    assert prior[0, 1:] == pytest.approx(np.log(2)) and prior == pytest.approx(-prior.T)
    assert prior[1, 2] == pytest.approx(0)
    many = np.zeros((40, 40))
    many[0, 1:] = 1
    assert elder_prior(many).max() == ELDEST  # whoever adds many children makes no arrow known
    assert arrow_probability(random_evidence(rng, 1), TRUTH, np.array([[ELDEST]])).max() < KNOWN
    marginals = edge_marginals(rng.normal(size=(6, 6)))[0]
    assert elder_prior(marginals.T) == pytest.approx(elder_prior(marginals))  # arrows play no part
    order = rng.permutation(6)
    moved = elder_prior(marginals[np.ix_(order, order)])
    assert moved == pytest.approx(elder_prior(marginals)[np.ix_(order, order)])
    assert elder_prior(edge_marginals(rng.normal(size=(2, 2)))[0]) == pytest.approx(np.zeros((2, 2)))


def test_elders_turn_arrows_and_leave_the_pairs(rng: np.random.Generator) -> None:
    """What two models have for an edge, both arrows together, does not depend on who is the elder."""
    evidence = random_evidence(rng, 6)
    evidence.structure[:] = (evidence.structure + evidence.structure.transpose(1, 0, 2)) / 2
    of_parents = [STRUCTURE.index(name) for name in OF_PARENTS]
    evidence.structure[..., of_parents] = 0
    plain, found = (log_weights(evidence, replace(TRUTH, elder=elder)).parent for elder in (0.0, 1.0))
    apart = ~np.eye(6, dtype=bool)
    pairs = [np.logaddexp(one[apart], one.T[apart]) for one in (found, plain)]
    assert pairs[0] == pytest.approx(pairs[1])
    assert np.abs(found[apart] - plain[apart]).max() > 0.1


# The fit


def random_example(rng: np.random.Generator, n: int, truth: Coefficients) -> Example:
    """Random evidence and a tree drawn from the model's own distribution, of which some parents are not there."""
    evidence = random_evidence(rng, n)
    weights = log_weights(evidence, truth)
    trees = all_trees(n)
    total = np.array([sum(weights.both[parent, child] for child, parent in tree.items()) for tree in trees])
    chances = np.exp(total - total.max())
    tree = trees[rng.choice(len(trees), p=chances / chances.sum())]
    share = weights.parents(np.ones((n, n)))
    beside = {child: at for child, at in tree.items() if rng.random() >= share[at, child]}
    absent = {}
    for child, at in beside.items():  # those that hang together have one parent
        first = at
        while first in beside:
            first = beside[first]
        absent |= {child: f"of {first}", first: f"of {first}"}
    parents = {child: at for child, at in tree.items() if child not in beside}
    return Example(evidence, parents, {}, absent)


def test_fit_recovers_the_coefficients_that_made_the_trees(rng: np.random.Generator) -> None:
    examples = [random_example(rng, 4, TRUTH) for _ in range(600)]
    found = fit(examples, ridge=0.001)
    assert found.structure == pytest.approx(TRUTH.structure, abs=0.3)
    assert found.between == pytest.approx(TRUTH.between, abs=0.9)  # its level and hubs are told apart badly
    assert found.direction == pytest.approx(TRUTH.direction, abs=0.4)
    assert 0 <= found.hub < 0.6 and 0 <= found.elder < 0.4 and found.beside == pytest.approx(TRUTH.beside, abs=0.4)


def test_fit_finds_that_models_hang_from_hubs(rng: np.random.Generator) -> None:
    examples = [random_example(rng, 5, replace(TRUTH, hub=2.0)) for _ in range(200)]
    assert fit(examples, ridge=0.001).hub > 1


def test_fit_finds_that_elders_come_first(rng: np.random.Generator) -> None:
    examples = [random_example(rng, 5, replace(TRUTH, elder=1.0)) for _ in range(200)]
    assert fit(examples, ridge=0.001).elder == pytest.approx(1, abs=0.5)


def vector(coefficients: Coefficients) -> torch.Tensor:
    alone = [coefficients.elder, coefficients.hub, coefficients.beside]
    parts = (coefficients.structure, coefficients.between, coefficients.direction, alone)
    return torch.from_numpy(np.concatenate(parts))


def test_coefficients_are_one_vector() -> None:
    assert Coefficients.of(vector(TRUTH).numpy()).between.tolist() == TRUTH.between.tolist()
    assert len(START) == len(BOUNDS) == len(STRUCTURE) + len(BETWEEN) + len(DIRECTION) + len(PRIORS)
    for value, (low, high) in zip(START, BOUNDS):
        assert (low is None or low <= value) and (high is None or value <= high)
    found = read_coefficients()
    for value, (low, high) in zip(vector(found).tolist(), BOUNDS):
        assert (low is None or low <= value) and (high is None or value <= high)


def test_the_sum_over_trees_is_exact_however_far_weights_lie_apart(rng: np.random.Generator) -> None:
    batch = _Batch([random_example(rng, 4, TRUTH)])
    for scale in (1.0, 30.0, 300.0):
        weights = scale * rng.normal(size=(5, 8, 8))
        weights[:, range(8), range(8)] = -np.inf
        weights[0, 2, 5] = -np.inf
        at = torch.tensor(weights, requires_grad=True)
        found = batch.log_sum(at, torch.ones(5, 8, dtype=torch.bool))
        exact = [edge_marginals(one) for one in weights]
        assert found.detach().numpy() == pytest.approx([one[2] for one in exact], rel=1e-12, abs=1e-9)
        found.sum().backward()
        assert at.grad.numpy() == pytest.approx(np.stack([one[0] for one in exact]), abs=1e-9)
        root = torch.zeros(5, 8, dtype=torch.bool)
        root[:, 3] = True
        rooted = batch.log_sum(at.detach(), root).numpy()
        assert (
            rooted == pytest.approx([one[2] + np.log(max(one[1][3], 1e-300)) for one in exact], abs=1e-6) or scale > 1
        )


@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_the_batched_loss_is_that_of_the_log_weights(prior: float, rng: np.random.Generator) -> None:
    """Of several sizes side by side: exact arrows, pairs not looked at, absent parents, twins, what is excluded."""
    coefficients, examples, expected = replace(TRUTH, hub=prior, elder=2 * prior), [], 0.0
    for n, parents, forced, orphans, twins, excluded in (
        (3, {0: 2, 1: 2}, {}, (), {}, ()),
        (5, {1: 2, 3: 1, 4: 1}, {1: 2}, (0, 2), {}, ()),
        (4, {3: 1}, {}, (0, 1, 2), {}, ()),
        (2, {1: 0}, {}, (), {}, ()),
        (4, {1: 0, 2: 0, 3: 2}, {1: 0}, (), {3: 1}, ((3, 0), (2, 0), (1, 2))),
    ):
        evidence = random_evidence(rng, n, exact=0.2, seen=0.9)
        lost = dict.fromkeys(orphans, "lost")
        examples.append(Example(evidence, parents, forced, lost, 0.5 * n, twins=twins, excluded=excluded))
        weights = log_weights(evidence, coefficients, forced)
        for way in excluded:
            weights = weights.without(*way)
        known = np.full((n, n), -np.inf)
        known[list(parents.values()), list(parents)] = weights.parent[list(parents.values()), list(parents)]
        known[list(twins.values()), list(twins)] = weights.parent[list(twins.values()), list(twins)]
        for one, other in permutations(orphans, 2):
            known[one, other] = weights.beside[one, other]
        trees = [sum(known[parent, child] for child, parent in tree.items()) for tree in all_trees(n)]
        expected += 0.5 * n * (edge_marginals(weights.both)[2] - np.logaddexp.reduce(trees))
    batch = _Batch(examples)
    batch.look_for_priors(coefficients)
    assert float(batch.loss(vector(coefficients))) == pytest.approx(expected, abs=1e-6)


def test_the_batched_log_sum_is_that_of_the_marginals(rng: np.random.Generator) -> None:
    sizes = (5, 3, 4, 2)
    batch = _Batch([Example(random_evidence(rng, n), {}, {}) for n in sizes])
    weights = batch.seen.clone()
    for at, n in enumerate(sizes):
        weights[at, :n, :n] += torch.from_numpy(3 * rng.normal(size=(n, n)))
    weights[0, :, 2] = -torch.inf  # the only root
    weights[2, 1, 3] = -torch.inf
    found = batch.log_sum(weights, batch.root)
    expected = [edge_marginals(weights[at, :n, :n].numpy())[2] for at, n in enumerate(sizes)]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_the_loss_of_two_models_is_that_of_their_arrow() -> None:
    """Who is known to have a parent is not the root: else the arrow of a pair would cost nothing."""
    evidence = random_evidence(np.random.default_rng(0), 2)
    for child in (0, 1):
        weights = log_weights(evidence, TRUTH)
        expected = np.logaddexp(weights.both[0, 1], weights.both[1, 0]) - weights.parent[1 - child, child]
        batch = _Batch([Example(evidence, {child: 1 - child}, {})])
        assert float(batch.loss(vector(TRUTH))) == pytest.approx(expected) and expected > 0.01

"""Candidates among many models, and answers that more models must not make worse."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from conftest import vit_weights
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from test_heritage import base, edges, models, moved, recover

from mother.evidence.candidates import (
    CANDIDATES,
    MOST_HOLDERS,
    SMALL,
    candidate_pairs,
    spanning_pairs,
    third_models,
)
from mother.evidence.facts import Facts
from mother.evidence.first_pass import FirstPass

Weights = dict[str, torch.Tensor]


def first_pass(points: np.ndarray, digests: list[dict[str, str]] | None = None) -> FirstPass:
    """A first pass over models that are points."""
    n = len(points)
    square = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    facts = [Facts(digests=some) for some in digests or [{} for _ in range(n)]]
    names, shared = [f"m{k}" for k in range(n)], np.ones((n, n))
    return FirstPass(names, [], facts, square, shared, square, (points**2).sum(axis=1), np.full((n, n), 9.0))


def pairs_of(points: np.ndarray, digests: list[dict[str, str]] | None = None, **options: object) -> set:
    n = len(points)
    options = {"labels": np.zeros(n, dtype=int), "aliases": {}, "not_trained": set()} | options
    return set(candidate_pairs(first_pass(points, digests), **options)[0])


def test_every_pair_of_a_small_cluster_is_a_candidate(rng: np.random.Generator) -> None:
    points = rng.normal(size=(SMALL, 3))
    assert len(pairs_of(points)) == SMALL * (SMALL - 1) // 2
    labels = np.arange(SMALL) % 2
    found = pairs_of(points, labels=labels, aliases={4: 2})
    assert all(labels[i] == labels[j] for i, j in found) and not any(4 in pair for pair in found)
    assert {(0, 2), (1, 3)} <= found


def test_the_hub_stays_a_candidate_of_far_children(rng: np.random.Generator) -> None:
    """Forty children of one model; around one of them 200 models that are nearer to it than its own parent."""
    child = rng.normal(size=(40, 60)) / 60**0.5
    points = np.concatenate([np.zeros((1, 60)), child])
    assert {(0, k) for k in range(1, 41)} <= pairs_of(points)
    crowd = child[0] + 0.3 * rng.normal(size=(200, 60)) / 60**0.5
    found = pairs_of(np.concatenate([points, crowd]))
    assert {(0, k) for k in range(1, 41)} <= found
    assert len(found) < 241 * (CANDIDATES + 8)  # and not all pairs are


@pytest.mark.parametrize("clusters", [1, 3])
def test_clusters_are_spanned_as_by_all_pairs(clusters: int, rng: np.random.Generator) -> None:
    points = rng.normal(size=(90, 40))
    points[20:] = points[0] + 0.2 * points[20:]  # a star, as most families are, with others around
    square = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    labels = np.arange(90) % clusters
    allowed = (labels[:, None] == labels) & ~np.eye(90, dtype=bool)
    tree = minimum_spanning_tree(np.where(allowed, square, 0)).tocoo()
    expected = {(min(i, j), max(i, j)) for i, j in zip(tree.row.tolist(), tree.col.tolist())}
    found = spanning_pairs(square, allowed)
    assert set(found) == expected and len(found) == 90 - clusters


def test_models_that_share_tensors_stay_candidates(rng: np.random.Generator) -> None:
    points = rng.normal(size=(60, 20))
    digests = [{f"layer{k}": f"{place}.{k}" for k in range(6)} for place in range(60)]
    far = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    assert (0, far) not in pairs_of(points, digests)
    digests[far]["layer2"] = digests[0]["layer2"]
    assert (0, far) in pairs_of(points, digests)
    crowd = points[0] + 0.05 * rng.normal(size=(200, 20))
    more = digests + [{f"layer{k}": f"crowd {place}.{k}" for k in range(6)} for place in range(200)]
    assert (0, far) in pairs_of(np.concatenate([points, crowd]), more)
    # What more than MOST_HOLDERS models hold, such as norms that never moved, says nothing of two of them.
    for some in more[: MOST_HOLDERS + 10]:
        some["norm"] = "the same"
    assert pairs_of(np.concatenate([points, crowd]), more) == pairs_of(
        np.concatenate([points, crowd]), [{k: v for k, v in some.items() if k != "norm"} for some in more]
    )


def test_a_cluster_hangs_together(rng: np.random.Generator) -> None:
    """Two crowds far from each other: the edges of the minimum spanning tree join them."""
    crowds = np.concatenate([rng.normal(size=(40, 8)), 100 + rng.normal(size=(40, 8))])
    assert any(i < 40 <= j for i, j in pairs_of(crowds))
    assert not any(i < 40 <= j for i, j in pairs_of(crowds, labels=np.repeat([0, 1], 40)))


def test_what_no_training_made_takes_no_place_of_a_parent(rng: np.random.Generator) -> None:
    """Casts and prunes of a model crowd around it; the nearest that training made stay candidates."""
    points = rng.normal(size=(30, 40)) / 40**0.5
    made = points[0] + 0.01 * rng.normal(size=(30, 40)) / 40**0.5
    points, not_trained = np.concatenate([points, made]), set(range(30, 60))
    nearest = ((points[:30] - points[0]) ** 2).sum(axis=1).argsort()[1 : CANDIDATES + 1]
    found = pairs_of(points, not_trained=not_trained)
    assert {(0, int(k)) for k in nearest} <= found


def test_of_three_models_that_are_pairs_each_is_a_third_one(rng: np.random.Generator) -> None:
    """A chain of three, and 200 models that are nearer to its middle than the end of the chain is."""
    points = np.zeros((3, 60))
    points[1, 0], points[2, :2] = 1, (1, 1.2)
    crowd = 0.2 * rng.normal(size=(200, 60)) / 60**0.5
    crowd += points[rng.integers(0, 2, 200)]
    n, none = 203, {"aliases": {}, "not_trained": set()}
    pairs, near = candidate_pairs(first_pass(np.concatenate([points, crowd])), np.zeros(n, dtype=int), **none)
    assert {(0, 1), (0, 2), (1, 2)} <= set(pairs) and 2 not in near[0] + near[1]
    first, second = np.array(pairs).T
    asked = set(zip(*map(np.ndarray.tolist, third_models(first, second, near))))
    for third, pair in ((2, (0, 1)), (1, (0, 2)), (0, (1, 2))):
        assert (third, pairs.index(pair)) in asked
    there = set(pairs)
    for third, p in asked:
        ends = pairs[p]
        both = all((min(third, end), max(third, end)) in there for end in ends)
        assert both or third in near[ends[0]] + near[ends[1]]
    inside = set(zip(*map(np.ndarray.tolist, third_models(first, second, near, {2}))))
    assert inside == {(third, p) for third, p in asked if third == 2 or 2 in pairs[p]}


# From files to the graph


def family(seed: int, size: int = 30) -> tuple[dict[str, Weights], dict[tuple[str, str], str]]:
    """Models that each come from an earlier one, every fifth by LoRA; and their edges with their kinds."""
    rng = np.random.default_rng(seed)
    content, truth = {"m0": small(seed)}, {}
    for k in range(1, size):
        parent = f"m{int(rng.integers(0, max(1, k // 2)))}"
        rank = 2 if k % 5 == 4 else None
        content[f"m{k}"] = moved(content[parent], 100 * seed + k, float(rng.uniform(0.05, 0.3)), rank)
        truth[parent, f"m{k}"] = "lora" if rank else "fine-tune"
    return content, truth


def small(seed: int) -> Weights:
    return {name: weight * 0.1 for name, weight in vit_weights(seed, 2, 32).items()}


def check_more_models(seed: int, size: int, added: int, related: bool, tmp_path: Path) -> None:
    """Edges found among `size` models stay found among these and `added` ones, and are what they were."""
    content, truth = family(seed, size)
    alone = edges(recover(models(tmp_path, **content)))
    right = {edge for edge in truth if edge in alone}
    assert len(right) >= 0.95 * len(truth)
    if related:  # fine-tunes of a few of them
        more = {f"x{k}": moved(content[f"m{k % 7}"], 5000 + k, 0.15) for k in range(added)}
    else:
        more = {f"x{k}": small(1900 + k) for k in range(added)}
    found = edges(recover(models(tmp_path, **content, **more)))
    # What hangs near two models may go to the one that others hang from now; nobody is sure of it then.
    lost = right - found.keys()
    assert len(lost) <= (1 if related else 0)
    for _, child in lost:
        assert all(facts["adjacency"] * facts["arrow"] < 0.75 for (_, at), facts in found.items() if at == child)
    for edge in right - lost:
        assert found[edge]["kind"] == truth[edge]
        assert found[edge].get("rank") == (2 if truth[edge] == "lora" else None)
    if not related:
        assert found == alone


@pytest.mark.parametrize("related", [True, False])
def test_more_models_make_no_answer_worse(related: bool, tmp_path: Path) -> None:
    check_more_models(0, 30, 60, related, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=2, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 49), related=st.booleans())
@example(seed=4, related=True)  # of these four edges were lost where the crowd took the places of third models
def test_edges_among_a_hundred_models_stay_when_two_hundred_come(seed: int, related: bool) -> None:
    with TemporaryDirectory() as folder:
        check_more_models(seed, 100, 200, related, Path(folder))


def test_a_lora_child_stays_one_among_its_siblings(tmp_path: Path) -> None:
    """A LoRA child of four of seven matrices, and ever more full fine-tunes of the same model."""
    root = base(0)
    low = moved(root, 1, 0.3, rank=2)
    lora = {name: low[name] if "attention.attention" in name else weight for name, weight in root.items()}
    for count in (1, 40):
        more = {f"x{k}": moved(root, 10 + k, 0.05) for k in range(count)}
        found = edges(recover(models(tmp_path, root=root, lora=lora, **more)))
        assert {edge for edge in found if "lora" in edge} == {("root", "lora")}
        assert found["root", "lora"]["kind"] == "lora" and found["root", "lora"]["rank"] == 2
        assert found["root", "lora"]["adjacency"] > 0.5

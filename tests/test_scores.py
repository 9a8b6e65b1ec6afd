"""Scores, direction and clusters against the definitions written out."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from mother.graph.manifest import Manifest, Node
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.scores import (
    cluster_accuracy,
    directed_accuracy,
    kurtosis_accuracy,
    match_labels,
    score_graph,
    undirected_accuracy,
)
from mother.paper.clusters import ward_clusters
from mother.paper.direction import kurtosis_direction


def test_direction_is_one_where_kurtosis_contradicts() -> None:
    kurtosis = np.array([3.0, 1.0, 1.0])
    falls = kurtosis_direction(kurtosis, "specialization")
    assert falls.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert kurtosis_direction(kurtosis, "generalization").tolist() == falls.T.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_direction_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        kurtosis_direction(np.array([0.0, value]), "specialization")


def test_edge_accuracy() -> None:
    truth = {("a", "b"), ("b", "c"), ("a", "d"), ("d", "e")}
    recovered = {("a", "b"), ("c", "b"), ("a", "d"), ("a", "e")}
    assert directed_accuracy(recovered, truth) == 0.5
    assert undirected_accuracy(recovered, truth) == 0.75
    assert directed_accuracy(set(), set()) is None and undirected_accuracy(set(), set()) is None


def test_kurtosis_accuracy_counts_true_edges_that_are_not_contradicted() -> None:
    contradicts = kurtosis_direction(np.array([3.0, 1.0, 2.0]), "specialization")
    truth = {("a", "b"), ("b", "c")}
    assert kurtosis_accuracy(contradicts, ["a", "b", "c"], truth) == 0.5
    assert kurtosis_accuracy(contradicts, ["a", "b", "c"], set()) is None


def test_cluster_accuracy_is_that_of_the_best_permutation(rng: np.random.Generator) -> None:
    for _ in range(50):
        truth, labels = rng.integers(0, 4, 15), rng.integers(0, 4, 15)
        best = max((np.array(names)[labels] == truth).mean() for names in permutations(range(4)))
        assert cluster_accuracy(labels, truth) == pytest.approx(best)


def test_match_labels_with_too_many_clusters() -> None:
    matched = match_labels(np.array([0, 0, 1, 2]), np.array([7, 7, 7, 9]))
    assert matched.tolist() == [7, 7, -1, 9]


def test_ward_finds_separate_groups(rng: np.random.Generator) -> None:
    truth = np.repeat(np.arange(4), 6)
    distance = np.where(truth[:, None] == truth[None], rng.uniform(0.1, 0.4, (24, 24)), 3.0)
    distance = np.triu(distance, 1) + np.triu(distance, 1).T
    assert cluster_accuracy(ward_clusters(distance, 4), truth) == 1
    assert set(ward_clusters(distance, 1).tolist()) == {0}


def test_ward_with_few_models() -> None:
    assert ward_clusters(np.zeros((1, 1)), 5).tolist() == [0]
    assert sorted(ward_clusters(np.array([[0.0, 1.0], [1.0, 0.0]]), 5).tolist()) == [0, 1]
    with pytest.raises(ValueError, match="at least 1"):
        ward_clusters(np.zeros((2, 2)), 0)
    with pytest.raises(ValueError, match="finite"):
        ward_clusters(np.array([[0.0, np.nan], [np.nan, 0.0]]), 1)


@pytest.mark.parametrize("said", ["adapter", "lora"])
@pytest.mark.parametrize(("kind", "right"), [("adapter", 1.0), ("lora", 1.0), ("fine-tune", 0.0)])
def test_adapters_and_loras_are_scored_as_one_kind(kind: str, right: float, said: str) -> None:
    nodes = (Node("base", "base", tree=1), Node("child", "child", "base", tree=1, rank=4, kind=said, base="base"))
    graph = ModelGraph(
        "g", {name: {"tree": "0"} for name in ("base", "child")}, (Edge("base", "child", {"kind": kind, "rank": 4}),)
    )
    scores = score_graph(graph, Manifest("g", nodes, Path()))
    assert scores["kinds"] == right and scores["ranks"] == (1.0 if right else None)


@pytest.mark.parametrize(("parent", "right"), [("copy", 1.0), ("root", 0.5)])
def test_a_copy_stands_for_its_original_that_is_absent(parent: str, right: float) -> None:
    nodes = (
        Node("root", "root", tree=1),
        Node("lost", "lost", "root", tree=1, absent=True),
        Node("copy", "copy", "lost", tree=1, kind="copy"),
        Node("child", "child", "lost", tree=1),
    )
    edges = (Edge("root", "copy", {}), Edge(parent, "child", {}))
    graph = ModelGraph("g", {name: {"tree": "0"} for name in ("root", "copy", "child")}, edges)
    scores = score_graph(graph, Manifest("g", nodes, Path()))
    assert scores["true_edges"] == 2 and scores["directed"] == right

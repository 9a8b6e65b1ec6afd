"""Measuring a collection and recovering its tree: the plain recipe side by side, and what is left out and why."""

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import scipy.stats
import torch
from conftest import save_family, save_model, vit_weights

from mother.graph.manifest import Manifest
from mother.io.checkpoint import Checkpoint
from mother.io.layers import ATTENTION, Layer
from mother.io.open import open_checkpoint
from mother.paper.direction import direction_kurtosis
from mother.paper.distances import pairwise_differences, sum_over_layers
from mother.paper.measure import Measured, comparable, measure
from mother.paper.ranks import pairwise_rank
from mother.paper.statistics import kurtosis
from mother.paper.tree import identical_models, merged_cost, recover_tree

CPU = torch.device("cpu")
STATISTICS = {"differences": pairwise_differences, "pair_rank": pairwise_rank, "kurtosis": kurtosis}


def open_all(manifest: Manifest) -> list[Checkpoint]:
    return [open_checkpoint(node.id, manifest.location(node)) for node in manifest.nodes]


def test_merged_cost_by_hand() -> None:
    distance = np.array([[0.0, 2.0], [4.0, 0.0]])
    direction = np.array([[0.0, 1.0], [0.0, 0.0]])
    # mean over all four entries, as in the authors' code: 1.5
    np.testing.assert_allclose(merged_cost(distance, direction, 0.3), [[np.inf, 2 + 0.3 * 1.5], [4.0, np.inf]])
    assert np.isfinite(distance).all()


def test_lora_recovery_equals_the_plain_recipe(tmp_path: Path) -> None:
    """Load both models of each pair, numpy's rank, scipy's kurtosis, networkx' arborescence."""
    manifest = save_family(tmp_path, size=6, rank=2)
    checkpoints = open_all(manifest)
    layers = [Layer(str(block), "value") for block in range(2)]
    n = len(checkpoints)
    weights = {checkpoint.model: [checkpoint.read(layer).numpy() for layer in layers] for checkpoint in checkpoints}
    names = list(weights)
    k = {name: sum(scipy.stats.kurtosis(weight.ravel().astype(float)) for weight in weights[name]) for name in names}
    d = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            pairs = zip(weights[names[i]], weights[names[j]])
            d[i, j] = sum(np.linalg.matrix_rank(first - second) for first, second in pairs)
    graph = nx.DiGraph()
    for i in range(n):
        for j in range(n):
            if i != j:
                graph.add_edge(i, j, weight=d[i, j] + 0.3 * d.mean() * (k[names[j]] > k[names[i]]))
    expected = sum(
        nx.minimum_spanning_arborescence(graph).edges[edge]["weight"]
        for edge in nx.minimum_spanning_arborescence(graph).edges
    )

    measured, found = direction_kurtosis(measure(checkpoints, ("value",), STATISTICS, CPU), "value")
    np.testing.assert_allclose(found, [k[name] for name in measured.models], rtol=1e-9)
    distance = sum_over_layers(measured.arrays["pair_rank"])
    np.testing.assert_array_equal(distance, d)
    edges = recover_tree(measured.models, distance, found)
    assert sum(edge.attributes["cost"] for edge in edges) == pytest.approx(expected)
    undirected = {frozenset((edge.parent, edge.child)) for edge in edges}
    assert undirected == {frozenset(edge) for edge in manifest.edges}


def test_any_order_of_the_input_gives_the_same_tree(rng: np.random.Generator) -> None:
    """Also where many trees cost the same."""
    n = 12
    models = [f"m{k}" for k in range(n)]
    distance = rng.integers(1, 3, (n, n)).astype(float)
    distance = np.triu(distance, 1) + np.triu(distance, 1).T
    k = rng.integers(0, 3, n).astype(float)
    trees = []
    for _ in range(5):
        order = rng.permutation(n)
        edges = recover_tree([models[place] for place in order], distance[np.ix_(order, order)], k[order])
        trees.append({(edge.parent, edge.child) for edge in edges})
    assert len(trees[0]) == n - 1 and all(tree == trees[0] for tree in trees)


def test_every_tensor_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = open_all(save_family(tmp_path))
    reads: list[tuple[str, str]] = []
    original = Checkpoint.read_tensors
    monkeypatch.setattr(
        Checkpoint,
        "read_tensors",
        lambda self, names, *into: reads.extend((self.model, name) for name in names) or original(self, names, *into),
    )
    ticks: list[int] = []
    measure(checkpoints, ATTENTION, STATISTICS, CPU, lambda total: lambda: ticks.append(total))
    assert len(reads) == len(set(reads)) == 5 * 2 * 4
    assert ticks == [40] * 40


def test_no_more_than_two_layers_are_in_memory(tmp_path: Path) -> None:
    """Python-visible allocations stay at the layer that is worked on and the one read ahead, far below all 32."""
    import tracemalloc

    for model in range(6):
        save_model(tmp_path / f"m{model}", vit_weights(model, blocks=8, width=128))
    checkpoints = [open_checkpoint(f"m{model}", tmp_path / f"m{model}") for model in range(6)]
    measure(checkpoints[:2], ATTENTION, {"kurtosis": kurtosis}, CPU)  # imports and caches
    tracemalloc.start()
    measure(checkpoints, ATTENTION, {"kurtosis": kurtosis}, CPU)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * 6 * 128 * 128 * 4  # torch's own buffer is not counted


def broken_family(folder: Path) -> list[Checkpoint]:
    """Six models, of which one has another shape, one lacks a layer, and one turns out to hold NaN."""
    manifest = save_family(folder, size=6)
    save_model(folder / "m1", vit_weights(1, width=10))
    lacking = vit_weights(2)
    del lacking["encoder.layer.1.attention.attention.key.weight"]
    save_model(folder / "m2", lacking)
    sick = vit_weights(3)
    sick["encoder.layer.1.attention.output.dense.weight"][0, 0] = torch.nan
    save_model(folder / "m3", sick)
    save_model(folder / "m4", {"something.else": torch.zeros(3, 3)})
    return open_all(manifest)


def test_models_that_cannot_be_compared_are_left_out(tmp_path: Path) -> None:
    measured = measure(broken_family(tmp_path), ATTENTION, STATISTICS, CPU)
    assert measured.models == ["m0", "m5"] and len(measured.layers) == 8
    assert measured.arrays["pair_rank"].shape == (8, 2, 2) and measured.arrays["kurtosis"].shape == (8, 2)
    assert all(np.isfinite(array).all() for array in measured.arrays.values())
    words = {
        "m1": "layer 0.query is (10, 10) here and (12, 12)",
        "m2": "layer 1.key is missing here",
        "m3": "tensor encoder.layer.1.attention.output.dense.weight holds NaN",
        "m4": "no square layers of query, key, value, output; its tensors are something.else",
    }
    assert measured.left_out.keys() == words.keys()
    assert all(words[model] in measured.left_out[model] for model in words)


def test_left_out_models_change_nothing_for_the_others(tmp_path: Path) -> None:
    checkpoints = broken_family(tmp_path)
    alone = measure([checkpoints[0], checkpoints[5]], ATTENTION, STATISTICS, CPU)
    together = measure(checkpoints, ATTENTION, STATISTICS, CPU)
    for name, array in alone.arrays.items():
        np.testing.assert_array_equal(array, together.arrays[name])


def test_nothing_comparable(tmp_path: Path) -> None:
    save_model(tmp_path / "m", {"x.weight": torch.zeros(3, 4)})
    group, layers, left_out = comparable([open_checkpoint("m", tmp_path / "m")], None)
    assert (group, layers) == ([], []) and "m" in left_out
    assert measure([open_checkpoint("m", tmp_path / "m")], None, STATISTICS, CPU).models == []


def constant_family(folder: Path, constant: dict[str, tuple[int, ...]]) -> Measured:
    """Three models; `constant[model]` names the blocks whose value weights are all equal."""
    for seed in range(3):
        weights = vit_weights(seed)
        for block in constant.get(f"m{seed}", ()):
            weights[f"encoder.layer.{block}.attention.attention.value.weight"].fill_(0.5)
        save_model(folder / f"m{seed}", weights)
    checkpoints = [open_checkpoint(f"m{seed}", folder / f"m{seed}") for seed in range(3)]
    return measure(checkpoints, ("value",), STATISTICS, CPU)


def test_a_constant_tensor_leaves_its_layer_out_for_all(tmp_path: Path) -> None:
    whole = constant_family(tmp_path, {"m1": (0,)})
    measured, k = direction_kurtosis(whole, "value")
    assert measured.models == ["m0", "m1", "m2"] and not measured.left_out
    np.testing.assert_array_equal(k, whole.arrays["kurtosis"][1])
    assert len(measured.notes) == 1 and "layer 0.value" in measured.notes[0] and "m1" in measured.notes[0]


def test_a_model_with_nothing_but_constants_is_left_out(tmp_path: Path) -> None:
    whole = constant_family(tmp_path, {"m1": (0, 1)})
    measured, k = direction_kurtosis(whole, "value")
    assert measured.models == ["m0", "m2"] and k.shape == (2,)
    assert "all entries of layer 0.value are equal" in measured.left_out["m1"]
    assert measured.arrays["pair_rank"].shape == (2, 2, 2)
    np.testing.assert_array_equal(k, whole.arrays["kurtosis"].sum(axis=0)[[0, 2]])


def test_identical_models_are_noted() -> None:
    difference = np.array([[0.0, 0, 1], [0, 0, 1], [1, 1, 0]])
    notes = identical_models(difference, ["a", "b", "c"])
    assert len(notes) == 1 and notes[0].startswith("a and b do not differ")


def test_a_single_model_is_a_tree_without_edges() -> None:
    assert recover_tree(["a"], np.zeros((1, 1)), np.zeros(1)) == []

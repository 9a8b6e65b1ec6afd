"""Adapters among themselves: of one unknown base, of one run, or of nothing."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset.lone_adapters import LINEAR, adapt, recipe_of
from dataset.zoo import train
from mother.collection.find import Source, search, with_claims
from mother.collection.siblings import ONE_RUN, Alike, adapters_alone, alike, join_siblings, runs_in_words
from mother.collection.workspace import recover_sources, reopen
from mother.evidence.adapter_pairs import Pair, compare
from mother.graph.model_graph import Edge, ModelGraph, read_model_graph
from mother.io.layers import Layer

ALL = {name: attention + others for name, (attention, others) in LINEAR.items()}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of one tiny BERT by two seeds, one that goes on from the first, and one of an unrelated BERT."""
    folder = tmp_path_factory.mktemp("siblings")
    for number, name in enumerate(("base", "stranger")):
        (folder / "models" / name).mkdir(parents=True)
        train(recipe_of("bert", 0, 3e-3, 150, number), None, folder / "models" / name)
    made = folder / "adapters"
    adapt("bert", folder / "models" / "base", ALL["bert"], 4, 5, made / "one", steps=60)
    adapt("bert", folder / "models" / "base", ALL["bert"], 4, 6, made / "two", steps=60)
    adapt("bert", folder / "models" / "stranger", ALL["bert"], 4, 5, made / "far", steps=60)
    (made / "on").mkdir()
    weights = load_file(made / "one" / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        weights[name] = tensor + 0.4 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    save_file(weights, made / "on" / "adapter_model.safetensors")
    config = (made / "one" / "adapter_config.json").read_text()
    (made / "on" / "adapter_config.json").write_text(config)
    return folder


def sources(folder: Path, *names: str) -> list[Source]:
    return [Source(name, str(folder / "adapters" / name)) for name in names]


def test_adapters_of_one_base_are_found_and_one_draw_is_no_base(adapters: Path) -> None:
    found = alike(sources(adapters, "one", "two", "on", "far"))
    pairs = {(one.one, one.other): one.pair for one in found}
    assert pairs.keys() == {("one", "two"), ("one", "on"), ("two", "on")}  # "far" began with the draw of "one"
    assert pairs["one", "on"].cosine > ONE_RUN > abs(pairs["one", "two"].cosine)
    assert all(pair.z > 3.5 and pair.weights > 8 for pair in pairs.values())


def test_many_of_one_run_are_said_in_one_line() -> None:
    def pairs(cosine: float, names: str) -> list[Alike]:
        return [Alike(one, other, Pair(9.0, cosine, 5)) for one, other in combinations(names, 2)]

    assert runs_in_words([*pairs(1.0, "abcdef"), *pairs(0.7, "xy"), *pairs(0.2, "mn")]) == (
        "a, b, c, d, ... and f, 6 adapters, add the same: they are one adapter",
        "x and y agree (cosine 0.70): one goes on from the other, or both began with one draw; which came first is "
        "undecided",
    )
    (mixed,) = runs_in_words([*pairs(1.0, "ab"), *pairs(0.6, "bc")])
    assert mixed.startswith("a, b and c, 3 adapters, agree (cosine 0.60 to 1.00): ")


def test_random_updates_score_as_their_null_says() -> None:
    scores = []
    for seed in range(40):
        torch.manual_seed(seed)
        profile = torch.rand(64) ** 3  # rows of trained updates differ
        both = [
            {
                Layer(str(block), kind): (profile[torch.randperm(64), None] * torch.randn(64, 2)) @ torch.randn(2, 48)
                for block in range(3)
                for kind in ("query", "value")
            }
            for _ in range(2)
        ]
        scores.append(compare(*both).z)
    assert abs(np.mean(scores)) < 0.5 and 0.7 < np.std(scores) < 1.4 and max(scores) < 3.8


def test_nothing_in_common_is_no_pair() -> None:
    one = {Layer("0", "query"): torch.randn(4, 4)}
    assert compare(one, {Layer("0", "key"): torch.randn(4, 4)}) is None
    assert compare(one, {Layer("0", "query"): torch.randn(5, 4)}) is None
    assert compare(one, {Layer("0", "query"): torch.zeros(4, 4)}) is None


@pytest.mark.slow
def test_adapters_without_models_hang_under_a_hidden_base(adapters: Path, tmp_path: Path) -> None:
    found = with_claims(search([str(adapters / "adapters")]))
    graph = recover_sources(found.sources, tmp_path, CPU).graph
    hidden = {edge.parent for edge in graph.edges}
    assert hidden == {"base of on, one, two"} and graph.nodes["base of on, one, two"]["hidden"]
    assert {edge.child for edge in graph.edges} == {"on", "one", "two"}
    assert graph.nodes["one"]["tree"] == graph.nodes["two"]["tree"] != graph.nodes["far"]["tree"]
    assert any("on and one agree (cosine" in note and "undecided" in note for note in graph.notes)
    graph.write(tmp_path / "graph.json")
    assert read_model_graph(tmp_path / "graph.json").edges == graph.edges
    again = reopen(tmp_path, CPU).graph
    assert again.edges == graph.edges
    # With their base beside them they are its adapters.
    more = reopen(tmp_path, CPU, with_claims(search([str(adapters / "models" / "base")]))).graph
    parents = {edge.child: edge.parent for edge in more.edges}
    assert parents["one"] == parents["two"] == parents["on"] == "base" and "far" not in parents


def test_what_hangs_under_known_bases_stays(adapters: Path) -> None:
    nodes = {name: {"tree": "0", "group": "g"} for name in ("base", "one", "on")}
    edges = tuple(Edge("base", name, {"kind": "adapter"}) for name in ("one", "on"))
    graph = ModelGraph("g", nodes, edges)
    joined = join_siblings(graph, sources(adapters, "one", "on"), ["one", "on"])
    assert joined.edges == edges and joined.nodes == nodes and "one goes on from the other" in joined.notes[0]
    assert join_siblings(graph, sources(adapters, "one"), ["one"]) is graph
    alone = adapters_alone(graph, ["one", "on"])
    assert set(alone.nodes) == {"one", "on"} and not alone.edges

"""Adapters whose base is among the models: the edge, its rank, and whether the base that is named is the one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dataset.lone_adapters import LINEAR, adapt, recipe_of
from dataset.zoo import train
from mother.collection.adapted import UNTESTED, Base, check_bases, weighed
from mother.collection.audit import audit_of
from mother.collection.find import Source, search, with_claims
from mother.collection.verdicts import AGREES, CONTRADICTED, NOT_CONFIRMED
from mother.collection.whose import Answer, Candidate
from mother.collection.workspace import Recovered, recover_sources
from mother.graph.collection import open_models
from mother.graph.manifest import Manifest, Node
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.text import graph_text
from mother.graph.typed_scores import typed_edges
from mother.io.open import open_checkpoint
from mother.runs.by_map import recover_by_map
from mother.runs.results import Run

ALL = {name: attention + others for name, (attention, others) in LINEAR.items()}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two unrelated tiny Llamas, two children of the first, and an adapter of one child."""
    folder = tmp_path_factory.mktemp("grown")
    parents = {"root": None, "other": None, "child": folder / "root", "sibling": folder / "root"}
    for number, (name, parent) in enumerate(parents.items()):
        (folder / name).mkdir()
        train(recipe_of("llama", number, 3e-3, 90 if parent is None else 25, number), parent, folder / name)
    adapt("llama", folder / "child", ALL["llama"], 4, 5, folder / "adapter", steps=50)
    adapt("llama", folder / "child", ["q_proj"], 1, 6, folder / "weak", steps=1)
    return folder


def claiming(grown: Path, folder: Path, adapter: str, base: str) -> Recovered:
    """What is recovered of the models and of an adapter that says that a model is its base."""
    for name in ("root", "other", "child", "sibling", adapter):
        shutil.copytree(grown / name, folder / name)
    path = folder / adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(folder / base)}))
    found = with_claims(search([str(folder)]))
    return recover_sources(found.sources, None, torch.device("cpu"))


def the_edge(recovered: Recovered, child: str) -> Edge:
    (edge,) = (edge for edge in recovered.graph.edges if edge.child == child)
    return edge


def verdict(recovered: Recovered, model: str) -> tuple[str, str]:
    (one,) = (one for one in audit_of(recovered).verdicts if one.model == model)
    return one.verdict, one.reason


@pytest.mark.slow
def test_a_true_base_is_confirmed(grown: Path, tmp_path: Path) -> None:
    recovered = claiming(grown, tmp_path, "adapter", "child")
    edge = the_edge(recovered, "adapter")
    assert edge.parent == "child" and edge.attributes["kind"] == "adapter" and edge.attributes["rank"] == 4
    assert edge.attributes["tested"] and edge.attributes["fit"] > 4 and 0.5 < edge.attributes["adjacency"] < 1
    assert "adapter (rank 4)" in graph_text(recovered.graph)
    assert verdict(recovered, "adapter")[0] == AGREES
    assert ("child", "adapter", "lora") in typed_edges(recovered.graph)


@pytest.mark.slow
def test_the_scripts_call_an_adapter_so_and_a_merged_one_lora(grown: Path, tmp_path: Path) -> None:
    merged = open_checkpoint("merged", grown / "adapter", grown / "child")
    (tmp_path / "merged").mkdir()
    save_file(merged.read_tensors(list(merged.tensors)), tmp_path / "merged" / "model.safetensors")
    nodes = tuple(Node(name, str(grown / name)) for name in ("root", "child", "sibling"))
    nodes += (Node("adapter", str(grown / "adapter"), "child", kind="adapter", rank=4, base=str(grown / "child")),)
    both = {
        "with": nodes,
        "without": (*nodes[:3], Node("merged", str(tmp_path / "merged"), "child", kind="lora", rank=4)),
    }
    for name, some in both.items():
        manifest = Manifest(name, some, Path("/"))
        opened, unreadable = open_models(manifest)
        flags = {"error": 1e-3, "read": "manifest"}
        found = recover_by_map(Run(manifest, opened, unreadable, tmp_path / name, flags, device=torch.device("cpu")))
        (edge,) = (edge for edge in found.graph.edges if edge.child == some[-1].id)
        assert edge.attributes["kind"] == some[-1].kind and edge.attributes["rank"] == 4 and edge.parent == "child"
        assert found.scores["kinds"] == found.scores["ranks"] == 1.0
        assert f"({some[-1].kind}" in graph_text(found.graph)


@pytest.mark.slow
def test_a_base_of_another_family_is_excluded(grown: Path, tmp_path: Path) -> None:
    recovered = claiming(grown, tmp_path, "adapter", "other")
    edge = the_edge(recovered, "adapter")
    assert edge.parent in ("root", "child", "sibling") and edge.attributes["tested"]
    nodes = recovered.graph.nodes
    assert nodes["adapter"]["tree"] == nodes["child"]["tree"] != nodes["other"]["tree"]
    said, reason = verdict(recovered, "adapter")
    assert said == CONTRADICTED and "has nothing to do with other" in reason
    assert any("adapter names other as its base" in note for note in recovered.graph.notes)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["child", "other"])
def test_what_hardly_moved_says_nothing(base: str, grown: Path, tmp_path: Path) -> None:
    recovered = claiming(grown, tmp_path, "weak", base)
    edge = the_edge(recovered, "weak")
    assert edge.parent == base and edge.attributes["kind"] == "adapter" and edge.attributes["tested"] is False
    assert edge.attributes["adjacency"] == UNTESTED
    assert verdict(recovered, "weak")[0] == NOT_CONFIRMED
    assert any("as it says; the weights do not tell" in note for note in recovered.graph.notes)


def answer(related: dict[str, float], scores: dict[str, float], twins: tuple = ()) -> Answer:
    found = [Candidate(m, z, probability=related.get(m, 0.0), related=m in related) for m, z in scores.items()]
    found.sort(key=lambda one: -one.probability)
    return Answer("a", (4,), 1, 1e-3, tuple(found), 0.1 if related else 1.0, twins)


FAMILY = {"a": 1, "b": 1, "c": 2}
WEIGHED: dict[str, tuple[Answer | None, Callable[[Base], bool]]] = {
    "nothing read": (None, lambda one: (one.model, one.tested, one.probability) == ("a", False, UNTESTED)),
    "nothing related": (answer({}, {"a": 1.0, "b": 2.0}), lambda one: (one.model, one.tested) == ("a", False)),
    "related": (answer({"a": 0.5, "b": 0.4}, {"a": 9.0, "b": 8.0}), lambda one: one.model == "a" and one.tested),
    "a relative is better": (
        answer({"a": 0.01, "b": 0.89}, {"a": 9.0, "b": 8.0}),
        lambda one: one.model == "b" and one.others == ("a",) and one.tested and not one.excluded,
    ),
    "a relative is a little better": (
        answer({"a": 0.3, "b": 0.6}, {"a": 9.0, "b": 8.0}),
        lambda one: one.model == "a" and one.others == ("b",),
    ),
    "a cast of the best": (
        Answer(
            "x",
            (4,),
            1,
            1e-3,
            (Candidate("b", 9.0, probability=0.6, related=True), Candidate("a", 9.0, related=True, form_of="b")),
            0.1,
        ),
        lambda one: one.model == "a" and one.probability > 0.9 and one.others == () and one.tested,
    ),
    "merged": (
        answer({"b": 1.0}, {"a": 0.0, "b": 9.0}, (("a", "b"),)),
        lambda one: (one.model, one.probability) == ("a", 1.0),
    ),
    "only a relative": (
        answer({"b": 0.9}, {"a": 0.0, "b": 9.0}),
        lambda one: one.model == "a" and not one.tested and not one.excluded,
    ),
    "another family": (
        answer({"c": 0.9}, {"a": 0.0, "c": 9.0}),
        lambda one: one.model == "c" and one.tested and "nothing to do with a" in one.excluded,
    ),
    "another family, but": (answer({"c": 0.9}, {"a": 2.5, "c": 9.0}), lambda one: one.model == "a" and not one.tested),
    "it does not fit": (answer({"c": 0.9}, {"c": 9.0}), lambda one: one.model == "a" and not one.tested),
}


@pytest.mark.parametrize("case", WEIGHED)
def test_the_weights_and_what_is_said_are_weighed(case: str) -> None:
    found, right = WEIGHED[case]
    one = weighed(found, "a", FAMILY)
    assert right(one) and 0 < one.probability <= 1


def test_an_adapter_is_never_above_its_base(tmp_path: Path) -> None:
    """Whatever was found, and where the weights cannot be read again."""
    nodes: dict[str, Any] = {name: {"tree": "0", "group": "g", "root": 0.1} for name in ("p", "adapter", "x", "base")}
    sources = [Source(name, str(tmp_path / name)) for name in ("p", "x", "base")]
    sources.append(Source("adapter", str(tmp_path / "adapter"), str(tmp_path / "base")))
    ways = [("p", "adapter"), ("adapter", "x"), ("x", "base")]
    graph = ModelGraph("g", nodes, tuple(Edge(*way, {"kind": "lora", "arrow": 0.6}) for way in ways))
    found = {(edge.parent, edge.child): edge.attributes for edge in check_bases(graph, sources, 0.01).edges}
    assert found.keys() == {("p", "x"), ("x", "base"), ("base", "adapter")}
    assert found["base", "adapter"]["kind"] == "adapter" and found["base", "adapter"]["tested"] is False
    alone = ModelGraph("g", nodes, (Edge("adapter", "base", {"kind": "lora"}),))
    assert [(edge.parent, edge.child) for edge in check_bases(alone, sources, 0.01).edges] == [("base", "adapter")]

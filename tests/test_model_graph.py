"""Manifests and Model Graphs: what is accepted, what is refused and with which words."""

import json
from pathlib import Path

import networkx as nx
import pytest
from conftest import ROOT

from mother.errors import ManifestError
from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import read_manifest, write_manifest
from mother.graph.model_graph import Edge, ModelGraph, read_model_graph


def write(folder: Path, nodes: object, **changes: object) -> Path:
    path = folder / "m.json"
    path.write_text(json.dumps({"format": "mother-manifest/1", "name": "m", "nodes": nodes} | changes))
    return path


def node(name: str, **fields: object) -> dict:
    return {"id": name, "source": f"models/{name}"} | fields


PAIR = [node("a"), node("b")]


def test_round_trip(tmp_path: Path) -> None:
    nodes = (
        Node("a", "models/a", None, 0, "pets", None, {"grower": "x:y"}),
        Node("b ü", "hf://org/name@v1.0/x:unet", "a", "tree", None, 8),
    )
    write_manifest(tmp_path / "m.json", Manifest("m", nodes, tmp_path, "two models"))
    manifest = read_manifest(tmp_path / "m.json")
    assert manifest == Manifest("m", nodes, tmp_path, "two models")
    assert manifest.edges == {("a", "b ü")}
    assert manifest.location(nodes[0]) == tmp_path / "models/a"
    assert manifest.location(nodes[1]) == nodes[1].source


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, [node("a"), node("b", parent=None, tree=None, task=None, rank=None)]))
    assert manifest.edges == set()
    assert all(entry.parent is entry.tree is entry.task is entry.rank is None for entry in manifest.nodes)


def test_merges_and_absent_models(tmp_path: Path) -> None:
    nodes = (
        Node("a", "a"),
        Node("b", "b", "a", kind="fine-tune", recipe={"grower": "x:y"}),
        Node("c", "c", "a", rank=4, kind="lora", absent=True),
        Node("d", "d", kind="merge", parents=("c", "b"), coefficients=(0.7, 0.3)),
        Node("e", "e", kind="merge", parents=("b", "d")),
    )
    write_manifest(tmp_path / "m.json", Manifest("m", nodes, tmp_path))
    manifest = read_manifest(tmp_path / "m.json")
    assert manifest.nodes == nodes
    assert [node.id for node in manifest.present] == ["a", "b", "d", "e"]
    assert manifest.edges == {("a", "b"), ("a", "c"), ("c", "d"), ("b", "d"), ("b", "e"), ("d", "e")}
    assert [node.all_parents for node in nodes] == [(), ("a",), ("a",), ("c", "b"), ("b", "d")]


def test_what_is_not_set_is_not_written(tmp_path: Path) -> None:
    write_manifest(
        tmp_path / "m.json", Manifest("m", (Node("a", "a"), Node("b", "b", kind="copy", parent="a")), tmp_path)
    )
    first, second = json.loads((tmp_path / "m.json").read_text())["nodes"]
    assert list(first) == ["id", "source", "parent", "tree", "task", "rank"]
    assert list(second) == [*first, "kind"]


def test_an_inconsistent_manifest_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="kind = 'x'"):
        write_manifest(tmp_path / "m.json", Manifest("m", (Node("a", "a", kind="x"),), tmp_path))


@pytest.mark.parametrize("split", ["mini_ft", "mini_lora_v", "mini_lora_f"])
def test_older_manifests_keep_their_bytes(split: str, tmp_path: Path) -> None:
    path = ROOT / "dataset" / f"{split}.json"
    write_manifest(tmp_path / "m.json", read_manifest(path))
    assert (tmp_path / "m.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "nodes, words",
    [
        ([], "no node"),
        ("x", "no list of nodes"),
        ([7], "not an object"),
        ([{"id": "a"}], "no source"),
        ([{"source": "a"}], "no id"),
        ([node("a"), node("a")], "two nodes have the id 'a'"),
        ([node("a", parent="z")], "'z', which is not in it"),
        ([node("a", parent="a")], "cycle: a <- a"),
        ([node("a", parent="c"), node("b", parent="a"), node("c", parent="b")], "cycle"),
        ([node("a", source="../a")], "outside"),
        ([node("a", source="models/../../a")], "outside"),
        ([node("a", source="/etc")], "outside"),
        ([node("a", source="..\\a")], "outside"),
        ([node("a", source="hf://org")], "hf://owner/name"),
        ([node("a", source="hf://../name")], "hf://owner/name"),
        ([node("a", source="hf://org/name:../x")], "hf://owner/name"),
        ([node("a", parent=3)], "parent = 3"),
        ([node("a", rank="8")], "rank = '8'"),
        ([node("a", rank=True)], "rank = True"),
        ([node("a", tree="../../x")], "the tree"),
        ([node("a", tree="x" * 65)], "the tree"),
        ([node("a", tree=-1)], "tree number -1"),
        ([node("a", tree=0), node("b", tree="0")], "another tree's name"),
        ([node("a\ud800")], "the id"),
        ([node("a\n")], "the id"),
        ([node("a", kind="distilled")], "kind = 'distilled'"),
        ([node("a", kind=["cast"])], "kind = ['cast']"),
        ([node("a", absent=1)], "absent = 1"),
        ([node("a", parents="bc")], "parents = 'bc'"),
        ([node("a", parents=[1, 2])], "parents = [1, 2]"),
        ([node("a", coefficients=0.5)], "coefficients = 0.5"),
        ([node("a", coefficients=[True])], "coefficients = [True]"),
        (PAIR + [node("m", parents=["a", "z"])], "'z', which is not in it"),
        (PAIR + [node("m", parents=["a", "a"])], "names a parent twice"),
        (PAIR + [node("m", parents=["a"])], "a list of one parent"),
        (PAIR + [node("m", parents=["a", "b"], parent="a")], "both parent and parents"),
        (PAIR + [node("m", parents=["a", "b"], kind="lora")], "several parents and the kind 'lora'"),
        ([node("m", kind="merge")], "a merge without parents"),
        (PAIR + [node("m", parents=["a", "b"], coefficients=[1.0])], "1 coefficients for 2 parents"),
        (PAIR + [node("m", parent="a", coefficients=[1.0])], "1 coefficients for 0 parents"),
        (PAIR + [node("m", parents=["a", "b"], coefficients=[0.5, float("nan")])], "not finite"),
        (PAIR + [node("m", parents=["a", "b"], coefficients=[0.5, 10**400])], "1 coefficients for 2"),
        ([node("a", parent="m"), node("b"), node("m", parents=["b", "a"])], "cycle: "),
        ([node("m", parents=["m", "b"]), node("b")], "cycle: m <- m"),
    ],
)
def test_bad_manifests_get_one_clear_error(nodes: object, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, nodes)
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert words in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": "other/1"}', b"[" * 100_000, b"9" * 5000]
)
def test_what_is_no_manifest(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(ManifestError):
        read_manifest(tmp_path / "m.json")


def test_missing_manifest_and_unusable_name(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        read_manifest(tmp_path / "m.json")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="name"):
        read_manifest(write(tmp_path, [node("a")], name="../x"))


def test_model_graph_round_trip(tmp_path: Path) -> None:
    graph = ModelGraph(
        "g", {"a": {"tree": "0"}, "b": {}}, (Edge("a", "b", {"distance": 0.5}),), {"c": "broken"}, ("a note",)
    )
    graph.write(tmp_path / "model_graph.json")
    assert read_model_graph(tmp_path / "model_graph.json") == graph
    directed = graph.to_networkx()
    assert nx.is_arborescence(directed)
    assert directed.edges["a", "b"] == {"distance": 0.5} and directed.nodes["a"] == {"tree": "0"}


def test_what_is_no_model_graph(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"format": "mother-model-graph/1"}'):
        (tmp_path / "g.json").write_text(content)
        with pytest.raises(ManifestError, match="not a Model Graph"):
            read_model_graph(tmp_path / "g.json")

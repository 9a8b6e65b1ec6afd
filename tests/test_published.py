"""Truths of others become manifests of ours, and are scored as their authors score them."""

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import save_model
from test_merges import moved, root

from dataset import published
from mother.errors import ManifestError
from mother.graph.manifest_io import read_manifest
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.typed_scores import pair_scores, parent_scores, typed_scores

OFFICIAL = Path(__file__).parent.parent.parent / "shared" / "truth"
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs a copy of the authors' truth files")


def files(rows: list[str], models: list[str], clusters: list[list[str]]) -> dict[str, bytes]:
    table = "Base Model,Relation,Derived Model\n" + "\n".join(rows)
    content = {"model_list.json": json.dumps({"models": models}), "cluster.json": json.dumps(clusters)}
    return {f"mdgbench/{name}": text.encode() for name, text in (content | {"model_relation.csv": table}).items()}


ROWS = ["o_a,finetune,o_b_c", "o_a,merge,o_m", "o_b_c,merge,o_m", "o_a,peft,o_l", "o_b_c,qtz,o_q"]
MODELS = ["o/a", "o/b_c", "o/m", "o/l", "o/q"]


def test_mdgbench_becomes_a_manifest() -> None:
    manifest, edges = published._mdgbench(files(ROWS, MODELS, [MODELS]))
    nodes = {node.id: node for node in manifest.nodes}
    assert nodes["o/b_c"].kind == "fine-tune" and nodes["o/m"].parents == ("o/a", "o/b_c")
    assert nodes["o/l"].base == "hf://o/a" and nodes["o/l"].kind == "lora" and nodes["o/q"].kind == "quantize"
    assert ["o/b_c", "o/q", "quantize"] in edges and len(edges) == 5


@pytest.mark.parametrize(
    ("rows", "models", "words"),
    [
        (["o_a,steals,o_b"], ["o/a", "o/b"], "has the row"),
        (["o_a,finetune,o_b", "o_c,finetune,o_b"], ["o/a", "o/b", "o/c"], "several parents"),
        ([], ["../../etc"], "names the model"),
    ],
)
def test_other_files_are_refused(rows: list[str], models: list[str], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        published._mdgbench(files(rows, models, [models]))


def test_only_the_published_files_are_taken(tmp_path: Path) -> None:
    (tmp_path / "cisco").mkdir()
    (tmp_path / "cisco" / "Benchmark_All.json").write_text('{"similar": [], "dissimilar": []}')
    with pytest.raises(ManifestError, match="sha256 differs"):
        published.fetch("cisco", tmp_path, tmp_path)
    with pytest.raises(ManifestError, match="cannot be read"):
        published.fetch("mdgbench", tmp_path, tmp_path)
    with pytest.raises(ManifestError, match="--from"):
        published.fetch("lineagebench", None, tmp_path)


def graph() -> ModelGraph:
    nodes = {name: {"tree": "0"} for name in ("o/a", "o/b_c", "o/m", "o/l")} | {"o/q": {"tree": "1"}}
    nodes["o/b_c"]["aliases"] = ["o/copy"]
    kinds = [("o/a", "o/b_c", "fine-tune"), ("o/a", "o/m", "merge"), ("o/l", "o/a", "lora"), ("o/b_c", "o/m", "lora")]
    return ModelGraph("g", nodes, tuple(Edge(*ends, {"kind": kind, "adjacency": 0.9}) for *ends, kind in kinds))


def test_typed_edges_count_direction_and_kind() -> None:
    _, edges = published._mdgbench(files(ROWS, MODELS, [MODELS]))
    families = dict.fromkeys(MODELS, 0) | {"o/q": 1, "o/gone": 2, "o/copy": 0}
    scores = typed_scores(graph(), [*map(tuple, edges), ("o/a", "o/copy", "fine-tune")], families)
    # Right: a -> b_c, a -> copy, a -> m. Of the others one points back, and one has another kind.
    assert scores["precision"] == 3 / 5 and scores["recall"] == 3 / 6 and scores["ari"] == 1
    assert scores["f1"] == pytest.approx(6 / 11) and scores["left_out"] == 1
    assert scores["kinds"]["merge"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert scores["one_node"]["recall"] == 2 / 5


def test_pairs_and_parents() -> None:
    pairs = [("o/a", "o/m", True), ("o/a", "o/q", False), ("o/l", "o/q", True), ("o/a", "o/copy", False)]
    scores = pair_scores(graph(), pairs)
    assert (scores["precision"], scores["recall"], scores["accuracy"]) == (0.5, 0.5, 0.5)
    scores = parent_scores(graph(), [("o/b_c", "o/a"), ("o/m", "o/l"), ("o/q", "o/gone")])
    assert (scores["pairs"], scores["left_out"], scores["parents"], scores["ancestors"]) == (3, 1, 1, 2)
    assert 0 < scores["auroc"] < 1


def test_names_tell_sizes() -> None:
    found = [
        published.expected_bytes(name) for name in ("o/Qwen2-7B", "o/m-0.5B-GPTQ-Int4", "facebook/opt-125m", "x/y")
    ]
    assert found == [14e9, pytest.approx(0.3e9), 0.25e9, None]


def test_one_command_recovers_a_manifest(tmp_path: Path) -> None:
    base = root()
    for name, weights in (("a", base), ("b", moved(base, 3, 0.1))):
        save_model(tmp_path / name, weights)
    entries = [{"id": name, "source": name} for name in "ab"]
    (tmp_path / "mine.json").write_text(json.dumps({"format": "mother-manifest/1", "name": "mine", "nodes": entries}))
    found = published.recover(read_manifest(tmp_path / "mine.json"), tmp_path / "out")
    assert pair_scores(found, [("a", "b", True)])["f1"] == 1 and (tmp_path / "out" / "model_graph.json").exists()


@needs_official
def test_the_published_files(tmp_path: Path) -> None:
    manifest, edges = published.fetch("mdgbench", OFFICIAL, tmp_path)
    assert len(manifest.nodes) == 137 and len({node.tree for node in manifest.nodes}) == 17
    assert Counter(kind for *_, kind in edges) == {"fine-tune": 48, "quantize": 32, "lora": 29, "merge": 22}
    assert read_manifest(tmp_path / "mdgbench.json").edges == {(parent, child) for parent, child, _ in edges}
    manifest, pairs = published.fetch("cisco", OFFICIAL, tmp_path)
    assert len(manifest.nodes) == 136 and sum(similar for *_, similar in pairs) == 55 and len(pairs) == 111
    _, pairs = published.fetch("lineagebench", OFFICIAL, tmp_path)
    assert len(pairs) == 15 and sum(scored for *_, scored in pairs) == 13

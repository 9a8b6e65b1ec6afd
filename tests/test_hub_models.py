"""A hub in small: as many models and edges as MDGBench has, stored as hubs hold them, and told apart."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.mini_hub import below, is_format, missed, score
from dataset import hub_models
from dataset.grow import grow_manifest
from dataset.hub_models import plan_hub, whole
from dataset.published import recover
from mother.graph.manifest_io import read_manifest
from mother.io.open import open_checkpoint


def test_the_plan_has_the_numbers_of_mdgbench(tmp_path: Path) -> None:
    manifest = plan_hub(tmp_path)
    kinds = Counter(node.kind for node in manifest.nodes)
    assert len(manifest.nodes) == 137 and len({node.tree for node in manifest.nodes}) == 17
    assert (kinds["fine-tune"], kinds["quantize"], kinds["lora"], kinds["merge"]) == (48, 32, 29, 9)
    assert sum(len(node.parents) for node in manifest.nodes) == 22 and len(manifest.edges) == 131
    assert len({node.recipe["architecture"] for node in manifest.nodes}) == 6
    assert len({node.recipe["format"] for node in manifest.nodes if node.kind == "quantize"}) == 13
    assert all(node.base is not None for node in manifest.nodes if node.kind == "lora")
    assert plan_hub(tmp_path) == manifest


def test_formats_by_their_names() -> None:
    assert is_format("gguf Q4_0", "gguf Q4_0") and not is_format("gguf Q4_0", "gguf Q4_1")
    assert is_format("gptq 4", "gptq 4 bit, group 32") and not is_format("gptq 4", "gptq 8 bit, group 32")


def test_missed_targets_are_said() -> None:
    scores = {"f1": 0.93, "ari": 1.0, "quantized": {"models": 20, "kind": 20, "kind and format": 19}}
    assert not below(scores)
    assert below(scores | {"f1": 0.929, "ari": float("nan")}) == [
        "F1 is 0.929, less than 0.93",
        "ARI is nan, less than 0.98",
    ]
    none = scores | {"quantized": {"models": 20, "kind": 20}}
    assert below(none) == ["quantized, kind and format is 0.000, less than 0.95"]


@pytest.mark.slow
def test_a_family_of_each_storage_is_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_models, "TREES", (("llama", "r f0 f0 q1 q1 q2 a2 q2 m1+2"),))
    manifest = replace(plan_hub(tmp_path), folder=tmp_path)
    assert not grow_manifest(manifest, 2)
    (lora,) = (node for node in manifest.nodes if node.kind == "lora")
    opened = open_checkpoint(lora.id, tmp_path / lora.source, tmp_path / lora.base)
    expected = whole(tmp_path / lora.source)
    for name, value in opened.read_tensors(list(opened.tensors)).items():
        assert (value - expected[name]).abs().max() < 1e-6, name
    graph = recover(read_manifest(tmp_path / "mini_hub.json"), tmp_path / "out")
    found = score(graph, manifest)
    assert found["f1"] > 0.8 and found["ari"] == 1, missed(graph, manifest)
    assert found["quantized"] == {"models": 4, "kind": 4, "format": 4, "kind and format": 4, "parent": 4}

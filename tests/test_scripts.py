"""Every script as its users run it: in sequence on a small forest, and with each mistake that they may make."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here, save_family, save_model, vit_weights
from safetensors.torch import load_file, save_file

from mother.cli import arguments
from mother.graph.manifest import Manifest
from mother.graph.manifest_io import read_manifest
from mother.graph.model_graph import read_model_graph

SCRIPTS = ["get_vit_layer_statistics.py", "clustering.py", "MoTHer_FullFT.py", "MoTHer_LoRA.py", "summarize.py"]


PAPERS = ("clustering.py", "MoTHer_FullFT.py", "MoTHer_LoRA.py")


def with_method(script: str, flags: tuple[object, ...]) -> list[str]:
    """The flags of a script, for the paper's method unless they name another."""
    words = list(map(str, flags))
    return words if script not in PAPERS or {"--method", "--help"} & set(words) else [*words, "--method", "mother"]


def run_process(script: str, *flags: object) -> str:
    """Run a script as a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *with_method(script, flags)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(script: str, *flags: object, code: int = 0) -> str:
    """The same in this process: what it printed, or its errors where it is to end with another code."""
    module = importlib.import_module(script.removesuffix(".py"))
    ended, out, err = run_here(script, with_method(script, flags), lambda: arguments.run(module.main, module.Args))
    assert ended == code, (ended, out, err)
    return err if code else out


def full_ft(manifest: Path, results: Path) -> str:
    """Stages 1 and 3a on one collection."""
    run("get_vit_layer_statistics.py", "--model-graph", manifest, "--results", results)
    return run("MoTHer_FullFT.py", "--model-graph", manifest, "--results", results)


def without_seconds(table: str) -> list[str]:
    """The lines of a table without its last column, which no two runs share."""
    return [line.rpartition("  ")[0] for line in table.splitlines()]


@pytest.mark.parametrize("script", [*SCRIPTS, "-m dataset.grow"])
def test_help_is_readable(script: str) -> None:
    command = [sys.executable, *script.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0
    assert "--" in done.stdout and "usage" in done.stdout and "(default" in done.stdout


@pytest.mark.parametrize("call", [run, pytest.param(run_process, marks=pytest.mark.slow)])
def test_all_stages_in_sequence(call: Callable[..., str], forest: dict[str, Manifest], tmp_path: Path) -> None:
    ft, lora = (manifest.folder / f"{name}.json" for name, manifest in forest.items())
    where = ("--results", tmp_path)
    assert "largest difference" in call("get_vit_layer_statistics.py", "--model-graph", ft, *where)
    for flag, path, name in (("--no-lora", ft, "mini_ft"), ("--lora", lora, "mini_lora_v")):
        text = call("clustering.py", flag, "--model-graph", path, "--clusters", 2, "--iterations", 5, *where)
        assert "1.000      14     1.000      0.000" in text
        found = json.loads((tmp_path / name / "clusters.json").read_text())
        assert found["accuracy"] == 1 and found["by_tree"] == {"0": 1.0, "1": 1.0}
        assert [entry["share"] for entry in found["subsets"]] == [round(k / 10, 1) for k in range(10, 0, -1)]
    text = call("MoTHer_FullFT.py", "--model-graph", ft, "--show-trees", *where)
    assert text.count("mini_ft, tree") == 2 and "└─" in text
    call("MoTHer_LoRA.py", "--model-graphs", lora, *where)
    table = call("summarize.py", "--model-graphs", "mini_ft", "mini_lora_v", *where)
    rows = [tuple(line.split()[:2]) for line in table.splitlines() if line.lstrip().startswith("mini_")]
    splits = ("mini_ft", "mini_lora_v")
    trees = [(name, tree) for name in splits for tree in ("0", "1", "all")]
    assert rows == [*trees, *((name, "mother") for name in splits)]

    for name, manifest in forest.items():
        folder = tmp_path / name
        accuracy = json.loads((folder / "accuracy.json").read_text())
        assert accuracy["run"]["flags"]["direction_weight"] == 0.3 and accuracy["run"]["versions"]["torch"]
        assert not accuracy["left_out"]
        graph = read_model_graph(folder / "model_graph.json")
        assert set(graph.nodes) == {node.id for node in manifest.nodes} and len(graph.edges) == 12
        correct = len({(edge.parent, edge.child) for edge in graph.edges} & manifest.edges)
        assert accuracy["overall"]["directed_accuracy"] == correct / 12
        assert accuracy["overall"]["undirected_accuracy"] >= 0.5
        with np.load(folder / "distances.npz") as matrices:
            assert matrices["tree_0"].shape == (7, 7) and (matrices["tree_0"] == matrices["tree_0"].T).all()
        for figure in ("tree_0.png", "tree_1.pdf", "distances.png", "clusters.png", "cluster_accuracy.png"):
            assert (folder / "figures" / figure).stat().st_size > 5000
        assert not list(tmp_path.rglob("*.tmp"))

    # The same from clusters that were found instead of known.
    text = call("MoTHer_LoRA.py", "--model-graphs", lora, "--clusters", "ward", *where)
    again = json.loads((tmp_path / "mini_lora_v" / "accuracy.json").read_text())
    assert again["overall"]["directed_accuracy"] == accuracy["overall"]["directed_accuracy"]


def test_method_map_needs_neither_stage_nor_k(forest: dict[str, Manifest], tmp_path: Path) -> None:
    ft, lora = (manifest.folder / f"{name}.json" for name, manifest in forest.items())
    where = ("--method", "map", "--results", tmp_path)
    text = run("MoTHer_FullFT.py", "--model-graph", ft, "--show-trees", *where)
    assert "14 models in 2 trees" in text and "12 fine-tune" in text and "arrow" in text
    text = run("MoTHer_LoRA.py", "--model-graphs", lora, *where)
    assert "12 lora" in text and "adjusted Rand" in text
    for name, manifest in forest.items():
        folder = tmp_path / name / "map"
        accuracy = json.loads((folder / "accuracy.json").read_text())
        assert accuracy["method"] == "map" and accuracy["clusters"] == 1 and accuracy["undirected"] == 1
        assert accuracy["run"]["versions"]["torch"]
        graph = read_model_graph(folder / "model_graph.json")
        assert set(graph.nodes) == {node.id for node in manifest.nodes} and len(graph.edges) == 12
        assert all(0 <= edge.attributes["adjacency"] <= 1 for edge in graph.edges)
        assert (folder / "figures" / "tree_0.png").stat().st_size > 5000
    assert "14 models in 2 clusters" in run("clustering.py", "--model-graph", ft, *where)
    clusters = json.loads((tmp_path / "mini_ft" / "map" / "clusters.json").read_text())
    assert clusters["adjusted_rand"] == 1
    table = run("summarize.py", "--model-graphs", "mini_ft", "mini_lora_v", "--results", tmp_path)
    assert [line.split()[:2] for line in table.splitlines() if " map " in line] == [
        ["mini_ft", "map"],
        ["mini_lora_v", "map"],
    ]
    for script, flag in (("MoTHer_FullFT.py", "--model-graph"), ("clustering.py", "--model-graph")):
        message = run(script, flag, ft, "--error", "0", *where, code=2)
        assert message.startswith("error:") and "error level" in message


def test_results_are_reused_until_something_changes(tmp_path: Path) -> None:
    save_family(tmp_path, size=4)
    manifest, results = tmp_path / "family.json", tmp_path / "results"
    first = full_ft(manifest, results)
    kept = {path: path.stat().st_mtime_ns for path in (results / "family" / "measurements").iterdir()}
    assert [path.name for path in kept] == ["get_vit_layer_statistics_0.npz"]  # of both stages
    assert without_seconds(full_ft(manifest, results)) == without_seconds(first)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    run("get_vit_layer_statistics.py", "--model-graph", manifest, "--results", results, "--overwrite")
    changed = [path.name for path, when in kept.items() if path.stat().st_mtime_ns != when]
    assert changed == ["get_vit_layer_statistics_0.npz"]
    # Damaged measurements are measured again.
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    assert without_seconds(full_ft(manifest, results)) == without_seconds(first)
    # A model that changed makes the statistics of stage 1 stale.
    save_model(tmp_path / "m3", vit_weights(9))
    text = run("MoTHer_FullFT.py", "--model-graph", manifest, "--results", results, code=2)
    assert "other models" in text and "get_vit_layer_statistics.py" in text


def test_a_deleted_model_comes_back_to_the_same_table(tmp_path: Path) -> None:
    save_family(tmp_path, size=5)
    manifest, results = tmp_path / "family.json", tmp_path / "results"

    def table() -> dict:
        full_ft(manifest, results)
        accuracy = json.loads((results / "family" / "accuracy.json").read_text())
        return {key: accuracy["overall"][key] for key in accuracy["overall"] if key != "seconds"}

    before = table()
    shutil.copytree(tmp_path / "m2", tmp_path / "away")
    (tmp_path / "m2" / "model.safetensors").unlink()
    text = full_ft(manifest, results)
    assert "left out: 1 model" in text and "model m2: has no weights" in text
    assert read_model_graph(results / "family" / "model_graph.json").left_out.keys() == {"m2"}
    shutil.rmtree(tmp_path / "m2")
    shutil.copytree(tmp_path / "away", tmp_path / "m2")
    assert table() == before


def test_one_broken_model_of_each_kind(tmp_path: Path) -> None:
    """Truncated, NaN, constant, another shape, no such layers, twins: the rest is recovered, each is explained."""
    family = save_family(tmp_path, size=9)
    file = {node.id: tmp_path / node.source / "model.safetensors" for node in family.nodes}
    os.truncate(file["m1"], 2000)
    weights = load_file(file["m2"])
    weights["encoder.layer.0.attention.attention.key.weight"][1, 2] = torch.nan
    save_file(weights, file["m2"])
    weights = load_file(file["m3"])
    weights["encoder.layer.1.attention.output.dense.weight"].fill_(0)
    save_file(weights, file["m3"])
    save_model(tmp_path / "m4", vit_weights(4, width=10))
    save_model(tmp_path / "m5", {"convolution.weight": torch.zeros(3, 3, 3, 3)})
    shutil.copy(file["m7"], file["m8"])
    for text in (
        full_ft(tmp_path / "family.json", tmp_path / "results"),
        run("clustering.py", "--no-lora", "--clusters", 2, "--model-graph", tmp_path / "family.json",
            "--results", tmp_path / "results", "--iterations", 2),
    ):  # fmt: skip
        assert "left out: 4 models" in text
        assert "model m1: the file is truncated" in text
        assert "model m2: tensor encoder.layer.0.attention.attention.key.weight holds NaN" in text
        assert "model m4: layer 0.query is (10, 10) here and (12, 12)" in text
        assert "model m5: has no square layers of query, key, value, output" in text
    text = run("MoTHer_FullFT.py", "--model-graph", tmp_path / "family.json", "--results", tmp_path / "results")
    assert "note: layer 1.output is left out of the direction: all its entries are equal in m3" in text
    assert "note: m7 and m8 do not differ" in text
    graph = read_model_graph(tmp_path / "results" / "family" / "model_graph.json")
    assert set(graph.nodes) == {"m0", "m3", "m6", "m7", "m8"} and len(graph.edges) == 4


def test_twins_and_a_single_model_with_lora(tmp_path: Path) -> None:
    save_family(tmp_path, size=2, rank=1)
    shutil.copy(tmp_path / "m0" / "model.safetensors", tmp_path / "m1" / "model.safetensors")
    text = run("MoTHer_LoRA.py", "--model-graphs", tmp_path / "family.json", "--results", tmp_path / "results")
    assert "m0 and m1 do not differ" in text
    shutil.rmtree(tmp_path / "m1")
    for script, flag in (("MoTHer_LoRA.py", "--model-graphs"), ("clustering.py", "--model-graph")):
        text = run(script, flag, tmp_path / "family.json", "--results", tmp_path / "results")
        assert "left out: 1 model" in text
    graph = read_model_graph(tmp_path / "results" / "family" / "model_graph.json")
    assert set(graph.nodes) == {"m0"} and graph.edges == ()
    where = ("--model-graph", tmp_path / "family.json", "--results", tmp_path / "results")
    assert "tree 0 has no two models to compare" in run("get_vit_layer_statistics.py", *where)
    assert "family     0       1" in run("MoTHer_FullFT.py", *where)


@pytest.mark.parametrize("script", SCRIPTS[:4])
@pytest.mark.parametrize("mistake", ["name", "path", "cycle", "models"])
def test_mistakes_get_one_line(script: str, mistake: str, tmp_path: Path) -> None:
    nodes = [
        {"id": "a", "source": "a", "parent": "b", "tree": 0},
        {"id": "b", "source": "b", "parent": None, "tree": 0},
    ]
    if mistake == "cycle":
        nodes[1]["parent"] = "a"
    (tmp_path / "m.json").write_text(json.dumps({"format": "mother-manifest/1", "name": "m", "nodes": nodes}))
    given = {"name": "mini_nothing", "path": tmp_path / "absent.json"}.get(mistake, tmp_path / "m.json")
    words = {"name": "no such model graph", "path": "no such file", "cycle": "form a cycle", "models": "none of the 2"}
    flag = "--model-graphs" if script == "MoTHer_LoRA.py" else "--model-graph"
    if script == "MoTHer_FullFT.py" and mistake == "models":
        words["models"] = "there are no statistics"
    text = run(script, flag, given, "--results", tmp_path / "results", code=2)
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: ") and words[mistake] in last
    assert not (tmp_path / "results").exists()


def test_unknown_trees_and_missing_clusters(tmp_path: Path) -> None:
    save_family(tmp_path, size=3, rank=1)
    content = json.loads((tmp_path / "family.json").read_text())
    for entry in content["nodes"]:
        entry |= {"tree": None, "parent": None}
    (tmp_path / "family.json").write_text(json.dumps(content))
    flags = ("--model-graphs", tmp_path / "family.json", "--results", tmp_path / "results")
    assert "to which tree node 'm0' belongs" in run("MoTHer_LoRA.py", *flags, code=2)
    assert "Run `python clustering.py`" in run("MoTHer_LoRA.py", *flags, "--clusters", "ward", code=2)
    run("clustering.py", "--clusters", 1, "--model-graph", tmp_path / "family.json", "--results", tmp_path / "results")
    text = run("MoTHer_LoRA.py", *flags, "--clusters", "ward")
    assert "-         -" in text  # nothing is known to score against
    assert len(read_model_graph(tmp_path / "results" / "family" / "model_graph.json").edges) == 2
    assert read_manifest(tmp_path / "family.json").edges == set()


def test_found_clusters_account_for_every_model(tmp_path: Path) -> None:
    """What clustering left out stays left out with its reason; clusters of another manifest are refused."""
    save_family(tmp_path, size=5, rank=1)
    (tmp_path / "m4" / "model.safetensors").write_bytes(b"")
    where = ("--results", tmp_path / "results")
    run("clustering.py", "--clusters", 1, "--model-graph", tmp_path / "family.json", *where)
    text = run("MoTHer_LoRA.py", "--model-graphs", tmp_path / "family.json", "--clusters", "ward", *where)
    assert "left out: 1 model" in text and "model m4: the file is truncated" in text
    assert json.loads((tmp_path / "results/family/accuracy.json").read_text())["left_out"].keys() == {"m4"}
    text = run("summarize.py", "--model-graphs", "family", *where)
    assert "left out: 1 model" in text and re.search(r"family +all +[01]\.\d{3} +[01]\.\d{3}", text)
    assert not re.search(r"family +- ", text)  # models without a cluster make no row of their own
    content = json.loads((tmp_path / "family.json").read_text())
    del content["nodes"][0], content["nodes"][0]["parent"]
    (tmp_path / "family.json").write_text(json.dumps(content))
    flags = ("--model-graphs", tmp_path / "family.json", "--clusters", "ward", *where)
    assert "of other models than the manifest has now" in run("MoTHer_LoRA.py", *flags, code=2)
    (tmp_path / "results/family/clusters.json").write_text("[]")
    assert "cannot be used" in run("MoTHer_LoRA.py", *flags, code=2)


def test_constant_direction_layers_end_no_run(tmp_path: Path) -> None:
    save_family(tmp_path, size=4)
    weights = load_file(tmp_path / "m2" / "model.safetensors")
    for block in range(2):
        weights[f"encoder.layer.{block}.attention.output.dense.weight"].fill_(1)
    save_model(tmp_path / "m2", weights)
    text = full_ft(tmp_path / "family.json", tmp_path / "results")
    assert "left out: 1 model" in text and "model m2: all entries of layer 0.output are equal" in text


def test_models_without_the_direction_layer(tmp_path: Path) -> None:
    for seed in range(3):
        weights = {name: weight for name, weight in vit_weights(seed).items() if "output.dense" not in name}
        save_model(tmp_path / f"m{seed}", weights)
    nodes = [{"id": f"m{seed}", "source": f"m{seed}", "tree": 0} for seed in range(3)]
    manifest = {"format": "mother-manifest/1", "name": "family", "nodes": nodes}
    (tmp_path / "family.json").write_text(json.dumps(manifest))
    assert "nothing tells the arrows" in full_ft(tmp_path / "family.json", tmp_path / "results")


def test_a_node_name_is_text_in_figures(tmp_path: Path) -> None:
    save_family(tmp_path, size=3)
    content = json.loads((tmp_path / "family.json").read_text())
    content["nodes"][1]["id"] = content["nodes"][2]["parent"] = r"x$\q$<b>"
    (tmp_path / "family.json").write_text(json.dumps(content))
    full_ft(tmp_path / "family.json", tmp_path / "results")
    assert (tmp_path / "results/family/figures/tree_0.png").exists()


def test_unusable_flags(tmp_path: Path) -> None:
    save_family(tmp_path, size=3, rank=1)
    lora = ("--model-graphs", tmp_path / "family.json", "--results", tmp_path / "results")
    assert "device 'cud' cannot be used" in run("MoTHer_LoRA.py", *lora, "--device", "cud", code=2)
    assert "finite, not nan" in run("MoTHer_LoRA.py", *lora, "--direction-weight", "nan", code=2)
    assert "no model of family can be used" in run("MoTHer_LoRA.py", *lora, "--kind", "nosuch", code=2)
    flags = ("--model-graph", tmp_path / "family.json", "--results", tmp_path / "results")
    assert "at least 0" in run("clustering.py", *flags, "--seed", -1, code=2)
    assert "is not among the kinds" in run("MoTHer_FullFT.py", *flags, "--direction-kind", "mlp_up", code=2)
    (tmp_path / "file").write_text("")
    assert "error: " in run("clustering.py", *flags[:2], "--results", tmp_path / "file", code=2)
    assert "no such model graph" in run("clustering.py", "--model-graph", "x" * 400, code=2)


def test_summary_without_results(tmp_path: Path) -> None:
    assert "Run the scripts first" in run("summarize.py", "--results", tmp_path, code=2)


def test_growing_an_unknown_split() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dataset.grow", "--splits", "mini_x"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode != 0 and "there is no split mini_x" in done.stderr and "Traceback" not in done.stderr

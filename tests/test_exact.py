"""Casts, prunes and quantized models from files to the graph, and what only looks like them."""

from pathlib import Path

import pytest
import torch
from test_merges import DTYPES, WIDTH, Weights, draw, moved, recover, root, stored

from dataset import packing
from mother.evidence.grids import find_grid, on_grid, quantization_noise
from mother.graph.model_graph import ModelGraph
from mother.graph.text import graph_text


def edge_of(graph: ModelGraph, child: str) -> tuple[str, dict]:
    found = [edge for edge in graph.edges if edge.child == child]
    assert len(found) == 1
    return found[0].parent, found[0].attributes


def with_norms(weights: Weights) -> Weights:
    return weights | {f"encoder.layer.{k}.layernorm_before.weight": 1 + 0.1 * draw(70 + k, WIDTH) for k in range(4)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_casts_that_leave_norms_in_full_precision(dtype: str, tmp_path: Path) -> None:
    base = with_norms(root())
    cast = {name: w.to(DTYPES[dtype]) if w.ndim == 2 else w for name, w in base.items()}
    tuned = moved({name: w for name, w in base.items() if w.ndim == 2}, 5, 0.1)
    graph = recover(tmp_path, {"base": base, "cast": cast, "tuned": base | tuned})
    parent, facts = edge_of(graph, "cast")
    assert parent == "base" and facts["kind"] == "cast" and facts["dtype"] == dtype and "or" not in facts


def test_a_cast_of_two_models_names_both(tmp_path: Path) -> None:
    base = root()
    rounded = stored(base, "bfloat16")
    near, far = ({name: w.float() * (1 + 2.0**-bits) for name, w in rounded.items()} for bits in (20, 12))
    graph = recover(tmp_path, {"near": near, "far": far, "cast": rounded, "other": moved(base, 9, 0.1)})
    parent, facts = edge_of(graph, "cast")
    assert parent == "near" and facts["or"] == ["far"]


FLOAT8 = {"fp8 e4m3": torch.float8_e4m3fn, "fp8 e5m2": torch.float8_e5m2}


def whole(weights: Weights) -> Weights:
    """With all that a model has beside its matrices."""
    names = ("embeddings.word_embeddings.weight", "classifier.weight")
    return with_norms(weights) | {name: 0.1 * draw(90 + k, 50, WIDTH) for k, name in enumerate(names)}


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("kept", [None, torch.bfloat16])
def test_casts_to_fp8(dtype: str, kept: torch.dtype | None, tmp_path: Path) -> None:
    """Stored in FP8, or unpacked again: of the base, not of its copy in half precision nor of a relative."""
    base = whole(root())
    eight = {name: w.to(FLOAT8[dtype]) for name, w in base.items()}
    matrices = {name: w for name, w in base.items() if "attention" in name}
    models = {
        "base": base,
        "cast": {name: w if kept is None else w.to(kept) for name, w in eight.items()},
        "half": stored(base, "bfloat16"),
        "tuned": base | moved(matrices, 5, 0.02),
        "half-tuned": stored(base | moved(matrices, 6, 0.02), "bfloat16"),
    }
    graph = recover(tmp_path, models)
    parent, facts = edge_of(graph, "cast")
    assert parent == "base" and (facts["kind"], facts["dtype"]) == ("cast", dtype)
    assert not {"except", "or"} & facts.keys()
    assert not graph.left_out and facts["compared"] == 1.0
    assert f"(cast, dtype {dtype}, parent and child: certain" in graph_text(graph)
    # Unlike half precision nothing is trained in FP8: what is stored as coarsely does not come from it.
    assert edge_of(graph, "half-tuned")[0] in ("base", "half")


def test_casts_by_tensor(tmp_path: Path) -> None:
    base, first = whole(root()), "encoder.layer.0.attention.attention.query.weight"
    cast = {name: w.to(torch.float8_e4m3fn) if "attention" in name else w for name, w in base.items()}
    cast |= {name: base[name].to(torch.bfloat16) for name in ("classifier.weight", first)}
    graph = recover(tmp_path, {"base": base, "cast": cast, "tuned": base | moved({first: base[first]}, 5, 0.02)})
    parent, facts = edge_of(graph, "cast")
    assert parent == "base" and (facts["kind"], facts["dtype"]) == ("cast", "fp8 e4m3")
    apart = "1 of 12 matrices bfloat16, 1 of 2 embeddings and heads as they were, 1 of 2 embeddings and heads bfloat16"
    assert facts["except"] == f"{apart}, norms and biases as they were"
    assert f"dtype fp8 e4m3, except {apart}" in graph_text(graph)


def test_what_a_cast_to_fp8_is_not(tmp_path: Path) -> None:
    """With scales it is a quantization; with one matrix trained it is none."""
    base, first = root(), "encoder.layer.0.attention.attention.query.weight"
    scaled = {}
    for name, weight in base.items():
        scaled |= {f"{name[:-6]}{end}": value for end, value in packing.fp8(weight).items()}
    eight = {name: w.to(torch.float8_e4m3fn) for name, w in base.items()}
    models = {"base": base, "scaled": scaled, "other": eight | moved({first: eight[first].float()}, 5, 0.02)}
    graph = recover(tmp_path, models)
    parent, facts = edge_of(graph, "scaled")
    assert parent == "base" and (facts["kind"], facts["format"]) == ("quantize", "fp8 8 bit, a scale each row")
    assert all(edge.attributes["kind"] != "cast" for edge in graph.edges)


def pruned(weights: Weights, share: float) -> Weights:
    return {name: w * (w.abs() > w.abs().flatten().quantile(share)) for name, w in weights.items()}


def test_nested_prunes_name_both_parents(tmp_path: Path) -> None:
    base = root()
    models = {"base": base, "tuned": moved(base, 3, 0.1), "half": pruned(base, 0.5), "most": pruned(base, 0.8)}
    graph = recover(tmp_path, models)
    assert edge_of(graph, "half")[0] == "base" and "or" not in edge_of(graph, "half")[1]
    parent, facts = edge_of(graph, "most")
    assert parent == "base" and facts["kind"] == "prune" and facts["or"] == ["half"] and facts["adjacency"] == 0.5


def test_matrices_that_were_zero_before_training_are_no_prune(tmp_path: Path) -> None:
    trained = root()
    zeros = {name: torch.zeros_like(w) if ".value." in name else w for name, w in trained.items()}
    graph = recover(tmp_path, {"zeros": zeros, "trained": trained, "other": moved(trained, 4, 0.1)})
    assert all(edge.attributes["kind"] != "prune" for edge in graph.edges)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extreme", [127, 127.5])
def test_int8_by_row_is_found_in_every_type(dtype: str, extreme: float, tmp_path: Path) -> None:
    base = root()
    rounded = {}
    for name, weight in base.items():
        scale = weight.abs().amax(dim=1, keepdim=True) / extreme
        rounded[name] = (weight / scale).round().clamp(-128, 127) * scale
    models = {"base": base, "tuned": moved(base, 3, 0.1), "int8": stored(rounded, dtype)}
    parent, facts = edge_of(recover(tmp_path, models), "int8")
    assert parent == "base" and facts["kind"] == "quantize" and facts["bits"] == 8


@pytest.mark.parametrize("seed", range(4))
def test_updates_of_one_unit_in_the_last_place_are_no_rounding(seed: int) -> None:
    parent = 0.05 * draw(seed, 96, 96)
    sign = draw(seed + 10, 96, 96).sign()
    child = parent.to(torch.bfloat16).float() * (1 + sign * 2.0**-8)
    child = child.to(torch.bfloat16).float()
    grid = find_grid(child)
    assert not quantization_noise(parent, child, on_grid(child, grid) if grid else None)

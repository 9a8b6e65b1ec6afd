"""Quantizations of a model that is not there: the numbers that their codes may have come from meet in every entry."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset.lone_adapters import recipe_of
from dataset.packing import write_gguf
from dataset.zoo import train
from dataset.zoo_models import build
from mother.collection.find import search
from mother.collection.workspace import recover_sources
from mother.evidence.codes import GGUF_RULES, rules
from mother.evidence.intervals import FLOAT8, apart, interval_of
from mother.graph.model_graph import ModelGraph
from mother.heritage.absent import Hidden, under_absent
from mother.io.reader import Storage

FORMATS = {f"gguf {kind}": Storage("gguf", detail=kind) for kind in GGUF_RULES}
FORMATS |= {"nf4": Storage("nf4", group=64), "fp4": Storage("fp4", group=64)}


def quantized(weight: torch.Tensor, name: str) -> torch.Tensor:
    rule = next(rule for rule in rules() if rule.name == name)
    return rule.apply(weight.reshape(-1, rule.group)).reshape(weight.shape).float()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_quantized_lies_in_its_interval(name: str, turned: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(128, 192) * torch.rand(128, 1) + 0.02
    codes = quantized(weight, name)
    if turned:
        weight, codes = weight.T.contiguous(), codes.T.contiguous()
    interval = interval_of(FORMATS[name], codes)
    assert interval.known.double().mean() > 0.95
    assert bool(((interval.low <= weight) & (weight <= interval.high)).all())
    # It is no wider than a step, so that what moved by one lies outside.
    known = interval.known
    moved = weight + (interval.high - interval.low).where(known, torch.zeros(())).float() * 1.01
    assert not bool(((interval.low <= moved) & (moved <= interval.high))[known].any())
    for other in FORMATS:
        assert (
            apart(interval, interval_of(FORMATS[other], codes if other == name else other_of(weight, other, turned)))[0]
            == 0
        )


def other_of(weight: torch.Tensor, name: str, turned: bool) -> torch.Tensor:
    return quantized(weight.T.contiguous(), name).T.contiguous() if turned else quantized(weight, name)


def test_formats_whose_rounding_is_not_known_have_none() -> None:
    weight = torch.randn(64, 64)
    for storage in (Storage("gguf", detail="Q4_K"), Storage("gptq", 4, 32), Storage("nf4", group=64, detail="double")):
        assert interval_of(storage, weight) is None
    assert interval_of(FORMATS["gguf Q4_0"], weight) is None  # it lies on no grid
    assert torch.equal(interval_of(None, weight).low, interval_of(None, weight).high)
    weight[0] *= 1e-6  # below the normal numbers of float16
    for kind in (torch.bfloat16, torch.float16):
        half = interval_of(None, weight.to(kind).float())
        assert bool(((half.low <= weight) & (weight <= half.high)).all())
    for name, kind in FLOAT8.items():
        half = interval_of(Storage("fp8", detail=name), weight.to(getattr(torch, kind)).float())
        assert bool(((half.low <= weight) & (weight <= half.high)).all())


Weights = dict[str, torch.Tensor]


def moved(weights: Weights, size: float) -> Weights:
    return {name: value + size * value.std() * torch.randn_like(value) for name, value in weights.items()}


def graph_of(folder: Path, packed: dict[str, Weights]) -> ModelGraph:
    """What is recovered of the models in a folder and of others in formats of GGUF."""
    for kind, weights in packed.items():
        (folder / kind).mkdir()
        write_gguf(weights, "llama", kind, (4, 2), folder / kind / "m.gguf")
    return recover_sources(search([str(folder)]).sources, None, torch.device("cpu")).graph


def test_two_quantizations_of_an_absent_model_are_siblings(tmp_path: Path) -> None:
    there = tmp_path / "there"
    parents = {"root": None, "child": there / "root", "absent": there / "child"}
    for number, (name, parent) in enumerate(parents.items()):
        (there / name).mkdir(parents=True)
        train(recipe_of("llama", number, 3e-3, 90 if parent is None else 30, number), parent, there / name)
    absent = load_file(there / "absent" / "model.safetensors")
    shutil.rmtree(there / "absent")
    graph = graph_of(there, {"Q4_0": absent, "Q5_1": absent})
    hidden = "hidden parent of Q4_0, Q5_1"
    edges = {edge.child: edge for edge in graph.edges}
    for kind in ("Q4_0", "Q5_1"):
        said = edges[kind].attributes
        assert edges[kind].parent == hidden and said["hidden"]
        assert (said["kind"], said["format"], said["bits"]) == ("quantize", f"gguf {kind}", int(kind[1]))
    assert (edges[hidden].parent, edges[hidden].attributes["kind"]) == ("child", "fine-tune")
    assert 0 < edges[hidden].attributes["adjacency"] <= 1
    assert edges["child"].parent == "root" and len(graph.edges) == 4


@pytest.mark.parametrize("case", ["of siblings", "of a model that is there"])
def test_other_quantizations_are_not(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    root = {name: value for name, value in build("llama").state_dict().items() if value.is_floating_point()}
    for name, weights in (("root", root), ("child", moved(root, 0.2))):
        (tmp_path / name).mkdir()
        save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / name / "model.safetensors")
    near = moved(root, 0.1)
    packed = {kind: moved(near, 0.02) if case == "of siblings" else root for kind in ("Q4_0", "Q8_0")}
    graph = graph_of(tmp_path, packed)
    assert not any(edge.attributes["kind"] == "quantize" and edge.attributes.get("hidden") for edge in graph.edges)
    if case != "of siblings":
        assert {edge.parent for edge in graph.edges if edge.attributes["kind"] == "quantize"} == {"root"}


TREES = {
    "both below one": ({2: 1, 3: 1}, [], {}, [Hidden((2, 3), 1, True)]),
    "one below the other": ({2: 1, 3: 2}, [], {}, [Hidden((2, 3), 1, True)]),
    "the root is one": ({1: 2, 3: 1}, [], {1: 2}, [Hidden((2, 3), None, True)]),
    "beside one another": ({2: 1}, [Hidden((3,), 1)], {}, [Hidden((2, 3), 1, True)]),
    "beside a third": ({}, [Hidden((1, 2, 3), None)], {}, [Hidden((2, 3), None, True)]),
    "beside two more": ({}, [Hidden((1, 2, 3, 4), None)], {}, [Hidden((1, 4), None), Hidden((2, 3), None, True)]),
    "below two": ({2: 1, 3: 4}, [], {}, [Hidden((2, 3), 4, True)]),
}


@pytest.mark.parametrize("case", TREES)
def test_where_the_absent_one_hangs(case: str) -> None:
    parents, hidden, rest, expected = TREES[case]
    chances = {1: 0.4, 2: 0.9, 3: 0.9, 4: 0.6}
    assert under_absent(parents, hidden, [], (2, 3), chances) == (rest, expected)

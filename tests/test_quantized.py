"""Quantized models by their codes: format and parent right in every format, siblings of an absent parent, copies."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_model
from safetensors.torch import save_file
from test_gguf import TYPES, converted, write
from test_merges import draw

from dataset import packing
from mother.evidence.codes import by_levels, by_rule, rules
from mother.evidence.grids import find_turned_grid
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.text import graph_text
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io.open import open_checkpoint
from mother.io.reader import Storage

WIDTH = 64
Weights = dict[str, torch.Tensor]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def base(seed: int = 0) -> Weights:
    names = [f"model.layers.{block}.self_attn.{kind}.weight" for block in range(2) for kind in PROJECTIONS]
    return {name: 0.05 * draw(50 * seed + k, WIDTH, WIDTH) for k, name in enumerate(names)}


def tuned(weights: Weights, seed: int, size: float, rank: int | None = None) -> Weights:
    found = {}
    for k, (name, weight) in enumerate(weights.items()):
        step = draw(1000 * seed + k, WIDTH, WIDTH) + 8 * draw(1000 * seed + k + 99, WIDTH, 1) @ draw(
            1000 * seed + k + 199, 1, WIDTH
        )
        if rank is not None:
            step = draw(1000 * seed + k, WIDTH, rank) @ draw(1000 * seed + k + 500, rank, WIDTH)
        found[name] = weight + step * (size * weight.norm() / step.norm())
    return found


def packed(pack: Callable[[torch.Tensor], Weights], weights: Weights, folder: Path, config: str = "{}") -> Path:
    folder.mkdir(parents=True)
    stored = {}
    for name, weight in weights.items():
        stored |= {f"{name.removesuffix('.weight')}.{end}": one.contiguous() for end, one in pack(weight).items()}
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
    return folder


def gguf_of(weights: Weights, kind: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    # 8 heads for queries, 4 for keys: of 64 rows both are turned, and turned back
    converted(weights, "llama", kind, folder / "model.gguf")
    return folder


def graph_of(models: dict[str, Path]) -> ModelGraph:
    return build_graph("test", trace([open_checkpoint(n, p) for n, p in models.items()], torch.device("cpu")))


def edge_of(graph: ModelGraph, child: str) -> Edge:
    (found,) = [edge for edge in graph.edges if edge.child == child]
    return found


INPUTS = draw(7, 256, WIDTH) * torch.linspace(0.3, 3, WIDTH)
MLX = '{"quantization": {"group_size": 32, "bits": %d}}'
PACKED = {
    "gptq 4 bit, group 32": (partial(packing.gptq, inputs=INPUTS), "{}"),
    "gptq 8 bit, group 32": (partial(packing.gptq, inputs=INPUTS, bits=8), "{}"),
    "awq 4 bit, group 32": (partial(packing.awq, inputs=INPUTS), "{}"),
    "mlx 4 bit, group 32": (packing.mlx, MLX % 4),
    "mlx 8 bit, group 32": (partial(packing.mlx, bits=8), MLX % 8),
    "nf4": (packing.nf4, "{}"),
    "bnb int8 8 bit, a scale each row": (packing.int8, "{}"),
    "fp8 8 bit, a scale each row": (packing.fp8, "{}"),
    "fp8 8 bit": (packing.comfy_fp8, "{}"),
}


@pytest.mark.slow
def test_every_format_in_one_family(tmp_path: Path) -> None:
    """Two relatives that moved by 2 %, each quantized to every format: format, kind and parent of all are right."""
    root = base()
    sources = {"one": root, "two": tuned(root, 3, 0.02), "three": tuned(root, 4, 0.05)}
    models = {name: save_model(tmp_path / name, weights) for name, weights in sources.items()}
    truth = {}
    for source in ("one", "two"):
        for number, (said, (pack, config)) in enumerate(PACKED.items()):
            name = f"{source}-{number}"
            models[name] = packed(pack, sources[source], tmp_path / name, config)
            truth[name] = (source, said)
        for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
            name = f"{source}-{kind}"
            models[name] = gguf_of(sources[source], kind, tmp_path / name)
            truth[name] = (source, f"gguf {kind}")
    graph = graph_of(models)
    found = {}
    for name in truth:
        edge = edge_of(graph, name)
        found[name] = (edge.parent, edge.attributes.get("format"))
        assert edge.attributes["kind"] == "quantize", (name, edge)
        if "gguf" in truth[name][1]:
            assert edge.attributes["codes"] == 1.0 and "or" not in edge.attributes
    assert found == truth
    assert "(quantize, bits 4, format gguf Q4_0, parent and child: certain" in graph_text(graph)


def test_fp8_of_comfyui_hangs_below_what_was_quantized(tmp_path: Path) -> None:
    root = base()
    models = {"root": save_model(tmp_path / "root", root), "near": save_model(tmp_path / "near", tuned(root, 3, 0.02))}
    models["comfy"] = packed(packing.comfy_fp8, tuned(root, 3, 0.02), tmp_path / "comfy")
    edge = edge_of(graph_of(models), "comfy")
    said = {key: edge.attributes[key] for key in ("kind", "format", "bits")}
    assert edge.parent == "near" and said == {"kind": "quantize", "format": "fp8 8 bit", "bits": 8}
    assert edge.attributes["codes"] == 1.0


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1"])
def test_two_quantizations_of_an_absent_model_are_siblings(kind: str, tmp_path: Path) -> None:
    root = base()
    models = {"eight": gguf_of(root, "Q8_0", tmp_path / "eight"), "few": gguf_of(root, kind, tmp_path / "few")}
    graph = graph_of(models)
    parents = {edge.child: edge.parent for edge in graph.edges}
    assert parents.keys() == {"eight", "few"} and parents["eight"] == parents["few"]
    assert graph.nodes[parents["few"]]["hidden"]


def test_fine_tune_merged_adapter_gguf_is_a_chain(tmp_path: Path) -> None:
    root = base()
    fine = tuned(root, 3, 0.05)
    merged = tuned(fine, 4, 0.03, rank=2)
    models = {"base": root, "fine": fine, "merged": merged, "other": tuned(root, 6, 0.05)}
    places = {name: save_model(tmp_path / name, weights) for name, weights in models.items()}
    places["packed"] = gguf_of(merged, "Q4_0", tmp_path / "packed")
    graph = graph_of(places)
    last = edge_of(graph, "packed")
    assert (last.parent, last.attributes["kind"], last.attributes["bits"]) == ("merged", "quantize", 4)
    between = next(edge for edge in graph.edges if {edge.parent, edge.child} == {"fine", "merged"})
    assert between.attributes["kind"] == "lora" and between.attributes["rank"] == 2
    assert any({edge.parent, edge.child} == {"base", "fine"} for edge in graph.edges)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_dequantized_upload_says_its_format(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    root = base()
    packed_at = packed(packing.nf4, root, tmp_path / "p") if kind == "nf4" else gguf_of(root, kind, tmp_path / "p")
    opened = open_checkpoint("p", packed_at)
    plain = {name: value.to(dtype) for name, value in opened.read_tensors(list(opened.tensors)).items()}
    models = {"base": root, "tuned": tuned(root, 3, 0.03), "plain": plain}
    graph = graph_of({name: save_model(tmp_path / name, weights) for name, weights in models.items()})
    edge = edge_of(graph, "plain")
    assert (edge.parent, edge.attributes["kind"]) == ("base", "quantize")
    assert edge.attributes["format"] == ("nf4" if kind == "nf4" else f"gguf {kind}")


@pytest.mark.parametrize("top", [7, 127])
def test_rows_of_a_transposed_matrix_are_found(top: int, tmp_path: Path) -> None:
    root = base()
    turned = {}
    for name, weight in root.items():
        scale = weight.abs().amax(0, keepdim=True) / top
        turned[name] = (weight / scale).round() * scale
    assert find_turned_grid(next(iter(turned.values()))).turned
    models = {"base": root, "tuned": tuned(root, 3, 0.03), "turned": turned}
    graph = graph_of({name: save_model(tmp_path / name, weights) for name, weights in models.items()})
    edge = edge_of(graph, "turned")
    assert (edge.parent, edge.attributes["kind"]) == ("base", "quantize")
    assert edge.attributes["format"] == f"int{4 if top == 7 else 8}, a scale each row, by columns"


def test_copies_in_other_formats_are_one_node(tmp_path: Path) -> None:
    half = {name: weight.half() for name, weight in base().items()}
    models = {"safe": save_model(tmp_path / "safe", half), "gguf": gguf_of(half, "F16", tmp_path / "gguf")}
    (tmp_path / "bin").mkdir()
    torch.save(half, tmp_path / "bin" / "pytorch_model.bin")
    models |= {"bin": tmp_path / "bin", "tuned": save_model(tmp_path / "tuned", tuned(base(), 3, 0.03))}
    graph = graph_of(models)
    assert graph.nodes["bin"]["aliases"] == ["gguf", "safe"] and len(graph.nodes) == 2


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_own_codes(kind: str, double: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes: pip install bitsandbytes")

    def pack(weight: torch.Tensor) -> Weights:
        stored, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type=kind)
        return {"weight": stored} | {f"weight.{end}": value for end, value in state.as_dict(packed=True).items()}

    root = base()
    models = {name: save_model(tmp_path / name, one) for name, one in (("root", root), ("near", tuned(root, 3, 0.02)))}
    edge = edge_of(graph_of(models | {"packed": packed(pack, root, tmp_path / "packed")}), "packed")
    assert (edge.parent, edge.attributes["kind"], edge.attributes["bits"]) == ("root", "quantize", 4)
    assert edge.attributes["format"] == (f"{kind}, double" if double else kind)
    assert edge.attributes["codes"] == 1 or double and edge.attributes["codes"] > 0.99


def test_rules_and_levels_tell_a_relative_from_the_parent() -> None:
    parent, stranger = 0.05 * draw(1, WIDTH, 128), 0.05 * draw(2, WIDTH, 128)
    relative = parent + 0.0005 * draw(3, WIDTH, 128)
    for rule in rules():
        blocks = parent if rule.group is None else parent.reshape((-1, rule.group) if rule.group else (1, -1))
        child = rule.apply(blocks).reshape(parent.shape)
        shares = [by_rule(rule, one, child).share for one in (parent, relative, stranger)]
        assert shares[0] == 1 and shares[1] < 0.992 and shares[2] < 0.2, (rule.name, shares)
        if rule.name.startswith("gguf"):
            storage = Storage("gguf", detail=rule.name.split()[1])
            shares = [by_levels(storage, one, child).share for one in (parent, relative, stranger)]
            assert shares[0] > 0.99 and shares[1] < 0.98 and shares[2] < 0.1, (rule.name, shares)


def q6_k(weight: torch.Tensor) -> np.ndarray:
    """Blocks of 256 as llama.cpp's `block_q6_K`: 16 scales of 8 bits below one in half precision."""
    values = weight.numpy().astype(np.float64).reshape(-1, 16, 16)
    wanted = np.abs(values).max(2) / 31
    whole = (wanted.max(1) / 127).astype(np.float16)
    scales = np.clip(np.rint(wanted / whole[:, None].astype(np.float64)), 1, 127).astype(np.int8)
    step = whole[:, None, None].astype(np.float64) * scales[:, :, None]
    codes = (np.clip(np.rint(values / step), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    first = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    second = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = (first.reshape(len(codes), -1), second.reshape(len(codes), -1), scales.view(np.uint8))
    return np.concatenate([*parts, whole.view(np.uint8).reshape(-1, 2)], axis=1)


def q4_k(weight: torch.Tensor) -> np.ndarray:
    """Blocks of 256 as llama.cpp's `block_q4_K`: 8 scales and minima of 6 bits below two in half precision."""
    values = weight.numpy().astype(np.float64).reshape(-1, 8, 32)
    low = np.maximum(-values.min(2), 0)
    wanted = (values.max(2) + low) / 15
    whole, least = ((one.max(1) / 63).astype(np.float16) for one in (wanted, low))
    scale, minimum = (
        np.clip(np.rint(one / part[:, None].astype(np.float64)), 1, 63).astype(np.uint8)
        for one, part in ((wanted, whole), (low, least))
    )
    step, offset = (
        part[:, None, None].astype(np.float64) * one[:, :, None] for part, one in ((whole, scale), (least, minimum))
    )
    codes = np.clip(np.rint((values + offset) / step), 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(len(codes), -1)
    first = scale[:, :4] | scale[:, 4:] >> 4 << 6
    second = minimum[:, :4] | minimum[:, 4:] >> 4 << 6
    third = scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4
    halves = np.stack([whole, least], axis=1).view(np.uint8)
    return np.concatenate([halves, first, second, third, packed], axis=1)


@pytest.mark.parametrize(("kind", "pack"), [("Q6_K", q6_k), ("Q4_K", q4_k)])
def test_k_quants(kind: str, pack: Callable, tmp_path: Path) -> None:
    names = [f"blk.{block}.attn_{part}.weight" for block in range(2) for part in ("v", "output")]
    own = [f"model.layers.{b}.self_attn.{kind}.weight" for b in range(2) for kind in ("v_proj", "o_proj")]
    root = {name: 0.05 * draw(k, 64, 256) for k, name in enumerate(own)}
    near = {name: weight + 0.001 * draw(90 + k, 64, 256) for k, (name, weight) in enumerate(root.items())}
    places = {name: save_model(tmp_path / name, one) for name, one in (("root", root), ("near", near))}
    for name, weights in (("root", root), ("near", near)):
        tensors = {stored: (pack(w).reshape(64, -1), TYPES[kind]) for stored, w in zip(names, weights.values())}
        (tmp_path / f"{name}-k").mkdir()
        places[f"{name}-k"] = write(tmp_path / f"{name}-k" / "model.gguf", "llama", tensors).parent
    graph = graph_of(places)
    for name in ("root", "near"):
        edge = edge_of(graph, f"{name}-k")
        assert (edge.parent, edge.attributes["kind"]) == (name, "quantize"), edge
        assert edge.attributes["format"] == f"gguf {kind}" and edge.attributes["bits"] == int(kind[1])
        assert edge.attributes["codes"] > 0.99 and "or" not in edge.attributes

"""Models that an adapter was merged into, stored in half precision: the rounded sum tells the base."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset.lone_adapters import LINEAR, adapt
from dataset.zoo_models import build
from mother.collection.find import Source, search, with_claims
from mother.collection.merged_edges import hang_merged
from mother.collection.merged_twins import Merged, is_merged
from mother.collection.whose import Answer, Candidates
from mother.collection.workspace import recover_sources
from mother.graph.model_graph import Edge, ModelGraph
from mother.io.open import open_checkpoint

ALL = LINEAR["llama"][0] + LINEAR["llama"][1]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, a child of it, and an adapter of the child that moved by less than a rounding step."""
    folder = tmp_path_factory.mktemp("grown")
    torch.manual_seed(0)
    build("llama").save_pretrained(str(folder / "root"))
    root = load_file(folder / "root" / "model.safetensors")
    (folder / "child").mkdir()
    (folder / "child" / "config.json").write_text((folder / "root" / "config.json").read_text())
    child = {name: value + 0.1 * value.std() * torch.randn_like(value) for name, value in root.items()}
    save_file(child, folder / "child" / "model.safetensors", {"format": "pt"})
    adapt("llama", folder / "child", ALL, 4, 5, folder / "adapter", steps=2)
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    for name, value in weights.items():
        if "lora_B" in name:
            value.copy_(2e-3 * torch.randn_like(value))
    save_file(weights, folder / "adapter" / "adapter_model.safetensors")
    return folder


def stored(folder: Path, name: str, weights: State) -> Path:
    (folder / name).mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / name / "model.safetensors")
    (folder / name / "config.json").write_text((folder / "config.json").read_text())
    return folder / name


def models(grown: Path, folder: Path, way: str, dtype: torch.dtype) -> dict[str, Path]:
    """Root, child, its cast, and the child with the adapter, in half precision."""
    (folder / "config.json").write_text((grown / "child" / "config.json").read_text())
    child = load_file(grown / "child" / "model.safetensors")
    whole = open_checkpoint("m", grown / "adapter", grown / "child")
    summed = whole.read_tensors(list(whole.tensors))
    cast = {name: value.to(dtype) for name, value in child.items()}
    added = {name: whole.added(name) for name in whole.update_of}
    if way == "summed":
        merged = {name: summed[name].to(dtype) for name in child}
    elif way == "cast first":
        merged = cast | {name: (cast[name].float() + value).to(dtype) for name, value in added.items()}
    else:  # as torch adds in place in the type of the weights
        merged = cast | {name: cast[name] + value.to(dtype) for name, value in added.items()}
    return {
        "root": grown / "root",
        "child": grown / "child",
        "cast": stored(folder, "cast", cast),
        "merged": stored(folder, "merged", merged),
        "adapter": grown / "adapter",
    }


def told(paths: dict[str, Path], base: str) -> Merged | None:
    """How the merged model is this base with the adapter."""
    return is_merged(
        open_checkpoint("adapter", paths["adapter"], paths[base]), open_checkpoint("merged", paths["merged"])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["summed", "cast first", "all in half"])
def test_the_rounded_sum_tells_the_base(way: str, dtype: torch.dtype, grown: Path, tmp_path: Path) -> None:
    paths = models(grown, tmp_path, way, dtype)
    assert told(paths, "child") == (Merged.EXACT if way == "summed" else Merged.CAST_FIRST)
    assert told(paths, "cast") == (None if way == "summed" else Merged.EXACT)
    assert told(paths, "root") is None


@pytest.mark.parametrize("change", ["shorter", "other norms", "the base", "trained on"])
def test_what_is_nearly_a_merged_model_is_none(change: str, grown: Path, tmp_path: Path) -> None:
    paths = models(grown, tmp_path, "summed", torch.bfloat16)
    merged, cast = (load_file(paths[name] / "model.safetensors") for name in ("merged", "cast"))
    if change == "shorter":  # an earlier adapter of the run
        whole = open_checkpoint("m", grown / "adapter", grown / "child")
        child = load_file(grown / "child" / "model.safetensors")
        merged |= {name: (child[name] + 0.9 * whole.added(name)).bfloat16() for name in whole.update_of}
    elif change == "other norms":
        merged["model.norm.weight"] = merged["model.norm.weight"] * 1.01
    elif change == "the base":
        merged = cast
    else:
        name = next(name for name in merged if "down_proj" in name)
        merged[name] = merged[name] + 1e-2 * torch.randn(merged[name].shape).bfloat16()
    save_file(merged, paths["merged"] / "model.safetensors")
    assert told(paths, "child") is None


@pytest.mark.parametrize("way", ["summed", "cast first"])
def test_of_a_base_and_its_cast_one_is_named(way: str, grown: Path, tmp_path: Path) -> None:
    paths = models(grown, tmp_path, way, torch.bfloat16)
    sources = [Source(name, str(paths[name])) for name in ("child", "cast", "merged")]
    answer = Candidates(sources).answer(Source("adapter", str(paths["adapter"])))
    base = "child" if way == "summed" else "cast"
    assert answer.exact == answer.twins == ((base, "merged"),)
    assert answer.candidates[0].model == base and answer.candidates[0].probability == 1


def recovered(paths: dict[str, Path], base: Path | None) -> ModelGraph:
    """The graph of all models, where the adapter names this base."""
    found = with_claims(search([str(path) for path in paths.values()])).sources
    found = [Source(one.id, one.location, str(base) if base else None) if one.id == "adapter" else one for one in found]
    return recover_sources(found, None, torch.device("cpu")).graph


def test_a_recovered_graph_hangs_it_under_its_base(grown: Path, tmp_path: Path) -> None:
    paths = models(grown, tmp_path, "summed", torch.bfloat16)
    graph = recovered(paths, None)
    edges = {edge.child: edge for edge in graph.edges}
    edge = edges["merged"]
    assert edge.parent == "child" and edge.attributes["kind"] == "lora" and edge.attributes["rank"] == 4
    assert edge.attributes["exact"] and edge.attributes["adjacency"] == 1 and edge.attributes["adapter"] == "adapter"
    assert edges["adapter"].parent == "child" and edges["cast"].attributes["kind"] == "cast"
    assert "child with the adapter adapter is merged, up to rounding" in graph.notes


def test_with_its_base_an_adapter_is_a_model_of_which_it_is_the_cast(grown: Path, tmp_path: Path) -> None:
    paths = models(grown, tmp_path, "summed", torch.bfloat16)
    edges = {edge.child: edge for edge in recovered(paths, paths["child"]).edges}
    assert (edges["merged"].parent, edges["merged"].attributes["kind"]) == ("adapter", "cast")
    assert (edges["adapter"].parent, edges["adapter"].attributes["kind"]) == ("child", "adapter")


def answer(*pairs: tuple[str, str]) -> Answer:
    return Answer("a", (4,), 1, 1e-3, (), 0.0, pairs, (), pairs)


def graph_of(*edges: tuple[str, str, str | None], hidden: str = "") -> ModelGraph:
    names = dict.fromkeys(end for parent, child, _ in edges for end in (parent, child))
    nodes = {name: {"tree": "0", "root": 0.5, **({"hidden": True} if name == hidden else {})} for name in names}
    return ModelGraph("g", nodes, tuple(Edge(p, c, {"kind": kind, "compared": 0.9}) for p, c, kind in edges))


HUNG = {
    "under a cast": ([("p", "c", "cast"), ("c", "m", "fine-tune")], {("p", "c"), ("p", "m")}),
    "above its base": ([("r", "m", "fine-tune"), ("m", "p", "fine-tune")], {("r", "p"), ("p", "m")}),
    "a cast itself": ([("p", "c", "fine-tune"), ("c", "m", "cast")], {("p", "c"), ("c", "m")}),
    "beside its base": ([("hidden", "p", None), ("hidden", "m", None)], {("p", "m")}),
    "beside others": (
        [("hidden", "p", None), ("hidden", "m", None), ("hidden", "x", None)],
        {("hidden parent of p, x", "p"), ("hidden parent of p, x", "x"), ("p", "m")},
    ),
}


@pytest.mark.parametrize("case", HUNG)
def test_where_it_hung_before(case: str) -> None:
    edges, expected = HUNG[case]
    found = hang_merged(graph_of(*edges, hidden="hidden"), answer(("p", "m")))
    assert {(edge.parent, edge.child) for edge in found.edges} == expected
    assert {end for pair in expected for end in pair} <= found.nodes.keys() and "hidden" not in found.nodes
    assert hang_merged(found, None) == found and hang_merged(found, answer(("gone", "m"))) == found

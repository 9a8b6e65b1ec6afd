"""Merged twins as PEFT makes them, for each kind of adapter and in the arithmetic that it merges in."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dataset.zoo_models import build
from mother.collection.find import Source, search, with_claims
from mother.collection.whose import Answer, Candidates
from mother.collection.workspace import Recovered, recover_sources
from mother.errors import InputError
from mother.graph.model_graph import Edge
from mother.io.open import open_checkpoint
from tests.test_adapter_kinds import trained

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=7, target_modules=ALL),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"]),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=ALL),
    "loha": lambda: peft.LoHaConfig(r=4, alpha=7, target_modules=ALL),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=7, target_modules=["q_proj", "v_proj"], decompose_factor=8),
    "vera": lambda: peft.VeraConfig(r=8, target_modules=["q_proj", "v_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
WAYS = {  # type of the model, and whether PEFT keeps the adapter in float32
    "float32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, True),
    "all in bfloat16": (torch.bfloat16, False),
    "all in float16": (torch.float16, False),
}


def llama(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build("llama")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, a near relative, a stranger, and an adapter of the first of each kind."""
    folder = tmp_path_factory.mktemp("grown")
    base = llama(0)
    base.save_pretrained(str(folder / "base"))
    with torch.no_grad():
        for weight in base.parameters():
            weight += 0.1 * weight.std() * torch.randn_like(weight)
    base.save_pretrained(str(folder / "relative"))
    llama(1).save_pretrained(str(folder / "other"))
    for kind, config in KINDS.items():
        adapted = peft.get_peft_model(llama(0), config())
        trained(adapted, 0.05)
        adapted.save_pretrained(str(folder / kind))
    return folder


def merge(grown: Path, kind: str, way: str, out: Path) -> Path:
    """What PEFT merges, saved."""
    dtype, upcast = WAYS[way]
    model = llama(0).to(dtype)
    adapted = peft.PeftModel.from_pretrained(model, str(grown / kind), autocast_adapter_dtype=upcast)
    adapted.merge_and_unload().save_pretrained(str(out))
    return out


def asked(grown: Path, kind: str, *more: Path) -> Answer:
    sources = [Source(name, str(grown / name)) for name in ("base", "relative", "other")]
    sources += [Source(path.name, str(path)) for path in more]
    return Candidates(sources).answer(Source(kind, str(grown / kind)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_merges_is_told(kind: str, way: str, grown: Path, tmp_path: Path) -> None:
    answer = asked(grown, kind, merge(grown, kind, way, tmp_path / "merged"))
    if kind == "dora" and way.startswith("all in"):  # the sum is rounded before its rows get their lengths
        assert answer.twins == ()
        return
    assert answer.twins == answer.exact == (("base", "merged"),)
    assert answer.candidates[0].model == "base" and answer.candidates[0].probability == 1 and answer.unknown == 0


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_was_trained_on_is_none(kind: str, grown: Path, tmp_path: Path) -> None:
    weights = load_file(merge(grown, kind, "float32", tmp_path / "merged") / "model.safetensors")
    name = next(name for name in weights if "layers.0.self_attn.o_proj" in name)
    weights[name] = weights[name] + 1e-3 * torch.randn(weights[name].shape)
    save_file(weights, tmp_path / "merged" / "model.safetensors")
    assert asked(grown, kind, tmp_path / "merged").twins == ()


def test_other_names_and_whole_numbers_beside_the_weights(grown: Path, tmp_path: Path) -> None:
    weights = load_file(merge(grown, "lora", "bfloat16", tmp_path / "merged") / "model.safetensors")
    renamed = {name.removeprefix("model."): weight for name, weight in weights.items()}
    renamed["rotary.positions"] = torch.arange(8)
    save_file(renamed, tmp_path / "merged" / "model.safetensors")
    assert asked(grown, "lora", tmp_path / "merged").exact == (("base", "merged"),)


def test_a_head_that_came_with_an_adapter(tmp_path: Path) -> None:
    model = llama(0)
    model.save_pretrained(str(tmp_path / "base"))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["norm"])
    adapted = peft.get_peft_model(model, config)
    trained(adapted, 0.05)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    adapted.merge_and_unload().save_pretrained(str(tmp_path / "merged"))
    sources = [Source(name, str(tmp_path / name)) for name in ("base", "merged")]
    assert Candidates(sources).answer(Source("a", str(tmp_path / "adapter"))).exact == (("base", "merged"),)


def test_a_head_beside_the_embedding_that_it_is_tied_to(tmp_path: Path) -> None:
    model = build("gpt2")
    states = {"base": model.state_dict()}
    config = peft.LoraConfig(r=4, lora_alpha=7, target_modules=["wte", "c_attn"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    trained(adapted, 0.05)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    states["merged"] = adapted.merge_and_unload().state_dict()
    states["half"] = {name: weight.bfloat16() for name, weight in states["merged"].items()}
    states["untied"] = states["merged"] | {"lm_head.weight": states["base"]["lm_head.weight"] + 1.0}
    for name, state in states.items():
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "pytorch_model.bin")
    assert states["base"]["lm_head.weight"].equal(states["base"]["transformer.wte.weight"])
    answer = Candidates([Source(name, str(tmp_path / name)) for name in states]).answer(
        Source("adapter", str(tmp_path / "adapter"))
    )
    assert answer.exact == (("base", "merged"), ("base", "half"))


def test_factors_say_nothing_of_their_base_unless_it_is_there_with_them(grown: Path, tmp_path: Path) -> None:
    answer = asked(grown, "ia3")
    assert answer.family == [] and answer.unknown == 1 and answer.kind == "adapter"
    assert all("do not say whose they are" in one.why for one in answer.candidates)
    merge(grown, "ia3", "float32", tmp_path / "merged")
    models = [str(grown / name) for name in ("base", "relative", "other", "ia3")]
    edges = {edge.child: edge for edge in _recovered(models + [str(tmp_path / "merged")]).graph.edges}
    assert edges["ia3"].parent == edges["merged"].parent == "base" and edges["ia3"].attributes["adjacency"] == 1
    alone = _recovered(models)
    assert all(edge.child != "ia3" for edge in alone.graph.edges) and not alone.graph.left_out
    assert any("ia3 is an adapter of an unknown base" in note and "IA3" in note for note in alone.graph.notes)
    with pytest.raises(InputError, match="nothing without its base"):
        _recovered([str(grown / "ia3")])


def test_factors_of_inputs_change_no_bias(grown: Path) -> None:
    on_it = open_checkpoint("m", grown / "ia3", grown / "base")
    assert on_it.update_of.keys() <= on_it.tensors.keys() and len(on_it.update_of) == 6


def _recovered(paths: list[str]) -> Recovered:
    return recover_sources(with_claims(search(paths)).sources, None, torch.device("cpu"))


def test_adapters_that_name_a_stranger_do_not_make_it_a_relative(grown: Path, tmp_path: Path) -> None:
    """On a stranger an adapter is related to both: that says nothing of the stranger."""
    base = load_file(grown / "base" / "model.safetensors")
    for name in ("base", "relative", "other", "lora", "dora", "ia3"):
        shutil.copytree(grown / name, tmp_path / name)
    for kind in ("lora", "dora"):  # updates that hold much of the base's own weights
        parts = load_file(tmp_path / kind / "adapter_model.safetensors")
        for name in [name for name in parts if "lora_B" in name]:
            weight = base[name.removeprefix("base_model.model.").replace("lora_B.", "")]
            left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
            parts[name] = (left[:, :4] * sizes[:4] / 2).contiguous()
            parts[name.replace("lora_B", "lora_A")] = right[:4].contiguous()
        save_file(parts, tmp_path / kind / "adapter_model.safetensors")
    for kind in ("lora", "dora", "ia3"):
        path = tmp_path / kind / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "other")}))
        (tmp_path / kind / "README.md").unlink()
    graph = _recovered([str(tmp_path)]).graph
    assert graph.nodes["other"]["tree"] != graph.nodes["base"]["tree"] == graph.nodes["relative"]["tree"]
    assert not any(facts.get("hidden") for facts in graph.nodes.values())
    edges: dict[str, Edge] = {edge.child: edge for edge in graph.edges}
    assert all(edges[kind].attributes["kind"] == "adapter" for kind in ("lora", "dora", "ia3"))

"""PEFT adapters: what they add to their base is what PEFT adds, and keeps its rank."""

import json
import re
import time
from pathlib import Path

import peft
import pytest
import torch
from conftest import save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from mother.errors import CheckpointError
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io.open import open_checkpoint
from mother.io.patterns import Patterns

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def vit() -> nn.Module:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**VIT, image_size=8, patch_size=4, num_labels=3))


def gpt() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=24, n_layer=2, n_head=2))


def adapt(folder: Path, base: nn.Module, **config: object) -> dict[str, torch.Tensor]:
    """Save a base and a trained-looking adapter of it; returns the weights that PEFT merges."""
    base.save_pretrained(folder / "base")
    names = set(load_file(folder / "base" / "model.safetensors"))
    model = peft.get_peft_model(base, peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    result = load_file(folder / "merged" / "model.safetensors")
    assert names == set(result)
    return result


CASES = {
    "plain": (vit, None, {"r": 3, "lora_alpha": 6}),
    "rslora": (vit, None, {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "dora": (vit, None, {"r": 3, "lora_alpha": 6, "use_dora": True}),
    "head": (vit, None, {"r": 2, "lora_alpha": 2, "modules_to_save": ["classifier"]}),
    "patterns": (vit, None, {"r": 3, "lora_alpha": 6, "rank_pattern": {"first": 5}, "alpha_pattern": {"first": 1}}),
    "convolution": (vit, ["projection"], {"r": 2, "lora_alpha": 3}),
    "fan_in_fan_out": (gpt, ["c_attn"], {"r": 3, "lora_alpha": 6, "fan_in_fan_out": True}),
    "dora, fan_in_fan_out": (gpt, ["c_attn"], {"r": 3, "lora_alpha": 6, "fan_in_fan_out": True, "use_dora": True}),
    "embedding": (gpt, ["wpe"], {"r": 3, "lora_alpha": 6}),
}


def attention(base: nn.Module, *names: str) -> list[str]:
    """Query, value as this version of transformers calls them."""
    new = any(name.endswith("q_proj") for name, _ in base.named_modules())
    return [f"{name[0]}_proj" if new else name for name in names]


@pytest.mark.parametrize("case", CASES)
def test_adapters_on_their_base_are_what_peft_merges(case: str, tmp_path: Path) -> None:
    make, targets, config = CASES[case]
    base = make()
    targets = targets or attention(base, "query", "value")
    config = dict(config)
    for key in ("rank_pattern", "alpha_pattern"):
        if key in config:
            config[key] = {targets[0]: config[key]["first"]}
    expected = adapt(tmp_path, base, target_modules=targets, **config)
    checkpoint = open_checkpoint("m", tmp_path / "adapter", tmp_path / "base")
    assert checkpoint.tensors.keys() == expected.keys()
    found = checkpoint.read_tensors(list(expected))
    for name, weight in expected.items():
        assert found[name].shape == weight.shape
        assert torch.allclose(found[name], weight, rtol=1e-5, atol=1e-6), name
        assert checkpoint.tensors[name][1].shape == tuple(weight.shape)
    rooms = {name: torch.zeros(weight.shape) for name, weight in expected.items()}
    again = checkpoint.read_tensors(list(expected), rooms)
    assert all(again[name] is rooms[name] and torch.equal(rooms[name], found[name]) for name in expected)
    before = load_file(tmp_path / "base" / "model.safetensors")
    assert any(not torch.equal(found[name], before[name]) for name in before)


def test_an_adapter_alone_is_what_it_adds(tmp_path: Path) -> None:
    base = vit()
    targets = attention(base, "query")
    expected = adapt(tmp_path, base, r=3, lora_alpha=6, target_modules=targets)
    before = load_file(tmp_path / "base" / "model.safetensors")
    alone = open_checkpoint("m", tmp_path / "adapter")
    assert len(alone.layers) == 2
    changed = {name for name in before if not torch.equal(before[name], expected[name])}
    deltas = sorted(float(alone.read(layer).norm()) for layer in alone.layers)
    assert deltas == pytest.approx(sorted(float((expected[name] - before[name]).norm()) for name in changed), rel=1e-4)
    assert all(int(torch.linalg.matrix_rank(alone.read(layer))) == 3 for layer in alone.layers)


def test_a_dora_adapter_alone_is_its_product(tmp_path: Path) -> None:
    targets = attention(vit(), "query")
    adapt(tmp_path, vit(), r=3, lora_alpha=6, target_modules=targets, use_dora=True)
    alone = open_checkpoint("m", tmp_path / "adapter")
    assert all(int(torch.linalg.matrix_rank(alone.read(layer))) == 3 for layer in alone.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_keeps_its_rank_and_its_arrow(dtype: torch.dtype, tmp_path: Path) -> None:
    base = vit().to(dtype)
    targets = attention(base, "query", "value")
    adapt(tmp_path, base, r=3, lora_alpha=6, target_modules=targets)
    checkpoints = [
        open_checkpoint("adapted", tmp_path / "adapter", tmp_path / "base"),
        open_checkpoint("base", tmp_path / "base"),
    ]
    (edge,) = build_graph("test", trace(checkpoints, torch.device("cpu"))).edges
    assert (edge.parent, edge.child, edge.attributes["kind"], edge.attributes["rank"]) == ("base", "adapted", "lora", 3)
    assert edge.attributes["arrow"] > 0.9


GOOD = {"m.lora_A.weight": (2, 4), "m.lora_B.weight": (4, 2)}
NESTED: list = []
for _ in range(900):
    NESTED = [NESTED]
REFUSED = {
    "oft": ({"peft_type": "OFT"}, None, "adapter of type 'OFT', not LoRA"),
    "another kind": ({"peft_type": "LOHA"}, None, "do not agree on the kind"),
    "no config": ({}, None, "damaged"),
    "bias": ({}, {"m.lora_A.weight": (2, 4), "m.lora_B.weight": (4, 2), "m.lora_bias": (4,)}, "lora_bias"),
    "half": ({}, {"m.lora_A.weight": (2, 4)}, "one half"),
    "misfit": ({}, {"m.lora_A.weight": (2, 4), "m.lora_B.weight": (4, 3)}, "do not fit"),
    "wrong rank": ({}, {"m.lora_A.weight": (3, 4), "m.lora_B.weight": (4, 3)}, "rank 3.*says 2"),
    "empty": ({}, {"other.weight": (2, 4)}, "no LoRA update"),
    "pattern that looks around": ({"rank_pattern": {"(?=a)m": 2}}, GOOD, "too involved"),
    "pattern that looks back": ({"rank_pattern": {r"(m)\1": 2}}, GOOD, "too involved"),
    "pattern of many groups": ({"rank_pattern": {"(" * 150 + ")" * 150: 2}}, GOOD, "too involved"),
    "long pattern": ({"rank_pattern": {"m" * 301: 2}}, GOOD, "too involved"),
    "many patterns": ({"rank_pattern": {f"a{k}": 2 for k in range(1001)}}, GOOD, "1001 patterns"),
    "pattern of many states": ({"rank_pattern": {"((m{999}){999}){999}": 2}}, GOOD, "too involved"),
    "no pattern": ({"alpha_pattern": {"(": 2}}, GOOD, "is none"),
    "pattern without a number": ({"alpha_pattern": {"m": "x"}}, GOOD, "no number"),
    "patterns in a list": ({"rank_pattern": ["m"]}, GOOD, "no table"),
    "half a character": ({"alpha_pattern": {"\ud800[": 2}}, GOOD, "ud800.*is none"),
    "a kind of lists": ({"peft_type": NESTED}, GOOD, "adapter of type .*not LoRA"),
    "a beginning of lists": ({"init_lora_weights": NESTED, "r": 3}, GOOD, "says 3"),
    "a long rank": ({"r": "9" * 4000}, GOOD, "rank 2, adapter_config.json says 9{20} "),
    "infinite scale": ({"lora_alpha": 1e999}, GOOD, "has the scale inf"),
    "scale that is none": ({"lora_alpha": float("nan")}, GOOD, "has the scale nan"),
    "endless scale": ({"alpha_pattern": {"m": 10**400}}, GOOD, "has the scale inf"),
    "endless rank": ({"r": 1e999}, GOOD, "damaged"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, GOOD, "changed its base"),
    "replicated layers": ({"layer_replication": [[0, 1], [0, 1]]}, GOOD, "layer_replication"),
    "trained tokens": ({"trainable_token_indices": [1, 2]}, GOOD, "trainable_token_indices"),
    "halves of experts": ({"target_parameters": ["mlp.experts.down_proj"]}, GOOD, "uses target_parameters"),
    "another factor": ({"kasa_config": {"beta": 1}}, GOOD, "uses kasa_config"),
    "pooled inputs": ({"use_qalora": True}, GOOD, "uses use_qalora"),
    "lora-ga": ({"init_lora_weights": "lora_ga"}, GOOD, "changed its base"),
    "bias of B": ({}, GOOD | {"m.lora_B.bias": (4,)}, "with a bias"),
    "B of three sides": ({}, {"m.lora_A.weight": (2, 4), "m.lora_B.weight": (4, 2, 3)}, "do not fit"),
    "short magnitude": ({"use_dora": True}, GOOD | {"m.lora_magnitude_vector": (1,)}, "magnitude that does not fit"),
    "an endless update": ({"r": 1}, {"m.lora_A.weight": (1, 60_000), "m.lora_B.weight": (60_000, 1)}, "entries"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_adapters_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    config, shapes, words = REFUSED[kind]
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps({} if kind == "no config" else usual | config))
    tensors = {name: torch.zeros(shape) for name, shape in (shapes or {"m.lora_A.weight": (2, 4)}).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint("victim", tmp_path)
    assert "model victim" in str(error.value)


PATTERNS = [
    "q_proj",
    "layers.0.q_proj",
    "self_attn.q_proj",
    "model.layers.0.self_attn.q_proj",
    ".*q_proj",
    r".*\.q_proj",
    "(q|k)_proj",
    "(?:q|k)_proj",
    r"layers\.[0-1]\..*",
    r"layers\.\d+\.self_attn\.(q|k)_proj",
    r".*\.layers\.(0|2)\..*_proj",
    "^model.layers.0.self_attn.q_proj",
    "^layers.0.self_attn.q_proj",
    "q_proj$",
    "[qk]_proj",
    "[^q]_proj",
    "q?_?proj",
    "(a*)*q_proj",
    "[a-z_.0-9]{3,40}",
    "l.{5}.1.+",
    "",
]
MODULES = [f"model.layers.{k}.self_attn.{name}_proj" for k in (0, 1, 10) for name in ("q", "k", "up", "")]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_those_of_peft(pattern: str) -> None:
    for module in [*MODULES, "q_proj", "layers.0.q_proj", "xq_proj", "a.b.", ""]:
        assert Patterns().matches(pattern, module) == (get_pattern_key([pattern], module) == pattern), module


@settings(max_examples=500, deadline=None)
@given(st.text("ab.q(|)*+?[]{}1,\\^$-_d", max_size=9), st.text("ab.q1-", min_size=1, max_size=7))
def test_any_pattern_matches_as_in_peft_or_is_refused(pattern: str, module: str) -> None:
    try:
        found = Patterns().matches(pattern, module)
    except ValueError:
        return
    assert found == bool(re.match(rf"(.*\.)?({pattern})$", module))


ENDLESS = {
    "nested": {"(a*)*b": 1},
    "optional": {"a?" * 60 + "a" * 60 + "b": 1},
    "either": {"(a|a)" * 50 + "b": 1},
    "three stars": {".*.*.*.*.*x": 1},
    "many": {f"{'.*a' * 20}{k}": 1 for k in range(900)},
    "many that are plain": {f"a.a{k}": 1 for k in range(1000)},
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_patterns_cannot_keep_us_busy(kind: str, tmp_path: Path) -> None:
    """Many modules, whose names are long, and patterns that leave much open."""
    module = "a." * 40 + "a" * 80
    config = {"peft_type": "LORA", "r": 1, "rank_pattern": ENDLESS[kind], "alpha_pattern": ENDLESS[kind]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    shapes = {
        f"{module}{k}.lora_{part}.weight": shape for k in range(80) for part, shape in (("A", (1, 4)), ("B", (4, 1)))
    }
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "adapter_model.safetensors")
    started = time.process_time()
    try:
        assert len(open_checkpoint("m", tmp_path).layers) == 80
    except CheckpointError as error:
        assert "its patterns take too long to be matched" in str(error)  # noqa: PT017
    assert time.process_time() - started < 20  # of which the checks of types in the tests take most


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[" * 100_000, '{"r": 9' + "9" * 5000, '{"peft_type": "\\ud800", "r": 1}']
)
def test_a_damaged_configuration_of_an_adapter(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    save_file({name: torch.zeros(shape) for name, shape in GOOD.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"damaged|of type '\\ud800'") as error:
        open_checkpoint("victim", tmp_path)
    assert str(error.value).isprintable()


def test_a_base_that_is_another_one(tmp_path: Path) -> None:
    base = vit()
    targets = attention(base, "query")
    adapt(tmp_path, base, r=3, lora_alpha=6, target_modules=targets)
    gpt().save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is missing in its base"):
        open_checkpoint("m", tmp_path / "adapter", tmp_path / "other")
    with pytest.raises(CheckpointError, match="has a base but is no adapter"):
        open_checkpoint("m", tmp_path / "base", tmp_path / "other")


def test_what_the_configuration_says_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    base = vit()
    adapt(tmp_path, base, r=3, lora_alpha=6, target_modules=attention(base, "query"))
    before = open_checkpoint("m", tmp_path / "adapter", tmp_path / "base").fingerprint()
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 64}))
    assert open_checkpoint("m", tmp_path / "adapter", tmp_path / "base").fingerprint() != before


def test_the_scale_that_peft_takes_where_none_is_given(tmp_path: Path) -> None:
    base = vit()
    expected = adapt(tmp_path, base, r=4, lora_alpha=8, target_modules=attention(base, "query"))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "lora_alpha"}))
    opened = open_checkpoint("m", tmp_path / "adapter", tmp_path / "base")
    for name, weight in expected.items():
        assert torch.allclose(opened.read_tensor(name), weight, atol=1e-6)


def test_square_conv1d_is_turned_whatever_the_configuration_kept(tmp_path: Path) -> None:
    """PEFT decides for each module, and writes down what it decided last."""
    base = gpt()
    targets = [name for name, _ in base.named_modules() if name.endswith("attn.c_proj")]
    expected = adapt(tmp_path, base, r=3, lora_alpha=6, target_modules=targets, fan_in_fan_out=True)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": False}))
    opened = open_checkpoint("m", tmp_path / "adapter", tmp_path / "base")
    for name, weight in expected.items():
        assert torch.allclose(opened.read_tensor(name), weight, atol=1e-6), name


def test_whole_modules_replace_those_of_a_base_with_other_wrappers(tmp_path: Path) -> None:
    base = vit()
    expected = adapt(
        tmp_path, base, r=2, lora_alpha=2, target_modules=attention(base, "query"), modules_to_save=["value", "v_proj"]
    )
    bare = {name.removeprefix("vit."): w for name, w in load_file(tmp_path / "base" / "model.safetensors").items()}
    (tmp_path / "bare").mkdir()
    save_file(bare, tmp_path / "bare" / "model.safetensors")
    opened = open_checkpoint("m", tmp_path / "adapter", tmp_path / "bare")
    assert set(opened.tensors) == set(bare)
    for name, weight in expected.items():
        assert torch.allclose(opened.read_tensor(name.removeprefix("vit.")), weight, atol=1e-6), name


def test_what_training_left_in_an_adapter_is_left_aside(tmp_path: Path) -> None:
    save_model(tmp_path / "base", {"m.weight": torch.zeros(4, 4)})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    parts = {name: torch.ones(shape) for name, shape in GOOD.items()}
    parts |= {"m.lora_velora_embed": torch.ones(3, 3), "score.weight": torch.ones(2, 4)}
    save_file(parts, tmp_path / "a" / "adapter_model.safetensors")
    opened = open_checkpoint("a", tmp_path / "a", tmp_path / "base")
    assert set(opened.tensors) == {"m.weight", "score.weight"}  # a new head is one of its own
    assert opened.aside == ("1 tensors that its base has not",)


def test_a_model_with_an_adapter_that_is_not_merged(tmp_path: Path) -> None:
    parts = {"m.base_layer.weight": torch.zeros(4, 4), "n.weight": torch.zeros(4, 4), "o.weight": torch.zeros(4, 4)}
    save_model(tmp_path, parts | {name: torch.ones(shape) for name, shape in GOOD.items()})
    with pytest.raises(CheckpointError, match=r"not merged into it \(m.base_layer.weight\).*merge_and_unload"):
        open_checkpoint("m", tmp_path)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    base = vit()
    adapt(tmp_path, base, r=3, lora_alpha=6, target_modules=attention(base, "query"))
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        open_checkpoint("m", tmp_path / "adapter", tmp_path / "adapter")

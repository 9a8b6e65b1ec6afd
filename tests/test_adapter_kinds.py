"""Adapters of other kinds and with other names: what they add is what the libraries that wrote them add."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mother.collection.find import Source
from mother.collection.whose import open_adapter, ranks_of
from mother.errors import CheckpointError
from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.adapter_names import dotted, is_adapter, part_of
from mother.io.open import open_checkpoint
from tests.test_adapters import gpt, vit


class Convolutions(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 8, 1)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.two(self.one(x)).mean((2, 3)))


def trained(model: nn.Module, size: float = 0.3) -> None:
    """Move all that is trained, so that no part of an update is 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator)


def write(folder: Path, base: nn.Module, config: peft.PeftConfig) -> dict[str, torch.Tensor]:
    """Save a base and an adapter of it; returns the weights that PEFT merges."""
    folder.joinpath("base").mkdir()
    with torch.no_grad():
        for weight in base.parameters():
            if not weight.any():  # biases
                weight += torch.linspace(1, 2, weight.numel()).reshape(weight.shape)
    save_file({k: v.clone() for k, v in base.state_dict().items()}, folder / "base" / "model.safetensors")
    model = peft.get_peft_model(base, config)
    trained(model)
    model.save_pretrained(folder / "adapter")
    return {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}


def check(folder: Path, expected: dict[str, torch.Tensor], adapter: str = "adapter") -> AdaptedCheckpoint:
    """An adapter on its base has the weights that were merged, and changes some of them."""
    opened = open_checkpoint("m", folder / adapter, folder / "base")
    before = load_file(folder / "base" / "model.safetensors")
    assert isinstance(opened, AdaptedCheckpoint) and opened.tensors.keys() == before.keys()
    found = opened.read_tensors(list(before))
    for name, weight in found.items():
        assert weight.shape == expected[name].shape == opened.tensors[name][1].shape
        assert torch.allclose(weight, expected[name], rtol=1e-5, atol=1e-5), name
    assert {name for name in before if not torch.equal(found[name], before[name])} == set(opened.update_of)
    return opened


QUERIES = ["attention.q_proj", "attention.v_proj"]
KINDS = {
    "loha": (vit, peft.LoHaConfig(r=3, alpha=5, target_modules=QUERIES), 3),
    "loha, patterns": (
        vit,
        peft.LoHaConfig(r=3, alpha=5, target_modules=QUERIES, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 9}),
        None,
    ),
    "loha, convolutions": (Convolutions, peft.LoHaConfig(r=3, alpha=5, target_modules=["one", "two", "linear"]), 3),
    "loha, effective": (
        Convolutions,
        peft.LoHaConfig(r=2, alpha=5, target_modules=["one", "two"], use_effective_conv2d=True),
        2,
    ),
    "lokr": (vit, peft.LoKrConfig(r=2, alpha=5, target_modules=QUERIES), 2),
    "lokr, both": (vit, peft.LoKrConfig(r=1, alpha=5, target_modules=QUERIES, decompose_both=True), 1),
    "lokr, whole": (vit, peft.LoKrConfig(r=64, alpha=32, target_modules=QUERIES), None),
    "lokr, convolutions": (Convolutions, peft.LoKrConfig(r=1, alpha=5, target_modules=["one", "two", "linear"]), 1),
    "lokr, effective": (
        Convolutions,
        peft.LoKrConfig(r=1, alpha=5, target_modules=["one"], use_effective_conv2d=True),
        1,
    ),
    "ia3": (vit, peft.IA3Config(target_modules=["q_proj", "fc1"], feedforward_modules=["fc1"]), None),
    "ia3, conv1d": (
        gpt,
        peft.IA3Config(
            target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
        ),
        None,
    ),
    "ia3, convolutions": (
        Convolutions,
        peft.IA3Config(target_modules=["one", "two", "linear"], feedforward_modules=["two"]),
        None,
    ),
    "vera": (vit, peft.VeraConfig(r=8, target_modules=QUERIES), 8),
    "vera, several shapes": (vit, peft.VeraConfig(r=8, target_modules=["fc1", "fc2", "q_proj"]), 8),
    "vera, conv1d": (gpt, peft.VeraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True), 8),
}


@pytest.mark.parametrize("case", KINDS)
def test_other_kinds_on_their_base_are_what_peft_merges(case: str, tmp_path: Path) -> None:
    make, config, rank = KINDS[case]
    expected = write(tmp_path, make(), config)
    opened = check(tmp_path, expected)
    assert rank is None or ranks_of(opened) == (rank,)
    if not case.startswith("ia3"):
        before = load_file(tmp_path / "base" / "model.safetensors")
        for name in opened.update_of:
            assert torch.allclose(opened.added(name), expected[name] - before[name], atol=1e-5)
    # Without its configuration it is known by the names of its tensors; its scale is then taken as 1.
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    again = open_checkpoint("m", tmp_path / "adapter", tmp_path / "base")
    assert again.update_of == opened.update_of
    for name in opened.update_of if not case.startswith("ia3") else ():
        scale = next(iter(opened.adapter.updates.values())).scale if case != "loha, patterns" else None
        assert scale is None or torch.allclose(opened.added(name), scale * again.added(name), atol=1e-5)


@pytest.mark.parametrize("case", [case for case in KINDS if not case.startswith("ia3")])
def test_other_kinds_alone_are_what_they_add(case: str, tmp_path: Path) -> None:
    make, config, _ = KINDS[case]
    write(tmp_path, make(), config)
    alone = open_adapter(Source("a", str(tmp_path / "adapter")))
    on_it = open_checkpoint("m", tmp_path / "adapter", tmp_path / "base")
    assert len(alone.tensors) == len(on_it.update_of)
    for name in alone.tensors:
        found = alone.read_tensor(name)
        assert tuple(found.shape) == alone.tensors[name][1].shape and float(found.norm()) > 0
    if case == "vera, several shapes":  # all inputs of the projection, as nobody says how many there are
        assert {alone.tensors[name][1].shape[1] for name in alone.tensors} == {32}


def test_factors_are_nothing_without_their_base(tmp_path: Path) -> None:
    write(tmp_path, vit(), KINDS["ia3"][1])
    alone = open_adapter(Source("a", str(tmp_path / "adapter")))
    assert alone.tensors
    for read in (alone.read_tensor, alone.added):
        with pytest.raises(CheckpointError, match="nothing without its base"):
            read(next(iter(alone.tensors)))


def test_a_vera_without_its_projections_says_what_to_do(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Specified to not save"):
        config = peft.VeraConfig(r=8, target_modules=QUERIES, save_projection=False)
    write(tmp_path, vit(), config)
    with pytest.raises(CheckpointError, match="without its projections.*save_projection=True"):
        open_checkpoint("m", tmp_path / "adapter", tmp_path / "base")


REFUSED = {
    "oft": ({"m.oft_R.weight": (2, 4)}, "adapter of type OFT, not LoRA"),
    "fourier": ({"base_model.model.m.fourierft_spectrum": (9,)}, "FourierFT"),
    "prompts": ({"prompt_embeddings": (2, 4)}, "prompts"),
    "adalora": ({f"m.lora_{end}": shape for end, shape in (("E", (2, 1)),)}, "AdaLoRA"),
    "dora of lycoris": (
        {
            "lora_unet_m.lora_down.weight": (2, 4),
            "lora_unet_m.lora_up.weight": (4, 2),
            "lora_unet_m.dora_scale": (4, 1),
        },
        "DoRA as LyCORIS",
    ),
    "half a hadamard product": ({"m.hada_w1_a": (4, 2), "m.hada_w1_b": (2, 4), "m.hada_w2_a": (4, 2)}, "do not fit"),
    "hadamard of other ranks": (
        {"m.hada_w1_a": (4, 2), "m.hada_w1_b": (3, 4), "m.hada_w2_a": (4, 2), "m.hada_w2_b": (2, 4)},
        "do not fit",
    ),
    "one core": (
        {
            "m.hada_w1_a": (2, 4),
            "m.hada_w1_b": (2, 4),
            "m.hada_w2_a": (4, 2),
            "m.hada_w2_b": (2, 4),
            "m.hada_t1": (2, 2, 3, 3),
        },
        "do not fit",
    ),
    "half a kronecker product": ({"m.lokr_w1": (2, 2), "m.lokr_w2_a": (2, 2)}, "do not fit"),
    "a flat kronecker factor": ({"m.lokr_w1": (2,), "m.lokr_w2": (2, 2)}, "do not fit"),
    "factors of both sides": ({"m.ia3_l": (2, 2)}, "do not fit"),
    "a long lambda": (
        {"base_model.vera_A": (2, 4), "base_model.vera_B": (4, 2), "m.vera_lambda_b": (5,), "m.vera_lambda_d": (2,)},
        "do not fit",
    ),
    "two alphas": (
        {"m.lora_down.weight": (2, 4), "m.lora_up.weight": (4, 2), "m.alpha": (2,)},
        "alpha that is no number",
    ),
    "two kinds": (
        {"m.lora_A.weight": (2, 4), "m.lora_B.weight": (4, 2), "m.ia3_l": (4, 1)},
        "two adapters",
    ),
    "an endless kronecker product": ({"m.lokr_w1": (1 << 12, 1 << 8), "m.lokr_w2": (1 << 8, 1 << 8)}, "entries"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_computed_is_said(kind: str, tmp_path: Path) -> None:
    shapes, words = REFUSED[kind]
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint("victim", tmp_path / "one.safetensors")
    assert "model victim" in str(error.value)


def unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def factors(base: nn.Module, ends: tuple[str, ...], rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) for the weights of a model whose names end so."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, weight in base.state_dict().items():
        if name.endswith(tuple(f"{end}.weight" for end in ends)):
            first = torch.randn(rank, *weight.shape[1:], generator=generator)
            second = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator)
            found[name.removesuffix(".weight")] = (0.1 * first, 0.1 * second)
    return found


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def kohya(updates: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As kohya's scripts name them, with an alpha each."""
    found = {}
    for module, (first, second) in updates.items():
        name = f"lora_unet_{module.replace('.', '_')}"
        found |= {
            f"{name}.lora_down.weight": first,
            f"{name}.lora_up.weight": second,
            f"{name}.alpha": torch.tensor(3.0),
        }
    return found


def diffusers_old(updates: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As early diffusers named those of attention processors."""
    found = {}
    for module, (first, second) in updates.items():
        block, _, kind = module.removesuffix(".0").rpartition(".")
        found |= {
            f"{block}.processor.{kind}_lora.down.weight": first,
            f"{block}.processor.{kind}_lora.up.weight": second,
        }
    return found


def diffusers_peft(updates: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As diffusers names them now."""
    parts = {"A": 0, "B": 1}
    return {
        f"unet.{module}.lora_{part}.weight": both[at] for module, both in updates.items() for part, at in parts.items()
    }


def diffusers_linear(updates: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As diffusers named them between."""
    parts = {"down": 0, "up": 1}
    return {
        f"unet.{module}.lora_linear_layer.{part}.weight": both[at]
        for module, both in updates.items()
        for part, at in parts.items()
    }


SPELLINGS = {"kohya": kohya, "early": diffusers_old, "diffusers": diffusers_peft, "linear": diffusers_linear}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_of_diffusers_and_kohya(spelling: str, tmp_path: Path) -> None:
    """The reference is what diffusers' own loader merges, where it still reads the spelling."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    base = unet()
    base.save_pretrained(tmp_path / "pipe" / "unet")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    more = ("conv1", "proj_in") if spelling == "kohya" else ()
    updates = factors(base, ATTENTION + more, 2)
    stored = SPELLINGS[spelling](updates)
    save_file(stored, tmp_path / "one.safetensors")
    opened = open_checkpoint("m", tmp_path / "one.safetensors", tmp_path / "pipe" / "unet")
    assert isinstance(opened, AdaptedCheckpoint)
    scale = 3.0 / 2 if spelling == "kohya" else 1.0
    assert set(opened.update_of) == {f"{module}.weight" for module in updates}
    if spelling in ("kohya", "diffusers"):
        alphas = None
        if spelling == "kohya":
            stored, alphas = _convert_non_diffusers_lora_to_diffusers(dict(stored))
        base.load_lora_adapter(dict(stored), prefix="unet", network_alphas=alphas)
        base.fuse_lora()
        merged = {name.replace(".base_layer.", "."): tensor for name, tensor in base.state_dict().items()}
        for name in before:
            assert torch.allclose(opened.read_tensor(name), merged[name], atol=1e-5), name
    for module, (first, second) in updates.items():
        delta = scale * (second.flatten(1) @ first.flatten(1)).reshape(before[f"{module}.weight"].shape)
        assert torch.allclose(opened.added(f"{module}.weight"), delta, atol=1e-6)
    alone = open_adapter(Source("a", str(tmp_path / "one.safetensors")))
    prefix = "unet." if spelling != "early" else ""
    assert set(alone.tensors) == {f"{prefix}{module}.weight" for module in updates}
    assert set(alone.layers) == {layer for layer in opened.layers if opened.layers[layer] in opened.update_of}


def test_scales_in_the_header_of_diffusers(tmp_path: Path) -> None:
    base = unet()
    updates = factors(base, ATTENTION, 2)
    said = {"unet.r": 2, "unet.lora_alpha": 5, "unet.alpha_pattern": {"to_k": 8}, "text_encoder.r": 4}
    save_file(
        diffusers_peft(updates), tmp_path / "one.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)}
    )
    alone = open_adapter(Source("a", str(tmp_path / "one.safetensors")))
    scales = {module: update.scale for module, update in alone.adapter.updates.items()}
    assert {scale for module, scale in scales.items() if module.endswith("to_k")} == {4.0}
    assert {scale for module, scale in scales.items() if not module.endswith("to_k")} == {2.5}
    for odd in ("{", "[]", '{"unet.r": "x"}'):
        save_file(diffusers_peft(updates), tmp_path / "two.safetensors", metadata={"lora_adapter_metadata": odd})
        try:
            assert open_adapter(Source("a", str(tmp_path / "two.safetensors"))).tensors
        except CheckpointError as error:
            assert odd.startswith('{"unet') and "damaged" in str(error)  # noqa: PT017


def test_updates_of_a_text_encoder_are_left_aside_on_an_unet(tmp_path: Path) -> None:
    base = unet()
    base.save_pretrained(tmp_path / "unet")
    updates = factors(base, ATTENTION, 2)
    text = {
        f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.{part}": tensor
        for part, tensor in (
            ("lora_down.weight", torch.ones(2, 6)),
            ("lora_up.weight", torch.ones(6, 2)),
            ("alpha", torch.tensor(1)),  # a whole number
        )
    }
    save_file(kohya(updates) | text, tmp_path / "one.safetensors")
    opened = open_checkpoint("m", tmp_path / "one.safetensors", tmp_path / "unet")
    assert len(opened.update_of) == len(updates) and opened.aside == ("1 updates of other parts of a pipeline",)
    alone = open_adapter(Source("a", str(tmp_path / "one.safetensors")))
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(alone.added(name), torch.ones(6, 6))  # 1 / 2 of ones times ones
    encoder = {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(6, 6)}
    save_file(encoder, tmp_path / "text.safetensors")
    on_text = open_checkpoint("m", tmp_path / "one.safetensors", tmp_path / "text.safetensors")
    assert torch.allclose(on_text.read_tensor(next(iter(encoder))), torch.ones(6, 6))


def test_a_core_between_the_factors(tmp_path: Path) -> None:
    """By hand: the convolution that `down` (1 x 1), `mid` (3 x 3) and `up` (1 x 1) are one after another."""
    torch.manual_seed(0)
    down, mid, up = torch.randn(2, 5, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(7, 2, 1, 1)
    tensors = {
        "c.lora_down.weight": down,
        "c.lora_mid.weight": mid,
        "c.lora_up.weight": up,
        "c.alpha": torch.tensor(4.0),
    }
    save_file(tensors, tmp_path / "one.safetensors")
    opened = open_checkpoint("m", tmp_path / "one.safetensors")
    weight = opened.read_tensor("c.weight")
    image = torch.randn(1, 5, 6, 6)
    through = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(image, down), mid), up)
    assert torch.allclose(nn.functional.conv2d(image, weight), 2 * through, atol=1e-4)


@pytest.mark.parametrize("names", ["{}.lora_A.default.weight", "base_model.model.{}.lora_A.weight", "{}.lora_A"])
def test_wrappers_of_names(names: str, tmp_path: Path) -> None:
    expected = write(tmp_path, vit(), peft.LoraConfig(r=3, lora_alpha=3, target_modules=QUERIES))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    renamed = {}
    for name, tensor in stored.items():
        module, part = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        renamed[names.format(module).replace("lora_A", part)] = tensor
    (tmp_path / "bare").mkdir()
    save_file(renamed, tmp_path / "bare" / "whatever.safetensors")
    check(tmp_path, expected, "bare")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(renamed, tmp_path / "adapter" / "adapter_model.bin")
    check(tmp_path, expected)


def test_what_is_an_adapter() -> None:
    parts = ["m.lora_A.weight", "m.lora_B.weight"]
    assert is_adapter(parts) and is_adapter([*parts, "head.weight", "m.alpha"])
    assert not is_adapter([*parts, "m.weight"])  # a model that still has its adapter
    assert not is_adapter([*parts, "m.base_layer.weight"])
    assert not is_adapter([*parts, *(f"layer{k}.weight" for k in range(9))])
    assert not is_adapter(["snake.alpha", "snake.weight"]) and part_of("m.weight") is None
    assert dotted("down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0") == (
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0"
    )
    assert dotted("text_model_encoder_layers_3_mlp_fc1") == "text_model.encoder.layers.3.mlp.fc1"


def test_an_adapter_by_its_names_needs_the_right_base(tmp_path: Path) -> None:
    write(tmp_path, vit(), peft.LoraConfig(r=3, lora_alpha=3, target_modules=QUERIES))
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    gpt().save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is missing in its base"):
        open_checkpoint("m", tmp_path / "adapter", tmp_path / "other")

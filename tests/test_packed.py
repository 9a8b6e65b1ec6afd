"""Packed weights: what the libraries that wrote them give back, exactly; by hand where a library needs a GPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_model
from hub_server import HubServer, use
from safetensors.torch import save_file

from mother.errors import CheckpointError
from mother.evidence.sketch import take
from mother.io import layouts
from mother.io.open import open_checkpoint

NAME = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


def save(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A model with one packed weight beside plain ones."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {f"{NAME}.{end}": value.contiguous() for end, value in tensors.items()}
    save_file(
        whole | {"model.norm.weight": torch.ones(4), f"{NAME}.bias": torch.zeros(2)}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return folder


def check(folder: Path, expected: torch.Tensor, storage: str, tolerance: float = 0) -> None:
    """The weight is there under its name, and nothing else of its parts is."""
    checkpoint = open_checkpoint("m", folder)
    assert checkpoint.tensors.keys() == {f"{NAME}.weight", f"{NAME}.bias", "model.norm.weight"}
    found = checkpoint.read_tensor(f"{NAME}.weight")
    assert found.shape == expected.shape == checkpoint.tensors[f"{NAME}.weight"][1].shape
    assert torch.allclose(found, expected.float(), rtol=tolerance, atol=0)
    assert {name: str(one) for name, one in checkpoint.storage.items()} == {f"{NAME}.weight": storage}
    into = {name: torch.full(info.shape, 7.0) for name, (_, info) in checkpoint.tensors.items()}
    read = checkpoint.read_tensors(list(into), into)
    assert torch.equal(into[f"{NAME}.weight"], found) and read[f"{NAME}.weight"] is into[f"{NAME}.weight"]
    assert torch.equal(read["model.norm.weight"], torch.ones(4)) and checkpoint.fingerprint() and checkpoint.files()


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("kind", "block"), [("nf4", 64), ("fp4", 64), ("nf4", 128)])
def test_bitsandbytes_4_bit(kind: str, block: int, double: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes: pip install bitsandbytes")
    stored, state = functional.quantize_4bit(
        weight(48, 128), blocksize=block, compress_statistics=double, quant_type=kind
    )
    tensors = {"weight": stored} | {f"weight.{end}": value for end, value in state.as_dict(packed=True).items()}
    said = ", ".join(
        part for part in (kind, f"group {block}" if block != 64 else "", "double" if double else "") if part
    )
    check(save(tmp_path, tensors), functional.dequantize_4bit(stored, state), said, 1e-6)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32])
def test_bitsandbytes_bytes_in_another_type(kept: torch.dtype, tmp_path: Path) -> None:
    """As models are trained in shards (bnb_4bit_quant_storage): many of these bytes are NaN as floats."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes: pip install bitsandbytes")
    stored, state = functional.quantize_4bit(weight(48, 128), quant_type="nf4", quant_storage=kept)
    assert stored.dtype == kept
    tensors = {"weight": stored} | {f"weight.{end}": value for end, value in state.as_dict(packed=True).items()}
    check(save(tmp_path, tensors), functional.dequantize_4bit(stored, state), "nf4", 1e-6)


def test_bitsandbytes_blocks_across_rows(tmp_path: Path) -> None:
    """Its own code for CPUs wants whole blocks in a row, so that what was quantized is the measure here."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes: pip install bitsandbytes")
    original = weight(48, 96)
    stored, state = functional.quantize_4bit(original, blocksize=64, compress_statistics=True, quant_type="nf4")
    tensors = {"weight": stored} | {f"weight.{end}": value for end, value in state.as_dict(packed=True).items()}
    found = open_checkpoint("m", save(tmp_path, tensors)).read_tensor(f"{NAME}.weight")
    assert (found - original).norm() < 0.1 * original.norm()


def test_bitsandbytes_int8(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes: pip install bitsandbytes")
    stored, scales, _ = functional.int8_vectorwise_quant(weight(6, 40).half())
    tensors = {"weight": stored, "SCB": scales.float(), "weight_format": torch.tensor(0, dtype=torch.uint8)}
    folder = save(tmp_path, tensors, quantization_config={"quant_method": "bitsandbytes"})
    check(folder, functional.int8_vectorwise_dequant(stored, scales.float()), "bnb int8 8 bit, a scale each row", 1e-6)


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (4, 64), (4, 128), (5, 32), (6, 64), (8, 32)])
def test_mlx(bits: int, group: int, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs MLX: pip install mlx mlx-cpu")
    parts = mx.quantize(mx.array(weight(6, 256).numpy()), group_size=group, bits=bits)
    expected = torch.from_numpy(np.array(mx.dequantize(*parts, group_size=group, bits=bits)))
    tensors = {end: torch.from_numpy(np.array(part)) for end, part in zip(("weight", "scales", "biases"), parts)}
    folder = save(tmp_path, tensors, quantization={"group_size": group, "bits": bits})
    check(folder, expected, f"mlx {bits} bit, group {group}", 1e-6)
    folder = save(tmp_path / "own", tensors, quantization={"group_size": 99, NAME: {"group_size": group, "bits": bits}})
    check(folder, expected, f"mlx {bits} bit, group {group}", 1e-6)
    with pytest.raises(CheckpointError, match="config.json gives no group_size"):
        open_checkpoint("m", save(tmp_path / "bare", tensors))


@pytest.mark.parametrize(
    ("mode", "bits", "group", "storage"),
    [
        ("mxfp4", 4, 32, "mxfp4 4 bit, group 32"),
        ("nvfp4", 4, 16, "nvfp4 4 bit, group 16"),
        ("mxfp8", 8, 32, "fp8 8 bit, group 32"),
    ],
)
def test_floats_of_mlx(mode: str, bits: int, group: int, storage: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs MLX: pip install mlx mlx-cpu")
    parts = mx.quantize(mx.array(weight(6, 256).numpy()), group_size=group, bits=bits, mode=mode)
    plain = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode).astype(mx.float32)
    expected = torch.from_numpy(np.array(plain))
    tensors = {end: torch.from_numpy(np.array(part)) for end, part in zip(("weight", "scales"), parts)}
    config = {"group_size": group, "bits": bits}
    check(save(tmp_path / "a", tensors, quantization=config | {"mode": mode}), expected, storage, 1e-6)
    with pytest.raises(CheckpointError, match="do not fit"):  # affine, without what is added
        open_checkpoint("m", save(tmp_path / "b", tensors, quantization=config))


def packing() -> Any:
    return pytest.importorskip(
        "compressed_tensors.compressors", reason="needs compressed-tensors: pip install compressed-tensors"
    )


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_integers(bits: int, symmetric: bool, tmp_path: Path) -> None:
    library, generator = packing(), torch.Generator().manual_seed(bits)
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    values = torch.randint(low, high, (10, 96), generator=generator).to(torch.int8)
    zeros = torch.randint(low, high, (10, 3), generator=generator).to(torch.int8)
    scales = torch.rand(10, 3, generator=generator) + 0.1
    tensors = {"weight_packed": library.pack_to_int32(values, bits), "weight_scale": scales}
    tensors |= {"weight_shape": torch.tensor([10, 96])}
    if not symmetric:
        tensors["weight_zero_point"] = library.pack_to_int32(zeros, bits, packed_dim=0)
    group = torch.arange(96) // 32
    shift = 0 if symmetric else zeros.float()[:, group]
    check(
        save(tmp_path, tensors), (values.float() - shift) * scales[:, group], f"compressed-tensors {bits} bit, group 32"
    )
    order = torch.randperm(96, generator=generator)
    tensors["weight_g_idx"] = group[order].int()
    shift = 0 if symmetric else zeros.float()[:, group[order]]
    expected = (values.float() - shift) * scales[:, group[order]]
    check(save(tmp_path / "ordered", tensors), expected, f"compressed-tensors {bits} bit, group 32")


def test_compressed_tensors_fp4(tmp_path: Path) -> None:
    library = packing()
    scales = (torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) + 0.5).to(torch.float8_e4m3fn)
    codes = torch.from_numpy(layouts.FP4)[torch.randint(0, 16, (6, 64), generator=torch.Generator().manual_seed(1))]
    packed = library.pack_fp4_to_uint8(codes)
    tensors = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": torch.tensor([448.0])}
    expected = codes * (scales.float() / 448).repeat_interleave(16, 1)
    check(save(tmp_path / "ct", tensors), expected, "nvfp4 4 bit, group 16", 1e-6)
    tensors = {"weight": packed, "weight_scale": scales, "weight_scale_2": torch.tensor(0.01)}
    expected = codes * (scales.float() * 0.01).repeat_interleave(16, 1)
    check(save(tmp_path / "modelopt", tensors), expected, "nvfp4 4 bit, group 16", 1e-6)
    powers = torch.randint(120, 130, (6, 2), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    expected = codes * 2.0 ** (powers.float() - 127).repeat_interleave(32, 1)
    check(save(tmp_path / "mx", {"weight_packed": packed, "weight_scale": powers}), expected, "mxfp4 4 bit, group 32")


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks, scales = rng.integers(0, 256, (2, 6, 3, 16)), rng.integers(120, 130, (2, 6, 3))
    tensors = {
        "experts.up_blocks": torch.from_numpy(blocks).byte(),
        "experts.up_scales": torch.from_numpy(scales).byte(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    expected = torch.zeros(2, 96, 6)
    for expert, row, group, at in np.ndindex(blocks.shape):
        for half, code in enumerate((blocks[expert, row, group, at] & 15, blocks[expert, row, group, at] >> 4)):
            value = float(layouts.FP4[code]) * 2.0 ** (int(scales[expert, row, group]) - 127)
            expected[expert, 32 * group + 2 * at + half, row] = value
    checkpoint = open_checkpoint("m", tmp_path)
    assert list(checkpoint.tensors) == ["experts.up"]
    assert torch.equal(checkpoint.read_tensor("experts.up"), expected)
    assert str(checkpoint.storage["experts.up"]) == "mxfp4 4 bit, group 32"


def words(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers as words of 32 bits along the first axis, low bits first: one bit after the other."""
    found = np.zeros((values.shape[0] * bits // 32, values.shape[1]), dtype=np.uint32)
    for row in range(values.shape[0]):
        for bit in range(bits):
            at = row * bits + bit
            found[at // 32] |= ((values[row] >> bit) & 1).astype(np.uint32) << np.uint32(at % 32)
    return found


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptq(bits: int, form: str, tmp_path: Path) -> None:
    rng, group = np.random.default_rng(bits), 32
    q, zeros = rng.integers(0, 1 << bits, (96, 32)), rng.integers(1, 1 << bits, (3, 32))
    scales = torch.rand(3, 32, generator=torch.Generator().manual_seed(0)).half()
    stored = zeros - (form == "gptq")
    tensors = {"qweight": torch.from_numpy(words(q, bits).view(np.int32)), "scales": scales}
    tensors |= {"qzeros": torch.from_numpy(np.ascontiguousarray(words(stored.T, bits).T).view(np.int32))}
    index = torch.arange(96) // group
    config = {"quantization_config": {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}}
    for name, ordered in (("plain", index), ("act_order", index[torch.randperm(96)]), ("no_index", index)):
        parts = tensors | ({"g_idx": ordered.int()} if name != "no_index" else {})
        if name == "no_index" and bits == 4:
            continue  # 32 outputs: the shapes do not tell it from AWQ, tried below
        whole = torch.from_numpy(q.T) - torch.from_numpy(zeros.T)[:, ordered]
        expected = whole.float() * scales.float().T[:, ordered]
        check(save(tmp_path / name, parts, **config), expected, f"gptq {bits} bit, group 32")


def test_gptq_by_hand(tmp_path: Path) -> None:
    """Eight inputs, eight outputs: codes 0 to 7, zero 7 stored as 6, scale a half."""
    codes = torch.full((1, 8), 0x76543210, dtype=torch.int32)
    tensors = {"qweight": codes, "qzeros": torch.full((1, 1), 0x66666666, dtype=torch.int32)}
    tensors |= {"scales": torch.full((1, 8), 0.5).half(), "g_idx": torch.zeros(8, dtype=torch.int32)}
    expected = torch.tensor([-3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0]).repeat(8, 1)
    check(save(tmp_path, tensors), expected, "gptq 4 bit, group 8")


def test_gptq_in_the_order_of_activations_by_hand(tmp_path: Path) -> None:
    """256 inputs, codes 0 to 7 over and over. The even ones are of group 0: (q - 7) / 2. The odd ones: (q - 1) 2."""
    tensors = {"qweight": torch.full((32, 8), 0x76543210, dtype=torch.int32), "g_idx": torch.arange(256).int() % 2}
    tensors |= {"qzeros": torch.tensor([[0x66666666], [0]]).int(), "scales": torch.ones(2, 8).half()}
    tensors["scales"] *= torch.tensor([[0.5], [2]])
    expected = torch.tensor([-3.5, 0, -2.5, 4, -1.5, 8, -0.5, 12]).repeat(8, 32)
    check(save(tmp_path, tensors), expected, "gptq 4 bit, group 128")


def test_awq(tmp_path: Path) -> None:
    """By hand: nibbles 0 to 7 of a word hold outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    tensors = {"qweight": torch.full((1, 1), 0x76543210, dtype=torch.int32).repeat(4, 1)}
    tensors |= {"qzeros": torch.full((2, 1), 0x11111111, dtype=torch.int32), "scales": torch.ones(2, 8).half()}
    tensors["scales"][1] = 2
    columns = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7.0])  # the code of output 0, 1, ...
    expected = torch.stack([columns - 1, columns - 1, 2 * columns - 2, 2 * columns - 2], 1)
    check(save(tmp_path / "hand", tensors), expected, "awq 4 bit, group 2")
    # And a random one, packed one number after the other.
    rng = np.random.default_rng(0)
    q, zeros = rng.integers(0, 16, (64, 24)), rng.integers(0, 16, (2, 24))
    scales = torch.rand(2, 24, generator=torch.Generator().manual_seed(0)).half()

    def packed(values: np.ndarray) -> torch.Tensor:
        found = np.zeros((len(values), values.shape[1] // 8), dtype=np.uint32)
        for column in range(found.shape[1]):
            for nibble, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                found[:, column] |= values[:, 8 * column + output].astype(np.uint32) << np.uint32(4 * nibble)
        return torch.from_numpy(found.view(np.int32))

    group = np.arange(64) // 32
    expected = torch.from_numpy((q - zeros[group]).T).float() * scales.float()[group].T
    tensors = {"qweight": packed(q), "qzeros": packed(zeros), "scales": scales}
    check(save(tmp_path / "random", tensors), expected, "awq 4 bit, group 32")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8(dtype: torch.dtype, tmp_path: Path) -> None:
    values = weight(300, 200).to(dtype)
    each, rows, blocks = torch.tensor(0.25), torch.rand(300, 1) + 0.1, torch.rand(3, 2) + 0.1
    check(save(tmp_path / "cast", {"weight": values}), values.float(), f"fp8 {str(dtype)[13:17]}")
    scales = {"weight_scale": each, "input_scale": each.clone()}
    check(save(tmp_path / "all", {"weight": values, **scales}), values.float() * each, "fp8 8 bit")
    folder = save(tmp_path / "rows", {"weight": values, "weight_scale": rows})
    check(folder, values.float() * rows, "fp8 8 bit, a scale each row")
    folder = save(tmp_path / "blocks", {"weight": values, "weight_scale_inv": blocks})
    spread = blocks.repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :200]
    check(folder, values.float() * spread, "fp8 8 bit, blocks 128 x 128")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [100, 100]}}
    folder = save(tmp_path / "own", {"weight": values, "weight_scale_inv": blocks}, **config)
    spread = blocks.repeat_interleave(100, 0).repeat_interleave(100, 1)
    check(folder, values.float() * spread, "fp8 8 bit, blocks 100 x 100")
    before = open_checkpoint("m", folder).fingerprint()
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [140, 100]}}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint("m", folder).fingerprint() != before


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_scales_of_groups_and_of_blocks_of_other_sizes(dtype: torch.dtype, tmp_path: Path) -> None:
    """compressed-tensors, strategies "group" and "block"."""
    values, scales = (20 * weight(64, 192)).to(dtype), torch.rand(64, 6) + 0.1
    name = "fp8" if dtype.is_floating_point else "int8"
    zeros = torch.randint(-9, 9, (64, 6), dtype=torch.int8)
    folder = save(tmp_path / "groups", {"weight": values, "weight_scale": scales})
    each = scales.repeat_interleave(32, 1)
    check(folder, values.float() * each, f"{name} 8 bit, group 32")
    folder = save(tmp_path / "zeros", {"weight": values, "weight_scale": scales, "weight_zero_point": zeros})
    check(folder, (values.float() - zeros.repeat_interleave(32, 1)) * each, f"{name} 8 bit, group 32", 1e-6)
    said = {"weights": {"num_bits": 8, "strategy": "block", "block_structure": [32, 48]}}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": said}}}
    blocks = torch.rand(2, 4) + 0.1
    folder = save(tmp_path / "blocks", {"weight": values, "weight_scale": blocks}, **config)
    each = blocks.repeat_interleave(32, 0).repeat_interleave(48, 1)
    check(folder, values.float() * each, f"{name} 8 bit, blocks 32 x 48")


@pytest.mark.parametrize("end", ["scale", "scale_inv"])
def test_experts_in_fp8_in_one_tensor(end: str, tmp_path: Path) -> None:
    """Of each expert a scale of all, of rows, or of blocks; they are no weights of modules."""
    values = torch.randn(2, 160, 256).to(torch.float8_e4m3fn)
    for count in ((2, 1, 1), (2, 160, 1), (2, 2, 2)):
        scales = torch.rand(count) + 0.1
        each = scales.repeat_interleave(128, 1)[:, :160] if count[1] == 2 else scales
        each = each.repeat_interleave(128, 2) if count[2] == 2 else each
        name = "model.layers.0.mlp.experts.gate_up_proj"
        save_file({name: values, f"{name}_{end}": scales}, tmp_path / "model.safetensors")
        opened = open_checkpoint("m", tmp_path)
        assert list(opened.tensors) == [name] and "fp8 8 bit" in str(opened.storage[name])
        assert torch.equal(opened.read_tensor(name), values.float() * each)


@pytest.mark.parametrize("where", ["", "model.diffusion_model."])
def test_fp8_of_comfyui(where: str, tmp_path: Path) -> None:
    """Bytes by hand: a sign, four bits of exponent with the bias 7, three of mantissa; all times `scale_weight`."""
    codes = [[0x38, 0x40, 0xB8, 0x30], [0x3C, 0x00, 0x7E, 0x01]]
    values = torch.tensor([[1, 2, -1, 0.5], [1.5, 0, 448, 2.0**-9]])
    stored = {
        "weight": torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "scale_weight": torch.tensor(0.25),
        "scale_input": torch.tensor([1.0]),
        "comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
    }
    whole = {f"{where}{NAME}.{end}": value for end, value in stored.items()}
    whole[f"{where}scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save_file(whole | {f"{where}norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint("m", tmp_path / "model.safetensors")
    assert checkpoint.tensors.keys() == {f"{where}{NAME}.weight", f"{where}norm.weight"}
    assert torch.equal(checkpoint.read_tensor(f"{where}{NAME}.weight"), 0.25 * values)
    assert [str(one) for one in checkpoint.storage.values()] == ["fp8 8 bit"]


def test_fp4_of_comfyui_is_named(tmp_path: Path) -> None:
    packed = {"weight": torch.zeros(4, 8, dtype=torch.uint8), "comfy_quant": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match="packed as FP4 of ComfyUI, which is not read.*Give the model"):
        open_checkpoint("m", save(tmp_path, packed | {"weight_scale": torch.zeros(4, 1).to(torch.float8_e4m3fn)}))
    (tmp_path / "model.safetensors").unlink()
    alone = {"comfy_quant": packed["weight"], "scale_weight": torch.ones(3)}  # of a weight that is gone
    assert f"{NAME}.scale_weight" in open_checkpoint("m", save(tmp_path, alone)).tensors


def test_int8_with_scales(tmp_path: Path) -> None:
    values, scales = torch.arange(-20, 20).reshape(4, 10).to(torch.int8), torch.rand(4, 1) + 0.1
    check(save(tmp_path, {"weight": values, "weight_scale": scales}), values * scales, "int8 8 bit, a scale each row")


def test_parts_in_several_shards(tmp_path: Path) -> None:
    values, scales = weight(4, 8).to(torch.float8_e4m3fn), torch.rand(4, 1)
    save_file({f"{NAME}.weight": values}, tmp_path / "a.safetensors")
    save_file({f"{NAME}.weight_scale": scales}, tmp_path / "b.safetensors")
    index = {f"{NAME}.weight": "a.safetensors", f"{NAME}.weight_scale": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    checkpoint = open_checkpoint("m", tmp_path)
    assert torch.equal(checkpoint.read_tensor(f"{NAME}.weight"), values.float() * scales)
    assert len(checkpoint.files()) == 3


def test_an_adapter_of_a_packed_base(tmp_path: Path) -> None:
    values, scales = weight(4, 8).to(torch.float8_e4m3fn), torch.rand(4, 1)
    save(tmp_path / "base", {"weight": values, "weight_scale": scales})
    first, second = weight(2, 8), weight(4, 2)
    stem = f"base_model.model.{NAME}"
    (tmp_path / "adapter").mkdir()
    parts = {f"{stem}.lora_A.weight": first, f"{stem}.lora_B.weight": second}
    save_file(parts, tmp_path / "adapter" / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(content))
    found = open_checkpoint("m", tmp_path / "adapter", tmp_path / "base").read_tensor(f"{NAME}.weight")
    assert torch.allclose(found, values.float() * scales + 2 * second @ first, atol=1e-5)


@pytest.mark.parametrize("method", ["torchao", "EXL2", "HQQ"])
@pytest.mark.parametrize("end", ["weight_other", "q_weight", "W_q"])
def test_layouts_that_are_not_read_are_named(method: str, end: str, tmp_path: Path) -> None:
    """By what the configuration says, and by the names of tensors; once where both say the same."""
    tensors = {end: torch.zeros(4, 4, dtype=torch.uint8)}
    folder = save(tmp_path, tensors, quantization_config={"quant_method": method.lower()})
    said = " and ".join(sorted({method} | {"q_weight": {"EXL2"}, "W_q": {"HQQ"}}.get(end, set())))
    with pytest.raises(CheckpointError, match=f"packed as {said}, which is not read.* Give the model"):
        open_checkpoint("m", folder)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "awq", "version": "gemv"},
        {"quant_method": "awq", "version": "GEMV_FAST"},
        {"quant_method": "gptq", "checkpoint_format": "marlin"},
    ],
)
def test_layouts_of_one_kernel_are_named(config: dict[str, str], tmp_path: Path) -> None:
    tensors = {"qweight": torch.zeros(64, 16, dtype=torch.int32), "scales": torch.zeros(64, 8)}
    folder = save(tmp_path, tensors | {"qzeros": torch.zeros(64, 1, dtype=torch.int32)}, quantization_config=config)
    with pytest.raises(CheckpointError, match=f"{config['quant_method']} in the layout .*, which is not read"):
        open_checkpoint("m", folder)


def test_integers_without_their_scales_are_told(tmp_path: Path) -> None:
    save_file(
        {"layers.0.q_proj.qweight": torch.zeros(8, 64, dtype=torch.int32), "norm.weight": torch.ones(64)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match="q_proj.qweight.*without the scales"):
        take(open_checkpoint("packed", tmp_path), tmp_path / "sketch.safetensors", "", 100)


def test_exl2_is_told_by_its_names(tmp_path: Path) -> None:
    tensors = {"q_weight": torch.zeros(4, 4, dtype=torch.int32), "q_scale": torch.zeros(2, 4, dtype=torch.int32)}
    with pytest.raises(CheckpointError, match="packed as EXL2"):
        open_checkpoint("m", save(tmp_path, tensors))


INT, BYTE = torch.int32, torch.uint8
STATE = {"quant_type": "nf4", "blocksize": 64, "shape": [4, 32]}


def bnb(state: object, absmax: int = 2) -> Tensors:
    said = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=BYTE)
    parts = {"weight": torch.zeros(64, 1, dtype=BYTE), "weight.absmax": torch.ones(absmax)}
    return parts | {"weight.quant_map": torch.ones(16), "weight.quant_state.bitsandbytes__nf4": said}


GPTQ = {"qweight": torch.zeros(4, 8, dtype=INT), "qzeros": torch.zeros(2, 1, dtype=INT), "scales": torch.ones(2, 8)}
PACKED = {"weight_packed": torch.zeros(4, 4, dtype=INT), "weight_scale": torch.ones(4, 1)}
FP8 = torch.zeros(300, 300).to(torch.float8_e4m3fn)
BROKEN: dict[str, Tensors] = {
    "gptq of no bits": GPTQ | {"qzeros": torch.zeros(2, 9, dtype=INT)},
    "gptq of other outputs": GPTQ | {"qweight": torch.zeros(4, 9, dtype=INT)},
    "gptq without groups": GPTQ | {"qzeros": torch.zeros(0, 1, dtype=INT), "scales": torch.ones(0, 8)},
    "gptq of floats": GPTQ | {"qweight": torch.zeros(4, 8)},
    "packed of a negative shape": PACKED | {"weight_shape": torch.tensor([4, -32])},
    "packed of a large shape": PACKED | {"weight_shape": torch.tensor([4, 1 << 62])},
    "packed of a shape that is none": PACKED | {"weight_shape": torch.tensor([4])},
    "packed of half a number": PACKED | {"weight_shape": torch.tensor([4, 32], dtype=INT)[:1]},
    "nf4 of a large shape": bnb(STATE | {"shape": [1 << 40, 1 << 20]}),
    "nf4 of a large block": bnb(STATE | {"blocksize": 1 << 60}, 1),
    "nf4 of no block": bnb(STATE | {"blocksize": 0}),
    "nf4 of a text": bnb(STATE | {"shape": "xx"}),
    "nf4 of a list": bnb([1]),
    "nf4 of too few scales": bnb(STATE, 1),
    "nested without its offset": bnb(STATE) | {"weight.nested_absmax": torch.ones(1)},
    "fp8 of other blocks": {
        "weight": torch.zeros(300, 300).to(torch.float8_e4m3fn),
        "weight_scale_inv": torch.ones(2, 2),
    },
    "fp8 of other rows": {"weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "weight_scale": torch.ones(3, 1)},
    "nvfp4 of other groups": {
        "weight_packed": torch.zeros(4, 8, dtype=BYTE),
        "weight_scale": torch.zeros(4, 3, dtype=BYTE),
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_parts_that_do_not_fit(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do not fit|is no object") as error:
        open_checkpoint("m", save(tmp_path, BROKEN[name]))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("index", [-1, 5, 1 << 30])
def test_groups_that_are_not_there(index: int, tmp_path: Path) -> None:
    folder = save(tmp_path, GPTQ | {"g_idx": torch.full((32,), index, dtype=INT)})
    with pytest.raises(CheckpointError, match=r"q_proj.weight \(gptq 4 bit, group 16\) cannot be unpacked: .*groups"):
        open_checkpoint("m", folder).read_tensor(f"{NAME}.weight")


def test_a_hostile_block_of_fp8_takes_no_memory(tmp_path: Path) -> None:
    values, config = weight(4, 8).to(torch.float8_e4m3fn), {"weight_block_size": [1 << 60, 4]}
    folder = save(tmp_path, {"weight": values, "weight_scale_inv": torch.ones(1, 2)}, quantization_config=config)
    assert torch.equal(open_checkpoint("m", folder).read_tensor(f"{NAME}.weight"), values.float())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        yield server


def test_from_the_hub_by_ranges(hub: HubServer) -> None:
    rng = np.random.default_rng(0)
    tensors: Tensors = {}
    for block in range(4):
        stem = f"model.layers.{block}.mlp.up_proj"
        tensors[f"{stem}.qweight"] = torch.from_numpy(rng.integers(0, 1 << 31, (256, 2048), dtype=np.int32))
        tensors[f"{stem}.qzeros"] = torch.from_numpy(rng.integers(0, 1 << 31, (16, 256), dtype=np.int32))
        tensors[f"{stem}.scales"] = torch.rand(16, 2048).half()
        tensors[f"{stem}.g_idx"] = (torch.arange(2048) // 128).int()
    save_model(hub.folder / "org" / "gptq", tensors)
    (hub.folder / "org" / "gptq" / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    local = open_checkpoint("m", hub.folder / "org" / "gptq")
    hub.requests.clear()
    checkpoint = open_checkpoint("m", "hf://org/gptq")
    wanted = ["model.layers.0.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"]
    for name, value in checkpoint.read_tensors(wanted).items():
        assert torch.equal(value, local.read_tensor(name))
    parts = [part for name in wanted for part in local.packed[name].parts.values()]
    needed = sum(tensors[part].nbytes for part in parts)
    sent = sum(request.bytes_sent for request in hub.requests if request.file.endswith(".safetensors"))
    assert needed <= sent <= 1.05 * needed

"""Packed and quantized weights -> float32: each layout a function of plain numpy, with a link to its definition.

Arrays come as they are stored; 8-bit floats as bytes. Results are (outputs, inputs) unless it is said.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

Arrays = Mapping[str, np.ndarray]

# Four bits as a float of two exponent bits and one mantissa bit (OCP Microscaling Formats 1.0, section 5.3.3).
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # the nibble of a word that holds column 0, 1, ...


def stream(words: np.ndarray, bits: int, count: int) -> Shaped[np.ndarray, "rows count"]:
    """Numbers of so many bits, low bits first, from words that follow one another along the last axis."""
    content = np.ascontiguousarray(words).view(np.uint8)
    if bits in (1, 2, 4, 8):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        found = (content[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return found.reshape(len(content), -1)[:, :count]
    ones = np.unpackbits(content, axis=-1, bitorder="little")[:, : count * bits]
    found = np.packbits(ones.reshape(len(content), -1, bits), axis=-1, bitorder="little")
    return found.reshape(len(content), -1)


def float8(stored: np.ndarray, dtype: str) -> Float[np.ndarray, "..."]:
    """Floats of 8 bits: torch's float8_e4m3fn, float8_e5m2 and float8_e8m0fnu."""
    import torch

    name = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}[dtype]
    return torch.from_numpy(stored.astype(np.uint8)).view(getattr(torch, name)).float().numpy()


def _by_group(q: np.ndarray, scales: np.ndarray, group: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """(q - zero) scale, (outputs, groups) of both, where `group` says which group each input is of."""
    if len(group) != q.shape[1] or (len(group) and not 0 <= group.min() <= group.max() < scales.shape[1]):
        raise ValueError("its inputs are of groups that are not there")
    return (q.astype(np.float32) - zeros[:, group]) * scales.astype(np.float32)[:, group]


def gptq(parts: Arrays, bits: int, inputs: int, plus: int) -> Float[np.ndarray, "outputs inputs"]:
    """w = (q - z) s of the group of its input. Words pack inputs; those of zeros pack outputs.

    https://github.com/AutoGPTQ/AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda.py. Format 1 stores zeros less 1:
    `plus`.
    """
    groups, outputs = parts["scales"].shape
    q = stream(parts["qweight"].T, bits, inputs)
    zeros = stream(parts["qzeros"], bits, outputs).T.astype(np.float32) + plus
    group = parts.get("g_idx", np.arange(inputs) // -(-inputs // groups))
    return _by_group(q, parts["scales"].T, group, zeros)


def awq(parts: Arrays) -> Float[np.ndarray, "outputs inputs"]:
    """w = (q - z) s of the group of its input, 4 bits. Words pack outputs in an order of their own.

    https://github.com/casper-hansen/AutoAWQ, awq/utils/packing_utils.py.
    """

    def columns(words: np.ndarray) -> np.ndarray:
        found = stream(words, 4, 8 * words.shape[1])
        return found.reshape(len(found), -1, 8)[:, :, AWQ_ORDER].reshape(len(found), -1)

    q, zeros = columns(parts["qweight"]).T, columns(parts["qzeros"]).T.astype(np.float32)
    group = np.arange(q.shape[1]) // -(-q.shape[1] // zeros.shape[1])
    return _by_group(q, parts["scales"].T, group, zeros)


def packed_integers(parts: Arrays, bits: int, inputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """compressed-tensors, "pack-quantized": numbers with an offset of 2^(bits - 1) as one stream of bits of each row.

    https://github.com/vllm-project/compressed-tensors, compressors/pack_quantized.
    """
    offset = np.float32(1 << (bits - 1))
    scales = parts["weight_scale"].reshape(len(parts["weight_packed"]), -1)
    q, zeros = stream(parts["weight_packed"], bits, inputs) - offset, np.zeros((1, 1), dtype=np.float32)
    if "weight_zero_point" in parts:  # packed along the outputs
        zeros = stream(parts["weight_zero_point"].T, bits, len(scales)).T - offset
    group = parts.get("weight_g_idx", np.arange(inputs) // -(-inputs // scales.shape[1]))
    return _by_group(q, scales, group, zeros.repeat(scales.shape[1] // zeros.shape[1], 1))


def _nibbles(content: np.ndarray, high_first: bool) -> np.ndarray:
    """Two numbers of each byte, along the last axis."""
    low, high = content & np.uint8(15), content >> np.uint8(4)
    both = (high, low) if high_first else (low, high)
    return np.stack(both, axis=-1).reshape(*content.shape[:-1], -1)


def fp4(packed: np.ndarray, scales: Float[np.ndarray, "... groups"]) -> Float[np.ndarray, "..."]:
    """Floats of 4 bits, the low half of a byte first, each times the scale of its group along the last axis.

    NVFP4: groups of 16 with scales in FP8 and one for all; MXFP4: groups of 32 with powers of two.
    https://github.com/vllm-project/compressed-tensors, compressors/nvfp4 and mxfp4.
    """
    values = FP4[_nibbles(packed, high_first=False)]
    grouped = values.reshape(*scales.shape, -1) * scales[..., None]
    return grouped.reshape(values.shape)


def spread(scales: np.ndarray, shape: tuple[int, ...], block: tuple[int, ...] | None) -> Shaped[np.ndarray, "..."]:
    """What all entries share, or those of a row, or of a block of so many entries along each axis, for each entry."""
    if block is None:
        return scales.reshape(()) if scales.size == 1 else scales.reshape(-1, *[1] * (len(shape) - 1))
    for axis, (size, each) in enumerate(zip(shape, block)):
        scales = scales.repeat(each, axis).take(range(size), axis) if scales.shape[axis] > 1 else scales
    return scales


def scaled(values: np.ndarray, scales: np.ndarray, block: tuple[int, ...] | None) -> Float[np.ndarray, "..."]:
    """Values times the scale of all, of their row, or of their block.

    DeepSeek-V3, inference/kernel.py: `weight_scale_inv` is multiplied, too.
    """
    return values.astype(np.float32) * spread(scales.astype(np.float32), values.shape, block)


def bnb_state(content: bytes) -> dict[str, Any]:
    """What bitsandbytes says of a tensor of 4 bits: type, block, shape, and of absmax the same; raises ValueError."""
    found = json.loads(content.decode("utf-8"))
    if not isinstance(found, dict):
        raise ValueError("the state of a tensor is no object")
    return found


def bnb_4bit(parts: Arrays, state: Mapping[str, Any], shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Codes of 4 bits, the high half of a byte first, times the absmax of their block, which may be coded itself.

    https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py: `QuantState`, `dequantize_4bit`.
    """
    absmax = parts["weight.absmax"].reshape(-1)
    if "weight.nested_absmax" in parts:
        nested = parts["weight.nested_absmax"].reshape(-1).repeat(state["nested_blocksize"])[: absmax.size]
        absmax = parts["weight.nested_quant_map"].reshape(-1)[absmax] * nested + np.float32(state["nested_offset"])
    count = int(np.prod(shape))
    codes = parts["weight.quant_map"].reshape(-1)[_nibbles(parts["weight"].reshape(-1), high_first=True)[:count]]
    return (codes * absmax.astype(np.float32).repeat(state["blocksize"])[:count]).reshape(shape)


def mlx_floats(parts: Arrays, mode: str) -> Float[np.ndarray, "... inputs"]:
    """Floats of 4 or 8 bits with scales of groups, as `quantize` of MLX makes them in its modes mxfp4, nvfp4 and mxfp8.

    https://github.com/ml-explore/mlx, mlx/backend/cpu/quantized.cpp: words hold bytes in order.
    """
    content = np.ascontiguousarray(parts["weight"]).view(np.uint8)
    scales = float8(parts["scales"], "F8_E4M3" if mode == "nvfp4" else "F8_E8M0")
    if mode != "mxfp8":
        return fp4(content, scales)
    values = float8(content, "F8_E4M3")
    return (values.reshape(*scales.shape, -1) * scales[..., None]).reshape(values.shape)


def mlx(parts: Arrays, bits: int, inputs: int) -> Float[np.ndarray, "... inputs"]:
    """w = s q + beta of a group of inputs; words are one stream of bits.

    https://github.com/ml-explore/mlx, mlx/ops.cpp: `quantize`, `affine_dequantize`.
    """
    words, scales = parts["weight"], parts["scales"]
    q = stream(words.reshape(-1, words.shape[-1]), bits, inputs).reshape(*scales.shape, -1)
    found = q * scales.astype(np.float32)[..., None] + parts["biases"].astype(np.float32)[..., None]
    return found.reshape(*scales.shape[:-1], inputs)

"""Weights packed as libraries pack them: the tensors of one module, for models of known truth.

Each function quantizes and packs; what the tensors mean is said in `mother/io/layouts.py`, which reads them.
"""

import json
from pathlib import Path

import numpy as np
import torch

from mother.evidence.codes import NF4
from mother.io.layouts import AWQ_ORDER

Tensors = dict[str, torch.Tensor]
GROUP = 32  # inputs that share a scale: the models are small
BLOCK = 64  # of bitsandbytes
DAMP = 0.01  # of the mean of the Hessian's diagonal, as GPTQ has it


def _words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes as words of 32 bits along the last axis, low bits first."""
    ones = (codes[..., None] >> np.arange(bits)) & 1
    return np.packbits(ones.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little").view("<u4")


def _grid(blocks: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of blocks, one a row, between their smallest and largest entries and 0."""
    low, high = blocks.amin(1).clamp(max=0), blocks.amax(1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8).half().float()
    return scale, (-low / scale).round().clamp(1, 2**bits - 1)


def gptq(weight: torch.Tensor, inputs: torch.Tensor, bits: int = 4) -> Tensors:
    """GPTQ (arXiv 2210.17323), format 1: column by column, with what each leaves carried to those that follow.

    `inputs` are activations, (samples, inputs): the Hessian is their second moment.
    """
    weight, top = weight.double().clone(), 2**bits - 1
    hessian = inputs.double().T @ inputs.double() / len(inputs)
    hessian += DAMP * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    codes, scales, zeros = torch.zeros(weight.shape, dtype=torch.int64), [], []
    for column in range(weight.shape[1]):
        if column % GROUP == 0:
            scale, zero = _grid(weight[:, column : column + GROUP].float(), bits)
            scales.append(scale)
            zeros.append(zero)
        codes[:, column] = (weight[:, column] / scale + zero).round().clamp(0, top).long()
        error = (weight[:, column] - (codes[:, column] - zero) * scale) / factor[column, column]
        weight[:, column:] -= error[:, None] * factor[column, column:]
    packed = _words(codes.numpy(), bits).T
    stored = _words(torch.stack(zeros).long().numpy() - 1, bits)
    return {
        "qweight": torch.from_numpy(np.ascontiguousarray(packed).view(np.int32)),
        "qzeros": torch.from_numpy(np.ascontiguousarray(stored).view(np.int32)),
        "scales": torch.stack(scales).half(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def awq(weight: torch.Tensor, inputs: torch.Tensor) -> Tensors:
    """AWQ (arXiv 2306.00978): inputs of large activations are scaled up before they are rounded.

    The norm before would be divided by the same factors.
    """
    factor = inputs.abs().mean(0).clamp(min=1e-4).sqrt()
    scaled = weight.float() * (factor / (factor.max() * factor.min()).sqrt())
    scale, zero = _grid(scaled.reshape(-1, GROUP), 4)
    codes = (scaled.reshape(-1, GROUP) / scale[:, None] + zero[:, None]).round().clamp(0, 15)

    def packed(values: torch.Tensor) -> torch.Tensor:
        order = np.argsort(AWQ_ORDER)  # the column that a nibble holds
        nibbles = values.long().numpy().reshape(len(values), -1, 8)[:, :, order]
        return torch.from_numpy(_words(nibbles.reshape(len(values), -1), 4).view(np.int32))

    groups = (len(weight), -1)
    return {
        "qweight": packed(codes.reshape(weight.shape).T),
        "qzeros": packed(zero.reshape(groups).T),
        "scales": scale.reshape(groups).T.contiguous().half(),
    }


def mlx(weight: torch.Tensor, bits: int = 4) -> Tensors:
    """MLX's affine format with groups of GROUP; scales in float32."""
    blocks, top = weight.float().reshape(-1, GROUP), 2**bits - 1
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    below = low.abs() > high.abs()
    scale = torch.where(below, 1, -1) * ((high - low) / top).clamp(min=1e-7)
    edge = torch.where(below, low, high)
    first = (edge / scale).round()
    scale = torch.where(first != 0, edge / first, scale)
    offset = torch.where(first != 0, edge, 0)
    codes = ((blocks - offset) / scale).round().clamp(0, top).long().reshape(weight.shape)
    groups = (len(weight), -1)
    return {
        "weight": torch.from_numpy(_words(codes.numpy(), bits)),
        "scales": scale.reshape(groups),
        "biases": offset.reshape(groups),
    }


def nf4(weight: torch.Tensor) -> Tensors:
    """NF4 of bitsandbytes in blocks of BLOCK."""
    blocks = weight.float().reshape(-1, BLOCK)
    size, levels = blocks.abs().amax(1), torch.tensor(NF4)
    codes = torch.bucketize(blocks / size[:, None], (levels[1:] + levels[:-1]) / 2).reshape(-1, 2)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32", "shape": list(weight.shape)}
    said = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8).copy()
    return {
        "weight": (16 * codes[:, :1] + codes[:, 1:]).to(torch.uint8),
        "weight.absmax": size,
        "weight.quant_map": levels,
        "weight.quant_state.bitsandbytes__nf4": torch.from_numpy(said),
    }


def int8(weight: torch.Tensor) -> Tensors:
    """LLM.int8 of bitsandbytes: a scale each row."""
    size = weight.float().abs().amax(1)
    codes = (127 * weight.float() / size[:, None]).round().to(torch.int8)
    return {"weight": codes, "SCB": size}


def fp8(weight: torch.Tensor) -> Tensors:
    """FP8 (e4m3) with a scale each row, as compressed-tensors stores it."""
    scale = weight.float().abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def comfy_fp8(weight: torch.Tensor) -> Tensors:
    """FP8 (e4m3) with one scale, as ComfyUI stores it."""
    scale = weight.float().abs().amax() / torch.finfo(torch.float8_e4m3fn).max
    return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "scale_weight": scale}


def write_gguf(weights: Tensors, family: str, kind: str, heads: tuple[int, int], file: Path) -> None:
    """A model as the converter of llama.cpp writes it, by the package's own writer; matrices of one type.

    `heads` are those of queries and of keys. Tensors that the family's table does not name are left out.
    """
    import gguf

    blocks = 1 + max(int(part) for name in weights for part in name.split(".") if part.isdigit())
    known = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(known, blocks)
    writer = gguf.GGUFWriter(file, family)
    writer.add_block_count(blocks)
    writer.add_head_count(heads[0])
    writer.add_head_count_kv(heads[1])
    for name, weight in weights.items():
        stored = names.get_name(name.removeprefix("bert."), try_suffixes=(".weight", ".bias"))
        if stored is None:
            continue
        turned = family == "gpt2" and weight.ndim == 2 and ".h." in name  # Conv1D
        values = (weight.T if turned else weight).float().contiguous().numpy()
        count = {"q_proj": heads[0], "k_proj": heads[1]}.get(name.split(".")[-2]) if family == "llama" else None
        if count:  # halves that are rotated together become neighbours
            half = len(values) // count // 2
            values = values.reshape(count, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
        inside = values.ndim == 2 and values.shape[1] % 32 == 0 and stored.startswith("blk.")
        which = gguf.GGMLQuantizationType[kind if inside else "F32"]
        writer.add_tensor(stored, gguf.quants.quantize(values, which), raw_dtype=which)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

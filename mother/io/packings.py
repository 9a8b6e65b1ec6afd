"""How libraries store a packed weight: by the names, types and shapes of its parts, what it is and how it is computed.

The configuration is asked only where they leave a choice. The arithmetic is in `mother/io/layouts.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mother.io import layouts
from mother.io.reader import MAX_NAME, Storage, TensorInfo, is_count, is_shape

# What stands behind the name of a module: the longest that fits counts.
ENDS = (
    "weight weight_packed weight_scale weight_scale_inv weight_scale_2 weight_shape weight_zero_point weight_g_idx "
    "weight_global_scale input_scale input_global_scale qweight qzeros scales g_idx biases SCB weight_format "
    "weight.absmax weight.quant_map weight.nested_absmax weight.nested_quant_map "
    "weight.quant_state.bitsandbytes__nf4 weight.quant_state.bitsandbytes__fp4 q_weight W_q "
    "scale_weight scale_input comfy_quant"
).split()
STATES = tuple(end for end in ENDS if "quant_state" in end)
LOOKED_INTO = (*STATES, "weight_shape")  # small tensors that say what the large ones are
NOT_NEEDED = (
    *LOOKED_INTO,
    *"input_scale input_global_scale weight_format scale_input comfy_quant".split(),
)  # once the weight is known
SCALES = ("weight_scale_inv", "weight_scale", "scale_weight", "SCB")  # the third of ComfyUI
MARK = "scaled_fp8"  # a tensor without meaning, by which ComfyUI knows that there are scales: comfy/utils.py
MOST_BLOCK = 1 << 16  # entries that share a scale; bitsandbytes has 4,096 at most
FLOAT8 = {"F8_E4M3": "e4m3", "F8_E5M2": "e5m2"}
MLX_FLOATS = {"mxfp4": ("mxfp4", 4), "nvfp4": ("nvfp4", 4), "mxfp8": ("fp8", 8)}  # mode -> format, bits
Infos = Mapping[str, TensorInfo]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Packed:
    """A weight that several tensors stand for."""

    parts: dict[str, str]  # role -> raw name
    shape: tuple[int, ...]
    storage: Storage
    unpack: Callable[[dict[str, np.ndarray]], np.ndarray]
    as_bytes: tuple[str, ...] = ()  # roles whose type says nothing of what they hold


def _expect(sound: bool, stem: str, infos: Infos) -> None:
    if not sound:
        shapes = ", ".join(f"{end} {info.dtype} {info.shape}" for end, info in infos.items())
        raise ValueError(f"the parts of {stem} do not fit one another: {shapes[:MAX_NAME]}")


def _gptq_or_awq(stem: str, infos: Infos, settings: Settings) -> tuple[Storage, tuple[int, ...], Any]:
    q, zeros, scales = infos["qweight"].shape, infos["qzeros"].shape, infos["scales"].shape
    _expect(len(q) == len(zeros) == len(scales) == 2 and min(*q, *zeros, *scales) > 0, stem, infos)
    _expect(infos["qweight"].dtype == infos["qzeros"].dtype == "I32" and zeros[0] == scales[0], stem, infos)
    groups, outputs = scales
    if q[1] * 8 == outputs == zeros[1] * 8 and "g_idx" not in infos:
        return Storage("awq", 4, -(-q[0] // groups)), (outputs, q[0]), layouts.awq
    bits = 32 * zeros[1] // outputs
    _expect(q[1] == outputs and 2 <= bits <= 8 and zeros[1] * 32 == outputs * bits, stem, infos)
    inputs = q[0] * 32 // bits
    plus = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    unpack = partial(layouts.gptq, bits=bits, inputs=inputs, plus=plus)
    return Storage("gptq", bits, -(-inputs // groups)), (outputs, inputs), unpack


def _packed_integers(stem: str, infos: Infos, shape: Any) -> tuple[Storage, tuple[int, ...], Any]:
    """`shape` is what weight_shape holds."""
    packed, scales = infos["weight_packed"].shape, infos["weight_scale"].shape
    whole = len(shape) == 2 and all(map(is_count, shape)) and is_shape(shape) and shape[1] > 0
    _expect(whole and len(packed) == 2 and len(scales) in (1, 2) and packed[0] == shape[0], stem, infos)
    bits = next((bits for bits in range(1, 9) if -(-shape[1] * bits // 32) == packed[1]), 0)
    groups = scales[1] if len(scales) == 2 else 1
    _expect(bits > 0 and 0 < groups <= shape[1] and math.prod(scales) == shape[0] * groups, stem, infos)
    group = -(-shape[1] // groups) if groups > 1 else None
    storage = Storage("compressed-tensors", bits, group)
    return storage, tuple(shape), partial(layouts.packed_integers, bits=bits, inputs=shape[1])


def _fp4(stem: str, infos: Infos) -> tuple[Storage, tuple[int, ...], Any]:
    """NVFP4 of compressed-tensors and of ModelOpt; MXFP4."""
    main = "weight_packed" if "weight_packed" in infos else "weight"
    packed, scales = infos[main], infos["weight_scale"]
    fits = len(packed.shape) == len(scales.shape) >= 2 and packed.shape[:-1] == scales.shape[:-1]
    _expect(fits and scales.shape[-1] > 0 and 2 * packed.shape[-1] % scales.shape[-1] == 0, stem, infos)
    kind = "nvfp4" if scales.dtype == "F8_E4M3" else "mxfp4"

    def unpack(parts: dict[str, np.ndarray]) -> np.ndarray:
        each = layouts.float8(parts["weight_scale"], "F8_E4M3" if kind == "nvfp4" else "F8_E8M0")
        if "weight_global_scale" in parts:  # of compressed-tensors, a divisor
            each = each / parts["weight_global_scale"].reshape(())
        elif "weight_scale_2" in parts:  # of ModelOpt, a factor
            each = each * parts["weight_scale_2"].reshape(())
        return layouts.fp4(parts[main], each)

    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    return Storage(kind, 4, shape[-1] // scales.shape[-1]), shape, unpack


def experts(stem: str, infos: Infos) -> Packed:
    """MXFP4 of gpt-oss: (experts, outputs, groups, 16), which transformers has as (experts, inputs, outputs)."""
    blocks, scales = infos["blocks"], infos["scales"]
    fits = len(blocks.shape) == 4 and blocks.shape[:3] == scales.shape and blocks.shape[3] == 16
    _expect(fits and blocks.dtype == scales.dtype == "U8", stem, infos)

    def unpack(parts: dict[str, np.ndarray]) -> np.ndarray:
        values = layouts.fp4(parts["blocks"], layouts.float8(parts["scales"], "F8_E8M0")[..., None])
        return values.reshape(*scales.shape[:2], -1).swapaxes(1, 2)

    shape = (blocks.shape[0], 32 * blocks.shape[2], blocks.shape[1])
    return Packed({end: f"{stem}_{end}" for end in ("blocks", "scales")}, shape, Storage("mxfp4", 4, 32), unpack)


def _block(shape: tuple[int, ...], scales: tuple[int, ...], said: Any) -> tuple[int, ...] | None:
    """How many entries along each axis share a scale; None where the numbers of scales do not fit.

    `said` are those of the last two axes, where the configuration says it; else blocks have 128, as usual. Along rows
    that have scales of their own groups are even.
    """
    found: list[int] = []
    sound = isinstance(said, list) and len(said) == 2 and all(is_count(one) and one > 0 for one in said)
    told = (*[0] * (len(shape) - 2), *(said if sound else (128, 128)))
    for size, count, one in zip(shape, scales, told):
        grouped = len(found) == len(shape) - 1 and all(each == 1 for each in found)
        group = size // count if grouped and count and size % count == 0 else 0
        sizes = (size,) if count == 1 else (1,) if count == size else (group, one)
        fitting = (each for each in sizes if each and -(-size // each) == count)
        found.append(min(next(fitting, 0), size))  # of a size that can be allocated
    return tuple(found) if all(found) else None


def _said_of_blocks(settings: Settings) -> Any:
    """Rows and columns of a block as transformers' FP8 or compressed-tensors say it."""
    groups = settings.get("config_groups")
    each = [one.get("weights") for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    said = [one["block_structure"] for one in each if isinstance(one, dict) and one.get("block_structure")]
    return settings.get("weight_block_size") or next(iter(said), None)


def _scaled(stem: str, infos: Infos, settings: Settings) -> tuple[Storage, tuple[int, ...], Any]:
    """FP8 and INT8 with scales of all, of rows, of groups or of blocks."""
    weight, name = infos["weight"], next(end for end in SCALES if end in infos)
    shape, block, group, detail, scales = weight.shape, None, None, "", infos[name].shape
    if len(scales) == len(shape) > 1 and (scales[-1] > 1 or len(shape) > 2) and math.prod(scales) > 1:
        block = _block(shape, scales, _said_of_blocks(settings))
        _expect(block is not None, stem, infos)
        if block[-2] > 1:
            detail = f"blocks {block[-2]} x {block[-1]}"
        elif block[-1] == shape[-1]:
            detail = "a scale each row"
        else:
            group = block[-1]
    else:
        _expect(math.prod(scales) in (1, shape[0] if shape else 1), stem, infos)
        detail = "a scale each row" if math.prod(scales) > 1 else ""
    zeros = infos.get("weight_zero_point")
    _expect(zeros is None or zeros.shape == scales or math.prod(zeros.shape) in (1, shape[0]), stem, infos)

    def unpack(parts: dict[str, np.ndarray]) -> np.ndarray:
        values = parts["weight"]
        values = layouts.float8(values, weight.dtype) if weight.dtype in FLOAT8 else values.astype(np.float32)
        if "weight_zero_point" in parts:
            zeros = parts["weight_zero_point"].astype(np.float32)
            values = values - layouts.spread(zeros, shape, block if zeros.shape == scales else None)
        found = layouts.scaled(values, parts[name], block)
        return found / np.float32(127) if name == "SCB" else found

    kind = "fp8" if weight.dtype in FLOAT8 else "bnb int8" if name == "SCB" else "int8"
    return Storage(kind, 8, group, detail), shape, unpack


def _bnb_4bit(stem: str, infos: Infos, content: bytes) -> tuple[Storage, tuple[int, ...], Any]:
    """`content` is what quant_state holds."""
    state = layouts.bnb_state(content)
    shape, block = state.get("shape"), state.get("blocksize")
    nested = "weight.nested_absmax" in infos
    sizes = [block, state.get("nested_blocksize")] if nested else [block]
    _expect(all(is_count(one) and 0 < one <= MOST_BLOCK for one in sizes), stem, infos)
    _expect(isinstance(shape, list) and is_shape(shape), stem, infos)
    count = math.prod(shape)
    absmax = math.prod(infos["weight.absmax"].shape)
    content = infos["weight"].end - infos["weight"].start  # in whatever type they were kept: bnb_4bit_quant_storage
    _expect(content * 2 >= count and -(-count // block) == absmax, stem, infos)
    _expect(not nested or isinstance(state.get("nested_offset"), float), stem, infos)
    _expect(math.prod(infos["weight.quant_map"].shape) == 16, stem, infos)
    kind = "nf4" if any("nf4" in end for end in infos) else "fp4"
    storage = Storage(kind, None, block if block != 64 else None, "double" if nested else "")
    return storage, tuple(shape), partial(layouts.bnb_4bit, state=state, shape=tuple(shape))


def _mlx(stem: str, infos: Infos, settings: Settings) -> tuple[Storage, tuple[int, ...], Any]:
    own = settings.get(stem)
    settings = {**settings, **own} if isinstance(own, dict) else settings
    group, bits, mode = settings.get("group_size"), settings.get("bits"), settings.get("mode", "affine")
    if not (is_count(group) and group > 0 and is_count(bits) and 2 <= bits <= 8):
        raise ValueError("its weights are packed as MLX does, and config.json gives no group_size and bits")
    words, scales = infos["weight"].shape, infos["scales"].shape
    inputs = scales[-1] * group if scales else 0
    fits = len(words) == len(scales) >= 2 and words[:-1] == scales[:-1] and words[-1] * 32 == inputs * bits
    if mode in MLX_FLOATS:
        kind, width = MLX_FLOATS[mode]
        _expect(fits and bits == width and infos["scales"].dtype == "U8", stem, infos)
        return Storage(kind, bits, group), (*scales[:-1], inputs), partial(layouts.mlx_floats, mode=mode)
    _expect(fits and "biases" in infos and infos["biases"].shape == scales, stem, infos)
    return Storage("mlx", bits, group), (*scales[:-1], inputs), partial(layouts.mlx, bits=bits, inputs=inputs)


def cast_to_float8(name: str, info: TensorInfo) -> Packed:
    """A tensor that was cast to FP8 as it is, without scales."""
    storage = Storage("fp8", None, None, FLOAT8[info.dtype])
    return Packed({"": name}, info.shape, storage, lambda parts: layouts.float8(parts[""], info.dtype))


def scaled_alone(name: str, scale: str, infos: Infos, settings: Settings) -> Packed:
    """A tensor in FP8 that is no module's weight, such as all experts of a layer, and its scales beside it."""
    storage, shape, unpack = _scaled(name, {"weight": infos[name], "weight_scale": infos[scale]}, settings)
    return Packed({"weight": name, "weight_scale": scale}, shape, storage, unpack)


def packed(stem: str, infos: Infos, small: Mapping[str, Any], settings: Settings) -> Packed | None:
    """The weight of a module, where it is packed; raises ValueError where its parts do not fit."""
    weight = infos.get("weight") or infos.get("weight_packed")
    state, as_bytes = next((end for end in STATES if end in infos), None), ()
    if {"qweight", "qzeros", "scales"} <= infos.keys():
        found = _gptq_or_awq(stem, infos, settings)
    elif {"weight_packed", "weight_scale", "weight_shape"} <= infos.keys() and weight.dtype == "I32":
        _expect(infos["weight_shape"].dtype in ("I64", "I32"), stem, infos)
        kind = {"I64": "<i8", "I32": "<i4"}[infos["weight_shape"].dtype]
        found = _packed_integers(stem, infos, np.frombuffer(small["weight_shape"], dtype=kind).tolist())
    elif "weight" in infos and {"weight.absmax", "weight.quant_map", state} <= infos.keys():
        as_bytes, found = ("weight",), _bnb_4bit(stem, infos, bytes(small[state]))
    elif weight is not None and weight.dtype == "U8" and "weight_scale" in infos:
        found = _fp4(stem, infos)
    elif weight is not None and weight.dtype == "U32" and "scales" in infos:
        found = _mlx(stem, infos, settings)
    elif "weight" in infos and weight.dtype in (*FLOAT8, "I8") and infos.keys() & {*SCALES}:
        found = _scaled(stem, infos, settings)
    else:
        return None
    storage, shape, unpack = found
    return Packed({end: f"{stem}.{end}" for end in infos if end not in NOT_NEEDED}, shape, storage, unpack, as_bytes)

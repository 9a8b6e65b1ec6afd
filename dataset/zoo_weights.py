"""Files of the zoo's models, and what is done to weights without training: cast, prune, quantize, merge, copy.

A *weight* of the zoo is a floating tensor of two or more dimensions that is no embedding, head, norm or table.
"""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from dataset.forest import GrowError
from dataset.weights import DTYPES, INDEX, Weights, dare, prune_smallest, quantized, read_weights, slerp, ties

OUTSIDE = (
    "embed",
    "wte",
    "wpe",
    "shared",
    "head",
    "classifier",
    ".fc.",
    "net.6",
    "norm",
    "stem",
    "conv_in",
    "conv_out",
)
TABLES = ("position", "relative_attention_bias", "class_token", "cls_token", "ln_", "bn", "predictions", "projection")
SYMMETRIC = {"int8": 127, "int4": 7}


def is_weight(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of those that pruning and quantization change."""
    return tensor.is_floating_point() and tensor.ndim >= 2 and not any(part in f".{name}" for part in OUTSIDE + TABLES)


def relative_change(old: Weights, new: Weights) -> float:
    """||new - old|| / ||old|| over the tensors of two or more dimensions that both have in one shape."""
    moved = total = 0.0
    for name, tensor in old.items():
        if tensor.ndim >= 2 and tensor.is_floating_point() and name in new and new[name].shape == tensor.shape:
            moved += (new[name].double() - tensor.double()).square().sum().item()
            total += tensor.double().square().sum().item()
    return math.sqrt(moved / total)


def cast_all(weights: Weights, dtype: torch.dtype) -> Weights:
    """Every floating tensor in one type; counters stay whole numbers."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def write_model(weights: Weights, config: dict[str, Any], out: Path) -> None:
    """Save tensors and config; GrowError where a value is not finite."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise GrowError(f"the tensor {name} holds a value that is not finite.")
    stored = [tensor.dtype for tensor in weights.values() if tensor.ndim >= 2 and tensor.is_floating_point()]
    content = config | {"dtype": next(name for name, dtype in DTYPES.items() if dtype == stored[0])}
    (out / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a grown model."""
    return json.loads((folder / "config.json").read_text())


def _made(weights: Weights, parent: Path, out: Path) -> dict[str, Any]:
    write_model(weights, read_config(parent), out)
    return {"relative_change": relative_change(read_weights(parent), read_weights(out))}


def cast(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """Floating tensors as `dtype`; with "keep_vectors" those of one dimension stay as they are."""
    dtype, keep = DTYPES[recipe["dtype"]], recipe.get("keep_vectors", False)
    weights = read_weights(parent)
    changed = {name: t for name, t in weights.items() if t.is_floating_point() and not (keep and t.ndim < 2)}
    return _made(weights | {name: tensor.to(dtype) for name, tensor in changed.items()}, parent, out)


def prune(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """Magnitude pruning of each weight by itself: a `share` of it."""
    weights = read_weights(parent)
    return _made(
        {n: prune_smallest(w, recipe["share"]) if is_weight(n, w) else w for n, w in weights.items()}, parent, out
    )


def _rounded(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    """A round trip through `scheme`: "int8-row", "nf4-block" (of 64), or "int8-block-N" and "int4-block-N"."""
    rows = weight.float().reshape(-1, weight.shape[-1]) if weight.ndim == 3 else weight.float().flatten(1)
    kind, _, size = scheme.partition("-block-")
    if not size:
        return quantized(rows, scheme).reshape(weight.shape) if rows.numel() % 64 == 0 else weight
    if rows.numel() % int(size):
        return weight
    # A block is a row of its own, so that the scheme by rows serves.
    blocks = rows.reshape(-1, int(size))
    if kind == "int8":
        return quantized(blocks, "int8-row").reshape(weight.shape)
    scale = (blocks.abs().amax(1, keepdim=True) / SYMMETRIC[kind]).clamp(min=torch.finfo(torch.float32).tiny)
    return ((blocks / scale).round().clamp(-SYMMETRIC[kind], SYMMETRIC[kind]) * scale).reshape(weight.shape)


def quantize(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """Weights after a round trip through `scheme`; everything stored as `dtype`."""
    weights = {n: _rounded(w, recipe["scheme"]) if is_weight(n, w) else w for n, w in read_weights(parent).items()}
    return _made(cast_all(weights, DTYPES[recipe["dtype"]]), parent, out)


def copy(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """The same values under names with a `prefix`, or in "shards"."""
    weights = {recipe.get("prefix", "") + name: tensor for name, tensor in read_weights(parent).items()}
    if not recipe.get("shards"):
        write_model(weights, read_config(parent), out)
        return {"relative_change": 0.0}
    split = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size="150KB"
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: weights[name].contiguous() for name in names}, out / file, {"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(parent / "config.json", out / "config.json")
    return {"relative_change": 0.0}


def block_number(name: str) -> int | None:
    """The first number in a name, the block that a tensor is of; None outside of blocks."""
    # Later numbers are places inside a block; an LSTM writes `weight_ih_l0`.
    found = re.search(r"(?:\.|_l)([0-9]+)(?:\.|$)", name)
    return int(found[1]) if found else None


def merge(recipe: dict[str, Any], parents: list[Path], out: Path) -> dict[str, Any]:
    """Merge models by `method`, in float64, rounded once to `dtype`; tensors that not all share are the first's.

    "linear": sum of `coefficients` times parents; "slerp": at `t`; "ties", "dare" and "arithmetic" (base plus `scales`
    times updates): updates since `base`, the last folder then; "passthrough": blocks below `split` of the first.
    """
    stored = [read_weights(folder) for folder in parents]
    base = stored[-1] if "base" in recipe else None
    models = stored[: len(stored) - (base is not None)]
    method, generator = recipe["method"], torch.Generator().manual_seed(recipe.get("seed", 0))

    def merged(name: str) -> torch.Tensor:
        tensors = [model[name].double() for model in models]
        if method == "linear":
            return sum(share * tensor for share, tensor in zip(recipe["coefficients"], tensors))
        if method == "slerp":
            return slerp(*tensors, recipe["t"])
        if method == "passthrough":
            return tensors[(block_number(name) or 0) >= recipe["split"]]
        start = base[name].double()
        if method == "ties":
            return ties(start, tensors, recipe["density"])
        if method == "dare":
            return dare(start, tensors, recipe["density"], generator)
        if method == "arithmetic":
            return start + sum(scale * (tensor - start) for scale, tensor in zip(recipe["scales"], tensors))
        raise GrowError(f"there is no method {method!r} of merging.")

    first, dtype = models[0], DTYPES[recipe["dtype"]]
    shared = [
        name
        for name, tensor in sorted(first.items())
        if tensor.is_floating_point() and all(name in m and m[name].shape == tensor.shape for m in stored)
    ]
    weights = cast_all(first | {name: merged(name) for name in shared}, dtype)
    write_model(weights, read_config(parents[0]), out)
    return {"relative_changes": [relative_change(model, weights) for model in models]}

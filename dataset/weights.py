"""What is done to weights without any training: cast, prune, quantize, merge, copy.

Growers as in `vit.py`, working on the tensors of the parent's files under the names they have there. A
*block weight* is a 2-D weight inside a numbered block: not an embedding, a head, a bias or a norm.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

from dataset.forest import RECORD, GrowError
from mother.io.layers import Layer, layer_of

INDEX = "model.safetensors.index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIMIZER = "optimizer.safetensors"  # beside a snapshot whose training goes on
BLOCK = 64  # weights that share a scale in 4-bit formats

Weights = dict[str, torch.Tensor]


def read_weights(folder: Path) -> Weights:
    """Every tensor of a grown model under its name in the file, as stored."""
    if not (folder / INDEX).exists():
        return load_file(folder / "model.safetensors")
    shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    return {name: tensor for shard in sorted(shards) for name, tensor in load_file(folder / shard).items()}


def is_block_weight(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of those that pruning and quantization change, and that changes are measured on."""
    layer = layer_of(name)
    return tensor.ndim == 2 and layer is not None and layer.block != ""


def block_weights(folder: Path) -> dict[Layer, torch.Tensor]:
    """The block weights of a grown model in float64, by place, however they are named."""
    return {
        layer_of(name): tensor.double()
        for name, tensor in read_weights(folder).items()
        if is_block_weight(name, tensor)
    }


def relative_change(parent: Path, child: Path) -> float:
    """||child - parent|| / ||parent|| over all block weights, as stored."""
    old, new = block_weights(parent), block_weights(child)
    moved = sum((new[layer] - weight).square().sum().item() for layer, weight in old.items())
    return math.sqrt(moved / sum(weight.square().sum().item() for weight in old.values()))


def _write(weights: Weights, parent: Path, out: Path, **config: Any) -> None:
    """Save tensors, all of one type, with the parent's config; `config` replaces entries of it."""
    content = json.loads((parent / "config.json").read_text()) | config
    stored = next(iter(weights.values())).dtype
    content["dtype"] = next(name for name, dtype in DTYPES.items() if dtype == stored)
    (out / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )


def cast(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """Every tensor in the coarser type `through`, stored as `dtype`: the same, or float32 for a round trip."""
    through, stored = DTYPES[recipe["through"]], DTYPES[recipe["dtype"]]
    _write({name: tensor.to(through).to(stored) for name, tensor in read_weights(parent).items()}, parent, out)
    return {"relative_change": relative_change(parent, out)}


def prune_smallest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Zero the given share of the entries, the smallest in magnitude."""
    flat = weight.flatten().clone()
    order = flat.abs().argsort(stable=True)
    flat[order[: round(share * flat.numel())]] = 0
    return flat.reshape(weight.shape)


def _prune_two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Zero the two smallest of every four neighbours in a row."""
    groups = weight.reshape(-1, 4)
    smallest = groups.abs().argsort(dim=1, stable=True)[:, :2]
    return groups.scatter(1, smallest, 0).reshape(weight.shape)


def prune(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """Magnitude pruning of each block weight by itself: a `share` of it, or the `pattern` "2:4"."""

    def pruned(weight: torch.Tensor) -> torch.Tensor:
        return _prune_two_of_four(weight) if recipe.get("pattern") == "2:4" else prune_smallest(weight, recipe["share"])

    weights = read_weights(parent)
    _write({name: pruned(w) if is_block_weight(name, w) else w for name, w in weights.items()}, parent, out)
    return {"relative_change": relative_change(parent, out)}


def normal_codebook() -> torch.Tensor:
    """Sixteen levels in [-1, 1], at quantiles of the normal distribution, 0 among them (as NF4's are)."""
    # The outermost quantile lies half-way between those that 15 and 16 equal cells would give (QLoRA, appendix E).
    tail = 1 - (1 / 30 + 1 / 32) / 2
    upper = torch.special.ndtri(torch.linspace(tail, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -torch.special.ndtri(torch.linspace(tail, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper]).sort().values
    return (levels / levels.abs().max()).float()


def quantized(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    """The weight after a round trip through a format of few bits, in float32.

    "int8-tensor", "int8-row": k * s, |k| <= 127, s = largest magnitude / 127; "uint8-row": (k - z) * s with
    0 <= k, z <= 255 between the row's minimum and maximum; "int4-block": |k| <= 7 for every 64 weights;
    "nf4-block": levels of `normal_codebook` times the largest magnitude of every 64 weights.
    """
    weight = weight.float()
    if scheme == "int8-tensor":
        return _symmetric(weight.reshape(1, -1), 127).reshape(weight.shape)
    if scheme == "int8-row":
        return _symmetric(weight, 127)
    if scheme == "uint8-row":
        low = weight.amin(1, keepdim=True).clamp(max=0)
        scale = ((weight.amax(1, keepdim=True).clamp(min=0) - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
        zero = (-low / scale).round()
        return (((weight / scale).round() + zero).clamp(0, 255) - zero) * scale
    blocks = weight.reshape(-1, BLOCK)
    if scheme == "int4-block":
        return _symmetric(blocks, 7).reshape(weight.shape)
    if scheme == "nf4-block":
        scale = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        levels = normal_codebook()
        nearest = ((blocks / scale)[:, :, None] - levels).abs().argmin(2)
        return (levels[nearest] * scale).reshape(weight.shape)
    raise GrowError(f"there is no quantization scheme {scheme!r}.")


def _symmetric(rows: torch.Tensor, top: int) -> torch.Tensor:
    """Whole multiples, `top` at most, of a scale for each row."""
    scale = (rows.abs().amax(1, keepdim=True) / top).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scale).round().clamp(-top, top) * scale


def quantize(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """Block weights after a round trip through `scheme`; everything stored as `dtype`."""
    stored = DTYPES[recipe["dtype"]]
    weights = read_weights(parent)
    rounded = {name: quantized(w, recipe["scheme"]) if is_block_weight(name, w) else w for name, w in weights.items()}
    _write({name: tensor.to(stored) for name, tensor in rounded.items()}, parent, out)
    return {"relative_change": relative_change(parent, out)}


def copy(recipe: dict[str, Any], parent: Path, out: Path) -> dict[str, Any]:
    """The same values: as the same "bytes", with or without the "prefix" `vit.`, in "shards", or as "float32"."""
    form, weights = recipe["form"], read_weights(parent)
    if form == "bytes":
        for file in parent.iterdir():
            if file.name not in (RECORD, OPTIMIZER):
                shutil.copyfile(file, out / file.name)
    elif form == "prefix":
        has = any(name.startswith("vit.") for name in weights)
        _write({name.removeprefix("vit.") if has else f"vit.{name}": t for name, t in weights.items()}, parent, out)
    elif form == "shards":
        _write_shards(weights, parent, out)
    elif form == "float32":
        _write({name: tensor.float() for name, tensor in weights.items()}, parent, out)
    else:
        raise GrowError(f"there is no form of copy {form!r}.")
    return {"relative_change": relative_change(parent, out)}


def _write_shards(weights: Weights, parent: Path, out: Path) -> None:
    """Save in files of 800 kB at most, with their index."""
    split = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size="800KB"
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: weights[name].contiguous() for name in names}, out / file, {"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(parent / "config.json", out / "config.json")


def _mergeable(folder: Path) -> Weights:
    """The tensors of a model in float64, under names without `vit.`; heads and poolers fit nobody else's."""
    named = {name.removeprefix("vit."): tensor.double() for name, tensor in read_weights(folder).items()}
    return {name: t for name, t in sorted(named.items()) if not name.startswith(("classifier.", "pooler."))}


def slerp(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    """Spherical interpolation along the arc between two tensors as vectors; a line where there is no arc."""
    lengths = first.norm() * second.norm()
    cosine = float((first * second).sum() / lengths) if lengths > 0 else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-9:
        return (1 - t) * first + t * second
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def ties(base: torch.Tensor, tuned: list[torch.Tensor], density: float) -> torch.Tensor:
    """Base plus the mean of the updates' large entries that agree with the elected sign."""
    trimmed = torch.stack([prune_smallest(tensor - base, 1 - density) for tensor in tuned])
    agrees = trimmed * trimmed.sum(0).sign() > 0
    return base + (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def dare(base: torch.Tensor, tuned: list[torch.Tensor], density: float, generator: torch.Generator) -> torch.Tensor:
    """Base plus the mean of the updates, each with entries dropped at random and the others scaled up."""
    kept = [torch.rand(base.shape, generator=generator, dtype=torch.float64) < density for _ in tuned]
    return base + sum((tensor - base) * mask / density for tensor, mask in zip(tuned, kept)) / len(tuned)


def merge(recipe: dict[str, Any], parents: list[Path], out: Path) -> dict[str, Any]:
    """Merge models by `method`, computed in float64 and rounded once to `dtype`; the heads are left out.

    "linear": sum of `coefficients` times parents; "slerp": two parents at `t`, tensor by tensor; "ties" and "dare":
    updates of the parents since `base`, which is the last folder then, with `density`.
    """
    models = [_mergeable(folder) for folder in parents]
    if any(model.keys() != models[0].keys() for model in models):
        raise GrowError("models with different tensors cannot be merged.")
    method, base = recipe["method"], models.pop() if "base" in recipe else None
    generator = torch.Generator().manual_seed(recipe.get("seed", 0))

    def merged(name: str) -> torch.Tensor:
        tensors = [model[name] for model in models]
        if method == "linear":
            return sum(share * tensor for share, tensor in zip(recipe["coefficients"], tensors))
        if method == "slerp":
            return slerp(*tensors, recipe["t"])
        if method == "ties":
            return ties(base[name], tensors, recipe["density"])
        if method == "dare":
            return dare(base[name], tensors, recipe["density"], generator)
        raise GrowError(f"there is no method {method!r} of merging.")

    config = json.loads((parents[0] / "config.json").read_text())
    headless = {"architectures": ["ViTModel"]} if config["model_type"] == "vit" else {}
    stored = DTYPES[recipe["dtype"]]
    _write({name: merged(name).to(stored) for name in models[0]}, parents[0], out, **headless)
    return {"relative_changes": [relative_change(folder, out) for folder in parents[: len(models)]]}

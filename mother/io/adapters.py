"""PEFT adapters as models: W = W_base + scale B A in float32, or scale B A alone where the base is not given.

Merging into the storage precision of the base would round the update away and hide its rank, so all is done in
float32. What an adapter may hold beyond LoRA (IA3, prompts, bias updates) is refused by name.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mother.errors import CheckpointError, shown
from mother.io.layers import canonical_name
from mother.io.patterns import Patterns, read_patterns
from mother.io.safetensors import TensorInfo

_PART = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\."
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|lora_bias)"
    r"(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
)

MOST_ENTRIES = 1 << 31  # of a single update

# Ways to begin that change the base, too: what is saved is not all that was trained.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
IGNORED = ("layer_replication", "trainable_token_indices")  # keys that change what an adapter does to its base
REMEDY = "Merge it into its base with PEFT (merge_and_unload) and give that."


@dataclass(frozen=True)
class Update:
    """The tensors of an adapter that change one weight, and how."""

    module: str
    parts: dict[str, str]  # "A", "B", "magnitude" -> raw name in the adapter
    scale: float
    transposed: bool  # the base's weight is stored as (in, out): Conv1D of GPT-2
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to its base: updates of weights, and tensors in place of the base's own."""

    updates: dict[str, Update] = field(default_factory=dict)  # by module
    whole: dict[str, str] = field(default_factory=dict)  # name in the base -> raw name in the adapter


@dataclass(frozen=True)
class _Config:
    """What an adapter's configuration says: usual rank and alpha, those of some modules, and switches."""

    rank: int
    alpha: float
    content: dict[str, Any]
    ranks: dict[str, int | float]  # by pattern
    alphas: dict[str, int | float]
    patterns: Patterns


# refuse(reason, remedy) -> the error to raise
_Refuse = Callable[..., CheckpointError]


def _read_config(config: str, refuse: _Refuse) -> _Config:
    """Parse a configuration; refuses what is not LoRA, or changes more than LoRA does."""
    try:
        content = json.loads(config)
        kind = content["peft_type"]
        rank, alpha = int(content["r"]) if kind == "LORA" else 0, float(content.get("lora_alpha", 8))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError):
        raise refuse("adapter_config.json is damaged: it gives no peft_type or r", "Save the adapter again.") from None
    if kind != "LORA":
        raise refuse(f"is an adapter of type {shown(kind)}, not LoRA")
    began = content.get("init_lora_weights")
    if isinstance(began, str) and began.lower().startswith(CHANGED_BASE):
        raise refuse(f"began as {shown(began)}, which changed its base, too")
    for key in IGNORED:
        if content.get(key):
            raise refuse(f"uses {key}, which is not supported")
    try:
        ranks, alphas = (read_patterns(content.get(key), key) for key in ("rank_pattern", "alpha_pattern"))
    except ValueError as error:
        raise refuse(f"adapter_config.json is damaged: {error}", "Save the adapter again.") from None
    return _Config(rank, alpha, content, ranks, alphas, Patterns())


def _group_parts(tensors: Iterable[str], refuse: _Refuse) -> tuple[dict[str, dict[str, str]], set[str], dict[str, str]]:
    """(parts of the update of each module, modules that are embeddings, tensors in place of the base's own)."""
    grouped: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    whole: dict[str, str] = {}
    for name in tensors:
        match = _PART.fullmatch(name)
        if match is None:
            plain = name.removeprefix("base_model.model.")
            whole[re.sub(r"\.modules_to_save(\.[^.]+)?(?=\.)", "", plain)] = name
            continue
        part = match["part"]
        if part == "lora_bias" or name.endswith(".bias"):
            raise refuse(f"{name}: LoRA with a bias (lora_bias) is not supported")
        key = {"lora_magnitude_vector": "magnitude"}.get(part, part[-1])
        if grouped.setdefault(match["module"], {}).setdefault(key, name) != name:
            raise refuse(f"{match['module']} has two adapters in one file", "Save one adapter a folder.")
        if "embedding" in part:
            embeddings.add(match["module"])
    return grouped, embeddings, whole


def _check_parts(
    module: str, parts: dict[str, str], embedding: bool, dora: bool, tensors: dict[str, TensorInfo], refuse: _Refuse
) -> int:
    """The rank of an update; refuses parts that do not fit one another."""
    if not {"A", "B"} <= parts.keys():
        raise refuse(f"{module} has only one half of its update", "Save the adapter again.")
    if (parts.get("magnitude") is not None) != dora:
        raise refuse(f"{module} and adapter_config.json do not agree on DoRA", "Save the adapter again.")
    first, second = (tensors[parts[part]].shape for part in "AB")
    inner = first[0] if first else 0
    # B is a matrix, or a convolution of one entry.
    flat = len(second) == 2 or (len(second) == len(first) and math.prod(second[2:]) == 1)
    if len(first) < 2 or len(second) < 2 or second[1] != inner or inner < 1 or not flat:
        raise refuse(f"{module} has parts of shapes {first} and {second}, which do not fit", "Save it again.")
    if math.prod(first[1:]) * second[0] > MOST_ENTRIES:
        raise refuse(f"{module} has an update of {math.prod(first[1:]) * second[0]} entries", "Do not trust it.")
    if "magnitude" in parts and math.prod(tensors[parts["magnitude"]].shape) != second[0]:
        raise refuse(f"{module} has a magnitude that does not fit", "Save the adapter again.")
    if embedding and "magnitude" in parts:
        raise refuse(f"{module}: DoRA of an embedding is not supported")
    return inner


def _scale(module: str, inner: int, config: _Config, refuse: _Refuse) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, as PEFT finds them for this module."""
    try:
        r = config.patterns.value(config.ranks, module, config.rank)
        a = config.patterns.value(config.alphas, module, config.alpha)
    except ValueError as error:
        raise refuse(f"adapter_config.json is damaged: {error}", "Save the adapter again.") from None
    if inner != r:
        raise refuse(f"{module} has rank {inner}, adapter_config.json says {shown(r, 20)}", "Save the adapter again.")
    try:
        scale = float(a) / (r**0.5 if config.content.get("use_rslora") else r)
    except OverflowError:
        scale = math.inf
    if not math.isfinite(scale):
        raise refuse(f"{module} has the scale {scale}", "Save the adapter again.")
    return scale


def parse_adapter(model: str, file: object, config: str, tensors: dict[str, TensorInfo]) -> Adapter:
    """Read an adapter's configuration and names; raises CheckpointError for kinds that are not LoRA or DoRA."""

    def refuse(reason: str, remedy: str = REMEDY) -> CheckpointError:
        return CheckpointError(model, file, reason, remedy)

    read = _read_config(config, refuse)
    grouped, embeddings, whole = _group_parts(tensors, refuse)
    transposed, dora = bool(read.content.get("fan_in_fan_out")), bool(read.content.get("use_dora"))
    updates = {}
    for module, parts in grouped.items():
        inner = _check_parts(module, parts, module in embeddings, dora, tensors, refuse)
        scale = _scale(module, inner, read, refuse)
        updates[module] = Update(module, parts, scale, transposed, module in embeddings)
    if not updates:
        raise refuse("has no LoRA update", "Give the folder of the adapter, or its base.")
    return Adapter(updates, whole)


def update_shape(update: Update, tensors: dict[str, TensorInfo]) -> tuple[int, ...]:
    """Shape of the weight that an update belongs to, as the base stores it."""
    first, second = (tensors[update.parts[part]].shape for part in "AB")
    if len(first) > 2:
        return (second[0], *first[1:])  # a convolution; B is 1 x 1
    shape = (second[0], first[1])
    return shape[::-1] if update.transposed or update.embedding else shape


def oriented(
    update: Update, target: str, base: Mapping[str, tuple[int, ...]], tensors: dict[str, TensorInfo]
) -> Update:
    """The update as its base stores the weight `target`: (out, in), or (in, out) for the Conv1D of GPT-2.

    PEFT decides that for each module, and the configuration keeps only what it decided last. The shape tells; where it
    is square, that of `c_attn` beside it does, whose output is three times as wide as its input.
    """
    there = base.get(target, ())
    if update.embedding or len(there) != 2:
        return update
    shapes = {turned: update_shape(replace(update, transposed=turned), tensors) for turned in (False, True)}
    if shapes[False] != shapes[True]:
        return next((replace(update, transposed=turned) for turned, shape in shapes.items() if shape == there), update)
    block, _, kind = target.removesuffix(".weight").rpartition(".")
    beside = base.get(f"{block}.c_attn.weight", ())
    if kind in ("c_proj", "q_attn") and len(beside) == 2 and beside[0] != beside[1]:
        return replace(update, transposed=beside[0] < beside[1])
    return update


def applied(update: Update, parts: dict[str, "torch.Tensor"], base: "torch.Tensor | None") -> "torch.Tensor":
    """scale B A, or the base with it, in float32. DoRA gives each row of the result its own length."""
    first, second = (parts[part].float() for part in "AB")
    delta = update.scale * (second.flatten(1) @ first.flatten(1))
    if first.ndim > 2:
        delta = delta.reshape(second.shape[0], *first.shape[1:])
    elif update.transposed or update.embedding:
        delta = delta.T
    if base is None:
        return delta.contiguous()
    weight = base + delta
    if "magnitude" in parts:
        rows = weight.T if update.transposed else weight
        length = rows.flatten(1).norm(dim=1).clamp(min=float(np.finfo(np.float32).tiny))
        factor = parts["magnitude"].float().flatten() / length
        weight = weight * (factor[None, :] if update.transposed else factor.reshape(-1, *[1] * (weight.ndim - 1)))
    return weight.contiguous()


def names_in_base(modules: list[str], base: list[str]) -> dict[str, str | None]:
    """The base's tensor for each module of an adapter: by name, else by the name without wrappers."""
    plain = {canonical_name(name): name for name in base}
    there = set(base)
    return {
        module: f"{module}.weight" if f"{module}.weight" in there else plain.get(canonical_name(f"{module}.weight"))
        for module in modules
    }

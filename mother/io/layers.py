"""Which weight is which: raw tensor names of many families -> (block, kind).

Names are read from the file, because loading a model may rename them (transformers 5.9 calls
`encoder.layer.0.attention.attention.query` `layers.0.attention.q_proj`), and a collection may hold both.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Layer(NamedTuple):
    """A weight matrix by place and role, the same for every spelling of its name."""

    block: str  # "0", "1", ...; with a path in front where a model has several stacks
    kind: str  # "query", "key", "value", "output", "mlp_up", ...; the raw name for anything else

    def __str__(self) -> str:
        return f"{self.block}.{self.kind}" if self.block else self.kind


# The layers that the paper and its code use: only the square ones of them enter its distances.
ATTENTION = ("query", "key", "value", "output")

# What follows the block's number, without ".weight" -> kind. The first that matches counts.
KINDS = [
    (r"attention\.attention\.(query|key|value)", None),  # ViT, DeiT and their kin, in files
    (r"attention\.self\.(query|key|value)", None),  # BERT, RoBERTa
    (r"attention\.(query|key|value)", None),
    (r"(?:self_attn|attention|attn|self_attention)\.q_proj", "query"),  # Llama, CLIP; ViT since transformers 5.9
    (r"(?:self_attn|attention|attn|self_attention)\.k_proj", "key"),
    (r"(?:self_attn|attention|attn|self_attention)\.v_proj", "value"),
    (r"(?:self_attn|attention|attn|self_attention)\.(?:o_proj|out_proj)", "output"),
    (r"attention\.output\.dense", "output"),  # not to be confused with the MLP's output.dense
    (r"attn\.proj", "output"),  # timm
    (r"intermediate\.dense|mlp\.fc1|mlp\.up_proj", "mlp_up"),
    (r"output\.dense|mlp\.fc2|mlp\.down_proj", "mlp_down"),
    (r"mlp\.gate_proj", "mlp_gate"),
]

_KINDS = [(re.compile(pattern), kind) for pattern, kind in KINDS]
_NUMBER = re.compile("[0-9]{1,6}")
_BLOCK = re.compile(r"^(?P<stack>(?:.*\.)?)(?:layers?|blocks?|h)\.(?P<number>[0-9]{1,6})\.(?P<rest>.+)$")
# Of torch's recurrent layers the number stands behind; its cells have none.
_RECURRENT = re.compile(
    r"^(?P<stack>(?:.*\.)?)(?P<rest>(?:weight|bias)_[a-z]+)_l(?P<number>[0-9]{1,6})(?P<back>_reverse)?$"
)
_CELL = re.compile(r"^(?P<stack>(?:.*\.)?)(?P<rest>(?:weight|bias)_(?:ih|hh))$")

# Wrappers that tell nothing about the place of a layer. A decoder keeps its name.
_WRAPPERS = {"model", "base_model", "module", "vit", "deit", "beit", "dinov2", "bert", "roberta", "transformer"}

_WRAPPERS |= {"encoder", "vision_model", "unet", "_orig_mod", "net", "network", "_forward_module", "state_dict"}

_WRAPPERS |= {"ema", "ema_model", "model_ema", "student", "teacher"}

# Embeddings, tokens, positions and heads by name. Others are recognised by their shapes (mother/io/pieces.py).
_OUTSIDE = re.compile(
    r"(.*\.)?(embed_tokens|(word|tok|token|token_type|pos|position|positional|patch)_embed(ding)?s?|wte|wpe"
    r"|(cls|class|mask|dist|distillation)_(token|embedding)|pooler|classifier|score|(\w+_)?head)(\..*)?"
)


def _stack(path: str) -> str:
    return ".".join(part for part in path.split(".") if part and part not in _WRAPPERS)


def place_of(name: str) -> Layer:
    """The layer that a raw tensor name denotes, whatever kind of tensor it is.

    The block is what stands before the last number that is followed by more than numbers: `features.3` of
    `features.3.conv.0`. Where there is no such number it is the last one, as of `features.3`.
    """
    path = name.removesuffix(".weight")
    if cell := _CELL.match(path):
        return Layer(_stack(cell["stack"]) or "cell", cell["rest"])
    match = _RECURRENT.match(path) or _BLOCK.match(path)
    if match:
        stack, rest = _stack(match["stack"]), match["rest"] + (match.groupdict().get("back") or "")
        block = f"{stack}.{match['number']}" if stack else match["number"]
        for pattern, kind in _KINDS:
            found = pattern.fullmatch(rest)
            if found:
                return Layer(block, kind or found[1])
        return Layer(block, rest)
    plain = _stack(path)
    if _OUTSIDE.fullmatch(plain):
        return Layer("", plain)
    parts = plain.split(".")
    end = len(parts)
    while end and _NUMBER.fullmatch(parts[end - 1]):
        end -= 1
    numbers = [at for at, part in enumerate(parts[:end]) if _NUMBER.fullmatch(part)]
    if numbers:
        return Layer(".".join(parts[: numbers[-1] + 1]), ".".join(parts[numbers[-1] + 1 :]))
    return Layer("", plain) if end == len(parts) else Layer(plain, "weight")


def layer_of(name: str) -> Layer | None:
    """The layer of a weight by its raw name; None for what does not end in `.weight`: biases, buffers, parameters.

    The paper's method and adapters know weights by it. Method "map" looks at the shapes, too (mother/io/pieces.py).
    """
    return place_of(name) if name.endswith(".weight") else None


def canonical_name(name: str) -> str:
    """A tensor's name without wrappers, the same for a model and for that model inside a larger one."""
    if name.endswith(".bias"):
        return f"{place_of(name.removesuffix('.bias') + '.weight')}.bias"
    return str(place_of(name))


def name_layers(names: Iterable[str]) -> dict[Layer, str]:
    """Raw name of each layer. Where two names denote one layer, both keep their raw names as kind."""
    found = [(layer, name) for name in names if (layer := layer_of(name)) is not None]
    count = Counter(layer for layer, _ in found)
    return {(layer if count[layer] == 1 else Layer("", name)): name for layer, name in found}


def sort_key(layer: Layer) -> tuple:
    """Order layers by stack, number and kind, so that block 10 comes after block 9."""
    stack, _, number = layer.block.rpartition(".")
    kinds = [*ATTENTION, "mlp_gate", "mlp_up", "mlp_down"]
    place = kinds.index(layer.kind) if layer.kind in kinds else len(kinds)
    return (stack, int(number) if _NUMBER.fullmatch(number) else -1, place, layer.kind)


def is_backbone(layer: Layer) -> bool:
    """Whether a layer is none of those that are resized, tied or new in each model: embeddings and heads."""
    return layer.block != "" or _OUTSIDE.fullmatch(layer.kind) is None


def is_attention(layer: Layer) -> bool:
    """Whether a matrix inside a block is one of its attention, whatever the family calls it."""
    return layer.kind in ATTENTION or re.search(r"(^|[._])(\w*attn\d*|\w*attention)([._]|$)", layer.kind) is not None

"""What the tensors of a model are: matrices by place and role, however a family names, joins or turns them.

A tensor is one matrix, several (queries, keys and values in one; the experts of a layer in one), or none: a vector, a
table of embeddings, a head. Each matrix is given as it would stand in a linear layer, (outputs, inputs), under one
name for all families that are known. What a table or a head is follows from shapes; names are hints.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float

from mother.io.heads import tables_of
from mother.io.layers import Layer, canonical_name, place_of

# Kinds as families name them -> the name that they share here. The first that matches counts.
_ATTENTION = r"(?:attn|attention|self_attn|self_attention|attention\.attention|attention\.self)"
_EXPERTS = r"(?:mlp|block_sparse_moe|moe|ffn|feed_forward)\.experts"
SHARED = [
    (r"attention\.wq|{A}\.q_proj", "query"),  # Llama as Meta gives it
    (r"attention\.wk|{A}\.k_proj", "key"),
    (r"attention\.wv|{A}\.v_proj", "value"),
    (r"attention\.wo|{A}\.(?:c_proj|out_proj)", "output"),
    (r"mlp\.c_fc|mlp\.fc_in", "mlp_up"),
    (r"mlp\.c_proj|mlp\.fc_out", "mlp_down"),
    (r"feed_forward\.w1", "mlp_gate"),
    (r"feed_forward\.w2", "mlp_down"),
    (r"feed_forward\.w3", "mlp_up"),
    (r"{E}\.([0-9]+)\.(?:gate_proj|w1)", r"experts.\1.mlp_gate"),  # Mixtral, Qwen, DeepSeek: a tensor each
    (r"{E}\.([0-9]+)\.(?:up_proj|w3)", r"experts.\1.mlp_up"),
    (r"{E}\.([0-9]+)\.(?:down_proj|w2)", r"experts.\1.mlp_down"),
    (r"{E}\.(gate_up_proj|down_proj|up_proj|gate_proj)", r"experts.*.\1"),  # all experts in one tensor
]
_SHARED = [(re.compile(one.format(A=_ATTENTION, E=_EXPERTS)), kind) for one, kind in SHARED]
_JOINED = re.compile(r"(?P<path>.*?)\.?(?:qkv|qkv_proj|to_qkv|Wqkv|c_attn|in_proj_weight)")
_PLAIN = re.compile(_ATTENTION)
_RECURRENT = re.compile(r"weight_(ih|hh)(_reverse)?")
_GATE_UP = re.compile(r"(mlp|feed_forward)\.gate_up_proj")
_ORIENTED = re.compile(
    r"(.*\.)?(query|key|value|output|mlp_(up|down|gate)|[qkvo]|to_[qkv]|[qkvo]_proj|out_proj|fc[0-9]+"
    r"|weight_(ih|hh)(_reverse)?(\.[0-9])?)"
)
_FUSED = {"gate_proj": "mlp_gate", "up_proj": "mlp_up", "down_proj": "mlp_down"}


@dataclass(frozen=True)
class Piece:
    """A matrix that is a tensor or a part of it; or a vector or table, which is kept as it stands (`layer` is None)."""

    raw: str  # name of the tensor
    name: str  # of the piece: the same for every spelling
    shape: tuple[int, ...]
    layer: Layer | None = None
    index: int | None = None  # the expert
    transposed: bool = False
    start: int = 0  # rows, once turned round
    stop: int | None = None
    flat: bool = False  # whether the tensor had two dimensions
    head: int = 0  # rows of a head whose pairs are interleaved, as in Meta's queries and keys

    @property
    def either_way(self) -> bool:
        """Whether nothing says which side of the matrix its inputs are."""
        return self.is_matrix and self.flat and _ORIENTED.fullmatch(self.layer.kind) is None

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix that models are compared by."""
        return self.layer is not None and len(self.shape) == 2 and min(self.shape) >= 2

    def of(self, values: torch.Tensor) -> Float[torch.Tensor, "..."]:
        """The piece of its tensor's values."""
        if self.layer is None and self.start == 0 and self.stop is None:
            return values
        values = values[self.index] if self.index is not None else values
        values = values.reshape(-1, *_matrix_shape(self.raw, values.shape)[1:])
        values = (values.T if self.transposed else values)[self.start : self.stop]
        if self.head:
            # Meta rotates neighbours, transformers rotates halves.
            values = values.unflatten(0, (-1, self.head // 2, 2)).transpose(1, 2).flatten(0, 2)
        return values.contiguous()


def _matrix_shape(raw: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(rows, everything else). A parameter of the shape (1, n, d) is the matrix (n, d)."""
    while len(shape) > 2 and shape[0] == 1 and not raw.endswith(".weight"):
        shape = shape[1:]
    return (shape[0], math.prod(shape[1:])) if len(shape) >= 2 else tuple(shape)


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and min(shape) >= 2


class _Block:
    """What its other tensors say of one in the same block."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = shapes  # by kind
        joined = [shape for kind, shape in shapes.items() if kind.endswith("c_attn")]
        self.turned = any(len(shape) == 2 and shape[1] == 3 * shape[0] for shape in joined)  # Conv1D of GPT-2

    def of(self, kind: str) -> tuple[int, ...] | None:
        """The shape of a kind, by its shared name."""
        return next((shape for own, shape in self.shapes.items() if _shared(own) == kind), None)


def _shared(kind: str) -> str:
    """The name that a kind shares with the same one in other families."""
    for pattern, name in _SHARED:
        match = pattern.fullmatch(kind)
        if match:
            return match.expand(name)
    return kind


def _thirds(rows: int, output: tuple[int, ...] | None) -> list[int] | None:
    """Where queries, keys and values of a joined matrix end; queries are as many as the output's inputs."""
    queries = output[1] if output is not None and len(output) == 2 else rows // 3
    keys, odd = divmod(rows - queries, 2)
    if odd or keys < 1 or queries % keys:
        queries, keys, odd = rows // 3, rows // 3, rows % 3
    return None if odd else [queries, queries + keys, rows]


def _split(piece: Piece, kinds: list[str], ends: list[int]) -> list[Piece]:
    """Pieces of the rows between these ends, each with its kind."""
    starts, block = [0, *ends], piece.layer.block
    return [
        replace(piece, layer=Layer(block, kind), shape=(stop - start, *piece.shape[1:]), start=start, stop=stop)
        for kind, start, stop in zip(kinds, starts, ends)
    ]


def _turned(piece: Piece) -> Piece:
    return replace(piece, transposed=True, shape=piece.shape[::-1])


def _experts(piece: Piece, shape: tuple[int, ...], kind: str, block: _Block) -> list[Piece]:
    """The matrices of all experts of a layer, which stand in one tensor: as in linear layers, or all turned round."""
    stem, _, part = piece.layer.kind.rpartition(".")
    up, down = (block.shapes.get(f"{stem}.{name}", ()) for name in ("gate_up_proj", "down_proj"))
    turned = (
        len(up) == len(down) == 3 and up[1] == down[2] and up[2] != down[1] and part in ("gate_up_proj", "down_proj")
    )
    # With biases, as in gpt-oss, gates and others take turns.
    joined = part == "gate_up_proj" and f"{stem}.gate_up_proj_bias" not in block.shapes
    found = []
    for index in range(shape[0]):
        one = replace(piece, index=index, shape=shape[1:])
        one = _turned(one) if turned else one
        if joined and one.shape[0] % 2 == 0:
            ends = [one.shape[0] // 2, one.shape[0]]
            found += _split(one, [f"experts.{index}.mlp_gate", f"experts.{index}.mlp_up"], ends)
        else:
            name = f"experts.{index}.{_FUSED.get(part, part)}" if "*" in kind else f"{kind}.{index}"
            found.append(replace(one, layer=Layer(one.layer.block, name)))
    return found


def _inside(raw: str, shape: tuple[int, ...], layer: Layer, block: _Block, rotated: int) -> list[Piece]:
    """The matrices, or the parts of a bias, that a tensor inside a block holds."""
    flat = _matrix_shape(raw, shape)
    kind = _shared(layer.kind)
    piece = Piece(raw, "", flat, layer, flat=len(shape) == 2)
    if len(shape) == 3 and "expert" in raw.lower():
        return _experts(piece, shape, kind, block)
    if (gates := _gates(kind, flat, block)) > 1:
        each = flat[0] // gates
        return _split(piece, [f"{kind}.{g}" for g in range(gates)], [each * (g + 1) for g in range(gates)])
    joined = _JOINED.fullmatch(layer.kind)
    if joined and block.turned and len(flat) == 2 and flat[1] == 3 * flat[0]:
        piece = _turned(piece)
    elif block.turned and len(flat) == 2 and kind in ("output", "mlp_up", "mlp_down"):
        piece = _turned(piece)
    if joined:
        path = "" if not joined["path"] or _PLAIN.fullmatch(joined["path"]) else f"{joined['path']}."
        ends = _thirds(piece.shape[0], block.of("output"))
        if ends is not None:
            return _split(piece, [f"{path}query", f"{path}key", f"{path}value"], ends)
    if _GATE_UP.fullmatch(layer.kind) and piece.shape[0] % 2 == 0:
        return _split(piece, ["mlp_gate", "mlp_up"], [piece.shape[0] // 2, piece.shape[0]])
    if piece.flat and _ORIENTED.fullmatch(kind) is None and max(flat) == 3 * min(flat) and min(flat) >= 8:
        # Most probably queries, keys and values, under a name that nobody knows: three squares.
        piece = piece if flat[0] > flat[1] else _turned(piece)
        return _split(piece, [f"{kind}.{third}" for third in range(3)], [min(flat) * (third + 1) for third in range(3)])
    if layer.kind in ("attention.wq", "attention.wk") and len(flat) == 2:
        piece = replace(piece, head=_head(flat[0], block.of("query") or flat, rotated))
    return [replace(piece, layer=Layer(layer.block, kind))]


def _gates(kind: str, flat: tuple[int, ...], block: _Block) -> int:
    """Gates of a recurrent layer whose matrices stand in one tensor: four of an LSTM, three of a GRU, else one.

    Torch names them so, and the matrix of the state has as many columns as one gate has outputs.
    """
    match = _RECURRENT.fullmatch(kind)
    state = block.shapes.get(f"weight_hh{match[2] or ''}") if match else None
    if state is None or len(state) != 2 or state[0] % state[1] or state[0] // state[1] not in (3, 4):
        return 1
    return state[0] // state[1] if flat[0] == state[0] else 1


def _head(rows: int, queries: tuple[int, ...], rotated: int) -> int:
    """Rows of a head of Meta's Llama: as many as are rotated; files that do not say are of Llama 3, with 64 or 128."""
    usual = (64, 128) if queries[0] <= 2048 else (128, 64)
    return next((size for size in (rotated, *usual) if size and rows % size == 0), 0)


def _weight_of(raw: str) -> Layer:
    """The layer that a tensor belongs to: that of its weight, for a bias."""
    if raw.endswith(".bias"):
        return place_of(raw.removesuffix(".bias") + ".weight")
    return place_of(re.sub(r"in_proj_bias$", "in_proj_weight", raw))


def pieces_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Piece]]:
    """What each tensor of a model is, from the names and the shapes of all of them.

    Where two pieces of a model would have one name, both keep their raw names.
    """
    flat = {raw: two for raw, shape in shapes.items() if _is_matrix(two := _matrix_shape(raw, tuple(shape)))}
    layers = {raw: _weight_of(raw) for raw in shapes}
    tables = tables_of(shapes, flat, layers)
    blocks: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for raw, shape in shapes.items():
        blocks[layers[raw].block][place_of(raw).kind] = tuple(shape)
    known = {block: _Block(kinds) for block, kinds in blocks.items()}
    rotated = next((2 * shape[0] for raw, shape in shapes.items() if raw.endswith("rope.freqs") and shape), 0)
    found: dict[str, list[Piece]] = {}
    for raw, shape in shapes.items():
        layer, block = layers[raw], known[layers[raw].block]
        if raw in flat and raw not in tables:
            inside = (
                _inside(raw, tuple(shape), layer, block, rotated)
                if layer.block
                else [Piece(raw, "", flat[raw], layer, flat=len(shape) == 2)]
            )
            found[raw] = [replace(piece, name=str(piece.layer)) for piece in inside]
        elif len(shape) == 1 and layer.block and raw.endswith("bias"):
            found[raw] = _bias(raw, tuple(shape), layer, block)
        else:
            found[raw] = [Piece(raw, canonical_name(raw), tuple(shape))]
    return _unlike(found)


def _bias(raw: str, shape: tuple[int, ...], layer: Layer, block: _Block) -> list[Piece]:
    """A bias inside a block: split as the weight is that it goes with."""
    parts = _inside(raw, shape, layer, block, 0)
    return [replace(part, layer=None, name=f"{part.layer}.bias") for part in parts]


def _unlike(found: dict[str, list[Piece]]) -> dict[str, list[Piece]]:
    """The same pieces, no two of one name."""
    count = Counter(piece.name for pieces in found.values() for piece in pieces)
    result = {}
    for raw, pieces in found.items():
        result[raw] = []
        for at, piece in enumerate(pieces):
            if count[piece.name] > 1:
                name = raw if len(pieces) == 1 else f"{raw}.{at}"
                piece = replace(piece, name=name, layer=piece.layer and Layer("", name))
            result[raw].append(piece)
    return result

"""Around each matrix of a model: which weights consume its outputs, and which write its inputs.

A gradient reaches a matrix through the weights that consume its output, and its inputs are what others wrote. Roles say
which these are (`ROLES`); where a role is not known, shapes and the order of the layers do.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mother.io.layers import Layer, sort_key
from mother.io.pieces import Piece

RESIDUAL = "residual"
# kind: (kinds in the same block that its outputs meet, kinds whose outputs, or inputs, are its inputs)
# A trailing "^" stands for the inputs of that kind, none for its outputs.
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "query": (("key",), (RESIDUAL,)),
    "key": (("query",), (RESIDUAL,)),
    "value": (("output^",), (RESIDUAL,)),
    "output": ((RESIDUAL,), ("value",)),
    "mlp_up": (("mlp_down^",), (RESIDUAL,)),
    "mlp_gate": (("mlp_down^",), (RESIDUAL,)),
    "mlp_down": ((RESIDUAL,), ("mlp_up", "mlp_gate")),
}
READERS, WRITERS = ("query", "key", "value", "mlp_up", "mlp_gate"), ("output", "mlp_down")
ATTENTION = ("query", "key", "value", "output")
_FIRST = re.compile(r"(.*[._])?(embed\w*|embeddings|wte|wpe|stem|conv_in|patch\w*|shared|projection)([._].*)?")
NEAREST = 2  # of weights that fit by their shapes
KEPT = 3  # sides that are kept; more are made again, and those of neighbours from one another
HEADS = (128, 64, 256, 96, 80, 32, 16, 8)  # usual rows of a head

Matrices = Mapping[str, Float[Tensor, "rows columns"]]  # by the name of the piece


@dataclass(frozen=True)
class Side:
    """One side of a matrix: the units there, and the weights on the other side of these units."""

    space: tuple  # units that are the same have one space
    signs: bool  # units of a head keep their places under the null: only their signs are open
    kernel: int  # entries of a row for each unit
    gram: Float[Tensor, "units units"]
    shared: int = 1  # queries' heads that one head of keys and values serves: their units are the same ones
    head: int = 0  # rows of such a head


def _unit(matrix: Float[Tensor, "units others"]) -> Float[Tensor, "units units"]:
    """Its Gram matrix over units, with the mean 1 on the diagonal."""
    gram = matrix @ matrix.T
    return gram * (len(gram) / gram.trace().clamp(min=1e-30))


def head_size(rows: int) -> int:
    """Rows of a head, of all rows of keys: the largest usual size of which there are two or more; 0 for none."""
    return next((size for size in HEADS if rows % size == 0 and rows // size >= 2), 0)


def grouped(matrix: Float[Tensor, "rows others"], units: int, head: int) -> Float[Tensor, "units more"] | None:
    """Rows of queries as those of the keys that serve them, or the other way; None where they do not fit."""
    rows = len(matrix)
    if rows == units:
        return matrix
    if not head or max(rows, units) % min(rows, units):
        return None
    groups = max(rows, units) // min(rows, units)
    if rows < units:
        return matrix.unflatten(0, (-1, head)).repeat_interleave(groups, 0).flatten(0, 1)
    return matrix.unflatten(0, (-1, groups, head)).transpose(1, 2).flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class _Sum:
    """The Gram matrices of some matrices, added."""

    of: frozenset[tuple[str, bool]]  # name, and whether it is turned
    total: Float[Tensor, "units units"]


class Surroundings:
    """The sides of each matrix of one model, made when they are asked for.

    The matrices may be read one at a time: none is kept. Asked for in the order of `ordered` each is read a few times.
    """

    def __init__(self, pieces: list[Piece], shapes: Mapping[str, tuple[int, ...]], matrices: Matrices, head: int = 0):
        """`head` are the rows of an attention head, where they are known."""
        self.matrices = matrices
        self.pieces = {piece.name: piece for piece in pieces if piece.name in matrices}
        self.kernel = {name: _kernel(piece, shapes[piece.raw]) for name, piece in self.pieces.items()}
        inside = [piece for piece in self.pieces.values() if piece.layer is not None and piece.layer.block]
        self.by_layer = {piece.layer: piece.name for piece in inside}
        self.order = sorted(self.pieces, key=self._place)
        self.width = {piece.layer.block: piece.shape[1] for piece in inside if piece.layer.kind in READERS}
        self.head = head
        self.made: OrderedDict[tuple, Side | None] = OrderedDict()
        self.sums: dict[tuple, _Sum] = {}  # by stack, side and units

    def _place(self, name: str) -> tuple:
        layer = self.pieces[name].layer
        if layer is None or not layer.block:
            return (0 if _FIRST.fullmatch(name) else 2, ("", -1, -1, name))
        return (1, sort_key(layer))

    def forget(self) -> None:
        """Let go of all that was made from matrices."""
        self.made.clear()
        self.sums.clear()

    def ordered(self, names: Iterable[str]) -> list[tuple[str, int]]:
        """(name, side) of matrices: outputs from the last one on, then inputs from the first one on.

        So what is behind, or before, one of them is what is behind the last one, and more.
        """
        place = {name: at for at, name in enumerate(self.order)}
        forward = sorted((name for name in names if name in place), key=lambda name: place[name])
        return [(name, 0) for name in reversed(forward)] + [(name, 1) for name in forward]

    def outputs(self, name: str) -> Side | None:
        """What consumes the outputs of a matrix; None where nothing is known to."""
        return self._side(name, 0)

    def inputs(self, name: str) -> Side | None:
        """What writes the inputs of a matrix; None where nothing is known to."""
        return self._side(name, 1)

    def _side(self, name: str, side: int) -> Side | None:
        layer = self.pieces[name].layer
        roles = ROLES.get(layer.kind, ((), ()))[side] if layer is not None and layer.block else ()
        if roles == (RESIDUAL,):
            key = (RESIDUAL, side, layer.block, layer.kind in ("mlp_down", "mlp_up", "mlp_gate"))
        else:
            key = (name, side)
        if key not in self.made:
            found = None
            if roles == (RESIDUAL,):
                found = self._residual(layer, side)
            elif roles:
                found = self._beside(layer, roles, self.pieces[name].shape[side])
            self.made[key] = found or self._by_shape(name, side)
            if len(self.made) > KEPT:
                self.made.popitem(last=False)
        return self.made[key]

    def _beside(self, layer: Layer, roles: tuple[str, ...], units: int) -> Side | None:
        """The weights in the same block that share the units of a side."""
        parts, smallest, head = [], units, 0
        for role in roles:
            name = self.by_layer.get(Layer(layer.block, role.removesuffix("^")))
            if name is None:
                continue
            matrix = self.matrices[name].T if role.endswith("^") else self.matrices[name]
            head = self.head or head_size(min(len(matrix), units))
            smallest = min(smallest, len(matrix))
            matrix = grouped(matrix, units, head)
            if matrix is not None:
                parts.append(_unit(matrix))
        if not parts:
            return None
        attention = layer.kind in ATTENTION
        space = (layer.block, "values" if layer.kind in ("value", "output") else layer.kind if attention else "mlp")
        return Side((*space, units), attention, 1, sum(parts) / len(parts), units // smallest, head)

    def _residual(self, layer: Layer, side: int) -> Side | None:
        """Those that read the stream behind a matrix (side 0), or wrote into it before (side 1)."""
        units = self.width.get(layer.block)
        stack = layer.block.rpartition(".")[0]
        at, late = sort_key(layer), layer.kind in ("mlp_down", "mlp_up", "mlp_gate")
        parts: set[tuple[str, bool]] = set()  # name, and whether its inputs are the units
        for name, piece in self.pieces.items():
            other, shape = piece.layer, self._shape(name)
            if other is None or not other.block:
                first = _FIRST.fullmatch(name) is not None
                if first == bool(side) and units in shape and (shape[0] != shape[1]):
                    parts.add((name, shape[0] != units))
                continue
            if other.block.rpartition(".")[0] != stack or other.kind not in (WRITERS if side else READERS):
                continue
            step, now = sort_key(other)[1], at[1]
            if side and (step < now or (step == now and late and other.kind == "output")):
                parts.add((name, False))
            if not side and (step > now or (step == now and not late and other.kind.startswith("mlp"))):
                parts.add((name, True))
        if not side and not any(_outside(self.pieces[name]) and not _FIRST.fullmatch(name) for name in self.pieces):
            parts |= {(n, True) for n in self.pieces if _FIRST.fullmatch(n) and self._shape(n)[1] == units}  # tied
        parts = {(name, turned) for name, turned in parts if self._shape(name)[int(turned)] == units}
        return Side((RESIDUAL, stack, units), False, 1, self._mean((stack, side, units), parts)) if parts else None

    def _shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        shape = self.pieces[name].shape
        return shape[0], math.prod(shape[1:])

    def _mean(self, key: tuple, parts: set[tuple[str, bool]]) -> Float[Tensor, "units units"]:
        """The mean Gram matrix of some matrices; what was added up before is used where it is a part of them."""
        known = self.sums.get(key)
        if known is None or not known.of <= parts:
            known = None
        total = known.total if known is not None else 0.0
        for name, turned in sorted(parts - (known.of if known is not None else frozenset())):
            matrix = self.matrices[name]
            total = total + _unit(matrix.T if turned else matrix)
        self.sums[key] = _Sum(frozenset(parts), total)
        return total / len(parts)

    def _by_shape(self, name: str, side: int) -> Side | None:
        """The nearest matrices behind that take as many units as this one gives, or before that give as many."""
        at, piece = self.order.index(name), self.pieces[name]
        kernel = self.kernel[name] if side else 1
        units = piece.shape[1] // kernel if side else piece.shape[0]
        found = []
        for other in reversed(self.order[:at]) if side else self.order[at + 1 :]:
            shape, inner = self._shape(other), self.kernel[other]
            if len(found) == NEAREST:
                break
            if side and shape[0] == units:
                found.append(self.matrices[other])
            elif not side and shape[1] == units * inner:
                found.append(self.matrices[other].unflatten(1, (units, inner)).transpose(0, 1).flatten(1))
        parts = [_unit(part) for part in found]
        return Side(("units", units), False, kernel, sum(parts) / len(parts)) if parts and units > 2 else None


def _kernel(piece: Piece, shape: tuple[int, ...]) -> int:
    """Entries of a row for each input: those of a convolution's kernel."""
    return piece.shape[1] // shape[1] if len(shape) > 2 and shape[1] and piece.shape[1] % shape[1] == 0 else 1


def _outside(piece: Piece) -> bool:
    return piece.layer is None or not piece.layer.block

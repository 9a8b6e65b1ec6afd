"""Around each matrix of a model: which weights consume its outputs, and which write its inputs.

A gradient reaches a matrix through the weights that consume its output, and its inputs are what others wrote. Roles say
which these are (`ROLES`, `sites.py`); where a role is not known, shapes and the order of the layers do.
"""

import itertools
import math
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mother.evidence.sites import ATTENTION, Path, Site, order_key, sites_of
from mother.io.pieces import Piece

RESIDUAL = "residual"
# kind: (kinds in the same attention or MLP that its outputs meet, kinds whose outputs, or inputs, are its inputs)
# A trailing "^" stands for the inputs of that kind, none for its outputs.
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "query": (("key",), (RESIDUAL,)),
    "key": (("query",), (RESIDUAL,)),
    "value": (("output^",), (RESIDUAL,)),
    "output": ((RESIDUAL,), ("value",)),
    "mlp_up": (("mlp_down^",), (RESIDUAL,)),
    "mlp_gate": (("mlp_down^",), (RESIDUAL,)),
    "mlp_joined": ((), (RESIDUAL,)),
    "mlp_down": ((RESIDUAL,), ("mlp_up", "mlp_gate", "mlp_joined")),
}
READERS, WRITERS = ("query", "key", "value", "mlp_up", "mlp_gate", "mlp_joined"), ("output", "mlp_down")
_FIRST = re.compile(
    r"(.*[._])?(embed\w*|embeddings|wte|wpe|stem|conv_in|patch\w*|shared|(?<![a-z]_)projection)([._].*)?"
)
NEAREST = 2  # of weights that fit by their shapes
KEPT = 3  # sides that are kept; more are made again, and those of neighbours from one another
HEADS = (128, 64, 256, 96, 80, 32, 16, 8)  # usual rows of a head

Matrices = Mapping[str, Float[Tensor, "rows columns"]]  # by the name of the piece


@dataclass(frozen=True)
class Side:
    """One side of a matrix: the units there, and the weights on the other side of these units."""

    space: tuple  # units that are the same, or may be, have one space
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
        self.convolved = {name for name, piece in self.pieces.items() if len(shapes[piece.raw]) > 2}
        self.sites = sites_of(self.pieces)
        self.modules: dict[tuple[Path, str], list[str]] = defaultdict(list)
        for name, site in self.sites.items():
            self.modules[site.module, site.kind].append(name)
        self.looking = {site.stack for site in self.sites.values() if site.turn == 1}  # streams that look at others
        self.order = sorted(self.pieces, key=self._place)
        self.at = {name: at for at, name in enumerate(self.order)}
        self.blocks: dict[Path, list[str]] = defaultdict(list)
        for name in self.order:
            self.blocks[self._block(name)].append(name)
        self.head = head
        self.made: OrderedDict[tuple, Side | None] = OrderedDict()
        self.sums: dict[tuple, _Sum] = {}  # by stack, side and units

    def _place(self, name: str) -> tuple:
        site = self.sites.get(name)
        if site is not None:
            kinds = (*ATTENTION, "mlp_gate", "mlp_up", "mlp_joined", "mlp_down")
            turn = (site.turn, kinds.index(site.kind) if site.kind in kinds else len(kinds))
            return (1, order_key(site.block), turn, order_key(name.split(".")))
        if name in self.convolved and "." in name and not _FIRST.fullmatch(name):  # a block without a number
            return (1, order_key(name.split(".")[:-1]), (2, 0), order_key(name.split(".")))
        return (0 if _FIRST.fullmatch(name) else 2, (), (), order_key(name.split(".")))

    def forget(self) -> None:
        """Let go of all that was made from matrices."""
        self.made.clear()
        self.sums.clear()

    def ordered(self, names: Iterable[str]) -> list[tuple[str, int]]:
        """(name, side) of matrices: outputs from the last one on, then inputs from the first one on.

        So what is behind, or before, one of them is what is behind the last one, and more.
        """
        forward = sorted((name for name in names if name in self.at), key=lambda name: self.at[name])
        return [(name, 0) for name in reversed(forward)] + [(name, 1) for name in forward]

    def outputs(self, name: str) -> Side | None:
        """What consumes the outputs of a matrix; None where nothing is known to."""
        return self._side(name, 0)

    def inputs(self, name: str) -> Side | None:
        """What writes the inputs of a matrix; None where nothing is known to."""
        return self._side(name, 1)

    def _side(self, name: str, side: int) -> Side | None:
        site = self.sites.get(name)
        roles = ROLES.get(site.kind, ((), ()))[side] if site is not None else ()
        if roles == (RESIDUAL,):
            key = (RESIDUAL, side, site.block, site.turn, self._crossed(site))
        else:
            key = (name, side)
        if key not in self.made:
            found = None
            if roles == (RESIDUAL,):
                found = self._residual(name, site, side)
            elif roles:
                found = self._beside(site, roles, self.pieces[name].shape[side])
            if found is None and not (roles == (RESIDUAL,) and self._crossed(site)):
                found = self._by_shape(name, side)
            self.made[key] = found
            if len(self.made) > KEPT:
                self.made.popitem(last=False)
        return self.made[key]

    @staticmethod
    def _crossed(site: Site) -> bool:
        """Whether a matrix reads what another stream ends in."""
        return site.turn == 1 and site.kind in ("key", "value")

    def _beside(self, site: Site, roles: tuple[str, ...], units: int) -> Side | None:
        """The weights in the same attention or MLP that share the units of a side."""
        parts, smallest, head, attention = [], units, 0, site.kind in ATTENTION
        for role in roles:
            for name in self.modules.get((site.module, role.removesuffix("^")), ()):
                matrix = self.matrices[name].T if role.endswith("^") else self.matrices[name]
                if attention:
                    head = self.head or head_size(min(len(matrix), units))
                    smallest = min(smallest, len(matrix))
                    matrix = grouped(matrix, units, head)
                elif len(matrix) % units == 0:  # of a gate and what it opens in one matrix: both meet the same units
                    matrix = matrix.unflatten(0, (-1, units)).transpose(0, 1).flatten(1)
                else:
                    matrix = None
                if matrix is not None:
                    parts.append(_unit(matrix))
        if not parts:
            return None
        space = "mlp" if not attention else "values" if site.kind in ("value", "output") else "keys"
        gram = sum(parts) / len(parts)
        return Side((site.module, space), attention, 1, gram, units // smallest, head)

    def _residual(self, name: str, site: Site, side: int) -> Side | None:
        """Those that read the stream behind a matrix (side 0), or wrote into it before (side 1)."""
        units = self._shape(name)[side]
        ends = self._crossed(site)
        # A stream that others look at ends in them, not in a head.
        last = side == 1 or not self.looking or site.stack in self.looking
        parts: set[tuple[str, bool]] = set()  # name, and whether its inputs are the units
        for other_name in self.pieces:
            other, shape = self.sites.get(other_name), self._shape(other_name)
            if other is None:
                first = _FIRST.fullmatch(other_name) is not None
                if first == bool(side) and last and units in shape and (shape[0] != shape[1]):
                    parts.add((other_name, shape[0] != units))
            elif other.kind not in (WRITERS if side else READERS):
                continue
            elif ends or self._crossed(other):
                if (other if ends else site).stack not in self.looking:
                    parts.add((other_name, not side))
            elif other.stack == site.stack:
                ahead = (other.step, other.turn) > (site.step, site.turn)
                behind = (other.step, other.turn) < (site.step, site.turn)
                if behind if side else ahead:
                    parts.add((other_name, not side))
        if not side and last and not any(n not in self.sites and not _FIRST.fullmatch(n) for n in self.pieces):
            parts |= {(n, True) for n in self.pieces if _FIRST.fullmatch(n) and self._shape(n)[1] == units}  # tied
        parts = {(one, turned) for one, turned in parts if self._shape(one)[int(turned)] == units}
        stream = site.stack if not ends else ("other than", *site.stack)
        # Streams of one width may be tied by an embedding, and what goes by shape may stand on one: one space for all.
        return Side(("units",), False, 1, self._mean((stream, side, units), parts)) if parts else None

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
        """The nearest matrices behind that take as many units as this one gives, or before that give as many.

        In its own block they are all that take them; else those that others in their block do not feed, as far as the
        next that takes another number. A convolution whose inputs are more takes them first, and then those of a skip.
        """
        at, units = self.at[name], self._units(name, side)
        line = self.order[:at][::-1] if side else self.order[at + 1 :]
        line = [one for one in line if self.pieces[one].raw != self.pieces[name].raw]
        alike = [one for one in line if (one in self.convolved) == (name in self.convolved)]
        found = self._met(name, side, alike) or self._met(name, side, line)
        parts = [_unit(self._other_side(one, units, side)) for one in found[:NEAREST]]
        kernel = self.kernel[name] if side else 1
        return Side(("units",), False, kernel, sum(parts) / len(parts)) if parts and units > 2 else None

    def _met(self, name: str, side: int, line: list[str]) -> list[str]:
        """Those of a line of matrices that share the units of a side, the nearest first."""
        block, units = self._block(name), self._units(name, side)
        found = [one for one in line if self._block(one) == block and self._units(one, 1 - side) == units]
        if found:
            return found
        ends = [one for one in line if self._block(one) != block and self._is_end(one, 1 - side)]
        fits = [self._units(one, 1 - side) == units for one in ends]
        if True not in fits:
            joined = not side and name in self.convolved
            return [one for one in ends if joined and one in self.convolved and self._units(one, 1) > units][:1]
        start = fits.index(True)
        return [one for one, _ in zip(ends[start:], itertools.takewhile(bool, fits[start:]))]

    def _units(self, name: str, side: int) -> int:
        """How many outputs, or inputs, a matrix has."""
        return self._shape(name)[1] // self.kernel[name] if side else self._shape(name)[0]

    def _block(self, name: str) -> Path:
        return self.sites[name].block if name in self.sites else tuple(name.split(".")[:-1] or [name])

    def _is_end(self, name: str, side: int) -> bool:
        """Whether no other matrix of its block takes what it gives (side 0), or gives what it takes."""
        return not any(
            (self.at[one] < self.at[name] if side else self.at[one] > self.at[name])
            and (one in self.convolved) == (name in self.convolved)
            and self.pieces[one].raw != self.pieces[name].raw
            and self._units(one, 1 - side) == self._units(name, side)
            for one in self.blocks[self._block(name)]
        )

    def _other_side(self, name: str, units: int, side: int) -> Float[Tensor, "units more"]:
        """A matrix over the outputs that it gives (side 1), or over the first inputs that it takes."""
        matrix = self.matrices[name]
        if side:
            return matrix
        return matrix.unflatten(1, (-1, self.kernel[name]))[:, :units].transpose(0, 1).flatten(1)


def _kernel(piece: Piece, shape: tuple[int, ...]) -> int:
    """Entries of a row for each input: those of a convolution's kernel."""
    return piece.shape[1] // shape[1] if len(shape) > 2 and shape[1] and piece.shape[1] % shape[1] == 0 else 1

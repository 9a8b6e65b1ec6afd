"""Recurrent nodes of ONNX: their tensors as torch names and orders those of its recurrent layers.

One tensor W, R or B of a node holds both directions and all gates, B the biases of inputs and of states too.
https://onnx.ai/onnx/operators/onnx__LSTM.html, and GRU, RNN; https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mother.io.reader import BITS, MAX_NAME

# The gates of torch by their places in ONNX: i, f, g, o of i, o, f, c; r, z, n of z, r, h.
GATES: dict[str, list[int]] = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
LONGEST = 24  # characters that are added to the name of a module: ".weight_ih_l100_reverse"
_NAMELESS = re.compile(r"(/.*/)?Constant(_\d+)?_output_0|onnx::\w+|val_\d+")
Row = list[Any]  # name, type, shape, first and last byte, file outside, and how it is stored


class Cell(NamedTuple):
    """A node of a recurrent layer: its kind, the path of its module, its inputs."""

    kind: str
    path: str | None
    inputs: list[str]

    @property
    def tensors(self) -> list[str]:
        """The names of W, R and, where it has one, B."""
        return self.inputs[1:4] if self.inputs[3:4] != [""] else self.inputs[1:3]

    @property
    def states(self) -> list[str]:
        """The names of the states that it begins with."""
        return self.inputs[5:7]


def _parts(row: Row, ends: Sequence[str], gates: list[int]) -> list[Row]:
    """A tensor as those of torch that lie one after another in it, each with its gates in the order of ONNX."""
    _, dtype, shape, start, end, outside, _ = row
    each, own = (end - start) // len(ends), [math.prod(shape[:2]) // len(ends), *shape[2:]]
    places = range(start, end + 1, each) if each else [start] * len(ends)
    return [[name, dtype, own, at, at + each, outside, gates] for name, at in zip(ends, places)]


def _torch_rows(cell: Cell, rows: dict[str, Row], stem: str, layer: int) -> list[Row]:
    """The tensors of one node as those of a layer of torch; none where they do not fit each other."""
    gates = GATES[cell.kind]
    own = [rows[name] for name in cell.tensors]
    shapes = [tuple(row[2]) for row in own]
    if any(len(shape) != length for shape, length in zip(shapes, (3, 3, 2))):
        return []
    directions, high, hidden = shapes[1]
    fits = directions in (1, 2) and hidden and high == len(gates) * hidden and shapes[0][:2] == (directions, high)
    if not fits or shapes[2:] not in ([], [(directions, 2 * high)]):
        return []
    if any(row[1] not in BITS or row[6] for row in own):
        return []
    ways = [f"{layer}{'_reverse' * way}" for way in range(directions)]
    ends = [[f"weight_ih_l{way}" for way in ways], [f"weight_hh_l{way}" for way in ways]]
    ends.append([f"bias_{part}_l{way}" for way in ways for part in ("ih", "hh")])
    return [one for row, names in zip(own, ends) for one in _parts(row, [stem + name for name in names], gates)]


def as_torch(table: list[Row], cells: list[Cell], expanded: Mapping[str, str]) -> list[Row]:
    """All rows of a file, with those of recurrent nodes as torch has them, and without the zeros that they begin with.

    `expanded` gives what a node makes larger, by what comes out. States that have a name are weights, and stay.

    The nodes of one module are its layers, in their order. A node whose tensors are not stored, are another node's too,
    or have no free names keeps what it has: an exporter may have left them to be joined when the model runs.
    """
    rows, taken = {row[0]: row for row in table}, set[str]()
    made, layers = list[Row](), Counter[str]()
    names = set(rows)
    for cell in cells:
        if len(cell.tensors) < 2 or any(name not in rows or name in taken for name in cell.tensors):
            continue
        stem = cell.tensors[0] if cell.path is None else cell.path
        found = _torch_rows(cell, rows, f"{stem}." if stem else "", layers[stem])
        if found and max(len(row[0]) for row in found) <= MAX_NAME and not any(row[0] in names for row in found):
            layers[stem] += 1
            taken.update(cell.tensors)
            names.update(row[0] for row in found)
            made += found
    starts = {expanded.get(name, name) for cell in cells for name in cell.states}
    taken |= {name for name in starts if _NAMELESS.fullmatch(name)}
    return [row for row in table if row[0] not in taken] + made

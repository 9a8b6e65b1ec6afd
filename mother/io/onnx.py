"""ONNX files: the initializers of a graph, by ranges. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto

The package `onnx` loads a whole file into memory; what is needed of it, names, shapes and places, is a walk over the
fields of its Protocol Buffers. Exporters lose the names of matrices that they turn round or join. The module that they
were in stands in the name of the node that uses them, `/encoder/layer.0/query/MatMul`, or, of `torch.onnx.export` with
`dynamo=True`, in its metadata.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mother.errors import shown
from mother.io.onnx_recurrent import GATES, LONGEST, Cell, as_torch
from mother.io.places import File, Place, check_inside, is_plain
from mother.io.reader import BITS, DTYPES, MAX_NAME, Listing, Reader, TensorInfo, bytes_of, is_count, is_shape

MOST_FIELDS = 1_000_000  # that are looked at; an exporter writes about thirty for a tensor
LEAST, MOST = 1 << 10, 1 << 16  # bytes that are read at once: few after a jump, more where they follow one another
TYPES = {1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64"}

TYPES |= {12: "U32", 13: "U64", 16: "BF16", 17: "F8_E4M3", 19: "F8_E5M2"}

# Numbers of fields: of the model, the graph, a node, its attribute, a tensor, and a text by its key.
GRAPH, NODE, INITIALIZER = 7, 1, 5
INPUT, OUTPUT, NAME_OF_NODE, KIND, ATTRIBUTE, METADATA, VALUE, BRANCH = 1, 2, 3, 4, 5, 9, 5, 6
BRANCHING = ("If", "Loop", "Scan")  # nodes whose attributes are graphs
DIMENSIONS, TYPE, FLOATS, NAME, RAW, DOUBLES, OUTSIDE, PLACE = 1, 2, 4, 8, 9, 10, 13, 14
SCOPES = "pkg.torch.onnx.name_scopes"  # key of the metadata that name the modules around a node
_LOST = re.compile(r"(onnx::)?[A-Za-z]*_?[0-9]+|onnx::\w+|_v_[0-9]+|val_[0-9]+")
Read = Callable[[int, int], bytes]
Field = tuple[int, Any]  # number; a number, or where a text, a message or packed numbers begin and end


class _Walk:
    """Reads fields of messages, and what it has to of the bytes between them."""

    def __init__(self, read: Read, size: int):
        self.fetch, self.size, self.fields = read, size, 0
        self.start, self.content, self.step = 0, b"", LEAST

    def bytes(self, start: int, end: int) -> bytes:
        """Some bytes; raises ValueError where they are not there."""
        if not 0 <= start <= end <= self.size or end - start > MOST:
            raise ValueError(f"the file is truncated or damaged: bytes {start} to {end} of {self.size} are asked for")
        last = self.start + len(self.content)
        if not (self.start <= start and end <= last):
            follows = self.start <= start <= last
            self.step = min(2 * self.step, MOST) if follows else LEAST
            until = min(self.size, max(end, start + self.step))
            self.start, self.content = start, self.fetch(start, until)
        found = self.content[start - self.start : end - self.start]
        if len(found) < end - start:
            raise ValueError(f"the file is truncated at byte {self.start + len(self.content)}")
        return found

    def number(self, at: int, end: int) -> tuple[int, int]:
        """A number of seven bits a byte, and where it ends."""
        value = 0
        for place, byte in enumerate(self.bytes(at, min(end, at + 10))):
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                return value, at + place + 1
        raise ValueError(f"the file is damaged: a number at byte {at} does not end")

    def of(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message between two places."""
        at = start
        while at < end:
            self.fields += 1
            if self.fields > MOST_FIELDS:
                raise ValueError(f"it has more than {MOST_FIELDS} fields")
            tag, at = self.number(at, end)
            kind, value = tag & 7, None
            if kind == 0:
                value, at = self.number(at, end)
            elif kind == 2:
                length, at = self.number(at, end)
                value, at = (at, at + length), at + length
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise ValueError(f"the file is damaged: byte {at} begins no field")
            if at > end:
                raise ValueError(f"the file is truncated or damaged: a field ends at byte {at}, its message at {end}")
            if value is not None:
                yield tag >> 3, value

    def text(self, place: Any) -> str:
        """The text at a place; raises ValueError for a number, and for one that is too long."""
        if not isinstance(place, tuple) or place[1] - place[0] > 4 * MAX_NAME:
            raise ValueError("the file is damaged: a name is none")
        return self.bytes(*place).decode("utf-8", errors="replace")


def _dimensions(walk: _Walk, value: Any) -> list[int]:
    """Dimensions that stand one by one, or packed."""
    if not isinstance(value, tuple):
        return [value]
    if value[1] - value[0] > 4 * MAX_NAME:
        raise ValueError("a tensor has too many dimensions")
    found, at = [], value[0]
    while at < value[1]:
        one, at = walk.number(at, value[1])
        found.append(one)
    return found


def _tensor(walk: _Walk, place: Any, named: str | None = None) -> list[Any]:
    """A row: name, type, shape, first and last byte, file outside; raises ValueError."""
    shape, kind, name, data, outside, away = [], 0, named, None, {}, False
    for number, value in walk.of(*place) if isinstance(place, tuple) else ():
        if number == DIMENSIONS:
            shape += _dimensions(walk, value)
        elif number == TYPE:
            kind = value
        elif number == NAME and named is None:
            name = walk.text(value)
        elif number in (RAW, FLOATS, DOUBLES) and isinstance(value, tuple):
            fits = number == RAW or kind == {FLOATS: 1, DOUBLES: 11}[number]
            data = value if data is None and fits else (0, -1)  # in several parts it is not read
        elif number == OUTSIDE and isinstance(value, tuple):
            entry = {key: walk.text(text) for key, text in walk.of(*value) if key in (1, 2)}
            outside[entry.get(1, "")] = entry.get(2, "")
        elif number == PLACE:
            away = value == 1
    dtype = TYPES.get(kind, f"type {shown(kind)}")
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
        raise ValueError(f"the name {shown(name)} of a tensor is not usable")
    if not is_shape(shape):
        raise ValueError(f"tensor {name} has the shape {shown(shape)}")
    length = math.prod(shape) * BITS.get(dtype, 8) // 8
    if name == "":
        raise ValueError("a tensor has no name")
    if away and dtype in BITS:
        first, said = outside.get("offset", "0"), outside.get("length", str(length))
        if not (first.isdecimal() and said.isdecimal() and len(first) < 20 and int(said or 0) == length):
            raise ValueError(f"tensor {name} of shape {shown(shape)} has {shown(said)} bytes at {shown(first)} outside")
        return [name, dtype, shape, int(first), int(first) + length, outside.get("location", "")]
    if length and (data is None or data[1] < data[0] or dtype not in BITS):
        return [name, "a list of numbers" if dtype in BITS else dtype, shape, 0, 0, None]
    start, end = data if data is not None and length else (0, 0)
    if end - start != length:
        raise ValueError(f"tensor {name} of shape {shown(shape)} and type {dtype} cannot have {end - start} bytes")
    return [name, dtype, shape, start, end, None]


class _Node(NamedTuple):
    """A node of the graph."""

    kind: str
    path: str | None  # of the module that it belongs to
    inputs: list[str]
    outputs: list[str]
    values: list[Any]  # where the tensors or graphs in its attributes are


def _path(name: str, scopes: str) -> str | None:
    """The path of the module that a node belongs to; None where nothing says it, or it can be no name."""
    if name.startswith("/"):
        found = ".".join(name.strip("/").split("/")[:-1])
    else:
        modules = re.findall(r"'([^']*)'", scopes)  # from the outermost in, and the operation at last
        found = modules[-2] if len(modules) > 1 else None
    usable = found is not None and found.isprintable() and len(found) <= MAX_NAME - LONGEST
    return found if usable else None


def _node(walk: _Walk, place: Any) -> _Node:
    """Read a node; raises ValueError."""
    name, kind, scopes, inputs, outputs, values = "", "", "", [], [], []
    for number, value in walk.of(*place) if isinstance(place, tuple) else ():
        if number == INPUT:
            inputs.append(walk.text(value))
        elif number == OUTPUT:
            outputs.append(walk.text(value))
        elif number == NAME_OF_NODE:
            name = walk.text(value)
        elif number == KIND:
            kind = walk.text(value)
        elif number == ATTRIBUTE and kind in ("", "Constant", *BRANCHING) and isinstance(value, tuple):
            values += [one for one in walk.of(*value) if isinstance(one[1], tuple)]
        elif number == METADATA and kind in ("", "MatMul", *GATES) and isinstance(value, tuple):
            entry = dict(walk.of(*value))
            if isinstance(entry.get(1), tuple) and entry[1][1] - entry[1][0] == len(SCOPES):
                scopes = walk.text(entry.get(2)) if walk.text(entry[1]) == SCOPES else scopes
    wanted = BRANCH if kind in BRANCHING else VALUE if kind == "Constant" else None
    return _Node(kind, _path(name, scopes), inputs, outputs, [one for inner, one in values if inner == wanted])


def read_table(read: Read, size: int) -> list[list[Any]]:
    """A row for each tensor: name, type, shape, bytes, file outside, and how it is stored; raises ValueError.

    The last is None for as it is, "turned", or the places of the gates that torch has one after another.
    """
    walk = _Walk(read, size)
    graphs = [value for number, value in walk.of(0, size) if number == GRAPH and isinstance(value, tuple)]
    if len(graphs) != 1:
        raise ValueError(f"this is no ONNX file: it has {len(graphs)} graphs")
    rows: dict[str, list[Any]] = {}
    used: dict[str, str] = {}  # a matrix -> the module that multiplies by it
    cells, expanded = list[Cell](), dict[str, str]()
    for at, graph in enumerate(graphs):  # to which those are added that nodes hold
        for number, value in walk.of(*graph):
            found = []
            if number == NODE:
                node = _node(walk, value)
                if node.kind == "MatMul" and len(node.inputs) == 2 and node.path:
                    used.setdefault(node.inputs[1], node.path)
                if node.kind in GATES:
                    cells.append(Cell(node.kind, node.path, node.inputs))
                if node.kind == "Expand":
                    expanded |= dict(zip(node.outputs, node.inputs))
                if node.kind in BRANCHING:
                    graphs += node.values
                elif node.outputs:
                    found = [_tensor(walk, one, node.outputs[0]) for one in node.values]
            elif number == INITIALIZER:
                found = [_tensor(walk, value)]
            for row in found:
                if row[0] in rows and at == 0:
                    raise ValueError(f"a tensor {row[0]} stands twice in it")
                # The branches of a node may use one name each.
                row[0] = f"branch {at}.{row[0]}" if row[0] in rows else row[0]
                rows[row[0]] = row
    if not rows:
        raise ValueError("it holds no tensors")
    names = set(rows)
    table = []
    for name, row in rows.items():
        own = f"{used.get(name, '')}.weight"
        lost = _LOST.fullmatch(name) is not None and name in used and len(row[2]) == 2 and own not in names
        names.add(own if lost else name)
        table.append([own, *row[1:], "turned"] if lost else [*row, None])
    return as_torch(table, cells, expanded)


def _turned(dtype: str, shape: tuple[int, ...], part: Any) -> np.ndarray:
    """A matrix as it stands in a linear layer, (outputs, inputs)."""
    from mother.io.checkpoint import decoded

    return np.ascontiguousarray(decoded(part, dtype).reshape(shape).T)


def _gates(dtype: str, shape: tuple[int, ...], order: list[int], part: Any) -> np.ndarray:
    """A tensor of a recurrent layer with its gates in the order of torch."""
    from mother.io.checkpoint import decoded

    return decoded(part, dtype).reshape(len(order), -1)[order].reshape(shape)


def _listing(place: Place, file: File, state: str | None) -> Listing:
    tensors: dict[str, tuple[File, TensorInfo]] = {}
    others: dict[str, File] = {}
    for name, dtype, stored, start, end, outside, how in file.remembered(lambda: read_table(bytes_of(file), file.size)):
        there, shape = file, tuple(stored)
        if not shape:
            continue  # a constant of the graph, and no weight
        if outside is not None:
            if not is_plain(outside):
                raise ValueError(f"it names the file {shown(outside, 300)}, outside its folder")
            if outside not in others:
                check_inside(place, file, outside)
                others[outside] = place.open(outside)
            there = others[outside]
        if not (is_count(start) and start <= end <= there.size):
            raise ValueError(f"the file is truncated: tensor {name} ends at byte {end} of {there}")
        unpack = None
        if how and how != [0] and dtype in DTYPES:
            unpack = partial(_turned, dtype, shape) if how == "turned" else partial(_gates, dtype, shape, how)
        shape = shape[::-1] if unpack and how == "turned" else shape
        tensors[name] = (there, TensorInfo(dtype, shape, start, end, None, unpack))
    return Listing(tensors)


def _recognises(head: bytes) -> bool:
    """There is no magic number: a small version of the format comes first, then one of a few fields."""
    return head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")


READER = Reader("ONNX", (".onnx",), _recognises, _listing)

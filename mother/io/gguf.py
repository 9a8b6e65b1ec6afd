"""GGUF files of llama.cpp: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

The header is parsed here, with bounds, because it comes from strangers and is read by ranges; blocks of quantized
weights are undone by the numpy code of the package `gguf`. Tensors come under the names of transformers and in its
order of rows, so that a file is compared with what it was made from.
"""

import math
import re
import struct
from collections.abc import Callable
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np

from mother.errors import shown
from mother.io.gguf_names import heads_of, shift_of, transformers_name
from mother.io.places import File, Place
from mother.io.reader import DTYPES, HEAD, MAX_NAME, Listing, Reader, Storage, TensorInfo, bytes_of, is_shape

MAGIC = b"GGUF"
MAX_HEADER = 100_000_000  # bytes; the largest in use have about fifteen million, of vocabularies
MOST_KEPT = 4096  # numbers of a list, and letters of a text, that are kept
MOST_NESTED = 4  # lists in lists
MOST_DIMENSIONS = 4  # that ggml has
MOST_FILES = 1000  # that a model is split into
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
PLAIN = {"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE)
Read = Callable[[int, int], bytes]


class _Cursor:
    """Reads a header from its beginning; asks for twice as much whenever it needs more."""

    def __init__(self, read: Read, size: int):
        self.read, self.size, self.at, self.content = read, size, 0, b""

    def take(self, count: int) -> bytes:
        """The next bytes; raises ValueError where the file ends before."""
        end = self.at + count
        if end > self.size:
            raise ValueError(f"the file is truncated: its header ends at byte {end} or later, the file at {self.size}")
        if end > MAX_HEADER:
            raise ValueError(f"the header has more than {MAX_HEADER} bytes")
        if end > len(self.content):
            until = min(self.size, MAX_HEADER, max(end, 2 * len(self.content), HEAD))
            self.content += self.read(len(self.content), until)
        found = self.content[self.at : end]
        if len(found) < count:
            raise ValueError("the file is truncated inside its header")
        self.at = end
        return found

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        """A text; one that is no UTF-8 with marks for what is none."""
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of a type; of long lists and texts nothing is kept."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            text = self.text()
            return text if len(text) <= MOST_KEPT else None
        if kind != LIST or depth >= MOST_NESTED:
            raise ValueError(f"the header has a value of the unknown type {kind}, or lists nested too deeply")
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            width = struct.calcsize(NUMBERS[inner])
            content = self.take(count * width)
            return list(struct.unpack(f"<{count}{NUMBERS[inner]}", content)) if count <= MOST_KEPT else None
        for _ in range(count):  # each takes eight bytes at least
            if inner == TEXT:
                self.take(self.number("Q"))
            else:
                self.value(inner, depth + 1)
        return None


def read_header(read: Read, size: int) -> tuple[dict[str, Any], list[list[Any]]]:
    """Facts about the model, and of each tensor its name, type, shape and byte range; raises ValueError.

    `read(start, end)` returns these bytes of the file.
    """
    cursor = _Cursor(read, size)
    if cursor.take(4) != MAGIC:
        raise ValueError("this is no GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}, or big-endian; 2 and 3 are read")
    tensors, count = cursor.number("Q"), cursor.number("Q")
    facts: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text()
        if key in facts:
            raise ValueError(f"the key {shown(key)} stands twice in the header")
        facts[key] = cursor.value(cursor.number("I"))
    rows, names = [], set()
    for _ in range(tensors):
        name, dimensions = cursor.text(), cursor.number("I")
        if not name or not name.isprintable() or len(name) > MAX_NAME or name in names:
            raise ValueError(f"the name {shown(name)} of a tensor is not usable, or stands twice")
        names.add(name)
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = [cursor.number("Q") for _ in range(dimensions)][::-1]  # ggml counts from the innermost
        kind, offset = cursor.number("I"), cursor.number("Q")
        rows.append([name, kind, shape, offset])
    alignment = facts.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
        raise ValueError(f"the alignment is {shown(alignment)}")
    return facts, _places(rows, -(-cursor.at // alignment) * alignment, alignment, size)


def _places(rows: list[list[Any]], base: int, alignment: int, size: int) -> list[list[Any]]:
    """The same tensors with the names of their types and their byte ranges; raises ValueError where they cannot be."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    known, found = {*GGMLQuantizationType}, []
    for name, kind, shape, offset in rows:
        if kind not in known:
            raise ValueError(f"tensor {name} has the unknown type {kind}")
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not is_shape(shape) or (shape[-1] if shape else 1) % block:
            raise ValueError(f"tensor {name} has the shape {shown(shape)}, which is not of whole blocks of {block}")
        start = base + offset
        end = start + math.prod(shape) // block * width
        if offset % alignment or end > size:
            raise ValueError(f"the file is truncated or damaged: tensor {name} ends at byte {end}, the file at {size}")
        found.append([name, GGMLQuantizationType(kind).name, shape, start, end])
    last = 0
    for name, _, _, start, end in sorted(found, key=lambda row: row[3:]):
        if start < last:
            raise ValueError(f"tensor {name} starts at byte {start}, the one before it ends at {last}")
        last = end
    return found


def _unpacked(kind: str, shape: tuple[int, ...], heads: int, shift: float, part: Any) -> np.ndarray:
    """The numbers of a tensor in float32, its rows in the order of transformers."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # what is not finite is refused later
        if kind in ("F32", "F16", "F64"):
            values = np.frombuffer(part, dtype=f"<f{int(kind[1:]) // 8}").astype(np.float32)
        else:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
            stored = np.frombuffer(part, dtype=np.uint8).reshape(-1, shape[-1] // block * width)
            values = np.asarray(dequantize(stored, GGMLQuantizationType[kind]), dtype=np.float32)
    values = values.reshape(shape)
    if heads:  # neighbours that are rotated together, to the halves that transformers has
        values = values.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    return np.ascontiguousarray(values + np.float32(shift) if shift else values)


def _info(row: list[Any]) -> tuple[str, TensorInfo]:
    name, kind, shape, start, end, heads, shift = row
    shape = tuple(shape)
    if kind in PLAIN and not heads and not shift:
        return name, TensorInfo(kind, shape, start, end)
    from gguf.quants import _type_traits  # which types its code undoes

    if kind not in {one.name for one in _type_traits} | DTYPES.keys():  # integers, and what only llama.cpp undoes
        return name, TensorInfo(kind, shape, start, end)
    storage = None if kind in PLAIN else Storage("gguf", detail=kind)
    dtype = kind if kind in DTYPES else "F32"
    return name, TensorInfo(dtype, shape, start, end, storage, partial(_unpacked, kind, shape, heads, shift))


def read_table(read: Read, size: int) -> dict[str, Any]:
    """What a file holds as JSON: how many files the model is split into, and a row for each tensor."""
    facts, rows = read_header(read, size)
    if facts.get("general.type") == "adapter":
        raise ValueError("it is an adapter in the form of llama.cpp, which is not read: give the one it was made from")
    family, tensors = facts.get("general.architecture"), []
    family = family if isinstance(family, str) else ""
    for name, kind, shape, start, end in rows:
        heads = heads_of(family, name, facts)
        if heads < 0 or (heads and (not shape or shape[0] % (2 * heads))):
            raise ValueError(f"tensor {name} of shape {shown(shape)} does not consist of {heads} heads")
        tensors.append([transformers_name(family, name), kind, shape, start, end, heads, shift_of(family, name)])
    if len({row[0] for row in tensors}) < len(tensors):  # two that a family calls the same keep their names
        tensors = [[row[0], *one[1:]] for row, one in zip(rows, tensors)]
    count = facts.get("split.count")
    return {"files": count if isinstance(count, int) else 1, "tensors": tensors}


def _listing(place: Place, file: File, state: str | None) -> Listing:
    table = file.remembered(lambda: read_table(bytes_of(file), file.size))
    tensors = {name: (file, info) for name, info in map(_info, table["tensors"])}
    split = _SHARD.fullmatch(PurePath(str(file)).name)
    if split is None and table["files"] > 1:
        raise ValueError(f"it is one of {table['files']} files, and its name does not say which (...-00001-of-...)")
    if split is not None and table["files"] > 1 and int(split["number"]) == 1:
        count = int(split["count"])
        if count != table["files"] or count > MOST_FILES:
            raise ValueError(f"it says that it is one of {table['files']} files, its name of {count}")
        for number in range(2, count + 1):
            other = place.open(f"{split['stem']}-{number:05}-of-{split['count']}.gguf")
            for name, found in _listing(place, other, state).tensors.items():
                if tensors.setdefault(name, found) is not found:
                    raise ValueError(f"tensor {name} stands in two of its files")
    return Listing(tensors)


READER = Reader("GGUF", (".gguf",), lambda head: head[:4] == MAGIC, _listing)

"""Flax `.msgpack` files: maps in maps whose leaves are arrays, walked through by ranges without a package.

https://github.com/google/flax/blob/main/flax/serialization.py: an array is extension 1, (shape, type, bytes) packed
once more. Format of MessagePack: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import math
from functools import partial
from typing import Any

import numpy as np

from mother.io.places import File, Place
from mother.io.reader import BITS, DTYPES, MAX_NAME, Listing, Reader, TensorInfo, bytes_of, is_shape

TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "int64": "I64"}
TYPES |= {"int8": "I8", "uint8": "U8", "uint32": "U32", "bool": "BOOL"}
MOST, DEPTH, AHEAD = 1_000_000, 64, 1 << 12  # values and levels that are looked at; bytes that are read at once
# First byte -> what follows, and how many bytes say its length.
SIZED = {0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4), 0xC4: ("bytes", 1), 0xC5: ("bytes", 2)}
SIZED |= {0xC6: ("bytes", 4), 0xC7: ("array", 1), 0xC8: ("array", 2), 0xC9: ("array", 4), 0xDC: ("list", 2)}
SIZED |= {0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)}
PLAIN = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | {0xCC + k: 1 << k % 4 for k in range(8)}  # bytes of others


class _Walk:
    """Reads one value after another, and the bytes of arrays never."""

    def __init__(self, file: File):
        self.read, self.size, self.at, self.values = bytes_of(file), file.size, 0, 0
        self.start, self.content = 0, b""

    def take(self, count: int) -> bytes:
        """The next bytes; raises ValueError where they are not there."""
        if count > AHEAD or self.at + count > self.size:
            raise ValueError(f"the file is truncated or damaged at byte {self.at}")
        if not self.start <= self.at <= self.at + count <= self.start + len(self.content):
            self.start, self.content = self.at, self.read(self.at, min(self.at + AHEAD, self.size))
        self.at += count
        return self.content[self.at - count - self.start : self.at - self.start]

    def next(self) -> tuple[str, int]:
        """Kind and length of the next value; of a small number, itself; of an extension without its type."""
        first, self.values = self.take(1)[0], self.values + 1
        if self.values > MOST:
            raise ValueError(f"it holds more than {MOST} values")
        if first in SIZED:
            kind, width = SIZED[first]
            return kind, int.from_bytes(self.take(width), "big")
        if 0xD4 <= first <= 0xD8:
            return "array", 1 << first - 0xD4
        if first in PLAIN:
            return "number", int.from_bytes(self.take(PLAIN[first]), "big")
        for low, mask, kind in ((0x80, 0xF0, "map"), (0x90, 0xF0, "list"), (0xA0, 0xE0, "text")):
            if first & mask == low:
                return kind, first & ~mask & 0xFF
        if first == 0xC1:
            raise ValueError(f"byte {self.at - 1} begins no value")
        return "number", first

    def text(self) -> str:
        """The next value, which has to be a text."""
        kind, count = self.next()
        if kind not in ("text", "bytes") or count > MAX_NAME:
            raise ValueError(f"there is no name at byte {self.at}")
        return self.take(count).decode("utf-8")

    def array(self, length: int) -> list[Any] | None:
        """Type, shape, start and end of an array; None of another extension."""
        if self.take(1)[0] != 1:
            self.at += length
            return None
        end, (kind, parts), (shaped, count) = self.at + length, self.next(), self.next()
        if (kind, parts, shaped) != ("list", 3, "list") or count > DEPTH:
            raise ValueError(f"the array before byte {self.at} has no shape")
        shape = [self.next()[1] for _ in range(count)]
        dtype, (_, stored) = self.text(), self.next()
        if dtype not in TYPES or not is_shape(shape) or self.at + stored != end or end > self.size:
            raise ValueError(
                f"the array before byte {self.at} has the type {dtype!r}, shape {shape} and {stored} bytes"
            )
        if 8 * stored != math.prod(shape) * BITS[TYPES[dtype]]:
            raise ValueError(f"an array of shape {shape} and type {dtype} cannot have {stored} bytes")
        start, self.at = self.at, end
        return [TYPES[dtype], shape, start, end]

    def tree(self, name: str, depth: int, found: dict[str, list[Any]]) -> None:
        """Add the arrays of the next value to `found`, by the names above them."""
        kind, length = self.next()
        if depth > DEPTH or len(name) > MAX_NAME:
            raise ValueError("its maps are too deep")
        if kind in ("map", "list"):
            for k in range(length):
                key = self.text() if kind == "map" else str(k)
                if key == "__msgpack_chunked_array__":
                    raise ValueError(f"{name} is stored in pieces, as Flax stores arrays of more than 1 GB")
                self.tree(f"{name}.{key}" if name else key, depth + 1, found)
        elif kind == "array" and (array := self.array(length)) is not None:
            found[name] = array
        elif kind in ("text", "bytes"):
            self.at += length


def _turned(dtype: str, shape: tuple[int, ...], part: Any) -> np.ndarray:
    """A kernel of Flax, (..., inputs, outputs), as torch holds it: (outputs, inputs, ...)."""
    from mother.io.checkpoint import decoded

    values = decoded(part, dtype).reshape(shape)
    return np.ascontiguousarray(np.moveaxis(values, (-1, -2), (0, 1)))


def read_table(file: File) -> dict[str, list[Any]]:
    """Name -> type, shape, start and end of every array. Raises ValueError."""
    found: dict[str, list[Any]] = {}
    _Walk(file).tree("", 0, found)
    return found


def _listing(place: Place, file: File, state: str | None) -> Listing:
    tensors: dict[str, tuple[File, TensorInfo]] = {}
    aside: set[str] = set()
    table = file.remembered(lambda: read_table(file))
    trained = any(name.startswith("params.") for name in table)  # beside it may stand what an optimizer keeps
    for name, (dtype, stored, start, end) in table.items():
        if trained and not name.startswith(("params.", "batch_stats.")):
            aside.add(name.split(".")[0])
            continue
        stem, _, last = name.removeprefix("params.").rpartition(".")
        shape, unpack = tuple(stored), None
        if last == "kernel" and len(shape) >= 2 and dtype in DTYPES:
            unpack = partial(_turned, dtype, shape)
            shape = (shape[-1], shape[-2], *shape[:-2])
        last = "weight" if last in ("kernel", "scale", "embedding") else last
        name = f"{stem}.{last}" if stem else last
        if name in tensors:
            raise ValueError(f"two of its arrays are called {name}")
        tensors[name] = (file, TensorInfo(dtype, shape, start, end, None, unpack))
    return Listing(tensors, tuple(sorted(aside)))


def _recognises(head: bytes) -> bool:
    """A map whose first key is a text."""
    first = head[:1]
    key = {b"\xde": 3, b"\xdf": 5}.get(first, 1 if first and first[0] & 0xF0 == 0x80 else 0)
    return bool(key) and (head[key : key + 1] == b"\xd9" or b"\xa1" <= head[key : key + 1] <= b"\xbf")


READER = Reader("Flax", (".msgpack",), _recognises, _listing)

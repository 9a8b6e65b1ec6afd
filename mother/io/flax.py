"""Flax `.msgpack` files: maps in maps whose leaves are arrays, walked by the package `msgpack` without their bytes.

https://github.com/google/flax/blob/main/flax/serialization.py: an array is extension 1, (shape, type, bytes) packed
once more. How bytes and extensions begin: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import math
from typing import Any

from mother.errors import shown
from mother.io.places import File, Place
from mother.io.reader import BITS, MAX_NAME, Listing, Reader, bytes_of, is_shape
from mother.io.turned import Stored, listed

TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "int64": "I64"}
TYPES |= {"int8": "I8", "uint8": "U8", "uint32": "U32", "bool": "BOOL"}
MAPS, LISTS, BYTES, ARRAY = {*range(0x80, 0x90), 0xDE, 0xDF}, {*range(0x90, 0xA0), 0xDC, 0xDD}, {0xC4, 0xC5, 0xC6}, 1
SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes of their lengths
SIZED |= {first: 0 for first in range(0xD4, 0xD9)}
MOST, DEPTH, AHEAD = 200_000, 64, 1 << 12  # values and levels that are looked at; bytes that are read at once


class _Walk:
    """Takes one value after another from where the last one ended."""

    def __init__(self, file: File):
        self.read, self.size, self.at, self.values = bytes_of(file), file.size, 0, 0
        self.start, self.content = 0, b""

    def ahead(self) -> bytes:
        """What comes next: enough for any name or number. Raises ValueError where nothing does."""
        if not self.start <= self.at <= self.start + len(self.content) - AHEAD // 2:
            self.start, self.content = self.at, self.read(self.at, min(max(self.at, self.at + AHEAD), self.size))
        if self.at >= self.size:
            raise ValueError(f"the file is truncated at byte {self.size}")
        if self.values >= MOST:
            raise ValueError(f"it has more than {MOST} values")
        return self.content[self.at - self.start :]

    def next(self, kind: str = "unpack") -> Any:
        """The next value; or how many there are in the next map or list. Raises ValueError."""
        import msgpack

        unpacker, self.values = msgpack.Unpacker(max_buffer_size=AHEAD, strict_map_key=False), self.values + 1
        unpacker.feed(self.ahead())
        try:
            found = getattr(unpacker, kind)()
        except (ValueError, TypeError, msgpack.UnpackException):
            raise ValueError(f"the file is truncated or damaged at byte {self.at}") from None
        self.at += unpacker.tell()
        return found

    def enter(self) -> int:
        """Go to the content of bytes, of a long text or of an extension; returns where it ends. Raises ValueError."""
        first, *length = self.ahead()[: 1 + SIZED[self.ahead()[0]]]
        self.at, self.values = self.at + 1 + len(length), self.values + 1
        end = self.at + (int.from_bytes(length, "big") if length else 1 << first - 0xD4)
        end += first not in BYTES and first < 0xD9  # an extension has its number before its content
        if end > self.size:
            raise ValueError(f"the file is truncated: it ends before byte {end}")
        return end

    def tree(self, name: str, depth: int, found: dict[str, list[Any]]) -> None:
        """Add the arrays of the next value to `found`, by the names above them: type, shape, start and end."""
        first = self.ahead()[0]
        if first in MAPS or first in LISTS:
            for k in range(self.next("read_map_header" if first in MAPS else "read_array_header")):
                key = self.next() if first in MAPS else str(k)
                if not isinstance(key, str) or len(name) + len(key) >= MAX_NAME or depth >= DEPTH:
                    raise ValueError(f"there is no usable name before byte {self.at}")
                if key == "__msgpack_chunked_array__":
                    raise ValueError(f"{name} is stored in pieces, as Flax stores arrays of more than 1 GB")
                self.tree(f"{name}.{key}" if name else key, depth + 1, found)
        elif first not in SIZED:
            self.next()
        else:
            end = self.enter()
            if first not in BYTES and first < 0xD9 and self.next() == ARRAY:
                if name in found:
                    raise ValueError(f"two of its arrays are called {name}")
                found[name] = self.array(end)
            self.at = end

    def array(self, end: int) -> list[Any]:
        """Type, shape, start and end of the array that ends there. Raises ValueError."""
        parts, shape, dtype = self.next("read_array_header"), self.next(), self.next()
        if parts != 3 or not isinstance(shape, list) or not is_shape(shape) or self.ahead()[0] not in BYTES:
            raise ValueError(f"the array before byte {self.at} has the shape {shown(shape)}")
        stored = self.enter() - self.at
        if (
            not isinstance(dtype, str)
            or dtype not in TYPES
            or 8 * stored != math.prod(shape) * BITS[TYPES[dtype]]
            or self.at + stored != end
        ):
            raise ValueError(f"an array of shape {shape} and type {shown(dtype)} cannot have {stored} bytes")
        return [TYPES[dtype], shape, self.at, end]


def read_table(file: File) -> dict[str, list[Any]]:
    """Name -> type, shape, start and end of every array. Raises ValueError."""
    walk, found = _Walk(file), dict[str, list[Any]]()
    try:
        walk.tree("", 0, found)
        if walk.at < file.size:
            raise ValueError(f"it ends at byte {walk.at} of {file.size}")
    except ValueError as error:
        raise error if found else ValueError(f"it holds no arrays: {error}") from None
    return found


def _listing(place: Place, file: File, state: str | None) -> Listing:
    table = file.remembered(lambda: read_table(file))
    trained = any(path.startswith("params.") for path in table)  # beside it may stand what an optimizer keeps
    aside = {path.split(".")[0] for path in table if trained and not path.startswith(("params.", "batch_stats."))}
    arrays = []
    for path, row in table.items():
        stem, _, last = path.removeprefix("params.").rpartition(".")
        name = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(last, last)
        name = f"{stem}.{name}" if stem else name
        if path.split(".")[0] not in aside:
            arrays.append(Stored(path, name, last == "kernel", *row))
    return listed(file, arrays, aside)


def _recognises(head: bytes) -> bool:
    """A map whose first key is a text."""
    first = head[:1]
    key = {b"\xde": 3, b"\xdf": 5}.get(first, 1 if first and first[0] & 0xF0 == 0x80 else 0)
    return bool(key) and (head[key : key + 1] == b"\xd9" or b"\xa1" <= head[key : key + 1] <= b"\xbf")


READER = Reader("Flax", (".msgpack",), _recognises, _listing)

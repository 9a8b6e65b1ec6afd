"""What a format's reader says: which files it knows, which tensors one holds, where their bytes are and what they mean.

Each format has a module with a `READER`, and its line in `mother/io/readers.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mother.io.places import File, Place

MAX_DIMENSIONS = 64
MAX_ENTRIES = 1 << 59  # of a tensor, also of its dimensions that are not 0: numpy multiplies those and 8 bytes, too
MAX_NAME = 300  # characters of a tensor's name; the longest in use have about a hundred
HEAD = 1 << 16  # bytes by which a file is recognised: as many as come with one request

# Floating-point types that weights come in, and torch's names of them. Others (integers, fp8) are listed but not read,
# unless a packed format says what they stand for.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}

BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64, "C128": 128}

BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}


@dataclass(frozen=True)
class Storage:
    """How a tensor was stored that is given in float32: its format, and what of that varies."""

    format: str  # "gguf", "gptq", "awq", "nf4", "fp8", ...
    bits: int | None = None
    group: int | None = None  # entries that share a scale
    detail: str = ""  # "Q4_K", "double", ...

    def __str__(self) -> str:
        bits = f"{self.bits} bit" if self.bits is not None else ""
        first = " ".join(part for part in (self.format, bits) if part)
        if self.format == "gguf" or (self.format == "fp8" and self.bits is None):  # cast, without scales
            return f"{self.format} {self.detail}"
        return ", ".join(part for part in (first, f"group {self.group}" if self.group else "", self.detail) if part)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: its type, its shape, and its byte range in the file.

    Where the bytes are not its numbers one after another, `unpack` makes them from the bytes, in float32, and `storage`
    says what they are.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    storage: Storage | None = None
    unpack: Callable[[Any], np.ndarray] | None = None


@dataclass(frozen=True)
class Listing:
    """The tensors of a file, and what else is in it: optimizers, averages, settings."""

    tensors: dict[str, tuple[File, TensorInfo]]
    aside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A format of files. `listing` raises ValueError with what is wrong with a file."""

    name: str
    suffixes: tuple[str, ...]  # of files that are looked for in folders
    recognises: Callable[[bytes], bool]  # by the first HEAD bytes
    listing: Callable[[Place, File, str | None], Listing]  # of a file in a place; the state that is asked for
    remedy: str = "Fetch or save the model again."


def is_shape(shape: Sequence[object]) -> bool:
    """Whether these may be the dimensions of a tensor: few, and with a product that can be counted in bytes."""
    entries = 1
    for size in shape if len(shape) <= MAX_DIMENSIONS else [None]:
        if not is_count(size) or (entries := entries * max(size, 1)) > MAX_ENTRIES:
            return False
    return True


def is_count(value: object) -> bool:
    """Whether this is a number that may count entries or bytes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def bytes_of(file: File) -> Callable[[int, int], bytes]:
    """A function that gives bytes start to end of a file: from its head where they are there."""
    head = file.head(HEAD)

    def read(start: int, end: int) -> bytes:
        return head[start:end] if end <= len(head) else bytes(file.read([(start, end)])[0])

    return read

"""The header of a safetensors file: which tensor lies where. Hostile input is refused with its reason.

A file is 8 bytes (little-endian length n of the header), n bytes of JSON, then the data; see the format's
description in the safetensors repository. We read it ourselves so that a checkpoint is neither mapped into
memory nor loaded as a whole.
"""

import json
import math

from mother.errors import shown
from mother.io.places import File, Place
from mother.io.reader import BITS, MAX_NAME, Listing, Reader, TensorInfo, is_count, is_shape
from mother.io.reader import DTYPES as DTYPES  # where others look for it

MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key stands twice in the header")
    return keys


def header_length(first: bytes, file_size: int) -> int:
    """Length of the JSON part, from the first 8 bytes; raises ValueError where it cannot be."""
    if file_size < 8 or len(first) < 8:
        raise ValueError(f"the file is truncated: it has {file_size} bytes, not even a header")
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER:
        raise ValueError(f"this is no safetensors file: it claims a header of {length} bytes")
    if length + 8 > file_size:
        raise ValueError(f"the file is truncated: its header ends at byte {length + 8}, the file at {file_size}")
    return length


def parse_header(content: bytes, file_size: int) -> dict[str, TensorInfo]:
    """Parse the JSON part of a header and check every byte range in it; raises ValueError with the reason."""
    try:
        entries = json.loads(content.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError:
        raise ValueError("the header is not UTF-8") from None
    except RecursionError:
        raise ValueError("the header is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the header is not JSON: {error}") from None
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise ValueError(f"the header is not usable: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError("the header is not a JSON object")
    entries.pop("__metadata__", None)
    base = 8 + len(content)
    tensors = {}
    for name, entry in entries.items():
        if not name.isprintable():  # also lone surrogates, which no result could be written with
            raise ValueError(f"the name {ascii(name)[:MAX_NAME]} of a tensor is not printable")
        if len(name) > MAX_NAME:
            raise ValueError(f"the name {name[:MAX_NAME]}... of a tensor has {len(name)} characters")
        tensors[name] = _tensor(name, entry, base, file_size)
    position = base
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            raise ValueError(f"tensor {name} starts at byte {info.start}, the one before it ends at {position}")
        position = info.end
    if position != file_size:
        raise ValueError(f"the tensors end at byte {position}, the file at {file_size}")
    return tensors


def _tensor(name: str, entry: object, base: int, file_size: int) -> TensorInfo:
    """Check one entry of the header."""
    if not isinstance(entry, dict):
        raise ValueError(f"the entry of tensor {name} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {name} has the unknown type {shown(dtype)}")
    if not isinstance(shape, list) or not is_shape(shape):
        raise ValueError(f"tensor {name} has the shape {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise ValueError(f"tensor {name} has the offsets {shown(offsets)}")
    start, end = base + offsets[0], base + offsets[1]
    if end > file_size:
        raise ValueError(f"the file is truncated: tensor {name} ends at byte {end}, the file at {file_size}")
    if (end - start) * 8 != math.prod(shape) * BITS[dtype]:
        raise ValueError(f"tensor {name} of shape {shape} and type {dtype} cannot have {end - start} bytes")
    return TensorInfo(dtype, tuple(shape), start, end)


def metadata(file: File) -> dict[str, str]:
    """The texts that stand beside the tensors in a header; {} where there are none, or they are damaged."""
    try:
        length = header_length(file.head(8), file.size)
        found = json.loads(file.head(8 + length)[8:].decode("utf-8"))["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def _listing(place: Place, file: File, state: str | None) -> Listing:
    length = header_length(file.head(8), file.size)
    found = parse_header(file.head(8 + length)[8:], file.size)
    return Listing({name: (file, info) for name, info in found.items()})


def _recognises(head: bytes) -> bool:
    return int.from_bytes(head[:8], "little") <= MAX_HEADER and head[8:9] == b"{"


READER = Reader("safetensors", (".safetensors",), _recognises, _listing)

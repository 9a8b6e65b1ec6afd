"""Files of torch before 1.6, and of its `_use_new_zipfile_serialization=False`: pickles, then storages one by one.

Five pickles: a magic number, the version, facts about the system, what was saved, and the keys of the storages in
their order. Then of each storage the number of its entries in 8 bytes, and the entries. See `_legacy_save` in
torch/serialization.py. Read by ranges: as much of the beginning as the pickles take, and the eight bytes of each.
"""

import pickle
from collections.abc import Callable
from typing import Any

from mother.io.reader import BITS, MAX_NAME
from mother.io.unpickler import TensorUnpickler

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
STEPS = (1 << 16, 1 << 20, 1 << 24, 100_000_000)  # bytes that are tried in turn: where the pickles end is not said
Read = Callable[[int, int], bytes]
Locate = Callable[[str], tuple[int, int]]  # key of a storage -> its first byte and its length; raises KeyError


def unpickled(load: Callable[[], Any]) -> Any:
    """What `load()` builds; raises ValueError, whatever it raises."""
    try:
        return load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"the pickle is refused: {' '.join(str(error).split())[:MAX_NAME]}") from None
    except Exception as error:  # noqa: BLE001  A hostile pickle raises nearly anything.
        raise ValueError(f"the pickle is damaged ({type(error).__name__})") from None


def _pickles(content: bytes) -> tuple[Any, Any, Any, dict[str, tuple[str, int]], int]:
    """Facts about the system, what was saved, the keys, type and entries of each storage, and where all that ends."""
    at, found, storages = len(MAGIC), [], {}
    for _ in range(4):
        reader = TensorUnpickler(content, at)
        found.append(reader.load())
        storages |= {key: (one.dtype, one.count) for key, one in reader.storages.items()}
        at = reader.stream.tell()
    return found[1], found[2], found[3], storages, at


def read_legacy(read: Read, size: int) -> tuple[Any, Locate]:
    """What was saved, and where its storages are; raises ValueError."""
    content = b""
    for step in STEPS:
        content += read(len(content), min(step, size))
        try:
            system, built, keys, storages, at = unpickled(lambda: _pickles(content))
            break
        except ValueError:
            if step >= size or step == STEPS[-1]:
                raise
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("the tensors are not said to be stored in little-endian order")
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise ValueError("the pickle lists storages that are none")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        dtype, count = storages[key]
        length = count * BITS[dtype] // 8
        if key in places or at + 8 + length > size:
            raise ValueError("the file is truncated, or it has a storage twice")
        places[key] = (at + 8, length)
        at += 8 + length

    def locate(key: str) -> tuple[int, int]:
        start, length = places[key]
        if int.from_bytes(read(start - 8, start), "little") != storages[key][1]:
            raise ValueError("a storage has not as many entries as the pickle says")
        return start, length

    return built, locate

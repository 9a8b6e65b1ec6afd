"""Pickled checkpoints (`pytorch_model.bin`): which tensor lies where, without running a single line of theirs.

Since torch 1.6 such a file is a zip archive: a small pickle that builds a dictionary of tensors, and one uncompressed
member for each storage. The pickle is read by an unpickler that knows the few names by which torch rebuilds tensors and
gives stand-ins for them; any other name is refused, so nothing that a pickle could call is ever called. What comes
out is byte ranges, so that tensors are read where they stand, from disk or over HTTP.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from mother.io.safetensors import BITS, MAX_NAME, TensorInfo
from mother.io.unpickler import StoredTensor, TensorUnpickler

MAX_PICKLE = 100_000_000  # bytes of the pickle inside the archive
MAX_MEMBERS = 200_000
MAX_DIRECTORY = 1 << 24  # bytes of the archive's directory; torch writes about seventy for a tensor
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where training scripts put the weights
Read = Callable[[int, int], bytes]


class _Window(io.RawIOBase):
    """A file-like view of a file that is read by ranges; keeps what it has read, in blocks."""

    BLOCK = 1 << 16

    def __init__(self, read: Read, size: int):
        self.fetch, self.size, self.position = read, size, 0
        self.blocks: dict[int, bytes] = {}
        self.most = MAX_DIRECTORY  # bytes of one look

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def read(self, count: int = -1) -> bytes:
        end = self.size if count is None or count < 0 else min(self.size, self.position + count)
        start = min(self.position, end)
        if end - start > self.most:
            raise ValueError(f"the archive's directory or pickle has {end - start} bytes")
        first, last = start // self.BLOCK, -(-end // self.BLOCK)
        missing = [block for block in range(first, last) if block not in self.blocks]
        if missing:
            low, high = missing[0] * self.BLOCK, min(self.size, (missing[-1] + 1) * self.BLOCK)
            content = self.fetch(low, high)
            for block in range(missing[0], missing[-1] + 1):
                at = block * self.BLOCK - low
                self.blocks[block] = content[at : at + self.BLOCK]
        joined = b"".join(self.blocks[block] for block in range(first, last))
        self.position = end
        return joined[start - first * self.BLOCK : end - first * self.BLOCK]


def _data_start(read: Read, member: zipfile.ZipInfo, size: int) -> int:
    """Where the bytes of an uncompressed member begin: its local header says how long its own name and extra are."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"member {member.filename} is compressed or encrypted, as torch never writes it")
    if not 0 <= member.header_offset <= size - 30:
        raise ValueError("the archive is damaged: a member lies outside the file")
    header = read(member.header_offset, member.header_offset + 30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError("the archive is damaged: a member has no header")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra


def _check_directory(window: _Window, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members of an archive; raises ValueError where torch would find other ones.

    Python looks for the directory just before the end of the file, torch where the end says. Of two members of one name
    each takes another one, and torch does not look at their case.
    """
    at = window.size - 22
    window.seek(at)
    end = window.read(22)
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ValueError("the archive has a comment or is damaged at its end, as torch never writes it")
    offset = int.from_bytes(end[16:20], "little")
    window.seek(max(0, at - 20))
    locator = window.read(20)
    if locator[:4] == b"PK\x06\x07":
        window.seek(int.from_bytes(locator[8:16], "little"))
        offset = int.from_bytes(window.read(56)[48:], "little")
    if offset != archive.start_dir:
        raise ValueError("the archive's directory is not where its end says")
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"the archive has {len(members)} members")
    seen: set[str] = set()
    for member in members:
        name = member.filename.lower()
        if name in seen:
            raise ValueError(f"the archive has two members {ascii(member.filename)[1:-1][:MAX_NAME]}")
        seen.add(name)
    return members


def _read_pickle(window: _Window) -> tuple[bytes, str, dict[str, zipfile.ZipInfo]]:
    """The pickle of an archive, the folder that it lies in, and all members by their names. Raises ValueError."""
    with zipfile.ZipFile(window) as archive:
        members = {member.filename: member for member in _check_directory(window, archive)}
        pickles = [name for name in members if name.lower().endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1 or not pickles[0].endswith("data.pkl"):
            raise ValueError(f"the archive has {len(pickles)} pickles, not one")
        stem = pickles[0].removesuffix("data.pkl")
        order = members.get(f"{stem}byteorder")
        if any(one.compress_type != zipfile.ZIP_STORED for one in (members[pickles[0]], order) if one is not None):
            raise ValueError("the pickle is compressed, as torch never writes it")
        window.most = MAX_PICKLE
        if order is not None and order.file_size < 100:
            if archive.read(order) != b"little":
                raise ValueError("the tensors are stored in big-endian order")
        if members[pickles[0]].file_size > MAX_PICKLE:
            raise ValueError(f"the pickle has {members[pickles[0]].file_size} bytes")
        return archive.read(pickles[0]), stem, members


def parse_pickle(read: Read, size: int) -> dict[str, TensorInfo]:
    """Names, types, shapes and byte ranges of the tensors of a zip-format pickle; raises ValueError with the reason.

    `read(start, end)` returns these bytes of the file. A strided view is listed with the type "view", and not read.
    """
    window = _Window(read, size)
    if window.read(4) != b"PK\x03\x04":
        raise ValueError("this is no zip archive, as torch has written since 1.6")
    try:
        content, stem, members = _read_pickle(window)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"the archive is damaged: {error}") from None
    try:
        found = TensorUnpickler(content).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"the pickle is refused: {' '.join(str(error).split())[:MAX_NAME]}") from None
    except Exception as error:  # noqa: BLE001  A hostile pickle raises nearly anything.
        raise ValueError(f"the pickle is damaged ({type(error).__name__})") from None
    return _tensors(_state_dict(found), stem, members, read, size)


def _state_dict(found: Any) -> dict[Any, Any]:
    """The dictionary of tensors, at the top or where training scripts put it."""
    if isinstance(found, dict) and not any(isinstance(value, StoredTensor) for value in found.values()):
        for name in NESTED:
            if isinstance(found.get(name), dict):
                return found[name]
    if not isinstance(found, dict):
        raise ValueError("the pickle holds no dictionary of tensors")
    return found


def _tensors(
    state: dict[Any, Any], stem: str, members: dict[str, zipfile.ZipInfo], read: Read, size: int
) -> dict[str, TensorInfo]:
    starts: dict[str, int] = {}
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(tensor, StoredTensor):
            continue  # step counts, configurations
        if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
            raise ValueError(f"the name {ascii(name)[:MAX_NAME]} of a tensor is not usable")
        storage = tensor.storage
        member = members.get(f"{stem}data/{storage.key}")
        if member is None:
            raise ValueError(f"the storage of tensor {name} is missing")
        if storage.key not in starts:
            starts[storage.key] = _data_start(read, member, size)
        expected, strides = 1, []
        for length in reversed(tensor.shape):
            strides.insert(0, expected)
            expected *= max(length, 1)
        contiguous = all(
            stride == plain or length <= 1 for stride, plain, length in zip(tensor.strides, strides, tensor.shape)
        )
        width = BITS[storage.dtype] // 8
        start = starts[storage.key] + tensor.offset * width
        end = start + math.prod(tensor.shape) * width
        if contiguous and not 0 <= start <= end <= size:
            raise ValueError(f"tensor {name} lies outside the file")
        if contiguous and (end > starts[storage.key] + member.file_size or end > size):
            raise ValueError(f"the file is truncated: tensor {name} ends at byte {end}")
        if not contiguous:
            start = end = 0
        tensors[name] = TensorInfo(storage.dtype if contiguous else "view", tensor.shape, start, end)
    if not tensors:
        raise ValueError("the pickle holds no tensors")
    return tensors

"""Pickled checkpoints (`pytorch_model.bin`): which tensor lies where, without running a single line of theirs.

Since torch 1.6 such a file is a zip archive: a small pickle that builds a dictionary of tensors, or a module, and one
uncompressed member for each storage; before, the pickle and then the storages (mother/io/legacy.py). The pickle is read
by an unpickler that gives stand-ins for whatever it names, so nothing that a pickle could call is ever called. What
comes out is byte ranges, so that tensors are read where they stand, from disk or over HTTP.
"""

import io
import math
import re
import struct
import zipfile
from functools import partial
from typing import Any

import numpy as np

from mother.io.checkpoint import decoded
from mother.io.legacy import MAGIC, Locate, Read, read_legacy, unpickled
from mother.io.pickle_names import StoredTensor
from mother.io.places import File, Place
from mother.io.reader import BITS, MAX_NAME, Listing, Reader, TensorInfo, bytes_of
from mother.io.states import NoState, averages, beside, choose, entries, find_states, listed
from mother.io.unpickler import TensorUnpickler

MAX_PICKLE = 100_000_000  # bytes of the pickle inside the archive
MAX_MEMBERS = 200_000
_FIRST = re.compile(
    rb".*?(data\.pkl|constants\.pkl|byteorder|/version|/\.\w+|/(data|constants)/\d+|/code/.*)", re.DOTALL
)
MOST_STATES = 32  # states of a file, largest first, that one may be chosen of
MOST_SPAN = 8  # bytes of a storage that are read for one byte of a tensor that is a view of it
MAX_DIRECTORY = 1 << 24  # bytes of the archive's directory; torch writes about seventy for a tensor


class Window(io.RawIOBase):
    """A file-like view of a file that is read by ranges; keeps what it has read, in blocks."""

    def __init__(self, read: Read, size: int, block: int = 1 << 16):
        self.fetch, self.size, self.position, self.block = read, size, 0, block
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

    def readinto(self, buffer: Any) -> int:
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def read(self, count: int = -1) -> bytes:
        end = self.size if count is None or count < 0 else min(self.size, self.position + count)
        start = min(self.position, end)
        if end - start > self.most:
            raise ValueError(f"the archive's directory or pickle has {end - start} bytes")
        first, last = start // self.block, -(-end // self.block)
        missing = [block for block in range(first, last) if block not in self.blocks]
        if missing:
            low, high = missing[0] * self.block, min(self.size, (missing[-1] + 1) * self.block)
            content = self.fetch(low, high)
            for block in range(missing[0], missing[-1] + 1):
                at = block * self.block - low
                self.blocks[block] = content[at : at + self.block]
        joined = b"".join(self.blocks[block] for block in range(first, last))
        self.position = end
        return joined[start - first * self.block : end - first * self.block]


def data_start(read: Read, member: zipfile.ZipInfo, size: int) -> int:
    """Where the bytes of an uncompressed member begin: its local header says how long its own name and extra are."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"member {member.filename} is compressed or encrypted, as no library writes weights")
    if not 0 <= member.header_offset <= size - 30:
        raise ValueError("the archive is damaged: a member lies outside the file")
    header = read(member.header_offset, member.header_offset + 30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError("the archive is damaged: a member has no header")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra


def _check_directory(window: Window, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
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


def _read_pickle(window: Window) -> tuple[bytes, str, dict[str, zipfile.ZipInfo]]:
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


def parse_pickle(read: Read, size: int, state: str | None = None) -> dict[str, TensorInfo]:
    """Names, types, shapes and byte ranges of the tensors of a pickle that torch wrote; raises ValueError why not.

    `read(start, end)` returns these bytes of the file. A tensor whose entries do not stand one after another is put in
    order when it is read; one that is a small part of what it spans is listed with the type "view", and not read.
    """
    return chosen(read_table(read, size), state)[0]


def read_table(read: Read, size: int) -> list[list[Any]]:
    """All states of a pickle as JSON: path, entries, rows of its tensors or why they cannot be used, what is beside."""
    built, locate = (read_legacy if read(0, len(MAGIC)) == MAGIC else _read_archive)(read, size)
    states, lists = find_states(built)
    found = averages(states, lists)
    states |= {path: state for path, state in found.items() if isinstance(state, dict)}
    table: list[list[Any]] = []
    for path, state in sorted(states.items(), key=lambda item: -entries(item[1]))[:MOST_STATES]:
        try:
            rows: list[list[Any]] | str = _rows(state, locate, size)
        except ValueError as error:
            rows = str(error)
        table.append([".".join(path), entries(state), rows, beside(built, path, states)])
    # Of no size, so that such a list is no one's choice where there is another state.
    table += [[".".join(path), 0, why, []] for path, why in found.items() if isinstance(why, str)]
    if not table:
        raise ValueError(f"the pickle holds no {'tensors' if isinstance(built, dict) else 'dictionary of tensors'}")
    return table


def chosen(table: list[list[Any]], state: str | None) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """The tensors of the state that is asked for, or of the weights, and what lies beside it; raises ValueError."""
    by_path = {path: (count, rows, aside) for path, count, rows, aside in table}
    count, rows, aside = by_path[choose({path: count for path, (count, _, _) in by_path.items()}, state)]
    if isinstance(rows, str):
        usable = [path for path, (size, *_) in by_path.items() if size]
        raise ValueError(rows) if count else NoState(f"{rows}; there is {listed(usable) or 'no other state'}")
    infos = {}
    for name, dtype, shape, start, end, *strides in rows:
        order = partial(_ordered, dtype=dtype, shape=tuple(shape), strides=strides) if strides else None
        infos[name] = TensorInfo(dtype, tuple(shape), start, end, unpack=order)
    return infos, tuple(aside)


def _read_archive(read: Read, size: int) -> tuple[Any, Locate]:
    """What the pickle of a zip archive builds, and where its storages are; raises ValueError."""
    window = Window(read, size)
    if window.read(4) != b"PK\x03\x04":
        raise ValueError("this is no zip archive, as torch has written since 1.6, and none of its older files")
    try:
        content, stem, members = _read_pickle(window)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"the archive is damaged: {error}") from None

    def locate(key: str) -> tuple[int, int]:
        member = members.get(f"{stem}data/{key}")
        if member is None:
            raise KeyError(key)
        return data_start(read, member, size), member.file_size

    return unpickled(lambda: TensorUnpickler(content).load()), locate


def _ordered(part: bytes | memoryview, dtype: str, shape: tuple[int, ...], strides: list[int]) -> np.ndarray:
    """A view of a storage, given from its first entry to its last, in float32 and in order; strides in entries."""
    values = decoded(part, dtype)
    steps = [stride * values.itemsize for stride in strides]
    return np.array(np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False), order="C")


def _rows(state: dict[Any, StoredTensor], locate: Locate, size: int) -> list[list[Any]]:
    """Name, type, shape and byte range of the tensors of a state, and the strides of views; raises ValueError."""
    places: dict[str, tuple[int, int]] = {}
    rows = []
    for name, tensor in state.items():
        if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
            raise ValueError(f"the name {ascii(name)[:MAX_NAME]} of a tensor is not usable")
        storage = tensor.storage
        if storage.dtype not in BITS:
            rows.append([name, storage.dtype, list(tensor.shape), 0, 0])
            continue
        if storage.key not in places:
            try:
                places[storage.key] = locate(storage.key)
            except KeyError:
                raise ValueError(f"the storage of tensor {name} is missing") from None
        first, length = places[storage.key]
        width = BITS[storage.dtype] // 8
        start = first + tensor.offset * width
        entries, plain = math.prod(tensor.shape), _contiguous(tensor)
        span = (
            entries
            if plain or not entries
            else 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides))
        )
        end = start + span * width
        if span > MOST_SPAN * entries:
            rows.append([name, "view", list(tensor.shape), 0, 0])
            continue
        if not 0 <= start <= end <= size:
            raise ValueError(f"tensor {name} lies outside the file")
        if end > first + length:
            raise ValueError(f"the file is truncated: tensor {name} ends at byte {end}")
        rows.append([name, storage.dtype, list(tensor.shape), start, end, *([] if plain else tensor.strides)])
    return rows


def _contiguous(tensor: StoredTensor) -> bool:
    """Whether the entries of a tensor stand one after another."""
    expected, strides = 1, []
    for length in reversed(tensor.shape):
        strides.insert(0, expected)
        expected *= max(length, 1)
    return all(stride == plain or length <= 1 for stride, plain, length in zip(tensor.strides, strides, tensor.shape))


def _listing(place: Place, file: File, state: str | None) -> Listing:
    infos, aside = chosen(file.remembered(lambda: read_table(bytes_of(file), file.size)), state)
    return Listing({name: (file, info) for name, info in infos.items()}, aside)


def _recognises(head: bytes) -> bool:
    """An archive whose first member is one that torch writes, or a file of the old kind."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(MAGIC) or (head.startswith(b"PK\x03\x04") and _FIRST.fullmatch(name) is not None)


READER = Reader(
    "a pickle of torch",
    (".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".pt.tar"),
    _recognises,
    _listing,
    "Save it as safetensors, or do not trust it.",
)

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
from dataclasses import dataclass
from typing import Any

from mother.headers import BITS, MAX_NAME, TensorInfo, is_shape

MAX_PICKLE = 100_000_000  # bytes of the pickle inside the archive
MAX_MEMBERS = 200_000
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where training scripts put the weights

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Anything:
    """Stands for what a checkpoint may hold beside tensors and we never look at."""

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and is_shape(shape) and len(shape) == len(strides)):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    if not all(isinstance(number, int) and 0 <= number < 1 << 62 for number in (offset, *strides)):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *_: object) -> Any:
    return tensor


# The part of torch's names that we understand.
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _Anything,
    ("torch.serialization", "_get_layout"): _Anything,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle._Unpickler):
    """Builds dictionaries of stand-ins. Nothing outside this module can be named.

    The one in Python, whose memo is a dictionary: that in C makes room for as many entries as a pickle asks for. What
    it may do to objects is cut down to what torch needs: keys are short plain values, whose hash takes no time, and no
    object gets a state, so that none can be changed after it was checked.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a tensor")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        # ("storage", type, key, device, number of entries)
        sound = isinstance(pid, tuple) and len(pid) == 5 and all(isinstance(one, str) for one in pid[:3])
        if not (sound and pid[0] == "storage" and pid[1] in STORAGES.values()):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        return _Storage(pid[1], pid[2])

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError("it sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, str | int | float | None):
                raise pickle.UnpicklingError("a key is no plain value")
            target[key] = value

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(arguments, tuple) or function not in (
            dict,
            tuple,
            _Anything,
            _rebuild_tensor,
            _rebuild_parameter,
        ):
            raise pickle.UnpicklingError("it calls something that is no part of a tensor")
        if function is dict and arguments:
            raise pickle.UnpicklingError("a dictionary is made from something")
        self.stack[-1] = function(*arguments)

    def _load_build(self) -> None:
        self.stack.pop()  # torch gives dictionaries an attribute that we do not need

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it builds objects of its own")


_REFUSED = (pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4)
_REFUSED += (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)
_Unpickler.dispatch |= {
    pickle.SETITEM[0]: _Unpickler._load_setitem,
    pickle.SETITEMS[0]: _Unpickler._load_setitems,
    pickle.DICT[0]: _Unpickler._load_dict,
    pickle.REDUCE[0]: _Unpickler._load_reduce,
    pickle.BUILD[0]: _Unpickler._load_build,
    **{code[0]: _Unpickler._refuse for code in _REFUSED},
}


class _Window(io.RawIOBase):
    """A file-like view of a file that is read by ranges; keeps what it has read, in blocks."""

    BLOCK = 1 << 16

    def __init__(self, read: Read, size: int):
        self.fetch, self.size, self.position = read, size, 0
        self.blocks: dict[int, bytes] = {}

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
        if end - start > MAX_PICKLE:
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


def parse_pickle(read: Read, size: int) -> dict[str, TensorInfo]:
    """Names, types, shapes and byte ranges of the tensors of a zip-format pickle; raises ValueError with the reason.

    `read(start, end)` returns these bytes of the file. A strided view is listed with the type "view", and not read.
    """
    window = _Window(read, size)
    if window.read(4) != b"PK\x03\x04":
        raise ValueError("this is no zip archive, as torch has written since 1.6")
    try:
        with zipfile.ZipFile(window) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"the archive has {len(members)} members")
            pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError(f"the archive has {len(pickles)} pickles, not one")
            stem = pickles[0].removesuffix("data.pkl")
            order = members.get(f"{stem}byteorder")
            if any(one.compress_type != zipfile.ZIP_STORED for one in (members[pickles[0]], order) if one is not None):
                raise ValueError("the pickle is compressed, as torch never writes it")
            if order is not None and order.file_size < 100:
                if archive.read(order) != b"little":
                    raise ValueError("the tensors are stored in big-endian order")
            if members[pickles[0]].file_size > MAX_PICKLE:
                raise ValueError(f"the pickle has {members[pickles[0]].file_size} bytes")
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"the archive is damaged: {error}") from None
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"the pickle is refused: {' '.join(str(error).split())}") from None
    except Exception as error:  # noqa: BLE001  A hostile pickle raises nearly anything.
        raise ValueError(f"the pickle is damaged ({type(error).__name__})") from None
    return _tensors(_state_dict(found), stem, members, read, size)


def _state_dict(found: Any) -> dict[Any, Any]:
    """The dictionary of tensors, at the top or where training scripts put it."""
    if isinstance(found, dict) and not any(isinstance(value, _Tensor) for value in found.values()):
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
        if not isinstance(tensor, _Tensor):
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

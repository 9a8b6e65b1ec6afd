"""An unpickler that knows the few names by which torch rebuilds tensors, and gives stand-ins for them.

Any other name is refused, so nothing that a pickle could call is ever called. Time and memory are bounded by the bytes
of the pickle: each operation takes what its own bytes justify, and there are at most MOST_OPERATIONS.
"""

import io
import pickle
from dataclasses import dataclass
from typing import Any

from mother.io.safetensors import MAX_NAME, is_shape

MOST_OPERATIONS = 4_000_000  # of a pickle; torch writes about forty for a tensor
MOST_ARGUMENTS = 16  # of a call; torch gives seven at most
MAX_KEY = 100  # characters of a storage's key; torch counts them
SHOWN = 100  # characters of what a pickle says that an error shows

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


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class StoredTensor:
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


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> StoredTensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and is_shape(shape) and len(shape) == len(strides)):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    if not all(isinstance(number, int) and 0 <= number < 1 << 62 for number in (offset, *strides)):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _size(shape: Any = ()) -> tuple[int, ...]:
    """torch.Size: the dimensions of a tensor, and not a copy of whatever is given."""
    if not isinstance(shape, tuple) or not is_shape(shape):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    return shape


def _rebuild_parameter(tensor: Any, *_: object) -> Any:
    return tensor


# The part of torch's names that we understand.
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _Anything,
    ("torch.serialization", "_get_layout"): _Anything,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class TensorUnpickler(pickle._Unpickler):
    """Builds dictionaries of stand-ins. Nothing outside this module can be named.

    The one in Python, whose memo is a dictionary: that in C makes room for as many entries as a pickle asks for. What
    it may do to objects is cut down to what torch needs: keys are short texts, whose hash takes no time and cannot be
    chosen, and no object gets a state, so that none can be changed after it was checked.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes):
        self.length = len(content)
        super().__init__(io.BytesIO(content))

    def load(self) -> Any:
        """What the pickle builds; raises nearly anything where it is damaged or hostile."""
        self._unframer = pickle._Unframer(self._file_read, self._file_readline)
        self.read, self.readinto = self._unframer.read, self._unframer.readinto
        self.readline = self._unframer.readline
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        try:
            for _ in range(MOST_OPERATIONS):
                key = read(1)
                if not key:
                    raise EOFError
                dispatch[key[0]](self)
        except pickle._Stop as stopped:
            return stopped.value
        raise pickle.UnpicklingError(f"it has more than {MOST_OPERATIONS} operations")

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            named = ascii(f"{module[:SHOWN]}.{name[:SHOWN]}")[1:-1]
            raise pickle.UnpicklingError(f"it names {named}, which is no part of a tensor")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        # ("storage", type, key, device, number of entries)
        sound = isinstance(pid, tuple) and len(pid) == 5 and all(isinstance(one, str) for one in pid[:3])
        if not (sound and pid[0] == "storage" and pid[1] in STORAGES.values()):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if len(pid[2]) > MAX_KEY:
            raise pickle.UnpicklingError("it refers to a storage of an impossible name")
        return _Storage(pid[1], pid[2])

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError("it sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if isinstance(key, str) and len(key) <= MAX_NAME:
                target[key] = value
            elif not isinstance(key, str | int | float | None):
                raise pickle.UnpicklingError("a key is no plain value")
            elif isinstance(value, StoredTensor):
                # Numbers can be chosen to have one hash, and long texts to be compared: no such key is kept. A tensor
                # under one is, so that it is refused where it matters.
                target[None] = value

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
        known = any(function is one for one in (dict, _size, _Anything, _rebuild_tensor, _rebuild_parameter))
        if not known or not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
            raise pickle.UnpicklingError("it calls something that is no part of a tensor")
        if function is dict and arguments:
            raise pickle.UnpicklingError("a dictionary is made from something")
        self.stack[-1] = function(*arguments)

    def _load_build(self) -> None:
        self.stack.pop()  # torch gives dictionaries an attribute that we do not need

    def _remember(self, place: int) -> None:
        # Picklers count; places that somebody chose could have one hash.
        if not 0 <= place <= self.length:
            raise pickle.UnpicklingError("it remembers something at an impossible place")
        self.memo[place] = self.stack[-1]

    def _load_put(self) -> None:
        self._remember(int(self.readline()[:-1]))

    def _load_binput(self) -> None:
        self._remember(self.read(1)[0])

    def _load_long_binput(self) -> None:
        self._remember(int.from_bytes(self.read(4), "little"))

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it builds objects of its own")


_REFUSED = (pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4)

_REFUSED += (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)

# They make room before they read, or read from elsewhere.
_REFUSED += (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)

TensorUnpickler.dispatch |= {
    pickle.SETITEM[0]: TensorUnpickler._load_setitem,
    pickle.SETITEMS[0]: TensorUnpickler._load_setitems,
    pickle.DICT[0]: TensorUnpickler._load_dict,
    pickle.REDUCE[0]: TensorUnpickler._load_reduce,
    pickle.BUILD[0]: TensorUnpickler._load_build,
    pickle.PUT[0]: TensorUnpickler._load_put,
    pickle.BINPUT[0]: TensorUnpickler._load_binput,
    pickle.LONG_BINPUT[0]: TensorUnpickler._load_long_binput,
    **{code[0]: TensorUnpickler._refuse for code in _REFUSED},
}

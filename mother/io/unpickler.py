"""An unpickler that knows the few names by which torch rebuilds tensors, and gives stand-ins for them.

Any other name is refused, so nothing that a pickle could call is ever called.
"""

import pickle
from dataclasses import dataclass
from typing import Any

from mother.io.safetensors import is_shape

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


class TensorUnpickler(pickle._Unpickler):
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

TensorUnpickler.dispatch |= {
    pickle.SETITEM[0]: TensorUnpickler._load_setitem,
    pickle.SETITEMS[0]: TensorUnpickler._load_setitems,
    pickle.DICT[0]: TensorUnpickler._load_dict,
    pickle.REDUCE[0]: TensorUnpickler._load_reduce,
    pickle.BUILD[0]: TensorUnpickler._load_build,
    **{code[0]: TensorUnpickler._refuse for code in _REFUSED},
}

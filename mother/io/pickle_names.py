"""The names that a pickled checkpoint may hold: what torch rebuilds tensors by, and stand-ins for all others."""

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from mother.io.reader import BITS, is_shape

WRAPPING = ("torchao",)  # libraries whose own classes of tensors are named
LOOKED_AT = 8  # parts of a tensor that is not read, among which its shape is looked for
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
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    **{f"Q{kind}Storage": dtype for kind, dtype in (("Int8", "I8"), ("UInt8", "U8"), ("Int32", "I32"))},
}


FLOAT8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"}
DTYPES = FLOAT8 | {"uint16": "U16", "uint32": "U32", "uint64": "U64"}  # of tensors whose storage has no type

# Names that no saved model needs and an attack does. This is an alarm and not the defence: nothing is called anyway.
_ALARMING = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|runpy|_?pickle|importlib|ctypes|pty|code|codeop|webbrowser|pdb|timeit"
    r"|asyncio|multiprocessing|requests|urllib|http)(\..*)?"
    r"|(builtins|__builtin__)\.(eval|exec|compile|__import__|open|input|globals|locals|setattr|delattr|vars)"
    r"|torch\.[a-z]\w*|torch\.(_utils|storage|hub|serialization|package)\..*"
    r"|numpy\.(load|save|fromfile|memmap|loadtxt|genfromtxt)\w*"
)


@dataclass(frozen=True)
class StoredBytes:
    dtype: str
    key: str
    count: int = 0  # entries, where a file has no other list of its storages


@dataclass(frozen=True)
class StoredTensor:
    storage: StoredBytes
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Anything:
    """Stands for what a checkpoint may hold beside tensors and we never look at."""

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


@dataclass(frozen=True)
class Opaque:
    """Stands for a class or a function that a pickle names."""

    name: str = ""


class SomeObject(dict):
    """Stands for an object of any class: what was put into it, and the attributes that it was given."""

    attributes: dict[Any, Any] | None = None


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> StoredTensor:
    if not isinstance(storage, StoredBytes):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and is_shape(shape) and len(shape) == len(strides)):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    if not all(isinstance(number, int) and 0 <= number < 1 << 62 for number in (offset, *strides)):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_typed(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *___: object
) -> Any:
    found = _rebuild_tensor(storage, offset, shape, strides)
    if not isinstance(dtype, str) or dtype not in BITS:
        raise pickle.UnpicklingError("a tensor of an unknown type")
    return replace(found, storage=replace(found.storage, dtype=dtype))


def _rebuild_subclass(function: Any, _: Any, arguments: Any, *__: object) -> Any:
    if not any(function is one for one in _REBUILD) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a tensor that is built by something unknown")
    return function(*arguments)


def _unread(kind: str) -> Callable[..., StoredTensor]:
    """What rebuilds a tensor of a kind that is listed, and not read: its shape is the first among what it is given."""

    def rebuilt(*arguments: Any) -> StoredTensor:
        deeper = [one for some in arguments if isinstance(some, tuple) for one in some[:LOOKED_AT]]
        shape = next((one for one in (*arguments, *deeper) if isinstance(one, tuple) and is_shape(one)), ())
        return StoredTensor(StoredBytes(kind, ""), 0, shape, ())

    return rebuilt


def _rebuild_wrapped(kind: Any, *arguments: Any) -> StoredTensor:
    """A tensor of a library's own class around others, such as the packed ones of torchao."""
    library = kind.name.partition(".")[0] if isinstance(kind, Opaque) else ""
    return _unread(library if library in WRAPPING else "a class of its own")(*arguments)


def _size(shape: Any = ()) -> tuple[int, ...]:
    """torch.Size: the dimensions of a tensor, and not a copy of whatever is given."""
    if not isinstance(shape, tuple) or not is_shape(shape):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    return shape


def _rebuild_parameter(tensor: Any, *_: object) -> Any:
    return tensor


# Tensors that have no numbers of their own one after another, by the names that torch rebuilds them by.
_UNREAD = {
    "_rebuild_sparse_tensor": _unread("sparse"),
    "_rebuild_nested_tensor": _unread("nested"),
    "_rebuild_qtensor": _unread("quantized by torch"),
    "_rebuild_meta_tensor_no_storage": _unread("meta, without numbers"),
    "_rebuild_device_tensor_from_numpy": _unread("a numpy array"),
    "_rebuild_wrapper_subclass": _rebuild_wrapped,
}
_REBUILD = (_rebuild_tensor, _rebuild_typed, _rebuild_parameter, *_UNREAD.values())
CALLED = (dict, _size, Anything, _rebuild_subclass, *_REBUILD)

# The part of torch's names that we understand.
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_subclass,
    **{("torch._utils", name): rebuild for name, rebuild in _UNREAD.items()},
    ("torch", "Size"): _size,
    ("torch", "device"): Anything,
    ("torch.serialization", "_get_layout"): Anything,
    ("torch.storage", "UntypedStorage"): "U8",
    **{("torch", name): dtype for name, dtype in (STORAGES | DTYPES).items()},
}
_PLAIN = re.compile(
    r"torch\.(float|double|half|bfloat|int|long|short|bool|uint|complex|q?u?int|strided|contiguous"
    r"|per_tensor|per_channel)\w*"
)


def named(module: str, name: str) -> Any:
    """What stands for a name; raises UnpicklingError for one that no model needs."""
    found = _NAMES.get((module, name))
    return found if found is not None else _stand_in(f"{module[: 2 * SHOWN]}.{name[: 2 * SHOWN]}")


@lru_cache(1024)  # a pickle names few classes, and may name each of them a million times
def _stand_in(whole: str) -> Any:
    if _PLAIN.fullmatch(whole):
        return Anything()
    if _ALARMING.fullmatch(whole):
        raise pickle.UnpicklingError(f"it names {ascii(whole[:SHOWN])[1:-1]}, which is no part of a model")
    return Opaque(whole)

"""Arrays of Flax and Keras as torch holds them: kernels, (..., inputs, outputs), are (outputs, inputs, ...) there."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mother.errors import shown
from mother.io.places import File
from mother.io.reader import DTYPES, MAX_NAME, Listing, TensorInfo, is_shape

_READS = re.compile(r"(.*\.)?(query|key|value)(_dense)?\.[^.]+")  # (inputs, heads, entries of a head)
_WRITES = re.compile(r"(.*\.)?(out|output_dense|attention_output)\.[^.]+")  # (heads, entries of a head, outputs)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stored:
    """An array of a file: its name there and that for torch, whether it is turned, its type, shape and byte range."""

    path: str
    name: str
    kernel: bool
    dtype: str
    shape: Sequence[int]
    start: int
    end: int


def listed(file: File, arrays: Iterable[Stored], aside: Iterable[str]) -> Listing:
    """The arrays of a file as a reader lists them; raises ValueError where one cannot be, or there are none."""
    arrays, tensors = list(arrays), {}
    shapes = {one.path: tuple(one.shape) for one in arrays}
    for one in arrays:
        if one.name in tensors:
            raise ValueError(f"two of its arrays are called {one.name}")
        if not one.name.isprintable() or len(one.name) > MAX_NAME or not is_shape(one.shape):
            raise ValueError(f"the name {shown(one.name)} or the shape {shown(one.shape)} of an array is not usable")
        if not 0 <= one.start <= one.end <= file.size:
            raise ValueError(f"the file is truncated: {one.name} ends at byte {one.end}")
        shape, unpack = _turned(one.path, one.dtype, shapes) if one.kernel else (shapes[one.path], None)
        tensors[one.name] = (file, TensorInfo(one.dtype, shape, one.start, one.end, None, unpack))
    if not tensors:
        raise ValueError("it holds no arrays")
    return Listing(tensors, tuple(sorted(set(aside))))


def _turned(name: str, dtype: str, shapes: Shapes) -> tuple[tuple[int, ...], Callable[[Any], np.ndarray] | None]:
    """The shape that torch gives a kernel, and what makes it from the bytes, in float32.

    `shapes` are those of all arrays as they are stored: where queries beside it have heads, a kernel of three
    dimensions is of a dense layer over heads, and of a convolution elsewhere.
    """
    shape = shapes[name]
    if dtype not in DTYPES or len(shape) < 2:
        return shape, None
    heads = {kernel[1:] for kernel in (shapes[one] for one in _queries(name) if one in shapes) if len(kernel) == 3}
    if len(shape) == 3 and heads and _READS.fullmatch(name):
        shape = (shape[0], shape[1] * shape[2])
    elif len(shape) == 3 and shape[:2] in heads and _WRITES.fullmatch(name):
        shape = (shape[0] * shape[1], shape[2])
    axes = (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
    return tuple(shape[axis] for axis in axes), partial(_values, dtype, shape, axes)


def _queries(name: str) -> list[str]:
    """What the kernel of the queries beside a kernel may be called."""
    layer, _, last = name.rpartition(".")
    beside = layer.rpartition(".")[0]
    return [f"{beside}.{own}.{last}" if beside else f"{own}.{last}" for own in ("query", "query_dense")]


def _values(dtype: str, shape: tuple[int, ...], axes: tuple[int, ...], part: Any) -> np.ndarray:
    from mother.io.checkpoint import decoded

    return np.ascontiguousarray(decoded(part, dtype).reshape(shape).transpose(axes))

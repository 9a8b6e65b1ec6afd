"""An opened model: where each of its tensors lies, and how they are read. It holds no weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mother.errors import CheckpointError
from mother.io.layers import Layer, is_attention
from mother.io.places import File
from mother.io.reader import BITS, DTYPES, Storage, TensorInfo
from mother.io.runtime import free_memory

LARGEST = float(np.finfo(np.float32).max) / 4  # differences of two weights, and their ranges, stay finite


SURE = 1 << 30  # bytes of a tensor for which nobody asks how much memory is free


def check_sizes(
    model: str, tensors: Mapping[str, tuple[File, TensorInfo]], room: int, what: str, transient: bool = False
) -> None:
    """Raise CheckpointError where one tensor, in float32, needs more than `room` bytes: it cannot be read.

    `what` says what `room` is: the memory that this process so and so.
    """
    for name, (file, info) in tensors.items():
        needed = 4 * math.prod(info.shape)
        if needed > room and info.dtype in DTYPES:
            reason = f"tensor {name} needs {needed / 1e9:.1f} GB of memory, and this process {what} {room / 1e9:.1f} GB"
            raise CheckpointError(model, file, reason, "Run on a machine with more memory.", transient)


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: where each of its tensors lies. Holds no weights."""

    model: str
    tensors: dict[str, tuple[File, TensorInfo]]
    layers: dict[Layer, str]
    index: File | None = field(default=None, kw_only=True)  # that named the files of the tensors
    aside: tuple[str, ...] = field(default=(), kw_only=True)  # what else its files hold
    state: str | None = field(default=None, kw_only=True)  # that was asked for, of several in a file

    def shape(self, layer: Layer) -> tuple[int, ...]:
        """Shape of a layer's weight."""
        return self.tensors[self.layers[layer]][1].shape

    def entries(self, layer: Layer) -> int:
        """Number of entries of a layer's weight."""
        return math.prod(self.shape(layer))

    @property
    def remote(self) -> bool:
        """Whether anything has to come over a network."""
        return any(file.remote for file, _ in self.tensors.values())

    def expect(self, layer: Layer) -> None:
        """Say that a weight will be read soon."""
        file, info = self.tensors[self.layers[layer]]
        if info.end > info.start:
            file.expect(info.start, info.end)

    def at_hand(self, layer: Layer) -> "torch.Tensor | None":
        """A weight in float32 that is in memory already, which nobody may change; None where it has to be read."""
        return None

    def read(self, layer: Layer) -> "torch.Tensor":
        """Read one weight in float32; raises CheckpointError as `read_tensors` does."""
        return self.read_tensor(self.layers[layer])

    def read_tensor(self, name: str) -> "torch.Tensor":
        """Read one tensor by its raw name, in float32."""
        return self.read_tensors([name])[name]

    def read_tensors(
        self, names: Sequence[str], into: Mapping[str, "torch.Tensor"] = MappingProxyType({})
    ) -> dict[str, "torch.Tensor"]:
        """Read tensors by their raw names, in float32; neighbours in a remote file come with one request.

        Those that have a tensor in `into`, contiguous and of their shape, fill that one: memory that was used before
        is faster than new. Raises CheckpointError if one cannot be read, is not floating point, or holds NaN or
        infinity; what is in `into` then is of no use.
        """
        by_file: dict[File, list[str]] = {}
        for name in names:
            file, info = self.tensors[name]
            if info.dtype not in DTYPES:
                raise CheckpointError(
                    self.model,
                    file,
                    f"tensor {name} is stored as {info.dtype}",
                    "Give the model in F64, F32, F16 or BF16.",
                )
            by_file.setdefault(file, []).append(name)
        large = {name: self.tensors[name] for name in names if 4 * math.prod(self.tensors[name][1].shape) > SURE}
        if large:
            check_sizes(self.model, large, free_memory(), "can now have", transient=True)
        found = {}
        for file, wanted in by_file.items():
            infos = [self.tensors[name][1] for name in wanted]
            spans = [(info.start, info.end) for info in infos]
            rooms = [
                _bytes_of(into[name])
                if name in into and info.dtype == "F32" and info.end > info.start and info.unpack is None
                else None
                for name, info in zip(wanted, infos)
            ]
            parts = file.read(spans, rooms)
            for name, info, part in zip(wanted, infos, parts):
                found[name] = self._tensor(name, file, info, part)
        return filled(found, into)

    def read_bytes(self, names: Sequence[str]) -> dict[str, Any]:
        """The bytes of tensors of any type, as they are stored. Raises CheckpointError."""
        by_file: dict[File, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name][0], []).append(name)
        found = {}
        for file, wanted in by_file.items():
            infos = [self.tensors[name][1] for name in wanted]
            for name, info, part in zip(wanted, infos, file.read([(info.start, info.end) for info in infos])):
                if len(part) < info.end - info.start:
                    raise CheckpointError(self.model, file, f"the file ends inside tensor {name}", "Fetch it again.")
                found[name] = part
        return found

    def read_stored(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Tensors as they are stored: integers as they are, floats of 8 bits as bytes, others in float32."""
        found = {}
        for name, part in self.read_bytes(names).items():
            info = self.tensors[name][1]
            if info.dtype in DTYPES:
                values = decoded(part, info.dtype)
            else:
                kind = f"<{info.dtype.lower()[0]}{BITS[info.dtype] // 8}" if info.dtype[0] in "IU" else "u1"
                values = np.frombuffer(part, dtype=kind)
            found[name] = values.reshape(info.shape)
        return found

    def _tensor(self, name: str, file: File, info: TensorInfo, part: bytes | bytearray | memoryview) -> "torch.Tensor":
        """Bytes as a sound tensor."""
        if len(part) < info.end - info.start:
            raise CheckpointError(
                self.model, file, f"the file ends inside tensor {name}", "Fetch or save the model again."
            )
        import torch

        values = decoded(part, info.dtype) if info.unpack is None else info.unpack(part)
        return self._sound(name, file, torch.from_numpy(values).reshape(info.shape))

    def _sound(self, name: str, file: object, weight: "torch.Tensor") -> "torch.Tensor":
        """The same weight; raises CheckpointError where it is not finite, or too large."""
        values = weight.numpy().reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.einsum("i,i->", values, values)):  # one look, which overflows before LARGEST
                return weight
        largest = float(max(values.max(), -values.min()))  # NaN wins every maximum
        if not largest <= LARGEST:
            bad = "NaN" if math.isnan(largest) else "infinity"
            if math.isfinite(largest):
                bad = f"values above {LARGEST:.1e}, whose differences overflow"
            raise CheckpointError(
                self.model, file, f"tensor {name} holds {bad}", "The model is broken: take another snapshot of it."
            )
        return weight

    def attention_only(self) -> "Checkpoint":
        """The same model without the matrices inside its blocks that are not those of attention."""
        dropped = {
            name
            for layer, name in self.layers.items()
            if layer.block and not is_attention(layer) and len(self.shape(layer)) >= 2
        }
        tensors = {name: place for name, place in self.tensors.items() if name not in dropped}
        return replace(self, tensors=tensors, layers={k: name for k, name in self.layers.items() if name in tensors})

    def files(self) -> list[File]:
        """The files that the model is read from, each once: its index, and those of its tensors."""
        holding = sorted({file for file, _ in self.tensors.values()}, key=str)
        return ([self.index] if self.index is not None else []) + holding

    def fingerprint(self) -> list[tuple[str, int, int, str]]:
        """Fingerprints of all files: they change whenever a file does. Raises CheckpointError where one has gone."""
        asked = [(f"state {self.state}", 0, 0, "")] if self.state is not None else []
        return [file.fingerprint() for file in self.files()] + asked

    @property
    def storage(self) -> dict[str, Storage]:
        """How tensors are stored that are not plain numbers, by their names."""
        return {name: info.storage for name, (_, info) in self.tensors.items() if info.storage is not None}


def decoded(part: bytes | bytearray | memoryview, dtype: str) -> np.ndarray:
    """Floating-point numbers of a type in DTYPES as float32, writable; in numpy, which uses the caller's thread only.

    Threads of torch's own, asked for by each of the threads that read, would keep those that compute waiting.
    """
    if dtype == "BF16":  # the upper half of a float32
        return np.left_shift(np.frombuffer(part, dtype="<u2"), 16, dtype=np.uint32).view(np.float32)
    stored = np.frombuffer(part, dtype={"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    with np.errstate(over="ignore"):
        return stored.astype(np.float32, copy=dtype != "F32" or not stored.flags.writeable or not stored.flags.aligned)


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.flatten().numpy()).cast("B")


def filled(found: dict[str, "torch.Tensor"], into: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """The tensors that were found; in place of those that `into` has the ones there, filled."""
    for name in found.keys() & into.keys():
        if found[name].data_ptr() != into[name].data_ptr():
            into[name].copy_(found[name])
    return {name: into.get(name, values) for name, values in found.items()}

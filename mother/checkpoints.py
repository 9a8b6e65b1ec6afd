"""Open a model wherever it is; read the tensors asked for, and nothing else.

A model is a folder, a safetensors or zip-format pickle file, shards with an index, a repository of the Hugging Face Hub
(`hf://owner/name[@revision][:subfolder]`), or a PEFT adapter of one of these. Nothing of a checkpoint is executed, and
nothing of it stays in memory: tensors are read where they stand, as byte ranges, and returned in float32.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from mother.adapters import Adapter, applied, names_in_base, oriented, parse_adapter, update_shape
from mother.errors import CheckpointError
from mother.headers import DTYPES, TensorInfo, header_length, parse_header
from mother.hub import RemoteFile, Repository, open_repository
from mother.layers import ATTENTION, Layer, canonical_name, name_layers
from mother.model_graph import HUB_SOURCE
from mother.pickles import parse_pickle

# In the order in which they are looked for: an index, where there is one, knows all shards; pickles come last.
WEIGHT_FILES = tuple(
    f"{stem}{suffix}"
    for stem, suffix in (
        ("model.safetensors", ".index.json"),
        ("model.safetensors", ""),
        ("diffusion_pytorch_model.safetensors", ".index.json"),
        ("diffusion_pytorch_model.safetensors", ""),
        ("pytorch_model.bin", ".index.json"),
        ("pytorch_model.bin", ""),
        ("diffusion_pytorch_model.bin", ""),
    )
)
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

ENDS = 65536  # bytes of a file that its fingerprint reads at either end
LARGEST = torch.finfo(torch.float32).max / 4  # differences of two weights, and their ranges, stay finite
MAX_JSON = 200_000_000  # bytes of an index or a configuration


@dataclass(frozen=True)
class LocalFile:
    """A file on disk. It is opened anew for each look, so that none of thousands stays open."""

    model: str
    path: Path
    size: int
    state: tuple[int, int, int] | None = None  # size, time and inode when it was opened

    @classmethod
    def open(cls, model: str, path: Path) -> "LocalFile":
        """Look at a file; raises CheckpointError."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for somebody to write
                raise CheckpointError(model, path, "it is no regular file", "Give a file.")
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                return cls(model, path, status.st_size, (status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError as error:
            raise _unreadable(model, path, error) from None

    def __str__(self) -> str:
        return str(self.path)

    def read(self, spans: Sequence[tuple[int, int]], into: Sequence[memoryview | None] = ()) -> list[memoryview]:
        """The bytes of each (start, end), fewer where the file ends; in the memory of `into` where it has some.

        Raises CheckpointError.
        """
        parts = []
        try:
            with open(self.path, "rb", buffering=0) as stream:
                status = os.fstat(stream.fileno())
                if self.state not in (None, (status.st_size, status.st_mtime_ns, status.st_ino)):
                    raise CheckpointError(
                        self.model,
                        self.path,
                        "the file has changed while it was read",
                        "Run again to read the new one.",
                    )
                for (start, end), given in zip_longest(spans, into):
                    buffer, filled = memoryview(bytearray(end - start)) if given is None else given, 0
                    stream.seek(start)
                    while filled < len(buffer) and (count := stream.readinto(buffer[filled:])):
                        filled += count
                    parts.append(buffer[:filled])
        except OSError as error:
            raise _unreadable(self.model, self.path, error) from None
        return parts

    def expect(self, start: int, end: int) -> None:
        """Let the system bring these bytes from the disk while something else is done, where it can."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError), open(self.path, "rb", buffering=0) as stream:
                os.posix_fadvise(stream.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)

    def head(self, count: int) -> bytes:
        """The first `count` bytes or fewer."""
        return bytes(self.read([(0, min(count, self.size))])[0])

    def fingerprint(self) -> tuple[str, int, int, str]:
        """Path, size, modification time and digest of both ends. Raises CheckpointError where the file has gone."""
        try:
            with open(self.path, "rb") as stream:
                status = os.fstat(stream.fileno())
                ends = stream.read(ENDS)
                stream.seek(max(0, status.st_size - ENDS))
                digest = hashlib.sha256(ends + stream.read(ENDS)).hexdigest()
        except OSError as error:
            raise _unreadable(self.model, self.path, error) from None
        return (str(self.path), status.st_size, status.st_mtime_ns, digest)


File = LocalFile | RemoteFile


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: where each of its tensors lies. Holds no weights."""

    model: str
    tensors: dict[str, tuple[File, TensorInfo]]
    layers: dict[Layer, str]

    def shape(self, layer: Layer) -> tuple[int, ...]:
        """Shape of a layer's weight."""
        return self.tensors[self.layers[layer]][1].shape

    def entries(self, layer: Layer) -> int:
        """Number of entries of a layer's weight."""
        return math.prod(self.shape(layer))

    @property
    def remote(self) -> bool:
        """Whether anything has to come over a network."""
        return any(isinstance(file, RemoteFile) for file, _ in self.tensors.values())

    def expect(self, layer: Layer) -> None:
        """Say that a weight will be read soon."""
        file, info = self.tensors[self.layers[layer]]
        if isinstance(file, LocalFile) and info.end > info.start:
            file.expect(info.start, info.end)

    def read(self, layer: Layer) -> torch.Tensor:
        """Read one weight in float32; raises CheckpointError as `read_tensors` does."""
        return self.read_tensor(self.layers[layer])

    def read_tensor(self, name: str) -> torch.Tensor:
        """Read one tensor by its raw name, in float32."""
        return self.read_tensors([name])[name]

    def read_tensors(
        self, names: Sequence[str], into: Mapping[str, torch.Tensor] = MappingProxyType({})
    ) -> dict[str, torch.Tensor]:
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
        found = {}
        for file, wanted in by_file.items():
            infos = [self.tensors[name][1] for name in wanted]
            spans = [(info.start, info.end) for info in infos]
            if isinstance(file, LocalFile):
                rooms = [
                    _bytes_of(into[name]) if name in into and info.dtype == "F32" and info.end > info.start else None
                    for name, info in zip(wanted, infos)
                ]
                parts = file.read(spans, rooms)
            else:
                parts = file.read(spans)
            for name, info, part in zip(wanted, infos, parts):
                found[name] = self._tensor(name, file, info, part)
        return _filled(found, into)

    def _tensor(self, name: str, file: File, info: TensorInfo, part: bytes | bytearray | memoryview) -> torch.Tensor:
        """Bytes as a sound tensor."""
        if len(part) < info.end - info.start:
            raise CheckpointError(
                self.model, file, f"the file ends inside tensor {name}", "Fetch or save the model again."
            )
        return self._sound(name, file, torch.from_numpy(_decoded(part, info.dtype)).reshape(info.shape))

    def _sound(self, name: str, file: object, weight: torch.Tensor) -> torch.Tensor:
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
            if layer.block and layer.kind not in ATTENTION and len(self.shape(layer)) >= 2
        }
        tensors = {name: place for name, place in self.tensors.items() if name not in dropped}
        return replace(self, tensors=tensors, layers={k: name for k, name in self.layers.items() if name in tensors})

    def fingerprint(self) -> list[tuple[str, int, int, str]]:
        """Fingerprints of all files: they change whenever a file does. Raises CheckpointError where one has gone."""
        return [file.fingerprint() for file in sorted({file for file, _ in self.tensors.values()}, key=str)]


@dataclass(frozen=True)
class AdaptedCheckpoint(Checkpoint):
    """A model that is an adapter on a base, or an adapter alone (`base` is None)."""

    adapter: Adapter
    config: File  # of the adapter: it says how large the update is
    parts: Checkpoint
    base: Checkpoint | None
    update_of: dict[str, str]  # tensor -> module of the adapter that changes it

    def read_tensors(
        self, names: Sequence[str], into: Mapping[str, torch.Tensor] = MappingProxyType({})
    ) -> dict[str, torch.Tensor]:
        """See Checkpoint; updates are applied in float32."""
        own = {name: self.adapter.whole[name] for name in names if name in self.adapter.whole}
        updates = {name: self.adapter.updates[self.update_of[name]] for name in names if name in self.update_of}
        from_adapter = [*own.values(), *(part for update in updates.values() for part in update.parts.values())]
        read = self.parts.read_tensors(sorted(set(from_adapter)))
        from_base = [name for name in names if name not in own] if self.base is not None else []
        found = self.base.read_tensors(from_base) if self.base is not None else {}
        for name, update in updates.items():
            parts = {part: read[raw] for part, raw in update.parts.items()}
            whole = read[own[name]] if name in own else found.get(name)
            found[name] = self._sound(name, self.config, applied(update, parts, whole))
        return _filled(found | {name: read[raw] for name, raw in own.items() if name not in updates}, into)

    def fingerprint(self) -> list[tuple[str, int, int, str]]:
        """See Checkpoint."""
        own = [self.config.fingerprint(), *self.parts.fingerprint()]
        return own + (self.base.fingerprint() if self.base is not None else [])


def _decoded(part: bytes | bytearray | memoryview, dtype: str) -> np.ndarray:
    """Floating-point numbers of a type in DTYPES as float32, writable; in numpy, which uses the caller's thread only.

    Threads of torch's own, asked for by each of the threads that read, would keep those that compute waiting.
    """
    if dtype == "BF16":  # the upper half of a float32
        return np.left_shift(np.frombuffer(part, dtype="<u2"), 16, dtype=np.uint32).view(np.float32)
    stored = np.frombuffer(part, dtype={"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    with np.errstate(over="ignore"):
        return stored.astype(np.float32, copy=dtype != "F32" or not stored.flags.writeable or not stored.flags.aligned)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.view(torch.uint8).flatten().numpy())


def _filled(found: dict[str, torch.Tensor], into: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that were found; in place of those that `into` has the ones there, filled."""
    for name in found.keys() & into.keys():
        if found[name].data_ptr() != into[name].data_ptr():
            into[name].copy_(found[name])
    return {name: into.get(name, values) for name, values in found.items()}


def _unreadable(model: str, file: object, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(model, file, "there is no such file", "Fetch or save the model again.")
    return CheckpointError(model, file, f"cannot be read: {error.strerror}", "Check the path and its permissions.")


def _read_header(model: str, file: File) -> dict[str, TensorInfo]:
    """Names, types, shapes and places of the tensors of a safetensors file or a pickle; raises CheckpointError."""
    pickled = str(file).endswith(PICKLES)
    try:
        if pickled:

            def look() -> list[list]:
                found = parse_pickle(lambda start, end: bytes(file.read([(start, end)])[0]), file.size)
                return [[name, info.dtype, info.shape, info.start, info.end] for name, info in found.items()]

            table = file.remembered(look) if isinstance(file, RemoteFile) else look()
            return {name: TensorInfo(dtype, tuple(shape), start, end) for name, dtype, shape, start, end in table}
        length = header_length(file.head(8), file.size)
        return parse_header(file.head(8 + length)[8:], file.size)
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        remedy = "Save it as safetensors, or do not trust it." if pickled else "Fetch or save the model again."
        raise CheckpointError(model, file, str(error), remedy) from None


@dataclass(frozen=True)
class LocalFolder:
    """A folder on disk."""

    model: str
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).exists()

    def open(self, name: str) -> LocalFile:
        """Open a file; raises CheckpointError."""
        return LocalFile.open(self.model, self.path / name)

    def names(self) -> list[str]:
        """Names of its files and folders."""
        return sorted(entry.name for entry in self.path.iterdir())


@dataclass(frozen=True)
class RemoteFolder:
    """A repository of the Hub at a commit, or a folder in it."""

    model: str
    repository: Repository
    subfolder: str | None

    def __str__(self) -> str:
        return str(self.repository) + (f":{self.subfolder}" if self.subfolder else "")

    def _path(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def has(self, name: str) -> bool:
        """See LocalFolder."""
        return self._path(name) in self.repository.files

    def open(self, name: str) -> RemoteFile:
        """See LocalFolder."""
        return RemoteFile(self.repository, self._path(name))

    def names(self) -> list[str]:
        """See LocalFolder."""
        start = self._path("")
        inside = [name.removeprefix(start) for name in self.repository.files if name.startswith(start)]
        return sorted({name.split("/")[0] for name in inside})


Place = LocalFolder | RemoteFolder


def _read_json(model: str, file: File) -> str:
    """The text of a small file, whole."""
    if file.size > MAX_JSON:
        raise CheckpointError(model, file, f"it has {file.size} bytes", "Do not trust this checkpoint.")
    try:
        return file.head(file.size).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(model, file, "it is not UTF-8", "Fetch or save the model again.") from None


def _shards(model: str, index: File) -> list[str]:
    """Names of the shard files that an index names; they must lie beside it."""
    text = _read_json(model, index)
    try:
        weight_map = json.loads(text)["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            model, index, "the index has no weight_map of file names", "Fetch or save the model again."
        ) from None
    for name in names:
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or name in ("", ".", "..")
            or any(part in name for part in ("/", "\\", "\0"))
        ):
            raise CheckpointError(
                model, index, f"the index names the shard {name!r}, outside its folder", "Do not trust this checkpoint."
            )
    return names


def _find_weights(place: Place) -> str:
    """Name of the weight file or index in a folder; raises CheckpointError where there is none."""
    for name in WEIGHT_FILES:
        if place.has(name):
            return name
    names, model = place.names(), place.model
    files = [name for name in names if name.endswith(".safetensors")]
    files = files or [name for name in names if name.endswith(PICKLES)]
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(model, place, f"has {len(files)} weight files and no index", "Name one of them.")
    found = ", ".join(names[:5]) or "nothing"
    raise CheckpointError(
        model, place, f"has no weights, only {found}", "Name another revision or a ':subfolder', or save it again."
    )


def _open_place(place: Place, base: Checkpoint | None) -> Checkpoint:
    """Open the model, or the adapter, in a folder."""
    model = place.model
    if place.has(ADAPTER_CONFIG) and not any(place.has(name) for name in WEIGHT_FILES):
        return _open_adapter(place, base)
    if base is not None:
        raise CheckpointError(model, place, "has a base but is no adapter", "Leave out its base in the manifest.")
    name = _find_weights(place)
    if name.endswith(".json"):
        names = _shards(model, place.open(name))
        for shard in names:
            if not place.has(shard):
                reason = f"its index names the shard {shard}, and there is no such file"
                raise CheckpointError(model, place, reason, "Fetch or save the model again.")
    else:
        names = [name]
    return _open_files(model, [place.open(name) for name in names])


def _open_files(model: str, files: Sequence[File]) -> Checkpoint:
    tensors: dict[str, tuple[File, TensorInfo]] = {}
    for file in files:
        for name, info in _read_header(model, file).items():
            if name in tensors:
                raise CheckpointError(model, file, f"tensor {name} stands in two shards", "Fetch or save it again.")
            tensors[name] = (file, info)
    return Checkpoint(model, tensors, name_layers(tensors))


def _open_adapter(place: Place, base: Checkpoint | None) -> Checkpoint:
    """An adapter on its base, or alone."""
    model = place.model
    name = next((name for name in ADAPTER_FILES if place.has(name)), None)
    if name is None:
        raise CheckpointError(model, place, "is an adapter without adapter_model.safetensors", "Save it again.")
    parts = _open_files(model, [place.open(name)])
    infos = {name: info for name, (_, info) in parts.tensors.items()}
    config = place.open(ADAPTER_CONFIG)
    adapter = parse_adapter(model, place, _read_json(model, config), infos)
    file = next(iter(parts.tensors.values()))[0]
    if base is None:
        if any("magnitude" in update.parts for update in adapter.updates.values()):
            raise CheckpointError(
                model, place, "is a DoRA adapter, which says nothing without its base", "Give its base in the manifest."
            )
        update_of = {f"{module}.weight": module for module in adapter.updates}
        tensors = {
            name: (file, TensorInfo("F32", update_shape(adapter.updates[module], infos), 0, 0))
            for name, module in update_of.items()
        }
        adapter = Adapter(adapter.updates)  # heads that came with it are no updates
        return AdaptedCheckpoint(model, tensors, name_layers(tensors), adapter, config, parts, None, update_of)
    found = names_in_base(list(adapter.updates), list(base.tensors))
    update_of, updates = {}, dict(adapter.updates)
    shapes = {name: info.shape for name, (_, info) in base.tensors.items()}
    for module, target in found.items():
        adapter.updates[module] = oriented(updates[module], target or "", shapes, infos)
        shape = update_shape(adapter.updates[module], infos)
        if target is None or base.tensors[target][1].shape != shape:
            there = "is missing" if target is None else f"has the shape {base.tensors[target][1].shape}"
            raise CheckpointError(
                model,
                place,
                f"it updates {module}, a weight of shape {shape}, which {there} in its base",
                "Give its own base.",
            )
        update_of[target] = module
    # Whole tensors, too, go by the base's own names, whatever wrappers the adapter was saved with.
    plain = {canonical_name(name): name for name in base.tensors}
    whole = {}
    for name, raw in adapter.whole.items():
        name = name.replace(".base_layer.", ".")
        whole[name if name in base.tensors else plain.get(canonical_name(name), name)] = raw
    tensors = dict(base.tensors) | {name: parts.tensors[raw] for name, raw in whole.items()}
    adapter = Adapter(adapter.updates, whole)
    return AdaptedCheckpoint(model, tensors, name_layers(tensors), adapter, config, parts, base, update_of)


def open_checkpoint(model: str, location: str | Path, base: str | Path | None = None) -> Checkpoint:
    """Open a local path or an `hf://` source; reads headers only. Raises CheckpointError.

    `base` is where the model is that an adapter belongs to; without it an adapter is what it adds, and nothing else.
    """
    adapted = open_checkpoint(model, base) if base is not None else None
    if isinstance(adapted, AdaptedCheckpoint) and adapted.base is None:
        raise CheckpointError(
            model, base, "is an adapter itself, and was given as a base", "Give the model it belongs to."
        )
    if isinstance(location, str) and location.startswith("hf://"):
        match = HUB_SOURCE.fullmatch(location)
        if match is None:
            raise CheckpointError(model, location, "is no source", "Write hf://owner/name[@revision][:subfolder].")
        repository = open_repository(model, match["repo"], match["revision"])
        return _open_place(RemoteFolder(model, repository, match["subfolder"]), adapted)
    path = Path(location)
    try:
        if path.is_file():
            if path.name.endswith(".index.json"):
                names = _shards(model, LocalFile.open(model, path))
                return _open_files(model, [LocalFile.open(model, path.parent / name) for name in names])
            if path.suffix not in (".safetensors", *PICKLES):
                raise CheckpointError(
                    model, path, "is neither a safetensors file nor a pickle", "Save the model with save_pretrained."
                )
            return _open_files(model, [LocalFile.open(model, path)])
        if not path.is_dir():
            raise CheckpointError(model, path, "there is no such file or folder", "Mend the source in the manifest.")
        return _open_place(LocalFolder(model, path), adapted)
    except OSError as error:  # no permission, or a name that no file can have
        raise _unreadable(model, path, error) from None

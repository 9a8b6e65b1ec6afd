"""What method "map" keeps of a model: exact facts of all its tensors, and the same part of every large matrix.

A model is read once, tensor by tensor. Of each matrix inside it the same rows and columns are kept, whatever model it
is in, at most SKETCH_ENTRIES entries; smaller matrices are kept whole. A part of a matrix is all that pairs of models
need: the difference of two parts is the part of the difference, with its rank, its rounding, its equal entries; a merge
is one of the parts, too; and the directions of a part are new or old as those of the whole. What does not follow from a
part (digests, zeros, the type that holds all entries) is noted while the whole is at hand.

A sketch is kept as a safetensors file with a JSON file beside it. Models can so be added to a collection, or a result
be made again, with no other model read a second time.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from mother.errors import CheckpointError
from mother.evidence.facts import Facts, as_stored, note_counters, note_matrix, note_table, note_turned
from mother.evidence.keys import SKETCH_ENTRIES, sketch_key
from mother.io.checkpoint import Checkpoint
from mother.io.digests import digests
from mother.io.files import KEPT_TAG, is_sealed, sealed, write_atomically, write_json
from mother.io.layers import Layer, sort_key
from mother.io.open import VECTORS, lacks, open_checkpoint
from mother.io.pieces import Piece, pieces_of
from mother.io.runtime import IN_FLIGHT, STOP
from mother.io.safetensors import DTYPES

AT_ONCE = 1 << 25  # budget: bytes of a model that are read at a time


@dataclass(frozen=True)
class Sketch:
    """A model as method "map" sees it."""

    model: str
    facts: Facts
    shapes: dict[Layer, tuple[int, int]]  # of the whole matrices
    kept: Checkpoint  # of the parts
    key: str  # equal for equal files and versions
    seconds: float  # that reading the model took, of one of those that were read at once
    files: list[dict[str, Any]] = field(default_factory=list)  # that it was read from: name, size and SHA-256
    # Of a model that was brought to the names of others: what its own name of a matrix is, and whether it was turned.
    own: dict[Layer, tuple[Layer, bool]] = field(default_factory=dict)

    def scale(self, layer: Layer) -> float:
        """Entries of a matrix over those of its part: what a sum of squares over the part is multiplied with."""
        return float(np.prod(self.shapes[layer])) / self.kept.entries(layer)

    def read(self, layer: Layer) -> Float[Tensor, "rows columns"]:
        """The part that is kept of a matrix."""
        return self.kept.read(layer)


def pieces(checkpoint: Checkpoint) -> dict[str, list[Piece]]:
    """What each tensor of a model is, by its raw name; those of other types are not read."""
    return pieces_of({name: info.shape for name, (_, info) in checkpoint.tensors.items()})


def matrices(checkpoint: Checkpoint) -> dict[Layer, Piece]:
    """The matrices that are compared: all but embeddings and heads, of types that we know."""
    known = (
        (piece, checkpoint.tensors[name][1].dtype in DTYPES)
        for name, found in pieces(checkpoint).items()
        for piece in found
    )
    return {piece.layer: piece for piece, read in known if read and piece.is_matrix}


def all_weights(checkpoint: Checkpoint) -> int:
    """Entries of all that would be matrices, of any name and type."""
    return sum(math.prod(one.shape) for found in pieces(checkpoint).values() for one in found if one.is_matrix)


def read_whole(sketch: Sketch, checkpoint: Checkpoint, layer: Layer) -> Float[Tensor, "rows columns"]:
    """A whole matrix of a model, of which its sketch has a part. Raises CheckpointError."""
    own, is_turned = sketch.own.get(layer, (layer, False))
    piece = matrices(checkpoint)[own]
    whole = piece.of(checkpoint.read_tensor(piece.raw))
    return whole.T.contiguous() if is_turned else whole


def wanted_names(checkpoint: Checkpoint) -> list[str]:
    """Raw names of the tensors that are read: matrices in their order, then all others of a type that we know."""
    inside = matrices(checkpoint)
    others = [name for name, (_, info) in checkpoint.tensors.items() if info.dtype in DTYPES]
    return list(dict.fromkeys([*(inside[layer].raw for layer in sorted(inside, key=sort_key)), *others]))


def wanted_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the tensors that are read, in float32."""
    return sum(4 * int(np.prod(checkpoint.tensors[name][1].shape)) for name in wanted_names(checkpoint))


def _steps(checkpoint: Checkpoint, names: Sequence[str]) -> list[list[str]]:
    """Names in groups of AT_ONCE bytes: neighbours of a remote file then come with one request."""
    steps: list[list[str]] = []
    filled = AT_ONCE
    for name in names:
        size = 4 * int(np.prod(checkpoint.tensors[name][1].shape))
        if filled + size > AT_ONCE:
            steps.append([])
            filled = 0
        steps[-1].append(name)
        filled += size
    return steps


def _read(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a model by its raw name; a later one may overwrite it: all use the same memory."""
    steps = _steps(checkpoint, wanted_names(checkpoint))
    sizes = {name: int(np.prod(checkpoint.tensors[name][1].shape)) for names in steps for name in names}
    room = torch.empty(0 if checkpoint.remote else max((sum(map(sizes.get, names)) for names in steps), default=0))
    for names in steps:
        into = {}
        if not checkpoint.remote:
            rooms = room.split([*map(sizes.get, names), len(room) - sum(map(sizes.get, names))])
            into = {name: one.view(checkpoint.tensors[name][1].shape) for name, one in zip(names, rooms)}
        values = checkpoint.read_tensors(names, into)
        for name in names:
            yield name, values.pop(name)


def take(
    checkpoint: Checkpoint, path: Path, key: str, limit: int, read: Callable[[int], object] = lambda count: None
) -> Sketch:
    """Read a model once and keep its sketch at `path` (.safetensors) and beside it (.json).

    `read(count)` is called with the bytes of each tensor. Raises CheckpointError.
    """
    started = time.perf_counter()
    inside, found = matrices(checkpoint), pieces(checkpoint)
    if not inside:
        raise lacks(checkpoint, "weight matrix outside embeddings and heads", VECTORS)
    facts, parts = Facts(weights=all_weights(checkpoint)), {}
    blocks = {layer.block for layer in inside} - {""} or {""}  # without any, every matrix is inside
    updated = getattr(checkpoint, "update_of", {})  # by an adapter: no longer as they are packed
    for name, values in _read(checkpoint):
        info = checkpoint.tensors[name][1]
        stored = getattr(torch, DTYPES[info.dtype])
        for piece in found[name]:
            one, layer = piece.of(values), piece.layer
            if layer in inside:
                if info.storage is not None and name not in updated:
                    facts.storage[str(layer)] = list(astuple(info.storage))
                parts[piece.name] = as_stored(note_matrix(facts, layer, one, limit, layer.block in blocks), stored)
                if piece.either_way:
                    parts[turned(piece.name)] = as_stored(note_turned(facts, piece.name, one, limit), stored)
            else:
                note_table(facts, piece.name, one, limit, nameless="." not in piece.raw)
        read(4 * values.numel())
    note_counters(facts, checkpoint)
    tables = {f"table {number}": table.contiguous() for number, table in enumerate(facts.tables.values())}
    write_atomically(path, lambda file: file.write(save(parts | tables)))
    layers = [[*layer, inside[layer].name, *inside[layer].shape] for layer in sorted(inside, key=sort_key)]
    about = {"key": key, "model": checkpoint.model, "layers": layers, "facts": facts.to_json()}
    about |= {"files": digests(checkpoint), "seconds": time.perf_counter() - started}
    write_json(path.with_suffix(".json"), sealed(about), indent=None)  # written last: where it is, the other is whole
    return open_sketch(path)


def turned(name: str) -> str:
    """What the part of a matrix is kept under that was turned round."""
    return f"turned {name}"


def open_sketch(path: Path) -> Sketch:
    """A sketch that `take` kept. Raises OSError, ValueError, KeyError or TypeError where it is damaged."""
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if not is_sealed(about):
        raise ValueError("it is damaged")
    opened = open_checkpoint(about["model"], path)
    layers = {Layer(block, kind): name for block, kind, name, _, _ in about["layers"]}
    shapes = {Layer(block, kind): (rows, columns) for block, kind, _, rows, columns in about["layers"]}
    if not layers or not set(layers.values()) <= set(opened.tensors):
        raise ValueError("a part is missing")
    tables = [opened.read_tensor(f"table {number}") for number in range(len(about["facts"]["tables"]))]
    facts = Facts.from_json(about["facts"], tables)
    return Sketch(
        about["model"], facts, shapes, replace(opened, layers=layers), about["key"], about["seconds"], about["files"]
    )


def kept_sketch(path: Path, key: str) -> Sketch | None:
    """The sketch at `path` where it is sound and of this key."""
    try:
        found = open_sketch(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return found if found.key == key else None


@dataclass
class Taken:
    """The sketches of a collection, in its order, and why models have none."""

    sketches: list[Sketch]
    left_out: dict[str, str] = field(default_factory=dict)
    passing: frozenset[str] = frozenset()  # of these those that are left out for a reason that may pass
    reused: float = 0.0  # seconds that earlier runs took for sketches that were kept
    copied: dict[str, str] = field(default_factory=dict)  # models whose files are those of another one: not read


@dataclass(frozen=True)
class _Missing:
    """A model of which no sketch is kept, and where it will be."""

    checkpoint: Checkpoint
    path: Path
    key: str


def sketch_models(
    checkpoints: Sequence[Checkpoint],
    folder: Path,
    limit: int = SKETCH_ENTRIES,
    progress: Callable[[int], Callable[[int], object]] = lambda total: lambda count: None,
) -> Taken:
    """The sketch of each model, read from the model or, if it was kept in `folder`, from there.

    Models that fail are left out with the reason. `progress(total)` is given the bytes to be read, and returns what is
    called with the bytes of each tensor.
    """
    workers = IN_FLIGHT if any(checkpoint.remote for checkpoint in checkpoints) else torch.get_num_threads()
    found: dict[str, Sketch | CheckpointError] = {}
    missing: list[_Missing] = []
    for checkpoint in checkpoints:
        try:
            key = sketch_key(checkpoint, limit)
        except CheckpointError as error:
            found[checkpoint.model] = error
            continue
        path = folder / f"{key}.safetensors"
        kept = kept_sketch(path, key)
        if kept is not None:
            found[checkpoint.model] = kept
        else:
            missing.append(_Missing(checkpoint, path, key))
    reused = sum(one.seconds for one in found.values() if isinstance(one, Sketch))
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / KEPT_TAG).touch()
        found |= _take_all(missing, limit, workers, progress(sum(wanted_bytes(one.checkpoint) for one in missing)))
    outcome = [found[checkpoint.model] for checkpoint in checkpoints]
    failed = [one for one in outcome if isinstance(one, CheckpointError)]
    return Taken(
        [one for one in outcome if isinstance(one, Sketch)],
        {error.model: str(error) for error in failed},
        frozenset(error.model for error in failed if error.transient),
        reused / min(workers, max(1, len(checkpoints))),
    )


def _take_all(
    missing: Sequence[_Missing], limit: int, workers: int, read: Callable[[int], object]
) -> dict[str, Sketch | CheckpointError]:
    """The sketch of each of these models by its id, or why it has none; several models are read at once."""

    def count(size: int) -> None:
        if STOP.is_set():  # Ctrl-C: what other threads are at is not worth waiting for
            raise KeyboardInterrupt
        read(size)

    def work(one: _Missing) -> Sketch | CheckpointError:
        try:
            return take(one.checkpoint, one.path, one.key, limit, count)
        except CheckpointError as error:
            return error

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                futures = {one.checkpoint.model: pool.submit(work, one) for one in missing}
                return {model: future.result() for model, future in futures.items()}
            except BaseException:
                STOP.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        STOP.clear()
        torch.set_num_threads(threads)

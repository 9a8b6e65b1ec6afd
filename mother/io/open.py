"""Open a model wherever it is; read the tensors asked for, and nothing else.

A model is a folder, a file of a format in `mother/io/readers.py`, shards with an index, a repository of the Hugging
Face Hub (`hf://owner/name[@revision][:subfolder or file]`), or a PEFT adapter of one of these. Nothing of a checkpoint
is executed, and nothing of it stays in memory: tensors are read where they stand, as byte ranges, and returned in
float32.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mother.errors import CheckpointError
from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.adapter_names import is_adapter
from mother.io.checkpoint import Checkpoint, check_sizes
from mother.io.layers import name_layers
from mother.io.open_adapter import with_base
from mother.io.packed import unpacked
from mother.io.places import HUB_SOURCE, File, LocalFile, LocalFolder, Place, check_inside, unreadable
from mother.io.reader import BITS, MAX_NAME, Listing, TensorInfo
from mother.io.readers import READERS, reader_of
from mother.io.runtime import IN_FLIGHT, memory
from mother.io.states import NoState
from mother.io.weights import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    is_index,
    loaded_unasked,
    read_index,
    the_only_one,
)
from mother.io.weights import WEIGHT_FILES as WEIGHT_FILES  # where others look for it

POINTER = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md


def _listing(place: Place, file: File, state: str | None) -> Listing:
    """The tensors of a file, whatever format it has; raises CheckpointError."""
    if file.head(len(POINTER)) == POINTER:
        reason = "it is a pointer of Git LFS; the file that it stands for is not there"
        raise CheckpointError(place.model, file, reason, "Run git lfs pull in its folder.")
    reader = reader_of(file)
    if reader is None:
        known = ", ".join(one.name for one in READERS)
        reason = f"it is of no format that is read ({known})"
        raise CheckpointError(place.model, file, reason, "Save the model with save_pretrained.")
    try:
        return reader.listing(place, file, state)
    except ImportError as error:
        reason = f"reading {reader.name} needs the package {error.name}"
        raise CheckpointError(place.model, file, reason, f"Run pip install {error.name}.") from None
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        remedy = "Name one of these, or none." if isinstance(error, NoState) else reader.remedy
        raise CheckpointError(place.model, file, str(error), remedy) from None


def _open_place(place: Place, base: Checkpoint | None, state: str | None) -> Checkpoint:
    """Open the model, or the adapter, in a folder."""
    model, name = place.model, loaded_unasked(place)
    config = place.open(ADAPTER_CONFIG) if place.has(ADAPTER_CONFIG) and name is None else None
    adapter = next((file for file in ADAPTER_FILES if place.has(file)), None)
    name = name or (adapter if config is not None else None) or the_only_one(place) or adapter
    if name is None and config is not None:
        raise CheckpointError(model, place, "is an adapter without adapter_model.safetensors", "Save it again.")
    if name is None:
        found = ", ".join(place.names()[:5]) or "nothing"
        raise CheckpointError(
            model, place, f"has no weights, only {found}", "Name another revision or a ':subfolder', or save it again."
        )
    opened = _open_index(place, name, state) if is_index(name) else _open_files(place, [place.open(name)], state)
    if name not in ADAPTER_FILES and not is_adapter(opened.tensors):
        config = None  # of an adapter whose file is gone
    return with_base(place, opened, base, config)


def _open_index(place: Place, name: str, state: str | None) -> Checkpoint:
    """Open shards and all of their tensors: loaders read whole shards, also what the index does not name."""
    model, index = place.model, place.open(name)
    shard_of = read_index(model, index)
    shards = {}
    for shard in sorted(set(shard_of.values())):
        if not place.has(shard):
            reason = f"its index names the shard {shard}, and there is no such file"
            raise CheckpointError(model, place, reason, "Fetch or save the model again.")
        check_inside(place, index, shard)
        shards[shard] = place.open(shard)
    opened = _stored(place, list(shards.values()), state)
    for tensor, shard in shard_of.items():
        if tensor not in opened.tensors or opened.tensors[tensor][0] is not shards[shard]:
            reason = f"the index names tensor {ascii(tensor)[1:-1][:MAX_NAME]}, which shard {shard} lacks"
            raise CheckpointError(model, index, reason, "Fetch or save the model again.")
    return unpacked(place, replace(opened, index=index))


def _open_files(place: Place, files: Sequence[File], state: str | None = None) -> Checkpoint:
    """The model in some files, packed weights as plain ones."""
    return unpacked(place, _stored(place, files, state))


def _stored(place: Place, files: Sequence[File], state: str | None) -> Checkpoint:
    """The tensors of some files as they are stored."""
    model = place.model
    tensors: dict[str, tuple[File, TensorInfo]] = {}
    aside: list[str] = []
    for file in files:
        listing = _listing(place, file, state)
        for name, (there, info) in listing.tensors.items():
            if name in tensors:
                raise CheckpointError(model, file, f"tensor {name} stands in two shards", "Fetch or save it again.")
            tensors[name] = (there, info)
        aside += listing.aside
    check_sizes(model, tensors, memory(), "can have at most")
    holding = {file for file, _ in tensors.values()}
    index = next((file for file in files if file not in holding), None)  # an ONNX graph whose data lies outside
    return Checkpoint(model, tensors, name_layers(tensors), index=index, aside=tuple(aside), state=state)


def open_checkpoint(
    model: str, location: str | Path, base: str | Path | None = None, state: str | None = None
) -> Checkpoint:
    """Open a local path or an `hf://` source; reads headers only. Raises CheckpointError.

    `base` is where the model is that an adapter belongs to; without it an adapter is what it adds, and nothing else.
    `state` names the weights that are taken of a checkpoint of a training that holds several, such as "ema".
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
        from mother.io.hub import open_repository  # the client of the Hub is slow to import
        from mother.io.remote import RemoteFolder

        repository = open_repository(model, match["repo"], match["revision"])
        folder, _, name = (match["subfolder"] or "").rpartition("/")
        if match["subfolder"] in repository.files:  # one file of several
            place = RemoteFolder(model, repository, folder or None)
            return with_base(place, _open_files(place, [place.open(name)], state), adapted)
        return _open_place(RemoteFolder(model, repository, match["subfolder"]), adapted, state)
    path = Path(location)
    try:
        if path.is_file():
            place = LocalFolder(model, path.parent)
            if is_index(path.name):
                return with_base(place, _open_index(place, path.name, state), adapted)
            return with_base(place, _open_files(place, [LocalFile.open(model, path)], state), adapted)
        if not path.is_dir():
            raise CheckpointError(model, path, "there is no such file or folder", "Mend the source in the manifest.")
        return _open_place(LocalFolder(model, path), adapted, state)
    except OSError as error:  # no permission, or a name that no file can have
        raise unreadable(model, path, error) from None


def open_all(
    models: Iterable[tuple],
) -> tuple[list[Checkpoint], dict[str, str]]:
    """Open models, each given as the arguments of `open_checkpoint`, headers only, several at once.

    Returns those that can be read, in their order, and why the others cannot.
    """
    opened, failed = open_each(models)
    return opened, {model: str(error) for model, error in failed.items()}


def open_each(models: Iterable[tuple]) -> tuple[list[Checkpoint], dict[str, CheckpointError]]:
    """The same, with the errors themselves."""

    def look(model: tuple) -> Checkpoint | CheckpointError:
        try:
            return open_checkpoint(*model)
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        found = list(pool.map(look, models))
    failed = {one.model: one for one in found if isinstance(one, CheckpointError)}
    return [one for one in found if isinstance(one, Checkpoint)], failed


VECTORS = "By vectors, embeddings and heads alone models cannot be compared: leave it out."
PACKED = "Its matrices are of integers, without the scales that say what they stand for: get the files that hold these."
UNREAD = "Matrices of that kind are not read: save them as plain tensors, as `tensor.to_dense()` makes them."
NAMELESS = "Name its layers in mother/io/layers.py, or leave it out of the manifest."


def lacks(checkpoint: Checkpoint, what: str, remedy: str = NAMELESS) -> CheckpointError:
    """The error of a model that has none of the layers asked for."""
    if isinstance(checkpoint, AdaptedCheckpoint) and (nothing := checkpoint.factors_alone()) is not None:
        return nothing
    some = ", ".join(list(checkpoint.tensors)[:3]) or "nothing"
    large = [info for _, info in checkpoint.tensors.values() if len(info.shape) > 1]
    packed = any(info.dtype[0] in "IU" for info in large)
    kinds = sorted({info.dtype for info in large} - BITS.keys())
    if kinds and not packed:
        some, remedy = f"{some} ({', '.join(kinds)})", UNREAD
    return CheckpointError(
        checkpoint.model,
        next((file for file, _ in checkpoint.tensors.values()), "no file"),
        f"has no {what}; its tensors are {some}, ...",
        PACKED if packed else remedy,
    )

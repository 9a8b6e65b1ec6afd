"""Models whose files are equal, byte by byte: only one of them is read."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mother.errors import CheckpointError
from mother.evidence.sketch import Sketch, Taken, sketch_key, sketch_models
from mother.io.checkpoint import Checkpoint
from mother.io.digests import digest_of, digests
from mother.io.files import SEAL, sealed, write_json


def _looks(checkpoint: Checkpoint) -> tuple | None:
    """Equal for models that may be copies: what is asked for of them, sizes of their files, and both ends of each.

    Nothing is read for it but these ends; of files afar it is what the Hub says of them.
    """
    try:
        facts = checkpoint.fingerprint()
        sizes = [file.size for file in checkpoint.files()]
    except CheckpointError:  # said where it is read
        return None
    kinds = sorted((name, info.dtype, info.shape, str(info.storage)) for name, (_, info) in checkpoint.tensors.items())
    # A file's name and time say nothing of its bytes; what is no file, such as a state, is told by its name.
    return (tuple((size or name, end) for name, size, _, end in facts), tuple(sizes), tuple(kinds))


def copies(opened: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Of each model whose files are those of an earlier one, by its id, that earlier one."""
    first: dict[tuple, list[Checkpoint]] = {}
    for checkpoint in opened:
        looks = _looks(checkpoint)
        if looks is not None:
            first.setdefault(looks, []).append(checkpoint)
    found = {}
    for alike in first.values():
        if len(alike) < 2:
            continue
        whole: dict[tuple, Checkpoint] = {}
        for checkpoint in alike:
            try:
                contents = tuple(digest_of(file) for file in checkpoint.files())
            except CheckpointError:
                continue
            if None not in contents and (other := whole.setdefault(contents, checkpoint)) is not checkpoint:
                found[checkpoint.model] = other
    return found


def _copy(sketch: Sketch, checkpoint: Checkpoint, folder: Path, limit: int) -> None:
    """Keep the sketch of a model for another one with the same files, where it has none."""
    key = sketch_key(checkpoint, limit)
    if (folder / f"{key}.json").exists():  # what is kept is looked at where it is read
        return
    about = json.loads((folder / f"{sketch.key}.json").read_text(encoding="utf-8"))
    about |= {"key": key, "model": checkpoint.model, "files": digests(checkpoint)}
    about.pop(SEAL)
    shutil.copyfile(folder / f"{sketch.key}.safetensors", folder / f"{key}.safetensors")
    write_json(folder / f"{key}.json", sealed(about), indent=None)  # last: where it is, the other is whole


def sketch_once(
    opened: Sequence[Checkpoint],
    folder: Path,
    limit: int,
    progress: Callable[[int], Callable[[int], object]],
) -> Taken:
    """As `sketch_models`; of models with equal files one is read, and the others get its sketch."""
    earlier = copies(opened)
    taken = sketch_models([one for one in opened if one.model not in earlier], folder, limit, progress)
    if not earlier:
        return taken
    found = {sketch.model: sketch for sketch in taken.sketches}
    for checkpoint in opened:
        sketch = found.get(earlier[checkpoint.model].model) if checkpoint.model in earlier else None
        if sketch is not None:
            try:
                _copy(sketch, checkpoint, folder, limit)
            except (OSError, ValueError, KeyError, CheckpointError):  # then it is read
                continue
    rest = sketch_models([one for one in opened if one.model in earlier], folder, limit, progress)
    sketches = {sketch.model: sketch for sketch in [*taken.sketches, *rest.sketches]}
    in_order = [sketches[one.model] for one in opened if one.model in sketches]
    left_out = taken.left_out | rest.left_out
    copied = {model: other.model for model, other in earlier.items()}
    passing = taken.passing | rest.passing
    return replace(taken, sketches=in_order, left_out=left_out, passing=passing, copied=copied)

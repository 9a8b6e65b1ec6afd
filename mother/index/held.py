"""Sketches that a worker holds in memory: the blocks of a large family share most of their models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from mother.errors import CheckpointError
from mother.evidence.sketch import Sketch, kept_sketch
from mother.io.checkpoint import Checkpoint, filled
from mother.io.layers import Layer

HELD = 8192  # budget: sketches that a worker holds
SMALL = 1 << 16  # budget: bytes of one that is held: to open a larger one costs little beside reading it

Stamp = tuple[int, int, int]  # of a file: which it is, its size, and when it was written


@dataclass(frozen=True)
class HeldCheckpoint(Checkpoint):
    """A model whose tensors are in memory."""

    values: dict[str, Tensor]

    def at_hand(self, layer: Layer) -> Tensor:
        """See Checkpoint."""
        return self.values[self.layers[layer]]

    def read_tensors(
        self, names: Sequence[str], into: Mapping[str, Tensor] = MappingProxyType({})
    ) -> dict[str, Tensor]:
        """See Checkpoint."""
        return filled({name: self.values[name] if name in into else self.values[name].clone() for name in names}, into)


def held_sketch(path: Path, key: str) -> Sketch | None:
    """As `kept_sketch`; a small one is opened once as long as its files stay as they are."""
    try:
        stamps = tuple(_stamp(one) for one in (path, path.with_suffix(".json")))
    except OSError:
        return None
    if sum(size for _, size, _ in stamps) > SMALL:
        return kept_sketch(path, key)
    return _held(path, key, stamps)


def _stamp(path: Path) -> Stamp:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


@lru_cache(maxsize=HELD)
def _held(path: Path, key: str, stamps: tuple[Stamp, ...]) -> Sketch | None:
    sketch = kept_sketch(path, key)
    if sketch is None:
        return None
    kept = sketch.kept
    try:
        values = kept.read_tensors(list(kept.tensors))  # of matrices that are kept turned round, too
    except CheckpointError:  # whoever reads it says so
        return sketch
    return replace(sketch, kept=HeldCheckpoint(**vars(kept), values=values))

"""What is read to ask an adapter for its base: a candidate's matrices and the adapter's updates, one after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float

from mother.evidence.consumers import Surroundings
from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.checkpoint import Checkpoint
from mother.io.pieces import Piece, pieces_of


class Matrices(Mapping[str, Float[torch.Tensor, "rows columns"]]):
    """Matrices by the names of their pieces, read when they are asked for; only the last tensor is kept."""

    def __init__(self, pieces: Sequence[Piece], read: Callable[[str], torch.Tensor]):
        self.pieces = {piece.name: piece for piece in pieces}
        self.read = read
        self.last: tuple[str, torch.Tensor] | None = None

    def __getitem__(self, name: str) -> Float[torch.Tensor, "rows columns"]:
        piece = self.pieces[name]
        if self.last is None or self.last[0] != piece.raw:
            self.last = None  # no two at once
            self.last = (piece.raw, self.read(piece.raw))
        return piece.of(self.last[1]).flatten(1)

    def __contains__(self, name: object) -> bool:
        return name in self.pieces

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


def surroundings_of(base: Checkpoint, head: int = 0) -> Surroundings:
    """The matrices of a candidate, in float32; `head` are the rows of an attention head where they are known."""
    shapes = {name: info.shape for name, (_, info) in base.tensors.items()}
    pieces = [
        part for parts in pieces_of(shapes).values() for part in parts if len(part.shape) >= 2 and min(part.shape) > 1
    ]
    return Surroundings(pieces, shapes, Matrices(pieces, base.read_tensor), head)


def updates_on(adapter: AdaptedCheckpoint, shapes: dict[str, tuple[int, ...]]) -> Matrices:
    """What an adapter that was opened on a base adds, by the base's pieces."""
    pieces = pieces_of(shapes)
    wanted = [piece for raw in adapter.update_of for piece in pieces[raw] if len(piece.shape) >= 2]
    return Matrices(wanted, adapter.added)

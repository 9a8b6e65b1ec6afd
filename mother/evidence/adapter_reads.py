"""What is read to ask an adapter for its base: a candidate's matrices, and the updates as the candidate has them."""

import torch

from mother.evidence.consumers import Surroundings
from mother.io.checkpoint import AdaptedCheckpoint, Checkpoint
from mother.io.pieces import pieces_of


def surroundings_of(base: Checkpoint, head: int = 0) -> Surroundings:
    """The matrices of a candidate, whole, in float32; `head` are the rows of an attention head where they are known."""
    shapes = {name: info.shape for name, (_, info) in base.tensors.items()}
    pieces, matrices = [], {}
    for raw, parts in pieces_of(shapes).items():
        wanted = [part for part in parts if len(part.shape) >= 2 and min(part.shape) > 1]
        if not wanted:
            continue
        values = base.read_tensor(raw)
        for part in wanted:
            matrices[part.name] = part.of(values).flatten(1)
            pieces.append(part)
    return Surroundings(pieces, shapes, matrices, head)


def updates_on(adapter: AdaptedCheckpoint, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """What an adapter that was opened on a base adds, by the base's pieces."""
    pieces, found = pieces_of(shapes), {}
    for raw in adapter.update_of:
        delta = adapter.added(raw)
        for piece in pieces[raw]:
            if len(piece.shape) >= 2:
                found[piece.name] = piece.of(delta).flatten(1)
    return found

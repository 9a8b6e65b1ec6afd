"""Tiny models on disk whose heritage is known, for benchmarks of thousands: families as in the simulated hub.

What happens to weights is what happens to those of grown models, at a smaller size. A fine-tune adds an update whose
singular values fall as those of the grown splits do, an adapter one of rank RANK, each of relative size `move`. A
quantization rounds as formats do: two of one model in the same format are copies.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.hub import BITS, Family, simulate
from dataset.weights import quantized
from mother.graph.model_graph import Edge, standing_for

SIDE = 32
KINDS = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")
NAMES = [f"encoder.layer.{block}.{kind}.weight" for block in range(3) for kind in KINDS]
MATRICES = len(NAMES)
MOVES = (0.02, 0.05, 0.1)  # of matrices of mini_ft and mini_wild the median is 0.034, nine in ten are below 0.2
RANK = 4
# Singular value k of an update over the first is (1 + (k - 1) / half)^-FALL. Over the matrices of mini_ft the median is
# 0.85, 0.36 and 0.08 at 2, 8 and 32; at 8 one in ten is below 0.15, one in ten above 0.9.
HALF, HALF_SPREAD, FALL = 5.0, 0.8, 1.2
SCHEMES = dict(zip(BITS, ("int8-row", "int4-block", "nf4-block")))


def update(kind: str, size: float, draw: torch.Generator) -> torch.Tensor:
    """What training adds to the matrices of a model, whose weights have deviation 1."""
    rank = RANK if kind == "adapter" else SIDE
    left, right = (torch.randn(MATRICES, SIDE, rank, generator=draw) for _ in range(2))
    if kind != "adapter":
        half = HALF * torch.exp(HALF_SPREAD * torch.randn(MATRICES, 1, 1, generator=draw))
        values = (1 + torch.arange(SIDE) / half) ** -FALL
        left, right = torch.linalg.qr(left).Q * values, torch.linalg.qr(right).Q
    found = left @ right.mT
    return found * (size * SIDE / torch.linalg.matrix_norm(found)[:, None, None])


def grow(family: Family, draw: torch.Generator) -> list[torch.Tensor]:
    """The matrices of all models of a family."""
    weights = [torch.randn(MATRICES, SIDE, SIDE, generator=draw)]
    for child in range(1, len(family.parent)):
        parent, move = weights[family.parent[child]], float(family.move[child])
        if family.kind[child] == "quantization":
            weights.append(torch.stack([quantized(one, SCHEMES[move]) for one in parent]))
        else:
            weights.append(parent + update(family.kind[child], move, draw))
    return weights


def write_models(folder: Path, models: int, families: int) -> dict[str, str]:
    """Models on disk, called by their numbers; returns the parent of each that has one."""
    from safetensors.torch import save_file

    draw, truth, start = torch.Generator().manual_seed(0), {}, 0
    for family in simulate(models, families, np.array(MOVES), 5):
        for child, matrices in enumerate(grow(family, draw)):
            name = f"{start + child:05}"
            (folder / name).mkdir(parents=True)
            named = {one: matrix.contiguous() for one, matrix in zip(NAMES, matrices)}
            save_file(named, folder / name / "model.safetensors")
            if child:
                truth[name] = f"{start + int(family.parent[child]):05}"
        start += len(family.parent)
    return truth


def shares_right(
    nodes: Mapping[str, Mapping[str, object]], edges: Iterable[Edge], truth: Mapping[str, str]
) -> tuple[float, float]:
    """Shares of the models with a parent whose edge is right without its arrow, and with it.

    Copies stand for each other, see `standing_for`; one of its own parent is right.
    """
    stands, drawn = standing_for(nodes), {(edge.parent, edge.child) for edge in edges}
    ends = [(stands.get(parent, parent), stands.get(child, child)) for child, parent in truth.items()]
    right = sum(one[0] == one[1] or one in drawn for one in ends)
    turned = sum(one[0] != one[1] and one not in drawn and one[::-1] in drawn for one in ends)
    return (right + turned) / len(truth), right / len(truth)

"""Tiny models on disk whose heritage is known, for benchmarks of thousands: families as in the simulated hub, trained.

A model predicts the next of eight tokens from the two before: three layers of attention, twelve matrices of 32 x 32,
with embeddings and a head. Each language is a table of log odds; that of a child is its parent's and half as much of
its own. A base is trained until its rate is zero; a fine-tune goes on in its language with all weights, an adapter of
rank RANK beside frozen ones. The median matrix changes by about `move`: by 0.020, 0.041 and 0.078 for 0.02, 0.05 and
0.1. A quantization rounds as formats do: two of one model in the same format are copies.

Models of one kind and parents that are there are trained together, as one batch of products.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.hub import BITS, Family, simulate
from dataset.weights import quantized
from mother.graph.model_graph import Edge, standing_for

SIDE, HEADS, TOKENS, LENGTH = 32, 2, 8, 8
BLOCKS = 3
KINDS = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")
NAMES = [f"encoder.layer.{block}.{kind}.weight" for block in range(BLOCKS) for kind in KINDS]
TABLES = {"embeddings.word_embeddings.weight": TOKENS, "embeddings.position_embeddings.weight": LENGTH}
TABLES |= {"lm_head.weight": TOKENS}
MOVES = (0.02, 0.05, 0.1)  # of matrices of mini_ft and mini_wild the median is 0.034, nine in ten are below 0.2
RANK = 4
SCHEMES = dict(zip(BITS, ("int8-row", "int4-block", "nf4-block")))
STEPS, SEQUENCES = 24, 8
BASE_STEPS, BASE_SEQUENCES, BASE_RATE = 600, 64, 3e-3
RATE = {"fine-tune": 0.046, "adapter": 0.115}  # learning rate over the move that it makes, measured
TOGETHER = 256  # budget: models that are trained at a time

Weights = dict[str, Tensor]  # of several models: [model, rows, columns] by name


def sentences(languages: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Tokens (models, count, LENGTH) in languages: log odds (models, TOKENS, TOKENS, TOKENS) of the next token."""
    models = torch.arange(len(languages))[:, None]
    found = torch.randint(TOKENS, (len(languages), count, LENGTH), generator=draw)
    for at in range(2, LENGTH):
        odds = languages[models, found[..., at - 2], found[..., at - 1]]
        found[..., at] = (odds - torch.rand(odds.shape, generator=draw).log().neg().log()).argmax(dim=-1)
    return found


def loss(weights: Weights, tokens: Tensor) -> Tensor:
    """Sum over models of the mean cross-entropy of the tokens after the second."""
    models, count, length = tokens.shape
    words, places, head = (weights[name] for name in TABLES)
    x = words[torch.arange(models)[:, None, None], tokens] + places[:, None]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    for block in range(BLOCKS):
        query, key, value, out = (weights[name].mT for name in NAMES[4 * block : 4 * block + 4])
        h = functional.rms_norm(x, (SIDE,)).flatten(1, 2)
        q, k, v = (
            (h @ one).view(models, count, length, HEADS, -1).transpose(2, 3).contiguous() for one in (query, key, value)
        )
        score = (q @ k.mT / math.sqrt(SIDE / HEADS)).masked_fill(later, -torch.inf)
        read = (score.softmax(dim=-1) @ v).transpose(2, 3).reshape(models, count * length, SIDE)
        x = x + (read @ out).view_as(x)
    odds = functional.rms_norm(x, (SIDE,)).flatten(1, 2) @ head.mT
    odds = odds.view(models, count, length, TOKENS)[:, :, 1:-1].flatten(1, 2)
    return functional.cross_entropy(odds.mT, tokens[:, :, 2:].flatten(1), reduction="none").mean(dim=1).sum()


def train(
    weights: Weights, languages: Tensor, steps: int, sequences: int, rate: float, rank: int, draw: torch.Generator
) -> Weights:
    """Train models with AdamW and a cosine schedule: all weights, or the factors of this rank of the matrices."""
    whole = {name: one.clone().requires_grad_(not rank) for name, one in weights.items()}
    down = {name: torch.randn(len(languages), rank, SIDE, generator=draw) / SIDE**0.5 for name in NAMES if rank}
    up = {name: torch.zeros(len(languages), SIDE, rank) for name in down}
    trained = [*down.values(), *up.values()] if rank else list(whole.values())
    optimizer = torch.optim.AdamW([one.requires_grad_() for one in trained], rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        now = whole | {name: whole[name] + up[name] @ down[name] for name in down}
        loss(now, sentences(languages, sequences, draw)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return {name: one + up[name] @ down[name] if name in down else one.detach() for name, one in whole.items()}


def base(language: Tensor, draw: torch.Generator) -> Weights:
    """The base of a family, trained from noise."""
    shapes = dict.fromkeys(NAMES, SIDE) | TABLES
    noise = {name: torch.randn(1, rows, SIDE, generator=draw) / SIDE**0.5 for name, rows in shapes.items()}
    return train(noise, language[None], BASE_STEPS, BASE_SEQUENCES, BASE_RATE, 0, draw)


def generations(family: Family) -> Iterator[list[int]]:
    """The models of a family but its base, parents before children: those of one kind and move together."""
    depth = np.zeros(len(family.parent), dtype=int)
    for child in range(1, len(depth)):  # parents come before children
        depth[child] = depth[family.parent[child]] + 1
    order = sorted(range(1, len(depth)), key=lambda one: (depth[one], family.kind[one], family.move[one]))
    alike: dict[tuple, list[int]] = {}
    for one in order:
        alike.setdefault((depth[one], family.kind[one], family.move[one]), []).append(one)
    for some in alike.values():
        yield from (some[at : at + TOGETHER] for at in range(0, len(some), TOGETHER))


def grow(family: Family, draw: torch.Generator) -> Weights:
    """The weights of all models of a family."""
    models = len(family.parent)
    languages = torch.empty(models, TOKENS, TOKENS, TOKENS)
    languages[0] = 2 * torch.randn(TOKENS, TOKENS, TOKENS, generator=draw)
    first = base(languages[0], draw)
    found = {name: one.new_empty(models, *one.shape[1:]) for name, one in first.items()}
    for name, one in first.items():
        found[name][0] = one[0]
    for some in generations(family):
        kind, move, above = family.kind[some[0]], float(family.move[some[0]]), family.parent[some]
        parents = {name: one[above] for name, one in found.items()}
        own = torch.randn(len(some), TOKENS, TOKENS, TOKENS, generator=draw)
        languages[some] = languages[above] + (0 if kind == "quantization" else own)
        if kind == "quantization":
            rounded = {name: [quantized(one, SCHEMES[move]) for one in parents[name]] for name in NAMES}
            made = parents | {name: torch.stack(several) for name, several in rounded.items()}
        else:
            rank = RANK if kind == "adapter" else 0
            made = train(parents, languages[some], STEPS, SEQUENCES, RATE[kind] * move, rank, draw)
        for name, one in made.items():
            found[name][some] = one
    return found


def write_models(folder: Path, models: int, families: int) -> dict[str, str]:
    """Models on disk, called by their numbers; returns the parent of each that has one."""
    from safetensors.torch import save_file

    draw, truth, start = torch.Generator().manual_seed(0), {}, 0
    for family in simulate(models, families, np.array(MOVES), 5):
        weights = grow(family, draw)
        for child in range(len(family.parent)):
            name = f"{start + child:05}"
            (folder / name).mkdir(parents=True)
            named = {key: one[child].contiguous() for key, one in weights.items()}
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

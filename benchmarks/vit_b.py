"""Families of models at the size of VTHR: names and shapes of ViT-B/16, attention matrices only.

Weights are random; what they are updated by is of low or full rank, in trees of 1 + 4 + 16. Only the tensors that the
methods of the paper read are written, so that 105 models take 12 GB.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import write_manifest

LAYERS = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")
ADAPTED = (LAYERS[0], LAYERS[2])  # LoRA updates query and value
SIZE = 0.02  # norm of an update over that of the weight


def _step(weights: dict[str, torch.Tensor], rank: int | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A descendant: LoRA of a rank on query and value, or (None) a full update with a few strong directions."""
    result = {}
    for name, weight in weights.items():
        if rank is not None and not name.removesuffix(".weight").endswith(ADAPTED):
            result[name] = weight
            continue
        rows, columns = weight.shape
        inner = rank or 8
        step = torch.randn(rows, inner, generator=generator) @ torch.randn(inner, columns, generator=generator)
        if rank is None:
            step += inner**0.5 * torch.randn(rows, columns, generator=generator)
        result[name] = weight + SIZE * float(weight.norm() / step.norm()) * step
    return result


def write_family(
    folder: Path,
    name: str,
    trees: int,
    ranks: Sequence[int] | None,
    blocks: int = 12,
    width: int = 768,
    seed: int = 0,
) -> Path:
    """Write trees of 21 models and their manifest; returns its path. LoRA takes its rank from `ranks`; None: full."""
    nodes: list[Node] = []

    def save(weights: dict[str, torch.Tensor], parent: str | None, rank: int | None, tree: int) -> str:
        model = f"{name}_{len(nodes):03}"
        (folder / model).mkdir(parents=True)
        save_file(weights, folder / model / "model.safetensors")
        kind = None if parent is None else "fine-tune" if rank is None else "lora"
        nodes.append(Node(model, model, parent, tree, rank=rank, kind=kind))
        return model

    for tree in range(trees):
        generator = torch.Generator().manual_seed(1000 * seed + tree)
        names = [f"vit.encoder.layer.{block}.{layer}.weight" for block in range(blocks) for layer in LAYERS]
        root = {name: 0.04 * torch.randn(width, width, generator=generator) for name in names}
        root_name = save(root, None, None, tree)

        def draw() -> int | None:
            return ranks and ranks[int(torch.randint(len(ranks), (), generator=generator))]

        for _ in range(4):
            rank = draw()
            child = _step(root, rank, generator)
            child_name = save(child, root_name, rank, tree)
            for _ in range(4):
                rank = draw()
                save(_step(child, rank, generator), child_name, rank, tree)
    write_manifest(folder / f"{name}.json", Manifest(name, tuple(nodes), folder))
    return folder / f"{name}.json"

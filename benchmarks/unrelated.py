"""False relations: independently initialised models of one architecture, and runs of one recipe with other seeds.

python -m benchmarks.unrelated
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import ViTConfig, ViTModel

from dataset.vit import ARCHITECTURE
from mother.evidence.first_pass import take_first_pass
from mother.evidence.relatedness import layer_cosine, related_components
from mother.evidence.sketch import sketch_models
from mother.graph.collection import find_manifest, open_models
from mother.graph.text import format_table

MODELS, REPEATS, LEVEL = 150, 20, 0.05  # 11,175 pairs in each repeat
LARGEST_Z = 3.0  # of any two of the ten runs from scratch in mini_wild


def initialised(seed: int) -> list[torch.Tensor]:
    """The matrices of a ViT of the mini splits as transformers initialises it."""
    torch.manual_seed(seed)
    model = ViTModel(ViTConfig(**ARCHITECTURE), add_pooling_layer=False)
    return [weight.detach() for name, weight in model.named_parameters() if weight.ndim == 2]


def scores(first_seed: int) -> np.ndarray:
    """Relatedness of MODELS fresh models."""
    collection = [initialised(first_seed + k) for k in range(MODELS)]
    total = sum(layer_cosine(torch.stack(layer))[0] for layer in zip(*collection))
    return (total / len(collection[0]) ** 0.5).numpy()


def main() -> None:
    """Count families of tests with a false relation; compare seeds of one recipe."""
    upper = np.triu_indices(MODELS, 1)
    false, values = 0, []
    for repeat in range(REPEATS):
        z = scores(1000 * repeat)
        values.append(z[upper])
        false += related_components(z, LEVEL).max() < MODELS - 1
    values = np.concatenate(values)
    manifest = find_manifest("mini_wild")
    tree = {node.id: node.tree for node in manifest.nodes}
    with tempfile.TemporaryDirectory() as folder:
        taken = sketch_models(open_models(manifest)[0], Path(folder))
        found = take_first_pass(taken.sketches, torch.device("cpu"))
    apart = [
        found.relatedness[i, j]
        for i in range(len(found.models))
        for j in range(i)
        if tree[found.models[i]] != tree[found.models[j]]
    ]
    head = ("pairs", "count", "deviation of z", "largest |z|", "false relations at 0.05")
    rows = [["initialised", len(values), values.std(), np.abs(values).max(), f"in {false} of {REPEATS} collections"]]
    clusters = related_components(found.relatedness, LEVEL).max() + 1
    rows.append(["trained apart", len(apart), np.std(apart), np.abs(apart).max(), f"{clusters} clusters of 10"])
    print(format_table(head, rows))
    # 20 collections at level 0.05: four or more with a false relation have a chance of 1.6 %.
    if false > 3 or np.abs(apart).max() > LARGEST_Z or clusters != 10:
        sys.exit("more false relations than the level allows")


if __name__ == "__main__":
    main()

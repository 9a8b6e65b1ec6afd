"""LoRA trees merged and stored in float32, bfloat16 and float16: edges, arrows and the rank of every layer.

    python -m benchmarks.precision

Each child is its parent as stored, plus the update that was trained, rounded to the type: what merging
an adapter into a model of that type leaves.
"""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from mother.cli.progress import progress
from mother.graph.collection import find_manifest, open_models
from mother.graph.manifest import Manifest
from mother.graph.scores import score_graph
from mother.graph.text import format_table
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io.checkpoint import Checkpoint
from mother.io.open import open_checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def stored(manifest: Manifest, checkpoints: dict[str, Checkpoint], dtype: torch.dtype, out: Path) -> list[Checkpoint]:
    """The models of a split as if every merge had been made in `dtype`."""
    if dtype == torch.float32:
        return list(checkpoints.values())
    weights: dict[str, dict[str, torch.Tensor]] = {}
    found = []
    for node in manifest.nodes:  # parents come first
        checkpoint = checkpoints[node.id]
        weights[node.id] = {}
        for layer, name in checkpoint.layers.items():
            weight = checkpoint.read(layer)
            parent = checkpoints.get(node.parent)
            # Names differ between a bare root and its children; heads have no counterpart.
            if parent is not None and layer in parent.layers and parent.shape(layer) == checkpoint.shape(layer):
                base = weights[node.parent][parent.layers[layer]].double()
                weight = base + (weight.double() - parent.read(layer).double())
            weights[node.id][name] = weight.to(dtype)
        save_file(weights[node.id], out / f"{node.id}.safetensors")
        found.append(open_checkpoint(node.id, out / f"{node.id}.safetensors"))
    return found


def main() -> None:
    """Recover both LoRA splits in three precisions."""
    rows, failed = [], False
    for split in ("mini_lora_v", "mini_lora_f"):
        manifest = find_manifest(split)
        opened = {checkpoint.model: checkpoint for checkpoint in open_models(manifest)[0]}
        ranks = {node.id: node.rank for node in manifest.nodes}
        for name, dtype in DTYPES.items():
            with tempfile.TemporaryDirectory() as scratch:
                checkpoints = stored(manifest, opened, dtype, Path(scratch))
                heritage = trace(
                    checkpoints, torch.device("cpu"), progress=lambda title: progress(f"{split} {name} {title}")
                )
                scores = score_graph(build_graph(split, heritage), manifest)
            place = {model: at for at, model in enumerate(heritage.first_pass.models)}
            exact, layers = 0, 0
            for parent, child in manifest.edges:
                p = heritage.second_pass.number(place[parent], place[child])
                if p is None:
                    continue
                found = heritage.second_pass.arrays["rank"][:, p]
                risen = (heritage.second_pass.arrays["energy"][:, p] > 0) & (found > 0)
                exact += int((found[risen] == ranks[child]).sum())
                layers += int(risen.sum())
            row = [split, name, scores["undirected"], scores["directed"], scores["kinds"], f"{exact} of {layers}"]
            rows.append(row)
            failed |= scores["directed"] < 1 or exact < 0.995 * layers
    print(format_table(("split", "stored as", "undirected", "directed", "kinds", "rank exact (layers)"), rows))
    if failed:
        sys.exit("an edge or too many ranks are wrong")


if __name__ == "__main__":
    main()

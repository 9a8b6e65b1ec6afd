"""Peak memory of the stages on one Model Tree of 21 models at the size of ViT-B/16.

    python -m benchmarks.memory
    python -m benchmarks.memory --lora     (the rank of 210 pairs of 768 x 768 matrices: some ten minutes)

Writes 21 models with the names and shapes of ViT-B's attention matrices (2.4 GB in a temporary folder,
deleted afterwards) and runs the scripts on them. Fails where the paper's method needs 3 GB or more, or ours 5 GB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from mother.model_graph import Manifest, Node, write_manifest
from mother.results import format_table

LIMITS = {"mother": 3.0, "map": 5.0}  # GB
BLOCKS, WIDTH = 12, 768
LAYERS = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")


def write_tree(folder: Path) -> Path:
    """A root, four children and sixteen grandchildren, each a random step of rank 16 from its parent."""
    generator = torch.Generator().manual_seed(0)

    def grow(parent: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        weights = {}
        for name in (f"encoder.layer.{block}.{layer}.weight" for block in range(BLOCKS) for layer in LAYERS):
            if parent is None:
                weights[name] = 0.04 * torch.randn(WIDTH, WIDTH, generator=generator)
            else:
                down, up = (torch.randn(16, WIDTH, generator=generator) for _ in range(2))
                weights[name] = parent[name] + 1e-3 * up.T @ down
        return weights

    nodes: list[Node] = []

    def save(weights: dict[str, torch.Tensor], parent: str | None) -> str:
        name = f"m{len(nodes)}"
        (folder / name).mkdir()
        save_file(weights, folder / name / "model.safetensors")
        nodes.append(Node(name, name, parent, 0))
        return name

    root = grow(None)
    root_name = save(root, None)
    for _ in range(4):
        child = grow(root)
        child_name = save(child, root_name)
        for _ in range(4):
            save(grow(child), child_name)
    write_manifest(folder / "vit_b.json", Manifest("vit_b", tuple(nodes), folder))
    return folder / "vit_b.json"


def main(lora: bool) -> bool:
    """Run the scripts, print time and peak memory of each, and say whether all kept the limit."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="vit_b.") as scratch:
        manifest = write_tree(Path(scratch))
        runs = [
            ("get_vit_layer_statistics.py", "mother", "--model-graph"),
            ("MoTHer_FullFT.py", "mother", "--method", "mother", "--model-graph"),
            ("MoTHer_FullFT.py", "map", "--model-graph"),
        ]
        if lora:
            runs.append(("MoTHer_LoRA.py", "mother", "--method", "mother", "--model-graphs"))
        for script, method, *flags in runs:
            started = time.perf_counter()
            command = [sys.executable, "-c", _REPORT, script, *flags, str(manifest), "--results", f"{scratch}/results"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peak = int(done.stdout.strip().splitlines()[-1]) / 1e6
            rows.append([script, method, time.perf_counter() - started, peak])
    print(format_table(("21 models, 48 matrices of 768 x 768", "method", "seconds", "peak GB"), rows))
    return all(peak < LIMITS[method] for _, method, _, peak in rows)


# Runs a script and prints the peak resident memory of the process in kB as its last line.
_REPORT = """
import resource, runpy, sys
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", action="store_true", help="measure MoTHer_LoRA.py as well")
    sys.exit(0 if main(parser.parse_args().lora) else "a script needed more memory than it may")

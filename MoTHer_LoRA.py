"""Stage 3b: recover the Model Trees of models that were fine-tuned with LoRA.

Method "map" (the default) takes the whole collection and gives every edge a kind, an arrow and probabilities.
Method "mother" is the paper's: distance by the rank of weight differences, direction by kurtosis, both over the `value`
layers, minimum spanning arborescence of the merged cost. Needs no statistics.

    python MoTHer_LoRA.py
    python MoTHer_LoRA.py --model-graphs mini_lora_v --method mother
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from console import announce_device, progress, report_graph, report_trees, run
from mother.graph.collection import find_manifest
from mother.paper.direction import Stage
from mother.paper.distances import sum_over_layers
from mother.paper.measure import Measured
from mother.paper.ranks import pairwise_rank
from mother.paper.statistics import kurtosis
from mother.runs.by_map import recover_typed_graph
from mother.runs.by_paper import Method, overall, recover_model_graph


@dataclass
class Args:
    """Recover Model Trees of models fine-tuned with LoRA."""

    model_graphs: tuple[str, ...] = ("mini_lora_v", "mini_lora_f")
    """names of splits in dataset/, or paths of manifests"""
    method: Literal["map", "mother"] = "map"
    """map: typed edges with probabilities, on the whole collection at once; mother: the paper's"""
    error: float = 0.01
    """map: probability of a single false relation among independently initialised models"""
    read: Literal["manifest", "attention", "all"] = "manifest"
    """map: matrices inside the blocks that are read: as the manifest says, only those of attention, or all"""
    clusters: Literal["truth", "ward"] = "truth"
    """mother: models of a tree: as the manifest says, or as clustering.py found"""
    stage: Stage = "specialization"
    """mother: whether kurtosis falls (fine-tuning) or rises (continued pre-training) from parent to child"""
    direction_weight: float = 0.3
    """mother: c in the paper: weight of the direction against the distance"""
    kind: str = "value"
    """mother: kind of layers for distance and kurtosis, of which the square ones are read"""
    show_trees: bool = False
    """print the recovered trees as text"""
    results: Path = Path("results")
    """results go to a folder of the model graph's name in it"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    overwrite: bool = False
    """measure again instead of reusing results"""


def distance(measured: Measured, group: str) -> tuple[np.ndarray, np.ndarray]:
    """Sum of ranks over the layers; it is zero where two models do not differ."""
    ranks = sum_over_layers(measured.arrays["pair_rank"])
    return ranks, ranks


def main(args: Args) -> None:
    """Measure, recover, score and draw every tree of each split."""
    device = announce_device(args.device)
    for model_graph in args.model_graphs:
        manifest = find_manifest(model_graph)
        folder = args.results / manifest.name
        flags = asdict(args) | {"results": str(args.results)}
        if args.method == "map":
            recovery = recover_typed_graph(manifest, Path(__file__).stem, folder, flags, device, progress)
            report_graph(manifest, recovery, folder, args.show_trees)
            continue
        method = Method(
            name=Path(__file__).stem,
            kinds=(args.kind,),
            direction_kind=args.kind,
            statistics={"pair_rank": pairwise_rank, "kurtosis": kurtosis},
            distance=distance,
            distance_label="sum of ranks",
        )
        trees = recover_model_graph(manifest, method, folder, flags, device, progress)
        report_trees(manifest.name, trees, overall(manifest, trees), folder, args.show_trees)


if __name__ == "__main__":
    run(main, Args)

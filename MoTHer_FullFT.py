"""Stage 3a: recover the Model Trees of fully fine-tuned models.

Method "map" (the default) takes the whole collection and gives every edge a kind, an arrow and probabilities.
Method "mother" is the paper's: distance by min-max normalised weight differences, direction by the kurtosis of
`output.dense`, minimum spanning arborescence of the merged cost. Needs the statistics of stage 1.

    python MoTHer_FullFT.py --model-graph path/to/manifest.json
    python get_vit_layer_statistics.py && python MoTHer_FullFT.py --method mother
"""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from console import announce_device, progress, report_graph, report_trees, run
from mother.errors import InputError
from mother.graph.collection import find_manifest
from mother.io.layers import ATTENTION
from mother.paper.direction import Stage
from mother.paper.distances import minmax_distance
from mother.paper.measure import Measured
from mother.runs.by_map import recover_typed_graph
from mother.runs.by_paper import FULL_FINE_TUNING, Method, overall, recover_model_graph


@dataclass
class Args:
    """Recover Model Trees of fully fine-tuned models."""

    model_graph: str = "mini_ft"
    """name of a split in dataset/, or path of a manifest"""
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
    kinds: tuple[str, ...] = ATTENTION
    """mother: kinds of layers for the distance, of which the square ones are read"""
    direction_kind: str = "output"
    """mother: kind of layers for the kurtosis (one of `kinds`)"""
    minmax_over: Literal["differences", "weights"] = "differences"
    """mother: what the range of a layer is taken from; the authors' code for Stable Diffusion uses the weights"""
    show_trees: bool = False
    """print the recovered trees as text"""
    results: Path = Path("results")
    """results go to a folder of the model graph's name in it"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    overwrite: bool = False
    """measure again instead of reusing results"""


class LayerStatistics:
    """What stage 1 wrote: the range of each layer in each tree. Raises InputError where it does not fit."""

    def __init__(self, folder: Path, model_graph: str, minmax_over: str):
        self.remedy = f"Run `python get_vit_layer_statistics.py --model-graph {model_graph}` first."
        self.path = folder / "layer_statistics.csv"
        names = {"differences": ("min", "max"), "weights": ("weight_min", "weight_max")}[minmax_over]
        self.ranges: dict[tuple[str, str, str], tuple[float, float]] = {}
        self.read: dict[str, str] = {}
        self.both_orders = False
        try:
            with open(self.path, newline="") as file:
                for row in csv.DictReader(file):
                    low, high = (float(row[name]) for name in names)
                    self.ranges[row["tree"], row["block"], row["kind"]] = low, high
                    self.read[row["tree"]] = row["read"]
                    self.both_orders = row["both_orders"] == "True"
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"there are no statistics of {model_graph} ({error}). {self.remedy}") from None

    def distance(self, measured: Measured, group: str) -> tuple[np.ndarray, np.ndarray]:
        """The paper's distance of one tree, and the largest absolute difference of each pair."""
        largest = measured.arrays["pair_max_difference"]
        difference = np.maximum(largest, largest.transpose(0, 2, 1)).max(axis=0)
        if len(measured.models) < 2:
            return np.zeros((len(measured.models),) * 2), difference
        if self.read.get(group) != measured.read:
            raise InputError(
                f"{self.path} was made from other models or files than tree {group} has now. {self.remedy}"
            )
        try:
            ranges = [self.ranges[group, layer.block, layer.kind] for layer in measured.layers]
        except KeyError as error:
            raise InputError(f"{self.path} does not know layer {error.args[0]}. {self.remedy}") from None
        low, high = np.array(ranges).T
        return minmax_distance(largest, low, high, self.both_orders), difference


def main(args: Args) -> None:
    """Measure, recover, score and draw every tree."""
    if args.direction_kind not in args.kinds:
        raise InputError(f"direction_kind {args.direction_kind!r} is not among the kinds {args.kinds}.")
    manifest = find_manifest(args.model_graph)
    folder = args.results / manifest.name
    flags = asdict(args) | {"results": str(args.results)}
    if args.method == "map":
        device = announce_device(args.device)
        recovery = recover_typed_graph(manifest, Path(__file__).stem, folder, flags, device, progress)
        report_graph(manifest, recovery, folder, args.show_trees)
        return
    statistics = LayerStatistics(folder, args.model_graph, args.minmax_over)
    method = Method(
        name=Path(__file__).stem,
        kinds=args.kinds,
        direction_kind=args.direction_kind,
        statistics=FULL_FINE_TUNING,
        distance=statistics.distance,
        distance_label="max-min-max distance",
        kept_as="get_vit_layer_statistics",
    )
    trees = recover_model_graph(manifest, method, folder, flags, announce_device(args.device), progress)
    report_trees(manifest.name, trees, overall(manifest, trees), folder, args.show_trees)


if __name__ == "__main__":
    run(main, Args)

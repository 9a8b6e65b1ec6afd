"""Stage 1: the range of weight differences in each layer, which the distance of fully fine-tuned models needs.

As in the paper: the difference of two models is min-max normalised with the smallest and largest
difference that occurs in that layer anywhere in the tree.

    python get_vit_layer_statistics.py
    python get_vit_layer_statistics.py --model-graph path/to/manifest.json
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mother.cli.arguments import run
from mother.io.layers import ATTENTION

if TYPE_CHECKING:
    from mother.runs.results import Run

FLAGS = ("clusters", "kinds", "both_orders", "device")  # that the statistics depend on


@dataclass
class Args:
    """Gather per-layer statistics of weight differences."""

    model_graph: str = "mini_ft"
    """name of a split in dataset/, or path of a manifest"""
    clusters: Literal["truth", "ward"] = "truth"
    """models of a tree: as the manifest says, or as clustering.py found"""
    kinds: tuple[str, ...] = ATTENTION
    """kinds of layers, of which the square ones are read"""
    both_orders: bool = False
    """count every pair as i - j and j - i (the authors' code: in the order of the manifest)"""
    results: Path = Path("results")
    """results go to a folder of the model graph's name in it"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    overwrite: bool = False
    """measure again instead of reusing results"""


def measure(stage: "Run") -> None:
    """Read every tree once and write `layer_statistics.csv`."""
    from mother.runs.layer_statistics import gather_layer_statistics  # torch is loaded where something is measured

    gather_layer_statistics(stage)


def main(args: Args) -> None:
    """Open the models, measure what is not kept, report."""
    from mother.cli.stages import make_once, open_run
    from mother.cli.tables import report_next, report_statistics

    opened = open_run(args.model_graph, args.results)
    inputs = ["clusters.json"] if args.clusters == "ward" else []
    make_once(opened, "layer_statistics.json", Path(__file__).name, args, FLAGS, measure, inputs)
    report_statistics(opened.folder)
    report_next(f"python MoTHer_FullFT.py --model-graph {args.model_graph}")


if __name__ == "__main__":
    run(main, Args)

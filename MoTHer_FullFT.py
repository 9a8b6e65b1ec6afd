"""Stage 3a: recover the Model Trees of fully fine-tuned models, by both methods.

Method "mother" is the paper's: distance by min-max normalised weight differences, direction by the kurtosis of
`output.dense`, minimum spanning arborescence of the merged cost. It needs the statistics of stage 1. Method "map"
takes the whole collection and gives every edge a kind, an arrow and probabilities.

    python get_vit_layer_statistics.py && python MoTHer_FullFT.py
    python MoTHer_FullFT.py --method map --model-graph path/to/manifest.json
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mother.cli.arguments import run
from mother.errors import InputError
from mother.io.layers import ATTENTION

if TYPE_CHECKING:
    from mother.runs.results import Run

# Flags that a result of the paper's method depends on.
OF_PAPER = ("model_graph", "clusters", "stage", "direction_weight", "kinds", "direction_kind", "minmax_over", "device")


@dataclass
class Args:
    """Recover Model Trees of fully fine-tuned models."""

    model_graph: str = "mini_ft"
    """name of a split in dataset/, or path of a manifest"""
    method: Literal["both", "map", "mother"] = "both"
    """mother: the paper's; map: typed edges with probabilities, on the whole collection at once"""
    error: float = 0.01
    """map: probability of a single false relation among independently initialised models"""
    read: Literal["manifest", "attention", "all"] = "manifest"
    """map: matrices inside the blocks that are read: as the manifest says, only those of attention, or all"""
    clusters: Literal["truth", "ward"] = "truth"
    """mother: models of a tree: as the manifest says, or as clustering.py found"""
    stage: Literal["specialization", "generalization"] = "specialization"
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


def recover_paper_trees(stage: "Run") -> None:
    """The paper's method, with the statistics of stage 1."""
    from mother.paper.layer_statistics import LayerStatistics
    from mother.runs.by_paper import FULL_FINE_TUNING, Method, recover_by_paper

    method = Method(
        name=Path(__file__).stem,
        kinds=stage.flags["kinds"],
        direction_kind=stage.flags["direction_kind"],
        statistics=FULL_FINE_TUNING,
        distance=LayerStatistics(stage.folder, stage.flags["model_graph"], stage.flags["minmax_over"]).distance,
        distance_label="max-min-max distance",
        kept_as="get_vit_layer_statistics",
    )
    recover_by_paper(stage, method)


def recover_typed_graph(stage: "Run") -> None:
    """Method map."""
    from mother.runs.by_map import recover_by_map

    recover_by_map(stage)


def main(args: Args) -> None:
    """Recover, score and draw the Model Graph by each method, or show what is kept."""
    from mother.cli.stages import OF_MAP, make_once, open_run, require_statistics
    from mother.cli.tables import report_graph, report_methods, report_next, report_trees

    if args.direction_kind not in args.kinds:
        raise InputError(f"direction_kind {args.direction_kind!r} is not among the kinds {args.kinds}.")
    if args.method != "map":
        require_statistics(args.results, args.model_graph)  # before hours of work
    opened, script = open_run(args.model_graph, args.results), Path(__file__).name
    if args.method != "map":
        inputs = ["layer_statistics.csv", *(["clusters.json"] if args.clusters == "ward" else [])]
        make_once(opened, "accuracy.json", script, args, OF_PAPER, recover_paper_trees, inputs)
        report_trees(opened.manifest, opened.folder, args.show_trees)
    if args.method != "mother":
        make_once(opened, "map/accuracy.json", script, args, OF_MAP, recover_typed_graph)
        report_graph(opened.manifest, opened.folder, args.show_trees)
    report_methods(opened.manifest.name, opened.folder)
    report_next("python MoTHer_LoRA.py")


if __name__ == "__main__":
    run(main, Args)

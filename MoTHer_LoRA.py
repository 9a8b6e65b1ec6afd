"""Stage 3b: recover the Model Trees of models that were fine-tuned with LoRA, by both methods.

Method "mother" is the paper's: distance by the rank of weight differences, direction by kurtosis, both over the `value`
layers, minimum spanning arborescence of the merged cost. It needs no statistics. Method "map" takes the whole
collection and gives every edge a kind, an arrow and probabilities.

    python MoTHer_LoRA.py
    python MoTHer_LoRA.py --model-graphs mini_lora_v --method mother
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mother.cli.arguments import run

if TYPE_CHECKING:
    from mother.runs.results import Run

# Flags that a result of the paper's method depends on.
OF_PAPER = ("clusters", "stage", "direction_weight", "kind", "device")


@dataclass
class Args:
    """Recover Model Trees of models fine-tuned with LoRA."""

    model_graphs: tuple[str, ...] = ("mini_lora_v", "mini_lora_f")
    """names of splits in dataset/, or paths of manifests"""
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


def recover_paper_trees(stage: "Run") -> None:
    """The paper's method: sums of ranks over the layers of one kind; they are zero where two models do not differ."""
    from mother.paper.distances import sum_over_layers
    from mother.paper.ranks import pairwise_rank
    from mother.paper.statistics import kurtosis
    from mother.runs.by_paper import Method, recover_by_paper

    def distance(measured, group):  # noqa: ANN001, ANN202
        ranks = sum_over_layers(measured.arrays["pair_rank"])
        return ranks, ranks

    method = Method(
        name=Path(__file__).stem,
        kinds=(stage.flags["kind"],),
        direction_kind=stage.flags["kind"],
        statistics={"pair_rank": pairwise_rank, "kurtosis": kurtosis},
        distance=distance,
        distance_label="sum of ranks",
    )
    recover_by_paper(stage, method)


def recover_typed_graph(stage: "Run") -> None:
    """Method map."""
    from mother.runs.by_map import recover_by_map

    recover_by_map(stage)


def main(args: Args) -> None:
    """Recover, score and draw each Model Graph by each method, or show what is kept."""
    from mother.cli.stages import OF_MAP, make_once, open_run
    from mother.cli.tables import report_graph, report_methods, report_next, report_trees

    script = Path(__file__).name
    for model_graph in args.model_graphs:
        opened = open_run(model_graph, args.results)
        if args.method != "map":
            inputs = ["clusters.json"] if args.clusters == "ward" else []
            make_once(opened, "accuracy.json", script, args, OF_PAPER, recover_paper_trees, inputs)
            report_trees(opened.manifest, opened.folder, args.show_trees)
        if args.method != "mother":
            make_once(opened, "map/accuracy.json", script, args, OF_MAP, recover_typed_graph)
            report_graph(opened.manifest, opened.folder, args.show_trees)
        report_methods(opened.manifest.name, opened.folder)
    report_next(f"python clustering.py --model-graph {args.model_graphs[0]}" if args.model_graphs else "")


if __name__ == "__main__":
    run(main, Args)

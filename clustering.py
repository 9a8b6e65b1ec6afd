"""Stage 2: which models share a tree, by both methods.

Method "mother", as in the paper: Ward's clusters on pairwise distances over all square layers, with K given; the sum of
ranks for LoRA, the sum of mean absolute differences for full fine-tuning; it ends with the accuracy over random
subsets of 100 % to 10 % of the models. Method "map": connected components of the pairs that cannot be independent, no
K; `--error` bounds the probability of a single false relation. `--lora` (the default) and `--no-lora` choose the split.

    python clustering.py
    python clustering.py --no-lora --method mother
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mother.cli.arguments import run
from mother.io.layers import ATTENTION

if TYPE_CHECKING:
    from mother.runs.results import Run

# Flags that a result of the paper's method depends on.
OF_PAPER = ("lora", "clusters", "kinds", "iterations", "seed", "device")


@dataclass
class Args:
    """Cluster a Model Graph into its trees."""

    lora: bool = True
    """distance by ranks, on mini_lora_v; otherwise by mean absolute differences, on mini_ft"""
    model_graph: str | None = None
    """name of a split in dataset/, or path of a manifest; by default the one that goes with --lora"""
    method: Literal["both", "map", "mother"] = "both"
    """mother: the paper's; map: components of related models, without K"""
    error: float = 0.01
    """map: probability of a single false relation among independently initialised models"""
    read: Literal["manifest", "attention", "all"] = "manifest"
    """map: matrices inside the blocks that are read: as the manifest says, only those of attention, or all"""
    clusters: int = 5
    """mother: K, the number of trees"""
    kinds: tuple[str, ...] = ATTENTION
    """kinds of layers, of which the square ones are read"""
    iterations: int = 100
    """random subsets for each share of the models"""
    seed: int = 0
    """of the random subsets"""
    results: Path = Path("results")
    """results go to a folder of the model graph's name in it"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    overwrite: bool = False
    """measure again instead of reusing results"""


def find_ward_clusters(stage: "Run") -> None:
    """The paper's method."""
    from mother.runs.paper_clusters import cluster_by_paper

    cluster_by_paper(stage)


def find_components(stage: "Run") -> None:
    """Method map."""
    from mother.runs.by_map import cluster_by_map

    cluster_by_map(stage)


def main(args: Args) -> None:
    """Measure all pairs, cluster, score and draw by each method, or show what is kept."""
    from mother.cli.stages import OF_MAP, make_once, open_run
    from mother.cli.tables import report_clusters, report_methods, report_next

    opened = open_run(args.model_graph or ("mini_lora_v" if args.lora else "mini_ft"), args.results)
    script = Path(__file__).name
    if args.method != "map":
        make_once(opened, "clusters.json", script, args, OF_PAPER, find_ward_clusters)
        report_clusters(opened.manifest, opened.folder / "clusters.json", "mother")
    if args.method != "mother":
        make_once(opened, "map/clusters.json", script, args, OF_MAP, find_components)
        report_clusters(opened.manifest, opened.folder / "map" / "clusters.json", "map")
    report_methods(opened.manifest.name, opened.folder)
    report_next("python summarize.py")


if __name__ == "__main__":
    run(main, Args)

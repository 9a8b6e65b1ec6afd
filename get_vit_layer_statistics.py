"""Stage 1: the range of weight differences in each layer, which the distance of fully fine-tuned models needs.

As in the paper: the difference of two models is min-max normalised with the smallest and largest
difference that occurs in that layer anywhere in the tree.

    python get_vit_layer_statistics.py
    python get_vit_layer_statistics.py --model-graph path/to/manifest.json
"""

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from console import announce_device, progress, report_left_out, run
from mother.errors import InputError
from mother.graph.collection import find_manifest, open_models, read_digest
from mother.graph.text import format_table
from mother.io.files import write_text
from mother.io.layers import ATTENTION
from mother.paper.distances import difference_range
from mother.paper.measure import Measured, measure
from mother.runs.by_paper import FULL_FINE_TUNING, group_models, measurement_key
from mother.runs.results import measure_once, run_facts, write_result


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


COLUMNS = ("tree", "block", "kind", "models", "mean", "std", "min", "max")
COLUMNS += ("weight_mean", "weight_std", "weight_min", "weight_max", "both_orders", "read")


def layer_rows(group: str, measured: Measured, both_orders: bool) -> list[dict[str, object]]:
    """One row of statistics for each layer of a tree: of the pairs' differences, and of the weights themselves."""
    n = len(measured.models)
    if n < 2:
        return []
    low, high = difference_range(measured.arrays["pair_max_difference"], both_orders)
    rows = []
    for place, layer in enumerate(measured.layers):
        least, most, mean, square = measured.arrays["moments"][place].T
        # SecondPass i < j: the sum of (mean_i - mean_j) has weight n - 1 - 2i on model i.
        pair_mean = 0.0 if both_orders else (mean * (n - 1 - 2 * np.arange(n))).sum() / (n * (n - 1) / 2)
        difference_square = measured.arrays["pair_mean_square_difference"][place].sum() / (n * (n - 1))
        rows.append(
            {"tree": group, "block": layer.block, "kind": layer.kind, "models": n}
            | {"mean": pair_mean, "std": max(difference_square - pair_mean**2, 0.0) ** 0.5}
            | {"min": float(low[place]), "max": float(high[place])}
            | {"weight_mean": mean.mean(), "weight_std": (square.mean() - mean.mean() ** 2) ** 0.5}
            | {"weight_min": least.min(), "weight_max": most.max()}
            | {"both_orders": both_orders, "read": measured.read}
        )
    return rows


def main(args: Args) -> None:
    """Read every tree once and write `layer_statistics.csv`."""
    manifest = find_manifest(args.model_graph)
    folder = args.results / manifest.name
    device = announce_device(args.device)
    checkpoints, left_out = open_models(manifest)
    rows: list[dict[str, object]] = []
    digests: dict[str, str] = {}
    usable = 0
    groups, unclustered = group_models(manifest, args.clusters, folder)
    left_out |= unclustered
    for group, members in groups.items():
        opened = [checkpoint for checkpoint in checkpoints if checkpoint.model in set(members)]
        if not opened:
            continue
        digests[group] = read_digest(opened)
        measured, _, _ = measure_once(
            folder / "measurements" / f"{Path(__file__).stem}_{group}.npz",
            measurement_key(digests[group], args.kinds, FULL_FINE_TUNING),
            lambda snapshot: measure(
                opened, args.kinds, FULL_FINE_TUNING, device, progress(f"{manifest.name} tree {group}"), snapshot
            ),
            args.overwrite,
        )
        left_out |= measured.left_out
        rows += layer_rows(group, measured, args.both_orders)
        usable += len(measured.models)
    if not usable:
        raise InputError(f"no model of {manifest.name} can be used. {next(iter(left_out.values()))}")

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "layer_statistics.csv", text.getvalue())
    flags = asdict(args) | {"results": str(args.results)}
    run_of_it = run_facts(Path(__file__).name, flags, " ".join(digests.values()))
    write_result(folder / "layer_statistics.json", run_of_it, {"left_out": left_out})

    summary = []
    for group in digests:
        of_group = [row for row in rows if row["tree"] == group]
        if of_group:
            low, high = min(row["min"] for row in of_group), max(row["max"] for row in of_group)
            summary.append([group, of_group[0]["models"], len(of_group), f"{low:.4g}", f"{high:.4g}"])
    print(format_table(("tree", "models", "layers", "smallest difference", "largest difference"), summary))
    single = [group for group in digests if group not in {row[0] for row in summary}]
    report_left_out(left_out, [f"tree {group} has no two models to compare, so no statistics" for group in single])
    print(f"results: {folder / 'layer_statistics.csv'}\n")


if __name__ == "__main__":
    run(main, Args)

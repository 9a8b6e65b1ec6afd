"""Stage 1 for the script: the statistics file of every tree."""

from mother.errors import InputError
from mother.paper.layer_statistics import layer_rows, write_layer_statistics
from mother.runs.by_paper import FULL_FINE_TUNING, measure_groups
from mother.runs.results import Run, group_models, write_result

SCRIPT = "get_vit_layer_statistics"


def gather_layer_statistics(run: Run) -> None:
    """Measure every tree and write `layer_statistics.csv` and `.json` into the run's folder.

    Of the flags clusters, kinds and both_orders are used. Raises InputError where no model can be used.
    """
    groups, unclustered = group_models(run.manifest, run.flags["clusters"], run.folder)
    left_out, rows, usable = run.unreadable | unclustered, [], 0
    trees, single = [], []
    for found in measure_groups(run, groups, SCRIPT, run.flags["kinds"], FULL_FINE_TUNING):
        left_out |= found.measured.left_out
        usable += len(found.measured.models)
        of_tree = layer_rows(found.group, found.measured, run.flags["both_orders"])
        rows += of_tree
        if not of_tree:
            single.append(found.group)
            continue
        facts = {"tree": found.group, "models": of_tree[0]["models"], "layers": len(of_tree)}
        facts |= {"min": min(row["min"] for row in of_tree), "max": max(row["max"] for row in of_tree)}
        trees.append(facts)
    if not usable:
        raise InputError(f"no model of {run.manifest.name} can be used. {next(iter(left_out.values()))}")
    path = run.folder / "layer_statistics.csv"
    write_layer_statistics(path, rows)
    content = {"trees": trees, "single": single, "left_out": left_out}
    write_result(run.folder / "layer_statistics.json", run.facts, content, [path])

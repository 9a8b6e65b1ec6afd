"""The end of `make recover`: tables of every tree and of both methods, from the results of the scripts.

python summarize.py
"""

from dataclasses import dataclass
from pathlib import Path

from mother.cli.arguments import run
from mother.errors import InputError

HEAD = ("split", "tree", "undirected", "directed", "clusters", "seconds")


@dataclass
class Args:
    """Print all results in two tables."""

    model_graphs: tuple[str, ...] = ()
    """names of the folders in results/; all that hold results, if none is given"""
    results: Path = Path("results")
    """where the scripts wrote"""


def by_tree(name: str, accuracy: dict, clusters: dict) -> list[list]:
    """Rows of the paper's method: every tree of a split, then all of them."""
    # Numbers of clusters that were found are not those of the true trees.
    in_cluster = clusters.get("by_tree", {}) if accuracy["run"]["flags"]["clusters"] == "truth" else {}
    rows = []
    for tree in accuracy["trees"]:
        scores = tree["undirected_accuracy"], tree["directed_accuracy"]
        rows.append([name, tree["tree"], *scores, in_cluster.get(tree["tree"]), tree["seconds"]])
    total = accuracy["overall"]
    seconds = round(total["seconds"] + clusters["seconds"], 2)
    scores = total["undirected_accuracy"], total["directed_accuracy"]
    return [*rows, [name, "all", *scores, clusters.get("accuracy"), seconds]]


def all_results(folder: Path) -> list[str]:
    """Model graphs that the scripts have recovered. Raises InputError where there is none."""
    found = {path.parent.name for path in folder.glob("*/accuracy.json")}
    found |= {path.parent.parent.name for path in folder.glob("*/map/accuracy.json")}
    if not found:
        raise InputError(f"{folder}/ holds no results. Run the scripts first, or `make recover`.")
    return sorted(found)


def main(args: Args) -> None:
    """Put the results of the scripts together: each tree by the paper's method, then both methods side by side."""
    from mother.cli.locks import remove_leftovers
    from mother.cli.tables import report_left_out, report_next
    from mother.graph.text import format_table
    from mother.io.files import write_json
    from mother.runs.results import COMPARED, compare_methods, read_result

    rows, compared, left_out, notes = [], [], {}, []
    names = args.model_graphs or all_results(args.results)
    for name in names:
        folder = args.results / name
        accuracy, clusters = read_result(folder / "accuracy.json"), read_result(folder / "clusters.json")
        found = read_result(folder / "map" / "accuracy.json")
        if found is None and (accuracy is None or clusters is None):
            raise InputError(f"{folder}/ lacks results. Run the scripts first, or `make recover`.")
        if accuracy is not None and clusters is not None:
            rows += by_tree(name, accuracy, clusters)
        compared += [row for row in compare_methods(name, folder) if any(value is not None for value in row[2:])]
        left_out |= (accuracy or {}).get("left_out", {}) | (found or {}).get("left_out", {})
        notes += (accuracy or {}).get("notes", [])
    if rows:
        print(format_table(HEAD, rows))
        print("undirected, directed: share of the true edges recovered, without and with regard to the arrow (the")
        print("paper's score); clusters: share of the models in the right cluster; seconds: reading and measuring,")
        print("in the last line of a split with clustering\n")
    print(format_table(COMPARED, compared))
    print("mother: the paper's method, told the trees, K and the stage; map: told nothing. direction: arrows right")
    print("where the edge is; kinds: kinds of edges right; clusters: adjusted Rand index")
    report_left_out(left_out, notes)
    content = {
        "trees": [dict(zip(HEAD, row)) for row in rows],
        "methods": [dict(zip(COMPARED, row)) for row in compared],
    }
    remove_leftovers(args.results, alone=False)  # others may write here
    write_json(args.results / "summary.json", content)
    reports = [path for name in names if (path := args.results / name / "report" / "report.html").exists()]
    for path in reports:
        print(f"open: {path.resolve().as_uri()}")
    report_next("python recover.py FOLDER_OF_YOUR_MODELS")


if __name__ == "__main__":
    run(main, Args)

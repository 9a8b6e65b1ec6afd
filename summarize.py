"""The end of `make recover`: one table of every tree of every split, from the results of the scripts.

python summarize.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

from console import report_left_out, run
from mother.errors import InputError
from mother.files import write_json
from mother.results import format_table

HEAD = ("split", "tree", "undirected", "directed", "clusters", "seconds")


@dataclass
class Args:
    """Print one table of all results."""

    model_graphs: tuple[str, ...] = ("mini_ft", "mini_lora_v", "mini_lora_f")
    """names of the folders in results/"""
    results: Path = Path("results")
    """where the scripts wrote"""


def read(path: Path) -> dict:
    """A JSON result of a script."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be used ({error}). Run the scripts first, or `make recover`.") from None


def main(args: Args) -> None:
    """Put `accuracy.json` and `clusters.json` of each split together."""
    rows, left_out, notes = [], {}, []
    for name in args.model_graphs:
        accuracy, clusters = read(args.results / name / "accuracy.json"), read(args.results / name / "clusters.json")
        # Numbers of clusters that were found are not those of the true trees.
        by_tree = clusters.get("by_tree", {}) if accuracy["run"]["flags"]["clusters"] == "truth" else {}
        for tree in accuracy["trees"]:
            scores = tree["undirected_accuracy"], tree["directed_accuracy"]
            rows.append([name, tree["tree"], *scores, by_tree.get(tree["tree"]), tree["seconds"]])
        total = accuracy["overall"]
        seconds = round(total["seconds"] + clusters["seconds"], 2)
        scores = total["undirected_accuracy"], total["directed_accuracy"]
        rows.append([name, "all", *scores, clusters.get("accuracy"), seconds])
        left_out |= accuracy["left_out"]
        notes += accuracy["notes"]
    print(format_table(HEAD, rows))
    print("undirected, directed: share of the true edges recovered, without and with regard to the arrow (the")
    print("paper's score); clusters: share of the models in the right cluster; seconds: reading and measuring,")
    print("in the last line of a split with clustering")
    report_left_out(left_out, notes)
    write_json(args.results / "summary.json", [dict(zip(HEAD, row)) for row in rows])


if __name__ == "__main__":
    run(main, Args)

"""What a script costs around its work: processor time of help, version and a kept result, and whole first runs.

    python -m benchmarks.startup

On the small splits of `make recover`, which are grown where they are missing. A first run has nothing kept; `work` is
what the scripts say that reading, measuring and recovering took in it. Fails where help or version take half a second
of processor time, or a kept result two.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import run
from mother.graph.text import format_table
from mother.runs.results import compare_methods, read_result

TIMES = 5
HELP, KEPT = 0.5, 2.0  # seconds of processor time, at most
SMALL = ("small_ft", "small_lora_v", "small_lora_f", "small_wild")
STAGES = {
    "get_vit_layer_statistics.py": ["--model-graph", "small_ft"],
    "MoTHer_FullFT.py": ["--model-graph", "small_ft"],
    "MoTHer_LoRA.py": ["--model-graphs", "small_lora_v"],
    "clustering.py": ["--clusters", "2", "--model-graph", "small_lora_v"],
    "recover.py": ["--manifest", "dataset/small_wild.json"],
    "summarize.py": [],
}


def processor_seconds(words: Sequence[str]) -> float:
    """Median processor time of several runs."""
    return statistics.median(run(words).processor for _ in range(TIMES))


def work_of(script: str, results: Path) -> float | None:
    """Seconds of work that the results of a script's first run tell; None where it tells none."""
    if script == "MoTHer_FullFT.py":
        return sum(row[-1] or 0.0 for row in compare_methods("small_ft", results / "small_ft"))
    if script == "MoTHer_LoRA.py":
        return sum(row[-1] or 0.0 for row in compare_methods("small_lora_v", results / "small_lora_v"))
    if script == "clustering.py":
        folder = results / "small_lora_v"
        return sum((read_result(folder / name) or {})["seconds"] for name in ("clusters.json", "map/clusters.json"))
    return None


def main() -> bool:
    """Measure, print, and say whether the thresholds are kept."""
    subprocess.run([sys.executable, "-m", "dataset.grow", "--splits", *SMALL], check=True, stdout=subprocess.DEVNULL)
    rows, kept = [], True
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results"
        for script, flags in STAGES.items():
            where = ["--out", str(results / "recover")] if script == "recover.py" else ["--results", str(results)]
            words = [script, *flags, *where]
            first = run(words)
            work = work_of(script, results)
            again = processor_seconds(words)
            shown = [processor_seconds([script, flag]) for flag in ("--help", "--version")]
            rows.append([script, *(f"{value:.2f}" for value in (*shown, again, first.processor, first.wall)), work])
            kept &= max(shown) < HELP and again < KEPT
    head = ("script", "--help", "--version", "kept", "first run", "first run, wall", "of which work")
    print("seconds; of processor time but for the last two")
    print(format_table(head, rows))
    return kept


if __name__ == "__main__":
    sys.exit(0 if main() else "a script starts too slowly")

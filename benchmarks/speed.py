"""The scripts at the paper's real size, against the plain recipe (benchmarks/reference.py) on the same files.

    python -m benchmarks.speed                 a tree of 21 models and the whole of 105, both splits: over half an hour
    python -m benchmarks.speed --trees 1       only 21 models: some ten minutes
    python -m benchmarks.speed --device cuda   ours on a GPU; the reference stays on the CPU

Families with the names and shapes of ViT-B/16 are written to a temporary folder (12 GB, one split after the other,
deleted afterwards). In every round each job runs once as a user runs it, start of the interpreter included and nothing
kept from before, and then the reference: on some of its pairs and models, scaled to all of them. What is printed as a
ratio is of one round; minimum, median and maximum are over the rounds. "work" is what a script says that it took to
read, measure and recover: without the start of the interpreter and without figures, which the reference does not count
either. "read" is one plain read of the bytes that the job needs, page cache warm.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import reference
from benchmarks.processes import run
from benchmarks.vit_b import write_family
from mother.errors import InputError
from mother.graph.manifest import Manifest
from mother.graph.manifest_io import read_manifest, write_manifest
from mother.graph.text import format_table
from mother.io.layers import ATTENTION
from mother.io.open import open_checkpoint
from mother.io.runtime import choose_device

SAMPLED_PAIRS, SAMPLED_MODELS = 2, 3  # that the reference is timed on in each round
PEAK = 4.0  # GB that no script may exceed
RANKS = (8, 16, 32, 64)  # of VTHR's LoRA-V


@dataclass
class Job:
    """Scripts that together answer one of the paper's questions, and what they are held against."""

    name: str
    commands: list[list[str]]
    kinds: Sequence[str]  # layers that are needed
    answer: str  # file of the results that says how long the work took
    reference: Callable[[], float] | None  # seconds, scaled to the whole job
    target: float | None = None  # least ratio of the reference's time to ours
    seconds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    peak: float = 0.0


def read_plainly(manifest: Manifest, kinds: Sequence[str]) -> float:
    """Seconds to read the bytes of these kinds of layers of all models, with nothing done to them."""
    started = time.perf_counter()
    for node in manifest.nodes:
        checkpoint = open_checkpoint(node.id, manifest.location(node))
        with open(manifest.location(node) / "model.safetensors", "rb", buffering=0) as file:
            for layer, name in checkpoint.layers.items():
                if layer.kind in kinds:
                    info = checkpoint.tensors[name][1]
                    file.seek(info.start)
                    file.readinto(np.empty(info.end - info.start, dtype=np.uint8))
    return time.perf_counter() - started


def part_of(manifest: Manifest, models: int) -> Manifest:
    """The first trees of a family, as a manifest beside its own."""
    part = Manifest(f"{manifest.name}_{models}", manifest.nodes[:models], manifest.folder)
    write_manifest(manifest.folder / f"{part.name}.json", part)
    return part


def sampled(manifest: Manifest) -> tuple[list[tuple[Path, Path]], list[Path], float, float]:
    """Pairs and models that the reference is timed on, and the numbers they stand for over theirs."""
    folders = [manifest.location(node) for node in manifest.nodes]
    n = len(folders)
    rng = np.random.default_rng(n)
    models = [folders[at] for at in rng.choice(n, SAMPLED_MODELS, replace=False)]
    pairs = [tuple(folders[at] for at in rng.choice(n, 2, replace=False)) for _ in range(SAMPLED_PAIRS)]
    return pairs, models, n * (n - 1) / 2 / SAMPLED_PAIRS, n / SAMPLED_MODELS


def jobs_of(manifest: Manifest, lora: bool, device: str, results: str) -> tuple[list[Job], Job]:
    """The paper's questions about a split, and the same by method "map"."""
    path = str(manifest.folder / f"{manifest.name}.json")
    where = ["--results", results, "--device", device]
    n, trees = len(manifest.nodes), len({node.tree for node in manifest.nodes})
    pairs, models, all_pairs, all_models = sampled(manifest)
    tree_pairs = trees * (21 * 20 / 2) / SAMPLED_PAIRS  # stages 3a and 3b look at pairs inside the trees only
    arborescences = lambda: trees * reference.arborescence(n // trees)  # noqa: E731
    if lora:
        tree = Job(
            f"LoRA {'tree' if trees == 1 else 'trees'}, {n} models",
            [["MoTHer_LoRA.py", "--method", "mother", "--model-graphs", path, *where]],
            ("value",),
            "accuracy.json",
            lambda: (
                tree_pairs * reference.ranks(pairs, ("value",))
                + all_models * reference.kurtosis(models, ("value",))
                + arborescences()
            ),
            100.0,
        )
    else:
        tree = Job(
            f"FT {'tree' if trees == 1 else 'trees'}, {n} models, statistics included",
            [
                ["get_vit_layer_statistics.py", "--model-graph", path, *where],
                ["MoTHer_FullFT.py", "--method", "mother", "--model-graph", path, *where],
            ],
            ATTENTION,
            "accuracy.json",
            lambda: (
                tree_pairs * (reference.layer_statistics(pairs) + reference.largest_differences(pairs))
                + all_models * reference.kurtosis(models)
                + arborescences()
            ),
            30.0,
        )
    apart = reference.ranks if lora else reference.mean_differences
    clusters = Job(
        f"clusters of the {'LoRA' if lora else 'FT'} graph, {n} models",
        [["clustering.py", "--method", "mother", "--lora" if lora else "--no-lora", "--clusters", str(trees)]],
        ATTENTION,
        "clusters.json",
        lambda: all_pairs * apart(pairs),
        300.0 if lora and n == 105 else None,
    )
    clusters.commands[0] += ["--model-graph", path, *where]
    script = ["MoTHer_LoRA.py", "--model-graphs"] if lora else ["MoTHer_FullFT.py", "--model-graph"]
    whole = Job(
        f'method "map" on the {"LoRA" if lora else "FT"} graph, {n} models',
        [[*script, path, "--method", "map", *where]],
        ATTENTION,
        "map/accuracy.json",
        None,
    )
    return [tree, clusters], whole


def measure(job: Job, manifest: Manifest, results: Path) -> None:
    """One round: ours with nothing kept, one plain read, the reference."""
    shutil.rmtree(results, ignore_errors=True)
    found = [run(command) for command in job.commands]
    job.seconds.append(sum(cost.wall for cost in found))
    answer = json.loads((results / manifest.name / job.answer).read_text())
    job.work.append(answer.get("overall", answer)["seconds"])
    job.peak = max(job.peak, *(cost.peak for cost in found))
    job.read.append(read_plainly(manifest, job.kinds))
    if job.reference is not None:
        job.plain.append(job.reference())


def span(values: Sequence[float], form: str = ".1f") -> str:
    """Minimum, median and maximum."""
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def main(trees: int, rounds: int, device: str) -> bool:
    """Measure all jobs, print the tables, and say whether the targets are kept."""
    jobs: list[Job] = []
    shares = []
    for lora in (False, True):
        with tempfile.TemporaryDirectory(prefix="vit_b.") as scratch:
            name = "lora" if lora else "ft"
            started = time.perf_counter()
            path = write_family(Path(scratch), name, trees, RANKS if lora else None)
            whole = read_manifest(path)
            size = sum(file.stat().st_size for file in Path(scratch).glob("*/*.safetensors")) / 1e9
            print(
                f"{len(whole.nodes)} models, {size:.1f} GB, written in {time.perf_counter() - started:.0f} s",
                flush=True,
            )
            results = Path(scratch) / "results"
            sizes = [whole] if trees == 1 else [part_of(whole, 21), whole]
            for manifest in sizes:
                of_paper, of_map = jobs_of(manifest, lora, device, str(results))
                for _ in range(rounds):
                    for job in (*of_paper, of_map):
                        measure(job, manifest, results)
                        print(f"  {job.name}: {job.seconds[-1]:.1f} s", flush=True)
                together = [sum(seconds) for seconds in zip(*(job.seconds for job in of_paper))]
                shares.append((of_map, [own / other for own, other in zip(of_map.seconds, together)]))
                jobs += [*of_paper, of_map]

    rows, kept = [], True
    for job in jobs:
        whole, work = ([plain / own for plain, own in zip(job.plain, times)] for times in (job.seconds, job.work))
        over = [own / read for own, read in zip(job.work, job.read)]
        kept &= job.peak <= PEAK and (job.target is None or not work or statistics.median(work) >= job.target)
        rows.append(
            [
                job.name,
                span(job.seconds),
                span(job.work),
                format(statistics.median(job.plain), ".0f") if job.plain else "-",
                span(whole, ".0f") if whole else "-",
                span(work, ".0f") if work else "-",
                format(job.target, ".0f") if job.target else "-",
                span(over),
                format(job.peak, ".1f"),
            ]
        )
    head = ("job", "whole s", "work s", "plain s", "plain / whole", "plain / work", "target", "work / read", "peak GB")
    print(format_table(head, rows))
    print(
        "minimum / median / maximum; the target is for plain / work\n"
        f"plain: in each of {rounds} rounds {SAMPLED_PAIRS} pairs and {SAMPLED_MODELS} models of a job, scaled to all"
    )
    for job, times in shares:
        print(f"{job.name}: {span(times)} times the paper's method in our code")
        kept &= statistics.median(times) <= 3.0
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=5, help="of 21 models each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="that ours runs on")
    given = parser.parse_args()
    if min(given.trees, given.rounds) < 1:
        parser.error("--trees and --rounds must be at least 1")
    try:
        choose_device(given.device)  # before 12 GB are written
    except InputError as error:
        parser.error(str(error))
    sys.exit(0 if main(given.trees, given.rounds, given.device) else "a target is missed (see the tables)")

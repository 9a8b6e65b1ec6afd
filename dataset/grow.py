"""Grow the mini splits into dataset/models/ (once; what is there and intact stays).

python -m dataset.grow
python -m dataset.grow --splits mini_ft --workers 4
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dataset.forest import Job, grow, read_record
from dataset.plan import FAMILIES, MINI_HUB, SPLITS, ZOO, plan, plan_family
from dataset.small import SMALL, plan_small
from dataset.wild_plan import WILD, plan_wild
from mother.cli.arguments import run
from mother.cli.progress import each
from mother.errors import InputError
from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import write_manifest


@dataclass
class Args:
    """Grow the mini splits: 105 small ViTs each, really trained."""

    splits: tuple[str, ...] = tuple(SPLITS)
    """which to grow: mini_ft, mini_lora_v, mini_lora_f, mini_wild; small_ft, small_lora_v, small_lora_f, small_wild,
    which are parts of these; mini_zoo; mini_hub; and the families mini_llama, mini_sd"""
    workers: int = os.cpu_count() or 1
    """processes, one thread each"""


def jobs_of(manifest: Manifest) -> list[Job]:
    """The models of a manifest that have a recipe, as jobs."""
    folders = {node.id: manifest.folder / node.source for node in manifest.nodes}
    return [_job(node, folders) for node in manifest.nodes if node.recipe is not None]


def _job(node: Node, folders: dict[str, Path]) -> Job:
    """One node as a job; a merge is made from its parents and from the model that its recipe calls "base"."""
    if not node.parents:
        return Job(node.id, folders[node.id], node.recipe, node.parent, folders.get(node.parent))
    needs = node.parents + ((node.recipe["base"],) if "base" in node.recipe else ())
    return Job(
        node.id, folders[node.id], node.recipe, parents=needs, parent_folders=tuple(folders[name] for name in needs)
    )


def join_jobs(manifests: Sequence[Manifest]) -> list[Job]:
    """The jobs of several manifests, each folder once: splits share roots, and their ids may be the same."""
    names: dict[Path, str] = {}
    jobs: list[Job] = []
    for manifest in manifests:
        for job in jobs_of(manifest):
            if job.folder not in names:
                names[job.folder] = job.id if len(manifests) == 1 else f"{manifest.name}/{job.id}"
                jobs.append(job)
    return [
        replace(
            job,
            id=names[job.folder],
            parent=names[job.parent_folder] if job.parent_folder is not None else None,
            parents=tuple(names[folder] for folder in job.parent_folders),
        )
        for job in jobs
    ]


def grow_manifests(manifests: Sequence[Manifest], workers: int | None = None) -> list[Exception]:
    """Write the manifests, grow their models, and return what went wrong."""
    for manifest in manifests:
        write_manifest(manifest.folder / f"{manifest.name}.json", manifest)
    jobs = join_jobs(manifests)
    errors, grown, started = [], 0, time.perf_counter()
    title = f"growing {', '.join(manifest.name for manifest in manifests)}"
    for job, outcome in each(grow(jobs, workers), len(jobs), title, "model"):
        if isinstance(outcome, Exception):
            errors.append(outcome)
            print(f"{job.id}: {outcome}", file=sys.stderr)
        else:
            grown += outcome > 0
    print(f"{title}: {len(jobs)} models, {grown} grown now, {time.perf_counter() - started:.0f} s")
    for manifest in manifests:
        print(f"  {manifest.name}: {describe_learning(jobs_of(manifest))}")
    return errors


def grow_manifest(manifest: Manifest, workers: int | None = None) -> list[Exception]:
    """`grow_manifests` of one."""
    return grow_manifests([manifest], workers)


def describe_learning(jobs: list[Job]) -> str:
    """What the trained models learned: accuracy of the roots, and its rise from before to after in the others."""
    found = [(job, record) for job in jobs if (record := read_record(job.folder)) is not None]
    records = [(job, record) for job, record in found if "accuracy_after" in record]
    roots = [record["accuracy_after"] for job, record in records if job.parent is None]
    rises = [record["accuracy_after"] - record["accuracy_before"] for job, record in records if job.parent is not None]
    text = [f"accuracy of roots at least {min(roots):.2f}"] if roots else []
    if rises:
        text.append(f"of children up by {statistics.median(rises):.2f} at the median, {min(rises):.2f} at least")
    return ", ".join(text)


def _plan(split: str, folder: Path) -> Manifest:
    if split in SMALL:
        return plan_small(split, folder)
    if split == WILD:
        return plan_wild(folder)
    if split == ZOO:
        from dataset.zoo_plan import plan_zoo  # here: it needs torch

        return plan_zoo(folder)
    if split == MINI_HUB:
        from dataset.hub_models import plan_hub

        return plan_hub(folder)
    return plan_family(split, folder) if split in FAMILIES else plan(split, folder)


def main(args: Args) -> None:
    """Grow the splits one after the other."""
    known = [*SPLITS, WILD, ZOO, MINI_HUB, *SMALL, *FAMILIES]
    unknown = [split for split in args.splits if split not in known]
    if unknown:
        raise InputError(f"there is no split {', '.join(unknown)}. Choose from {', '.join(known)}.")
    folder = Path(__file__).parent
    errors = grow_manifests([_plan(split, folder) for split in args.splits], args.workers)
    if errors:
        raise InputError(f"{len(errors)} models could not be grown; see above.")


if __name__ == "__main__":
    run(main, Args)

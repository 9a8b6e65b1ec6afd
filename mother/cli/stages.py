"""What the paper's scripts do around a method: open the models, keep results of equal runs, measure the others."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mother.cli.locks import alone_in
from mother.cli.progress import progress
from mother.cli.tables import announce_device, announce_kept
from mother.errors import InputError
from mother.graph.collection import find_manifest, open_models
from mother.runs.results import Run, is_kept, run_facts

OF_MAP = ("error", "read", "device")  # flags that a result of method map depends on


def open_run(model_graph: str, results: Path) -> Run:
    """Open the models of a manifest, headers only. Raises InputError."""
    manifest = find_manifest(model_graph)
    checkpoints, unreadable = open_models(manifest)
    return Run(manifest, checkpoints, unreadable, results / manifest.name, progress=progress)


def require_statistics(results: Path, model_graph: str) -> None:
    """Raise InputError where stage 1 has not written its statistics yet."""
    path = results / find_manifest(model_graph).name / "layer_statistics.csv"
    if not path.exists():
        raise InputError(
            f"there are no statistics of {model_graph} ({path} is missing). "
            f"Run `python get_vit_layer_statistics.py --model-graph {model_graph}` first, or choose --method map."
        )


def make_once(
    run: Run,
    result: str,
    script: str,
    args: Any,
    flags: Iterable[str],
    make: Callable[[Run], object],
    inputs: Iterable[str] = (),
) -> None:
    """Let `make` write the file `result` of the run's folder, unless it is kept from a run that was the same.

    `flags` are the names of those arguments that the result depends on, `inputs` files of earlier stages in the folder.
    """
    chosen = {name: getattr(args, name) for name in flags}
    with alone_in(run.folder):
        facts = run_facts(script, chosen, run.manifest, run.checkpoints, [run.folder / name for name in inputs])
        if not args.overwrite and is_kept(run.folder / result, facts):
            announce_kept((run.folder / result).parent)
            return
        device = announce_device(args.device)
        make(replace(run, flags=chosen, facts=facts, overwrite=args.overwrite, device=device))

"""Grow models along a family tree: parents before children, in parallel, and never half a model.

A model is grown in a temporary folder that is moved into place when it is complete. `training.json`
in it records the recipe, the parent's digest and the digest of every file, so that a truncated,
edited or outdated model is found and grown again, and so are its descendants if its weights changed.
The same recipe on the same machine gives the same bytes.
"""

import importlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock

from mother.errors import InputError
from mother.io.files import sha256, write_json

RECORD = "training.json"


class GrowError(InputError):
    """A model could not be grown: it did not learn its task, or its recipe is wrong."""


@dataclass(frozen=True)
class Job:
    """One model to grow into `folder` by `recipe["grower"]`, a "module:function" of this package.

    The grower is called with (recipe, parent's folder, folder to fill). Instead of the one folder it gets
    None for a root, and the list of folders for a job with `parents`: whatever it is made from.
    """

    id: str
    folder: Path
    recipe: dict[str, Any]
    parent: str | None = None
    parent_folder: Path | None = None
    parents: tuple[str, ...] = ()  # of a model made from several; `parent` is None then
    parent_folders: tuple[Path, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the models that must be there before."""
        return self.parents or ((self.parent,) if self.parent is not None else ())

    def parent_digests(self) -> Any:
        """Digests of the parent's files, or the list of those of all parents; None where one is not complete.

        A root has none, which is said by an empty list.
        """
        folders = self.parent_folders or ((self.parent_folder,) if self.parent_folder is not None else ())
        records = [read_record(folder) for folder in folders]
        if None in records:
            return None
        digests = [record["digests"] for record in records]
        return digests[0] if self.parent_folder is not None else digests


def read_record(folder: Path) -> dict[str, Any] | None:
    """The training record of a grown model, or None where there is no complete one."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("digests"), dict) else None


def is_intact(job: Job) -> bool:
    """Whether the model is complete, unchanged, and grown by this recipe from this parent."""
    record = read_record(job.folder)
    if record is None or record.get("recipe") != job.recipe:
        return False
    parents = job.parent_digests()
    if parents is None or record.get("parent_digests", []) != parents:
        return False
    digests = record["digests"]
    try:
        return bool(digests) and all(sha256(job.folder / name) == digest for name, digest in digests.items())
    except OSError:
        return False


def _start_worker() -> None:
    """One thread in each process: small models do not profit from more, and results do not depend on it."""
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the run was killed; going on would disturb the next one

    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import warnings

    import torch
    import transformers

    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft 0.21

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def grow_one(job: Job) -> float:
    """Grow one model, or leave it alone if it is intact; returns the seconds it took."""
    started = time.perf_counter()
    if is_intact(job):
        return 0.0
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{job.folder.name}.", suffix=".tmp", dir=job.folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        module, function = job.recipe["grower"].split(":")
        grower = getattr(importlib.import_module(f"dataset.{module}"), function)
        measured = grower(job.recipe, list(job.parent_folders) or job.parent_folder, new)
        record = {"recipe": job.recipe, **measured, "digests": {f.name: sha256(f) for f in sorted(new.iterdir())}}
        if job.needs:
            record["parent_digests"] = job.parent_digests()
        write_json(new / RECORD, record)
        # A folder cannot be moved onto one that is not empty: the old one steps aside first.
        if job.folder.exists():
            os.rename(job.folder, Path(scratch) / "old")
        os.rename(new, job.folder)
    return time.perf_counter() - started


def _sweep(folders: set[Path]) -> None:
    """Remove what a killed run left half-way."""
    for folder in folders:
        for leftover in folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def grow(jobs: list[Job], workers: int | None = None) -> Iterator[tuple[Job, float | Exception]]:
    """Grow all jobs, parents first; yields each with its seconds (0.0: was there), or what went wrong.

    A job whose parent failed yields a GrowError; the others go on. `workers` defaults to the number of
    CPUs. Only one process grows in a folder at a time: a second one waits.
    """
    by_id = {job.id: job for job in jobs}
    folders = {job.folder.parent for job in jobs}
    locks = [FileLock(folder / ".lock") for folder in sorted(folders)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for lock in locks:
        lock.acquire()
    executor: ProcessPoolExecutor | None = None
    try:
        _sweep(folders)
        outcome: dict[str, float | Exception] = {}
        running: dict[Future, Job] = {}
        deaths: Counter[str] = Counter()  # how often a process died while the job was in its pool
        waiting = dict(by_id)
        while waiting or running:
            for job in list(waiting.values()):
                if any(parent in by_id and parent not in outcome for parent in job.needs):
                    continue
                del waiting[job.id]
                failed = [parent for parent in job.needs if isinstance(outcome.get(parent), Exception)]
                if failed:
                    outcome[job.id] = GrowError(f"model {job.id}: its parent {failed[0]} could not be grown.")
                elif is_intact(job):
                    outcome[job.id] = 0.0
                else:
                    if executor is None:  # Nothing to grow, no processes to start.
                        executor = ProcessPoolExecutor(
                            workers or os.cpu_count(), mp_context=get_context("spawn"), initializer=_start_worker
                        )
                    try:
                        running[executor.submit(grow_one, job)] = job
                    except BrokenProcessPool:
                        waiting[job.id], executor = job, None
                        break
                    continue
                yield job, outcome[job.id]
                break  # Its children, earlier in the list or not, may be ready now.
            else:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        # One process was killed, and the pool takes all others with it: try again in a new one.
                        executor = None
                        deaths[job.id] += 1
                        if deaths[job.id] < 3:
                            waiting[job.id] = job
                            continue
                        error = GrowError(f"model {job.id}: its process was killed three times. Try fewer workers.")
                    outcome[job.id] = error if isinstance(error, Exception) else future.result()
                    yield job, outcome[job.id]
    finally:
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        for lock in locks:
            lock.release()

"""Models that many tests look at, really trained: grown once into `.cache/`, and kept for later runs.

Each folder in it is named by a digest of all that decides the bytes of its models, so that outdated ones are never
read. `dataset/forest.py` moves a model into place when it is complete, and checks recipe and digests of those that are
there: a growth that was interrupted goes on, and a model that somebody damaged is grown again.

Nobody may write into these folders. A test that changes models takes `copied` ones.
"""

import contextlib
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dataset.forest import is_intact
from dataset.grow import grow_manifests, jobs_of
from mother.graph.manifest import Manifest
from mother.io import layers

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache"
SOURCES = (*sorted((ROOT / "dataset").glob("*.py")), Path(layers.__file__))  # the last one says which matrices count
LIBRARIES = ("torch", "transformers", "peft", "diffusers", "numpy")
KEPT = 14 * 24 * 3600.0  # seconds that a folder stays though nobody uses it


def key_of(plans: Sequence[Manifest], sources: Sequence[Path] = SOURCES) -> str:
    """A digest of the plans, of the code that grows them, and of what computes."""
    parts = [json.dumps(asdict(replace(plan, folder=Path())), sort_keys=True, default=str) for plan in plans]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    parts += [f"{name} {version(name)}" for name in LIBRARIES]
    parts += [platform.machine(), torch.backends.cpu.get_cpu_capability()]  # other kernels round otherwise
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def lock_of(folder: Path) -> FileLock:
    """The lock of a folder lies beside it: it stays when the folder is removed."""
    return FileLock(folder.with_name(f"{folder.name}.lock"))


def sweep(cache: Path, before: float) -> None:
    """Remove the folders that nobody has used since: those of older sources. One that is being grown stays."""
    for folder in cache.glob("*-*/"):
        with contextlib.suppress(Timeout), lock_of(folder).acquire(timeout=0):
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder)


def grown(*plans: Manifest, cache: Path = CACHE) -> list[Manifest]:
    """The plans with a folder in the cache where all their models are; those that are missing are grown.

    They are grown at once, since to start the processes takes a third of the time. One run of pytest, or one worker of
    it, grows; another one waits, and finds what is there.
    """
    folder = cache / f"{plans[0].name}-{key_of(plans)}"
    cache.mkdir(exist_ok=True)
    if not folder.exists():
        sweep(cache, time.time() - KEPT)
    manifests = [replace(plan, folder=folder) for plan in plans]
    with lock_of(folder):
        folder.mkdir(exist_ok=True)
        folder.touch()
        errors = grow_manifests(manifests)
    assert not errors, errors
    return manifests


def changed(manifest: Manifest) -> list[str]:
    """The models that are not any more what was grown."""
    return [job.id for job in jobs_of(manifest) if not is_intact(job)]


def copied(manifest: Manifest, folder: Path) -> Manifest:
    """The same models in a folder of one's own."""
    shutil.copytree(manifest.folder, folder, ignore=shutil.ignore_patterns(".lock"))
    return replace(manifest, folder=folder)

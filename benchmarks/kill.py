"""Kill runs again and again (SIGKILL, at random moments) and compare their results with those of undisturbed ones.

A small split is served by a Hub on this machine that breaks connections now and then; both methods recover it. The same
models lie in a folder, too: `recover.py` recovers most of them, and `recover.py add` adds the rest; an index is built
of them and traced, and built again where models have changed, gone and moved. Half of the kills fall while pairs of
models are compared. Every attempt goes on from what the killed one before it has left.

    python -m benchmarks.kill [--kills 40] [--only index rebuild]
"""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the local Hub and the split are those of the tests

from hub_server import Fault, HubServer, environment  # noqa: E402
from test_vthr import serve_split, split_manifest  # noqa: E402

from mother.graph.text import format_table  # noqa: E402

SPLIT = "vthr_ft"
ADDED = 5  # models that are added, of all
ATTEMPTS = 30  # for each kill that is to fall into a stage, before the stage is called too short
COLLECTION = ("model_graph.json", "collection.json", "audit.json", "trees.nwk", "report.html")


@dataclass
class Args:
    """Kill runs of both methods, of recover and of add at random moments."""

    kills: int = 40
    """how often in all; half of them while pairs are compared"""
    seed: int = 0
    """of the moments"""
    only: tuple[str, ...] = ()
    """names of what is killed; all by default"""


@dataclass
class Job:
    """Something that is killed, and how it is known to compare pairs."""

    name: str
    command: str  # of a shell, with {out} for the folder that holds the results
    results: tuple[str, ...]  # below that folder
    pairs: str  # pattern of the line that announces the comparison of pairs
    compared: str  # glob of what is written when pairs have been compared
    base: str | None = None  # a job whose undisturbed result this one starts from
    needed: float = 0.0  # seconds of an undisturbed run
    comparing: float = 0.0  # and of its comparison of pairs
    hits: dict[str, int] = field(default_factory=lambda: {"anywhere": 0, "pairs": 0})
    left: int = 0  # temporary files that kills left
    attempts: int = 0


class Attempt:
    """A run in a process group of its own, and the moment at which it began to compare pairs."""

    def __init__(self, job: Job, out: Path, variables: dict[str, str]):
        self.job, self.out = job, out
        self.lines: list[str] = []
        self.began = threading.Event()
        self.at = self.started = time.time()
        command = job.command.format(out=shlex.quote(str(out)))
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line)
            if not self.began.is_set() and re.match(self.job.pairs, line):
                self.at = time.time()
                self.began.set()

    def finish(self) -> None:
        """Let it run to its end, which must be a good one."""
        code = self.process.wait()
        self.reader.join()
        assert code == 0, "".join(self.lines)[-2000:]

    def has_compared(self) -> bool:
        """Whether all pairs have been compared since it began."""
        found = [path.stat().st_mtime for path in self.out.glob(self.job.compared)]
        return bool(found) and max(found) >= self.at - 0.01

    def kill_after(self, seconds: float, pairs: bool) -> str | None:
        """Kill it at a moment, counted from where pairs are compared if they are meant; returns what it was at.

        None: it had ended before.
        """
        while pairs and not self.began.wait(0.02) and self.process.poll() is None:
            pass
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            at = "pairs" if self.began.is_set() and not self.has_compared() else "anywhere"
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.reader.join()
            return at
        self.reader.join()
        assert self.process.returncode == 0, "".join(self.lines)[-2000:]
        return None


def same(first: Path, second: Path) -> bool:
    """Whether two results are the same: byte for byte, archives array by array (they hold the time of writing)."""
    if first.suffix != ".npz":
        return first.read_bytes() == second.read_bytes()
    with np.load(first) as one, np.load(second) as other:
        return one.files == other.files and all(one[name].tobytes() == other[name].tobytes() for name in one.files)


def temporary(folder: Path) -> int:
    """How many temporary files there are."""
    return sum(path.suffix == ".tmp" for path in folder.rglob("*"))


def change(before: Path, after: Path) -> None:
    """The same models, but that one went, one has another name, and one has the weights of another."""
    shutil.copytree(before, after)
    first, second, third, fourth = sorted(after.iterdir())[:4]
    shutil.rmtree(first)
    second.rename(after / "renamed")
    shutil.rmtree(third)
    shutil.copytree(fourth, third)


@contextmanager
def served() -> Iterator[tuple[Path, dict[str, str], HubServer]]:
    """(a folder, the environment of what is run, a Hub) with the models of the split, on the Hub and on disk."""
    with tempfile.TemporaryDirectory() as name, HubServer(Path(name) / "hub") as server:
        folder = Path(name)
        manifest = split_manifest(SPLIT, folder)
        serve_split(server, manifest, 32, 4)
        server.faults.append(Fault("short", -1, "/cdn/", "GET", value=500, after=40))
        server.faults[0].times = 40
        models = [server.folder / node.source.removeprefix("hf://") for node in manifest.nodes]
        for group, members in {"most": models[:-ADDED], "late": models[-ADDED:]}.items():
            for model in members:
                shutil.copytree(model, folder / "models" / group / model.name)
        change(folder / "models/most", folder / "models/changed")
        yield folder, environment(server, folder) | {"PATH": os.environ["PATH"]}, server


def jobs(folder: Path) -> list[Job]:
    """What is killed."""
    python, manifest = shlex.quote(sys.executable), f"{folder / SPLIT}.json"
    script = f"{python} {{name}} --model-graph {manifest} --results {{{{out}}}}"
    statistics, full = script.format(name="get_vit_layer_statistics.py"), script.format(name="MoTHer_FullFT.py")
    here, second = f"{SPLIT}/measurements", r"second pass: "
    mother = tuple(f"{SPLIT}/{name}" for name in ("layer_statistics.csv", "model_graph.json", "distances.npz"))
    tree = f"{here}/get_vit_layer_statistics_4.npz"  # the last one
    recover = f"{python} recover.py {folder}/models/most --out {{out}} --audit"
    add = f"{python} recover.py add {folder}/models/late/* --to {{out}} --audit"
    tracing, graph = "tracing", ("graph/model_graph.json",)
    there, kept = "{out}/models", "--to {out}/index"
    put = [f"rm -rf {there} && mkdir -p {{out}} && cp -r {folder}/models/{one} {there}" for one in ("most", "changed")]
    build = f"{python} index.py build {there} {kept}"
    traced = f"echo {tracing} >&2 && {python} index.py graph --in {{out}}/index --to {{out}}/graph"
    index, again = (" && ".join(steps) for steps in ([put[0], build, traced], [put[0], build, put[1], build, traced]))
    return [
        Job("index", index, graph, tracing, "graph/model_graph.json"),
        Job("rebuild", again, graph, tracing, "graph/model_graph.json"),
        Job("mother", f"{statistics} && {full} --method mother", mother, rf"{SPLIT} tree ", tree),
        Job("map", f"{full} --method map", (f"{SPLIT}/map/model_graph.json",), second, f"{here}/map/kinds.npz"),
        Job("recover", recover, COLLECTION, second, "measurements/*/kinds.npz"),
        Job("add", add, COLLECTION, second, "measurements/*/kinds.npz", "recover"),
    ]


def begin(job: Job, folder: Path, kind: str) -> Path:
    """The folder of a job's results as it is before the first run."""
    out = folder / kind / job.name / "results"
    shutil.rmtree(out, ignore_errors=True)
    if job.base is not None:
        shutil.copytree(folder / "whole" / job.base / "results", out)
    return out


def kill(job: Job, kills: int, folder: Path, variables: dict[str, str], moments: random.Random) -> list[str]:
    """Run a job undisturbed, then kill it so often; returns the results that differ at the end."""
    whole = begin(job, folder, "whole")
    undisturbed = Attempt(job, whole, variables)
    undisturbed.finish()
    job.needed = time.time() - undisturbed.started
    assert undisturbed.began.is_set(), f"{job.name} does not say when it compares pairs"
    ends = [path.stat().st_mtime for path in whole.glob(job.compared)]
    job.comparing = max(ends) - undisturbed.at
    out = begin(job, folder, "killed")
    wanted = {"pairs": (kills + 1) // 2, "anywhere": kills // 2}
    while any(job.hits[at] < count for at, count in wanted.items()):
        job.attempts += 1
        assert job.attempts <= ATTEMPTS * kills, f"{job.name} is too quick to be killed where it is meant to be"
        pairs = job.hits["pairs"] < wanted["pairs"] and (
            job.hits["anywhere"] >= wanted["anywhere"] or moments.random() < 0.5
        )
        moment = moments.uniform(0, job.comparing if pairs else job.needed)
        at = Attempt(job, out, variables).kill_after(moment, pairs)
        if at is None:  # it was too quick, or only shows what is kept: again from nothing
            begin(job, folder, "killed")
            continue
        job.hits[at] += 1
        job.left = max(job.left, temporary(out))
    Attempt(job, out, variables).finish()
    return [name for name in job.results if not same(whole / name, out / name)]


def main(args: Args) -> None:
    """Undisturbed runs, then killed ones; exits with 1 where a result differs or a temporary file stays."""
    moments, rows, bad = random.Random(args.seed), [], False
    with served() as (folder, variables, server):
        found = [job for job in jobs(folder) if not args.only or job.name in args.only]
        for number, job in enumerate(found):
            kills = (args.kills + len(found) - 1 - number) // len(found)
            differing = kill(job, kills, folder, variables, moments)
            stay = temporary(folder / "killed" / job.name)
            bad |= bool(differing) or stay > 0
            times = f"{job.needed:.1f}", f"{job.comparing:.1f}"
            hits = sum(job.hits.values()), job.hits["pairs"]
            rows.append([job.name, *times, *hits, job.left, stay, ", ".join(differing) or "none"])
        print(f"requests that the server broke: {sum(bool(request.fault) for request in server.requests)}")
    head = ("what", "seconds", "of pairs", "kills", "in pairs", ".tmp left", "after", "results that differ")
    print(format_table(head, rows))
    print("seconds: of an undisturbed run, and of its comparison of pairs; in pairs: kills while pairs were compared;")
    print(".tmp left: temporary files, at most, that kills had left; after: those that the next run left")
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Args))

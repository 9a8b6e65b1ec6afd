"""Kill a run again and again (SIGKILL, at random moments) and compare its results with those of an undisturbed one.

A small split is served by a Hub on this machine that breaks connections now and then; both methods recover it.

    python -m benchmarks.kill
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the local Hub and the split are those of the tests

from hub_server import Fault, HubServer, environment  # noqa: E402
from test_vthr import serve_split, split_manifest  # noqa: E402

RESULTS = ("model_graph.json", "distances.npz", "map/model_graph.json")


@dataclass
class Args:
    """Kill runs of both methods at random moments."""

    kills: int = 24
    """how often, over both methods; each method is killed half of them"""
    seed: int = 0
    """of the moments"""


def same(first: Path, second: Path) -> bool:
    """Whether two results are the same: byte for byte, archives array by array (they hold the time of writing)."""
    if first.suffix != ".npz":
        return first.read_bytes() == second.read_bytes()
    with np.load(first) as one, np.load(second) as other:
        return one.files == other.files and all(one[name].tobytes() == other[name].tobytes() for name in one.files)


def main(args: Args) -> None:
    """Undisturbed runs, then killed ones; exits with 1 where a result differs."""
    moments = random.Random(args.seed)
    done = {"mother": 0, "map": 0}
    with tempfile.TemporaryDirectory() as folder, HubServer(Path(folder) / "hub") as server:
        folder = Path(folder)
        manifest = split_manifest("vthr_ft", folder)
        serve_split(server, manifest, 32, 4)
        server.faults.append(Fault("short", -1, "/cdn/", "GET", value=500, after=40))
        server.faults[0].times = 40
        whole = environment(server, folder) | {"PATH": os.environ["PATH"]}
        script = [sys.executable, "MoTHer_FullFT.py", "--model-graph", str(folder / "vthr_ft.json")]

        def start(results: str, method: str) -> subprocess.Popen:
            command = [*script, "--method", method, "--results", str(folder / results)]
            return subprocess.Popen(
                command, cwd=ROOT, env=whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )

        for results in ("whole", "killed"):
            statistics = [
                sys.executable,
                "get_vit_layer_statistics.py",
                *script[2:],
                "--results",
                str(folder / results),
            ]
            subprocess.run(statistics, cwd=ROOT, env=whole, check=True, capture_output=True)
        for method in done:
            started = time.monotonic()
            process = start("whole", method)
            _, errors = process.communicate()
            assert process.returncode == 0, errors[-2000:]
            needed = time.monotonic() - started
            finished = False
            while done[method] < args.kills // 2:
                if finished:  # again from nothing: it was too quick for so many kills
                    for path in sorted((folder / "killed" / "vthr_ft" / "measurements").rglob("*.*")):
                        if ("map" in path.parts) == (method == "map") and "statistics" not in path.name:
                            path.unlink()
                process = start("killed", method)
                try:
                    process.wait(moments.uniform(0.3, 1.0) * needed)
                    finished = True
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    done[method], finished = done[method] + 1, False
            process = start("killed", method)
            _, errors = process.communicate()
            assert process.returncode == 0, errors[-2000:]
            print(f"{method}: undisturbed {needed:.1f} s, killed {done[method]} times")
        print(f"requests that the server broke: {sum(bool(request.fault) for request in server.requests)}")
        differing = [
            name
            for name in RESULTS
            if not same(folder / "whole" / "vthr_ft" / name, folder / "killed" / "vthr_ft" / name)
        ]
        left = [path for path in (folder / "killed").rglob("*") if path.suffix == ".tmp"]
    print("results that differ from those of the undisturbed run: " + (", ".join(differing) or "none"))
    print(f"temporary files left by the kills: {len(left)}")
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Args))

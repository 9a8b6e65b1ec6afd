"""An index of a million models, on paper: what each stage costs a model, by measure, and what that makes of more.

    python -m benchmarks.millions [--models 10000] [--weights 1e9] [--matrices 168]

Measured here, in one process with one thread, in seconds of its processor: candidates and trees of a simulated hub of
`--models` (benchmarks/hub.py), the search of nearest models by itself, exactly and by cells; evidence, of families of
mini_ft and mini_lora_v, as blocks of a large family; reading, of one model of READ weights in half precision; requests
and their kinds, of models on a local Hub. Worked out from these: hubs of as unequal groups, of models of `--weights`
weights in `--matrices` matrices, stored in half precision. Operations of a search go by the square of a group, all else
by its models; evidence by the entries of a sketch.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.hub import GROUPS, family_sizes
from benchmarks.index import FAMILIES, SAMPLES, offers, write_hub
from mother.collection.find import search
from mother.evidence.facts import SKETCH_ENTRIES
from mother.graph.sparse import EXACT
from mother.graph.text import format_table
from mother.index.build import build
from mother.index.candidates import CELLS_SEEN, COARSE, FLAT, MANY, faiss_search
from mother.index.engine import Engine
from mother.index.graph import Sizes, index_graph
from mother.index.groups import group_names, load_group
from mother.index.offers import with_priors
from mother.index.store import create_index
from mother.index.trees import likeliest_tree

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the local Hub is that of the tests

from hub_server import HubServer, environment  # noqa: E402

TARGETS = (10**5, 10**6, 10**7)
SPLITS = ("mini_ft", "mini_lora_v")
MOVES = np.array([0.05, 0.1, 0.2])
FLAT_MODELS, CELL_MODELS = 10_000, 40_000  # of which a search is timed
READ = 1 << 25
SERVED = 4  # models on the local Hub
PER_SECOND = {"api": 1000 / 300, "resolve": 5000 / 300}  # what the Hub answers without a plan, by kind of request
BANDWIDTH = 50e6  # bytes a second, as elsewhere in the docs
WORKERS = 1000


@dataclass(frozen=True)
class Costs:
    """Seconds of a processor: each model's, each operation's of a search, each weight's, each entry's of a sketch."""

    requests: dict[str, float]  # of a model, by kind
    read: float  # a weight
    candidates: float  # a model, but for the search
    exact: float  # an operation of an exact search
    cells: float  # an operation of a search by cells
    evidence: float  # a model, an entry of its sketch
    trees: float  # a model
    row: float  # bytes of an index, a model


def exact_operations(models: np.ndarray) -> np.ndarray:
    """Of the exact search of all models of groups: additions and multiplications."""
    return 2.0 * COARSE * models**2.0


def cell_operations(models: np.ndarray) -> np.ndarray:
    """The same by cells: ten steps of k-means with 64 models a cell, the nearest cells, and the models of these."""
    cells = 4 * models**0.5
    train = 10 * np.minimum(64 * cells, models) * cells
    return 2 * COARSE * (train + models * cells + CELLS_SEEN * models**2.0)


def searching() -> tuple[float, float]:
    """Seconds of an operation of the two searches."""
    found = []
    for models, flat, operations in ((FLAT_MODELS, FLAT, exact_operations), (CELL_MODELS, 0, cell_operations)):
        values = np.random.default_rng(0).standard_normal((models, COARSE), dtype=np.float32)
        started = time.process_time()
        faiss_search(values, MANY + 1, flat)
        found.append((time.process_time() - started) / float(operations(np.array(float(models)))))
    return found[0], found[1]


def hub(folder: Path, models: int, exact: float) -> tuple[float, float, float]:
    """Of a simulated hub: seconds a model of candidates but for the search, and of trees; bytes a model."""
    index, truth = write_hub(folder, models, MOVES)
    draw, names = np.random.default_rng(1), group_names(index)
    tests = sum(size * (size - 1) / 2 for _, size in names)
    candidates = trees = 0.0
    for name, _ in names:
        started = time.process_time()
        group = load_group(index, name, tests, 0.01, "family")
        candidates += time.process_time() - started
        numbers = np.array([int(one) for one in group.ids])
        started = time.process_time()
        likeliest_tree(with_priors(offers(truth, numbers, group.near, draw), EXACT))
        trees += time.process_time() - started
    searched = exact * exact_operations(np.array([float(size) for _, size in names])).sum()
    size = sum(path.stat().st_size for path in index.shards())
    return max(0.0, candidates - searched) / models, trees / models, size / models


def evidence(folder: Path) -> float:
    """Seconds a model and an entry of its sketch, of grown splits as blocks of the usual core."""
    seconds = entries = 0.0
    for split in SPLITS:
        index = create_index(folder / split, SAMPLES, SKETCH_ENTRIES, True)
        build(index, search([f"dataset/{split}.json"]).sources, Engine())
        started = time.process_time()
        index_graph(index, folder / split / "traced", Engine(), sizes=Sizes(whole=0))
        seconds += time.process_time() - started
        entries += sum(path.stat().st_size for path in index.sketches.glob("*.safetensors")) / 4
    return seconds / entries


def reading(folder: Path) -> float:
    """Seconds a weight to read, digest and sketch a model in half precision."""
    side, draw = 2048, torch.Generator().manual_seed(0)
    names = [f"encoder.layer.{block}.attention.attention.query.weight" for block in range(READ // side**2)]
    folder.mkdir()
    matrices = {name: torch.randn(side, side, generator=draw).bfloat16() for name in names}
    save_file(matrices, folder / "model.safetensors")
    started = time.process_time()
    build(create_index(folder / "index", SAMPLES, SKETCH_ENTRIES, True), search([str(folder)]).sources, Engine())
    return (time.process_time() - started) / READ


def requests(folder: Path) -> dict[str, float]:
    """Requests of a model that is read from a Hub, by kind."""
    draw = torch.Generator().manual_seed(0)
    with HubServer(folder / "hub") as server:
        for number in range(SERVED):
            place = server.folder / f"org/model{number}"
            place.mkdir(parents=True)
            (place / "README.md").write_text("---\nlicense: mit\n---\n")
            (place / "config.json").write_text('{"model_type": "vit"}')
            weight = torch.randn(64, 64, generator=draw)
            save_file({"encoder.layer.0.attention.attention.query.weight": weight}, place / "model.safetensors")
        names = [f"org/model{number}" for number in range(SERVED)]
        command = [sys.executable, "index.py", "build", *names, "--to", str(folder / "index"), "--quiet"]
        subprocess.run(command, cwd=ROOT, env=environment(server, folder), check=True)
        kinds = Counter(one.path.split("/")[1] for one in server.requests)
    counts = {"api": kinds.pop("api", 0), "content": kinds.pop("cdn", 0), "resolve": sum(kinds.values())}
    return {kind: count / SERVED for kind, count in counts.items()}


def measured(folder: Path, models: int) -> Costs:
    """All costs."""
    exact, cells = searching()
    candidates, trees, row = hub(folder / "simulated", models, exact)
    return Costs(
        requests(folder), reading(folder / "read"), candidates, exact, cells, evidence(folder / "blocks"), trees, row
    )


def stages(costs: Costs, models: int, weights: float, matrices: int) -> dict[str, tuple[float, bool]]:
    """Seconds of each stage of one processor, or one line, and whether more workers share them."""
    sizes = family_sizes(models, FAMILIES)
    groups = np.bincount(np.arange(FAMILIES) % GROUPS, sizes)
    searched = np.where(groups > FLAT, costs.cells * cell_operations(groups), costs.exact * exact_operations(groups))
    asked = max(models * count / PER_SECOND[kind] for kind, count in costs.requests.items() if kind in PER_SECOND)
    entries = min(weights, matrices * SKETCH_ENTRIES)
    return {
        "requests to the Hub": (asked, False),
        f"bytes, at {BANDWIDTH / 1e6:.0f} MB/s": (2 * weights * models / BANDWIDTH, True),
        "reading, digests, sketches": (costs.read * weights * models, True),
        "candidates, but for the search": (costs.candidates * models, False),
        "search": (float(searched.sum()), False),
        "evidence": (costs.evidence * entries * models, True),
        "trees": (costs.trees * models, False),
    }


def spoken(seconds: float) -> str:
    """A time, in the largest unit of which it has two."""
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def main() -> bool:
    """Measure, work out, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--weights", type=float, default=1e9)
    parser.add_argument("--matrices", type=int, default=168)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="millions.") as scratch:
        costs = measured(Path(scratch), args.models)
    asked = ", ".join(f"{count:g} {kind}" for kind, count in sorted(costs.requests.items()))
    rows = [
        ["requests of a model", asked],
        ["ns a weight to read, digest and sketch", f"{1e9 * costs.read:.1f}"],
        ["ms a model of candidates, but for the search", f"{1e3 * costs.candidates:.2f}"],
        [
            "operations a second of the search: exact, by cells",
            f"{1e-9 / costs.exact:.0f} G, {1e-9 / costs.cells:.0f} G",
        ],
        ["microseconds an entry of a sketch of evidence", f"{1e6 * costs.evidence:.2f}"],
        ["ms a model of trees", f"{1e3 * costs.trees:.2f}"],
        ["bytes a model in the index, without sketch", f"{costs.row:,.0f}"],
    ]
    print(format_table(["cost of one processor", "measured"], rows))
    found = [stages(costs, models, args.weights, args.matrices) for models in TARGETS]
    rows = [
        [stage, *(spoken(one[stage][0]) for one in found), "yes" if shared else "no"]
        for stage, (_, shared) in found[0].items()
    ]
    largest = [max(np.bincount(np.arange(FAMILIES) % GROUPS, family_sizes(n, FAMILIES))) for n in TARGETS]
    rows.append(["signatures on disk", *(f"{costs.row * n / 1e9:,.1f} GB" for n in TARGETS), ""])
    sketch = 4 * min(args.weights, args.matrices * SKETCH_ENTRIES)
    rows.append(["sketches on disk", *(f"{sketch * n / 1e12:,.0f} TB" for n in TARGETS), ""])
    each = 2 * SAMPLES + 4 * COARSE
    rows.append(["memory for the largest group", *(f"{each * n / 1e9:,.1f} GB" for n in largest), ""])
    print("\n" + format_table(["stage", *(f"{n:.0e} models" for n in TARGETS), "shared by workers"], rows))
    for workers in (1, WORKERS):
        walls = [max((s / workers if shared else s, stage) for stage, (s, shared) in one.items()) for one in found]
        told = ", ".join(f"{stage} ({spoken(seconds)})" for seconds, stage in walls)
        print(f"the wall with {workers:,} worker{'s' * (workers > 1)}: {told}")
    return True


if __name__ == "__main__":
    sys.exit(0 if main() else 1)

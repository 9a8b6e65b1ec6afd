"""An index of many models: do candidates hold the parent, how long does it take, how does it grow?

    python -m benchmarks.index [--models 100000] [--real 500 1500 5000]

1. Tiny models on disk (benchmarks/tiny.py), end to end: so many times as many models must take no more than LINEAR
   times as long for each. SEARCHED more of the same family are searched, with the sketches of the others.
2. All grown splits: is the true parent among the candidates by signatures?
3. A simulated hub (benchmarks/hub.py): candidates, families and trees, and the search of one model. Evidence is
   simulated: squared distances are those of the tree; a third model on the way is told by what is kept of differences,
   as triples.py computes it, with the noise of a sketch; log odds of arrows are normal with a standard deviation of
   ARROW_SPREAD around ARROW for true edges, around 0 for other pairs. Coefficients are those of calibration.json.

Times are of the processor, in one process with one thread: other programs do not count.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.hub import GROUPS, hub_shapes, kept_ratio, sides, simulate, write_model
from benchmarks.tiny import shares_right, write_models
from mother.collection.find import search
from mother.collection.workspace import recover_sources
from mother.evidence.edges import STRUCTURE
from mother.evidence.sketch import sketch_models
from mother.graph.manifest_io import read_manifest
from mother.graph.sparse import EXACT, Edges, minimum_spanning_forest
from mother.graph.text import format_table
from mother.heritage.calibration import read_coefficients, soft_arrow
from mother.index.build import build
from mother.index.candidates import Near
from mother.index.engine import Engine
from mother.index.graph import index_graph
from mother.index.groups import group_names, load_group
from mother.index.offers import Offers, with_priors
from mother.index.others import shapes_text
from mother.index.search import Scan, search_sketch
from mother.index.signature import group_of
from mother.index.store import Index, create_index
from mother.index.trees import likeliest_tree
from mother.io.open import open_all

SPLITS = ("mini_ft", "mini_lora_v", "mini_lora_f", "mini_wild")  # the moves of the hub are those of their edges
ZOO = "mini_zoo"
SAMPLES = 4096
ARROW, ARROW_SPREAD = 4.0, 2.0  # 97.7 % of single arrows are right, as in the zoo of small families
FAMILIES = 200
SEARCHED = 20
LINEAR = 1.2


def splits(folder: Path) -> tuple[list[list[object]], np.ndarray, bool]:
    """Rows of a table, moves of the true edges, and whether all parents are candidates."""
    rows, moves, whole = [], [], True
    for name in (*SPLITS, ZOO):
        manifest = read_manifest(Path("dataset") / f"{name}.json")
        index = create_index(folder / name, SAMPLES, 1 << 16, False)
        started = time.process_time()
        build(index, search([f"dataset/{name}.json"]).sources, Engine())
        seconds = time.process_time() - started
        names = group_names(index)
        tests = sum(size * (size - 1) / 2 for _, size in names)
        found, pairs, copies, labels = set(), 0, {}, 0
        for group_name, _ in names:
            group = load_group(index, group_name, tests, 0.01, "family")
            found |= {frozenset((group.ids[i], group.ids[j])) for i, j in zip(group.near.first, group.near.second)}
            copies |= {group.ids[copy]: group.ids[one] for copy, one in group.copies.items()}
            labels += group.labels.max() + 1
            far = {
                (i, j): s for i, j, s in zip(group.near.first.tolist(), group.near.second.tolist(), group.near.square)
            }
            place = {one: at for at, one in enumerate(group.ids)}
            for node in manifest.present:
                if node.id in place and node.parent in place and node.rank is None and name != ZOO:
                    ends = sorted((place[node.id], place[node.parent]))
                    moves += [far[tuple(ends)] ** 0.5] if tuple(ends) in far and far[tuple(ends)] > 1e-8 else []
            pairs += len(group.near.first)
        there = {row["id"] for row in index.rows(["id"])}
        true = [
            (parent, node.id)
            for node in manifest.present
            for parent in node.parents or (node.parent,)
            if parent in there
        ]
        held = [
            frozenset(copies.get(one, one) for one in edge) in found or len({copies.get(one, one) for one in edge}) == 1
            for edge in true
        ]
        whole &= all(held)
        rows.append([name, len(there), labels, len(true), sum(held), f"{pairs / len(there):.1f}", f"{seconds:.1f}"])
    return rows, np.array(moves), whole


def memory() -> float:
    """GB that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@dataclass(frozen=True)
class Truth:
    """Of all models of the hub, by number: the parent (-1: none), how far it moved, whether it is quantized."""

    parent: np.ndarray
    move: np.ndarray
    quantized: np.ndarray


def write_hub(folder: Path, models: int, moves: np.ndarray) -> tuple[Index, Truth]:
    """An index of simulated models, which are called by their numbers, and their truth."""
    index = create_index(folder, SAMPLES, 1 << 16, False)
    parents, families, number, start = [], [], 0, 0
    for family in simulate(models, FAMILIES, moves):
        values, shapes = family.signatures(SAMPLES), hub_shapes(family.group)
        group = {"group": group_of(shapes), "shapes": shapes_text(shapes)}
        for at in range(0, len(values), 2048):
            names = range(start + at, start + min(at + 2048, len(values)))
            rows = [
                {"id": f"{one:07}", "location": "not there", "key": "none", "tensors": [one], "signature": value}
                | group
                for one, value in zip(names, values[at : at + 2048])
            ]
            index.write(number, rows)
            number += 1
        parents.append(np.where(family.parent >= 0, family.parent + start, -1))
        families.append(family)
        start += len(values)
    index.compact()
    joined = (np.concatenate([getattr(family, name) for family in families]) for name in ("move", "quantized"))
    return index, Truth(np.concatenate(parents), *joined)


def offers(truth: Truth, numbers: np.ndarray, near: Near, draw: np.random.Generator) -> Offers:
    """Both arrows of each candidate pair as parents that may be, from evidence as it is simulated."""
    known, parent = read_coefficients(), truth.parent
    one, other = numbers[near.first], numbers[near.second]
    true = np.where(parent[other] == one, 1, np.where(parent[one] == other, -1, 0))
    up, down = sides(parent, truth.move, one, other)
    square, share = up + down, np.zeros(len(one))
    for end, side in ((one, up), (other, down)):  # the parent of an end lies on the way, unless the end is above
        step = truth.move[end] ** 2
        share = np.maximum(share, np.where((side > 0) & (true == 0), kept_ratio(step, square - step), 0))
    between = np.where(true == 0, np.logaddexp(0, known.between[0] + known.between[1] * share), 0)
    odds = true * ARROW + draw.normal(size=len(one)) * ARROW_SPREAD
    both = known.structure[0] * np.log(square.clip(1e-12)) - between
    arrow = np.r_[odds, -odds]
    weight = np.r_[both, both] + np.log(soft_arrow(arrow))
    weight += known.structure[STRUCTURE.index("altered")] * truth.quantized[np.r_[one, other]]
    above, child = np.r_[near.first, near.second], np.r_[near.second, near.first]
    order = np.lexsort((child, above))
    beside = np.full(len(order), -np.inf)  # every parent is there
    return Offers(len(numbers), above[order], child[order], weight[order], beside, arrow[order], order)


def hub(folder: Path, models: int, moves: np.ndarray) -> tuple[list[list[object]], bool]:
    """Candidates, families, trees, searches of a simulated hub: rows of a table, and whether thresholds were kept."""
    index, truth = write_hub(folder, models, moves)
    before, parent = memory(), truth.parent
    draw, took = np.random.default_rng(1), {"candidates": 0.0, "trees": 0.0}
    names = group_names(index)
    tests = sum(size * (size - 1) / 2 for _, size in names)
    held = right = joined = pairs = 0
    for name, _ in names:
        started = time.process_time()
        group = load_group(index, name, tests, 0.01, "family")
        took["candidates"] += time.process_time() - started
        started = time.process_time()
        numbers = np.array([int(one) for one in group.ids])
        tree = likeliest_tree(with_priors(offers(truth, numbers, group.near, draw), EXACT))
        took["trees"] += time.process_time() - started
        child = np.flatnonzero(tree.parent >= 0)
        found, above = numbers[tree.parent[child]], parent[numbers[child]]
        right += int((found == above).sum())
        joined += int(((found == above) | (parent[found] == numbers[child])).sum())
        one, other = numbers[group.near.first], numbers[group.near.second]
        held += int(((parent[other] == one) | (parent[one] == other)).sum())
        pairs += len(one)
        print(".", end="", file=sys.stderr, flush=True)
    edges, peak = int((parent >= 0).sum()), memory()
    number = next(one for one in range(GROUPS) if group_of(hub_shapes(one)) == names[0][0])
    seconds = searches(index, number, folder.parent / "searched")
    total = sum(took.values())
    rows = [
        ["models, families, in the largest group", f"{len(parent):,}, {FAMILIES}, {names[0][1]:,}", ""],
        ["true parent among candidates", f"{held / edges:.4f}", "0.99"],
        ["candidates for each model", f"{2 * pairs / len(parent):.1f}", ""],
        ["seconds: candidates and families", f"{took['candidates']:.0f}", ""],
        ["seconds: evidence as simulated, and trees", f"{took['trees']:.0f}", ""],
        ["minutes of candidates and trees", f"{total / 60:.1f}", "30"],
        ["GB at most (before it began)", f"{peak:.2f} ({before:.2f})", "8"],
        ["edges without arrows that are right", f"{joined / edges:.4f}", ""],
        ["edges that are right", f"{right / edges:.4f}", "0.95"],
        ["seconds of a search after reading: median, most", f"{np.median(seconds):.2f}, {max(seconds):.2f}", "2"],
    ]
    kept = held / edges >= 0.99 and total < 1800 and peak < 8 and right / edges >= 0.95 and max(seconds) < 2
    return rows, kept


def searches(index: Index, number: int, folder: Path) -> list[float]:
    """Seconds of searches of new models in a group of the hub, each as if it were the first, after it is read."""
    shapes, seconds, draw = hub_shapes(number), [], np.random.default_rng(2)
    _, some = next(Scan(index, group_of(shapes)).blocks())
    for place in range(SEARCHED):
        own = some[place] * SAMPLES**0.5 + 0.05 * draw.normal(size=SAMPLES)
        write_model(folder / str(place), own, number)
        opened, _ = open_all(one.opened_by() for one in search([str(folder / str(place))]).sources)
        sketch = sketch_models(opened, folder / "sketches", index.entries).sketches[0]
        started = time.process_time()
        tests, found = search_sketch(index, sketch, folder)
        seconds.append(time.process_time() - started)
        if not tests or found[0].verdict != "related":
            raise AssertionError("a search did not find the model that another one was made from")
    return seconds


def family(folder: Path, models: int) -> tuple[dict[str, str], dict[str, str]]:
    """One family of tiny models on disk, SEARCHED of them apart in "held": the parents of those, and of these."""
    truth = write_models(folder / "models", models + SEARCHED, 1)
    held = sorted(path.name for path in (folder / "models").iterdir())[models:]
    (folder / "held").mkdir()
    for name in held:
        shutil.move(folder / "models" / name, folder / "held" / name)
    parents = {name: truth.pop(name) for name in held}
    return truth, {name: parent for name, parent in parents.items() if parent not in held}


def tiny(folder: Path, models: int) -> tuple[list[object], float]:
    """One family of tiny models: a row of a table, and seconds for each."""
    truth, parents = family(folder, models)
    index = create_index(folder / "index", SAMPLES, 1 << 16, True)
    started = time.process_time()
    build(index, search([str(folder / "models")]).sources, Engine())
    read = time.process_time() - started
    started = time.process_time()
    found = index_graph(index, folder / "work", Engine())
    traced = time.process_time() - started
    each = [f"{1000 * seconds / models:.1f}" for seconds in (read, traced, read + traced)]
    shares = [f"{share:.3f}" for share in shares_right(found.nodes, found.edges, truth)]
    seconds, named = zip(*(named_first(index, folder / "held" / name) for name in parents))
    shutil.rmtree(folder)
    # Of a quantization that is there already its copy is named, which has the same parent.
    right = sum(
        parent in (one, truth.get(one)) if copy else parent == one
        for parent, (one, copy) in zip(parents.values(), named)
    )
    told = [f"{np.median(seconds):.2f}, {max(seconds):.2f}", f"{right} of {len(parents)}"]
    return [models, *each, *shares, *told, f"{memory():.2f}"], (read + traced) / models


def named_first(index: Index, model: Path) -> tuple[float, tuple[str, bool]]:
    """Search a model with the sketches of an index: seconds after it is read; its parent, or a copy (True) of it."""
    opened, _ = open_all(one.opened_by() for one in search([str(model)]).sources)
    sketch = sketch_models(opened, model / "sketches", index.entries).sketches[0]
    started = time.process_time()
    _, found = search_sketch(index, sketch, model)
    seconds = time.process_time() - started
    parents = ("copy", "parent", "parent or child")
    return seconds, next(((one.model, one.verdict == "copy") for one in found if one.verdict in parents), ("", False))


def all_pairs(folder: Path, models: int) -> list[str]:
    """What recover.py finds in such a family when it looks at all pairs: shares of edges."""
    truth, _ = family(folder, models)
    graph = recover_sources(search([str(folder / "models")]).sources, None, torch.device("cpu")).graph
    return [f"{share:.3f}" for share in shares_right(graph.nodes, graph.edges, truth)]


def main() -> bool:
    """All parts; whether thresholds were kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--real", type=int, nargs="*", default=[500, 1500, 5000])
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = True
    with tempfile.TemporaryDirectory(prefix="index.") as scratch:
        # Machine code is made once on each machine: the fewest models would pay for it.
        minimum_spanning_forest(Edges(2, np.array([0]), np.array([1]), np.zeros(1)))
        # These first: the most memory that a process had never falls.
        took = [tiny(Path(scratch) / f"tiny{models}", models) for models in sorted(args.real)]
        if took:
            head = ["tiny models", "ms each to read", "to trace", "both", "edges without arrows", "edges"]
            head += ["seconds of a search: median, most", "parent named first", "GB"]
            print("\n" + format_table(head, [row for row, _ in took]))
            least = min(args.real)
            shares = all_pairs(Path(scratch) / "pairs", least)
            print(f"all pairs of the {least}: edges without arrows {shares[0]}, edges {shares[1]}")
            most = max(took[-1][1] / each for _, each in took)
            print(f"the most models take {most:.2f} times as long for each as fewer (at most {LINEAR})", flush=True)
            kept &= most <= LINEAR
        if args.models:
            rows, moves, whole = splits(Path(scratch))
            head = ["split", "models", "families", "true edges", "candidates hold", "for each", "seconds to build"]
            print("\n" + format_table(head, rows), flush=True)
            rows, fast = hub(Path(scratch) / "hub", args.models, moves)
            print("\n" + format_table(["simulated hub", "measured", "at least / at most"], rows), flush=True)
            kept &= whole and fast
    return kept


if __name__ == "__main__":
    sys.exit(0 if main() else 1)

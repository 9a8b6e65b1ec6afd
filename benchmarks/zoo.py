"""Method "map" on the zoo: every architecture, and every plot, recovered with coefficients that never saw it.

    python -m benchmarks.zoo            zoos of three seeds; they are grown first where they are missing
    python -m benchmarks.zoo --seeds 1  the first one alone

What is measured of models does not depend on coefficients; so each family is traced once, and its trees are
recovered again with what the other families taught.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import tyro

from benchmarks.incomplete import taught
from benchmarks.traced import (
    SPLITS,
    ZOOS,
    Case,
    cases,
    error_of_calibrated,
    expected_calibration_error,
    traced,
    traced_manifest,
)
from benchmarks.zoo_tables import merge_table, named_parents, unannealed_families, without_roots
from mother.graph.manifest import Manifest
from mother.graph.model_graph import ModelGraph
from mother.graph.scores import present_parents, score_graph
from mother.graph.text import format_table
from mother.heritage.calibration import Coefficients
from mother.heritage.fitting import fit
from mother.heritage.trees import Heritage, recover_clusters
from mother.heritage.typed_graph import build_graph

SURE = 0.95
TARGETS = {"directed": 0.93, "undirected": 0.96, "kinds": 0.95}
LARGEST = {"ece": 0.04, "wrong when sure": 0.03, "ece of one architecture": 0.08}


@dataclass
class Args:
    """Recover the zoo with coefficients that never saw the architecture, or the plot, at hand."""

    seeds: int = 3
    """zoos of so many seeds, of other weights and other draws"""


@dataclass
class Judged:
    """Stated edges of a part of the zoo: (P(edge), right, P(adjacent), adjacent right, P(arrow), text)."""

    scores: list[dict] = field(default_factory=list)
    edges: list[tuple[float, bool, float, bool, float, str]] = field(default_factory=list)

    def row(self) -> list:
        """Accuracy over all true edges, calibration over all stated ones."""
        weights = np.array([score["true_edges"] for score in self.scores], dtype=float)
        shares = [
            float(np.average([score[name] or 0 for score in self.scores], weights=weights))
            for name in ("directed", "undirected")
        ]
        kinds = [score["kinds"] for score in self.scores if score["kinds"] is not None]
        values = np.array([edge[:5] for edge in self.edges], dtype=float)
        both = values[values[:, 3] > 0]  # an arrow is right or wrong where the pair is one
        errors = [
            expected_calibration_error(values[:, 0], values[:, 1]),
            error_of_calibrated(values[:, 0]),
            expected_calibration_error(values[:, 2], values[:, 3]),
            expected_calibration_error(both[:, 4], both[:, 1]),
        ]
        brier = float(np.mean((values[:, 0] - values[:, 1]) ** 2))
        sure = values[:, 0] >= SURE
        wrong = int((1 - values[sure, 1]).sum())
        return [int(weights.sum()), *shares, float(np.mean(kinds)), *errors, brier, int(sure.sum()), wrong]


HEAD = ("edges", "directed", "undirected", "kinds", "ECE", "chance", "ECE pair", "ECE arrow", "Brier", "sure", "wrong")


def list_wrong(judged: Judged) -> None:
    """Print every wrong edge that was stated as sure."""
    for stated, right, *_, text in judged.edges:
        if stated >= SURE and not right:
            print(f"  sure and wrong: {stated:.3f} {text}")


def wrong_when_sure(row: list) -> float:
    """The share of the sure edges that are wrong, by a row of `Judged`."""
    columns = dict(zip(HEAD, row))
    return columns["wrong"] / max(1, columns["sure"])


def part(manifest: Manifest, graph: ModelGraph, key: str, value: str) -> tuple[Manifest, ModelGraph]:
    """What belongs to one architecture or plot."""
    nodes = tuple(node for node in manifest.nodes if node.recipe[key] == value)
    ids = {node.id for node in nodes}
    trees = {facts["tree"] for model, facts in graph.nodes.items() if ids & {model, *facts.get("aliases", ())}}
    kept = {model: facts for model, facts in graph.nodes.items() if facts["tree"] in trees}
    edges = tuple(edge for edge in graph.edges if edge.child in kept)
    return replace(manifest, nodes=nodes), ModelGraph(graph.name, kept, edges)


def judge(manifest: Manifest, graph: ModelGraph, into: Judged) -> None:
    """Add the scores of one part, and each stated edge with a probability of its own."""
    score = score_graph(graph, manifest)
    if score["true_edges"]:
        into.scores.append(score)
    nodes = {node.id: node for node in manifest.nodes}
    original = {node.id: node.parent for node in manifest.nodes if node.kind == "copy"}
    # The base of task vectors is a parent with a coefficient of its own, though it is not called so.
    bases = {(n.recipe["base"], n.id) for n in manifest.nodes if n.recipe and "base" in n.recipe}
    true = {(original.get(p, p), n.id) for n in manifest.nodes for p in n.all_parents} | bases
    # As where edges are counted: for an absent parent a copy of it, or else its nearest ancestor, that is there.
    true |= {(p, child) for child, parents in present_parents(manifest).items() for p in parents}
    names = {m: {m, *facts.get("aliases", ())} for m, facts in graph.nodes.items()}
    for edge in graph.edges:
        facts = edge.attributes
        if facts.get("hidden") or edge.child not in names or edge.parent not in names:
            continue
        ways = [(p, c) for p in names[edge.parent] for c in names[edge.child]]
        right = any(way in true for way in ways)
        back = any(way[::-1] in true for way in ways)
        what = nodes.get(edge.child)
        about = {k: v for k, v in (what.recipe if what else {}).items() if k in SHOWN}
        text = f"{edge.parent} -> {edge.child} ({facts['kind']}; {about})"
        stated = facts["adjacency"] * facts["arrow"]
        into.edges.append((stated, right, facts["adjacency"], right or back, facts["arrow"], text))


SHOWN = (
    "architecture",
    "plot",
    "move",
    "optimizer",
    "weight_decay",
    "train_dtype",
    "dtype",
    "rank",
    "method",
    "grower",
)


def group(case: Case, key: str) -> str | None:
    """What a case is left out with; the splits have an architecture, but no plot."""
    return case.architecture if key == "architecture" else case.group.get(key)


def leave_out(
    manifest: Manifest, heritage: Heritage, examples: list[Case], key: str, seen: dict[str, Coefficients]
) -> dict[str, Judged]:
    """Each value of this key recovered with coefficients from all others."""
    found: dict[str, Judged] = defaultdict(Judged)
    for value in sorted({str(node.recipe[key]) for node in manifest.nodes}):
        if value not in seen:
            seen[value] = fit(taught(case for case in examples if group(case, key) != value))
        graph = build_graph(manifest.name, recover_clusters(heritage, seen[value]))
        judge(*part(manifest, graph, key, value), found[value])
    return found


def pooled(found: Iterable[Judged]) -> Judged:
    """All of them together."""
    parts = list(found)
    return Judged([score for one in parts for score in one.scores], [edge for one in parts for edge in one.edges])


def main(args: Args) -> None:
    """Print the tables, and every wrong edge that was stated as sure."""
    zoos = [traced(name) for name in ZOOS[: args.seeds]]
    splits = [case for split in SPLITS for case in cases(*traced(split))]
    examples = splits + [case for manifest, heritage in zoos for case in cases(manifest, heritage)]
    coefficients: dict[str, dict[str, Coefficients]] = {"architecture": {}, "plot": {}}
    missed: list[str] = []
    for key, seen in coefficients.items():
        together: dict[str, Judged] = defaultdict(Judged)
        wholes = []
        for manifest, heritage in zoos:
            found = leave_out(manifest, heritage, examples, key, seen)
            for value, one in found.items():
                together[value] = pooled([together[value], one])
            wholes.append([manifest.name, *pooled(found.values()).row()])
        rows = [[value, *one.row()] for value, one in together.items()] + [["all", *pooled(together.values()).row()]]
        print(f"\n{args.seeds} seeds: leave one {key} out\n{format_table((key, *HEAD), rows)}")
        print(f"\neach seed: leave one {key} out\n{format_table(('zoo', *HEAD), wholes)}")
        list_wrong(pooled(together.values()))
        missed += check(rows) if key == "architecture" else []
    print("\n" + merge_table(zoos, coefficients["architecture"]))
    missed += without_annealing(coefficients["architecture"]["llama"])
    missed += rootless([manifest for manifest, _ in zoos], coefficients["architecture"])
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


def without_annealing(coefficients: Coefficients) -> list[str]:
    """Print the table of families whose root was never annealed; returns what misses its target."""
    found: dict[str, Judged] = {}
    named = []
    for name, (manifest, graph) in unannealed_families(coefficients).items():
        judge(manifest, graph, found.setdefault(name, Judged()))
        named.append(named_parents(manifest, graph))
    rows = [[name, *one.row(), share] for (name, one), share in zip(found.items(), named)]
    whole = pooled(found.values()).row()
    rows.append(["all", *whole, float(np.mean(named))])
    print(f"\nroots without annealing\n{format_table(('family', *HEAD, 'named'), rows)}")
    columns = dict(zip(HEAD, whole))
    missed = [f"without annealing {columns['directed']:.3f} < 0.8"] if columns["directed"] < 0.8 else []
    wrong = wrong_when_sure(whole)
    return missed + ([f"without annealing wrong when sure {wrong:.3f}"] if wrong > LARGEST["wrong when sure"] else [])


def rootless(zoos: list[Manifest], coefficients: dict[str, Coefficients]) -> list[str]:
    """Print the table of the zoos without any root, an architecture left out; returns what misses its target."""
    rows, together = [], []
    for manifest in map(without_roots, zoos):
        heritage, found = traced_manifest(manifest), []
        for value, known in coefficients.items():
            found.append(Judged())
            judge(
                *part(manifest, build_graph(manifest.name, recover_clusters(heritage, known)), "architecture", value),
                found[-1],
            )
        rows.append([manifest.name, *pooled(found).row()])
        together += found
    whole = pooled(together)
    rows.append(["all", *whole.row()])
    print(f"\nroots taken away, one architecture left out\n{format_table(('zoo', *HEAD), rows)}")
    list_wrong(whole)
    wrong = wrong_when_sure(rows[-1][1:])
    return [f"without roots wrong when sure {wrong:.3f}"] if wrong > LARGEST["wrong when sure"] else []


def check(rows: list[list]) -> list[str]:
    """What misses its target."""
    columns = dict(zip(HEAD, range(1, len(HEAD) + 1)))
    whole = rows[-1]
    found = [
        f"{name} {whole[columns[name]]:.3f} < {least}"
        for name, least in TARGETS.items()
        if whole[columns[name]] < least
    ]
    share = wrong_when_sure(whole[1:])
    found += [f"wrong when sure {share:.3f}"] if share > LARGEST["wrong when sure"] else []
    found += [f"ECE {whole[columns['ECE']]:.3f}"] if whole[columns["ECE"]] > LARGEST["ece"] else []
    least = LARGEST["ece of one architecture"]
    return found + [f"ECE of {row[0]} {row[columns['ECE']]:.3f}" for row in rows[:-1] if row[columns["ECE"]] > least]


if __name__ == "__main__":
    main(tyro.cli(Args))

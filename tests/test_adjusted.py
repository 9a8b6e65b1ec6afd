"""What is done to probabilities after the terms of the evidence is told beside them, so that they can be traced."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_here, save_model
from test_heritage import base, halved, moved
from test_quantized import base as packable
from test_quantized import gguf_of, tuned

from mother.cli.commands import main
from mother.collection.find import search
from mother.collection.workspace import Recovered, recover_sources
from mother.graph.arborescence import edge_marginals
from mother.graph.model_graph import ModelGraph
from mother.heritage import trees
from mother.heritage.calibration import STANDS_IN, Weights
from mother.heritage.relation import ABSENT_ORIGINAL, ABSENT_PARENT, FACTORS
from mother.report.explain import explain
from mother.report.kept import WHOLE, Evidence, read_evidence, read_graph
from mother.report.write import write_outputs

Result = tuple[Recovered, list[Weights]]


def recover(folder: Path, patch: pytest.MonkeyPatch) -> Result:
    """A folder of models recovered into `out` beside it, and the weights that marginals were taken of."""
    kept, tree = [], trees.acyclic_tree

    def noted(*words: object) -> tuple[dict[int, int], Weights]:
        found = tree(*words)
        kept.append(found[1])
        return found

    patch.setattr(trees, "acyclic_tree", noted)
    recovered = recover_sources(search([str(folder)]).sources, folder.parent / "out", torch.device("cpu"))
    write_outputs(recovered, folder.parent / "out")
    return recovered, kept


def check_sums(result: Result) -> None:
    """All terms of a cluster add up to its log weights, and with what comes after give its probabilities."""
    recovered, kept = result
    clusters = [cluster for group in recovered.groups for cluster in group.heritage.clusters]
    assert len(clusters) == len(kept)
    for cluster, weights in zip(clusters, kept):
        terms, factors = dict(cluster.terms), np.zeros(weights.parent.shape)
        for name in FACTORS:
            factors = factors + terms.pop(name, 0.0)
        off = ~np.eye(len(factors), dtype=bool)
        assert sum(terms.values())[off] == pytest.approx(weights.parent[off])
        before = weights.parents(edge_marginals(weights.both)[0])
        assert (before * np.exp(factors))[off] == pytest.approx(cluster.probability[off])


def read(folder: Path) -> tuple[ModelGraph, Evidence]:
    return read_graph(folder), read_evidence(folder)


def why(found: dict, term: str) -> list[dict]:
    return [one for one in found["why"] if one["term"] == term]


def test_a_first_edge_says_what_an_absent_parent_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"root": base(0)} | {f"c{k}": moved(base(0), k + 1) for k in range(6)}
    for name, weights in content.items():
        save_model(tmp_path / "models" / name, weights)
    check_sums(recover(tmp_path / "models", monkeypatch))
    graph, evidence = read(tmp_path / "out")
    edge = max(graph.edges, key=lambda edge: (edge.attributes["adjacency"], edge.child))
    (told,) = why(explain(graph, evidence, edge.parent, edge.child), ABSENT_PARENT)
    assert edge.attributes["adjacency"] == told["after"] == pytest.approx(1 - STANDS_IN)
    assert told["before"] > 0.95 and told["log_odds"] == round(np.log(told["after"] / told["before"]), 2)
    terms = evidence.groups[0].pair(edge.parent, edge.child)["terms"]
    assert sum(value for name, value in terms.items() if name != WHOLE) == pytest.approx(terms[WHOLE], abs=0.01)
    code, out, _ = run_here("mother", ["explain", edge.parent, edge.child, "--to", tmp_path / "out"], main)
    assert code == 0 and "and their parent absent: the probability is 0.9, and was" in out
    assert "and their parent absent" in (tmp_path / "out/report.html").read_text()


def test_what_tells_twins_apart_is_a_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model trained in half precision from a cast: its edge is next to that of the original, but for the type."""
    half = halved(base(0))
    content = {"root": base(0), "half": half, "child": halved(moved(half, 1)), "other": moved(base(0), 2)}
    for name, weights in content.items():
        save_model(tmp_path / "models" / name, weights)
    check_sums(recover(tmp_path / "models", monkeypatch))
    graph, evidence = read(tmp_path / "out")
    edges = {edge.child: edge.parent for edge in graph.edges}
    assert edges["child"] == "half"
    terms = {parent: evidence.groups[0].pair(parent, "child")["terms"]["twins"] for parent in ("half", "root")}
    assert terms["half"] >= 0 > terms["root"]
    (told,) = why(explain(graph, evidence, "root", "child"), "twins")
    assert told["log_odds"] == round(terms["root"], 2) and "the other one" in told["words"]
    found = why(explain(graph, evidence, "half", "child"), "twins")
    assert [one["log_odds"] for one in found if one["about"] == "edge"] == [round(terms["half"], 2)] * (
        terms["half"] >= 0.05
    )


def test_quantizations_of_an_absent_model_say_what_rules_edges_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = packable()
    fine = tuned(root, 3, 0.3)
    save_model(tmp_path / "models/root", root)
    for kind in ("Q8_0", "Q4_0"):
        gguf_of(fine, kind, tmp_path / "models" / kind)
    result = recover(tmp_path / "models", monkeypatch)
    check_sums(result)
    assert [group.heritage.absent for group in result[0].groups if group.heritage.absent]
    graph, evidence = read(tmp_path / "out")
    names = {facts: one for one in evidence.groups[0].models for facts in ("Q8_0", "Q4_0") if facts in one}
    both = explain(graph, evidence, names["Q8_0"], names["Q4_0"])
    assert {one["log_odds"] for one in why(both, "quantized")} == {None} and len(why(both, "quantized")) == 2
    assert "both are quantized" in why(both, "quantized")[0]["words"]
    above = explain(graph, evidence, "root", names["Q4_0"])
    (told,) = why(above, ABSENT_ORIGINAL)
    assert told["log_odds"] is None and "quantized from a model that is not there" in told["words"]
    code, out, _ = run_here("mother", ["explain", "root", names["Q4_0"], "--to", tmp_path / "out"], main)
    assert code == 0 and "quantized from a model that is not there" in out

"""Explanations: every probability goes back to terms, one wording for one probability, quick and from what is kept."""

import csv
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_here, save_model
from test_heritage import base, halved, moved

from mother.cli.commands import main
from mother.collection.find import search
from mother.collection.workspace import Recovered, recover_sources
from mother.errors import InputError
from mother.graph import certainty, model_graph
from mother.graph.model_graph import HIDDEN_EDGE, ModelGraph, above_hidden
from mother.report.explain import explain, lineage
from mother.report.explain_text import explain_text
from mother.report.html import report_data
from mother.report.kept import WHOLE, Evidence, read_evidence
from mother.report.measured import evidence_of
from mother.report.reasons import REST, arrow_terms, reasons
from mother.report.words import sentence
from mother.report.write import write_outputs

CPU = torch.device("cpu")


@dataclass
class Told:
    """A result, its evidence, and its folder."""

    recovered: Recovered
    evidence: Evidence
    folder: Path

    @property
    def graph(self) -> ModelGraph:
        return self.recovered.graph

    def pair(self, parent: str, child: str) -> dict:
        return self.evidence.group_of(parent).pair(parent, child)

    def explain(self, one: str, other: str) -> dict:
        return explain(self.graph, self.evidence, one, other)


def told(folder: Path, content: dict) -> Told:
    for name, weights in content.items():
        save_model(folder / "models" / name, weights)
    recovered = recover_sources(search([str(folder / "models")]).sources, folder / "out", CPU)
    write_outputs(recovered, folder / "out")
    return Told(recovered, evidence_of(recovered), folder / "out")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A chain of three, a LoRA child, a sibling, a cast, a copy, and a stranger."""
    middle = moved(base(0), 1)
    content = {"root": base(0), "middle": middle, "leaf": moved(middle, 2), "sibling": moved(base(0), 3)}
    content |= {"lora": moved(middle, 4, 0.3, rank=2), "cast": halved(middle), "stranger": base(9)}
    content |= {"twin": dict(content["leaf"])}
    return told(tmp_path_factory.mktemp("explain"), content)


def test_terms_sum_to_the_log_weight(family: Told) -> None:
    for parent, child in (("root", "middle"), ("middle", "root"), ("middle", "lora"), ("leaf", "sibling")):
        found = family.pair(parent, child)
        terms = found["terms"]
        assert sum(v for name, v in terms.items() if name != "log weight") == pytest.approx(
            terms["log weight"], abs=0.01
        )
        assert terms["exact relation"] == 0 and found["terms_back"] == family.pair(child, parent)["terms"]
    assert family.pair("middle", "lora")["terms"]["flatness"] > 0
    assert family.pair("root", "leaf")["third"] in ("middle", "cast")  # which are nearly one
    assert family.pair("root", "leaf")["terms"]["between"] < -1
    assert "terms" not in family.pair("root", "stranger")


def test_what_is_kept_is_what_was_found(family: Told) -> None:
    kept = read_evidence(family.folder)
    models = [model for group in kept.groups for model in group.models]
    assert len(models) == 8
    for one in models:
        for other in models:
            group = kept.group_of(one)
            if one != other and other in group.place:
                assert group.pair(one, other) == family.pair(one, other)
                assert group.adjacency(one, other) == family.evidence.group_of(one).adjacency(one, other)


def test_probabilities_follow_from_the_terms(tmp_path: Path) -> None:
    """Of two models the arrow is the logistic function of what its terms add, and nothing is left to the rest."""
    found = told(tmp_path, {"a": base(0), "b": moved(base(0), 1)})
    (edge,) = found.graph.edges
    terms = arrow_terms(edge.attributes, found.pair(edge.parent, edge.child))
    assert edge.attributes["arrow"] == pytest.approx(1 / (1 + math.exp(-sum(terms.values()))), abs=0.002)
    assert REST not in terms


def test_the_contributions_add_up_to_the_arrow(family: Told) -> None:
    seen = 0
    for edge in family.graph.edges:
        if edge.attributes["kind"] not in ("fine-tune", "lora") or edge.attributes["arrow"] > 0.9998:
            continue
        why = family.explain(edge.parent, edge.child)["why"]
        arrow = [one["log_odds"] for one in why if one["about"] == "arrow"]
        assert 1 / (1 + math.exp(-sum(arrow))) == pytest.approx(edge.attributes["arrow"], abs=0.05)
        assert [abs(one) for one in arrow] == sorted(map(abs, arrow), reverse=True)
        seen += 1
    assert seen


def test_the_sentence_names_what_decided(family: Told) -> None:
    for edge in family.graph.edges:
        found = family.explain(edge.parent, edge.child)
        arrow = {one["term"]: one["log_odds"] for one in found["why"] if one["about"] == "arrow"}
        if edge.attributes["kind"] not in ("fine-tune", "lora") or edge.attributes["arrow"] < certainty.KNOWN:
            continue
        strongest = max(arrow, key=arrow.get)
        assert ("follows from the rest" in found["summary"]) == (strongest == REST)
        assert ("was added by" in found["summary"]) == (strongest == "newness")
    lora = family.explain("middle", "lora")
    assert "a LoRA of rank 2" in lora["summary"] and "grain of lora's numbers" in lora["summary"]


def test_terms_of_arrows_are_told_in_words(family: Told) -> None:
    forth = {"altered": -1.0, "equality": 0.5, WHOLE: -0.5}
    evidence = {"terms": forth, "terms_back": dict.fromkeys(forth, 0.0)}
    both = [one for one in reasons({"kind": "fine-tune", "arrow": 0.4}, evidence, "a", "b") if one["about"] == "arrow"]
    found = {one["term"]: one["words"] for one in both}
    assert found["altered"].startswith("a was pruned, quantized, cast or merged")  # so b would have to be the parent
    assert found["equality"] == "a has more entries equal to those of another model than b has"


def test_no_figure_that_took_no_part(family: Told) -> None:
    cast = family.explain("cast", "middle")
    assert [one["log_odds"] for one in cast["why"]] == [None] and "rounded to bfloat16" in cast["why"][0]["words"]
    for found in (cast, family.explain("root", "stranger"), family.explain("leaf", "twin")):
        text = explain_text(found)
        assert "newness" not in text and "rounding " not in text and "terms" not in found.get("evidence", {})
    assert family.pair("cast", "middle")["terms"]["exact relation"] is None  # it forbids the way back
    assert "copies" in family.explain("leaf", "twin")["summary"]


def test_one_wording_for_one_probability(family: Told) -> None:
    known = [value for edge in family.graph.edges for value in (edge.attributes["adjacency"], edge.attributes["arrow"])]
    for edge in family.graph.edges:
        text = explain_text(family.explain(edge.parent, edge.child))
        said = r"\b(certain|sure|likely|open|unlikely) \(((?:more than |less than )?\d+ %)\)"
        for word, figure in re.findall(said, text):
            assert (word, figure) in {(certainty.certainty(p), certainty.percent(p)) for p in known}
    assert certainty.KNOWN == model_graph.KNOWN
    for p in (k / 2000 for k in range(2001)):  # no figure stands beside a word in whose range it is not
        figure = certainty.percent(p)
        if "than" not in figure:
            assert certainty.certainty(int(figure.removesuffix(" %")) / 100) == certainty.certainty(p), (p, figure)
    assert [certainty.percent(p) for p in (1, 0.995, 0.994, 0.5, 0.004)] == [
        "more than 99 %",
        "more than 99 %",
        "99 %",
        "50 %",
        "less than 1 %",
    ]
    assert certainty.ranges()[0] == ("certain", "99.5 % and more")
    assert certainty.ranges()[-2:] == [("open", "25 % to 75 %"), ("unlikely", "less than 25 %")]
    assert all(certainty.certainty(least) == word for least, word in certainty.CERTAINTY)


def test_residuals_of_a_cast_are_named(tmp_path: Path, family: Told) -> None:
    """A model in half precision that was trained on in full precision."""
    first = halved(base(0))
    result = told(tmp_path, {"onward": moved(first, 5, 0.002), "first": first})
    found = result.explain("onward", "first")
    assert found["parent"] == "first" and found["edge"]["arrow"] > 0.8 and found["evidence"]["cast"] > 20
    assert result.pair("onward", "first")["cast"] == -found["evidence"]["cast"]
    assert "as if onward came last" in found["wrong_if"][0] and "residuals of a cast" in explain_text(found)
    assert family.pair("root", "middle")["cast"] is None


def test_relatives_are_described_as_they_are_named(family: Told) -> None:
    """Newness is that of the second model that was named, whichever descends from the other."""
    down, up = family.explain("root", "leaf"), family.explain("leaf", "root")
    assert down["summary"] == up["summary"] == "leaf descends from root: root -> middle -> leaf."
    assert down["evidence"]["newness"] == -up["evidence"]["newness"] > 0
    assert "added by root" in explain_text(up) and "added by leaf" in explain_text(down)


def test_the_report_has_the_terms(family: Told) -> None:
    data = report_data(family.recovered, family.evidence, None, "test")
    edges = {(edge["parent"], edge["child"]): edge for edge in data["edges"]}
    shown = edges["middle", "lora"]["evidence"]
    assert shown["terms"] == family.pair("middle", "lora")["terms"] and "third" in shown
    assert edges["middle", "lora"]["summary"] == family.explain("middle", "lora")["summary"]


def test_lines_of_descent(family: Told) -> None:
    line = lineage(family.graph, family.evidence, "twin")
    steps = [(step["child"], step["parent"]) for step in line["steps"]]
    assert steps[-1][1] == line["root"] and [child for child, _ in steps[1:]] == [parent for _, parent in steps[:-1]]
    assert line["copies"] == ["leaf"]
    code, out, _ = run_here("mother", ("explain", "lora", "--to", family.folder), main)
    assert code == 0 and "from middle" in out and "is the root of its family" in out
    code, out, _ = run_here("mother", ("explain", "stranger", "--to", family.folder), main)
    assert code == 0 and "no parent in this collection" in out


@pytest.mark.parametrize("name", ["middle", "iddle", "path"])
def test_ids_endings_and_paths(name: str, family: Told) -> None:
    name = str(family.folder.parent / "models" / "middle") if name == "path" else name
    code, out, _ = run_here("mother", ("explain", name, "lora", "--to", family.folder), main)
    assert code == 0 and out.startswith("lora was made from middle by a LoRA of rank 2. Parent and child: ")


def test_near_names_are_suggested(family: Told) -> None:
    for name, hint in (("midle", "Do you mean middle"), ("SIB", "Do you mean sibling"), ("t", "2 models end in 't'")):
        with pytest.raises(InputError, match=hint):
            family.explain(name, "lora")


def test_the_table_of_matrices(family: Told, tmp_path: Path) -> None:
    code, out, _ = run_here("mother", ("explain", "middle", "lora", "--to", family.folder, "--layers", "-"), main)
    rows = family.explain("middle", "lora")["evidence"]["layers"]
    assert code == 0 and all(row["layer"][:28] in out for row in rows)
    path = tmp_path / "layers.csv"
    run_here("mother", ("explain", "middle", "lora", "--to", family.folder, "--layers", path), main)
    written = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["layer"]: float(row["newness"]) for row in written} == {row["layer"]: row["newness"] for row in rows}


@pytest.mark.slow
def test_a_hundred_models_within_a_second(tmp_path: Path) -> None:
    """Wall time of a new process, the best of five: other processes of this machine are not what is measured."""
    content = {"m0": base(0)}
    for k in range(1, 100):
        content[f"m{k}"] = moved(content[f"m{(k - 1) // 3}"], k)
    found = told(tmp_path, content)
    edge = found.graph.edges[40]
    command = [sys.executable, "-m", "mother", "explain", edge.parent, edge.child, "--to", str(found.folder)]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0 and edge.child in done.stdout, done.stderr
    assert min(times) < 1
    loaded = f"import sys, runpy; sys.argv = {command[2:]!r}; runpy.run_module('mother', run_name='__main__'); "
    loaded += "print({'torch', 'networkx', 'scipy', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_what_is_said_of_models_that_are_not_here() -> None:
    """Which end of an edge is absent is told, and how sure it is."""
    above = sentence(above_hidden(0.9, 1.0, 0.5), "root", "hidden parent of x", absent=True)
    assert above == "hidden parent of x, which is not in this collection, seems to come from root: open (45 %)."
    assert "root first: open (60 %)" in sentence(above_hidden(0.9, 0.6, 0.5), "root", "x", absent=True)
    below = sentence(HIDDEN_EDGE | {"adjacency": 0.8}, "hidden parent of x", "x")
    assert below == "x seems to come from hidden parent of x, which is not in this collection: likely (80 %)."

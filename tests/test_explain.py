"""Explanations: every probability goes back to terms, and signs are those of the models as they are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_here, save_model
from test_heritage import base, halved, moved

from mother.cli.commands import main
from mother.collection.find import search
from mother.collection.workspace import Recovered, recover_sources
from mother.report.explain import explain, explain_text, pair_evidence
from mother.report.html import report_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Recovered:
    """A chain of three, a LoRA child, a sibling, and a cast."""
    folder = tmp_path_factory.mktemp("explain")
    middle = moved(base(0), 1)
    content = {"root": base(0), "middle": middle, "leaf": moved(middle, 2), "sibling": moved(base(0), 3)}
    content |= {"lora": moved(middle, 4, 0.3, rank=2), "cast": halved(middle), "stranger": base(9)}
    for name, weights in content.items():
        save_model(folder / name, weights)
    return recover_sources(search([str(folder)]).sources, folder / "out", CPU)


def evidence(recovered: Recovered, parent: str, child: str) -> dict:
    return pair_evidence(recovered.group_of(parent), parent, child)


def test_terms_sum_to_the_log_weight(recovered: Recovered) -> None:
    for parent, child in (("root", "middle"), ("middle", "root"), ("middle", "lora"), ("leaf", "sibling")):
        terms = evidence(recovered, parent, child)["terms"]
        assert sum(v for name, v in terms.items() if name != "log weight") == pytest.approx(
            terms["log weight"], abs=0.01
        )
        assert terms["exact relation"] == 0
    assert evidence(recovered, "middle", "lora")["terms"]["low rank"] > 0
    assert evidence(recovered, "root", "leaf")["third"] in ("middle", "cast")  # which are nearly one
    assert evidence(recovered, "root", "leaf")["terms"]["between"] < -1
    assert "terms" not in evidence(recovered, "root", "stranger")


def test_probabilities_follow_from_the_terms(tmp_path: Path) -> None:
    """Of two models the arrow is the logistic function of the difference of the two log weights."""
    for name, weights in {"a": base(0), "b": moved(base(0), 1)}.items():
        save_model(tmp_path / name, weights)
    found = recover_sources(search([str(tmp_path)]).sources, None, CPU)
    (edge,) = found.graph.edges
    forth, back = (evidence(found, *ends)["terms"]["log weight"] for ends in (("a", "b"), ("b", "a")))
    assert edge.attributes["arrow"] == pytest.approx(1 / (1 + np.exp(back - forth)), abs=0.001)


def test_an_exact_relation_forbids_the_way_back(recovered: Recovered) -> None:
    text = explain_text(explain(recovered, "cast", "middle"))
    assert "exact relation +60" in text and "(of middle -> cast)" in text
    back = evidence(recovered, "cast", "middle")["terms"]
    assert back["exact relation"] is None and back["log weight"] is None


def test_the_text_names_terms_and_the_third_model(recovered: Recovered) -> None:
    line = next(line for line in explain_text(explain(recovered, "root", "leaf")).splitlines() if "log weight" in line)
    assert (
        ("between (middle) -" in line or "between (cast) -" in line)
        and "distance " in line
        and line.endswith("(of root -> leaf)")
    )
    sizes = [abs(float(part.rsplit(" ", 1)[1])) for part in line.split("(of")[0].split(": ")[1].strip().split(", ")]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) >= 0.01


def test_residuals_of_a_cast_are_named(tmp_path: Path, recovered: Recovered) -> None:
    """A model in half precision that was trained on in full precision."""
    first = halved(base(0))
    for name, weights in {"onward": moved(first, 5, 0.002), "first": first}.items():
        save_model(tmp_path / name, weights)
    result = recover_sources(search([str(tmp_path)]).sources, None, CPU)
    found = explain(result, "onward", "first")
    assert found["parent"] == "first" and found["edge"]["arrow"] > 0.8 and found["evidence"]["cast"] > 20
    assert evidence(result, "onward", "first")["cast"] == -found["evidence"]["cast"]
    assert "as if onward came last" in found["wrong_if"][0] and "residuals of a cast" in explain_text(found)
    assert evidence(recovered, "root", "middle")["cast"] is None


def test_relatives_are_described_as_they_are_named(recovered: Recovered) -> None:
    """Newness is that of the second model that was named, whichever descends from the other."""
    down, up = explain(recovered, "root", "leaf"), explain(recovered, "leaf", "root")
    assert down["summary"] == up["summary"] == "leaf descends from root: root -> middle -> leaf."
    assert down["evidence"]["newness"] == -up["evidence"]["newness"] > 0
    assert "new in root" in explain_text(up) and "new in leaf" in explain_text(down)


def test_the_report_has_the_terms(recovered: Recovered) -> None:
    data = report_data(recovered, None, "test")
    edges = {(edge["parent"], edge["child"]): edge for edge in data["edges"]}
    shown = edges["middle", "lora"]["evidence"]
    assert shown["terms"] == evidence(recovered, "middle", "lora")["terms"] and "third" in shown


def test_explain_prints_the_terms(recovered: Recovered, tmp_path: Path) -> None:
    folder = Path(recovered.sources[0].location).parent / "out"
    code, out, _ = run_here("mother", ("explain", "root", "middle", "--to", folder), main)
    assert code == 0 and "log weight" in out and len(out.splitlines()) < 40

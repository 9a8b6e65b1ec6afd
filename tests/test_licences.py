"""Licences along lines of descent: what changes, what an ancestor's asks for, and nothing where nothing is known."""

from functools import partial
from pathlib import Path

import pytest
from conftest import run_here, save_model
from test_heritage import base, moved

from mother.cli.commands import main
from mother.collection.claims import place_of, read_said
from mother.collection.licence_table import CHANGED, EUROPE, LATEST, LICENCES, NONCOMMERCIAL, same, uses
from mother.collection.licences import UNKNOWN, licence_changes, licence_facts
from mother.graph.model_graph import HIDDEN_EDGE, Edge, ModelGraph, above_hidden
from mother.report.static import licences_html

NODES: dict[str, dict] = {name: {"tree": "0"} for name in ("root", "middle", "leaf", "side")}
NODES["leaf"] |= {"aliases": ["twin"]}
FACTS = {"kind": "fine-tune", "adjacency": 0.99, "arrow": 0.9}
EDGES = (Edge("root", "middle", FACTS), Edge("middle", "leaf", FACTS | {"arrow": 0.8}), Edge("root", "side", FACTS))
GRAPH = ModelGraph("g", NODES, EDGES)


def changes(**licences: str) -> dict[tuple[str, str], dict]:
    return {(one["model"], one["ancestor"]): one for one in licence_changes(GRAPH, licences)}


def test_nothing_is_said_of_models_that_are_not_here() -> None:
    nodes = {**NODES, "middle": {"tree": "0", "hidden": True}}
    found = licence_changes(ModelGraph("g", nodes, EDGES), {"root": "gemma", "leaf": "mit"})
    assert {one["model"] for one in found} == {"leaf", "twin", "side"}
    assert next(one for one in found if one["model"] == "leaf")["ancestor"] == "root"


def test_a_licence_is_no_surer_than_the_models_between_that_are_not_here() -> None:
    edges = (
        Edge("root", "middle", above_hidden(0.8, 1.0, 0.5)),
        Edge("middle", "leaf", HIDDEN_EDGE | {"adjacency": 0.7}),
    )
    found = licence_changes(
        ModelGraph("g", {**NODES, "middle": {"hidden": True}}, edges), {"root": "gemma", "leaf": "mit"}
    )
    assert [one["probability"] for one in found if one["model"] == "leaf"] == [0.4]


def test_a_stricter_ancestor_is_named_with_what_it_asks() -> None:
    found = changes(root="cc-by-nc-4.0", middle="mit", leaf="mit", twin="cc-by-nc-4.0")
    assert set(found) == {("middle", "root"), ("leaf", "root"), ("twin", "middle"), ("side", "root")}
    assert found["middle", "root"]["asks"] == [NONCOMMERCIAL, CHANGED] and "mit" in found["middle", "root"]["words"]
    assert f"{NONCOMMERCIAL} (section 2(a)(1))" in found["middle", "root"]["words"]
    assert found["leaf", "root"]["probability"] == 0.8 and "likely (80 %)" in found["leaf", "root"]["words"]
    assert found["side", "root"]["licence"] is None and found["side", "root"]["asks"] == [NONCOMMERCIAL, CHANGED]
    assert found["twin", "middle"]["asks"] == []  # another licence, which asks for nothing that the twin's does not


def test_the_same_licence_changes_nothing_and_a_more_permissive_ancestor_asks_for_nothing() -> None:
    assert not changes(root="gpl-3.0", middle="gpl-3.0", leaf="gpl-3.0", twin="gpl-3.0", side="gpl-3.0")
    found = changes(root="apache-2.0", middle="gemma", leaf="gemma", twin="gemma", side="apache-2.0")
    assert [(ends, one["asks"]) for ends, one in found.items()] == [(("middle", "root"), [])]


def test_two_lists_of_uses_and_two_share_alikes_are_not_one() -> None:
    found = changes(root="llama2", middle="gemma", leaf="gemma", twin="gemma", side="llama2")
    assert uses("Llama 2 Acceptable Use Policy") in found["middle", "root"]["asks"]
    found = changes(root="cc-by-sa-4.0", middle="gpl-3.0", leaf="cc-by-nc-sa-4.0", twin="gpl-3.0", side="cc-by-sa-4.0")
    assert found["middle", "root"]["asks"] == [same("CC BY-SA 4.0")]
    assert same("CC BY-SA 4.0") in found["leaf", "root"]["asks"]


def test_terms_that_one_text_has_and_its_like_has_not() -> None:
    assert LATEST in LICENCES["creativeml-openrail-m"].asks and LATEST not in LICENCES["openrail++"].asks
    assert {name for name, one in LICENCES.items() if EUROPE in one.asks} == {"llama3.2", "llama4"}
    improve = {name for name, one in LICENCES.items() if any("to improve other" in words for words in one.asks)}
    assert improve == {"llama2", "llama3"}  # the later ones dropped section 1.b.v
    assert "later version" in same("CC BY-SA 4.0") and "later version" not in same("GPL 2")


def test_what_is_not_in_the_table_is_not_known() -> None:
    found = changes(root="secret-1", middle="mit", leaf="mit", twin="mit", side="secret-1")
    assert found["middle", "root"]["asks"] is None and UNKNOWN in found["middle", "root"]["words"]
    assert licence_facts(GRAPH, {"root": "secret-1"})["known"] == {"secret-1": {"asks": None, "source": None}}
    assert not licence_changes(GRAPH, {})


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: MIT\n---\n", "mit"),
        ("---\nlicense: [mit, gemma]\n---\n", "mit and gemma"),
        ("---\nlicense: other\nlicense_name: house-rules\n---\n", "house-rules"),
        ("---\nlicense: {a: b}\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("no front matter", None),
    ],
)
def test_cards_declare_licences(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_said(place_of("m", str(tmp_path))).licence == licence


def test_every_licence_has_a_source_and_text_stays_text() -> None:
    assert all(one.source.startswith("https://") and all(one.asks.values()) for one in LICENCES.values())
    page = licences_html(licence_facts(GRAPH, {"root": "<script>", "leaf": "mit"}))
    assert "<script>" not in page and "&lt;script&gt;" in page and not licences_html({})


def test_page_json_and_terminal_tell_of_licences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = base(0)
    for name, weights, licence in (("root", root, "cc-by-nc-4.0"), ("child", moved(root, 1), "mit")):
        save_model(tmp_path / "models" / name, weights)
        (tmp_path / "models" / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    ended, out, err = run_here("mother", ["models"], partial(main, "recover"))
    assert not ended and "licences: 2 declared" in out, err
    assert "Licences along lines of descent" in (tmp_path / "results/recover/report.html").read_text()
    assert '"cc-by-nc-4.0"' in (tmp_path / "results/recover/summary.json").read_text()

"""Every export is read back by a parser of its own format; text from outside stays text."""

import io
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pydot
import pytest
from Bio import Phylo
from filelock import FileLock
from PIL import Image
from playwright.sync_api import Browser, Error, Page

from mother.graph.certainty import sure
from mother.graph.exports import to_dot, to_graphml, to_mermaid, to_newick
from mother.graph.model_graph import Edge, ModelGraph, read_model_graph
from mother.graph.pictures import draw_model_graph
from mother.graph.text import graph_text
from mother.io.files import write_figure
from mother.report.words import sentence

MERMAID = "mermaid@12.3.0"
ODD = [
    "plain",
    "with space",
    "quo'te",
    'dou"ble',
    "a\\b",
    "<script>alert(1)</script>",
    "ünï/cøde",
    "semi;colon:(x),[y]",
    "$math$",
    "%s {0}",
]


def facts(**more: object) -> dict:
    return {"kind": "fine-tune", "adjacency": 0.9, "arrow": 0.8, "direction": "known", "relative_change": 0.05} | more


@pytest.fixture
def graph() -> ModelGraph:
    """A chain of odd names, a merge, a hidden ancestor, copies and a loner."""
    nodes: dict[str, dict] = {name: {"tree": "0", "root": 0.1, "group": "g"} for name in ODD}
    nodes["merged"] = {"tree": "0", "aliases": ["copy one", "copy<two>"]}
    nodes["hidden parent of x, y"] = {"tree": "1", "hidden": True, "private": 0.2}
    nodes |= {"x": {"tree": "1"}, "y": {"tree": "1"}, "loner": {"tree": "2"}}
    edges = [
        Edge(one, other, facts(direction="unknown" if one == "a\\b" else "known")) for one, other in zip(ODD, ODD[1:])
    ]
    merge = {"kind": "merge", "adjacency": 1.0, "arrow": 1.0, "direction": "known", "coefficients": [0.3, 0.7]}
    edges += [Edge(ODD[1], "merged", merge), Edge(ODD[4], "merged", merge)]
    edges += [Edge("hidden parent of x, y", end, {"kind": None, "direction": "known", "hidden": True}) for end in "xy"]
    return ModelGraph("odd <names>", nodes, tuple(edges), {"broken": "NaN"})


def test_json_loads_back(graph: ModelGraph, tmp_path: Path) -> None:
    graph.write(tmp_path / "g.json")
    assert read_model_graph(tmp_path / "g.json") == graph


def test_graphml(graph: ModelGraph) -> None:
    found = nx.read_graphml(io.BytesIO(to_graphml(graph).encode()))
    assert set(found.nodes) == set(graph.nodes) and set(found.edges) == {(e.parent, e.child) for e in graph.edges}
    assert (
        found.edges["plain", "with space"]["adjacency"] == 0.9
        and found.nodes["hidden parent of x, y"]["hidden"] is True
    )
    odd = ModelGraph("g", {"a\x00\ud800b": {"tree": "0"}}, ())
    assert list(nx.read_graphml(io.BytesIO(to_graphml(odd).encode())).nodes) == ["a\ufffd\ufffdb"]


def test_newick(graph: ModelGraph) -> None:
    trees = list(Phylo.parse(io.StringIO(to_newick(graph)), "newick"))
    assert len(trees) == 3
    chain = {clade.name: clade for clade in trees[0].find_clades()}
    assert set(chain) == {*ODD, "merged"}
    assert [clade.name for clade in trees[0].get_path("$math$")] == ODD[1:-1]
    assert chain["with space"].branch_length == 0.05 and chain["merged"].branch_length == 0
    assert "kind=fine-tune" in chain["with space"].comment and "arrow=0.8" in chain["with space"].comment
    assert {clade.name for clade in trees[1].get_terminals()} == {"x", "y"}


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_dot(graph: ModelGraph) -> None:
    (found,) = pydot.graph_from_dot_data(to_dot(graph))
    assert len(found.get_edges()) == len(graph.edges)
    plain = {name.replace("\\", "\\\\").replace('"', '\\"') for name in graph.nodes}
    assert {node.get_name().strip('"') for node in found.get_nodes()} - {"node"} == plain


def test_mermaid_has_no_markup(graph: ModelGraph) -> None:
    text = to_mermaid(graph)
    assert text.startswith("flowchart LR\n") and "<" not in text and "script" in text
    assert text.count("-->") + text.count("-.->") + text.count("---") == len(graph.edges)
    quoted = [line for line in text.splitlines() if "[" in line]
    assert all(line.count('"') == 2 for line in quoted)


@pytest.fixture(scope="module")
def mermaid(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A page with Mermaid itself, from its npm package, which is kept for the next run."""
    folder = request.config.cache.mkdir("mermaid")
    script = folder / "package" / "dist" / "mermaid.min.js"
    with FileLock(folder / ".lock"):  # another worker may fetch it at this moment
        if not script.exists():
            npm = shutil.which("npm")
            if npm is None:
                pytest.skip("needs Mermaid: install npm, or ignore this")
            done = subprocess.run([npm, "pack", MERMAID, "--silent"], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"Mermaid could not be fetched with npm: {done.stderr.strip()[-200:]}")
            with tarfile.open(folder / done.stdout.split()[-1]) as package:
                package.extractall(folder, filter="data")
    page = browser.new_page()
    page.add_script_tag(path=str(script))
    yield page
    page.close()


# What a model card gets, drawn by what draws model cards.
DRAW = """async text => {
    mermaid.initialize({ startOnLoad: false });
    await mermaid.parse(text);
    document.body.innerHTML = (await mermaid.render("drawn", text)).svg;
    const texts = query => [...document.querySelectorAll(query)].map(one => one.textContent.trim());
    return { nodes: texts("g.node"), edges: texts("g.edgeLabel").filter(Boolean),
             markup: document.body.querySelectorAll("script, img").length };
}"""


@pytest.mark.slow
def test_mermaid_draws_it(graph: ModelGraph, mermaid: Page) -> None:
    found = mermaid.evaluate(DRAW, to_mermaid(graph))
    expected = [
        "hidden" if facts.get("hidden") else " = ".join([name, *facts.get("aliases", ())])
        for name, facts in graph.nodes.items()
    ]
    assert sorted(found["nodes"]) == sorted(expected) and not found["markup"]
    assert len(set(found["edges"])) <= len(graph.edges) and any("fine-tune" in label for label in found["edges"])


@pytest.mark.slow
def test_mermaid_refuses_what_is_wrong(mermaid: Page) -> None:
    with pytest.raises(Error, match="(?i)parse error"):
        mermaid.evaluate(DRAW, 'flowchart LR\n  n0["open\n')


def test_pictures(graph: ModelGraph, tmp_path: Path) -> None:
    figure = draw_model_graph(graph)
    for kind in ("svg", "png"):
        write_figure(tmp_path / f"t.{kind}", figure)
    assert ElementTree.parse(tmp_path / "t.svg").getroot().tag.endswith("svg")
    with Image.open(tmp_path / "t.png") as picture:
        picture.load()
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0, 114, 178), (213, 94, 0)} <= colours  # fine-tunes and merges were drawn


def test_empty_and_single_graphs() -> None:
    single = ModelGraph("one", {"only": {"tree": "0"}}, ())
    assert to_newick(single) == "'only';\n" and "only" in to_mermaid(single)
    draw_model_graph(single)


def test_one_wording_for_one_probability_in_every_text(graph: ModelGraph) -> None:
    said = "parent and child: likely (90 %), parent first: likely (80 %)"
    assert sure(0.9) in said and sure(0.8) in said
    for text in (graph_text(graph), to_mermaid(graph), to_dot(graph), sentence(facts(), "a", "b").replace(". ", ", ")):
        assert "likely (90 %)" in text and "likely (80 %)" in text and "0.90" not in text
    assert all(said in text for text in (graph_text(graph), to_mermaid(graph).replace("#37;", "%"), to_dot(graph)))

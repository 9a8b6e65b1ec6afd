"""The report in a real browser: no error, nothing fetched, evidence where it belongs, quick with a thousand models."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_model
from playwright.sync_api import Browser, Page
from test_heritage import base, halved, moved

from mother.collection.audit import audit_of
from mother.collection.find import search, with_claims
from mother.collection.workspace import recover_sources
from mother.graph.model_graph import read_model_graph
from mother.report.html import page
from mother.report.write import write_outputs

HOSTILE = "<img src=x onerror=window.hacked=1>"
SCRIPT = "</script><script>window.hacked=1</script>"


class Watched:
    """A page that notes whatever goes wrong in it, and whatever it asks for."""

    def __init__(self, browser: Browser, path: Path, scheme: str = "light"):
        self.page: Page = browser.new_page(viewport={"width": 1400, "height": 850}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=true]")

    def details(self) -> str:
        return self.page.inner_text("#details")

    def node(self, name: str) -> str:
        return f'g.node[aria-label^="{name}"]'


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family with a LoRA, a cast, a copy, claims, hostile names and cards, and one that is left out."""
    folder = tmp_path_factory.mktemp("report")
    root = base(0)
    tuned = moved(root, 1)
    models = {"root": root, "tuned": tuned, "lora": moved(tuned, 2, rank=2), "cast": halved(tuned), "copy": dict(root)}
    models |= {HOSTILE: moved(root, 4), "other": base(9)}
    for name, weights in models.items():
        save_model(folder / "models" / name, weights)
    save_model(folder / "models" / "<i>broken", {"x": torch.ones(2)})
    for name, parent in {"tuned": "root", "other": f"root{HOSTILE}", "lora": "other", HOSTILE: SCRIPT}.items():
        (folder / "models" / name / "README.md").write_text(f"---\nbase_model: {json.dumps(parent)}\n---\n")
    recovered = recover_sources(
        with_claims(search([str(folder / "models")])).sources, folder / "out", torch.device("cpu")
    )
    write_outputs(recovered, folder / "out", audit_of(recovered), f"Models {SCRIPT}")
    return folder / "out" / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_an_error_and_asks_for_nothing(scheme: str, report: Path, browser: Browser) -> None:
    watched = Watched(browser, report, scheme)
    assert watched.asked == [report.as_uri()] and not watched.wrong
    assert watched.page.get_attribute("html", "data-theme") == scheme
    for tab in ("edges", "distances", "audit", "left", "tree"):
        watched.page.click(f"#tab-{tab}")
        assert [
            view for view in ("edges", "distances", "audit", "left", "tree") if watched.page.is_visible(f"#view-{view}")
        ] == [tab]
    watched.page.click("#theme")
    assert watched.page.get_attribute("html", "data-theme") != scheme
    assert not watched.wrong and report.stat().st_size < 600_000


@pytest.mark.slow
def test_what_comes_from_models_stays_text(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    assert watched.page.title() == f"Models {SCRIPT}"
    for tab in ("edges", "distances", "audit", "left", "tree"):
        watched.page.click(f"#tab-{tab}")
    watched.page.fill("#search", "img src")
    watched.page.press("#search", "Enter")
    assert HOSTILE in watched.details()
    assert watched.page.evaluate("window.hacked") is None and watched.page.locator("img").count() == 0
    watched.page.click("#tab-audit")
    assert f"root{HOSTILE}" in watched.page.inner_text("#view-audit")
    assert not watched.wrong and watched.asked == [report.as_uri()]


@pytest.mark.slow
def test_search_collapse_and_evidence(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    page = watched.page
    nodes = page.locator("g.node")
    assert nodes.count() == 6
    page.fill("#search", "lora")
    assert page.inner_text("#found") == "1 found" and page.locator("g.node.match").count() == 1
    page.press("#search", "Enter")
    text = watched.details()
    assert "tuned → lora" in text and "rank" in text and "For this to be wrong" in text
    assert (
        re.search(r"rounding, log likelihood ratio\s+\+\d", text) and "contradicted" in text
    )  # its card names another
    page.fill("#search", "")
    page.click("#collapse")
    assert nodes.count() == 2  # two roots
    page.dblclick(watched.node("copy = root"))
    assert nodes.count() == 4
    page.click("#expand")
    assert nodes.count() == 6
    # The evidence is that of the edge which is clicked.
    page.locator("path.hit").filter(has=page.locator("title", has_text="tuned → cast")).dispatch_event("click")
    assert "tuned → cast" in watched.details() and "bfloat16" in watched.details()
    page.click(watched.node("copy = root"))
    assert "No parent in this collection" in watched.details() and "Copies" in watched.details()
    assert not watched.wrong


@pytest.mark.slow
def test_keys_and_roles(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    page = watched.page
    assert page.get_attribute("#tree svg", "role") == "tree"
    first = page.locator('g.node[tabindex="0"]')
    assert first.count() == 1
    first.focus()
    seen = set()
    for _ in range(6):
        seen.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        page.keyboard.press("ArrowDown")
    assert len(seen) == 6 and any("from tuned: lora rank 2" in label for label in seen)
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator("g.node.chosen").count() == 1
    root = page.locator(watched.node("copy = root"))
    root.focus()
    assert root.get_attribute("aria-expanded") == "true"
    page.keyboard.press("ArrowLeft")
    assert root.get_attribute("aria-expanded") == "false" and page.locator("g.node").count() == 2
    page.keyboard.press("ArrowRight")
    assert root.get_attribute("aria-expanded") == "true"
    page.click("#tab-distances")
    page.focus("#heat")
    page.keyboard.press("ArrowRight")
    assert re.search(r"–.*: [\d.]+", page.inner_text("#cell"))
    page.focus("#tab-distances")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#view-audit")
    assert not watched.wrong


@pytest.mark.slow
def test_edges_can_be_sorted(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    watched.page.click("#tab-edges")
    for column in (2, 2):
        watched.page.locator("#view-edges th button").nth(column).click()
    kinds = watched.page.locator("#view-edges tbody td:nth-child(3)").all_inner_texts()
    assert kinds == sorted(kinds, reverse=True) and len(set(kinds)) == 3
    watched.page.locator("#view-edges tbody tr").first.click()
    assert "tuned → lora" in watched.details()


def thousand() -> dict:
    """A report of 1,000 models in 20 trees, each edge with the evidence of 72 matrices."""
    nodes, edges = [], []
    for k in range(1000):
        tree, place = divmod(k, 50)
        nodes.append({"id": f"organisation/model-{k:04}", "tree": str(tree), "group": "g", "root": 0.1})
        if place:
            parent = 50 * tree + (place - 1) // 3
            layers = [[row, 1 / 72, -1, round(((row * k) % 97) / 97, 3), 0.0] for row in range(72)]
            evidence = {"relatedness": 99.5, "distance": 0.05, "compared": 1.0, "newness": 0.4, "newness_t": 12.0}
            evidence |= {"rounding": None, "equal": 0.0, "layers_changed": 72, "layers_compared": 72, "layers": layers}
            edge = {
                "parent": nodes[parent]["id"],
                "child": nodes[k]["id"],
                "words": "fine-tune, 0.99/0.95",
                "kind": "fine-tune",
            }
            edge |= {"adjacency": 0.99, "arrow": 0.95, "direction": "known", "attributes": {}, "wrong_if": ["words"]}
            edges.append(edge | {"evidence": evidence})
    data = {
        "title": "1,000 models",
        "counts": "1000 models",
        "nodes": nodes,
        "edges": edges,
        "heat": [],
        "heat_low": -4,
    }
    return data | {
        "heat_high": 0,
        "audit": None,
        "left_out": [],
        "not_read": [],
        "notes": [],
        "layers": [f"{row}.query" for row in range(72)],
    }


@pytest.mark.slow
def test_a_thousand_models_are_quick(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "report.html").write_text(page(thousand()), encoding="utf-8")
    Watched(browser, tmp_path / "report.html").page.close()  # the browser's own start is not what is measured
    watched = Watched(browser, tmp_path / "report.html")
    timing = "performance.getEntriesByType('navigation')[0].domInteractive"
    assert watched.page.evaluate(timing) < 2000
    assert watched.page.locator("g.node").count() == 1000
    act = """() => { const start = performance.now(); const box = document.getElementById('search');
        box.value = 'model-0777'; box.dispatchEvent(new Event('input')); document.getElementById('collapse').click();
        document.getElementById('expand').click(); document.body.getBoundingClientRect();
        return performance.now() - start; }"""
    assert watched.page.evaluate(act) < 2000
    assert watched.page.inner_text("#found") == "1 found" and not watched.wrong


def test_the_data_is_that_of_the_graph(report: Path) -> None:
    found = json.loads(re.search(r'id="data">(.*?)</script>', report.read_text(encoding="utf-8"), re.DOTALL)[1])
    graph = read_model_graph(report.parent / "model_graph.json")
    assert {edge["child"]: edge["kind"] for edge in found["edges"]} == {
        "tuned": "fine-tune",
        "lora": "lora",
        "cast": "cast",
        HOSTILE: "fine-tune",
    }
    shown = {(edge["parent"], edge["child"]): (edge["adjacency"], edge["arrow"]) for edge in found["edges"]}
    assert shown == {
        (edge.parent, edge.child): (edge.attributes["adjacency"], edge.attributes["arrow"]) for edge in graph.edges
    }
    assert {node["id"] for node in found["nodes"]} == set(graph.nodes)
    assert [name for name, _ in found["left_out"]] == list(graph.left_out) == ["<i>broken"]
    # Distances are a square of bytes: to a copy the smallest that there is, then to a child, then to a stranger.
    (heat,) = found["heat"]
    cells = np.frombuffer(base64.b64decode(heat["cells"]), dtype=np.uint8).reshape(7, 7)
    assert sorted(heat["models"]) == sorted(["root", "copy", "tuned", "lora", "cast", HOSTILE, "other"])
    assert (cells == cells.T).all() and (cells.diagonal() == 0).all()
    place = {model: at for at, model in enumerate(heat["models"])}
    of_root = cells[place["root"]]
    assert of_root[place["copy"]] <= 1 < of_root[place["tuned"]] < of_root[place["other"]] < 255

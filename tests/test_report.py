"""The report in a real browser: no error, nothing fetched, evidence where it belongs, quick with many models."""

import base64
import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import save_model
from PIL import Image
from playwright.sync_api import Browser, Page
from test_heritage import base, halved, moved

from benchmarks.page import collection
from mother.collection.audit import audit_of
from mother.collection.find import search, with_claims
from mother.collection.workspace import recover_sources
from mother.graph.certainty import percent
from mother.graph.model_graph import read_model_graph
from mother.report import html
from mother.report.html import to_html
from mother.report.write import write_outputs

HOSTILE = "<img src=x onerror=window.hacked=1>"
SCRIPT = "</script><script>window.hacked=1</script>"


class Watched:
    """A page that notes whatever goes wrong in it, and whatever it asks for."""

    def __init__(self, browser: Browser, path: Path, scheme: str = "light", hash: str = "", size: tuple = (1400, 850)):
        self.page: Page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri() + hash)
        self.page.wait_for_selector("html[data-ready=true]")

    def details(self) -> str:
        return self.page.inner_text("#details")

    def tree(self) -> None:
        self.page.click("#tab-tree")

    def node(self, name: str) -> str:
        return f'g.node[aria-label^="{name}"]'


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family with a LoRA, a cast, a copy, claims, hostile names and cards, and one that is left out."""
    folder = tmp_path_factory.mktemp("report")
    root = base(0)
    tuned = moved(root, 1)
    models = {"root": root, "tuned": tuned, "lora": moved(tuned, 2, rank=2), "cast": halved(tuned), "copy": dict(root)}
    merged = {name: (value + models["lora"][name]) / 2 for name, value in moved(root, 7).items()}
    models |= {HOSTILE: moved(root, 4), "other": base(9), "side": moved(root, 7), "merged": merged}
    for name, weights in models.items():
        save_model(folder / "models" / name, weights)
    save_model(folder / "models" / "<i>broken", {"x": torch.ones(2)})
    for name, parent in {"tuned": "root", "other": f"root{HOSTILE}", "lora": "other", HOSTILE: SCRIPT}.items():
        (folder / "models" / name / "README.md").write_text(f"---\nbase_model: {json.dumps(parent)}\n---\n")
    recovered = recover_sources(
        with_claims(search([str(folder / "models")])).sources, folder / "out", torch.device("cpu")
    )
    write_outputs(recovered, folder / "out", audit_of(recovered), f"Models {SCRIPT}", "recover.py models")
    return folder / "out" / "report.html"


VIEWS = ("summary", "tree", "edges", "distances", "audit", "files", "left")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_on_a_summary_without_an_error_and_asks_for_nothing(
    scheme: str, report: Path, browser: Browser
) -> None:
    watched = Watched(browser, report, scheme)
    page = watched.page
    assert watched.asked == [report.as_uri()] and not watched.wrong
    assert page.get_attribute("html", "data-theme") == scheme
    assert page.is_visible("#view-summary") and not page.is_visible("#view-picture")
    text = page.inner_text("#view-summary")
    found = json.loads((report.parent / "summary.json").read_text(encoding="utf-8"))
    for words in (
        found["findings"],
        found["date"],
        found["command"],
        found["code"],
        *found["limits"],
        *found["glossary"],
    ):
        assert words in text
    assert all(edge["words"] in text for edge in found["least_certain"]) and len(found["least_certain"]) <= 5
    # Contradictions come before all else.
    assert found["contradictions"] and text.index("Contradicted") < text.index("Edges by kind")
    for tab in VIEWS:
        page.click(f"#tab-{tab}")
        assert [view for view in VIEWS if page.is_visible(f"#view-{view}")] == [tab]
    digests = {file["sha256"] for files in found["files"].values() for file in files}
    assert len(found["files"]) == 9 and digests
    page.click("#tab-files")
    assert all(digest in page.inner_text("#view-files") for digest in digests)
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") != scheme
    assert not watched.wrong and report.stat().st_size < 300_000


@pytest.mark.slow
def test_what_comes_from_models_stays_text(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    assert watched.page.title() == f"Models {SCRIPT}"
    for tab in VIEWS:
        watched.page.click(f"#tab-{tab}")
    watched.page.fill("#search", "img src")
    watched.page.press("#search", "Enter")
    assert HOSTILE in watched.details()
    assert watched.page.evaluate("window.hacked") is None and watched.page.locator("img").count() == 0
    watched.page.click("#tab-audit")
    assert f"root{HOSTILE}" in watched.page.inner_text("#view-audit")
    assert not watched.wrong and watched.asked == [report.as_uri()]


@pytest.mark.slow
def test_without_javascript(report: Path, browser: Browser) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(report.as_uri())
    for view in ("summary", "picture", "edges", "audit", "files", "left"):
        assert page.is_visible(f"#view-{view}")
    assert not page.is_visible("#search") and not page.is_visible("#view-tree")
    words = page.locator("#view-picture svg text").all_text_contents()
    assert {"tuned", "lora", "merged"} <= {word.split(" ×")[0].removesuffix(" ✗") for word in words} and any(
        " ×2" in word for word in words
    )
    assert page.locator("#edge-table tbody tr").count() == len(
        read_model_graph(report.parent / "model_graph.json").edges
    )
    assert page.locator("img").count() == 0
    # Without the script the kinds of lines are told, and the shares of a merge are in the table.
    told = page.locator(".legend li").all_inner_texts()
    assert {"fine-tune", "lora", "cast", "merge"} <= set(told) and any(one.startswith("✗") for one in told)
    assert page.locator("#edge-table tr", has_text="merge, share 0.50").count() == 2
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(255, 255, 255)"
    dark = browser.new_page(java_script_enabled=False, color_scheme="dark")
    dark.goto(report.as_uri())
    assert dark.evaluate(back) == "rgb(20, 24, 27)"


@pytest.mark.slow
def test_print(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report, "dark")
    watched.tree()
    page = watched.page
    page.emulate_media(media="print")
    shown = [view for view in (*VIEWS, "picture") if page.is_visible(f"#view-{view}")]
    assert set(shown) == {"summary", "picture", "edges", "audit", "files", "left"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
    rules = "[...document.styleSheets].flatMap((one) => [...one.cssRules]).map((one) => one.cssText).join(' ')"
    assert "counter(page)" in page.evaluate(rules)
    # Each name of a file on one line; heads of tables, which are painted on every page only so.
    files = "[...document.querySelectorAll('#claims td:nth-child(3)')].filter((one) => one.textContent === 'README.md')"
    lines = (
        "(one) => { const it = document.createRange(); it.selectNodeContents(one); return it.getClientRects().length; }"
    )
    heights = page.evaluate(f"{files}.map({lines})")
    assert heights and set(heights) == {1}
    assert page.evaluate("getComputedStyle(document.querySelector('#edge-table th button')).display") == "contents"
    wide = page.evaluate("[...document.querySelectorAll('figure svg')].map((one) => one.getBoundingClientRect().width)")
    assert wide and max(wide) <= page.evaluate("document.documentElement.clientWidth")
    assert not watched.wrong


@pytest.mark.slow
@pytest.mark.parametrize(("models", "family"), [(102, 25), (250, 250), (1000, 1000)])
def test_a_printed_family_can_be_read(models: int, family: int, tmp_path: Path, browser: Browser) -> None:
    data = collection(models, family)
    (tmp_path / "report.html").write_text(to_html(data), encoding="utf-8")
    page = Watched(browser, tmp_path / "report.html", size=(703, 1009)).page  # A4 without its margins
    page.emulate_media(media="print")
    points = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map((one) => 12 * one.getScreenCTM().a * 72 / 96)"
    )
    assert min(points) >= 6 and (len(points) > models // 100 if family > 100 else len(points) == 5)
    heights = "[...document.querySelectorAll('figure')].map((one) => one.getBoundingClientRect().height)"
    assert max(page.evaluate(heights)) < 1009  # each on one page
    names = page.evaluate("[...document.querySelectorAll('figure svg text')].map((one) => one.textContent)")
    assert {re.sub(r" \(parts? .*\)$", "", name) for name in names} >= {node["label"] for node in data["nodes"]}
    sheets = len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True)))
    assert sheets >= len(points) // 2


@pytest.mark.slow
def test_search_lights_the_way_to_the_root_and_fades_the_rest(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    page = watched.page
    page.fill("#search", "lora")
    assert page.inner_text("#found") == "1 found" and page.is_visible("#view-tree")
    page.fill("#search", "cast")
    lit = page.locator("g.node.lit").evaluate_all("all => all.map((one) => one.querySelector('text').textContent)")
    graph = read_model_graph(report.parent / "model_graph.json").to_networkx()
    assert set(lit) == {"cast", *nx.ancestors(graph, "cast")} and page.locator("g.edge.lit").count() == len(lit) - 1
    assert page.locator("g.node.faint").count() == page.locator("g.node").count() - len(lit)
    assert page.locator("g.edge.faint").count() == page.locator("g.edge").count() - len(lit) + 1
    page.press("#search", "Enter")
    text = watched.details()
    assert "tuned → cast" in text and "For this to be wrong" in text and "rounded to bfloat16" in text
    assert "newness" not in text  # which took no part
    page.fill("#search", "")
    assert page.locator("g.faint").count() == 0 and not watched.wrong


@pytest.mark.slow
def test_the_evidence_is_that_of_the_edge(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    watched.tree()
    page, nodes = watched.page, watched.page.locator("g.node")
    everything = nodes.count()
    assert everything == 8  # seven nodes with relatives and one without
    page.click("#collapse")
    assert nodes.count() == 2
    page.dblclick(watched.node("copy = root"))
    assert nodes.count() > 3
    page.click("#expand")
    assert nodes.count() == everything
    page.locator("path.hit").filter(has=page.locator("title", has_text="tuned → lora")).dispatch_event("click")
    text = watched.details()
    assert "tuned → lora" in text and re.search(r"\+[\d.]+\s+the rounding errors", text)
    assert "contradicted" in text  # its card names another
    page.click(watched.node("copy = root"))
    assert "No parent in this collection" in watched.details() and "Copies" in watched.details()
    assert not watched.wrong


@pytest.mark.slow
def test_merges_stand_right_of_their_parents_and_say_shares(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    watched.tree()
    left = {
        name: watched.page.locator(watched.node(f"{name}, from")).bounding_box()["x"]
        for name in ("merged", "lora", "side")
    }
    assert left["merged"] > max(left["lora"], left["side"])
    assert watched.page.locator("text.share").all_text_contents() == ["0.50", "0.50"]


OVERLAPS = """() => {
    const boxes = [...document.querySelectorAll('g.node > text')].map((one) => one.getBoundingClientRect());
    let wrong = 0;
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
        if (a.left < b.right - 1 &&
            b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4) wrong += 1; }));
    for (const line of document.querySelectorAll('g.edge path.line')) {
        const matrix = line.getScreenCTM(), length = line.getTotalLength();
        for (let at = 0; at <= length; at += 3) {
            const point = line.getPointAtLength(at).matrixTransform(matrix);
            if (boxes.some((b) => point.x > b.left &&
                point.x < b.right && point.y > b.top + 2 && point.y < b.bottom - 2)) wrong += 1;
        }
    }
    return wrong;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("models", [None, 120])
def test_no_name_is_struck_through(models: int | None, report: Path, browser: Browser, tmp_path: Path) -> None:
    path = report
    if models is not None:
        path = tmp_path / "report.html"
        path.write_text(to_html(collection(models, family=60)), encoding="utf-8")
    watched = Watched(browser, path)
    watched.tree()
    assert watched.page.locator("g.node > text").count() and watched.page.evaluate(OVERLAPS) == 0
    box = watched.page.locator("#tree svg.whole").bounding_box()
    for node in watched.page.locator("g.node").all():
        inside = node.bounding_box()
        assert box["y"] <= inside["y"] and inside["y"] + inside["height"] <= box["y"] + box["height"]  # it opens fitted


SEEN = """() => {
    const window = document.querySelector('#tree svg.whole').getBoundingClientRect();
    const names = [...document.querySelectorAll('g.node > text:not(.chip)')].map((one) => ({
        pixels: parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a, box: one.getBoundingClientRect() }));
    return [Math.min(...names.map((one) => one.pixels)), names.length, names.filter(({ box }) => box.left >= window.left
        && box.right <= window.right && box.top >= window.top && box.bottom <= window.bottom).length];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1400, 850), (1024, 700)])
@pytest.mark.parametrize(
    ("models", "family"), [(102, 10), (102, 25), (102, 102), (1000, 50), (1000, 250), (1000, 1000)]
)
def test_what_it_opens_with_can_be_read(
    models: int, family: int, size: tuple[int, int], tmp_path: Path, browser: Browser
) -> None:
    (tmp_path / "report.html").write_text(to_html(collection(models, family)), encoding="utf-8")
    watched = Watched(browser, tmp_path / "report.html", size=size)
    watched.tree()
    pixels, names, seen = watched.page.evaluate(SEEN)
    assert pixels >= 9 and names == seen and names >= 20
    if names < models:
        assert watched.page.locator("g.node.closed .chip").first.text_content().startswith("+")
    watched.page.set_viewport_size({"width": size[0] + 300, "height": size[1] + 200})
    watched.page.wait_for_timeout(200)
    larger, names, seen = watched.page.evaluate(SEEN)
    assert larger > pixels and names == seen  # it stays fitted until somebody moves it
    before = watched.page.locator("g.node").first.bounding_box()
    watched.page.locator("g.node").first.dispatch_event("dblclick")  # it closes, or opens, and stays where it is
    after = watched.page.locator("g.node").first.bounding_box()
    middle = before["y"] + before["height"] / 2 - after["y"] - after["height"] / 2
    assert abs(before["x"] - after["x"]) < 3 and abs(middle) < 3
    watched.page.click("#expand")
    assert watched.page.locator("g.node").count() == models and watched.page.evaluate(TEXTS) == 0 and not watched.wrong


@pytest.mark.slow
def test_on_a_phone_the_list_can_be_read(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(collection(1000, 250)), encoding="utf-8")
    watched = Watched(browser, tmp_path / "report.html", size=(390, 780))
    watched.tree()
    texts = "[...document.querySelectorAll('#list button, #list small')]"
    sizes = f"{texts}.map((one) => parseFloat(getComputedStyle(one).fontSize))"
    assert watched.page.locator("#list button").count() == 1000 and min(watched.page.evaluate(sizes)) >= 11


TEXTS = """() => {
    document.querySelector('#tree svg.whole > g').removeAttribute('transform');
    const boxes = [...document.querySelectorAll('text.share, text.doubt, g.node > text')].map((one) => {
        const box = one.getBoundingClientRect();
        const node = one.parentNode.classList.contains('node');
        return { node, left: box.left, right: box.right, top: box.top, bottom: box.bottom };
    });
    let wrong = 0;
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
        const least = a.node && b.node ? 4 : 1;
        if (a.left < b.right - 1 && b.left < a.right - 1 &&
            a.top < b.bottom - least && b.top < a.bottom - least) wrong += 1; }));
    return wrong;
}"""


@pytest.mark.slow
def test_no_text_lies_on_another(browser: Browser, tmp_path: Path) -> None:
    data = collection(1000, family=250)
    (tmp_path / "report.html").write_text(to_html(data), encoding="utf-8")
    watched = Watched(browser, tmp_path / "report.html")
    watched.tree()
    shown = watched.page.locator("g.node").count()
    assert 40 < shown <= 160 and watched.page.locator("g.node.closed .chip").first.text_content().startswith("+")
    watched.page.click("#expand")
    assert watched.page.locator("g.node").count() == 1000
    merges = sum(edge.get("coefficient") is not None for edge in data["edges"])
    assert watched.page.evaluate(TEXTS) == 0
    assert watched.page.locator("text.share").count() > 0.9 * merges > 100  # the rest is told beside the evidence
    edge = next(edge for edge in data["edges"] if edge.get("coefficient") is not None)
    watched.page.evaluate(f"location.hash = 'edge=' + encodeURIComponent('{edge['parent']}..{edge['child']}')")
    watched.page.wait_for_function("document.getElementById('details').innerText.includes('share of this parent')")


@pytest.mark.slow
def test_uncertainty_is_seen(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(collection(40, family=40)), encoding="utf-8")
    watched = Watched(browser, tmp_path / "report.html")
    watched.tree()
    page, data = watched.page, collection(40, family=40)
    unknown = [edge for edge in data["edges"] if edge["arrow"] < 0.75]
    doubt = [edge for edge in data["edges"] if min(edge["arrow"], edge["adjacency"]) < 0.75]
    assert 0 < len(unknown) < len(data["edges"])
    assert page.locator("path.head").count() == len(data["edges"]) - len(unknown)
    assert page.locator("text.doubt").count() == len(doubt)
    opacity = page.locator("g.edge").evaluate_all("all => all.map((one) => Number(one.getAttribute('opacity')))")
    assert len(set(opacity)) > 3 and min(opacity) >= 0.3 and max(opacity) <= 1
    slide = "() => { const box = document.getElementById('threshold'); box.value = 90; "
    page.evaluate(slide + "box.dispatchEvent(new Event('input')); }")
    assert page.locator("g.edge.faint").count() == sum(edge["adjacency"] < 0.9 for edge in data["edges"]) > 0
    kind = data["edges"][0]["kind"]
    page.locator("#legend button").filter(has_text=kind).click()
    assert page.locator("g.edge.off").count() == sum(edge["kind"] == kind for edge in data["edges"])
    page.select_option("#colour", "format")
    assert "safetensors" in page.inner_text("#legend")
    assert not watched.wrong


@pytest.mark.parametrize(("adjacency", "arrow", "marks"), [(0.9, 0.9, 0), (0.6, 0.9, 1), (0.9, 0.6, 1)])
def test_uncertainty_is_seen_in_print(adjacency: float, arrow: float, marks: int) -> None:
    data = collection(2, family=2)
    (edge,) = data["edges"]
    edge |= {"adjacency": adjacency, "arrow": arrow}
    assert to_html(data).count(">?</text>") == marks


@pytest.mark.slow
def test_permalinks(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report, hash="#edge=tuned..lora")
    assert watched.page.is_visible("#view-tree") and "tuned → lora" in watched.details()
    watched.page.click(watched.node("cast"))
    assert watched.page.evaluate("location.hash") == "#model=cast"
    watched.page.evaluate("location.hash = '#model=lora'")
    watched.page.wait_for_function("document.getElementById('details').innerText.includes('tuned → lora')")
    assert not Watched(browser, report, hash="#model=%E0%A4%A").wrong
    nodes = read_model_graph(report.parent / "model_graph.json").nodes
    node, copy = next((model, facts["aliases"][0]) for model, facts in nodes.items() if facts.get("aliases"))
    copied = Watched(browser, report, hash=f"#model={copy}")
    assert copied.page.is_visible("#view-tree") and f"{node} = {copy}" in copied.details()


@pytest.mark.slow
def test_the_summary_leads_to_the_evidence(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    assert not watched.page.is_visible("#details")  # nothing is shown beside a summary that nobody asked about
    link = watched.page.locator("#view-summary li a").first
    words = link.inner_text()
    link.click()
    assert watched.page.is_visible("#view-tree") and words in watched.details()
    watched.page.click("#tab-summary")
    watched.page.click("#contradictions tbody tr")
    model = watched.page.inner_text("#contradictions tbody td")
    assert f"{model} says that it is from" in watched.details()
    watched.tree()
    marked = watched.page.locator("g.node.contradicted")
    assert [one.get_attribute("aria-label").split(",")[0] for one in marked.all()] == [model]
    assert "✗" in marked.first.text_content() and "contradicted" in watched.page.inner_text("#legend")
    assert f"{model} ✗" in watched.page.locator("#view-picture svg text").all_text_contents() and not watched.wrong


@pytest.mark.slow
def test_downloads(report: Path, browser: Browser, tmp_path: Path) -> None:
    watched = Watched(browser, report)
    watched.tree()
    got = {}
    for kind in ("svg", "png", "csv"):
        with watched.page.expect_download() as waiting:
            watched.page.click(f"#as-{kind}")
        got[kind] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(got[kind])
    texts = [one.text for one in ElementTree.parse(got["svg"]).iter("{http://www.w3.org/2000/svg}text")]
    assert "tuned" in texts and "lora" in texts and "var(--" not in got["svg"].read_text(encoding="utf-8")
    with Image.open(got["png"]) as image:
        assert image.size[0] > 400 and len(image.convert("RGB").getcolors(1 << 24)) > 20
    rows = list(csv.DictReader(got["csv"].read_text(encoding="utf-8").splitlines()))
    graph = read_model_graph(report.parent / "model_graph.json")
    assert {(row["parent"], row["child"]) for row in rows} == {(edge.parent, edge.child) for edge in graph.edges}
    shares = {row["parent"]: float(row["coefficient"]) for row in rows if row["child"] == "merged"}
    assert shares == pytest.approx({"lora": 0.5, "side": 0.5}, abs=0.01)
    assert not watched.wrong


@pytest.mark.slow
def test_a_phone_gets_a_list_and_a_sheet(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report, size=(390, 780))
    # Nothing of what comes first lies beside the screen, tabs and the table of contradictions included.
    first = "[...document.querySelectorAll('.tabs button, #contradictions td')]"
    assert max(watched.page.evaluate(f"{first}.map((one) => one.getBoundingClientRect().right)")) <= 390
    watched.tree()
    page = watched.page
    assert page.is_visible("#list") and not page.is_visible("#tree") and not page.is_visible("#details")
    indent = {
        button.inner_text().split("\n")[0].removesuffix(" ✗"): int(
            button.evaluate("one => parseInt(one.style.paddingLeft)")
        )
        for button in page.locator("#list button").all()
    }
    assert indent["lora"] > indent["tuned"] > min(indent.values()) and len(indent) == 8
    page.locator("#list button").filter(has_text="cast").first.click()
    assert page.is_visible("#details") and "tuned → cast" in watched.details()
    page.click("#sheet-close")
    page.fill("#search", "lora")
    left = [
        button.inner_text().split("\n")[0].removesuffix(" ✗") for button in page.locator("#list button:visible").all()
    ]
    assert "lora" in left and "tuned" in left and "cast" not in left and len(left) < len(indent)
    assert not page.is_visible("#details") and not watched.wrong


@pytest.mark.slow
def test_keys_and_roles(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    watched.tree()
    page = watched.page
    assert page.get_attribute("#tree svg.whole", "role") == "tree"
    first = page.locator('g.node[tabindex="0"]')
    assert first.count() == 1
    first.focus()
    seen = set()
    for _ in range(8):
        seen.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        page.keyboard.press("ArrowDown")
    assert len(seen) == 8 and any("from tuned: lora rank 2" in label for label in seen)
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
def test_the_page_says_a_probability_as_python_does(browser: Browser, tmp_path: Path) -> None:
    data = collection(30, family=30)
    values = [0.0049, 0.005, 0.2451, 0.2549, 0.7462, 0.7449, 0.845, 0.9467, 0.9549, 0.9949, 0.995, 1.0]
    for edge, value in zip(data["edges"], values):
        edge["adjacency"] = edge["arrow"] = value
    (tmp_path / "report.html").write_text(to_html(data), encoding="utf-8")
    page = Watched(browser, tmp_path / "report.html").page
    for edge, value in zip(data["edges"], values):
        page.evaluate(f"location.hash = 'edge={edge['parent']}..{edge['child']}'")
        page.wait_for_function(f"document.querySelector('#details h2')?.textContent.includes('{edge['child']}')")
        assert page.locator("#details .bar span:last-child").all_inner_texts() == [percent(value)] * 2


@pytest.mark.slow
def test_edges_can_be_sorted(report: Path, browser: Browser) -> None:
    watched = Watched(browser, report)
    watched.page.click("#tab-edges")
    for column in (2, 2):
        watched.page.locator("#view-edges th button").nth(column).click()
    kinds = watched.page.locator("#view-edges tbody td:nth-child(3)").all_inner_texts()
    assert kinds == sorted(kinds, reverse=True) and len(set(kinds)) == 4
    line = watched.page.locator("#view-edges tbody tr").first
    parent, child = (line.locator("td").nth(at).inner_text() for at in (0, 1))
    line.click()
    assert f"{parent} → {child}" in watched.details()


@pytest.mark.slow
@pytest.mark.parametrize(("models", "family", "limit"), [(1000, 50, 2000), (10_000, 500, 5000)])
def test_many_models_are_quick(models: int, family: int, limit: int, tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "report.html").write_text(to_html(collection(models, family)), encoding="utf-8")
    Watched(browser, tmp_path / "report.html").page.close()  # the browser's own start is not what is measured
    watched = Watched(browser, tmp_path / "report.html")
    watched.tree()
    assert watched.page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive") < limit
    assert 12 < watched.page.locator("g.node").count() < 300  # of each open family the first generations
    assert watched.page.locator("g.family").count() == models // family
    assert watched.page.locator("svg.minimap").count() == 1
    act = """() => { const start = performance.now(); const box = document.getElementById('search');
        box.value = 'model-00777'; box.dispatchEvent(new Event('input')); document.body.getBoundingClientRect();
        return performance.now() - start; }"""
    assert watched.page.evaluate(act) < limit
    assert watched.page.inner_text("#found") == "1 found" and not watched.wrong
    assert watched.page.locator("g.node.match").count() == 1
    if models == 1000:
        act = """() => { const start = performance.now(); document.getElementById('expand').click();
            document.body.getBoundingClientRect(); return performance.now() - start; }"""
        assert watched.page.evaluate(act) < limit and watched.page.locator("g.node").count() == 1000


@pytest.mark.parametrize("theme", [r":root \{", r':root\[data-theme="dark"\] \{'])
def test_colours_can_be_read(theme: str) -> None:
    """WCAG 2.1, 1.4.3: text in all colours has a contrast of 4.5 or more with page and panel."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear))

    css = (Path(html.__file__).parent / "assets" / "report.css").read_text(encoding="utf-8")
    block = re.search(theme + "(.*?)}", css, re.DOTALL)[1]
    colours = dict(re.findall("--([a-z-]+): (#[0-9a-f]{6})", block))
    for name in colours.keys() - {"back", "panel", "node", "line", "mark"}:
        for ground in ("back", "panel"):
            dark, bright = sorted((light(colours[name]), light(colours[ground])))
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def test_the_data_is_that_of_the_graph(report: Path) -> None:
    found = json.loads(re.search(r'id="data">(.*?)</script>', report.read_text(encoding="utf-8"), re.DOTALL)[1])
    graph = read_model_graph(report.parent / "model_graph.json")
    summary = json.loads((report.parent / "summary.json").read_text(encoding="utf-8"))
    assert {edge["child"]: edge["kind"] for edge in found["edges"]} == {
        "tuned": "fine-tune",
        "lora": "lora",
        "cast": "cast",
        HOSTILE: "fine-tune",
        "side": "fine-tune",
        "merged": "merge",
    }
    shown = {(edge["parent"], edge["child"]): (edge["adjacency"], edge["arrow"]) for edge in found["edges"]}
    assert shown == {
        (edge.parent, edge.child): (edge.attributes["adjacency"], edge.attributes["arrow"]) for edge in graph.edges
    }
    assert {node["id"] for node in found["nodes"]} == set(graph.nodes)
    assert [name for name in summary["left_out"]] == list(graph.left_out) == ["<i>broken"]
    # Distances are a square of bytes: to a copy the smallest that there is, then to a child, then to a stranger.
    (heat,) = found["heat"]
    cells = np.frombuffer(base64.b64decode(heat["cells"]), dtype=np.uint8).reshape(9, 9)
    assert sorted(heat["models"]) == sorted(
        ["root", "copy", "tuned", "lora", "cast", HOSTILE, "other", "side", "merged"]
    )
    assert (cells == cells.T).all() and (cells.diagonal() == 0).all()
    place = {model: at for at, model in enumerate(heat["models"])}
    of_root = cells[place["root"]]
    assert of_root[place["copy"]] <= 1 < of_root[place["tuned"]] < of_root[place["other"]] < 255


def test_kinds_that_are_new_words_are_drawn_by_their_first(browser: Browser, tmp_path: Path) -> None:
    data = collection(6, family=6)
    for edge, kind in zip(data["edges"], ("quantize (gguf Q4_K)", "adapter (rank 8)", "stitched (of 3)")):
        edge["kind"] = kind
    (tmp_path / "new.html").write_text(to_html(data), encoding="utf-8")
    watched = Watched(browser, tmp_path / "new.html")
    watched.tree()
    drawn = watched.page.eval_on_selector_all(
        "g.edge path.line", "all => all.map(one => [one.getAttribute('stroke'), one.getAttribute('stroke-dasharray')])"
    )
    found = {(stroke, dash) for stroke, dash in drawn}
    assert {("var(--quantize)", "4 3"), ("var(--lora)", "9 3"), ("var(--hidden)", None)} <= found
    assert not watched.wrong

"""How long the report needs to open and to search, with 1,000 and with 10,000 models, in headless Chromium.

python -m benchmarks.page
"""

import hashlib
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from mother.graph.certainty import ranges
from mother.graph.exports import describe
from mother.graph.layered import families, short_names
from mother.graph.model_graph import Edge, ModelGraph
from mother.io.runtime import code_digest, version, versions
from mother.report.html import drawing_of, to_html
from mother.report.reasons import wrong_if
from mother.report.summary import findings, kinds, least_certain, today
from mother.report.words import EXACT, GLOSSARY, LIMITS, sentence

KINDS = ("fine-tune", "lora", "merge", "quantize", "cast", "prune")
LIMIT = {1000: 2.0, 10_000: 5.0}  # seconds


def collection(models: int, family: int) -> dict[str, Any]:
    """A report of made-up models in families of three children each, with merges: every edge has its evidence."""
    nodes: dict[str, dict] = {}
    edges: list[Edge] = []
    for k in range(models):
        tree, place = divmod(k, family)
        name = f"organisation/model-{k:05}"
        nodes[name] = {"tree": str(tree), "group": f"architecture {tree % 3}", "root": 0.1}
        if not place:
            continue
        kind = KINDS[k % len(KINDS)] if place > 6 else "fine-tune"
        facts = {"kind": kind, "adjacency": round(1 - (k * 7 % 41) / 100, 2), "arrow": round(1 - (k * 11 % 37) / 80, 2)}
        if kind in EXACT:
            facts |= {"adjacency": 1.0, "arrow": 1.0}
        parents = [(place - 1) // 3] + ([(place - 1) // 3 + 2] if kind == "merge" else [])
        for number in parents:
            share = {"coefficient": 0.5} if kind == "merge" else {}
            edges.append(Edge(f"organisation/model-{tree * family + number:05}", name, facts | share))
    graph = ModelGraph("made up", nodes, tuple(edges))
    drawn, alone = families(graph)
    short = short_names(list(nodes))
    forms = ("safetensors", "bin")
    return {
        "title": f"{models} models",
        "summary": _summary(graph),
        "nodes": [
            {"id": name, "label": short[name], "format": forms[k % 2], "verdict": "not audited", **facts}
            for k, (name, facts) in enumerate(nodes.items())
        ],
        "edges": [_edge(edge, k) for k, edge in enumerate(edges)],
        "families": [drawing_of(one) for one in drawn],
        "alone": alone,
        "layers": [f"{row}.query" for row in range(24)],
        "heat": [],
        "heat_low": -4,
        "heat_high": 0,
        "audit": None,
    }


def _edge(edge: Edge, k: int) -> dict[str, Any]:
    layers = [[row, 1 / 24, -1, round(((row * k) % 97) / 97, 3), 0.0] for row in range(24)]
    evidence = {"relatedness": 99.5, "distance": 0.05, "compared": 1.0, "newness": 0.4, "newness_t": 12.0}
    evidence |= {"rounding": None, "equal": 0.0, "layers_changed": 24, "layers_compared": 24, "layers": layers}
    words = sentence(edge.attributes, edge.parent, edge.child)
    said = {
        "words": describe(edge.attributes),
        "summary": words,
        "why": [],
        "wrong_if": wrong_if(edge.attributes, evidence, edge.parent, edge.child),
        "attributes": {},
        "evidence": evidence,
    }
    return {"parent": edge.parent, "child": edge.child, **edge.attributes, **said}


def _summary(graph: ModelGraph) -> dict[str, Any]:
    """What the page opens on, by the functions of the report; files are made up like the models."""
    digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in graph.nodes}
    files = {name: [{"file": f"{name}/model.safetensors", "size": 10**9, "sha256": digest[name]}] for name in digest}
    found: dict[str, Any] = {"findings": findings(graph, None), "kinds": kinds(graph), "files": files}
    found |= {"least_certain": least_certain(graph), "contradictions": [], "left_out": {}, "not_read": {}}
    found |= {"notes": ["Made-up models, for measuring and for pictures."], "audited": False}
    found |= {"certainty": dict(ranges()), "glossary": GLOSSARY, "limits": list(LIMITS)}
    made = {"date": today(), "version": version(), "versions": versions(), "code": code_digest()}
    return found | made | {"command": "python -m benchmarks.page"}


def main() -> None:
    """Print the times; exit code 1 where one is over its limit."""
    chromium = shutil.which("chromium") or sys.exit("needs Chromium")
    slow = False
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        print("models  families  made (s)   size (MB)  opens (s)  tree (s)  search (s)")
        for models, family in ((1000, 50), (1000, 1000), (10_000, 500)):
            path = Path(folder) / "report.html"
            started = time.perf_counter()
            path.write_text(to_html(collection(models, family)), encoding="utf-8")
            made = time.perf_counter() - started
            page = browser.new_page(viewport={"width": 1400, "height": 850})
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready=true]")
            opens = page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive") / 1000
            act = "(act) => { const start = performance.now(); eval(act); document.body.getBoundingClientRect(); "
            act += "return (performance.now() - start) / 1000; }"
            tree = page.evaluate(act.replace("eval(act)", "document.getElementById('tab-tree').click()"))
            find = "const box = document.getElementById('search'); box.value = '00777'; "
            find += "box.dispatchEvent(new Event('input'))"
            search = page.evaluate(act.replace("eval(act)", find))
            size = path.stat().st_size / 1e6
            figures = f"{made:8.2f}  {size:10.1f}  {opens:9.2f}  {tree:8.2f}  {search:10.2f}"
            print(f"{models:6}  {models // family:8}  {figures}", flush=True)
            slow |= opens + tree > LIMIT[models]
            page.close()
        browser.close()
    sys.exit(1 if slow else 0)


if __name__ == "__main__":
    main()

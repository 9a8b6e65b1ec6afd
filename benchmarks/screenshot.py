"""The pictures of the report in README.md and docs/own_models.md, in headless Chromium.

python -m benchmarks.screenshot

They show mini_wild with cards that were written into it, two of which lie, and 1,000 made-up models.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from benchmarks.page import collection
from mother.graph.layered import families
from mother.graph.manifest_io import read_manifest
from mother.graph.model_graph import ModelGraph, read_model_graph
from mother.graph.pictures import draw_model_graph
from mother.report.html import to_html

LIES = {"nofodi": "gezusu", "suvone": "kazufu"}  # model -> what its card says that it is from
SHOWN = "nofodi"  # a LoRA in the middle of its tree, whose card lies
IMAGES = Path("imgs")
FREQUENT = 128  # colours of a picture that are kept exactly


def _small(path: Path) -> None:
    """Without transparency, in 256 colours, and packed as tightly as can be.

    The frequent colours are kept as they are; the others stand for the rest, so that a thin line keeps its own.
    """
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    colours, where, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    colours = colours[order := (-counts).argsort(kind="stable")]
    palette, rest = colours[:256], colours[FREQUENT:]
    if len(colours) > 256:
        few = Image.fromarray(rest[None]).quantize(256 - FREQUENT, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        others = np.array(few.getpalette(), np.uint8).reshape(-1, 3)
        palette = np.concatenate([colours[:FREQUENT], others])
    nearest = np.square(colours[:, None].astype(int) - palette[None]).sum(axis=-1).argmin(axis=1)
    found = Image.fromarray(nearest[order.argsort()][where].reshape(pixels.shape[:2]).astype(np.uint8), "P")
    found.putpalette(palette.tobytes())
    found.save(path, optimize=True)


def with_cards(manifest: Path, folder: Path) -> None:
    """Copy the models of a manifest into a folder, each with a card that names its parents, but for `LIES`."""
    found = read_manifest(manifest)
    there = {node.id for node in found.present}
    for node in found.present:
        shutil.copytree(found.location(node), folder / node.id)
        parents = [LIES[node.id]] if node.id in LIES else [one for one in node.all_parents if one in there]
        if parents:
            front = yaml.safe_dump({"base_model": parents, "license": "mit"})
            (folder / node.id / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")


def take(
    browser: Browser, report: Path, name: str, scheme: str, size: tuple[int, int], search: str = "", whole: bool = False
) -> None:
    """One picture of the tree, all of it or what it opens with, or of the list on a phone."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(report.as_uri())
    page.click("#tab-tree")
    if search:
        page.fill("#search", search)
        page.press("#search", "Enter")
        page.fill("#search", "")
        page.evaluate("document.activeElement.blur()")
    if size[0] > 700:
        page.select_option("#colour", "verdict" if "contradicted" in page.inner_text("#legend") else "kind")
    if whole:
        page.click("#fit")
    page.screenshot(path=IMAGES / f"{name}.png")
    _small(IMAGES / f"{name}.png")
    page.close()


def take_print(browser: Browser, report: Path, name: str) -> None:
    """The part of the printed report in which the families begin, at twice the pixels: print is finer than a screen."""
    page = browser.new_page(viewport={"width": 794, "height": 1123}, device_scale_factor=2)
    page.emulate_media(media="print")
    page.goto(report.as_uri())
    top = page.evaluate("document.getElementById('view-picture').getBoundingClientRect().top + scrollY")
    clip = {"x": 0, "y": top, "width": 794, "height": 1030}
    page.screenshot(path=IMAGES / f"{name}.png", full_page=True, clip=clip)
    _small(IMAGES / f"{name}.png")
    page.close()


def draw_family(folder: Path) -> None:
    """The largest family as the figures for papers show it: the first picture of the README."""
    graph = read_model_graph(folder / "model_graph.json")
    members = set(families(graph)[0][0].members)
    nodes = {model: facts for model, facts in graph.nodes.items() if model in members}
    one = ModelGraph(graph.name, nodes, tuple(edge for edge in graph.edges if edge.child in members))
    draw_model_graph(one).savefig(IMAGES / "mini_wild_family.png", dpi=200)
    _small(IMAGES / "mini_wild_family.png")


def main() -> None:
    """Write imgs/report*.png and imgs/mini_wild_family.png."""
    chromium = shutil.which("chromium") or sys.exit("needs Chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        manifest = Path(sys.argv[1] if len(sys.argv) > 1 else "dataset/mini_wild.json")
        with_cards(manifest, Path(folder) / "models")
        script = str(Path("recover.py").resolve())
        command = [sys.executable, script, "models", "--audit", "--out", "mini_wild", "--fail-on", "unreadable"]
        subprocess.run(command, check=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
        many = Path(folder) / "thousand.html"
        many.write_text(to_html(collection(1000, family=250)), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        draw_family(Path(folder) / "mini_wild")
        wild = Path(folder) / "mini_wild" / "report.html"
        take(browser, wild, "report", "light", (1600, 900), SHOWN, whole=True)
        take(browser, wild, "report_dark", "dark", (1600, 900), SHOWN, whole=True)
        take(browser, wild, "report_phone", "light", (390, 780))
        take(browser, many, "report_thousand", "light", (1600, 900), "00777", whole=True)
        take(browser, many, "report_thousand_dark", "dark", (1600, 900), "00777", whole=True)
        take(browser, many, "report_thousand_phone", "dark", (390, 780))
        take_print(browser, wild, "report_print")
        take_print(browser, many, "report_thousand_print")
        browser.close()


if __name__ == "__main__":
    main()

"""The documentation: its links lead somewhere, its code runs, and README.md stays one page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, save_family

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
LINES = 150  # of README.md, at most

# What README.md names -> what stands for it here, longest first: the family of `save_family` is a chain m0, m1, ...
# The arrow between the two that are taken is clear.
STAND_INS = {"dataset/models/mini_llama": "family", "Llama-2-7b-chat": "m3", "Llama-2-7b": "m2"}


def prose(path: Path) -> str:
    """A page without what stands between code fences."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them: the second of two equal ones ends in -1."""
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", prose(path), flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        result.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return result


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda path: path.name)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert targets and not broken


def test_readme_is_one_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LINES


def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    save_family(tmp_path / "family")
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        for name, stand_in in STAND_INS.items():
            block = block.replace(name, stand_in)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ran = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() == "fine-tune"


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_page_begins_with_its_question(page: Path) -> None:
    title, blank, first = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ") and not blank
    assert re.match(r"\w", first), "a page begins with the question that it answers"

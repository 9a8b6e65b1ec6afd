"""The documentation: its links lead somewhere, its code runs, no constant is missing, and README.md stays one page."""

import ast
import importlib
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

# Modules whose constants docs/method_map.md lists: those of map, of an index, and of the paper's ranks.
CONSTANT = [
    path
    for wing in ("numeric", "evidence", "heritage", "collection", "index")
    for path in sorted((ROOT / "mother" / wing).glob("*.py"))
    if path.name not in ("__init__.py", "branchings.py")  # whose numbers are names of states
]
CONSTANT += [ROOT / "mother/graph" / name for name in ("arborescence.py", "certainty.py", "sparse.py")]
CONSTANT += [ROOT / "mother/paper" / name for name in ("ranks.py", "rank_paths.py")]

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


def numbers(path: Path) -> dict[str, object]:
    """Constants of a module that are a number or several, by name; versions of a schema are none."""
    names: list[ast.expr] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names += [name for one in targets for name in (one.elts if isinstance(one, ast.Tuple) else [one])]
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = {name.id: getattr(module, name.id) for name in names if isinstance(name, ast.Name)}
    return {
        name: value
        for name, value in found.items()
        if re.fullmatch(r"[A-Z][A-Z0-9_]*(?<!_SCHEMA)", name) and is_number(value)
    }


def is_number(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_number(text: str) -> float:
    base, _, power = text.partition("^")
    return float(base) ** float(power) if power else float(text.replace(",", ""))


@pytest.mark.parametrize("path", CONSTANT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_constant_of_map_is_missing(path: Path) -> None:
    """Each stands beside its module in a group of docs/method_map.md, and a single number there is the right one."""
    section = (ROOT / "docs/method_map.md").read_text(encoding="utf-8").split("\n## Constants\n")[1]
    lines = [line for line in section.splitlines() if f"`{path.parent.name}/{path.name}`" in line]
    for name, value in numbers(path).items():
        named = [line for line in lines if f"`{name}`" in line]
        assert named, f"{name} of {path.name} is not listed"
        stated = re.search(rf"`{name}` ((?:2|10)\^-?\d+|\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?= \||[,;] | for )", named[0])
        if stated and isinstance(value, int | float):
            assert as_number(stated[1]) == pytest.approx(value, rel=0.01), f"{name} of {path.name} is {value}"

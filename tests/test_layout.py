"""The house: which wing may import which, how large a module may be, and what a script loads to print its help."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
from conftest import ROOT, modules

# A wing imports from itself, from those below it, and from `mother.errors`.
BELOW = {
    "errors": set(),
    "numeric": set(),
    "io": {"numeric"},
    "graph": {"io", "numeric"},
    "paper": {"graph", "io", "numeric"},
    "evidence": {"graph", "io", "numeric"},
    "heritage": {"evidence", "graph", "io", "numeric"},
    "runs": {"heritage", "evidence", "paper", "graph", "io", "numeric"},
    "collection": {"heritage", "evidence", "graph", "io", "numeric"},
    "index": {"collection", "heritage", "evidence", "graph", "io", "numeric"},
    "report": {"collection", "heritage", "evidence", "graph", "io", "numeric"},
    "cli": {"report", "index", "collection", "runs", "heritage", "evidence", "paper", "graph", "io", "numeric"},
}
LINES, FUNCTION = 300, 60
SLOW = ("torch", "matplotlib", "networkx", "sklearn", "scipy", "transformers", "numba", "huggingface_hub", "pandas")
SLOW += ("pyarrow", "faiss", "ray")
SCRIPTS = ("get_vit_layer_statistics", "clustering", "MoTHer_FullFT", "MoTHer_LoRA", "recover", "summarize")


def source(module: str) -> ast.Module:
    return ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())


def imported(module: str) -> Iterator[str]:
    """Modules of this package that a module imports, wherever in it."""
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module == "mother":  # from mother import wing
                yield from (f"mother.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("mother."):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("mother"))


def test_no_wing_is_unknown() -> None:
    assert {module.split(".")[1] for module in modules()} == set(BELOW)
    assert len(modules()) > 60  # the walk sees the wings


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    wing = module.split(".")[1]
    wrong = {name for name in imported(module) if name.split(".")[1] not in {wing, "errors", *BELOW[wing]}}
    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("module", modules())
def test_modules_and_functions_are_small(module: str) -> None:
    tree = source(module)
    length = len((ROOT / (module.replace(".", "/") + ".py")).read_text().splitlines())
    assert length <= LINES, f"{module} has {length} lines"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in long.items() if lines > FUNCTION}


@pytest.mark.parametrize("module", [module for module in modules() if ".cli." not in module])
def test_only_the_terminal_wing_prints_and_parses(module: str) -> None:
    for node in ast.walk(source(module)):
        if isinstance(node, ast.Name):
            assert node.id != "print", f"{module} prints"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.split(".")[0] for name in names} & {"tyro", "argparse", "tqdm", *SCRIPTS}


@pytest.mark.parametrize("flag", ["--help", "--version"])
@pytest.mark.parametrize("script", [*SCRIPTS, "index", "-m mother recover", "-m dataset.grow", "-m dataset.vthr"])
def test_help_loads_nothing_slow(script: str, flag: str) -> None:
    """Of 110 modules that are needed, and of libraries, none that takes long to load."""
    words = script.split() if script.startswith("-m") else [f"{script}.py"]
    count = "import sys, runpy, atexit; atexit.register(lambda: print('LOADED', *sys.modules)); sys.argv = {!r}; "
    if words[0] == "-m":
        program = count.format([words[1], *words[2:], flag]) + f"runpy.run_module({words[1]!r}, run_name='__main__')"
    else:
        program = count.format([words[0], flag]) + f"runpy.run_path({words[0]!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split("LOADED ")[1].split()
    assert not {name.split(".")[0] for name in loaded} & set(SLOW)
    assert len([name for name in loaded if name.startswith("mother")]) <= 14
    shown = done.stdout.split("LOADED ")[0]
    assert "MoTHer 0" in shown if flag == "--version" else "usage:" in shown and "--help" in shown


def test_the_package_is_complete() -> None:
    """What `pip install .` installs: the command, and every file that the code reads beside it."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, function = content["project"]["scripts"]["mother"].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    data = content["tool"]["setuptools"]["package-data"]
    shipped = {
        path for name, found in data.items() for glob in found for path in (ROOT / name.replace(".", "/")).glob(glob)
    }
    there = [path for path in (ROOT / "mother").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    others = {path for path in there if path.suffix != ".py"}
    assert others == {path for path in shipped if path.is_file()}
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
    pinned = {line.split("==")[0].lower() for line in lines}
    needed = {re.split("[<>=]", name)[0].lower() for name in content["project"]["dependencies"]}
    assert needed - {"httpx2"} <= pinned  # that one comes with huggingface_hub
    assert set(content["project"]["optional-dependencies"]["ray"]) <= set(lines)  # nodes of a cluster must have one

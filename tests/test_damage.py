"""Kept results of every kind, damaged in every way: made again, or one clear error that says how to mend it."""

import copy
import importlib
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_here, save_family, save_model
from test_heritage import base, moved

from mother.cli import arguments
from mother.cli.commands import main
from mother.io.files import is_sealed, sealed

WHOLE = [b"null", b"5", b'"x"', b"[]", b"{}", b"true", b"", b"\x00\xff\x80" * 50, b"[" * 200_000, b'{"a": 1']
OTHERS = (None, 5, "x", [], {}, True, [[]], {"a": None})
# How many values of one file are changed, and whether every damage meets every command.
THOROUGH = pytest.mark.parametrize(
    ("mutations", "thorough"), [(3, False), pytest.param(40, True, marks=pytest.mark.slow)], ids=["some", "many"]
)


def inside(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where the values of a JSON object stand, three levels deep; of a list the first one."""
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in items:
        yield (*path, key)
        if len(path) < 3:
            yield from inside(value, (*path, key))


def damages(path: Path, mutations: int) -> Iterator[bytes]:
    """The bytes of a file as damage of any kind may leave them."""
    before = path.read_bytes()
    yield from WHOLE if mutations > 10 else WHOLE[len(path.name) % 5 :: 5]  # so that files meet different ones
    yield before[: len(before) // 2]
    yield before[:-3]
    if path.suffix != ".json":
        return
    content = json.loads(before)
    places = list(inside(content))
    for number, place in enumerate(places[:: max(1, len(places) // mutations)]):
        changed = copy.deepcopy(content)
        at = changed
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = OTHERS[number % len(OTHERS)]
        yield json.dumps(changed).encode()
        if isinstance(at, dict):
            del at[place[-1]]
            yield json.dumps(changed).encode()


def run(*arguments: object, command: str = "recover") -> tuple[int, str, str]:
    return run_here("mother", arguments, partial(main, command))


def is_one_remedy(code: int, err: str) -> bool:
    """Whether a run went well, or ended with one line that says what to do."""
    lines = [line for line in err.strip().splitlines() if line.startswith("error: ")]
    remedy = any("Run" in line and "again" in line or "Ids are those that the tree shows" in line for line in lines)
    return code == 0 or (code == 2 and len(lines) == 1 and remedy)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(models, a result of them with an audit)."""
    folder = tmp_path_factory.mktemp("kept")
    for name, weights in {"a": base(0), "b": moved(base(0), 1), "c": moved(base(0), 2)}.items():
        save_model(folder / "models" / name, weights)
    (folder / "models" / "b" / "README.md").write_text("---\nbase_model: a\n---\n")
    assert run(folder / "models", "--out", folder / "out", "--audit")[0] == 0
    return folder / "models", folder / "out"


RECOVERED = (
    "collection.json",
    "run.json",
    "audit.json",
    "model_graph.json",
    "drawn.json",
    "audit.sarif",
    "evidence.safetensors",
    "models/*.json",
    "models/*.safetensors",
    "measurements/*/first_pass.npz",
    "measurements/*/second_pass.npz",
    "measurements/*/kinds.npz",
)


@THOROUGH
@pytest.mark.parametrize("pattern", RECOVERED)
def test_what_recover_keeps(
    pattern: str, mutations: int, thorough: bool, kept: tuple[Path, Path], tmp_path: Path
) -> None:
    models, before = kept
    out = tmp_path / "out"
    shutil.copytree(before, out)
    path = sorted(out.glob(pattern))[0]
    whole = path.read_bytes()
    graph, verdicts = (out / "model_graph.json").read_bytes(), (out / "audit.json").read_bytes()
    others = {"explain": ("a", "b", "--to", out), "add": (models / "c", "--to", out, "--quiet")}
    for number, content in enumerate(damages(path, mutations)):
        for at, (command, words) in enumerate(others.items()):
            if not thorough and number % 2 != at:
                continue
            path.write_bytes(content)
            code, _, err = run(*words, command=command)
            assert is_one_remedy(code, err), (command, content[:300], err)
            if (
                code == 0 and command == "add" and pattern != "collection.json"
            ):  # which may be of other models now, and sound
                assert (out / "model_graph.json").read_bytes() == graph, (command, content[:300])
        path.write_bytes(content)
        code, text, err = run(models, "--out", out, "--audit")
        assert code == 0, (content[:300], err)
        found = (out / "model_graph.json").read_bytes(), (out / "audit.json").read_bytes()
        assert found == (graph, verdicts), content[:300]
        if thorough:
            assert "kept: " in run(models, "--out", out, "--audit")[1], content[:300]
        path.write_bytes(whole)


SCRIPTS = {
    "get_vit_layer_statistics": ("--model-graph",),
    "MoTHer_FullFT": ("--model-graph",),
    "clustering": ("--clusters", 1, "--no-lora", "--iterations", 3, "--model-graph"),
}
MADE_BY = {  # file -> the script that makes it
    "layer_statistics.json": "get_vit_layer_statistics",
    "accuracy.json": "MoTHer_FullFT",
    "model_graph.json": "MoTHer_FullFT",
    "map/accuracy.json": "MoTHer_FullFT",
    "map/model_graph.json": "MoTHer_FullFT",
    "clusters.json": "clustering",
    "map/clusters.json": "clustering",
    "figures/drawn.json": "MoTHer_FullFT",
    "measurements/*.npz": "MoTHer_FullFT",
    "measurements/map/models/*.json": "MoTHer_FullFT",
    "measurements/map/first_pass.npz": "clustering",
    "distances.npz": "MoTHer_FullFT",
    "cluster_distances.npz": "clustering",
}


def script(name: str, folder: Path, results: Path) -> tuple[int, str, str]:
    """One of the paper's scripts on the family in a folder."""
    words = [*SCRIPTS[name], folder / "family.json"] if name in SCRIPTS else []
    module = importlib.import_module(name)
    call = partial(arguments.run, module.main, module.Args)
    return run_here(f"{name}.py", [*words, "--results", results], call)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family and the results of the paper's scripts."""
    folder = tmp_path_factory.mktemp("official")
    save_family(folder, size=3)
    for name in (*SCRIPTS, "summarize"):
        code, _, err = script(name, folder, folder / "results")
        assert code == 0, err
    return folder


@THOROUGH
@pytest.mark.parametrize("pattern", MADE_BY)
def test_what_the_scripts_of_the_paper_keep(
    pattern: str, mutations: int, thorough: bool, official: Path, tmp_path: Path
) -> None:
    shutil.copytree(official / "results", tmp_path / "results")
    path = sorted((tmp_path / "results" / "family").glob(pattern))[0]
    whole, maker = path.read_bytes(), MADE_BY[pattern]
    distances = np.load(tmp_path / "results" / "family" / "distances.npz")["tree_0"]
    for number, content in enumerate(damages(path, mutations)):
        for at, name in enumerate(("summarize", "get_vit_layer_statistics")):
            if thorough or number % 2 == at:
                path.write_bytes(content)
                code, _, err = script(name, official, tmp_path / "results")
                assert is_one_remedy(code, err), (name, content[:300], err)
        path.write_bytes(content)
        code, text, err = script(maker, official, tmp_path / "results")
        assert code == 0, (content[:300], err)
        assert (np.load(tmp_path / "results" / "family" / "distances.npz")["tree_0"] == distances).all()
        code, text, err = script("summarize", official, tmp_path / "results")
        assert code == 0, (content[:300], err)
        path.write_bytes(whole)


def test_a_seal_sees_every_change() -> None:
    content = sealed({"a": 1, "b": [1.5, None], "c": {"d": "ü"}})
    assert is_sealed(json.loads(json.dumps(content)))
    for other in ({**content, "a": 2}, {**content, "e": 0}, {k: v for k, v in content.items() if k != "b"}):
        assert not is_sealed(other)
    assert not any(is_sealed(other) for other in (None, 5, [], {}, "x", {"seal": None}, {"seal": []}))

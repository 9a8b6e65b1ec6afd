"""The cache of grown models: what its keys depend on, and what is removed from it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FOREST
from grown import LIBRARIES, changed, copied, key_of, lock_of, sweep

from mother.graph.manifest import Manifest


def test_a_key_is_that_of_recipes_and_sources(tmp_path: Path) -> None:
    plan = FOREST[0]
    source = tmp_path / "tasks.py"
    source.write_text("a = 1\n")
    key = key_of([plan], [source])
    assert key_of([replace(plan, folder=tmp_path)], [source]) == key  # wherever it is
    node = replace(plan.nodes[-1], recipe=plan.nodes[-1].recipe | {"steps": 1})
    keys = {key, key_of([replace(plan, nodes=(*plan.nodes[:-1], node))], [source]), key_of(FOREST[:2], [source])}
    source.write_text("a = 2\n")
    assert len(keys | {key_of([plan], [source])}) == 4


def test_a_key_is_that_of_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key_of(FOREST)}
    for other in LIBRARIES:
        monkeypatch.setattr("grown.version", lambda name, other=other: "2" if name == other else "1")
        keys.add(key_of(FOREST))
    assert len(keys) == 1 + len(LIBRARIES)


def test_what_nobody_uses_is_removed_unless_it_is_being_grown(tmp_path: Path) -> None:
    for name, age in {"a-new": 10, "a-old": 1000, "b-growing": 1000}.items():
        (tmp_path / name / "models").mkdir(parents=True)
        os.utime(tmp_path / name, (2000 - age, 2000 - age))
    with lock_of(tmp_path / "b-growing"):
        sweep(tmp_path, before=1500)
    assert sorted(path.name for path in tmp_path.glob("*/")) == ["a-new", "b-growing"]
    sweep(tmp_path, before=1500)
    assert sorted(path.name for path in tmp_path.glob("*/")) == ["a-new"]


def test_copies_may_be_changed(forest: dict[str, Manifest], tmp_path: Path) -> None:
    shared = forest["mini_ft"]
    own = copied(shared, tmp_path / "own")
    assert not changed(own)
    (own.folder / own.nodes[-1].source / "model.safetensors").write_bytes(b"")
    assert changed(own) == [own.nodes[-1].id] and not changed(shared)

"""The work on blocks of a large family: what is done once for many pairs gives what each alone would."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import save_family

from mother.collection.find import search
from mother.errors import InputError
from mother.evidence.candidates import candidate_pairs
from mother.evidence.codes import by_rule, each_by_rule, equal_codes, rules
from mother.evidence.first_pass import take_first_pass
from mother.evidence.second_pass import take_second_pass
from mother.evidence.sketch import kept_sketch
from mother.index.build import build
from mother.index.engine import Engine, check_address
from mother.index.held import held_sketch
from mother.index.store import Index, create_index

CPU = torch.device("cpu")


def family_index(folder: Path) -> Index:
    """An index of a chain of five models."""
    save_family(folder / "models")
    index = create_index(folder / "it", 512, 4096, True)
    build(index, search([str(folder / "models")]).sources, Engine())
    return index


def test_parents_that_are_quantized_together_give_what_each_gives() -> None:
    draw = torch.Generator().manual_seed(0)
    parents = [torch.randn(32, 64, generator=draw) for _ in range(3)]
    for rule in rules():
        group = {None: 64, 0: 32 * 64}.get(rule.group, rule.group)
        child = rule.apply(parents[1].reshape(-1, group)).reshape(32, 64)
        together = equal_codes(rule, each_by_rule(rule, parents), child)
        assert together == [by_rule(rule, parent, child) for parent in parents]
        assert together[1].share == 1 > max(together[0].share, together[2].share)


def test_a_sketch_that_is_held_is_that_of_the_disk(tmp_path: Path) -> None:
    index = family_index(tmp_path)
    for key in (row["key"] for row in index.rows(["key"])):
        path = index.sketches / f"{key}.safetensors"
        held, kept = held_sketch(path, key), kept_sketch(path, key)
        assert held is held_sketch(path, key) and held_sketch(path, "other") is None
        for layer in kept.shapes:
            assert torch.equal(held.read(layer), kept.read(layer))
            held.read(layer).zero_()  # whoever reads it may change what it got
            assert torch.equal(held.read(layer), kept.read(layer))
    path.write_bytes(path.read_bytes()[:100])
    assert held_sketch(path, key) is None
    path.unlink()
    assert held_sketch(path, key) is None


def test_a_block_measures_of_its_core_what_all_pairs_measure(tmp_path: Path) -> None:
    """A core of all models is no core; relatedness, which its models are known for, is not measured."""
    index = family_index(tmp_path)
    keys = [row["key"] for row in index.rows(["key"])]
    sketches = [kept_sketch(index.sketches / f"{key}.safetensors", key) for key in keys]
    whole, block = (take_first_pass(sketches, CPU, relate=relate) for relate in (True, False))
    assert np.array_equal(whole.square, block.square) and np.array_equal(whole.turned, block.turned)
    assert whole.relatedness.any() and not block.relatedness.any()
    pairs, near = candidate_pairs(whole, np.zeros(5, int), {}, set())
    cores = (None, set(range(5)), {0})
    passed = [take_second_pass(sketches, pairs, near, [None] * 5, [23] * 5, CPU, core=core) for core in cores]
    found = [one.triple["looked"] > 0 for one in passed]
    asked = np.zeros_like(found[0])
    for number, (one, other) in enumerate(pairs):
        asked[number, list({*near[one], *near[other]})] = True
    assert np.array_equal(found[0], asked) and np.array_equal(found[1], asked)
    outside = np.array([0 not in pair for pair in pairs])
    asked[outside, 1:] = False
    assert np.array_equal(found[2], asked)
    # Of the other pairs nothing is lacking but which model is the newer, and what that is told by.
    for name, values in passed[0].arrays.items():
        some = ~outside if name in ("newness", "leads", "rounding") else slice(None)
        assert np.array_equal(passed[2].arrays[name][:, some], values[:, some])
    for name, values in passed[0].triple.items():
        assert np.array_equal(passed[2].triple[name], np.where(found[2], values, 0))
    beyond = [one.beyond[:, ~outside] for one in passed]
    assert np.array_equal(beyond[0], beyond[2], equal_nan=True) and np.isfinite(beyond[0]).any()
    assert outside.any() and np.isnan(passed[2].beyond[:, outside]).all()


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    """Before Ray is asked, which tries for half a minute; forms that name no machine are left to Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in ("local", "auto", f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "other://of/ray"):
            check_address(address)
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "nowhere.invalid:1", "nowhere", "", "one:two"):
        with pytest.raises(InputError, match="there is no Ray at .* Give --ray local, auto, host:port or ray://"):
            check_address(address)


def test_a_cluster_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has too much to do Ray gives up after half a minute."""

    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=late))
    with pytest.raises(InputError, match="there is no Ray at local: The current node timed out"):
        list(Engine(2, "local").run(print, [(1,), (2,)]))

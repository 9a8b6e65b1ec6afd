"""What is asked of many models at once gives what each alone would, and what is kept is what was measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_family, save_model
from safetensors.torch import save_file
from test_relations import QUANTIZED, weights

from mother.collection.find import search
from mother.evidence import differences, first_pass
from mother.evidence.codes import rules
from mother.evidence.differences import NEAR, find_sides
from mother.evidence.first_pass import Distances, square_distances, stacks, take_first_pass
from mother.evidence.grids import find_grid, find_turned_grid, may_be_noise, on_grid, quantization_noise
from mother.evidence.second_pass import take_second_pass
from mother.evidence.sketch import Sketch, kept_sketch, sketch_models
from mother.heritage import quantized
from mother.index.build import build
from mother.index.engine import Engine
from mother.index.graph import index_graph
from mother.index.held import held_sketch
from mother.index.store import create_index
from mother.io.open import open_checkpoint

CPU = torch.device("cpu")


def sketched(folder: Path) -> list[Sketch]:
    """Five models of a chain."""
    save_family(folder / "models")
    paths = sorted(path for path in (folder / "models").iterdir() if path.is_dir())
    return sketch_models([open_checkpoint(path.name, path) for path in paths], folder / "sketches").sketches


@pytest.mark.parametrize("budget", [1, differences.ASKED_ENTRIES])
def test_third_models_that_many_pairs_ask_for(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "ASKED_ENTRIES", budget)
    rng, draw = np.random.default_rng(1), torch.Generator().manual_seed(1)
    models, pairs, rows, columns, count = 9, 40, 6, 10, 3
    some = torch.randn(models, rows, columns, generator=draw)
    u = torch.linalg.qr(torch.randn(pairs, rows, count, generator=draw)).Q
    v = torch.linalg.qr(torch.randn(pairs, columns, count, generator=draw)).Q
    s, start, added = (torch.rand(pairs, count, generator=draw) for _ in range(3))
    s[::5] = 0  # a difference without directions
    # One model is asked for by all pairs, others by few, one by none; the numbers of pairs have gaps.
    ask = rng.random((models, pairs)) < np.linspace(1, 0, models)[:, None]
    asked = np.nonzero(ask)
    chosen = [3 * number for number in range(pairs)]
    sides = np.zeros((4, 3 * pairs, models))
    place = (np.arange(models) + 2) % models
    find_sides(some, place, (u, s, v, start, added), chosen, asked, sides)
    expected = np.zeros_like(sides)
    for third, pair in zip(*asked):
        if s[pair].any():
            beta = (u[pair].T @ some[place[int(third)]] @ v[pair]).diagonal() - start[pair]
            beta = beta / s[pair]
            share = s[pair] / s[pair].sum()
            near = [(beta.abs() < NEAR) * share, ((beta - 1).abs() < NEAR) * share]
            expected[:, chosen[pair], third] = [
                *(one.sum() for one in near),
                *((one * added[pair]).sum() for one in near),
            ]
    assert np.allclose(sides, expected, atol=1e-6) and (expected[:2] > 0).any(axis=(1, 2)).all()


def test_errors_of_many_grids_say_where_to_look_closer() -> None:
    """Never does one that is noise end at once; far relatives do."""
    parent, relative = weights(4, 96, 96), weights(4, 96, 96) + 0.2 * weights(5, 96, 96)
    parents, children, grids = [], [], []
    for quantize in QUANTIZED.values():
        for turned in (False, True):
            child = quantize(parent.T.contiguous()).T.contiguous() if turned else quantize(parent)
            grid = find_turned_grid(child) if turned else find_grid(child)
            if grid is not None:
                parents += [parent, relative]
                children += [child, child]
                grids += [on_grid(child, grid)] * 2
    assert len({(one.grid.block, one.grid.turned) for one in grids}) >= 4
    may = may_be_noise(torch.stack(parents), torch.stack(children), grids)
    closer = [quantization_noise(*one) for one in zip(parents, children, grids)]
    assert all(one for one, noise in zip(may, closer) if noise)
    assert all(may[::2]) and sum(may[1::2]) < len(may) / 8
    alone = [may_be_noise(one[None], other[None], [on])[0] for one, other, on in zip(parents, children, grids)]
    assert may == alone and may_be_noise(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4), []) == []


def test_distances_are_measured_once_within_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sketches = sketched(tmp_path)
    asked: list[int] = []

    def counted(values: torch.Tensor) -> tuple:
        asked.append(len(values))
        return square_distances(values)

    monkeypatch.setattr(first_pass, "square_distances", counted)
    layers = len(first_pass.groups(sketches))
    pairs, near = [(0, 1), (1, 2), (0, 3)], [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    found = []
    for budget in (1 << 20, 3 * 5 * 5 * 8, 0):
        monkeypatch.setattr(first_pass, "KEPT_BYTES", budget)
        asked.clear()
        distances = Distances()
        take_first_pass(sketches, CPU, distances=distances)
        found.append(take_second_pass(sketches, pairs, near, [None] * 5, [23] * 5, CPU, distances=distances))
        assert len(asked) == 2 * layers - min(layers, budget // (5 * 5 * 8)) and not distances.kept
    for other in found[1:]:
        assert all(np.array_equal(values, other.arrays[name]) for name, values in found[0].arrays.items())
        assert all(np.array_equal(values, other.triple[name]) for name, values in found[0].triple.items())
    assert found[0].triple["kept"].any()


def test_stacks_of_models_in_memory_are_those_of_disks(tmp_path: Path) -> None:
    save_family(tmp_path / "models")
    index = create_index(tmp_path / "it", 512, 4096, True)
    build(index, search([str(tmp_path / "models")]).sources, Engine())
    paths = {row["key"]: index.sketches / f"{row['key']}.safetensors" for row in index.rows(["key"])}
    opened = [[open_(path, key) for key, path in paths.items()] for open_ in (held_sketch, kept_sketch)]
    assert all(sketch.kept.at_hand(layer) is not None for sketch in opened[0] for layer in sketch.shapes)
    counts = [0, 0]

    def read(which: int) -> None:
        counts[which] += 1

    for start in (0, 3):
        held, kept = (stacks(some, lambda which=which: read(which), start) for which, some in enumerate(opened))
        for one, other in zip(held, kept, strict=True):
            assert one[:3] == other[:3] and torch.equal(one[3], other[3])
    assert counts[0] == counts[1] > 0
    mixed = stacks([opened[0][0], *opened[1][1:]], lambda: None)
    assert all(torch.equal(one[3], other[3]) for one, other in zip(mixed, stacks(opened[1], lambda: None), strict=True))


def test_parents_of_many_children_on_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All children together are told what each alone is, in whatever parts; each from its own parent, by its rule."""
    chosen = {rule.name: rule for rule in rules() if rule.name in ("gguf Q8_0", "nf4", "int8, a scale each row")}
    draw = torch.Generator().manual_seed(0)
    parents = [[torch.randn(32, 64, generator=draw) for _ in range(2)] for _ in range(3)]
    models = {f"p{number}": some for number, some in enumerate(parents)}
    for number, rule in enumerate(chosen.values()):
        group = rule.group or 64
        models[f"q{number}"] = [rule.apply(one.reshape(-1, group)).reshape(32, 64) for one in parents[number]]
    named = {
        model: {f"encoder.layer.{k}.w.weight": one for k, one in enumerate(some)} for model, some in models.items()
    }
    paths = [save_model(tmp_path / model, some) for model, some in named.items()]
    sketches = sketch_models([open_checkpoint(path.name, path) for path in paths], tmp_path / "kept").sketches
    first = take_first_pass(sketches, CPU)
    near = {child: [0, 1, 2] for child in (3, 4, 5)}
    whole = quantized._dequantized(sketches, first, near)
    assert {child: one.parents for child, one in whole.items()} == {3: (0,), 4: (1,), 5: (2,)}
    assert [whole[child].attributes["format"] for child in near] == list(chosen)
    for child, some in near.items():
        assert quantized._dequantized(sketches, first, {child: some}) == {child: whole[child]}
    monkeypatch.setattr(quantized, "TOGETHER", 1)
    assert quantized._dequantized(sketches, first, near) == whole


def test_matrices_that_are_turned_round_in_an_index(tmp_path: Path) -> None:
    """Small sketches are held in memory, what is kept turned round of them, too."""
    draw = torch.Generator().manual_seed(0)
    base = [torch.randn(32, 40 + 8 * k, generator=draw) for k in range(4)]

    def moved() -> list[torch.Tensor]:
        return [
            one + 0.05 * torch.randn(32, 3, generator=draw) @ torch.randn(3, one.shape[1], generator=draw)
            for one in base
        ]

    for name, some in (("a", base), ("b", moved()), ("c", moved())):
        save_model(tmp_path / "models" / name, {f"enc.{k}.lin.weight": one for k, one in enumerate(some)})
    (tmp_path / "models" / "t").mkdir()
    turned = {f"blk{k}_kernel_w": one.T.contiguous() for k, one in enumerate(moved())}
    save_file(turned, tmp_path / "models" / "t" / "model.safetensors")
    index = create_index(tmp_path / "index", 512, 4096, True)
    build(index, search([str(tmp_path / "models")]).sources, Engine())
    found = index_graph(index, tmp_path / "work", Engine())
    assert {(edge.parent, edge.child) for edge in found.edges} == {("a", "b"), ("a", "c"), ("a", "t")}
    assert not found.left_out

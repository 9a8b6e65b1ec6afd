"""What is kept of a model: the same part of every matrix, and facts of the whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_heritage import base, halved, models, moved

from mother.errors import CheckpointError
from mother.evidence.facts import RUN, kept_shape, part
from mother.evidence.sketch import kept_sketch, sketch_key, sketch_models
from mother.graph.collection import open_models
from mother.graph.manifest import Manifest
from mother.graph.scores import score_graph
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io.checkpoint import Checkpoint
from mother.io.layers import Layer
from mother.io.open import open_checkpoint

CPU = torch.device("cpu")
sizes = st.integers(2, 3000)


@given(sizes, sizes, st.sampled_from([1 << 10, 1 << 14, 1 << 16]))
def test_the_part_is_within_the_limit_and_as_square_as_can_be(rows: int, columns: int, limit: int) -> None:
    some, few = kept_shape(rows, columns, limit)
    assert 1 <= some <= rows and 1 <= few <= columns
    if rows * columns <= limit:
        assert (some, few) == (rows, columns)
    else:
        assert some * few <= limit and some * few >= limit / 4 or few == RUN
        assert few == columns or few % RUN == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(100, 900), st.integers(100, 900), st.integers(0, 9))
def test_the_part_is_of_the_matrix_whatever_it_holds(rows: int, columns: int, seed: int) -> None:
    number = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)
    chosen = part(number, 1 << 14).long()
    picked_rows, picked_columns = chosen[:, 0] // columns, chosen[0] % columns
    assert (picked_rows.diff() > 0).all() and (picked_columns.diff() > 0).all()
    other = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(part(other, 1 << 14), other[picked_rows][:, picked_columns])


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_a_part_has_the_rank_of_the_whole(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    update = torch.randn(768, rank, generator=generator) @ torch.randn(rank, 512, generator=generator)
    assert int(torch.linalg.matrix_rank(part(update).double(), rtol=1e-5)) == rank


def test_all_that_was_taken_comes_back(tmp_path: Path) -> None:
    table = torch.randn(3000, 40)
    weights = base(0) | {"embeddings.word_embeddings.weight": table, "encoder.layer.0.bias": torch.ones(5)}
    (checkpoint,) = models(tmp_path, m=weights)
    (taken,) = sketch_models([checkpoint], tmp_path / "kept").sketches
    again = kept_sketch(*[(path, taken.key) for path in (tmp_path / "kept").glob("*.safetensors")][0])
    assert again is not None and again.facts.to_json() == taken.facts.to_json() and again.shapes == taken.shapes
    for key, table in taken.facts.tables.items():
        assert torch.equal(again.facts.tables[key], table) and len(table) <= 1024
    for layer in taken.shapes:
        assert torch.equal(again.read(layer), checkpoint.read(layer)) and again.scale(layer) == 1
    assert taken.facts.entries == sum(np.prod(shape) for shape in taken.shapes.values())


def test_large_matrices_are_cut_and_halves_stay_halves(tmp_path: Path) -> None:
    weight = torch.randn(600, 700).bfloat16()
    (checkpoint,) = models(tmp_path, m={"encoder.layer.0.attention.query.weight": weight})
    (taken,) = sketch_models([checkpoint], tmp_path / "kept").sketches
    layer = Layer("0", "query")
    assert taken.shapes[layer] == (600, 700) and taken.scale(layer) == 600 * 700 / (256 * 256)
    assert torch.equal(taken.read(layer), part(weight.float()))
    assert sum(path.stat().st_size for path in (tmp_path / "kept").glob("*.safetensors")) < 2 * 256 * 256 + 1000


def test_trees_are_recovered_from_small_parts(forest: dict[str, Manifest], tmp_path: Path) -> None:
    """A twentieth of the largest matrices is enough."""
    for split, least in (("mini_ft", 0.7), ("mini_lora_v", 1.0)):
        checkpoints, _ = open_models(forest[split])
        graph = build_graph(split, trace(checkpoints, CPU, keep=tmp_path / split, sketch=1 << 10))
        scores = score_graph(graph, forest[split])
        assert scores["clusters"] == 1 and scores["undirected"] == 1 and scores["directed"] >= least


def test_kinds_are_found_in_parts(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"encoder.layer.{k}.attention.{kind}.weight" for k in range(2) for kind in ("query", "value")]
    root = {name: 0.05 * torch.randn(400, 300, generator=generator) for name in names}
    step = {name: 0.002 * torch.randn(400, 300, generator=generator) for name in names}
    other = moved(root, 3)
    pruned = {name: torch.where(weight.abs() < 0.02, 0.0, weight) for name, weight in other.items()}
    merge = {name: 0.3 * (root[name] + step[name]) + 0.7 * other[name] for name in names}
    collection = models(
        tmp_path,
        root=root,
        tuned={name: root[name] + step[name] for name in names},
        other=other,
        lora=moved(root, 5, rank=7),
        cast=halved(other),
        pruned=pruned,
        merged=merge,
        stranger={name: 0.05 * torch.randn(400, 300, generator=generator) for name in names},
    )
    graph = build_graph("test", trace(collection, CPU, sketch=1 << 14))
    kinds = {edge.child: edge.attributes["kind"] for edge in graph.edges}
    assert kinds["cast"] == "cast" and kinds["pruned"] == "prune" and kinds["merged"] == "merge"
    assert "stranger" not in kinds and graph.nodes["stranger"]["tree"] != graph.nodes["root"]["tree"]
    ranks = [edge.attributes["rank"] for edge in graph.edges if edge.attributes["kind"] == "lora"]
    assert ranks == [7]
    pruned_edge = next(edge for edge in graph.edges if edge.child == "pruned")
    whole = sum(int((weight == 0).sum()) for weight in pruned.values()) / sum(w.numel() for w in pruned.values())
    assert pruned_edge.attributes["zeros"] == pytest.approx(whole, abs=1e-4)  # of the whole, not of the part


def test_a_model_is_read_once_and_others_never_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = models(tmp_path, a=base(0), b=moved(base(0), 1))
    read: list[str] = []
    whole = Checkpoint.read_tensors

    def noted(self: Checkpoint, names: Sequence[str], *into: Mapping) -> dict[str, torch.Tensor]:
        if "kept" not in str(next(iter(self.tensors.values()))[0]):
            read.extend(f"{self.model} {name}" for name in names)
        return whole(self, names, *into)

    monkeypatch.setattr(Checkpoint, "read_tensors", noted)
    trace(checkpoints, CPU, keep=tmp_path / "kept")
    assert len(read) == len(set(read)) == sum(len(checkpoint.tensors) for checkpoint in checkpoints)
    read.clear()
    third = models(tmp_path, c=moved(base(0), 2))
    trace([*checkpoints, *third], CPU, keep=tmp_path / "kept")
    assert {name.split()[0] for name in read} == {"c"}
    # Another limit, or another file, is another sketch.
    assert sketch_key(checkpoints[0], 1) != sketch_key(checkpoints[0], 2)
    before = sketch_key(checkpoints[0], 1)
    models(tmp_path, a=base(5))
    assert sketch_key(open_checkpoint("a", tmp_path / "a"), 1) != before


def test_bad_models_are_left_out_and_stopping_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {name: weight.clone() for name, weight in base(1).items()}
    next(weight for weight in broken.values() if weight.ndim == 2)[0, 0] = float("nan")
    checkpoints = models(tmp_path, a=base(0), nan=broken, none={"x.bias": torch.ones(3)}, z=base(2))
    taken = sketch_models(checkpoints, tmp_path / "kept")
    assert [sketch.model for sketch in taken.sketches] == ["a", "z"] and set(taken.left_out) == {"nan", "none"}
    assert "NaN" in taken.left_out["nan"] and "no weight matrix" in taken.left_out["none"] and not taken.passing

    def stop(self: Checkpoint, names: Sequence[str], *into: Mapping) -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "read_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        sketch_models(checkpoints, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.json"))


def test_a_sketch_that_was_damaged_meanwhile(tmp_path: Path) -> None:
    (checkpoint,) = models(tmp_path, a=base(0))
    (taken,) = sketch_models([checkpoint], tmp_path / "kept").sketches
    for path in (tmp_path / "kept").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="changed"):
        for layer in taken.shapes:
            taken.read(layer)

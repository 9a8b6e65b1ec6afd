"""Interrupted runs: whatever the moment, the next run goes on, and the result is that of an undisturbed one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_family
from test_heritage import base, models, moved

from mother.errors import CheckpointError
from mother.graph.collection import open_models
from mother.graph.model_graph import ModelGraph
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io import snapshots
from mother.io.checkpoint import Checkpoint
from mother.io.snapshots import Snapshot
from mother.paper.distances import pairwise_differences
from mother.paper.measure import Measured, measure, measure_once
from mother.paper.statistics import kurtosis

CPU = torch.device("cpu")


class Killed(BaseException):
    """Stands for the signal that nobody can catch."""


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Reads of tensors that may still be made before the run is killed: fuse[0]; fuse[1] counts those of models."""
    left = [10**9, 0]
    whole = Checkpoint.read_tensors

    def read(self: Checkpoint, names: Sequence[str], *into: Mapping) -> dict[str, torch.Tensor]:
        left[0] -= 1
        left[1] += "kept" not in str(next(iter(self.tensors.values()))[0])
        if left[0] < 0:
            raise Killed
        return whole(self, names, *into)

    monkeypatch.setattr(Checkpoint, "read_tensors", read)
    monkeypatch.setattr(snapshots, "SPACING", 0.0)
    monkeypatch.setattr(snapshots, "SHARE", 0.0)
    yield left


def test_measurements_go_on(tmp_path: Path, fuse: list[int]) -> None:
    checkpoints, _ = open_models(save_family(tmp_path, size=4))
    statistics = {"differences": pairwise_differences, "kurtosis": kurtosis}

    def run(path: Path) -> tuple[Measured, float, bool]:
        return measure_once(
            path, {"read": "x"}, lambda snapshot: measure(checkpoints, None, statistics, CPU, snapshot=snapshot)
        )

    expected, _, _ = run(tmp_path / "whole.npz")
    needed, runs = fuse[1], 0
    fuse[1] = 0
    while True:
        fuse[0] = 9  # more than one layer of all models, so that each run gets on
        try:
            found, _, reused = run(tmp_path / "killed.npz")
            break
        except Killed:
            runs += 1
            assert not (tmp_path / "killed.npz").exists()
    assert runs >= 3 and not reused and fuse[1] < 3 * needed
    assert found.models == expected.models and found.layers == expected.layers
    for name, array in expected.arrays.items():
        assert np.array_equal(array, found.arrays[name])
    assert not list(tmp_path.glob("*.part.npz"))
    fuse[0] = 0
    assert run(tmp_path / "killed.npz")[2]  # what is finished is not read again


def family(folder: Path) -> list[Checkpoint]:
    root = base(0)
    tuned = moved(root, 1)
    table = {"embeddings.word_embeddings.weight": torch.randn(40, 24, generator=torch.Generator().manual_seed(3))}
    return models(
        folder, root=root | table, tuned=tuned | table, lora=moved(tuned, 2, rank=2), again=dict(root), other=base(9)
    )


def test_method_map_goes_on(tmp_path: Path, fuse: list[int]) -> None:
    checkpoints = family(tmp_path)

    def run(keep: Path | None) -> ModelGraph:
        return build_graph("test", trace(checkpoints, CPU, keep=keep))

    expected, runs = run(None), 0
    while True:
        fuse[0] = 50  # more than the largest of what is kept step by step
        try:
            found = run(tmp_path / "kept")
            break
        except Killed:
            runs += 1
    assert runs >= 3 and found == expected
    for graph in (expected, found):
        graph.write(tmp_path / f"{id(graph)}.json")
    assert (tmp_path / f"{id(expected)}.json").read_bytes() == (tmp_path / f"{id(found)}.json").read_bytes()
    fuse[:] = [10**9, 0]
    assert run(tmp_path / "kept") == expected and not fuse[1]  # what is finished is not read again


def test_kept_measurements_are_of_these_files_only(tmp_path: Path) -> None:
    checkpoints = family(tmp_path)
    first = trace(checkpoints, CPU, keep=tmp_path / "kept")
    changed = models(tmp_path, other=base(10))
    second = trace([*checkpoints[:-1], *changed], CPU, keep=tmp_path / "kept")
    assert first.first_pass.facts[2].digests != second.first_pass.facts[2].digests
    for damaged in (b"", b"PK\x03\x04", b"x" * 500):
        for path in [tmp_path / "kept" / "first_pass.npz", *(tmp_path / "kept" / "models").iterdir()]:
            path.write_bytes(damaged)
        assert (
            trace([*checkpoints[:-1], *changed], CPU, keep=tmp_path / "kept").first_pass.models
            == first.first_pass.models
        )


def test_a_snapshot_of_another_key_is_not_read(tmp_path: Path) -> None:
    Snapshot(tmp_path / "a.npz", {"k": 1}).save(3, lambda: ({"x": np.ones(2)}, {"y": 1}), now=True)
    step, arrays, facts = Snapshot(tmp_path / "a.npz", {"k": 1}).load()
    assert step == 3 and (arrays["x"] == 1).all() and facts == {"y": 1}
    assert Snapshot(tmp_path / "a.npz", {"k": 2}).load() is None
    assert Snapshot(None, {}).load() is None


def test_what_may_pass_is_not_kept(tmp_path: Path) -> None:
    """A model that a network failure left out is asked for again by the next run."""
    checkpoints, _ = open_models(save_family(tmp_path, size=3))
    broken = True

    class Flaky(Checkpoint):
        def read_tensors(self, names: Sequence[str], *into: Mapping) -> dict[str, torch.Tensor]:
            if broken:
                raise CheckpointError(self.model, "hf://x", "HTTP 500", "Try again later.", transient=True)
            return super().read_tensors(names, *into)

    checkpoints[1] = Flaky(**{name: getattr(checkpoints[1], name) for name in ("model", "tensors", "layers")})

    def run() -> Measured:
        compute = lambda snapshot: measure(checkpoints, None, {"kurtosis": kurtosis}, CPU, snapshot=snapshot)  # noqa: E731
        return measure_once(tmp_path / "m.npz", {"read": "x"}, compute)[0]

    assert run().models == ["m0", "m2"]
    broken = False
    assert run().models == ["m0", "m1", "m2"]

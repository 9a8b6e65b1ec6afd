"""An index of many models: signatures, shards, candidates, families, blocks, search, and the graph of all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import ROOT, run_here, save_family, save_model, vit_weights
from safetensors.torch import load_file, save_file

from dataset.packing import gptq, write_gguf
from mother.cli import many
from mother.cli.commands import main as mother
from mother.cli.index import main
from mother.collection.find import search, with_claims
from mother.collection.workspace import recover_sources
from mother.errors import InputError
from mother.evidence.sketch import sketch_models
from mother.graph.arborescence import edge_marginals
from mother.heritage.calibration import Weights, elder_prior, hub_prior, read_coefficients, soft_arrow
from mother.heritage.trees import _prefer_casts
from mother.index import build as building
from mother.index import search as searching
from mother.index.blocks import HALO, cut
from mother.index.build import build
from mother.index.candidates import COARSE, K, Near, faiss_search, near_misses, near_models, sharing_pairs, with_hubs
from mother.index.engine import Engine
from mother.index.exact import Stored, choose_merges
from mother.index.graph import Found as Graph
from mother.index.graph import Sizes, index_graph
from mother.index.groups import find_copies, group_names, load_group, relate
from mother.index.offers import Offers, prefer_casts, with_priors
from mother.index.related import families, scores, significant
from mother.index.search import search_index
from mother.index.signature import counts, group_of, signature_of
from mother.index.store import Index, create_index, open_index, signatures
from mother.index.traced import trace_schema
from mother.index.trees import best_edges
from mother.io.open import open_checkpoint

ENTRIES, SAMPLES = 4096, 512


def built(folder: Path, *models: Path, keep: bool = True, samples: int = SAMPLES) -> Index:
    """An index of these."""
    index = create_index(folder, samples, ENTRIES, keep)
    build(index, with_claims(search(map(str, models))).sources, Engine())
    return index


def recover() -> None:
    """The script."""
    mother("recover", "recover.py")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of five models, a copy of one of them, and a stranger."""
    folder = tmp_path_factory.mktemp("family")
    save_family(folder)
    weights = vit_weights(9)
    save_model(folder / "stranger", weights)
    (folder / "twin").mkdir()
    (folder / "twin/model.safetensors").write_bytes((folder / "m2/model.safetensors").read_bytes())
    return folder


@pytest.fixture(scope="module")
def index(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Of all models of `family`."""
    return built(tmp_path_factory.mktemp("index") / "it", *family.glob("*/"))


def test_places_of_a_signature_are_shared_by_shape() -> None:
    assert counts(np.array([100, 300]), np.array([100, 300]), 40) == [10, 30]
    assert counts(np.array([100, 300]), np.array([100, 4]), 400) == [100, 4]
    for samples in range(1, 60):
        found = counts(np.array([5, 100, 37]), np.array([5, 30, 37]), samples)
        assert sum(found) <= samples and all(np.array(found) <= [5, 30, 37])


def test_a_signature_is_centred_weights_at_fixed_places(tmp_path: Path) -> None:
    """Of a model plus a constant it is the same; of one with noise the cosine is that of all weights."""
    weights = vit_weights(0)
    moved = {name: one + 0.5 for name, one in weights.items()}
    noisy = {
        name: one + 0.3 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
        for name, one in weights.items()
    }
    found = []
    for name, one in (("plain", weights), ("moved", moved), ("noisy", noisy)):
        opened = open_checkpoint(name, save_model(tmp_path / name, one))
        sketch = sketch_models([opened], tmp_path / "sketches", ENTRIES).sketches[0]
        found.append(signature_of(sketch, ENTRIES, SAMPLES).astype(float))
    plain, shifted, other = found
    assert len(plain) == SAMPLES and np.allclose(plain, shifted, atol=4e-3)
    cosine = plain @ other / np.linalg.norm(plain) / np.linalg.norm(other)
    assert cosine == pytest.approx(1 / np.sqrt(1.09), abs=0.04)
    assert len(group_of(sketch.shapes)) == 16


def test_what_is_there_is_not_read_again_and_what_changed_is(family: Path, tmp_path: Path) -> None:
    models = with_claims(search([str(family)])).sources
    index = create_index(tmp_path / "it", SAMPLES, ENTRIES, True)
    first = build(index, models, Engine())
    assert (first.read, first.there, first.left_out) == (7, 0, {})
    again = build(index, models, Engine())
    assert (again.read, again.there) == (0, 7)
    save_model(tmp_path / "new", vit_weights(3))
    more = with_claims(search([str(tmp_path / "new")])).sources
    assert build(index, [*models, *more], Engine()).read == 1
    before = index.rows(["id", "key"])
    save_model(tmp_path / "new", vit_weights(4))
    assert build(index, [*models, *more], Engine()).read == 1
    after = index.rows(["id", "key"])
    assert sorted(row["id"] for row in after) == sorted(row["id"] for row in before)
    assert sum(row not in before for row in after) == 1
    assert build(index, [replace(more[0], location=models[0].location)], Engine()).there == 1  # its place counts


def test_a_sketch_that_is_gone_or_damaged_is_said_and_taken_again(family: Path, tmp_path: Path) -> None:
    index = built(tmp_path / "it", family)
    keys = {row["id"]: row["key"] for row in index.rows(["id", "key"])}
    gone, damaged = (index.sketches / f"{keys[one]}.safetensors" for one in ("m0", "m4"))
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    (index.sketches / ".half.safetensors.1.2.tmp").write_text("of a run that was killed")
    code, out, _ = run_here("index.py", ["graph", "--in", index.folder, "--to", tmp_path / "graph"], main)
    assert code == 0 and "left out: 2 models" in out and "Build the index again" in out
    words = ["build", family, "--to", index.folder, "--samples", SAMPLES, "--sketch", ENTRIES]
    code, out, _ = run_here("index.py", words, main)
    assert code == 0 and "2 models read, 5 were there already" in out
    assert gone.exists() and not list(index.sketches.glob("*.tmp"))
    code, out, _ = run_here("index.py", ["graph", "--in", index.folder, "--to", tmp_path / "graph"], main)
    assert code == 0 and "left out" not in out and "7 models in 2 trees, 1 copies, 0 absent models,\n4 edges" in out


def test_a_model_that_cannot_be_read_is_said_once_and_tried_again(tmp_path: Path) -> None:
    save_family(tmp_path / "models")
    weights = tmp_path / "models/m1/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:2000])
    index, models = create_index(tmp_path / "it", SAMPLES, ENTRIES, False), search([str(tmp_path / "models")]).sources
    for _ in range(2):
        found = build(index, models, Engine())
        assert list(found.left_out) == ["m1"] and "model.safetensors" in found.left_out["m1"]
    assert len(index.rows(["id"])) == 4 and not index.sketches.exists()
    assert len(index.shards()) == 1
    weights.write_bytes(whole)
    assert build(index, models, Engine()).read == 1
    assert len(index.rows(["id"])) == 5 and index.known()["m1"]["error"] is None


def test_a_killed_build_goes_on(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "SHARD", 2)
    index, models = create_index(tmp_path / "it", SAMPLES, ENTRIES, True), search([str(family)]).sources

    class Killed(Engine):
        def run(self, function: object, jobs: object) -> Iterator:
            for number, result in enumerate(Engine().run(function, jobs)):
                if number == 2:
                    raise KeyboardInterrupt
                yield result

    with pytest.raises(KeyboardInterrupt):
        build(index, models, Killed())
    assert len(index.rows(["id"])) == 6
    found = build(index, models, Engine())
    assert (found.read, found.there) == (1, 6)
    assert len(index.shards()) == 1  # put together


def test_later_rows_count_before_and_after_putting_together(tmp_path: Path) -> None:
    index = create_index(tmp_path / "it", 4, 1024, False)
    for number, (name, value) in enumerate([("a", 1), ("b", 2), ("a", 3)]):
        index.write(number, [{"id": name, "group": "0" * 16, "signature": np.full(4, value, np.float16)}])
    for _ in range(2):
        found = {
            row["id"]: signatures(table) for table in index.tables(["id", "signature"]) for row in table.to_pylist()
        }
        assert sorted(found) == ["a", "b"] and len(index.rows(["id"])) == 2
        values = np.concatenate([signatures(table) for table in index.tables(["signature"], "0" * 16)])
        assert sorted(values[:, 0].tolist()) == [2, 3]
        index.compact()
    assert len(index.shards()) == 1


def test_odd_folders_are_refused(index: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no index"):
        open_index(tmp_path)
    with pytest.raises(InputError, match="--samples 512"):
        create_index(index.folder, 1024, ENTRIES, True)
    (tmp_path / "other").write_text("x")
    with pytest.raises(InputError, match="holds other things"):
        create_index(tmp_path, SAMPLES, ENTRIES, True)
    there = create_index(tmp_path / "it", SAMPLES, ENTRIES, False)
    (there.folder / "shards/00000000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        there.rows(["id"])
    (there.folder / "index.json").write_text('{"format": "others/9"}')
    for act in (open_index, lambda folder: create_index(folder, SAMPLES, ENTRIES, False)):
        with pytest.raises(InputError, match=f"does not say .* Remove {there.folder}, and build it again"):
            act(there.folder)
    settings = {"format": "mother-index/3", "samples": SAMPLES, "entries": ENTRIES, "sketches": False}
    (there.folder / "index.json").write_text(json.dumps(settings))  # an older one
    with pytest.raises(InputError, match="mother-index/4.* build it again"):
        open_index(there.folder)
    (there.folder / "index.json").write_text('{"format": "mother-index/10"}')  # a newer one, which is worth keeping
    with pytest.raises(InputError, match="mother-index/10, .* Update this program"):
        open_index(there.folder)


def test_damaged_signatures_are_seen(tmp_path: Path) -> None:
    """Nothing but a checksum tells that some weights are others."""
    index, values = create_index(tmp_path / "it", 64, 1024, False), np.arange(64, dtype=np.float16)
    index.write(0, [{"id": "a", "group": "0" * 16, "signature": values}])
    whole = index.shard(0).read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(values.tobytes()) + 100] ^= 1
    index.shard(0).write_bytes(damaged)
    assert index.rows(["id"]) == [{"id": "a"}]
    with pytest.raises(InputError, match="cannot be read"):
        index.rows(["signature"])


def star(rng: np.random.Generator, children: int, samples: int = 1024) -> np.ndarray:
    """A base and children that moved by .2 to 20 % of it."""
    base = rng.normal(size=samples)
    moves = np.exp(rng.uniform(np.log(0.002), np.log(0.2), children))
    return np.vstack([base, base + moves[:, None] * rng.normal(size=(children, samples))]).astype(np.float16)


def test_near_models_are_the_nearest_by_all_pairs(rng: np.random.Generator) -> None:
    values = np.concatenate([star(rng, 40), star(rng, 40)])
    near = near_models(values)
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    square = np.square(unit[:, None] - unit[None]).sum(axis=-1)
    np.fill_diagonal(square, np.inf)
    pairs = {*zip(near.first.tolist(), near.second.tolist())}
    assert all(first < second for first, second in pairs) and len(pairs) == len(near.first)
    for model, row in enumerate(square.argsort(axis=1)[:, :K].tolist()):
        assert {(min(model, other), max(model, other)) for other in row} <= pairs
    assert np.allclose(near.square, square[near.first, near.second], rtol=1e-3)


def test_hubs_make_the_base_of_a_star_a_candidate_of_all(rng: np.random.Generator) -> None:
    values = star(rng, 3000, 512)
    near = near_models(values)
    labels = np.zeros(len(values), dtype=np.int64)

    def of_base(near: Near) -> float:
        return len({*near.first[near.second == 0].tolist(), *near.second[near.first == 0].tolist()}) / 3000

    assert of_base(near) < 0.9
    assert of_base(with_hubs(values, near, labels)) == 1


def test_families_that_no_candidates_join_are_joined_by_their_hubs(rng: np.random.Generator) -> None:
    """Twenty models that stand close together, as far from the base as they are from all its other children."""
    values = star(rng, 200)
    far = values[0] + 0.9 * rng.normal(size=values.shape[1])
    group = far + 0.01 * rng.normal(size=(20, values.shape[1]))
    values = np.vstack([values, group]).astype(np.float16)
    near = near_models(values)
    assert not ((near.first <= 200) & (near.second > 200)).any()
    found, labels = relate(values, [], 221.0 * 110, 0.01, "family")
    assert set(labels.tolist()) == {0} and ((found.first <= 200) & (found.second > 200)).any()


def test_search_by_cells_says_its_recall(rng: np.random.Generator) -> None:
    values = rng.normal(size=(3000, 8)).astype(np.float32)
    exact, one = faiss_search(values, 5, flat=3000)
    cells, recall = faiss_search(values, 5, flat=2999)
    same = np.mean([len({*a} & {*b}) / 5 for a, b in zip(exact, cells)])
    assert one == 1 and 0.5 < recall < 1 and recall == pytest.approx(same, abs=0.06)
    assert COARSE <= 4096


def test_equal_tensors_pair_models_and_copies() -> None:
    digests = np.array([1, 2, 3, 1, 2, 9, 3, 1, 2, 3], dtype=np.uint64)
    owner = np.array([0, 0, 0, 1, 1, 1, 2, 3, 3, 3])
    assert find_copies(["d", "c", "b", "a"], digests, owner, 0) == {0: 3}
    assert sharing_pairs(digests, owner, most=1) == [(0, 1), (0, 2), (0, 3)]
    many = np.zeros(100, dtype=np.uint64)
    assert sharing_pairs(many, np.arange(100)) == []


def test_error_control_is_that_of_the_textbook(rng: np.random.Generator) -> None:
    """Holm and Benjamini-Hochberg of all pairs, of which only the largest are at hand."""
    from scipy.special import ndtr

    for _ in range(20):
        z = np.concatenate([rng.normal(size=300), rng.normal(4, 1, 30)])
        p, order = ndtr(-z), np.argsort(-z)
        ranked = p[order]
        holm = np.cumprod(ranked <= 0.05 / np.arange(330, 0, -1)).sum()
        fits = np.flatnonzero(ranked <= 0.05 * np.arange(1, 331) / 330)
        largest = order[:60]
        assert significant(z[largest], 330, 0.05).sum() == min(holm, 60)
        assert significant(z[largest], 330, 0.05, "fdr").sum() == (fits[-1] + 1 if len(fits) else 0)
    with pytest.raises(ValueError, match="family, fdr"):
        significant(z, 330, 0.05, "none")


def test_scores_of_independent_models_are_standard_normal(rng: np.random.Generator) -> None:
    """Whatever the scales of matrices and the tails of weights are."""
    scale = np.exp(rng.normal(size=1024))
    one, other = (rng.standard_t(3, size=(2000, 1024)) * scale for _ in range(2))
    z = scores(one, other)
    assert abs(z.mean()) < 0.1 and z.std() == pytest.approx(1, abs=0.08) and z.max() < 4.5
    assert scores(np.zeros((1, 4)), np.ones((1, 4))).tolist() == [0]


def test_families_are_components() -> None:
    assert families(5, np.array([0, 3]), np.array([1, 1])).tolist() == [0, 0, 1, 0, 2]


def test_blocks_hold_all_candidates_of_their_cores(rng: np.random.Generator) -> None:
    values = star(rng, 500, 512)
    near = with_hubs(values, near_models(values), np.zeros(501, dtype=np.int64))
    blocks = cut(near, np.arange(501), core=32, most=120)
    assert sorted(model for block in blocks for model in block.core) == list(range(501))
    assert max(len(block.models) for block in blocks) <= 120 and len(blocks) < 60
    far = np.full((501, 501), np.inf)
    far[near.first, near.second] = far[near.second, near.first] = near.square
    for block in blocks:
        for model in block.core:
            assert {0, model, *far[model].argsort()[:HALO].tolist()} <= set(block.models)


def test_graph_of_an_index_is_that_of_recover(family: Path, index: Index, tmp_path: Path) -> None:
    expected = recover_sources(search([str(family)]).sources, None, torch.device("cpu"), sketch=ENTRIES).graph
    found = index_graph(index, tmp_path / "work", Engine())
    edges = {(edge.parent, edge.child): edge.attributes for edge in found.edges}
    assert edges == {(edge.parent, edge.child): edge.attributes for edge in expected.edges}
    assert len(edges) == 4 and found.nodes["m2"]["aliases"] == ["twin"] and "twin" not in found.nodes
    assert found.nodes["stranger"]["tree"] not in {found.nodes[f"m{step}"]["tree"] for step in range(5)}


def test_near_misses_of_signatures_are_told_by_sketches(tmp_path: Path) -> None:
    """A model that kept a fifth of another one: too little for 512 samples, and plenty for 16,384."""
    draw = torch.Generator().manual_seed(3)

    def weights() -> dict[str, torch.Tensor]:
        names = [f"encoder.layer.{block}.attention.attention.query.weight" for block in range(4)]
        return {name: torch.randn(64, 64, generator=draw) for name in names}

    old, strange, noise = weights(), weights(), weights()
    drifted = {name: 0.2 * one + noise[name] for name, one in old.items()}
    for name, one in (("old", old), ("strange", strange), ("drifted", drifted)):
        save_model(tmp_path / "models" / name, one)
    index = built(tmp_path / "it", *(tmp_path / "models").glob("*/"))
    group, _ = group_names(index)[0]
    alone = load_group(index, group, 3.0, 1e-12, "family")
    assert alone.labels.tolist() == [0, 1, 2]
    near = near_misses(
        np.concatenate([signatures(table) for table in index.tables(["signature"], group)]), alone.near, alone.labels
    )
    assert [{alone.ids[i], alone.ids[j]} for i, j in zip(near.first, near.second)] == [{"old", "drifted"}]
    edges = index_graph(index, tmp_path / "work", Engine(), error=1e-12).edges
    assert [{edge.parent, edge.child} for edge in edges] == [{"old", "drifted"}]


def test_graph_joins_models_of_other_names_and_shapes(family: Path, tmp_path: Path) -> None:
    weights = load_file(family / "m2/model.safetensors")
    words = {"encoder.layer": "stages", "attention.attention.query": "asks", "attention.attention.key": "tells"}
    other = dict(weights)
    for old, new in words.items():
        other = {name.replace(old, new): one for name, one in other.items()}
    save_model(tmp_path / "models/other_names", other)
    more = {"extra.adapter.weight": torch.randn(12, 12, generator=torch.Generator().manual_seed(1))}
    save_model(tmp_path / "models/deeper", load_file(family / "m3/model.safetensors") | more)
    models = [*family.glob("*/"), *(tmp_path / "models").glob("*/")]
    index = built(tmp_path / "it", *models)
    assert len(group_names(index)) == 3
    for sizes in (Sizes(), Sizes(whole=0, core=3)):
        found = index_graph(index, tmp_path / "work", Engine(), sizes=sizes)
        assert sorted(found.nodes["m2"]["aliases"]) == ["other_names", "twin"]
        trees = {name: facts["tree"] for name, facts in found.nodes.items()}
        assert trees["deeper"] == trees["m3"] != trees["stranger"]
        assert {"m3", "deeper"} in [{edge.parent, edge.child} for edge in found.edges]


def neighbours(graph: Graph) -> dict[frozenset[str], tuple[str, str]]:
    """The child and the kind of each pair that an edge joins."""
    edges = [edge for edge in graph.edges if not edge.attributes.get("hidden")]
    return {frozenset((edge.parent, edge.child)): (edge.child, edge.attributes["kind"]) for edge in edges}


def test_graph_by_blocks_is_that_of_the_whole(index: Index, tmp_path: Path) -> None:
    whole = index_graph(index, tmp_path / "whole", Engine())
    by_blocks = index_graph(index, tmp_path / "blocks", Engine(), sizes=Sizes(whole=0, core=2))
    assert len(list((tmp_path / "blocks").iterdir())) == 3
    assert neighbours(by_blocks) == neighbours(whole) and by_blocks.nodes.keys() == whole.nodes.keys()
    assert {facts["how"] for facts in by_blocks.nodes.values() if "how" in facts} == {"exact"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()}
    again = index_graph(index, tmp_path / "blocks", Engine(), sizes=Sizes(whole=0, core=2, exact=0))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()}  # nothing traced anew
    assert neighbours(again) == neighbours(whole)
    assert {facts["how"] for facts in again.nodes.values() if "how" in facts} == {"local"}


def test_blocks_know_of_each_other_which_models_are_merges(tmp_path: Path) -> None:
    """Two merges of the same two models lie on one line, and a block may hold one of them."""
    draw = torch.Generator().manual_seed(5)
    names = [f"encoder.layer.{block}.attention.attention.query.weight" for block in range(4)]

    def step(size: float) -> dict[str, torch.Tensor]:
        return {name: size * torch.randn(64, 64, generator=draw) for name in names}

    def plus(one: dict[str, torch.Tensor], more: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: one[name] + more[name] for name in names}

    models = {"base": step(1.0)}
    models |= {name: plus(models["base"], step(0.1)) for name in ("one", "two")}
    for name, share in (("by_half", 0.5), ("by_quarter", 0.25), ("by_third", 0.7)):
        models[name] = {at: share * models["one"][at] + (1 - share) * models["two"][at] for at in names}
    models["child"] = plus(models["by_half"], step(0.05))
    for name, weights in models.items():
        save_model(tmp_path / "models" / name, weights)
    index = built(tmp_path / "it", *(tmp_path / "models").glob("*/"))
    whole = index_graph(index, tmp_path / "work", Engine())
    parents = {(edge.parent, edge.child) for edge in whole.edges if edge.attributes["kind"] == "merge"}
    assert parents == {(one, f"by_{share}") for one in ("one", "two") for share in ("half", "quarter", "third")}
    for core in (1, 2, 3):
        by_blocks = index_graph(index, tmp_path / "work", Engine(), sizes=Sizes(whole=0, core=core))
        assert neighbours(by_blocks) == neighbours(whole)


def test_a_merge_is_the_likeliest_combination_that_closes_no_circle() -> None:
    exact, place = {3: {0: {"kind": "cast"}}}, {f"m{at}": at for at in range(9)}

    def of(one: int, other: int, base: int | None = None) -> dict[int, dict]:
        facts = {"method": "linear"} if base is None else {"method": "sparse", "base": f"m{base}"}
        return {one: facts, other: facts}

    merges = {1: {0.0: of(3, 2)}, 2: {0.0: of(0, 1), 1.0: of(0, 3)}, 4: {0.0: of(0, 2, 7), 1.0: of(0, 6, 7)}}
    merges |= {5: {0.0: of(0, 6, 1)}, 6: {0.0: of(0, 8, 7), 1.0: of(0, 2)}}
    choose_merges(exact, merges, place)
    assert {child: set(parents) for child, parents in exact.items()} == {3: {0}, 1: {2, 3}, 2: {0, 3}, 6: {0, 2}}
    del exact[6], merges[6]
    choose_merges(exact, merges, place)
    assert set(exact.pop(4)) == {0, 6} and 5 not in exact


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_grown_models_by_blocks_are_those_of_the_whole(wild_index: Index, tmp_path: Path) -> None:
    whole = neighbours(index_graph(wild_index, tmp_path / "whole", Engine()))
    by_blocks = index_graph(wild_index, tmp_path / "blocks", Engine(), sizes=Sizes(whole=0, core=6, block=60))
    told = neighbours(by_blocks)
    # Of two parents that are about as probable the other one may be named.
    assert len(whole) > 50 and len(whole.keys() & told.keys()) >= 0.97 * len(whole)
    same = [whole[pair] == told[pair] for pair in whole.keys() & told.keys()]
    assert np.mean(same) > 0.95  # an arrow that is not known may be turned round


@pytest.fixture(scope="module")
def wild_index(wild: object, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Of grown models: every operation once."""
    return built(tmp_path_factory.mktemp("wild") / "it", wild.folder, samples=4096)


def test_a_tree_closes_no_circle_with_the_parents_of_merges() -> None:
    """c is a merge of a and b; that b comes from c, which the offers say, cannot be."""
    ids = ["a", "b", "c"]
    offers = [("a", "c", 9.0), ("c", "b", 5.0), ("a", "b", 4.0), ("b", "a", 0.0)]
    none = {
        "beside": -np.inf,
        "between": 0.0,
        "private": 0.0,
        "most": 0.0,
        "own": True,
        "facts": '{"kind": "fine-tune"}',
    }
    rows = [none | {"what": "offer", "parent": p, "child": c, "weight": w} for p, c, w in offers]
    rows += [{"what": "edge", "parent": p, "child": "c", "facts": '{"kind": "merge"}'} for p in "ab"]
    columns = {name: [row.get(name) for row in rows] for name in trace_schema().names}
    table = pyarrow.table(columns, trace_schema())
    edges = best_edges({one: {} for one in ids}, ids, table)
    assert {(edge.parent, edge.child) for edge in edges} == {("a", "c"), ("b", "c"), ("a", "b")}


def test_casts_are_preferred_as_among_all_pairs(rng: np.random.Generator) -> None:
    """Model 1 is a cast of 0, 2 is quantized from it; 3 and 4 are stored as the cast is, 4 and 5 hold a rounding."""
    weights, bits = Weights(rng.normal(size=(6, 6)), rng.normal(size=(6, 6))), [23, 7, 23, 7, 7, 23]
    ratios = {(1, 0, 4): 3.0, (1, 0, 5): -2.5, (2, 0, 5): 4.0, (2, 0, 3): -1.5}
    parent, child = np.nonzero(~np.eye(6, dtype=bool))
    values = weights.parent[parent, child], weights.beside[parent, child]
    offers = Offers(6, parent, child, *values, np.zeros(30), np.arange(30))
    exact = {1: {0: {"kind": "cast", "dtype": "bfloat16"}}, 2: {0: {"kind": "quantize"}}}
    found = prefer_casts(offers, exact, Stored(dict(enumerate(map(float, bits))), twins=ratios))
    expected = Weights(weights.parent.copy(), weights.beside.copy())
    _prefer_casts(expected, [(1, 0)], bits, ratios)
    assert np.array_equal(found.as_parent, expected.parent[parent, child])
    assert np.array_equal(found.beside, expected.beside[parent, child])
    assert (expected.parent[:2, 3:5] != weights.parent[:2, 3:5]).any() and (expected.beside != weights.beside).any()


def test_priors_are_those_among_all_pairs(rng: np.random.Generator) -> None:
    """Of offers of all arrows, of which one has no turn: what it would weigh is next to nothing."""
    n, known = 6, read_coefficients()
    weights, odds = rng.normal(size=(n, n)), rng.normal(size=(n, n)) * 2
    weights[4, 1], odds = -200, odds - odds.T
    np.fill_diagonal(weights, -np.inf)
    beside = weights - 1
    both = np.logaddexp(weights, beside)
    marginals = edge_marginals(both)[0]
    by_parent = marginals * np.exp(weights - np.where(np.isneginf(both), 0, both))
    elder = np.log(soft_arrow(odds + known.elder * elder_prior(marginals))) - np.log(soft_arrow(odds))
    expected = weights + known.hub * hub_prior(by_parent) + elder
    there = np.isfinite(weights) & (weights > -100)
    parent, child = np.nonzero(there)
    some = (one[there] for one in (weights, beside, odds))
    found = with_priors(Offers(n, parent, child, *some, np.arange(len(parent))), n)
    assert len(parent) == n * (n - 1) - 1 and found.as_parent == pytest.approx(expected[there])
    assert np.abs(expected[there] - weights[there]).max() > 0.1


def test_without_sketches_distances_alone_tell_who_is_next_to_whom(family: Path, tmp_path: Path) -> None:
    index = built(tmp_path / "it", family, keep=False)
    found = index_graph(index, tmp_path / "work", Engine())
    pairs = {tuple(sorted((edge.parent, edge.child))) for edge in found.edges}
    assert pairs == {(f"m{step}", f"m{step + 1}") for step in range(4)}
    assert {edge.attributes["kind"] for edge in found.edges} == {None}


@pytest.mark.parametrize("flags", [[], ["--signatures-only"]])
def test_signatures_alone_tell_what_a_hidden_fine_tune_is_of(flags: list[str], tmp_path: Path) -> None:
    """Whoever got nothing but the index of public bases, whose models are not there, asks it about a model."""
    bases = {f"base{k}": {name: 0.1 * one for name, one in vit_weights(k, 2, 32).items()} for k in range(4)}
    for name, weights in bases.items():
        save_model(tmp_path / "public" / name, weights)
    words = ["build", tmp_path / "public", "--to", tmp_path / "it", "--no-keep", "--quiet"]
    assert run_here("index.py", words, main) == (0, "", "")
    there = shutil.copytree(tmp_path / "it", tmp_path / "elsewhere/index")
    shutil.rmtree(tmp_path / "public")
    shutil.rmtree(tmp_path / "it")
    assert not (there / "sketches").exists()
    draw = torch.Generator().manual_seed(5)
    tuned = {
        f"module.{name}": (one + 0.03 * torch.randn(one.shape, generator=draw)).bfloat16()
        for name, one in bases["base2"].items()
    }
    save_model(tmp_path / "hidden", tuned | {"classifier.weight": torch.randn(7, 32, generator=draw)})
    save_model(tmp_path / "own", {name: 0.1 * one for name, one in vit_weights(9, 2, 32).items()})
    found = {}
    for name in ("hidden", "own"):
        code, out, err = run_here("index.py", ["search", tmp_path / name, "--in", there, "--json", *flags], main)
        assert (code, err) == (0, "")
        found[name] = json.loads(out)
        assert found[name]["compared"] == 4 and {one["by"] for one in found[name]["relatives"]} == {"signature"}
    verdicts = {one["model"]: one["verdict"] for one in found["hidden"]["relatives"]}
    assert verdicts == {"base2": "related"} | {f"base{k}": "unrelated" for k in (0, 1, 3)}
    assert found["hidden"]["relatives"][0]["model"] == "base2" and found["hidden"]["relatives"][0]["z"] > 20
    assert {one["verdict"] for one in found["own"]["relatives"]} == {"unrelated"}
    code, out, _ = run_here("index.py", ["search", tmp_path / "own", "--in", there, *flags], main)
    assert code == 0 and "none of them is related to it" in out


def test_search_names_parent_children_copies_and_strangers(family: Path, index: Index, tmp_path: Path) -> None:
    def found(path: Path, **options: bool) -> dict[str, str]:
        source = with_claims(search([str(path)])).sources[0]
        model, count, relatives = search_index(index, source, **options)
        assert count == 7
        return {one.model: one.verdict for one in relatives}

    told = found(family / "m2")
    assert told["m2"] == told["twin"] == "copy"
    assert "parent" in told["m1"] and "child" in told["m3"]  # or both: arrows of this chain are not all known
    assert (told["m0"], told["m4"], told["stranger"]) == ("related", "related", "unrelated")
    told = found(family / "m2", by_sketch=False)
    assert told["m1"] == "related" and told["stranger"] == "unrelated"
    # No model of the index is opened, not even to match other names.
    bare = built(tmp_path / "bare", family, keep=False)
    other = {name.replace("encoder.layer", "stages"): one for name, one in vit_weights(0).items()}
    source = search([str(save_model(tmp_path / "other", other))]).sources[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "open_all", Mock(side_effect=searching.open_all))
        assert search_index(bare, source, by_sketch=False)[0] == "other" and searching.open_all.call_count == 1
    save_model(tmp_path / "new", vit_weights(77))
    assert set(found(tmp_path / "new").values()) == {"unrelated"}
    save_model(tmp_path / "wide", vit_weights(0, width=16))
    source = search([str(tmp_path / "wide")]).sources[0]
    assert search_index(index, source) == ("wide", 0, [])


def relatives(index: Index, path: Path, **options: bool) -> dict[str, tuple[str, str | None]]:
    """Verdict and kind of what a search finds."""
    source = with_claims(search([str(path)])).sources[0]
    return {one.model: (one.verdict, one.kind) for one in search_index(index, source, **options)[2]}


def test_a_model_of_which_little_was_compared_is_not_called_unrelated(
    family: Path, index: Index, tmp_path: Path
) -> None:
    """All matrices of the models there are a fifth of those of a deeper one: what the others are nobody saw."""
    strange = vit_weights(5, blocks=10)
    deep = save_model(tmp_path / "deep", strange)
    for only in (True, False):
        source = with_claims(search([str(deep)])).sources[0]
        _, count, found = search_index(index, source, by_sketch=only)
        assert count == 7 and {one.verdict for one in found} == {"not comparable"}
        assert {(one.compared, one.probability, one.arrow, one.kind) for one in found} == {(0.2, None, None, None)}
    words = ["search", deep, "--in", index.folder]
    code, out, _ = run_here("index.py", words, main)
    assert code == 0 and "unrelated" not in out and "none of them is related" not in out
    assert "too little of its weights can be compared with 7 of them" in out
    assert "not comparable  m2, on 20 % of the weights" in out
    code, out, _ = run_here("index.py", [*words, "--json"], main)
    assert {(one["verdict"], one["compared"]) for one in json.loads(out)["relatives"]} == {("not comparable", 0.2)}
    # Near misses are looked at by their sketches, which say the same.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "NEAR_MISS", -np.inf)
        source = with_claims(search([str(deep)])).sources[0]
        found = search_index(index, source)[2]
    assert {(one.verdict, one.by, one.compared) for one in found} == {("not comparable", "sketch", 0.2)}
    # What it does share is seen all the same.
    inside = load_file(family / "m2/model.safetensors")
    told = relatives(index, save_model(tmp_path / "grown", strange | inside))
    assert told["m2"][0] in ("parent", "child", "parent or child") and told["stranger"][0] == "not comparable"
    wide = save_model(tmp_path / "wide", vit_weights(0, width=16))
    code, out, _ = run_here("index.py", ["search", wide, "--in", index.folder], main)
    assert code == 0 and "none of them can be compared with it" in out


@pytest.mark.parametrize("way", ["module.", "_orig_mod.module.", "head", "deeper", "renamed"])
def test_search_finds_models_of_other_names_and_shapes(way: str, family: Path, index: Index, tmp_path: Path) -> None:
    weights = load_file(family / "m2/model.safetensors")
    if way == "head":
        weights |= {"classifier.weight": torch.randn(7, 12), "classifier.bias": torch.zeros(7)}
    elif way == "deeper":
        weights |= {"extra.adapter.weight": torch.randn(12, 12)}
    elif way == "renamed":
        words = {"encoder.layer": "stages", "attention.attention.query": "asks", "attention.attention.key": "tells"}
        for old, new in words.items():
            weights = {name.replace(old, new): one for name, one in weights.items()}
    else:
        weights = {way + name: one for name, one in weights.items()}
    told = relatives(index, save_model(tmp_path / "new", weights))
    assert told["stranger"][0] == "unrelated"
    assert told["m2"][0] in (("parent", "parent or child") if way == "deeper" else ("copy",))
    told = relatives(index, tmp_path / "new", by_sketch=False)
    assert told["m2"][0] == "related"


def test_search_finds_casts_and_packed_uploads_of_what_is_there(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    names = [f"model.layers.{block}.self_attn.{one}_proj.weight" for block in range(2) for one in "qkvo"]
    weights = {name: 0.1 * torch.randn(64, 64, generator=draw) for name in names}
    index = built(tmp_path / "it", save_model(tmp_path / "base", weights))
    save_model(tmp_path / "half", {name: one.half() for name, one in weights.items()})
    write_gguf(weights, "llama", "Q4_0", (4, 4), tmp_path / "model-Q4_0.gguf")
    (tmp_path / "gptq").mkdir()
    packed = {}
    for name, one in weights.items():
        parts = gptq(one, torch.randn(128, 64, generator=draw))
        packed |= {name.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
    save_file(packed, tmp_path / "gptq/model.safetensors")
    said = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
    (tmp_path / "gptq/config.json").write_text(json.dumps({"quantization_config": said}))
    told = {name: relatives(index, tmp_path / name)["base"] for name in ("half", "model-Q4_0.gguf", "gptq")}
    assert told == {
        "half": ("parent", "cast"),
        "model-Q4_0.gguf": ("parent", "quantize"),
        "gptq": ("parent", "quantize"),
    }


def test_commands(family: Path, tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.write_text(f"\ufeff# all of them\n  # of one folder\n{family}\n", encoding="utf-8")
    empty = tmp_path / "empty"
    empty.write_text("# nobody\n")
    there, result = tmp_path / "index", tmp_path / "graph"
    code, out, _ = run_here("mother", ["index", "build", "--hub-list", names, "--to", there], mother)
    assert code == 0 and "7 models read, 0 were there already" in out
    code, out, _ = run_here("index.py", ["search", family / "m2", "--in", there], main)
    assert code == 0 and "parent" in out and "copy            twin" in out and "unrelated       stranger" in out
    code, out, _ = run_here("index.py", ["search", family / "m2", "--in", there, "--json"], main)
    assert json.loads(out)["compared"] == 7
    words = ["graph", "--in", there, "--to", result, "--family", "m2"]
    code, out, _ = run_here("index.py", words, main)
    assert code == 0 and "7 models in 2 trees, 1 copies, 0 absent models,\n4 edges" in out
    edges = pyarrow.parquet.read_table(result / "edges.parquet").to_pylist()
    # Steps of noise tell no arrow.
    assert {frozenset((edge["parent"], edge["child"])) for edge in edges} == {
        frozenset((f"m{step}", f"m{step + 1}")) for step in range(4)
    }
    # Families that are traced as a whole have exact probabilities, and say so.
    assert {edge["how"] for edge in edges} == {"exact"}
    nodes = pyarrow.parquet.read_table(result / "nodes.parquet").to_pylist()
    assert len(nodes) == 6 and {node["how"] for node in nodes} == {"exact"}
    assert (result / "families/1/report.html").exists() and (result / "families/1/model_graph.json").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_text("no header")
    for words, said in (
        (["build"], "name models"),
        (["build", "--hub-list", empty, "--to", there], "names no model"),
        (["build", broken, "--to", tmp_path / "other"], "none of the 1 models can be read. model broken:"),
        (["search", family, "--in", there], "is 7 models"),
        (["graph", "--in", there, "--to", tmp_path / "no", "--family", "nobody"], "no model"),
        (["graph", "--in", there, "--to", tmp_path / "no", "--workers", "0"], "must be a worker"),
        (["search", family / "m1", "--in", tmp_path / "none"], "holds no index"),
    ):
        code, _, err = run_here("index.py", words, main)
        assert code == 2 and said in err
    assert not (tmp_path / "no").exists()  # what cannot be done is said before anything is traced


def test_recover_of_many_models_looks_at_candidates(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recover_sources(search([str(family)]).sources, None, torch.device("cpu")).graph
    monkeypatch.setattr(many, "MOST", 3)
    code, out, _ = run_here("recover.py", [family, "--out", tmp_path, "--quiet", "--json"], recover)
    graph = json.loads(out)
    assert code == 0 and {(edge["parent"], edge["child"], edge["kind"]) for edge in graph["edges"]} == {
        (edge.parent, edge.child, edge.attributes["kind"]) for edge in expected.edges
    }
    assert "m4" in (tmp_path / "trees.nwk").read_text() and (tmp_path / "model_graph.graphml").exists()
    code, out, _ = run_here("recover.py", [family, "--out", tmp_path], recover)  # nothing is read again
    assert code == 0 and "7 models: candidates" in out and "4 edges in 1 tree" in out
    page = (tmp_path / "report.html").read_text()
    assert "m4" in page and "stranger" in page and len(json.loads((tmp_path / "files.json").read_text())) == 7
    code, out, _ = run_here("recover.py", ["explain", "m0", "m1", "--to", tmp_path], recover)
    assert code == 0 and "parent and child" in out
    code, out, _ = run_here("recover.py", ["explain", "m0", "stranger", "--to", tmp_path], recover)
    assert code == 0 and "different trees" in out
    save_model(tmp_path.parent / "wide", vit_weights(0, width=16))
    code, out, _ = run_here("recover.py", ["add", tmp_path.parent / "wide", "--to", tmp_path], recover)
    code, out, _ = run_here("recover.py", ["explain", "m0", "wide", "--to", tmp_path], recover)
    assert code == 0 and "were not compared" in out
    save_model(tmp_path.parent / "more", vit_weights(31))
    code, out, _ = run_here("recover.py", ["add", tmp_path.parent / "more", "--to", tmp_path], recover)
    assert code == 0 and "9 models: candidates" in out
    graph = json.loads((tmp_path / "model_graph.json").read_text())
    assert "more" in {node["id"] for node in graph["nodes"]}
    four = [family / f"m{step}" for step in range(4)]
    for words, said in (([family, "--audit"], "an audit is of 3 models"), (four, "result of other models")):
        code, _, err = run_here("recover.py", [*words, "--out", tmp_path], recover)
        assert code == 2 and said in err


@pytest.mark.slow
def test_processes_find_what_one_finds(family: Path, index: Index, tmp_path: Path) -> None:
    """In a program of its own: the workers of a pool import the main module."""
    program = (
        "import sys; from mother.cli.index import main\nif __name__ == '__main__': main(sys.argv[1:], 'index.py')\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for words in (
        ["build", family, "--to", tmp_path / "it", "--sketch", 4096],
        ["graph", "--in", tmp_path / "it", "--to", tmp_path / "out"],
    ):
        command = [sys.executable, tmp_path / "program.py", *words, "--workers", 2]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    edges = pyarrow.parquet.read_table(tmp_path / "out/edges.parquet").to_pylist()
    expected = index_graph(index, tmp_path / "work", Engine()).edges
    assert {(edge["parent"], edge["child"]) for edge in edges} == {(edge.parent, edge.child) for edge in expected}


def die_once(marker: str, number: int) -> tuple[int, int]:
    """For a worker: the first that has number 3 is killed, once."""
    if number == 3 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return number, os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize("ray", [None, "local"])
def test_a_worker_that_is_killed_costs_its_jobs_alone(tmp_path: Path, ray: str | None) -> None:
    """In a program of its own, so that no process of a cluster outlives the test."""
    if ray:
        pytest.importorskip("ray")
    program = (
        "import sys; sys.path[:0] = [{root!r}, {tests!r}]\n"
        "from mother.index.engine import Engine\n"
        "import killed_worker\n"
        "if __name__ == '__main__':\n"
        "    jobs = [({marker!r}, number) for number in range(12)]\n"
        "    print(sorted(Engine(3, {ray!r}).run(killed_worker.die_once, jobs)))\n"
    )
    marker = tmp_path / "died"
    (tmp_path / "killed_worker.py").write_text(
        "import os, signal, time\nfrom pathlib import Path\n\n\n"
        + __import__("inspect")
        .getsource(die_once)
        .replace("(marker: str, number: int) -> tuple[int, int]", "(marker, number)")
    )
    text = program.format(root=str(ROOT), tests=str(tmp_path), marker=str(marker), ray=ray)
    (tmp_path / "program.py").write_text(text)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run([sys.executable, tmp_path / "program.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = eval(done.stdout.strip().splitlines()[-1])
    assert [number for number, _ in found] == list(range(12)) and marker.exists()
    assert len({process for _, process in found}) > 1


# In the path of the command and of its workers. The first worker that comes to write when something is written already
# says which process it is, and waits to be killed: what it read, or traced, is lost.
HELD_UP = """
import os, time
from pathlib import Path

from mother.index import build, graph, traced
from mother.index.store import Index

PLACE = Path(__file__).parent


def hold_up(stage, written):
    with open(PLACE / f"{stage}.processes", "a") as log:
        log.write(f"{os.getpid()}\\n")
    if not any(written):
        return
    try:
        (PLACE / f"{stage}.held").touch(exist_ok=False)
    except FileExistsError:
        return
    (PLACE / f"{stage}.tmp").write_text(str(os.getpid()))
    (PLACE / f"{stage}.tmp").rename(PLACE / f"{stage}.process")
    time.sleep(200)
    raise RuntimeError("nobody killed this worker")


def read_shard(*job):
    write = Index.write

    def late(index, *words):
        hold_up("build", index.shards())
        write(index, *words)

    Index.write = late
    try:
        return READ(*job)
    finally:
        Index.write = write


def trace_models(*job):
    write = traced.write_atomically

    def late(path, do):
        hold_up("graph", path.parent.glob("*.parquet"))
        write(path, do)

    traced.write_atomically = late
    try:
        return TRACE(*job)
    finally:
        traced.write_atomically = write


READ, TRACE = build.read_shard, graph.trace_models
"""
COMMAND = """
import runpy
import held_up
from mother.index import build, graph

build.SHARD, build.read_shard, graph.trace_models = 3, held_up.read_shard, held_up.trace_models
runpy.run_path({path!r}, run_name="__main__")
"""


def kill_who_is_held_up(command: list[str], said: Path, function: str) -> int:
    """Run a command until it ends well, and kill the worker that is held up; returns its process.

    Ray has half a minute to start, which a machine that has much to do may not keep: no job has begun then.
    """
    paths = [str(said.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    killed = 0
    for _ in range(5):
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
            while not said.exists() and run.poll() is None:
                time.sleep(0.05)
            if said.exists():
                killed = int(said.read_text())
                assert f"ray::{function}" in Path(f"/proc/{killed}/cmdline").read_text()
                os.kill(killed, signal.SIGKILL)
            _, err = run.communicate()
        if killed or "there is no Ray" not in err:
            break
    assert run.returncode == 0 and killed, err
    return killed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_edges_are_those_of_one_process_where_a_worker_of_ray_was_killed(tmp_path: Path) -> None:
    """The commands on a cluster of two workers, of which one is killed while it reads, and one while it traces."""
    pytest.importorskip("ray")
    draw = torch.Generator().manual_seed(3)
    for tree in range(5):
        root = {name: 0.1 * one for name, one in vit_weights(tree, 2, 32).items()}
        save_model(tmp_path / f"models/{tree}_root", root)
        for child in range(2):
            moved = {name: one + 0.01 * torch.randn(one.shape, generator=draw) for name, one in root.items()}
            save_model(tmp_path / f"models/{tree}_{child}", moved)
    (tmp_path / "held_up.py").write_text(HELD_UP)
    (tmp_path / "command.py").write_text(COMMAND.format(path=str(ROOT / "index.py")))
    one, two = tmp_path / "one", tmp_path / "two"
    for stage, words, function in (
        ("build", ["build", tmp_path / "models", "--to"], "read_shard"),
        ("graph", ["graph", "--in"], "trace_models"),
    ):
        for folder in (one, two):
            told = [*words, folder / "index", *(["--to", folder / "graph"] if stage == "graph" else [])]
            if folder == one:
                assert run_here("index.py", told, main)[0] == 0
                continue
            command = [sys.executable, tmp_path / "command.py", *told, "--ray", "local", "--workers", 2]
            killed = kill_who_is_held_up(list(map(str, command)), tmp_path / f"{stage}.process", function)
        processes = (tmp_path / f"{stage}.processes").read_text().split()
        assert len(processes) == 6 and str(killed) in processes  # five jobs, of which one was done twice
        assert len(set(processes)) > 1
    rows = [{row["id"]: row["key"] for row in open_index(some / "index").rows(["id", "key"])} for some in (one, two)]
    assert len(rows[0]) == 15 and rows[0] == rows[1]
    tables = [pyarrow.parquet.read_table(some / "graph/edges.parquet").to_pylist() for some in (one, two)]
    edges = [sorted(table, key=lambda edge: (edge["parent"], edge["child"])) for table in tables]
    assert len(edges[0]) == 10 and edges[0] == edges[1]

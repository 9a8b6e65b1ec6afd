"""Adapters without their base: the null's size, families that are named, merged twins, and what cannot be asked."""

import json
import shutil
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer, use
from safetensors.torch import load_file, save_file

from dataset.hub_models import PACKERS
from dataset.lone_adapters import FRESH, LINEAR, adapt, recipe_of
from dataset.packing import write_gguf
from dataset.zoo import train
from dataset.zoo_models import build
from mother.cli.commands import main
from mother.collection.find import Source
from mother.collection.whose import Candidates, kind_of
from mother.errors import InputError
from mother.evidence.adapter_base import directions, fit, standard_score
from mother.evidence.adapter_reads import surroundings_of, updates_on
from mother.evidence.consumers import Surroundings, grouped, head_size
from mother.evidence.relatedness import significant
from mother.graph.model_graph import read_model_graph
from mother.io.open import open_checkpoint
from mother.io.pieces import pieces_of

ALL = {name: attention + others for name, (attention, others) in LINEAR.items()}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two unrelated tiny Llamas, a child of the first, and an adapter of that child."""
    folder = tmp_path_factory.mktemp("family")
    parents = {"root": None, "other": None, "child": folder / "root"}
    for number, (name, parent) in enumerate(parents.items()):
        (folder / name).mkdir()
        train(recipe_of("llama", number, 3e-3, 90 if parent is None else 25, number), parent, folder / name)
    adapt("llama", folder / "child", ALL["llama"], 4, 5, folder / "adapter", steps=50)
    return folder


def surroundings(architecture: str, seed: int) -> Surroundings:
    """The matrices of an untrained model."""
    torch.manual_seed(seed)
    state = {name: tensor for name, tensor in build(architecture).state_dict().items() if tensor.is_floating_point()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    pieces = [piece for parts in pieces_of(shapes).values() for piece in parts if len(piece.shape) >= 2]
    matrices = {piece.name: piece.of(state[piece.raw]).flatten(1) for piece in pieces}
    return Surroundings(pieces, shapes, matrices)


def inner(base: Surroundings) -> list[str]:
    return [name for name, piece in base.pieces.items() if piece.layer is not None and piece.layer.block]


@pytest.mark.parametrize("architecture", FRESH)
def test_random_directions_score_as_their_null_says(architecture: str) -> None:
    base, scores = surroundings(architecture, 0), []
    names = inner(base)[:4]
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        # Directions that prefer a few units, as those of trained models do.
        profile = torch.rand(4096, generator=generator) ** 4
        updates = {}
        for name in names:
            rows, columns = base.matrices[name].shape
            left = torch.randn(rows, 2, generator=generator) * profile[:rows, None]
            updates[name] = left @ torch.randn(2, columns, generator=generator)
        scores.append(fit(updates, base).z)
    assert abs(np.mean(scores)) < 0.75 and 0.5 < np.std(scores) < 1.6
    assert max(scores) < 3.6


@pytest.mark.parametrize("architecture", FRESH)
def test_updates_that_lie_under_the_consumers_are_seen(architecture: str) -> None:
    base, stranger = surroundings(architecture, 0), surroundings(architecture, 1)
    torch.manual_seed(2)
    updates = {}
    for name in inner(base):
        side = base.outputs(name)
        if side is not None:
            values, vectors = torch.linalg.eigh(side.gram)
            strong = vectors * values.clamp(min=0)
            updates[name] = strong @ torch.randn(len(strong), 4) @ torch.randn(4, base.matrices[name].shape[1])
    assert len(updates) > 3
    assert fit(updates, base).z > 6
    assert fit(updates, stranger).z < 4


def test_directions_are_shares_of_the_update() -> None:
    update = torch.randn(12, 18)
    for side, kernel in ((0, 1), (1, 1), (1, 3)):
        found = directions(update, side, kernel)
        assert float((found**2).sum()) == pytest.approx(1)
    assert directions(torch.zeros(3, 4), 0, 1).shape == (3, 0)


def test_queries_stand_for_the_keys_that_serve_them() -> None:
    keys = torch.arange(8.0)[:, None]  # two heads of four rows
    spread = grouped(keys, 16, 4)
    assert spread.flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    folded = grouped(spread, 8, 4)
    assert torch.equal(folded, keys.expand(8, 2))
    assert grouped(keys, 12, 4) is None and grouped(keys, 16, 0) is None
    assert (head_size(1024), head_size(32), head_size(6)) == (128, 16, 0)


def test_what_heads_of_a_group_share_is_no_evidence() -> None:
    base = surroundings("llama", 0)
    name = next(name for name in inner(base) if name.endswith("output"))
    side = base.inputs(name)
    assert (side.shared, side.head, side.signs) == (2, 16, True)
    # Equal directions in both heads of a group, as any model of these shapes has.
    scores = []
    for seed in range(20):
        half = torch.randn(2, 1, 16, 2, generator=torch.Generator().manual_seed(seed)).expand(2, 2, 16, 2)
        update = torch.randn(64, 2, generator=torch.Generator().manual_seed(99)) @ half.flatten(0, 2).T
        scores.append(fit({name: update}, Surroundings(list(base.pieces.values()), SHAPES, base.matrices)).z)
    assert np.mean(scores) < 1


SHAPES = {name: tuple(tensor.shape) for name, tensor in build("llama").state_dict().items()}


def test_families_are_named_with_a_bound_on_errors() -> None:
    assert significant(np.array([5.0, 3.3, 0.1], dtype=float), 1e-3).tolist() == [True, True, False]
    assert significant(np.array([3.2, 0.1, 0.2], dtype=float), 1e-3).tolist() == [
        False,
        False,
        False,
    ]  # one of three must reach 3.4
    assert significant(np.array([], dtype=float), 1e-3).tolist() == []


def sources(folder: Path, *names: str) -> list[Source]:
    return [Source(name, str(folder / name)) for name in names]


def test_an_adapter_names_its_family(family: Path) -> None:
    answer = Candidates(sources(family, "root", "child", "other")).answer(Source("adapter", str(family / "adapter")))
    assert set(answer.family) == {"root", "child"}
    assert answer.kind == "adapter (rank 4)" and answer.weights == 21
    assert sum(one.probability for one in answer.candidates) + answer.unknown == pytest.approx(1)
    assert not answer.twins


def forms(family: Path, folder: Path) -> dict[str, Path]:
    """The child as others keep it: a copy, a cast, and quantizations of a known and of an unknown rounding."""
    child = load_file(family / "child" / "model.safetensors")
    for name, weights in (("copy", child), ("cast", {key: value.bfloat16() for key, value in child.items()})):
        (folder / name).mkdir()
        save_file(weights, folder / name / "model.safetensors")
    for kind in ("Q8_0", "Q4_0"):
        (folder / kind).mkdir()
        write_gguf(child, "llama", kind, (4, 2), folder / kind / "m.gguf")
    found = {name: folder / name for name in ("copy", "cast", "Q8_0", "Q4_0")}
    return found | {name: family / name for name in ("root", "child", "other")}


def test_forms_of_one_model_count_once(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = forms(family, tmp_path)
    adapter = Source("adapter", str(family / "adapter"))
    few = Candidates(sources(family, "root", "child", "other")).answer(adapter)
    answer = Candidates([Source(name, str(place)) for name, place in places.items()]).answer(adapter)
    given = {one.model: one for one in answer.candidates}
    assert set(answer.family) == places.keys() - {"other"}
    assert {name for name, one in given.items() if one.form_of == "child"} == {"copy", "cast", "Q8_0", "Q4_0"}
    for one in few.candidates:  # as probable as without them
        assert given[one.model].probability == pytest.approx(one.probability) and not given[one.model].form_of
    shown = _run(["whose-adapter", str(family / "adapter"), "--among", *map(str, places.values())], capsys)
    assert "form of child" in shown
    # Without the model in full precision its best form stands for it, and is less probable than a plain relative.
    lossy = Candidates([Source(name, str(places[name])) for name in ("root", "Q8_0", "Q4_0")]).answer(adapter)
    given = {one.model: one for one in lossy.candidates}
    assert given["Q4_0"].form_of == "Q8_0" and given["Q4_0"].probability == 0 < given["Q8_0"].probability
    assert sum(one.probability for one in lossy.candidates) + lossy.unknown == pytest.approx(1)


def searched(family: Path, of: str, kind: str, out: Path) -> Path:
    """A model quantized by a search: its blocks, in which weights are moved beyond the nearest level."""
    stored, generator = {}, torch.Generator().manual_seed(1)
    for name, weight in load_file(family / of / "model.safetensors").items():
        if "layers" not in name or weight.ndim < 2:
            stored[name] = weight
            continue
        inputs = torch.randn(256, weight.shape[1], generator=generator)
        inputs *= torch.exp(0.5 * torch.randn(weight.shape[1], generator=generator))
        parts = PACKERS[kind](weight, inputs).items()
        stored |= {f"{name.removesuffix('.weight')}.{end}": part.contiguous() for end, part in parts}
    out.mkdir()
    save_file(stored, out / "model.safetensors")
    return out


@pytest.mark.parametrize("kind", ["gptq 4", "gptq 8", "awq 4"])
def test_a_search_makes_a_form_of_the_nearest(kind: str, family: Path, tmp_path: Path) -> None:
    packed = searched(family, "child", kind, tmp_path / "packed")
    adapter = Source("adapter", str(family / "adapter"))
    names = sources(family, "root", "child", "other")
    answer = Candidates([*names, Source("packed", str(packed))]).answer(adapter)
    forms = {one.model: one.form_of for one in answer.candidates}
    assert forms == {"root": "", "child": "", "other": "", "packed": "child"} and "packed" in answer.family
    # Without its parent it is a base of its own, as far from the root as a fine-tune is.
    alone = Candidates([*sources(family, "root"), Source("packed", str(packed))]).answer(adapter)
    assert {one.model: one.form_of for one in alone.candidates} == {"root": "", "packed": ""}


def test_an_adapter_of_an_absent_family_is_unknown(family: Path) -> None:
    answer = Candidates(sources(family, "other")).answer(Source("adapter", str(family / "adapter")))
    assert answer.family == [] and answer.unknown == 1 and answer.candidates[0].probability == 0


def test_no_model_is_held_whole(family: Path) -> None:
    """Matrices are read one after another, each a few times however deep the model is."""
    adapter = open_checkpoint("a", family / "adapter", family / "root")
    base = open_checkpoint("b", family / "root")
    shapes = {name: info.shape for name, (_, info) in base.tensors.items()}
    reads, alive, most = Counter(), set(), 0

    def read(name: str) -> torch.Tensor:
        nonlocal most
        tensor = base.read_tensor(name)
        reads[name] += 1
        alive.add(id(tensor))
        weakref.finalize(tensor, alive.discard, id(tensor))
        most = max(most, len(alive))
        return tensor

    around = surroundings_of(base)
    around.matrices.read = read
    updates = updates_on(adapter, shapes)
    held = fit(updates, around)
    assert held.terms == 42 and len(reads) > 20
    assert most <= 4 < len(reads) and max(reads.values()) <= 12
    # The same as from a model in memory.
    whole = {name: around.matrices[name].clone() for name in around.matrices}
    deltas = {name: updates[name].clone() for name in updates}
    again = fit(deltas, Surroundings(list(around.pieces.values()), shapes, whole))
    assert again.z == pytest.approx(held.z, abs=1e-3) and again.by_kind.keys() == held.by_kind.keys()


def test_large_updates_are_taken_apart_by_their_range() -> None:
    torch.manual_seed(0)
    update = torch.randn(700, 5) @ torch.randn(5, 660)
    found = directions(update, 0, 1)
    left, sizes, _ = torch.linalg.svd(update.double(), full_matrices=False)
    expected = left[:, :5] * (sizes[:5] / sizes[:5].norm())
    assert found.shape == (700, 5) and torch.allclose(found @ found.T, expected @ expected.T, atol=1e-6)
    full = torch.randn(700, 660)
    assert directions(full, 1, 1).shape == (660, 660)


def test_a_merged_twin_tells_the_base(family: Path, tmp_path: Path) -> None:
    import peft

    model = build("llama")
    model.load_state_dict(load_file(family / "child" / "model.safetensors"), strict=False)
    merged = peft.PeftModel.from_pretrained(model, str(family / "adapter")).merge_and_unload()
    merged.save_pretrained(str(tmp_path / "merged"))
    names = [*sources(family, "root", "child"), *sources(tmp_path, "merged")]
    adapter = Source("adapter", str(family / "adapter"))
    answer = Candidates(names).answer(adapter)
    assert answer.twins == (("child", "merged"),)
    assert answer.candidates[0].model == "child" and answer.candidates[0].probability == 1 and answer.unknown == 0
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-3
    save_file(weights, tmp_path / "merged" / "model.safetensors")
    assert Candidates(names).answer(adapter).twins == ()


def test_models_that_it_does_not_fit_are_said(family: Path, tmp_path: Path) -> None:
    narrow = {name: value[:8] for name, value in load_file(family / "root" / "model.safetensors").items()}
    (tmp_path / "narrow").mkdir()
    save_file(narrow, tmp_path / "narrow" / "model.safetensors")
    names = [*sources(tmp_path, "narrow", "gone"), *sources(family, "adapter")]
    answer = Candidates(names).answer(Source("one", str(family / "adapter")))
    why = {one.model: one.why for one in answer.candidates}
    assert "does not fit" in why["narrow"] and "no such file" in why["gone"] and "adapter itself" in why["adapter"]
    assert answer.unknown == 1
    with pytest.raises(InputError, match="is no adapter"):
        Candidates(names).answer(Source("root", str(family / "root")))


def test_the_command_prints_an_answer(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["whose-adapter", str(family / "adapter"), "--among", *(str(family / one) for one in ("root", "child"))]
    out = _run([*words, "--json"], capsys)
    assert set(json.loads(out)["family"]) == {"root", "child"}
    text = _run(words, capsys)
    assert "family: " in text and "none of these 0.10" in text


def _run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mother", *words])
        main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/adapter"], "--among"),
        (["{}", "--among", "{}/root"], "Name the folder of one adapter"),
        (["{}/root", "--among", "{}/other"], "is no adapter"),
        (["{}/adapter", "--among", "{}/adapter"], "is no base"),
        (["{}/adapter", "--among", "{}/root", "--error", "2"], "between 0 and 1"),
    ],
)
def test_what_cannot_be_asked_is_said(
    words: list[str], said: str, family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _run(["whose-adapter", *(word.format(family) for word in words)], capsys)
    assert said in capsys.readouterr().err


def test_ranks_are_told() -> None:
    assert [kind_of(ranks) for ranks in ((), (4,), (2, 8))] == ["adapter", "adapter (rank 4)", "adapter (ranks 2 to 8)"]


def test_a_recovered_graph_hangs_adapters_under_their_base(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt("bert", _bert(tmp_path), ALL["bert"], 2, 1, tmp_path / "stray", steps=2)
    models = [str(family / name) for name in ("root", "child", "other", "adapter")] + [str(tmp_path / "stray")]
    out = tmp_path / "out"
    _run(["recover", *models, "--out", str(out), "--device", "cpu"], capsys)
    graph = read_model_graph(out / "model_graph.json")
    assert not graph.left_out and set(graph.nodes) >= {"root", "child", "other", "adapter", "stray"}
    (edge,) = (edge for edge in graph.edges if edge.child == "adapter")
    assert edge.parent in ("root", "child") and edge.attributes["kind"] == "adapter" and edge.attributes["rank"] == 4
    assert 0.4 < edge.attributes["adjacency"] <= 0.9
    assert all(edge.child != "stray" for edge in graph.edges)
    assert any("stray is an adapter (rank 2) of an unknown base" in note for note in graph.notes)
    told = _run(["explain", edge.parent, "adapter", "--to", str(out)], capsys)
    assert "by training an adapter of rank 4" in told and f"a relative of {edge.parent}, here or absent" in told
    beside = ({"root", "child"} - {edge.parent}).pop()
    said = {one: _run(["explain", one, "adapter", "--to", str(out)], capsys) for one in (beside, "other", "stray")}
    assert "->" in said[beside] or "neither of the other" in said[beside]
    assert f"the update of adapter belongs to the family of {edge.parent}" in said["other"]
    assert "stray is an adapter of an unknown base" in said["stray"]
    assert _run(["explain", "stray", "--to", str(out)], capsys).split("\n") == [
        "stray",
        "  no parent in this collection",
        "",
    ]
    assert "kept:" in _run(["recover", *models, "--out", str(out), "--device", "cpu"], capsys)


def _bert(folder: Path) -> Path:
    """An untrained BERT, saved."""
    torch.manual_seed(0)
    build("bert").save_pretrained(str(folder / "bert"))
    return folder / "bert"


def test_scores_are_finite_wherever_the_first_draw_stands() -> None:
    null = np.random.default_rng(0).standard_normal(499)
    for first in (-9.0, 0.0, 9.0, 1e6):
        assert np.isfinite(standard_score(np.concatenate([[first], null])))
    assert abs(standard_score(np.concatenate([[np.median(null)], null]))) < 0.01
    assert standard_score(np.concatenate([[6.0], null])) == pytest.approx(6, abs=1)


def test_from_the_hub_each_weight_is_asked_for_once(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates are looked at again and again, and several of the kinds that are packed."""
    places = {name: tmp_path / "hub" / "org" / name for name in ("root", "child", "other", "adapter")}
    for name, place in places.items():
        shutil.copytree(family / name, place)
    names = ("root", "child", "other")
    local = Candidates(sources(family, *names)).answer(Source("adapter", str(family / "adapter")))
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        found = Candidates([Source(name, f"hf://org/{name}") for name in names])
        answer = found.answer(Source("adapter", "hf://org/adapter"))
        sent = sum(request.bytes_sent for request in server.requests if request.file.endswith(".safetensors"))
    assert answer == local
    sizes = [file.stat().st_size for place in places.values() for file in place.glob("*.safetensors")]
    assert sent <= sum(sizes) + (1 << 16) * len(sizes)  # the head of a file is larger than these headers

"""The same weights under other names are the same model: matched by prefix, by values, by resemblance."""

from pathlib import Path

import pytest
import torch
from test_heritage import base, edges, models, moved, recover

from mother.evidence.alignment import align
from mother.evidence.first_pass import take_first_pass
from mother.evidence.sketch import Sketch, read_whole, sketch_models
from mother.heritage.trace import trace
from mother.io.layers import Layer

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]


def sketched(folder: Path, limit: int = 1 << 16, **weights: Weights) -> list[Sketch]:
    return sketch_models(models(folder, **weights), folder / "kept", limit).sketches


def scrambled(weights: Weights, turned: bool = False) -> Weights:
    """The same weights under names that say nothing, in another order, with matrices turned round."""
    names = sorted(weights, key=lambda name: hash_of(name))
    found = {}
    for at, name in enumerate(names):
        weight = weights[name]
        found[f"theirs.part{at}.w"] = weight.T.contiguous() if turned and weight.ndim == 2 else weight.clone()
    return found


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**at for at, letter in enumerate(name)) % 1009


def test_where_names_agree_nothing_is_done(tmp_path: Path) -> None:
    taken = sketched(tmp_path, a=base(0), b=moved(base(0), 1), stranger=base(5))
    aligned = align(taken)
    assert aligned.matched == {} and all(one is other for one, other in zip(aligned.sketches, taken))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("limit", [1 << 16, 1 << 9])
def test_models_under_other_names_are_compared(turned: bool, trained: bool, limit: int, tmp_path: Path) -> None:
    theirs = moved(base(0), 1) if trained else base(0)
    collection = {"a": base(0), "c": moved(base(0), 2), "b": scrambled(theirs, turned), "d": scrambled(base(7), turned)}
    plain = sketched(tmp_path / "plain", limit, **collection | {"b": theirs, "d": base(7)})
    taken = sketched(tmp_path, limit, **collection)
    aligned = align(taken)
    assert aligned.matched.keys() == {"b"} | ({"d"} if "d" in aligned.matched else set())
    assert "20 of 20 matrices matched to those of a by content" in aligned.matched["b"]
    assert ("20 of them transposed" in aligned.matched["b"]) == turned
    ours = {one.model: one for one in aligned.sketches}
    for one in plain[:3]:
        assert ours[one.model].shapes == one.shapes
        for layer in one.shapes:
            assert torch.equal(ours[one.model].read(layer), one.read(layer))
            assert ours[one.model].facts.digests[str(layer)] == one.facts.digests[str(layer)]
            for kind, kept in one.facts.part_digests.items():
                assert ours[one.model].facts.part_digests[kind][str(layer)] == kept[str(layer)]
    (checkpoint,) = models(tmp_path, b=scrambled(theirs, turned))
    layer = Layer("0", "query")
    whole = read_whole(ours["b"], checkpoint, layer)
    assert torch.equal(whole, theirs["encoder.layer.0.attention.attention.query.weight"])


def test_trees_across_names(tmp_path: Path) -> None:
    """A copy, a fine-tune and a LoRA child under other names."""
    root = {name: weight for name, weight in base(0).items() if weight.ndim == 2}
    collection = models(
        tmp_path,
        root=root,
        child=moved(root, 1),
        copy=scrambled(root, True),
        lora=scrambled(moved(root, 3, rank=2), True),
        stranger=base(9),
    )
    graph = recover(collection)
    assert graph.nodes["copy"]["aliases"] == ["root"] or graph.nodes["root"]["aliases"] == ["copy"]
    (start,) = {"root", "copy"} & graph.nodes.keys()
    found = edges(graph)
    assert found[start, "lora"]["kind"] == "lora" and found[start, "lora"]["rank"] == 2
    assert found[start, "child"]["kind"] == "fine-tune"
    assert graph.nodes["stranger"]["tree"] != graph.nodes[start]["tree"]
    assert any("by content" in note and "transposed" in note for note in graph.notes)


def test_a_prefix_is_no_other_model(tmp_path: Path) -> None:
    plain = {name: weight for name, weight in base(0).items() if weight.ndim == 2}
    wrapped = {f"lightning_thing.core.{name}": weight for name, weight in moved(plain, 1).items()}
    taken = sketched(tmp_path, a=plain, b=wrapped, c=moved(plain, 2))
    assert taken[1].shapes.keys().isdisjoint(taken[0].shapes)
    aligned = align(taken)
    assert aligned.matched == {"b": "20 of 20 matrices matched to those of a by name"}
    assert aligned.sketches[1].shapes == taken[0].shapes
    again = align(aligned.sketches)
    assert again.matched == {} and again.sketches == aligned.sketches


def test_others_are_matched_to_the_model_with_most_weights(tmp_path: Path) -> None:
    """A model that lacks some matrices must not take them from all others."""
    plain = {name: weight for name, weight in base(0).items() if weight.ndim == 2}
    other = {f"first.{name}": weight for name, weight in plain.items()}
    part = {f"another.thing.{name}": weight for name, weight in list(plain.items())[:14]}
    aligned = align(sketched(tmp_path, a=part, b=plain, c=other))
    assert [len(one.shapes) for one in aligned.sketches] == [14, 20, 20]
    assert aligned.sketches[1].shapes == aligned.sketches[2].shapes and "b" not in aligned.matched


def test_vectors_of_copies(tmp_path: Path) -> None:
    """Of copies of equal matrices under equal names vectors may be called otherwise."""
    norms = {f"encoder.layer.{k}.layernorm_before.weight": torch.randn(8) for k in range(3)}
    others = {name.replace("layernorm_before", "norm1"): one for name, one in norms.items()}
    another = others | {next(iter(others)): torch.ones(8)}
    collection = models(tmp_path, a=base(0) | norms, b=base(0) | others, c=base(0) | another)
    heritage = trace(collection, CPU)
    assert heritage.aliases == {1: 0}


def test_independent_models_are_not_matched(tmp_path: Path) -> None:
    taken = sketched(tmp_path, a=base(0), b=scrambled(base(1), True))
    assert align(taken).matched == {}


def test_what_was_compared_says_whether_two_are_comparable(tmp_path: Path) -> None:
    other = {f"theirs.{k}.{kind}.weight": torch.randn(32, 48) for k in range(4) for kind in ("a", "b", "c")}
    few = dict(list(base(0).items())[:4])
    found = take_first_pass(sketched(tmp_path, a=base(0), b=moved(base(0), 1), c=few | other), CPU)
    assert found.comparable(0, 1) and found.compared(0, 1) == 1
    assert not found.comparable(0, 2) and 0 < found.compared(0, 2) < 0.5

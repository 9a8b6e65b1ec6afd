"""What an audit says of honest models and of lies, through the command line: it accuses only where a test excludes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_here, save_model
from scipy import stats
from test_heritage import base, moved

from mother.cli.commands import main
from mother.collection.exclusion import LEADING, ROUNDED, STEPS, all_in
from mother.evidence.exclusion import (
    inheritance,
    leading_energy,
    pruned_by_size,
    radial_share,
    rounding_shapes,
    step_errors,
    update_share,
)
from mother.evidence.sketch import Sketch, sketch_models
from mother.io.open import open_checkpoint

Weights = dict[str, torch.Tensor]
ROOT = base(0)


def verdicts(folder: Path, models: dict[str, Weights], claims: dict[str, str], code: int = 0) -> dict[str, dict]:
    """Each model's verdict, from what `audit` wrote; the exit code must be this one."""
    for name, weights in models.items():
        save_model(folder / "models" / name, weights)
    for name, parents in claims.items():
        listed = "".join(f"- {parent}\n" for parent in parents.split(" + "))
        (folder / "models" / name / "README.md").write_text(f"---\nbase_model:\n{listed}---\n")
    words = ("audit", folder / "models", "--out", folder / "out", "--fail-on", "contradicted")
    ended, out, err = run_here("mother", words, main)
    assert ended == code, out[-3000:] + err[-3000:]
    found = json.loads((folder / "out" / "audit.json").read_text())["verdicts"]
    return {f"{one['model']} < {one['parent']}": one for one in found}


def children(count: int, of: Weights = ROOT, first: int = 1) -> list[Weights]:
    return [moved(of, first + number) for number in range(count)]


def mixed(*parts: tuple[float, Weights]) -> Weights:
    return {name: sum(factor * weights[name] for factor, weights in parts) for name in parts[0][1]}


def lstm(seed: int, head: int) -> Weights:
    """A language model whose backbone has the names of recurrent layers, and a head of its own."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"lstm.weight_{kind}_l{level}": (128, 32) for kind in ("ih", "hh") for level in range(2)}
    inside = {name: 0.1 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    new = torch.Generator().manual_seed(head)
    return inside | {"decoder.weight": torch.randn(24, 32, generator=new), "decoder.bias": torch.zeros(24)}


def fused(seed: int, head: int, name: str) -> Weights:
    generator, new = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(head)
    shape = (4, 64, 32) if "experts" in name else (96, 32)
    inside = {f"layers.{k}.{name}": 0.1 * torch.randn(*shape, generator=generator) for k in range(3)}
    return inside | {"decision.weight": torch.randn(24, 32, generator=new)}


def renamed(change: Callable[[str], str]) -> Weights:
    return {change(name): weight for name, weight in moved(ROOT, 4).items()}


META = {"attention.attention.query": "attention.wq", "attention.attention.key": "attention.wk"}
META |= {"attention.attention.value": "attention.wv", "attention.output.dense": "attention.wo"}


def as_meta(name: str) -> str:
    for old, new in META.items():
        name = name.replace(old, new)
    return name.replace("intermediate.dense", "feed_forward.w1").replace("output.dense", "feed_forward.w2")


TURNED = {name: weight.T.contiguous() if weight.ndim == 2 else weight for name, weight in moved(ROOT, 4).items()}


@pytest.mark.parametrize(
    ("parent", "child", "words"),
    [
        (ROOT, renamed(lambda name: f"_orig_mod.{name}"), "agrees"),
        (ROOT, renamed(lambda name: f"net.{name}"), "agrees"),
        (ROOT, renamed(as_meta), "agrees"),
        (ROOT, TURNED, ""),
        (ROOT, lstm(1, 2), "not comparable"),
        # Only their heads differ: which was first nothing says.
        (lstm(1, 1), lstm(1, 2), "not confirmed"),
        (fused(1, 1, "attn.in_proj_weight"), fused(1, 2, "attn.in_proj_weight"), "not confirmed"),
        (fused(1, 1, "experts.gate_up_proj"), fused(1, 2, "experts.gate_up_proj"), "not confirmed"),
    ],
    ids=["compiled", "wrapped", "meta", "transposed", "others", "lstm", "in_proj", "experts"],
)
def test_what_cannot_be_compared_is_not_accused(parent: Weights, child: Weights, words: str, tmp_path: Path) -> None:
    (one,) = verdicts(tmp_path, {"parent": parent, "child": child}, {"child": "parent"}).values()
    assert words in one["verdict"] + one["reason"] and one["verdict"] != "contradicted"
    if words == "not comparable":
        explained = run_here("mother", ("explain", "parent", "child", "--to", tmp_path / "out"), main)
        assert explained[0] == 0 and "They cannot be compared" in explained[1]


def test_layers_at_other_places_are_not_unrelated(tmp_path: Path) -> None:
    """A model of the upper half of its parent's blocks, numbered anew."""
    wide = base(3) | {name.replace(".layer.", ".layer.1"): w for name, w in base(4).items() if ".layer." in name}
    upper = {name.replace(".layer.1", ".layer."): w for name, w in moved(wide, 1).items() if ".layer.1" in name}
    upper = {name: weight for name, weight in upper.items() if name.count(".") == list(base(3))[-1].count(".")}
    models = {"parent": base(3) | {name: w for name, w in wide.items() if name not in base(3)}, "child": upper}
    found = verdicts(tmp_path, models, {"child": "parent"})
    assert all(one["verdict"] != "contradicted" for one in found.values())


def test_honest_merges_and_roundings_are_not_accused(tmp_path: Path) -> None:
    """Parents absent, five of them, task arithmetic, layers of two; roundings of other kinds than to nearest."""
    kids = children(5)
    inside = [name for name in ROOT if ROOT[name].ndim == 2]

    def floored(weight: torch.Tensor) -> torch.Tensor:
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        return (weight / step).floor() * step

    models = {"root": ROOT, "a": kids[0], "b": kids[1]}
    made = {
        "five": ("a + b", mixed(*((0.2, kid) for kid in kids))),
        "half_absent": ("a", mixed((0.5, kids[0]), (0.5, kids[2]))),
        "task": ("root + a + b", mixed((0.2, ROOT), (0.4, kids[0]), (0.4, kids[1]))),
        "more": ("root + a + b", mixed((-0.4, ROOT), (0.7, kids[0]), (0.7, kids[1]))),
        "negated": ("root + a", mixed((1.4, ROOT), (-0.4, kids[0]))),
        "layers": ("a + b", {name: kids[int(name in inside[::2])][name] for name in ROOT}),
        "floor": ("a", {name: floored(w) if w.ndim == 2 else w for name, w in kids[0].items()}),
        "floor_some": ("a", {name: floored(w) if name in inside[::3] else w for name, w in kids[0].items()}),
    }
    claims = {name: parents for name, (parents, _) in made.items()} | {"a": "root", "b": "root"}
    found = verdicts(tmp_path, models | {name: weights for name, (_, weights) in made.items()}, claims)
    assert len(found) == 17 and {one["verdict"] for one in found.values()} <= {"agrees", "not confirmed"}


def turned(weights: Weights, rotation: torch.Tensor) -> Weights:
    """The residual stream in another basis: inputs of what reads from it, outputs of what writes to it."""
    writes = ("output.dense", "patch_embeddings")
    return {
        name: weight
        if weight.ndim != 2
        else (rotation.T @ weight if any(one in name for one in writes) else weight @ rotation)
        for name, weight in weights.items()
    }


def test_inheritance_that_the_matrices_do_not_show_is_no_lie(tmp_path: Path) -> None:
    """A rotated model that was trained a little, units in another order, and a model that took the embedding only."""
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3)))[0]
    order = torch.randperm(32, generator=torch.Generator().manual_seed(4))
    table = {"embeddings.word_embeddings.weight": torch.randn(100, 32, generator=torch.Generator().manual_seed(6))}
    models = {
        "root": ROOT | table,
        "rotated": moved(turned(ROOT, rotation), 2, size=0.02),
        "reordered": turned(ROOT, torch.eye(32)[order]),
        "embedding": base(12) | table,
        "liar": base(13),
    }
    claims = dict.fromkeys(("rotated", "reordered", "embedding", "liar"), "root")
    found = verdicts(tmp_path, models, claims, code=3)
    assert found["liar < root"]["verdict"] == "contradicted"
    for name, words in {"rotated": "rotation", "reordered": "rotation", "embedding": "embeddings or heads"}.items():
        one = found[f"{name} < root"]
        assert one["verdict"] == "not confirmed" and words in one["reason"], one


def test_a_mean_of_a_run_is_not_accused(tmp_path: Path) -> None:
    """The mean of the last steps is like a parent of the last one: between them is noise, and no learning."""
    generator = torch.Generator().manual_seed(9)
    mean = moved(moved(ROOT, 1), 51, size=0.2, rank=1)
    raw = {name: w + 0.01 * torch.randn(w.shape, generator=generator) for name, w in mean.items()}
    models = {"root": ROOT, "raw": raw, "mean": mean, "other": moved(moved(ROOT, 2), 52, size=0.2, rank=1)}
    tuned = moved(moved(mean, 3), 53, size=0.2, rank=1)
    found = verdicts(tmp_path, models | {"tuned": tuned}, {"mean": "raw", "tuned": "raw", "raw": "root"})
    assert all(one["verdict"] != "contradicted" for one in found.values())


@pytest.mark.parametrize("made", ["cast", "grid"])
def test_rounding_of_an_absent_parent_accuses_none_of_its_children(made: str, tmp_path: Path) -> None:
    """A low rank on some matrices of a model that is not there, whose cast (or grid) is: the rest is rounded exactly.

    The rounding says that the finer one was not made from the coarser, not that the coarser was made from it.
    """
    parent = moved(ROOT, 1)
    inside = [name for name in parent if parent[name].ndim == 2]
    lora = moved(parent, 5, rank=2)
    some = {name: lora[name] if name in inside[::3] else parent[name] for name in parent}
    if made == "cast":
        coarse = {name: w.bfloat16() for name, w in parent.items()}
    else:
        step = {name: parent[name].abs().amax(1, keepdim=True) / 127 for name in inside}
        coarse = {name: (w / step[name]).round() * step[name] if name in step else w for name, w in parent.items()}
    kids = {f"of{k}": moved(some, 60 + k, rank=1) for k in range(2)} | {
        f"beside{k}": moved(ROOT, 70 + k) for k in range(2)
    }
    kids |= {"of_coarse": moved({name: w.float() for name, w in coarse.items()}, 80)}
    models = {"root": ROOT, "some": some, "coarse": coarse} | kids
    claims = {"some": "root", "coarse": "root"} | {f"of{k}": "some + root" for k in range(2)}
    found = verdicts(tmp_path, models, claims)
    assert len(found) == 6 and all(one["verdict"] != "contradicted" for one in found.values())


def test_lies_are_caught(tmp_path: Path) -> None:
    """An unrelated parent, a sibling, a child; true claims beside them agree."""
    # What is learned has leading directions, far above those of noise.
    kids = [*(moved(kid, 50 + at, size=0.2, rank=1) for at, kid in enumerate(children(3))), moved(ROOT, 8, rank=2)]
    models = {"root": ROOT, "stranger": base(9)} | dict(zip("abcd", kids)) | {"grand": moved(kids[3], 9, rank=2)}
    claims = {"stranger": "root", "a": "b", "d": "grand", "b": "root", "grand": "root"}
    found = verdicts(tmp_path, models, claims, code=3)
    said = {pair: one["verdict"] for pair, one in found.items()}
    lies = ("stranger < root", "a < b", "d < grand")
    assert said == dict.fromkeys(lies, "contradicted") | {"b < root": "agrees", "grand < root": "agrees"}
    assert "z = " in found["stranger < root"]["reason"] and "holds nothing" in found["a < b"]["reason"]
    assert "grand was made from d" in found["d < grand"]["reason"]


def test_a_drift_that_all_share_excludes_nothing(tmp_path: Path) -> None:
    """Children of a root that was never annealed lose its noise: newness then points backwards.

    The tree may be wrong; that the children are the root's is not called a lie.
    """
    noisy = moved(ROOT, 20, size=0.3)
    drift = {name: ROOT[name] - noisy[name] for name in ROOT}
    kids = {
        f"k{k}": moved({name: noisy[name] + share * drift[name] for name in ROOT}, 30 + k, size=0.02 + 0.05 * k)
        for k, share in enumerate((0.3, 0.5, 0.7))
    }
    found = verdicts(tmp_path, {"root": noisy} | kids, dict.fromkeys(kids, "root"))
    assert all(one["verdict"] != "contradicted" for one in found.values())


# The statistics, against what they are by theory


def sketches(folder: Path, **models: Weights) -> list[Sketch]:
    opened = [open_checkpoint(name, save_model(folder / name, weights)) for name, weights in models.items()]
    return sketch_models(opened, folder / "kept").sketches


def test_shares_of_an_update(tmp_path: Path) -> None:
    a, b = moved(ROOT, 1), moved(ROOT, 2)
    half, grand = mixed((0.5, a), (0.5, b)), moved(a, 3)
    root, end, other, merge, child = sketches(tmp_path, root=ROOT, a=a, b=b, half=half, grand=grand)
    expected = {id(end): 1.0, id(other): 0.0, id(merge): 0.5, id(child): 1.0}
    for model in (end, other, merge, child):
        share = update_share(model, root, end)
        assert abs(share.mean - expected[id(model)]) < 4 * share.error + 0.03 and share.layers > 10
    assert update_share(other, root, end).is_near(0.0, 0.1, 3.0) and not update_share(merge, root, end).is_near(
        0.0, 0.3, 3.0
    )
    assert update_share(end, root, root) is None  # nothing changed


def test_pruning_by_size_leaves_the_smallest_kept_next_to_the_largest_gone(tmp_path: Path) -> None:
    def pruned(weight: torch.Tensor) -> torch.Tensor:
        return torch.where(weight.abs() > weight.abs().median(), weight, 0)

    small = {name: pruned(w) if w.ndim == 2 else w for name, w in ROOT.items()}
    generator = torch.Generator().manual_seed(7)
    grown = {
        name: torch.where(w == 0, 1e-3 * torch.randn(w.shape, generator=generator), w) for name, w in small.items()
    }
    every_other = {name: w * (torch.arange(w.shape[-1]) % 2) if w.ndim == 2 else w for name, w in ROOT.items()}
    root, less, regrown, other = sketches(tmp_path, root=ROOT, less=small, regrown=grown, other=every_other)
    assert pruned_by_size(root, less) and not pruned_by_size(regrown, less)
    assert not pruned_by_size(root, other) and not pruned_by_size(root, root)


def test_errors_of_a_grid_fill_its_step(tmp_path: Path) -> None:
    """Against the deviation of a uniform number, 1 / sqrt(12); a model that was trained from the grid is nearer."""
    step = {name: w.abs().amax(1, keepdim=True) / 7 if w.ndim == 2 else 1 for name, w in ROOT.items()}
    grid = {name: (w / step[name]).round() * step[name] if w.ndim == 2 else w for name, w in ROOT.items()}
    root, four, tuned = sketches(tmp_path, root=ROOT, four=grid, tuned=moved(grid, 1, size=0.01))
    errors = step_errors(root, four)
    assert all_in(errors, STEPS) and STEPS[0] < np.mean([at for at, _ in errors]) < STEPS[1]
    assert max(at for at, _ in step_errors(tuned, four)) < 0.15
    assert not step_errors(root, root) and not all_in([], STEPS)
    last = next(name for name in reversed(grid) if grid[name].ndim == 2)
    (sibling,) = sketches(tmp_path, sibling=ROOT | {last: moved(ROOT, 3, rank=2)[last]})
    assert not all_in(step_errors(sibling, four), STEPS)  # the root's grid, but for one matrix


def test_leading_directions_tell_learning_from_noise(tmp_path: Path) -> None:
    """Noise of any shape stays at the edge of Marchenko and Pastur; one strong direction of n takes all of it."""
    generator = torch.Generator().manual_seed(5)
    noise = {name: w + 0.01 * torch.randn(w.shape, generator=generator) for name, w in ROOT.items()}
    root, noisy, learned = sketches(tmp_path, root=ROOT, noisy=noise, learned=moved(ROOT, 1, rank=1))
    assert 0.7 < leading_energy(root, noisy) < 1.3 < LEADING
    assert leading_energy(root, learned) == pytest.approx(32 / 4, rel=0.05)  # square: (1 + 1)^2
    assert leading_energy(root, root) == 0


def test_inheritance_and_decay(tmp_path: Path) -> None:
    decayed = {name: 0.8 * weight for name, weight in ROOT.items()}
    root, other, child, shrunk = sketches(tmp_path, root=ROOT, other=base(9), child=moved(ROOT, 1), shrunk=decayed)
    alone = inheritance(root, other)
    assert abs(alone.z) < 4 and alone.lacks(0.1, 6.0)
    assert not inheritance(root, child).lacks(0.1, 6.0)
    equal = inheritance(root, root)
    assert equal.z == pytest.approx(equal.unit, rel=1e-3)
    assert radial_share(root, shrunk) == pytest.approx(1, abs=1e-4) and radial_share(root, child) < 0.05


def test_rounding_fills_its_step_evenly(tmp_path: Path) -> None:
    """Against the expectation over runs of 32 uniform numbers, by scipy; training leaves other shapes."""
    drawn = np.abs(np.random.default_rng(0).uniform(-1, 1, (20000, 32)))
    theory = float((np.sqrt((drawn**2).mean(1)) / drawn.max(1)).mean())
    assert ROUNDED[0] < theory < ROUNDED[1]
    assert stats.beta(32, 1).mean() == pytest.approx(drawn.max(1).mean(), abs=2e-3)  # the largest of 32
    step = {name: w.abs().amax(1, keepdim=True) / 127 if w.ndim == 2 else 1 for name, w in ROOT.items()}
    grid = {name: (w / step[name]).round() * step[name] for name, w in ROOT.items() if w.ndim == 2}
    half = {name: w.bfloat16().float() for name, w in ROOT.items()}
    signs = {name: w + 1e-3 * torch.sign(torch.randn(w.shape)) for name, w in ROOT.items() if w.ndim == 2}
    names = sketches(tmp_path, root=ROOT, grid=ROOT | grid, half=half, trained=moved(ROOT, 1), signs=ROOT | signs)
    root, rounded, cast, trained, stepped = names
    for made, binary in ((rounded, False), (cast, True)):
        told = rounding_shapes(root, made, binary)
        assert np.mean([at for at, _ in told]) == pytest.approx(theory, abs=0.01) and all_in(told, ROUNDED)
        assert sum(abs(at - theory) < 3 * error for at, error in told) > 0.9 * len(told)
    assert max(at for at, _ in rounding_shapes(root, trained, False)) < ROUNDED[0]
    assert min(at for at, _ in rounding_shapes(root, stepped, False)) > ROUNDED[1]
    assert not rounding_shapes(root, root, False)

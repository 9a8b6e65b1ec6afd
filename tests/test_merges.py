"""Merges from files to the graph: which model was mixed of which, in every type, and that nothing else is called so."""

from pathlib import Path

import pytest
import torch
from conftest import save_model

from mother.graph.model_graph import ModelGraph
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io.open import open_checkpoint

WIDTH = 48
Weights = dict[str, torch.Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# The least share of its weights that a model has to move by, for a merge to be told from rounding.
LEAST = {"bfloat16": 0.02, "float16": 0.005, "float32": 0.001}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def root() -> Weights:
    names = [f"encoder.layer.{block}.attention.attention" for block in range(4)]
    kinds = ("query", "key", "value")
    return {
        f"{name}.{kind}.weight": 0.05 * draw(10 * b + k, WIDTH, WIDTH)
        for b, name in enumerate(names)
        for k, kind in enumerate(kinds)
    }


def moved(weights: Weights, seed: int, size: float) -> Weights:
    """A step of a few strong directions and many weak ones, as training makes."""
    result = {}
    for k, (name, weight) in enumerate(weights.items()):
        step = draw(1000 * seed + k, WIDTH, WIDTH)
        step += 0.6 * draw(1000 * seed + k + 300, WIDTH, 4) @ draw(1000 * seed + k + 600, 4, WIDTH)
        result[name] = weight + step * (size * weight.norm() / step.norm())
    return result


def stored(weights: Weights, dtype: str) -> Weights:
    return {name: weight.to(DTYPES[dtype]) for name, weight in weights.items()}


def family(dtype: str, size: float) -> dict[str, Weights]:
    """A base and models trained from it, stored in one type."""
    base = root()
    tuned = {name: moved(base, 1 + k, size) for k, name in enumerate("abcde")}
    return {name: stored(weights, dtype) for name, weights in {"base": base, **tuned}.items()}


def mixed(models: dict[str, Weights], shares: dict[str, float], dtype: str, exact: bool = True) -> Weights:
    """A combination in float64, rounded once, or with every product and sum rounded to the type."""
    kind = torch.float64 if exact else DTYPES[dtype]
    return {
        name: sum(share * models[model][name].to(kind) for model, share in shares.items()).to(DTYPES[dtype])
        for name in models["base"]
    }


def recover(folder: Path, models: dict[str, Weights]) -> ModelGraph:
    opened = [open_checkpoint(name, save_model(folder / name, weights)) for name, weights in models.items()]
    return build_graph("test", trace(opened, torch.device("cpu")))


def merges(graph: ModelGraph) -> dict[str, dict[str, dict]]:
    """By child and parent, the attributes of the edges of merges."""
    found: dict[str, dict[str, dict]] = {}
    for edge in graph.edges:
        if edge.attributes["kind"] == "merge":
            found.setdefault(edge.child, {})[edge.parent] = edge.attributes
    return found


MIXTURES = (
    {"a": 0.5, "b": 0.5},
    {"a": 0.7, "b": 0.3},
    {"a": 0.5, "b": 0.3, "c": 0.2},
    {"a": 0.4, "b": 0.4, "base": 0.2},
    dict.fromkeys("abcde", 0.2),
    {"a": 0.2, "b": 0.3, "c": 0.1, "d": 0.4},
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shares", MIXTURES)
def test_linear_merges_are_found_in_every_type(dtype: str, shares: dict[str, float], tmp_path: Path) -> None:
    models = family(dtype, LEAST[dtype])
    found = merges(recover(tmp_path, models | {"merge": mixed(models, shares, dtype)}))
    assert found.keys() == {"merge"} and found["merge"].keys() == shares.keys()
    for parent, facts in found["merge"].items():
        assert facts["coefficient"] == pytest.approx(shares[parent], abs=0.01) and facts["method"] == "linear"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shares", MIXTURES[1::3])
def test_merges_in_the_arithmetic_of_the_type(dtype: str, shares: dict[str, float], tmp_path: Path) -> None:
    models = family(dtype, 3 * LEAST[dtype])
    found = merges(recover(tmp_path, models | {"merge": mixed(models, shares, dtype, exact=False)}))
    assert found.keys() == {"merge"} and found["merge"].keys() == shares.keys()


def spherical(one: Weights, other: Weights, t: float) -> Weights:
    def mix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        angle = torch.arccos((a * b).sum() / a.norm() / b.norm())
        return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)

    return {name: mix(one[name].double(), other[name].double()).float() for name in one}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shares", [MIXTURES[-1], {"a": 0.5, "b": 0.3, "c": 0.2}])
def test_another_merge_does_not_stand_for_two_parents(dtype: str, shares: dict[str, float], tmp_path: Path) -> None:
    """With another merge of two parents fewer models leave hardly more than the rounding of a coarse type."""
    base = root()
    models = {name: moved(base, 1 + k, size) for k, (name, size) in enumerate(zip("abcd", (0.04, 0.04, 0.1, 0.06)))}
    models |= {"base": base, "slerp": spherical(models["b"], models["c"], 0.3)}
    found = merges(recover(tmp_path, models | {"merge": mixed(models, shares, dtype)}))
    assert found["slerp"].keys() == {"b", "c"} and found["merge"].keys() == shares.keys()


@pytest.mark.parametrize("apart", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_near_a_merge_is_no_parent_of_it(dtype: str, apart: float, tmp_path: Path) -> None:
    """It holds what rounding did to the merge, too, so that with it less seems to be left."""
    models = family(dtype, 3 * LEAST[dtype])
    shares = {"a": 0.7, "b": 0.3}
    merge, ideal = mixed(models, shares, dtype, exact=False), mixed(models, shares, "float32")
    child = {}
    for k, (name, weight) in enumerate(merge.items()):
        step = draw(5000 + k, WIDTH, WIDTH)
        child[name] = weight.float() + step * apart * (weight.float() - ideal[name]).norm() / step.norm()
    found = merges(recover(tmp_path, models | {"merge": merge, "child": child}))
    assert found.keys() == {"merge"} and found["merge"].keys() == shares.keys()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shares", [{"a": 1.0, "b": 1.0, "base": -1.0}, {"a": 1.5, "base": -0.5}, {"base": 1.2, "a": 0.6, "b": -0.8}]
)
def test_task_arithmetic_is_told_by_who_was_rounded_last(dtype: str, shares: dict, tmp_path: Path) -> None:
    models = family(dtype, 0.05)
    found = merges(recover(tmp_path, models | {"merge": mixed(models, shares, dtype)}))
    assert found.keys() == {"merge"} and found["merge"].keys() == shares.keys()
    for parent, facts in found["merge"].items():
        assert facts["coefficient"] == pytest.approx(shares[parent], abs=0.01)
        assert facts["method"] == "task arithmetic" and facts["base"] == "base"


@pytest.mark.parametrize("scale", [-0.5, -0.3, -1.0, 1.5])
def test_a_base_is_no_merge_of_what_leads_away_from_it(scale: float, tmp_path: Path) -> None:
    """Negation and extrapolation as they are written, base + scale * (tuned - base): rounded in each of three steps."""
    models = {name: weights for name, weights in family("float32", 0.1).items() if name in ("base", "a", "b")}
    models["led"] = {name: base + scale * (models["a"][name] - base) for name, base in models["base"].items()}
    assert merges(recover(tmp_path, models)).keys() <= {"led"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_models_that_are_no_merges_are_not_called_so(dtype: str, tmp_path: Path) -> None:
    """Siblings, a run that goes on in steps, and updates of one unit in the last place of few entries."""
    for size in (LEAST[dtype] / 2, 0.02, 0.2):
        models = family(dtype, size)
        models["further"] = stored(moved({k: w.float() for k, w in models["a"].items()}, 20, size / 4), dtype)
        models["further2"] = stored(moved({k: w.float() for k, w in models["further"].items()}, 21, size / 4), dtype)
        few = {}
        for k, (name, weight) in enumerate(root().items()):
            few[name] = weight + (draw(k, WIDTH, WIDTH) > 1) * weight.abs() * 2.0**-7
        models["few"] = stored(few, dtype)
        assert not merges(recover(tmp_path / str(size), models))


def test_layers_of_two_models_beside_a_merge_and_its_child(tmp_path: Path) -> None:
    models = family("float32", 0.1)
    models["swapped"] = {name: models["ab"[".layer.3." in name]][name] for name in models["base"]}
    models["merge"] = mixed(models, {"c": 0.6, "d": 0.4}, "float32")
    models["child"] = moved(models["merge"], 30, 0.05)
    found = merges(recover(tmp_path, models))
    assert found.keys() == {"swapped", "merge"} and found["merge"].keys() == {"c", "d"}
    assert {parent: facts["method"] for parent, facts in found["swapped"].items()} == {"a": "layers", "b": "layers"}
    assert found["swapped"]["a"]["shares"] == [0.75, 0.25]


def test_blocks_that_several_models_have(tmp_path: Path) -> None:
    """A model that was trained from a donor with the donated block frozen may as well be the donor."""
    models = family("float32", 0.1)
    models["swapped"] = {name: models["ab"[".layer.3." in name]][name] for name in models["base"]}
    step = moved(models["b"], 50, 0.05)
    models["frozen"] = {name: models["b"][name] if ".layer.3." in name else weight for name, weight in step.items()}
    found = merges(recover(tmp_path, models))["swapped"]
    (other,) = found.keys() - {"a"}
    assert other in ("b", "frozen") and found[other]["or"] == ["frozen" if other == "b" else "b"]
    assert found[other]["adjacency"] == 0.5


def test_frozen_blocks_are_no_merge(tmp_path: Path) -> None:
    """A model trained from another with frozen blocks shares these with it, and with all its other children."""
    base = root()
    models = {"base": base}
    for k, name in enumerate("abc"):
        step = moved(base, 40 + k, 0.1)
        models[name] = {key: step[key] if f".layer.{k}." in key else weight for key, weight in base.items()}
    assert not merges(recover(tmp_path, models))


@pytest.mark.parametrize("method", ["ties", "dare"])
@pytest.mark.parametrize(
    ("parents", "dtype", "parents_in"),
    [("ab", "float32", "float32"), ("ab", "bfloat16", "float32"), ("ab", "float16", "float32")]
    + [("abc", dtype, dtype) for dtype in DTYPES],
)
def test_merges_of_parts_in_every_type(parents: str, dtype: str, parents_in: str, method: str, tmp_path: Path) -> None:
    models = family(parents_in, 0.05)
    merged = {}
    for k, (name, base) in enumerate(models["base"].items()):
        updates = torch.stack([models[parent][name].double() - base.double() for parent in parents])
        if method == "dare":
            kept = torch.rand(updates.shape, generator=torch.Generator().manual_seed(k)) < 0.5
            update = (updates * kept / 0.5).mean(dim=0)
        else:
            kept = updates * (updates.abs() > updates.abs().flatten(1).quantile(0.7, dim=1)[:, None, None])
            kept = kept * (kept.sign() == kept.sum(dim=0).sign())
            update = kept.sum(dim=0) / (kept != 0).sum(dim=0).clamp(min=1)
        merged[name] = base.double() + update
    found = merges(recover(tmp_path, models | {"merge": stored(merged, dtype)}))
    assert found.keys() == {"merge"} and found["merge"].keys() == {*parents}
    assert {facts["base"] for facts in found["merge"].values()} == {"base"}

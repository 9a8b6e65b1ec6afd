"""Which of two twins a model was trained from, the original or its cast: by the rounding errors that it holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_model, vit_weights
from torch import Tensor

from mother import recover
from mother.evidence.facts import mantissa
from mother.evidence.sketch import Sketch, sketch_models
from mother.evidence.twins import Rounding, held_rounding
from mother.heritage.calibration import Weights
from mother.heritage.trees import RECAST, _prefer_casts
from mother.io.open import open_checkpoint

TYPES = [torch.bfloat16, torch.float16]


def moved(weights: dict[str, Tensor], size: float, generator: torch.Generator) -> dict[str, Tensor]:
    """After an update of this relative size, of rows that learn faster and slower, and some decay."""
    found = {}
    for name, weight in weights.items():
        update = torch.randn(weight.shape, generator=generator) * torch.rand(len(weight), 1, generator=generator)
        scale = size * weight.float().norm() / update.norm() if weight.ndim > 1 else 0.0
        found[name] = weight.float() * (1 - size / 20) + (scale * update if weight.ndim > 1 else 0.0)
    return found


def sketched(folder: Path, models: dict[str, dict[str, Tensor]]) -> dict[str, Sketch]:
    """Sketches of models, by their names."""
    opened = [open_checkpoint(name, save_model(folder / name, weights)) for name, weights in models.items()]
    return {sketch.model: sketch for sketch in sketch_models(opened, folder / "sketches").sketches}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stored", [torch.float32, None])
def test_a_child_holds_the_rounding_of_the_cast_that_it_was_trained_from(
    tmp_path: Path, dtype: torch.dtype, stored: torch.dtype | None
) -> None:
    generator, original = torch.Generator().manual_seed(0), vit_weights(0, blocks=4, width=64)
    size = {torch.bfloat16: 0.01, torch.float16: 0.002}[dtype]
    cast = {name: weight.to(dtype) for name, weight in original.items()}
    children = {"of original": moved(original, size, generator), "of cast": moved(cast, size, generator)}
    models = {"original": original, "cast": cast}
    models |= {name: {n: w.to(stored or dtype) for n, w in child.items()} for name, child in children.items()}
    found = sketched(tmp_path, models)
    bits = mantissa(found["cast"].facts) if stored is None else None
    ratios = [held_rounding(found[name], Rounding(found["original"], found["cast"]), bits) for name in children]
    assert ratios[0] < 0 < ratios[1] and ratios[1] > 5
    assert held_rounding(found["original"], Rounding(found["original"], found["cast"])) == 0  # nothing moved


def test_a_large_move_tells_nothing(tmp_path: Path) -> None:
    generator, original = torch.Generator().manual_seed(0), vit_weights(0)
    cast = {name: weight.to(torch.float16) for name, weight in original.items()}
    found = sketched(tmp_path, {"original": original, "cast": cast, "child": moved(cast, 0.5, generator)})
    assert abs(held_rounding(found["child"], Rounding(found["original"], found["cast"]))) < 2


def test_what_holds_the_rounding_comes_from_the_cast_and_is_not_beside_the_original() -> None:
    """Model 1 is a cast of 0; 2 is stored as 0 and holds the rounding, 3 as the cast and was not measured."""
    weights = Weights(np.zeros((4, 4)), np.zeros((4, 4)))
    _prefer_casts(weights, [(1, 0)], [23, 7, 23, 7], {(1, 0, 2): 9.0})
    assert weights.parent[1, 2] == 0 and weights.parent[0, 2] == RECAST - 9 and weights.beside[0, 2] == -9
    assert weights.parent[1, 3] == 0 and weights.parent[0, 3] == -RECAST and weights.beside[0, 3] == 0


def test_what_holds_no_steps_of_a_quantized_model_is_not_made_from_it() -> None:
    """Model 1 is a quantized 0; nothing but the measured ratio counts."""
    weights = Weights(np.zeros((3, 3)), np.zeros((3, 3)))
    _prefer_casts(weights, [], [23, 23, 23], {(1, 0, 2): -5.0})
    assert weights.parent[1, 2] == weights.beside[1, 2] == -5 and weights.parent[0, 2] == 0
    assert np.count_nonzero(weights.parent) == np.count_nonzero(weights.beside) == 1


def test_recover_tells_the_child_of_a_cast(tmp_path: Path) -> None:
    """Stored in full precision again, as when a half-precision release is trained on."""
    generator, root = torch.Generator().manual_seed(1), vit_weights(1, blocks=4, width=64)
    original = moved(root, 0.05, generator)
    cast = {name: weight.to(torch.float16) for name, weight in original.items()}
    models = {"root": root, "original": original, "cast": cast, "child": moved(cast, 0.003, generator)}
    models |= {"other": moved(original, 0.003, generator)}
    for name, weights in models.items():
        save_model(tmp_path / "models" / name, weights)
    graph = recover(tmp_path / "models", out=tmp_path / "out")
    assert graph.has_edge("cast", "child") and graph.has_edge("original", "other")

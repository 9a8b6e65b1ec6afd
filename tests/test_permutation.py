"""Permutations of hidden units: what they leave alone, the null that they give, and who still stands out of it."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_alignment import CPU, sketched
from test_heritage import base

from mother.evidence.first_pass import of_both, take_first_pass
from mother.evidence.permutation import DRAWS, Permuted, _drawn, _variance, permuted, window, without_profiles
from mother.evidence.relatedness import layer_cosine, near_threshold, related_components
from mother.io.layers import Layer

SHAPES = {"up": (40, 24), "down": (24, 40), "square": (24, 24), "convolution": (24, 72)}


def unlike(seed: int, profile: float = 1.5, tilt: float = 1.0) -> dict[Layer, torch.Tensor]:
    """A model of independent weights whose kind has one profile of columns, their scales and a diagonal."""
    own, kind = (torch.Generator().manual_seed(one) for one in (seed, 10_000))
    found = {}
    for name, (rows, columns) in SHAPES.items():
        common = profile * torch.randn(columns, generator=kind)
        scales = torch.exp(tilt * torch.randn(columns, generator=kind) / 2)
        weight = torch.randn(rows, columns, generator=own) * scales + common
        if name == "square":
            weight += 2 * torch.eye(rows)
        found[Layer("0", name)] = weight
    return found


def two_tested(one: dict[Layer, torch.Tensor], other: dict[Layer, torch.Tensor]) -> Permuted:
    return permuted((layer, torch.stack([one[layer], other[layer]])) for layer in one)


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (4, 4), (4, 12)])
def test_nothing_is_left_that_permutations_leave_alone(rows: int, columns: int) -> None:
    """The mean over all permutations of rows, of columns, and of both alike is 0: counted out."""
    weights = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(columns)) + 1
    (one, other), there, _ = without_profiles(weights)
    assert there.all() and torch.allclose(one.square().sum(), torch.tensor(1.0))
    again, _, _ = without_profiles(weights.transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.allclose(again[0], one, atol=1e-6)
    orders = [list(order) for order in permutations(range(rows))]
    assert abs(float(sum((one * other[order]).sum() for order in orders))) < 1e-4
    assert abs(float(one.sum(dim=0).abs().max())) < 1e-5 and abs(float(one.sum(dim=1).abs().max())) < 1e-5
    if columns % rows == 0:
        kernels = other.view(rows, rows, -1)
        both = [kernels[order][:, order].reshape(rows, columns) for order in orders]
        assert abs(float(sum((one * turned).sum() for turned in both))) < 1e-4


def test_the_spread_is_that_of_all_permutations() -> None:
    sums = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [sum(sums[i, k] for i, k in enumerate(order)) for order in permutations(range(5))]
    assert np.isclose(_variance(sums), np.var(values))
    drawn = _drawn({5: sums})
    assert len(drawn) == DRAWS and set(np.round(drawn.numpy(), 9)) <= set(np.round(values, 9))


def test_the_null_holds_where_all_models_have_one_profile() -> None:
    """Without permutations such models look related."""
    models = [unlike(seed) for seed in range(16)]
    found = [two_tested(models[i], models[j]) for i in range(16) for j in range(i)]
    p, scores = np.array([one.p for one in found]), np.array([one.score for one in found])
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p <= level).mean() <= level + 3 * (level * (1 - level) / len(p)) ** 0.5
        # Of two axes the one that says less counts: p is not far above uniform.
        assert (p <= level).mean() >= level / 2 - 2 * (level / len(p)) ** 0.5
    assert 0.8 < scores.std() < 1.35 and scores.max() < 4
    layer = Layer("0", "up")
    flat = torch.stack([model[layer].flatten() for model in models])
    naive = torch.corrcoef(flat).numpy()[np.triu_indices(16, 1)] * flat.shape[1] ** 0.5
    assert naive.mean() > 10
    z, _ = layer_cosine(torch.stack([model[layer] for model in models]))
    assert abs(float(z.numpy()[np.triu_indices(16, 1)].mean())) < 0.3


def test_layers_that_go_together_are_no_replicates() -> None:
    """A model that repeats one matrix in twelve layers has one cosine, not twelve."""

    def repeated(seed: int) -> dict[Layer, torch.Tensor]:
        weight = torch.randn(30, 30, generator=torch.Generator().manual_seed(seed))
        return {Layer(str(block), "query"): weight for block in range(12)}

    found = [two_tested(repeated(seed), repeated(seed + 100)).score for seed in range(30)]
    assert 0.7 < np.std(found) < 1.3


def test_a_weak_relative_stands_out(tmp_path: Path) -> None:
    strangers = {f"s{seed}": base(seed) for seed in range(2, 6)}
    parent, noise = base(0), base(1)
    child = {name: 0.05 * parent[name] + noise[name] if noise[name].ndim == 2 else noise[name] for name in noise}
    first = take_first_pass(sketched(tmp_path, a=parent, b=child, **strangers), CPU)
    assert first.permuted[0, 1].score == first.relatedness[0, 1] == first.relatedness[1, 0] > 4
    labels = related_components(first.relatedness, 0.01)
    assert labels[0] == labels[1] and labels.max() == 4


def test_a_computed_table_is_left_out_and_named() -> None:
    """Mamba's A_log begins as the same table in each model; an identity is no sign, either."""
    table = torch.log(torch.arange(1.0, 17.0)).expand(40, 16)
    found = []
    for seed in range(12):
        models = []
        for one in (seed, seed + 50):
            model, generator = unlike(one), torch.Generator().manual_seed(one)
            moved = table + 1e-4 * torch.randn(40, 16, generator=generator)
            models.append(model | {Layer(str(block), "A_log"): moved for block in range(20)})
        found.append(two_tested(*models))
    assert all(one.left_out == tuple(Layer(str(block), "A_log") for block in range(20)) for one in found)
    assert all(one.layers == len(SHAPES) and abs(one.score) < 4 for one in found)
    same = table + 1e-3 * torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    z, valid = layer_cosine(torch.stack([same, same]))
    assert not valid.any() and not z.any()
    eye = torch.eye(48) + 0.02 * torch.randn(2, 48, 48, generator=torch.Generator().manual_seed(0))
    z, valid = layer_cosine(eye)
    assert valid.all() and abs(float(z[0, 1])) < 4
    nothing = permuted([(Layer("0", "A_log"), torch.stack([table, table]))])
    assert (nothing.score, nothing.p, nothing.layers) == (0.0, 1.0, 0)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_other_models_count_by_their_number_alone(data: st.DataObject) -> None:
    """What is said of a pair does not change when unrelated models are replaced by others."""
    count = data.draw(st.integers(0, 6))
    score = data.draw(st.floats(0, 9))
    decisions = []
    for _ in range(2):
        z = np.zeros((count + 2, count + 2))
        z[0, 1] = z[1, 0] = data.draw(st.just(score))
        others = [(i, j) for j in range(2, count + 2) for i in range(j)]
        for i, j in others:
            z[i, j] = z[j, i] = data.draw(st.floats(-3, 0.2))
        layers = np.full_like(z, 4.0)
        exact = Permuted(score / 1.1, 1 / (1 + DRAWS), 4, ())
        scores, tests = near_threshold(z, layers, lambda i, j: exact if (i, j) == (0, 1) else Permuted(0.0, 0.5, 4, ()))
        labels = related_components(scores, 0.01)
        decisions.append((scores[0, 1], labels[0] == labels[1]))
    assert decisions[0] == decisions[1]


def test_a_pair_has_one_score_in_every_collection(tmp_path: Path) -> None:
    every = sketched(tmp_path, **{f"m{seed}": unlike_names(seed) for seed in range(7)})
    one = permuted(of_both(every[0], every[1]))
    for others in ([2], [3, 4], [2, 3, 4, 5, 6]):
        first = take_first_pass([every[0], every[1], *(every[place] for place in others)], CPU)
        assert first.permuted.get((0, 1), one) == one
        assert all(first.relatedness[pair] == found.score for pair, found in first.permuted.items())


def unlike_names(seed: int) -> dict[str, torch.Tensor]:
    return {f"layers.{layer.block}.{layer.kind}.weight": weight for layer, weight in unlike(seed).items()}


def test_only_pairs_near_the_threshold_are_looked_at() -> None:
    z = np.zeros((200, 200))
    for pair, score in (((0, 1), 4.3), ((2, 3), 200.0), ((4, 5), 12.0), ((6, 7), 1.0)):
        z[pair] = z[pair[::-1]] = score
    assert window(z, np.full_like(z, 16.0)) == [(0, 1), (4, 5)]  # 12 is what copies of one layer of 3 give
    assert window(z, np.full_like(z, 1.0)) == [(0, 1)]
    assert window(z, np.zeros_like(z)) == []
    assert window(np.zeros((1, 1)), np.ones((1, 1))) == []

"""Third models between two: distances, entries and ranks that add up along ways, kurtosis and spectra of updates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from test_heritage import base, models, moved
from torch import Tensor

from mother.evidence import differences
from mother.evidence.candidates import comparable_square
from mother.evidence.differences import compare_pairs, scaled_kurtosis
from mother.evidence.triples import FEATURES, Triples, look_between, paired_t
from mother.heritage.trace import trace
from mother.heritage.trees import Heritage
from mother.numeric.spectra import LEAST_SHARE, flatness, spectrum

CPU = torch.device("cpu")
Weights = dict[str, Tensor]


def between(heritage: Heritage, pairs: list[int] | None = None) -> dict[tuple[str, str, str], dict[str, float]]:
    """Features by (end, third, other end), both ways."""
    found = heritage.first_pass, heritage.second_pass
    square = comparable_square(found[0], turned=True)
    numbers = list(range(len(found[1].first))) if pairs is None else pairs
    return named(heritage, look_between(*found, square, [], numbers, list(range(len(square)))))


def named(heritage: Heritage, triples: Triples) -> dict[tuple[str, str, str], dict[str, float]]:
    names, said = heritage.first_pass.models, {}
    for p, third, values in zip(triples.pair, triples.third, triples.features):
        ends = names[heritage.second_pass.first[p]], names[heritage.second_pass.second[p]]
        said[ends[0], names[third], ends[1]] = said[ends[1], names[third], ends[0]] = dict(zip(FEATURES, values))
    return said


def few_changed(weights: Weights, seed: int, share: float = 0.03) -> Weights:
    """A step that changes few entries."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {name: torch.rand(weight.shape, generator=generator) < share for name, weight in weights.items()}
    return {name: torch.where(chosen[name] & (w.ndim == 2), w + 0.1, w) for name, w in weights.items()}


def walk(step: object, start: Weights, seeds: list[int], **options: object) -> list[Weights]:
    """Models of a run that goes on."""
    chain = [start]
    for seed in seeds:
        chain.append(step(chain[-1], seed, **options))
    return chain


STEPS = {
    "length": (moved, {}),
    "equal": (few_changed, {}),
    "rank": (moved, {"rank": 2}),
}
LEAST = {"length": 0.35, "equal": 0.85, "rank": 0.85}  # steps of a walk are orthogonal: log(3 / 2) of three and two


@pytest.mark.parametrize("feature", STEPS)
def test_of_a_chain_the_middle_lies_between(feature: str, tmp_path: Path) -> None:
    step, options = STEPS[feature]
    chain = walk(step, base(0), [1, 2, 3], **options)
    said = between(trace(models(tmp_path, **dict(zip("abcd", chain))), CPU))
    middle = [("a", "b", "c"), ("b", "c", "d"), ("a", "b", "d"), ("a", "c", "d")]
    ends = [("a", "c", "b"), ("a", "d", "b"), ("b", "a", "c"), ("b", "d", "c"), ("c", "b", "d"), ("c", "a", "d")]
    for ways, right in ((middle, True), (ends, False)):
        values = [said[way][feature] for way in ways]
        far = LEAST[feature]
        assert min(values) > far if right else max(values) < -far
    for name in {"equal", "rank"} - {feature}:
        assert {values[name] for values in said.values()} == {0} or name == "equal"


@pytest.mark.parametrize("feature", STEPS)
def test_of_a_star_the_hub_lies_between(feature: str, tmp_path: Path) -> None:
    step, options = STEPS[feature]
    leaves = {f"leaf{k}": step(base(0), k, **options) for k in range(1, 5)}
    said = between(trace(models(tmp_path, hub=base(0), **leaves), CPU))
    for (one, third, other), values in said.items():
        if third == "hub":
            assert values[feature] > LEAST[feature]
        elif "hub" in (one, other):
            assert values[feature] < -LEAST[feature]
        else:
            assert values[feature] < 0.1


def test_the_likeliest_third_models_hold_the_largest_odds(tmp_path: Path) -> None:
    """Of a star with few pairs most third models were not looked at: the nearest and the farthest stand for these."""
    leaves = {f"leaf{k}": moved(base(0), k) for k in range(1, 24)}
    heritage = trace(models(tmp_path, hub=base(0), **leaves), CPU)
    found = heritage.first_pass, heritage.second_pass
    square, places = comparable_square(found[0], turned=True), list(range(24))
    pairs = list(range(len(found[1].first)))
    every, some = (look_between(*found, square, [], pairs, places, likeliest) for likeliest in (False, True))
    assert len(some.pair) < len(every.pair)
    said = [named(heritage, one) for one in (every, some)]
    assert said[1].items() <= said[0].items()
    for slopes in (np.ones(len(FEATURES)), -np.ones(len(FEATURES))):
        largest = [np.full(len(pairs), -np.inf) for _ in said]
        for most, one in zip(largest, (every, some)):
            np.maximum.at(most, one.pair, one.features @ slopes)
        assert np.array_equal(*largest)


def test_what_was_not_looked_at_says_nothing(tmp_path: Path) -> None:
    heritage = trace(models(tmp_path, **dict(zip("abc", walk(moved, base(0), [1, 2], rank=2)))), CPU)
    second = heritage.second_pass
    kept = [second.number(0, 1), second.number(0, 2)]
    arrays = {name: values[:, kept] for name, values in second.arrays.items()}
    triple = {name: values[kept] for name, values in second.triple.items()}
    ends = {"first": second.first[kept], "second": second.second[kept]}
    part = replace(second, **ends, arrays=arrays, triple=triple, beyond=second.beyond[:, kept], cast=second.cast[kept])
    whole, cut = between(heritage), between(replace(heritage, second_pass=part))
    assert whole["a", "b", "c"]["rank"] > 0.95
    values = cut["a", "b", "c"]  # b - c is missing
    assert {values[name] for name in ("share", "kurtosis", "equal", "rank")} == {0}
    assert values["length"] == whole["a", "b", "c"]["length"] > 0


def test_a_model_that_equals_an_end_is_no_middle(tmp_path: Path) -> None:
    """Two that differ outside the compared matrices alone stand beside each other."""
    head = "classifier.weight"
    content = {"a": base(0) | {head: torch.ones(3, 32)}, "twin": base(0) | {head: torch.zeros(3, 32)}}
    heritage = trace(models(tmp_path, **content, child=moved(base(0), 1), other=moved(base(0), 2)), CPU)
    assert not heritage.aliases
    said = between(heritage)
    assert ("a", "twin", "child") not in said and ("twin", "a", "child") not in said
    assert said["child", "a", "other"]["length"] > 0.35 and said["child", "twin", "other"]["length"] > 0.35


def test_paired_t() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(12, 4)), rng.normal(size=(12, 4)) - 0.5
    used = np.ones((12, 4), dtype=bool)
    used[:4, 1], used[2:, 2], used[:, 3] = False, False, False
    t = paired_t(one, other, used)
    for pair in (0, 1):
        rows = used[:, pair]
        expected = stats.ttest_rel(one[rows, pair], other[rows, pair]).statistic
        assert t[pair] == pytest.approx(expected)
    assert t[2] == t[3] == 0  # two layers, and none, tell nothing


# Kurtosis of updates


def test_kurtosis_is_that_of_the_scaled_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(3, 40, 60, generator=generator, dtype=torch.float64)
    step[1] = torch.rand(40, 60, generator=generator, dtype=torch.float64) - 0.5
    step[2] = step[2] ** 3
    plain = step / step.square().mean(dim=2, keepdim=True).sqrt()
    plain = plain / plain.square().mean(dim=1, keepdim=True).sqrt()
    both = torch.cat([plain, -plain], dim=1).flatten(1).numpy()  # the mean is taken for zero
    expected = stats.kurtosis(both, axis=1)
    assert scaled_kurtosis(step).numpy() == pytest.approx(expected)
    # Rows and columns that learn faster do not count.
    rows, columns = torch.rand(40, 1, generator=generator) * 5 + 0.1, torch.rand(1, 60, generator=generator) * 5 + 0.1
    assert scaled_kurtosis(step * rows).numpy() == pytest.approx(expected)
    assert scaled_kurtosis(step * rows * columns)[:2].numpy() == pytest.approx(expected[:2], abs=0.1)
    assert float(scaled_kurtosis(step * (rows * columns))[1]) < -1 < float(scaled_kurtosis(step)[0])
    assert scaled_kurtosis(torch.zeros(1, 4, 4)).tolist() == [0]


def test_an_update_of_bounded_steps_is_below_gaussian_and_another_one_hides_it() -> None:
    """Steps of Adam have about one size: k of them have an excess kurtosis of -2 / k. What is added moves it to 0."""
    generator = torch.Generator().manual_seed(1)
    for steps in (3, 8):
        signs = torch.randint(0, 2, (steps, 400, 400), generator=generator).double() * 2 - 1
        update, noise = signs.sum(dim=0), torch.randn(400, 400, generator=generator).double() * steps**0.5
        mixed = torch.stack([update + size * noise for size in (0.0, 0.5, 1.0, 2.0)])
        found = scaled_kurtosis(mixed)
        assert float(found[0]) == pytest.approx(-2 / steps, abs=0.05)
        assert (found.diff() > 0).all() and abs(float(found[-1])) < 0.08


def bounded(weights: Weights, seed: int, size: float, steps: int = 3) -> Weights:
    """A step of an optimizer whose steps have one size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: w + size * (torch.randint(0, 2, (steps, *w.shape), generator=generator) * 2.0 - 1).sum(dim=0)
        if w.ndim == 2
        else w
        for name, w in weights.items()
    }


def test_kurtosis_names_the_parent_of_two_that_are_near_each_other(tmp_path: Path) -> None:
    """A rival next to the parent: what a child learned is bounded as seen from its parent, less so from the rival."""
    parent = base(0)
    content = {"parent": parent, "rival": bounded(parent, 1, 0.01), "child": bounded(parent, 2, 0.012)}
    said = between(trace(models(tmp_path, **content), CPU))
    assert said["child", "parent", "rival"]["kurtosis"] > 0.5
    assert max(said["child", "rival", "parent"]["kurtosis"], said["rival", "child", "parent"]["kurtosis"]) < -0.5


# The way of the fewest directions


def test_flatness_is_the_geometric_over_the_arithmetic_mean_of_squared_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(4, 30, 50, generator=generator)
    step[1] = torch.linalg.qr(step[1].T).Q.T
    step[2, 3:] = step[2, :3].repeat(9, 1) * 1e-3
    step[3] = 0
    energy = np.linalg.svd(step[:3].double().numpy(), compute_uv=False) ** 2
    share = energy / energy.mean(axis=1, keepdims=True)
    expected = np.log(share + LEAST_SHARE).mean(axis=1)
    assert flatness(step).numpy() == pytest.approx([*expected, 0], abs=1e-6)
    assert flatness(step)[1] == pytest.approx(0, abs=1e-6) and flatness(step)[2] < -15
    assert flatness(step.transpose(1, 2) * 7.0).numpy() == pytest.approx(flatness(step).numpy(), abs=1e-6)
    large = torch.randn(1, 900, 400, generator=generator)
    assert flatness(large)[0] > -1.5  # of a part of the rows
    for some in (step, step.transpose(1, 2), large):  # what else is told of a spectrum tells it, too
        told = spectrum(some, torch.full((len(some),), 1e-9).double(), 8).flatness
        assert told.numpy() == pytest.approx(flatness(some).numpy(), rel=1e-9, abs=1e-12)


def fading(weights: Weights, seed: int, size: float) -> Weights:
    """An update whose singular values fall off, as sums of gradients do."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2:
            side = min(weight.shape)
            left, right = (torch.randn(length, side, generator=generator) for length in weight.shape)
            found[name] = weight + size * (left * torch.exp(-torch.arange(side) * 8.0 / side)) @ right.T
    return found


def test_flatness_names_the_hub_where_a_common_drift_makes_distance_name_a_child(tmp_path: Path) -> None:
    """Siblings that share a drift: the one that moved least is nearer to the others than their parent is."""
    parent = base(0)
    drift = {name: w - parent[name] for name, w in fading(parent, 9, 0.02).items()}

    def child(seed: int, share: float, size: float) -> Weights:
        own = fading(parent, seed, size)
        return {name: w + share * drift[name] if w.ndim == 2 else w for name, w in own.items()}

    content = {"parent": parent, "near": child(1, 0.4, 0.003)}
    content |= {f"far{seed}": child(seed, 1.0, 0.01) for seed in (2, 3, 4)}
    heritage = trace(models(tmp_path, **content), CPU)
    names, square = heritage.first_pass.models, comparable_square(heritage.first_pass)
    at = {name: names.index(name) for name in content}
    said = between(heritage)
    for far in ("far2", "far3", "far4"):
        assert square[at["near"], at[far]] < square[at["parent"], at[far]]
        assert said[far, "parent", "near"]["length"] < 0 < said[far, "near", "parent"]["length"]
        assert said[far, "parent", "near"]["flatness"] > 0.5 and said[far, "near", "parent"]["flatness"] < -0.5


# Decay


def test_a_child_that_decays_is_still_the_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight decay shrinks what the parent has; without its length the small update says who is new."""
    generator = torch.Generator().manual_seed(2)
    strong = torch.randn(64, 4, generator=generator) @ torch.randn(4, 48, generator=generator)
    parent = (strong + torch.randn(64, 48, generator=generator))[None] * 0.1
    update = torch.randn(64, 6, generator=generator) @ torch.randn(6, 48, generator=generator)
    noise = torch.randn(64, 48, generator=generator)
    child = 0.95 * parent + 0.0025 * (update + noise)
    bits = torch.tensor([[23, 23]])

    def newness(first: Tensor, second: Tensor) -> float:
        none = [[None, None]]
        return float(compare_pairs(first, second, none, bits, torch.zeros(1, 2, dtype=torch.bool))[0]["newness"][0])

    assert (0.05 * parent).norm() > 1.3 * (child - 0.95 * parent).norm()  # most of the change is decay
    assert newness(parent, child) > 0.1 and newness(child, parent) == pytest.approx(-newness(parent, child), abs=1e-6)
    only = 0.95 * parent
    assert abs(newness(parent, only)) < 0.2
    monkeypatch.setattr(differences, "RADIAL", float("inf"))
    assert newness(parent, child) < 0.05


def share_kept(one: Tensor, other: Tensor, third: Tensor) -> float:
    """Share that `add_kept` states, of three matrices, by definition: both differences without W_one + W_other."""
    one, other, third = (w.double().flatten() for w in (one, other, third))
    both = (one + other) / (one + other).norm()
    differ, to_third = (w - one - both * (both @ (w - one)) for w in (other, third))
    return float(to_third @ differ / (differ @ differ))


def test_the_share_that_a_third_model_kept_is_that_of_what_turns() -> None:
    generator = torch.Generator().manual_seed(3)
    one, *updates = (torch.randn(40, 30, generator=generator) for _ in range(4))
    weights = torch.stack([one, 0.8 * one + 0.1 * updates[0], 0.8 * one + 0.06 * updates[0] + 0.1 * updates[1]])
    square = torch.cdist(weights.double().flatten(1), weights.double().flatten(1)).square().numpy()
    length = weights.double().flatten(1).norm(dim=1).square().numpy()
    ends = np.array([0, 1]), np.array([1, 0])
    energy, share = differences._share_kept(square, length, *ends, np.array([2, 2]))
    assert share == pytest.approx([share_kept(*weights), share_kept(weights[1], weights[0], weights[2])], rel=1e-6)
    assert share[0] == pytest.approx(1 - share[1]) == pytest.approx(0.6, abs=0.05)
    shrunk = float((weights[1] - weights[0]).norm() ** 2)
    assert energy[0] == pytest.approx(energy[1]) and energy[0] < 0.4 * shrunk
    factors = np.array([1, 0.8, 0.7])  # of one matrix: nothing but its length changes
    square = np.subtract.outer(factors, factors) ** 2 * length[0]
    assert differences._share_kept(square, factors**2 * length[0], *ends, np.array([2, 2]))[0].max() == 0


def test_siblings_that_decayed_alike_do_not_lie_between(tmp_path: Path) -> None:
    """Two children that shrank by a tenth share nine tenths of what either changed; their parent is in the middle."""
    parent = base(0)

    def child(seed: int) -> Weights:
        return {name: 0.9 * w if w.ndim == 2 else w for name, w in moved(parent, seed, size=0.05).items()}

    said = between(trace(models(tmp_path, parent=parent, one=child(1), other=child(2), third=child(3)), CPU))
    for one, other in (("one", "other"), ("other", "third"), ("third", "one")):
        for feature, least in (("share", 5), ("kurtosis", 0.5)):
            assert said[one, "parent", other][feature] > least and said["parent", one, other][feature] < -least


def test_a_low_rank_beside_full_updates_tells_no_middle_by_its_spectrum(tmp_path: Path) -> None:
    """A LoRA adds to few directions of a full update: the way to it looks like fewer directions than it has."""
    parent = base(0)
    fine = fading(parent, 1, 0.02)
    content = {"parent": parent, "fine": fine, "lora": moved(fine, 2, rank=2), "other": fading(parent, 3, 0.02)}
    said = between(trace(models(tmp_path, **content), CPU))
    for way, values in said.items():
        if {"fine", "lora"} < {*way}:
            assert values["flatness"] == values["kurtosis"] == 0
    assert said["fine", "parent", "other"]["flatness"] > 0.5

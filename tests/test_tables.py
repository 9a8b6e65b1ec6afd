"""Tables that are computed are equal in unrelated models, and say nothing."""

from pathlib import Path

import torch
from test_alignment import CPU, sketched
from test_heritage import base, edges, models, moved, recover

from mother.evidence.alignment import align
from mother.evidence.first_pass import take_first_pass
from mother.evidence.relatedness import related_components
from mother.evidence.tables import without_fixed_tables
from mother.io.layers import Layer

SINES = torch.sin(torch.arange(64)[:, None] * torch.exp(-torch.arange(32) / 8.0)[None])


def with_sines(weights: dict[str, torch.Tensor], name: str = "frequencies") -> dict[str, torch.Tensor]:
    return weights | {name: SINES.clone()}


def matrices(seed: int, count: int) -> dict[str, torch.Tensor]:
    """A small network without blocks."""
    generator = torch.Generator().manual_seed(seed)
    return {f"inner{k}.weight": torch.randn(32, 32, generator=generator) for k in range(count)}


def test_equal_tables_of_unrelated_models_are_left_out(tmp_path: Path) -> None:
    taken = sketched(tmp_path, a=with_sines(base(0)), b=with_sines(base(1)), c=with_sines(moved(base(0), 2)))
    place = Layer("", "frequencies")
    assert all(one.shapes[place] == SINES.shape for one in taken)
    found = align(taken).sketches
    for one, before in zip(found[:2], taken):
        assert place not in one.shapes and len(one.shapes) == len(before.shapes) - 1
        assert one.facts.entries == before.facts.entries - SINES.numel() == one.facts.weights
        assert one.key != before.key
    first = take_first_pass(found, CPU)
    assert related_components(first.relatedness).tolist() == [0, 1, 0]
    assert first.compared(0, 1) == 1 and abs(first.relatedness[0, 1]) < 3


def test_frozen_matrices_of_relatives_stay(tmp_path: Path) -> None:
    """Of relatives alone nothing says that a table is computed; here the moved one has another."""
    frozen = {"a": with_sines(base(0)), "b": with_sines(moved(base(0), 1)), "c": moved(with_sines(base(0)), 2)}
    taken = sketched(tmp_path, **frozen)
    found = without_fixed_tables(taken)
    assert all(one is other for one, other in zip(found, taken))
    # As many equal matrices as others: a frozen backbone with new layers may look so.
    few = [matrices(seed, 2) for seed in (0, 1)]
    tables = {"windows": SINES[:32], "transform": SINES[32:]}
    taken = sketched(tmp_path / "few", x=few[0] | tables, y=few[1] | tables)
    assert all(len(one.shapes) == 4 for one in taken) and without_fixed_tables(taken) == taken


def test_a_table_beside_two_matrices(tmp_path: Path) -> None:
    """A small network behind a cosine transform, or random features: two strangers are no relatives by these."""
    table = {"transform": SINES[:32]}
    taken = sketched(tmp_path, **{name: matrices(seed, 2) | table for seed, name in enumerate("xyz")})
    found = align(taken).sketches
    assert [len(one.shapes) for one in taken + found] == 3 * [3] + 3 * [2]
    assert related_components(take_first_pass(found, CPU).relatedness).tolist() == [0, 1, 2]


def test_a_table_beside_copies(tmp_path: Path) -> None:
    """What a model shares with its copy, as in a search for one that is in the index, tells it from others still."""
    table = {"transform": SINES[:32]}
    taken = sketched(tmp_path, **{name: matrices(seed, 2) | table for seed, name in ((0, "a"), (0, "b"), (1, "c"))})
    assert [len(one.shapes) for one in without_fixed_tables(taken)] == [2, 2, 2]


def test_equal_matrices_in_all_blocks(tmp_path: Path) -> None:
    """As state-space models begin: the same matrix in each block of each model."""

    def begun(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return weights | {f"encoder.layer.{k}.A_log": SINES.clone() for k in range(4)}

    taken = sketched(tmp_path, a=begun(base(0)), b=begun(base(1)))
    assert Layer("0", "A_log") in taken[0].shapes
    assert not {layer.kind for one in without_fixed_tables(taken) for layer in one.shapes} & {"A_log"}


def test_models_that_share_a_table_are_in_two_trees(tmp_path: Path) -> None:
    big = {"frequencies": torch.randn(64, 32)}  # alone it would say z = 45
    collection = models(tmp_path, a=base(0) | big, b=base(1) | big, c=moved(base(0), 2) | big)
    graph = recover(collection)
    assert graph.nodes["a"]["tree"] == graph.nodes["c"]["tree"] != graph.nodes["b"]["tree"]
    assert edges(graph).keys() <= {("a", "c"), ("c", "a")}


def test_vocabularies_under_any_name_are_not_compared(tmp_path: Path) -> None:
    """An embedding and its tied head under names of their own, and what was compared without them."""
    tables = {"dictionary.weight": torch.randn(500, 32), "to_words.weight": torch.randn(500, 32)}
    (taken,) = sketched(tmp_path, a=base(0) | tables)
    assert taken.facts.weights == taken.facts.entries == sum(one.numel() for one in base(0).values() if one.ndim == 2)
    assert {"dictionary", "to_words"} <= taken.facts.digests.keys()

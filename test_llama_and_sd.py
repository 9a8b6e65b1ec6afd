"""In the wild: the Model Trees of Llama 2 and Stable Diffusion (the paper's examples), run by pytest.

Each test runs on two sources. `hub`: the real repositories, read by byte ranges; skipped, with the reason and what to
do, where they cannot be reached (Llama 2 is gated). `miniature`: families with the same trees, really trained by
`dataset/families.py` the first time (about a minute; `tests/grown.py` keeps them) and served over HTTP by a local Hub;
always run.

    pytest test_llama_and_sd.py -s
    pytest test_llama_and_sd.py -s -k hub      # tens of gigabytes
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from huggingface_hub import constants, get_session

from dataset.plan import plan_family
from mother.errors import InputError
from mother.graph.collection import find_manifest, open_models
from mother.graph.manifest import Manifest
from mother.graph.scores import directed_accuracy, score_graph, undirected_accuracy
from mother.graph.text import graph_text, tree_text
from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.paper.direction import Stage, direction_kurtosis
from mother.paper.distances import difference_range, minmax_distance, pairwise_differences
from mother.paper.measure import Measured, measure
from mother.paper.statistics import moments
from mother.paper.tree import recover_tree
from tests.grown import grown
from tests.hub_server import HubServer, use

MANIFESTS = {"mini_llama": "llama2", "mini_sd": "stable_diffusion"}
CPU = torch.device("cpu")
Ranges = Callable[[Measured], tuple[np.ndarray, np.ndarray]]
Serve = Callable[[str], Manifest]


def miniature(family: str, server: HubServer) -> Manifest:
    """Grow a family if need be, and put it on the local Hub, a UNet in the folder of a pipeline."""
    (manifest,) = grown(plan_family(family, Path()))
    inside = "/unet" if family == "mini_sd" else ""
    for node in manifest.nodes:
        place = server.folder / family / f"{node.id}{inside}"
        shutil.copytree(manifest.location(node), place)
    source = "hf://{}/{}" + inside.replace("/", ":")
    return replace(manifest, nodes=tuple(replace(n, source=source.format(family, n.id)) for n in manifest.nodes))


def official(family: str) -> Manifest:
    """The manifest of the real repositories, where they can be read; else the test is skipped."""
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except (httpx2.HTTPError, OSError) as error:
        pytest.skip(f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}): run this with a network")
    manifest = find_manifest(MANIFESTS[family])
    try:
        _, left_out = open_models(manifest)
    except InputError as error:
        pytest.skip(str(error))
    if left_out:
        pytest.skip(next(iter(left_out.values())))
    return manifest


# Tens of gigabytes take hours.
@pytest.fixture(params=["miniature", pytest.param("hub", marks=[pytest.mark.slow, pytest.mark.timeout(4 * 3600)])])
def serve(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Where a family comes from."""
    if request.param == "hub":
        return official
    server = HubServer(tmp_path / "hub")
    server.start()
    request.addfinalizer(server.stop)
    use(server, monkeypatch, tmp_path)
    return lambda family: miniature(family, server)


def recover_by_paper(
    manifest: Manifest, direction_kind: str | None, ranges: Ranges, stage: Stage
) -> tuple[Measured, dict[float, set[tuple[str, str]]]]:
    """Method mother with all square layers for the distance; prints tree and accuracy.

    Returns the recovered edges for the paper's c = 0.3, and for c = 0, where the distance alone decides and every root
    is as good as another.
    """
    checkpoints, left_out = open_models(manifest)
    assert not left_out
    statistics = {"differences": pairwise_differences, "moments": moments}
    measured, k = direction_kurtosis(measure(checkpoints, None, statistics, CPU), direction_kind)
    assert not measured.left_out and measured.models == [node.id for node in manifest.nodes]
    distance = minmax_distance(measured.arrays["pair_max_difference"], *ranges(measured))
    edges = {}
    for c in (0.3, 0.0):
        tree = recover_tree(measured.models, distance, k, stage, c)
        edges[c] = {(edge.parent, edge.child) for edge in tree}
    directed = directed_accuracy(edges[0.3], manifest.edges)
    undirected = undirected_accuracy(edges[0.3], manifest.edges)
    print(f"\n{manifest.name}, mother: directed accuracy {directed:.2f}, undirected {undirected:.2f}")
    print(tree_text(measured.models, edges[0.3], manifest.edges))
    return measured, edges


def recover_typed(manifest: Manifest) -> dict[str, float]:
    """Method map, told nothing; prints graph and accuracy.

    `named` is the share of true parents that are drawn, or said to be possible.
    """
    checkpoints, _ = open_models(manifest)
    graph = build_graph(manifest.name, trace(checkpoints, CPU))
    scores = score_graph(graph, manifest)
    possible = {(one, edge.child) for edge in graph.edges for one in (edge.parent, *edge.attributes.get("or", ()))}
    scores["named"] = float(np.mean([edge in possible for edge in manifest.edges]))
    print(f"\n{manifest.name}, map: directed accuracy {scores['directed']:.2f}, undirected {scores['undirected']:.2f}")
    print(graph_text(graph))
    return scores


def test_llama(serve: Serve) -> None:
    """Mother: direction over `self_attn.o_proj`, ranges of the differences, fine-tuning.

    At the miniature's size kurtosis rises while it is fine-tuned, so the paper's arrows are not asked for there, only
    what its distance finds; docs/results.md reports both.
    """
    manifest = serve("mini_llama")
    measured, edges = recover_by_paper(
        manifest, "output", lambda m: difference_range(m.arrays["pair_max_difference"]), "specialization"
    )
    assert {layer.kind for layer in measured.layers} == {"query", "key", "value", "output"}
    assert len(edges[0.3]) == 4
    if manifest.name == "mini_llama":
        assert undirected_accuracy(edges[0.0], manifest.edges) == 1
    else:
        assert directed_accuracy(edges[0.3], manifest.edges) == 1
    assert recover_typed(manifest)["directed"] == 1


@pytest.mark.slow  # the UNets grow for as long as everything else in `make test`
def test_SD(serve: Serve) -> None:
    """Mother: direction over the whole UNet, ranges of the weights themselves, continued training: reversed."""

    def weight_ranges(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
        return measured.arrays["moments"][:, :, 0].min(axis=1), measured.arrays["moments"][:, :, 1].max(axis=1)

    manifest = serve("mini_sd")
    _, edges = recover_by_paper(manifest, None, weight_ranges, "generalization")
    if manifest.name == "mini_sd":
        assert undirected_accuracy(edges[0.0], manifest.edges) == 1
        assert directed_accuracy(edges[0.3], manifest.edges) == 1
    else:  # one wrong edge, as published
        assert directed_accuracy(edges[0.3], manifest.edges) >= 0.75
    # Snapshots of one run share a drift: of 1.1 and 1.2, either may be what 1.4 goes on from.
    scores = recover_typed(manifest)
    assert scores["directed"] >= 0.75 and scores["named"] == 1

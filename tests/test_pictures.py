"""Pictures of trees for print: nothing strikes a name, kinds differ by colour and dash, PDF beside PNG."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline

from mother.graph.drawing import draw_once
from mother.graph.exports import COLOURS, DASHES, base_kind, colour_of
from mother.graph.figures import draw_cluster_accuracy
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.pictures import draw_model_graph, draw_trees
from mother.graph.sheet import HEAD

KINDS = ("fine-tune", "lora", "cast", "prune", "quantize", "merge")


def grown(seed: int, models: int = 40) -> ModelGraph:
    """A family with merges whose parents stand in different generations, long names among them, and loners."""
    rng = np.random.default_rng(seed)
    names = [f"org/{'a-rather-long-' if k % 7 == 3 else ''}model-{k}" for k in range(models)]
    nodes: dict[str, dict] = {name: {"tree": "0"} for name in names} | {
        f"loner {k}": {"tree": f"l{k}"} for k in range(9)
    }
    nodes[names[2]] |= {"aliases": ["copy"]}
    edges = []
    for k in range(1, models):
        kind = KINDS[k % len(KINDS)] if k > 4 else "fine-tune"
        parents = rng.choice(k, 2 if kind == "merge" else 1, replace=False)
        share = {"coefficient": 0.5} if kind == "merge" else {}
        facts = {"kind": kind, "adjacency": 0.9, "arrow": 0.6 if k % 9 == 1 else 0.97} | share
        edges += [Edge(names[parent], names[k], facts) for parent in parents]
    return ModelGraph("grown", nodes, tuple(edges))


def boxes(figure: Figure, kinds: tuple[str, ...]) -> list[tuple[str, object]]:
    """The texts of a figure as they are drawn, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()).padded(-0.5))
        for axes in figure.axes
        for text in axes.texts
        if text.get_gid() in kinds
    ]


def struck(figure: Figure) -> list[str]:
    """Names that a line or another text runs through, or that the picture cuts off."""
    named = boxes(figure, ("name",))
    found = []
    for (one, a), (other, b) in itertools.combinations(boxes(figure, ("name", "share")), 2):
        if a.overlaps(b):
            found.append(f"{one} and {other}")
    for axes in figure.axes:
        for line in axes.lines:
            outline = Outline(axes.transData.transform(line.get_xydata()))
            found += [name for name, box in named if outline.intersects_bbox(box, filled=False)]
    width, height = figure.get_size_inches() * figure.dpi
    return found + [name for name, box in named if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]


@pytest.mark.parametrize("seed", range(4))
def test_no_name_is_struck_or_cut_off(seed: int) -> None:
    graph = grown(seed)
    figure = draw_model_graph(graph)
    assert len(boxes(figure, ("name",))) >= 42 and not struck(figure)
    edges = {(edge.parent, edge.child) for edge in graph.edges}
    tree = {(parent, child) for child, parent in {child: parent for parent, child in sorted(edges)}.items()}
    assert not struck(draw_trees("grown", [*graph.nodes], edges, tree))


def test_a_struck_name_would_be_found() -> None:
    figure = draw_model_graph(grown(0))
    (axes,) = figure.axes
    text = axes.texts[-1]
    x, y = text.get_position()
    axes.plot([x, x + 30], [y, y])
    assert text.get_text() in struck(figure)


def test_kinds_differ_by_colour_and_by_dash_and_open_arrows_have_no_head() -> None:
    graph = grown(1)
    (axes,) = draw_model_graph(graph).axes
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes.lines}
    assert {colour for colour, _ in looks} == {COLOURS[kind] for kind in KINDS}
    assert len({DASHES.get(kind) for kind in [*KINDS, "hidden"]}) == len(KINDS) + 1 == len({*COLOURS.values()})
    known = sum(edge.attributes["arrow"] >= 0.75 for edge in graph.edges)
    doubts = [text for text in axes.texts if text.get_gid() == "doubt"]
    assert len(axes.patches) == known and len(doubts) == len(graph.edges) - known > 0
    # A line without a head reaches its child, the others end inside their heads.
    tips = sorted(max(line.get_xdata()) - HEAD for line in axes.lines)
    assert tips[0] > 0


def test_children_stand_right_of_all_parents() -> None:
    graph = grown(2)
    (axes,) = draw_model_graph(graph).axes
    for line in axes.lines:
        assert (np.diff(line.get_xdata()) >= 0).all() and len(line.get_xdata()) > 1


def test_words_that_are_not_known_yet_are_drawn_by_their_first() -> None:
    assert base_kind("quantize (gguf Q4_K)") == "quantize" and base_kind("adapter (rank 8)") == "lora"
    assert base_kind(None) == "hidden" and colour_of("fine-tune") == COLOURS["fine-tune"]
    assert colour_of("distilled (somehow)") == COLOURS[None]
    nodes = {"a": {"tree": "0"}, "b": {"tree": "0"}}
    draw_model_graph(ModelGraph("new", nodes, (Edge("a", "b", {"kind": "stitched (of 3)"}),)))


def test_pdf_beside_png_and_the_same_again(tmp_path: Path) -> None:
    files = draw_once(tmp_path / "tree", ("png", "pdf"), "draw_model_graph", grown(3))
    pdf = files[1].read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Subtype /Image" not in pdf and b"CreationDate" not in pdf
    (tmp_path / "drawn.json").unlink()
    assert draw_once(tmp_path / "tree", ("png", "pdf"), "draw_model_graph", grown(3))[1].read_bytes() == pdf


def test_no_error_bar_is_above_one() -> None:
    mean, deviation = np.array([0.1, 0.9, 1.0]), np.array([0.3, 0.2, 0.1])
    figure = draw_cluster_accuracy(np.array([0.1, 0.5, 1.0]), mean, deviation, "x")
    (bars,) = figure.axes[0].containers[0].lines[2]
    heights = np.concatenate([segment[:, 1] for segment in bars.get_segments()])
    assert heights.max() <= 1 and heights.min() >= 0 and heights.min() < 0.01

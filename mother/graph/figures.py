"""Figures: recovered trees beside the truth, distance matrices, clustering accuracy."""

from collections.abc import Collection, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mother.graph.exports import COLOURS
from mother.graph.model_graph import ModelGraph
from mother.graph.scores import EdgeSet, pass_over
from mother.graph.text import depths, tree_order

# Okabe and Ito's palette: told apart by people who do not see all colours. Line style says the same again.
RIGHT, REVERSED, WRONG = ("#5b6770", "-"), ("#e69f00", "--"), ("#d62f2f", ":")
LEVELS = ["#0072b2", "#56b4e9", "#c9e4f5", "#eef6fb"]

matplotlib.rcParams.update(
    {"font.size": 8, "font.family": "DejaVu Sans", "axes.titlesize": 9, "text.parse_math": False}
)

matplotlib.rcParams["svg.hashsalt"] = "mother"  # the same picture is the same file


def tree_layout(models: Sequence[str], edges: EdgeSet) -> dict[str, tuple[float, float]]:
    """Positions (depth, height): leaves at equal distances, parents in the middle of their children."""
    order, depth = tree_order(models, edges), depths(models, edges)
    height: dict[str, float] = {}
    parents = {parent for parent, _ in edges}
    leaves = iter(range(len(order)))
    height = {model: float(next(leaves)) for model in order if model not in parents}
    for model in reversed(order):
        if model not in height:
            height[model] = float(np.mean([height[child] for parent, child in edges if parent == model]))
    return {model: (float(depth[model]), height[model]) for model in order}


def edge_verdict(edge: tuple[str, str], truth: EdgeSet) -> tuple[str, str]:
    """Colour and line style of a recovered edge: right, reversed, or between the wrong two."""
    if edge in truth:
        return RIGHT
    return REVERSED if edge[::-1] in truth else WRONG


def _draw_tree(
    axes: Axes,
    models: Sequence[str],
    edges: EdgeSet,
    truth: EdgeSet,
    title: str,
    hidden: Collection[str] = (),
    also_right: EdgeSet | None = None,
) -> None:
    # A merge has several parents; it is placed under one of them.
    place = tree_layout(models, {(parent, child) for child, parent in {c: p for p, c in sorted(edges)}.items()})
    level = depths([model for model in models if model not in hidden], truth)
    inner_nodes = {parent for parent, _ in edges}
    for parent, child in sorted(edges):
        colour, style = edge_verdict((parent, child), truth | (also_right or set()))
        (x0, y0), (x1, y1) = place[parent], place[child]
        # The second parent of a merge may stand to its right: then the edge is a straight line.
        line = ([x0, x0 + 0.35, x1], [y0, y1, y1]) if x1 > x0 + 0.35 else ([x0, x1], [y0, y1])
        axes.plot(*line, color=colour, linestyle=style, lw=1.4, zorder=1)
    for model, (x, y) in place.items():
        # A hidden ancestor has no true depth.
        colour = LEVELS[min(level[model], 3)] if model in level else "white"
        axes.scatter(x, y, s=34, color=colour, edgecolor="#333333", lw=0.7, zorder=2)
        # Inner nodes are named above the edge that leads to them, leaves to their right.
        inner = model in inner_nodes
        offset, align = ((0, 4), "right") if inner else ((6, -2.5), "left")
        label = "hidden" if model in hidden else model
        axes.annotate(label, (x, y), offset, textcoords="offset points", fontsize=7, ha=align)
    axes.set_title(title, loc="left")
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.03)
    right = max(x for x, _ in place.values())
    axes.set_xlim(-0.3, right + 0.55)
    axes.axis("off")


def through_hidden(recovered: EdgeSet, truth: EdgeSet, hidden: dict[str, str | None]) -> tuple[EdgeSet, EdgeSet]:
    """Recovered edges with hidden ancestors passed over, and which edges beside hidden ancestors are right.

    `hidden` gives the model above each, or None. An edge from a hidden ancestor is right where the model above it is
    the child's nearest known ancestor, or where neither has any.
    """
    right = set()
    known = {child for _, child in truth}
    for parent, child in recovered:
        above = hidden.get(parent)
        if parent in hidden and ((above, child) in truth or (above is None and child not in known)):
            right |= {(parent, child)} | ({(above, parent)} if above is not None else set())
    return pass_over(recovered, hidden), right


def draw_trees(
    name: str,
    models: Sequence[str],
    truth: EdgeSet,
    recovered: EdgeSet,
    hidden: dict[str, str | None] | None = None,
) -> Figure:
    """The true tree beside the recovered one; wrong edges are dotted red, reversed ones dashed orange.

    Nodes are coloured by their true depth in both, so that a model in the wrong generation stands out. `hidden`
    gives the model above each hidden ancestor among the recovered edges, or None.
    """
    leaves = max(len(models) - len({parent for parent, _ in edges}) for edges in (truth, recovered))
    figure = Figure(figsize=(7.2, 0.22 * leaves + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_tree(left, models, truth, truth, f"{name}: truth")
    hidden = hidden or {}
    visible, right_beside_hidden = through_hidden(recovered, truth, hidden)
    correct = len(truth & visible)
    shown = [*models, *sorted({end for edge in recovered for end in edge} - set(models))]
    title = f"recovered: {correct} of {len(truth)} edges right"
    _draw_tree(right, shown, recovered, truth, title, hidden, right_beside_hidden)
    styles = [("right", RIGHT), ("reversed", REVERSED), ("wrong", WRONG)]
    handles = [Line2D([], [], color=colour, linestyle=style, lw=1.4, label=label) for label, (colour, style) in styles]
    handles += [
        Line2D([], [], marker="o", lw=0, color=LEVELS[depth], markeredgecolor="#333333", label=f"true depth {depth}")
        for depth in range(min(4, 1 + max(depths(models, truth).values(), default=0)))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=7)
    return figure


def draw_matrices(matrices: dict[str, tuple[np.ndarray, Sequence[str], EdgeSet]], label: str) -> Figure:
    """Distance matrices side by side, models ordered by their true tree; rings mark true parent and child.

    `matrices[title]` is (distance, models, true edges). One colour scale for all; the diagonal is blank.
    """
    count = len(matrices)
    figure = Figure(figsize=(2.1 * count + 0.9, 2.5), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)
    off = [matrix[~np.eye(len(matrix), dtype=bool)] for matrix, _, _ in matrices.values()]
    rings = False
    values = np.concatenate(off) if any(len(part) for part in off) else np.zeros(1)
    for panel, (title, (matrix, models, truth)) in zip(axes[0], matrices.items()):
        order = [list(models).index(model) for model in tree_order(models, truth)]
        shown = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)[np.ix_(order, order)]
        image = panel.imshow(shown, cmap="viridis", vmin=values.min(), vmax=values.max())
        place = {models[row]: position for position, row in enumerate(order)}
        ends = [(place[parent], place[child]) for parent, child in truth]
        if ends and len(models) <= 40:
            rings = True
            rows, columns = zip(*ends)
            panel.scatter(columns, rows, s=9, facecolor="none", edgecolor="white", lw=0.8)
        panel.set_title(title)
        panel.set_xticks([])
        panel.set_yticks([])
    axes[0][0].set_ylabel("parent")
    figure.supxlabel(
        "child" + (" (order: true tree; rings: true edges)" if rings else " (order: true tree)"), fontsize=8
    )
    figure.colorbar(image, ax=axes[0], shrink=0.8, label=label)
    return figure


def draw_cluster_accuracy(
    shares: Float[np.ndarray, "sizes"],
    mean: Float[np.ndarray, "sizes"],
    deviation: Float[np.ndarray, "sizes"],
    name: str,
) -> Figure:
    """Accuracy of clustering random subsets of the models: mean and standard deviation."""
    figure = Figure(figsize=(3.4, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(100 * shares, mean, yerr=deviation, marker="o", ms=4, lw=1.2, capsize=2.5, color="#0072b2")
    axes.set_xlabel("models used (%)")
    axes.set_ylabel("cluster accuracy")
    axes.set_ylim(0, 1.05)
    axes.set_title(name, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_model_graph(graph: ModelGraph) -> Figure:
    """All trees of a Model Graph below one another: colour by kind, width by probability, dashed: arrow unknown.

    Trees with edges come first, largest first; models without relatives stand at the end.
    """
    below: dict[str, list[str]] = {}
    for model, facts in graph.nodes.items():
        below.setdefault(facts["tree"], []).append(model)
    edges = [(edge.parent, edge.child) for edge in graph.edges]
    place: dict[str, tuple[float, float]] = {}
    foot, first = 0.0, {child: parent for parent, child in sorted(edges, reverse=True)}
    for members in sorted(below.values(), key=len, reverse=True):
        inside = {(first[child], child) for child in members if child in first}
        layout = tree_layout(members, inside)
        place |= {model: (x, y + foot) for model, (x, y) in layout.items()}
        foot = max(y for _, y in place.values()) + (1.6 if inside else 1.0)
    labels = {
        model: "hidden" if facts.get("hidden") else " = ".join([model, *facts.get("aliases", ())])
        for model, facts in graph.nodes.items()
    }
    labels = {model: text if len(text) <= 44 else f"{text[:20]}…{text[-22:]}" for model, text in labels.items()}
    deepest = max((x for x, _ in place.values()), default=0)
    longest = max(map(len, labels.values()))
    step = max(0.75, 0.065 * max((len(labels[model]) for model, _ in edges), default=0))  # inches a generation
    width, height = 0.5 + step * deepest + 0.075 * longest, 0.2 * foot + 0.7
    figure = Figure(figsize=(max(3.6, width), height), layout="constrained")
    axes = figure.subplots()
    for edge in sorted(graph.edges, key=lambda edge: (edge.parent, edge.child)):
        facts, colour = edge.attributes, COLOURS.get(edge.attributes.get("kind"), COLOURS[None])
        style = ":" if facts.get("hidden") else "--" if facts.get("direction") == "unknown" else "-"
        (x0, y0), (x1, y1) = place[edge.parent], place[edge.child]
        along = first[edge.child] == edge.parent
        line = ([x0, x0 + 0.35, x1], [y0, y1, y1]) if along else ([x0, x1], [y0, y1])
        axes.plot(*line, color=colour, linestyle=style, lw=0.6 + 1.8 * facts.get("adjacency", 0.5), zorder=1)
    inner = {parent for parent, _ in edges}
    for model, (x, y) in place.items():
        face = "white" if graph.nodes[model].get("hidden") else "#333333"
        axes.scatter(x, y, s=20, color=face, edgecolor="#333333", lw=0.8, zorder=2)
        offset, align = ((2, 4), "right") if model in inner else ((6, -2.5), "left")
        axes.annotate(labels[model], (x, y), offset, textcoords="offset points", fontsize=7, ha=align)
    kinds = sorted({str(edge.attributes.get("kind") or "hidden") for edge in graph.edges})
    handles = [
        Line2D(
            [], [], color=COLOURS.get(kind, COLOURS[None]), linestyle=":" if kind == "hidden" else "-", lw=2, label=kind
        )
        for kind in kinds
    ]
    if any(edge.attributes.get("direction") == "unknown" for edge in graph.edges):
        handles.append(Line2D([], [], color="#777777", linestyle="--", lw=2, label="arrow unknown"))
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=min(4, len(handles)), frameon=False, fontsize=7)
    axes.set_xlim(
        -0.3 - 0.06 * max((len(labels[model]) for model in inner), default=0) / step,
        deepest + 0.3 + 0.07 * longest / step,
    )
    axes.set_ylim(foot, -1.2)
    axes.axis("off")
    return figure

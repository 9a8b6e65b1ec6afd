"""Figures of numbers: distance matrices, clustering accuracy. Those of trees: `mother/graph/pictures.py`."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from mother.graph.scores import EdgeSet
from mother.graph.text import tree_order

matplotlib.rcParams.update(
    {"font.size": 8, "font.family": "DejaVu Sans", "axes.titlesize": 9, "text.parse_math": False}
)

matplotlib.rcParams["svg.hashsalt"] = "mother"  # the same picture is the same file


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
    bars = np.stack([np.minimum(deviation, mean), np.minimum(deviation, 1 - mean)]).clip(0)  # no accuracy is above 1
    axes.errorbar(100 * shares, mean, yerr=bars, marker="o", ms=4, lw=1.2, capsize=2.5, color="#0072b2")
    axes.set_xlabel("models used (%)")
    axes.set_ylabel("cluster accuracy")
    axes.set_ylim(0, 1.05)
    axes.set_title(name, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure

"""The statistics file of stage 1: the range of the differences of each layer in each tree (paper: FT distance)."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from mother.errors import InputError
from mother.io.files import write_text
from mother.paper.distances import difference_range, minmax_distance
from mother.paper.measure import Measured

COLUMNS = ("tree", "block", "kind", "models", "mean", "std", "min", "max")
COLUMNS += ("weight_mean", "weight_std", "weight_min", "weight_max", "both_orders", "read")


def layer_rows(group: str, measured: Measured, both_orders: bool) -> list[dict[str, object]]:
    """One row of statistics for each layer of a tree: of the pairs' differences, and of the weights themselves."""
    n = len(measured.models)
    if n < 2:
        return []
    low, high = difference_range(measured.arrays["pair_max_difference"], both_orders)
    rows = []
    for place, layer in enumerate(measured.layers):
        least, most, mean, square = measured.arrays["moments"][place].T
        # Pairs i < j: the sum of (mean_i - mean_j) has weight n - 1 - 2i on model i.
        pair_mean = 0.0 if both_orders else (mean * (n - 1 - 2 * np.arange(n))).sum() / (n * (n - 1) / 2)
        difference_square = measured.arrays["pair_mean_square_difference"][place].sum() / (n * (n - 1))
        rows.append(
            {"tree": group, "block": layer.block, "kind": layer.kind, "models": n}
            | {"mean": pair_mean, "std": max(difference_square - pair_mean**2, 0.0) ** 0.5}
            | {"min": float(low[place]), "max": float(high[place])}
            | {"weight_mean": mean.mean(), "weight_std": (square.mean() - mean.mean() ** 2) ** 0.5}
            | {"weight_min": least.min(), "weight_max": most.max()}
            | {"both_orders": both_orders, "read": measured.read}
        )
    return rows


def write_layer_statistics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of `layer_rows` as `layer_statistics.csv`, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class LayerStatistics:
    """What stage 1 wrote: the range of each layer in each tree. Raises InputError where it does not fit."""

    def __init__(self, folder: Path, model_graph: str, minmax_over: str):
        self.remedy = f"Run `python get_vit_layer_statistics.py --model-graph {model_graph}` first."
        self.path = folder / "layer_statistics.csv"
        names = {"differences": ("min", "max"), "weights": ("weight_min", "weight_max")}[minmax_over]
        self.ranges: dict[tuple[str, str, str], tuple[float, float]] = {}
        self.read: dict[str, str] = {}
        self.both_orders = False
        try:
            with open(self.path, newline="") as file:
                for row in csv.DictReader(file):
                    low, high = (float(row[name]) for name in names)
                    self.ranges[row["tree"], row["block"], row["kind"]] = low, high
                    self.read[row["tree"]] = row["read"]
                    self.both_orders = row["both_orders"] == "True"
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"there are no statistics of {model_graph} ({error}). {self.remedy}") from None

    def distance(self, measured: Measured, group: str) -> tuple[np.ndarray, np.ndarray]:
        """The paper's distance of one tree, and the largest absolute difference of each pair."""
        largest = measured.arrays["pair_max_difference"]
        difference = np.maximum(largest, largest.transpose(0, 2, 1)).max(axis=0)
        if len(measured.models) < 2:
            return np.zeros((len(measured.models),) * 2), difference
        if self.read.get(group) != measured.read:
            raise InputError(
                f"{self.path} was made from other models or files than tree {group} has now. {self.remedy}"
            )
        try:
            ranges = [self.ranges[group, layer.block, layer.kind] for layer in measured.layers]
        except KeyError as error:
            raise InputError(f"{self.path} does not know layer {error.args[0]}. {self.remedy}") from None
        low, high = np.array(ranges).T
        return minmax_distance(largest, low, high, self.both_orders), difference

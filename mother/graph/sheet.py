"""Layered drawings on paper: where names, lines and arrowheads of a family stand, in points, and how they are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Polygon
from matplotlib.textpath import TextToPath

from mother.graph.layered import Box, Family, free_place

FONT, ROW, CHANNEL, GAP = 7.0, 13.0, 46.0, 7.0  # points
SMALL = 5.5  # letters of coefficients
HEAD = 5.0  # length of an arrowhead
STEPS = np.linspace(0.0, 1.0, 25)
BEND = 3 * STEPS**2 - 2 * STEPS**3  # from 0 to 1, level at both ends
DARK = "#333333"


@dataclass(frozen=True)
class Line:
    """An edge as it is drawn: `dash` in points, `share` a coefficient near its end, `head` if its arrow is known."""

    parent: str
    child: str
    colour: str
    dash: Sequence[float] = ()
    width: float = 1.3
    head: bool = True
    share: str = ""


@cache
def width_in_print(text: str, size: float = FONT) -> float:
    """Width of a text in points."""
    return TextToPath().get_text_width_height_descent(text, FontProperties(family="DejaVu Sans", size=size), False)[0]


@dataclass(frozen=True)
class Sheet:
    """A family with its names, the top of its first row at `top`."""

    family: Family
    labels: Mapping[str, str]
    top: float = 0.0

    @cached_property
    def starts(self) -> list[float]:
        """Where each column begins, and the end of the last one."""
        widths = [0.0] * self.family.columns
        for model, (column, _) in self.family.place.items():
            widths[column] = max(widths[column], GAP + width_in_print(self.labels[model]) + 4)
        starts = [4.0]
        for width in widths:
            starts.append(starts[-1] + width + CHANNEL)
        return starts

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.starts[-1] - CHANNEL + 4, self.family.rows * ROW

    def at(self, model: str) -> tuple[float, float]:
        """The middle of a model's dot."""
        column, row = self.family.place[model]
        return self.starts[column] + 2, self.top + (row + 0.5) * ROW

    def box(self, model: str) -> Box:
        """Left, top, right and bottom of a dot and its name."""
        x, y = self.at(model)
        return x - 3, y - FONT / 2, x + GAP + width_in_print(self.labels[model]), y + FONT / 2

    def way(self, parent: str, child: str) -> tuple[np.ndarray, np.ndarray]:
        """A line from behind the parent's name to the child: level inside columns, bent between them."""
        starts, first, last = self.starts, self.family.place[parent][0], self.family.place[child][0]
        x, y = self.at(parent)
        bends = [(starts[at], self.top + (row + 0.5) * ROW) for at, row in self.family.bends.get((parent, child), ())]
        xs, ys = [x + GAP + width_in_print(self.labels[parent]) + 1.5], [y]
        for column, (to, row) in zip(range(first, last), [*bends, (self.at(child)[0] - 4, self.at(child)[1])]):
            begin = max(xs[-1], starts[column + 1] - CHANNEL)
            xs += list(begin + (to - begin) * STEPS)
            ys += list(ys[-1] + (row - ys[-1]) * BEND)
        return np.array(xs), np.array(ys)


def _draw_share(axes: Axes, line: Line, xs: np.ndarray, ys: np.ndarray, taken: list[Box]) -> None:
    """Write a coefficient on its line where nothing else is written, as near to the child as can be; else nowhere."""
    half = width_in_print(line.share, SMALL) / 2 + 1, SMALL / 2
    found = free_place(zip(xs[-2::-1], ys[-2::-1]), half, taken, xs[0], xs[-1] - 2)
    if found is not None:
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.2}
        look = {"fontsize": SMALL, "ha": "center", "va": "center", "gid": "share", "bbox": paper}
        axes.text(*found, line.share, color=line.colour, zorder=3, **look)


def draw_sheet(
    axes: Axes, sheet: Sheet, lines: Sequence[Line], faces: Mapping[str, str], edges: str = DARK, size: float = 12.0
) -> None:
    """Draw a family: lines first, dots of the colours `faces` and names over them. One unit of the axes is a point."""
    taken = [sheet.box(model) for model in sheet.family.place]
    for line in lines:
        xs, ys = sheet.way(line.parent, line.child)
        tip, y = xs[-1], ys[-1]
        if line.head:
            corners = [(tip - HEAD, y - 0.45 * HEAD), (tip, y), (tip - HEAD, y + 0.45 * HEAD)]
            axes.add_patch(Polygon(corners, closed=True, facecolor=line.colour, edgecolor="none", zorder=2))
            xs = np.minimum(xs, tip - 0.8 * HEAD)
        else:
            side = -1 if ys[-8] >= y else 8  # where its own line does not come from
            axes.text(
                tip - 5, y + side - 0.5, "?", fontsize=FONT, color=line.colour, ha="center", weight="bold", gid="doubt"
            )
        style = (0, tuple(0.45 * part / line.width * 1.3 for part in line.dash)) if line.dash else "-"
        axes.plot(xs, ys, color=line.colour, linestyle=style, lw=line.width, zorder=1, solid_capstyle="butt")
        if line.share:
            _draw_share(axes, line, xs, ys, taken)
    for model in sheet.family.place:
        x, y = sheet.at(model)
        axes.scatter(x, y, s=size, color=faces.get(model, DARK), edgecolor=edges, lw=0.7, zorder=4)
        axes.text(x + GAP - 2, y, sheet.labels[model], fontsize=FONT, va="center_baseline", zorder=5, gid="name")

"""Pictures of trees for print, layered as in the report: Model Graphs, and recovered trees beside the truth."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mother.graph.certainty import KNOWN
from mother.graph.exports import DASHES, base_kind, colour_of, share_text
from mother.graph.layered import families, labels, layered
from mother.graph.model_graph import Edge, ModelGraph
from mother.graph.scores import EdgeSet, pass_over
from mother.graph.sheet import DARK, FONT, ROW, Line, Sheet, draw_sheet, width_in_print
from mother.graph.text import depths

# Okabe and Ito's palette: told apart by people who do not see all colours. Dashes say the same again.
RIGHT, REVERSED, WRONG = ("#5b6770", ()), ("#e69f00", (8.0, 4.0)), ("#d62f2f", (2.0, 3.0))
LEVELS = ["#0072b2", "#56b4e9", "#c9e4f5", "#eef6fb"]
INCH, MARGIN, TITLE, BETWEEN = 72.0, 8.0, 16.0, 24.0  # points
NARROW = 250.0  # least width of a picture

matplotlib.rcParams.update(
    {"font.size": 8, "font.family": "DejaVu Sans", "axes.titlesize": 9, "text.parse_math": False}
)
matplotlib.rcParams["svg.hashsalt"] = "mother"  # the same picture is the same file
matplotlib.rcParams["pdf.fonttype"] = 42  # publishers ask for whole fonts, not for outlines


def edge_verdict(edge: tuple[str, str], truth: EdgeSet) -> tuple[str, tuple]:
    """Colour and dash of a recovered edge: right, reversed, or between the wrong two."""
    if edge in truth:
        return RIGHT
    return REVERSED if edge[::-1] in truth else WRONG


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


def _dash(colour: str, dash: Sequence[float], label: str) -> Line2D:
    style = (0, tuple(0.45 * part for part in dash)) if dash else "-"
    return Line2D([], [], color=colour, linestyle=style, lw=1.6, label=label)


def _page(width: float, height: float, handles: Sequence[Line2D]) -> tuple[Figure, float]:
    """A figure with a legend below, sizes in points; returns the height of the legend, too."""
    widest = max((width_in_print(str(handle.get_label())) for handle in handles), default=0) + 36
    columns = max(1, min(len(handles), int((width - 2 * MARGIN) // widest)))
    foot = 12.0 * -(-len(handles) // columns) + 6 if handles else 0.0
    figure = Figure(figsize=(width / INCH, (height + foot) / INCH))
    if handles:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 0), "borderaxespad": 0.4}
        look = {"frameon": False, "fontsize": FONT, "handlelength": 2.6, "columnspacing": 1.2}
        figure.legend(handles=list(handles), ncols=columns, **place, **look)
    return figure, foot


def _panel(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes at left, bottom, width and height, in points from the lower left; one unit is a point, down."""
    wide, high = (INCH * size for size in figure.get_size_inches())
    left, bottom, width, height = box
    axes = figure.add_axes((left / wide, bottom / high, width / wide, height / high))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return axes


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
    hidden = hidden or {}
    visible, beside_hidden = through_hidden(recovered, truth, hidden)
    shown = [*models, *sorted({end for edge in recovered for end in edge} - set(models))]
    level = depths([model for model in shown if model not in hidden], truth)
    faces = {model: LEVELS[min(level[model], 3)] if model in level else "white" for model in shown}
    names = {model: "hidden" if model in hidden else model for model in shown}
    sheets = [
        Sheet(layered(name, members, sorted(edges)), names) for members, edges in ((models, truth), (shown, recovered))
    ]
    styles = [("right", RIGHT), ("reversed", REVERSED), ("wrong", WRONG)]
    handles = [_dash(*style, label) for label, style in styles]
    handles += [
        Line2D([], [], marker="o", ms=4, lw=0, color=LEVELS[depth], markeredgecolor=DARK, label=f"true depth {depth}")
        for depth in range(min(4, 1 + max(depths(models, truth).values(), default=0)))
    ]
    titles = [f"{name}: truth", f"recovered: {len(truth & visible)} of {len(truth)} edges right"]
    widths = [max(sheet.size[0], width_in_print(title, 9.0)) for sheet, title in zip(sheets, titles)]
    height = max(sheet.size[1] for sheet in sheets)
    figure, foot = _page(2 * MARGIN + BETWEEN + sum(widths), height + TITLE + 2 * MARGIN, handles)
    left = MARGIN
    for sheet, title, width, edges in zip(sheets, titles, widths, (truth, recovered)):
        axes = _panel(figure, (left, foot + MARGIN, width, height))
        axes.set_title(title, loc="left", pad=4)
        lines = [Line(*edge, *edge_verdict(edge, truth | beside_hidden)) for edge in sorted(edges)]
        draw_sheet(axes, sheet, lines, faces)
        left += width + BETWEEN
    return figure


def _dash_of(kind: str) -> tuple[float, ...]:
    """Lengths of line and gap of a kind as it is drawn; none for a whole line."""
    return tuple(map(float, DASHES.get(kind, "").split()))


def line_of(edge: Edge) -> Line:
    """An edge of a Model Graph: colour and dash by kind, width by probability, no head where the arrow is not known."""
    facts, kind = edge.attributes, base_kind(edge.attributes.get("kind"))
    share = "" if facts.get("coefficient") is None else share_text(facts["coefficient"])
    width = 0.7 + 0.9 * facts.get("adjacency", 0.5)
    head = facts.get("arrow", 1.0) >= KNOWN and facts.get("direction") != "unknown"
    return Line(edge.parent, edge.child, colour_of(facts.get("kind")), _dash_of(kind), width, head, share)


def _alone(models: Sequence[str], names: dict[str, str], width: float) -> list[str]:
    """The names of models without relatives, as lines of a width."""
    lines: list[str] = []
    for model in models:
        if lines and width_in_print(f"{lines[-1]}, {names[model]},") < width:
            lines[-1] += f", {names[model]}"
        else:
            lines.append(names[model])
    return lines


def draw_model_graph(graph: ModelGraph) -> Figure:
    """All families of a Model Graph below one another, the largest first, then the models without relatives.

    Colour and dash say the kind, width the probability; an arrow that is not known has no head and a "?".
    """
    found, alone = families(graph)
    copies = {model: len(facts.get("aliases", ())) for model, facts in graph.nodes.items()}
    names = {model: text + (f" ×{1 + copies[model]}" if copies[model] else "") for model, text in labels(graph).items()}
    sheets, top = [], 0.0
    for family in found:
        sheets.append(Sheet(family, names, top))
        top += sheets[-1].size[1] + ROW
    width = max([NARROW, *(sheet.size[0] for sheet in sheets)])
    rest = _alone(alone, names, width)
    if rest:
        rest = [f"Without relatives: {len(alone)}", *rest]
        width = max(width, *(width_in_print(line) + 4 for line in rest))
    height = top + ROW * len(rest) if rest else max(top - ROW, ROW)
    lines = [line_of(edge) for edge in sorted(graph.edges, key=lambda edge: (edge.parent, edge.child))]
    kinds = sorted({base_kind(edge.attributes.get("kind")) for edge in graph.edges})
    handles = [_dash(colour_of(kind), _dash_of(kind), kind) for kind in kinds]
    if any(not line.head for line in lines):
        handles.append(_dash(DARK, (), "no head, ?: which came first is open"))
    figure, foot = _page(width + 2 * MARGIN, height + 2 * MARGIN, handles)
    axes = _panel(figure, (MARGIN, foot + MARGIN, width, height))
    inside = {model: number for number, sheet in enumerate(sheets) for model in sheet.family.place}
    of: list[list[Line]] = [[] for _ in sheets]
    for line in lines:
        of[inside[line.child]].append(line)
    faces = {model: "white" for model, facts in graph.nodes.items() if facts.get("hidden")}
    for sheet, own in zip(sheets, of):
        draw_sheet(axes, sheet, own, faces)
    for at, text in enumerate(rest):
        weight = "bold" if not at else "normal"
        axes.text(2, top + (at + 0.5) * ROW, text, fontsize=FONT, va="center_baseline", weight=weight, gid="name")
    return figure

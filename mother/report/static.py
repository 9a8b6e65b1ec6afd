"""The parts of the page that need no script: summary, tables and a picture of the families. All text is escaped."""

import html
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mother.errors import escaped
from mother.graph.certainty import KNOWN, percent
from mother.graph.exports import DASHES, base_kind, colour_of, share_text
from mother.graph.layered import Family, free_place, width_of
from mother.report.parts import Part, parts_of

ROW, LETTER, CHANNEL, GAP = 22.0, 12.0, 76.0, 16.0  # pixels
# Behind letters on a line, so that it does not strike them.
HALO = 'paint-order="stroke" stroke="#fff" stroke-width="6"'
LEGEND = "fainter: less probable; no head, or ?: less than 75 % sure; a figure on a merge: share of that parent"
MOST_DRAWN = 1000  # models of a family that the pictures show; of a larger one the number is given
PAGE = 700.0, 900.0  # pixels of a printed page, for a picture
SMALLEST = 8.0  # pixels of printed letters: 6 points


def text(value: object) -> str:
    """Anything as text of HTML, without letters that cannot be shown."""
    return html.escape(escaped(str(value)), quote=True)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], name: str = "", numbers: Sequence[int] = ()) -> str:
    """A table; rows of texts and numbers."""

    def cell(kind: str, at: int, value: Any) -> str:
        mark = ' class="number"' if at in numbers else ""
        scope = ' scope="col"' if kind == "th" else ""
        return f"<{kind}{scope}{mark}>{text(value)}</{kind}>"

    top = "".join(cell("th", at, value) for at, value in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', at, value) for at, value in enumerate(row))}</tr>" for row in rows)
    return f'<table id="{name}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _link(edge: Mapping[str, Any]) -> str:
    """What is said of an edge, as a link to it on the page."""
    ends = "..".join(quote(escaped(edge[end]), safe="") for end in ("parent", "child"))
    return f'<a href="#edge={text(ends)}">{text(edge["words"])}</a>'


def summary_html(found: Mapping[str, Any]) -> str:
    """The summary."""
    parts = [f'<p class="findings">{text(found["findings"])}</p>']
    if found["contradictions"]:
        parts.append('<h3 class="contradicted">Contradicted by the weights</h3>')
        rows = [(one["model"], one["says"], one["file"], one["reason"]) for one in found["contradictions"]]
        parts.append(table(("model", "says that it is from", "in", "the weights"), rows, "contradictions"))
    elif found["audited"]:
        parts.append("<p>No claim is contradicted by the weights.</p>")
    parts.append("<h3>Edges by kind</h3>" + table(("kind", "edges"), found["kinds"].items(), "kinds", (1,)))
    if found["least_certain"]:
        parts.append("<h3>Least certain</h3><ul>")
        parts += [f"<li>{_link(one)}</li>" for one in found["least_certain"]]
        parts.append("</ul>")
    if found["left_out"] or found["not_read"] or found["notes"]:
        rows = [*found["left_out"].items(), *found["not_read"].items()]
        parts.append(f"<h3>Not read, or left out: {len(rows)}</h3>")
        parts += [f"<p>{text(note)}</p>" for note in found["notes"]]
        parts.append(table(("what", "why"), rows, "not-read") if rows else "")
    parts.append(licences_html(found.get("licences") or {}))
    parts.append(
        "<h3>Words for certainty</h3>" + table(("word", "probability"), found["certainty"].items(), "certainty")
    )
    parts.append('<h3 id="glossary">Glossary</h3><dl>')
    parts += [f"<dt>{text(word)}</dt><dd>{text(meaning)}</dd>" for word, meaning in found["glossary"].items()]
    parts.append("</dl><h3>Limits</h3><ul>")
    parts += [f"<li>{text(limit)}</li>" for limit in found["limits"]]
    made = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts.append("</ul><h3>How this was made</h3>")
    software = f"MoTHer {found['version']} (method: docs/method_map.md)"
    rows = [(name, found[name]) for name in ("date", "command")]
    rows += [("software", software), ("libraries", made), ("code", found["code"])]
    return "".join(parts) + table(("", ""), rows, "made")


def licences_html(found: Mapping[str, Any]) -> str:
    """What cards declare of licences, and what changes along lines of descent; nothing where none declares any."""
    if not found.get("declared"):
        return ""
    rows = [
        (name, ask, section, one["source"] or "-")
        for name, one in found["known"].items()
        for ask, section in ({"not known here": "-"} if one["asks"] is None else one["asks"] or {"-": "-"}).items()
    ]
    changes = "".join(f"<li>{text(one['words'])}</li>" for one in found["changes"]) or "<li>Nothing changes.</li>"
    head = ("declared", "beyond keeping its notices and its text it", "section", "its text")
    return f"<h3>Licences along lines of descent</h3><ul>{changes}</ul>{table(head, rows, 'licences')}"


def files_html(found: Mapping[str, Any]) -> str:
    """For every model the files that it was read from."""
    rows = [
        (model, one["file"], one["size"], one["sha256"]) for model, files in found["files"].items() for one in files
    ]
    return table(("model", "file", "bytes", "SHA-256"), rows, "files", (2,))


def column_starts(family: Family, labels: Mapping[str, str]) -> list[float]:
    """Where each column begins, and the end of the last one, in pixels."""
    widths = [0.0] * family.columns
    for model, (column, _) in family.place.items():
        widths[column] = max(widths[column], GAP + LETTER * width_of(labels[model]) + 12)
    starts = [8.0]
    for width in widths:
        starts.append(starts[-1] + width + CHANNEL)
    return starts


def edge_path(points: Sequence[tuple[float, float]], ends: Sequence[float]) -> str:
    """A line through points, level inside columns and bent between them; `ends` are where each point's column ends."""
    (x, y), *others = points
    path = f"M{x:.1f},{y:.1f}H{ends[0]:.1f}"
    at = ends[0]
    for number, (to, row) in enumerate(others, 1):
        middle = (at + to) / 2
        path += f"C{middle:.1f},{y:.1f} {middle:.1f},{row:.1f} {to:.1f},{row:.1f}"
        y = row
        if number < len(others):
            at = ends[number]
            path += f"H{at:.1f}"
    return path


def _along(points: Sequence[tuple[float, float]], ends: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Places on the line of `edge_path`, from the child back to the parent."""
    for number in range(len(points) - 1, 0, -1):
        (before, start), (to, end), at = points[number - 1], points[number], ends[number - 1]
        middle = (at + to) / 2
        for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
            rest = 1 - share
            inner = 3 * rest * rest * share, 3 * rest * share * share
            x = at * rest**3 + middle * sum(inner) + to * share**3
            yield x, start * (rest**3 + inner[0]) + end * (share**3 + inner[1])
        yield max(before, at - 14), start


class _Picture:
    """A family with where its columns begin, and the texts that stand in it so far."""

    def __init__(self, family: Family, names: Mapping[str, str]):
        self.family, self.names = family, names
        self.starts, self.doubted = column_starts(family, names), set[str]()
        self.taken = [self._box(model) for model in family.place]
        self.shares: list[str] = []  # over all lines

    def at(self, model: str) -> tuple[float, float]:
        """The middle of a model's dot."""
        column, row = self.family.place[model]
        return self.starts[column] + 6, row * ROW + ROW

    def end(self, model: str) -> float:
        """Where its name ends."""
        return self.at(model)[0] + 12 + LETTER * width_of(self.names[model])

    def _box(self, model: str) -> tuple[float, float, float, float]:
        x, y = self.at(model)
        return x - 6, y - 9, self.end(model), y + 9

    def edge(self, entry: Mapping[str, Any]) -> str:
        """An edge: colour and dash by kind, opacity by probability, a head where the arrow is known, else a "?"."""
        parent, child = entry["parent"], entry["child"]
        first, last = self.family.place[parent][0], self.family.place[child][0]
        tip, y = self.at(child)[0] - 8, self.at(child)[1]
        bends = [(self.starts[at], row * ROW + ROW) for at, row in self.family.bends.get((parent, child), ())]
        ends = [self.starts[at + 1] - CHANNEL for at in range(first, last)]
        known = entry.get("arrow", 1.0) >= KNOWN
        points = [(self.end(parent) + 4, self.at(parent)[1]), *bends, (tip - (7 if known else 0), y)]
        kind, colour = base_kind(entry.get("kind")), colour_of(entry.get("kind"))
        dash = f' stroke-dasharray="{DASHES[kind]}"' if kind in DASHES else ""
        found = f'<path d="{edge_path(points, ends)}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
        if known:
            corners = f"M{tip - 8:.1f},{y - 4:.1f}L{tip:.1f},{y:.1f}L{tip - 8:.1f},{y + 4:.1f}Z"
            found += f'<path d="{corners}" fill="{colour}"/>'
        doubt = min(entry.get("arrow", 1.0), entry.get("adjacency", 1.0)) < KNOWN
        if doubt and child not in self.doubted:
            self.doubted.add(child)
            self.taken.append((tip - 16, y - 19, tip - 7, y - 3))
            found += f'<text x="{tip - 16:.1f}" y="{y - 6:.1f}" fill="{colour}" font-weight="700">?</text>'
        if entry.get("coefficient") is not None:
            self._share(share_text(entry["coefficient"]), points, ends)
        return f'<g opacity="{0.35 + 0.65 * float(entry.get("adjacency", 1.0)):.2f}">{found}</g>'

    def _share(self, share: str, points: Sequence[tuple[float, float]], ends: Sequence[float]) -> None:
        half = LETTER * width_of(share) / 2 + 1, 7.0
        found = free_place(_along(points, ends), half, self.taken, points[0][0], points[-1][0] - 3)
        if found is not None:
            x, y = found
            self.shares.append(f'<text {HALO} text-anchor="middle" x="{x:.1f}" y="{y + 4:.1f}">{share}</text>')


def _size(family: Family, names: Mapping[str, str]) -> tuple[float, float]:
    return column_starts(family, names)[-1] - CHANNEL + 8, (family.rows + 1) * ROW


def _fits(family: Family, names: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether a picture that is made as small as a page keeps letters that can be read: by its width, by its height."""
    width, height = (have * SMALLEST / LETTER <= room for have, room in zip(_size(family, names), PAGE))
    return width, height


def family_svg(part: Part, edges: Sequence[Mapping[str, Any]]) -> str:
    """A part of a family as a picture, without a script or a style from outside."""
    family, picture = part.drawing, _Picture(part.drawing, part.names)
    width, height = _size(family, part.names)
    parts = [picture.edge(entry) for entry in edges if (entry["parent"], entry["child"]) in part.edges]
    parts += picture.shares
    for model in family.place:
        x, y = picture.at(model)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="#fff" stroke="#333"/>')
        parts.append(f'<text x="{x + 10:.1f}" y="{y + 4:.1f}">{text(picture.names[model])}</text>')
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" aria-label="Family of '
        f'{text(family.name)}" font-family="system-ui, DejaVu Sans, sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def legend_html(edges: Iterable[Mapping[str, Any]], contradicted: bool) -> str:
    """What the lines and marks of the pictures mean: the kinds that are there, each by its colour and dash."""
    parts = []
    for kind in sorted({base_kind(entry.get("kind")) for entry in edges}):
        dash = f' stroke-dasharray="{DASHES[kind]}"' if kind in DASHES else ""
        line = f'<path d="M0,4H30" stroke="{colour_of(kind)}" stroke-width="3"{dash}/>'
        parts.append(f'<li><svg width="30" height="8" aria-hidden="true">{line}</svg>{text(kind)}</li>')
    said = [LEGEND] if parts else []
    said += ["✗: the weights contradict what it says of its origin"] if contradicted else []
    return f'<ul class="legend">{"".join(parts)}{"".join(f"<li>{one}</li>" for one in said)}</ul>'


def picture_html(
    found: Sequence[Family],
    alone: Sequence[str],
    edges: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    copies: Mapping[str, int],
) -> str:
    """All families, each in a picture of its own, so that a page can end between them; then the others."""
    where = {model: number for number, family in enumerate(found) for model in family.members}
    inside: dict[int, list[Mapping[str, Any]]] = {}
    for entry in edges:
        inside.setdefault(where[entry["child"]], []).append(entry)
    names = {model: label + (f" ×{1 + copies[model]}" if copies.get(model) else "") for model, label in labels.items()}
    parts = []
    for number, family in enumerate(found):
        title = f"Family of {text(labels[family.name])}: {len(family.members)} models"
        if len(family.members) > MOST_DRAWN:
            parts.append(f"<figure><figcaption>{title}</figcaption><p>Too large for a picture here.</p></figure>")
            continue
        ends = [(entry["parent"], entry["child"]) for entry in inside[number]]
        drawn = parts_of(family, ends, {model: names[model] for model in family.place}, _fits)
        for at, part in enumerate(drawn, 1):
            which = f", part {at} of {len(drawn)}" if len(drawn) > 1 else ""
            body = family_svg(part, inside[number])
            parts.append(f"<figure><figcaption>{title}{which}</figcaption>{body}</figure>")
    if alone:
        listed = ", ".join(text(names[model]) for model in alone)
        parts.append(f"<h3>Without relatives: {len(alone)}</h3><p>{listed}</p>")
    return "".join(parts)


def _share_of(entry: Mapping[str, Any]) -> str:
    share = entry.get("coefficient")
    return "" if share is None else f", share {share_text(share)}"


def edges_html(edges: Sequence[Mapping[str, Any]], hidden: Collection[str] = ()) -> str:
    """All edges as a table; `hidden` models are not in the collection."""
    rows = [
        (
            "not here" if entry["parent"] in hidden else entry["parent"],
            "not here" if entry["child"] in hidden else entry["child"],
            (entry.get("kind") or "hidden") + _share_of(entry),
            percent(entry["adjacency"]) if "adjacency" in entry else "–",
            percent(entry["arrow"]) if "arrow" in entry else "–",
        )
        for entry in edges
    ]
    return table(("parent", "child", "kind", "parent and child", "this one first"), rows, "edge-table", (3, 4))


def audit_html(audit: Mapping[str, Any] | None) -> str:
    """What models claim, and what the weights say."""
    if audit is None:
        return "<p>No audit was asked for.</p>"
    rows = [(one["model"], one["says"], one["file"], one["verdict"], one["reason"]) for one in audit["verdicts"]]
    order = {"contradicted": 0}
    rows.sort(key=lambda row: order.get(row[3], 1))
    head = ("model", "says that it is from", "in", "verdict", "the weights")
    parts = [table(head, rows, "claims") if rows else "<p>No model claims anything.</p>"]
    if audit["undeclared"]:
        parts.append("<h3>Nothing is claimed, but the weights name a parent</h3>")
        parts.append(table(("model", "the weights"), audit["undeclared"].items(), "undeclared"))
    return "".join(parts)

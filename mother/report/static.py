"""The parts of the page that need no script: summary, tables and a picture of the families. All text is escaped."""

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mother.errors import escaped
from mother.graph.certainty import KNOWN, percent
from mother.graph.exports import DASHES, base_kind, colour_of
from mother.graph.layered import Family, width_of

ROW, LETTER, CHANNEL, GAP = 22.0, 12.0, 76.0, 16.0  # pixels
MOST_DRAWN = 300  # models of a family that the picture shows; of a larger one it gives the number


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
        parts += [f"<li>{text(one['words'])}</li>" for one in found["least_certain"]]
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
    parts.append("<h3>Glossary</h3><dl>")
    parts += [f"<dt>{text(word)}</dt><dd>{text(meaning)}</dd>" for word, meaning in found["glossary"].items()]
    parts.append("</dl><h3>Limits</h3><ul>")
    parts += [f"<li>{text(limit)}</li>" for limit in found["limits"]]
    made = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts.append("</ul><h3>How this was made</h3>")
    rows = (("date", found["date"]), ("command", found["command"]), ("versions", made), ("code", found["code"]))
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


def _named(model: str, labels: Mapping[str, str], copies: Mapping[str, int]) -> str:
    return labels[model] + (f" ×{1 + copies[model]}" if copies.get(model) else "")


def column_starts(family: Family, labels: Mapping[str, str]) -> list[float]:
    """Where each column begins, and the end of the last one, in pixels."""
    widths = [0.0] * family.columns
    for model, (column, _) in family.place.items():
        widths[column] = max(widths[column], GAP + LETTER * width_of(labels[model]) + 34)
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


def _edge(entry: Mapping[str, Any], family: Family, labels: Mapping[str, str], starts: list[float], number: int) -> str:
    """An edge: colour and dash by kind, opacity by probability, a head where the arrow is known, else a "?".

    `number` says which of the edges into its child it is, so that the shares of two parents stand beside one another.
    """
    (column, row), (last, end) = family.place[entry["parent"]], family.place[entry["child"]]
    x = starts[column] + GAP + LETTER * width_of(labels[entry["parent"]]) + 30
    tip, y = starts[last] - 2, end * ROW + ROW
    bends = [(starts[at], at_row * ROW + ROW) for at, at_row in family.bends.get((entry["parent"], entry["child"]), ())]
    ends = [starts[at + 1] - CHANNEL for at in range(column, last)]
    known = entry.get("arrow", 1.0) >= KNOWN
    points = [(x, row * ROW + ROW), *bends, (tip - (7 if known else 0), y)]
    kind, colour = base_kind(entry.get("kind")), colour_of(entry.get("kind"))
    dash = f' stroke-dasharray="{DASHES[kind]}"' if kind in DASHES else ""
    opacity = 0.35 + 0.65 * float(entry.get("adjacency", 1.0))
    found = f'<path d="{edge_path(points, ends)}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
    if known:
        found += f'<path d="M{tip - 8:.1f},{y - 4:.1f}L{tip:.1f},{y:.1f}L{tip - 8:.1f},{y + 4:.1f}Z" fill="{colour}"/>'
    else:
        found += f'<text x="{tip - 12:.1f}" y="{y - 4:.1f}" fill="{colour}" font-weight="700">?</text>'
    if entry.get("coefficient") is not None:
        found += (
            f'<text class="halo" x="{tip - 40:.1f}" y="{(points[-2][1] + y) / 2:.1f}">{entry["coefficient"]:.2g}</text>'
        )
    return f'<g opacity="{opacity:.2f}">{found}</g>'


def family_svg(family: Family, edges: Sequence[Mapping[str, Any]], labels: Mapping[str, str], copies: Mapping) -> str:
    """One family as a picture, without a script or a style from outside."""
    starts = column_starts(family, labels)
    width, height = starts[-1] - CHANNEL + 8, (family.rows + 1) * ROW
    parts, seen = [], Counter[str]()
    for entry in edges:
        parts.append(_edge(entry, family, labels, starts, seen[entry["child"]]))
        seen[entry["child"]] += 1
    for model, (column, row) in family.place.items():
        x, y = starts[column] + 6, row * ROW + ROW
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="#fff" stroke="#333"/>')
        parts.append(f'<text x="{x + 10:.1f}" y="{y + 4:.1f}">{text(_named(model, labels, copies))}</text>')
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" aria-label="Family of '
        f'{text(family.name)}" font-family="system-ui, DejaVu Sans, sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


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
    parts = []
    for number, family in enumerate(found):
        title = f"Family of {text(labels[family.name])}: {len(family.members)} models"
        drawn = len(family.members) <= MOST_DRAWN
        body = family_svg(family, inside[number], labels, copies) if drawn else "<p>Too large for a picture here.</p>"
        parts.append(f"<figure><figcaption>{title}</figcaption>{body}</figure>")
    if alone:
        names = ", ".join(
            text(labels[model] + (f" ×{1 + copies[model]}" if copies.get(model) else "")) for model in alone
        )
        parts.append(f"<h3>Without relatives: {len(alone)}</h3><p>{names}</p>")
    return "".join(parts)


def edges_html(edges: Sequence[Mapping[str, Any]]) -> str:
    """All edges as a table."""
    rows = [
        (
            "not here"
            if str(entry["parent"]).startswith("hidden parent of") and entry.get("hidden")
            else entry["parent"],
            entry["child"],
            entry.get("kind") or "hidden",
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

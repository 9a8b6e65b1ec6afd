"""Explanations as text: the plain sentence first, then why, then the figures that took part."""

import csv
import io
from typing import Any

from mother.graph.certainty import percent, sure

COLUMNS = ("layer", "change", "rank", "newness", "rounding")
APART = ("kind", "adjacency", "arrow", "direction", "ranks", "parents", "compared", "inferred", "tested")


def _why(found: dict[str, Any]) -> list[str]:
    lines = []
    for about, head in (
        ("arrow", "Which came first (log odds)"),
        ("edge", "Parent and child (log weight)"),
    ):
        told = [one for one in found.get("why", ()) if one["about"] == about]
        if told:
            lines += ["", f"{head}:"]
            lines += [
                f"{'exact' if one['log_odds'] is None else format(one['log_odds'], '+.2f'):>9}  {one['words']}"
                for one in told
            ]
    return lines


def _figures(found: dict[str, Any]) -> list[str]:
    evidence = found.get("evidence")
    if not evidence:
        return []
    distance = "none in common" if evidence["distance"] is None else f"{evidence['distance']:.4g}"
    lines = [
        "",
        f"relatedness   z = {evidence['relatedness']:.1f}  (0 with deviation 1 for models initialised independently)",
        f"distance      {distance}  (0: equal, 1.4: unrelated), on {percent(evidence['compared'])} of the weights",
    ]
    if "equal" in evidence:
        changed = f"{evidence['layers_changed']} of {evidence['layers_compared']} matrices differ"
        lines.append(f"equal entries {100 * evidence['equal']:.1f} %; {changed}")
    if "newness" in evidence:
        first, second = (found["parent"], found["child"]) if "parent" in found else found["models"]
        newness = f"{evidence['newness']:+.3f}, t = {evidence['newness_t']:+.1f}"
        lines.append(f"newness       {newness}  (positive: what differs was added by {second})")
        if evidence["rounding"] is not None:
            ratio = f"{evidence['rounding']:+.1f}"
            lines.append(f"rounding      {ratio}  (log likelihood ratio; positive: {second} was rounded last)")
        if evidence["cast"] is not None:
            lines.append(f"cast          {evidence['cast']:+.1f}  (the same by residuals of a cast)")
        if evidence["decay"]:
            lines.append(f"decay         rows of {second if evidence['decay'] > 0 else first} are shrunk by one factor")
    return lines


def _fact(key: str, value: Any) -> str:
    said = " or ".join(map(str, value)) if isinstance(value, list) else value
    return f"{key.replace('_', ' ')} {said}"


def explain_text(found: dict[str, Any]) -> str:
    """What `explain` gave, on one screen."""
    lines = [found["summary"]]
    if found.get("adjacency") is not None:
        lines.append(f"That they are parent and child is {sure(found['adjacency'])}.")
    facts = {key: value for key, value in found.get("edge", {}).items() if key not in APART}
    if facts:
        lines.append(f"Edge: {', '.join(_fact(key, value) for key, value in facts.items())}.")
    lines += [*_why(found), *_figures(found)]
    if found.get("wrong_if"):
        lines += ["", "For this to be wrong:", *(f"- {words}" for words in found["wrong_if"])]
    if found.get("evidence", {}).get("layers"):
        lines += ["", "Each matrix: --layers, or --layers FILE.csv. Method: docs/method_map.md"]
    return "\n".join(lines)


def lineage_text(found: dict[str, Any]) -> str:
    """What `lineage` gave: a line for each step to the root, then what each step rests on."""
    names = [found["model"], *found["copies"]]
    lines = [f"{' = '.join(names)}"]
    if found["copies"]:
        lines.append(f"  (copies: the weights of these {len(names)} are equal)")
    for depth, step in enumerate(found["steps"], 1):
        lines.append(f"{'  ' * depth}from {step['parent']}" + _others(step))
        lines.append(f"{'  ' * depth}     {step['summary']}")
    root = found["root_probability"]
    if not found["steps"]:
        lines.append("  no parent in this collection")
    if root is not None:
        lines.append(f"{found['root']} is the root of its family: {sure(root)}.")
    return "\n".join(lines)


def _others(step: dict[str, Any]) -> str:
    return f", and from {', '.join(step['other_parents'])}" if step["other_parents"] else ""


def layers_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the per-layer table of what `explain` gave, largest change first."""
    return sorted(found.get("evidence", {}).get("layers", ()), key=lambda row: -row["change"])


def layers_csv(found: dict[str, Any]) -> str:
    """The per-layer table as CSV; empty where a figure took no part."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(layers_of(found))
    return text.getvalue()


def layers_text(found: dict[str, Any]) -> str:
    """The per-layer table for a terminal."""
    lines = [f"{'matrix':<28} {'change':>7} {'rank':>6} {'newness':>8} {'rounding':>9}"]
    for row in layers_of(found):
        newness = "-" if row.get("newness") is None else f"{row['newness']:+.2f}"
        rounding = "-" if row.get("rounding") is None else f"{row['rounding']:+.1f}"
        lines.append(f"{row['layer'][:28]:<28} {100 * row['change']:6.1f}% {row['rank']:>6} {newness:>8} {rounding:>9}")
    return "\n".join(lines)

"""A large family in parts, each of which a page can show in letters that can be read.

A part holds whole generations below the models that it begins with. A model whose children stand in another part says
in which, and is drawn again where they are. A merge is drawn with all its parents, wherever they have their own place.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from mother.graph.layered import Family, layered

MOST = 64  # models with which the first attempt at a part is made
SHRINK = 0.85  # of a part that is too high

Names = Mapping[str, str]
Fits = Callable[[Family, Names], tuple[bool, bool]]  # whether a drawing with these names is narrow, and low, enough


@dataclass(frozen=True)
class Part:
    """One part: its drawing, what each of its models is called there, and the edges that it shows, by their ends."""

    drawing: Family
    names: dict[str, str]
    edges: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class _Draft:
    """Models of a part: all, those with their children, those that are cut, those that are here for a merge alone."""

    members: list[str]
    drawn: dict[str, list[str]]  # model -> its children that are drawn here below it
    cut: list[str]
    others: list[str]


class _Cutter:
    """Cuts one family. Each model counts as below its first parent."""

    def __init__(self, family: Family, edges: Sequence[tuple[str, str]]):
        self.family, self.edges = family, edges
        self.main: dict[str, str] = {}
        self.parents: dict[str, list[str]] = {}
        for parent, child in edges:
            self.main.setdefault(child, parent)
            self.parents.setdefault(child, []).append(parent)
        order = sorted(family.place, key=lambda model: family.place[model][::-1])
        self.below: dict[str, list[str]] = {}
        for model in order:
            if model in self.main:
                self.below.setdefault(self.main[model], []).append(model)
        self.heads = [(model, self.below.get(model, [])) for model in order if model not in self.main]

    def fill(self, pending: Sequence[tuple[str, list[str]]], most: int, depth: int) -> tuple[_Draft, list]:
        """A part of the first of `pending` models and as many more as it has room for, and what is pending then."""
        drawn: dict[str, list[str]] = {}
        members: dict[str, None] = {}
        cut: list[tuple[str, list[str]]] = []
        left = list(pending)
        while left and (not members or len(members) + 1 + len(left[0][1]) <= most):
            head, children = left.pop(0)
            members[head] = None
            room = max(1, most - len(members))
            if len(children) > room:
                left.insert(0, (head, children[room:]))
                children = children[:room]
            queue = deque([(head, children, 0)])
            while queue:
                model, children, at = queue.popleft()
                if not children:
                    continue
                if model != head and (at >= depth or len(members) + len(children) > most):
                    cut.append((model, children))
                    continue
                drawn[model] = children
                members |= dict.fromkeys(children)
                queue.extend((child, self.below.get(child, []), at + 1) for child in children)
            if left and left[0][0] == head:
                break
        children = [child for below in drawn.values() for child in below]
        others = [one for child in children for one in self.parents[child] if one not in members]
        others = list(dict.fromkeys(others))
        return _Draft([*members, *others], drawn, [model for model, _ in cut], others), [*left, *cut]

    def drawing(self, draft: _Draft) -> tuple[Family, frozenset[tuple[str, str]]]:
        """The drawing of a part and its edges: those to children that stand here below a parent."""
        children = {child for below in draft.drawn.values() for child in below}
        there = set(draft.members)
        edges = [(parent, child) for parent, child in self.edges if child in children and parent in there]
        return layered(draft.members[0], draft.members, edges), frozenset(edges)

    def drafts(self, names: Names, fits: Fits) -> tuple[list[_Draft], list[tuple[Family, frozenset[tuple[str, str]]]]]:
        """All parts with their drawings, each as large as fits."""
        drafts, drawings = [], []
        pending = self.heads
        while pending:
            most, depth = MOST, self.family.columns
            while True:
                draft, left = self.fill(pending, most, depth)
                drawing, shown = self.drawing(draft)
                away = {*draft.cut, *draft.others}
                called = {model: names[model] + " (part 99)" * (model in away) for model in draft.members}
                narrow, low = fits(drawing, called)
                if (narrow or depth <= 1) and (low or most <= 2):
                    break
                depth = depth if narrow else min(depth, drawing.columns) - 1
                most = most if low else max(2, int(SHRINK * min(most, len(draft.members))))
            drafts.append(draft)
            drawings.append((drawing, shown))
            pending = left
        return drafts, drawings


def _where(parts: Collection[int]) -> str:
    runs = sorted(part + 1 for part in parts)
    if len(runs) == 1:
        return f"part {runs[0]}"
    return f"parts {runs[0]} to {runs[-1]}" if len(runs) > 2 else f"parts {runs[0]} and {runs[1]}"


def parts_of(family: Family, edges: Sequence[tuple[str, str]], names: Names, fits: Fits) -> list[Part]:
    """A family in as many parts as it needs; one where all of it fits.

    `edges` are its (parent, child), the first of each child to the parent that it counts as below.
    """
    if all(fits(family, names)):
        return [Part(family, dict(names), frozenset(edges))]
    cutter = _Cutter(family, edges)
    drafts, drawings = cutter.drafts(names, fits)
    home = {child: at for at, draft in enumerate(drafts) for below in draft.drawn.values() for child in below}
    for at, draft in reversed(list(enumerate(drafts))):
        home |= {model: at for model in draft.members if model not in cutter.main and model not in draft.others}
    found = []
    for at, (draft, (drawing, shown)) in enumerate(zip(drafts, drawings)):
        names_here = {}
        for model in draft.members:
            below = {home[child] for child in cutter.below.get(model, ())}
            away = ({home[model]} if model in draft.others else below) - {at}
            names_here[model] = names[model] + (f" ({_where(away)})" if away else "")
        found.append(Part(drawing, names_here, shown))
    return found

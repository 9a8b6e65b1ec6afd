"""Patterns of an adapter's configuration, matched as PEFT matches them, in a time that they cannot choose.

PEFT takes the first pattern that `re.match(rf"(.*\\.)?({pattern})$", module)` finds. Python's matcher tries what a
pattern leaves open again and again, for ever where its author wants that. Here a pattern is a set of states that goes
through a name once (Thompson, 1968), and all looks of an adapter together have a budget.
"""

import re
from dataclasses import dataclass, field
from typing import Any

MOST_PATTERNS = 1000
MOST_CHARACTERS = 300  # of a pattern; the longest names of tensors have as many
MOST_DEPTH = 20  # groups inside one another
MOST_STATES = 2000  # of a pattern: what it repeats is written out
MOST_STEPS = 10_000_000  # budget: letters that are looked at for one adapter, about two seconds
NEW = 5  # steps for each state of a set that was not met before
_PLAIN = re.compile(r"(?:\.\*\\\.)?([\w-]+(?:\.[\w-]+)*)")  # text; a dot may stand for anything
_REPEAT = re.compile(r"[*+?]|\{(\d{1,4})\}|\{(\d{0,4}),(\d{0,4})\}")
_ATOM = re.compile(r"\\[dDwWsS]|\\[^A-Za-z0-9]|\[\^?\]?(?:\\[dDwWsS]|\\[^A-Za-z0-9]|[^\]\\])*\]|[^\\\[\](){}*+?^$|]")
_ODD_CLASS = re.compile(r"\[.*(\[|--|&&|\|\||~~)")  # Python warns of them

# What a pattern is made of: ("letter", what it matches), ("all", parts), ("either", parts), ("repeat", part, from, to).
_Part = tuple[Any, ...]


class _Parser:
    """The parts of a pattern; raises ValueError for what is none, or more than names of modules need."""

    def __init__(self, pattern: str):
        self.pattern, self.at = pattern, 0

    def whole(self) -> _Part:
        part = self.either(0)
        if self.at < len(self.pattern):
            raise ValueError("is none")
        return part

    def either(self, depth: int) -> _Part:
        if depth > MOST_DEPTH:
            raise ValueError("is too involved")
        parts = [self.all(depth)]
        while self.pattern.startswith("|", self.at):
            self.at += 1
            parts.append(self.all(depth))
        return ("either", parts)

    def all(self, depth: int) -> _Part:
        parts = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            part = self.atom(depth)
            found = _REPEAT.match(self.pattern, self.at)
            if found is not None:
                self.at = found.end()
                part = ("repeat", part, *_times(found))
                if self.pattern.startswith("?", self.at):  # it is content with less: the same names match
                    self.at += 1
                if self.pattern.startswith(("*", "+", "?"), self.at):
                    raise ValueError("is none")
            parts.append(part)
        return ("all", parts)

    def atom(self, depth: int) -> _Part:
        if self.pattern.startswith("(", self.at):
            self.at += 3 if self.pattern.startswith("(?:", self.at) else 1
            if self.pattern.startswith("?", self.at):
                raise ValueError("is too involved")
            part = self.either(depth + 1)
            if not self.pattern.startswith(")", self.at):
                raise ValueError("is none")
            self.at += 1
            return part
        found = _ATOM.match(self.pattern, self.at)
        if found is None or _ODD_CLASS.match(found[0]):
            raise ValueError("is none" if self.pattern[self.at] in "*+?[" else "is too involved")
        self.at = found.end()
        try:
            return ("letter", re.compile(found[0]))
        except re.error:
            raise ValueError("is none") from None


def _times(found: re.Match[str]) -> tuple[int, int | None]:
    """(fewest, most) of a quantifier; None: without end."""
    if found[0] in ("*", "+", "?"):
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0]]
    if found[1]:
        return int(found[1]), int(found[1])
    fewest, most = int(found[2] or 0), int(found[3]) if found[3] else None
    if most is not None and most < fewest:
        raise ValueError("is none")
    return fewest, most


@dataclass
class _States:
    """A pattern as states, the last one of which is reached where it matches."""

    letters: list[re.Pattern[str] | None] = field(default_factory=list)  # that lead on from a state; None: nothing does
    after: list[list[int]] = field(default_factory=list)  # with the letter, or without one
    # Names of modules are much alike: sets of states that were met, and where letters led from them.
    sets: list[frozenset[int]] = field(default_factory=lambda: [frozenset()])
    numbers: dict[frozenset[int], int] = field(default_factory=lambda: {frozenset(): 0})
    led: dict[tuple[int, str, bool], int] = field(default_factory=dict)

    def new(self, letter: re.Pattern[str] | None = None) -> int:
        if len(self.letters) >= MOST_STATES:
            raise ValueError("is too involved")
        self.letters.append(letter)
        self.after.append([])
        return len(self.letters) - 1

    def build(self, part: _Part, start: int) -> int:
        """Add a part behind a state; returns the state behind it."""
        kind, what = part[:2]
        if kind == "letter":
            letter, end = self.new(what), self.new()
            self.after[start].append(letter)
            self.after[letter].append(end)
            return end
        if kind == "all":
            for one in what:
                start = self.build(one, start)
            return start
        if kind == "either":
            end = self.new()
            for one in what:
                self.after[self.build(one, start)].append(end)
            return end
        fewest, most = part[2:]
        for _ in range(fewest):
            start = self.build(what, start)
        if most is None:
            loop = self.new()
            self.after[start].append(loop)
            self.after[self.build(what, loop)].append(loop)
            return loop
        end = self.new()
        for _ in range(most - fewest):
            self.after[start].append(end)
            start = self.build(what, start)
        self.after[start].append(end)
        return end

    def spread(self, states: list[int]) -> frozenset[int]:
        """All states that are reached from these without a letter."""
        found = set(states)
        while states:
            state = states.pop()
            if self.letters[state] is None:
                new = [one for one in self.after[state] if one not in found]
                found.update(new)
                states.extend(new)
        return frozenset(found)

    def lead(self, number: int, letter: str, begins: bool) -> int:
        """Where a letter leads from a set of states, and from the first one if the pattern may begin here."""
        after: list[int] = []
        for state in self.sets[number] | (self.spread([0]) if begins else frozenset()):
            taken = self.letters[state]
            if taken is not None and taken.match(letter):
                after += self.after[state]
        found = self.spread(after)
        if found not in self.numbers:
            self.numbers[found] = len(self.sets)
            self.sets.append(found)
        self.led[number, letter, begins] = self.numbers[found]
        return self.numbers[found]


class Patterns:
    """The tables of one adapter, with their budget."""

    def __init__(self) -> None:
        self.left = MOST_STEPS
        self.plain: dict[str, str] = {}  # pattern -> text that a name ends with, or nothing
        self.built: dict[str, tuple[_States, int]] = {}

    def _spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise ValueError("its patterns take too long to be matched")

    def value(self, patterns: dict[str, int | float], module: str, usual: int | float) -> int | float:
        """What the first pattern that matches a module gives, or the usual value. Raises ValueError."""
        return next((value for pattern, value in patterns.items() if self.matches(pattern, module)), usual)

    def matches(self, pattern: str, module: str) -> bool:
        """Whether PEFT would find it. Raises ValueError for a pattern that is none, or too involved."""
        self._spend(1)
        if pattern not in self.plain:
            self.plain[pattern] = found[1] if (found := _PLAIN.fullmatch(pattern)) else ""
        if text := self.plain[pattern]:
            tail, before = module[-len(text) :], module[: -len(text)]
            inside = before.endswith(".") or (before == "" and text == pattern)
            fits = len(tail) == len(text) and inside and tail[-1] == text[-1]
            return fits and all(one in (letter, ".") for one, letter in zip(text, tail))
        anchored = pattern.startswith("^") and "|" not in pattern
        inner = pattern[anchored:]
        if inner.endswith("$") and "|" not in inner and not inner.endswith("\\$"):
            inner = inner[:-1]
        try:
            if pattern not in self.built:
                states = _States()
                start = states.new()
                self.built[pattern] = (states, states.build(_Parser(inner).whole(), start))
                self._spend(len(states.letters))
            return self._run(*self.built[pattern], module, anchored)
        except ValueError as error:
            said = str(error)
            raise ValueError(f"the pattern {ascii(pattern)[:100]} {said}" if said.startswith("is ") else said) from None

    def _run(self, states: _States, end: int, module: str, anchored: bool) -> bool:
        self._spend(len(module))
        now, before = 0, "."
        for letter in module:
            key = (now, letter, before == ".")
            if key not in states.led:
                now = states.lead(*key)
                self._spend(NEW * (1 + len(states.sets[now])))
            else:
                now = states.led[key]
            before = "" if anchored else letter
        return end in (states.sets[now] | states.spread([0]) if before == "." else states.sets[now])


def read_patterns(table: Any, what: str) -> dict[str, int | float]:
    """A table of patterns, with its types checked; raises ValueError."""
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise ValueError(f"{what} is no table")
    if len(table) > MOST_PATTERNS:
        raise ValueError(f"{what} has {len(table)} patterns")
    for pattern, value in table.items():
        if len(pattern) > MOST_CHARACTERS:
            raise ValueError(f"the pattern {ascii(pattern)[:100]} is too involved")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the pattern {ascii(pattern)[:100]} has no number")
    return table

"""One wording for one probability: the words for certainty and the figures that stand beside them, everywhere."""

from collections.abc import Mapping
from typing import Any

KNOWN = 0.75  # probability of the arrow from which it counts as known; below it, it is drawn without a head

CERTAINTY = (  # from this probability on -> the word that is used for it
    (0.995, "certain"),
    (0.95, "sure"),
    (KNOWN, "likely"),
    (0.25, "open"),
    (0.0, "unlikely"),
)


def certainty(probability: float | int) -> str:
    """The word for a probability, see `CERTAINTY`."""
    return next(word for least, word in CERTAINTY if probability >= least)


def percent(probability: float | int) -> str:
    """A probability in the one way in which readers see it: rounded, but never into the range of another word."""
    if probability >= 0.995:
        return "more than 99 %"
    if probability < 0.005:
        return "less than 1 %"
    rounded = int(100 * probability + 0.5)
    return f"{rounded - (certainty(rounded / 100) != certainty(probability))} %"


def ranges() -> list[tuple[str, str]]:
    """Each word of certainty with its range."""
    above = [None, *(least for least, _ in CERTAINTY)]
    return [
        (word, f"{100 * least:g} % and more" if over is None else f"{100 * least:g} % to {100 * over:g} %")
        for (least, word), over in zip(CERTAINTY[:-1], above)
    ] + [(CERTAINTY[-1][1], f"less than {100 * CERTAINTY[-2][0]:g} %")]


def sure(probability: float | int) -> str:
    """Word and figure of a probability."""
    return f"{certainty(probability)} ({percent(probability)})"


def both(edge: Mapping[str, Any]) -> str:
    """The two probabilities of an edge: that it is one, and that its parent came first."""
    return f"parent and child: {sure(edge.get('adjacency', 1.0))}, parent first: {sure(edge.get('arrow', 1.0))}"

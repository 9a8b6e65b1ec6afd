"""What licences ask for, each statement with the section of the text that says so. Facts, no advice.

What nearly all ask for is left out: that its notices, its text and the names of its authors be kept.
Terms that hold for one text only name it, so that two lists of forbidden uses do not pass for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

NONCOMMERCIAL = "forbids commercial use"
NO_CHANGES = "forbids to share what is made from it"
CHANGED = "asks to say what was changed"
SOURCE = "asks to give the source code along"
NETWORK = "asks to offer the source code of what is made from it to those who use that over a network"
PROMOTE = "forbids to promote what is made from it with its authors' names, unless they permit it"
LATEST = "asks for reasonable efforts to use its latest version"
EUROPE = "gives those who live or have their main office in the European Union no rights in its multimodal models"
SCALE = "asks those who had more than 700 million monthly users when it came out to ask for a licence"


@dataclass(frozen=True)
class Licence:
    """What a licence asks for, with the section of each, and where its text is."""

    asks: Mapping[str, str]
    source: str


def same(name: str) -> str:
    """Share-alike: of one licence; Creative Commons' name others that do, too."""
    or_like = ", a later version or a licence that Creative Commons lists as compatible" if name[:2] == "CC" else ""
    return f"asks that what is made from it be under {name}{or_like}"


def uses(name: str) -> str:
    """A list of forbidden uses: each licence has its own."""
    return f"forbids the uses of a list ({name})"


def bind(name: str) -> str:
    """That the list be passed on: each licence has its own."""
    return f"asks that those who get what is made from it be bound to that list ({name})"


def _cc(elements: str) -> Licence:
    """A licence of Creative Commons, version 4.0, by its elements, such as "by-nc"."""
    name = f"CC {elements.upper()} 4.0"
    asks = {CHANGED: "3(a)(1)(B)"}
    if "nc" in elements:
        asks = {NONCOMMERCIAL: "2(a)(1)"} | asks
    if "nd" in elements:
        asks = {NO_CHANGES: "2(a)(1)(B)"} | asks
    if "sa" in elements:
        asks = {same(name): "3(b)(1)"} | asks
    return Licence(asks, f"https://creativecommons.org/licenses/{elements}/4.0/legalcode")


def _rail(name: str, source: str, more: Mapping[str, str] = MappingProxyType({})) -> Licence:
    """A licence of the OpenRAIL-M texts, which number their paragraphs alike, and what it asks for beside that."""
    return Licence({uses(name): "5, Attachment A", bind(name): "4(a) and 5", CHANGED: "4(c)", **more}, source)


def _llama(version: str, source: str) -> Licence:
    """A community licence of Llama, whose versions number their sections alike."""
    asks = {uses(f"Llama {version} Acceptable Use Policy"): "1.b.iv", SCALE: "2"}
    if version in ("2", "3"):
        asks[f"forbids to improve other language models than Llama {version} with it or its outputs"] = "1.b.v"
    if version != "2":
        name = "Llama 3" if version == "3" else "Llama"
        outputs = "" if version == "3" else " or trained on its outputs"
        asks[f'asks that the name of a model that is made from it{outputs} begin with "{name}"'] = "1.b.i"
        asks[f'asks to display "Built with {"Meta " if version == "3" else ""}{name}"'] = "1.b.i"
    if version in ("3.2", "4"):
        asks[EUROPE] = "1.b.iv, Acceptable Use Policy"
    return Licence(asks, source)


SPACES = "https://huggingface.co/spaces"
LICENCES = {
    "apache-2.0": Licence({CHANGED: "4(b)"}, "https://www.apache.org/licenses/LICENSE-2.0"),
    "mit": Licence({}, "https://opensource.org/license/mit"),
    "bsd-2-clause": Licence({}, "https://opensource.org/license/bsd-2-clause"),
    "bsd-3-clause": Licence({PROMOTE: "clause 3"}, "https://opensource.org/license/bsd-3-clause"),
    "cc0-1.0": Licence({}, "https://creativecommons.org/publicdomain/zero/1.0/legalcode"),
    "cc-by-4.0": _cc("by"),
    "cc-by-sa-4.0": _cc("by-sa"),
    "cc-by-nc-4.0": _cc("by-nc"),
    "cc-by-nc-sa-4.0": _cc("by-nc-sa"),
    "cc-by-nc-nd-4.0": _cc("by-nc-nd"),
    "cc-by-nd-4.0": _cc("by-nd"),
    "gpl-2.0": Licence(
        {same("GPL 2"): "2(b)", SOURCE: "3", CHANGED: "2(a)"}, "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html"
    ),
    "gpl-3.0": Licence(
        {same("GPL 3"): "5(c)", SOURCE: "6", CHANGED: "5(a)"}, "https://www.gnu.org/licenses/gpl-3.0.html"
    ),
    "agpl-3.0": Licence(
        {same("AGPL 3"): "5(c)", SOURCE: "6", NETWORK: "13", CHANGED: "5(a)"},
        "https://www.gnu.org/licenses/agpl-3.0.html",
    ),
    "creativeml-openrail-m": _rail(
        "CreativeML Open RAIL-M", f"{SPACES}/CompVis/stable-diffusion-license", {LATEST: "7"}
    ),
    "bigscience-openrail-m": _rail("BigScience Open RAIL-M", f"{SPACES}/bigscience/license"),
    "openrail++": _rail(
        "CreativeML Open RAIL++-M",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    ),
    "llama2": _llama("2", "https://ai.meta.com/llama/license/"),
    "llama3": _llama("3", "https://www.llama.com/llama3/license/"),
    "llama3.1": _llama("3.1", "https://www.llama.com/llama3_1/license/"),
    "llama3.2": _llama("3.2", "https://www.llama.com/llama3_2/license/"),
    "llama3.3": _llama("3.3", "https://www.llama.com/llama3_3/license/"),
    "llama4": _llama("4", "https://www.llama.com/llama4/license/"),
    "gemma": Licence(
        {
            uses("Gemma Prohibited Use Policy"): "3.2",
            bind("Gemma Prohibited Use Policy"): "3.1",
            CHANGED: "3.1",
        },
        "https://ai.google.dev/gemma/terms",
    ),
}

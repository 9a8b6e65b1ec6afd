"""Where each matrix of a network stands: on which stream, in which attention or MLP, and as what.

What an attention and an MLP are follows from structure: three matrices under one name that are called query, key and
value, with the one beside them that takes what they give; two matrices of which one takes what the other gives. So
it does not matter how deep a family nests them: `block.3.layer.1.EncDecAttention.q` of T5, `transformer_blocks.0.attn1`
of a U-Net, `layers.1.blocks.0.attn` of Swin, `experts.3.w1` of Mixtral.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from mother.io.pieces import Piece

Path = tuple[str, ...]

ATTENTION, MLP = ("query", "key", "value", "output"), ("mlp_up", "mlp_gate", "mlp_down")
# The last word of the name of queries, keys and values. Outputs, which have many names, are found by their shapes.
_WORDS = {
    kind: re.compile(rf"(?:to_|w)?(?:{kind[0]}|{kind})(?:_(?:proj|projection|lin|linear|layer))?")
    for kind in ATTENTION[:3]
}
# An attention to another stream. It does not differ by its shapes.
_CROSS = re.compile(r"cross|enc_?dec|encoder_att|attn2", re.IGNORECASE)
# Parts that have names and no order among the numbers of others.
_PARTS = (re.compile(r"(^|[._])(mid|middle|bottleneck|bridge)"), re.compile(r"(^|[._])(up|dec|out)"))


class Site(NamedTuple):
    """The place of a matrix inside a block."""

    stack: Path  # of blocks that write to one stream
    step: int  # number of the block in it; -1 for none
    turn: int  # within the block: 0 for attention, 1 for attention to another stream, 2 for what is neither
    block: Path
    module: Path  # the attention, the MLP, or the expert
    kind: str  # one of ATTENTION and MLP, or what the family calls it


def order_key(path: Iterable[str]) -> tuple:
    """Order parts of a network as data passes them: by numbers, and its middle before what goes up again."""
    path = tuple(path)
    name = ".".join(path)
    part = next((at + 1 for at, pattern in enumerate(_PARTS) if pattern.search(name)), 0)
    return part, tuple((0, int(one), "") if one.isdecimal() else (1, 0, one) for one in path)


class _Tree:
    """The matrices inside blocks by their paths, and the module and kind of those that are known."""

    def __init__(self, pieces: Mapping[str, Piece]):
        inside = {name: piece for name, piece in pieces.items() if piece.layer is not None and piece.layer.block}
        self.sizes = {name: (piece.shape[0], math.prod(piece.shape[1:])) for name, piece in inside.items()}
        self.path = {n: tuple(f"{piece.layer.block}.{piece.layer.kind}".split(".")) for n, piece in inside.items()}
        self.under: dict[Path, list[str]] = defaultdict(list)
        for name, path in self.path.items():
            for end in range(len(path)):
                self.under[path[:end]].append(name)
        self.known: dict[str, tuple[Path, str]] = {
            name: (path[:-1], path[-1]) for name, path in self.path.items() if path[-1] in MLP
        }
        self.blocks: dict[Path, int] = {}  # those with an attention -> width of their stream

    def free(self, above: Path) -> Iterator[str]:
        """The matrices there of which nothing is known."""
        return (name for name in self.under[above] if name not in self.known)

    def find_attentions(self) -> None:
        """Find queries, keys and values under one name, the output beside them, and their blocks."""
        found: dict[Path, dict[str, str]] = defaultdict(dict)
        for name, path in self.path.items():
            for kind, words in _WORDS.items():
                if words.fullmatch(path[-1]):
                    found[path[:-1]][kind] = name
        found = {module: kinds for module, kinds in found.items() if len(kinds) == len(_WORDS)}
        for module, kinds in found.items():
            self.known |= {name: (module, kind) for kind, name in kinds.items()}
        for module, kinds in found.items():
            output = self._output(module, self.sizes[kinds["query"]][::-1])
            if output is not None:
                self.known[output] = (module, "output")
        for module in found:  # tables of positions and the like
            if not module[-1].isdecimal():
                self.known |= {name: (module, self.path[name][-1]) for name in self.free(module)}
        for module, kinds in found.items():
            self.blocks[self._block(module)] = self.sizes[kinds["query"]][1]

    def _output(self, module: Path, size: tuple[int, int]) -> str | None:
        """The one matrix of this size beside queries, keys and values; in a block only what is called output."""
        for end in range(len(module), 0, -1):
            above = module[:end]
            fitting = [name for name in self.free(above) if self.sizes[name] == size]
            if above[-1].isdecimal():
                fitting = [name for name in fitting if self.path[name] == (*above, "output")]
            if len(fitting) == 1 or above[-1].isdecimal():
                return fitting[0] if fitting else None
        return None

    def _block(self, module: Path) -> Path:
        """The smallest part with a number that holds more than attention, else the smallest with a number."""
        numbered = [module[:end] for end in range(len(module), 0, -1) if module[end - 1].isdecimal()]
        holding = (
            part
            for part in numbered
            if any(self.known.get(name, (part, MLP[0]))[1] in MLP for name in self.under[part])
        )
        return next(holding, numbered[0] if numbered else module)

    def find_feeds(self) -> None:
        """Find the MLPs of blocks with an attention: pairs of which one takes what the other gives."""
        for block, width in self.blocks.items():
            wide = [name for name in self.free(block) if self.sizes[name][0] != width == self.sizes[name][1]]
            downs = {name for name in self.free(block) if self.sizes[name][0] == width != self.sizes[name][1]}
            for name in wide:
                rows = self.sizes[name][0]
                for end in range(len(self.path[name]) - 1, len(block) - 1, -1):
                    above = self.path[name][:end]
                    # A gate and what it opens may stand in one matrix.
                    met = [
                        n for n in self.under[above] if n in downs and rows in (self.sizes[n][1], 2 * self.sizes[n][1])
                    ]
                    if met:
                        self.known |= {one: (above, "mlp_down") for one in met}
                        self.known[name] = (above, "mlp_up" if rows == self.sizes[met[0]][1] else "mlp_joined")
                        break


def sites_of(pieces: Mapping[str, Piece]) -> dict[str, Site]:
    """The sites of all matrices inside blocks, by the names of their pieces."""
    tree = _Tree(pieces)
    tree.find_attentions()
    tree.find_feeds()
    found = {}
    for name, path in tree.path.items():
        layer = pieces[name].layer
        module, kind = tree.known.get(name, (path[:-1], layer.kind))
        block = next((path[:end] for end in range(len(path), 0, -1) if path[:end] in tree.blocks), None)
        block = block or tuple(layer.block.split("."))
        turn = int(_CROSS.search(".".join(module[len(block) :])) is not None) if kind in ATTENTION else 2
        stack, step = (block[:-1], int(block[-1])) if block[-1].isdecimal() else (block, -1)
        found[name] = Site(stack, step, turn, block, module, kind)
    return found

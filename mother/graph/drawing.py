"""Figures are drawn only when what they show has changed: matplotlib is not even imported where nothing has."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mother.io.files import sha256, write_figure, write_json

DRAWN = "drawn.json"  # beside the figures: what each was drawn from
DPI = 200
CODE = ("figures.py", "pictures.py", "sheet.py", "layered.py", "exports.py")  # that figures depend on
PIXELS = 16_000  # height or width of a picture, at most


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, np.ndarray):
        return [list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if is_dataclass(value):
        return asdict(value)
    raise TypeError(f"a figure cannot be drawn from {type(value).__name__}")


def draw_once(stem: Path, suffixes: Sequence[str], name: str, *content: Any) -> list[Path]:
    """Draw `<name>(*content)` as `<stem>.<suffix>`, unless the files are there and show the same content.

    Returns the files. `name` is a function of `pictures` or `figures`. Content is compared by digest, with the code
    of the figures and the version of matplotlib.
    """
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in suffixes]
    code = [sha256(Path(__file__).with_name(file)) for file in CODE]
    what = [name, content, code, metadata.version("matplotlib")]
    digest = hashlib.sha256(json.dumps(what, default=_plain).encode()).hexdigest()[:24]
    kept: dict[str, str] = {}
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((stem.parent / DRAWN).read_text(encoding="utf-8"))
        kept = found if isinstance(found, dict) else {}
    if kept.get(stem.name) == digest and all(file.exists() for file in files):
        return files
    from mother.graph import figures, pictures

    figure = getattr(pictures if hasattr(pictures, name) else figures, name)(*content)
    for file in files:
        # Without a date the same picture is the same file.
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        options = {"metadata": undated[file.suffix]} if file.suffix in undated else {}
        write_figure(file, figure, dpi=min(DPI, PIXELS / max(figure.get_size_inches())), **options)
    write_json(stem.parent / DRAWN, kept | {stem.name: digest})
    return files

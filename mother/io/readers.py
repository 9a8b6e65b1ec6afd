"""The formats of files that are read. To add one: a module with its READER, and its line here."""

from pathlib import PurePath

from mother.io import flax, gguf, keras, onnx, pickles, safetensors
from mother.io.places import File
from mother.io.reader import HEAD, Reader

READERS: tuple[Reader, ...] = tuple(one.READER for one in (safetensors, pickles, gguf, onnx, flax, keras))
SUFFIXES = tuple(suffix for reader in READERS for suffix in reader.suffixes)


def stem_of(name: str) -> str:
    """A file's name without what its format puts behind it."""
    ends = [end for end in SUFFIXES if name.lower().endswith(end)]
    return name[: -len(max(ends, key=len))] if ends else PurePath(name).stem


def recognised(head: bytes) -> Reader | None:
    """The reader of a file that begins so."""
    return next((reader for reader in READERS if reader.recognises(head)), None)


def reader_of(file: File) -> Reader | None:
    """The reader of a file: by its content, else by its name, so that it says what is wrong with the content."""
    by_name = next((reader for reader in READERS if str(file).lower().endswith(reader.suffixes)), None)
    return recognised(file.head(HEAD)) or by_name

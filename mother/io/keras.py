"""Keras files: where their arrays are, by the package `h5py`; what these hold, by ranges. Keras is not needed.

A `.keras` file is a zip archive with model.weights.h5, whose variables have numbers. In other `.h5` they have names.
https://github.com/keras-team/keras/tree/master/keras/src: saving/saving_lib.py, legacy/saving/legacy_h5_format.py
"""

import math
import re
import zipfile
from collections import Counter

from mother.io.pickles import Window, data_start
from mother.io.places import File, Place
from mother.io.reader import BITS, Listing, Reader, bytes_of
from mother.io.turned import Stored, listed

MAGIC, INSIDE = b"\x89HDF\r\n\x1a\n", "model.weights.h5"
TYPES = dict(zip("<f8 <f4 <f2 |V2 <i8 <i4 <u4 |i1 |u1".split(), "F64 F32 F16 BF16 I64 I32 U32 I8 U8".split()))
WEIGHTS = ("kernel", "gamma", "embeddings", "weight")  # what torch calls a weight
MOST, MOST_PATH, BLOCK = 200_000, 1000, 1 << 13  # objects that are looked at, characters of a path, bytes read at once


def read_table(file: File) -> list[list]:
    """Path, type, shape, start and end of every array. Raises ValueError."""
    import h5py

    read, first, size, rows, seen = bytes_of(file), 0, file.size, [], iter(range(MOST))

    def look(path: str, one: h5py.HLObject) -> None:
        if len(path) > MOST_PATH or next(seen, None) is None:  # C code goes down from one to the next
            raise ValueError(f"its groups are too deep, or hold more than {MOST} objects")
        if isinstance(one, h5py.Dataset) and one.shape is not None:
            at, dtype = one.id.get_offset(), TYPES.get(one.dtype.str, one.dtype.str)
            length = math.prod(one.shape) * BITS.get(dtype, 0) // 8
            whole = at is not None or length == 0  # others are in pieces, compressed, or in another file
            at = first + at if at is not None and length else 0
            path = re.sub("^model_weights/|/vars(?=/)|:0$", "", str(path)).replace("_._", ".").replace("/", ".")
            rows.append([path, dtype if whole else "several pieces", list(one.shape), at, at + length * whole])

    try:
        if not _recognises(file.head(64)):
            raise ValueError("this is neither an HDF5 file nor an archive of Keras")
        if not file.head(len(MAGIC)).startswith(MAGIC):
            with zipfile.ZipFile(Window(read, size)) as archive:
                first, size = data_start(read, archive.getinfo(INSIDE), size), archive.getinfo(INSIDE).file_size
        window = Window(lambda start, end: read(first + start, first + end), size, BLOCK)
        with h5py.File(window, "r") as opened:
            opened.visititems(look)
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"this is no sound Keras file: {str(error)[:200]}") from None
    return rows


def _named(path: str, rows: dict[str, list]) -> tuple[str, bool]:
    """Name of an array as torch gives it, where that follows from its own, and whether it is a kernel."""
    above, _, last = path.rpartition(".")
    if last.isdigit():  # the first variable of a layer is its weight, the second mostly its bias
        shape, first = rows[path][1], rows.get(f"{above}.0", ["", []])[1]
        bias = len(shape) == 1 or (len(shape) < len(first) and first[-len(shape) :] == shape)
        last = "weight" if last == "0" else "bias" if last == "1" and bias else last
        return f"{above}.{last}", len(shape) > 1 and not bias and "embedding" not in above
    above = re.sub(
        r"^[^.]*\.(tf_\w+\.)?(?=.)", "", above
    )  # of the layer, of the whole model; the weight says both again
    name = "weight" if last in WEIGHTS else "bias" if last == "beta" else last
    return f"{above}.{name}" if above else name, last.endswith("kernel")


def _listing(place: Place, file: File, state: str | None) -> Listing:
    table = file.remembered(lambda: read_table(file))
    rows = {path: row for path, *row in table}
    if len(rows) < len(table):
        raise ValueError("two of its arrays have one name")
    aside = {path.split(".")[0] for path in rows if path.startswith("optimizer")}
    named = {path: _named(path, rows) for path in rows if path.split(".")[0] not in aside}
    often = Counter(name for name, _ in named.values())
    own = {path: name if often[name] == 1 else path for path, (name, _) in named.items()}
    return listed(file, [Stored(path, own[path], kernel, *rows[path]) for path, (_, kernel) in named.items()], aside)


def _recognises(head: bytes) -> bool:
    """An HDF5 file, or an archive that begins as Keras writes it."""
    return head.startswith(MAGIC) or (head[:4] == b"PK\3\4" and head[30:43] in (b"metadata.json", b"model.weights"))


READER = Reader("Keras", (".keras", ".h5", ".hdf5"), _recognises, _listing)

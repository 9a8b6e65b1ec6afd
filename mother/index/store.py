"""An index on disk: settings as JSON, models as rows of Parquet files that are written once, sketches if wanted.

    INDEX/index.json             format, samples of a signature, entries of a sketch, whether sketches are kept
    INDEX/shards/00000012.parquet   some models; a later row of an id takes the place of an earlier one
    INDEX/sketches/              as in a result folder

Columns are those of SCHEMA; docs/scale.md says what each holds. A model that could not be read has a row, too, with the
reason, and is tried again. A row with nothing but an id says that this model has left the index.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Integer

from mother.errors import InputError
from mother.io.files import write_atomically, write_json

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "mother-index/4"
FULL = 8192  # budget: models of a shard that stays as it is
ROW_GROUP = 512  # budget: models that are read at a time where one group is looked for
DICTIONARY = 1 << 26  # budget: bytes of the different shapes of ROW_GROUP models, each of which is then kept once
PLACE = ("location", "base", "state", "claims")  # columns that a model has before it is read
SETTINGS, SHARDS, SKETCHES = "index.json", "shards", "sketches"


def arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module; raises InputError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("an index needs pyarrow, which is not installed. Install `mother[index]`.") from None
    return pyarrow, pyarrow.parquet


def schema() -> "pa.Schema":
    """The columns of a shard."""
    pa, _ = arrow()
    text, once = pa.string(), pa.dictionary(pa.int32(), pa.string())  # equal in many models
    return pa.schema(
        [
            ("id", text),
            ("location", text),
            ("base", text),  # of an adapter: where the model is that it belongs to
            ("state", text),  # of several sets of weights in a checkpoint, which
            ("key", text),  # equal for equal files and versions; null where the model could not be read
            ("group", text),  # digest of names and shapes
            ("shapes", once),  # JSON: (block, kind, rows, columns) of each matrix
            ("signature", pa.binary()),  # float16, little-endian: read at the speed of the disk, unlike lists
            ("tensors", pa.list_(pa.uint64())),  # of each tensor 64 bits of the digest of name and values, ascending
            ("parts", pa.list_(pa.uint64())),  # the same of what a sketch keeps of some matrices, ascending
            ("casts", pa.list_(pa.uint64())),  # and of what casts to coarser types would make of these
            ("facts", text),  # JSON: half precisions that hold all weights, share of zeros, weights
            ("claims", text),  # JSON: what the model says of its origin
            ("files", text),  # JSON: name, size and SHA-256 of what was read
            ("error", text),  # why the model could not be read
        ]
    )


@dataclass(frozen=True)
class Index:
    """An index that is there."""

    folder: Path
    samples: int
    entries: int  # of a matrix in a sketch, at most: signatures are drawn from these
    keep: bool  # whether sketches are kept
    fixed: tuple[Path, ...] | None = None  # the files of models that count, of all that are there

    @property
    def sketches(self) -> Path:
        """Where sketches are kept."""
        return self.folder / SKETCHES

    def shards(self) -> list[Path]:
        """The files of models, oldest first."""
        return sorted((self.folder / SHARDS).glob("[0-9]*.parquet")) if self.fixed is None else list(self.fixed)

    def as_it_is(self) -> "Index":
        """The same, in which models stay where they are while another run builds it."""
        return replace(self, fixed=tuple(self.shards()))

    def shard(self, number: int) -> Path:
        """Where a shard is."""
        return self.folder / SHARDS / f"{number:08}.parquet"

    def next_number(self) -> int:
        """The number of the next shard."""
        shards = self.shards()
        return int(shards[-1].stem) + 1 if shards else 0

    def write(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write a shard, whole or not at all. A row lacks the columns that are null."""
        pa, _ = arrow()
        columns = {name: [row.get(name) for row in rows] for name in schema().names}
        columns["signature"] = [None if one is None else one.astype("<f2").tobytes() for one in columns["signature"]]
        self._write(number, pa.table(columns, schema()))

    def _write(self, number: int, table: "pa.Table") -> None:
        _, parquet = arrow()
        # Signatures do not get smaller.
        how = {name: "none" if name == "signature" else "zstd" for name in table.schema.names}
        options = {"compression": how, "row_group_size": ROW_GROUP, "dictionary_pagesize_limit": DICTIONARY}
        options |= {"write_page_checksum": True}
        write_atomically(self.shard(number), lambda file: parquet.write_table(table, file, **options))

    def tables(self, columns: Sequence[str], group: str | None = None) -> Iterator["pa.Table"]:
        """These columns of all models that could be read, or of a group, shard by shard: the last row of each id.

        Raises InputError for a shard that is damaged.
        """
        pa, _ = arrow()
        late = self._outdated()
        for path in self.shards():
            gone = late.get(path.stem, set())
            table = self._read(path, [*columns, "group", *(["id"] if gone else [])], group)
            chosen = table["group"].is_valid().to_numpy()
            if gone:
                chosen &= [one not in gone for one in table["id"].to_pylist()]
            if chosen.any():
                yield (
                    table.select(list(columns))
                    if chosen.all()
                    else table.select(list(columns)).filter(pa.array(chosen.tolist()))
                )

    def rows(self, columns: Sequence[str], group: str | None = None) -> list[dict[str, Any]]:
        """The same as dictionaries."""
        return [row for table in self.tables(columns, group) for row in table.to_pylist()]

    def known(self) -> dict[str, dict[str, Any]]:
        """Place, key, group and error of every model by its id, those that could not be read as well."""
        found = {}
        for path in self.shards():
            rows = self._read(path, ["id", *PLACE, "key", "group", "error"]).to_pylist()
            found |= {row["id"]: row for row in rows}
        return {one: row for one, row in found.items() if (row["group"], row["error"]) != (None, None)}

    def _outdated(self) -> dict[str, set[str]]:
        """Of each shard the ids that a later one has, too."""
        return _outdated(self, tuple(self.shards()))

    def _read(self, path: Path, columns: Sequence[str], group: str | None = None) -> "pa.Table":
        """Columns of a shard; of the models of one group alone what holds these is read."""
        pa, parquet = arrow()
        wanted = list(dict.fromkeys(columns))
        try:
            with parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
                if file.schema_arrow.names != schema().names:
                    raise KeyError("its columns are others")
                if group is None:
                    return file.read(wanted)
                here = [one == group for one in file.read(["group"])["group"].to_pylist()]
                sizes = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
                ends = np.cumsum([0, *sizes])
                parts = [np.array(here[start:end], dtype=bool) for start, end in pairwise(ends.tolist())]
                some = [at for at, part in enumerate(parts) if part.any()]
                table = file.read_row_groups(some, wanted)
        except FileNotFoundError:
            raise InputError(f"{path} is gone: another run has put the index together meanwhile. Run again.") from None
        except (OSError, pa.ArrowException, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}). Remove it, and build the index again.") from None
        places = np.flatnonzero(np.concatenate([np.zeros(0, bool), *(parts[at] for at in some)]))
        if len(places) and places[-1] - places[0] + 1 == len(places):  # side by side: nothing is copied
            return table.slice(places[0], len(places))
        return table.take(pa.array(places.tolist(), pa.int64()))  # of an array of numpy pyarrow would load pandas

    def compact(self) -> None:
        """Put many small shards together, models of a group side by side; what was read before stays what counts.

        The new shard comes last and holds what those that it replaces held: killed in between, nothing is lost. The
        oldest ones are removed first: models that have left do not come back.
        """
        pa, _ = arrow()
        late, some, paths = self._outdated(), [], []
        oldest = next(iter(self.shards()), None)
        for path in [*self.shards(), None]:
            if path is None or sum(map(len, some)) >= FULL:
                if len(paths) > 1:
                    table = pa.concat_tables(some).sort_by("group")
                    if paths[0] == oldest:  # no shard before it has a row of a model that has left
                        here = [table[name].is_valid().to_numpy() for name in ("group", "error")]
                        table = table.filter(pa.array((here[0] | here[1]).tolist(), pa.bool_()))
                    self._write(self.next_number(), table)
                    for old in paths:
                        old.unlink()
                some, paths = [], []
            if path is not None:
                table = self._read(path, schema().names)
                gone = late.get(path.stem, set())
                some.append(table.filter(pa.array([one not in gone for one in table["id"].to_pylist()], pa.bool_())))
                paths.append(path)


@lru_cache(maxsize=8)
def _outdated(index: Index, shards: tuple[Path, ...]) -> dict[str, set[str]]:
    """See Index; shards are written once, so that those of the same names say the same."""
    last: dict[str, str] = {}
    found: dict[str, set[str]] = {}
    for path in shards:
        for one in index._read(path, ["id"])["id"].to_pylist():
            if (before := last.get(one)) is not None:
                found.setdefault(before, set()).add(one)
            last[one] = path.stem
    return found


def digests(
    table: "pa.Table", column: str = "tensors"
) -> tuple[Integer[np.ndarray, "digests"], Integer[np.ndarray, "digests"]]:
    """The digests in a column of lists, of all models of a table, and the row that each is of."""
    lists = table[column].combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return flat, np.repeat(np.arange(len(table)), lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))


def _finite(values: Float[np.ndarray, "values"]) -> bool:
    """Whether all of some float16 are finite: isfinite is slow for these."""
    return not len(values) or int((values.view("<u2") & 0x7FFF).max()) < 0x7C00


def signatures(table: "pa.Table") -> Float[np.ndarray, "models samples"]:
    """The signatures in a table of models of one group, in float16. Raises InputError where lengths differ."""
    column = table["signature"].combine_chunks()
    sizes = np.diff(np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, 4 * column.offset))
    start = np.frombuffer(column.buffers()[1], np.int32, 1, 4 * column.offset)[0]
    flat = np.frombuffer(column.buffers()[2] or b"", "<f2", int(sizes.sum()) // 2, start)
    if len(table) == 0 or column.null_count or (sizes != sizes[0]).any() or not _finite(flat):
        raise InputError("the index holds signatures that are none. Build it again.")
    return flat.reshape(len(table), -1)


def read_rows(path: Path) -> "pa.Table":
    """A file of a stage, whole. Raises InputError where it is damaged."""
    pa, parquet = arrow()
    try:
        return parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({error}). Remove it, and run again.") from None


def create_index(folder: Path, samples: int, entries: int, keep: bool) -> Index:
    """The index in a folder, made where there is none. Raises InputError where it has other settings."""
    if not (folder / SETTINGS).exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(f"{folder} holds other things. Give --to a folder that is new, or an index.")
        settings = {"format": FORMAT, "samples": samples, "entries": entries, "sketches": keep}
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS, settings)
    index = open_index(folder)
    if (index.samples, index.entries, index.keep) != (samples, entries, keep):
        now = f"--samples {index.samples} --sketch {index.entries} {'--keep' if index.keep else '--no-keep'}"
        raise InputError(f"{folder} was built with {now}. Give the same, or another folder.")
    return index


def _is_newer(told: object) -> bool:
    """Whether a later version of this program wrote an index that says this of its format."""
    name, _, version = FORMAT.partition("/")
    before, _, number = told.partition("/") if isinstance(told, str) else ("", "", "")
    return before == name and number.isdecimal() and int(number) > int(version)


def open_index(folder: Path) -> Index:
    """The index in a folder; raises InputError where there is none."""
    try:
        content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            if _is_newer(content["format"]):
                raise InputError(
                    f"{folder} is of format {content['format']}, and this version reads {FORMAT}. Update this program."
                )
            raise ValueError(f'it does not say "format": "{FORMAT}"')
        samples, entries, keep = content["samples"], content["entries"], content["sketches"]
        if type(samples) is not int or type(entries) is not int or type(keep) is not bool or min(samples, entries) < 1:
            raise ValueError("a setting is of a wrong type")
        return Index(folder, samples, entries, keep)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{folder} holds no index. Run `python index.py build MODEL ... --to {folder}`.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / SETTINGS} cannot be used ({error}). Remove {folder}, and build it again."
        ) from None

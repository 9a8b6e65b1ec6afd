"""recover.py on more models than it compares all with all: by an index in the folder of the result."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mother.cli.flags import Add, Recover
from mother.cli.index import show_progress
from mother.collection.find import Found
from mother.errors import InputError

if TYPE_CHECKING:
    from mother.index.graph import Found as Traced
    from mother.index.store import Index

MOST = 2000  # models up to which all pairs are looked at


def is_many(folder: Path) -> bool:
    """Whether a result was made by an index."""
    return (folder / "index" / "index.json").exists()


def recover_many(args: Recover, found: Found, title: str, command: str = "") -> None:
    """Read, trace by candidates, write; prints what was found. Raises InputError.

    Nothing is kept for every two models: the report has no distances, and there is no audit.
    """
    from mother.cli.tables import report_left_out
    from mother.graph.text import head_line
    from mother.index.build import build
    from mother.index.engine import Engine
    from mother.index.graph import index_graph
    from mother.index.signature import SAMPLES
    from mother.index.stale import no_longer_there
    from mother.index.store import create_index
    from mother.index.write import write_graph

    if args.audit:
        raise InputError(f"an audit is of {MOST:,} models at most. Name fewer, or leave --audit out.")
    if not 0 < args.error < 1 or args.sketch < 1024:
        raise InputError("--error must be between 0 and 1, and --sketch 1024 at least.")
    print(f"{len(found.sources):,} models: candidates are looked at, not all pairs")
    index = create_index(args.out / "index", SAMPLES, args.sketch, True)
    known, here = index.known(), {source.location for source in found.sources}
    others = known.keys() - no_longer_there(known, found.sources, args.models)
    others = {known[one]["location"] for one in others} - here
    if others:
        raise InputError(f"{args.out} holds a result of other models, such as {min(others)}. Give another --out.")
    build(index, found.sources, Engine(), show_progress(args.quiet), args.models)
    traced = index_graph(index, args.out / "traced", Engine(), args.error, progress=show_progress(args.quiet))
    traced.left_out |= found.gaps.unusable
    write_graph(traced, args.out)
    write_report(index, traced, args, found, title, command)
    graph = traced.model_graph(title)
    print(head_line(graph))
    report_left_out(graph.left_out)
    print(f"results: {args.out}/ (report.html, edges.parquet, nodes.parquet, model_graph.json, .graphml, trees.nwk)")
    print(f"a family with its evidence: python index.py graph --in {index.folder} --to FOLDER --family MODEL")


def write_report(index: "Index", traced: "Traced", args: Recover, found: Found, title: str, command: str) -> None:
    """Write the report and the exports of the graph; and which models they are of, so that more can be added."""
    from mother.collection.state import State, write_state
    from mother.collection.workspace import Recovered
    from mother.report.write import write_outputs

    known = index.known()
    ids = {row["location"]: one for one, row in known.items()}
    sources = [replace(one, id=ids[one.location]) for one in found.sources]
    keys = {one: row["key"] for one, row in known.items()}
    state = State(sources, keys, args.error, args.sketch, found.gaps)
    files = {row["id"]: json.loads(row["files"]) for row in index.rows(["id", "files"])}
    write_state(args.out, state)
    recovered = Recovered(traced.model_graph(title), [], state, listed=files)
    write_outputs(recovered, args.out, None, title, command, drawn=False)


def add_many(args: Add, found: Found, title: str, command: str) -> None:
    """Add models to a result of many: the index reads the new ones; blocks that are as they were are kept.

    Raises InputError.
    """
    from mother.collection.state import read_state

    state = read_state(args.to)
    there = {source.location for source in state.sources}
    more = [source for source in found.sources if source.location not in there]
    everything = Found([*state.sources, *more], state.gaps.joined(found.gaps))
    settings = Recover(
        out=args.to, error=state.error, sketch=state.sketch, audit=args.audit, quiet=args.quiet, json=args.json
    )
    recover_many(settings, everything, title, command)

"""recover.py on more models than it compares all with all: by an index in the folder of the result."""

from mother.cli.flags import Recover
from mother.cli.index import show_progress
from mother.collection.find import Found
from mother.errors import InputError

MOST = 2000  # models up to which all pairs are looked at


def recover_many(args: Recover, found: Found) -> None:
    """Read, trace by candidates, write; prints what was found. Raises InputError.

    Nothing is kept for every two models. There is no report and no audit: both are of all pairs.
    """
    from mother.cli.tables import report_left_out
    from mother.graph.exports import to_graphml, to_newick
    from mother.graph.text import head_line
    from mother.index.build import build
    from mother.index.engine import Engine
    from mother.index.graph import index_graph
    from mother.index.signature import SAMPLES
    from mother.index.store import create_index
    from mother.index.write import NAME, write_graph
    from mother.io.files import write_text

    if args.audit:
        raise InputError(f"an audit is of {MOST:,} models at most. Name fewer, or leave --audit out.")
    if not 0 < args.error < 1 or args.sketch < 1024:
        raise InputError("--error must be between 0 and 1, and --sketch 1024 at least.")
    print(f"more than {MOST:,} models: candidates are looked at, not all pairs")
    index = create_index(args.out / "index", SAMPLES, args.sketch, True)
    others = {row["location"] for row in index.known().values()} - {source.location for source in found.sources}
    if others:
        raise InputError(f"{args.out} holds a result of other models, such as {min(others)}. Give another --out.")
    build(index, found.sources, Engine(), show_progress(args.quiet))
    traced = index_graph(index, args.out / "traced", Engine(), args.error, progress=show_progress(args.quiet))
    traced.left_out |= found.gaps.unusable
    write_graph(traced, args.out)
    graph = traced.model_graph(NAME)
    write_text(args.out / "model_graph.graphml", to_graphml(graph))
    write_text(args.out / "trees.nwk", to_newick(graph))
    print(head_line(graph))
    report_left_out(graph.left_out)
    print(f"results: {args.out}/ (edges.parquet, nodes.parquet, model_graph.json, .graphml, trees.nwk)")
    print(f"a family with its report: python index.py graph --in {index.folder} --to FOLDER --family MODEL")

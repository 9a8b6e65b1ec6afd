"""The commands of an index: build, search, graph."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mother.cli.arguments import run
from mother.cli.index_flags import Build, Graph, Search
from mother.cli.locks import alone_in
from mother.cli.streams import write_as_json
from mother.errors import InputError, escaped

if TYPE_CHECKING:
    from mother.index.relatives import Relative


def _names(args: Build) -> list[str]:
    """All that the user names."""
    names = list(args.models)
    if args.hub_list is not None:
        try:
            lines = [line.strip() for line in args.hub_list.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--hub-list {args.hub_list} cannot be read: {error}. Give a file of names.") from None
        some = [line for line in lines if line and not line.startswith("#")]
        if not some:
            raise InputError(f"--hub-list {args.hub_list} names no model. Give one owner/name a line.")
        names += some
    if not names:
        raise InputError("name models: paths, owner/name, or --hub-list.")
    return names


def show_progress(quiet: bool) -> Callable[[int], Callable[..., object]]:
    """A bar over models on a terminal, a line elsewhere."""

    def start(total: int) -> Callable[..., object]:
        if quiet:
            return lambda count=1: None
        if not sys.stderr.isatty():
            print(f"{total:,} models", file=sys.stderr, flush=True)
            return lambda count=1: None
        from tqdm import tqdm

        bar = tqdm(total=total, unit="model", leave=False, file=sys.__stderr__)
        return lambda count=1: bar.update(count)

    return start


def build(args: Build) -> None:
    """Find and read."""
    from mother.cli.tables import report_left_out
    from mother.collection.find import search, with_claims
    from mother.index.build import build as build_index
    from mother.index.engine import Engine
    from mother.index.store import create_index

    if args.workers < 1 or args.samples < 64 or args.sketch < 1024:
        raise InputError("there must be a worker, 64 samples of a model and 1024 entries of a matrix, at least.")
    names = _names(args)
    found = with_claims(search(names))
    with alone_in(args.to):
        index = create_index(args.to, args.samples, args.sketch, args.keep)
        engine = Engine(args.workers, args.ray)
        built = build_index(index, found.sources, engine, show_progress(args.quiet), names, args.only)
    left_out = built.left_out | found.gaps.unusable
    if left_out and not built.read and not built.there:
        raise InputError(f"none of the {len(left_out)} models can be read. {next(iter(left_out.values()))}")
    if args.quiet:
        return
    report_left_out(left_out, ())
    print(f"{built.read} models read, {built.there} were there already: {args.to}")
    if built.gone:
        some = ", ".join(escaped(one) for one in sorted(built.gone)[:3])
        print(f"no longer there, and taken out: {len(built.gone)} models, such as {some}")
    if built.read or built.there:
        print(f"next: python index.py search MODEL --in {args.to}, or python index.py graph --in {args.to}")


def search(args: Search) -> None:
    """One model against an index."""
    from mother.collection.find import search as find
    from mother.collection.find import with_claims
    from mother.graph.certainty import percent, sure
    from mother.index.relatives import NOT_COMPARABLE, UNRELATED
    from mother.index.search import search_index
    from mother.index.store import open_index

    index = open_index(args.index)
    sources = with_claims(find([args.model])).sources
    if len(sources) != 1:
        raise InputError(f"{escaped(args.model)} is {len(sources)} models. Name one.")
    if not 0 < args.error < 1:
        raise InputError(f"the error level must be between 0 and 1, not {args.error}.")
    model, count, relatives = search_index(index, sources[0], args.error, args.control, not args.signatures_only)
    if args.json:
        write_as_json({"model": model, "compared": count, "relatives": [one.to_json() for one in relatives]})
        return
    print(f"{escaped(model)}: {count} models of its shapes in {args.index}")
    if not {one.verdict for one in relatives} - {UNRELATED, NOT_COMPARABLE}:
        print(_none_is(relatives))
    for one in relatives:
        told = [f"{one.verdict:15} {escaped(one.model)}"]
        told += [one.kind] if one.kind and one.kind != "copy" else []
        told += [f"parent and child: {sure(one.probability)}"] if one.probability is not None else []
        told += [f"parent first: {sure(one.arrow)}"] if one.arrow is not None else []
        told += [f"on {percent(one.compared)} of the weights"] if one.verdict == NOT_COMPARABLE else []
        print(f"  {', '.join([*told, f'z {one.z:.1f}', f'distance {one.distance:.4f}', f'by {one.by}'])}")


def _none_is(relatives: Sequence["Relative"]) -> str:
    """What a search has found where no model is related."""
    from mother.index.relatives import NOT_COMPARABLE

    few = sum(one.verdict == NOT_COMPARABLE for one in relatives)
    if not relatives:
        return "none of them can be compared with it: nothing is said of whether they are related"
    if not few:
        return "none of them is related to it"
    return f"no sign that any of them is related to it; too little of its weights can be compared with {few} of them"


def graph(args: Graph) -> None:
    """Everything in an index."""
    from mother.cli.tables import report_left_out
    from mother.index.engine import Engine
    from mother.index.families import check_families, recover_family
    from mother.index.graph import index_graph
    from mother.index.store import open_index
    from mother.index.traced import GONE
    from mother.index.write import write_graph
    from mother.report.write import write_outputs

    if not 0 < args.error < 1:
        raise InputError(f"the error level must be between 0 and 1, not {args.error}.")
    if args.workers < 1:
        raise InputError(f"there must be a worker at least, not {args.workers}.")
    index = open_index(args.index)
    if args.family:
        check_families(index, args.family)
    with alone_in(args.to):
        engine = Engine(args.workers, args.ray)
        found = index_graph(
            index, args.to / "traced", engine, args.error, args.control, progress=show_progress(args.quiet)
        )
        write_graph(found, args.to)
        for number, model in enumerate(args.family, 1):
            folder = args.to / "families" / str(number)
            write_outputs(recover_family(index, found, model, folder, args.error), folder)
            if not args.quiet:
                print(f"the family of {escaped(model)}: {folder / 'report.html'}")
    if not args.quiet:
        named = {one: f"{escaped(one)}: {why}" for one, why in found.left_out.items() if why == GONE}
        report_left_out(found.left_out | named)
        trees = len({facts["tree"] for facts in found.nodes.values()})
        hidden = sum(bool(facts.get("hidden")) for facts in found.nodes.values())
        copies = sum(len(facts.get("aliases", ())) for facts in found.nodes.values())
        print(f"{len(found.nodes) - hidden + copies} models in {trees} trees, {copies} copies, {hidden} absent models,")
        print(f"{len(found.edges)} edges: {args.to}/edges.parquet")


COMMANDS: dict[str, tuple[Callable, type]] = {
    "build": (build, Build),
    "search": (search, Search),
    "graph": (graph, Graph),
}


def main(words: list[str] | None = None, name: str = "mother index") -> None:
    """The commands of an index."""
    words = sys.argv[1:] if words is None else words
    if words and words[0] in COMMANDS:
        function, arguments = COMMANDS[words[0]]
        run(function, arguments, words[1:], f"{name} {words[0]}")
        return
    if "--version" in words:
        run(build, Build, ["--version"], name)
        return
    print(f"usage: {name} build | search | graph, each with --help\n")
    for known, (_, arguments) in COMMANDS.items():
        print(f"  {name} {known:6} {(arguments.__doc__ or '').partition(chr(10))[0]}")
    sys.exit(0 if not words or words[0] in ("-h", "--help") else 2)

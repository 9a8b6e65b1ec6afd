"""The commands for anybody's models: recover, add, explain, export, audit, whose-adapter."""

import contextlib
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mother.cli.adapters import WhoseAdapter, whose_adapter
from mother.cli.arguments import run
from mother.cli.flags import Add, Audit, Explain, Export, Recover
from mother.cli.locks import alone_in
from mother.cli.streams import write_as_json
from mother.errors import InputError, escaped

if TYPE_CHECKING:
    from mother.cli.audits import Audited, Rules
    from mother.collection.workspace import Recovered

LISTED = 200  # lines of the tree that are printed; all of it is in the files


@contextlib.contextmanager
def _said(args: Recover | Add) -> Iterator[None]:
    """Standard output to nowhere, where the user wants silence or JSON alone."""
    if not (args.quiet or args.json):
        yield
        return
    with open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _progress(args: Recover | Add) -> Callable:
    from mother.cli.progress import no_progress, progress

    return no_progress if args.quiet else progress


def _command() -> str:
    """What the user typed, as a report says it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _title(folder: Path) -> str:
    return f"Model Graph of {escaped(folder.name)}" if folder.name != "recover" else "Model Graph"


def _report(folder: Path, audited: "Audited | None") -> int:
    """Print the result in a folder; returns the exit code, which is that of the audit, if there is one."""
    from mother.cli.audits import report_audit
    from mother.cli.tables import report_left_out, report_licences
    from mother.collection.gaps import summary
    from mother.graph.model_graph import GRAPH, read_model_graph
    from mother.graph.text import graph_text, head_line

    graph = read_model_graph(folder / GRAPH)
    print(head_line(graph))
    sizes: Counter[str] = Counter()
    for facts in graph.nodes.values():
        if not facts.get("hidden"):
            sizes[facts["group"]] += 1 + len(facts.get("aliases", ()))
    for group, size in sizes.items():
        print(f"  {size} {'models' if size > 1 else 'model'} with {group}")
    lines = graph_text(graph).splitlines()
    print("\n" + "\n".join(lines[:LISTED]))
    if len(lines) > LISTED:
        print(f"... and {len(lines) - LISTED} more lines: see {folder / 'report.html'}")
    print()
    report_left_out(graph.left_out, graph.notes)
    if graph.not_read:
        print(f"not read: {summary(graph.not_read.items())}; each is in {folder / GRAPH}")
    if audited is not None:
        report_audit(audited)
    report_licences(folder)
    print(f"results: {folder}/ (report.html, tree.svg, .png, .pdf, model_graph.json, .graphml, .mmd, .dot, trees.nwk)")
    print(f"open: {(folder / 'report.html').resolve().as_uri()}")
    code, why = audited.judged.outcome() if audited is not None else (0, "")
    if audited is not None:
        print(f"exit {code}: {why}")
    return code


def _finish(args: Recover | Add, folder: Path, audited: "Audited | None") -> None:
    """Print a result as the user wants it, and leave with its exit code."""
    with _said(args):
        code = _report(folder, audited)
    _print_json(args, folder)
    if code:
        sys.exit(code)


def _print_json(args: Recover | Add, folder: Path) -> None:
    """Print the Model Graph, where the user wants that."""
    if args.json:
        from mother.graph.model_graph import GRAPH

        write_as_json(json.loads((folder / GRAPH).read_text(encoding="utf-8")))


def _names(args: Recover) -> list[str]:
    """All that the user names, wherever he names it."""
    names = list(args.models) + ([str(args.manifest)] if args.manifest is not None else [])
    if args.from_file is not None:
        try:
            text = sys.stdin.read() if args.from_file == "-" else Path(args.from_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--from-file {args.from_file} cannot be read: {error}. Give a file of names.") from None
        names += [line.strip() for line in text.splitlines() if line.strip()]
    if args.author or args.collection:
        from mother.collection.hub_lists import models_of_author, models_of_collection

        names += models_of_author(args.author) if args.author else []
        names += models_of_collection(args.collection) if args.collection else []
    if not names:
        raise InputError("name models: paths, owner/name, --manifest, --from-file, --author or --collection.")
    return names


def _write(recovered: "Recovered", args: Recover | Add, folder: Path, rules: "Rules") -> "Audited | None":
    """Audit a result, if that is asked for, and write all of it."""
    from mother.cli.audits import judge
    from mother.cli.tables import announce_traffic
    from mother.collection.audit import audit_of
    from mother.report.write import write_outputs

    audited = judge(audit_of(recovered), recovered.graph.left_out, rules) if args.audit else None
    audit, judged = (audited.audit, audited.judged) if audited is not None else (None, None)
    write_outputs(recovered, folder, audit, _title(folder), _command(), judged)
    announce_traffic(recovered)
    return audited


def recover(args: Recover) -> None:
    """Find, read, recover, write; or show what is kept of the same models."""
    from mother.cli import many
    from mother.cli.audits import audit_rules, judge_kept
    from mother.cli.tables import announce_device, announce_kept
    from mother.collection.find import search, with_claims
    from mother.collection.state import kept_result

    rules = audit_rules(args)  # before hours of reading
    found = with_claims(search(_names(args), args.strict, args.state))
    sources = found.sources
    if len(sources) > many.MOST:
        with _said(args), alone_in(args.out):
            many.recover_many(args, found, _title(args.out), _command())
        _print_json(args, args.out)
        return
    with _said(args), alone_in(args.out):
        print(f"found: {len(sources)} model{'s' if len(sources) > 1 else ''}")
        for note in found.notes:
            print(f"note: {note}")
        what = sources, found.gaps, args.error, args.sketch, _title(args.out), args.audit
        if not args.overwrite and kept_result(args.out, *what) is not None:
            announce_kept(args.out)
            audited = judge_kept(args.out, rules) if args.audit else None
        else:
            from mother.collection.workspace import recover_sources

            settings = announce_device(args.device), args.error, args.sketch, _progress(args)
            recovered = recover_sources(sources, args.out, *settings, gaps=found.gaps)
            audited = _write(recovered, args, args.out, rules)
    _finish(args, args.out, audited)


def add(args: Add) -> None:
    """Read the new models only."""
    if not args.models:
        raise InputError("name a model to add.")
    from mother.cli import many
    from mother.cli.audits import audit_rules
    from mother.cli.tables import announce_device
    from mother.collection.find import search, with_claims
    from mother.collection.state import read_state
    from mother.collection.workspace import reopen

    rules = audit_rules(args)
    read_state(args.to)  # raises where there is no result
    with _said(args), alone_in(args.to):
        known = read_state(args.to).sources
        there = {source.location: source.id for source in known}
        found = with_claims(search(args.models, args.strict, args.state), known)
        for source in found.sources:
            if source.location in there:
                print(f"{there[source.location]} is in {args.to} already, and is looked at again")
        for note in found.notes:
            print(f"note: {note}")
        indexed = many.is_many(args.to)
        if indexed:
            many.add_many(args, found, _title(args.to), _command())
        else:
            recovered = reopen(args.to, announce_device(args.device), found, _progress(args))
            audited = _write(recovered, args, args.to, rules)
    if indexed:
        _print_json(args, args.to)
    else:
        _finish(args, args.to, audited)


def explain(args: Explain) -> None:
    """Print the evidence on two models, or the line of descent of one."""
    from mother.report.explain import explain as evidence_on
    from mother.report.explain import lineage
    from mother.report.explain_text import explain_text, layers_csv, layers_text, lineage_text
    from mother.report.kept import read_evidence, read_graph

    if args.layers not in (None, "-") and Path(args.layers).is_dir():
        raise InputError(f"--layers {args.layers} is a folder. Name a file for the table, or - to print it.")
    evidence, graph = read_evidence(args.to), read_graph(args.to)
    if args.other is None:
        if args.layers is not None:
            raise InputError("--layers is about two models: name another.")
        line = lineage(graph, evidence, args.one)
        write_as_json(line) if args.json else print(lineage_text(line))
        return
    found = evidence_on(graph, evidence, args.one, args.other)
    if args.layers not in (None, "-"):
        from mother.io.files import write_text

        write_text(Path(args.layers), layers_csv(found))
    if args.json:
        write_as_json(found)
        return
    print(explain_text(found))
    if args.layers == "-":
        print("\n" + layers_text(found))
    elif args.layers is not None:
        print(f"written: {args.layers}")


def export(args: Export) -> None:
    """Write a result for other tools."""
    from mother.cli.export import export as write_export

    write_export(args)


COMMANDS: dict[str, tuple[Callable, type]] = {
    "recover": (recover, Recover),
    "add": (add, Add),
    "explain": (explain, Explain),
    "export": (export, Export),
    "audit": (recover, Audit),
    "whose-adapter": (whose_adapter, WhoseAdapter),
}


def main(default: str | None = None, name: str = "mother") -> None:
    """The program `mother`. `default` is the command that is meant where none is named."""
    words = sys.argv[1:]
    if words and words[0] == "index" and default is None:
        from mother.cli.index import main as index

        index(words[1:])
        return
    if words and words[0] in COMMANDS:
        command, words = words[0], words[1:]
        name = f"{name} {command}"
    elif default is not None:
        command = default
    elif "--version" in words:
        command = "recover"
    else:
        print(__doc__ or "")  # python -OO keeps no docstrings
        for known, (_, arguments) in COMMANDS.items():
            print(f"  mother {known:13} {(arguments.__doc__ or '').partition(chr(10))[0]}")
        print("  mother index         Many models: build an index, search it, trace all of it")
        print("\n  mother COMMAND --help, mother --version")
        sys.exit(0 if not words or words[0] in ("-h", "--help") else 2)
    function, arguments = COMMANDS[command]
    run(function, arguments, words, name)

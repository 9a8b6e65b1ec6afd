"""Anybody's models in, their family tree out.

python recover.py PATH_OR_REPO [PATH_OR_REPO ...]        folders, weight files, folders of models, owner/name
python recover.py --manifest file.json | --author ORG | --collection SLUG
python recover.py MODELS --audit                         do cards and configurations tell the truth? exit code 0, 3, 4
python recover.py add MODEL --to results/recover         one more model; the others are not read again
python recover.py explain A B --to results/recover       two models: related, how, which came first, how sure
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from console import announce_device, progress, report_left_out, run
from mother.collection.audit import Audit, audit_of
from mother.collection.find import Source, find_models, models_of_author, models_of_collection, with_claims
from mother.collection.workspace import Recovered, read_state, recover_sources, reopen
from mother.errors import InputError
from mother.evidence.facts import SKETCH_ENTRIES
from mother.graph.text import format_table, graph_text
from mother.io.runtime import choose_device
from mother.report.explain import explain, explain_text
from mother.report.write import write_outputs

UNDECLARED = 10  # of models that claim nothing
LISTED = 200  # lines of the tree that are printed; all of it is in the files


@dataclass
class Args:
    """Recover the Model Graph of any models. Other commands: `recover.py add --help`, `recover.py explain --help`."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """folders, weight files, folders of models, or owner/name[@revision][:subfolder] on the Hugging Face Hub"""
    manifest: Path | None = None
    """a manifest that names the models"""
    author: str | None = None
    """all models of an author or organisation on the Hub"""
    collection: str | None = None
    """all models of a collection on the Hub"""
    out: Path = Path("results/recover")
    """folder for the results"""
    audit: bool = False
    """hold what cards and configurations claim against the weights; exit code 0: all agree, 3: contradictions,
    4: undecided"""
    error: float = 0.01
    """probability of a single false relation among independently initialised models"""
    sketch: int = SKETCH_ENTRIES
    """entries that are compared of each matrix, at most"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass
class Add:
    """Add models to a result: they are read, the others are not."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """as for recover.py"""
    to: Path = Path("results/recover")
    """folder of the result"""
    audit: bool = False
    """hold what cards and configurations claim against the weights, as recover.py --audit does"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass
class Explain:
    """Are two models of a result related, how, which came first, and how sure is that?"""

    one: tyro.conf.Positional[str]
    """id of a model, as the tree shows it"""
    other: tyro.conf.Positional[str]
    """id of another"""
    to: Path = Path("results/recover")
    """folder of the result"""
    json: bool = False
    """print all figures as JSON"""


def report_audit(verdicts: Audit) -> None:
    """Print what models claim and what the weights say."""
    print("\naudit: what the models claim, and what the weights say")
    if verdicts.verdicts:
        rows = [[one.model, one.claim.parent, one.claim.file, one.verdict, one.reason] for one in verdicts.verdicts]
        print(format_table(("model", "says it is from", "in", "verdict", "the weights"), rows, left=True))
    else:
        print("no model claims anything")
    if verdicts.undeclared:
        print(f"nothing declared, but the weights name a parent: {len(verdicts.undeclared)} models")
    for model, words in list(verdicts.undeclared.items())[:UNDECLARED]:
        print(f"  {model} is from {words}")
    if len(verdicts.undeclared) > UNDECLARED:
        print("  ... and more: see audit.json")
    counts = Counter(one.verdict for one in verdicts.verdicts)
    print("verdicts: " + (", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "none"))


def finish(recovered: Recovered, folder: Path, audit: bool) -> None:
    """Write and print a result; with an audit the program ends with its exit code."""
    verdicts = audit_of(recovered) if audit else None
    write_outputs(
        recovered, folder, verdicts, f"Model Graph of {folder.name}" if folder.name != "recover" else "Model Graph"
    )
    for group in recovered.groups:
        members = group.heritage.first_pass.models
        print(f"{len(members)} {'models' if len(members) > 1 else 'model'} of {group.name}")
    lines = graph_text(recovered.graph).splitlines()
    print("\n" + "\n".join(lines[:LISTED]))
    if len(lines) > LISTED:
        print(f"... and {len(lines) - LISTED} more lines: see {folder / 'report.html'}")
    print()
    report_left_out(recovered.graph.left_out)
    if verdicts is not None:
        report_audit(verdicts)
    print(f"results: {folder}/ (report.html, tree.svg, tree.png, model_graph.json, .graphml, .mmd, .dot, trees.nwk)")
    if verdicts is not None and verdicts.exit_code:
        sys.exit(verdicts.exit_code)


def check_writable(folder: Path) -> None:
    """Before hours of reading: whether the folder can be written at all. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.write_bytes(b"")
    probe.unlink()


def main(args: Args) -> None:
    """Find, read, recover, write."""
    names = list(args.models) + ([str(args.manifest)] if args.manifest is not None else [])
    names += models_of_author(args.author) if args.author else []
    names += models_of_collection(args.collection) if args.collection else []
    if not names:
        raise InputError("name models: paths, owner/name, --manifest, --author or --collection (see --help).")
    sources = with_claims(find_models(names))
    check_writable(args.out)
    device = announce_device(args.device)
    print(f"{len(sources)} model{'s' if len(sources) > 1 else ''}")
    finish(recover_sources(sources, args.out, device, args.error, args.sketch, progress), args.out, args.audit)


def add(args: Add) -> None:
    """Read the new models only."""
    if not args.models:
        raise InputError("name a model to add.")
    known, _, _ = read_state(args.to)
    there = {source.location: source.id for source, _ in known}
    sources: list[Source] = []
    for source in with_claims(find_models(args.models), [source for source, _ in known]):
        if source.location in there:
            print(f"{there[source.location]} is in {args.to} already")
        else:
            sources.append(source)
    check_writable(args.to)
    finish(reopen(args.to, announce_device(args.device), sources, progress), args.to, args.audit)


def explain_two(args: Explain) -> None:
    """Print the evidence on two models."""
    recovered = reopen(args.to, choose_device("cpu")[0], (), progress)
    found = explain(recovered, args.one, args.other)
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else explain_text(found))


COMMANDS: dict[str, tuple[Callable, type]] = {"add": (add, Add), "explain": (explain_two, Explain)}

if __name__ == "__main__":
    command, arguments = main, Args
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        command, arguments = COMMANDS[sys.argv[1]]
        sys.argv = [f"{sys.argv[0]} {sys.argv[1]}", *sys.argv[2:]]
    run(command, arguments)

"""A kept result in the forms of other tools: CycloneDX, PROV-JSON, RO-Crate, mergekit, patches of model cards."""

import json
from collections.abc import Callable
from pathlib import Path

from mother.cli.flags import Export
from mother.errors import InputError

Texts = tuple[dict[str, str], list[str]]  # name of the file -> content, and what is to be said


def _kept(folder: Path, name: str) -> dict:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"{folder / name} cannot be read. Run `python recover.py MODEL ... --out {folder} --overwrite` again."
        )
    return content


def _cyclonedx(folder: Path) -> Texts:
    from mother.io.runtime import version
    from mother.report.bom import to_cyclonedx
    from mother.report.kept import read_graph
    from mother.report.write import FILES, SUMMARY

    found = _kept(folder, SUMMARY)
    licences = found.get("licences", {}).get("declared", {})
    return {
        "bom.cdx.json": to_cyclonedx(read_graph(folder), _kept(folder, FILES), found["date"], version(), licences)
    }, []


def _prov(folder: Path) -> Texts:
    from mother.report.bom import to_prov
    from mother.report.kept import read_graph
    from mother.report.write import FILES

    return {"provenance.json": to_prov(read_graph(folder), _kept(folder, FILES))}, []


def _rocrate(folder: Path) -> Texts:
    from mother.graph.model_graph import GRAPH
    from mother.io.runtime import version
    from mother.report.crate import METADATA, to_crate
    from mother.report.kept import read_graph
    from mother.report.write import FILES, SUMMARY

    graph, found, files = read_graph(folder), _kept(folder, SUMMARY), _kept(folder, FILES)
    parts = {name: (folder / name).read_text(encoding="utf-8") for name in (GRAPH, SUMMARY, FILES)}
    return {METADATA: to_crate(graph, files, found, version(), list(parts)), **parts}, []


def _mergekit(folder: Path) -> Texts:
    from mother.report.handover import merge_recipes
    from mother.report.kept import read_graph

    recipes, unknown = merge_recipes(read_graph(folder))
    return recipes, [f"{model} is a merge, but its coefficients are not known" for model in unknown]


def _cards(folder: Path) -> Texts:
    from mother.collection.claims import card_of
    from mother.collection.state import read_state
    from mother.report.handover import card_facts, card_patch, file_name
    from mother.report.kept import read_graph

    graph, patches, open_ = read_graph(folder), {}, 0
    for at, source in enumerate(read_state(folder).sources):
        if source.claims or source.id not in graph.nodes:
            continue
        facts = card_facts(graph, source.id)
        if facts:
            patches[f"{file_name(source.id, at)}.patch"] = card_patch(facts, card_of(source.id, source.location))
        open_ += not facts
    return patches, [f"models that declare nothing, and whose parents are not sure either: {open_}"] if open_ else []


KINDS: dict[str, Callable[[Path], Texts]] = {
    "cyclonedx": _cyclonedx,
    "prov": _prov,
    "rocrate": _rocrate,
    "mergekit": _mergekit,
    "cards": _cards,
}


def export(args: Export) -> None:
    """Write the files of one kind."""
    from mother.io.files import write_text
    from mother.report.kept import check_result

    if args.kind not in KINDS:
        raise InputError(f"there is no export {args.kind}. Choose from {', '.join(KINDS)}.")
    check_result(args.to)
    texts, said = KINDS[args.kind](args.to)
    folder = args.out if args.out is not None else args.to / "exports" / args.kind
    for name, text in texts.items():
        write_text(folder / name, text)
        print(folder / name)
    for words in said:
        print(f"note: {words}")
    if not texts:
        print("nothing to write")

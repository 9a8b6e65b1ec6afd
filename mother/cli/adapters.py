"""The command whose-adapter: the family and the base of an adapter, among models that the user names."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from mother.cli.streams import write_as_json
from mother.errors import InputError

if TYPE_CHECKING:
    from mother.collection.whose import Answer, Candidate


@dataclass
class WhoseAdapter:
    """Whose is an adapter? Its family and its base, from its update and the weights of models that may be it."""

    adapter: tyro.conf.Positional[str]
    """a folder or file of an adapter, or owner/name[@revision][:subfolder] on the Hub"""
    among: tuple[str, ...] = ()
    """the models that may be its base: as for recover"""
    error: float = 1e-3
    """probability that a model is named as family which has nothing to do with the adapter"""
    json: bool = False
    """print all figures as JSON"""


def whose_adapter(args: WhoseAdapter) -> None:
    """Hold an adapter against models, and print which family it is of and which of it is its base."""
    from mother.collection.claims import place_of, read_claims
    from mother.collection.find import Source, search
    from mother.collection.whose import Candidates

    if not args.among:
        raise InputError("name models that may be its base: --among MODEL [MODEL ...].")
    if not 0 < args.error < 1:
        raise InputError(f"the error level must be between 0 and 1, not {args.error}.")
    found = search([args.adapter])
    if len(found.sources) != 1:
        raise InputError(f"{args.adapter} holds {len(found.sources)} models. Name the folder of one adapter.")
    adapter = found.sources[0]
    place = place_of(adapter.id, adapter.location)
    adapter = Source(adapter.id, adapter.location, claims=read_claims(place) if place is not None else ())
    models = [one for one in search(args.among).sources if one.location != adapter.location]
    if not models:
        raise InputError("the adapter itself is no base. Name other models with --among.")
    answer = Candidates(models).answer(adapter, args.error)
    if args.json:
        write_as_json(answer.to_json())
    else:
        sys.stdout.write(answer_text(answer) + "\n")


def answer_text(answer: "Answer") -> str:
    """An answer on one screen."""
    from mother.graph.text import format_table

    of = f"{answer.adapter}: {answer.kind}, {answer.weights} weights"
    lines = [of, *(f"says that its base is {claim}" for claim in answer.claims)]
    lines += [f"{base} with this adapter is {merged}, up to rounding" for base, merged in answer.twins]
    held = [one for one in answer.candidates if one.z is not None]
    if answer.family:
        lines.append(f"family: {', '.join(answer.family)} (error {answer.error:g})")
    if answer.family or answer.twins:
        first = answer.candidates[0]
        forms = [one.model for one in held if one.form_of == first.model]
        also = f" (also as {', '.join(forms)})" if forms else ""
        lines.append(f"base: {first.model}{also}, {first.probability:.2f}; none of these {answer.unknown:.2f}")
    elif held:
        lines.append(f"base: unknown. None of {len(held)} models is related to it (error {answer.error:g}).")
    else:
        lines.append("base: unknown. No model says whose it is:")
    if held:
        rows = [[one.model, one.z, _probability(one), one.sides] for one in held]
        lines += ["", format_table(("model", "z", "base", "sides"), rows, left=True)]
    lines += [f"{one.model}: {one.why}" for one in answer.candidates if one.z is None]
    return "\n".join(lines)


def _probability(one: "Candidate") -> str:
    if one.form_of:
        return f"form of {one.form_of}"
    return f"{one.probability:.3f}" if one.related or one.probability else "unrelated"

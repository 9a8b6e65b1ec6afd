"""The flags of the commands for anybody's models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Recover:
    """Recover the Model Graph of any models.

    Other commands: add, explain, export, audit, whose-adapter, and mother index for many models (each with --help).
    """

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """folders, weight files, folders of models, or owner/name[@revision][:subfolder] on the Hugging Face Hub"""
    manifest: Path | None = None
    """a manifest that names the models"""
    author: str | None = None
    """all models of an author or organisation on the Hub"""
    collection: str | None = None
    """all models of a collection on the Hub"""
    from_file: str | None = None
    """a file that names more models, a line each; - for standard input"""
    strict: bool = False
    """end with an error where one of several arguments names no model, instead of leaving it out"""
    state: str | None = None
    """of a checkpoint that holds several sets of weights the one with this word in its name, such as ema"""
    out: Annotated[Path, tyro.conf.arg(aliases=("--to",))] = Path("results/recover")
    """folder for the results"""
    audit: bool = False
    """hold what cards and configurations claim against the weights; exit code 3: a contradiction, 4: another finding
    that is to fail, 0: none"""
    fail_on: str = "contradicted,unreadable"
    """with --audit: findings that end it with a code, of contradicted, undecided, undeclared and unreadable"""
    baseline: Path | None = None
    """with --audit: a file of findings that are accepted: they are listed, and fail nothing"""
    write_baseline: Path | None = None
    """with --audit: accept all findings of this audit, and write them into this file for --baseline"""
    error: float = 0.01
    """probability of a single false relation among independently initialised models"""
    sketch: int = 1 << 16
    """entries that are compared of each matrix, at most"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    overwrite: bool = False
    """make the result again where it is kept"""
    quiet: bool = False
    """print errors only"""
    json: bool = False
    """print the Model Graph as JSON, and nothing else, to standard output"""


@dataclass
class Add:
    """Add models to a result: they are read, the others are not."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """as for recover"""
    to: Annotated[Path, tyro.conf.arg(aliases=("--out",))] = Path("results/recover")
    """folder of the result"""
    state: str | None = None
    """as for recover"""
    strict: bool = False
    """end with an error where one of several arguments names no model, instead of leaving it out"""
    audit: bool = False
    """hold what cards and configurations claim against the weights, as recover --audit does"""
    fail_on: str = "contradicted,unreadable"
    """as for recover"""
    baseline: Path | None = None
    """as for recover"""
    write_baseline: Path | None = None
    """as for recover"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    quiet: bool = False
    """print errors only"""
    json: bool = False
    """print the Model Graph as JSON, and nothing else, to standard output"""


@dataclass
class Explain:
    """Are two models of a result related, how, which came first, how sure? Or: what does one model descend from?"""

    one: tyro.conf.Positional[str]
    """id of a model, the end of one, or its path"""
    other: tyro.conf.Positional[str | None] = None
    """another; without it, the line of descent of the first is told"""
    to: Annotated[Path, tyro.conf.arg(aliases=("--out",))] = Path("results/recover")
    """folder of the result"""
    layers: str | None = None
    """the table of matrices: - prints it, FILE.csv writes it"""
    json: bool = False
    """print all figures as JSON"""


@dataclass
class Export:
    """Write a result for other tools: cyclonedx (ML-BOM), prov (PROV-JSON), rocrate, mergekit, cards (patches)."""

    kind: tyro.conf.Positional[str]
    """cyclonedx, prov, rocrate, mergekit or cards"""
    to: Path = Path("results/recover")
    """folder of the result, which `recover` calls --out"""
    out: Path | None = None
    """folder for the files; otherwise exports/KIND in that of the result"""


@dataclass
class Audit(Recover):
    """Hold what cards and configurations claim against the weights: recover with --audit."""

    audit: bool = True
    """exit code 3: a contradiction, 4: another finding that is to fail, 0: none"""

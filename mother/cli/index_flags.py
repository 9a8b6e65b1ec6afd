"""The flags of the commands of an index."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class Build:
    """Read models into an index; those that are in it and have not changed are not read again."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """folders, weight files, folders of models, manifests, or owner/name[@revision][:subfolder] on the Hub"""
    to: Path = Path("results/index")
    """folder of the index"""
    hub_list: Path | None = None
    """a file that names more models, a line each: repositories, or paths"""
    samples: int = 4096
    """weights of each model in its signature"""
    sketch: int = 1 << 16
    """entries of each matrix that a sketch has, at most; signatures are drawn from these"""
    keep: bool = True
    """keep sketches: kinds and arrows need them; without, an index has some kB for each model"""
    only: bool = False
    """take all models out of the index that are not named; without, those alone that a named folder no longer has"""
    workers: int = 1
    """processes that read"""
    ray: str | None = None
    """local, or the address of a Ray cluster: tasks of it read; the index must be on a disk that all share"""
    quiet: bool = False
    """print errors only"""


@dataclass
class Search:
    """What is a model made from? Its nearest relatives in an index."""

    model: tyro.conf.Positional[str]
    """as for build"""
    index: Annotated[Path, tyro.conf.arg(name="in")] = Path("results/index")
    """folder of the index"""
    error: float = 0.01
    """probability of a false relation among independently initialised models"""
    control: Literal["family", "fdr"] = "family"
    """what error bounds: the probability of any false relation, or the expected share of false ones"""
    signatures_only: bool = False
    """open no model of the index: signatures alone tell, and kept sketches which weights go by other names"""
    json: bool = False
    """print JSON, and nothing else"""


@dataclass
class Graph:
    """The Model Graph of all models of an index."""

    index: Annotated[Path, tyro.conf.arg(name="in")] = Path("results/index")
    """folder of the index"""
    to: Path = Path("results/index_graph")
    """folder for nodes.parquet, edges.parquet and model_graph.json"""
    family: tuple[str, ...] = field(default=())
    """ids of models: of the family of each all files that recover.py writes"""
    error: float = 0.01
    """probability of a false relation among independently initialised models"""
    control: Literal["family", "fdr"] = "family"
    """what error bounds: the probability of any false relation, or the expected share of false ones"""
    workers: int = 1
    """processes that trace"""
    ray: str | None = None
    """local, or the address of a Ray cluster"""
    quiet: bool = False
    """print errors only"""

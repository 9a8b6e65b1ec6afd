"""What lies below the places that a user names and is not read, each file with its reason: no gap is silent."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from mother.errors import CheckpointError, escaped
from mother.io.checkpoint import Checkpoint
from mother.io.places import Place
from mother.io.readers import SUFFIXES
from mother.io.weights import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    is_index,
    is_later_shard,
    loaded_unasked,
    read_index,
    the_only_one,
)

# Weights in formats that are not read, by the end of their names: the longest that fits counts.
UNREAD = {
    ".tar": "an archive",
    ".tar.gz": "an archive",
    ".tgz": "an archive",
    ".zip": "an archive",
    ".7z": "an archive",
    ".ggml": "GGML is not read",
    ".onnx_data": "data of an ONNX file",
    ".onnx.data": "data of an ONNX file",
    ".npz": "numpy files are not read",
    ".npy": "numpy files are not read",
    ".pkl": "a pickle of objects",
    ".pickle": "a pickle of objects",
    ".joblib": "a pickle of objects",
    ".nemo": "NeMo archives are not read",
    ".ot": "files of rust-bert are not read",
    ".tflite": "TensorFlow Lite is not read",
    ".pb": "TensorFlow files are not read",
    ".mlmodel": "Core ML is not read",
    ".engine": "compiled engines are not read",
    ".params": "files of MXNet are not read",
    ".pdparams": "files of Paddle are not read",
}

UNKNOWN = "a type that is not known"
LOOKED_INTO = (UNKNOWN, UNREAD[".pkl"], UNREAD[".tar"])  # reasons of names under which anything may be

# Ends of names of files that hold no weights.
PLAIN = frozenset(
    ".json .jsonl .txt .md .rst .model .vocab .bpe .tiktoken .jinja .py .pyc .pyi .ipynb .yaml .yml .toml "
    ".cfg .ini .sh .bat .html .css .js .csv .tsv .log .lock .tmp .pdf .tex .bib .png .jpg .jpeg .gif "
    ".webp .svg .ico .mp4 .wav .mp3 .parquet .arrow .gitattributes .gitignore .gitkeep .c .h .cpp .cu .rs "
    ".go .java .ts .xml .sarif .graphml .mmd .dot .nwk .metadata .dockerfile .license".split()
)
PLAIN_NAMES = frozenset("license licence notice makefile dockerfile readme latest contributing authors copying".split())
SMALL = 1 << 16  # by eye: bytes below which a file of a name that nobody knows is taken for no weights
STATE = (
    "optimizer",
    "scheduler",
    "training_args",
    "rng_state",
    "scaler",
    "trainer_state",
)  # how files of the state of a training begin


def is_state(name: str) -> bool:
    """Whether a file holds the state of a training, and no model."""
    return name.lower().startswith(STATE)


BARE = "without a suffix"


def suffix(name: str) -> str:
    """The end of a file's name by which its format is known: the longest that is known, or the last."""
    lower = name.lower()
    known = [end for end in (*UNREAD, *SUFFIXES) if lower.endswith(end)]
    if known:
        return max(known, key=len)
    stem, dot, last = lower.rpartition(".")
    return f".{last}" if dot and len(last) <= 12 else BARE


def reason_of(name: str, size: int) -> str | None:
    """Why a file is not read; None where it holds no weights."""
    end, lower = suffix(name), name.lower()
    if end in UNREAD:
        return UNREAD[end]
    if end in SUFFIXES:
        if is_state(lower):
            return "the state of a training"
        if is_later_shard(lower):
            return "a part of a model that its first part leads to"
        return "a shard without its index" if "-of-" in lower else "not the weights that are loaded"
    if end in PLAIN or lower in PLAIN_NAMES or size < SMALL or lower.startswith("events.out."):
        return None
    return UNKNOWN


def holds_no_weights(name: str, size: int) -> bool:
    """Whether a file is one of those that go with models, such as a card or a picture."""
    return not name.lower().endswith((".index.json", *SUFFIXES)) and reason_of(name, size) is None


@dataclass
class Gaps:
    """Files and folders that were found and are not read, with the reason; and how many hold no weights, by suffix."""

    not_read: dict[str, str] = field(default_factory=dict)
    plain: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)  # arguments that name no model
    aside: dict[str, str] = field(default_factory=dict)  # what a model's file holds beside its weights, by model

    def note(self, path: str, name: str, size: int) -> None:
        """Add a file that no model is read from."""
        reason = reason_of(name, size)
        if reason is not None:
            self.not_read[path] = reason
        else:
            self.plain[suffix(name)] = self.plain.get(suffix(name), 0) + 1

    def notes(self) -> tuple[str, ...]:
        """What a reader should know of files that hold no weights, and of files that hold more, in a line each."""
        said = [
            f"left aside in {model}: {what}" + (" (--state takes another)" if " tensors)" in what else "")
            for model, what in self.aside.items()
        ]
        if not self.plain:
            return tuple(said)
        kinds = sorted(self.plain.items(), key=lambda item: (-item[1], item[0]))
        some = ", ".join(f"{count} {end}" for end, count in kinds[:6]) + (", ..." if len(kinds) > 6 else "")
        return (f"{sum(self.plain.values())} files beside the models hold no weights ({some})", *said)

    def joined(self, other: "Gaps") -> "Gaps":
        """Both; what the other says of a path counts."""
        plain = dict(Counter(self.plain) + Counter(other.plain))
        aside = self.aside | other.aside
        return Gaps(self.not_read | other.not_read, plain, self.unusable | other.unusable, aside)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Gaps":
        """What `to_json` gave."""
        aside = {model: str(what) for model, what in dict(content.get("aside", {})).items()}
        return cls(*(dict(content[name]) for name in ("not_read", "plain", "unusable")), aside)


def aside_of(opened: Iterable[Checkpoint]) -> Gaps:
    """What lies beside the weights in the files of models."""
    return Gaps(aside={one.model: escaped(", ".join(one.aside)) for one in opened if one.aside})


def read_files(place: Place, files: Iterable[str]) -> list[str]:
    """Which files of a model's folder hold the weights that are loaded."""
    try:
        winner = loaded_unasked(place)
        files = list(files)
        if winner is None and ADAPTER_CONFIG in files:
            return [name for name in ADAPTER_FILES if name in files][:1]
        winner = winner or the_only_one(place)
        if winner is None or not is_index(winner):
            return [winner] if winner is not None else []
        return [winner, *set(read_index(place.model, place.open(winner)).values())]
    except CheckpointError:  # said when it is opened
        return []


def summary(not_read: Iterable[tuple[str, str]]) -> str:
    """(path, reason) in one line: how many of which suffix, and why."""
    kinds: Counter[tuple[str, str]] = Counter()
    for path, reason in not_read:
        name = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
        kinds["folder" if path.endswith("/") else suffix(name), reason] += 1
    return ", ".join(f"{count} {kind} ({reason})" for (kind, reason), count in kinds.most_common())

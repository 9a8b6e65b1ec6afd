"""Which of the maps of names to tensors in a checkpoint of a training are its weights, and what lies beside them."""

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from mother.io.pickle_names import SomeObject, StoredTensor
from mother.io.reader import DTYPES, MAX_NAME

MOST_STATES = 4096  # maps that are looked at
DEPTH = 64  # levels of a checkpoint, and of the modules in it
MOST_LISTS = 64  # lists of tensors that are held against the names of the weights
LOOKED_AT = 200  # things beside the weights that are looked at, at each level
MOST_NAMED = 12  # things beside the weights that are named
SHOWN = 60  # characters of a name
ASIDE = re.compile(r"(^|[._])(ema|swa|averaged?|shadow|optim\w*|exp_avg\w*|momentum\w*|grads?|master\w*)([._]|$)")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9._]+")  # where words of a name meet
AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)([._]|$)")  # other names of what "ema" asks for
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms
TRAINED = ("weight", "bias")  # what the names of parameters end in; others may be buffers, such as tables
Path = tuple[str, ...]
State = dict[Any, StoredTensor]


class NoState(ValueError):
    """A file has no state of the name that is asked for."""


def words(path: str) -> str:
    """A path in small letters, with a sign between all of its words: `EMACallback` and `ema-callback` are one."""
    return _WORDS.sub("_", path).lower()


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """What is in a container, by its key."""
    if isinstance(value, SomeObject) and value.attributes is not None:
        yield from ((key, one) for key, one in value.attributes.items() if isinstance(key, str))
    if isinstance(value, dict):
        yield from ((key, one) for key, one in value.items() if isinstance(key, str))
    elif isinstance(value, list | tuple):
        yield from ((str(at), one) for at, one in enumerate(value))


def of_module(module: SomeObject, seen: set[int]) -> State:
    """The parameters and buffers of a pickled module, as its state dict names them; those in `seen` are left out.

    Modules of torch keep them and their own modules apart; those of TorchScript have all as attributes.
    """
    found: State = {}
    waiting = [("", module)]
    while waiting:
        prefix, one = waiting.pop()
        if one.attributes is None or id(one) in seen or len(prefix) > MAX_NAME:
            continue
        seen.add(id(one))
        tensors = modules = one.attributes
        if isinstance(one.attributes.get("_modules"), dict):
            modules = one.attributes["_modules"]
            parts = [one.attributes.get(kind) for kind in ("_parameters", "_buffers")]
            tensors = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
        for key, value in tensors.items():
            if isinstance(value, StoredTensor):
                found[None if key is None else prefix + key] = value
        inner = [(f"{prefix}{key}.", value) for key, value in modules.items() if isinstance(value, SomeObject)]
        waiting += inner[::-1]  # in their order, as lists of parameters are
    return found


def find_states(found: Any) -> tuple[dict[Path, State], dict[Path, list[StoredTensor]]]:
    """Every map of names to tensors in what a pickle built, by its path, and every list of tensors; each once."""
    states: dict[Path, State] = {}
    lists: dict[Path, list[StoredTensor]] = {}
    waiting: deque[tuple[Path, Any]] = deque([((), found)])
    seen: set[int] = set()
    modules: set[int] = set()
    while waiting and len(states) < MOST_STATES:
        path, value = waiting.popleft()
        if id(value) in seen or not isinstance(value, dict | list | tuple) or len(path) > DEPTH:
            continue
        seen.add(id(value))
        own = of_module(value, modules) if isinstance(value, SomeObject) else {}
        if isinstance(value, dict):
            own |= {key: one for key, one in value.items() if isinstance(one, StoredTensor)}
        elif value and len(lists) < MOST_LISTS and all(isinstance(one, StoredTensor) for one in value):
            lists[path] = list(value)
        for part, some in _apart(own).items():
            states[(*path, *part)] = some
        for key, one in _children(value):
            if not (own and isinstance(one, SomeObject)) and key not in ("_modules", "_parameters", "_buffers"):
                waiting.append(((*path, key), one))
    return states, lists


def _apart(state: State) -> dict[Path, State]:
    """A state without averages whose names begin with a word of their own, as `model_ema.`, and each of these."""
    found: dict[Path, State] = {}
    for name, tensor in state.items():
        word, dot, rest = name.partition(".") if isinstance(name, str) else ("", "", "")
        own = bool(dot) and ASIDE.search(words(word)) is not None
        found.setdefault((word,) if own else (), {})[rest if own else name] = tensor
    return found if () in found else ({(): state} if state else {})


def averages(states: dict[Path, State], lists: dict[Path, list[StoredTensor]]) -> dict[Path, State | str]:
    """The states that lists of tensors under the name of an average (torch_ema, diffusers) stand for, or why not.

    Such a list has no names: it is one tensor for each parameter of the weights, in their order.
    """
    named = {path: some for path, some in lists.items() if AVERAGE.search(words(".".join(path)))}
    if not (named and states):
        return {}
    by_path = {".".join(path): state for path, state in states.items()}
    weights = by_path[choose({path: entries(state) for path, state in by_path.items()}, None)]
    return {path: _as_weights(".".join(path), some, weights) for path, some in named.items()}


def _as_weights(path: str, tensors: list[StoredTensor], weights: State) -> State | str:
    """The weights with their parameters replaced by a list's; what is no parameter, such as a buffer, stays.

    Parameters are floating-point, and of two that share their numbers the list has the first only.
    """
    own: dict[StoredTensor, Any] = {}
    for name, tensor in weights.items():
        if tensor.storage.dtype in DTYPES and isinstance(name, str) and name.rpartition(".")[2] not in BUFFERS:
            own.setdefault(tensor, name)
    names, shapes = list(own.values()), [tensor.shape for tensor in own]
    wanted = [tensor.shape for tensor in tensors]
    first, last = _places(wanted, shapes), _places(wanted[::-1], shapes[::-1])
    said = f"{path[:SHOWN]} is a list of {len(tensors)} tensors without names"
    left = set(names) - {names[at] for at in first or ()}
    if first is None or last is None or any(name.endswith(TRAINED) for name in left):
        return f"{said}, and the {len(own)} parameters of the weights have not these shapes in this order"
    if first != [len(shapes) - 1 - at for at in reversed(last)]:
        return f"{said}, and which of the {len(own)} parameters of the weights they are is open"
    found = {names[at]: tensor for at, tensor in zip(first, tensors)}
    return {name: found.get(own.get(tensor), tensor) for name, tensor in weights.items()}


def _places(wanted: list[tuple[int, ...]], shapes: list[tuple[int, ...]]) -> list[int] | None:
    """Where some shapes stand among others in their order, each as early as can be; None where they do not."""
    rest = iter(enumerate(shapes))
    found = [next((at for at, shape in rest if shape == one), None) for one in wanted]
    return None if None in found else found


def entries(state: State) -> int:
    """Entries of all tensors of a state."""
    return sum(math.prod(tensor.shape) for tensor in state.values())


def listed(paths: Iterable[str]) -> str:
    """The first of some states, as an error names them."""
    return ", ".join(path[:SHOWN] or "the whole file" for path in islice(paths, MOST_NAMED))


def choose(sizes: dict[str, int], wanted: str | None) -> str:
    """The path of the weights among states of so many entries; raises ValueError where `wanted` is none of them.

    The largest that is no optimizer's and no average; or the largest with `wanted` in its path. Of equal ones it is the
    first, as `sizes` has them: those of fewer levels first, and of these in the order of the file.
    """
    if not sizes:
        raise ValueError("the pickle holds no dictionary of tensors")
    plain = [path for path in sizes if not ASIDE.search(words(path))]
    among = plain or list(sizes)
    if wanted is not None and set(sizes) != {""}:
        asked = re.compile(rf"(^|[._]){re.escape(words(wanted))}([._]|$)")
        among = [path for path in sizes if path == wanted] or [path for path in sizes if asked.search(words(path))]
        if not among and wanted == "ema":
            among = [path for path in sizes if AVERAGE.search(words(path))]
        if not among:
            raise NoState(f"it has no state {wanted!r}, but {listed(sizes)}")
    return max(among, key=sizes.__getitem__)


def beside(found: Any, path: Path, states: dict[Path, State]) -> list[str]:
    """Names of what lies beside a state in a pickle, with the number of tensors in it."""
    own = [other for other in states if len(other) > len(path) and other[: len(path)] == path]
    said = [f"{'.'.join(other)[:SHOWN]} ({len(states[other])} tensors)" for other in own]
    for depth, key in enumerate(path):
        for name, value in islice(_children(found), LOOKED_AT):
            if name == key:
                continue
            whole = (*path[:depth], name)
            tensors = sum(len(state) for other, state in states.items() if other[: depth + 1] == whole)
            tensors += isinstance(value, StoredTensor)
            said.append(".".join(whole)[:SHOWN] + (f" ({tensors} tensors)" if tensors else ""))
        found = dict(_children(found)).get(key)
    return said[:MOST_NAMED] + ([f"{len(said) - MOST_NAMED} more"] if len(said) > MOST_NAMED else [])

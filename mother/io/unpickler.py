"""An unpickler that knows the few names by which torch rebuilds tensors, and gives stand-ins for them.

Every other name becomes a stand-in, too, which does nothing: a class of a model, a setting. So nothing that a pickle
names is ever imported or called; a pickle that names what only an attack would is refused. Time and memory are bounded
by the bytes of the pickle: each operation takes what its own bytes justify, and there are at most MOST_OPERATIONS.
"""

import io
import pickle
from typing import Any

from mother.io.pickle_names import CALLED, STORAGES, Opaque, SomeObject, StoredBytes, StoredTensor, named
from mother.io.reader import MAX_NAME, is_count

MOST_OPERATIONS = 4_000_000  # of a pickle; torch writes about forty for a tensor
MOST_ARGUMENTS = 16  # of a call; torch gives seven at most
MAX_KEY = 100  # characters of a storage's key; torch counts them


def _pairs(arguments: tuple[Any, ...]) -> list[Any]:
    """Keys and values in turn of the one list of pairs that a dictionary is made from."""
    sound = len(arguments) == 1 and isinstance(arguments[0], list)
    if not (sound and all(isinstance(one, list | tuple) and len(one) == 2 for one in arguments[0])):
        raise pickle.UnpicklingError("a dictionary is made from something that is no list of pairs")
    return [item for pair in arguments[0] for item in pair]


class TensorUnpickler(pickle._Unpickler):
    """Builds dictionaries of stand-ins. Nothing outside this module can be named.

    The one in Python, whose memo is a dictionary: that in C makes room for as many entries as a pickle asks for. What
    it may do to objects is cut down to what torch needs: keys are short texts, whose hash takes no time and cannot be
    chosen, and no object gets a state, so that none can be changed after it was checked.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes, start: int = 0):
        self.length = len(content)
        self.stream = io.BytesIO(content)
        self.stream.seek(start)
        self.storages: dict[str, StoredBytes] = {}
        super().__init__(self.stream)

    def load(self) -> Any:
        """What the pickle builds; raises nearly anything where it is damaged or hostile."""
        self._unframer = pickle._Unframer(self._file_read, self._file_readline)
        self.read, self.readinto = self._unframer.read, self._unframer.readinto
        self.readline = self._unframer.readline
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        try:
            for _ in range(MOST_OPERATIONS):
                key = read(1)
                if not key:
                    raise EOFError
                dispatch[key[0]](self)
        except pickle._Stop as stopped:
            return stopped.value
        raise pickle.UnpicklingError(f"it has more than {MOST_OPERATIONS} operations")

    def find_class(self, module: str, name: str) -> Any:
        return named(module, name)

    def persistent_load(self, pid: Any) -> Any:
        # ("storage", type, key, device, number of entries), before torch 1.6 with a view; or ("module", class, ...)
        if isinstance(pid, tuple) and len(pid) == 4 and isinstance(pid[0], str) and pid[0] == "module":
            return pid[1]
        sound = isinstance(pid, tuple) and len(pid) in (5, 6) and all(isinstance(one, str) for one in pid[:3])
        if not (sound and pid[0] == "storage" and pid[1] in {*STORAGES.values()}):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if len(pid[2]) > MAX_KEY:
            raise pickle.UnpicklingError("it refers to a storage of an impossible name")
        if pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("a storage is a part of another one")
        count = pid[4] if is_count(pid[4]) else 0
        found = StoredBytes(pid[1], pid[2], count)
        self.storages.setdefault(pid[2], found)
        return found

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError("it sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if isinstance(key, str) and len(key) <= MAX_NAME:
                target[key] = value
            elif isinstance(value, StoredTensor) and isinstance(key, str | int | float | None):
                # Numbers can be chosen to have one hash, and long texts to be compared: no such key is kept, nor one
                # that is no plain value. A tensor under one is, so that it is refused where it matters.
                target[None] = value

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if isinstance(function, Opaque):
            self.stack[-1] = SomeObject()
            return
        known = any(function is one for one in CALLED)
        if not known or not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
            raise pickle.UnpicklingError("it calls something that is no part of a model")
        if function is dict and arguments:
            # Python 2 gives an ordered dictionary the list of its pairs.
            self.stack[-1] = {}
            self._set(_pairs(arguments))
            return
        self.stack[-1] = function(*arguments)

    def _new(self, kind: Any) -> None:
        if not isinstance(kind, Opaque) and kind is not dict:
            raise pickle.UnpicklingError("it builds objects of something that is no class")
        self.append({} if kind is dict else SomeObject())

    def _load_newobj(self) -> None:
        self.stack.pop()  # what it is made from
        self._new(self.stack.pop())

    def _load_newobj_ex(self) -> None:
        self.stack.pop()
        self._load_newobj()

    def _load_obj(self) -> None:
        self._new((self.pop_mark() or [None])[0])

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.pop_mark()
        self._new(self.find_class(module, name))

    def _load_build(self) -> None:
        state = self.stack.pop()  # of anything but objects we need no attribute
        built = self.stack[-1]
        if type(built) is SomeObject and built.attributes is None:
            parts = state if isinstance(state, tuple) else (state,)
            built.attributes = next((part for part in parts[:2] if isinstance(part, dict)), None)

    def _load_append(self) -> None:
        self._extend([self.stack.pop()])

    def _load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif type(self.stack[-1]) is not SomeObject:
            raise pickle.UnpicklingError("it adds to something that is no list")

    def _load_empty_set(self) -> None:
        self.append(SomeObject())  # hashes of what is in a set could be chosen

    def _load_frozenset(self) -> None:
        self.pop_mark()
        self.append(SomeObject())

    def _remember(self, place: int) -> None:
        # Picklers count; places that somebody chose could have one hash.
        if not 0 <= place <= self.length:
            raise pickle.UnpicklingError("it remembers something at an impossible place")
        self.memo[place] = self.stack[-1]

    def _load_put(self) -> None:
        self._remember(int(self.readline()[:-1]))

    def _load_binput(self) -> None:
        self._remember(self.read(1)[0])

    def _load_long_binput(self) -> None:
        self._remember(int.from_bytes(self.read(4), "little"))

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it builds objects of its own")


# Extensions name what we cannot see; the others make room before they read, or read from elsewhere.
_REFUSED = (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)

TensorUnpickler.dispatch |= {
    pickle.SETITEM[0]: TensorUnpickler._load_setitem,
    pickle.SETITEMS[0]: TensorUnpickler._load_setitems,
    pickle.DICT[0]: TensorUnpickler._load_dict,
    pickle.REDUCE[0]: TensorUnpickler._load_reduce,
    pickle.NEWOBJ[0]: TensorUnpickler._load_newobj,
    pickle.NEWOBJ_EX[0]: TensorUnpickler._load_newobj_ex,
    pickle.OBJ[0]: TensorUnpickler._load_obj,
    pickle.INST[0]: TensorUnpickler._load_inst,
    pickle.BUILD[0]: TensorUnpickler._load_build,
    pickle.APPEND[0]: TensorUnpickler._load_append,
    pickle.APPENDS[0]: TensorUnpickler._load_appends,
    pickle.EMPTY_SET[0]: TensorUnpickler._load_empty_set,
    pickle.ADDITEMS[0]: TensorUnpickler._load_appends,
    pickle.FROZENSET[0]: TensorUnpickler._load_frozenset,
    pickle.PUT[0]: TensorUnpickler._load_put,
    pickle.BINPUT[0]: TensorUnpickler._load_binput,
    pickle.LONG_BINPUT[0]: TensorUnpickler._load_long_binput,
    **{code[0]: TensorUnpickler._refuse for code in _REFUSED},
}

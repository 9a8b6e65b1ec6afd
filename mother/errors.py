"""Errors that a user can act on. Scripts print them in one line; they never show a traceback for them."""


def escaped(text: str) -> str:
    """A text of one line in which only letters that can be shown stand as they are, others as escapes such as \\u202e.

    Names of files, tensors and cards come from strangers: they could move a cursor, colour a line or turn it round.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: object, most: int = 100) -> str:
    """A value from a file as part of a message: in ASCII, and short whatever it is."""
    try:
        return ascii(value)[:most]
    except (RecursionError, ValueError):  # nested more deeply, or a number longer, than Python prints
        return f"a {type(value).__name__}"


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what, where and what to do, in one line."""

    def __init__(self, message: str):
        super().__init__(escaped(message))


class ManifestError(InputError):
    """A manifest is not usable.

    `file` is the manifest, `reason` what is wrong with which node, `remedy` what to change.
    """

    def __init__(self, file: object, reason: str, remedy: str):
        self.file, self.reason, self.remedy = str(file), reason, remedy
        super().__init__(f"{file}: {reason}. {remedy}")

    def __reduce__(self) -> tuple:
        """As itself from a worker: a pool breaks at an error that it cannot read."""
        return type(self), (self.file, self.reason, self.remedy)


class CheckpointError(InputError):
    """One model cannot be used; the others of the run go on.

    `model` is its id in the manifest, `file` where the fault is, `reason` what is wrong (with the
    tensor's name where there is one), `remedy` what to do about it. `transient` tells that the same may go well later,
    so that nothing measured without the model is kept.
    """

    def __init__(self, model: str, file: object, reason: str, remedy: str, transient: bool = False):
        self.model, self.file, self.reason, self.remedy = model, str(file), reason, remedy
        self.transient = transient
        super().__init__(f"model {model}: {reason} ({file}). {remedy}")

    def __reduce__(self) -> tuple:
        """As itself from a worker."""
        return type(self), (self.model, self.file, self.reason, self.remedy, self.transient)

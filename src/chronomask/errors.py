"""Errors meant for people: one message that names the value, the place and the way out.

Everything chronomask refuses on purpose is a :class:`ChronomaskError`; the command line prints its
message alone (no traceback) and exits with its ``exit_code``. Anything else is a bug of ours.
"""

import difflib
import importlib
import importlib.util
import shlex
import sys
from collections.abc import Iterable
from typing import Any
from unicodedata import category

__all__ = [
    "ChronomaskError",
    "DataError",
    "OutOfTime",
    "RunError",
    "Stopped",
    "UsageError",
    "amount",
    "check_installed",
    "harmless",
    "in_words",
    "middle_out",
    "nearest",
    "need",
    "printable",
    "python_command",
    "shown",
]


class ChronomaskError(Exception):
    """Base of every deliberate refusal; ``exit_code`` is what the command line exits with."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        """``message``: what acts on a terminal is escaped in it, for it may hold names of any file."""
        super().__init__("\n".join(map(printable, message.split("\n"))))

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, for another process: a subclass need not take what it was made of."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[ChronomaskError], args: tuple[Any, ...], values: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.__dict__.update(values)
    return error


class UsageError(ChronomaskError):
    """A request that cannot be met: an unknown name, key or value, or a path that does not exist."""

    exit_code = 2


class DataError(ChronomaskError):
    """A file exists but is not what it claims to be: empty, truncated, corrupt, of another kind."""


class RunError(ChronomaskError):
    """Work that started could not continue: a full disk, a non-finite loss, no usable checkpoint."""


class Stopped(ChronomaskError):
    """Work stopped on request with its state saved; exits like a process ended by the signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class OutOfTime(ChronomaskError):
    """A call has used the time it was given, and what it was at is saved: the same call goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def amount(number: int, units: str) -> str:
    """A number with what it counts; ``units`` in the plural, which ends in s.

    >>> [amount(number, "rows") for number in (0, 1, 1234)]
    ['0 rows', '1 row', '1,234 rows']
    """
    return f"{number:,} {units[:-1] if number == 1 else units}"


_LISTED = 40
"""Valid names that a message lists, so that a folder of thousands of files does not fill the screen."""


def nearest(name: str, valid: Iterable[str], listed: int = _LISTED) -> str:
    """A sentence that lists the first valid names, led by the nearest one to ``name`` if one is near.

    >>> nearest("cosin", ["constant", "cosine_decay"])
    "did you mean 'cosine_decay'? Valid: constant, cosine_decay"
    """
    names = [str(item) for item in valid]
    # Capitals are no difference where someone has mistyped a name.
    spelt = {item.casefold(): item for item in reversed(names)}
    typed = name[:80].casefold()
    likely = difflib.get_close_matches(typed, spelt, cutoff=0.5)
    close = [spelt[found] for found in likely if _is_near(typed, found)]
    listing = ", ".join(names[:listed])
    if len(names) > listed:
        listing += f" and {len(names) - listed} more"
    if close:
        return f"did you mean '{close[0]}'? Valid: {listing}"
    return f"valid: {listing}" if names else "there is none to choose from"


def _is_near(typed: str, name: str) -> bool:
    """Whether two names differ in two letters, or a third of them, beside what one has before or after; or
    one is the other with letters left out.
    """
    changes = difflib.SequenceMatcher(None, typed, name, autojunk=False).get_opcodes()
    if {what for what, *_ in changes} <= {"equal", "insert"}:
        return True
    differ = sum(
        max(b - a, d - c)
        for k, (what, a, b, c, d) in enumerate(changes)
        if what == "replace" or (what != "equal" and 0 < k < len(changes) - 1)
    )
    return differ <= max(2, len(typed) // 3)


def shown(value: object, limit: int = 80) -> str:
    """``repr`` of a value for a message: at most ``limit`` characters, on one line.

    Control characters and those that change the direction of writing are escaped.

    >>> shown("a" * 200, limit=20)
    "'aaaaaaaaaaa … aaaa'"
    """
    text = repr(value).replace("\n", " ")
    if len(text) <= limit:
        return text
    tail = (limit - 3) // 3
    return f"{text[: limit - 3 - tail]} … {text[-tail:]}"


def printable(text: object) -> str:
    """Text with everything escaped that acts on a terminal, ends a line or cannot be written.

    A byte of a file name that is no UTF-8 is shown as that byte.

    >>> printable("caf\\udce9\\n.txt")
    'caf\\\\xe9\\\\n.txt'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


_HARMLESS = "\n\t\u200c\u200d"
"""Line ends, tabs, and what joins letters or parts them in Persian, in scripts of India and in emoji."""


def harmless(text: object) -> str:
    """Text of any number of lines in which everything is escaped that acts on a terminal in another way than
    by a line's end, a tab, a blank of any kind, or the shape of the letters beside it.

    >>> harmless("a\\u00a0b\\x1b[2J\\n")
    'a\\xa0b\\\\x1b[2J\\n'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c in _HARMLESS or category(c) == "Zs" else printable(c) for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how the system hands over such a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


def middle_out(name: str, limit: int) -> str:
    """A name of at most ``limit`` characters, the middle of a longer one left out."""
    half = limit // 2 - 1
    return name if len(name) <= limit else f"{name[:half]}…{name[-half:]}"


def in_words(error: BaseException) -> str:
    """An error of a file or of what reads it, as part of a sentence on one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    kind = "" if isinstance(error, OSError) and text else type(error).__name__
    return middle_out(printable(": ".join(filter(None, (kind, text)))), 300)


def python_command(*words: str) -> str:
    """A command of the Python that runs this, as a shell takes it: ``python`` may be another, or none.

    >>> python_command("-m", "spacy").endswith(" -m spacy")
    True
    """
    return shlex.join([sys.executable or "python", *words])


def need(module: str, extra: str, purpose: str) -> Any:
    """The module of an optional package; raises UsageError that says how to install it.

    ``extra``: the extra of chronomask that brings it; ``purpose``: what it is needed for, as the start
    of a sentence, such as "reading Parquet files".
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _not_installed(error.name or module, extra, purpose) from None


def check_installed(package: str, extra: str, purpose: str) -> None:
    """Raise the UsageError of :func:`need` for a package that is not there, without loading it."""
    try:
        there = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        raise _not_installed(package, extra, purpose)


def _not_installed(module: str, extra: str, purpose: str) -> UsageError:
    return UsageError(
        f"{purpose} needs the package '{module.partition('.')[0]}', which is not installed: "
        f"pip install 'chronomask[{extra}]'"
    )

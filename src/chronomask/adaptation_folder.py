"""The folder that an adaptation writes: whether it may, how it is known again, and what is its own in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from chronomask.errors import UsageError
from chronomask.folders import is_of_preparation, is_of_training, what_it_is
from chronomask.prepare.read.find import find_local, is_address
from chronomask.prepare.read.left_out import Skipped
from chronomask.storage import as_a_shell_has_it, refuse_file, write_text

__all__ = ["check_apart", "check_output", "mark", "parts_in"]

_MARK = ".adaptation"
"""The file by which the folder is known from the first moment on."""
_PARTS = (
    "data", "data-before", "also", "also-before", "tokenizer", "start", "before", "run", "after", "model",
    "summary.json",
)  # fmt: skip
"""What an adaptation writes."""
_LOG = "metrics.jsonl"
"""A file of the run in it that would be read as text."""


def check_output(out: Path, checkpoint: str | Path) -> None:
    """Raise UsageError where ``out`` is no folder, holds the checkpoint, or what no adaptation wrote."""
    refuse_file(out, "an adaptation")
    path = as_a_shell_has_it(checkpoint)
    if path.exists() and _is_within(path, out):
        lies = "is" if path.resolve() == out.resolve() else f"holds {checkpoint},"
        raise UsageError(f"{out} {lies} the checkpoint that is continued: choose another --out")
    if not _may_write(out):
        raise UsageError(
            f"{out} is not empty and holds no adaptation{what_it_is(out)}; choose another --out"
        )


def _may_write(out: Path) -> bool:
    """Whether ``out`` is free, or an adaptation, finished or not."""
    if not out.exists() or (out / _MARK).is_file():
        return True
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if not names:
        return True
    # One that an earlier version began has no mark: the text is prepared first, and the model comes last.
    in_order = is_of_training(out / "run") or not names & {"after", "model", "summary.json"}
    return names <= set(_PARTS) and is_of_preparation(out / "data") and in_order


def check_apart(out: Path, texts: Sequence[str | Path]) -> None:
    """Raise UsageError where a text lies in ``out``, or ``out`` where it would be read as text."""
    for text in map(str, texts):
        path = Path(text.removeprefix("file://"))
        if is_address(str(path)):
            continue
        path = as_a_shell_has_it(path)
        if _holds(out, path):
            raise UsageError(f"--out {out}: the text {text} lies in it; choose another --out")
        if _is_searched(out, path):
            raise UsageError(
                f"--out {out} lies in {text}, and what is written there would be read as text; choose a "
                "folder outside of it"
            )


def _holds(out: Path, path: Path) -> bool:
    """Whether a text, or a file that its pattern matches, lies in ``out``."""
    files = [path] if path.exists() else find_local(path, Skipped())
    return any(_is_within(file, out) for file in files)


def _is_searched(out: Path, path: Path) -> bool:
    """Whether a folder of text, or a pattern that goes into depth, finds the run's logs in ``out``."""
    if path.is_dir():
        return _is_within(out, path)
    fixed = next((n for n, part in enumerate(path.parts) if set(part) & set("*?[")), None)
    if fixed is None or "**" not in path.parts:
        return False
    return _is_within(out, Path(*path.parts[:fixed])) and fnmatch(_LOG, path.parts[-1])


def _is_within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


@contextmanager
def mark(out: Path) -> Iterator[None]:
    """Mark ``out`` as an adaptation's before anything is written there; a refusal that left nothing else
    there takes the mark away again.
    """
    made = not out.exists()
    write_text(out / _MARK, "chronomask adapt writes this folder.\n")
    try:
        yield
    except BaseException:
        if not parts_in(out):
            (out / _MARK).unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    out.rmdir()
        raise


def parts_in(out: Path) -> str:
    """What is there of an adaptation, to be listed in a message: a folder may hold files of others too."""
    return ", ".join(name for name in _PARTS if (out / name).exists())

"""The command line: a file for commands that belong together, each a thin call into its room.

Exit codes: 0 done; 1 the work failed; 2 the request was wrong; 75 the time given was used up, and the same
command goes on; 128 + signal when stopped by one.
Nothing heavy is imported before a request has been checked, so that help and refusals are instant.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from chronomask import __version__
from chronomask.cli import data, study
from chronomask.cli.adapt import adapt, push
from chronomask.cli.evaluate import compare, evaluate
from chronomask.cli.inspect import inspect
from chronomask.cli.options import HELP_FLAGS, Commands, show_help
from chronomask.cli.prepare import prepare
from chronomask.cli.pretrain import pretrain, replay
from chronomask.cli.recipes import recipes
from chronomask.cli.study import quickstart, report
from chronomask.errors import ChronomaskError, Stopped, UsageError, harmless, printable, shown

__all__ = ["app", "main"]

_CommandLineError: type[Exception] = typer.BadParameter.__bases__[0]  # typer's own, not exported

app = Commands(
    help="Pre-train masked language models with masking that changes over training.",
    context_settings=HELP_FLAGS,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
"""All commands."""

_TRAIN, _MEASURE, _LOOK = "From text to a model", "Compare", "Look and learn"
app.command(rich_help_panel=_TRAIN, context_settings=HELP_FLAGS)(prepare)
app.command(rich_help_panel=_TRAIN, context_settings=HELP_FLAGS)(pretrain)
app.command(rich_help_panel=_TRAIN, context_settings=HELP_FLAGS)(adapt)
app.command(rich_help_panel=_TRAIN, context_settings=HELP_FLAGS)(replay)
app.command(rich_help_panel=_TRAIN, context_settings=HELP_FLAGS)(push)
app.command(rich_help_panel=_MEASURE, context_settings=HELP_FLAGS)(evaluate)
app.command(rich_help_panel=_MEASURE, context_settings=HELP_FLAGS)(compare)
app.add_typer(study.app, name="study", rich_help_panel=_MEASURE)
app.command(rich_help_panel=_MEASURE, context_settings=HELP_FLAGS)(report)
app.command(rich_help_panel=_LOOK, context_settings=HELP_FLAGS)(quickstart)
app.command(rich_help_panel=_LOOK, context_settings=HELP_FLAGS)(inspect)
app.add_typer(data.app, name="data", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK, context_settings=HELP_FLAGS)(recipes)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"chronomask {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _all(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    show_help(context)


_INTERRUPTED = 130
"""The exit code where Ctrl-C ended a command, as a shell gives it."""
_RIGHT = ", or let its owner give this user the right, such as with chmod"
_ROOM = ", or make room"
_OF_THE_PLACE = {
    errno.EACCES: _RIGHT, errno.EPERM: _RIGHT, errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM,
    errno.EROFS: "", errno.ENAMETOOLONG: "", errno.ELOOP: "",
}  # fmt: skip
"""What a system refuses because of the place that was named, wherever it is met, and what else may help."""
_LOST_ANOTHER = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
"""What gloo and NCCL say in a process that waits for one that has ended, which is no cause."""
_ALONE = {
    "adapt": "; on several devices, pretrain adapt --model MODEL --data DATA continues a model, on text that "
    "was prepared with its tokenizer",
    "evaluate": "; tasks may be evaluated by several commands at once, each on a device of its own",
    "prepare": "; --workers sets how many processes it uses here, and --only shares it with other machines",
    "quickstart": "",
    "replay": "",
    "study": "; study run --workers sets how many of its runs go on at once",
}
"""Commands that torchrun cannot share out, and what can."""
_GO_ON = ("adapt", "evaluate", "prepare", "quickstart", "study")
"""Commands that keep what they have done, and take no option to go on."""


def _how_to_go_on(words: Sequence[str]) -> str:
    """How an interrupted command does what is left; empty where it keeps nothing."""
    if words[0] not in _GO_ON:
        return ""
    same = "without --force it" if "--force" in words else "the same command"
    return f"; {same} goes on with what is left"


def main() -> None:
    """Entry point: deliberate refusals become one message on stderr and an exit code."""
    # Threads that wait without spinning: on a shared machine spinning ones starve everybody.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _replace_closed_outputs()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_HarmlessFormatter())
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal of few characters shows ? for the others
        sys.stdout.reconfigure(errors="replace")
    fault = None
    try:
        _refuse_no_docstrings()
        _refuse_lost_folder()
        _refuse_empty(sys.argv)
        _refuse_several(sys.argv[1:2])
        sys.argv[1:] = map(_in_home_folder, sys.argv[1:])
        with _circles_as_the_system_says():
            code = app(prog_name="chronomask", standalone_mode=False)
        if code == _INTERRUPTED:
            _refuse(f"interrupted{_how_to_go_on(sys.argv[1:])}")
    except ChronomaskError as error:
        if not _said_elsewhere(error):
            _refuse(str(error))
        code = error.exit_code
    except _CommandLineError as error:
        context = getattr(error, "ctx", None)
        command = "chronomask" if context is None else context.command_path
        message = error.format_message().rstrip(".").replace(": Value error, ", ": ")  # pyright: ignore
        _refuse(f"{message}; see {command} --help")
        code = 2
    except BrokenPipeError:
        code = 1
    except OSError as error:
        if error.errno in _OF_THE_PLACE and error.filename:
            way_out = "name another place" + _OF_THE_PLACE[error.errno]
            message = f"{error.filename}: {error.strerror}; {way_out}"
            _tell_launcher(message)
            _refuse(message)
        else:
            fault = _fault_of_output(more="\n")  # unbuffered output does not fail again by itself
            if fault is None or fault.errno != error.errno:
                _tell_launcher(str(error))
                raise
        code = 1
    except Exception as error:
        if not any(words in str(error) for words in _LOST_ANOTHER):
            _tell_launcher(f"{type(error).__name__}: {error}")
        raise
    fault = fault or _fault_of_output()
    if fault is not None and fault.errno != errno.EPIPE:
        way_out = "send it to another place" + _OF_THE_PLACE.get(fault.errno or 0, "")
        _refuse(f"standard output cannot be written: {fault.strerror}; {way_out}")
    sys.exit(code or (0 if fault is None else 1))


@contextmanager
def _circles_as_the_system_says() -> Iterator[None]:
    """Links that lead back to one another are an error of the system, which before Python 3.13
    ``Path.resolve`` makes a RuntimeError of.
    """
    try:
        yield
    except RuntimeError as error:
        said = error.__context__
        if isinstance(said, OSError) and said.errno == errno.ELOOP:
            raise said from None
        raise


def _fault_of_output(more: str = "") -> OSError | None:
    """What the system says where what was printed, and ``more``, cannot be written, as on a full disk; None
    where it can.

    What is left of it is dropped, for Python would try again at the end, and show a traceback.
    """
    if sys.stdout is None or sys.stdout.closed:
        return None
    try:
        if more:
            sys.stdout.write(more)
        sys.stdout.flush()
    except OSError as error:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return error
    return None


class _HarmlessFormatter(logging.Formatter):
    """Warnings in which nothing acts on a terminal: they name files, and what was read from these."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def _replace_closed_outputs() -> None:
    """Give what is printed a place where standard output or error is closed, which Python has as None.

    It has the number of the closed one, for other processes too: else the next file that is opened would have
    it, and what libraries write there.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _refuse_no_docstrings() -> None:
    """Raise UsageError under ``python -OO``, with which transformers cannot be imported."""
    if sys.flags.optimize > 1:
        raise UsageError(
            "python -OO (or PYTHONOPTIMIZE=2) takes out docstrings, which transformers reads as it starts: "
            "use -O, or neither"
        )


def _refuse_lost_folder() -> None:
    """Raise UsageError where the current folder is gone; libraries would end the process without a reason."""
    try:
        os.getcwd()  # noqa: PTH109  # no path is wanted
    except FileNotFoundError:
        raise UsageError(
            "the current folder was removed, and maybe another of its name made: go to one that is there, "
            'such as with  cd "$PWD"'
        ) from None


def _refuse_empty(words: Sequence[str]) -> None:
    """Raise UsageError for an argument of no characters: as a path it would mean the current folder."""
    for before, word in pairwise(words):
        flag, equals, value = word.partition("=")
        is_empty_flag = flag.startswith("--") and equals and not value
        if not word or is_empty_flag:
            where = (
                f"the value of {flag}" if is_empty_flag else f"the argument behind {shown(before)}"
            )
            raise UsageError(
                f"{where} is empty, as a variable of the shell without a value makes it; give one, or leave "
                "it out"
            )


def _refuse_several(command: Sequence[str]) -> None:
    """Raise UsageError where torchrun started a command several times that runs once."""
    size = os.environ.get("WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    for name in {*command} & {*_ALONE}:
        if size != "1":
            raise UsageError(
                f"{name} runs in one process, and torchrun started {size}: start it without torchrun"
                f"{_ALONE[name]}"
            )


def _in_home_folder(word: str) -> str:
    """An argument whose path begins with ``~/``, as the shell has it where it stands alone.

    A shell leaves the ``~`` of ``--out=~/run``, which would make a folder of that name.
    """
    flag, equals, path = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if not path.startswith("~/"):
        return word
    from chronomask.storage import as_a_shell_has_it

    return f"{flag}{equals}{as_a_shell_has_it(path)}"


def _said_elsewhere(error: ChronomaskError) -> bool:
    """Whether this is one of several processes, and another one or ``torchrun`` says what it would say.

    All processes of a run refuse the same request and stop at the same step, and the first one says so. What
    happened to one of them alone stands in its error file, which ``torchrun`` reads into its last message.
    """
    told = _tell_launcher(str(error))
    return told and os.environ["RANK"] != "0" and isinstance(error, Stopped | UsageError)


def _tell_launcher(message: str) -> bool:
    """Let ``torchrun`` have the reason why this process ends; whether it started this and others."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if "RANK" not in os.environ or file is None:
        return False
    # torchrun reports the earliest error as the cause. This one is dated a second back, so that it comes
    # before the errors of processes that only lost their peer.
    when = {"timestamp": str(int(time.time()) - 1)}
    with suppress(OSError):
        Path(file).write_text(json.dumps({"message": {"message": message, "extraInfo": when}}))
    return True


def _refuse(message: str) -> None:
    """Print a message; characters that would act on the terminal are shown instead."""
    harmless = "\n".join(map(printable, message.split("\n")))
    print(f"chronomask: {harmless}", file=sys.stderr)

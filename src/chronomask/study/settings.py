"""What runs and tasks say of their settings, as the command line of a study names these."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from chronomask.errors import ChronomaskError
from chronomask.train.config import RunConfig

__all__ = ["as_setting_of_run", "as_setting_of_task", "naming_settings"]

_ADVICE = re.compile(
    r"(?P<before>\b(?:set|or|and|with|give) |--set '?)"
    rf"(?P<key>(?:{'|'.join(RunConfig.model_fields)})\b[\w.]*)=(?P<value>\[.*?\]|[^\s=;,]*[^\s=;,.:)'])"
)
"""A setting of a run with a value, where a message advises it."""


def as_setting_of_task(text: str, task: str) -> str:
    """A message of a task with its settings named as a study's command line names them."""
    return text.replace(f"--set {task}.", f"--set tasks.{task}.settings.")


def as_setting_of_run(text: str, arm: str = "", declared: Iterable[str] = ()) -> str:
    """A message of a run with its settings named so: those of the base, and those that ``arm`` has of its own
    because they are or are within ``declared``, or hold one of these.

    >>> as_setting_of_run("set steps=9 or masking.budget=row", "late", ["masking"])
    'set base.steps=9 or arms.late.masking.budget=row'

    A name that a dotted key or a shell would cut apart stands in a group of arms.
    """
    own = tuple(f"{field}." for field in declared)

    def name(advice: re.Match[str]) -> str:
        before, key, value = advice["before"], advice["key"], advice["value"]
        of_arm = any(f"{key}.".startswith(field) or field.startswith(f"{key}.") for field in own)
        if of_arm and not re.fullmatch(r"[\w-]+", arm):
            quote = "" if before.endswith("'") else "'"
            group = f"{{{json.dumps(arm, ensure_ascii=False)}: {{{key}: {value}}}}}"
            return f"{before}{quote}arms={group}{quote}"
        return f"{before}{f'arms.{arm}' if of_arm else 'base'}.{key}={value}"

    return _ADVICE.sub(name, text)


@contextmanager
def naming_settings(arm: str = "", declared: Iterable[str] = ()) -> Iterator[None]:
    """Let what is raised and logged of a run while this is open name settings as a study does."""
    declared = tuple(declared)
    make = logging.getLogRecordFactory()

    def make_named(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        if record.name.startswith("chronomask"):
            record.msg = as_setting_of_run(record.getMessage(), arm, declared)
            record.args = None
        return record

    logging.setLogRecordFactory(make_named)
    try:
        yield
    except ChronomaskError as error:
        error.args = (as_setting_of_run(str(error), arm, declared),)
        raise
    finally:
        logging.setLogRecordFactory(make)

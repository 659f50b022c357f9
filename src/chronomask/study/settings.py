"""What runs and tasks say of their settings, as the command line of a study names these."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from chronomask.errors import ChronomaskError
from chronomask.prepare.config import PrepareConfig
from chronomask.train.config import RunConfig

__all__ = [
    "as_setting_of_preparation",
    "as_setting_of_run",
    "as_setting_of_task",
    "naming_settings",
    "naming_settings_of_preparation",
    "naming_settings_of_task",
]


def _advice(fields: Iterable[str]) -> re.Pattern[str]:
    """What matches a setting within ``fields`` with a value, where a message advises it."""
    return re.compile(
        r"(?P<before>\b(?:set|or|and|with|give|such as) |--set '?)"
        rf"(?P<key>(?:{'|'.join(fields)})\b[\w.]*)=(?P<value>\[.*?\]|[^\s=;,]*[^\s=;,.:)'])"
    )


_ADVICE = _advice(RunConfig.model_fields)
_ADVICE_OF_PREPARATION = _advice(PrepareConfig.model_fields)


def as_setting_of_task(text: str, task: str) -> str:
    """A message of a task with its settings named as a study's command line names them."""
    return re.sub(rf"(--set '?){re.escape(task)}\.", rf"\1tasks.{task}.settings.", text)


def as_setting_of_preparation(text: str) -> str:
    """A message of a preparation with its settings named as a study's command line names them.

    >>> as_setting_of_preparation("--set text_key=NAME names the field")
    '--set prepare.text_key=NAME names the field'
    """
    return _ADVICE_OF_PREPARATION.sub(r"\g<before>prepare.\g<key>=\g<value>", text)


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


def naming_settings(arm: str = "", declared: Iterable[str] = ()) -> AbstractContextManager[None]:
    """Let what is raised and logged of a run while this is open name settings as a study does."""
    return _said_as(partial(as_setting_of_run, arm=arm, declared=tuple(declared)))


def naming_settings_of_preparation() -> AbstractContextManager[None]:
    """The same for what is raised and logged of a preparation."""
    return _said_as(as_setting_of_preparation)


def naming_settings_of_task(task: str) -> AbstractContextManager[None]:
    """The same for what is raised and logged of an evaluation on a task."""
    return _said_as(partial(as_setting_of_task, task=task))


@contextmanager
def _said_as(name: Callable[[str], str]) -> Iterator[None]:
    """Let what is raised and logged while this is open be as ``name`` changes it."""
    make = logging.getLogRecordFactory()

    def make_named(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        if record.name.startswith("chronomask"):
            record.msg = name(record.getMessage())
            record.args = None
        return record

    logging.setLogRecordFactory(make_named)
    try:
        yield
    except ChronomaskError as error:
        error.args = (name(str(error)),)
        raise
    finally:
        logging.setLogRecordFactory(make)

"""Fills HTML templates: every page extends ``base.html`` and so shares ``style.css``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chronomask.errors import RunError, UsageError

__all__ = ["render", "write_text"]

_FOLDER = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """The template at ``template`` filled with ``values``, all of them escaped for HTML.

    It may extend ``base.html`` and include ``style.css`` of this folder. Text that is markup
    already must come as :class:`markupsafe.Markup`.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none: a reader never sees half of it.

    Raises :class:`UsageError` if the folder cannot be made and :class:`RunError` if writing fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be used as a folder: {error.strerror}") from None
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise RunError(f"{path} could not be written: {error.strerror or error}") from None
